"""Liger's kernels in a model's layers: normalisation, rotary positions and the MLP. The LM head is `models.head`'s."""

import logging
import os
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel


def prepare_liger(wanted: bool, device: torch.device) -> None:
    """Choose among Liger's kernels, if they are wanted.

    With CuTe DSL, Liger would rotate long sequences by another kernel where there is a gradient, and by Triton's where
    there is none. Ratios of two policies then have the difference of the kernels in them.

    Raises:
        ValueError: the device is a processor, on which Triton would fail in the first pass.
    """
    if not wanted:
        return
    if device.type == "cpu":
        raise ValueError(
            "use_liger_kernel is true, but Liger's kernels need a GPU, and the run is on a processor: set "
            "use_liger_kernel to false, or use_cpu to true in a recipe."
        )
    if device.type == "cuda":
        os.environ.setdefault("LIGER_KERNEL_IMPL_ROPE", "triton")
    # Each process would list the kernels for other devices that are not installed.
    logging.getLogger("liger_kernel.backends.registry").setLevel(logging.ERROR)


def use_liger(models: Iterable[PreTrainedModel], settings: dict[str, Any]) -> str | None:
    """Put Liger's kernels into the layers of every model.

    transformers does so for the trained model when training begins. Without this, a reference model and an evaluation
    before the training would compute with other layers.

    Args:
        settings: `liger_kernel_config`.

    Returns:
        Why there are none, if Liger has no kernels for a model.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    for model in models:
        kind = model.config.model_type
        if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
            return f"Liger has no kernels for the model type {kind}"
        apply_liger_kernel(model, settings)
    return None
