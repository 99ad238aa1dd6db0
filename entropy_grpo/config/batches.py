"""Shape of batches on a number of processes, and their longest sequence."""

from trl import GRPOConfig


def batch_shape(
    prompts_per_rollout: int, steps_per_rollout: int, num_generations: int, per_device: int, processes: int
) -> tuple[int, int]:
    """Return TRL's (steps_per_generation, gradient_accumulation_steps) for a rollout of given size.

    Args:
        prompts_per_rollout: prompts of a rollout.
        steps_per_rollout: optimiser steps that share a rollout.
        num_generations: responses to each prompt.
        per_device: responses of a micro-batch on one process.
        processes: number of processes.

    Raises:
        ValueError: the responses of a step are not a multiple of the responses of a micro-batch on all processes. The
            message names suitable numbers of processes.
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
    """Limit vLLM's sequences to the longest prompt and response, unless the recipe does or prompts are unlimited.

    By default vLLM needs memory for a sequence of all the model's positions, and does not start without it.
    """
    if args.use_vllm and args.vllm_max_model_length is None and max_prompt_length is not None:
        args.vllm_max_model_length = max_prompt_length + args.max_completion_length
