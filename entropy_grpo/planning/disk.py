"""Bytes of checkpoints on disk, and in the memory of a process that gathers them."""

import math
from typing import Any

from ..config.run import RunConfig
from .flops import steps
from .job import Job
from .memory import optimizer_states, rollout_bytes, trained_by_element, trained_bytes


def disk(job: Job) -> dict[str, Any]:
    """Return the sizes of a run's files in bytes.

    transformers saves the model for loading and, under FSDP, a second time for resuming. If every process writes its
    own piece, only the copy for resuming exists. With `save_only_model` neither this copy nor the optimizer is saved.
    Adapters are saved without their base.
    """
    resumable, gathers = not job.args.save_only_model, job.sharding.kind == "fsdp2" and not job.sharding.in_pieces
    weights, states = trained_bytes(job)[0], optimizer_states(job)[0] if resumable else 0
    copies = 2 if gathers and resumable else 1
    rollout = 0 if job.objective is None else rollout_bytes(job, job.grpo.generation_batch_size)
    checkpoint, number, kept_weights = copies * weights + states + rollout, steps(job), 0
    if isinstance(job.run, RunConfig):  # steps whose weights a run keeps by themselves
        reached = sum(number is None or step <= number for step in job.run.weight_steps(job.grpo))
        kept_weights = reached * trained_by_element(job).total() * (4 if job.model.use_peft else job.compute)
    kept = _kept(job, number)
    return {
        "checkpoint": checkpoint,
        "weights": copies * weights,
        "optimizer": states,
        "rollout_at_most": rollout,
        "copies_of_weights": copies,
        "kept": kept,
        "kept_weights": kept_weights,
        # The oldest checkpoint is deleted after the newest one is complete.
        "run": None
        if kept is None
        else (kept + bool(job.args.save_total_limit)) * checkpoint + weights + kept_weights,
        "gathered_on_rank_0": weights + states if gathers else 0,
    }


def _kept(job: Job, number: int | None) -> int | None:
    """Return the checkpoints that a run of a number of steps leaves, or `None` if this number is unknown."""
    args = job.args
    if args.save_strategy == "no":
        return 0
    if args.save_strategy == "epoch":
        made = math.ceil(args.num_train_epochs)
    elif number is None:
        return args.save_total_limit
    else:
        made = math.ceil(number / (args.save_steps if args.save_steps >= 1 else max(1, number * args.save_steps)))
    return made if args.save_total_limit is None else min(made, args.save_total_limit)
