"""What a run logs of its responses and tokens, against plain loops and the standard library."""

import math
import random
import statistics

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from benchmarks.fixtures import fixed_rollout
from entropy_grpo.monitoring import diagnostics
from entropy_grpo.monitoring.categories import CATEGORIES, category
from entropy_grpo.monitoring.diagnostics import TokenCategories
from entropy_grpo.monitoring.steps import StepMonitor
from entropy_grpo.objective.selection import on_one_process

from . import reference
from .test_shaping import in_order, residual_norms


def test_a_token_is_decoded_once():
    asked = []
    words = ["so", "wait", "7", "tree"]

    def decode(ids):
        asked.extend(ids)
        return words[ids[0]]

    categories = TokenCategories(decode, 4)
    ids = torch.tensor([[3, 1, 1], [0, 2, 3]])
    assert categories(ids).tolist() == [[3, 2, 2], [1, 0, 3]] == categories(ids).tolist()
    assert sorted(asked) == [0, 1, 2, 3]


def test_answers_by_hand():
    """Groups of three: one right, none, all."""
    right = torch.tensor([1, 0, 0, 0, 0, 0, 1, 1, 1]).bool()
    found = diagnostics.answer_metrics(right, torch.tensor([4, 9, 9, 9, 9, 9, 1, 2, 3]), 3)
    assert found == pytest.approx(
        {
            "completions/right_length": 2.5,
            "completions/wrong_length": 9,
            "groups/all_right": 1 / 3,
            "groups/all_wrong": 1 / 3,
            "groups/one_right": 1 / 3,
        }
    )
    assert math.isnan(diagnostics.answer_metrics(right[:3] & False, torch.ones(3), 3)["completions/right_length"])


@pytest.mark.parametrize("count", [1, 7, 101])
def test_change_is_the_formula(count):
    rng = random.Random(count)
    pairs = [(rng.random(), rng.random()) for _ in range(count)]
    new, old = (torch.tensor(column, dtype=torch.float64).log().float() for column in zip(*pairs, strict=True))
    changes = sorted((abs(a - b) for a, b in pairs), reverse=True)
    found = diagnostics.change_metrics(new, old, on_one_process)
    assert found["probability/change"] == pytest.approx(statistics.fmean(changes), rel=1e-5)
    top = sum(changes[: math.ceil(count / 5)]) / sum(changes)
    assert found["probability/top20_share"] == pytest.approx(top, rel=1e-5)


def test_gradient_norms_are_ranked_like_entropies():
    rng = random.Random(0)
    norms = [rng.random() for _ in range(50)]
    entropies = [x + rng.random() for x in norms]
    found = diagnostics.gradient_metrics(torch.tensor(norms), torch.tensor(entropies), on_one_process)
    ranks = [[sorted(values).index(x) for x in values] for values in (norms, entropies)]
    assert found["gradient/entropy_correlation"] == pytest.approx(statistics.correlation(*ranks), abs=1e-6)
    assert [found[f"gradient/p{p}"] for p in (50, 90, 99)] == pytest.approx(
        [sorted(norms)[math.floor(level * 49)] for level in (0.5, 0.9, 0.99)]
    )
    single = diagnostics.gradient_metrics(torch.ones(1), torch.ones(1), on_one_process)
    assert all(math.isnan(value) for value in single.values())


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """Two optimiser steps of a rollout, under whose scope the tokens that are not trained on are known, too."""
    return fixed_rollout.train(
        tiny_model,
        tmp_path_factory.mktemp("run"),
        entropy_scope="rollout",
        top_entropy_quantile=0.3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        max_steps=2,
        learning_rate=0.1,
        reward="coins",
    )


def tokens_of(trainer, steps):
    """(id, entropy, kept, advantage) of every token of some optimiser steps."""
    rows = []
    for batch in (batch for step in steps for batch in trainer._buffered_inputs[2 * step : 2 * step + 2]):
        for i, t in batch["completion_mask"].nonzero().tolist():
            values = (batch[key][i, t].item() for key in ("completion_ids", "entropies", "kept_mask"))
            rows.append((*values, batch["advantages"][i].item()))
    return rows


