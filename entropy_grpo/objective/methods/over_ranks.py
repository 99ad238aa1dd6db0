"""Statistics over the responses of all processes, equal to the last bit on every division of the responses.

Floating-point sums depend on the order of their terms. Sums here are sums of integers, in units of 2^-62 of the power
of two above the largest absolute value, so that they depend on neither processes nor micro-batches. Quantiles and
draws are exact.

Every process must call a function with its own values. Shapes: values and mask have the same shape, (B,) or (B, T).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..ranks import Ranks
from ..selection import kth_largest, order_bits, random_scores, score_from_bits, unique_keys
from ..share import by_decimals
from .view import StepView

# A sum of 2^31 terms stays below 2^63 in each digit.
UNIT_BITS = 31


def count(mask: Tensor, ranks: Ranks) -> int:
    """Number of true elements on all processes."""
    return int(ranks.sum(mask.sum()))


def largest(values: Tensor, mask: Tensor, ranks: Ranks) -> float:
    """Largest masked value on all processes, as float32; NaN if there is none, or if one is NaN."""
    bits = order_bits(values)[mask]
    top = ranks.largest(int(bits.max()) + 1 if bits.numel() else 0)
    return score_from_bits(top - 1) if top else math.nan


def _in_units(values: Tensor, mask: Tensor, ranks: Ranks) -> tuple[Tensor, float]:
    """Return masked values as two int64 digits of `UNIT_BITS` bits, (2, ...), and the unit of the second digit.

    The unit is NaN if a value is not finite.
    """
    peak = largest(values.abs(), mask, ranks) if count(mask, ranks) else 0.0
    if not 0 < peak < math.inf:
        return torch.zeros(2, *values.shape, dtype=torch.int64, device=values.device), 0.0 if peak == 0 else math.nan
    unit = math.ldexp(1.0, math.frexp(peak)[1] - UNIT_BITS)
    scaled = values.double().masked_fill(~mask, 0.0) / unit
    first = scaled.trunc()
    return torch.stack([first, ((scaled - first) * 2**UNIT_BITS).round()]).long(), unit / 2**UNIT_BITS


def total(values: Tensor, mask: Tensor, ranks: Ranks) -> float:
    """Sum of the masked values on all processes; NaN if one of them is not finite, 0 if there is none."""
    digits, unit = _in_units(values, mask, ranks)
    first, second = ranks.sum(digits.flatten(1).sum(1)).tolist()
    return (first * 2**UNIT_BITS + second) * unit


def mean(values: Tensor, mask: Tensor, ranks: Ranks) -> float:
    """Mean of the masked values on all processes; NaN if there is none, or if one is not finite."""
    terms = count(mask, ranks)
    whole = total(values, mask, ranks)
    return whole / terms if terms else math.nan


def mean_and_std(values: Tensor, mask: Tensor, ranks: Ranks) -> tuple[float, float]:
    """Mean and population standard deviation (divisor n) of the masked values on all processes."""
    centre = mean(values, mask, ranks)
    return centre, math.sqrt(mean((values.double() - centre).square(), mask, ranks))


def quantile(values: Tensor, mask: Tensor, q: float, ranks: Ranks) -> float:
    """The q-quantile of the masked values on all processes, compared as float32, with linear interpolation.

    It equals `torch.quantile` of the values of all processes, which has a limit of 2^24 values. NaN if there is none.
    """
    n = count(mask, ranks)
    if not n:
        return math.nan
    position = by_decimals(q) * (n - 1)
    lower = math.floor(position)
    upper = min(lower + 1, n - 1)
    bits = kth_largest(order_bits(values)[mask], [n - lower, n - upper], ranks.sum, bits=32)
    low, high = (score_from_bits(b) for b in bits)
    return low + (high - low) * float(position - lower)


def highest(values: Tensor, mask: Tensor, number: int, places: Tensor, ranks: Ranks) -> Tensor:
    """(B, T) bool: exactly `number` masked tokens of highest value on all processes, or all if they are fewer.

    Args:
        values: (B, T), compared as float32.
        places: `StepView.places`. Among equal values, the token with the smaller place is chosen.
    """
    k = min(number, count(mask, ranks))
    if k <= 0:
        return torch.zeros_like(mask)
    keys = unique_keys(values, places)
    (smallest,) = kth_largest(keys[mask], [k], ranks.sum)
    return mask & (keys >= smallest)


def draw(mask: Tensor, number: int, places: Tensor, seed: int, ranks: Ranks) -> Tensor:
    """(B, T) bool: `number` random masked tokens of all processes, or all if they are fewer.

    The draw depends only on the seed, the places of the masked tokens and the number.

    Args:
        places, seed: `StepView.places` and `StepView.seed`.
    """
    return highest(random_scores(places, seed), mask, number, places, ranks)


def group_sum(values: Tensor, mask: Tensor, view: StepView) -> Tensor:
    """(groups,) or (groups, T) float64: sums of the masked values of each group on all processes, per position.

    `group_sum(values, mask, view)[view.group]` gives every response the sum of its group. Groups without a masked
    value have the sum 0. The sums are NaN if a masked value is not finite.

    Args:
        values, mask: (B,) or (B, T). Integers and booleans may be given as values, to count.
    """
    values = values if values.is_floating_point() else values.float()
    digits, unit = _in_units(values, mask, view.ranks)
    if values.dim() > 1:  # processes pad to different widths
        digits = pad(digits, (0, view.ranks.largest(values.size(1)) - values.size(1)))
    sums = digits.new_zeros(2, view.groups, *digits.shape[2:]).index_add_(1, view.group, digits)
    first, second = view.ranks.sum(sums).double()
    sums = (first * 2**UNIT_BITS + second) * unit
    return sums[:, : values.size(1)] if values.dim() > 1 else sums


def whole_groups(values: Tensor, view: StepView) -> Tensor:
    """(groups, G): values (B,) of all processes, a row per group. Every response of the rollout must be in the view.

    `whole_groups(values, view).flatten()[view.order]` are the values of this process again. The function is therefore
    for methods of the stage `rollout`.
    """
    everywhere, order = view.ranks.gather(values, False), view.ranks.gather(view.order, False)
    ordered = torch.empty_like(everywhere)
    ordered[order] = everywhere
    return ordered.view(-1, view.group_size)
