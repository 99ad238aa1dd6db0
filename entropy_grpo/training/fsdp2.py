"""Additions to accelerate's and TRL's use of FSDP2: precision, weights for vLLM, answers before training."""

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
    """Keep the outputs of a sharded bfloat16 model as it computes them, and sum its gradients in float32.

    accelerate's policy for FSDP2 casts what the model returns, log-probabilities and entropies included, to bfloat16,
    and reduces gradients in bfloat16, as ZeRO-3 does. This runs before any model is sharded, also a reference model.
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
    """Divide every parameter over the processes again.

    After a pass without gradient FSDP2 leaves the final norm and the LM head whole, as plain tensors.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def reshard_before_sync(generation: VLLMGeneration) -> None:
    """Have TRL find sharded parameters whenever it sends them to vLLM: it calls `full_tensor()` on each."""
    synchronise = generation.sync_weights

    def synchronise_sharded() -> None:
        reshard(generation.model)
        synchronise()

    generation.sync_weights = synchronise_sharded


@contextmanager
def answering(trainer: Trainer) -> Iterator[None]:
    """Shard the model before it answers, and leave it sharded.

    An evaluation before training would have accelerate shard a model without an optimiser, which it refuses for FSDP2;
    training, which prepares both again, looks the optimiser's parameters up among those of the model.
    """
    if trainer.is_fsdp_enabled and not isinstance(trainer.model, FSDPModule):
        trainer.create_optimizer()
        model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        trainer.model = trainer.model_wrapped = model
        register_fsdp_forward_method(model, "generate")
    yield
    reshard(trainer.model)
