"""Rollouts from a vLLM server, with a request for each group.

TRL's first process asks the server for a whole rollout in one request, whose reply takes gigabytes, and the other
processes wait for it in one collective. Here every group is a request of its own, whose reply takes at most
`REPLY_BYTES`. The server has a bounded number of requests at a time. It batches the sequences of all of them in every
step of its engine, as it does those of one request. Every process receives a finished group at once, keeps its own
responses, and lets their grading begin while the server writes other groups. The first process reports at least every
`HEARTBEAT` seconds, so that no collective waits longer for the server.

Where a round of dynamic sampling follows, the server gets requests for its groups as soon as they are certain
(`foresight`). Their replies wait in the first process until the round begins.

TRL's own `generate` is called first, with a client that returns the number of every response in its place. The numbers
say which responses a process needs, and TRL's client fetches them afterwards, from `/v1/completions`. A reply of that
endpoint has the responses' text, too, some 5 of 95 bytes a token. The endpoint without text, `/inference/v1/generate`,
takes 165 bytes a token, and seven times the processor time.
"""

import copy
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from trl import GRPOConfig
from trl.generation.vllm_generation import VLLMGeneration

from ..runs import launched, seal
from ..runs.launched import Leave, ServerError

# Seconds between two looks whether the run is asked to stop, or is certain to ask for further groups.
HEARTBEAT = 1.0
REPLY_BYTES = 256 * 2**20
TOKEN_BYTES = 760  # of memory that a generated token takes in a parsed reply and TRL's lists; its JSON has about 90
SINGLES = 16  # responses to prompts of their own, such as continuations, that share a request
TRIES = 6  # of a request, while the server is healthy
CONNECT_SECONDS = 10.0
WATCH_SECONDS = 5.0  # between two looks at the server during a transfer of weights
FIRST_PAUSE = 0.5  # seconds between two tries, which double
LONGEST_PAUSE = 10.0
# Of TRL's reply: a list per response, or None.
COLUMNS = ("completion_ids", "logprobs", "logprob_token_ids")


@dataclass(frozen=True)
class Part:
    """Responses of one request: `count` from number `first` of the rollout on, `n` to each prompt."""

    first: int
    count: int
    n: int


