"""Coloured text in a terminal: background by entropy in 256 colours, kept tokens underlined.

If the output is not a terminal, or NO_COLOR is set, kept tokens are in ⟦brackets⟧ and no token is coloured. Control
characters of a token are displayed and never sent to the terminal.
"""

import os
from collections.abc import Sequence
from typing import TextIO

from .page import entropy_scale
from .tokens import Response, kept_tokens, shown

# Colours of the 6 x 6 x 6 cube from pale yellow to red, under black letters. Tokens below LOWEST have no colour.
SHADES = (230, 229, 228, 222, 221, 215, 209, 203, 196)
RESET = "\x1b[0m"
LOWEST = 0.01  # nats; half of a model's tokens lie below


def wants_colour(file: TextIO) -> bool:
    """Return whether a file is a terminal that shows colours."""
    return file.isatty() and not os.environ.get("NO_COLOR")


def _shade(entropy: float, scale: float) -> int | None:
    if entropy < LOWEST:
        return None
    return SHADES[min(len(SHADES) - 1, int(entropy / scale * len(SHADES)))]


def _token(text: str, shade: int | None, kept: bool, colour: bool) -> str:
    if not colour:
        # The closing bracket precedes the line end of a token.
        return f"⟦{text.rstrip(chr(10))}⟧{chr(10) if text.endswith(chr(10)) else ''}" if kept else text
    codes = [f"38;5;16;48;5;{shade}"] * (shade is not None) + ["4"] * kept
    if not codes:
        return text
    # Each line is coloured separately, because a background colour would extend to the end of the line.
    return "\n".join(f"\x1b[{';'.join(codes)}m{part}{RESET}" if part else "" for part in text.split("\n"))


def text(responses: Sequence[Response], rho: float, colour: bool) -> str:
    """Return the responses under each of their views, one below the other, with a legend."""
    lines = []
    scale = entropy_scale(responses)
    for index, view in enumerate(responses[0].views if responses else ()):
        for response, kept in zip(responses, kept_tokens(responses, index, rho), strict=True):
            entropies = response.views[index].entropies
            share = f"{sum(kept)} of {len(kept)} tokens kept at rho = {rho:g}"
            lines.append(f"{shown(response.title)} · {shown(view.name)} · {share}")
            lines.append(
                "".join(
                    _token(shown(token), _shade(h, scale), mark, colour)
                    for token, h, mark in zip(response.tokens, entropies, kept, strict=True)
                )
            )
    if colour:
        ramp = "".join(_token("  ", shade, False, True) for shade in SHADES)
        underlined = _token("underlined", None, True, True)
        lines.append(f"entropy {LOWEST} {ramp} {scale:.2f} nats and above; kept tokens are {underlined}")
    else:
        lines.append("kept tokens are in ⟦brackets⟧")
    return "\n".join(lines) + "\n"
