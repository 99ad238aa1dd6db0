"""Micro-batches by a budget of tokens: the same training as with TRL's number of micro-batches, in fewer passes."""

import pytest

from benchmarks.fixtures import fixed_rollout
from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.objective.objective import Objective

from .test_objective import assert_close, half_flat

LONGEST = 16 + 24  # tokens of the longest prompt and of the longest response, at least
BUDGETS = {"one": 10_000, "some": 2 * LONGEST, "all": 1}


class Counted(fixed_rollout.EntropyForkGRPOTrainer):
    """A trainer that notes the sequences of every training pass, and the prompts of every generation."""

    def __init__(self, *args, **kwargs):
        self.passes, self.prompts = [], []
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model, inputs):
        whole = inputs["prompt_mask"].sum(1) + inputs["completion_mask"].sum(1)
        self.passes.append((self.state.global_step, len(whole), int(whole.max())))
        return super()._compute_loss(model, inputs)

    def _generate(self, prompts):
        self.prompts.append(len(prompts))
        return super()._generate(prompts)


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    monkeypatch.setattr(fixed_rollout, "EntropyForkGRPOTrainer", Counted)


def run(tiny_model, folder, budget=None, **settings):
    """Two optimiser steps of a rollout in micro-batches of one sequence."""
    settings = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "steps_per_generation": 16,
        "max_steps": 2,
        "learning_rate": 0.01,
        "entropy_scope": "rollout",
        "token_budget": budget,
    } | settings
    trainer = fixed_rollout.train(tiny_model, folder, **settings)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return trainer, fixed_rollout.weights(trainer), rows


def assert_same_run(first, second):
    """Weights, and what the runs logged of themselves; TRL's own `entropy` and `clip_ratio/*` are means of passes."""
    assert_close(first[1], second[1], 1e-6)
    own = ("selection/", "clip_ratio/kept", "entropy/", "shaping/", "accuracy", "dynamic_sampling/")
    assert len(first[2]) == len(second[2]) > 0
    for row, other in zip(first[2], second[2], strict=True):
        names = ["loss", "grad_norm", *(name for name in other if name.startswith(own))]
        assert len(names) > 6
        for name in names:
            expected = other[name] if other[name] is None else pytest.approx(other[name], rel=1e-4, abs=1e-6)
            assert row[name] == expected, name


@pytest.mark.parametrize(("scope", "rho"), [("rollout", 0.2), ("global", 0.2), ("rollout", 1.0)], ids=str)
def test_every_budget_trains_as_no_budget_does(tiny_model, tmp_path, scope, rho):
    # After a step the policies differ by rounding, and so may the order of equal entropies under `global` scope.
    steps = 1 if (scope, rho) == ("global", 0.2) else 2
    settings = {"entropy_scope": scope, "top_entropy_quantile": rho, "max_steps": steps}
    plain = run(tiny_model, tmp_path / "plain", **settings)
    assert [n for _, n, _ in plain[0].passes] == [1] * 8 * steps
    for name, budget in BUDGETS.items():
        trainer, *found = run(tiny_model, tmp_path / name, budget, **settings)
        assert_same_run((trainer, *found), plain)
        passes = [[(n, width) for at, n, width in trainer.passes if at == step] for step in range(steps)]
        sequences = [sum(n for n, _ in of) for of in passes]
        assert sequences == [8] * steps if rho == 1 else 5 <= min(sequences) <= max(sequences) <= 8
        assert all(n * width <= budget or n == 1 for of in passes for n, width in of)
        counts = [len(of) for of in passes]
        expected = {"one": [1] * steps, "all": sequences}.get(name)
        assert counts == expected if expected else all(1 < count < 8 for count in counts)
        assert [row["batching/micro_batches"] for row in found[1]] == counts
        assert trainer.prompts == [16], "a rollout was generated more than once"
        assert trainer._step == 8 * steps


def test_a_step_without_gradient_is_one_pass(tiny_model, tmp_path):
    """Sequences without an advantage are not run, but for one that closes the step."""
    flat = {"reward": lambda completion_ids, **kwargs: [1.0] * len(completion_ids)}
    trainer, _weights, rows = run(tiny_model, tmp_path / "flat", BUDGETS["some"], **flat)
    assert [n for _, n, _ in trainer.passes] == [1, 1]
    assert [row["grad_norm"] for row in rows] == [0, 0] and [row["loss"] for row in rows] == [0, 0]
    half = run(tiny_model, tmp_path / "half", BUDGETS["some"], reward=half_flat)
    assert_same_run(half, run(tiny_model, tmp_path / "plain", reward=half_flat))
    assert sum(n for _, n, _ in half[0].passes) < 16


