"""Batches of a job and the floating-point operations of an optimiser step, by pass."""

import math
from fractions import Fraction
from typing import Any

from ..objective.objective import BACKWARD_MATMULS
from .job import Job
from .measure import Operations


def batches(job: Job) -> dict[str, Any]:
    """Return numbers of micro-batches, steps and tokens."""
    args, lengths = job.args, job.lengths
    steps = args.max_steps if args.max_steps > 0 else None
    tokens = job.responses * (lengths.prompt + lengths.completion)
    counts = {
        "processes": job.machines.processes,
        "responses_per_micro_batch": job.per_device,
        "micro_batches_per_step": args.gradient_accumulation_steps,
        "responses_per_step": job.responses,
        # The planned memory holds the maximum; a micro-batch of mean responses has the expected number.
        "tokens_per_micro_batch_max": job.per_device * (lengths.prompt + lengths.completion),
        "tokens_per_micro_batch_expected": lengths.mean and round(job.per_device * (lengths.prompt + lengths.mean)),
    }
    if not job.samples:
        if steps is None and job.problems is not None:
            steps = math.ceil(args.num_train_epochs * math.ceil(job.problems / job.responses))
        return counts | {"steps": steps, "tokens_per_step_max": tokens}
    steps_of_rollout = Fraction(args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps)
    if steps is None and job.problems is not None:
        # TRL's sampler drops an incomplete last rollout.
        prompts = args.generation_batch_size // args.num_generations
        steps = math.ceil(args.num_train_epochs * (job.problems // prompts * steps_of_rollout))
    return counts | {
        "responses_per_rollout": args.generation_batch_size,
        "prompts_per_rollout": args.generation_batch_size // args.num_generations,
        "steps_per_rollout": int(steps_of_rollout) if steps_of_rollout >= 1 else float(steps_of_rollout),
        "steps": steps,
        "tokens_per_step_max": tokens,
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


def _sampling(job: Job, forward: float, head: float, written: float) -> dict[str, float]:
    """Return the operations on a step's responses before training, by pass.

    Args:
        forward, head: operations of the decoder and the LM head in one scoring pass over the step's responses.
        written: operations of generating the step's responses.
    """
    passes = job.objective.scoring_passes
    return {
        "generation": written / job.objective.iterations,
        "old log-probabilities": passes["rollout"] * (forward + head),
        "reference model": passes["reference"] * (forward + head),
        "ranking pass": passes["ranking"] * (forward + head),
    }


def head_units(job: Job) -> tuple[float, float]:
    """Return the LM head's cost in a training pass, and the cost of TRL's head on all tokens.

    The unit is one matmul of all response tokens with the head. A frozen head saves one matmul of the backward pass.
    """
    frozen = 0 if job.trains_head else 1
    dense = 1.0 + BACKWARD_MATMULS - frozen
    if job.objective is None:
        return dense, dense
    return job.objective.head_units - frozen * job.objective.differentiated_share, dense


def operations(job: Job) -> dict[str, Any]:
    """Return the operations of an optimiser step over all GPUs, by pass, at the mean or else the maximum length."""
    prompt, completion = job.lengths.prompt, job.lengths.mean or job.lengths.completion
    number, policy = job.responses, job.policy
    decoder, backward = policy.operations(job.args.gradient_checkpointing)
    forward = number * decoder(prompt + completion)
    token = 2.0 * policy.vocabulary * policy.hidden  # operations of the LM head for one token
    head = token * number * completion
    units, dense_units = head_units(job)
    sampled = {}
    if job.objective is not None:
        sampled = _sampling(job, forward, head, number * generation(decoder, token, prompt, completion))
    parts = {
        **sampled,
        "backbone forward": forward,
        "backbone backward": number * backward(prompt + completion),
        "head": units * head,
    }
    total, dense = sum(parts.values()), dense_units * head
    saved = dense - parts["head"] - parts.get("ranking pass", 0)
    return {
        "parts": {name: round(value) for name, value in parts.items()},
        "total": round(total),
        "length": completion,
        "head_units": units,
        "head_on_all_tokens": round(dense),
        "saved_by_selection": round(saved),
        "share_of_head_saved": 1 - parts["head"] / dense,
        "share_of_step_saved": saved / (total + saved),
    }
