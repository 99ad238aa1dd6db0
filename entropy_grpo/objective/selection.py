"""Selection of the tokens to train on: exactly ceil(n * rho), over any number of ranks, with deterministic ties.

The textbook rule `H >= quantile(H, 1 - rho)` keeps every token that ties with the threshold. Ties are common, because
the first tokens of a group share one context and therefore one entropy. Here every token gets a unique key, made of
its score and then its place in the rollout. The k-th largest key is found digit by digit from histograms. Ranks
exchange only sums of histograms, so that no tokens are gathered or sorted. The only limit on the number of tokens is
`MAX_TOKENS`.

Pure functions. `reduce` sums an integer tensor over ranks and is the identity on one process. Shapes: scores, mask,
places and the results are all (..., T) with any leading shape. Each rank passes its own tokens.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from .share import BY_NORM, by_decimals, kept_count

Reduce = Callable[[Tensor], Tensor]

SELECTIONS = ("top", "bottom", "random", *BY_NORM)
Scope = Literal["micro_batch", "global", "rollout"]
SCOPES = get_args(Scope)

# A key is a non-negative int64 of 63 bits: 32 for the score and 31 for the place.
PLACE_BITS = 31
MAX_TOKENS = 2**PLACE_BITS
DIGIT_BITS = 16


def on_one_process(counts: Tensor) -> Tensor:
    """The `reduce` of a single process."""
    return counts


def order_bits(scores: Tensor) -> Tensor:
    """Map scores, compared as float32, to int64 in [0, 2^32) with the same order and -0.0 equal to 0.0."""
    bits = (scores.detach().float() + 0.0).view(torch.int32)
    signed = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return signed.long() + 2**31


def score_from_bits(bits: int) -> float:
    """The inverse of `order_bits` for one value."""
    signed = bits - 2**31
    if signed < 0:
        signed ^= 0x7FFFFFFF
    return torch.tensor(signed, dtype=torch.int32).view(torch.float32).item()


def kth_largest(
    keys: Tensor, ranks: Sequence[int], reduce: Reduce, bits: int = 64, weights: Tensor | None = None
) -> list[int]:
    """Find the k-th largest key over all processes, for every k in `ranks`. Every duplicate counts.

    The search makes one histogram of 2^16 counts per digit and distinct prefix, most significant digit first. Only
    keys that match the digits found so far stay in the search. The histograms of a digit are exchanged together.

    Args:
        keys: non-negative int64 keys of this process, below 2^bits.
        ranks: values of k, from 1.
        weights: non-negative int64 number of times that each key counts; once by default.
    """
    ranks, prefixes = list(ranks), [0] * len(ranks)
    matching = {0: (keys.flatten(), weights)}  # keys and their weights by the digits found so far
    for shift in range(bits - DIGIT_BITS, -1, -DIGIT_BITS):
        digits = {prefix: (part >> shift) & (2**DIGIT_BITS - 1) for prefix, (part, _) in matching.items()}
        counts = reduce(torch.stack([_histogram(d, matching[prefix][1]) for prefix, d in digits.items()]))
        from_top = dict(zip(digits, counts.flip(1).cumsum(1), strict=True))
        continuation = {}
        for i, (k, prefix) in enumerate(zip(ranks, prefixes, strict=True)):
            place = int(torch.searchsorted(from_top[prefix], k))
            ranks[i] = k - (int(from_top[prefix][place - 1]) if place else 0)
            digit = 2**DIGIT_BITS - 1 - place
            prefixes[i] = prefix << DIGIT_BITS | digit
            if prefixes[i] not in continuation:
                part, of_part = matching[prefix]
                chosen = digits[prefix] == digit
                continuation[prefixes[i]] = part[chosen], of_part if of_part is None else of_part[chosen]
        matching = continuation
    return prefixes


def _histogram(digits: Tensor, weights: Tensor | None) -> Tensor:
    """(2^16,) int64: the number, or the summed weights, of every digit."""
    if weights is None:
        return torch.bincount(digits, minlength=2**DIGIT_BITS)
    return digits.new_zeros(2**DIGIT_BITS).index_add_(0, digits, weights)


def random_scores(places: Tensor, seed: int) -> Tensor:
    """Float32 scores in [0, 2^24) that depend only on the seed and on each token's place (splitmix64).

    Draws of a generator would depend on the distribution of tokens over micro-batches and ranks.
    """

    def signed(x: int) -> int:
        return (x + 2**63) % 2**64 - 2**63

    x = places.long() + signed((seed + 1) * 0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        # Arithmetic shifts copy the sign. The mask makes them logical shifts.
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * signed(factor)
    # The last step of splitmix64 changes only the lower 33 bits, and the scores are the upper 24.
    return ((x >> 40) & (2**24 - 1)).float()


def unique_keys(scores: Tensor, places: Tensor) -> Tensor:
    """int64 keys with the order of the scores, and among equal scores with the smaller place above the larger one."""
    return (order_bits(scores) << PLACE_BITS) | (MAX_TOKENS - 1 - places.long())


def select(
    scores: Tensor,
    mask: Tensor,
    rho: float,
    places: Tensor,
    kind: str = "top",
    seed: int = 0,
    reduce: Reduce = on_one_process,
) -> tuple[Tensor, float]:
    """Keep the forking tokens (arXiv 2506.01939, Eq. 6), or a control.

    Args:
        scores: values that rank the tokens, entropies in nats or `gradient_norms`. They are compared as float32 and
            never differentiated.
        mask: true for tokens that count, of the same shape.
        rho: share kept by `top` and `random`, in (0, 1].
        places: int64 in [0, `MAX_TOKENS`), the token's place in the whole rollout, unique over all ranks. Among equal
            scores, the token with the smaller place is kept.
        kind: `top` and `gradient_norm` keep the ceil(n * rho) tokens of highest score, `bottom` exactly the tokens
            that `top` drops, `random` any ceil(n * rho).
        seed: seed of `random`.

    Returns:
        (kept tokens (bool), threshold). The threshold is the lowest score that `top` keeps. It is NaN for `random`,
        and if no token counts.
    """
    mask = mask.bool()
    n = int(reduce(mask.sum()))
    if kind == "random":
        scores = random_scores(places, seed)
    k = kept_count(n, rho)
    if k == 0:
        return torch.zeros_like(mask), math.nan
    keys = unique_keys(scores, places)
    (smallest_kept,) = kth_largest(keys[mask], [k], reduce)
    top = mask & (keys >= smallest_kept)
    threshold = math.nan if kind == "random" else score_from_bits(smallest_kept >> PLACE_BITS)
    return (mask & ~top if kind == "bottom" else top), threshold


def above(scores: Tensor, mask: Tensor, threshold: float, kind: str) -> Tensor:
    """Keep the tokens that a threshold from elsewhere keeps, every tie included.

    Args:
        scores, mask: see `select`.
        threshold: lowest score that `top` keeps; `bottom` keeps the tokens below it.

    Returns:
        Kept tokens (bool).
    """
    top = scores.detach().float() >= threshold
    return mask.bool() & (~top if kind == "bottom" else top)


def select_matched(
    entropies: Tensor,
    norms: Tensor,
    mask: Tensor,
    rho: float,
    places: Tensor,
    seed: int,
    reduce: Reduce = on_one_process,
) -> Tensor:
    """Keep random tokens until their summed gradient norms reach those of the tokens that `top` keeps.

    This control tests if entropy is only a proxy for large gradients. It has the gradient of `top`, on tokens chosen
    without entropy. The sum exceeds that of `top` by less than the norm of the last token. If no token has a gradient,
    none is kept.

    The norms are added as integers, in units of 2^-30 of the largest, so that sums do not depend on ranks and order.

    Args:
        norms: `gradient_norms`, non-negative.
        entropies, mask, rho, places, seed: see `select`.
    """
    mask = mask.bool()
    top, _ = select(entropies, mask, rho, places, reduce=reduce)
    if not int(reduce(mask.sum())):
        return top
    (bits,) = kth_largest(order_bits(norms)[mask], [1], reduce, bits=32)
    largest = score_from_bits(bits)
    if not 0 < largest < math.inf:
        return torch.zeros_like(mask)
    weights = (norms.double() / largest * 2**30).round().long()
    wanted = int(reduce((weights * top).sum()))
    if not wanted:
        return torch.zeros_like(mask)
    keys = unique_keys(random_scores(places, seed), places)
    (smallest_kept,) = kth_largest(keys[mask], [wanted], reduce, weights=weights[mask])
    return mask & (keys >= smallest_kept)


def gradient_norms(
    residual_norms: Tensor,
    advantages: Tensor,
    ratios: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None = None,
) -> Tensor:
    """G_t of arXiv 2508.02260 (Eq. 4), the norm of a token's gradient in the LM head's weight, up to a constant.

    The gradient is an outer product, alpha * (e(o) - p) h^T, with the norm |alpha| * ||e(o) - p||_2 * ||h||_2. The
    (V, H) matrix is therefore never formed.

    alpha is not the letter of the paper's alpha_t. It is the factor of d log p(o) in this package's loss: advantage
    times ratio, and zero if the clip, or the dual clip, stops the gradient. The caller multiplies it by vLLM's
    importance correction. Left out are the divisor of the loss and the sampling temperature, which all tokens of an
    optimiser step share.

    Args:
        residual_norms: (B, T) float32, ||e(o) - p||_2 * ||h||_2.
        advantages: (B, 1) or (B, T).
        ratios: (B, T), current over old probability of each token.
        epsilon_low, epsilon_high, delta: clip limits of the surrogate. alpha is zero for clipped tokens.
    """
    highest = 1 + epsilon_high if delta is None else min(1 + epsilon_high, delta)
    clipped = (advantages > 0) & (ratios > highest) | (advantages < 0) & (ratios < 1 - epsilon_low)
    if delta is not None:
        clipped |= ratios > max(1 + epsilon_high, delta)
    return advantages.abs() * ratios * ~clipped * residual_norms


def percentiles(values: Tensor, mask: Tensor, levels: Sequence[float], reduce: Reduce = on_one_process) -> list[float]:
    """Exact percentiles (levels in [0, 100]) of the masked values of all ranks; NaN if no token counts.

    Each percentile is an observed value, the lower of two neighbours.
    """
    mask = mask.bool()
    n = int(reduce(mask.sum()))
    if n == 0:
        return [math.nan] * len(levels)
    bits = order_bits(values)[mask]
    # The value with index floor(level * (n - 1)) from below is the (n - index)-th largest.
    ranks = [n - math.floor(by_decimals(level) / 100 * (n - 1)) for level in levels]
    return [score_from_bits(value_bits) for value_bits in kth_largest(bits, ranks, reduce, bits=32)]
