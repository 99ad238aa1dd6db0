"""Seconds, bytes and memory of the state that dynamic sampling adds to a checkpoint, for saving and reading.

    python -m benchmarks.checkpoints    # benchmarks/results/checkpoints.json

1,000 groups of 16 responses wait for the next rollout. Each response has a text of 80 KB, 20,000 tokens, and their
log-probabilities from the sampler and from the policy that wrote them. Saving and reading run in separate processes,
so
that both peaks are measured.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from entropy_grpo.objective.sampling import DynamicSampler, Group, Response
from entropy_grpo.runs import files
from entropy_grpo.runs.state import load_state, save_state

COMMAND = "python -m benchmarks.checkpoints"
GROUPS, GENERATIONS, TOKENS, TEXT_BYTES = 1000, 16, 20_000, 80_000
PROMPT_TOKENS = 200


def make_sampler(groups: int) -> DynamicSampler:
    """A sampler in which `groups` groups wait."""
    sampler = DynamicSampler(groups, groups, groups, 1, 1, True, 0)
    generator = torch.Generator().manual_seed(0)
    letters = "".join(random.Random(0).choices("abcdefghij \\{}^=∫é", k=2 * TEXT_BYTES)).encode()

    def response() -> Response:
        start = int(torch.randint(TEXT_BYTES, (1,), generator=generator))
        text = letters[start : start + TEXT_BYTES].decode(errors="ignore")
        ids = torch.randint(150_000, (PROMPT_TOKENS + TOKENS,), generator=generator, dtype=torch.int32)
        return Response(ids[:PROMPT_TOKENS].clone(), ids[PROMPT_TOKENS:].clone(), text, torch.rand(TOKENS))

    for row in range(groups):
        responses = [response() for _ in range(GENERATIONS)]
        old_logps = [torch.rand(TOKENS) for _ in responses]
        sampler.waiting.append(Group(row, responses, torch.rand(GENERATIONS, 2), 0, old_logps))
    return sampler


def measured(function: Any) -> dict[str, float]:
    """Seconds of a call, and its peak memory in bytes beyond the memory before it."""
    taken: list[float] = []

    def timed() -> None:
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)

    peak = measure.peak_memory(timed)
    return {"seconds": round(taken[0], 2), "peak_gib": round(peak / 2**30, 3)}


def save(path: Path, groups: int) -> dict[str, float]:
    """Make the state and save it."""
    state = make_sampler(groups).state()
    return measured(lambda: save_state(path, state))


def read(path: Path, groups: int) -> dict[str, float]:
    """Read the state into a sampler."""
    sampler = DynamicSampler(groups, groups, groups, 1, 1, True, 0)
    found = measured(lambda: sampler.restore(load_state(path)))
    if len(sampler.waiting) != groups:
        raise RuntimeError(f"{groups} groups were saved, {len(sampler.waiting)} were read")
    return found


def in_a_process(part: str, path: Path, groups: int) -> dict[str, float]:
    """The figures of `save` or `read`, measured in a separate process."""
    command = [sys.executable, "-m", "benchmarks.checkpoints", part, str(path), "--groups", str(groups)]
    subprocess.run(command, check=True)
    return files.read_json(path.with_name(f"{part}.json"))


def run(groups: int, folder: Path) -> dict[str, Any]:
    """The figures of a state with a given number of groups."""
    path = folder / "run_state.safetensors"
    found = {part: in_a_process(part, path, groups) for part in ("save", "read")}
    return {
        "groups": groups,
        "responses": groups * GENERATIONS,
        "text_bytes_of_a_response": TEXT_BYTES,
        "tokens_of_a_response": TOKENS,
        "file_gib": round(path.stat().st_size / 2**30, 3),
        "text_gib": round(groups * GENERATIONS * TEXT_BYTES / 2**30, 3),
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=("save", "read"))
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--groups", type=int, default=GROUPS)
    options = parser.parse_args()
    if options.part is not None:
        part = save if options.part == "save" else read
        files.write_json(options.path.with_name(f"{options.part}.json"), part(options.path, options.groups))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = run(options.groups, Path(folder))
    print(figures)
    measure.write("checkpoints", COMMAND, figures)


if __name__ == "__main__":
    main()
