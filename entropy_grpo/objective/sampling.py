"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): choice of the prompts to draw and of the groups to train on.

A group is the responses to one prompt. It is informative only if some responses are right and some are wrong. Groups
are therefore drawn until a rollout is full of such informative groups. This departs from the released code in two
points. The number of drawn prompts follows from the running share of informative groups. Surplus informative groups
are not discarded but open the next rollout, with the log-probabilities that their tokens had when they were written.

The state is equal on every rank and independent of ranks, models and trainers.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ..metrics.correctness import is_right, is_wrong

# Weight of a rollout's outcome n rollouts later: DECAY ** n.
DECAY = 0.8
LIMITS = ("raise", "top_up", "partial")
# Loss of the tokens that responses of a group share: in the response that was written first, or in none.
PREFIXES = ("once", "never")


@dataclass
class Response:
    """A generated response.

    Attributes:
        prompt_ids, completion_ids: (P,) and (T,) int32.
        completion: text, or list of messages.
        logprobs: (T,) float32, log-probabilities from the sampler, or None.
        mask: (T,) uint8, 0 for tokens that the policy did not write, or None.
        extra: columns that generation added to the problem's columns.
    """

    prompt_ids: Tensor
    completion_ids: Tensor
    completion: Any
    logprobs: Tensor | None = None
    mask: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Group:
    """The responses to one problem.

    Attributes:
        row: index of the problem among the training problems.
        responses: the G responses.
        rewards: (G, F) float32, one column per reward function. The first column decides which responses are right.
        born: number of the rollout for which the group was drawn, or in which its responses became whole.
        old_logps: for every response, (t,) float32 log-probabilities of its first t tokens under the policies that
            wrote them. The current policy wrote the further tokens, and all tokens if this is None.
        begun: number of the rollout in which the responses began, if they were written over several rollouts.
    """

    row: int
    responses: list[Response]
    rewards: Tensor
    born: int
    old_logps: list[Tensor] | None = None
    begun: int | None = None


def fewest_groups(processes: int, size: int) -> int:
    """Return the fewest groups of `size` responses that processes can divide into equal numbers of responses."""
    return processes // math.gcd(processes, size)


def accuracies(rewards: Tensor, size: int) -> Tensor:
    """(n,) float32, share of right responses among the scored ones of every group of `size`; NaN if none is scored.

    Args:
        rewards: (n * size,), of one reward. A response is right if it is above 0, and not scored if it is NaN.
    """
    right, wrong = (which(rewards).view(-1, size).sum(dim=1) for which in (is_right, is_wrong))
    return right / (right + wrong)


def first_scores(rewards: Tensor, size: int) -> Tensor:
    """(n * size,) rewards of every group of `size`, from the first column that scored one of its responses.

    Args:
        rewards: (n * size, F), NaN for responses that a reward function did not score.
    """
    groups = rewards.reshape(-1, size, rewards.size(1))
    scored = (~groups.isnan()).any(dim=1).int()
    columns = scored.argmax(dim=1)  # the first column if none scored the group
    return groups.gather(2, columns.view(-1, 1, 1).expand(-1, size, 1)).flatten()


def informative(accuracy: float, lowest: float | None, highest: float | None) -> bool:
    """Return whether the share of right responses lies in [lowest, highest].

    Without a lower bound the share must be above 0, without an upper bound below 1. NaN, the share of a group without
    scored responses, lies in no interval.
    """
    above = accuracy > 0 if lowest is None else accuracy >= lowest - 1e-6
    below = accuracy < 1 if highest is None else accuracy <= highest + 1e-6
    return above and below


def informative_counts(size: int, lowest: float | None, highest: float | None) -> list[bool]:
    """Return, for each number of right responses from 0 to `size`, whether such a group is `informative`."""
    return [informative(right / size, lowest, highest) for right in range(size + 1)]


class Waits(Protocol):
    """Group that may wait for a rollout: `born` is the number of the rollout for which it was drawn."""

    born: int


AnyGroup = TypeVar("AnyGroup", bound=Waits)


