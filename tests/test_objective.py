"""The loss and its gradient against the float64 formula, stock TRL, and themselves under another batching."""

import json
import math
import subprocess

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.fixtures import fixed_rollout
from entropy_grpo.objective.methods.entries import SETTINGS, split
from entropy_grpo.objective.methods.registry import REGISTERED
from entropy_grpo.objective.tokens import token_places
from entropy_grpo.objective.window import select_tokens

from . import reference
from .conftest import REPOSITORY
from .test_selection import matched_by_brute_force

TEMPERATURE = 0.7
OWN = "tests.own_methods:"
LIKE_TRL = {"fused_lm_head": "trl", "batch_by_length": False}


def make_batches(sizes, seed=0, vocabulary=377, empty_rows=()):
    """Micro-batches of one rollout: ragged random completions, advantages, noise for old log-probabilities."""
    rng = torch.Generator().manual_seed(seed)
    total, length, batches, first = sum(sizes), 11, [], 0
    for size in sizes:
        lengths = torch.randint(1, length + 1, (size,), generator=rng)
        lengths[[i for i in range(size) if first + i in empty_rows]] = 0
        prompt_lengths = torch.randint(1, 5, (size,), generator=rng)
        batches.append(
            {
                "prompt_ids": torch.randint(3, vocabulary, (size, 4), generator=rng),
                "prompt_mask": (torch.arange(4) >= 4 - prompt_lengths.unsqueeze(1)).long(),
                "completion_ids": torch.randint(3, vocabulary, (size, length), generator=rng),
                "completion_mask": (torch.arange(length) < lengths.unsqueeze(1)).long(),
                "advantages": torch.randn(size, generator=rng),
                "right": torch.arange(first, first + size) % 3 == 0,
                "noise": 0.4 * torch.randn(size, length, generator=rng),
                "sequence_index": torch.arange(first, first + size),
                "sequence_count": torch.tensor(total),
            }
        )
        first += size
    tokens = sum(b["completion_mask"].sum() for b in batches)
    return [b | {"num_items_in_batch": tokens} for b in batches]


def make_trainer(tiny_model, tmp_path, accumulation, **overrides):
    """A trainer that is ready to compute losses of one optimiser step."""
    settings = {"max_steps": 1, "temperature": TEMPERATURE, "gradient_accumulation_steps": accumulation} | overrides
    trainer = fixed_rollout.train(tiny_model, tmp_path, learning_rate=0.0, **settings)
    trainer.model.train()
    trainer._step = 0
    trainer.current_gradient_accumulation_steps = accumulation
    return trainer


