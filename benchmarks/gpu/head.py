"""Part B: the LM head alone in bfloat16: milliseconds, peak memory, and errors against float64.

Every variant gets n rows, of which a share rho has a gradient. "ranking" computes the entropies of all rows, and
differentiates the rows with a gradient. "known" gets only the rows with a gradient and computes no entropies. TRL's
head and Liger's head get all rows, as from their callers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.head import ENTROPY, STOCK, sparse
from benchmarks.measure import in_turns, peak_memory, seconds, spread
from entropy_grpo.models import kernels
from entropy_grpo.models.kernels import LIGER, TILES, hopper

from .report import Report
from .sizes import Sizes

RHOS = (0.2, 1.0)
Problem = tuple[Tensor, Tensor, Tensor, Tensor]
# (hidden, weight, targets, gradients) -> (log_probs, entropies or None)
Score = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]


def problem(rows: int, hidden_size: int, vocabulary: int, rho: float, device: str) -> Problem:
    """(hidden, weight, targets, gradients) on the device.

    Logits have a standard deviation of 3, as in a language model. Gradients are zero except for a share rho of the
    rows.
    """
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(rows, hidden_size, generator=generator, device=device, dtype=torch.bfloat16)
    weight = torch.empty(vocabulary, hidden_size, device=device, dtype=torch.bfloat16)
    weight.normal_(std=3 / hidden_size**0.5, generator=generator)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator, device=device)
    gradients = torch.randn(rows, generator=generator, device=device)
    gradients[torch.randperm(rows, generator=generator, device=device)[round(rho * rows) :]] = 0
    return hidden, weight, targets, gradients


@contextmanager
def tiles_of(width: int) -> Iterator[None]:
    """Set the width of the sparse head's tiles."""
    widths = kernels.GPU_TILE, kernels.CPU_TILE
    kernels.GPU_TILE = kernels.CPU_TILE = width
    try:
        yield
    finally:
        kernels.GPU_TILE, kernels.CPU_TILE = widths


def liger_triton(
    sums: torch.dtype | None, hidden: Tensor, weight: Tensor, targets: Tensor, gradients: Tensor
) -> tuple[Tensor, None]:
    """Liger's Triton fused linear cross-entropy, which has no entropies. `sums` is the dtype of gradient sums."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    # No bias, class weights, z-loss, smoothing or cap, and a loss for every row.
    found = LigerFusedLinearCrossEntropyFunction.apply(
        hidden, weight, targets, None, None, -100, 0.0, 0.0, "none", None, False, sums
    )
    return -found[0], None


def liger_fallback(hidden: Tensor, weight: Tensor, targets: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Liger's fallback for GPUs without a kernel of its scaled cross-entropy."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import _FusedLinearPPOFallbackFunction

    nll, entropy = _FusedLinearPPOFallbackFunction.apply(hidden, weight, targets, 1.0, -100, True)
    return -nll, entropy


def liger_hopper(
    entropies: bool, hidden: Tensor, weight: Tensor, targets: Tensor, gradients: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Liger's Hopper kernel, whose entropies are bfloat16."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    found = LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, targets, 1.0, -100, 1, entropies)
    return (-found[0], found[1]) if entropies else (-found, None)


def ranking(kernel: Any, outputs: tuple[str, ...], hidden: Tensor, weight: Tensor, targets: Tensor, _: Tensor):
    """The sparse head on all rows."""
    return sparse(kernel, outputs, hidden, weight, targets)


def stock(hidden: Tensor, weight: Tensor, targets: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """TRL's head."""
    return STOCK(hidden, weight, targets)


def known(problem: Problem) -> Problem:
    """The rows that have a gradient."""
    hidden, weight, targets, gradients = problem
    rows = gradients.nonzero().squeeze(1)
    return hidden[rows], weight, targets[rows], gradients[rows]