class Sampler(Generic[AnyGroup]):
    """Source of the problems to draw, and store of the groups that wait for a rollout.

    Args:
        size: groups in a rollout.
        problems: number of training problems. All are drawn once before any is drawn again.
        round_size: largest number of problems that one round draws.
        multiple: number of which every round grades a multiple, and draws one unless `draw` has a `least`.
        max_age: rollouts that a group may wait. With 0, no group is kept for the next rollout.
        shuffle, seed: order of the problems.
    """

    def __init__(
        self, size: int, problems: int, round_size: int, multiple: int, max_age: int, shuffle: bool, seed: int
    ):
        self.size, self.problems, self.multiple, self.max_age = size, problems, multiple, max_age
        self.round_size = max(round_size // multiple, 1) * multiple
        self.shuffle, self.seed = shuffle, seed
        self.rollout = 0
        self.cursor = 0  # problems drawn so far
        self.drawn = self.kept = 0.0  # sums over past rollouts, in which older rollouts weigh less
        self.waiting: list[AnyGroup] = []  # oldest first

    @property
    def missing(self) -> int:
        return max(self.size - len(self.waiting), 0)

    @property
    def pass_rate(self) -> float:
        """The running share of informative groups, in (0, 1]; 1 before the first round."""
        return (self.kept + 0.5) / (self.drawn + 0.5)

    def begin(self) -> int:
        """Begin the next rollout.

        Returns:
            Number of groups that are dropped because they have waited for more than `max_age` rollouts.
        """
        self.rollout += 1
        self.drawn, self.kept = DECAY * self.drawn, DECAY * self.kept
        fresh = [group for group in self.waiting if self.rollout - group.born <= self.max_age]
        dropped, self.waiting = len(self.waiting) - len(fresh), fresh
        return dropped

    def draw(self, unfinished: int = 0, surplus: float = 1.0, least: int = 0) -> list[int]:
        """Draw the problems of the next round: as many as should fill the rollout, plus one standard deviation.

        Args:
            unfinished: number of groups that have been drawn but are not whole.
            surplus: unfinished groups per missing group of the rollout.
            least: smallest number of problems.
        """
        rate = self.pass_rate
        wanted = (self.missing + math.sqrt(self.missing * (1 - rate))) / rate
        wanted = max(wanted * surplus - unfinished, 0.0)
        count = max(min(math.ceil(wanted / self.multiple) * self.multiple, self.round_size), least)
        places = [divmod(self.cursor + i, self.problems) for i in range(count)]
        orders = {epoch: self._order(epoch) for epoch in {epoch for epoch, _ in places}}
        self.cursor += count
        return [orders[epoch][place] for epoch, place in places]

    def foresee(self, drawn: int, dropped: int) -> list[int]:
        """Return problems that the next round is certain to draw, while groups of this round are still open.

        The next round begins with the problems of a next round after all open groups have turned out to be
        informative. With fewer informative groups more are missing, and the pass rate is lower, so that the round is
        larger.

        Args:
            drawn: groups of this round.
            dropped: number of these groups that are known to be not informative.
        """
        ahead, kept = copy.copy(self), drawn - dropped
        ahead.size, ahead.waiting = max(self.missing - kept, 0), []
        ahead.drawn, ahead.kept = self.drawn + drawn, self.kept + kept
        return ahead.draw()

    def _order(self, epoch: int) -> Sequence[int]:
        if not self.shuffle:
            return range(self.problems)
        return torch.randperm(self.problems, generator=torch.Generator().manual_seed(self.seed + epoch)).tolist()

    def add(self, groups: list[AnyGroup], drawn: int) -> None:
        """Add the informative groups of a round that drew `drawn` groups."""
        self.waiting += groups
        self.drawn, self.kept = self.drawn + drawn, self.kept + len(groups)

    def take(self) -> list[AnyGroup]:
        """Take the groups of the rollout, at most `size`, oldest first. Further groups keep waiting."""
        taken, self.waiting = self.waiting[: self.size], self.waiting[self.size :]
        return taken

    def drop_waiting(self) -> int:
        """Discard waiting groups if `max_age` is 0.

        Returns:
            Number of discarded groups.
        """
        if self.max_age > 0:
            return 0
        dropped, self.waiting = len(self.waiting), []
        return dropped


class DynamicSampler(Sampler[Group]):
    """The sampler of a run, whose state is saved with a checkpoint."""

    def state(self) -> dict[str, Any]:
        """State on which later draws depend, in dictionaries, lists and tensors."""
        groups = [vars(group) | {"responses": [vars(r) for r in group.responses]} for group in self.waiting]
        counters = ("rollout", "cursor", "drawn", "kept")
        return {name: getattr(self, name) for name in counters} | {"waiting": groups}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state`."""
        for name in ("rollout", "cursor", "drawn", "kept"):
            setattr(self, name, state[name])
        self.waiting = [
            Group(**group | {"responses": [Response(**r) for r in group["responses"]]}) for group in state["waiting"]
        ]
