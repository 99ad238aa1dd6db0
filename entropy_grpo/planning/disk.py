"""Bytes of checkpoints on disk, and in the memory of a process that gathers them."""

import math
from typing import Any

from .flops import batches
from .job import Job
from .memory import optimizer_states, rollout_buffer, trained_tensors


def disk(job: Job) -> dict[str, Any]:
    """Return the sizes of a run's files in bytes.

    transformers saves the model for loading and, under FSDP, a second time for resuming. If every process writes its
    own piece, only the copy for resuming exists. Adapters are saved without their base.
    """
    args, kind = job.args, job.sharding.kind
    weights = sum(n * element for n, element in trained_tensors(job))
    states = optimizer_states(job)
    copies = 2 if kind == "fsdp2" and not job.sharding.in_pieces else 1
    lengths = job.lengths
    rollout = rollout_buffer(lengths.prompt, lengths.completion, args.generation_batch_size) if job.samples else 0
    checkpoint = copies * weights + states + rollout
    kept = _kept(job)
    elements = sum(n for n, _ in trained_tensors(job))
    models = (job.compute if not job.model.use_peft else 4) * elements * _kept_weights(job)
    return {
        "checkpoint": round(checkpoint),
        "weights": round(copies * weights),
        "optimizer": round(states),
        "rollout_at_most": round(rollout),
        "copies_of_weights": copies,
        "kept": kept,
        "kept_weights": round(models),
        # The oldest checkpoint is deleted after the newest one is complete.
        "run": None
        if kept is None
        else round((kept + 1 if args.save_total_limit else kept) * checkpoint + weights + models),
        "gathered_on_rank_0": round(weights + states) if copies == 2 else 0,
    }


def _kept_weights(job: Job) -> int:
    """Return the number of steps whose weights a run keeps by themselves."""
    if not job.samples:
        return 0
    steps = batches(job)["steps"]
    return sum(steps is None or step <= steps for step in job.run.weight_steps(job.args))


def _kept(job: Job) -> int | None:
    """Return the number of checkpoints that a run leaves, or `None` if its number of steps is unknown."""
    args = job.args
    steps = batches(job)["steps"]
    every = {"no": None, "steps": args.save_steps, "epoch": None}[args.save_strategy.value]
    if args.save_strategy == "no":
        return 0
    if args.save_strategy == "epoch":
        made = math.ceil(args.num_train_epochs)
    elif steps is None:
        return args.save_total_limit
    else:
        made = math.ceil(steps / (every if every >= 1 else max(1, steps * every)))
    return made if args.save_total_limit is None else min(made, args.save_total_limit)
