"""Forked decoding against the formula in float64, transformers' own temperature, and counts of what is sampled."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from entropy_grpo.evaluation.decoding import forked
from entropy_grpo.evaluation.decoding.forked import ForkedTemperature, Temperatures, entropies, scale

from . import tiny_vocabulary


def formula(logits, t_high, t_low, threshold):
    """Eq. 5 for one row: softmax(z / T) with T by the entropy of softmax(z)."""
    p = [math.exp(z - max(logits)) for z in logits]
    p = [x / sum(p) for x in p]
    t = t_high if -sum(x * math.log(x) for x in p if x > 0) > threshold else t_low
    if t == 0:
        return [float(i == logits.index(max(logits))) for i in range(len(logits))]
    q = [math.exp((z - max(logits)) / t) for z in logits]
    return [x / sum(q) for x in q]


@pytest.fixture
def logits():
    """Rows from nearly certain to nearly even, with tokens that cannot be drawn."""
    torch.manual_seed(0)
    rows = torch.randn(9, 11) * torch.logspace(1.3, -1, 9).unsqueeze(-1)
    rows[3, [0, 4]] = -torch.inf
    return rows


@pytest.mark.parametrize(("t_high", "t_low"), [(1.7, 1.0), (1.0, 0.3), (0.0, 2.5), (0.6, 0.0)])
def test_formula(logits, t_high, t_low, monkeypatch):
    monkeypatch.setattr(forked, "ELEMENTS", 4 * 11)  # tiles of four rows, the last one short
    threshold = entropies(logits).median().item() + 0.01
    found = ForkedTemperature(Temperatures(t_high, t_low, threshold))(None, logits).softmax(-1)
    expected = [formula(row.tolist(), t_high, t_low, threshold) for row in logits.double()]
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.double), atol=1e-6, rtol=1e-5)


def test_equal_temperatures_are_transformers_own(logits):
    found = ForkedTemperature(Temperatures(0.7, 0.7, 0.5))(None, logits)
    torch.testing.assert_close(found, TemperatureLogitsWarper(0.7)(None, logits))


def test_settings_of_each_row(logits):
    """What vLLM's processor calls: rows of one batch with different settings."""
    settings = torch.rand(3, len(logits), generator=torch.Generator().manual_seed(1)) + 0.2
    expected = [formula(row.tolist(), *own) for row, own in zip(logits.double(), settings.T.tolist(), strict=True)]
    found = scale(logits, *settings).softmax(-1).double()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.double), atol=1e-6, rtol=1e-5)


def test_generate_draws_from_the_formula():
    """Counts of the pairs of tokens that `generate` samples against the formula, by a chi-square test."""
    model, draws = tiny_vocabulary.make_model(), 20000
    prompt, threshold = [2, 2], 1.0
    first = tiny_vocabulary.next_token(model, prompt)
    after = {token: tiny_vocabulary.next_token(model, [*prompt, token]) for token in range(5)}
    high = [-sum(p * math.log(p) for p in row) > threshold for row in (first, *after.values())]
    assert high == [True, True, False, True, True, False], "both temperatures are drawn with"
    settings = (1.6, 0.5, threshold)

    def pairs(settings):
        expected = {}
        for token, p in enumerate(formula([math.log(p) for p in first], *settings)):
            rest = formula([math.log(p) for p in after[token]], *settings) if token in after else [0] * 5 + [1]
            expected |= {(token, second): p * q for second, q in enumerate(rest) if p * q > 0}
        return expected

    torch.manual_seed(0)
    written = model.generate(
        torch.tensor([prompt] * draws),
        attention_mask=torch.ones(draws, len(prompt), dtype=torch.long),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=2,
        logits_processor=LogitsProcessorList([ForkedTemperature(Temperatures(*settings))]),
    )[:, len(prompt) :].tolist()

    def p_value(expected):
        counts = Counter(map(tuple, written))
        assert counts.keys() <= expected.keys()
        cells = [(counts[pair], draws * p) for pair, p in expected.items()]
        # The test takes cells of a few draws or more: the others are one.
        large, small = ([cell for cell in cells if (cell[1] >= 10) == big] for big in (True, False))
        found, wanted = zip(*large, tuple(map(sum, zip(*small, strict=True))), strict=True)
        assert sum(wanted) == pytest.approx(draws)
        return stats.chisquare(found, np.array(wanted) * draws / sum(wanted)).pvalue

    assert p_value(pairs(settings)) > 0.001
    assert p_value(pairs((1.4, 0.5, threshold))) < 1e-6, "what a slightly wrong temperature would give"


@pytest.mark.parametrize("values", [(-1.0, 1.0, 0.5), (1.0, float("nan"), 0.5), (1.0, 1.0, float("inf")), ("2", 1, 1)])
def test_bad_temperatures_are_refused(values):
    with pytest.raises(ValueError, match=r"it must be a finite number, 0 or more"):
        Temperatures(*values)
