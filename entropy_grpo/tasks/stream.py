"""A stream of distinct problems of one split, generated as they are read.

The text of a problem, or of its family of variants, decides its split, and never a seed. Generators give equal
problems for neighbouring seeds, so that a test set of another seed may be the training set. The order depends on
nothing but the candidates, so a stream that is read again, or from its middle, has the same problems.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .task import Problem

# Shares of all problems, by the remainder of their digest.
SPLITS = ("train", "train", "dev", "test")
# Consecutive candidates without a new problem after which a stream ends: at least so many, and so many per problem.
LEAST_CANDIDATES, CANDIDATES_PER_PROBLEM = 1000, 20
CACHED = 4096  # problems


class Candidate(NamedTuple):
    """A generated problem, the text that identifies it in every wording, and the text that it shares with variants."""

    problem: Problem
    content: str
    family: str | None = None


class Exhausted(IndexError):
    """Error for a place behind the last problem that a generator seems to have."""


def digest(content: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big", signed=True)


class Stream:
    """Distinct problems of a split by their place.

    Args:
        make: number of a candidate -> the candidate, or None for one that cannot be used. The same number always
            gives the same candidate.
        split: `train`, `dev` or `test`.
        keeps: whether a problem of the split is used.
    """

    def __init__(
        self,
        make: Callable[[int], Candidate | None],
        split: str,
        keeps: Callable[[Problem], bool] | None = None,
    ):
        self.make, self.split, self.keeps = make, split, keeps
        self._numbers = array("q")  # of the candidates that are the problems found so far
        self._seen: set[int] = set()  # digests of these problems
        self._next = 0  # candidate
        self._ended = False
        self._cache: dict[int, Problem] = {}  # problems by place, oldest first

    def __len__(self) -> int:
        """Number of problems found so far."""
        return len(self._numbers)

    def __getitem__(self, place: int) -> Problem:
        while len(self) <= place:
            self._keep(len(self), self._find())
        if place not in self._cache:
            self._keep(place, self.make(self._numbers[place]).problem)
        return self._cache[place]

    def __iter__(self) -> Iterator[Problem]:
        place = 0
        while True:
            try:
                yield self[place]
            except Exhausted:
                return
            place += 1

    def _keep(self, place: int, problem: Problem) -> None:
        self._cache[place] = problem
        if len(self._cache) > CACHED:
            del self._cache[next(iter(self._cache))]

    def _find(self) -> Problem:
        """Find the next problem of the split that has not occurred before."""
        if self._ended:
            raise self._exhausted()
        last = self._next + max(LEAST_CANDIDATES, CANDIDATES_PER_PROBLEM * len(self))
        while self._next < last:
            number, self._next = self._next, self._next + 1
            candidate = self.make(number)
            if candidate is None:
                continue
            key = digest(candidate.content)
            split = key if candidate.family is None else digest(candidate.family)
            if SPLITS[split % len(SPLITS)] != self.split or key in self._seen:
                continue
            self._seen.add(key)
            if self.keeps is None or self.keeps(candidate.problem):
                self._numbers.append(number)
                return candidate.problem
        self._ended = True
        raise self._exhausted()

    def _exhausted(self) -> Exhausted:
        return Exhausted(f"the generator has only {len(self)} different {self.split} problems")

    def state(self) -> dict[str, Any]:
        """Problems found so far, so that a resumed run need not search for it again."""
        found = {"numbers": self._numbers.tolist(), "seen": sorted(self._seen)}
        return found | {"next": self._next, "ended": self._ended}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state`."""
        self._numbers, self._seen = array("q", state["numbers"]), set(state["seen"])
        self._next, self._ended = state["next"], state["ended"]
