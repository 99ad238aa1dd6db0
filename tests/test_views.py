"""The views of collected tokens against sorting and loops."""

import math
import random
from collections import defaultdict

import numpy as np
import pytest

from entropy_grpo.analysis.report import figures
from entropy_grpo.analysis.views import categories, distribution, over_training, position, words
from entropy_grpo.monitoring.categories import CATEGORIES, FORMAL, LOGICAL, METACOGNITIVE, SEMANTIC, category

VOCABULARY = ["7", " so", "Wait", " the"]


def make(n, seed=0, ties=True):
    """(n,) float32 entropies like a model's: mostly near 0, many equal."""
    rng = np.random.default_rng(seed)
    values = (rng.exponential(0.3, n) * (rng.random(n) < 0.6)).astype(np.float32)
    return np.round(values, 2 if ties else 7).astype(np.float32)


def responses(seed=0):
    """Parts of whole responses of odd lengths, one of a single token, one row per token."""
    rng = random.Random(seed)
    rows = [
        {"response": r, "position": t, "token": rng.randrange(4), "correct": correct, "length": n}
        for r, (n, correct) in enumerate([(1, 1), (7, 0), (13, 1), (2, -1), (29, 0), (5, 1)])
        for t in range(n)
    ]
    for row in rows:
        row["entropy"], row["log_prob"] = rng.expovariate(2), -rng.expovariate(1)
    parts = []
    for own in ([row for row in rows if row["response"] < 3], [row for row in rows if row["response"] >= 3]):
        parts.append({key: np.array([row[key] for row in own]) for key in own[0]})
    return rows, parts


