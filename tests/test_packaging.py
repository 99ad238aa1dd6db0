"""What users install: extras that resolve on every Python to the tested set, and a wheel that works by itself."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from entropy_grpo.config import shipped

from .conftest import REPOSITORY, TINY_DEMO
from .test_project import PINS, copied_by_docker

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OTHERS = tuple(extra for extra in PROJECT["optional-dependencies"] if extra != "vllm")
UV = Path(sys.executable).parent / "uv"
VERSIONS = [line.split()[-1] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]


def resolve(requirements, python, *words):
    """The versions, by package, with which a file of requirements resolves on Linux with a GPU."""
    command = [UV, "pip", "compile", requirements, "--quiet", "--no-header", "--no-annotate"]
    command += ["--python-version", python, "--python-platform", "x86_64-manylinux_2_28", *words]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    if "Failed to fetch" in result.stderr or "Could not connect" in result.stderr:
        pytest.skip("no package index can be reached")
    assert result.returncode == 0, result.stderr
    return dict(line.partition(" ")[0].split("==") for line in result.stdout.splitlines() if "==" in line)


@pytest.mark.slow
def test_pins_of_the_container_are_a_whole_set():
    """pip finds all of them, and they need no other package and no other version, so that `pip check` passes."""
    assert resolve("docker/requirements.txt", "3.12") == PINS


@pytest.mark.slow
@pytest.mark.parametrize("extras", [(), ("vllm",), OTHERS], ids=["alone", "vllm", "all others"])
@pytest.mark.parametrize("python", VERSIONS)
def test_extras_resolve(extras, python):
    """Metadata alone is downloaded. What resolves together resolves apart."""
    found = resolve("pyproject.toml", python, *(word for extra in extras for word in ("--extra", extra)))
    for name, version in {"torch": "2.13", "transformers": "5.17", "trl": "1.16", "accelerate": "1.15"}.items():
        assert found[name].startswith(f"{version}."), found[name]
    assert ("vllm" in found) == ("vllm" in extras)
    for extra in extras:
        for requirement in PROJECT["optional-dependencies"][extra]:
            assert re.match(r"[\w-]+", requirement)[0] in {*found, "entropy-grpo"}  # an extra may hold others


def test_python_versions_are_those_that_are_promised():
    assert f">={VERSIONS[0]}" == PROJECT["requires-python"] and VERSIONS == ["3.11", "3.12", "3.13"]


def run(command, folder, **environment):
    """Run a command as a user would, who has no checkout on any path."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)), cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def copy_sources(folder):
    """The files that the Dockerfile copies, from which it and this module build; a build writes beside them."""
    for path in copied_by_docker():
        source, target = REPOSITORY / path, folder / path
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    return folder


def environment(folder):
    """The Python of an empty environment, which finds the dependencies, but not this checkout, where they are."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return copy_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def installed(sources, tmp_path_factory):
    """The Python of an environment with the built wheel, made from the source distribution."""
    python = environment(tmp_path_factory.mktemp("wheel"))
    run([UV, "build", "--no-build-isolation", "--python", sys.executable, "-o", "dist", "."], sources)
    (wheel,) = sources.glob("dist/*.whl")
    run([UV, "pip", "install", "--quiet", "--no-deps", "--python", python, wheel], sources)
    return python


SHOW = "from entropy_grpo.config import shipped; print(shipped.HOME, *shipped.recipe_names()); "
SHOW += "print(*sorted(path.name for path in shipped.CONFIGS.iterdir())); "
SHOW += "print(*(path.name for path in (shipped.RECIPES / 'sweeps').glob('*')))"


def test_editable_installation_has_the_folders_of_the_checkout(sources, tmp_path):
    python = environment(tmp_path / "venv")
    words = ["--quiet", "--no-deps", "--no-build-isolation", "--python", python, "-e", sources]
    run([UV, "pip", "install", *words], tmp_path, PYTHONPATH=sysconfig.get_path("purelib"))
    home, *names = run([python, "-c", SHOW], tmp_path).splitlines()[0].split()
    assert Path(home) == sources and names == shipped.recipe_names()


def test_wheel_holds_recipes_and_configurations(installed, tmp_path):
    recipes, configurations, sweeps = run([installed, "-c", SHOW], tmp_path).splitlines()
    home, *names = recipes.split()
    assert Path(home).name == "entropy_grpo" and Path(home).is_relative_to(installed.parents[1])
    assert names == shipped.recipe_names()
    assert configurations.split() == sorted(path.name for path in shipped.CONFIGS.iterdir())
    assert sweeps == "rho.yaml"


@pytest.mark.slow
def test_wheel_is_enough_to_plan_train_and_describe_a_run(installed, tiny_model, tmp_path):
    """In an empty folder; the training is the literal launch of a copied recipe."""
    command = installed.parent / "entropy-grpo"
    assert run([command, "--version"], tmp_path) == f"entropy-grpo {PROJECT['version']}\n"
    plan = run([command, "plan", "qwen3_8b", "--gpus", "8"], tmp_path)
    assert "Qwen/Qwen3-8B-Base" in plan and "\nfits: " in plan and "accelerate_configs/slurm.sh" in plan
    run([command, "recipes", "copy", "demo_cpu", "mine"], tmp_path)
    words = ["mine/demo_cpu.yaml", *TINY_DEMO, "--model_name_or_path", tiny_model]
    run([installed, "-m", "accelerate.commands.launch", *words], tmp_path)
    card = tmp_path / "runs/demo_cpu/README.md"
    card.unlink()
    run([command, "card", "runs/demo_cpu"], tmp_path)
    text = card.read_text()
    assert f"pip install entropy-grpo=={PROJECT['version']} trl==" in text and "git checkout" not in text
