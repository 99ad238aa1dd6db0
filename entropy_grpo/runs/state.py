"""The files of a checkpoint beside TRL's, and the newest complete checkpoint of a run.

    checkpoint-N/
        run_state.safetensors         state that all ranks have in common
        run_state_RANK.safetensors    state of one rank
        complete.json                 written last, when every rank has written all of its files

Tensors are in safetensors, everything else is JSON in its header: nothing here is unpickled.
"""

import json
from collections import deque
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .folder import checkpoints

COMPLETE = "complete.json"
SHARED_STATE = "run_state.safetensors"
RANK_STATE = "run_state_{}.safetensors"

State = dict[str, Any]


def save_state(path: Path, state: State) -> None:
    """Write nested dictionaries and lists of tensors and of JSON values."""
    tensors: dict[str, Tensor] = {}

    def put(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[key, put(item)] for key, item in value.items()]}
        if isinstance(value, (list, tuple, deque)):
            return [put(item) for item in value]
        return value

    structure = json.dumps(put(state))
    scratch = path.with_name(f".{path.name}.tmp")
    save_file(tensors, scratch, metadata={"structure": structure})
    scratch.replace(path)


def load_state(path: Path, device: torch.device | str = "cpu") -> State:
    """Read a file of `save_state`; tuples come back as lists."""
    with safe_open(path, framework="pt", device=str(device)) as file:

        def get(value: Any) -> Any:
            if isinstance(value, list):
                return [get(item) for item in value]
            if isinstance(value, dict) and "tensor" in value:
                return file.get_tensor(value["tensor"])
            if isinstance(value, dict):
                return {key: get(item) for key, item in value["dict"]}
            return value

        return get(json.loads(file.metadata()["structure"]))


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of a run with the most steps; None if it has none."""
    complete = [path for path in checkpoints(folder) if (path / COMPLETE).exists()]
    return complete[-1] if complete else None
