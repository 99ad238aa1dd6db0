"""LoRA and QLoRA: checks of a recipe's PEFT settings, and a base model whose weights never change.

TRL makes and trains the adapters. This module handles three faults that TRL does not report: settings that nothing
reads, names that no layer has, and a base whose weights change. For vLLM, TRL merges the adapters into the base, sends
the merged weights, and subtracts the adapters again in the base's own precision. In bfloat16 the subtraction does not
restore the base, so that the base would drift with every rollout.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, PreTrainedModel
from trl import get_peft_config
from trl.generation.vllm_generation import VLLMGeneration

from ..runs.weights import SHARDED, has_adapter, kind
from .config import CheckedModelConfig


def lora_config(config: CheckedModelConfig) -> PeftConfig | None:
    """Return TRL's PEFT configuration with the commit of the base model, or None without `use_peft`."""
    made = get_peft_config(config)
    if made is not None:
        made.revision = config.model_revision
    return made


def check_quantised(config: CheckedModelConfig, use_vllm: bool, shards: bool) -> None:
    """Refuse settings that cannot be combined with a quantised base.

    Args:
        shards: whether the launch divides the model over processes, by FSDP or DeepSpeed.
    """
    if not config.is_quantised:
        return
    name = "load_in_4bit" if config.load_in_4bit else "load_in_8bit"
    if use_vllm:
        raise ValueError(
            f"{name} and use_vllm are both true, but TRL would merge adapters into the quantised weights and send "
            "them without their scales: set use_vllm: false, or train LoRA on a base that is not quantised."
        )
    if shards:
        raise ValueError(
            f"{name} is true, but accelerate_config shards the model, which quantised weights do not support: use "
            "accelerate_configs/ddp.yaml or single_gpu.yaml."
        )


def check_resumed(checkpoint: str | None, adapts: bool) -> None:
    """Refuse to continue adapters with a run that trains the whole model, or a whole model with one that adapts it.

    Shards have no configuration that tells which of the two they are. The settings in their seal are compared instead.
    """
    if checkpoint is None or kind(Path(checkpoint)) == SHARDED or has_adapter(checkpoint) == adapts:
        return
    holds, wanted = ("a LoRA adapter", "true") if has_adapter(checkpoint) else ("a whole model", "false")
    raise ValueError(
        f"use_peft is {str(adapts).lower()}, but the checkpoint {checkpoint} holds {holds}: continue it with "
        f"--use_peft {wanted} (in Python, {'with' if wanted == 'true' else 'without'} peft_config), and the settings "
        "of its run."
    )


def check_targets(model: str, config: CheckedModelConfig) -> None:
    """Refuse adapters that do not fit a model. A copy of the model on the meta device is adapted.

    Args:
        model: local folder or Hub id, of which only `config.json` is read.

    Raises:
        ValueError: see `adapt`.
    """
    if not config.use_peft:
        return
    shape = AutoConfig.from_pretrained(model, revision=config.model_revision)
    with torch.device("meta"):
        adapt(getattr(transformers, shape.architectures[0])(shape), config)


def adapt(bare: PreTrainedModel, config: CheckedModelConfig) -> PeftModel:
    """Return the model with the adapters of a recipe.

    Raises:
        ValueError: the model has no module for a setting, the LM head is adapted, or an adapted weight is tied.
    """
    names = [name for name, _ in bare.named_modules()]
    try:
        adapted = get_peft_model(bare, lora_config(config))
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"lora_target_modules is {config.lora_target_modules!r}: {reason}") from error
    targets, tuner = config.lora_target_modules, adapted.base_model
    assert isinstance(tuner, BaseTuner)
    for setting, wanted in (
        ("lora_target_modules", targets if isinstance(targets, list) else []),
        ("lora_modules_to_save", config.lora_modules_to_save or []),
    ):
        for part in wanted:
            if not any(f".{name}".endswith(f".{part}") for name in names):
                layers = sorted({n.rsplit(".", 1)[-1] for n in tuner.targeted_module_names})
                raise ValueError(f"{setting} names {part!r}, but the model has no such module: choose among {layers}.")
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise ValueError(
            f"lora_target_modules is {targets!r}, which adapts the LM head, but the loss reads the head's weight "
            "directly: leave the head out, or train a copy of it with lora_modules_to_save: [lm_head]."
        )
    refuse_tied(adapted)
    return adapted


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """Return the model under its adapters, or the model itself if it has none."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel), type(inner)
    return inner


def refuse_tied(model: PeftModel) -> None:
    """Refuse an adapted or copied embedding that is tied to the LM head, because a merge would change both weights."""
    ends = {"embedding": model.get_input_embeddings(), "LM head": model.get_output_embeddings()}
    for name, module in ends.items():
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)) and model.config.tie_word_embeddings:
            raise ValueError(
                f"lora_target_modules or lora_modules_to_save names the {name}, but embedding and LM head of this "
                "model share one weight, which adapters would separate: leave both out."
            )


def adapted_parameter(layer: BaseTunerLayer) -> str:
    """Name the parameter that an adapter changes: one of `lora_target_parameters`, or else the module's weight."""
    return layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"


def sync_exactly(model: PeftModel, generation: VLLMGeneration) -> None:
    """Make TRL send copies of the merged weights, and restore the base's exact weights after every sync.

    TRL yields references to the weights and unmerges them when the last weight is fetched. Its client packs the last
    weights later, so that without copies the end of the model would be sent unmerged.
    """
    synchronise, iterate = generation.sync_weights, generation._iter_named_params

    def copies() -> Iterator[tuple[str, Tensor]]:
        for name, weight in iterate():
            yield name, weight.clone()

    def merged() -> list[Tensor]:
        """The base's adapted weights, of which a sharded model has this process's parts.

        They are looked up at every sync, because sharding gives the model new parameters.
        """
        weights = [
            layer.get_base_layer().get_parameter(adapted_parameter(layer)).detach()
            for layer in model.modules()
            if isinstance(layer, BaseTunerLayer)
        ]
        return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]

    def synchronise_and_restore() -> None:
        base = [weight.to("cpu", copy=True) for weight in merged()]
        synchronise()
        for weight, kept in zip(merged(), base, strict=True):
            weight.copy_(kept)

    generation._iter_named_params = copies  # type: ignore[method-assign]  # of this object alone
    generation.sync_weights = synchronise_and_restore  # type: ignore[method-assign]  # of this object alone
