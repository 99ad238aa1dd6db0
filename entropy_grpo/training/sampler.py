"""Settings of a colocated vLLM that TRL does not take from its arguments."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl.trainer import grpo_trainer

from ..config.batches import VLLM_BATCHED_TOKENS
from ..config.grpo import EntropyForkGRPOConfig


def engine_settings(args: EntropyForkGRPOConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of TRL's `VLLMGeneration` that this package changes.

    Responses are read as ids and decoded by TRL, so that vLLM need not decode every token while it writes. It decodes
    where it has to look for texts that end a response.

    Args:
        given: TRL's settings.
    """
    sampling = given["generation_kwargs"] or {}
    decodes = {"stop", "detokenize"} & sampling.keys()
    return {
        "max_num_seqs": min(given["max_num_seqs"], args.vllm_max_num_seqs or VLLM_BATCHED_TOKENS),
        "generation_kwargs": sampling if decodes else sampling | {"detokenize": False},
    }


@contextmanager
def sized(args: EntropyForkGRPOConfig) -> Iterator[None]:
    """Let TRL's trainer make its colocated vLLM with `engine_settings`.

    Raises:
        ValueError: nothing has decided the engine's share of a GPU.
    """
    if not args.use_vllm or args.vllm_mode != "colocate":
        yield
        return
    if args.vllm_gpu_memory_utilization is None:
        raise ValueError(
            "vllm_gpu_memory_utilization is null, which a launch of a recipe on a GPU turns into a number: set the "
            "share that `entropy-grpo plan` prints."
        )
    made = grpo_trainer.VLLMGeneration
    grpo_trainer.VLLMGeneration = lambda **given: made(**given | engine_settings(args, given))
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = made
