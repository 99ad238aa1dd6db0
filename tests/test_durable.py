"""Runs that are killed or meet gradients that are not finite, against runs that are left alone."""

import json
import logging
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from trl.trainer.utils import strip_images_from_messages

from benchmarks.fixtures import fixed_rollout, killed_runs
from benchmarks.fixtures.tiny_model import save_tiny_model
from entropy_grpo.runs import files, seal
from entropy_grpo.runs import state as checkpoint
from entropy_grpo.training.resume import Resume


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "more", "moments"),
    [
        ("a rollout used twice", {}, [(3, True, 0.0), (8, False, 0.15)]),
        ("two processes, DDP, dynamic sampling", {"token_budget": 1000}, [(7, True, 0.0)]),
    ],
    ids=str,
)
def test_a_killed_run_ends_like_one_left_alone(tiny_model, tmp_path, preloaded, name, more, moments):
    """In the middle of a save, of a rollout and of the second epoch; `benchmarks/faults.py` kills at more moments."""
    case = killed_runs.CASES[name]
    case = replace(case, settings=case.settings | more)
    killed_runs.finish(killed_runs.start(case, tiny_model, tmp_path / "alone", preloaded), tmp_path / "alone")
    victim = tmp_path / "victim"
    for step, in_save, delay in moments:
        process = killed_runs.start(case, tiny_model, victim, preloaded)
        assert killed_runs.kill_at(process, victim, step, in_save, delay) or in_save
        if process.poll() is None:
            killed_runs.kill(process)
        assert not (victim / "model.safetensors").exists()
    killed_runs.finish(killed_runs.start(case, tiny_model, victim, preloaded), victim)
    assert killed_runs.differences(victim, tmp_path / "alone") == []
    resumed = [row for row in files.read_jsonl(victim / "metrics.jsonl") if "resumed_from" in row]
    assert len(resumed) == len(moments)
    passes = {row["batching/micro_batches"] for row in files.read_jsonl(victim / "metrics.jsonl") if "loss" in row}
    assert passes == {1.0 if more else 2.0}


def test_state_is_read_as_it_was_written(tmp_path):
    rng = torch.Generator().manual_seed(0)
    state = {
        "floats": torch.randn(3, 2, generator=rng),
        "bools": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, dtype=torch.int32),
        "view": torch.arange(6).view(2, 3).T,
        "nested": [{"a": [None, 1.5, "x", True], "b": torch.tensor([1.0])}, []],
        "dict like one of ours": {"tensor": 1, "dict": [2]},
        "nan": float("nan"),
        "texts": ["", "für \U0001d54f", "half of a pair: \ud835", ("a", {"key": "b"})],
    }
    state["again"] = state["floats"]
    checkpoint.save_state(tmp_path / "state.safetensors", state)
    back = checkpoint.load_state(tmp_path / "state.safetensors")
    for name in ("floats", "bools", "scalar", "empty", "view", "again"):
        assert back[name].dtype == state[name].dtype and torch.equal(back[name], state[name]), name
    assert back["nested"][0]["a"] == [None, 1.5, "x", True] and torch.equal(
        back["nested"][0]["b"], torch.tensor([1.0])
    )
    assert back["dict like one of ours"] == state["dict like one of ours"] and back["nan"] != back["nan"]
    assert back["texts"] == [*state["texts"][:3], ["a", {"key": "b"}]]
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_values_of_numpy_become_numbers_and_lists(tmp_path):
    values = [np.float32(0.5), np.int64(2), np.bool_(True), np.array([[1, 2]]), {"a": np.array(["x"])}, np.str_("y")]
    checkpoint.save_state(tmp_path / "state.safetensors", {"extra": values})
    back = checkpoint.load_state(tmp_path / "state.safetensors")["extra"]
    assert back == [0.5, 2, True, [[1, 2]], {"a": ["x"]}, "y"] and back[2] is True


def test_texts_may_have_more_bytes_than_a_header_holds(tmp_path):
    """safetensors reads no header of more than 100 MB."""
    texts = ["\N{INTEGRAL}" * 17_000_000, "dx" * 30_000_000]
    checkpoint.save_state(tmp_path / "state.safetensors", {"texts": texts})
    assert checkpoint.load_state(tmp_path / "state.safetensors") == {"texts": texts}


