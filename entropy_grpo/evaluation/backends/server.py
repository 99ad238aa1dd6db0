"""Responses from a running server with OpenAI's completions API (`vllm serve`, SGLang, llama.cpp), by its URL.

The server decides which tokens end a response. `vllm serve` also applies the sampling settings of the model's
generation configuration (top_k, penalties), unless it was started with `--generation-config vllm`.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from .base import Request, Response, Sampling

TRIES = 6
FIRST_PAUSE = 0.5
# Timeout of one response; the longest responses take hours on a busy server.
SECONDS = 6 * 3600.0


def find_served(models: Sequence[Mapping[str, Any]], model: str) -> str | None:
    """Return the id of a model among a server's models; None if none of them fits.

    A server names a model by its path, or by its last part. The list of vLLM also has the path (`root`) of a model
    with another name, such as an adapter, which stands behind its base.

    Args:
        models: entries of the server's list.
        model: Hub id or folder.
    """
    place = Path(model).resolve()
    for one in models:
        if any(Path(name).resolve() == place for name in (one["id"], one.get("root")) if name):
            return one["id"]
    return next((one["id"] for one in models if one["id"] == place.name), None)


class ServerBackend:
    """Backend for a running server.

    Parameters:
        url: URL with or without `/v1`.
        concurrency: maximum number of concurrent requests.
        model: Hub id or folder of the evaluated model. A server of one model with another name is taken at its word.

    Raises:
        ValueError: no server answers, or it serves several models and none of them fits.
    """

    in_batches = False

    def __init__(self, url: str, concurrency: int, model: str):
        self.name = url.rstrip("/").removesuffix("/v1")
        self.concurrency = concurrency
        limits = httpx.Limits(max_connections=concurrency)
        self.client = httpx.Client(
            base_url=f"{self.name}/v1", timeout=httpx.Timeout(SECONDS, connect=10), limits=limits
        )
        try:
            models = self._ask("GET", "/models")["data"]
            ids, found = [one["id"] for one in models], find_served(models, model)
            self.served = ids[0] if found is None else found
        except (ValueError, KeyError, IndexError, TypeError) as error:
            reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
            raise ValueError(
                f"backend is {url!r}, but no server there names its model ({reason.rstrip('.'):.200}): start one, or "
                "correct the URL."
            ) from error
        if found is None and len(ids) > 1:
            raise ValueError(
                f"model is {model!r}, but the server {self.name} serves {', '.join(map(repr, ids))}: name one of them."
            )
        if found is None:
            print(f"model is {model!r}, and the server {self.name} serves {self.served!r}", file=sys.stderr)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and return the reply; a busy or unreachable server is asked again after growing pauses."""
        reason = ""
        for attempt in range(TRIES):
            try:
                reply = self.client.request(method, path, json=body)
            except httpx.TransportError as error:
                reason = str(error)
            else:
                if reply.is_success:
                    return reply.json()
                reason = f"{reply.status_code} {reply.text:.200}"
                if reply.status_code != 429 and reply.status_code < 500:
                    raise ValueError(f"backend {self.name} refused a request: {reason}")
            time.sleep(FIRST_PAUSE * 2**attempt)
        raise ValueError(
            f"backend {self.name} did not answer {TRIES} times ({reason}): run the same command again when it answers."
        )

    def check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """Check nothing, because the server itself refuses requests that it cannot serve."""

    def parts(self, requests: Sequence[Request]) -> list[list[int]]:
        """Return one part per request, because the server forms its own batches."""
        return [[i] for i in range(len(requests))]

    def _response(self, request: Request, sampling: Sampling) -> Response:
        body = {
            "model": self.served,
            "prompt": request.prompt,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed,
        }
        if sampling.top_k:  # not a parameter of OpenAI's API
            body["top_k"] = sampling.top_k
        if sampling.forked:  # for a server with the logits processor `evaluation.decoding.vllm:ForkedTemperature`
            body["vllm_xargs"] = sampling.forked
        start = time.perf_counter()
        reply = self._ask("POST", "/completions", body)
        choice = reply["choices"][0]
        return Response(
            choice["text"],
            reply["usage"]["completion_tokens"],
            choice["finish_reason"],
            time.perf_counter() - start,
        )

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Response]]:
        """Yield responses as they arrive."""
        waiting = iter(enumerate(requests))
        with ThreadPoolExecutor(self.concurrency) as pool:
            running = {pool.submit(self._response, r, sampling): i for i, r in islice(waiting, self.concurrency)}
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
                    running |= {pool.submit(self._response, r, sampling): i for i, r in islice(waiting, 1)}
