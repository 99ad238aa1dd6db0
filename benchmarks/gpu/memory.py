"""Part D: peak memory of one long sequence in a model with 14B's shape and few layers, against the plan's formulas.

The slope between two numbers of layers is the memory of a layer, and the intercept that of all other parts. The pass
is that of training: the fused head with the labels of the kept tokens, gradient checkpointing, one backward pass.
"""

import gc
from contextlib import nullcontext
from typing import Any

import torch
from transformers import PreTrainedConfig
from trl.trainer.utils import add_fused_lm_head

from benchmarks.measure import peak_memory, seconds
from entropy_grpo.models.config import CheckedModelConfig
from entropy_grpo.models.head import add_sparse_lm_head
from entropy_grpo.models.measure import Model
from entropy_grpo.planning.memory import head_memory

from .models import random_model, with_layers
from .report import Report
from .sizes import Sizes

RHO = 0.2


def predicted(config: PreTrainedConfig, tokens: int, autocast: bool) -> dict[str, float]:
    """Bytes by part, as `entropy-grpo plan` adds them."""
    element = 4 if autocast else 2
    policy = Model(config, CheckedModelConfig(dtype="float32" if autocast else "bfloat16"))
    activations = policy.activations(1, tokens, torch.bfloat16, autocast, "sdpa", checkpointing=True)
    rows = RHO * tokens
    parts = {
        "weights": element * policy.parameters,
        "gradients": element * policy.parameters,
        "activations": activations.kept,
        "head": head_memory(policy.vocabulary, policy.hidden, rows, rows, 2, element, True),
        "decoder": activations.peak - activations.kept,
    }
    return parts | {"sum": sum(parts.values()) - min(parts["head"], parts["decoder"])}


def measured(config: PreTrainedConfig, sizes: Sizes, autocast: bool, padded: bool) -> dict[str, Any]:
    """Bytes of the weights, bytes after the forward pass, peak bytes, and seconds."""
    device, tokens = sizes.device, sizes.memory_tokens
    model = random_model(config, device, torch.float32 if autocast else torch.bfloat16)
    add_fused_lm_head(model, 1.0)
    add_sparse_lm_head(model, 1.0, "auto")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    generator = torch.Generator(device).manual_seed(0)
    ids = torch.randint(3, config.vocab_size, (1, tokens), generator=generator, device=device)
    kept = torch.rand(1, tokens, generator=generator, device=device) < RHO
    mask = torch.ones_like(ids)
    if padded:
        mask[:, 0] = 0
    found: dict[str, Any] = {}
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        found["weights"] = torch.cuda.memory_allocated()

    def step() -> None:
        with torch.autocast(device, torch.bfloat16) if autocast else nullcontext():
            output = model(
                input_ids=ids,
                attention_mask=mask,
                labels=ids.masked_fill(~kept, -100),
                fused_lm_head=("log_probs",),
            )
        if on_gpu:
            found["after the forward pass"] = torch.cuda.memory_allocated()
            found["peak of the forward pass"] = torch.cuda.max_memory_allocated()
        output.log_probs.sum().backward()

    taken = [seconds(step)]
    # The gradients stay, as between the micro-batches of an optimiser step.
    beyond = peak_memory(lambda: taken.append(seconds(step)))
    found["peak beyond weights and gradients"] = beyond
    if on_gpu:
        found["peak"] = torch.cuda.max_memory_allocated()
    return found | {"seconds": taken}


def run(report: Report, sizes: Sizes) -> None:
    """Measure two numbers of layers in each precision, without and with a padding mask, and compute the slopes."""
    report.note(tokens=sizes.memory_tokens, rho=RHO, layers=sizes.memory_layers)
    for autocast, padded in ((False, False), (False, True), (True, False), (True, True)):
        name = f"{'float32 with autocast' if autocast else 'bfloat16'}, {'padded' if padded else 'no padding'}"
        peaks, plans = [], []
        for layers in sizes.memory_layers:
            config = with_layers(sizes.memory_model, layers)
            with report.measure(name, layers=layers) as row:
                row["measured"] = measured(config, sizes, autocast, padded)
                row["planned"] = predicted(config, sizes.memory_tokens, autocast)
                resident = row["planned"]["weights"] + row["planned"]["gradients"]
                peaks.append(row["measured"]["peak beyond weights and gradients"] + resident)
                plans.append(row["planned"]["sum"])
            gc.collect()
        if len(peaks) == 2:
            few, more = sizes.memory_layers
            with report.measure(f"slope: {name}") as row:
                for source, (low, high) in {"measured": peaks, "planned": plans}.items():
                    slope = (high - low) / (more - few)
                    row[source] = {"bytes_per_layer": slope, "bytes_once": low - few * slope}