def test_a_state_with_its_texts_in_the_header_is_still_read(tmp_path):
    """As earlier versions wrote it."""
    structure = {"dict": [["step", 3], ["rows", [{"dict": [["text", "a"]]}, {"tensor": "0"}]]]}
    path = tmp_path / "state.safetensors"
    save_file({"0": torch.arange(3)}, path, metadata={"structure": json.dumps(structure)})
    found = checkpoint.load_state(path)
    assert found["step"] == 3 and found["rows"][0] == {"text": "a"} and found["rows"][1].tolist() == [0, 1, 2]


def test_a_rollout_that_knows_its_right_responses_alone_is_still_read():
    """As earlier versions saved it, which took all other responses for wrong ones."""
    trainer = SimpleNamespace()
    Resume(trainer).restore_rank_state({"buffered_inputs": [{"right": torch.tensor([True, False])}], "loss": None})
    assert trainer._buffered_inputs[0]["wrong"].tolist() == [False, True]


def test_rows_behind_the_checkpoint_are_void(tmp_path):
    path = tmp_path / "metrics.jsonl"
    steps = [1, 2, 3, 4, ("resumed", 2), 3, 4, 5, ("resumed", 4), 5]
    rows = [
        {"step": s, "row": i} if isinstance(s, int) else {"step": s[1], "resumed_from": s[1]}
        for i, s in enumerate(steps)
    ]
    files.append_jsonl(path, rows)
    assert [(r["step"], r["row"]) for r in files.read_steps(path)] == [(1, 0), (2, 1), (3, 5), (4, 6), (5, 9)]


def test_old_checkpoints_go_only_when_the_new_one_is_complete(tiny_model, tmp_path, monkeypatch):
    seen = []
    original = seal.write

    def watch(folder, about, parts):
        seen.append([path.name for path in seal.complete_checkpoints(tmp_path)])
        original(folder, about, parts)

    (tmp_path / "checkpoint-backup").mkdir()
    monkeypatch.setattr(seal, "write", watch)
    fixed_rollout.train(
        tiny_model, tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1, learning_rate=0.0
    )
    assert seen == [[], ["checkpoint-1"], ["checkpoint-2"]]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-backup"]
    assert set(seal.read(tmp_path / "checkpoint-3")["files"]) == {
        *("config.json", "generation_config.json", "model.safetensors", "optimizer.pt", "rng_state.pth"),
        *("run_state.safetensors", "run_state_0.safetensors", "scheduler.pt", "tokenizer.json"),
        *("tokenizer_config.json", "trainer_state.json", "training_args.bin"),
    }


def poison(trainer_class, steps, value):
    """A trainer whose gradient has one element that is not finite at these steps."""

    class Poisoned(trainer_class):
        def training_step(self, model, *args):
            loss = super().training_step(model, *args)
            if self.state.global_step in steps:
                next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = value
            return loss

    return Poisoned


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(tiny_model, tmp_path, monkeypatch, value, max_grad_norm):
    """Weights and moments after three steps on the same data, the second of them poisoned, are those of two steps.

    Up to rounding, since a rollout is shuffled anew.
    """
    settings = {"optim": "adamw_torch", "learning_rate": 0.01, "max_grad_norm": max_grad_norm}
    data = fixed_rollout.prompts(2)
    healthy = fixed_rollout.train(tiny_model, tmp_path / "a", max_steps=2, data=data, **settings)
    monkeypatch.setattr(
        fixed_rollout, "EntropyForkGRPOTrainer", poison(fixed_rollout.EntropyForkGRPOTrainer, {1}, value)
    )
    poisoned = fixed_rollout.train(tiny_model, tmp_path / "b", max_steps=3, data=data, **settings)
    for name, weight in fixed_rollout.weights(healthy).items():
        assert torch.allclose(weight, fixed_rollout.weights(poisoned)[name], atol=1e-6), name
    states = [trainer.optimizer.state_dict()["state"] for trainer in (healthy, poisoned)]
    for one, other in zip(states[0].values(), states[1].values(), strict=True):
        assert all(torch.allclose(one[key], other[key], atol=1e-6) for key in one)
    assert [row["skipped_steps"] for row in poisoned.state.log_history[:3]] == [0, 1, 1]
    rows = list(files.read_jsonl(tmp_path / "b" / "metrics.jsonl"))
    assert rows[1]["grad_norm"] is None and json.dumps(rows, allow_nan=False)


