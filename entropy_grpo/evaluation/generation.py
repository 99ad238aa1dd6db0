"""Writing the responses of one benchmark so that a kill costs one batch: what is finished is kept.

    DIR/BENCHMARK/settings.json    what they are drawn with
    DIR/BENCHMARK/samples-R.jsonl  the responses that process R of a launch has finished, a line each

The work is the same list of parts in every run, so a resumed run writes what an undisturbed one would have written.
Processes of a launch share nothing but the folder: each takes every n-th part, so that none waits for another.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..data.benchmarks.benchmark import Question, seed_of
from ..runs import files
from .backends.base import Backend, Request, Sampling

Key = tuple[str, int]


@cache
def process() -> tuple[int, int]:
    """(rank, number of processes) of this launch; vLLM's backend later takes the variables away."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Work:
    """The responses to draw for a benchmark: `samples` to each of its questions, in `folder`.

    `about` is what else they are drawn with: model, data set, backend.
    """

    folder: Path
    questions: Sequence[Question]
    samples: int
    seed: int
    sampling: Sampling
    about: dict[str, Any]

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}: it must be 1 or more.")

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the responses."""
        return self.about | {"samples": self.samples, "seed": self.seed} | asdict(self.sampling)

    @property
    def keys(self) -> list[Key]:
        """(question, number of the sample) of every response, by question."""
        return [(q.id, n) for q, n in itertools.product(self.questions, range(self.samples))]

    @property
    def requests(self) -> list[Request]:
        """The requests, in the same order; the seed of each follows from its key."""
        return [
            Request(q.prompt, seed_of(self.seed, q.id, n))
            for q, n in itertools.product(self.questions, range(self.samples))
        ]

    def claim(self) -> None:
        """Keep what the responses are drawn with; `ValueError` where some were drawn with something else."""
        path = self.folder / "settings.json"
        before, wanted = files.read_json(path), self.settings
        for name in before.keys() | wanted.keys() if before else ():
            if before.get(name) != wanted.get(name):
                raise ValueError(
                    f"{self.folder} holds responses with {name} {before.get(name)!r}, where {wanted.get(name)!r} is "
                    "asked for: name another output folder, or delete that one."
                )
        if process()[0] == 0 and not before:
            files.write_json(path, wanted)

    def finished(self) -> dict[Key, files.Row]:
        """The responses that any process has finished."""
        found: dict[Key, files.Row] = {}
        for path in sorted(self.folder.glob("samples-*.jsonl")):
            for row in files.read_jsonl(path):
                found.setdefault((row["question"], row["sample"]), row)
        return found

    def missing(self) -> list[Key]:
        """What no process has finished."""
        finished = self.finished()
        return [key for key in self.keys if key not in finished]

    def share(self, backend: Backend) -> list[list[int]]:
        """The parts of this process of which something is missing, as positions among the requests."""
        rank, processes = process()
        keys, missing = self.keys, set(self.missing())
        parts = backend.parts(self.requests)[rank::processes]
        return [part for part in parts if any(keys[i] in missing for i in part)]

    def write(self, backend: Backend, parts: list[list[int]], progress: Callable[[int], Any]) -> None:
        """Write what is missing of this process's `share`; `progress` is told the tokens of each response."""
        keys, requests, missing = self.keys, self.requests, set(self.missing())
        if parts and not backend.in_batches:
            parts = [[i for part in parts for i in part]]
        path = self.folder / f"samples-{process()[0]}.jsonl"
        for part in parts:
            for place, response in backend.generate([requests[i] for i in part], self.sampling):
                question, number = key = keys[part[place]]
                if key in missing:
                    files.append_jsonl(path, [{"question": question, "sample": number, **vars(response)}])
                    progress(response.tokens)

    def rows(self) -> list[files.Row]:
        """The finished responses in the order of the questions, whoever wrote them."""
        finished = self.finished()
        return [finished[key] for key in self.keys]
