"""SIGTERM at every place of a run: how soon it ends there, and that a continued run ends like one left alone."""

import signal
import threading
from types import SimpleNamespace

import pytest
import torch

from benchmarks.fixtures import fixed_rollout
from entropy_grpo.objective.ranks import ALONE, Ranks
from entropy_grpo.runs import seal
from entropy_grpo.runs.launched import Leave, Stopped
from entropy_grpo.training import stop
from entropy_grpo.training.server import from_first_process

# Two optimiser steps share a rollout.
SETTINGS = {
    "sampled": True,
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "steps_per_generation": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.05,
    "entropy_scope": "rollout",
    "top_entropy_quantile": 0.3,
    "per_device_eval_batch_size": 4,
    "max_completion_length": 24,
}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}


def make(model, folder, **more):
    held_out = fixed_rollout.prompts(3) if "eval_strategy" in more else None
    return fixed_rollout.make_trainer(model, folder, held_out=held_out, **SETTINGS | more)


def run(trainer, checkpoint=None):
    with stop.stoppable(trainer, lambda trainer: None):
        stop.train(trainer, checkpoint)
    return trainer


class Signal:
    """Sends SIGTERM once a step is over: in the third pass of a place, or in the first of a step. Lists all passes."""

    def __init__(self, trainer, place, step=2):
        self.trainer, self.place, self.step, self.calls, self.after, self.passes = trainer, place, step, 0, [], []
        trainer.model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, model, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        kind = "step" if torch.is_grad_enabled() else "evaluation" if not model.training else "rollout"
        kind = "scoring" if kind == "rollout" and ids is not None and ids.size(1) > 1 else kind
        if self.trainer.state.global_step == self.step:
            self.passes.append(kind)
        if self.after:
            self.after.append(kind)
        elif kind == self.place and self.trainer.state.global_step == self.step:
            self.calls += 1
            if self.calls == (1 if self.place == "step" else 3):
                self.after.append("signal")
                signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    return run(make(tiny_model, tmp_path_factory.mktemp("whole"), **EVALUATED))


def logged(trainer):
    """Rows of losses and evaluations. One that is made up for has its place in the log after a row of its step."""
    keys = ("step", "loss", "eval_loss", "eval_reward", "entropy/mean")
    rows = [tuple(row.get(key) for key in keys) for row in trainer.state.log_history]
    return sorted((row for row in rows if any(value is not None for value in row[1:])), key=str)


def assert_same(trainer, whole):
    """`trainer` ends with the weights and the log of the whole run."""
    for name, weight in fixed_rollout.weights(whole).items():
        assert torch.equal(weight, fixed_rollout.weights(trainer)[name]), name
    assert logged(trainer) == logged(whole) and len(logged(whole)) == 8


@pytest.mark.parametrize(("place", "step"), [("rollout", 2), ("evaluation", 2), ("step", 3)])
def test_a_run_leaves_at_once_and_goes_on_exactly(tiny_model, tmp_path, whole, place, step):
    trainer = make(tiny_model, tmp_path, **EVALUATED)
    sent = Signal(trainer, place)
    with pytest.raises(Stopped, match=rf"by SIGTERM after step {step}: continue from checkpoint-{step} with "):
        run(trainer)
    assert sent.after[0] == "signal" and "evaluation" not in sent.after
    assert len(sent.after) <= {"rollout": 1, "evaluation": 1, "step": 9}[place], sent.after
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    (saved,) = seal.complete_checkpoints(tmp_path)
    assert saved.name == f"checkpoint-{step}" and seal.faults(saved) == []
    assert_same(run(make(tiny_model, tmp_path, **EVALUATED), str(saved)), whole)


