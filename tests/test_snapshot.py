"""A model on the Hub is loaded from one snapshot, whatever its newest commit, and keeps its name."""

import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from benchmarks.fixtures.tiny_model import save_tiny_model
from entropy_grpo import launch
from entropy_grpo.models.load import load_tokenizer, resolve_snapshot, restore_name, unread_revision

from .conftest import REPOSITORY, TINY_DEMO

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A cache of the Hub with two commits of one model, of which the newer is the branch's."""
    cache = tmp_path / "hub"
    repository = cache / "models--me--tiny"
    for seed, commit in enumerate((OLD, NEW)):
        shutil.copytree(save_tiny_model(tmp_path / commit, seed=seed), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return repository / "snapshots"


def test_a_revision_is_a_folder(cached, tiny_model):
    assert resolve_snapshot("me/tiny", ModelConfig(model_revision=OLD)) == str(cached / OLD)
    assert resolve_snapshot("me/tiny", ModelConfig(model_revision="main")) == str(cached / NEW)
    assert resolve_snapshot(tiny_model, ModelConfig(model_revision=OLD)) == tiny_model
    with pytest.raises(ValueError, match="model_name_or_path is 'me/other', which does not load: "):
        resolve_snapshot("me/other", ModelConfig())


def test_a_revision_of_another_model_is_named(cached):
    """A recipe's child that names another model has the revision of its parent's."""
    for load in (resolve_snapshot, lambda path, config: load_tokenizer(path, config.model_revision)):
        with pytest.raises(ValueError, match=f"does not load at its revision {'c' * 40}: "):
            load("me/tiny", ModelConfig(model_revision="c" * 40))


def test_the_revision_of_a_folder_is_named_as_not_read(cached, tiny_model):
    config = ModelConfig(model_revision=OLD)
    said = f"model_revision is '{OLD}', which is not read, because the model is the folder {tiny_model}."
    assert unread_revision(tiny_model, config) == said
    assert unread_revision("me/tiny", config) is None  # it is the commit that is loaded
    assert unread_revision(tiny_model, ModelConfig()) is None  # every recipe has the default


def test_adapters_name_their_base_on_the_hub(cached):
    model = AutoModelForCausalLM.from_pretrained(cached / OLD)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    restore_name(adapted, "me/tiny", OLD)
    config = adapted.peft_config["default"]
    assert (config.base_model_name_or_path, config.revision) == ("me/tiny", OLD)
    assert model.config._name_or_path == model.name_or_path == "me/tiny"


@pytest.mark.slow
def test_a_run_trains_the_named_commit(cached, tmp_path, monkeypatch):
    """With a learning rate of 0 it saves what it loaded."""
    monkeypatch.chdir(REPOSITORY)
    words = ["--model_name_or_path", "me/tiny", "--model_revision", OLD, "--learning_rate", "0.0"]
    run = tmp_path / "run"
    launch.run("recipes/demo_cpu.yaml", [*TINY_DEMO, *words, "--output_dir", str(run)])
    assert json.loads((run / "environment.json").read_text())["base_model"] == "me/tiny"
    loaded, saved = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (cached / OLD, run))
    assert all(torch.equal(loaded[name], saved[name]) for name in loaded)
