"""How many tokens a selection keeps. No torch here, so that whoever only reads a run's settings need not load it."""

import math
from fractions import Fraction


def kept_share(rho: float, kind: str = "top") -> float:
    """The share of tokens that a selection keeps: rho, or what that leaves over for `bottom`."""
    return 1 - rho if kind == "bottom" else rho


def kept_count(n: int, rho: float, kind: str = "top") -> int:
    """How many of `n` tokens a selection keeps: ceil(n * rho), or what that leaves over for `bottom`.

    `rho` counts as the decimal that was written: in floating point ceil(100 * 0.07) is 8.
    """
    top = math.ceil(n * Fraction(repr(rho)))
    return n - top if kind == "bottom" else top
