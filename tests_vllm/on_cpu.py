"""What vLLM needs on a processor and not on a GPU. Everything else in these tests is vLLM's and TRL's own code.

- TRL sends weights to a server over NCCL, which needs a GPU: here they go through a file that the server is told to
  load.
- On a processor vLLM packs the weights of linear layers when it loads a model, and keeps the packed copy alone. A
  server that loads a file packs again. In colocate mode TRL writes to the weights tensor by tensor, so there nothing
  is packed.
- In colocate mode TRL leaves the precision to vLLM, which rounds a float32 model to bfloat16: the noise of a good
  weight sync would be that of the rounding.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from vllm.model_executor.layers import utils as vllm_layers


def sync_by_file(folder: Path) -> None:
    """Replace the two methods of TRL's client that speak NCCL; the folder must be one that the server can read."""

    def update_named_params(client, metadata, named_params):
        # Like vLLM's packer, this reads the tensors when the last was handed out.
        save_file({name: value.contiguous() for name, value in named_params}, folder / "model.safetensors")
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        client._post(f"{client.base_url}/collective_rpc", json=call)

    VLLMClient.init_communicator = lambda client, device: None
    VLLMClient.update_named_params = update_named_params


def keep_weights_unpacked() -> None:
    """Let vLLM's linear layers in this process compute with the weights that TRL writes to."""

    def dispatch(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    vllm_layers.dispatch_cpu_unquantized_gemm = dispatch


def colocate(**changed: Any) -> None:
    """Have TRL start vLLM with other arguments than its own."""
    start = vllm_generation.LLM
    vllm_generation.LLM = lambda **kwargs: start(**kwargs | changed)


def colocate_in_float32() -> None:
    """Have TRL start vLLM in float32, and without compiling, which takes longer than these tests."""
    colocate(dtype="float32", enforce_eager=True)
