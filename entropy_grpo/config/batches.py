"""The shape of batches on a number of processes, and the longest sequence in them."""

from trl import GRPOConfig


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


def limit_vllm(args: GRPOConfig, max_prompt_length: int | None) -> None:
    """Tell vLLM the longest prompt and response of a run, unless the recipe does or prompts have no limit.

    Otherwise vLLM wants room for a sequence of all positions that the model has, and refuses to start without.
    """
    if args.use_vllm and args.vllm_max_model_length is None and max_prompt_length is not None:
        args.vllm_max_model_length = max_prompt_length + args.max_completion_length
