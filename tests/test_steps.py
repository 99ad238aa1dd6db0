"""What is logged of an optimiser step's tokens, against sums over the tokens one by one."""

import math
import statistics
from collections import defaultdict

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.metrics.quality import quality
from entropy_grpo.monitoring.callbacks import RunRecorder
from entropy_grpo.monitoring.steps import StepMonitor, rollout_metrics, token_samples, window_metrics
from entropy_grpo.objective.objective import Objective
from entropy_grpo.objective.ranks import ALONE, Ranks
from entropy_grpo.objective.selection import on_one_process
from entropy_grpo.objective.tokens import loss_mask, probability_ratio, row_advantages, with_gradient
from entropy_grpo.objective.window import Pass, Scored, Window

LIMITS = LOWEST, HIGHEST = 0.75, 1.5
LEVELS = (5, 25, 50, 75, 90, 95, 99)


def micro_batch(seed, per_token):
    """Random tokens of three sequences, some of them at the edges of the clip range, a quarter of them kept."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 8, generator=rng) < 0.8
    advantages = torch.randn(3, 8, generator=rng) if per_token else torch.tensor([0.7, 0.0, -0.4])
    ratios = torch.rand(3, 8, generator=rng) * 2 + 0.05
    ratios[:, :2] = torch.tensor([LOWEST, HIGHEST])
    inputs = {"advantages": advantages, "old_per_token_logps": torch.zeros(3, 8)}
    kept = mask & (torch.rand(3, 8, generator=rng) < 0.5)
    return Scored(inputs, mask, kept, torch.rand(3, 8, generator=rng) * 3, ratios.log())


def tokens(scored):
    """(advantage, kept, entropy, ratio) of every token that counts."""
    for one in scored:
        for i, t in one.mask.nonzero().tolist():
            advantages = one.inputs["advantages"]
            advantage = advantages[i] if advantages.dim() == 1 else advantages[i, t]
            ratio = float(one.logps[i, t].exp())
            yield float(advantage), bool(one.kept[i, t]), float(one.entropies[i, t]), ratio


@pytest.mark.parametrize("per_token", [False, True])
def test_metrics_are_sums_over_the_tokens(per_token):
    scored = [micro_batch(seed, per_token) for seed in range(4)]
    everything = [*scored, micro_batch(9, per_token)]  # a sequence that is not run has entropies, but no clip rate
    found = window_metrics(scored, everything, LIMITS, True, on_one_process)
    known, run = list(tokens(everything)), list(tokens(scored))

    def mean(condition):
        chosen = [entropy for a, kept, entropy, _ in known if condition(a, kept)]
        return pytest.approx(statistics.fmean(chosen), rel=1e-5)

    def clipped(condition):
        chosen = [entropy for a, kept, entropy, ratio in run if kept and condition(a, ratio)]
        return pytest.approx(statistics.fmean(chosen), rel=1e-5)

    kept_count = sum(kept for _, kept, _, _ in known)
    expected = {
        "selection/kept_entropy": mean(lambda a, kept: kept),
        "selection/dropped_entropy": mean(lambda a, kept: not kept),
        "kept": kept_count,
        "all": len(known),
        "selection/kept_fraction": kept_count / len(known),
        "clip_ratio/low_entropy": clipped(lambda a, r: a < 0 and r < LOWEST - 1e-6),
        "clip_ratio/high_entropy": clipped(lambda a, r: a > 0 and r > HIGHEST + 1e-6),
        "clip_ratio/kept_low": sum(k and a < 0 and r < LOWEST - 1e-6 for a, k, _, r in run) / kept_count,
        "clip_ratio/kept_high": sum(k and a > 0 and r > HIGHEST + 1e-6 for a, k, _, r in run) / kept_count,
    }
    assert found == expected
    assert found["clip_ratio/kept_low"] > 0 and found["clip_ratio/kept_high"] > 0


def test_a_sequence_is_clipped_by_the_mean_of_its_log_ratios():
    """Tokens whose ratios are 2 and 1/2 by turns are not clipped, and padding counts nothing."""
    ratios = torch.tensor([[2.0, 0.5, 2.0, 0.5], [2.0, 2.0, 0.5, 1e9], [0.5, 0.5, 2.0, math.nan]])
    mask = torch.tensor([[True] * 4, [True] * 3 + [False], [True] * 3 + [False]])
    inputs = {"advantages": torch.tensor([1.0, 1.0, -1.0]), "old_per_token_logps": torch.zeros(3, 4)}
    kept = mask & torch.tensor([True, True, False, True])
    scored = [Scored(inputs, mask, kept, torch.arange(12.0).view(3, 4), ratios.log())]
    found = window_metrics(scored, scored, (0.99, 1.01), False, on_one_process)
    assert found["clip_ratio/kept_high"] == found["clip_ratio/kept_low"] == 2 / 7  # 2 ** (1 / 3) and its inverse
    assert (found["clip_ratio/high_entropy"], found["clip_ratio/low_entropy"]) == (4.5, 8.5)


def test_sums_of_ranks_are_what_one_process_logs():
    """A rank whose sums come with those of an equal one: twice the tokens, and the same means."""
    scored = [micro_batch(seed, True) for seed in range(2)]
    one = window_metrics(scored, scored, LIMITS, True, on_one_process)
    two = window_metrics(scored, scored, LIMITS, True, lambda counts: 2 * counts)
    sizes = {"kept": 2 * one["kept"], "all": 2 * one["all"]}
    assert two == pytest.approx(one | sizes)


@pytest.mark.parametrize("per_token", [False, True])
def test_entropies_of_a_rollout_are_those_of_all_its_tokens(per_token):
    """By correctness and by the sign of the advantage, which are two things: an overlong right response."""
    scored = [micro_batch(seed, per_token) for seed in range(3)]
    batches = [
        s.inputs | {"completion_mask": s.mask, "right": torch.tensor([True, False, i > 0])}
        for i, s in enumerate(scored)
    ]
    found = rollout_metrics(batches, [s.entropies for s in scored], on_one_process)
    rows = []  # entropy, advantage, right
    for batch, one in zip(batches, scored, strict=True):
        for i, t in one.mask.nonzero().tolist():
            advantage = batch["advantages"][i, t] if per_token else batch["advantages"][i]
            rows.append((float(one.entropies[i, t]), float(advantage), bool(batch["right"][i])))

    def mean(condition):
        return pytest.approx(statistics.fmean(h for h, a, right in rows if condition(a, right)), rel=1e-5)

    entropies = sorted(h for h, _, _ in rows)
    assert found == {
        "entropy/mean": mean(lambda a, right: True),
        "entropy/right": mean(lambda a, right: right),
        "entropy/wrong": mean(lambda a, right: not right),
        "entropy/positive": mean(lambda a, right: a > 0),
        "entropy/negative": mean(lambda a, right: a < 0),
        **{f"entropy/p{p}": entropies[math.floor(p * (len(rows) - 1) / 100)] for p in LEVELS},
    }
    assert found["entropy/right"] != found["entropy/positive"] and found["entropy/wrong"] != found["entropy/negative"]


def test_a_window_without_tokens_logs_no_number():
    empty = micro_batch(0, False)
    empty.mask[:], empty.kept[:] = False, False
    found = window_metrics([empty], [empty], LIMITS, True, on_one_process)
    assert found.pop("kept") == found.pop("all") == 0
    assert found and all(math.isnan(value) for value in found.values())


def test_tokens_of_tools_are_not_the_policys():
    written = torch.tensor([[1, 1, 1, 0]])
    assert loss_mask({"completion_mask": written}) is written
    own = {"completion_mask": written, "tool_mask": torch.tensor([[1, 0, 1, 1]])}
    assert loss_mask(own).tolist() == [[1, 0, 1, 0]]


def test_ratios_are_one_without_old_log_probabilities():
    logps = torch.tensor([[-1.0, -2.0]])
    assert probability_ratio(logps, {}).tolist() == [[1.0, 1.0]]
    old = torch.tensor([[-1.5, -2.0]])
    assert probability_ratio(logps, {"old_per_token_logps": old})[0].tolist() == pytest.approx([math.exp(0.5), 1.0])


def test_advantages_have_a_column_or_one_for_each_token():
    assert row_advantages({"advantages": torch.tensor([1.0, 2.0])}).tolist() == [[1.0], [2.0]]
    assert row_advantages({"advantages": torch.ones(2, 3)}).shape == (2, 3)


class Letters:
    """Decodes token 0 as `a`, 1 as `b`, and so on."""

    def decode(self, ids):
        return "".join(chr(97 + int(i)) for i in ids)

    def convert_ids_to_tokens(self, token):
        return self.decode([token])


def test_samples_hold_the_tokens_that_count():
    inputs = {
        "prompt_ids": torch.tensor([[9, 3, 4], [5, 6, 7]]),
        "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[0, 1, 2], [0, 0, 0]]),
        "advantages": torch.tensor([[0.25, 5.0, 0.33336], [1.0, 1.0, 1.0]]),
        "right": torch.tensor([True, False]),
    }
    mask = torch.tensor([[True, False, True], [False, False, False]])
    kept = torch.tensor([[False, False, True], [False, False, False]])
    scored = Scored(inputs, mask, kept, torch.tensor([[0.123456, 9.0, 1.0], [0.0, 0.0, 0.0]]))
    first = {
        "prompt": "de",
        "tokens": ["a", "c"],
        "token_ids": [0, 2],
        "entropies": [0.1235, 1.0],
        "kept": [0, 1],
        "advantage": 0.2917,
        "right": True,
    }
    nothing = {"prompt": "fgh", "tokens": [], "token_ids": [], "entropies": [], "kept": [], "advantage": 0.0}
    nothing["right"] = False
    assert token_samples(scored, 1, Letters()) == [first]
    assert token_samples(scored, 5, Letters()) == [first, nothing]


def test_samples_show_spaces_and_distinguish_the_bytes_of_sentencepiece():
    """With Llama 2's kind of tokenizer, words have a mark for their space, and an emoji is four bytes."""
    words = ["▁the", "the", "▁cat", "s"]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    inner = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>"))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(parts)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    written = [names.index(name) for name in ("▁the", "▁cat", "s")] + [1 + byte for byte in "😀".encode()]

    def texts(ids):
        every = torch.ones(1, len(ids), dtype=torch.bool)
        inputs = {name: torch.tensor([ids]) for name in ("prompt_ids", "prompt_mask", "completion_ids")}
        inputs |= {"advantages": torch.ones(1), "right": torch.ones(1)}
        (sample,) = token_samples(Scored(inputs, every, every, every.float()), 1, tokenizer)
        return sample["tokens"]

    shown = texts(written)
    assert "".join(shown[:3]) == " " + tokenizer.decode(written[:3]) == " the cats"
    assert [bytes([int(text.removeprefix(r"\x"), 16)]) for text in shown[3:]] == [b"\xf0", b"\x9f", b"\x98", b"\x80"]
    no_ascii = [i for i, name in enumerate(names) if name in words or i > 128]
    assert len(set(texts(no_ascii))) == len(no_ascii) == 4 + 128


