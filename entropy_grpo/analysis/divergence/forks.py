"""Where a response could have gone: at forks of high and of low entropy, what another token would have changed.

At position t of a response the sampled token o_t is forced once and the most probable other token once, and k
continuations are sampled after each (arXiv 2508.02260, Eq. 5, 6; k = 32 there). I_t is the accuracy after o_t minus
that after the other. How far the paths differ is measured between continuations of the two tokens, and beside it
between continuations of the same token: two samples differ without any fork, and what is beyond that is the fork's.

Tokens are of high entropy if they are among the top rho of all responses, else of low; of each kind some are drawn at
random from each response. Every continuation has a seed of its own, so that it does not depend on which forks are
continued with it, or before it.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from ...data.benchmarks.benchmark import seed_of
from ...evaluation.backends.base import Sampling
from ...evaluation.backends.transformers import TransformersBackend
from ...objective.selection import select
from ...runs.files import Row
from ..text.alternatives import score
from .options import Settings
from .summary import HIGH, LOW

# (position among the responses, texts of whole responses to its prompt) -> (answer or None, right) of each text
Grade = Callable[[int, Sequence[str]], Sequence[tuple[str | None, bool]]]


@dataclass(frozen=True)
class Fork:
    """A position of a response: the token sampled there, the most probable other token, and how probable both were.

    `question` is the number of the first response to the same prompt.
    """

    response: int
    question: int
    position: int
    kind: str
    entropy: float
    token: int
    other: int
    logp: float
    other_logp: float


def find_forks(model: Any, responses: Sequence[tuple[list[int], list[int]]], settings: Settings) -> list[Fork]:
    """The forks of responses, each (prompt ids, response ids): one forward pass of each response."""
    found = [score(model, prompt, ids, 2, settings.temperature) for prompt, ids in responses]
    entropies = torch.cat([scores.entropies for scores in found])
    everything = torch.ones_like(entropies, dtype=torch.bool)
    high, _ = select(entropies, everything, settings.rho, torch.arange(len(entropies)))
    chooser, forks, start = random.Random(settings.seed), [], 0
    firsts: dict[tuple[int, ...], int] = {}
    for i, ((prompt, ids), scores) in enumerate(zip(responses, found, strict=True)):
        question = firsts.setdefault(tuple(prompt), i)
        mine = high[start : start + len(ids)]
        start += len(ids)
        for kind, of_kind in ((HIGH, mine), (LOW, ~mine)):
            places = of_kind.nonzero().flatten().tolist()
            for t in sorted(chooser.sample(places, min(settings.forks, len(places)))):
                second = int(scores.top_ids[t, 0] == ids[t])  # the other is the second where the first was taken
                numbers = (float(scores.entropies[t]), ids[t], int(scores.top_ids[t, second]))
                logps = float(scores.logps[t]), float(scores.top_logps[t, second])
                forks.append(Fork(i, question, t, kind, *numbers, *logps))
    return forks


def continuations(
    backend: TransformersBackend,
    prefixes: Sequence[list[int]],
    limits: Sequence[int],
    seeds: Sequence[int],
    settings: Settings,
) -> list[list[int]]:
    """What follows each prefix, at most its limit of tokens; nothing where it has ended or has no tokens left."""
    found: list[list[int]] = [[] for _ in prefixes]
    open_ = [i for i, p in enumerate(prefixes) if p[-1] not in backend.stops and limits[i] > 0]
    for start in range(0, len(open_), settings.batch_size):
        part = open_[start : start + settings.batch_size]
        sampling = Sampling(settings.temperature, settings.top_p, max_tokens=max(limits[i] for i in part))
        written = backend.write([prefixes[i] for i in part], [seeds[i] for i in part], sampling)
        for i, ids in zip(part, written, strict=True):
            found[i] = ids[: limits[i]]
    return found


def paths_row(paths: Sequence[Sequence[list[int]]], graded: Sequence[Sequence[tuple[str | None, bool]]]) -> Row:
    """What the k paths after the sampled token and the k after the other say of a fork.

    Args:
        paths: two lists of k continuations.
        graded: two lists of k (answer, right).
    """
    k = len(paths[0])
    accuracy = [float(np.mean([right for _, right in side])) for side in graded]
    between = [(0, i, 1, i) for i in range(k)]
    within = [(side, i, side, (i + 1) % k) for side in (0, 1) for i in range(k)]
    row: Row = {"accuracy": accuracy[0], "other_accuracy": accuracy[1], "intervention": accuracy[0] - accuracy[1]}
    for name, pairs in (("between", between), ("within", within)):
        # Edits over the longer length, in [0, 1].
        distances = [Levenshtein.normalized_distance(paths[a][i], paths[b][j]) for a, i, b, j in pairs]
        row[f"distance_{name}"] = float(np.mean(distances))
        row[f"changed_{name}"] = float(np.mean([graded[a][i][0] != graded[b][j][0] for a, i, b, j in pairs]))
    return row


def divergence(
    model: Any,
    tokenizer: Any,
    responses: Sequence[tuple[list[int], list[int]]],
    grade: Grade,
    settings: Settings,
    done: Collection[tuple[int, int]] = (),
) -> Iterator[Row]:
    """A row for each fork, as soon as its continuations are there: the fields of `Fork` and of `paths_row`.

    Args:
        model: causal language model of transformers, in evaluation mode; sampling settings of its own are taken off.
        tokenizer: of the model.
        responses: (prompt ids, response ids), the responses with the token that ended them.
        grade: whether responses are right, and what they answer.
        done: (response, position) of forks that are left out, as those of a run that was killed.
    """
    backend, k = TransformersBackend(model, tokenizer, settings.batch_size), settings.continuations
    left = [fork for fork in find_forks(model, responses, settings) if (fork.response, fork.position) not in done]
    forks = sorted(left, key=lambda fork: fork.position)
    together = max(1, settings.batch_size // (2 * k))
    for start in range(0, len(forks), together):
        part = forks[start : start + together]
        sides = [(fork, side) for fork in part for side in (0, 1)]
        begun = [[*responses[f.response][1][: f.position], (f.token, f.other)[side]] for f, side in sides]
        prefixes = [responses[f.response][0] + ids for (f, _), ids in zip(sides, begun, strict=True)]
        written = continuations(
            backend,
            [prefix for prefix in prefixes for _ in range(k)],
            [settings.longest - len(ids) for ids in begun for _ in range(k)],
            [seed_of(settings.seed, f.response, f.position, side, i) for f, side in sides for i in range(k)],
            settings,
        )
        for i, fork in enumerate(part):
            paths = [written[side * k : (side + 1) * k] for side in (2 * i, 2 * i + 1)]
            texts = [
                tokenizer.decode(begun[2 * i + side] + ids, skip_special_tokens=True)
                for side in (0, 1)
                for ids in paths[side]
            ]
            graded = grade(fork.response, texts)
            yield asdict(fork) | paths_row(paths, (graded[:k], graded[k:]))