@pytest.mark.parametrize("place", ["reward", "save"])
def test_rewards_and_saves_end_first(tiny_model, tmp_path, monkeypatch, place):
    """A rollout is not scored after its rewards, and the step after a save does not begin."""
    seen, before, write = [], [], seal.write

    def reward(completion_ids, **kwargs):
        seen.append(trainer.state.global_step)
        if place == "reward" and seen[-1] == 2:
            before.extend(sent.passes)
            signal.raise_signal(signal.SIGTERM)
        return fixed_rollout.reward(completion_ids)

    def sealed(*parts):
        write(*parts)
        if place == "save" and trainer.state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(seal, "write", sealed)
    settings = {"save_strategy": "steps", "save_steps": 1}
    trainer = make(tiny_model, tmp_path, reward=reward, **settings)
    sent = Signal(trainer, "nowhere")
    with pytest.raises(Stopped, match="after step 2: continue from checkpoint-2 "):
        run(trainer)
    assert sent.passes == before and seen == ([0, 2] if place == "reward" else [0])
    assert [path.name for path in seal.complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


def test_a_rollout_within_a_step_is_finished_because_no_checkpoint_could_hold_the_step(tiny_model, tmp_path):
    settings = {"steps_per_generation": 2, "gradient_accumulation_steps": 4}
    settings |= {"top_entropy_quantile": 1.0, "entropy_denominator": "all", "entropy_scope": "micro_batch"}
    calls = []

    def reward(completion_ids, **kwargs):
        calls.append(trainer._step)
        if trainer._step == 10:
            signal.raise_signal(signal.SIGTERM)
        return fixed_rollout.reward(completion_ids)

    trainer = make(tiny_model, tmp_path, reward=reward, **settings)
    with pytest.raises(Stopped, match="after step 3: continue from checkpoint-3 "):
        run(trainer)
    assert calls[-1] == 10


def test_an_evaluation_is_left_with_a_checkpoint_after_an_epoch_that_ended_with_a_shorter_step(tiny_model, tmp_path):
    """The fourth step has two micro-batches, so that later steps do not begin at multiples of four."""
    settings = EVALUATED | {"steps_per_generation": 2, "gradient_accumulation_steps": 4, "max_steps": 8}
    settings |= {"top_entropy_quantile": 1.0, "entropy_denominator": "all", "entropy_scope": "micro_batch"}
    data = fixed_rollout.prompts(14)
    whole = run(make(tiny_model, tmp_path / "whole", data=data, **settings))
    steps = [row["epoch"] for row in whole.state.log_history if "loss" in row]
    assert steps[3] == 1.0 and steps[4] - steps[3] == pytest.approx(4 / 14)
    trainer = make(tiny_model, tmp_path / "left", data=data, **settings)
    sent = Signal(trainer, "evaluation", step=5)
    with pytest.raises(Stopped, match="after step 5: continue from checkpoint-5 "):
        run(trainer)
    assert sent.after == ["signal"]
    (saved,) = seal.complete_checkpoints(tmp_path / "left")
    resumed = run(make(tiny_model, tmp_path / "left", data=data, **settings), str(saved))
    for name, weight in fixed_rollout.weights(whole).items():
        assert torch.equal(weight, fixed_rollout.weights(resumed)[name]), name
    assert logged(resumed) == logged(whole)


def test_an_evaluation_that_a_stop_left_out_counts_for_the_best_checkpoint(tiny_model, tmp_path):
    """The reward falls from step to step, so that the evaluation of the first step, which is left, is the best."""

    def falling(completion_ids, trainer_state, **kwargs):
        return [i % 2 - float(trainer_state.global_step) for i in range(len(completion_ids))]

    settings = EVALUATED | {"metric_for_best_model": "eval_reward", "greater_is_better": True, "reward": falling}
    settings |= {"save_strategy": "steps", "save_steps": 100}
    whole = run(make(tiny_model, tmp_path / "whole", **settings))
    trainer = make(tiny_model, tmp_path / "left", **settings)
    Signal(trainer, "evaluation", step=1)
    with pytest.raises(Stopped):
        run(trainer)
    (saved,) = seal.complete_checkpoints(tmp_path / "left")
    resumed = run(make(tiny_model, tmp_path / "left", **settings), str(saved))
    assert whole.state.best_global_step == 1
    for name in ("best_global_step", "best_metric"):
        assert getattr(resumed.state, name) == getattr(whole.state, name)


def test_the_evaluation_after_the_training_is_left_with_a_checkpoint(tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path, max_steps=2)
    held_out = fixed_rollout.prompts(3)
    with pytest.raises(Stopped, match="after step 2: continue from checkpoint-2 "):
        with stop.stoppable(trainer, lambda trainer: None):
            stop.train(trainer, None)
            sent = Signal(trainer, "evaluation")
            with trainer.resume.saving_if_left():
                trainer.answer(held_out)
    assert sent.after == ["signal"]


def test_all_ranks_leave_if_one_is_asked():
    """By the largest flag of all ranks, whichever it is."""
    ranks = Ranks(1, 2, None, lambda own: max(own, 1), None)
    stopping = stop.Stop(ranks)
    with pytest.raises(Leave):
        stopping.leave_if_asked()
    assert not stopping.asked and not stopping.evaluation_due
    stop.Stop(ALONE).leave_if_asked()


def test_colocated_vllm_leaves_between_two_steps_of_its_engine():
    """With TRL's loop over the engine's steps, and vLLM itself left out."""
    steps, asked = [], []
    engine = SimpleNamespace(step=lambda: steps.append(len(steps)))
    generation = SimpleNamespace(tensor_parallel_size=1, llm=SimpleNamespace(llm_engine=engine))

    def generate(prompts, images, number, profiler=None):
        for _ in range(5):
            generation.llm.llm_engine.step()
            asked.extend([True] * (len(steps) == 7))
        return "whole"

    generation.generate = generate
    stop.Colocated(generation, lambda: bool(asked), 2)
    assert generation.generate([[5], [6]], None, 1) == "whole" and len(steps) == 5
    left = ([[5], [6]], [[2], [2]], [[[0.0]], [[0.0]]], [[[2]], [[2]]])
    assert generation.generate([[5], [6]], None, 1, profiler=None) == left and len(steps) == 7
    apart = SimpleNamespace(tensor_parallel_size=2, generate=generate)
    stop.Colocated(apart, lambda: True, 2)
    assert apart.generate is generate


def test_a_server_is_not_waited_for():
    ended = threading.Event()
    with pytest.raises(Leave):
        list(from_first_process(lambda send: ended.wait(), leaves=lambda: True))
    ended.set()
    assert list(from_first_process(lambda send: send(1))) == [1]
