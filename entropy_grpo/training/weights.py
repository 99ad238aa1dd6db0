"""Weights alone at chosen steps, which stay when checkpoints are deleted: for analyses of the evolution over training.

They are gathered from all processes and written in the precision that the model computed in, as the final model is.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import Trainer, TrainerCallback

from ..runs import files
from ..runs.folder import RunFolder
from ..runs.weights import MODEL_CONFIG


def cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights in another dtype; entries that share their memory, such as tied embeddings, still share it."""
    made: dict[tuple, Tensor] = {}
    return {
        name: made.setdefault((weight.data_ptr(), weight.shape), weight.to(dtype))
        if weight.is_floating_point()
        else weight
        for name, weight in state.items()
    }


def save_weights(trainer: Trainer, path: Path) -> None:
    """Write model and tokenizer to a folder that appears when it is complete; every process has to call this."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    casts = trainer.args.bf16 and not is_peft_model(trainer.model)
    if casts:
        state = cast(state, torch.bfloat16)
    scratch = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed run began to write
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(scratch, state_dict=state)
    if casts:  # transformers writes the dtype of the model's own parameters
        config = scratch / MODEL_CONFIG
        files.write_json(config, files.read_json(config) | {"dtype": "bfloat16"})
    trainer.processing_class.save_pretrained(scratch)
    shutil.rmtree(path, ignore_errors=True)  # a run that was resumed comes by this step again
    scratch.rename(path)


class KeepWeights(TrainerCallback):
    """Writes `weights/step-N` of the run folder after each of the given optimiser steps."""

    def __init__(self, trainer: Trainer, steps: Collection[int], folder: RunFolder):
        self.trainer, self.steps, self.folder = trainer, frozenset(steps), folder

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            save_weights(self.trainer, self.folder.weights(state.global_step))
