"""Bytes of one GPU by part: resident states, what a pass works with, and sampling.

The decoder's activations are measured (`measure`); the rest is arithmetic. Sources: states, Rajbhandari et al., ZeRO
(arXiv 1910.02054), section 3.1: per parameter a weight, a gradient and Adam's two moments, each divided by the GPUs
that share them; quantised weights, Dettmers et al., QLoRA (arXiv 2305.14314), section 3.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from .job import Job

GIB = 2**30
FLOAT32 = 4
# Bytes of an Adam moment of a parameter, by `optim`; the others are counted as AdamW in float32.
EIGHT_BIT = ("adamw_bnb_8bit", "paged_adamw_8bit", "adamw_8bit")
ADAMW_STEP = 4  # torch keeps the number of steps of every tensor, a float32
# Rows and columns of a tile of logits.
TILE_ROWS, TILE_COLUMNS = 4096, 32768
# Bytes that a token of the rollout takes: ids and masks are int64; old log-probabilities, the sampler's, their ratio
# and entropies float32; the kept mask 1 byte.
PROMPT_TOKEN, COMPLETION_TOKEN = 8 + 8, 8 + 8 + 3 * 4 + 4 + 1
# bitsandbytes: 4-bit weights that share a scale, scales that share one where they are quantised themselves, and the
# float32 entries of the tables that a tensor keeps for each.
BLOCK, NESTED_BLOCK = 64, 256
TABLE, NESTED_TABLE = 16, 256 + 1


def scaled_bytes(size: float) -> str:
    """Bytes in a unit that suits them."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.2f} MiB"


def _part(size: float, formula: str) -> dict[str, Any]:
    return {"bytes": round(size), "formula": formula}


# States


def adamw_states(tensors: Sequence[int], bytes_per_moment: float = FLOAT32) -> float:
    """Bytes of two moments per parameter and a step counter per tensor, whose sizes are given."""
    return 2 * bytes_per_moment * sum(tensors) + ADAMW_STEP * len(tensors)


def quantised_weight(outputs: int, inputs: int, bits: int, nested: bool) -> int:
    """Bytes of a linear layer as bitsandbytes keeps it: 4 bits with scales, or 8 with a scale per output.

    Args:
        nested: the scales of 4-bit weights are quantised to 8 bits (double quantisation).
    """
    if bits == 8:
        return outputs * inputs + FLOAT32 * outputs
    blocks = math.ceil(outputs * inputs / BLOCK)
    scales = blocks + FLOAT32 * (math.ceil(blocks / NESTED_BLOCK) + NESTED_TABLE) if nested else FLOAT32 * blocks
    return math.ceil(outputs * inputs / 2) + scales + FLOAT32 * TABLE


def trained_tensors(job: Job) -> list[tuple[int, int]]:
    """(size, bytes of an element) of every tensor that is trained."""
    # Under mixed precision FSDP2 keeps trained weights in float32, and DeepSpeed in bfloat16 beside float32 masters.
    fixed = {"fsdp2": 4, "zero3": 2}.get(job.sharding.kind) if job.compute == 2 else None
    return [(p.numel(), fixed or p.element_size()) for p in job.policy.whole.parameters() if p.requires_grad]


def frozen_weights(job: Job) -> float:
    """Bytes of the base that adapters leave as it is, on one GPU."""
    policy, model = job.policy, job.model
    if not model.use_peft:
        return 0.0
    if not model.is_quantised:
        return policy.parameters * job.loaded / (job.machines.processes if job.sharding.shards else 1)
    bits = 4 if model.load_in_4bit else 8
    quantised = sum(quantised_weight(*size, bits, model.use_bnb_nested_quant) for size in policy.linear)
    return (policy.parameters - sum(a * b for a, b in policy.linear)) * job.loaded + quantised


def keeps_whole_gradients(job: Job) -> bool:
    """Whether FSDP2 adds up whole gradients: accelerate's `no_sync` reduces at the last micro-batch of a step only."""
    given = job.args.accelerator_config.gradient_accumulation_kwargs or {}
    accumulates = job.args.gradient_accumulation_steps > 1 and not given.get("sync_each_batch", False)
    return job.sharding.kind == "fsdp2" and accumulates


def _by_element(trained: list[tuple[int, int]], factor: dict[int, int] | None = None) -> str:
    """`4 bytes x 8,190,735,360 trained`, for every size of an element."""
    return " + ".join(
        f"{factor[e] if factor else e} bytes x {sum(n for n, b in trained if b == e):,} trained"
        for e in sorted({e for _, e in trained})
    )


