"""Advantage shaping and the stages of a run: formulas worked out by hand or in float64, and real training steps."""

import json
import math
import random
import statistics
import subprocess
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl.trainer.utils import nanstd

from benchmarks.fixtures import fixed_rollout
from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.objective import advantages as shaping
from entropy_grpo.objective.advantages import Schedule
from entropy_grpo.objective.stages import PLATEAU, RISING, StageDetector

from . import reference
from .conftest import REPOSITORY
from .test_decisions import by_turn
from .test_objective import DDP, assert_close, half_flat


def test_perplexity_rows_by_hand():
    """Two groups of three; log-perplexities 1, 2, 3 have mean 2 and standard deviation 1."""
    logps = torch.tensor([[-1.0, -1.0], [-1.0, -3.0], [-3.0, 9.0], [-0.5, -0.5], [-0.5, 7.0], [-0.5, -0.5]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1], [1, 0], [1, 1]])
    weights = shaping.perplexity_weights(shaping.log_perplexities(logps, mask), 3)
    assert weights.tolist() == [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    shaped = shaping.ppl_advantages(torch.tensor([2.0, -1.0, -1.0, 1.0, 0.0, -1.0]), weights, 0.01)
    assert shaped.dtype == torch.float32
    assert shaped.tolist() == pytest.approx([2.02, -1.0, -0.99, 1.0, 0.0, -1.0])


def test_perplexity_weights_are_the_formula():
    """Against the standard library, response by response; two groups have responses without tokens."""
    rng = torch.Generator().manual_seed(0)
    logps = torch.randn(15, 7, generator=rng) - 1.5
    lengths = torch.tensor([3, 0, 7, 1, 5, 2, 7, 6, 4, 1, 0, 0, 5, 0, 0])
    mask = torch.arange(7) < lengths.unsqueeze(1)
    weights = shaping.perplexity_weights(shaping.log_perplexities(logps, mask), 5)
    for first in (0, 5, 10):
        rows = [i for i in range(first, first + 5) if lengths[i]]
        known = {i: -statistics.fmean(logps[i, : lengths[i]].tolist()) for i in rows}
        for i in range(first, first + 5):
            expected = 0.0
            if i in known and len(known) > 1:
                expected = (known[i] - statistics.fmean(known.values())) / statistics.stdev(known.values())
            assert weights[i].item() == pytest.approx(expected, abs=1e-12)


def test_the_ablations_are_the_other_signs():
    """1 + alpha w favours high perplexity; d = -1 gives the early tokens what d = 1 gives the late ones."""
    weights = torch.tensor([-1.0, 0.5, 1.0], dtype=torch.float64)
    advantages = torch.tensor([2.0, -1.0, -3.0], dtype=torch.float64)
    expected = [2 * (1 - 0.01), -1 * (1 + 0.005), -3 * (1 + 0.01)]
    assert shaping.ppl_advantages(advantages, weights, -0.01).tolist() == pytest.approx(expected)
    early = shaping.position_advantages(advantages, torch.ones(3, 5), 0.1, d=-1.0)
    late = shaping.position_advantages(advantages, torch.ones(3, 5), 0.1, d=1.0)
    assert torch.allclose(early, late.flip(1), atol=1e-12)
    assert early[0].tolist() == pytest.approx([2 + 0.1 * sigmoid(-15 * (t / 4 - 0.5)) for t in range(5)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_perplexities_do_not_blow_up(dtype):
    """Rounding errors are no perplexities: the same tokens in another order, and a difference below the floor."""
    values = torch.rand(9, generator=torch.Generator().manual_seed(1)).to(dtype)
    logps = -torch.stack([values, values.flip(0), values.roll(4), values + 5e-7])
    found = shaping.perplexity_weights(shaping.log_perplexities(logps, torch.ones(4, 9)), 4)
    assert found.tolist() == [0.0] * 4
    assert shaping.perplexity_weights(torch.tensor([1.3, 2.7], dtype=dtype), 1).tolist() == [0.0, 0.0]
    far = shaping.perplexity_weights(torch.tensor([1.0, 1.0 + 1e-4, 1.0, 1.0], dtype=torch.float64), 4)
    assert far[1].item() == pytest.approx(shaping.largest_weight(4))
    # Of two values that are d apart the standard deviation is d / sqrt(2).
    for sigma, weight in ((0.9e-6, 0.0), (1.1e-6, 2**-0.5)):
        pair = torch.tensor([1.0, 1.0 + sigma * 2**0.5], dtype=torch.float64)
        assert shaping.perplexity_weights(pair, 2).tolist() == pytest.approx([-weight, weight], abs=1e-6)


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_no_weight_is_larger_than_the_largest(size):
    """It is that of one response beside others that are all alike."""
    alike_but_one = torch.tensor([2.0] + [1.0] * (size - 1), dtype=torch.float64)
    largest = shaping.perplexity_weights(alike_but_one, size).max().item()
    assert largest == pytest.approx(shaping.largest_weight(size))
    values = torch.randn(200 * size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    assert shaping.perplexity_weights(values, size).abs().max() <= largest + 1e-9


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_position_rows_by_hand():
    """Relative positions 0, 1/2, 1; 0; 0, 1 around a token that the policy did not write; none."""
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0]])
    advantages = torch.tensor([-1.0, 2.0, 0.1, 1.0, 0.0], dtype=torch.float64)
    low, high = 0.1 * sigmoid(-7.5), 0.1 * sigmoid(7.5)
    expected = [
        [-1 - low, -1.05, -1 - high, 0],
        [2 + low, 0, 0, 0],
        [0.1 + low, 0, 0.1 + high, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert shaping.position_advantages(advantages, mask, 0.1).tolist() == [pytest.approx(r) for r in expected]
    again = shaping.position_advantages(advantages.unsqueeze(1).expand(5, 4), mask, 0.1)
    assert again.tolist() == [pytest.approx(row) for row in expected]
    capped = shaping.position_advantages(advantages.float(), mask, 0.1, cap=0.5)
    assert capped.dtype == torch.float32
    assert capped[2].tolist() == pytest.approx([0.1 + low, 0, 0.15, 0])
    assert capped[0].tolist() == pytest.approx(expected[0])


def test_the_printed_formula_prefers_no_token():
    positions = torch.linspace(0, 1, 11, dtype=torch.float64)
    printed = shaping.position_bonus(positions, 0.1, n=-0.5)
    default = shaping.position_bonus(positions, 0.1)
    assert printed.max() - printed.min() < 1e-4 and printed.min() > 0.0999
    assert default.tolist() == pytest.approx([0.1 * sigmoid(15 * (i / 10 - 0.5)) for i in range(11)])
    assert default[-1] - default[0] > 0.0998


def advantages_of_trl(rewards, size):
    """TRL's formula in float32, rewards (n,)."""
    groups = rewards.view(-1, size)
    return ((groups - groups.nanmean(dim=1, keepdim=True)) / (nanstd(groups, dim=1, keepdim=True) + 1e-4)).flatten()


@pytest.mark.parametrize("value", [0.1, 0.7, 1.3, -0.9])
def test_equal_rewards_have_no_advantage(value):
    """So that the sign of a rounding error decides no bonus."""
    largest = 0.0
    for size in range(4, 65):
        rewards = torch.full((2 * size,), value)
        advantages = advantages_of_trl(rewards, size)
        largest = max(largest, float(advantages.abs().max()))
        masked = advantages.masked_fill(shaping.at_group_mean(rewards, size), 0.0)
        assert not shaping.position_advantages(masked, torch.ones(2 * size, 3), 0.1).any()
    assert largest > 5e-5, "float32 rounds nothing here: this would show nothing"


def test_only_responses_at_the_mean_have_no_advantage():
    """Against exact fractions of the decimals, with rewards that were not given, and by column for several rewards."""
    rng = random.Random(0)
    for _ in range(300):
        size = rng.choice([2, 3, 4, 8, 16])
        exact = [
            rng.choice([Fraction(i, 10), Fraction(i, 10), None]) for i in (rng.randrange(-3, 4) for _ in range(size))
        ]
        given = [x for x in exact if x is not None]
        expected = [x is None or x == sum(given) / len(given) for x in exact]
        rewards = torch.tensor([math.nan if x is None else float(x) for x in exact])
        assert shaping.at_group_mean(rewards, size).tolist() == expected, exact
        columns = torch.stack([torch.full_like(rewards, 0.7), rewards], dim=1)
        assert shaping.at_group_mean(columns, size).tolist() == expected


@pytest.mark.parametrize(("aggregation", "atol"), [("sum_then_normalize", 0.0), ("normalize_then_sum", 5e-3)])
def test_a_group_of_equal_rewards_trains_nothing(tiny_model, tmp_path, aggregation, atol):
    """The weights are those of a run in which the group's rewards are 0; the rounding enters TRL's batch mean, too."""
    settings = {"num_generations": 8, "per_device_train_batch_size": 16, "position_shaping_gamma": 0.1}
    settings |= {"multi_objective_aggregation": aggregation}
    trained = []
    for value in (0.7, 0.0):

        def rewards(prompts, completion_ids, value=value, **kwargs):
            flat = prompts[0]
            return [value if p == flat else float(i % 3 == 0) for i, p in enumerate(prompts)]

        trained.append(fixed_rollout.train(tiny_model, tmp_path / str(value), reward=rewards, **settings))
    flat, none = map(fixed_rollout.weights, trained)
    assert sorted(in_order(trained[0], "advantages")[:8].tolist()) == [0.0] * 8
    assert all(torch.allclose(flat[name], none[name], rtol=0, atol=atol) for name in none)


def test_schedules():
    def steps(schedule, plateau_step=None):
        return [step for step in range(10) if schedule.active(step, plateau_step)]

    assert steps(Schedule()) == list(range(10))
    assert steps(Schedule(3, 6), plateau_step=1) == [3, 4, 5]
    assert steps(Schedule(8)) == [8, 9]
    assert steps(Schedule(plateau_steps=3)) == []
    assert steps(Schedule(plateau_steps=3), plateau_step=5) == [5, 6, 7]


def detect(entropies, accuracies, window=8, share=0.2):
    detector = StageDetector(window, share)
    for step, pair in enumerate(zip(entropies, accuracies, strict=True), start=1):
        detector.update(step, *pair)
    return detector


def test_plateau_begins_where_both_curves_have_slowed_down():
    """With exp(-t / tau) a change over a window is exp(-t / tau) of the first: below 0.2 after tau * ln 5 steps."""
    entropies = [0.3 + math.exp(-t / 10) for t in range(100)]
    slower = [0.6 - 0.4 * math.exp(-t / 20) for t in range(100)]
    assert detect(entropies, slower).plateau_step == 8 + math.ceil(20 * math.log(5))


def plateau_by_brute_force(entropies, accuracies, window, share):
    """The step at which the rule of `objective.stages` first holds, from the whole history."""
    half, largest = window // 2, [0.0, 0.0]
    for step in range(window, len(entropies) + 1):
        early, late = slice(step - window, step - window + half), slice(step - half, step)
        fall = statistics.fmean(entropies[early]) - statistics.fmean(entropies[late])
        climb = statistics.fmean(accuracies[late]) - statistics.fmean(accuracies[early])
        largest = [max(largest[0], fall), max(largest[1], climb)]
        if min(largest) > 0 and fall <= share * largest[0] and climb <= share * largest[1]:
            return step
    return None


@pytest.mark.parametrize("window", [2, 3, 5, 8, 9])
def test_the_plateau_is_that_of_the_whole_history(window):
    """Noise makes neighbouring windows differ, so that a window that is one step longer or shorter would be seen."""
    rng, steps = random.Random(window), []
    for _ in range(40):
        speed, share, noise = rng.uniform(2, 30), rng.uniform(0.05, 0.9), rng.choice([0.02, 1.0])
        entropies = [0.2 + math.exp(-t / speed) + rng.gauss(0, noise) for t in range(60)]
        accuracies = [0.7 - 0.5 * math.exp(-t / speed) + rng.gauss(0, noise) for t in range(60)]
        found = detect(entropies, accuracies, window, share).plateau_step
        assert found == plateau_by_brute_force(entropies, accuracies, window, share)
        steps.append(found)
    assert len(set(steps)) > 4


def test_a_change_of_just_the_share_is_slow():
    assert detect([2.0, 1.0, 0.5], [0.0, 1.0, 1.5], window=2, share=0.5).plateau_step == 3
    assert detect([2.0, 1.0, 0.49], [0.0, 1.0, 1.5], window=2, share=0.5).plateau_step is None


def test_no_plateau_without_a_rise():
    assert (RISING, PLATEAU) == (0, 1)  # as they are logged
    falling, flat = [math.exp(-t / 10) for t in range(60)], [0.5] * 60
    climbing = [1 - h for h in falling]
    assert detect(falling, climbing).stage == PLATEAU
    for entropies, accuracies in ((flat, flat), (falling, flat), (flat, climbing), (climbing, climbing)):
        assert detect(entropies, accuracies).stage == RISING
    steady = [t / 60 for t in range(60)]
    assert detect([-h for h in steady], steady).stage == RISING
    assert detect([-h for h in steady], climbing).stage == RISING


def test_a_run_stays_on_its_plateau_and_goes_on_after_a_checkpoint():
    entropies = [math.exp(-t / 5) for t in range(40)] + [1.0 - t / 10 for t in range(10)]
    accuracies = [1 - h for h in entropies]
    whole = detect(entropies, accuracies)
    assert whole.plateau_step == 8 + math.ceil(5 * math.log(5))
    for cut in (3, 12, 40):
        first = detect(entropies[:cut], accuracies[:cut])
        second = StageDetector(8, 0.2)
        second.restore(json.loads(json.dumps(first.state())))
        second.update(cut, math.nan, 0.5)  # a step without tokens says nothing
        for step in range(cut, 50):
            second.update(step + 1, entropies[step], accuracies[step])
        assert second.state() == whole.state()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ppl_shaping_alpha": 0.0}, "ppl_shaping_alpha is 0.0: .* must not be 0"),
        ({"ppl_shaping_alpha": 0.7}, "num_generations 4 it must lie between -0.6667 and 0.6667"),
        ({"ppl_shaping_alpha": -0.7}, "num_generations 4 it must lie between -0.6667 and 0.6667"),
        ({"ppl_shaping_start": 3}, "ppl_shaping_start is 3, which nothing reads.*set ppl_shaping_alpha"),
        ({"position_shaping_m": 10.0}, "position_shaping_m is 10.0, which nothing reads.*set position_shaping_gamma"),
        ({"position_shaping_plateau_steps": 9}, "position_shaping_plateau_steps is 9, which nothing reads"),
        ({"position_shaping_gamma": -0.1}, "position_shaping_gamma is -0.1: it must be above 0"),
        (
            {"position_shaping_gamma": 0.1, "position_shaping_start": 5, "position_shaping_end": 5},
            "set the end to a later step",
        ),
        ({"position_shaping_gamma": 0.1, "position_shaping_start": -1}, "position_shaping_start is -1: it must be 0"),
        (
            {"position_shaping_gamma": 0.1, "position_shaping_plateau_steps": 9, "position_shaping_end": 5},
            "replaces position_shaping_start .0. and position_shaping_end .5.",
        ),
        ({"ppl_shaping_alpha": 0.1, "ppl_shaping_plateau_steps": 0}, "ppl_shaping_plateau_steps is 0: it must be 1"),
        (
            {"position_shaping_gamma": 0.1, "position_shaping_d": 0.0},
            "position_shaping_d is 0, with which every token has",
        ),
        (
            {"position_shaping_gamma": 0.1, "position_shaping_m": -1.0},
            "position_shaping_m is -1.0: it must be above 0",
        ),
        ({"position_shaping_gamma": 0.1, "position_shaping_cap": 0.0}, "position_shaping_cap is 0.0"),
        ({"plateau_window": 1}, "plateau_window is 1: it must be 2 or more"),
        ({"plateau_share": 1.0}, "plateau_share is 1.0: it must lie between 0 and 1"),
    ],
)
def test_refusals(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=4, **settings)


# Real steps, against the formulas in float64.


def formula_advantages(rewards, logps, mask, step, settings):
    """(B, T) float64: TRL's advantages of a rollout in groups, shaped as the settings say for this step."""
    rows = torch.zeros(mask.shape, dtype=torch.float64)
    for first in range(0, len(rewards), fixed_rollout.GENERATIONS):
        group = range(first, first + fixed_rollout.GENERATIONS)
        scores = [rewards[i] for i in group]
        perplexities = [-logps[i][mask[i]].mean().item() for i in group]
        for i in group:
            a = (rewards[i] - statistics.fmean(scores)) / (statistics.stdev(scores) + 1e-4)
            if step in settings["ppl"]:
                w = (perplexities[i - first] - statistics.fmean(perplexities)) / statistics.stdev(perplexities)
                a *= 1 - settings["alpha"] * w
            length = int(mask[i].sum())
            for t in range(length):
                bonus = 0.0
                if step in settings["position"] and a != 0:
                    bonus = math.copysign(settings["gamma"] * sigmoid(15 * (t / (length - 1) - 0.5)), a)
                rows[i, t] = a + bonus
    return rows


def in_order(trainer, key):
    """A tensor of the last rollout, sequences in the order in which they were generated."""
    batches = trainer._buffered_inputs
    return torch.cat([b[key] for b in batches])[torch.cat([b["sequence_index"] for b in batches]).argsort()]


def residual_norms(model, prompt_ids, prompt_mask, completion_ids, completion_mask):
    """(B, T) ||e(o) - p|| ||h||, from the full distribution."""
    ids, mask = torch.cat([prompt_ids, completion_ids], 1), torch.cat([prompt_mask, completion_mask], 1)
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    columns = slice(prompt_ids.size(1) - 1, -1)
    residuals = -output.logits[:, columns].softmax(-1)
    residuals.scatter_add_(-1, completion_ids.unsqueeze(-1), torch.ones_like(residuals[..., :1]))
    return residuals.norm(dim=-1) * output.hidden_states[-1][:, columns].norm(dim=-1)


SHAPING = {"ppl_shaping_alpha": 0.3, "ppl_shaping_end": 1, "position_shaping_gamma": 0.2, "position_shaping_start": 1}
BOTH = {"ppl_shaping_alpha": 0.3, "position_shaping_gamma": 0.2}


@pytest.mark.parametrize(
    ("settings", "shaped"),
    [
        (SHAPING | {"entropy_scope": "rollout", "top_entropy_quantile": 0.3}, ({0}, {1})),
        (BOTH | {"entropy_scope": "rollout", "top_entropy_quantile": 1.0}, ({0, 1}, {0, 1})),
        (BOTH | {"entropy_scope": "global", "top_entropy_quantile": 0.3}, ({0, 1}, {0, 1})),
        (
            BOTH | {"entropy_scope": "rollout", "top_entropy_quantile": 0.3, "entropy_denominator": "all"},
            ({0, 1}, {0, 1}),
        ),
        (
            BOTH | {"entropy_scope": "rollout", "top_entropy_quantile": 0.3, "entropy_selection": "gradient_norm"},
            ({0, 1}, {0, 1}),
        ),
    ],
    ids=["first one, then the other", "all tokens", "global", "denominator all", "gradient norm"],
)
def test_two_steps_of_a_rollout_are_the_formulas(tiny_model, tmp_path, settings, shaped):
    """Weights after two steps of plain SGD; half of the groups have no advantage, so their sequences are not run."""
    rate = 0.1
    trainer = fixed_rollout.train(
        tiny_model,
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        max_steps=2,
        learning_rate=rate,
        reward=half_flat,
        **settings,
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    prompt_mask, ids, completion_mask = (
        in_order(trainer, key) for key in ("prompt_mask", "completion_ids", "completion_mask")
    )
    sequences = (in_order(trainer, "prompt_ids"), prompt_mask, ids, completion_mask)
    mask, rho = completion_mask.bool(), settings["top_entropy_quantile"]
    rewards = half_flat([row[m].tolist() for row, m in zip(ids, mask, strict=True)])
    places = torch.arange(mask.size(1)) * len(mask) + torch.arange(len(mask)).unsqueeze(1)
    method = {"alpha": 0.3, "gamma": 0.2, "ppl": shaped[0], "position": shaped[1]}
    with torch.no_grad():
        old_logps, entropies = reference.score(model, *sequences, 1.0)
        norms = residual_norms(model, *sequences)
    for step in (0, 1):
        advantages = formula_advantages(rewards, old_logps, mask, step, method)
        if step == 0:
            ranked = norms * advantages.abs() if "entropy_selection" in settings else entropies
            kept = reference.top(ranked, mask, rho, places)
        mine = torch.cat([b["sequence_index"] for b in trainer._buffered_inputs[2 * step : 2 * step + 2]])
        logps, now = reference.score(model, *(part[mine] for part in sequences), 1.0)
        own = kept[mine]
        if settings["entropy_scope"] == "global":
            own = reference.top(now, mask[mine], rho, places[mine])
        loss = reference.objective(logps, old_logps[mine], advantages[mine], own, 0.2, 0.28)
        if settings.get("entropy_denominator") == "all":
            loss = loss * own.sum() / (mask.sum() / 2)
        if rho == 1:  # TRL's denominator: the rollout's tokens, scaled to one step
            loss = loss * mask[mine].sum() / (mask.sum() / 2)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= rate * gradient
        log = trainer.state.log_history[step]
        assert log["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
        assert (log["shaping/ppl"], log["shaping/position"]) == (step in shaped[0], step in shaped[1])
    start = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    trained = {n: w - start[n] for n, w in fixed_rollout.weights(trainer).items()}
    assert_close(trained, {n: p.detach() - start[n] for n, p in model.named_parameters()}, 1e-4)


@pytest.mark.parametrize("fields", [{"top_entropy_quantile": 1.0}, {"entropy_scope": "global"}], ids=str)
def test_perplexities_are_scored_where_no_old_log_probabilities_are(tiny_model, tmp_path, fields):
    """One optimiser step per rollout: TRL scores nothing beforehand; and steps that are not shaped score nothing."""
    trainer = fixed_rollout.train(
        tiny_model, tmp_path, ppl_shaping_alpha=0.3, ppl_shaping_start=1, max_steps=3, ppl_shaping_end=2, **fields
    )
    assert [row["shaping/ppl"] for row in trainer.state.log_history[:3]] == [0, 1, 0]
    assert "advantages/ppl" not in trainer._buffered_inputs[0]
    trainer = fixed_rollout.train(
        tiny_model, tmp_path / "b", reward=by_turn, ppl_shaping_alpha=0.3, learning_rate=0.0, **fields
    )
    assert "old_per_token_logps" not in trainer._buffered_inputs[0]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    assert_weights(trainer, reference.score(model, *(in_order(trainer, key) for key in keys), 1.0)[0])


def assert_weights(trainer, logps):
    """The weights of the advantages that travelled with the rollout are those of its groups, by their prompts."""
    prompts, mask = in_order(trainer, "prompt_ids").tolist(), in_order(trainer, "completion_mask").bool()
    before = in_order(trainer, "advantages").double()
    assert (before != 0).all()
    found = ((1 - in_order(trainer, "advantages/ppl").double() / before) / 0.3).tolist()
    perplexities = [-row[m].mean().item() for row, m in zip(logps, mask, strict=True)]
    for prompt, perplexity, weight in zip(prompts, perplexities, found, strict=True):
        group = [p for p, other in zip(perplexities, prompts, strict=True) if other == prompt]
        assert len(group) == fixed_rollout.GENERATIONS
        assert weight == pytest.approx((perplexity - statistics.fmean(group)) / statistics.stdev(group), abs=1e-4)


def test_groups_of_dynamic_sampling_are_whole(tiny_model, tmp_path):
    """Also those that waited: their perplexity is that under the policy that wrote them."""
    trainer = fixed_rollout.train(
        tiny_model,
        tmp_path,
        dynamic_sampling=True,
        reward="coins",
        per_device_train_batch_size=4,
        steps_per_generation=4,
        max_steps=5,
        learning_rate=0.05,
        data=fixed_rollout.prompts(30),
        **BOTH,
    )
    assert sum(row.get("dynamic_sampling/carried", 0) for row in trainer.state.log_history) > 0
    assert_weights(trainer, in_order(trainer, "old_per_token_logps").double())


RESUMED = {
    "per_device_train_batch_size": 4,
    "steps_per_generation": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 8,
    "learning_rate": 0.05,
    "save_strategy": "steps",
}


def improving(completion_ids, trainer_state, **kwargs):
    """More responses are right after the first step."""
    return [float(sum(ids) % 7 > (2 if trainer_state.global_step else 4)) for ids in completion_ids]


@pytest.mark.parametrize(
    ("settings", "saved", "flags"),
    [
        ({"ppl_shaping_start": 2, "ppl_shaping_end": 5}, 3, [0, 0, 1, 1, 1, 0, 0, 0]),
        ({"ppl_shaping_plateau_steps": 3, "plateau_window": 2, "reward": improving}, None, None),
    ],
    ids=["steps", "plateau"],
)
def test_a_run_goes_on_in_the_middle_of_a_window(tiny_model, tmp_path, settings, saved, flags):
    """In the middle of a rollout, too: the same weights and the same log to the last bit."""
    settings = BOTH | settings | RESUMED | {"save_steps": saved or 1}
    whole = fixed_rollout.train(tiny_model, tmp_path / "a", **settings)
    log = [row for row in whole.state.log_history if "loss" in row]
    active = [row["shaping/ppl"] for row in log]
    if flags is None:  # from the step after the one that logs the plateau first
        first = [row["stage"] for row in log].index(1) + 1
        flags, saved = [first <= step < first + 3 for step in range(8)], first + 1
    assert flags[saved - 1] and flags[saved], "the checkpoint should lie in the window"
    assert active == flags
    resumed = fixed_rollout.make_trainer(tiny_model, tmp_path / "b", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{saved}"))
    for name, weight in fixed_rollout.weights(whole).items():
        assert torch.equal(weight, fixed_rollout.weights(resumed)[name]), name
    again = [row for row in resumed.state.log_history if "loss" in row]
    for row, other in zip(log, again, strict=True):
        keys = ("loss", "stage", "shaping/ppl", "shaping/position", "entropy/positive")
        assert [row.get(key) for key in keys] == [other.get(key) for key in keys]


@pytest.mark.slow
def test_two_processes_are_one(tiny_model, tmp_path, preloaded):
    """A group of eight lies on both."""
    settings = BOTH | {"num_generations": 8, "entropy_scope": "rollout", "top_entropy_quantile": 0.3}
    one = fixed_rollout.train(tiny_model, tmp_path / "one", per_device_train_batch_size=8, **settings)
    (tmp_path / "two").mkdir()
    overrides = json.dumps({"per_device_train_batch_size": 4, **settings})
    command = [preloaded, "-m", *DDP, "-m", "benchmarks.fixtures.fixed_rollout"]
    command += [tiny_model, str(tmp_path / "two"), overrides]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    two = load_file(tmp_path / "two" / "weights.safetensors")
    start = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert_close(*({n: w - start[n] for n, w in ws.items()} for ws in (fixed_rollout.weights(one), two)), 1e-4)
