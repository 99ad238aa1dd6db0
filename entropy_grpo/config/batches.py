"""The shape of batches on a number of processes."""


def batch_shape(
    prompts_per_rollout: int, steps_per_rollout: int, num_generations: int, per_device: int, processes: int
) -> tuple[int, int]:
    """TRL's (steps_per_generation, gradient_accumulation_steps) of a rollout that is stated by what it holds.

    Args:
        prompts_per_rollout, num_generations: a rollout has so many prompts and so many responses to each.
        steps_per_rollout: optimiser steps that share them.
        per_device: responses of a micro-batch on one process.
        processes: how many there are.

    Raises:
        ValueError: the responses of a step are no multiple of those of a micro-batch on all processes; it names the
            numbers of processes for which they are.
    """
    step, rest = divmod(prompts_per_rollout * num_generations, steps_per_rollout)
    if rest:
        raise ValueError(
            f"steps_per_rollout is {steps_per_rollout}, which does not divide prompts_per_rollout "
            f"({prompts_per_rollout}) times num_generations ({num_generations}): choose a divisor of "
            f"{prompts_per_rollout * num_generations}."
        )
    accumulation, rest = divmod(step, per_device * processes)
    if rest:
        fitting = [str(n) for n in range(1, step // per_device + 1) if step % (per_device * n) == 0]
        sizes = f"use {', '.join(fitting)} processes" if fitting else f"lower it to a divisor of {step}"
        raise ValueError(
            f"per_device_train_batch_size is {per_device} on {processes} processes, but an optimiser step has {step} "
            f"responses (prompts_per_rollout times num_generations over steps_per_rollout): {sizes}."
        )
    return accumulation * steps_per_rollout, accumulation


def longest_sequence(max_prompt_length: int | None, max_completion_length: int) -> int | None:
    """Tokens of the longest prompt and response, which vLLM needs room for; `None` if prompts have no limit."""
    return None if max_prompt_length is None else max_prompt_length + max_completion_length
