"""Coloured text (arXiv 2506.01939, Fig. 12-17) as one self-contained HTML page.

Each token has the colour of its entropy. The top share rho is marked, and a slider sets rho. A token under the pointer
or the keyboard focus shows its entropy, its probability and its alternatives. Checkpoints are shown side by side.

Tokens are untrusted text, so that no part of a token may become markup. The data is JSON in an inert block, written
without `<`. The script inserts it only as text, with isolated text direction. The content security policy allows only
the page's own script, by its hash, and no requests.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...objective.share import RHO
from ...runs import files
from .. import pages
from .tokens import Response, View, shown

# Quantile of the entropies that has the strongest colour. Tokens above it have the same colour.
COLOURED = 0.99
LEAST = -999.0


def entropy_scale(responses: Sequence[Response]) -> float:
    """Return the entropy in nats that has the strongest colour."""
    entropies = [h for response in responses for view in response.views for h in view.entropies]
    return max(float(np.quantile(entropies, COLOURED)), 0.1) if entropies else 0.1


class _Texts:
    """Numbers of texts, which keep the page small, because 20,000 tokens with alternatives have few distinct texts."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))


def _view(view: View, texts: _Texts) -> dict[str, Any]:
    def short(logp: float) -> float:  # JSON has no -inf, the log-probability of a token that cannot be drawn
        return round(max(logp, LEAST), 3)

    alternatives = (
        None
        if view.alternatives is None
        else [[x for text, logp in options for x in (texts(text), short(logp))] for options in view.alternatives]
    )
    return {
        "h": [float(f"{h:.6g}") for h in view.entropies],  # fewer digits would create ties
        "p": view.logps and list(map(short, view.logps)),
        "a": alternatives,
        "kept": view.kept and list(map(int, view.kept)),
    }


def page_data(responses: Sequence[Response], rho: float) -> dict[str, Any]:
    """Return the data for the page's script.

    Raises:
        ValueError: the responses have different checkpoints.
    """
    names = [view.name for view in responses[0].views] if responses else []
    texts, rows = _Texts(), []
    for response in responses:
        if [view.name for view in response.views] != names:
            raise ValueError(
                f"response {response.title!r} has the checkpoints {[view.name for view in response.views]}, but the "
                f"first response has {names}: give all responses the same checkpoints."
            )
        rows.append(
            {
                "title": shown(response.title),
                "prompt": "".join(map(shown, response.prompt)),
                "tokens": [texts(token) for token in response.tokens],
                "views": [_view(view, texts) for view in response.views],
            }
        )
    return {
        "rho": rho,
        "scale": round(entropy_scale(responses), 4),
        "names": list(map(shown, names)),
        "texts": list(map(shown, texts.numbers)),
        "responses": rows,
    }


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def page(title: str, responses: Sequence[Response], rho: float = RHO) -> str:
    """Return the HTML page, whose slider starts at rho."""
    style, script = pages.source("shades.css") + pages.source("tokens.css"), pages.source("tokens.js")
    # Without `<` no text can end the block or begin another block; json escapes all non-ASCII characters.
    data = json.dumps(page_data(responses, rho), separators=(",", ":")).replace("<", "\\u003c")
    return pages.render(
        "tokens.html",
        title=shown(title),
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}",
        style=style,
        script=script,
        data=data,
    )


def write_page(path: Path, title: str, responses: Sequence[Response], rho: float = RHO) -> None:
    """Write the page to a file."""
    files.write_text(path, page(title, responses, rho))