def _gradients(job: Job, trained: list[tuple[int, int]], group: int, divided: str) -> dict[str, Any]:
    number, size = sum(n for n, _ in trained), sum(n * element for n, element in trained)
    if keeps_whole_gradients(job):
        formula = f"{job.compute} bytes x {number:,}: not divided while micro-batches add up"
        return _part(number * job.compute, formula)
    if job.sharding.kind == "ddp":
        return _part(2 * size, f"{_by_element(trained)}, and DDP's buckets of the same size")
    return _part(size / group, _by_element(trained) + divided)


def optimizer_states(job: Job) -> float:
    """Bytes of AdamW's states, and of DeepSpeed's masters beside them, over all GPUs."""
    return _optimizer(job, trained_tensors(job), 1, "")["bytes"]


def _optimizer(job: Job, trained: list[tuple[int, int]], group: int, divided: str) -> dict[str, Any]:
    has_masters = job.sharding.kind == "zero3" and job.compute == 2
    elements = {element for _, element in trained}
    # AdamW's moments have the dtype of their parameter.
    moments = {e: 1 if job.args.optim in EIGHT_BIT else 4 if has_masters else e for e in elements}
    size = sum(adamw_states([n for n, b in trained if b == e], moments[e]) for e in elements)
    masters = FLOAT32 * sum(n for n, _ in trained) if has_masters else 0
    formula = _by_element(trained, {e: 2 * moment for e, moment in moments.items()})
    return _part((size + masters) / group, f"AdamW: {formula}{' + 4 for masters' if masters else ''}{divided}")


def _states(job: Job) -> dict[str, Any]:
    """Weights, gradients, optimiser states, and the reference model of a KL term."""
    group = job.machines.processes if job.sharding.shards else 1
    divided = f" / {group} GPUs" if group > 1 else ""
    frozen, trained = frozen_weights(job), trained_tensors(job)
    size = sum(n * element for n, element in trained)
    also = f" + {scaled_bytes(frozen)} frozen" if frozen else ""
    parts = {
        "weights": _part(frozen + size / group, _by_element(trained) + divided + also),
        "gradients": _gradients(job, trained, group, divided),
        "optimizer": _optimizer(job, trained, group, divided),
    }
    if job.objective is not None and job.objective.has_reference and not job.model.use_peft:
        whole = job.policy.parameters
        parts["reference model"] = _part(whole * job.loaded / group, f"{job.loaded} bytes x {whole:,}{divided}")
    return parts


# What a pass works with


def _gathered_weights(job: Job) -> dict[str, Any]:
    """FSDP2 and ZeRO-3 gather a layer while they compute the one before it, and the LM head for the whole pass."""
    policy = job.policy
    layer, head = max(policy.layer_sizes), policy.vocabulary * policy.hidden
    formula = f"{job.compute} bytes x (2 layers x {layer:,} + LM head {head:,})"
    return _part(job.compute * (2 * layer + head), formula)


def _cast_weights(job: Job) -> int:
    """Bytes of autocast's copies of trained weights, which it keeps until the end of a forward pass."""
    if not job.autocasts or job.model.use_peft:
        return 0
    return job.compute * sum(outputs * inputs for outputs, inputs in job.policy.linear)


def _activations(job: Job, checkpointing: bool) -> dict[str, Any]:
    """What the decoder keeps of a micro-batch, and, with checkpointing, the layer that is computed again."""
    width = job.lengths.prompt + job.lengths.completion
    found = job.policy.activations(
        job.per_device,
        width,
        torch.float32 if job.compute == FLOAT32 else torch.bfloat16,
        job.autocasts,
        job.model.attn_implementation,
        checkpointing,
    )
    size = found.kept
    if checkpointing:
        size += max(found.layer, _cast_weights(job))
    said = "with" if checkpointing else "without"
    tokens = job.per_device * width
    formula = f"{size / tokens:,.0f} bytes a token ({said} gradient checkpointing) x {job.per_device} x {width:,}"
    return _part(size, formula)