def run_window(trainer, batches):
    """Sum of the micro-batches' losses, and its gradient, the way the training loop gets them."""
    trainer.model.zero_grad()
    window = trainer._window = trainer._plan(batches)
    total = 0.0
    for step, batch in enumerate(window.batches):
        trainer._step = step
        trainer.accelerator.gradient_state._set_sync_gradients(step == len(batches) - 1)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def expected(tiny_model, batches, rho, kind, scope):
    """The same in float64, from full logits, over the padded-together window."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    window = {"logps": [], "old": [], "advantages": [], "kept": [], "entropies": [], "mask": [], "places": []}
    for b in batches:
        logps, entropies = reference.score(
            model, b["prompt_ids"], b["prompt_mask"], b["completion_ids"], b["completion_mask"], TEMPERATURE
        )
        mask = b["completion_mask"].bool()
        positions = torch.arange(mask.size(1))
        places = positions * b["sequence_count"] + b["sequence_index"].unsqueeze(1)
        for key, value in zip(
            window,
            (logps, b["old_per_token_logps"].double(), b["advantages"], None, entropies, mask, places),
            strict=True,
        ):
            window[key].append(value)

    def padded(key):
        width = max(x.size(1) for x in window[key])
        return torch.cat([torch.nn.functional.pad(x, (0, width - x.size(1))) for x in window[key]])

    def kept_of(entropies, mask, places):
        kept = reference.top(entropies, mask, rho, places)
        return mask & ~kept if kind == "bottom" else kept

    if scope == "micro_batch":
        window["kept"] = [kept_of(*x) for x in zip(window["entropies"], window["mask"], window["places"], strict=True)]
        kept = padded("kept")
    else:
        kept = kept_of(padded("entropies"), padded("mask"), padded("places"))
    advantages = torch.cat(window["advantages"]).double()
    loss = reference.objective(padded("logps"), padded("old"), advantages, kept, 0.2, 0.28)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, kept


def set_old_logps(model, batches, clip=True):
    """Old log-probabilities at a distance from the current ones: with `clip`, ratios clip on both sides."""
    for b in batches:
        with torch.no_grad():
            logps, _ = reference.score(
                model, b["prompt_ids"], b["prompt_mask"], b["completion_ids"], b["completion_mask"], TEMPERATURE
            )
        b["old_per_token_logps"] = logps + b.pop("noise") * (1.0 if clip else 0.1)


def assert_close(gradients, others, tolerance):
    assert gradients.keys() == others.keys()
    scale = max(g.abs().max().item() for g in others.values())
    assert scale > 1e-4, "a gradient of nothing would prove nothing"
    for name, gradient in gradients.items():
        error = (gradient.double() - others[name].double()).abs().max().item()
        assert error <= tolerance * scale, f"{name}: {error} of {scale}"


@pytest.mark.parametrize(
    ("rho", "kind"), [(0.01, "top"), (0.2, "top"), (0.7, "top"), (0.2, "bottom"), (0.9, "bottom")]
)
@pytest.mark.parametrize(("scope", "sizes"), [("micro_batch", (3, 5)), ("global", (3, 5)), ("global", (8,))])
def test_loss_and_gradient_are_the_formulas(tiny_model, tmp_path, rho, kind, scope, sizes):
    trainer = make_trainer(
        tiny_model,
        tmp_path,
        len(sizes),
        top_entropy_quantile=rho,
        entropy_selection=kind,
        entropy_scope=scope,
    )
    batches = make_batches(sizes, empty_rows=(2,))
    # Where a single token is kept, it must not be a clipped one, or there is no gradient to compare.
    set_old_logps(trainer.model, batches, clip=rho > 0.01)
    loss, gradients = run_window(trainer, batches)
    if scope == "micro_batch":  # whose tokens are those that the trainer has put together
        batches = trainer._plan(batches).batches
    expected_loss, expected_gradients, kept = expected(tiny_model, batches, rho, kind, scope)
    assert loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-6)
    assert_close(gradients, expected_gradients, 2e-5)
    # What the run logs is what the formula kept.
    tokens = sum(b["completion_mask"].sum().item() for b in batches)
    assert trainer._metrics["train"]["selection/kept_fraction"][-1] == pytest.approx(kept.sum().item() / tokens)


def padded(tensors):
    """Rows of several micro-batches in one tensor."""
    width = max(t.size(1) for t in tensors)
    return torch.cat([torch.nn.functional.pad(t, (0, width - t.size(1))) for t in tensors])


def test_rollout_scope_divides_each_step_by_its_own_kept_tokens(tiny_model, tmp_path):
    """Two optimiser steps of one rollout keep unequal shares of it; each loss is the formula's over its own."""
    trainer = make_trainer(
        tiny_model, tmp_path, 1, top_entropy_quantile=0.7, entropy_scope="rollout", steps_per_generation=2
    )
    batches = make_batches((3, 5))
    set_old_logps(trainer.model, batches)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    scores = [reference.score(model, *(b[key] for key in keys), TEMPERATURE) for b in batches]
    masks = [b["completion_mask"].bool() for b in batches]
    places = [
        torch.arange(b["completion_ids"].size(1)) * b["sequence_count"] + b["sequence_index"].unsqueeze(1)
        for b in batches
    ]
    whole = reference.top(padded([h for _, h in scores]), padded(masks), 0.7, padded(places))
    shares, first = [], 0
    for b, (logps, _), mask in zip(batches, scores, masks, strict=True):
        b["kept_mask"] = whole[first : first + mask.size(0), : mask.size(1)]
        b["counted"] = b["kept_mask"].sum(1)
        b["entropies"] = scores[len(shares)][1].detach().float()
        b["threshold"] = torch.tensor(math.nan)
        first += mask.size(0)
        loss, _ = run_window(trainer, [b])
        expected_loss = reference.objective(
            logps, b["old_per_token_logps"].double(), b["advantages"].double(), b["kept_mask"], 0.2, 0.28
        )
        assert loss == pytest.approx(expected_loss.item(), rel=1e-5, abs=1e-6)
        shares.append(trainer._metrics["train"]["selection/kept_fraction"][-1])
    assert shares[0] != shares[1]


