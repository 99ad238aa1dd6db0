"""Files around the package: container, versions, licences and forms agree with pyproject.toml."""

import re
import shutil
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from entropy_grpo.config import recipe
from entropy_grpo.training.requirements import check_packages

from .conftest import REPOSITORY

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
IN_CONTAINER = ("vllm", "analysis", "trackers", "tasks", "qlora")


def instructions(text):
    """(instruction, arguments) of a Dockerfile, without comments, with continued lines joined."""
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


DOCKERFILE = instructions((REPOSITORY / "Dockerfile").read_text())
PINS = dict(
    line.partition(" ")[0].split("==")
    for line in (REPOSITORY / "docker/requirements.txt").read_text().splitlines()
    if "==" in line
)


def copied_by_docker():
    """Paths of the repository that the Dockerfile copies."""
    return {path for name, arguments in DOCKERFILE if name == "COPY" for path in arguments.split()[:-1]}


def test_pins_of_the_container_satisfy_the_ranges():
    wanted = PROJECT["dependencies"] + [r for extra in IN_CONTAINER for r in PROJECT["optional-dependencies"][extra]]
    for requirement in map(Requirement, wanted):
        version = PINS[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement}, but docker/requirements.txt has {version}"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_container_has_the_packages_that_a_recipe_needs(path):
    settings, asked = recipe.load(path), []
    check_packages(settings, has=lambda *packages: asked.append(packages) or True)
    data = settings["dataset_name"].value if "dataset_name" in settings else ""
    asked += [(data.partition(":")[0],)] if data.startswith("reasoning_gym:") else []
    for packages in asked:
        assert any(canonicalize_name(package) in PINS for package in packages), packages


def test_cuda_of_the_container_is_that_of_torch():
    (image,) = [arguments for name, arguments in DOCKERFILE if name == "FROM"]
    cuda = re.fullmatch(r"nvidia/cuda:(\d+\.\d+)\.\d+-devel-ubuntu24\.04", image)[1]
    assert PINS["cuda-toolkit"].startswith(f"{cuda}.")


def test_container_has_what_a_build_reads():
    """Every copied path is in the context. `test_packaging` builds the wheel from these files alone."""
    kept = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied_by_docker() == kept
    known = {"FROM", "RUN", "ENV", "COPY", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in DOCKERFILE} == known
    assert (
        f"Programming Language :: Python :: {re.search(r'python(3.[0-9]+) -m venv', str(DOCKERFILE))[1]}"
        in (PROJECT["classifiers"])
    )


def test_container_passes_the_linter():
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("hadolint is not installed")
    result = subprocess.run([linter, REPOSITORY / "Dockerfile"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_versions_agree():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+?),? (.*)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation["version"] == newest[1] == PROJECT["version"]
    assert newest[2] == "not released" or date.fromisoformat(newest[2])
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert {reference["url"] for reference in citation["references"]} <= set(PROJECT["urls"].values())


@pytest.mark.parametrize("path", sorted((REPOSITORY / ".github").rglob("*.yml")), ids=lambda path: path.stem)
def test_forms_and_workflows_are_yaml(path):
    content = yaml.safe_load(path.read_text())
    if path.parent.name == "workflows":
        versions = content["jobs"]["test"]["strategy"]["matrix"]["python"]
        assert versions == [c.split()[-1] for c in PROJECT["classifiers"] if re.search(r"3\.\d+$", c)]
        assert ".ci/run" in [step.get("run") for step in content["jobs"]["test"]["steps"]]
    elif path.stem != "config":
        assert content["name"] and content["description"]
        assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in content["body"])


def test_hooks_run_what_lint_runs():
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)[1]
    assert [hook["id"] for hook in hooks] == ["ruff", "format", "codespell"]
    for hook in hooks:
        command = hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude")
        assert f"$(BIN)/{command}" in lint


def test_every_type_is_checked_and_no_mistake_is_hidden_without_a_reason():
    """mypy reads the whole package. An error that is ignored is named, and a reason stands beside it."""
    checked = PYPROJECT["tool"]["mypy"]
    assert checked["files"] == ["entropy_grpo"]
    assert not {"disable_error_code", "exclude", "ignore_errors"} & checked.keys()
    apart = [name for section in checked["overrides"] for name in section["module"]]
    assert apart == [f"entropy_grpo.tasks.{name}" for name in ("cold_start", "number_walk", "taught")]
    for path in (REPOSITORY / "entropy_grpo").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "type: ignore" in line:
                assert re.search(r"# type: ignore\[[a-z-]+(, [a-z-]+)*\]  # \w", line), f"{path.name}: {line.strip()}"
