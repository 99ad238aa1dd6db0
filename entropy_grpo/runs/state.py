"""What a checkpoint holds beside TRL's files, and which checkpoint is complete.

    checkpoint-N/
        run_state.safetensors         what all ranks have in common
        run_state_RANK.safetensors    what a rank has for itself
        complete.json                 written last, when every rank has written all of its files

A state is tensors in safetensors, so nothing is unpickled: its own, its texts one after another as UTF-8, and the rest
as JSON that points to both. The header may have 100 MB, which the texts of a few hundred groups fill.
"""

import json
from collections import deque
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import files
from .folder import checkpoints

COMPLETE = "complete.json"
SHARED_STATE = "run_state.safetensors"
RANK_STATE = "run_state_{}.safetensors"
# Names of tensors beside those of the state, which are numbered.
TEXTS, STRUCTURE = "texts", "structure"

State = dict[str, Any]


def save_state(path: Path, state: State) -> None:
    """Write nested dictionaries and lists of tensors, texts and what else JSON knows."""
    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()
    texts = bytearray()

    def put(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = _owning(value.detach().cpu().contiguous(), memory)
            return {"tensor": name}
        if isinstance(value, str):
            start = len(texts)
            texts.extend(value.encode("utf-8", "surrogatepass"))
            return {"text": [start, len(texts)]}
        if isinstance(value, dict):
            return {"dict": [[key, put(item)] for key, item in value.items()]}
        if isinstance(value, (list, tuple, deque)):
            return [put(item) for item in value]
        return value

    structure = bytearray(json.dumps(put(state)).encode())
    tensors |= {TEXTS: torch.frombuffer(texts or bytearray(1), dtype=torch.uint8)}
    tensors |= {STRUCTURE: torch.frombuffer(structure, dtype=torch.uint8)}
    with files.replacing(path) as scratch:
        save_file(tensors, scratch)


def _owning(tensor: Tensor, memory: set[int]) -> Tensor:
    """The tensor, or a copy where it shares memory with another or is a view of more, which safetensors refuses."""
    storage = tensor.untyped_storage()
    if storage.nbytes() != tensor.nbytes or storage.data_ptr() in memory:
        return tensor.clone()
    memory.add(storage.data_ptr())
    return tensor


def load_state(path: Path, device: torch.device | str = "cpu") -> State:
    """Read what `save_state` wrote, tensors onto the device; tuples come back as lists."""
    with safe_open(path, framework="pt", device=str(device)) as tensors, safe_open(path, framework="pt") as file:
        earlier = (file.metadata() or {}).get(STRUCTURE)  # of a checkpoint whose texts lie in the header
        texts = None if earlier else file.get_slice(TEXTS)

        def get(value: Any) -> Any:
            if isinstance(value, list):
                return [get(item) for item in value]
            if not isinstance(value, dict):
                return value
            if "tensor" in value:
                return tensors.get_tensor(value["tensor"])
            if "text" in value:
                start, stop = value["text"]
                return texts[start:stop].numpy().tobytes().decode("utf-8", "surrogatepass")
            return {key: get(item) for key, item in value["dict"]}

        return get(json.loads(earlier or file.get_tensor(STRUCTURE).numpy().tobytes()))


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of a run with the most steps; None if it has none."""
    complete = [path for path in checkpoints(folder) if (path / COMPLETE).exists()]
    return complete[-1] if complete else None