class Run:
    """A variant on a problem, whose forward and backward halves are called separately."""

    def __init__(self, score: Score, given: Problem):
        self.score, self.given = score, given
        self.leaves = [x.detach().requires_grad_() for x in given[:2]]

    def forward(self) -> None:
        """Score the rows."""
        self.scores = self.score(*self.leaves, *self.given[2:])

    def backward(self) -> None:
        """Differentiate the rows."""
        self.scores[0].backward(self.given[3].to(self.scores[0].dtype))

    def clear(self) -> None:
        """Drop scores, graph and gradients."""
        self.scores = None
        for leaf in self.leaves:
            leaf.grad = None

    def both(self) -> None:
        """Run one forward and one backward pass."""
        self.clear()
        self.forward()
        self.backward()


def figures(score: Score, given: Problem, repeats: int) -> dict[str, Any]:
    """Milliseconds of both halves, and peak memory without rows, weight and upstream gradients."""
    run = Run(score, given)
    run.both()  # compiles
    forward, backward = [], []
    for _ in range(repeats):
        run.clear()
        forward.append(1e3 * seconds(run.forward))
        backward.append(1e3 * seconds(run.backward))
    run.clear()
    peak = peak_memory(run.both)
    return {"forward_ms": spread(forward), "backward_ms": spread(backward), "peak_gib": peak / 2**30}


def times(report: Report, sizes: Sizes, rows: int, rho: float, variants: dict[str, tuple[Score, Problem]]) -> None:
    """Measure every variant."""
    for name, (score, given) in variants.items():
        with report.measure(name, rows=rows, rho=rho) as row:
            row |= figures(score, given, sizes.repeats)


