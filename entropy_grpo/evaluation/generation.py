"""Generation of the responses of one benchmark. Finished responses are stored, so that a killed run loses one batch.

    DIR/BENCHMARK/settings.json    settings of the generation
    DIR/BENCHMARK/samples-R.jsonl  finished responses of process R of a launch, one per line

The list of parts is the same in every run, so that a resumed run writes the same responses as an uninterrupted run.
The processes of a launch share only the folder. Each process takes every n-th part, so that no process waits for
another.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..data.benchmarks.benchmark import Question, seed_of
from ..runs import files, processes
from .backends.base import Backend, Request, Sampling

Key = tuple[str, int]
SETTINGS = "settings.json"
# Setting with the name that a server gives its model.
SERVED = "served_model"
# Settings that name what another setting holds a digest of, so that another spelling of a path is the same setting.
DIGESTS = {"data_set": "questions_sha256", "model": "weights", "judge": "weights", "responses": "sha256"}


@cache
def process() -> tuple[int, int]:
    """Return (rank, number of processes) of this launch; cached, because vLLM's backend removes the variables."""
    return processes.rank(), processes.process_count()


@dataclass(frozen=True)
class Work:
    """Responses to generate for a benchmark: `samples` to each of its questions, in `folder`.

    `about` holds the remaining settings of the generation: model, data set, backend.
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
        """All settings on which the responses depend, and that are known without a backend."""
        return self.about | {"samples": self.samples, "seed": self.seed} | asdict(self.sampling)

    @property
    def keys(self) -> list[Key]:
        """Keys (question, number of the sample) of all responses, question by question."""
        return [(q.id, n) for q, n in itertools.product(self.questions, range(self.samples))]

    @property
    def requests(self) -> list[Request]:
        """Requests in the order of `keys`. The seed of each request is derived from its key."""
        return [
            Request(q.prompt, seed_of(self.seed, q.id, n))
            for q, n in itertools.product(self.questions, range(self.samples))
        ]

    @property
    def recorded(self) -> dict[str, Any]:
        """All settings on which the finished responses depend, as `claim` stored them."""
        return files.read_json(self.folder / SETTINGS)

    def claim(self, served: str | None = None) -> None:
        """Store the settings of the responses.

        Args:
            served: name of the model at a running server. Without it, that of the finished responses stays, which
                need no server.

        Raises:
            ValueError: the folder holds responses with other settings.
        """
        answered = any(self.folder.glob("samples-*.jsonl"))  # before the settings are read, which come first
        before, wanted = self.recorded, self.settings
        if (known := served or before.get(SERVED)) is not None:
            wanted[SERVED] = known
        digested = {name for name, digest in DIGESTS.items() if wanted.get(digest) is not None}
        # Another process that has not asked the server yet may have stored the settings last.
        unknown = {SERVED} - before.keys()
        for name in (before.keys() | wanted.keys()) - digested - unknown if answered else ():
            if before.get(name) != wanted.get(name):
                raise ValueError(
                    f"output: {self.folder} holds responses with {name} {before.get(name)!r}, but "
                    f"{wanted.get(name)!r} is requested: name another output folder, or delete {self.folder}."
                )
        # By every process: one may write responses before another, the first included, has come so far.
        if before != wanted:
            files.write_json(self.folder / SETTINGS, wanted)

    def finished(self) -> dict[Key, files.Row]:
        """Return the responses that any process has finished."""
        responses: dict[Key, files.Row] = {}
        for path in sorted(self.folder.glob("samples-*.jsonl")):
            for row in files.read_jsonl(path):
                responses.setdefault((row["question"], row["sample"]), row)
        return responses

    def missing(self) -> list[Key]:
        """Return the keys of responses that no process has finished."""
        finished = self.finished()
        return [key for key in self.keys if key not in finished]

    def share(self, backend: Backend) -> list[list[int]]:
        """Return this process's parts with missing responses, as positions among the requests."""
        rank, processes = process()
        keys, missing = self.keys, set(self.missing())
        parts = backend.parts(self.requests)[rank::processes]
        return [part for part in parts if any(keys[i] in missing for i in part)]

    def write(self, backend: Backend, parts: list[list[int]], progress: Callable[[int], Any]) -> None:
        """Write the missing responses of this process's `share`, and call `progress` with the tokens of each."""
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
        """Return the finished responses of all processes in the order of the questions."""
        finished = self.finished()
        return [finished[key] for key in self.keys]
