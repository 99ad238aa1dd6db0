"""Additions to FSDP2 in accelerate and TRL: float32 results, sharded weights for vLLM, evaluation before training."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import Trainer, TrainerCallback
from trl.generation.vllm_generation import VLLMGeneration


class Float32Results(TrainerCallback):
    """Keep the dtype of a sharded bfloat16 model's outputs, and sum its gradients over ranks in float32.

    accelerate's policy for FSDP2 casts the model's outputs, including log-probabilities and entropies, to bfloat16.
    It also reduces gradients in bfloat16, as ZeRO-3 does. The callback runs before any model is sharded, including a
    reference model.
    """

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state = AcceleratorState()
        if state.deepspeed_plugin is not None:
            state.deepspeed_plugin.deepspeed_config.setdefault("communication_data_type", "fp32")
        plugin = state.fsdp_plugin if state.distributed_type == DistributedType.FSDP else None
        policy = None if plugin is None else plugin.mixed_precision_policy  # None without mixed precision
        if policy is not None and plugin.fsdp_version == 2:
            plugin.mixed_precision_policy = dataclasses.replace(policy, reduce_dtype=torch.float32, output_dtype=None)


def reshard(model: nn.Module) -> None:
    """Shard every parameter over the processes again.

    After a pass without gradient, FSDP2 leaves the final norm and the LM head unsharded, as plain tensors.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def reshard_before_sync(generation: VLLMGeneration) -> None:
    """Shard the parameters before TRL sends them to vLLM, because TRL calls `full_tensor()` on each parameter."""
    synchronise = generation.sync_weights

    def synchronise_sharded() -> None:
        reshard(generation.model)
        synchronise()

    generation.sync_weights = synchronise_sharded  # type: ignore[method-assign]  # of this object alone


@contextmanager
def answering(trainer: Trainer) -> Iterator[None]:
    """Prepare the model on several processes as training does, and reshard it after the evaluation.

    An evaluation before training would prepare the model without an optimiser. accelerate refuses this for FSDP2. For
    DDP it marks the model as prepared, so that training never wraps it and processes do not share gradients. The
    optimiser is prepared with the model because training looks for the model's parameters in the optimiser.
    """
    is_prepared = isinstance(trainer.model, FSDPModule) or trainer.model_wrapped is not trainer.model
    several = trainer.accelerator.num_processes > 1 and not trainer.is_deepspeed_enabled
    if several and not is_prepared:
        trainer.create_optimizer()
        model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        trainer.model_wrapped = model
        if trainer.is_fsdp_enabled:
            trainer.model = model
            register_fsdp_forward_method(model, "generate")
    try:
        yield
    finally:
        reshard(trainer.model)
