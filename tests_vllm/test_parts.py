"""A rollout of a real server by requests of a group, beside TRL's one request for all of it."""

import tracemalloc

import httpx
import pytest
import torch

from entropy_grpo.training import server as served
from tests.served import generation_of

pytestmark = pytest.mark.timeout(600)

TOKENS, SIZE = 12, 4
WHOLE = {"ignore_eos": True}


def client(generation):
    """TRL's client, which knows the model's name."""
    client = generation.vllm_client
    client.model = httpx.get(f"{client.base_url}/v1/models").json()["data"][0]["id"]
    return client


@pytest.mark.parametrize("most", [4, 3])  # a group, or a piece of a group
def test_parts_are_the_rollout_of_one_request(server, tmp_path, monkeypatch, most):
    prompts = [[5 + i // SIZE, 30, 9] for i in range(5 * SIZE)]
    monkeypatch.setattr(served, "REPLY_BYTES", most * TOKENS * served.TOKEN_BYTES)
    found = []
    for in_parts in (False, True):
        generation = generation_of(f"http://127.0.0.1:{server}", TOKENS, seed=3)
        client(generation)
        if in_parts:
            served.InParts(generation, 60.0, tmp_path, 64)
        found.append(generation.generate(prompts, None, SIZE))
    whole, parts = found
    assert parts[0] == whole[0] and parts[1] == whole[1] and parts[3] == whole[3]
    assert len({tuple(ids) for ids in whole[1]}) > 5 * SIZE / 2
    for one, other in zip(whole[2], parts[2], strict=True):
        torch.testing.assert_close(torch.tensor(other), torch.tensor(one), atol=1e-4, rtol=0)


def engine_steps(url):
    """Steps of the server's engine so far."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:iteration_tokens_total_count"))


def test_the_engine_batches_requests_as_it_batches_prompts(server, tmp_path):
    """8 requests of a group at a time take hardly more steps than one of all; one at a time, 8 times as many.

    The best of five tries counts, since on a busy machine requests arrive while others are written.
    """
    url, longest = f"http://127.0.0.1:{server}", 100
    prompts = [[5 + i // SIZE, 31, 9] for i in range(8 * SIZE)]

    def steps(requests):
        generation = generation_of(url, longest, ignore_eos=True)
        client(generation)
        if requests is not None:
            served.InParts(generation, 60.0, tmp_path, requests)
        before = engine_steps(url)
        assert sum(map(len, generation.generate(prompts, None, SIZE)[1])) == len(prompts) * longest
        return engine_steps(url) - before

    whole, together, alone = steps(None), [steps(8) for _ in range(5)], steps(1)
    print(f"steps of the engine: one request {whole}, 8 at a time {together}, one at a time {alone}")
    assert longest <= min(together) < 2 * whole
    assert alone > 7 * whole


def test_a_reply_takes_the_memory_that_is_counted_on(server):
    """Of a generated token, with its share of the prompt, in the reply and in what TRL makes of it."""
    whole = client(generation_of(f"http://127.0.0.1:{server}", 100))
    tracemalloc.start()
    reply = whole.generate([[5, 30, 9 + i] for i in range(8)], n=16, max_tokens=100, generation_kwargs=WHOLE)
    size = tracemalloc.get_traced_memory()[1] / sum(map(len, reply["completion_ids"]))
    tracemalloc.stop()
    print(f"{size:.0f} bytes a token")
    assert served.TOKEN_BYTES / 2 < size < served.TOKEN_BYTES