def test_too_many_of_them_in_a_row_end_the_run(tiny_model, tmp_path, monkeypatch):
    poisoned = poison(fixed_rollout.EntropyForkGRPOTrainer, {0, 2, 3, 4}, float("nan"))
    monkeypatch.setattr(fixed_rollout, "EntropyForkGRPOTrainer", poisoned)
    with pytest.raises(RuntimeError, match=r"3 consecutive optimiser steps.*max_skipped_steps is 2"):
        fixed_rollout.train(tiny_model, tmp_path, max_steps=9, max_skipped_steps=2)


RESUMED = {
    "entropy_scope": "rollout",
    "top_entropy_quantile": 0.3,
    "per_device_train_batch_size": 4,
    "steps_per_generation": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.05,
    "shuffle_dataset": True,
    "save_strategy": "steps",
}


def assert_goes_on(tiny_model, tmp_path, whole, folder, **settings):
    """A run that is resumed from a checkpoint ends, to the last bit, like the whole one."""
    resumed = fixed_rollout.make_trainer(tiny_model, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(folder))
    for name, weight in fixed_rollout.weights(whole).items():
        assert torch.equal(weight, fixed_rollout.weights(resumed)[name]), name
    keys = ("loss", "selection/threshold", "selection/kept_entropy", "entropy/mean", "tokens/formal", "stage")
    rows = [[row for row in t.state.log_history if "loss" in row] for t in (whole, resumed)]
    for row, other in zip(*rows, strict=True):
        assert [row.get(key) for key in keys] == [other.get(key) for key in keys]


@pytest.mark.parametrize("saved", [3, 4, 5])
def test_a_run_goes_on_in_its_second_epoch(tiny_model, tmp_path, saved):
    """An epoch is two rollouts of two problems, four optimiser steps; their order is drawn anew in each."""
    settings = RESUMED | {"data": fixed_rollout.prompts(8), "max_steps": 7, "save_steps": saved}
    whole = fixed_rollout.train(tiny_model, tmp_path / "a", **settings)
    assert whole.state.num_train_epochs == 2
    assert_goes_on(tiny_model, tmp_path / "b", whole, tmp_path / "a" / f"checkpoint-{saved}", **settings)


class Unsavable:
    """A value that has neither JSON nor tensors, such as an image."""


