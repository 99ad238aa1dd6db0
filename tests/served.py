"""A stand-in for `vllm serve` whose responses follow from the request, and TRL's generation from it in two processes.

Run by torchrun: served.py FOLDER_OF_REPORTS, or by itself: served.py FOLDER_OF_A_RUN transfer
"""

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import httpx
import torch
from accelerate import PartialState
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from entropy_grpo.runs.launched import ServerError
from entropy_grpo.training import server

VOCABULARY = range(3, 57)


class StandIn(ThreadingHTTPServer):
    """Answers what TRL's client asks of `vllm serve`.

    Attributes:
        asked: the completion requests, in order.
        fails: called with the number of a completion request; what it returns is the status of the reply, or 0 for a
            connection that is closed without one, or None for an answer.
        delay: seconds that an answer takes.
    """

    daemon_threads = True

    def __init__(self, longest: int = 7, tokens: range = VOCABULARY):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict] = []
        self.fails: Callable[[int], int | None] = lambda number: None
        self.delay, self.longest, self.tokens = 0.0, longest, tokens
        self.lock, self.instance = threading.Lock(), str(time.time_ns())
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield self
        finally:
            self.stop()

    def stop(self):
        """No longer listen, as a server that has ended."""
        self.shutdown()
        self.server_close()

    def complete(self, body: dict) -> dict:
        """As many tokens as a response has, and their log-probabilities, drawn from prompt, seed and place."""
        choices = []
        for prompt in body["prompt"]:
            for place in range(body["n"]):
                rng = random.Random(f"{prompt}-{body.get('seed', 0) + place}")
                ids = [rng.choice(self.tokens) for _ in range(rng.randint(1, self.longest))]
                names, logps = [f"token_id:{i}" for i in ids], [-rng.random() for _ in ids]
                tops = [{name: logp} for name, logp in zip(names, logps, strict=True)]
                logprobs = {"tokens": names, "token_logprobs": logps, "top_logprobs": tops}
                choices.append({"prompt_token_ids": prompt, "token_ids": ids, "logprobs": logprobs})
        return {"choices": choices}


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        path = self.path.split("?")[0]
        config = {"instance_id": self.server.instance, "model_config": {"logprobs_mode": "processed_logprobs"}}
        models = {"data": [{"id": "stand-in", "max_model_len": 128}]}
        self.answer({"/v1/models": models, "/server_info": {"vllm_config": config}}.get(path, {}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        if self.path != "/v1/completions":
            self.answer({"success": True})
            return
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(body)
        status = self.server.fails(number)
        if status == 0:
            self.close_connection = True
        elif status is not None:
            self.answer({}, status)
        else:
            time.sleep(self.server.delay)
            self.answer(self.server.complete(body))

    def log_message(self, *args):
        pass


def client_of(url: str) -> VLLMClient:
    """TRL's client, which by itself asks for an installed vLLM."""
    client = VLLMClient.__new__(VLLMClient)
    client.base_url, client.model = url, "stand-in"
    client._post = lambda path, **kwargs: httpx.post(path, timeout=60, **kwargs).raise_for_status().json()
    return client


def generation_of(url: str, tokens: int, **sampling) -> VLLMGeneration:
    """TRL's generation in server mode, without a model whose weights it would send."""
    state, generation = PartialState(), VLLMGeneration.__new__(VLLMGeneration)
    generation.accelerator = SimpleNamespace(is_main_process=state.is_main_process, process_index=state.process_index)
    generation.mode, generation.server_timeout, generation.max_completion_length = "server", 3.0, tokens
    generation.temperature, generation.top_p, generation.top_k, generation.min_p = 1.0, 1.0, 0, None
    generation.repetition_penalty, generation.logprobs, generation.structured_outputs_regex = 1.0, 0, None
    generation.generation_kwargs, generation.sync_weights = sampling, lambda: None
    if state.is_main_process:
        generation.vllm_client = client_of(url)
    return generation


def transfer_that_never_ends(folder: Path):
    """A transfer of weights that waits for a server which goes while it lasts, as a collective of NCCL would."""
    stand_in = StandIn()
    generation = generation_of(stand_in.url, 7)
    generation.server_timeout = 0.2
    server.WATCH_SECONDS = server.FIRST_PAUSE = 0.05

    def wait():
        stand_in.stop()
        threading.Event().wait()

    generation.sync_weights = wait
    with stand_in.running():
        server.InParts(generation, 60.0, folder)
        generation.sync_weights()


def main():
    folder, report = Path(sys.argv[1]), {}
    if sys.argv[2:] == ["transfer"]:
        return transfer_that_never_ends(folder)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=4))
    state = PartialState(cpu=True)
    server.FIRST_PAUSE, server.LONGEST_PAUSE, server.HEARTBEAT = 0.02, 0.05, 1.0
    stand_in = StandIn()  # only the first process asks its own

    def slow_server():
        nonlocal stand_in
        stand_in = StandIn()
        stand_in.delay = 6.0
        return stand_in.running()

    def rollout(in_parts, own, size, tokens=7, **sampling):
        """`own` responses of each process, in groups of `size`."""
        generation = generation_of(stand_in.url, tokens, **sampling)
        if in_parts:
            server.InParts(generation, 60.0, folder)
        stand_in.asked.clear()
        places = range(state.process_index * own, (state.process_index + 1) * own)
        return generation.generate([[place // size, 1] for place in places], None, size)

    def failure(own, size, **sampling):
        try:
            rollout(True, own, size, **sampling)
        except ServerError as error:
            return str(error)

    with stand_in.running():
        # Whole groups, groups across processes, pieces of groups; the bound allows for 5 responses of 7 tokens.
        server.REPLY_BYTES = 5 * 7 * server.TOKEN_BYTES
        for name, own, size in (("groups", 8, 2), ("straddling", 9, 6), ("pieces", 16, 8), ("one", 1, 2)):
            for sampling in ({}, {"seed": 11}):
                if name in ("straddling", "pieces") and not sampling:
                    continue  # pieces of a group are alike without a seed, in this server
                whole, divided = (rollout(in_parts, own, size, **sampling) for in_parts in (False, True))
                report[f"{name} {sampling}"] = whole == divided and len(divided[1]) == own
                report[f"{name} {sampling} requests"] = [len(body["prompt"]) * body["n"] for body in stand_in.asked]

        stand_in.fails = {1: 500, 2: 0, 4: 503}.get
        report["failing"] = rollout(True, 8, 2) == rollout(False, 8, 2)
        stand_in.fails = {1: 500, 2: 0, 4: 503}.get
        rollout(True, 8, 2)
        report["failing requests"] = [body["prompt"] for body in stand_in.asked]
        stand_in.fails = lambda number: 400
        report["refused"] = failure(8, 2)
        stand_in.fails = lambda number: 500
        report["broken"] = failure(2, 2)

        def restart(number):
            stand_in.instance = "another"
            return 0

        stand_in.fails = lambda number: restart(number) if number == 3 else None
        report["restarted"] = failure(8, 2)
    report["gone"] = failure(8, 2)
    with slow_server():
        report["slow"] = len(rollout(True, 8, 2)[1])
        (folder / f"{state.process_index}.json").write_text(json.dumps(report))
        try:
            rollout(False, 8, 2)
        except RuntimeError as error:  # of the process that waits in one collective
            (folder / f"{state.process_index}.txt").write_text(str(error))


if __name__ == "__main__":
    main()
