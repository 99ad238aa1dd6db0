"""Partial rollouts: responses that grow by a number of tokens per round, and continue in the next rollout.

The longest responses of a rollout take several times as long as the mean, and the sampler is nearly idle meanwhile.
With `max_new_tokens_per_round` a rollout ends as soon as it is full of whole groups. Unfinished responses are kept,
with the log-probabilities of their tokens, and continue under the new weights. A group is graded when all its
responses are whole.

Old log-probabilities: every token has the log-probability under the policy that drew it, so that its importance ratio
is exact. vLLM records them. For transformers, a pass at the end of a rollout scores what the current policy has
written so far (`rollouts.DynamicSampling.finish`).

Entropies: one pass of the current policy over the whole rollout ranks all tokens, as for groups that waited. Eq. 6 of
arXiv 2506.01939 ranks by the entropy of the policy that is trained, and a threshold compares tokens on one scale.
Entropies of several policies are not on one scale: while entropy falls from rollout to rollout, they would favour the
older part of every response. The mask has no gradient, so that the ratio stays exact whoever ranks.

More groups are unfinished than a rollout needs, so that the first rollouts hold more short responses than later ones.
Every group that has begun is written to its end and graded, so that no response is lost for its length.

The state is equal on every rank.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ..objective.ranks import Ranks
from ..objective.sampling import Response
from ..runs.files import Row
from .forks import ForkRule


@dataclass
class Piece:
    """Tokens by which a response grows.

    Attributes:
        prompt_ids, ids: (P,) and (t,) int32.
        logprobs: (t,) float32, log-probabilities from the sampler, or None.
        ended: whether the response ends by itself with this piece.
    """

    prompt_ids: Tensor
    ids: Tensor
    logprobs: Tensor | None
    ended: bool


# (problems, the tokens of their responses so far, largest number of further tokens) -> their continuations. The number
# is that of the whole call, so that a response may grow beyond the longest response of the run.
Write = Callable[[list[Row], list[list[int]], int], list[Piece]]


@dataclass
class Draft:
    """A group whose responses are being written.

    Attributes:
        row: index of the problem among the training problems.
        begun: number of the rollout in which the responses began.
        responses: the G responses so far. Their texts are empty.
        old_logps: for every response, (s,) float32 log-probabilities of its first s tokens, which earlier policies
            wrote. The current policy wrote the further tokens.
        ended: for every response, whether it is whole.
        forks: for every response that others continue, the place of its fork, or None before it is whole.
    """

    row: int
    begun: int
    responses: list[Response]
    old_logps: list[Tensor]
    ended: list[bool]
    forks: list[int | None] = field(default_factory=list)

    def extend(self, i: int, piece: Piece, longest: int) -> int:
        """Append a piece to response i, which ends at `longest` tokens. Returns: number of tokens appended."""
        before = self.responses[i]
        new = slice(longest - len(before.completion_ids))
        ids = torch.cat([before.completion_ids, piece.ids[new]])
        logprobs = None if piece.logprobs is None else piece.logprobs[new]
        if len(before.completion_ids):
            known = logprobs is not None and before.logprobs is not None
            logprobs = torch.cat([before.logprobs, logprobs]) if known else None
        self.responses[i] = Response(piece.prompt_ids, ids, "", logprobs)
        self.ended[i] = piece.ended or len(ids) >= longest
        return len(ids) - len(before.completion_ids)

    def fork(self, i: int, place: int, branches: Sequence[int]) -> None:
        """Begin the responses that continue response i with its tokens before a place."""
        self.forks[i], trunk = place, self.responses[i]
        logprobs = None if trunk.logprobs is None else trunk.logprobs[:place]
        for branch in branches:
            self.responses[branch] = Response(trunk.prompt_ids, trunk.completion_ids[:place], "", logprobs)
            self.old_logps[branch] = self.old_logps[i][:place]


Member = tuple[Draft, int]  # a response of a group, by its number


def pieces_of(
    prompt_ids: Sequence[Sequence[int]],
    ids: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float | None]] | None,
    limit: int,
    ends: frozenset[int],
) -> list[Piece]:
    """Convert the lists of TRL's `_generate_single_turn` to pieces.

    Args:
        limit: largest number of tokens that a piece could have.
        ends: tokens that end a response. A response that is shorter than the limit has ended, too.
    """

    def floats(values: Sequence[float | None]) -> Tensor:
        return torch.tensor([float("nan") if x is None else x for x in values], dtype=torch.float32)

    return [
        Piece(
            torch.tensor(prompt, dtype=torch.int32),
            torch.tensor(new, dtype=torch.int32),
            None if logprobs is None else floats(logprobs[i]),
            len(new) < limit or new[-1] in ends,
        )
        for i, (prompt, new) in enumerate(zip(prompt_ids, ids, strict=True))
    ]


def surplus(budget: int | None, max_age: int) -> float:
    """Unfinished groups in a round, in multiples of the groups that the rollout needs.

    By Little's law a group stays for as many rollouts as there are unfinished groups for each that leaves. Half of the
    largest age is the mean that leaves room for the longest responses.
    """
    return 1.0 if budget is None else 1 + max_age / 2


class Drafts:
    """The unfinished groups.

    Args:
        problem: returns the problem of a row.
        write: lets the current policy continue responses.
        size: responses of a group.
        budget: tokens by which a response grows in a round; None for no limit.
        longest: tokens of the longest response.
        max_age: rollouts after its first rollout in which a response is whole at the latest.
        part: responses of one call of `write`, or None for any number.
        rule: forks of responses; None without forks.
        width: tokens of a prompt, its response and a call's further tokens, up to which `write` may be asked. Prompts
            with their longest responses are always within it.
    """

    def __init__(
        self,
        problem: Callable[[int], Row],
        write: Write,
        size: int,
        budget: int | None,
        longest: int,
        max_age: int,
        ranks: Ranks,
        part: int | None,
        rule: ForkRule | None = None,
        width: float = math.inf,
    ):
        self.problem, self.policy_writes, self.size, self.budget = problem, write, size, budget
        self.longest, self.max_age, self.ranks, self.part = longest, max_age, ranks, part
        self.rule, self.width = rule, width
        self.unfinished: list[Draft] = []  # oldest first
        self.written = 0  # tokens, since `begin`

    @property
    def is_used(self) -> bool:
        """False if every response is written at once. A run may drop the budget while responses are unfinished."""
        return self.budget is not None or self.rule is not None or bool(self.unfinished)

    @property
    def surplus(self) -> float:
        """Unfinished groups in a round, in multiples of the groups that the rollout needs."""
        return surplus(self.budget, self.max_age)

    def lacking(self, multiple: int) -> int:
        """Return how many groups have to begin if all others are whole and too few to be taken (`take_whole`)."""
        all_whole = all(all(draft.ended) for draft in self.unfinished)
        return -len(self.unfinished) % multiple if all_whole else 0

    def is_due(self, rollout: int) -> bool:
        """Return whether a response has to be written to its end in this rollout."""
        return any(self._must_end(draft, rollout) and not all(draft.ended) for draft in self.unfinished)

    def _must_end(self, draft: Draft, rollout: int) -> bool:
        return rollout - draft.begun >= self.max_age

    def begin(self) -> None:
        """Begin a rollout: count its tokens anew."""
        self.written = 0

    def add(self, rows: Sequence[int], rollout: int) -> None:
        """Begin the responses to problems."""
        nothing = torch.zeros(0, dtype=torch.int32)
        for row in rows:
            responses = [Response(nothing, nothing, "") for _ in range(self.size)]
            forks: list[int | None] = [None] * (0 if self.rule is None else self.rule.trunks)
            self.unfinished.append(
                Draft(row, rollout, responses, [torch.zeros(0)] * self.size, [False] * self.size, forks)
            )

    def write(self, rollout: int, to_the_end: bool) -> None:
        """Let every unfinished response grow by the budget. Responses that become whole fork in the same round.

        Args:
            rollout: number of the current rollout. Responses that have reached the largest age are written whole.
            to_the_end: whether all responses are written whole.
        """
        self._grow(rollout, to_the_end, [(draft, i) for draft in self.unfinished for i in self._begun(draft)])
        self._grow(rollout, to_the_end, self._fork())

    def _begun(self, draft: Draft) -> list[int]:
        """Return the responses that can grow, which is all without forks."""
        if self.rule is None or not draft.forks:
            return list(range(self.size))
        trunks = {i for i, place in enumerate(draft.forks) if place is not None}
        return [i for i in range(self.size) if i < self.rule.trunks or self.rule.trunk_of(i) in trunks]

    def _fork(self) -> list[Member]:
        """Draw the forks of responses that have become whole, and return the responses that continue them."""
        if self.rule is None:
            return []
        trunks = [
            (draft, i)
            for draft in self.unfinished
            for i, place in enumerate(draft.forks)
            if place is None and draft.ended[i]
        ]
        if not trunks:
            return []
        places = self._dealt(len(trunks))
        responses = [draft.responses[i] for draft, i in (trunks[place] for place in places)]
        rows = zip(places, responses, self.rule.entropies(responses).cpu(), strict=True)
        # Copies, because a view is sent with the whole matrix.
        own = [(place, row[: len(response.completion_ids)].clone()) for place, response, row in rows]
        branches = []
        for place, values in dict(gather_object(own)).items():
            draft, i = trunks[place]
            ids = draft.responses[i].completion_ids.tolist()
            fork = self.rule.place(ids, values, f"{draft.begun} {draft.row} {i}")
            draft.fork(i, fork, self.rule.branches_of(i))
            branches += [(draft, branch) for branch in self.rule.branches_of(i)]
        return branches

    def _dealt(self, count: int) -> list[int]:
        """Deal `count` places to the ranks in turn, and return this rank's. Copies of the last place fill the turn."""
        whole = -(-count // self.ranks.count) * self.ranks.count
        return [min(i, count - 1) for i in range(whole)][self.ranks.index :: self.ranks.count]

    def _grow(self, rollout: int, to_the_end: bool, members: Sequence[Member]) -> None:
        """Let responses grow that are not whole.

        Responses that are written to their end share calls, however much they have left.
        """
        last: list[Member] = []
        others: list[Member] = []
        for draft, i in members:
            if not draft.ended[i]:
                left = self.longest - len(draft.responses[i].completion_ids)
                is_last = to_the_end or self.budget is None or left <= self.budget or self._must_end(draft, rollout)
                (last if is_last else others).append((draft, i))
        self._continue(others, self.budget)
        self._continue(last, None)

    def _calls(self, members: Sequence[Member], budget: int | None) -> Iterator[tuple[list[Member], int]]:
        """Divide responses into calls: (responses on all ranks, largest number of further tokens of one of them).

        Responses of similar length share a call, which pads them to one width.
        """
        members = sorted(members, key=lambda member: len(member[0].responses[member[1]].completion_ids))
        prompts = [len(draft.responses[i].prompt_ids) for draft, i in members]
        width = max(self.width, self.longest + max(prompts, default=0))
        most = len(members) if self.part is None else self.part * self.ranks.count
        call: list[Member] = []
        limit = 0
        for (draft, i), prompt in zip(members, prompts, strict=True):
            written = len(draft.responses[i].completion_ids)
            if call and (len(call) == most or prompt + written + limit > width):
                yield call, limit
                call = []
            if not call:
                limit = self.longest - written if budget is None else budget
            call.append((draft, i))
        if call:
            yield call, limit

    def _continue(self, members: Sequence[Member], budget: int | None) -> None:
        """Let responses grow by `budget` tokens, or to their end, on all ranks.

        The ranks make equally many calls with equally many responses, as vLLM's groups and servers need. Up to
        `ranks - 1` responses of a call are therefore written twice, and one of the two is taken.
        """
        continued: list[Member] = []
        found: list[tuple[int, Piece]] = []
        for call, limit in self._calls(members, budget):
            places = self._dealt(len(call))
            mine = [call[place] for place in places]
            problems = [self.problem(draft.row) for draft, _ in mine]
            written = [draft.responses[i].completion_ids.tolist() for draft, i in mine]
            pieces = self.policy_writes(problems, written, limit)
            found += [(len(continued) + place, piece) for place, piece in zip(places, pieces, strict=True)]
            continued += call
        if not continued:
            return
        for place, piece in dict(gather_object(found)).items():
            draft, i = continued[place]
            self.written += draft.extend(i, piece, self.longest)

    def take_whole(self, multiple: int) -> list[Draft]:
        """Take groups that are whole, oldest first. Their number is a multiple; further groups stay for a round."""
        whole = [draft for draft in self.unfinished if all(draft.ended)]
        taken = whole[: len(whole) // multiple * multiple]
        gone = {id(draft) for draft in taken}
        self.unfinished = [draft for draft in self.unfinished if id(draft) not in gone]
        return taken

    def keep_recorded(self) -> None:
        """Store the log-probabilities that the sampler recorded as those of the policy that wrote the tokens."""
        for draft in self.unfinished:
            for i, response in enumerate(draft.responses):
                if response.logprobs is not None:
                    draft.old_logps[i] = response.logprobs

    # Resuming

    def state(self) -> list[Row]:
        """State on which later rollouts depend, in dictionaries, lists and tensors."""
        return [
            vars(draft)
            | {"responses": [vars(r) for r in draft.responses]}
            | {name: list(getattr(draft, name)) for name in ("old_logps", "ended", "forks")}
            for draft in self.unfinished
        ]

    def restore(self, state: list[Row]) -> None:
        """Continue from the result of `state`."""
        self.unfinished = [
            Draft(**draft | {"responses": [Response(**response) for response in draft["responses"]]})
            for draft in state
        ]