def test_logged_completions_may_hold_values_that_a_checkpoint_cannot(tiny_model, tmp_path):
    def told(completion_ids, log_extra, **kwargs):
        sums = np.array([sum(ids) for ids in completion_ids], dtype=np.float32)
        log_extra("score", list(sums))
        log_extra("odd", list(sums % 2 == 1))
        log_extra("digits", [np.array([s // 10, s % 10]) for s in sums])
        log_extra("price", [Decimal(int(s)) / 10 for s in sums])
        return list(sums % 7)

    settings = RESUMED | {"data": fixed_rollout.prompts(8), "reward": told, "log_completions": True}
    settings |= {"max_steps": 5, "save_steps": 3}
    whole = fixed_rollout.train(tiny_model, tmp_path / "a", **settings)
    assert_goes_on(tiny_model, tmp_path / "b", whole, tmp_path / "a" / "checkpoint-3", **settings)
    for step in (4, 5):  # the rollout of the checkpoint, and a later one
        name = f"completions/completions_{step:05d}.parquet"
        old, new = (pq.read_table(tmp_path / run / name).to_pydict() for run in "ab")
        assert len(new["score"]) == 16
        if step == 4:  # decimal numbers are not JSON
            assert new.pop("price") == [None] * 16 and len(old.pop("price")) == 16
        assert new == old


def test_a_checkpoint_leaves_images_out_of_the_logs(tiny_model, tmp_path):
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path / "a", log_completions=True)
    content = [{"type": "image", "image": Unsavable()}, {"type": "text", "text": "What is this?"}]
    prompt = [{"role": "user", "content": content}]
    trainer._logs["prompt"].extend([prompt, "text alone"])
    trainer._logs["images"].extend([[Unsavable(), Unsavable()], None])
    trainer._buffered_inputs, trainer._tr_loss = [], torch.tensor(0.5)
    checkpoint.save_state(tmp_path / "state.safetensors", trainer.resume.rank_state())
    again = fixed_rollout.make_trainer(tiny_model, tmp_path / "b", log_completions=True)
    again.resume.restore_rank_state(checkpoint.load_state(tmp_path / "state.safetensors"))
    shown = [strip_images_from_messages(messages) for messages in again._logs["prompt"]]
    assert shown == [strip_images_from_messages(prompt), "text alone"]
    assert list(again._logs["images"]) == [[], []]  # a place for every row, as the table has them


def test_a_checkpoint_with_its_threshold_beside_the_rollout_is_read(tiny_model, tmp_path):
    """Older versions wrote the thresholds of a step into the rank's state, and none into micro-batches."""
    settings = RESUMED | {"data": fixed_rollout.prompts(8), "max_steps": 5, "save_steps": 3}
    whole = fixed_rollout.train(tiny_model, tmp_path / "a", **settings)
    path = tmp_path / "a" / "checkpoint-3" / checkpoint.RANK_STATE.format(0)
    saved = checkpoint.load_state(path)
    thresholds = [float(batch.pop("threshold")) for batch in saved["buffered_inputs"]]
    checkpoint.save_state(path, saved | {"thresholds": thresholds[:1]})
    (path.parent / seal.COMPLETE).write_text(json.dumps({"step": 3, "num_processes": 1}))
    assert_goes_on(tiny_model, tmp_path / "b", whole, tmp_path / "a" / "checkpoint-3", **settings)


def test_adapters_come_back_in_their_dtype(tiny_model, tmp_path):
    adapters = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path, peft_config=adapters)
    for name, parameter in trainer.model.named_parameters():
        parameter.data = parameter.data.bfloat16() if "lora" in name else parameter.data
    saved = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.save_model(tmp_path / "checkpoint")
    for name, parameter in trainer.model.named_parameters():
        parameter.data.zero_() if "lora" in name else None
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint"))
    for name, parameter in trainer.model.named_parameters():
        assert parameter.dtype == saved[name].dtype and torch.equal(parameter, saved[name]), name


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_without_tied_weights_lacks_nothing(tmp_path, caplog, monkeypatch, tied):
    """Tied weights stay tied, are not written, and are not warned of. A weight that is missing still is."""
    model = save_tiny_model(tmp_path / "model", tie_word_embeddings=tied)
    settings = RESUMED | {"max_steps": 2, "save_steps": 1}
    whole = fixed_rollout.train(model, tmp_path / "a", **settings)
    checkpoint_1 = tmp_path / "a" / "checkpoint-1"
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert_goes_on(model, tmp_path / "b", whole, checkpoint_1, **settings)
    assert "missing keys" not in caplog.text
    path = checkpoint_1 / "model.safetensors"
    weights = load_file(path)
    assert ("lm_head.weight" in weights) != tied
    del weights["model.norm.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    trainer = fixed_rollout.make_trainer(model, tmp_path / "c", **settings)
    trainer._load_from_checkpoint(str(checkpoint_1))
    assert "missing keys in the checkpoint model loaded" in caplog.text and "'model.norm.weight'" in caplog.text


def test_a_finished_run_takes_no_further_step(tiny_model, tmp_path):
    settings = RESUMED | {"max_steps": 2, "save_steps": 2}
    whole = fixed_rollout.train(tiny_model, tmp_path / "a", **settings)
    again = fixed_rollout.make_trainer(tiny_model, tmp_path / "b", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert again.state.global_step == 2
    for name, weight in fixed_rollout.weights(whole).items():
        assert torch.equal(weight, fixed_rollout.weights(again)[name]), name


class Hostile:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "run")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_hostile_pickle_in_a_checkpoint_runs_nothing(tiny_model, tmp_path, name):
    """Not even where no digest refuses the checkpoint before."""
    settings = RESUMED | {"max_steps": 3, "save_steps": 2}
    fixed_rollout.train(tiny_model, tmp_path / "a", **settings)
    folder = tmp_path / "a" / "checkpoint-2"
    (folder / seal.COMPLETE).unlink()
    torch.save({"state": Hostile(tmp_path / "mark"), "python": 1}, folder / name)
    with pytest.raises(UnpicklingError):
        fixed_rollout.make_trainer(tiny_model, tmp_path / "b", **settings).train(resume_from_checkpoint=str(folder))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("methods", [{"advantages": ["qae"]}, {"token_weights": ["stapo"]}], ids=["rollout", "step"])
def test_another_method_begins_a_new_rollout(tiny_model, tmp_path, caplog, methods):
    """Within a rollout, which lacks the method's columns."""
    settings = RESUMED | {"data": fixed_rollout.prompts(8), "max_steps": 4, "save_steps": 1, "steps_per_generation": 4}
    fixed_rollout.train(tiny_model, tmp_path / "a", **settings)
    other = settings | methods | {"allow_changes": [*methods]}
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path / "b", **other)
    with caplog.at_level("WARNING"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    assert trainer.state.global_step == 4
    assert "checkpoint-1 was written with methods [" in caplog.text and "so a new rollout begins" in caplog.text


def test_another_micro_batch_begins_a_new_rollout(tiny_model, tmp_path, caplog):
    settings = RESUMED | {"data": fixed_rollout.prompts(8), "max_steps": 4, "save_steps": 1}
    fixed_rollout.train(tiny_model, tmp_path / "a", **settings)
    other = settings | {"per_device_train_batch_size": 2, "steps_per_generation": 8, "gradient_accumulation_steps": 4}
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path / "b", allow_changes=[*other.keys() - {"data"}], **other)
    with caplog.at_level("WARNING"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    assert trainer.state.global_step == 4
    assert "per_device_train_batch_size 4, now 2" in caplog.text and "so a new rollout begins" in caplog.text


ROLLOUTS = {"prompts_per_rollout": 4, "steps_per_generation": None, "gradient_accumulation_steps": 1}


@pytest.mark.parametrize(
    ("before", "after", "fact"),
    [
        # Of 8 micro-batches in 4 steps 2 are over, where 2 steps of 4 begin at a multiple of 4.
        (
            ROLLOUTS | {"per_device_train_batch_size": 2, "steps_per_rollout": 4},
            {"steps_per_rollout": 2},
            "gradient_accumulation_steps 2, now 4",
        ),
        ({}, {"beta": 0.01}, "has_reference False, now True"),
        ({}, {"num_iterations": 2}, "num_iterations 1, now 2"),
        ({}, {"temperature": 0.9}, "temperature 1.0, now 0.9"),
    ],
    ids=["steps_per_rollout", "beta", "num_iterations", "temperature"],
)
def test_a_change_that_the_rollout_does_not_fit_begins_a_new_one(tiny_model, tmp_path, caplog, before, after, fact):
    settings = RESUMED | {"data": fixed_rollout.prompts(8), "max_steps": 4, "save_steps": 1} | before
    fixed_rollout.train(tiny_model, tmp_path / "a", **settings | {"max_steps": 1})
    other = settings | after | {"allow_changes": [*after, "max_steps"]}
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path / "b", **other)
    with caplog.at_level("WARNING"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    assert trainer.state.global_step == 4 and fact in caplog.text and "so a new rollout begins" in caplog.text


def test_a_second_training_gives_vllm_the_weights_that_it_begins_with(tiny_model, tmp_path):
    """Both trainings draw their only rollout at step 0, which is no sign that the weights are the same."""

    sent = []

    class Engine:
        def sync_weights(self):
            sent.append(trainer.model.lm_head.weight.detach().clone())

    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path, max_steps=1, entropy_scope="rollout")
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, Engine(), -1
    trainer.vllm_importance_sampling_correction = False
    trainer.train()
    between = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    assert len(sent) == 2 and torch.equal(sent[1], between)
    assert not torch.equal(*sent)


def test_a_rollout_without_vllm_has_not_its_columns(tiny_model, tmp_path):
    """A correction of vLLM's log-probabilities reads a column that the rollout lacks."""
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path, **RESUMED)
    before = trainer.resume.shape()
    for name in ("use_vllm", "vllm_importance_sampling_correction"):
        setattr(trainer.args, name, not getattr(trainer.args, name))
        assert trainer.resume.shape() != before
        setattr(trainer.args, name, not getattr(trainer.args, name))
    assert trainer.resume.shape() == before