def parts(total: int, size: int, tokens: int) -> Iterator[Part]:
    """Divide the responses of a rollout into requests.

    A request has one group, or a piece of a group that is too large by itself. Where a group is one response, a
    request has `SINGLES` of them.

    Args:
        total: responses of the rollout.
        size: responses of a group, which share a prompt.
        tokens: the longest response.
    """
    most = max(REPLY_BYTES // (TOKEN_BYTES * tokens), 1)
    if size <= most:
        step = size if size > 1 else min(most, SINGLES)
        yield from (Part(first, min(step, total - first), size) for first in range(0, total, step))
        return
    for group in range(0, total, size):
        for start in range(0, size, most):
            count = min(most, size - start)
            yield Part(group + start, count, count)


def from_first_process(
    work: Callable[[Callable[[Any], None]], None], leaves: Callable[[], bool] = lambda: False
) -> Iterator[Any]:
    """Yield on every process what `work` sends on the first process, where it runs in a thread.

    None is yielded whenever nothing has been sent for `HEARTBEAT` seconds.

    Args:
        work: called with the function that sends a message, and returns after the last one.
        leaves: whether the first process no longer wants messages.

    Raises:
        RuntimeError: `work` raised an error; raised on every process, as a `ServerError` if it was one.
        Leave: `leaves` was true; raised on every process.
    """
    messages: queue.SimpleQueue = queue.SimpleQueue()

    def run() -> None:
        try:
            work(lambda message: messages.put(("message", message)))
            messages.put(("end", None))
        except ServerError as error:
            messages.put(("error", error))
        except Exception:  # raised below, on all processes, which would otherwise wait for this one
            messages.put(("error", RuntimeError(traceback.format_exc())))

    is_first = PartialState().is_main_process
    if is_first:
        threading.Thread(target=run, daemon=True).start()
    while True:
        sent: list[Any] = [("message", None)]
        if is_first:
            with suppress(queue.Empty):
                sent = [messages.get(timeout=HEARTBEAT)]
            if leaves():
                sent = [("error", Leave())]
        broadcast_object_list(sent)
        kind, content = sent[0]
        if kind == "end":
            return
        if kind == "error":
            raise content
        yield content


class Server:
    """Connection of the first process to the server.

    Args:
        url: without a path.
        patience: seconds for which the server may be unhealthy or out of reach.
        requests: connections for requests at the same time, beside those for looks at the server.
    """

    def __init__(self, url: str, patience: float, requests: int = 1):
        self.url, self.patience = url, patience
        self.instance: str | None = None
        # TRL's own session sends a request again without a look at the server, which may have other weights by then.
        # A request may wait in the server for as long as a rollout takes.
        self.client = httpx.Client(
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=requests, max_keepalive_connections=requests),
        )
        # Requests of a round may hold all connections of `client` for as long as a response takes.
        self.looks = httpx.Client(timeout=CONNECT_SECONDS)

    def _get(self, path: str, **params: str) -> httpx.Response:
        return self.looks.get(f"{self.url}{path}", params=params)

    def wait(self) -> None:
        """Return when the server is healthy.

        Raises:
            ServerError: it is not within `patience`, or it was started again since the first call.
        """
        limit, pause = time.monotonic() + self.patience, FIRST_PAUSE
        while True:
            try:
                reply = self._get("/health")
                if reply.is_success:
                    return self._check_instance()
                reason = f"status {reply.status_code}"
            except httpx.HTTPError as error:
                reason = type(error).__name__
            if time.monotonic() + pause > limit:
                raise ServerError(
                    f"the vLLM server at {self.url} has not answered for {self.patience:g} s ({reason}): start it, or "
                    "name another with vllm_server_host, vllm_server_port or vllm_server_base_url."
                )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _check_instance(self) -> None:
        reply = self._get("/server_info", config_format="json")
        instance = reply.json()["vllm_config"].get("instance_id") if reply.is_success else None
        if None not in (self.instance, instance) and instance != self.instance:
            raise ServerError(
                f"the vLLM server at {self.url} was started again during the run and no longer has the policy's "
                "weights: end the run and continue it with resume_from_checkpoint, which sends them."
            )
        self.instance = self.instance or instance

    def check_length(self, needed: int | None) -> None:
        """Refuse a server whose sequences are shorter than a prompt and its response."""
        served = self._get("/v1/models").json()["data"][0].get("max_model_len")
        if None not in (needed, served) and served < needed:
            raise ServerError(
                f"the vLLM server at {self.url} serves sequences of up to {served} tokens, and a prompt and its "
                f"response have up to {needed}: start it with --max-model-len {needed}."
            )

    def post(self, url: str, **kwargs: Any) -> dict[str, Any]:
        """Send one request, as TRL's `VLLMClient._post` does.

        Raises:
            ServerError: the server refuses it.
            httpx.HTTPError: it failed, and may be sent again.
        """
        reply = self.client.post(url, **kwargs)
        if 400 <= reply.status_code < 500 and reply.status_code != 429:
            raise ServerError(
                f"vllm_mode is server, but the vLLM server at {self.url} refuses a request with status "
                f"{reply.status_code}: {reply.text:.300}"
            )
        reply.raise_for_status()
        return reply.json()

    def insist(self, ask: Callable[[], Any]) -> Any:
        """Call `ask` until it does not fail, up to `TRIES` times while the server is healthy."""
        for attempt in range(TRIES):
            try:
                return ask()
            except httpx.HTTPError as error:
                reason = f"{error!r:.300}"
            time.sleep(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE))
            self.wait()
        raise ServerError(
            f"vllm_mode is server, but the vLLM server at {self.url} is healthy and failed {TRIES} times at one "
            f"request ({reason}): its log states the cause."
        )


def check_server(args: GRPOConfig) -> None:
    """Wait for the server that a recipe names, on the first process, and refuse one that cannot serve the recipe.

    Raises:
        ServerError: on every process.
    """
    if not args.use_vllm or args.vllm_mode != "server":
        return
    url = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
    server = Server(url.rstrip("/"), args.vllm_server_timeout)

    def check(send: Callable[[Any], None]) -> None:
        server.wait()
        server.check_length(args.vllm_max_model_length)

    for _ in from_first_process(check):
        pass


