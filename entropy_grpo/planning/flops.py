"""Batches of a job and the floating-point operations of an optimiser step, by pass."""

import math
from typing import Any

from ..models.measure import Operations
from ..objective.objective import backward_matmuls
from .job import Job

# Names of the passes without gradient, by the purpose for which the objective asks for them.
SCORING = {"rollout": "old log-probabilities", "reference": "reference model", "ranking": "ranking pass"}


def steps(job: Job) -> int | None:
    """Return the number of optimiser steps of the run, or `None` if nothing tells the number of problems."""
    args = job.args
    if args.max_steps > 0:
        return args.max_steps
    if job.problems is None:
        return None
    if job.objective is None:
        return math.ceil(args.num_train_epochs * math.ceil(job.problems / job.responses))
    # TRL's sampler drops an incomplete last rollout.
    prompts = job.grpo.rollout_groups
    return math.ceil(args.num_train_epochs * (job.problems // prompts * job.objective.steps_per_rollout))


def hours(job: Job, operations_of_step: float) -> float | None:
    """Return the hours of all optimiser steps if every GPU achieves `tflops`, or `None` if a figure is unknown.

    Sampling, saving and evaluation are slower than their operations, so that a run takes longer.
    """
    number, tflops = steps(job), job.options.tflops
    if number is None or tflops is None:
        return None
    return number * operations_of_step / (job.processes * tflops * 1e12) / 3600


def batches(job: Job) -> dict[str, Any]:
    """Return numbers of micro-batches, steps and tokens."""
    args, lengths = job.args, job.lengths
    counts = {
        "processes": job.processes,
        "responses_per_micro_batch": job.per_device,
        "micro_batches_per_step": args.gradient_accumulation_steps,
        "responses_per_step": job.responses,
        # The planned memory holds the maximum; a micro-batch of mean responses has the expected number.
        "tokens_per_micro_batch_max": job.tokens,
        "tokens_per_micro_batch_expected": lengths.mean and round(job.per_device * (lengths.prompt + lengths.mean)),
    }
    whole = {"steps": steps(job), "tokens_per_step_max": job.responses * lengths.whole}
    if job.objective is None:
        return counts | whole
    shared = job.objective.steps_per_rollout
    return counts | {
        "responses_per_rollout": job.grpo.generation_batch_size,
        "prompts_per_rollout": job.grpo.rollout_groups,
        "steps_per_rollout": int(shared) if shared.denominator == 1 else float(shared),
        **whole,
        "response_tokens_per_step_max": job.responses * lengths.completion,
        "response_tokens_per_step_expected": lengths.mean and round(job.responses * lengths.mean),
    }


def generation(decoder: Operations, head: float, prompt: float, completion: float) -> float:
    """Return the operations of sampling one response with a KV cache: the prompt at once, then token by token.

    Args:
        decoder: operations of the decoder in a forward pass.
        head: operations of the LM head for one token.
        prompt, completion: tokens of the prompt and of the response.
    """
    attended = completion * (prompt + (completion + 1) / 2)  # a new token attends to itself and all earlier tokens
    return decoder(prompt) + decoder.token * completion + decoder.pair * attended + head * completion


def passes(job: Job, forward: Operations, backward: Operations, prompt: Any, completion: Any) -> dict[str, Any]:
    """Return the operations of a response's passes in an optimiser step, by pass; those without gradient come first.

    Args:
        forward, backward: operations of the decoder.
        prompt, completion: tokens, as numbers or as arrays.
    """
    whole, head = forward(prompt + completion), head_token(job) * completion
    scoring = {} if job.objective is None else job.objective.scoring_passes
    parts = {SCORING[purpose]: number * (whole + head) for purpose, number in scoring.items()}
    backbone = {"backbone forward": whole, "backbone backward": backward(prompt + completion)}
    return parts | backbone | {"head": head_units(job) * head}


def head_token(job: Job) -> float:
    """Return the operations of the LM head for one token."""
    return 2.0 * job.policy.vocabulary * job.policy.hidden


def dense_units(job: Job) -> float:
    """Return the cost of the LM head on all response tokens in a training pass, in matmuls of all response tokens."""
    return 1.0 + backward_matmuls(job.policy.trains_head)


def head_units(job: Job) -> float:
    """Return the cost of the LM head in a training pass, in matmuls of all response tokens."""
    return dense_units(job) if job.objective is None else job.objective.head_units


def operations(job: Job) -> dict[str, Any]:
    """Return the operations of an optimiser step over all GPUs, by pass, at the mean or else the maximum length.

    `head_units` is the cost of the LM head in a training pass, in matmuls of all response tokens.
    """
    objective, prompt, completion = job.objective, job.lengths.prompt, job.lengths.expected
    number, token = job.responses, head_token(job)
    forward, backward = job.policy.operations(job.args.gradient_checkpointing)
    parts, spared = {}, 0.0
    if objective is not None:
        written = number * generation(forward, token, prompt, completion)
        parts = {"generation": written / objective.iterations}
        if objective.spares_pass:
            spared = number * (forward(prompt + completion) + token * completion) / objective.iterations
    each = passes(job, forward, backward, prompt, completion)
    parts |= {name: number * value for name, value in each.items()}
    total, dense = sum(parts.values()), dense_units(job) * number * token * completion
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
        "spared_by_sampler": round(spared),
    }