def test_a_rollout_logs_its_tokens(trained):
    """Once, with its first step, whichever of them that step trains on."""
    log, rows = trained.state.log_history[0], tokens_of(trained, (0, 1))
    assert log["entropy/mean"] == pytest.approx(statistics.fmean(h for _, h, _, _ in rows), rel=1e-5)
    assert not [key for key in trained.state.log_history[1] if key.startswith("entropy/")]
    positive = {token for token, _, _, advantage in rows if advantage > 0}
    negatives = [row for row in rows if row[3] < 0]
    only = [entropy for token, entropy, _, _ in negatives if token not in positive]
    assert log["tokens/negative_only_entropy"] == pytest.approx(statistics.fmean(only), rel=1e-5)
    assert log["tokens/negative_only"] == pytest.approx(len(only) / len(negatives))
    for full in CATEGORIES:
        name = full.split()[0]
        own = [r for r in rows if category(trained.processing_class.decode([r[0]])) == full]
        assert log[f"tokens/{name}"] == pytest.approx(len(own) / len(rows))
        value = pytest.approx(statistics.fmean(r[1] for r in own), rel=1e-5) if own else None
        assert log[f"tokens/{name}_entropy"] == value
    assert log["tokens/formal"] > 0 and log["tokens/semantic"] > 0


@pytest.mark.parametrize("step", [0, 1])
def test_a_step_logs_its_tokens(trained, step):
    log, rows = trained.state.log_history[step], tokens_of(trained, (step,))
    for full in CATEGORIES:
        own = [r for r in rows if category(trained.processing_class.decode([r[0]])) == full]
        value = pytest.approx(statistics.fmean(r[2] for r in own), rel=1e-5) if own else None
        assert log[f"tokens/{full.split()[0]}_kept"] == value
    changed = (log["probability/change"] > 1e-6, log["probability/top20_share"] is not None)
    assert changed == (step == 1, step == 1), "only the second step's policy is another"


def test_a_rollout_logs_its_responses(trained):
    log, mask = trained.state.log_history[0], in_order(trained, "completion_mask")
    ids = [row[m.bool()].tolist() for row, m in zip(in_order(trained, "completion_ids"), mask, strict=True)]
    right, wrong = (
        [len(row) for row in ids if bool(fixed_rollout.coins([row])[0]) == is_right] for is_right in (1, 0)
    )
    assert log["completions/right_length"] == pytest.approx(statistics.fmean(right))
    assert log["completions/wrong_length"] == pytest.approx(statistics.fmean(wrong))
    assert log["quality/no_box"] == 1 and log["quality/format_entropy"] >= 0


ARMS = {
    "rho 1": {"top_entropy_quantile": 1.0},
    "rollout": {"entropy_scope": "rollout", "top_entropy_quantile": 0.3},
    "global": {"entropy_scope": "global", "top_entropy_quantile": 0.3},
    "micro_batch": {"entropy_scope": "micro_batch", "top_entropy_quantile": 0.3},
    "TRL's head": {"fused_lm_head": "trl", "top_entropy_quantile": 1.0},
}


def half_flat(completion_ids, **kwargs):
    """Every second response is right in every other group, and all are in the rest, which have no advantage."""
    return [float(i % 2) if i // fixed_rollout.GENERATIONS % 2 else 1.0 for i in range(len(completion_ids))]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_logs_the_entropies_of_one_population_by_one_policy(tiny_model, tmp_path, arm, steps):
    """All tokens of the rollout under the policy that wrote it, in float64: half of its groups have no advantage, so
    that not all sequences are run, and with two steps the second policy is another."""
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": steps}
    settings |= {"steps_per_generation": 2 * steps, "learning_rate": 0.1, "reward": half_flat}
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path, **settings, **ARMS[arm])
    finish, kept = trainer.rollouts.finish, []
    trainer.rollouts.finish = lambda output, supply: kept.append(finish(output, supply)) or kept[-1]
    trainer.train()
    model, (rollout,) = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64), kept
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    with torch.no_grad():
        _, entropies = reference.score(model, *(rollout[key] for key in keys), 1.0)
    mask = rollout["completion_mask"].bool()
    ids = [row[m].tolist() for row, m in zip(rollout["completion_ids"], mask, strict=True)]
    right = torch.tensor([value > 0 for value in half_flat(ids)])
    log = trainer.state.log_history[0]
    for name, chosen in (
        ("mean", mask),
        ("right", mask & right.unsqueeze(1)),
        ("wrong", mask & ~right.unsqueeze(1)),
        ("positive", mask & (rollout["advantages"] > 0).unsqueeze(1)),
    ):
        assert log[f"entropy/{name}"] == pytest.approx(entropies[chosen].mean().item(), rel=1e-4), name
    ordered = entropies[mask].sort().values
    for level in (5, 50, 95):
        value = ordered[math.floor(level * (len(ordered) - 1) / 100)].item()
        assert log[f"entropy/p{level}"] == pytest.approx(value, rel=1e-4)


