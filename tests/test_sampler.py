"""The sampler against softmax and transformers' own warpers, and the transformers backend against greedy search."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from entropy_grpo.evaluation.backends.base import Request, Sampling
from entropy_grpo.evaluation.backends.transformers import TransformersBackend
from entropy_grpo.evaluation.decoding.seeded import SeededSampler, distribution, draw, uniforms
from entropy_grpo.models.load import load_model

VOCABULARY = 23


def logits(rows=4):
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize(
    "temperature, top_p, top_k", list(itertools.product((0.6, 1.0, 2.5), (0.3, 0.95, 1.0), (0, 1, 5)))
)
def test_distribution_is_that_of_transformers_warpers(temperature, top_p, top_k):
    scores = TemperatureLogitsWarper(temperature)(None, logits().double()) if temperature != 1 else logits().double()
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    found = distribution(logits(), temperature, top_p, top_k)
    found = found / found.sum(-1, keepdim=True)
    torch.testing.assert_close(found, scores.softmax(-1), rtol=1e-12, atol=1e-15)


def test_equal_probabilities_are_kept_by_id_until_p_is_reached():
    found = distribution(torch.zeros(1, 8), 1.0, 0.5, 0)
    assert found[0].tolist() == [0.125] * 4 + [0.0] * 4


def test_draw_inverts_the_distribution_function():
    """Over an even grid of uniform numbers every token comes up as often as its probability says, give or take one."""
    probabilities = distribution(logits(1), 0.7, 0.9, 0)
    share = (probabilities / probabilities.sum()).squeeze(0)
    grid = (torch.arange(10007, dtype=torch.float64)[:, None] + 0.5) / 10007
    counts = draw(probabilities.expand(10007, -1), grid).bincount(minlength=VOCABULARY)
    assert ((counts - share * 10007).abs() <= 1).all()
    assert (counts[share == 0] == 0).all()


def test_ends_of_the_unit_interval_draw_tokens_that_have_a_probability():
    probabilities = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]], dtype=torch.float64).expand(3, -1)
    ends = torch.tensor([[0.0], [0.3 / (0.3 + 0.7)], [1 - 2.0**-53]], dtype=torch.float64)
    assert draw(probabilities, ends).tolist() == [1, 3, 3]


def test_uniforms_are_philox_and_do_not_depend_on_their_number():
    expected = np.random.Generator(np.random.Philox(key=12345)).random(100)
    assert uniforms(12345, 100).tolist() == expected.tolist()
    assert uniforms(12345, 7).tolist() == expected[:7].tolist()
    assert not set(uniforms(12346, 100)) & set(expected)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.6, 0.95)])
@pytest.mark.parametrize("step", [0, 5])
def test_tokens_of_many_seeds_follow_softmax(temperature, top_p, step):
    count, width = 20000, 3
    sampler = SeededSampler(list(range(count)), width, step + 1, temperature, top_p, 0, torch.device("cpu"))
    scores = sampler(torch.zeros(count, width + step, dtype=torch.long), logits(1).expand(count, -1))
    counts = scores.argmax(-1).bincount(minlength=VOCABULARY).numpy()
    # By hand: the most probable tokens until their probability reaches top_p.
    exact = np.exp(logits(1).double().numpy()[0] / temperature)
    exact /= exact.sum()
    order = sorted(range(VOCABULARY), key=lambda token: -exact[token])
    mass = 0.0
    for token in order:
        if mass >= top_p:
            exact[token] = 0.0
        mass += exact[token]
    expected = exact / exact.sum() * count
    assert (counts[expected == 0] == 0).all()
    likely = expected >= 5
    rest = [[x[~likely].sum()] if expected[~likely].sum() > 0 else [] for x in (counts, expected)]
    observed, wanted = (np.append(x[likely], r) for x, r in zip((counts, expected), rest, strict=True))
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


PROMPTS = ["go 15 to 8 need -7 with +7 -4 -1\n", "go 1 to", "go", "take +5 need 0 yes so", "go 2 to 3 need"]


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model, None, "float32")


def written(loaded, batch_size, sampling, samples=4):
    """Every response, in the order of the requests, and the sizes of the batches."""
    backend = TransformersBackend(*loaded, batch_size)
    requests = [Request(p, seed) for p, seed in itertools.product(PROMPTS, range(samples))]
    found = {}
    for part in backend.parts(requests):
        assert len(part) <= batch_size
        for place, response in backend.generate([requests[i] for i in part], sampling):
            assert part[place] not in found
            found[part[place]] = (response.text, response.tokens, response.finish)
    return [found[i] for i in range(len(requests))]


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=12), Sampling(0.6, 0.95, 7, 12)], ids=["plain", "cut"])
def test_responses_do_not_depend_on_the_batch(loaded, sampling):
    together = written(loaded, 20, sampling)
    assert written(loaded, 7, sampling) == written(loaded, 3, sampling) == together
    assert len(set(together)) > 15


@pytest.mark.parametrize("temperature", [0.6, 0.0])
def test_forked_decoding_at_one_temperature_is_that_temperature(loaded, temperature):
    forked = Sampling(max_tokens=12, t_high=temperature, t_low=temperature, entropy_threshold=4.5)
    assert written(loaded, 20, forked) == written(loaded, 20, Sampling(temperature, max_tokens=12))


def test_forked_decoding_draws_forks_and_others_differently(loaded):
    found = [
        written(loaded, 20, Sampling(max_tokens=12, t_high=high, t_low=low, entropy_threshold=4.5))
        for high, low in [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0)]
    ]
    assert all(a != b for a, b in itertools.combinations(found, 2))


@pytest.mark.parametrize(("high", "low"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.05, 3.0)])
def test_forked_decoding_chooses_each_token_as_the_formula_says(loaded, high, low):
    """Token by token in float64: the most probable token at temperature 0, else the inverse of the distribution."""
    (model, tokenizer), threshold, sides = loaded, 4.5, set()
    sampling = Sampling(max_tokens=12, t_high=high, t_low=low, entropy_threshold=threshold)
    found = iter(written(loaded, 20, sampling, samples=2))
    for prompt, seed in itertools.product(PROMPTS, range(2)):
        ids = tokenizer(prompt)["input_ids"]
        width = len(ids)
        for uniform in uniforms(seed, 12):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].double().numpy()
            p = np.exp(logits - logits.max())
            p /= p.sum()
            is_fork = -(p * np.log(p)).sum() > threshold
            sides.add(is_fork)
            temperature = high if is_fork else low
            if temperature:
                cumulative = np.exp((logits - logits.max()) / temperature).cumsum()
                ids.append(int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right")))
            else:
                ids.append(int(logits.argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert next(found)[:2] == (tokenizer.decode(ids[width:], skip_special_tokens=True), len(ids) - width)
    assert sides == {True, False}, "both temperatures were used"


def test_long_prompts_come_first(loaded):
    backend = TransformersBackend(*loaded, 2)
    parts = backend.parts([Request(p, 0) for p in PROMPTS])
    lengths = [len(ids) for ids in loaded[1](PROMPTS)["input_ids"]]
    order = [lengths[i] for part in parts for i in part]
    assert order == sorted(lengths, reverse=True)


def test_temperature_zero_is_greedy_search(loaded, tiny_model):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    for prompt, (text, tokens, finish) in zip(PROMPTS, written(loaded, 3, Sampling(0.0, 1.0, 0, 9), 1), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(
            input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], do_sample=False, max_new_tokens=9
        )[0, ids["input_ids"].shape[1] :].tolist()
        assert text == tokenizer.decode(out, skip_special_tokens=True)
        assert tokens == len(out)
        assert finish == ("stop" if out[-1] == tokenizer.eos_token_id else "length")


def test_responses_end_at_the_ends_of_a_turn(loaded):
    """A token that the model's configuration does not call EOS ends a response, and is counted."""
    model, tokenizer = loaded
    backend = TransformersBackend(model, tokenizer, 30)
    backend.stops = [*backend.stops, *range(3, 200)]
    model.generation_config.eos_token_id = backend.stops
    requests = [Request("go 1 to", seed) for seed in range(30)]
    found = dict(backend.generate(requests, Sampling(max_tokens=10)))
    free = dict(TransformersBackend(model, tokenizer, 30).generate(requests, Sampling(max_tokens=10)))
    assert found.keys() == set(range(30))
    for i, response in found.items():
        ids = tokenizer(free[i].text)["input_ids"]
        first = next((n for n, token in enumerate(ids) if token in backend.stops), None)
        assert response.finish == ("length" if first is None and free[i].finish == "length" else "stop")
        if first is not None:
            assert response.tokens == first + 1


def test_what_does_not_fit_the_positions_is_refused(loaded):
    backend = TransformersBackend(*loaded, 4)
    longest = max(len(ids) for ids in loaded[1](PROMPTS)["input_ids"])
    requests = [Request(p, 0) for p in PROMPTS]
    backend.check(requests, Sampling(max_tokens=128 - longest))
    with pytest.raises(ValueError, match=f"128 positions and the longest prompt has {longest} tokens: set it"):
        backend.check(requests, Sampling(max_tokens=129 - longest))


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_p": 0.0}, r"top_p is 0.0: it must lie in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"t_high": 1.2, "t_low": 1.0}, "t_high, t_low requests forked decoding, which also needs"),
        ({"t_high": -1.0, "t_low": 1.0, "entropy_threshold": 0.6}, "t_high is -1.0"),
        (
            {"temperature": 0.6, "t_high": 1.2, "t_low": 1.0, "entropy_threshold": 0.6},
            "temperature is 0.6, but forked",
        ),
    ],
)
def test_impossible_sampling_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Sampling(**wrong)