def truth(given: Problem, chunk: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies and both gradients in float64, from whole logits of `chunk` rows at a time."""
    hidden, weight, targets, gradients = given
    exact = weight.double()
    grad_weight = torch.zeros_like(exact)
    parts = []
    for start in range(0, hidden.size(0), chunk):
        part = slice(start, start + chunk)
        rows = hidden[part].double()
        logps = (rows @ exact.t()).log_softmax(-1)
        probs = logps.exp()
        entropies = -(probs * logps).sum(-1)
        log_probs = logps.gather(1, targets[part].unsqueeze(1)).squeeze(1)
        # d log p_o / d logits = e_o - p
        slopes = probs.neg_().scatter_add_(1, targets[part].unsqueeze(1), torch.ones_like(log_probs).unsqueeze(1))
        slopes *= gradients[part].double().unsqueeze(1)
        parts.append((log_probs, entropies, slopes @ exact))
        grad_weight += slopes.t() @ rows
    log_probs, entropies, grad_hidden = (torch.cat(x) for x in zip(*parts, strict=True))
    return log_probs, entropies, grad_hidden, grad_weight


def errors(report: Report, sizes: Sizes, given: Problem, variants: dict[str, tuple[Score, Problem]]) -> None:
    """Root-mean-square errors divided by the root mean square of the truth.

    Log-probabilities, entropies and gradients of hidden states are compared for `exact_rows` rows, the weight's
    gradient for all rows.
    """
    exact = truth(given, sizes.exact_rows)
    few = slice(0, sizes.exact_rows)
    kept = given[3].nonzero().squeeze(1)
    shown = kept[kept < sizes.exact_rows]
    for name, (score, problem_given) in variants.items():
        with report.measure(f"errors: {name}", rows=given[0].size(0)) as row:
            run = Run(score, problem_given)
            run.both()
            log_probs, entropies = run.scores
            of_kept = len(log_probs) != len(given[2])
            rows = slice(0, len(shown)) if of_kept else few
            truths = shown if of_kept else few

            def relative(x: Tensor, y: Tensor) -> float:
                return ((x.detach().double() - y).norm() / y.norm()).item()

            row["log_probs"] = relative(log_probs[rows], exact[0][truths])
            row["log_probs, largest"] = (log_probs[rows].detach().double() - exact[0][truths]).abs().max().item()
            row["entropies"] = None if entropies is None else relative(entropies[rows], exact[1][truths])
            row["grad_hidden"] = relative(run.leaves[0].grad[rows], exact[2][truths])
            row["grad_weight"] = relative(run.leaves[1].grad, exact[3])
            run.clear()


def product(given: Problem, width: int, repeats: int) -> dict[str, Any]:
    """Time and error of one tile of logits, rounded to bfloat16 as in the tiles, and as float32 from the same product.

    The error is the root mean square relative to float64. A product with float32 output exists on a GPU only.
    """
    hidden, weight = given[0], given[1][:width]
    variants: dict[str, Callable[[], Tensor]] = {
        "bfloat16": lambda: hidden @ weight.t(),
        "bfloat16, then float32": lambda: (hidden @ weight.t()).float(),
    }
    if hidden.is_cuda:
        variants["float32"] = lambda: torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    exact = hidden.double() @ weight.double().t()
    taken = in_turns(variants, repeats)
    return {
        name: {
            "ms": spread([1e3 * one for one in taken[name]]),
            "error": (logits().double() - exact).square().mean().sqrt().item(),
        }
        for name, logits in variants.items()
    }


def run(report: Report, sizes: Sizes) -> None:
    """Time every variant at every size, measure errors at the smallest size, and then measure tiles and Liger."""
    ours = (partial(ranking, TILES, ENTROPY), partial(ranking, TILES, ()))
    native = hopper(torch.device(sizes.device)) and find_spec("cutlass") is not None
    report.note(
        vocabulary=sizes.head_vocabulary, hidden_size=sizes.head_hidden, **{"Liger's Hopper kernel is there": native}
    )

    def make(rows: int, rho: float) -> Problem:
        return problem(rows, sizes.head_hidden, sizes.head_vocabulary, rho, sizes.device)

    def main_variants(given: Problem) -> dict[str, tuple[Score, Problem]]:
        return {
            "TRL": (stock, given),
            "ours, ranking": (ours[0], given),
            "ours, known": (ours[1], known(given)),
        }

    def liger_variants(given: Problem) -> dict[str, tuple[Score, Problem]]:
        found: dict[str, tuple[Score, Problem]] = {"Liger, scaled, fallback": (liger_fallback, given)}
        if sizes.device == "cuda":
            found |= {
                "Liger, Triton": (partial(liger_triton, None), given),
                "Liger, Triton, float32 sums": (partial(liger_triton, torch.float32), given),
                "Liger, Triton, float32 sums, known": (partial(liger_triton, torch.float32), known(given)),
            }
        if native:
            found |= {
                "Liger, Hopper": (partial(liger_hopper, False), given),
                "Liger, Hopper, entropies": (partial(liger_hopper, True), given),
                "ours on Liger's Hopper kernel, all rows": (partial(ranking, LIGER, ()), given),
                "ours on Liger's Hopper kernel, known": (partial(ranking, LIGER, ()), known(given)),
            }
        return found

    for rows in sizes.head_rows:
        for rho in RHOS:
            times(report, sizes, rows, rho, main_variants(make(rows, rho)))
    given = make(sizes.head_rows[0], RHOS[0])
    errors(report, sizes, given, main_variants(given))
    with report.measure("one tile of logits", rows=sizes.head_rows[0], tile=sizes.tiles[0]) as row:
        row |= product(given, sizes.tiles[0], sizes.repeats)
    for rows in sizes.head_rows:
        for rho in RHOS:
            times(report, sizes, rows, rho, liger_variants(make(rows, rho)))
    errors(report, sizes, given, liger_variants(given))
    for rows in reversed(sizes.head_rows):
        for rho in RHOS:
            given = make(rows, rho)
            for width in sizes.tiles:
                with tiles_of(width):
                    variants = {"ours, ranking": (ours[0], given), "ours, known": (ours[1], known(given))}
                    times(report, sizes, rows, rho, {f"{name}, tiles of {width}": v for name, v in variants.items()})
