"""Number and share of the tokens that a selection keeps, or, with `random_matched`, divides the loss by.

The module does not import torch, so that readers of a run's settings need not load it.
"""

import math
from fractions import Fraction

# Share of the tokens that arXiv 2506.01939 trains on, those with the highest entropy.
RHO = 0.2
MATCHED = "random_matched"
# Selections that need the norm of every token's gradient.
BY_NORM = ("gradient_norm", MATCHED)


def by_decimals(share: float) -> Fraction:
    """A share, also one of numpy's floats, as its decimal text, because in floating point ceil(100 * 0.07) is 8."""
    return Fraction(str(share))


def kept_share(rho: float, kind: str = "top") -> float:
    """The share of tokens that a selection keeps: rho, or 1 - rho for `bottom`."""
    return 1 - rho if kind == "bottom" else rho


def kept_count(n: int, rho: float, kind: str = "top") -> int:
    """The number of tokens among `n` that a selection keeps: ceil(n * rho), or n - ceil(n * rho) for `bottom`."""
    top = math.ceil(n * by_decimals(rho))
    return n - top if kind == "bottom" else top