def test_rollouts_of_dynamic_sampling_are_trained_alike(tiny_model, tmp_path):
    """With groups that waited, and with groups that fill up a rollout and have no gradient."""
    settings = {
        "dynamic_sampling": True,
        "max_sampling_rounds": 1,
        "data": fixed_rollout.prompts(64),
        "reward": "coins",
        "max_steps": 6,
    }
    plain, budget = (run(tiny_model, tmp_path / str(b), b, **settings) for b in (None, BUDGETS["some"]))
    assert_same_run(budget, plain)
    assert len(budget[0].passes) < len(plain[0].passes) / 1.5
    rows = plain[2]
    assert any(row.get("dynamic_sampling/filling", 0) > 0 for row in rows)


def test_a_step_whose_gradient_is_not_finite_is_skipped_in_both(tiny_model, tmp_path, monkeypatch):
    original = Counted._compute_loss

    def poisoned(self, model, inputs):
        loss = original(self, model, inputs)
        return loss * float("nan") if self.state.global_step == 0 else loss

    monkeypatch.setattr(Counted, "_compute_loss", poisoned)
    plain, budget = (run(tiny_model, tmp_path / str(b), b) for b in (None, BUDGETS["some"]))
    assert [row["skipped_steps"] for row in budget[2]] == [1, 1]
    assert_close(budget[1], plain[1], 1e-6)


def test_a_window_is_opened_once(tiny_model, tmp_path):
    """However often the inputs of a micro-step are asked for, and again after a checkpoint is restored."""
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "token_budget": 10_000}
    trainer = fixed_rollout.train(tiny_model, tmp_path, entropy_scope="rollout", **settings)
    trainer.model.train()
    trainer._step, trainer.prompts = 0, []
    problems = [row for row in trainer.train_dataset for _ in range(4)][:8]
    assert trainer._prepare_inputs(problems) is None
    window = trainer._window
    assert trainer._prepare_inputs(problems) is None and trainer._window is window and trainer.prompts == [8]
    assert trainer.training_step(trainer.model, problems) == 0 and trainer._step == 1
    trainer._step = 7
    assert trainer._prepare_inputs(problems) is window.batches[0] is trainer._prepare_inputs(problems)
    trainer.resume.restore_shared_state(trainer.resume.shared_state() | {"step": 0})
    trainer._prepare_inputs(problems)
    assert trainer._window is not window and trainer.prompts == [8, 8]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"token_budget": 0}, "token_budget is 0: it must be 1 or more"),
        ({"batch_by_length": False}, "batch_by_length is false: set it to true"),
        ({"loss_type": "dr_grpo", "entropy_denominator": "all"}, "use loss_type dapo or cispo or vespo"),
        ({"entropy_coef": 0.1}, "entropy bonus or a load-balancing term"),
        ({"entropy_scope": "micro_batch"}, "use global or rollout"),
        (
            {"top_entropy_quantile": 1.0, "gradient_accumulation_steps": 2, "steps_per_generation": 3},
            "steps_per_generation is no multiple of gradient_accumulation_steps",
        ),
    ],
    ids=str,
)
def test_what_needs_trls_micro_batches_is_refused(tmp_path, settings, words):
    base = {"use_cpu": True, "bf16": False, "num_generations": 2, "token_budget": 100}
    with pytest.raises(ValueError, match=words):
        EntropyForkGRPOConfig(str(tmp_path), **base | settings)


def test_a_model_whose_positions_depend_on_its_batch_is_refused(tmp_path):
    args = EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=2, token_budget=100)
    assert Objective.from_args(args).token_budget == 100
    for facts, words in (({"inert": False}, "positions"), ({"aux_loss_enabled": True}, "load-balancing")):
        with pytest.raises(ValueError, match=words):
            Objective.from_args(args, **facts)


def test_scope_means_nothing_where_all_tokens_are_kept(tmp_path):
    settings = {"top_entropy_quantile": 1.0, "entropy_scope": "micro_batch", "token_budget": 100}
    args = EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=2, **settings)
    assert Objective.from_args(args).token_budget == 100
