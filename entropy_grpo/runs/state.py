"""Files of a checkpoint beside TRL's files.

    checkpoint-N/
        run_state.safetensors         state that all ranks share
        run_state_RANK.safetensors    state of one rank
        complete.json                 seal, written last, after every rank has written its files

A state is a safetensors file, so that nothing is unpickled. It holds tensors, the concatenated texts as UTF-8, and a
JSON structure that points to both. Texts are a tensor because safetensors limits its header to 100 MB, which the texts
of a few hundred groups would fill.
"""

import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import files

SHARED_STATE = "run_state.safetensors"
RANK_STATE = "run_state_{}.safetensors"
# Names of two further tensors. The names of the state's tensors are numbers.
TEXTS, STRUCTURE = "texts", "structure"

State = dict[str, Any]


def save_state(path: Path, state: State) -> None:
    """Write nested dictionaries and lists of tensors, texts and JSON values. Values of numpy become Python's."""
    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()
    texts = bytearray()

    def put(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = _owning(value.detach().cpu().contiguous(), memory)
            return {"tensor": name}
        value = _of_python(value)
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


def savable(value: Any) -> Any:
    """Return a copy of a value for `save_state`, with None for the parts that it cannot write, such as images."""
    value = _of_python(value)
    if isinstance(value, dict):
        return {str(key): savable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [savable(item) for item in value]
    return value if isinstance(value, (Tensor, str, int, float)) else None


def _of_python(value: Any) -> Any:
    """Return a scalar or an array of numpy as a Python scalar or a list, and other values as they are."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _owning(tensor: Tensor, memory: set[int]) -> Tensor:
    """The tensor, or a copy if it shares memory or is a view of a larger tensor, which safetensors refuses."""
    storage = tensor.untyped_storage()
    if storage.nbytes() != tensor.nbytes or storage.data_ptr() in memory:
        return tensor.clone()
    memory.add(storage.data_ptr())
    return tensor


def load_state(path: Path, device: torch.device | str = "cpu") -> State:
    """Read a state that `save_state` wrote, with tensors on `device`. Tuples become lists."""
    device = torch.device(device)
    place = "cpu" if device.type == "cpu" else str(device)  # gloo's processes have the devices cpu:0 and cpu:1
    with safe_open(path, framework="pt", device=place) as tensors, safe_open(path, framework="pt") as file:
        earlier = (file.metadata() or {}).get(STRUCTURE)  # older checkpoints hold structure and texts in the header
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
