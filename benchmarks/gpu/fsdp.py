"""Part F: FSDP2 on one process, through accelerate and accelerate_configs/fsdp2.yaml.

The part runs with accelerate's own precision, and with gradients and outputs in float32, on a GPU also with Liger's
layers. It measures dtypes, the share
of values on bfloat16's grid, errors against float32 without FSDP, unsharded parameters after a pass without gradient,
and peak memory.
"""

import gc
import os
import socket
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers.integrations.liger import apply_liger_kernel
from trl.trainer.utils import add_fused_lm_head

from benchmarks.measure import ROOT
from entropy_grpo.config.sharding import sharding_environment
from entropy_grpo.models.head import add_sparse_lm_head

from .layers import KERNELS, restored
from .models import random_model
from .report import Report
from .sizes import Sizes

CONFIG = ROOT / "accelerate_configs" / "fsdp2.yaml"
OUTPUTS = ("log_probs", "entropy")
# Parameters whose gradients are compared: those of one layer, and of both ends of the model.
SHOWN = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight")
FLOAT32 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=None)


def one_process(device: str) -> None:
    """Environment of a launch of one process with an accelerate configuration."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update(ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    os.environ.update(sharding_environment(CONFIG))
    if device == "cpu":
        # accelerate shards only on accelerators, so that gloo is presented as one.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        torch.distributed.init_process_group("gloo")
        PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def on_grid(x: Tensor) -> float:
    """Share of the values that bfloat16 represents exactly."""
    return (x.float() == x.bfloat16().float()).float().mean().item()


def local(x: Tensor) -> Tensor:
    """The whole tensor, which is on the only process."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def about(x: Tensor, exact: Tensor) -> dict[str, Any]:
    """Dtype, share on bfloat16's grid, and error of a result."""
    error = (x.double() - exact.double()).norm() / exact.double().norm()
    return {"dtype": str(x.dtype), "share on the bfloat16 grid": on_grid(x), "relative error": error.item()}


def with_heads(sizes: Sizes, device: str) -> nn.Module:
    """The random float32 model with TRL's head and the sparse head."""
    model = random_model(sizes.fsdp_model, device)
    add_fused_lm_head(model, 1.0)
    add_sparse_lm_head(model, 1.0, "auto")
    return model.train()


def batch(sizes: Sizes) -> dict[str, Tensor]:
    """Token ids, a mask with padding on the left of the first sequence, and labels."""
    rows, columns = sizes.fsdp_batch
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, sizes.fsdp_model.vocab_size, (rows, columns), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, : columns // 8] = 0
    given = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    return {key: value.to(sizes.device) for key, value in given.items()}


def exact_results(sizes: Sizes, given: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities, entropies and gradients of the same float32 weights without FSDP."""
    model = with_heads(sizes, "cpu").to(sizes.device)
    output = model(**given, fused_lm_head=OUTPUTS)
    output.log_probs.mean().backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters()}
    return output.log_probs.detach(), output.entropy, gradients


def unsharded(model: nn.Module) -> list[str]:
    """Names of the parameters that are whole, plain tensors."""
    return [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]


def under_fsdp(
    sizes: Sizes, policy: MixedPrecisionPolicy | None, given: dict[str, Tensor], exact: Any, liger: bool
) -> dict:
    """Measure one pass without and one with gradient under a precision; None for accelerate's `bf16` policy.

    Args:
        liger: whether the layers have Liger's kernels.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    plugin = None if policy is None else FullyShardedDataParallelPlugin(mixed_precision_policy=policy)
    accelerator = Accelerator(mixed_precision="bf16", fsdp_plugin=plugin)
    if accelerator.distributed_type != DistributedType.FSDP:
        raise RuntimeError(f"accelerate chose {accelerator.distributed_type}: this would not be FSDP2")
    model = with_heads(sizes, "cpu")
    if liger:
        apply_liger_kernel(model, KERNELS)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-6))
    found: dict[str, Any] = {
        "policy": str(accelerator.state.fsdp_plugin.mixed_precision_policy),
        "world size": accelerator.num_processes,
        "unsharded at first": len(unsharded(model)),
    }
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        model(**given, fused_lm_head=OUTPUTS)
    found["unsharded after a pass without gradient"] = unsharded(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    found["unsharded after reshard()"] = unsharded(model)
    output = model(**given, fused_lm_head=OUTPUTS)
    log_probs, entropies, gradients = exact
    # Where the label is -100 both are zero, which lies on every grid.
    scored = given["labels"][:, 1:] != -100
    found["log_probs"] = about(output.log_probs.detach()[scored], log_probs[scored])
    found["entropies"] = about(output.entropy[scored], entropies[scored])
    accelerator.backward(output.log_probs.mean())
    found["unsharded after a training pass"] = unsharded(model)
    for name, p in model.named_parameters():
        if name in SHOWN:
            found[f"gradient of {name}"] = about(local(p.grad).cpu(), gradients[name])
    optimizer.step()
    found["parameters"] = sorted({str(p.dtype) for p in model.parameters()})
    if torch.cuda.is_available():
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def run(report: Report, sizes: Sizes) -> None:
    """Measure the precisions and layers in turn."""
    one_process(sizes.device)
    given = batch(sizes)
    with report.measure("float32 without FSDP"):
        exact = exact_results(sizes, given)
    cases = {"as shipped": (None, False), "float32 outputs and gradients": (FLOAT32, False)}
    cases |= {"the same, Liger's layers": (FLOAT32, True)} if sizes.device == "cuda" else {}
    for name, (policy, liger) in cases.items():
        with report.measure(name) as row, restored(sizes.fsdp_model):
            row |= under_fsdp(sizes, policy, given, exact, liger)
        gc.collect()
    torch.distributed.destroy_process_group()
