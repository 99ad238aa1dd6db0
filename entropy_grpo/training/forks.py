"""Responses that continue other responses of their group from a token of high entropy (CURE, arXiv 2508.11016).

With `fork_rollouts: n` the first n responses of a group are written whole. Each is then scored by the current policy,
and one of its tokens of highest entropy becomes a fork. The remaining responses of the group are dealt to the n
responses in equal numbers. They begin with the tokens before the fork and draw the token at the fork anew.

All responses are graded whole and share one group, so that an advantage compares continuations with each other and
with the response from which they fork. The prefix of a continuation has no loss, because it is not drawn again. The
response from which it was taken trains it once with `fork_prefix: once`, as in CURE. With `never` only tokens from the
fork on are trained, which differ between responses. Masked tokens are neither ranked nor counted.

The rule is that of the released code: not the first token, no special token, and no token whose text has fewer than
two characters without surrounding space. A response without such a token forks at its beginning. Two points differ. A
response and its prefix together have at most `max_completion_length` tokens. The released code cuts a prompt with its
prefix to the width of the prompts, so that a continuation may begin before the fork.

ARPO (arXiv 2507.19849) forks a response after a tool call, with a probability that rises with the change of entropy
since its beginning. Responses have no tool calls here. With `fork_entropy_weight` that probability weighs the
candidates of CURE's rule instead, which are equally likely without it.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..objective.sampling import Response

# ARPO's probability of a fork where the entropy is that of the beginning, and the tokens whose entropies are added up.
BASE, SPAN = 0.5, 20


@dataclass(frozen=True)
class ForkRule:
    """Choice of the forks, and the share of the group in the loss.

    Attributes:
        trunks: responses of a group that are written whole, before the responses that continue them.
        size: responses of a group.
        candidates: tokens of highest entropy among which a fork is drawn.
        weight: how much the entropy that follows a candidate counts in the draw. With 0 all are equally likely.
        vocabulary: number of tokens in the vocabulary.
        trains_prefix: whether the tokens before a fork are trained in the response from which it was taken.
        seed: seed of the draws.
        entropies: responses -> (B, T) entropies of their tokens under the current policy.
        may_fork: returns whether a response may fork at a token with this id.
    """

    trunks: int
    size: int
    candidates: int
    weight: float
    vocabulary: int
    trains_prefix: bool
    seed: int
    entropies: Callable[[list[Response]], Tensor]
    may_fork: Callable[[int], bool]

    def trunk_of(self, i: int) -> int:
        """Return the response that response i continues, or i itself if it is written whole."""
        return i if i < self.trunks else (i - self.trunks) // (self.size // self.trunks - 1)

    def branches_of(self, trunk: int) -> list[int]:
        """Return the responses that continue a response."""
        return [i for i in range(self.trunks, self.size) if self.trunk_of(i) == trunk]

    def place(self, ids: Sequence[int], entropies: Tensor, key: str) -> int:
        """Draw the fork of a response.

        Args:
            ids, entropies: the T tokens and (T,) their entropies.
            key: name of the response, which decides the draw together with the seed.
        """
        order = [int(t) for t in entropies.argsort(descending=True, stable=True) if t > 0]
        places = [t for t in order if self.may_fork(ids[t])][: self.candidates]
        if not places:
            return 0
        draws = random.Random(f"{self.seed} {key}")
        chances = self.chances(places, entropies) if self.weight else []
        return draws.choices(places, chances)[0] if any(chances) else draws.choice(places)

    def chances(self, places: Sequence[int], entropies: Tensor) -> list[float]:
        """Return ARPO's probability of a fork at each place: BASE + weight (H - H_0) / ln V, within [0, 1].

        H is the sum of the entropies of the `SPAN` tokens from the place on, H_0 that of the first `SPAN` tokens. V is
        the size of the vocabulary. The released code takes the ten most probable tokens for the whole vocabulary.
        """
        sums = pad(entropies.double().cumsum(0), (1, 0)).tolist()

        def following(place: int) -> float:
            return sums[min(place + SPAN, len(entropies))] - sums[place]

        factor = self.weight / math.log(self.vocabulary)
        return [min(max(BASE + factor * (following(place) - following(0)), 0.0), 1.0) for place in places]

    def masks(self, responses: Sequence[Response], forks: Sequence[int]) -> list[Tensor]:
        """Return for every response of a group (T,) uint8, 0 for the tokens of a prefix that it does not train."""
        masks = []
        for i, response in enumerate(responses):
            mask = torch.ones(len(response.completion_ids), dtype=torch.uint8)
            if i >= self.trunks or not self.trains_prefix:
                mask[: forks[self.trunk_of(i)]] = 0
            masks.append(mask)
        return masks


def forkable(tokenizer: Any, least: int) -> Callable[[int], bool]:
    """Return the condition on tokens at which a response may fork: not special, and a text of so many characters."""
    special = set(tokenizer.all_special_ids)

    @cache
    def may_fork(token: int) -> bool:
        return token not in special and len(tokenizer.decode([token]).strip()) >= least

    return may_fork
