"""Part D: peak memory of one long sequence through a 14B-shaped model of few layers, against the plan's formulas.

The slope between two numbers of layers is what a layer costs, and the rest is what the model costs once. The path is
that of training: the fused head with the labels of the kept tokens, gradient checkpointing, one backward pass.
"""

import gc
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from trl.trainer.utils import add_fused_lm_head

from benchmarks.measure import peak_memory, seconds
from entropy_grpo.models.head import add_sparse_lm_head
from entropy_grpo.planning import costs
from entropy_grpo.planning.models import Shape, parameters

from .models import random_model
from .report import Report
from .sizes import Sizes

RHO = 0.2


def predicted(shape: Shape, tokens: int, element: int, autocast: bool) -> dict[str, float]:
    """Bytes by part, as `entropy-grpo plan` adds them up."""
    parts = {
        "weights": element * parameters(shape),
        "gradients": element * parameters(shape),
        "activations": tokens * costs.activations(shape, tokens, 2, autocast, "sdpa", True),
        "head": costs.head_memory(shape, RHO * tokens, 2, element, True),
    }
    if autocast:
        parts["cast weights"] = 2 * (parameters(shape) - 2 * shape.vocab * shape.hidden)
    return parts | {"sum": sum(parts.values())}


def measured(shape: Shape, sizes: Sizes, autocast: bool, padded: bool) -> dict[str, Any]:
    """Bytes of weights, after the forward pass and at the peak, and seconds."""
    device, tokens = sizes.device, sizes.memory_tokens
    model = random_model(shape, device, torch.float32 if autocast else torch.bfloat16)
    add_fused_lm_head(model, 1.0)
    add_sparse_lm_head(model, 1.0, "auto")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    generator = torch.Generator(device).manual_seed(0)
    ids = torch.randint(3, shape.vocab, (1, tokens), generator=generator, device=device)
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
    model.zero_grad()
    beyond = peak_memory(lambda: taken.append(seconds(step)))
    found["peak beyond the weights"] = beyond
    if on_gpu:
        found["peak"] = torch.cuda.max_memory_allocated()
    return found | {"seconds": taken}


def run(report: Report, sizes: Sizes) -> None:
    """Two numbers of layers in each precision, without and with a padding mask, and the slopes."""
    report.note(tokens=sizes.memory_tokens, rho=RHO, layers=sizes.memory_layers)
    for autocast, padded in ((False, False), (False, True), (True, False), (True, True)):
        name = f"{'float32 with autocast' if autocast else 'bfloat16'}, {'padded' if padded else 'no padding'}"
        peaks, plans = [], []
        for layers in sizes.memory_layers:
            shape = replace(sizes.memory_shape, layers=layers)
            with report.measure(name, layers=layers) as row:
                row["measured"] = measured(shape, sizes, autocast, padded)
                row["planned"] = predicted(shape, sizes.memory_tokens, 4 if autocast else 2, autocast)
                peaks.append(row["measured"]["peak beyond the weights"] + row["planned"]["weights"])
                plans.append(row["planned"]["sum"])
            gc.collect()
        if len(peaks) == 2:
            few, more = sizes.memory_layers
            with report.measure(f"slope: {name}") as row:
                for source, (low, high) in {"measured": peaks, "planned": plans}.items():
                    slope = (high - low) / (more - few)
                    row[source] = {"bytes_per_layer": slope, "bytes_once": low - few * slope}
