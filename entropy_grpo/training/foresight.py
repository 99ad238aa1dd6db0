"""Problems that the next round of dynamic sampling is certain to draw, known before the slowest group of a round.

The size of a round follows from the informative groups of all earlier rounds, and every dropped group makes it larger
(`objective.sampling.Sampler.foresee`). The dropped groups that are known therefore say how the next round begins. A
server gets requests for its groups at once.

Nothing else changes. The rounds draw the same prompts, decide by the same rewards and keep the same groups in the same
order. Rollouts, metrics and resumed runs therefore do not depend on the order of arrival, and are those of a sampler
that ends a round before it begins the next one. One further prompt for every dropped group would draw other numbers of
prompts, and other groups would wait for the next rollout. One round is foreseen, because the size of the second one
depends on groups of both.

A reward is known early if it grades each response by itself: a reward of this package, or one whose `begin` returns
futures. A future that contradicts its reward causes useless requests, which end before the weights change. It changes
no rollout.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from accelerate.utils import gather_object

from ..runs.files import Row

Early = Future[float] | float


def known(early: Early) -> float | None:
    """Return a reward if it is known. A future that failed tells nothing: the call of the reward says why."""
    if isinstance(early, Future):
        if not early.done() or early.cancelled() or early.exception() is not None:
            return None
        early = early.result()
    return float(early) if isinstance(early, (int, float)) else None


class Foresight:
    """Early rewards of a round's responses, and the problems that follow from them.

    Args:
        size: responses of a group.
        first: number of this rank's first response among those of the round.
        reward: column of the reward that decides.
        is_informative: whether a group with these rewards is kept.
        foresee: number of dropped groups -> rows of the problems that the next round certainly draws.
        problem: returns the problem of a row.
        most: largest number of problems to foresee.
    """

    def __init__(
        self,
        size: int,
        first: int,
        reward: int,
        is_informative: Callable[[list[float]], bool],
        foresee: Callable[[int], list[int]],
        problem: Callable[[int], Row],
        most: int,
    ):
        self.size, self.first, self.reward = size, first, reward
        self.is_informative, self.foresee, self.problem, self.most = is_informative, foresee, problem, most
        self.early: dict[int, Early] = {}  # of this rank, by the number of the response in the round
        self.rewards: dict[int, list[float]] = defaultdict(list)  # of all ranks, by the number of the group
        self.dropped, self.told = 0, 0
        self.told_for = -1  # dropped groups

    def watch(self, places: Sequence[int], early: Sequence[Early]) -> None:
        """Take rewards of this rank's responses at some places, which may become known later."""
        self.early |= zip((self.first + place for place in places), early, strict=True)

    def further(self) -> list[Row]:
        """Return problems that the next round draws and that were not returned before. All ranks must call it."""
        found = [(i, value) for i, early in self.early.items() if (value := known(early)) is not None]
        for i, _ in found:
            del self.early[i]
        for i, value in gather_object(found):
            rewards = self.rewards[i // self.size]
            rewards.append(value)
            self.dropped += len(rewards) == self.size and not self.is_informative(rewards)
        if self.dropped == self.told_for:
            return []
        rows = self.foresee(self.dropped)[: self.most]
        further, self.told, self.told_for = rows[self.told :], len(rows), self.dropped
        return [self.problem(row) for row in further]