@pytest.mark.parametrize("n", [1, 2, 7, 1001])
def test_summary_is_that_of_sorting(n):
    entropy = make(n)
    found, ordered = distribution.summary(entropy), sorted(entropy.tolist())
    assert found["tokens"] == n
    assert found["mean"] == pytest.approx(math.fsum(ordered) / n, nan_ok=True)
    assert found["share_below_0.01"] == sum(h < np.float32(0.01) for h in ordered) / n
    highest = ordered[n - math.ceil(n / 5) :]
    if sum(ordered):
        assert found["held_by_top_20"] == pytest.approx(math.fsum(highest) / math.fsum(ordered))
    for level, value in found["percentiles"].items():
        assert value == ordered[level * (n - 1) // 100]


def test_histogram_counts_every_token():
    entropy = make(997, ties=False)
    entropy[3] = -1e-8  # as a nearly certain token may have
    edges, counts = distribution.histogram(np.array_split(entropy, 5), width=0.1)
    slow = defaultdict(int)
    for h in entropy.astype(np.float64):
        slow[int(max(h, 0) / np.float32(0.1))] += 1
    assert counts.tolist() == [slow[i] for i in range(len(counts))]
    assert counts.sum() == 997 and len(edges) == len(counts) + 1
    assert edges[-1] >= entropy.max() > edges[-2]


def test_overlap_is_that_of_sorted_places():
    entropies = {name: make(501, seed) for seed, name in enumerate("abc")}
    found = over_training.overlaps(entropies)
    tops = {
        name: set(sorted(range(501), key=lambda i: (-entropy[i], i))[:101])  # ceil(501 / 5)
        for name, entropy in entropies.items()
    }
    for a in "abc":
        for b in "abc":
            assert found[a][b] == len(tops[a] & tops[b]) / 101
    assert found["a"]["a"] == 1


def test_change_is_that_of_ranked_bins():
    base, trained = make(203, 0), make(203, 1)
    found = over_training.change_per_bin(base, trained, bins=20)
    order = sorted(range(203), key=lambda i: (base[i], i))
    start = 0
    for i, row in enumerate(found):
        size = 203 // 20 + (i < 203 % 20)
        places = order[start : start + size]
        start += size
        assert row["tokens"] == size
        assert row["change"] == pytest.approx(sum(float(trained[j]) - float(base[j]) for j in places) / size)
        assert row["entropy"] == pytest.approx(sum(float(base[j]) for j in places) / size)
    assert start == 203


def test_right_and_wrong_responses_are_apart():
    entropies = {"a": make(90, 0), "b": make(90, 1)}
    correct = np.array([1, 0, -1] * 30)
    found = over_training.over_training(entropies, correct)
    assert list(found) == ["all", "right", "wrong"]
    own = {name: entropy[correct == 0] for name, entropy in entropies.items()}
    assert found["wrong"]["overlaps"] == over_training.overlaps(own)
    assert found["wrong"]["percentiles"]["b"][100] == own["b"].max()
    assert list(over_training.over_training(entropies, np.full(90, -1))) == ["all"]


def test_words_are_those_of_a_loop():
    rng = random.Random(0)
    rows = [(rng.choice([3, 3, 3, 11, 11, 40, 41]), rng.expovariate(1)) for _ in range(400)] + [(7, 9.0)]
    parts = [
        {"token": np.array([t for t, _ in part]), "entropy": np.array([h for _, h in part])}
        for part in (rows[:150], rows[150:151], rows[151:])
    ]
    slow = defaultdict(list)
    for token, entropy in rows:
        slow[token].append(entropy)
    counts, mean = words.means(parts)
    found = words.extremes(counts, mean, {t: f"<{t}>" for t in slow}, least=5, shown=2)
    ranked = sorted((t for t in slow if len(slow[t]) > 5), key=lambda t: sum(slow[t]) / len(slow[t]))
    assert [row["token"] for row in found["lowest"]] == ranked[:2]
    assert [row["token"] for row in found["highest"]] == ranked[::-1][:2]
    for row in found["highest"] + found["lowest"]:
        own = slow[row["token"]]
        assert (row["count"], row["text"]) == (len(own), f"<{row['token']}>")
        assert row["entropy"] == pytest.approx(sum(own) / len(own))


def test_positions_are_those_of_a_loop():
    rows, parts = responses()
    found = position.by_position(parts, bins=4)
    slow = defaultdict(list)
    for row in rows:
        place = row["position"] / (row["length"] - 1) if row["length"] > 1 else 0.0
        group = {1: "right", 0: "wrong", -1: "unknown"}[row["correct"]]
        slow[group, min(3, int(4 * place))].append(row["entropy"])
    for group in ("right", "wrong", "unknown"):
        for i in range(4):
            own = slow[group, i]
            assert found[group]["tokens"][i] == len(own)
            expected = sum(own) / len(own) if own else math.nan
            assert found[group]["entropy"][i] == pytest.approx(expected, nan_ok=True)


def test_categories_are_those_of_a_loop():
    rows, parts = responses()
    texts = dict(enumerate(VOCABULARY))
    found = categories.by_category(parts, texts)
    kinds = (FORMAL, LOGICAL, METACOGNITIVE, SEMANTIC)
    for token, kind in enumerate(kinds):
        own = [row for row in rows if row["token"] == token]
        assert found[kind]["tokens"] == len(own)
        assert found[kind]["share"] == pytest.approx(len(own) / len(rows))
        assert found[kind]["entropy"] == pytest.approx(sum(row["entropy"] for row in own) / len(own))
        assert found[kind]["probability"] == pytest.approx(sum(math.exp(row["log_prob"]) for row in own) / len(own))
    later = {FORMAL: {"entropy": 0.25}, "new": {"entropy": 1.0}}
    assert categories.changes({FORMAL: {"entropy": 1.0}, LOGICAL: {"entropy": 2.0}}, later) == {
        FORMAL: {"entropy": -0.75}
    }


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (FORMAL, ["7", " +12", "=", " \\frac", "\\boxed{", "}", "^{", "≤", " 3.14", "²", "(", "$"]),
        # Tokens that the paper itself lists as formal reasoning.
        (FORMAL, ["frac", "sqrt", " times", "cdot", "x", " n", "sin", " mod", "\\", " X", "θ"]),
        (LOGICAL, [" so", "However", " because", "Therefore", " if"]),
        (METACOGNITIVE, ["Wait", " check", " Alternatively", "Hmm"]),
        (SEMANTIC, [" the", "\n\n", "", ".", " ,", "x1", "等", "\u202e", "\\xf0".replace("\\", "")]),
        (SEMANTIC, [" a", " I", " text", " to", "ing"]),
    ],
)
def test_tokens_have_their_category(kind, texts):
    assert kind in CATEGORIES
    assert {text: category(text) for text in texts} == dict.fromkeys(texts, kind)


def test_both_word_clouds_draw_high_entropy_large():
    """As the clouds of arXiv 2506.01939, Fig. 2b and c; the rows of both begin with the most extreme token."""
    highest = [{"text": " so", "entropy": 2.0}, {"text": "but", "entropy": 1.5}, {"text": "so", "entropy": 1.0}]
    assert figures.cloud_weights(highest) == {"so": 3, "but": 2}
    lowest = [{"text": "ing", "entropy": 0.01}, {"text": "7", "entropy": 0.02}, {"text": " ", "entropy": 0.03}]
    assert figures.cloud_weights(lowest) == {"ing": 1, "7": 2, "␣": 3}


def test_bins_of_position_hold_a_few_tokens():
    assert [position.bins_for(length) for length in (1.0, 33.4, 20480.0)] == [5, 8, 20]