@dataclass(frozen=True)
class Rollout:
    """Rollout as TRL asks its client for it.

    Attributes:
        prompts: token ids, one list per group.
        features: images of the prompts, or None.
        size: responses to each prompt.
        sampling: further arguments of TRL's `VLLMClient.generate`.
    """

    prompts: list[list[int]]
    features: list[Any] | None
    size: int
    sampling: dict[str, Any]

    def parts(self) -> list[Part]:
        """Divide the rollout into requests."""
        return list(parts(len(self.prompts) * self.size, self.size, self.sampling["max_tokens"]))

    def request(self, part: Part) -> dict[str, Any]:
        """Return the arguments of TRL's `VLLMClient.generate` for a part."""
        group, skipped = divmod(part.first, self.size)
        prompts = slice(group, group + part.count // part.n)
        own = dict(self.sampling["generation_kwargs"] or {})
        if "seed" in own:  # vLLM gives response i of a request this seed + i
            own["seed"] += skipped
        features = None if self.features is None else self.features[prompts]
        sampling = self.sampling | {"generation_kwargs": own}
        return {"prompts": self.prompts[prompts], "features": features, "n": part.n, **sampling}


@dataclass(eq=False)
class Asked:
    """A request to the server.

    Attributes:
        arguments: of TRL's `VLLMClient.generate`.
        reply: TRL's reply, or the error that came instead, or None before either.
    """

    arguments: dict[str, Any]
    reply: dict[str, list | None] | Exception | None = None


class Requests:
    """Requests of a round, and requests that were made before their round.

    Threads send them in order, and end when there are none. They are daemons, so that none of them delays the end of a
    run in which another thread failed.

    Args:
        ask: returns the reply to a request with these arguments.
        most: requests at a time.
    """

    def __init__(self, ask: Callable[..., dict[str, list | None]], most: int):
        self.ask, self.most = ask, most
        self.lock = threading.Lock()
        self.threads: set[threading.Thread] = set()
        self.unsent: deque[Asked] = deque()
        self.ahead: list[Asked] = []
        self.answered: queue.SimpleQueue[Asked] = queue.SimpleQueue()

    def _send(self) -> None:
        while True:
            with self.lock:
                if not self.unsent:
                    self.threads.discard(threading.current_thread())
                    return
                asked = self.unsent.popleft()
            try:
                asked.reply = self.ask(**asked.arguments)
            except Exception as error:  # raised by `replies`
                asked.reply = error
            self.answered.put(asked)

    def _add(self, asked: Asked) -> Asked:
        self.unsent.append(asked)
        if len(self.threads) < self.most:
            thread = threading.Thread(target=self._send, daemon=True)
            self.threads.add(thread)
            thread.start()
        return asked

    def foresee(self, arguments: dict[str, Any]) -> None:
        """Make a request for the next round."""
        with self.lock:
            self.ahead.append(self._add(Asked(arguments)))

    def make(self, arguments: dict[str, Any]) -> Asked:
        """Make a request of this round, unless it was made ahead."""
        with self.lock:
            asked = next((asked for asked in self.ahead if asked.arguments == arguments), None)
            if asked is None:
                return self._add(Asked(arguments))
            self.ahead.remove(asked)
        if asked.reply is not None:
            self.answered.put(asked)  # again, since the last round has passed over it
        return asked

    def replies(self, made: Sequence[Asked], silence: float) -> Iterator[tuple[int, dict[str, list | None]]]:
        """Yield the replies to these requests in the order of arrival, each with its number.

        Args:
            silence: seconds within which one of all requests must be answered.

        Raises:
            queue.Empty: none was.
        """
        missing = {asked: i for i, asked in enumerate(made)}
        while missing:
            asked = self.answered.get(timeout=silence)
            if isinstance(asked.reply, Exception):
                raise asked.reply
            if (number := missing.pop(asked, None)) is not None:
                reply, asked.reply = asked.reply, None  # a round has more replies than memory should hold
                yield number, reply

    def end(self) -> None:
        """Forget requests that were made ahead and that no round has needed, and return when the server has none."""
        self.unsent.clear()
        self.ahead.clear()
        for thread in list(self.threads):
            thread.join()
        self.answered = queue.SimpleQueue()


class InParts:
    """Replacement of two methods of TRL's `VLLMGeneration` in server mode, for rollouts in parts and healthy servers.

    Args:
        generation: whose `generate` and `sync_weights` are replaced.
        silence: seconds within which the server must answer one of its requests.
        run: folder of the run, which a sentence about a failed transfer names.
        most: requests that the server has at the same time.
        leaves: whether the run is asked to leave its rollout.
        arrived: called on every process with its responses of each reply, as (places among the process's prompts,
            token ids), in the order of arrival.
        further: called on every process after each reply and each heartbeat. It returns the token ids of prompts that
            the next call of `generate` is certain to have. The server gets requests for them at once.
    """

    def __init__(
        self,
        generation: VLLMGeneration,
        silence: float,
        run: Path,
        most: int,
        leaves: Callable[[], bool] = lambda: False,
        arrived: Callable[[list[int], list[list[int]]], None] = lambda places, ids: None,
        further: Callable[[], list[list[int]]] = list,
    ):
        self.silence, self.run = silence, run
        self.leaves, self.arrived, self.further = leaves, arrived, further
        self._number, self._synchronise = generation.generate, generation.sync_weights
        generation.generate = self.generate  # type: ignore[method-assign]  # of this object alone
        generation.sync_weights = self.sync_weights  # type: ignore[method-assign]  # of this object alone
        self.rollout: Rollout | None = None  # on the first process
        self.server: Server | None = None  # on the first process
        if generation.accelerator.is_main_process:
            client = generation.vllm_client
            self.server = Server(client.base_url, generation.server_timeout, most)
            asking = copy.copy(client)
            asking._post = self.server.post
            self._ask = asking.generate
            self.requests = Requests(self._reply, most)
            client.generate = self._take

    def _take(self, prompts: list, features: list | None = None, n: int = 1, **sampling: Any) -> dict[str, list]:
        """Keep the request of TRL, and return the number of every response in its place."""
        self.rollout = Rollout(prompts, features, n, sampling)
        numbers = list(range(len(prompts) * n))
        return {"prompt_ids": prompts} | dict.fromkeys(COLUMNS, numbers)

    def _reply(self, **arguments: Any) -> dict[str, list | None]:
        reply = self.server.insist(partial(self._ask, **arguments))
        return {name: reply[name] for name in COLUMNS}

    def _fetch(self, send: Callable[[Any], None]) -> None:
        """Send every part of the rollout as it comes from the server: (number of the first response, reply)."""
        self.server.wait()
        divided = self.rollout.parts()
        made = [self.requests.make(self.rollout.request(part)) for part in divided]
        try:
            for i, reply in self.requests.replies(made, self.silence):
                send((divided[i].first, reply))
        except queue.Empty:
            raise ServerError(
                f"the vLLM server at {self.server.url} has answered no request for {self.silence:g} s: look after it, "
                "or raise ddp_timeout if its responses take that long."
            ) from None
        except Exception:
            self.requests.unsent.clear()
            raise

    def _ask_ahead(self, prompts: list[list[int]]) -> None:
        """Let the first process ask for the groups of prompts that the next round asks for."""
        if self.server is not None and prompts:
            ahead = replace(self.rollout, prompts=prompts)
            for part in ahead.parts():
                self.requests.foresee(ahead.request(part))

    def generate(
        self, prompts: list[list[int]], images: list | None, num_generations: int, profiler: Any = None
    ) -> tuple[list, list, list | None, list | None]:
        """Return what TRL's `VLLMGeneration.generate` returns."""
        prompt_ids, numbers, *_ = self._number(prompts, images, num_generations)
        places, absent = {i: place for place, i in enumerate(numbers)}, set()
        found: dict[str, dict[int, Any]] = {name: {} for name in COLUMNS}
        with profiler or nullcontext():
            for message in from_first_process(self._fetch, self.leaves):
                if message is not None:
                    first, reply = message
                    absent |= {name for name, values in reply.items() if values is None}
                    own = [i for i in range(first, first + len(reply["completion_ids"])) if i in places]
                    for name in reply.keys() - absent:
                        found[name] |= {i: reply[name][i - first] for i in own}
                    if own:
                        self.arrived([places[i] for i in own], [found["completion_ids"][i] for i in own])
                self._ask_ahead(self.further())
        return prompt_ids, *(None if name in absent else [found[name][i] for i in numbers] for name in COLUMNS)

    def _ready(self, send: Callable[[Any], None]) -> None:
        """Return when the server is healthy and writes nothing under the present weights."""
        self.server.wait()
        self.requests.end()

    def sync_weights(self) -> None:
        """Send the weights, if the server is healthy: a transfer to one that has gone would never end."""
        for _ in from_first_process(self._ready):
            pass
        over = threading.Event()
        if self.server is not None:
            threading.Thread(target=self._watch, args=(over,), daemon=True).start()
        try:
            self._synchronise()
        finally:
            over.set()

    def _watch(self, over: threading.Event) -> None:
        """End the process if the server goes during a transfer of weights, which would then wait without end.

        No checkpoint is written: the other processes wait in collectives of the transfer, too.
        """
        while not over.wait(WATCH_SECONDS):
            try:
                self.server.wait()
            except ServerError as error:
                if not over.is_set():
                    reason = str(error).partition(": ")[0]
                    advice = f"start the server again, and {seal.continuation(self.run)}"
                    launched.end_at_once(1, f"error: during a transfer of weights, {reason}: {advice}.")
