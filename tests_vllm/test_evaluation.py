"""Responses of a real vLLM, in this process and as a server, against those of transformers, on a processor.

The engine is started in a process of its own, which gives what it wrote as JSON.
"""

import json

import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_grpo.evaluation.backends.base import Request, Sampling
from entropy_grpo.evaluation.backends.server import ServerBackend
from entropy_grpo.evaluation.backends.transformers import TransformersBackend
from entropy_grpo.models.load import load_model

from .conftest import run_python

pytestmark = pytest.mark.timeout(900)

PROMPTS = ["go 15 to 8 need -7 with +7 -4 -1\n", "go 1 to 9", "take +5 need"]
GREEDY, DRAWN, ONE = Sampling(0.0, max_tokens=12), Sampling(0.8, 0.95, max_tokens=12), Sampling(0.6, max_tokens=1)
FORKED = Sampling(max_tokens=12, t_high=0.0, t_low=0.0, entropy_threshold=4.5)
MANY = 2000

ENGINE = """
import json, sys
from entropy_grpo.evaluation.backends.base import Request, Sampling
from entropy_grpo.evaluation.backends.vllm import VllmBackend

if __name__ == "__main__":
    backend = VllmBackend(sys.argv[1], None, "float32", 1, enforce_eager=True, max_model_len=128)
    found = []
    for requests, sampling in json.load(sys.stdin):
        requests, sampling = [Request(*r) for r in requests], Sampling(**sampling)
        backend.check(requests, sampling)
        written = dict(backend.generate(requests, sampling))
        found.append([(written[i].text, written[i].tokens, written[i].finish) for i in range(len(requests))])
    found.append(backend.write(*json.loads(sys.argv[3]), Sampling(0.0)))
    json.dump(found, open(sys.argv[2], "w"))
"""
# Beginnings of different lengths, seeds, and numbers of tokens.
BEGUN = [[5, 30, 9], [7], [60, 4, 4, 4, 31, 80]], [1, 2, 3], [12, 3, 1]


def requests_of(prompts, seeds):
    return [Request(prompt, seed) for prompt in prompts for seed in seeds]


def wanted():
    """What is asked of the engine, in this order."""
    drawn = requests_of(PROMPTS, range(4))
    return [
        (requests_of(PROMPTS, [0]), GREEDY),
        (drawn, DRAWN),
        (drawn[::-1], DRAWN),
        (requests_of(PROMPTS[:1], range(MANY)), ONE),
        (requests_of(PROMPTS, [0]), FORKED),
    ]


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    (folder / "engine.py").write_text(ENGINE)
    asked = [([(r.prompt, r.seed) for r in requests], vars(sampling)) for requests, sampling in wanted()]
    program = [str(folder / "engine.py"), model, str(folder / "found.json"), json.dumps(BEGUN)]
    run_python(*program, given=json.dumps(asked))
    *answers, written = json.loads((folder / "found.json").read_text())
    return [*([tuple(one) for one in found] for found in answers), written]


@pytest.fixture(scope="module")
def greedy(model):
    backend = TransformersBackend(*load_model(model, None, "float32"), len(PROMPTS))
    written = dict(backend.generate(requests_of(PROMPTS, [0]), GREEDY))
    return [(written[i].text, written[i].tokens, written[i].finish) for i in range(len(PROMPTS))]


def test_greedy_responses_are_those_of_transformers(engine, greedy):
    assert engine[0] == greedy


def test_continued_ids_are_those_of_transformers(engine, model):
    backend = TransformersBackend(*load_model(model, None, "float32"), len(BEGUN[0]))
    assert engine[5] == backend.write(*BEGUN, Sampling(0.0))
    assert [len(ids) for ids in engine[5]][1:] == [3, 1]


def test_forked_decoding_without_temperature_is_greedy(engine, greedy):
    assert engine[4] == greedy


def test_a_seed_decides_a_response(engine):
    assert engine[1] == engine[2][::-1]
    assert len(set(engine[1])) > 6


def test_seeds_draw_from_softmax(engine, model):
    ids = AutoTokenizer.from_pretrained(model)(PROMPTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(ids).logits[0, -1].double()
    tokenizer = AutoTokenizer.from_pretrained(model)
    expected: dict[str, float] = {}
    for token, share in enumerate((logits / ONE.temperature).softmax(-1).tolist()):
        text = tokenizer.decode([token], skip_special_tokens=True)
        expected[text] = expected.get(text, 0.0) + share * MANY
    likely = [text for text, count in expected.items() if count >= 5]
    texts = [text for text, *_ in engine[3]]
    observed = [texts.count(text) for text in likely]
    rest = MANY - sum(observed), MANY - sum(expected[text] for text in likely)
    assert stats.chisquare([*observed, rest[0]], [*(expected[t] for t in likely), rest[1]]).pvalue > 1e-3


def test_a_server_answers_like_the_engine(server, model, greedy):
    backend = ServerBackend(f"http://127.0.0.1:{server}", 3, str(model))
    written = dict(backend.generate(requests_of(PROMPTS, [0]), GREEDY))
    assert [(written[i].text, written[i].tokens, written[i].finish) for i in range(len(PROMPTS))] == greedy
    drawn = requests_of(PROMPTS, range(4))
    one, other = (dict(backend.generate(requests, DRAWN)) for requests in (drawn, drawn[::-1]))
    assert [one[i].text for i in range(12)] == [other[11 - i].text for i in range(12)]