def test_nothing_of_it_is_logged_where_it_is_off(tiny_model, tmp_path):
    trainer = fixed_rollout.train(tiny_model, tmp_path, log_diagnostics=False)
    kinds = {key.split("/")[0] for key in trainer.state.log_history[0]}
    assert not kinds & {"tokens", "quality", "groups", "probability"}


def test_a_rollout_logs_its_gradients(trained, tiny_model):
    """In float64, of the tokens that have one; those of a group's first tokens have equal entropies, in any order."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    sequences = [in_order(trained, key) for key in keys]
    with torch.no_grad():
        _, entropies = reference.score(model, *sequences, 1.0)
        norms = residual_norms(model, *sequences) * in_order(trained, "advantages").abs().unsqueeze(1)
    has_one = sequences[3].bool() & (norms > 0)
    log, ordered = trained.state.log_history[0], sorted(norms[has_one].tolist())
    for percent in (50, 90, 99):
        value = ordered[math.floor(percent * (len(ordered) - 1) / 100)]
        assert log[f"gradient/p{percent}"] == pytest.approx(value, rel=1e-4)
    ranks = [
        [sorted(values).index(x) for x in values] for values in (norms[has_one].tolist(), entropies[has_one].tolist())
    ]
    assert log["gradient/entropy_correlation"] == pytest.approx(statistics.correlation(*ranks), abs=0.01)


def test_gradients_are_logged_where_tokens_are_ranked_by_them(tiny_model, tmp_path):
    settings = {"top_entropy_quantile": 0.3}
    ranked = fixed_rollout.train(tiny_model, tmp_path / "a", entropy_selection="gradient_norm", **settings)
    log = ranked.state.log_history[0]
    assert log["gradient/p50"] < log["selection/threshold"] <= log["gradient/p90"]
    on_policy = fixed_rollout.train(tiny_model, tmp_path / "b", entropy_scope="rollout", **settings)
    assert on_policy.state.log_history[0]["gradient/p50"] > 0
    plain = fixed_rollout.train(tiny_model, tmp_path / "c", **settings)
    assert "gradient/p50" not in plain.state.log_history[0]


def test_an_evaluation_leaves_nothing_in_the_training_log(tiny_model, tmp_path):
    """In the middle of a rollout, whose threshold both of its steps log."""
    settings = {"entropy_scope": "rollout", "top_entropy_quantile": 0.3, "steps_per_generation": 2, "max_steps": 2}
    settings |= {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "learning_rate": 0.1}
    logs = []
    for evaluates in (False, True):
        trainer = fixed_rollout.make_trainer(tiny_model, tmp_path / str(evaluates), **settings)
        if evaluates:
            step = trainer.training_step

            def interrupted(*args, trainer=trainer, step=step):
                if trainer.state.global_step == 1:
                    trainer.answer(fixed_rollout.prompts(2))
                return step(*args)

            trainer.training_step = interrupted
        trainer.train()
        logs.append([row for row in trainer.state.log_history if "loss" in row])
    first, second = logs[0]
    assert first["selection/threshold"] == second["selection/threshold"]
    for row, other in zip(*logs, strict=True):
        same = {key for key in row if not any(word in key for word in ("time", "seconds", "per_second"))}
        assert {key: row[key] for key in same} == {key: other[key] for key in same}


def test_a_step_that_reaches_into_the_next_rollout_logs_its_own_tokens(tiny_model, tmp_path, monkeypatch):
    """Four micro-batches of two rollouts, with an evaluation after the first step."""
    settings = {"top_entropy_quantile": 1.0, "gradient_accumulation_steps": 4, "steps_per_generation": 2}
    settings |= {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 3}
    trainer, counts = fixed_rollout.make_trainer(tiny_model, tmp_path, **settings), []
    log_step = StepMonitor.step

    def counted(self, window, size):
        counts.append(len(window.scored))
        return log_step(self, window, size)

    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                trainer.answer(fixed_rollout.prompts(2))

    monkeypatch.setattr(StepMonitor, "step", counted)
    trainer.add_callback(Evaluate())
    trainer.train()
    assert counts == [4, 4, 4]
