"""A Python program's call of `train`: its folder is locked, its checkpoint intact, its settings are compared."""

import subprocess
import sys

import pytest
from peft import LoraConfig

from benchmarks.fixtures import fixed_rollout
from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.config import changes
from entropy_grpo.runs import seal
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.runs.lock import LOCK
from entropy_grpo.training.checkpoints import SETTINGS

from .test_lock import HOLD
from .test_seal import flip

SAVED = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """Folder of a run of two steps with two checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    fixed_rollout.train(tiny_model, folder, **SAVED)
    return folder


def resume(model, run, wanted, folder=None, **settings):
    trainer = fixed_rollout.make_trainer(model, folder or run, **SAVED | {"max_steps": 3} | settings)
    trainer.train(resume_from_checkpoint=wanted)
    return trainer


def test_a_folder_in_use_is_refused_and_left_alone(tiny_model, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path)
    with pytest.raises(ValueError, match=f"is in use by a running run, process {process.pid} on "):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    process.kill()
    process.wait()
    trainer.train()
    assert trainer.state.global_step == 1 and not (tmp_path / LOCK).exists()


def test_a_folder_whose_name_is_not_utf_8_is_refused_before_the_first_step(tiny_model, tmp_path):
    """tokenizers cannot write a checkpoint's tokenizer.json there."""
    with pytest.raises(ValueError, match=r"output_dir is '.*/a.*udcff', whose name is not UTF-8"):
        fixed_rollout.train(tiny_model, tmp_path / "a\udcff")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_second_call_of_train_begins_anew_even_after_one_that_ended_within_a_step(tiny_model, tmp_path):
    """As in a notebook; without a change of the weights, both must log the same."""
    seen = []

    def reward(completion_ids, **kwargs):
        seen.append((tmp_path / LOCK).exists())
        if len(seen) == 2:
            raise KeyboardInterrupt
        return fixed_rollout.reward(completion_ids)

    settings = {"max_steps": 3, "learning_rate": 0.0, "steps_per_generation": 4, "gradient_accumulation_steps": 8}
    settings |= {"entropy_scope": "micro_batch", "top_entropy_quantile": 1.0, "entropy_denominator": "all"}
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path, reward=reward, **settings)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer._step % 8 and not (tmp_path / LOCK).exists()
    logs = []
    for _ in range(2):
        trainer.train()
        logs.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    # Other batches of sequences round otherwise.
    assert len(logs[0]) == 3 and logs[0] == pytest.approx(logs[1], rel=1e-5) and all(seen)


@pytest.mark.parametrize("wanted", [True, "auto"])
def test_a_damaged_checkpoint_is_gone_round_and_a_named_one_refused(tiny_model, run, tmp_path, capsys, wanted):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", run, copy], check=True)
    flip(copy / "checkpoint-2" / "optimizer.pt")
    with pytest.raises(ValueError, match=r"checkpoint-2', which is damaged \(optimizer.pt has changed"):
        resume(tiny_model, copy, copy / "checkpoint-2")
    trainer = resume(tiny_model, copy, wanted, max_steps=1)
    assert "the run continues from checkpoint-1." in capsys.readouterr().err
    assert trainer.state.global_step == 1


def test_changed_settings_are_refused_or_recorded(tiny_model, run, tmp_path):
    def refused(match, wanted=True, **settings):
        with pytest.raises(ValueError, match=match):
            resume(tiny_model, run, wanted, **settings)

    allow = r"checkpoint-2, which this run continues: leave it as before, or allow .*: --allow_changes "
    refused(rf"^learning_rate is 0.5 and was 0.01 in .*{allow}learning_rate", learning_rate=0.5)
    refused(rf"^train_dataset is .* and was .* in .*{allow}train_dataset", data=fixed_rollout.prompts(9))
    refused(r"^reward_funcs is \['coins'\] and was \['reward'\]", reward="coins")
    refused("use_peft is true, but the checkpoint .*holds a whole model", peft_config=LoraConfig())
    # A longer run with a constant learning rate is taken, and so is a change that is allowed by name.
    trainer = resume(
        tiny_model, run, run / "checkpoint-2", tmp_path, learning_rate=0.5, allow_changes=["learning_rate"]
    )
    assert trainer.state.global_step == 3
    assert changes.sentences(changes.read(RunFolder(tmp_path))) == [
        "learning_rate is 0.5 from step 3 on, and was 0.01 before.",
        "max_steps is 3 from step 3 on, and was 2 before.",
    ]
    assert seal.read(tmp_path / "checkpoint-3")[SETTINGS]["learning_rate"] == 0.5


def test_settings_are_those_that_were_given(tmp_path, monkeypatch):
    """The number of processes changes derived ones, and an assignment after construction counts."""
    args = EntropyForkGRPOConfig(
        str(tmp_path), prompts_per_rollout=8, steps_per_rollout=2, max_steps="2 rollouts", bf16=False, use_cpu=True
    )
    given = args.as_given()
    assert (args.steps_per_generation, args.max_steps) == (8, 4)
    assert (given["steps_per_generation"], given["max_steps"], given["generation_batch_size"]) == (
        None,
        "2 rollouts",
        None,
    )
    args.beta = 0.25
    assert args.as_given() == given | {"beta": 0.25}


def test_a_checkpoint_of_a_launch_is_compared_in_the_settings_that_both_have(tiny_model, run, tmp_path):
    """The seal of a launch has the recipe, in which the data and the rewards have names."""
    subprocess.run(["cp", "-r", run, tmp_path / "copy"], check=True)
    folder = tmp_path / "copy" / "checkpoint-2"
    content = seal.read(folder)
    recipe = {k: v for k, v in content[SETTINGS].items() if k not in ("model", "train_dataset", "reward_funcs")}
    recipe |= {"model_name_or_path": "some", "dataset_name": "x.jsonl", "rewards": ["accuracy"]}
    rest = {k: v for k, v in content.items() if k not in (SETTINGS, seal.FILES, seal.OWN_DIGEST)}
    seal.write(folder, rest | {SETTINGS: recipe}, [content[seal.FILES]])
    assert resume(tiny_model, tmp_path / "copy", True).state.global_step == 3
    with pytest.raises(ValueError, match=r"^beta is 0.5 and was 0.0 in "):
        resume(tiny_model, tmp_path / "copy", str(folder), beta=0.5)
