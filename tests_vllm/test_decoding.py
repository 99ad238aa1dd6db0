"""Forked decoding in vLLM: its processor beside transformers' on the same logits, and what an engine samples from.

So are truncated distributions, beside those that the loss scores.
"""

import os

import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns as load_for_the_first_runner
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor.loader import (
    _load_v2_logitsprocs_by_fqcns as load_for_the_second_runner,
)

from entropy_grpo.evaluation.decoding import forked, vllm
from entropy_grpo.evaluation.decoding.forked import Temperatures
from entropy_grpo.models.truncation import Truncation

from .conftest import ENVIRONMENT

pytestmark = pytest.mark.timeout(600)


def params(temperatures: Temperatures | None, **more) -> SamplingParams:
    extra = temperatures and {
        "t_high": temperatures.t_high,
        "t_low": temperatures.t_low,
        "entropy_threshold": temperatures.threshold,
    }
    return SamplingParams(temperature=1.0, extra_args=extra, **more)


def test_rows_of_a_batch_as_by_transformers():
    """Requests come, go and move; each row is what transformers' processor makes of it, others stay as they are."""
    asked = [Temperatures(1.5, 0.5, 1.0), None, Temperatures(0.0, 2.0, 0.3), Temperatures(0.7, 1.0, 1.6), None]
    processor = vllm.ForkedTemperature(None, torch.device("cpu"), False)
    assert processor.is_argmax_invariant()

    def update(removed=(), added=(), moved=()):
        arrived = [(row, params(temperatures), [1], []) for row, temperatures in added]
        processor.update_state(BatchUpdate(len(asked), list(removed), arrived, list(moved)))

    def check(rows):
        processor.update_state(None)
        logits = torch.randn(len(rows), 13) * torch.tensor([[0.1], [3.0], [0.5], [1.0], [2.0]])[: len(rows)]
        expected = [
            forked.ForkedTemperature(temperatures)(None, row.unsqueeze(0))[0] if temperatures else row
            for temperatures, row in zip(rows, logits.clone(), strict=True)
        ]
        torch.testing.assert_close(processor.apply(logits.clone()), torch.stack(expected))

    torch.manual_seed(0)
    check([None] * 5)
    update(added=list(enumerate(asked)))
    check(asked)
    update(moved=[(0, 1, MoveDirectionality.SWAP)])
    check([asked[1], asked[0], *asked[2:]])
    update(removed=[2], moved=[(3, 2, MoveDirectionality.UNIDIRECTIONAL)])
    check([asked[1], asked[0], asked[3], None, asked[4]])
    update(removed=[1, 2])
    check([None] * 5)


NAME = "entropy_grpo.evaluation.decoding.vllm:ForkedTemperature"


def test_both_model_runners_load_it_by_its_name():
    """vLLM decides by machine and settings which of them runs, and each refuses a class without its own interface."""
    assert load_for_the_first_runner([NAME]) == load_for_the_second_runner([NAME]) == [vllm.ForkedTemperature]


def test_slots_of_the_second_model_runner_as_by_transformers():
    """The runner for GPUs, whose rows are slots in any order, several of one request with drafts; slots are reused."""
    states = LogitsProcRequestState(torch.device("cpu"), 6, 13, None, None, None, None)
    processor = vllm.ForkedTemperature(None, states)
    slots: dict[int, Temperatures | None] = {}

    def add(slot, temperatures):
        assert processor.add_request(slot, params(temperatures)) == (temperatures is not None)
        slots[slot] = temperatures

    def check(rows):
        processor.apply_staged_writes()
        mapping = torch.tensor(rows, dtype=torch.int32)
        ctx = LogitsContext(mapping, mapping, mapping.numpy(), None, None, None, None)
        logits = torch.randn(len(rows), 13) * torch.tensor([[0.1], [3.0], [0.5], [1.0]])[: len(rows)]
        expected = [
            forked.ForkedTemperature(slots[slot])(None, row.unsqueeze(0))[0] if slots[slot] else row
            for slot, row in zip(rows, logits.clone(), strict=True)
        ]
        torch.testing.assert_close(processor.apply(logits.clone(), ctx), torch.stack(expected))

    torch.manual_seed(0)
    add(4, None)
    check([4])
    add(2, Temperatures(1.5, 0.5, 1.0))
    add(0, Temperatures(0.0, 2.0, 0.3))
    check([2, 4, 0])
    check([0, 2, 2, 4])
    check([4])
    add(2, None)
    add(4, Temperatures(0.7, 1.0, 1.6))
    check([4, 2, 0])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"temperature": 0.6, "extra_args": {"t_high": 1, "t_low": 1, "entropy_threshold": 1}}, "temperature is 0.6"),
        ({"temperature": 1.0, "extra_args": {"t_high": 1}}, "t_low, entropy_threshold is missing"),
        ({"temperature": 1.0, "extra_args": {"t_high": -1, "t_low": 1, "entropy_threshold": 1}}, "t_high is -1"),
    ],
)
def test_requests_that_cannot_be_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        vllm.ForkedTemperature.validate_params(SamplingParams(**arguments))


