"""Passes and tokens of optimiser steps: micro-batches as TRL counts them or by a budget of tokens, masked or not.

    python -m benchmarks.passes    # benchmarks/results/passes.json

A rollout of responses of random ids and log-normal length is scored and trained on in 16 optimiser steps, by a random
Qwen3 of 6M parameters. As in the recipes of the paper's size, a micro-batch has one sequence, and the budget is one
sequence of the largest length. Padded tokens are all columns of the training passes. Seconds are those of an
optimiser step with its share of the scoring, and variants alternate.
"""

import argparse
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import measure, step
from entropy_grpo.training.scoring import Request, Scorer

SEQUENCES = 8  # responses of an optimiser step
MEAN = 0.35  # mean length over the largest


def variants(longest: int) -> dict[str, dict[str, Any]]:
    """Settings of the runs by name; `masked` is none of the trainer's."""
    budget = {"token_budget": step.PROMPT + longest}
    return {
        "TRL's number, mask": {"masked": True},
        "TRL's number, no mask": {},
        "budget, mask": {"masked": True} | budget,
        "budget, no mask": budget,
    }


@contextmanager
def counted(masked: bool) -> Iterator[list[tuple[int, int]]]:
    """Yield (sequences, columns) of every training pass. With `masked` every pass keeps its padding mask."""
    found: list[tuple[int, int]] = []
    scored, run = Request._scored, Scorer.run

    def noted(self: Request, labels: torch.Tensor, **inputs: Any) -> Any:
        if torch.is_grad_enabled():
            found.append(tuple(inputs["input_ids"].shape))
        return scored(self, labels, **inputs)

    Request._scored = noted
    if masked:
        Scorer.run = lambda self, *args: run(self, *args[:-1], True)
    try:
        yield found
    finally:
        Request._scored, Scorer.run = scored, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--longest", type=int, default=256)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    sizes = step.lengths(SEQUENCES * step.STEPS, MEAN, options.longest)
    real = sum(step.PROMPT + size for size in sizes)
    seconds: dict[str, list[float]] = {}
    counts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        step.make_model(model)
        for _ in range(options.repeats):
            for name, settings in variants(options.longest).items():
                settings = {"entropy_scope": "rollout"} | settings
                with counted(settings.pop("masked", False)) as passes:
                    taken, _ = step.run(model, sizes, options.longest, 1, SEQUENCES, **settings)
                seconds.setdefault(name, []).append(taken)
                columns = sum(rows * width for rows, width in passes)
                counts[name] = {"passes": len(passes) / step.STEPS, "padded_over_real": columns / real}
                print(f"{name:24s} {taken:6.3f} s a step, {counts[name]}", flush=True)
    base = next(iter(seconds.values()))
    figures = [
        {
            "variant": name,
            **counts[name],
            "seconds": measure.spread(values),
            "times faster": measure.ratios(base, values),
        }
        for name, values in seconds.items()
    ]
    shape = {"longest": options.longest, "mean_length": MEAN, "sequences_per_step": SEQUENCES}
    measure.write("passes", "python -m benchmarks.passes", shape | {"repeats": options.repeats, "figures": figures})


if __name__ == "__main__":
    main()
