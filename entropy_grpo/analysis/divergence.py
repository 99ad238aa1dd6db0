"""Where a response could have gone: at forks of high and of low entropy, what another token would have changed.

At position t of a response the sampled token o_t is forced once and the most probable other token once, and k
continuations are sampled after each (arXiv 2508.02260, Eq. 5, 6; k = 32 there). I_t is the accuracy after o_t minus
that after the other. How far the paths differ is measured between continuations of the two tokens, and beside it
between continuations of the same token: two samples differ without any fork, and what is beyond that is the fork's.

Tokens are of high entropy if they are among the top rho of all responses, else of low; of each kind some are drawn at
random from each response.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from ..evaluation.intervals import gain_interval, share_interval
from ..records import Row
from ..selection import select
from .alternatives import score

HIGH, LOW = "high", "low"
# (position among the responses, texts of whole responses to its prompt) -> (answer or None, right) of each text
Grade = Callable[[int, Sequence[str]], Sequence[tuple[str | None, bool]]]


@dataclass(frozen=True)
class Settings:
    """How forks are chosen and continued.

    Attributes:
        rho: share of the tokens that are of high entropy.
        forks: of each kind, from each response that has as many.
        continuations: k, after each of the two tokens.
        temperature, top_p: of sampling; entropies are at this temperature.
        max_tokens: of a whole response.
        batch_size: continuations that are sampled together.
        seed: decides forks and continuations.
    """

    rho: float = 0.2
    forks: int = 1
    continuations: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 20480
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("forks", 1), ("continuations", 2), ("max_tokens", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {least} or more.")
        for name in ("rho", "top_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must lie in (0, 1].")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}: continuations are sampled, it must be above 0.")


@dataclass(frozen=True)
class Fork:
    """A position of a response: the token sampled there, the most probable other token, and how probable both were."""

    response: int
    position: int
    kind: str
    entropy: float
    token: int
    other: int
    logp: float
    other_logp: float


def edit_distance(a: Sequence[int], b: Sequence[int]) -> float:
    """Levenshtein distance over the longer length, in [0, 1]; 0 for two empty sequences. O(len(a)) steps of numpy."""
    if not len(a) or not len(b):
        return float(len(a) != len(b))
    other, columns = np.asarray(b), np.arange(len(b) + 1)
    row = columns.copy()
    for i, x in enumerate(a, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (other != x))  # deletions and substitutions
        # Insertions: the best of all cells to the left, each a step dearer by column.
        row = np.minimum.accumulate(np.concatenate([[i], best]) - columns) + columns
    return float(row[-1]) / max(len(a), len(b))


def find_forks(model: Any, responses: Sequence[tuple[list[int], list[int]]], settings: Settings) -> list[Fork]:
    """The forks of responses, each (prompt ids, response ids): one forward pass of each response."""
    found = [score(model, prompt, ids, 2, settings.temperature) for prompt, ids in responses]
    entropies = torch.cat([scores.entropies for scores in found])
    everything = torch.ones_like(entropies, dtype=torch.bool)
    high, _ = select(entropies, everything, settings.rho, torch.arange(len(entropies)))
    chooser, forks, start = random.Random(settings.seed), [], 0
    for i, ((_, ids), scores) in enumerate(zip(responses, found, strict=True)):
        mine = high[start : start + len(ids)]
        start += len(ids)
        for kind, of_kind in ((HIGH, mine), (LOW, ~mine)):
            places = of_kind.nonzero().flatten().tolist()
            for t in sorted(chooser.sample(places, min(settings.forks, len(places)))):
                second = int(scores.top_ids[t, 0] == ids[t])  # the other is the second where the first was taken
                numbers = (float(scores.entropies[t]), ids[t], int(scores.top_ids[t, second]))
                logps = float(scores.logps[t]), float(scores.top_logps[t, second])
                forks.append(Fork(i, t, kind, *numbers, *logps))
    return forks


class Sampler:
    """Samples continuations of prefixes in batches."""

    def __init__(self, model: Any, tokenizer: Any, settings: Settings):
        named = model.generation_config.eos_token_id
        self.stops = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
        if not self.stops:
            raise ValueError(
                f"model is {model.config._name_or_path!r}, which names no EOS token: no response would end."
            )
        self.model, self.settings = model, settings
        self.pad = min(self.stops) if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @torch.inference_mode()
    def __call__(self, prefixes: Sequence[list[int]], limits: Sequence[int], seed: int) -> list[list[int]]:
        """A continuation of each prefix of at most its limit of tokens, the one that ends it included."""
        width = max(map(len, prefixes))
        device = self.model.get_input_embeddings().weight.device
        ids = torch.tensor([[self.pad] * (width - len(prefix)) + prefix for prefix in prefixes], device=device)
        mask = torch.tensor([[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in prefixes], device=device)
        config = GenerationConfig(
            do_sample=True,
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            top_k=0,
            repetition_penalty=1.0,
            max_new_tokens=max(limits),
            eos_token_id=sorted(self.stops),
            pad_token_id=self.pad,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            written = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:]
        return [self._cut(row[:limit]) for row, limit in zip(written.tolist(), limits, strict=True)]

    def _cut(self, ids: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(ids) if token in self.stops), len(ids))
        return ids[: end + 1]

    def continue_after(self, prefixes: Sequence[list[int]], limits: Sequence[int], seed: int) -> list[list[int]]:
        """As a call, but a prefix that has ended, or has no tokens left, has an empty continuation."""
        open_ = [i for i, p in enumerate(prefixes) if p[-1] not in self.stops and limits[i] > 0]
        found: list[list[int]] = [[] for _ in prefixes]
        for start in range(0, len(open_), self.settings.batch_size):
            part = open_[start : start + self.settings.batch_size]
            written = self([prefixes[i] for i in part], [limits[i] for i in part], seed + start)
            for i, ids in zip(part, written, strict=True):
                found[i] = ids
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
        row[f"distance_{name}"] = float(np.mean([edit_distance(paths[a][i], paths[b][j]) for a, i, b, j in pairs]))
        row[f"changed_{name}"] = float(np.mean([graded[a][i][0] != graded[b][j][0] for a, i, b, j in pairs]))
    return row


def divergence(
    model: Any,
    tokenizer: Any,
    responses: Sequence[tuple[list[int], list[int]]],
    grade: Grade,
    settings: Settings,
) -> Iterator[Row]:
    """A row for each fork, as soon as its continuations are there: the fields of `Fork` and of `paths_row`.

    Args:
        model: causal language model of transformers, in evaluation mode.
        tokenizer: of the model.
        responses: (prompt ids, response ids), the responses with the token that ended them.
        grade: whether responses are right, and what they answer.
    """
    sampler, k = Sampler(model, tokenizer, settings), settings.continuations
    forks = sorted(find_forks(model, responses, settings), key=lambda fork: fork.position)
    together = max(1, settings.batch_size // (2 * k))
    for start in range(0, len(forks), together):
        part = forks[start : start + together]
        begun = [[*responses[f.response][1][: f.position], token] for f in part for token in (f.token, f.other)]
        prefixes = [responses[f.response][0] + ids for f, ids in zip(np.repeat(part, 2), begun, strict=True)]
        limits = [settings.max_tokens - len(ids) for ids in begun]
        # Batches count their continuations from different seeds.
        seed = settings.seed + 1 + 2 * k * start
        written = sampler.continue_after(
            [p for p in prefixes for _ in range(k)], [n for n in limits for _ in range(k)], seed
        )
        for i, fork in enumerate(part):
            sides = [written[side * k : (side + 1) * k] for side in (2 * i, 2 * i + 1)]
            texts = [
                tokenizer.decode(begun[2 * i + side] + ids, skip_special_tokens=True)
                for side in (0, 1)
                for ids in sides[side]
            ]
            graded = grade(fork.response, texts)
            yield asdict(fork) | paths_row(sides, (graded[:k], graded[k:]))


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over the forks of each kind with 95% intervals whose clusters are the responses.

    `intervention` is the mean of I_t. `distance` and `changed` are by how much two paths of the two tokens differ more
    than two paths of one token do; both sides of the difference stand beside it.
    """
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in (HIGH, LOW)}
    return {kind: _summary(mine) for kind, mine in kinds.items() if mine}


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    cluster = np.unique([row["response"] for row in rows], return_inverse=True)[1]
    forks = np.bincount(cluster)

    def sums(name: str) -> np.ndarray:
        return np.bincount(cluster, [row[name] for row in rows])

    def gain(before: str, after: str) -> dict[str, float]:
        return gain_interval(sums(before), sums(after), forks, forks)

    shares = ("accuracy", "other_accuracy", "distance_between", "distance_within", "changed_between", "changed_within")
    return {
        "forks": len(rows),
        "responses": len(forks),
        "entropy": float(np.mean([row["entropy"] for row in rows])),
        "intervention": gain("other_accuracy", "accuracy"),
        "distance": gain("distance_within", "distance_between"),
        "changed": gain("changed_within", "changed_between"),
    } | {name: share_interval(sums(name), forks) for name in shares}
