"""Cards of real runs: of the demo by its literal command, of one with LoRA, and of checkpoints; with their code."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from huggingface_hub import ModelCard

from entropy_grpo.cards.card import build_card, write_card
from entropy_grpo.runs import trained
from entropy_grpo.runs.files import read_json, read_steps

from . import hub, hub_rules
from .conftest import DEMO, REPOSITORY

pytestmark = pytest.mark.slow

# Each line of standard input: a folder. Runs the code of its card there as a script of its own.
RUN_SNIPPETS = """
import os, re, runpy, sys
for folder in sys.stdin.read().splitlines():
    os.chdir(folder)
    with open("README.md") as card, open("snippet.py", "w") as script:
        script.write(re.search("```python\\n(.*?)```", card.read(), re.DOTALL)[1])
    print("folder", folder)
    runpy.run_path("snippet.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def run(demo_run, tmp_path_factory):
    """A copy of the demo's run folder."""
    return shutil.copytree(demo_run[0], tmp_path_factory.mktemp("cards") / "demo")


@pytest.fixture(scope="module")
def pushed_run(tiny_model, tmp_path_factory):
    """A run of one step with LoRA and without evaluation, pushed as it goes: its folder, and what every push held."""
    folder = tmp_path_factory.mktemp("cards") / "lora"
    words = "--max_steps 1 --save_steps 1 --num_dev_problems 0 --num_test_problems 0 --eval_strategy no"
    words += " --use_peft true --lora_r 3 --lora_target_modules q_proj v_proj"
    words += f" --push_to_hub true --hub_model_id {hub.REPOSITORY}"
    command = [sys.executable, DEMO, *words.split(), "--hub_always_push", "true", "--disable_tqdm", "true"]
    command += ["--model_name_or_path", tiny_model, "--output_dir", str(folder)]
    with hub.serving() as server:
        environment = os.environ | hub.environment(server)
        result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, result.stderr
        return folder, hub.pushes(server)


@pytest.fixture(scope="module")
def adapter_run(pushed_run):
    """The folder of that run, with the card of a folder that is not on the Hub."""
    write_card(pushed_run[0], draws=False)
    return pushed_run[0]


def parsed(path):
    """The card as the Hub's own reader has it, after a second writing: nothing is lost on the way."""
    card = ModelCard.load(path)
    assert hub_rules.broken_rules(str(card)) == []
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    return card


def test_the_run_ends_with_the_card_that_the_command_writes(run):
    assert write_card(run).read_text() == (run / "README.md").read_text()
    card, found = parsed(run / "README.md"), trained.read(run)
    after = read_json(run / "evaluation.json")["after"]
    assert read_json(run / "evaluation.json")["step"] == found.step == 2
    assert card.data.eval_results == build_card(found, "demo").data.eval_results
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["accuracy"].metric_value == pytest.approx(after["accuracy"]["value"], abs=5e-5)
    assert results["accuracy"].metric_args["high"] == pytest.approx(after["accuracy"]["high"], abs=5e-5)
    assert "| accuracy |" in card.text and "accelerate launch recipe.yaml" in card.text
    assert "The folder of this card lacks" not in card.text
    decided = read_json(run / "environment.json")["objective"]
    assert decided["kept_share"] == 0.2 and decided["ranked_in"] == "rollout"
    assert "the 20% of tokens with the highest entropy" in card.text and "| LM head | sparse |" in card.text


def test_every_picture_of_a_card_is_in_its_folder(run):
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", (run / "README.md").read_text())
    assert pictures == ["plots/reward.png", "plots/entropy.png", "plots/kept.png"]
    assert all((run / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_every_number_of_the_table_is_in_a_file(run):
    text, rows = (run / "README.md").read_text(), read_steps(run / "metrics.jsonl")
    tokens = max(row["num_tokens"] for row in rows if "num_tokens" in row)
    seconds = sum(row["step_time"] for row in rows if "step_time" in row)
    assert f"| tokens of prompts and responses | {tokens:,.0f} |" in text
    assert f"| time of the steps | {seconds:.1f} seconds |" in text
    assert len([row for row in rows if "entropy/mean" in row]) == 1  # both steps are of one rollout
    assert "in rollouts" not in text


def test_an_older_checkpoint_has_no_results_of_the_end(run):
    checkpoint = run / "checkpoint-1"
    shutil.copytree(run / "checkpoint-2", checkpoint)
    state = (checkpoint / "trainer_state.json").read_text().replace('"global_step": 2', '"global_step": 1')
    (checkpoint / "trainer_state.json").write_text(state)
    card = parsed(write_card(checkpoint))
    assert card.data.eval_results is None and "for 1 optimiser step." in card.text
    assert "evaluation.json describes the end of the run" in card.text
    assert "in rollouts " not in card.text
    last = parsed(write_card(run / "checkpoint-2", draws=False))
    assert last.data.eval_results == parsed(run / "README.md").data.eval_results
    assert "# demo-checkpoint-2" in last.text


def test_a_checkpoint_without_its_run_tells_what_its_state_does(run, tmp_path):
    alone = shutil.copytree(run / "checkpoint-2", tmp_path / "checkpoint-2")
    card = parsed(write_card(alone))
    assert "for 2 optimiser steps" in card.text and "| time of the steps |" in card.text and "plots/" in card.text
    for name in ("recipe.yaml", "environment.json", "data.json"):
        assert f"- {name}: " in card.text


def test_the_code_of_the_cards_runs_and_answers(run, adapter_run, preloaded, tmp_path):
    (tmp_path / "snippets.py").write_text(RUN_SNIPPETS)
    result = subprocess.run(
        [preloaded, tmp_path / "snippets.py"],
        input=f"{run}\n{adapter_run}\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    whole, adapter = result.stdout.split("folder ")[1:]
    for answer, folder in ((whole, run), (adapter, adapter_run)):
        name, _, text = answer.partition("\n")
        assert name == str(folder) and text.strip()
    assert "AutoPeftModelForCausalLM" in (adapter_run / "snippet.py").read_text()


def test_the_card_of_an_adapter_without_evaluation(adapter_run):
    card = parsed(adapter_run / "README.md")
    assert card.data.library_name == "peft" and "lora" in card.data.tags
    assert card.data.eval_results is None and "an evaluation after training: " in card.text
    assert "| adapter | peft_type LORA, r 3, lora_alpha 32, target_modules " in card.text
    assert "max_lora_rank=8" in card.text


def test_every_push_of_a_trainer_has_the_card_and_its_pictures(pushed_run):
    folder, commits = pushed_run
    assert len(commits) >= 2
    for files in commits:
        assert {"README.md", "adapter_model.safetensors", "plots/reward.png"} <= set(files)
        assert not any(path.startswith("checkpoint-") or "optimizer" in path for path in files)
        card = ModelCard(files["README.md"].decode())
        assert card.data.library_name == "peft" and f"name = '{hub.REPOSITORY}'" in card.text
        assert "for 1 optimiser step." in card.text and "no weights" not in card.text
    text = write_card(folder, repository=hub.REPOSITORY, draws=False).read_text()
    last = ModelCard(commits[-1]["README.md"].decode())
    assert last.data.to_dict() == ModelCard(text).data.to_dict()


def test_a_card_without_pictures_takes_little_time(run):
    start = time.perf_counter()
    for _ in range(5):
        write_card(run, draws=False)
    assert (time.perf_counter() - start) / 5 < 1.0