@pytest.fixture(scope="module")
def llm(model):
    """An engine that gives the log-probabilities of all tokens."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setitem(os.environ, name, value)
        yield LLM(
            model,
            dtype="float32",
            max_model_len=64,
            enforce_eager=True,
            logits_processors=[NAME],
            logprobs_mode="processed_logprobs",
            max_logprobs=-1,
        )


PROMPTS = [[5, 60, 7], [9, 30, 31, 32], [80, 4]]


def write(llm, settings):
    """(prompt, written ids, (T, V) log-probabilities) of a request for each of the settings."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(settings))]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
    for ids, output in zip(prompts, outputs, strict=True):
        rows = [[found[token].logprob for token in range(len(found))] for found in output.outputs[0].logprobs]
        yield ids, list(output.outputs[0].token_ids), torch.tensor(rows)


def logits_after(policy, ids, written):
    with torch.no_grad():
        return policy(torch.tensor([ids + written])).logits[0, len(ids) - 1 : -1]


def test_engine_samples_from_the_formula(model, llm):
    """All log-probabilities that the engine samples from, against transformers' logits through `decoding.scale`."""
    asked = [Temperatures(1.8, 0.6, 4.65), None, Temperatures(0.5, 1.4, 4.6)]
    policy, sides = AutoModelForCausalLM.from_pretrained(model), []
    given = [params(t, max_tokens=12, seed=i, logprobs=-1, ignore_eos=True) for i, t in enumerate(asked)]
    for temperatures, (ids, written, sampled) in zip(asked, write(llm, given), strict=True):
        logits = logits_after(policy, ids, written)
        if temperatures:
            sides += (forked.entropies(logits) > temperatures.threshold).tolist()
            logits = forked.ForkedTemperature(temperatures)(None, logits)
        torch.testing.assert_close(sampled, logits.log_softmax(-1), atol=2e-3, rtol=1e-3)
    assert {True, False} == set(sides), "both temperatures were used"


CUTS = [{"top_p": 0.6}, {"top_k": 5}, {"min_p": 0.5}, {"top_p": 0.7, "top_k": 12}, {"top_k": 5, "min_p": 0.3}]
CUTS += [{"top_p": 0.7, "min_p": 0.4}, {"top_p": 0.7, "top_k": 12, "min_p": 0.4}, {"top_p": 1e-6}, {}]


def test_an_engine_samples_from_the_truncated_distributions_that_the_loss_scores(model, llm):
    """Whole distributions, -inf where a token is cut off; several settings in one batch."""
    policy, temperature = AutoModelForCausalLM.from_pretrained(model), 0.3
    common = {"temperature": temperature, "max_tokens": 12, "logprobs": -1, "ignore_eos": True}
    given = [SamplingParams(seed=i, **common, **cut) for i, cut in enumerate(CUTS)]
    for cut, (ids, written, sampled) in zip(CUTS, write(llm, given), strict=True):
        scored = Truncation(**cut, min_p_first=True).log_probs(
            logits_after(policy, ids, written) / temperature, torch.tensor(written)
        )
        assert torch.equal(sampled.isinf(), scored.isinf()), cut
        torch.testing.assert_close(sampled, scored, atol=2e-3, rtol=1e-3)
        assert scored.isinf().any() == bool(cut)
