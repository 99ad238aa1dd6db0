"""Whole runs under FSDP2 on two gloo processes, beside DDP: what they train, save, and go on from.

`fsdp2_on_cpu` asserts that every parameter is a DTensor; without it this would be DDP twice.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from entropy_grpo.cards.card import write_card

from .conftest import REPOSITORY

TWO = "-m torch.distributed.run --standalone --nproc_per_node 2".split()
RECIPE = "recipes/demo_cpu.yaml"
SETTINGS = (
    "--max_steps 4 --save_steps 2 --num_generations 4 --per_device_train_batch_size 4 --steps_per_generation 2 "
    "--rewards [random] --num_train_problems 32 --num_dev_problems 0 --num_test_problems 8 --eval_strategy no "
    "--learning_rate 1.0e-2 --max_completion_length 12 --disable_tqdm true"
).split()


def launch(python, program, model, output, *more):
    command = [python, *TWO, *program, *SETTINGS, "--model_name_or_path", model, "--output_dir", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command, *more], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def run_commands(checkpoint, card):
    """Run a card's commands, which make weights whole, in the checkpoint's folder."""
    commands = re.search(r"```bash\n(accelerate merge-weights.*?)```", card, re.DOTALL)[1]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-ec", commands], cwd=checkpoint, env=environment, check=True, capture_output=True)


def check_card_of_pieces(checkpoint, whole):
    """It says that nothing loads the checkpoint; what it says to do makes the model that the run saved."""
    card = ModelCard.load(write_card(checkpoint))
    assert "weights are sharded" in card.text and "from_pretrained" not in card.text
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    run_commands(checkpoint, card.text)
    made = AutoModelForCausalLM.from_pretrained(checkpoint / "whole").state_dict()
    assert made.keys() == whole.state_dict().keys()
    assert all(torch.equal(made[name], weight) for name, weight in whole.state_dict().items())


@pytest.mark.slow
def test_fsdp2_trains_as_ddp_saves_a_whole_model_and_goes_on_from_its_pieces(tiny_model, tmp_path, preloaded):
    sharded = ["-m", "benchmarks.fixtures.fsdp2_on_cpu", "--recipe", RECIPE]
    launch(preloaded, [RECIPE], tiny_model, tmp_path / "ddp")
    launch(preloaded, sharded, tiny_model, tmp_path / "fsdp2", "--use_cpu", "false")

    ids = torch.arange(1, 41)[None]
    start, ddp, fsdp2 = (
        AutoModelForCausalLM.from_pretrained(path).eval()
        for path in (tiny_model, tmp_path / "ddp", tmp_path / "fsdp2")
    )
    assert not torch.allclose(ddp(ids).logits, start(ids).logits, atol=1e-2)
    torch.testing.assert_close(fsdp2(ids).logits, ddp(ids).logits, atol=1e-4, rtol=1e-4)
    for name, weight in ddp.state_dict().items():
        torch.testing.assert_close(fsdp2.state_dict()[name], weight, atol=1e-5, rtol=1e-5, msg=name)

    for when in ("before", "after"):
        answers = [(tmp_path / run / "answers" / f"{when}.jsonl").read_text() for run in ("ddp", "fsdp2")]
        assert answers[0] == answers[1] and len(answers[0].splitlines()) == 8 * 4

    assert not (tmp_path / "fsdp2" / "checkpoint-2" / "model.safetensors").exists()
    check_card_of_pieces(tmp_path / "fsdp2" / "checkpoint-4", fsdp2)
    for left in ("recipe.yaml", "metrics.jsonl", "evaluation.json"):
        (tmp_path / "resumed").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "fsdp2" / left, tmp_path / "resumed")
    shutil.copytree(tmp_path / "fsdp2" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    launch(
        preloaded, sharded, tiny_model, tmp_path / "resumed", "--use_cpu", "false", "--resume_from_checkpoint", "true"
    )
    once, again = (load_file(tmp_path / run / "model.safetensors") for run in ("fsdp2", "resumed"))
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.slow
def test_adapters_under_fsdp2_go_on_from_their_pieces_and_are_made_whole(tiny_model, tmp_path, preloaded):
    sharded = ["-m", "benchmarks.fixtures.fsdp2_on_cpu", "--recipe", RECIPE]
    lora = ["--use_cpu", "false", "--use_peft", "true", "--lora_target_modules", "[q_proj, down_proj]"]
    launch(preloaded, sharded, tiny_model, tmp_path / "run", *lora)
    whole = load_file(tmp_path / "run" / "adapter_model.safetensors")
    last, earlier = (tmp_path / "run" / f"checkpoint-{step}" for step in (4, 2))
    assert any(weight.abs().max() > 0 for name, weight in whole.items() if "lora_B" in name)

    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "run" / "recipe.yaml", tmp_path / "resumed")
    shutil.copytree(earlier, tmp_path / "resumed" / "checkpoint-2")
    text = write_card(tmp_path / "resumed" / "checkpoint-2").read_text()
    assert "from_pretrained" not in text and "merge-weights" not in text
    assert "shards of LoRA adapters" in text and "--resume_from_checkpoint" in text
    launch(preloaded, sharded, tiny_model, tmp_path / "resumed", *lora, "--resume_from_checkpoint", "auto")
    again = load_file(tmp_path / "resumed" / "adapter_model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)

    run_commands(last, write_card(last).read_text())
    made = load_file(last / "adapter" / "adapter_model.safetensors")
    assert whole.keys() == made.keys() and all(torch.equal(whole[name], made[name]) for name in whole)
    ids = torch.arange(1, 41)[None]
    folders = (tmp_path / "run", last / "adapter")
    answers = [AutoPeftModelForCausalLM.from_pretrained(path).eval()(ids).logits for path in folders]
    assert torch.equal(*answers)