def test_tokens_with_a_gradient_have_an_advantage_a_weight_and_are_kept():
    inputs = {"completion_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), "advantages": torch.tensor([-0.5, 0.0])}
    assert with_gradient(inputs).int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
    weighted = inputs | {"token_weights": torch.tensor([[0.0, 0.5, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]])}
    assert with_gradient(weighted).int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
    kept = weighted | {"kept_mask": torch.tensor([[True, False, True, True], [True, True, True, True]])}
    assert with_gradient(kept).int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]


# The monitor


TWO_EQUAL_RANKS = Ranks(0, 2, lambda t: 2 * t, lambda number: number, lambda t, pad_left: torch.cat([t, t]))


def make_monitor(tmp_path, ranks=ALONE, **settings):
    """A monitor with its own metrics, of groups of two responses and a vocabulary of letters."""
    settings = {"gradient_accumulation_steps": 2, "entropy_scope": "global", "log_diagnostics": True} | settings
    args = EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=2, **settings)
    metrics = {mode: defaultdict(list) for mode in ("train", "eval")}
    objective = Objective.from_args(args)
    return StepMonitor(metrics, objective, ranks, Letters(), 26, 2, 1, RunRecorder(objective))


def letters_of(scored, seed=0):
    """The micro-batch with all that samples and diagnostics read."""
    scored.inputs |= {
        "prompt_ids": torch.full((3, 2), seed % 26),
        "prompt_mask": torch.ones(3, 2),
        "completion_ids": torch.randint(0, 26, scored.mask.shape, generator=torch.Generator().manual_seed(seed)),
        "completion_mask": scored.mask.long(),
        "right": torch.tensor([True, False, True]),
    }
    return scored


