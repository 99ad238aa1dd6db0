"""Bytes of checkpoints on disk, and in the memory of a process that gathers them."""

import math
from typing import Any

from ..config.sft import SFTRunConfig
from .flops import steps
from .job import Job
from .memory import optimizer_states, rollout_buffer, trained_bytes, trained_tensors


def disk(job: Job) -> dict[str, Any]:
    """Return the sizes of a run's files in bytes.

    transformers saves the model for loading and, under FSDP, a second time for resuming. If every process writes its
    own piece, only the copy for resuming exists. Adapters are saved without their base.
    """
    args, lengths = job.args, job.lengths
    weights, (states, _) = trained_bytes(job), optimizer_states(job)
    copies = 2 if job.sharding.kind == "fsdp2" and not job.sharding.in_pieces else 1
    rollout = 0
    if job.objective is not None:
        rollout = rollout_buffer(lengths.prompt, lengths.completion, job.grpo.generation_batch_size)
    checkpoint = copies * weights + states + rollout
    kept, elements = _kept(job), sum(n for n, _ in trained_tensors(job))
    models = (4 if job.model.use_peft else job.compute) * elements * _kept_weights(job)
    return {
        "checkpoint": round(checkpoint),
        "weights": round(copies * weights),
        "optimizer": round(states),
        "rollout_at_most": round(rollout),
        "copies_of_weights": copies,
        "kept": kept,
        "kept_weights": round(models),
        # The oldest checkpoint is deleted after the newest one is complete.
        "run": None if kept is None else round((kept + bool(args.save_total_limit)) * checkpoint + weights + models),
        "gathered_on_rank_0": round(weights + states) if copies == 2 else 0,
    }


def _kept_weights(job: Job) -> int:
    """Return the number of steps whose weights a run keeps by themselves."""
    if isinstance(job.run, SFTRunConfig):
        return 0
    number = steps(job)
    return sum(number is None or step <= number for step in job.run.weight_steps(job.grpo))


def _kept(job: Job) -> int | None:
    """Return the number of checkpoints that a run leaves, or `None` if its number of steps is unknown."""
    args, number = job.args, steps(job)
    if args.save_strategy == "no":
        return 0
    if args.save_strategy == "epoch":
        made = math.ceil(args.num_train_epochs)
    elif number is None:
        return args.save_total_limit
    else:
        made = math.ceil(number / (args.save_steps if args.save_steps >= 1 else max(1, number * args.save_steps)))
    return made if args.save_total_limit is None else min(made, args.save_total_limit)
