"""The LM head alone, forward and backward, against TRL's: time, peak memory, and error against float64.

    python -m benchmarks.head    # benchmarks/results/head.json, or head_gpu.json on a GPU, with Qwen3-8B's sizes

Every variant scores the same n rows, of which a share rho has a gradient. "known after" is the mask of the current
policy: all rows are projected, and rows with a gradient are differentiated. "known before" is the mask of the rollout:
only rows with a gradient are projected. Units count matmuls of n rows with the head.
"""

import argparse
from functools import partial

import torch
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from benchmarks import measure
from entropy_grpo.models.head import SparseLogProbs
from entropy_grpo.models.kernels import LIGER, TILES, hopper, tile_width

RHOS = (0.1, 0.2, 0.5, 1.0)
UNITS = {
    "TRL": lambda rho: 4,
    "TRL's kernel in our tiles": lambda rho: 4,
    "known after": lambda rho: 1 + 3 * rho,
    "known before": lambda rho: 4 * rho,
    "known after, on Liger": lambda rho: 1 + 4 * rho,
    "known before, on Liger": lambda rho: 5 * rho,
}
ENTROPY = ("entropy",)


def problem(rows, hidden_size, vocabulary, dtype, device, seed=0):
    """Hidden states, a head with distributions as peaked as a language model's, targets, and gradients."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, hidden_size, generator=generator)
    weight = torch.randn(vocabulary, hidden_size, generator=generator) * 3 / hidden_size**0.5
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    gradients = torch.randn(rows, generator=generator)
    return (*(x.to(device, dtype) for x in (hidden, weight)), targets.to(device), gradients.to(device))


def trl(tile, hidden, weight, targets):
    """Log-probabilities and entropies by TRL's kernel with its trainer's arguments, except the width of a tile."""
    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, tile, None, 1.0, ENTROPY)[:2]


STOCK = partial(trl, _CHUNKED_LOGPROB_CHUNK_SIZE)


def sparse(kernel, outputs, hidden, weight, targets):
    """The sparse head on a kernel."""
    return SparseLogProbs.apply(hidden, weight, targets, 1.0, kernel, outputs)[:2]


def step(score, hidden, weight, targets, gradients):
    """Run one forward and backward pass.

    Returns:
        (log_probs, entropies, gradient of hidden, gradient of weight).
    """
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    log_probs, entropies = score(hidden, weight, targets)
    log_probs.backward(gradients)
    return log_probs, entropies, hidden.grad, weight.grad


def times(vocabulary, hidden_size, rows, dtype, device, repeats, rhos):
    """A row of figures for every rho and variant."""
    hidden, weight, targets, gradients = problem(rows, hidden_size, vocabulary, dtype, device)
    figures = []
    for rho in rhos:
        kept = torch.randperm(rows, generator=torch.Generator().manual_seed(1))[: round(rho * rows)].to(device)
        masked = torch.zeros_like(gradients).index_copy_(0, kept, gradients[kept])
        everything = (hidden, weight, targets, masked)
        known = (hidden[kept], weight, targets[kept], gradients[kept])
        # Liger's Hopper kernel has no float32 entropies, so that a pass that ranks tokens runs on the tiles there.
        liger_outputs = () if hopper(weight.device) else ENTROPY
        variants = {
            "TRL": partial(step, STOCK, *everything),
            "TRL's kernel in our tiles": partial(step, partial(trl, tile_width(weight.device)), *everything),
            "known after": partial(step, partial(sparse, TILES, ENTROPY), *everything),
            "known before": partial(step, partial(sparse, TILES, ()), *known),
            "known after, on Liger": partial(step, partial(sparse, LIGER, liger_outputs), *everything),
            "known before, on Liger": partial(step, partial(sparse, LIGER, ()), *known),
        }
        taken = measure.in_turns(variants, repeats)
        for name, values in taken.items():
            figures.append(
                {
                    "vocabulary": vocabulary,
                    "rho": rho,
                    "variant": name,
                    "seconds": measure.spread(values),
                    "times faster than TRL": measure.ratios(taken["TRL"], values),
                    "units": UNITS[name](rho),
                    "peak_bytes": measure.peak_memory(variants[name]),
                }
            )
            row = figures[-1]
            print(
                f"V {vocabulary:6d}  rho {rho:3.1f}  {name:24s} {row['seconds']['median']:8.3f} s  "
                f"{row['times faster than TRL']['median']:5.2f}x  {row['peak_bytes'] / 2**20:7.0f} MiB",
                flush=True,
            )
    return figures


def truth(hidden, weight, targets, gradients):
    """The results of `step` in float64, from full logits."""
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logps = (hidden @ weight.t()).log_softmax(-1)
    log_probs = logps.gather(1, targets.unsqueeze(1)).squeeze(1)
    log_probs.backward(gradients.double())
    return log_probs.detach(), -(logps.exp() * logps).sum(-1).detach(), hidden.grad, weight.grad


def errors(vocabulary, hidden_size, rows, dtype, device, rho=0.2):
    """Root-mean-square errors relative to the root mean square of the truth."""
    hidden, weight, targets, gradients = problem(rows, hidden_size, vocabulary, dtype, device, seed=2)
    gradients[round(rho * rows) :] = 0
    exact = truth(hidden, weight, targets, gradients)
    variants = {"TRL": STOCK, "ours": partial(sparse, TILES, ENTROPY)}
    if not hopper(weight.device):
        variants["ours, on Liger"] = partial(sparse, LIGER, ENTROPY)
    found = []
    for name, score in variants.items():
        values = step(score, hidden, weight, targets, gradients)
        relative = [((x.double() - y).norm() / y.norm()).item() for x, y in zip(values, exact, strict=True)]
        dropped = values[2][gradients == 0]
        found.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "variant": name,
                **dict(zip(("log_probs", "entropy", "grad_hidden", "grad_weight"), relative, strict=True)),
                "largest_gradient_of_dropped_rows": dropped.abs().max().item(),
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--repeats", type=int, default=10 if gpu else 3)
    parser.add_argument("--rows", type=int, default=32768 if gpu else 1024)
    parser.add_argument("--hidden_size", type=int, default=4096 if gpu else 512)
    parser.add_argument("--vocabularies", type=int, nargs=2, default=(32768, 151936))
    options = parser.parse_args()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    sizes = {"rows": options.rows, "hidden_size": options.hidden_size, "dtype": str(dtype).removeprefix("torch.")}
    print(sizes)
    figures = []
    for vocabulary in options.vocabularies:
        figures += times(vocabulary, options.hidden_size, options.rows, dtype, device, options.repeats, RHOS)
    accuracy = []
    for kind in (torch.float32, torch.bfloat16):
        accuracy += errors(32768, 512, 512, kind, device)
    name = "head_gpu" if gpu else "head"
    measure.write(name, "python -m benchmarks.head", sizes | {"times": figures, "accuracy": accuracy})


if __name__ == "__main__":
    main()