def head_memory(
    vocabulary: int, hidden: int, projected: float, differentiated: float, compute: int, weight: int, trained: bool
) -> float:
    """Bytes of the fused head: a tile of logits, the rows that it projects, float32 sums of their gradients.

    Args:
        projected, differentiated: numbers of rows.
        weight: bytes of an element of the weight: where it is not float32, the sum is cast once.
        trained: the weight has a gradient.
    """
    tile = min(projected, TILE_ROWS) * min(vocabulary, TILE_COLUMNS) * compute
    weight_gradient = vocabulary * hidden * (FLOAT32 + (weight if weight != FLOAT32 else 0))
    rows = projected * hidden * compute + differentiated * hidden * FLOAT32
    return tile + rows + (weight_gradient if trained else 0)


def full_logits(vocabulary: int, rows: float, compute: int) -> float:
    """Bytes of whole logits and of their log-softmax in float32, which a head without tiles makes."""
    return rows * vocabulary * (compute + FLOAT32)


def _head(job: Job) -> dict[str, Any]:
    policy, rows = job.policy, job.per_device * job.lengths.completion
    projected = rows * (job.objective.projected_share if job.objective else 1)
    differentiated = rows * (job.objective.differentiated_share if job.objective else 1)
    element = job.compute if job.sharding.shards else job.loaded
    sizes = (policy.vocabulary, policy.hidden)
    size = head_memory(*sizes, projected, differentiated, job.compute, element, job.trains_head)
    formula = f"a tile of logits, {projected:,.0f} rows of {policy.hidden}, {differentiated:,.0f} with a gradient"
    if job.trains_head:
        formula += f", float32 gradient of {policy.vocabulary} x {policy.hidden}"
    return _part(size, formula)


# Sampling


def rollout_buffer(prompt: int, completion: int, sequences: int) -> int:
    """Bytes of a process's part of the rollout, padded to its longest prompt and response."""
    return sequences * (prompt * PROMPT_TOKEN + completion * COMPLETION_TOKEN)


def _rollout(job: Job) -> dict[str, Any]:
    local, lengths = job.per_device * job.args.steps_per_generation, job.lengths
    return _part(
        rollout_buffer(lengths.prompt, lengths.completion, local),
        f"{local} responses x ({lengths.prompt} x {PROMPT_TOKEN} + {lengths.completion} x {COMPLETION_TOKEN} bytes)",
    )


def _sampler(job: Job) -> tuple[str, dict[str, Any]] | None:
    """What sampling takes on a training GPU, by name."""
    args = job.args
    if not args.use_vllm:
        sequences, width = job.per_device * args.steps_per_generation, job.lengths.prompt + job.lengths.completion
        token = job.policy.cache_token() * job.compute
        formula = f"{token:,.0f} bytes a token x {sequences} responses x {width:,}"
        return "KV cache", _part(sequences * width * token, formula)
    if args.vllm_mode == "server":
        return None
    share = args.vllm_gpu_memory_utilization
    slept = ", asleep while training" if args.vllm_enable_sleep_mode else ""
    return "vLLM", _part(share * job.machines.memory * GIB, f"{share:g} of {job.machines.memory:g} GiB{slept}")


def memory(job: Job) -> dict[str, Any]:
    """Bytes of one GPU by part, and the peaks of training and of sampling, which take turns."""
    parts = _states(job)
    resident = [name for name in parts if name != "gradients"]  # between optimiser steps there are none
    if job.sharding.shards:
        parts["gathered weights"] = _gathered_weights(job)
    activations = {on: _activations(job, on) for on in (True, False)}
    parts["activations"] = activations[job.args.gradient_checkpointing]
    parts["head"] = _head(job)
    training, sampling = sum(part["bytes"] for part in parts.values()), 0
    if job.samples:
        parts["rollout"] = _rollout(job)
        training += parts["rollout"]["bytes"]
        gathers = ["gathered weights"] if job.sharding.shards and not job.args.use_vllm else []
        sampling = sum(parts[name]["bytes"] for name in (*resident, "rollout", *gathers))
        found = _sampler(job)
        if found is not None:
            name, parts[name] = found
            sampling += parts[name]["bytes"]
            asleep = name == "KV cache" or job.args.vllm_enable_sleep_mode
            training += 0 if asleep else parts[name]["bytes"]
    responses = job.per_device * job.lengths.completion
    return {
        "parts": parts,
        "training": training,
        "sampling": sampling,
        "peak": max(training, sampling),
        "activations_without_checkpointing": activations[False]["bytes"],
        "activations_with_checkpointing": activations[True]["bytes"],
        "full_logits_avoided": round(full_logits(job.policy.vocabulary, responses, job.compute)),
    }
