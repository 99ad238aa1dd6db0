"""A rollout of a real server in parts, beside TRL's one request for all of it."""

import tracemalloc

import httpx
import pytest
import torch

from entropy_grpo.training import server as served
from tests.served import generation_of

pytestmark = pytest.mark.timeout(600)

TOKENS, SIZE = 12, 4
WHOLE = {"ignore_eos": True}


@pytest.mark.parametrize("most", [4, 8, 3])  # one group a request, two groups, pieces of a group
def test_parts_are_the_rollout_of_one_request(server, tmp_path, monkeypatch, most):
    prompts = [[5 + i // SIZE, 30, 9] for i in range(5 * SIZE)]
    monkeypatch.setattr(served, "REPLY_BYTES", most * TOKENS * served.TOKEN_BYTES)
    found = []
    for in_parts in (False, True):
        generation = generation_of(f"http://127.0.0.1:{server}", TOKENS, seed=3)
        generation.vllm_client.model = httpx.get(f"http://127.0.0.1:{server}/v1/models").json()["data"][0]["id"]
        if in_parts:
            served.InParts(generation, 60.0, tmp_path)
        found.append(generation.generate(prompts, None, SIZE))
    whole, parts = found
    assert parts[0] == whole[0] and parts[1] == whole[1] and parts[3] == whole[3]
    assert len({tuple(ids) for ids in whole[1]}) > 5 * SIZE / 2
    for one, other in zip(whole[2], parts[2], strict=True):
        torch.testing.assert_close(torch.tensor(other), torch.tensor(one), atol=1e-4, rtol=0)


def test_a_reply_takes_the_memory_that_is_counted_on(server):
    """Of a generated token, with its share of the prompt, in the reply and in what TRL makes of it."""
    client = generation_of(f"http://127.0.0.1:{server}", 100).vllm_client
    client.model = httpx.get(f"{client.base_url}/v1/models").json()["data"][0]["id"]
    tracemalloc.start()
    reply = client.generate([[5, 30, 9 + i] for i in range(8)], n=16, max_tokens=100, generation_kwargs=WHOLE)
    size = tracemalloc.get_traced_memory()[1] / sum(map(len, reply["completion_ids"]))
    tracemalloc.stop()
    print(f"{size:.0f} bytes a token")
    assert served.TOKEN_BYTES / 2 < size < served.TOKEN_BYTES
