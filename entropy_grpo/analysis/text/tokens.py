"""Response data for page and terminal: the text of each token, and its statistics under every checkpoint.

All checkpoints score the same tokens, so that their statistics can be compared token by token.
"""

import itertools
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...monitoring.pieces import piece
from ...objective.share import kept_count
from ...runs import parquet
from ...runs.files import Row
from ..collect.store import Collection
from .alternatives import Scores

LINE_END = "↵"
Alternatives = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class View:
    """One checkpoint's statistics of the T tokens of a response.

    Attributes:
        name: name of the checkpoint.
        entropies: T entropies, nats.
        logps: T log-probabilities of the tokens, or None.
        alternatives: the most probable tokens of each of T positions with their log-probabilities, or None.
        kept: T booleans, whether a run trained on the token, or None.
    """

    name: str
    entropies: Sequence[float]
    logps: Sequence[float] | None = None
    alternatives: Sequence[Alternatives] | None = None
    kept: Sequence[bool] | None = None


@dataclass(frozen=True)
class Response:
    """Response and its views.

    Raises:
        ValueError: a view has another number of tokens, or an entropy is not finite.
    """

    title: str
    prompt: str
    tokens: Sequence[str]
    views: Sequence[View]

    def __post_init__(self) -> None:
        for view in self.views:
            for name in ("entropies", "logps", "alternatives", "kept"):
                values = getattr(view, name)
                if values is not None and len(values) != len(self.tokens):
                    raise ValueError(
                        f"{name} of {view.name!r} has {len(values)} values for the {len(self.tokens)} tokens of "
                        f"{self.title!r}: give one value per token."
                    )
            if not all(map(math.isfinite, view.entropies)):
                raise ValueError(
                    f"entropies of {view.name!r} are not all finite in {self.title!r}: give finite numbers."
                )


def shown(text: str) -> str:
    """Return a token's text for a page or a terminal, with invisible and control characters as code points.

    Unlike `pieces.visible`, which is for tables, the text keeps spaces, line breaks, and marks on their letters.
    """
    characters = []
    for i, character in enumerate(text):
        category = unicodedata.category(character)
        if character == "\n":
            characters.append(LINE_END + "\n")
        elif category[0] in "CZ" and character != " ":  # controls, formats such as direction marks, surrogates, ...
            characters.append(f"⟨U+{ord(character):04X}⟩")
        elif category[0] == "M" and i == 0:  # a combining mark would attach to the previous token
            characters.append("◌" + character)
        else:
            characters.append(character)
    return "".join(characters) or "⟨⟩"


def view(name: str, scores: Scores, tokenizer: Any) -> View:
    """Convert the result of `alternatives.score` to a view."""
    texts = {token: piece(tokenizer, token) for token in scores.top_ids.unique().tolist()}
    rows = zip(scores.top_ids.tolist(), scores.top_logps.tolist(), strict=True)
    alternatives = [[(texts[token], logp) for token, logp in zip(*row, strict=True)] for row in rows]
    return View(name, scores.entropies.tolist(), scores.logps.tolist(), alternatives)


def from_samples(rows: Iterable[Row]) -> list[Response]:
    """Return the responses of a run's `samples.jsonl`, each scored by the policy of its step."""
    return [
        Response(
            title=_title(row),
            prompt=row["prompt"],
            tokens=row["tokens"],
            views=[View("policy", row["entropies"], kept=[bool(kept) for kept in row["kept"]])],
        )
        for row in rows
    ]


def from_collection(collection: Collection, names: Sequence[str], count: int) -> list[Response]:
    """Return the first `count` responses of a collection, as the named checkpoints scored them."""
    rows: list[Row] = []
    with parquet.opened(collection.responses) as file:
        groups = 0
        while groups < file.num_row_groups and len(rows) < count:
            rows += file.read_row_group(groups).to_pylist()
            groups += 1
    rows = rows[:count]
    texts: list[list[str]] = []
    views: list[list[View]] = [[] for _ in rows]
    for name in names:
        # A part of the tokens holds the responses of a row group.
        parts = list(itertools.islice(collection.parts(name, ("response", "text", "entropy", "log_prob")), groups))
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        own = [joined["response"] == row["id"] for row in rows]
        texts = [joined["text"][mine].tolist() for mine in own]
        for found, mine in zip(views, own, strict=True):
            found.append(View(name, joined["entropy"][mine].tolist(), joined["log_prob"][mine].tolist()))
    return [
        Response(f"response {row['id']}, {_verdict(row['correct'])}{len(text)} tokens", row["prompt"], text, found)
        for row, text, found in zip(rows, texts, views, strict=True)
    ]


def _title(row: Row) -> str:
    verdict = _verdict(row.get("right"))
    return f"step {row['step']}, {verdict}advantage {row['advantage']:+.2f}, {len(row['tokens'])} tokens"


def _verdict(right: bool | None) -> str:
    return "" if right is None else "right, " if right else "wrong, "


def kept_tokens(responses: Sequence[Response], index: int, rho: float) -> list[list[bool]]:
    """Return whether the view at `index` keeps each token: the ceil(n rho) of highest entropy, ties by position."""
    entropies = [h for response in responses for h in response.views[index].entropies]
    order = sorted(range(len(entropies)), key=lambda i: -entropies[i])
    kept = set(order[: kept_count(len(entropies), rho)])
    places = iter(range(len(entropies)))
    return [[next(places) in kept for _ in response.tokens] for response in responses]
