"""Divergence at forks against everything that a model of six tokens may write, and distances against a plain table."""

import itertools

import numpy as np
import pytest
import torch

from entropy_grpo.analysis.divergence.forks import Settings, divergence, find_forks
from entropy_grpo.analysis.divergence.summary import HIGH, LOW, summarize
from entropy_grpo.evaluation.backends.transformers import TransformersBackend

from . import tiny_vocabulary
from .tiny_vocabulary import END


def table_distance(a, b):
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
        change = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
        table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, change)
    return table[-1][-1] / max(len(a), len(b), 1)


@pytest.fixture(scope="module")
def model():
    return tiny_vocabulary.make_model()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_vocabulary.make_tokenizer()


PROMPT = [4, 0]
RESPONSES = [(PROMPT, [1, 2, 0, 3]), (PROMPT, [3, 3, 1, END]), ([2], [0, 4, 4, END])]


def test_forks(model):
    """Entropies, the most probable other token and the kinds, from the full float64 softmax at each position."""
    settings = Settings(rho=0.3, forks=4, temperature=0.8)
    forks = {(fork.response, fork.position): fork for fork in find_forks(model, RESPONSES, settings)}
    entropies = {}
    for (i, (prompt, ids)), t in itertools.product(enumerate(RESPONSES), range(4)):
        p = np.array(tiny_vocabulary.next_token(model, prompt + ids[:t], 0.8))
        fork, others = forks[i, t], np.where(np.arange(6) == ids[t], 0, p)
        entropies[i, t] = -(p * np.log(p)).sum()
        assert (fork.token, fork.other) == (ids[t], others.argmax())
        assert fork.question == (0, 0, 2)[i]
        assert fork.relative == t / 3
        probabilities = [tiny_vocabulary.next_token(model, prompt + ids[:s], 0.8)[ids[s]] for s in range(4)]
        assert fork.perplexity == pytest.approx(np.prod(probabilities) ** (-1 / 4), rel=1e-4)
        assert [fork.entropy, fork.logp, fork.other_logp] == pytest.approx(
            [entropies[i, t], np.log(p[ids[t]]), np.log(others.max())], abs=1e-5
        )
    # ceil(12 * 0.3); two responses begin alike, and of those equal ones the first comes first.
    highest = sorted(entropies, key=lambda place: -round(entropies[place], 6))[:4]
    assert {place for place, fork in forks.items() if fork.kind == HIGH} == set(highest)
    assert {fork.kind for fork in forks.values()} == {HIGH, LOW}


def begun(model, tokenizer, responses, settings):
    """The forks, and what continues them."""
    backend = TransformersBackend(model, tokenizer, settings.batch_size)
    return find_forks(model, responses, settings), backend, tokenizer, responses


def right(text):
    """The answer is the last letter, and right where it is one of the first two; an empty text has none."""
    return (text[-1] if text else None), text[-1:] in ("a", "b")


def test_rows_are_expectations_over_all_continuations(model, tokenizer):
    """k samples against every continuation with its probability; 4.5 standard errors of a mean of values in [0, 1]."""
    k, response = 1500, (PROMPT, [1, 2, 0, 3])
    settings = Settings(rho=0.5, forks=2, continuations=k, max_tokens=4, batch_size=3000, seed=7)
    rows = list(
        divergence(
            *begun(model, tokenizer, [response], settings), lambda _, texts: [right(t) for t in texts], settings
        )
    )
    assert sorted(row["position"] for row in rows) == [0, 1, 2, 3]
    for row in rows:
        started = [[*response[1][: row["position"]], token] for token in (row["token"], row["other"])]
        # After END, and after the last token, there is nothing.
        left = [0 if ids[-1] == END else 4 - len(ids) for ids in started]
        paths = [tiny_vocabulary.continuations(model, PROMPT + ids, n) for ids, n in zip(started, left, strict=True)]

        def graded(side, path, started=started):
            return right(tokenizer.decode(started[side] + list(path), skip_special_tokens=True))

        accuracy = [sum(p * graded(side, path)[1] for path, p in paths[side].items()) for side in (0, 1)]

        def expected(a, b, value, paths=paths):
            return sum(p * q * value(x, y) for x, p in paths[a].items() for y, q in paths[b].items())

        def changed(a, b, graded=graded, expected=expected):
            return expected(a, b, lambda x, y: graded(a, x)[0] != graded(b, y)[0])

        wanted = {
            "accuracy": accuracy[0],
            "other_accuracy": accuracy[1],
            "intervention": accuracy[0] - accuracy[1],
            "distance_between": expected(0, 1, table_distance),
            "distance_within": (expected(0, 0, table_distance) + expected(1, 1, table_distance)) / 2,
            "changed_between": changed(0, 1),
            "changed_within": (changed(0, 0) + changed(1, 1)) / 2,
        }
        for name, value in wanted.items():
            assert row[name] == pytest.approx(value, abs=4.5 * 0.5 / k**0.5), name
    assert max(abs(row["intervention"]) for row in rows) > 0.1


def test_rows_come_one_by_one_and_do_not_depend_on_the_callers_seed(model, tokenizer):
    settings = Settings(forks=1, continuations=3, max_tokens=6, batch_size=6)
    graded = []

    def grade(i, texts):
        graded.append(i)
        return [right(text) for text in texts]

    torch.manual_seed(1)
    rows = divergence(*begun(model, tokenizer, RESPONSES, settings), grade, settings)
    first = next(rows)
    assert len(graded) == 1
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = list(divergence(*begun(model, tokenizer, RESPONSES, settings), grade, settings))
    assert torch.equal(torch.get_rng_state(), state)
    assert [first, *rows] == again


def test_summary_clusters_by_question():
    """Forks of one question that are copies of each other count as one: a t interval over questions."""
    rng = np.random.default_rng(0)
    names = ("accuracy", "other_accuracy", "distance_between", "distance_within", "changed_between", "changed_within")
    one = [
        {"kind": HIGH, "question": i, "entropy": 1.0} | dict(zip(names, rng.random(6), strict=True)) for i in range(20)
    ]
    single, copied = summarize(one)[HIGH], summarize(one * 5)[HIGH]
    assert (copied["forks"], copied["questions"]) == (100, 20)
    for name in ("intervention", *names):
        assert copied[name] == pytest.approx(single[name])
    gains = [row["accuracy"] - row["other_accuracy"] for row in one]
    assert single["intervention"]["value"] == pytest.approx(np.mean(gains))
    half = 2.093024 * np.sqrt((np.var(gains) * 20 + 0.05) / (19 * 20))  # Student's t, 19 degrees of freedom
    assert single["intervention"]["high"] - np.mean(gains) == pytest.approx(half, rel=1e-5)


@pytest.mark.parametrize(("name", "value"), [("forks", 0), ("continuations", 1), ("rho", 0.0), ("temperature", 0.0)])
def test_bad_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value}"):
        Settings(**{name: value})
