"""Changes of probability between two checkpoints, against loops over the tokens; old collections; the report."""

import itertools
import json
import math
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from entropy_grpo.analysis.divergence import impact
from entropy_grpo.analysis.report import run as report
from entropy_grpo.analysis.views import updates
from entropy_grpo.monitoring.categories import CATEGORIES, FORMAL, LOGICAL, METACOGNITIVE, SEMANTIC
from entropy_grpo.runs import parquet

from .test_report import synthetic

TEXTS = dict(enumerate(["7", " so", "Wait", " the", "x"]))
KINDS = [FORMAL, LOGICAL, METACOGNITIVE, SEMANTIC, FORMAL]


@pytest.fixture(scope="module")
def rows():
    """One row per token of responses of odd lengths, of every correctness, with both checkpoints' figures."""
    rng = random.Random(3)
    verdicts = [(1, 1), (7, 0), (13, 1), (2, -1), (29, 0), (5, 1), (11, 0)]
    return [
        {
            "response": r,
            "token": rng.randrange(5),
            "correct": correct,
            "entropy": rng.expovariate(2),
            "gradient": rng.expovariate(1),
            "log_prob": -rng.expovariate(1 + r),
            "after": -rng.expovariate(1 + r),
        }
        for r, (n, correct) in enumerate(verdicts)
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def found(rows):
    columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    return updates.between(columns, columns.pop("after"), TEXTS)


def moved(row):
    return math.exp(row["after"]) - math.exp(row["log_prob"])


def largest(rows):
    """Positions of the ceil(n / 5) tokens that changed most."""
    order = sorted(range(len(rows)), key=lambda i: -abs(moved(rows[i])))
    return order[: math.ceil(len(rows) / 5)]


def test_changes_by_correctness_are_those_of_a_loop(rows, found):
    for name, verdicts in {"all": (1, 0, -1), "right": (1,), "wrong": (0,)}.items():
        own, group = [moved(row) for row in rows if row["correct"] in verdicts], found["by_correctness"][name]
        assert group["tokens"] == len(own)
        assert group["change"] == pytest.approx(sum(own) / len(own))
        assert group["size"] == pytest.approx(sum(map(abs, own)) / len(own))
        assert group["below_0.06"] == sum(abs(x) < 0.06 for x in own) / len(own)
        assert group["raised"] == sum(x > 0 for x in own) / len(own)
        assert group["counts"] == [
            sum(low <= x < high for x in own) for low, high in itertools.pairwise(updates.EDGES.tolist())
        ]


def test_gradient_by_entropy_is_that_of_a_loop(rows, found):
    by_entropy = sorted(rows, key=lambda row: row["entropy"])
    bins = found["gradient"]["bins"]
    assert sum(one["tokens"] for one in bins) == len(rows) and len(bins) == 20
    start = 0
    for one in bins:
        own = by_entropy[start : start + one["tokens"]]
        start += len(own)
        assert one["entropy"] == pytest.approx(sum(row["entropy"] for row in own) / len(own))
        assert one["gradient"] == pytest.approx(sum(row["gradient"] for row in own) / len(own))
        assert one["size"] == pytest.approx(sum(abs(moved(row)) for row in own) / len(own))
    assert updates.gradient_by_entropy(np.ones(2), np.array([1.0, np.nan]), np.ones(2)) == {}


def test_rank_correlation_is_that_of_all_pairs():
    """With mean ranks of ties, each the number of smaller values plus half the number of equal ones."""
    rng = random.Random(0)
    x, y = ([rng.randrange(6) for _ in range(40)] for _ in range(2))
    ranks = [[sum(b < a for b in values) + sum(b == a for b in values) / 2 for a in values] for values in (x, y)]
    assert updates.rank_correlation(np.array(x), np.array(y)) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert updates.rank_correlation(np.arange(9), -(np.arange(9.0) ** 3)) == pytest.approx(-1)
    assert math.isnan(updates.rank_correlation(np.ones(3), np.arange(3)))


def test_categories_of_the_largest_changes_are_those_of_a_loop(rows, found):
    top = [rows[i]["token"] for i in largest(rows)]
    assert list(found["categories"]) == [kind for kind in CATEGORIES if kind in KINDS]
    for kind, one in found["categories"].items():
        own = [row["token"] for row in rows if KINDS[row["token"]] == kind]
        assert (one["tokens"], one["share"]) == (len(own), pytest.approx(len(own) / len(rows)))
        frequent = {token: top.count(token) for token in range(5) if KINDS[token] == kind and token in top}
        assert one["top_share"] == pytest.approx(sum(frequent.values()) / len(top))
        assert {row["token"]: row["count"] for row in one["words"]} == frequent
        assert [row["count"] for row in one["words"]] == sorted(frequent.values(), reverse=True)
        assert all(row["text"] == TEXTS[row["token"]] for row in one["words"])
        assert all(row["seen"] == own.count(row["token"]) for row in one["words"])


def test_words_are_the_most_raised_and_lowered(rows):
    tokens, changes = (np.array(column) for column in zip(*((row["token"], moved(row)) for row in rows), strict=True))
    means = {token: np.mean(changes[tokens == token]) for token in range(5)}
    words = updates.extremes(tokens, changes, TEXTS, least=2, shown=2)
    ordered = sorted(means, key=means.get)
    assert [row["token"] for row in words["lowered"]] == [t for t in ordered[:2] if means[t] < 0]
    assert [row["token"] for row in words["raised"]] == [t for t in ordered[:-3:-1] if means[t] > 0]
    for row in words["raised"] + words["lowered"]:
        assert row["change"] == pytest.approx(means[row["token"]])
        assert row["count"] == (tokens == row["token"]).sum()


def test_perplexity_groups_are_those_of_a_loop(rows, found):
    responses = {r: [row for row in rows if row["response"] == r] for r in range(7)}
    perplexity = {r: math.exp(-sum(row["log_prob"] for row in own) / len(own)) for r, own in responses.items()}
    ordered, top, start = sorted(perplexity, key=perplexity.get), largest(rows), 0
    assert [one["responses"] for one in found["perplexity"]] == [2, 2, 1, 1, 1]
    for one in found["perplexity"]:
        mine = ordered[start : start + one["responses"]]
        start += one["responses"]
        assert (one["from"], one["to"]) == pytest.approx((perplexity[mine[0]], perplexity[mine[-1]]))
        own = [i for i, row in enumerate(rows) if row["response"] in mine]
        inside = len(set(own) & set(top))
        assert one["tokens"] == len(own)
        wanted = {
            "share": len(own) / len(rows),
            "top": inside / len(own),
            "top_share": inside / len(top),
            "size": sum(abs(moved(rows[i])) for i in own) / len(own),
        }
        for name, value in wanted.items():
            assert one[name] == pytest.approx(value), name
        judged = [responses[r][0]["correct"] for r in mine if responses[r][0]["correct"] >= 0]
        assert one["right"] == pytest.approx(sum(judged) / len(judged) if judged else math.nan, nan_ok=True)


def test_a_report_shows_the_updates(tmp_path):
    """Also of a collection without gradient norms, as earlier versions wrote them."""
    collection = synthetic(tmp_path / "tokens", ["7", " so", "<b>"])
    assert len(report.write(collection.path)) == 2
    found = json.loads((collection.path / "report.json").read_text())["updates"]
    (name,) = found
    below = found[name]["by_correctness"]["right"]["below_0.06"]
    text = (collection.path / "report.md").read_text()
    assert f"{below:.2%}" in text and "rank correlation" not in text and found[name]["gradient"]["bins"]
    for picture in ("updates", "update-categories", "update-perplexity"):
        assert (collection.path / "figures" / f"{picture}.png").stat().st_size > 5000
        assert f"figures/{picture}.png" in text
    for checkpoint, part in itertools.product(collection.checkpoints, range(2)):
        path = collection.part(checkpoint, part)
        parquet.write(path, pq.ParquetFile(path).read().drop_columns("gradient"))
    report.write(collection.path)
    assert json.loads((collection.path / "report.json").read_text())["updates"][name] == found[name] | {"gradient": {}}


def forks(seed, questions=9, k=3):
    rng = random.Random(seed)
    rows = []
    for response in range(2 * questions):
        perplexity = 1 + rng.random()
        for kind in ("high", "low"):
            sides = [rng.randint(0, k) / k for _ in range(2)]
            rows.append(
                {
                    "response": response,
                    "question": response % questions,
                    "kind": kind,
                    "accuracy": sides[0],
                    "other_accuracy": sides[1],
                    "intervention": sides[0] - sides[1],
                    "relative": rng.random(),
                    "perplexity": perplexity,
                }
            )
    return rows


def test_chance_is_the_mean_over_all_orders():
    """Every choice of the k continuations after the sampled token among all 2k."""
    for right in range(7):
        outcomes = [1] * right + [0] * (6 - right)
        sizes = [
            abs(2 * sum(outcomes[i] for i in chosen) - right) / 3 for chosen in itertools.combinations(range(6), 3)
        ]
        assert impact.chance(right, 3) == pytest.approx(sum(sizes) / len(sizes))


def test_impact_by_group_is_that_of_a_loop():
    rows = forks(1)
    found = impact.impact(rows, 3)
    middle = np.median([row["perplexity"] for row in rows[::2]])
    members = {
        "low perplexity": lambda row: row["perplexity"] <= middle,
        "high perplexity": lambda row: row["perplexity"] > middle,
        "early": lambda row: row["relative"] < 0.5,
        "late": lambda row: row["relative"] >= 0.5,
    }
    for kind, (name, belongs) in itertools.product(("high", "low"), members.items()):
        own, one = [row for row in rows if row["kind"] == kind and belongs(row)], found[kind][name]
        assert (one["forks"], one["questions"]) == (len(own), len({row["question"] for row in own}))
        assert one["intervention"]["value"] == pytest.approx(np.mean([row["intervention"] for row in own]))
        size = np.mean([abs(row["intervention"]) for row in own])
        assert one["size"]["value"] == pytest.approx(size)
        assert one["beyond"]["value"] == pytest.approx(size - one["chance"])
        assert one["beyond"]["low"] < one["beyond"]["value"] < one["beyond"]["high"]
    assert impact.impact([{**row, "kind": "high"} for row in rows], 3).keys() == {"high"}
    assert impact.impact([{key: row[key] for key in row if key != "relative"} for row in rows], 3) == {}
