"""Counterfactual continuations at tokens of high and of low entropy (arXiv 2508.02260, Eq. 5, 6).

At position t of a response, the sampled token o_t and the most probable other token are each forced once. After each
token, k continuations are sampled (k = 32 in the paper). I_t is the accuracy after o_t minus the accuracy after the
other token. The distance of paths is measured between continuations of the two tokens. Two continuations of the same
token differ by chance, so their distance is also measured. The excess of the first distance over the second is the
effect of the fork.

A token has high entropy if it is among the top rho of all responses, and low entropy otherwise. Some tokens of each
kind are drawn at random from each response. Every continuation has its own seed, so that it does not depend on the
composition or the order of batches.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from ...data.benchmarks.benchmark import seed_of
from ...evaluation.backends.base import Sampling, Writer
from ...objective.selection import select
from ...runs.files import Row
from ..text.alternatives import score
from .options import Settings
from .summary import HIGH, LOW

# Continuations that are given at once to a backend that forms its own batches. A killed command loses at most these.
TOGETHER = 2048

# (position among the responses, texts of whole responses to its prompt) -> (answer or None, right) of each text
Grade = Callable[[int, Sequence[str]], Sequence[tuple[str | None, bool]]]


@dataclass(frozen=True)
class Fork:
    """Position of a response with its sampled token, the most probable other token, and their log-probabilities.

    `entropy` is in nats. `question` is the number of the first response to the same prompt. `relative` is the position
    in [0, 1], as in `views.position`. `perplexity` is that of the whole response.
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
    relative: float
    perplexity: float


def find_forks(model: Any, responses: Sequence[tuple[list[int], list[int]]], settings: Settings) -> list[Fork]:
    """Choose the forks of responses (prompt ids, response ids), with one forward pass per response."""
    scored = [score(model, prompt, ids, 2, settings.temperature) for prompt, ids in responses]
    entropies = torch.cat([scores.entropies for scores in scored])
    everything = torch.ones_like(entropies, dtype=torch.bool)
    high, _ = select(entropies, everything, settings.rho, torch.arange(len(entropies)))
    chooser, forks, start = random.Random(settings.seed), [], 0
    firsts: dict[tuple[int, ...], int] = {}
    for i, ((prompt, ids), scores) in enumerate(zip(responses, scored, strict=True)):
        question = firsts.setdefault(tuple(prompt), i)
        mine = high[start : start + len(ids)]
        start += len(ids)
        perplexity = float((-scores.logps.double().mean()).exp())
        for kind, of_kind in ((HIGH, mine), (LOW, ~mine)):
            places = of_kind.nonzero().flatten().tolist()
            for t in sorted(chooser.sample(places, min(settings.forks, len(places)))):
                second = int(scores.top_ids[t, 0] == ids[t])  # if the most probable token was sampled, take the second
                numbers = (float(scores.entropies[t]), ids[t], int(scores.top_ids[t, second]))
                logps = float(scores.logps[t]), float(scores.top_logps[t, second])
                forks.append(Fork(i, question, t, kind, *numbers, *logps, t / max(len(ids) - 1, 1), perplexity))
    return forks


def continuations(
    backend: Writer,
    prefixes: Sequence[list[int]],
    limits: Sequence[int],
    seeds: Sequence[int],
    settings: Settings,
) -> list[list[int]]:
    """Sample a continuation of each prefix, of at most its limit of tokens.

    The continuation is empty if the prefix has ended or its limit is 0.
    """
    continued: list[list[int]] = [[] for _ in prefixes]
    open_ = [i for i, p in enumerate(prefixes) if p[-1] not in backend.stops and limits[i] > 0]
    sampling, size = Sampling(settings.temperature, settings.top_p), together(backend, settings)
    for start in range(0, len(open_), size):
        part = open_[start : start + size]
        own_seeds, own_limits = ([values[i] for i in part] for values in (seeds, limits))
        written = backend.write([prefixes[i] for i in part], own_seeds, own_limits, sampling)
        for i, ids in zip(part, written, strict=True):
            continued[i] = ids
    return continued


def together(backend: Writer, settings: Settings) -> int:
    """Return the number of continuations that the backend is given at once."""
    return settings.batch_size if backend.in_batches else TOGETHER


def paths_row(paths: Sequence[Sequence[list[int]]], graded: Sequence[Sequence[tuple[str | None, bool]]]) -> Row:
    """Return accuracies, I_t and distances of a fork, from k paths after the sampled token and k after the other.

    Args:
        paths: two lists of k continuations.
        graded: two lists of k pairs (answer, right).
    """
    k = len(paths[0])
    accuracy = [float(np.mean([right for _, right in side])) for side in graded]
    between = [(0, i, 1, i) for i in range(k)]
    within = [(side, i, side, (i + 1) % k) for side in (0, 1) for i in range(k)]
    row: Row = {"accuracy": accuracy[0], "other_accuracy": accuracy[1], "intervention": accuracy[0] - accuracy[1]}
    for name, pairs in (("between", between), ("within", within)):
        # Edit distance divided by the longer length, in [0, 1].
        distances = [Levenshtein.normalized_distance(paths[a][i], paths[b][j]) for a, i, b, j in pairs]
        row[f"distance_{name}"] = float(np.mean(distances))
        row[f"changed_{name}"] = float(np.mean([graded[a][i][0] != graded[b][j][0] for a, i, b, j in pairs]))
    return row


def divergence(
    forks: Sequence[Fork],
    backend: Writer,
    tokenizer: Any,
    responses: Sequence[tuple[list[int], list[int]]],
    grade: Grade,
    settings: Settings,
) -> Iterator[Row]:
    """Yield a row for each fork, with the fields of `Fork` and of `paths_row`, when its continuations are finished.

    Args:
        forks: the forks to continue, of `find_forks`.
        backend: writes the continuations, with the model that `find_forks` got.
        tokenizer: tokenizer of the model.
        responses: (prompt ids, response ids). The response ids include the token that ended the response.
        grade: function that returns answers and correctness of texts.
    """
    k, forks = settings.continuations, sorted(forks, key=lambda fork: fork.position)
    size = max(1, together(backend, settings) // (2 * k))
    for start in range(0, len(forks), size):
        part = forks[start : start + size]
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
