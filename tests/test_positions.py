"""A model that is told to have more positions: its configuration says so, and nothing else changes."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_grpo.models import load
from entropy_grpo.models.load import raise_positions
from entropy_grpo.models.merge import merge


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTROPY_GRPO_CACHE", str(tmp_path / "cache"))


def test_first_positions_are_as_before_and_more_are_there(tiny_model):
    raised = raise_positions(tiny_model, 200)
    before, after = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (tiny_model, raised))
    assert (before.config.max_position_embeddings, after.config.max_position_embeddings) == (128, 200)
    ids = torch.arange(1, 151)[None] % before.config.vocab_size
    assert torch.equal(before(ids[:, :100]).logits, after(ids[:, :100]).logits)
    assert after(ids).logits.isfinite().all()


def test_the_model_itself_is_untouched_and_made_once(tiny_model):
    config = (Path(tiny_model) / "config.json").read_text()
    made = {raise_positions(tiny_model, 200) for _ in range(2)}
    assert len(made) == 1 and raise_positions(tiny_model, 300) not in made
    assert (Path(tiny_model) / "config.json").read_text() == config
    (weights,) = Path(made.pop()).glob("*.safetensors")
    assert weights.is_symlink() and weights.resolve().parent == Path(tiny_model).resolve()


def test_fewer_and_scaled_positions_are_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"max_position_embeddings is 64, but .* has 128 positions: leave it out"):
        raise_positions(tiny_model, 64)
    config = json.loads((Path(tiny_model) / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="scales its rotations"):
        raise_positions(str(tmp_path), 256)


@pytest.mark.parametrize("place", ["run", "run/checkpoint-2"])
def test_adapters_of_a_run_have_the_positions_of_their_training(tiny_model, tmp_path, place):
    """Their files name the published base, which has 128."""
    adapter = tmp_path / place
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(base, LoraConfig(r=2, init_lora_weights=False)).save_pretrained(adapter)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(adapter)
    (tmp_path / "run" / "recipe.yaml").write_text("max_position_embeddings: 200\n")
    assert load.positions_of(load.load_config(str(adapter))) == 200
    model, _ = load.load_model(str(adapter), None, "float32")
    assert load.positions_of(model.config) == 200
    merged = merge(adapter, tmp_path / "merged")
    assert load.positions_of(load.load_config(str(merged))) == 200
    ids = torch.arange(200)[None] % 50
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(merged)(ids).logits
        assert torch.allclose(model(ids).logits, expected, atol=1e-3)
    (tmp_path / "run" / "recipe.yaml").write_text("max_position_embeddings: null\n")
    assert load.positions_of(load.load_config(str(adapter))) == 128
