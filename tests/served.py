"""TRL's generation from a stand-in for `vllm serve`, in two processes.

Run by torchrun: served.py FOLDER_OF_REPORTS, or by itself: served.py FOLDER_OF_A_RUN transfer
"""

import json
import sys
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import PartialState
from trl.generation.vllm_generation import VLLMGeneration

from benchmarks.fixtures.stand_in import StandIn, client_of
from entropy_grpo.runs.launched import ServerError
from entropy_grpo.training import server
from entropy_grpo.training.foresight import Foresight


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
        server.InParts(generation, 60.0, folder, 1)
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
            server.InParts(
                generation, 60.0, folder, 8, arrived=lambda places, ids: arrived.extend(zip(places, ids, strict=True))
            )
        stand_in.asked.clear()
        arrived.clear()
        places = range(state.process_index * own, (state.process_index + 1) * own)
        return generation.generate([[place // size, 1] for place in places], None, size)

    def rounds(in_parts):
        """Three groups, of which the second is dropped, and two groups that follow as soon as that is known.

        Six responses of each process in the first round and four in the second.
        """
        generation = generation_of(stand_in.url, 7)
        first = 6 * state.process_index
        foresight = Foresight(
            size=4,
            first=first,
            reward=0,
            is_informative=lambda rewards: sorted(rewards) != [4, 5, 6, 7],
            foresee=lambda dropped: [7, 8][: 2 * dropped],
            problem=lambda row: {"prompt": [row, 1]},
            most=8,
        )
        if in_parts:
            server.InParts(
                generation,
                60.0,
                folder,
                8,
                arrived=lambda places, ids: foresight.watch(places, [float(first + place) for place in places]),
                further=lambda: [problem["prompt"] for problem in foresight.further()],
            )
        stand_in.asked.clear()
        once = generation.generate([[place // 4, 1] for place in range(first, first + 6)], None, 4)
        return once, generation.generate([[7 + state.process_index, 1]] * 4, None, 4)

    def failure(own, size, **sampling):
        try:
            rollout(True, own, size, **sampling)
        except ServerError as error:
            return str(error)

    arrived = []
    with stand_in.running():
        # Whole groups, groups across processes, pieces of groups; the bound allows for 5 responses of 7 tokens.
        server.REPLY_BYTES = 5 * 7 * server.TOKEN_BYTES
        for name, own, size in (
            ("groups", 8, 2),
            ("straddling", 9, 6),
            ("pieces", 16, 8),
            ("one", 1, 2),
            ("singles", 13, 1),
        ):
            for sampling in ({}, {"seed": 11}):
                if name in ("straddling", "pieces") and not sampling:
                    continue  # pieces of a group are alike without a seed, in this server
                whole, divided = (rollout(in_parts, own, size, **sampling) for in_parts in (False, True))
                once = sorted(arrived) == list(enumerate(divided[1]))
                report[f"{name} {sampling}"] = whole == divided and len(divided[1]) == own and once
                report[f"{name} {sampling} requests"] = [len(body["prompt"]) * body["n"] for body in stand_in.asked]

        report["ahead"] = rounds(False) == rounds(True)
        report["ahead requests"] = [prompt for body in stand_in.asked for prompt in body["prompt"]]

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