@pytest.mark.parametrize("off_policy", [False, True], ids=["on policy", "with old log-probabilities"])
def test_rollout_scope_keeps_the_top_of_the_rollout_by_the_policy_that_wrote_it(tiny_model, tmp_path, off_policy):
    """Also at the second step, whose policy is another one."""
    splits = {"steps_per_generation": 2} if off_policy else {"gradient_accumulation_steps": 2}
    trainer = fixed_rollout.train(
        tiny_model,
        tmp_path,
        top_entropy_quantile=0.2,
        entropy_scope="rollout",
        per_device_train_batch_size=4,
        temperature=TEMPERATURE,
        max_steps=2 if off_policy else 1,
        **splits,
    )
    batches = trainer._buffered_inputs
    assert len(batches) == 2 and all(("old_per_token_logps" in b) == off_policy for b in batches)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    entropies = padded([reference.score(model, *(b[key] for key in keys), TEMPERATURE)[1] for b in batches])
    mask, kept = (padded([b[key].bool() for b in batches]) for key in ("completion_mask", "kept_mask"))
    assert kept.sum() == -(-mask.sum() // 5) and not (kept & ~mask).any()
    # Entropies that are equal but for rounding may change places; nothing else may.
    assert entropies[kept].min() >= entropies[mask & ~kept].max() - 1e-5


def test_random_selection_trains_a_seeded_share(tiny_model, tmp_path):
    trainer = make_trainer(tiny_model, tmp_path, 2, top_entropy_quantile=0.2, entropy_selection="random")
    batches = make_batches((3, 5))
    set_old_logps(trainer.model, batches)
    first, again = run_window(trainer, batches), run_window(trainer, batches)
    assert first[0] == again[0]
    trainer.args.seed += 1
    assert run_window(trainer, batches)[0] != first[0]


def test_metrics_are_the_formulas(tiny_model, tmp_path):
    trainer = make_trainer(tiny_model, tmp_path, 2, top_entropy_quantile=0.2)
    batches = make_batches((3, 5), seed=3)
    set_old_logps(trainer.model, batches)
    run_window(trainer, batches)
    scores = [
        reference.score(
            trainer.model, b["prompt_ids"], b["prompt_mask"], b["completion_ids"], b["completion_mask"], TEMPERATURE
        )
        for b in batches
    ]
    rows, right = [], []  # entropy, advantage, ratio of every token of the window; entropies of right responses
    for (logps, entropies), b in zip(scores, batches, strict=True):
        for i, t in b["completion_mask"].nonzero().tolist():
            ratio = (logps[i, t] - b["old_per_token_logps"][i, t]).exp().item()
            rows.append((entropies[i, t].item(), b["advantages"][i].item(), ratio))
            right += [entropies[i, t].item()] if b["right"][i] else []
    rows.sort(reverse=True)
    number = -(-len(rows) // 5)
    kept, dropped = rows[:number], rows[number:]

    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    metrics = {key: values[-1] for key, values in trainer._metrics["train"].items()}
    assert metrics["selection/threshold"] == pytest.approx(kept[-1][0], rel=1e-5)
    assert metrics["selection/kept_entropy"] == pytest.approx(mean(h for h, _, _ in kept), rel=1e-5)
    assert metrics["selection/dropped_entropy"] == pytest.approx(mean(h for h, _, _ in dropped), rel=1e-5)
    assert metrics["entropy/mean"] == pytest.approx(mean(h for h, _, _ in rows), rel=1e-5)
    assert metrics["entropy/right"] == pytest.approx(mean(right), rel=1e-5)
    everything = sum(h for h, _, _ in rows)
    assert metrics["entropy/wrong"] == pytest.approx((everything - sum(right)) / (len(rows) - len(right)), rel=1e-5)
    assert metrics["entropy/positive"] == pytest.approx(mean(h for h, a, _ in rows if a > 0), rel=1e-5)
    assert metrics["entropy/negative"] == pytest.approx(mean(h for h, a, _ in rows if a < 0), rel=1e-5)
    low, high = mean(a < 0 and r < 0.8 for _, a, r in kept), mean(a > 0 and r > 1.28 for _, a, r in kept)
    assert low + high > 0
    assert metrics["clip_ratio/kept_low"] == pytest.approx(low)
    assert metrics["clip_ratio/kept_high"] == pytest.approx(high)
    entropies = torch.tensor([h for h, _, _ in rows], dtype=torch.float64)
    for level in (5, 25, 50, 75, 90, 95, 99):
        quantile = torch.quantile(entropies, level / 100, interpolation="lower").item()
        assert metrics[f"entropy/p{level}"] == pytest.approx(quantile, rel=1e-5, abs=1e-6)


def test_no_gradient_flows_through_the_entropy(tiny_model, tmp_path):
    """With zero advantages every surrogate is constant, so any gradient would be the selection's."""
    trainer = make_trainer(tiny_model, tmp_path, 2, top_entropy_quantile=0.2)
    batches = make_batches((3, 5))
    set_old_logps(trainer.model, batches)
    for b in batches:
        b["advantages"].zero_()
    loss, gradients = run_window(trainer, batches)
    assert loss == 0
    assert all((g == 0).all() for g in gradients.values())


@pytest.mark.parametrize("scope", ["micro_batch", "global", "rollout"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_entropy_bonus_has_the_gradient_of_the_kept_tokens_mean_entropy(tiny_model, tmp_path, scope, adaptive):
    """Also where an earlier pass has ranked the tokens, whose entropies have no gradient."""
    coefficient, rho = 0.5, 0.3
    settings = {"use_adaptive_entropy": True, "entropy_target": 99.0, "entropy_coef_max": 1.0} if adaptive else {}
    trainer = make_trainer(
        tiny_model,
        tmp_path,
        2,
        top_entropy_quantile=rho,
        entropy_scope=scope,
        entropy_coef=coefficient,
        **settings,
    )
    trainer.entropy_coef, trainer._last_world_entropy = coefficient, 0.0  # which is below the target
    batches = make_batches((3, 5))
    set_old_logps(trainer.model, batches)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    entropies = [reference.score(model, *(b[key] for key in keys), TEMPERATURE)[1] for b in batches]
    masks = [b["completion_mask"].bool() for b in batches]
    places = [token_places(b) for b in batches]
    if scope == "micro_batch":
        kept = [reference.top(*x, rho, at) for *x, at in zip(entropies, masks, places, strict=True)]
    else:
        kept = reference.top(padded(entropies), padded(masks), rho, padded(places)).split([3, 5])
    for b, own, of_batch in zip(batches, entropies, kept, strict=True):
        b["advantages"].zero_()
        if scope == "rollout":
            b |= {"kept_mask": of_batch, "counted": of_batch.sum(1), "entropies": own.detach().float()}
            b["threshold"] = torch.tensor(math.nan)
    _, gradients = run_window(trainer, batches)
    bonus = sum(own[of_batch].mean() for own, of_batch in zip(entropies, kept, strict=True)) / 2
    (-coefficient * bonus).backward()
    assert_close(gradients, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, 2e-5)


@pytest.mark.parametrize("scope", ["micro_batch", "global"])
def test_window_without_tokens_has_no_loss(tiny_model, tmp_path, scope):
    trainer = make_trainer(tiny_model, tmp_path, 2, top_entropy_quantile=0.2, entropy_scope=scope)
    batches = make_batches((3, 5), empty_rows=range(8))
    set_old_logps(trainer.model, batches)
    loss, gradients = run_window(trainer, batches)
    assert loss == 0
    assert all((g == 0).all() for g in gradients.values())


def test_all_tokens_as_denominator_is_stock_trl_on_the_same_tokens(tiny_model, tmp_path):
    """With no tie at the threshold TRL's quantile keeps the same tokens; divided by all of them the losses agree."""
    settings = {"top_entropy_quantile": 0.25, "temperature": TEMPERATURE, "gradient_accumulation_steps": 2}
    ours = fixed_rollout.train(
        tiny_model, tmp_path / "a", entropy_scope="micro_batch", entropy_denominator="all", **LIKE_TRL, **settings
    )
    stock = fixed_rollout.train(tiny_model, tmp_path / "b", stock=True, **settings)
    start = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    for name, weight in fixed_rollout.weights(stock).items():
        assert torch.equal(weight, fixed_rollout.weights(ours)[name]), name
    assert any(not torch.equal(weight, start[name]) for name, weight in fixed_rollout.weights(stock).items())
    assert ours.state.log_history[0]["loss"] == stock.state.log_history[0]["loss"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_rho_one_is_stock_trl_to_the_last_bit(tiny_model, tmp_path, accumulation):
    """Three optimiser steps on sampled responses, two per rollout, with TRL's head and TRL's batches."""
    settings = {
        "max_steps": 3,
        "learning_rate": 0.05,
        "top_entropy_quantile": 1.0,
        "temperature": TEMPERATURE,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": 2 * accumulation,
        "per_device_train_batch_size": 8 // accumulation,
    }
    ours, stock = (
        fixed_rollout.train(
            tiny_model, tmp_path / str(bool(added)), stock=not added, sampled=True, **added, **settings
        )
        for added in (LIKE_TRL, {})
    )
    for name, weight in fixed_rollout.weights(stock).items():
        assert torch.equal(weight, fixed_rollout.weights(ours)[name]), name
    for row, stock_row in zip(ours.state.log_history[:3], stock.state.log_history[:3], strict=True):
        assert {key: row[key] for key in ("loss", "grad_norm", "entropy")} == {
            key: stock_row[key] for key in ("loss", "grad_norm", "entropy")
        }


def one_step(tiny_model, folder, **overrides):
    trainer = fixed_rollout.train(tiny_model, folder, **overrides)
    return fixed_rollout.weights(trainer), trainer.state.log_history[0]


def assert_same_step(tiny_model, first, second):
    """Two runs took the same step, in gradient, loss and what they logged of the selection."""
    start = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    steps = [{name: weight - start[name] for name, weight in weights.items()} for weights, _ in (first, second)]
    assert_close(*steps, 1e-5)
    for key in ("loss", "selection/kept_fraction", "selection/kept_entropy", "entropy/p90"):
        assert first[1][key] == pytest.approx(second[1][key], rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize("kind", ["top", "bottom", "random"])
@pytest.mark.parametrize("scope", ["global", "rollout"])
def test_accumulation_changes_nothing_under_wide_scopes(tiny_model, tmp_path, scope, kind):
    """Where a rollout is one optimiser step, its scope is the step's."""
    settings = {"top_entropy_quantile": 0.2, "entropy_selection": kind}
    whole = one_step(tiny_model, tmp_path / "a", per_device_train_batch_size=8, **settings)
    settings |= {"entropy_scope": scope, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    split = one_step(tiny_model, tmp_path / "b", **settings)
    assert_same_step(tiny_model, whole, split)


def half_flat(completion_ids, **kwargs):
    """Uneven rewards for every other group, the same for all responses of the rest."""
    return [float(sum(ids) % 7) if i // fixed_rollout.GENERATIONS % 2 else 1.0 for i, ids in enumerate(completion_ids)]


@pytest.mark.parametrize("reward", [fixed_rollout.reward, half_flat], ids=["all groups", "half without advantage"])
@pytest.mark.parametrize(
    ("rho", "scope"), [(0.2, "rollout"), (0.02, "rollout"), (0.2, "global"), (1.0, "global")], ids=str
)
def test_sparse_head_and_trimmed_batches_change_nothing(tiny_model, tmp_path, rho, scope, reward):
    """Two steps of one rollout with everything on, against TRL's head and TRL's batches.

    One step under `global` scope: after it, the policies differ by rounding, and so may the ranks of equal entropies.
    """
    steps = 1 if rho < 1 and scope == "global" else 2
    settings = {
        "top_entropy_quantile": rho,
        "entropy_scope": scope,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8 // steps,
        "steps_per_generation": 8,
        "max_steps": steps,
        "learning_rate": 0.1,
        "reward": reward,
    }
    plain = fixed_rollout.train(tiny_model, tmp_path / "a", **LIKE_TRL, **settings)
    fast = fixed_rollout.train(tiny_model, tmp_path / "b", **settings)
    start = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert_close(*({n: w - start[n] for n, w in fixed_rollout.weights(t).items()} for t in (plain, fast)), 1e-5)
    for row, plain_row in zip(fast.state.log_history[:steps], plain.state.log_history[:steps], strict=True):
        keys = ["loss", "grad_norm", "selection/kept_fraction"]
        # Of all tokens of the rollout, also where sequences without an advantage are not run.
        keys += [key for key in plain_row if key.startswith("entropy/")]
        assert ("entropy/p90" in keys) == (plain_row["step"] == 1)
        if rho < 1:  # the entropies of sequences that are not run are known where the tokens are ranked beforehand
            keys += ["selection/kept_entropy", "clip_ratio/kept_low", "clip_ratio/kept_high"]
        for key in keys:
            assert row[key] == pytest.approx(plain_row[key], rel=1e-4, abs=1e-6, nan_ok=True), key
        assert plain_row["batching/run_fraction"] == 1
        if reward is half_flat:
            assert row["batching/run_fraction"] < 0.8


def test_sequences_are_counted_as_clipped_where_trl_clips_them(tiny_model, tmp_path, monkeypatch):
    """Of equal lengths, so that a mean over tokens is TRL's mean over sequences."""
    written = fixed_rollout.fixed_completions

    def of_equal_lengths(prompts, trainer):
        rollout = written(prompts, trainer)
        rollout["completion_ids"] = [(ids[:-1] * 5)[:9] + ids[-1:] for ids in rollout["completion_ids"]]
        return rollout | {"logprobs": [[-1.0] * 10 for _ in prompts]}

    monkeypatch.setattr(fixed_rollout, "fixed_completions", of_equal_lengths)
    settings = {"importance_sampling_level": "sequence", "loss_type": "grpo", "top_entropy_quantile": 1.0}
    settings |= {"per_device_train_batch_size": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 2}
    clips = {"epsilon": 3e-2, "epsilon_high": 4e-2, "batch_by_length": False}
    trainer = fixed_rollout.train(tiny_model, tmp_path, max_steps=2, learning_rate=0.1, **settings, **clips)
    rows = trainer.state.log_history[:2]
    for row in rows:
        for side in ("low", "high"):
            assert row[f"clip_ratio/kept_{side}"] == pytest.approx(row[f"clip_ratio/{side}_mean"]), (side, row["step"])
    assert rows[0]["clip_ratio/region_mean"] == 0 < rows[1]["clip_ratio/region_mean"] < 1


@pytest.mark.parametrize(
    ("loss_type", "settings"),
    [
        *((loss_type, {}) for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "sapo", "vespo")),
        ("cispo", {"epsilon_high": 5.0}),
        ("luspo", {"importance_sampling_level": "sequence"}),
        ("dapo", {"importance_sampling_level": "sequence"}),
        ("dapo", {"off_policy_mask_threshold": 0.01}),
        ("dapo", {"delta": 1.5}),
        ("dapo", {"beta": 0.1}),
        ("dapo", {"entropy_coef": 0.01}),
    ],
    ids=lambda x: ", ".join(f"{k} {v}" for k, v in x.items()) if isinstance(x, dict) else x,
)
def test_every_loss_of_trl_is_the_same_with_everything_on(tiny_model, tmp_path, loss_type, settings):
    """Those that need all tokens, all sequences or TRL's micro-batches get them."""
    settings = {
        "loss_type": loss_type,
        "top_entropy_quantile": 0.5,
        "entropy_denominator": "all",
        "entropy_scope": "rollout",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "steps_per_generation": 8,
        "max_steps": 2,
        "learning_rate": 0.1,
        "reward": half_flat,
    } | settings
    plain = fixed_rollout.train(tiny_model, tmp_path / "a", **LIKE_TRL, **settings)
    fast = fixed_rollout.train(tiny_model, tmp_path / "b", **settings)
    start = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    steps = [{n: w - start[n] for n, w in fixed_rollout.weights(t).items()} for t in (plain, fast)]
    assert_close(*steps, 1e-4)
    for row, plain_row in zip(fast.state.log_history[:2], plain.state.log_history[:2], strict=True):
        assert row["loss"] == pytest.approx(plain_row["loss"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.1], ids=["no reference", "the reference is the model without adapters"])
def test_adapters_are_trained_alike_with_everything_on(tiny_model, tmp_path, beta):
    trained = []
    for i, settings in enumerate((LIKE_TRL, {}, {"fused_lm_head": "liger"})):
        adapters = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        trainer = fixed_rollout.train(
            tiny_model,
            tmp_path / str(i),
            peft_config=adapters,
            top_entropy_quantile=0.2,
            entropy_scope="rollout",
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            steps_per_generation=4,
            max_steps=2,
            learning_rate=0.1,
            beta=beta,
            reward=half_flat,
            **settings,
        )
        trained.append({n: w for n, w in fixed_rollout.weights(trainer).items() if "lora" in n})
    for others in trained[1:]:
        assert_close(others, trained[0], 1e-5)


def test_only_tokens_with_a_gradient_are_projected(tiny_model, tmp_path, monkeypatch):
    """Under rollout scope: the kept ones of responses with an advantage, which are then differentiated."""
    from entropy_grpo.models import head, kernels

    forward, backward = [], []

    def choose(name, device, outputs):
        def score(hidden, *args):
            if torch.is_grad_enabled() or hidden.requires_grad:
                forward.append(hidden.size(0))
            return kernels.TILES.forward(hidden, *args)

        def differentiate(state, hidden, *args):
            backward.append(hidden.size(0))
            return kernels.TILES.backward(state, hidden, *args)

        return kernels.Kernel(score, differentiate)

    monkeypatch.setattr(head, "choose", choose)
    trainer = fixed_rollout.train(
        tiny_model,
        tmp_path,
        top_entropy_quantile=0.2,
        entropy_scope="rollout",
        gradient_accumulation_steps=2,
        reward=half_flat,
    )
    rollout = trainer._buffered_inputs
    wanted = sum(int((b["kept_mask"] & (b["advantages"] != 0).unsqueeze(1)).sum()) for b in rollout)
    kept = sum(int(b["kept_mask"].sum()) for b in rollout)
    assert 0 < wanted < kept
    assert sum(forward) == sum(backward) == wanted


def differentiate(tiny_model, batches):
    """Add `norms`: each token's loss alone, differentiated in float64 with the whole (V, H) gradient of the head."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    for b in batches:
        keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        logps, _ = reference.score(model, *(b[key] for key in keys), TEMPERATURE)
        norms = torch.zeros_like(logps)
        for i, t in b["completion_mask"].nonzero().tolist():
            ratio = torch.exp(logps[i, t] - b["old_per_token_logps"][i, t].double())
            surrogate = torch.minimum(
                ratio * b["advantages"][i].double(), ratio.clamp(0.8, 1.28) * b["advantages"][i].double()
            )
            (gradient,) = torch.autograd.grad(surrogate, model.lm_head.weight, retain_graph=True)
            norms[i, t] = gradient.norm()
        b["norms"] = norms


@pytest.mark.parametrize("scope", ["micro_batch", "global", "rollout"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradient_norm_keeps_the_tokens_of_largest_gradient_in_the_head(tiny_model, tmp_path, scope, accumulation):
    trainer = make_trainer(
        tiny_model,
        tmp_path,
        accumulation,
        top_entropy_quantile=0.2,
        entropy_selection="gradient_norm",
        entropy_scope=scope,
    )
    batches = make_batches((8,) if accumulation == 1 else (4, 4), seed=2)
    set_old_logps(trainer.model, batches)
    differentiate(tiny_model, batches)
    assert any((b["norms"] == 0)[b["completion_mask"].bool()].any() for b in batches), "some tokens should be clipped"
    if scope == "rollout":
        scored = [trainer._score(b, entropies=True) for b in batches]
        masks, threshold = select_tokens(scored, batches, trainer.spec, trainer.ranks, seed=0)
        batches = [
            b | {"kept_mask": m, "counted": m.sum(1), "entropies": s.entropies, "threshold": torch.tensor(threshold)}
            for b, m, s in zip(batches, masks, scored, strict=True)
        ]
    run_window(trainer, batches)
    window = trainer._plan(batches)
    seen = window.everything or window.batches
    if scope == "micro_batch" or (accumulation == 1 and scope == "global"):
        kept = [reference.top(b["norms"], b["completion_mask"].bool(), 0.2, token_places(b)) for b in seen]
        fraction = sum(k.sum() for k in kept) / sum(b["completion_mask"].sum() for b in seen)
        assert trainer._metrics["train"]["selection/kept_fraction"][-1] == pytest.approx(fraction.item())
        lowest = sum(b["norms"][k].min().item() for b, k in zip(seen, kept, strict=True)) / len(seen)
    else:
        norms, mask, kept = (torch.cat([b[key] for b in seen]) for key in ("norms", "completion_mask", "kept_mask"))
        places = torch.cat([token_places(b) for b in seen])
        assert torch.equal(kept, reference.top(norms, mask.bool(), 0.2, places))
        lowest = norms[kept].min().item()
    assert trainer._metrics["train"]["selection/threshold"][-1] == pytest.approx(lowest * TEMPERATURE, rel=1e-4)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_matched_norms_are_those_of_the_top_and_so_is_the_denominator(tiny_model, tmp_path, accumulation):
    """Loss and gradient in float64: random tokens until their gradients add up to the top's, over the top's number."""
    settings = {"top_entropy_quantile": 0.2, "entropy_selection": "random_matched"}
    trainer = make_trainer(tiny_model, tmp_path, accumulation, **settings)
    batches = make_batches((8,) if accumulation == 1 else (4, 4), seed=2)
    set_old_logps(trainer.model, batches)
    differentiate(tiny_model, batches)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    scores = [reference.score(model, *(b[key] for key in keys), TEMPERATURE) for b in batches]
    logps, entropies = (torch.cat(parts) for parts in zip(*scores, strict=True))
    old, norms, mask, advantages = (
        torch.cat([b[key] for b in batches])
        for key in ("old_per_token_logps", "norms", "completion_mask", "advantages")
    )
    places = torch.cat([token_places(b) for b in batches])
    kept, top = matched_by_brute_force(entropies.detach(), norms, mask.bool(), 0.2, places, trainer._step_seed)
    loss = reference.objective(logps, old.double(), advantages.double(), kept, 0.2, 0.28) * kept.sum() / top.sum()
    loss.backward()
    found, gradients = run_window(trainer, batches)
    assert found == pytest.approx(loss.item(), rel=1e-4)
    assert_close(gradients, {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}, 1e-4)
    assert kept.sum() != top.sum() or not torch.equal(kept, top)
    assert -1e-6 < norms[kept].sum() - norms[top].sum() < norms.max()


def test_matched_norms_of_a_rollout_are_those_of_its_only_step(tiny_model, tmp_path):
    settings = {"top_entropy_quantile": 0.2, "entropy_selection": "random_matched"}
    runs = [one_step(tiny_model, tmp_path / scope, entropy_scope=scope, **settings) for scope in ("global", "rollout")]
    assert_same_step(tiny_model, *runs)


def test_accumulation_changes_the_tokens_under_micro_batch_scope(tiny_model, tmp_path):
    """The documented difference: a threshold per forward pass keeps other tokens, and more, each count rounded up."""
    settings = {"top_entropy_quantile": 0.2, "entropy_scope": "micro_batch"}
    _, whole = one_step(tiny_model, tmp_path / "a", per_device_train_batch_size=8, **settings)
    _, split = one_step(
        tiny_model, tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=8, **settings
    )
    assert split["selection/kept_fraction"] > whole["selection/kept_fraction"]
    assert split["selection/kept_entropy"] < whole["selection/kept_entropy"]


DDP = ["accelerate.commands.launch", "--config_file", "accelerate_configs/ddp_cpu.yaml", "--main_process_port", "0"]
FSDP2 = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


# Scope, rho, accumulation and budget of tokens by name; all of a launcher train in the same two processes.
TWO_PROCESSES = {
    "benchmarks.fixtures.fixed_rollout": {
        "DDP": ("global", 0.2, 1),
        "DDP accumulated": ("global", 0.2, 2),
        "DDP, one token: a rank keeps none": ("global", 0.005, 1),
        "DDP, rollout scope, most sequences keep none": ("rollout", 0.02, 2),
        "DDP, rollout scope, random tokens of matched norm": ("matched", 0.2, 2),
        "DDP, methods by name": ("own", 0.5, 2),
        "DDP, thresholds of the last step": ("sampler", 0.2, 2),
        "DDP, by a budget of tokens": ("rollout", 0.2, 4, 90),
        "DDP, by a budget of tokens, global scope": ("global", 0.2, 4, 1000),
    },
    "benchmarks.fixtures.fsdp2_on_cpu": {
        "FSDP2 accumulated": ("global", 0.2, 2),
        "FSDP2, rollout scope": ("forking", 0.2, 2),
        "FSDP2, thresholds of the last step": ("sampler", 0.2, 2),
        "FSDP2, by a budget of tokens": ("rollout", 0.2, 4, 90),
        "FSDP2, by a budget of tokens, gradients reduced in every pass": ("global", 0.2, 4, 90),
        "FSDP2, methods by name": ("own", 0.5, 2),
        "FSDP2, random tokens of matched norm": ("matched", 0.2, 2),
        "FSDP2, tokens of largest gradient": ("gradients", 0.2, 2),
        "FSDP2, entropies": ("entropies", 1.0, 2),
        "FSDP2, entropies, by a budget of tokens": ("entropies", 1.0, 4, 90),
        "FSDP2, ratios": ("ratios", 1.0, 2),
        "FSDP2, outcomes": ("outcomes", 1.0, 2),
        "FSDP2, responses": ("responses", 1.0, 2),
    },
}


# Every registered method, by the name of a run. Two steps share a rollout, so that the ratios of the second are not 1.
HICRA = {"name": "hicra", "ngrams": "benchmarks/fixtures/walk_phrases.txt"}
TWICE = {"num_iterations": 2, "max_steps": 2, "learning_rate": 0.2}
METHODS = {
    "own": {
        "advantages": ["gtpo"],
        "token_weights": [f"{OWN}around_the_mean", f"{OWN}of_the_rollout", f"{OWN}in_the_loss"],
    },
    "entropies": {"advantages": ["gtpo", f"{OWN}louder"], "token_weights": ["clip_cov", "erc"]},
    "ratios": TWICE
    | {  # KL-Cov runs without a clip
        "epsilon": 1.0,
        "epsilon_high": 1e6,
        "advantages": ["qae", HICRA, {"name": "kl_cov", "share": 0.1}],
        "token_weights": [{"name": "stapo", "tau_p": 0.05}, "fipo", "archer_clip", "entropy_shaped"],
    },
    "outcomes": TWICE | {"advantages": ["psr", "w_reinforce", "position"], "token_weights": ["aspo", "bottom"]},
    "responses": TWICE | {"advantages": ["nsr", "grpo_s", "ppl"], "token_weights": ["random"]},
    "forking": {"token_weights": ["forking"]},
    "matched": {"token_weights": ["random_matched"]},
    "gradients": {"token_weights": ["gradient_norm"]},
}


def test_every_method_trains_on_two_processes():
    named = {split(key, entry)[0] for run in METHODS.values() for key in SETTINGS for entry in run.get(key, [])}
    assert named >= REGISTERED.keys()
    assert {scope for scope, *_ in TWO_PROCESSES["benchmarks.fixtures.fsdp2_on_cpu"].values()} >= METHODS.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "script"), list(zip((DDP, FSDP2), TWO_PROCESSES, strict=True)), ids=("DDP", "FSDP2")
)
def test_two_processes_are_one(tiny_model, tmp_path, preloaded, launcher, script):
    runs = {}
    for name, (scope, rho, accumulation, *budget) in TWO_PROCESSES[script].items():
        settings = {"top_entropy_quantile": rho, "entropy_scope": scope, "gradient_accumulation_steps": accumulation}
        if scope == "sampler":  # the second step takes over the threshold of the first
            settings |= {"entropy_scope": "rollout", "old_logps": "sampler", "max_steps": 2, "learning_rate": 0.1}
        if scope in METHODS:
            settings |= METHODS[scope] | {"entropy_scope": "rollout"}
        if "every pass" in name:
            settings["accelerator_config"] = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        settings["token_budget"] = budget[0] if budget else None
        runs[name] = {"per_device_train_batch_size": 4 // accumulation, **settings}
    command = [preloaded, "-m", *launcher, "-m", script, tiny_model, str(tmp_path), json.dumps(runs)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    for name, settings in runs.items():
        settings["per_device_train_batch_size"] *= 2
        budget = settings.pop("token_budget")
        one = one_step(tiny_model, tmp_path / "one" / name, **settings)
        log = json.loads((tmp_path / name / "log.json").read_text())
        assert_same_step(tiny_model, one, (load_file(tmp_path / name / "weights.safetensors"), log))
        assert (log["batching/micro_batches"] < settings["gradient_accumulation_steps"]) == (budget is not None)
        if settings["top_entropy_quantile"] < 0.01:
            assert round(log["selection/kept_fraction"] * log["completions/mean_length"] * 8) == 1


def test_first_step_fails_if_the_share_is_wrong(tiny_model, tmp_path, monkeypatch):
    """A selection that keeps one token too many must not train."""
    import entropy_grpo.objective.window as module

    honest = module.select

    def one_too_many(scores, mask, *args, **kwargs):
        kept, threshold = honest(scores, mask, *args, **kwargs)
        dropped = (mask.bool() & ~kept).nonzero()
        kept[tuple(dropped[0])] = True
        return kept, threshold

    monkeypatch.setattr(module, "select", one_too_many)
    with pytest.raises(RuntimeError, match="instead of the share"):
        fixed_rollout.train(tiny_model, tmp_path, top_entropy_quantile=0.2)
