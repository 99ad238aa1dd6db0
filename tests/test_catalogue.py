"""Recipes that travel with the package: names, copies that stand alone, and what a launch makes of them."""

import dataclasses

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from entropy_grpo import cli
from entropy_grpo.config import catalogue, offline, recipe, shipped
from entropy_grpo.config.recipe import RecipeError
from entropy_grpo.training.launcher import complete

from .conftest import REPOSITORY

NAMES = shipped.recipe_names()


def values(path):
    return {key: setting.value for key, setting in recipe.without_unread(recipe.load(path)).items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_stands_alone(name, tmp_path, monkeypatch):
    """It has the settings of its whole chain, in both readings, and resolves to the same run from any folder."""
    whole = values(REPOSITORY / "recipes" / f"{name}.yaml")
    path = catalogue.copy(name, tmp_path / "mine")
    text = path.read_text()
    assert path == tmp_path / "mine" / f"{name}.yaml" and recipe.launch_words(path) == []
    compile(text, str(path), "exec")
    written = yaml.safe_load(text)
    assert written.pop("recipe") == 'r"""' and "base" not in written
    assert written == whole and values(path) == whole
    monkeypatch.chdir(tmp_path)
    if "model_name_or_path" in whole:
        ours, theirs = (offline.resolve(str(one), []) for one in (path, name))
        assert dataclasses.replace(ours, args=None) == dataclasses.replace(theirs, args=None)
        assert ours.sharding.file == theirs.sharding.file


def test_a_copy_replaces_no_file(tmp_path):
    catalogue.copy("qwen3_8b", tmp_path)
    with pytest.raises(RecipeError, match=r"qwen3_8b.yaml exists"):
        catalogue.copy("qwen3_8b", tmp_path)


def test_the_list_has_a_line_for_every_recipe_but_the_base(capsys):
    cli.main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [name for name in NAMES if name != "base"]
    assert all(len(line.split()) > 4 for line in lines)


@pytest.mark.parametrize("parent", ["qwen3_8b", "qwen3_8b.yaml"])
def test_a_name_is_a_parent(parent, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"base: {parent}\nlearning_rate: 2.0e-6\n")
    expected = values(REPOSITORY / "recipes" / "qwen3_8b.yaml") | {"learning_rate": 2e-6}
    assert values(tmp_path / "mine.yaml") == expected


def test_a_file_is_preferred_to_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen3_8b.yaml").write_text("learning_rate: 2.0e-6\n")
    assert values("qwen3_8b.yaml") == {"learning_rate": 2e-6}
    assert values("qwen3_8b") == values(REPOSITORY / "recipes" / "qwen3_8b.yaml")


@pytest.mark.parametrize("name", ["qwen3_8", "recipes/qwen3_8b.yaml", "runs/qwen3_8b"])
def test_a_missing_recipe_is_told_the_nearest_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"^\S+: there is no such recipe file. Did you mean qwen3_8b\? "):
        recipe.load(name)


def launched(line, folder, monkeypatch):
    """The parsed arguments with which accelerate would go on."""
    monkeypatch.chdir(folder)
    options = launch_command_parser().parse_args(line.split())
    complete(options)
    return options


@pytest.mark.parametrize(
    ("line", "program", "processes"),
    [
        ("demo_cpu --max_steps 4", "-m entropy_grpo.launch demo_cpu --max_steps 4", 1),
        ("mine.yaml --max_steps 4", "-m entropy_grpo.launch mine.yaml --max_steps 4", None),
        ("mine.yaml --use_cpu", "-m entropy_grpo.launch mine.yaml --use_cpu", 1),
        ("-m entropy_grpo.launch demo_cpu", "-m entropy_grpo.launch demo_cpu", 1),
        ("copied.yaml", "copied.yaml", 1),
        ("copied.yaml --use_cpu false", "copied.yaml --use_cpu false", None),
        ("--num_processes 2 --multi_gpu demo_cpu", "-m entropy_grpo.launch demo_cpu", 2),
        ("--config_file accelerate_configs/ddp_cpu.yaml demo_cpu", "-m entropy_grpo.launch demo_cpu", None),
        ("-m entropy_grpo.cli eval --model x", "-m entropy_grpo.cli eval --model x", None),
        ("script.py --x 1", "script.py --x 1", None),
    ],
)
def test_launch_takes_names_and_plain_yaml(line, program, processes, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("base: qwen3_0_6b\n")
    catalogue.copy("demo_cpu", tmp_path).rename(tmp_path / "copied.yaml")
    options = launched(line, tmp_path, monkeypatch)
    words = [*(["-m"] if options.module else []), options.training_script, *options.training_script_args]
    assert " ".join(words) == program
    assert options.num_processes == processes and options.cpu is (processes == 1)
    if options.config_file is not None:
        assert options.config_file == str(REPOSITORY / "accelerate_configs" / "ddp_cpu.yaml")
