"""Shape of batches on a number of processes, their longest sequence, and the two units of a run's length.

TRL counts optimiser steps. verl, with which arXiv 2508.02260 trained, counts rollouts. It steps the learning rate's
schedule once per rollout (`update_actor` of its workers), and its step 200 is rollout 200.
"""

import re
from typing import TYPE_CHECKING, TypeAlias

from trl import GRPOConfig

if TYPE_CHECKING:
    from .grpo import EntropyForkGRPOConfig

    # A recipe may count in rollouts, as text. Made settings hold optimiser steps.
    Steps: TypeAlias = int
    Share: TypeAlias = float
else:
    Steps, Share = int | str, float | str

# TRL's `max_num_batched_tokens` of a colocated vLLM, which refuses more sequences than that.
VLLM_BATCHED_TOKENS = 4096
ROLLOUTS = re.compile(r"(\d+) rollouts?")


def optimizer_steps(name: str, value: str, micro_batches: int, accumulation: int) -> int:
    """Return the optimiser steps of `"N rollouts"`.

    Args:
        name: setting that has the value.
        micro_batches: micro-batches of a rollout on one process, each use of a response counted.
        accumulation: micro-batches of an optimiser step.

    Raises:
        ValueError: the value is another text, or a rollout is no whole number of optimiser steps.
    """
    match = ROLLOUTS.fullmatch(value.strip())
    if match is None:
        raise ValueError(
            f"{name} is {value!r}: write a number of optimiser steps, or of rollouts, as in '10 rollouts'."
        )
    steps, rest = divmod(micro_batches, accumulation)
    if rest:
        raise ValueError(
            f"{name} is {value!r}, but a rollout has {micro_batches} micro-batches and an optimiser step "
            f"{accumulation}: write a number of optimiser steps."
        )
    return int(match[1]) * steps


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
        ValueError: the sizes do not divide each other. The message names suitable numbers of processes.
    """
    step, rest = divmod(prompts_per_rollout * num_generations, steps_per_rollout)
    if rest:
        raise ValueError(
            f"steps_per_rollout is {steps_per_rollout}, which does not divide the "
            f"{prompts_per_rollout * num_generations} responses of a rollout (prompts_per_rollout times "
            "num_generations): set it to a divisor."
        )
    accumulation, rest = divmod(step, per_device * processes)
    if rest:
        fitting = [str(n) for n in range(1, step // per_device + 1) if step % (per_device * n) == 0]
        fix = f"use {', '.join(fitting)} processes" if fitting else f"set it to a divisor of {step}"
        raise ValueError(
            f"per_device_train_batch_size is {per_device} on {processes} processes, but an optimiser step has {step} "
            f"responses (prompts_per_rollout times num_generations over steps_per_rollout): {fix}."
        )
    return accumulation * steps_per_rollout, accumulation


def check_evaluation_batch(args: GRPOConfig, processes: int) -> None:
    """Refuse an evaluation batch that would split the responses to a problem. TRL fails only during the run.

    Args:
        processes: number of processes that share the batch.

    Raises:
        ValueError: the batch on all processes is no multiple of the responses to a problem.
    """
    batch, group = args.per_device_eval_batch_size * processes, args.num_generations_eval or args.num_generations
    if batch % group:
        raise ValueError(
            f"per_device_eval_batch_size makes evaluation batches of {batch} responses on all processes, but a "
            f"problem has {group} (num_generations_eval, or else num_generations): choose a multiple, such as "
            f"{group}."
        )


def limit_vllm(args: GRPOConfig, max_prompt_length: int | None) -> None:
    """Set `vllm_max_model_length` to the longest prompt plus the longest response, in tokens.

    A limit in the recipe stays, and without a limit of the prompts there is none. By default vLLM reserves memory for
    one sequence of all the model's positions and fails to start without it.
    """
    if args.use_vllm and args.vllm_max_model_length is None and max_prompt_length is not None:
        args.vllm_max_model_length = max_prompt_length + args.max_completion_length


def check_sampler(args: "EntropyForkGRPOConfig") -> None:
    """Refuse settings with which a colocated vLLM does not start, or a server has nothing to do.

    Raises:
        ValueError: the share of a GPU is none, there are more sequences than vLLM computes tokens at a time, or a
            server has no requests.
    """
    share, sequences = args.vllm_gpu_memory_utilization, args.vllm_max_num_seqs
    if share is not None and not 0 < share <= 1:
        raise ValueError(
            f"vllm_gpu_memory_utilization is {share}: it must lie in (0, 1], or be null for all that the run leaves."
        )
    if sequences is not None and not 1 <= sequences <= VLLM_BATCHED_TOKENS:
        raise ValueError(
            f"vllm_max_num_seqs is {sequences}: it must lie between 1 and {VLLM_BATCHED_TOKENS}, the tokens that "
            "TRL's vLLM computes at a time."
        )
    if args.vllm_server_requests < 1:
        raise ValueError(f"vllm_server_requests is {args.vllm_server_requests}: it must be 1 or more.")