REWARDS = torch.tensor([[1.0, -3.0], [0.0, 7.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
TEXTS = ["so \\boxed{1}", "no box", "# Title\n\\boxed{2}", "a a a a a a a a", "\\boxed{3}", "那么 \\boxed{4}"]


@pytest.mark.parametrize("ranks", [ALONE, TWO_EQUAL_RANKS], ids=["one rank", "two equal ranks"])
def test_rewards_are_logged_with_lengths_groups_and_quality(tmp_path, ranks):
    """Correctness is the first reward's. Ranks have equal responses, so that means are those of one."""
    monitor = make_monitor(tmp_path, ranks)
    rewards = torch.cat([REWARDS] * ranks.count)
    monitor.rewards(rewards, ["?"] * 6, TEXTS, [10, 20, 30, 40, 50, 60], "train")
    monitor.answers()
    logged = {name: values[0] for name, values in monitor.metrics["train"].items()}
    expected = {
        "accuracy": 0.5,
        "completions/right_length": (10 + 50 + 60) / 3,
        "completions/wrong_length": (20 + 30 + 40) / 3,
        "groups/all_right": 1 / 3,
        "groups/all_wrong": 1 / 3,
        "groups/one_right": 1 / 3,
    }
    expected |= {f"quality/{name}": value for name, value in quality(TEXTS, ["?"] * 6).items()}
    assert logged == pytest.approx(expected) and monitor.accuracy == 0.5
    assert not monitor.metrics["eval"]


def test_rewards_of_evaluations_and_without_diagnostics_are_their_accuracy(tmp_path):
    for mode, settings in (("eval", {}), ("train", {"log_diagnostics": False})):
        monitor = make_monitor(tmp_path, **settings)
        monitor.rewards(REWARDS, ["?"] * 6, TEXTS, [1] * 6, mode)
        monitor.answers()
        assert monitor.metrics[mode] == {"accuracy": [0.5]}
        assert monitor.accuracy == 0.5 if mode == "train" else math.isnan(monitor.accuracy)


def test_gradients_are_logged_over_tokens_that_have_one(tmp_path):
    """Norms of |advantage| * ||e(o) - p|| * ||h||, the ratio being 1 without old log-probabilities."""
    rng = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 8, generator=rng) < 0.7
    batch = {"completion_mask": mask.long(), "advantages": torch.tensor([0.5, 0.0, -0.25])}
    norms, entropies = torch.rand(3, 8, generator=rng), torch.rand(3, 8, generator=rng)
    scored = Pass(torch.zeros(3, 8), entropies, norms)
    monitor = make_monitor(tmp_path)
    monitor.gradients([scored], [batch])
    trained = [(i, t) for i, t in mask.nonzero().tolist() if i != 1]
    found = [float(norms[i, t]) * abs(float(batch["advantages"][i])) for i, t in trained]
    ordered = sorted(found)
    places = [[sorted(column).index(x) for x in column] for column in (found, [float(entropies[c]) for c in trained])]
    expected = {f"gradient/p{level}": ordered[level * (len(ordered) - 1) // 100] for level in (50, 90, 99)} | {
        "gradient/entropy_correlation": statistics.correlation(*places)
    }
    assert {name: value for name, (value,) in monitor.metrics["train"].items()} == pytest.approx(expected)


def test_gradients_are_logged_only_if_every_pass_has_norms(tmp_path):
    batch = {"completion_mask": torch.ones(3, 8).long(), "advantages": torch.ones(3)}
    with_norms, without = Pass(torch.zeros(3, 8), torch.rand(3, 8), torch.rand(3, 8)), Pass(torch.zeros(3, 8))
    monitor = make_monitor(tmp_path)
    monitor.gradients([with_norms, without], [batch, batch])
    quiet = make_monitor(tmp_path, log_diagnostics=False)
    quiet.gradients([with_norms], [batch])
    assert not monitor.metrics["train"] and not quiet.metrics["train"]


@pytest.mark.parametrize("diagnostics", [True, False])
def test_rollouts_are_logged_with_or_without_diagnostics(tmp_path, diagnostics):
    monitor = make_monitor(tmp_path, log_diagnostics=diagnostics)
    scored = [letters_of(micro_batch(seed, False), seed) for seed in range(2)]
    monitor.rollout([s.inputs for s in scored], [s.entropies for s in scored])
    logged = monitor.metrics["train"]
    expected = rollout_metrics([s.inputs for s in scored], [s.entropies for s in scored], on_one_process)
    assert {name: logged[name] for name in expected} == {name: [value] for name, value in expected.items()}
    assert monitor.entropy == expected["entropy/mean"]
    assert ("tokens/negative_only" in logged) is diagnostics


def finished_window(number=4, ran=3):
    """A window with all tokens of `number` micro-batches known, of which `ran` have been run, and three thresholds."""
    scored = [letters_of(micro_batch(seed, False), seed) for seed in range(number)]
    kept = sum(int(s.kept.sum()) for s in scored)
    everything = [s.inputs | {"kept_mask": s.kept, "entropies": s.entropies} for s in scored]
    return Window([], kept, everything, [0.5, 1.0, 3.0], scored=scored[:ran]), scored


@pytest.mark.parametrize("diagnostics", [True, False])
def test_a_step_logs_its_tokens_batches_and_samples(tmp_path, diagnostics):
    monitor = make_monitor(tmp_path, entropy_scope="rollout", log_diagnostics=diagnostics)
    window, scored = finished_window()
    monitor.step(window, 12)
    logged = {name: value for name, (value,) in monitor.metrics["train"].items()}
    assert logged["selection/threshold"] == 1.5
    assert logged["batching/run_fraction"] == 9 / 12 and logged["batching/micro_batches"] == 3
    tokens_kept, all_tokens = sum(int(s.kept.sum()) for s in scored), sum(int(s.mask.sum()) for s in scored)
    assert logged["selection/kept_fraction"] == pytest.approx(tokens_kept / all_tokens)
    assert any(name.endswith("_kept") for name in logged if name.startswith("tokens/")) is diagnostics
    assert "entropy/mean" not in logged, "the pass over the rollout has measured it"
    assert monitor.recorder.samples() == token_samples(scored[2], 1, Letters())


def test_a_step_without_thresholds_logs_none(tmp_path):
    monitor = make_monitor(tmp_path, entropy_scope="rollout")
    window, _ = finished_window()
    window.thresholds = []
    monitor.step(window, 12)
    assert "selection/threshold" not in monitor.metrics["train"]


@pytest.mark.parametrize(("micro_batches", "prefix"), [(2, ""), (4, "step_")])
def test_steps_that_share_an_unmeasured_rollout_have_names_of_their_own(tmp_path, micro_batches, prefix):
    """Their tokens are a part of the rollout, and the policy of later steps did not write it."""
    settings = {"old_logps": "sampler", "steps_per_generation": micro_batches, "top_entropy_quantile": 1.0}
    monitor = make_monitor(tmp_path, **settings)
    window, scored = finished_window()
    monitor.step(window, 12)
    expected = rollout_metrics([s.inputs for s in scored], [s.entropies for s in scored], on_one_process)
    logged = monitor.metrics["train"]
    assert {name: logged[prefix + name] for name in expected} == {name: [value] for name, value in expected.items()}
    assert f"{prefix}tokens/formal" in logged and monitor.entropy == expected["entropy/mean"]
    assert not prefix or not [name for name in logged if name.startswith(("entropy/", "tokens/formal_ent"))]


def test_a_step_measures_its_rollout_if_no_pass_has(tmp_path):
    """A rollout for one optimiser step, which its policy wrote: also sequences that were not run are measured."""
    monitor = make_monitor(tmp_path, top_entropy_quantile=1.0)
    window, scored = finished_window()
    monitor.step(window, 12)
    entropies = [float(h) for s in scored for h in s.entropies[s.mask]]
    assert monitor.metrics["train"]["entropy/mean"] == [pytest.approx(statistics.fmean(entropies))]


@pytest.mark.parametrize(
    ("settings", "checked"),
    [
        ({"entropy_scope": "global"}, True),
        ({"entropy_scope": "micro_batch"}, True),
        ({"entropy_scope": "rollout"}, False),  # checked when the rollout was ranked
        ({"entropy_selection": "random_matched"}, False),  # their number follows from the norms
        ({"top_entropy_quantile": 1.0}, False),
    ],
    ids=str,
)
def test_kept_tokens_are_checked_where_the_step_ranks_them(tmp_path, settings, checked):
    monitor = make_monitor(tmp_path, **settings)
    window, _ = finished_window()
    window.kept += 1
    if not checked:
        monitor.step(window, 12)
        return
    with pytest.raises(RuntimeError, match="so that the loss would be wrong"):
        monitor.step(window, 12)
