"""Batches of a job and the floating-point operations of an optimiser step, by pass."""

import math
from fractions import Fraction
from typing import Any

from . import costs
from .job import Job


def batches(job: Job) -> dict[str, Any]:
    """Micro-batches, steps and tokens."""
    args, lengths = job.args, job.lengths
    steps = args.max_steps if args.max_steps > 0 else None
    tokens = job.responses * (lengths.prompt + lengths.completion)
    found = {
        "processes": job.machines.processes,
        "responses_per_micro_batch": job.per_device,
        "micro_batches_per_step": args.gradient_accumulation_steps,
        "responses_per_step": job.responses,
    }
    if not job.samples:
        if steps is None and job.problems is not None:
            steps = math.ceil(args.num_train_epochs * math.ceil(job.problems / job.responses))
        return found | {"steps": steps, "tokens_per_step_max": tokens}
    steps_of_rollout = Fraction(args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps)
    if steps is None and job.problems is not None:
        # TRL's sampler leaves out the problems that fill no rollout.
        prompts = args.generation_batch_size // args.num_generations
        steps = math.ceil(args.num_train_epochs * (job.problems // prompts * steps_of_rollout))
    return found | {
        "responses_per_rollout": args.generation_batch_size,
        "prompts_per_rollout": args.generation_batch_size // args.num_generations,
        "steps_per_rollout": int(steps_of_rollout) if steps_of_rollout >= 1 else float(steps_of_rollout),
        "steps": steps,
        "tokens_per_step_max": tokens,
        "response_tokens_per_step_max": job.responses * lengths.completion,
        "response_tokens_per_step_expected": lengths.mean and round(job.responses * lengths.mean),
    }


def head_units(job: Job) -> float:
    """Products with the LM head that a training pass makes, in units of one over all response tokens.

    Dense: 1 forward, 3 backward (logits again, two gradients); see `ops.head` for the others.
    """
    args = job.args
    if not job.samples or job.share == 1 or args.fused_lm_head == "trl":
        return 4
    known = args.entropy_scope == "rollout" or (
        args.entropy_scope == "global" and args.gradient_accumulation_steps > 1
    )
    per_token = args.importance_sampling_level == "token" and args.loss_type != "vespo"
    surrogate = args.beta == 0 and args.off_policy_mask_threshold is None
    return 4 * job.share if known and per_token and surrogate else 1 + 3 * job.share


def _sampling_operations(job: Job, forward: float, head: float) -> dict[str, float]:
    """Operations for a step's responses before it trains on them; a forward pass and its head are given."""
    args, lengths = job.args, job.lengths
    written = costs.generation(job.shape, lengths.prompt, lengths.mean or lengths.completion, job.responses)
    every = args.steps_per_generation * args.num_iterations
    scores = args.gradient_accumulation_steps % every != 0
    scores |= args.use_vllm and args.vllm_importance_sampling_correction
    scores |= args.entropy_scope == "rollout" and args.top_entropy_quantile < 1
    ranks = args.entropy_scope == "global" and args.gradient_accumulation_steps > 1 and args.top_entropy_quantile < 1
    return {
        "generation": written / args.num_iterations,
        "old log-probabilities": (forward + head) / args.num_iterations if scores else 0.0,
        "reference model": forward + head if args.beta != 0 else 0.0,
        "ranking pass": forward + head if ranks else 0.0,
    }


def operations(job: Job) -> dict[str, Any]:
    """Operations of one optimiser step over all GPUs, by pass, at the mean length or else the longest."""
    args, shape = job.args, job.shape
    prompt, completion = job.lengths.prompt, job.lengths.mean or job.lengths.completion
    width, number = prompt + completion, job.responses
    forward = costs.backbone_forward(shape, width, number)
    head = costs.head_matmul(shape, number * completion)
    sampled = _sampling_operations(job, forward, head) if job.samples else {}
    parts = {
        **sampled,
        "backbone forward": forward,
        "backbone backward": costs.backbone_backward(
            shape, width, number, args.gradient_checkpointing, frozen=job.model.use_peft
        ),
        "head": head_units(job) * head,
    }
    total, dense = sum(parts.values()), 4 * head
    saved = dense - parts["head"] - parts.get("ranking pass", 0)
    return {
        "parts": {name: round(value) for name, value in parts.items()},
        "total": round(total),
        "length": completion,
        "head_units": head_units(job),
        "head_on_all_tokens": round(dense),
        "saved_by_selection": round(saved),
        "share_of_head_saved": 1 - parts["head"] / dense,
        "share_of_step_saved": saved / (total + saved),
    }
