"""Bytes of one GPU by part: resident states, working memory of a pass, and sampling.

The decoder's activations are measured (`models.measure`), and all other parts are computed. States follow ZeRO
(Rajbhandari et al., arXiv 1910.02054, section 3.1): per parameter a weight, a gradient and Adam's two moments. Each is
divided by the GPUs that share it. Quantised weights follow QLoRA (Dettmers et al., arXiv 2305.14314, section 3).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers.trainer_pt_utils import AcceleratorConfig
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE

from ..models.kernels import GPU_TILE
from ..models.measure import Activations
from .job import Job

GIB = 2**30
FLOAT32 = 4
# Values of `optim` with Adam moments of 1 byte; all other optimisers are counted as AdamW.
EIGHT_BIT = ("adamw_bnb_8bit", "paged_adamw_8bit", "adamw_8bit")
ADAMW_STEP = 4  # bytes; torch keeps a float32 step counter for every tensor
# Bytes that colocated vLLM leaves free: the CUDA context, NCCL's buffers and fragmentation; and the largest whole
# tensor in float32, twice. A sync of the weights gathers it, and torch's allocator still holds it when the cache is
# mapped.
FREE, GATHERED = 4 * GIB, 2
# Bytes of a token of the rollout: ids and masks are int64. Old log-probabilities, the sampler's log-probabilities,
# their ratio and entropies are float32. The kept mask has 1 byte.
PROMPT_TOKEN, COMPLETION_TOKEN = 8 + 8, 8 + 8 + 3 * 4 + 4 + 1
# bitsandbytes: number of 4-bit weights per scale, number of scales per nested scale with double quantisation, and
# float32 entries of the tables that a tensor keeps for each of both.
BLOCK, NESTED_BLOCK = 64, 256
TABLE, NESTED_TABLE = 16, 256 + 1


def scaled_bytes(size: float) -> str:
    """Format bytes in GiB or MiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.2f} MiB"


def _part(size: float, formula: str) -> dict[str, Any]:
    return {"bytes": round(size), "formula": formula}


# States


def adamw_states(tensors: Sequence[int], bytes_per_moment: float) -> float:
    """Return the bytes of two moments per parameter and a step counter per tensor, for tensors of given sizes."""
    return 2 * bytes_per_moment * sum(tensors) + ADAMW_STEP * len(tensors)


def quantised_weight(outputs: int, inputs: int, bits: int, nested: bool) -> int:
    """Return the bytes of a linear layer in bitsandbytes: 4 bits with scales, or 8 bits with a scale per output.

    Args:
        nested: whether the scales of 4-bit weights are quantised to 8 bits (double quantisation).
    """
    if bits == 8:
        return outputs * inputs + FLOAT32 * outputs
    blocks = math.ceil(outputs * inputs / BLOCK)
    scales = blocks + FLOAT32 * (math.ceil(blocks / NESTED_BLOCK) + NESTED_TABLE) if nested else FLOAT32 * blocks
    return math.ceil(outputs * inputs / 2) + scales + FLOAT32 * TABLE


def trained_tensors(job: Job) -> list[tuple[int, int]]:
    """Return (size, bytes per element) of every trained tensor."""
    # Under mixed precision FSDP2 keeps trained weights in float32, and DeepSpeed in bfloat16 with float32 masters.
    fixed = {"fsdp2": 4, "zero3": 2}.get(job.sharding.kind) if job.compute == 2 else None
    return [(p.numel(), fixed or p.element_size()) for p in job.policy.whole.parameters() if p.requires_grad]


def trained_bytes(job: Job) -> int:
    """Return the bytes of the trained weights, over all GPUs."""
    return sum(n * element for n, element in trained_tensors(job))


def frozen_weights(job: Job) -> float:
    """Return the bytes of the frozen base under adapters, on one GPU."""
    policy, model = job.policy, job.model
    if not model.use_peft:
        return 0.0
    if not model.is_quantised:
        return policy.parameters * job.loaded / job.shards
    bits = 4 if model.load_in_4bit else 8
    nested = model.use_bnb_nested_quant
    quantised = sum(quantised_weight(outputs, inputs, bits, nested) for outputs, inputs in policy.linear)
    return (policy.parameters - sum(a * b for a, b in policy.linear)) * job.loaded + quantised


def keeps_whole_gradients(job: Job) -> bool:
    """Return whether FSDP2 accumulates unsharded gradients.

    accelerate's `no_sync` reduces gradients only at the last micro-batch of a step.
    """
    config = job.args.accelerator_config
    assert isinstance(config, AcceleratorConfig)  # transformers has read it from the recipe
    given = config.gradient_accumulation_kwargs or {}
    accumulates = job.args.gradient_accumulation_steps > 1 and not given.get("sync_each_batch", False)
    return job.sharding.kind == "fsdp2" and accumulates


def _by_element(job: Job, factor: dict[int, int] | None = None) -> str:
    """Return text such as `4 bytes x 8,190,735,360 trained`, with a term for every element size."""
    trained = trained_tensors(job)
    return " + ".join(
        f"{factor[e] if factor else e} bytes x {sum(n for n, b in trained if b == e):,} trained"
        for e in sorted({e for _, e in trained})
    )


def _gradients(job: Job, divided: str) -> dict[str, Any]:
    size = trained_bytes(job)
    if keeps_whole_gradients(job):  # in the dtype of the reduction, see `training.fsdp2`
        number = sum(n for n, _ in trained_tensors(job))
        return _part(number * FLOAT32, f"{FLOAT32} bytes x {number:,}: not divided while micro-batches add up")
    if job.sharding.kind == "ddp":
        return _part(2 * size, f"{_by_element(job)}, and DDP's buckets of the same size")
    return _part(size / job.shards, _by_element(job) + divided)


def optimizer_states(job: Job) -> tuple[float, str]:
    """Return the bytes of AdamW's states and DeepSpeed's master weights, over all GPUs, and their formula."""
    trained, has_masters = trained_tensors(job), job.sharding.kind == "zero3" and job.compute == 2
    elements = {element for _, element in trained}
    # AdamW's moments have the dtype of their parameter, or float32 with master weights.
    moments = {e: 1 if job.args.optim in EIGHT_BIT else 4 if has_masters else e for e in elements}
    size = sum(adamw_states([n for n, b in trained if b == e], moments[e]) for e in elements)
    masters = FLOAT32 * sum(n for n, _ in trained) if has_masters else 0
    formula = _by_element(job, {e: 2 * moment for e, moment in moments.items()})
    return size + masters, f"AdamW: {formula}{' + 4 for masters' if masters else ''}"


def _states(job: Job) -> dict[str, Any]:
    """Return the parts for weights, gradients, optimiser states, and the reference model of a KL term."""
    divided = f" / {job.shards} GPUs" if job.shards > 1 else ""
    frozen, (states, formula) = frozen_weights(job), optimizer_states(job)
    also = f" + {scaled_bytes(frozen)} frozen" if frozen else ""
    parts = {
        "weights": _part(frozen + trained_bytes(job) / job.shards, _by_element(job) + divided + also),
        "gradients": _gradients(job, divided),
        "optimizer": _part(states / job.shards, formula + divided),
    }
    if job.objective is not None and job.objective.has_reference and not job.model.use_peft:
        whole = job.policy.parameters
        parts["reference model"] = _part(whole * job.loaded / job.shards, f"{job.loaded} bytes x {whole:,}{divided}")
    return parts


# Working memory of a pass


def _gathered_weights(job: Job) -> dict[str, Any]:
    """Return the part for gathered weights.

    FSDP2 and ZeRO-3 gather a layer while the previous layer is computed, and the LM head for the whole pass.
    """
    policy = job.policy
    layer, head = max(policy.layer_sizes), policy.vocabulary * policy.hidden
    formula = f"{job.compute} bytes x (2 layers x {layer:,} + LM head {head:,})"
    return _part(job.compute * (2 * layer + head), formula)


def _activations(job: Job, checkpointing: bool) -> Activations:
    """Return the measured activations of the largest micro-batch, of sequences of about the largest length."""
    compute = torch.float32 if job.compute == FLOAT32 else torch.bfloat16
    attention, masked = job.model.attn_implementation, job.objective is None or not job.objective.aligns
    sequences = job.tokens // job.lengths.whole
    width = math.ceil(job.tokens / sequences)
    return job.policy.activations(sequences, width, compute, job.autocasts, attention, checkpointing, masked)


def head_memory(
    vocabulary: int, hidden: int, projected: float, differentiated: float, compute: int, weight: int, trained: bool
) -> float:
    """Return the bytes of the fused head: a tile of logits, the projected rows, float32 sums of gradients.

    Args:
        projected, differentiated: numbers of rows.
        compute: bytes of an activation.
        weight: bytes of an element of the weight; a weight that is not float32 needs a cast copy of the gradient.
        trained: whether the weight has a gradient.
    """
    tile = min(projected, TOKEN_CHUNK_SIZE) * min(vocabulary, GPU_TILE) * compute
    weight_gradient = vocabulary * hidden * (FLOAT32 + (weight if weight != FLOAT32 else 0))
    rows = projected * hidden * compute + differentiated * hidden * FLOAT32
    return tile + rows + (weight_gradient if trained else 0)


def _head(job: Job) -> dict[str, Any]:
    policy, rows = job.policy, job.scored
    projected = rows * (job.objective.projected_share if job.objective else 1)
    differentiated = rows * (job.objective.differentiated_share if job.objective else 1)
    element = job.compute if job.sharding.shards else job.loaded
    sizes = (policy.vocabulary, policy.hidden)
    size = head_memory(*sizes, projected, differentiated, job.compute, element, policy.trains_head)
    formula = f"a tile of logits, {projected:,.0f} rows of {policy.hidden}, {differentiated:,.0f} with a gradient"
    if policy.trains_head:
        formula += f", float32 gradient of {policy.vocabulary} x {policy.hidden}"
    return _part(size, formula)


def _pass(job: Job, activations: Activations) -> dict[str, Any]:
    """Return the parts of a training pass. Head and decoder differentiate one after the other."""
    mode = "with" if job.args.gradient_checkpointing else "without"
    size = f"{activations.kept / job.tokens:,.0f} bytes a token ({mode} gradient checkpointing)"
    return {
        "activations": _part(activations.kept, f"{size} x {job.tokens:,}"),
        "head": _head(job),
        "decoder": _part(activations.peak - activations.kept, "a layer's own tensors and gradients, after the head"),
    }


# Sampling


def rollout_buffer(prompt: int, completion: int, sequences: int) -> int:
    """Return the bytes of a process's part of the rollout, padded to its longest prompt and response."""
    return sequences * (prompt * PROMPT_TOKEN + completion * COMPLETION_TOKEN)


def _rollout(job: Job) -> dict[str, Any]:
    local, lengths = job.per_device * job.grpo.steps_per_generation, job.lengths
    return _part(
        rollout_buffer(lengths.prompt, lengths.completion, local),
        f"{local} responses x ({lengths.prompt} x {PROMPT_TOKEN} + {lengths.completion} x {COMPLETION_TOKEN} bytes)",
    )


def _between_steps(job: Job) -> dict[str, Any]:
    """Return the parts that stay between optimiser steps, while responses are written."""
    return {name: part for name, part in _states(job).items() if name != "gradients"} | {"rollout": _rollout(job)}


def _while_training(job: Job, working: dict[str, Any]) -> int:
    """Return the bytes of training alone. Of head and decoder, only the larger counts."""
    parts = _states(job) | working | ({} if job.objective is None else {"rollout": _rollout(job)})
    return _total(parts) - min(working["head"]["bytes"], working["decoder"]["bytes"])


def sampler_share(job: Job, memory: float) -> float:
    """Return the share of a GPU that colocated vLLM may take beside all that stays while it is awake.

    Without sleep mode vLLM never frees its share, so that the working memory of training stays, too.

    Args:
        memory: memory of the GPU in GiB.

    Returns:
        Share in hundredths, rounded down; 0 if nothing is left.
    """
    if job.grpo.vllm_enable_sleep_mode:
        stays = _total(_between_steps(job))
    else:
        working = _gathered(job) | _pass(job, _activations(job, job.args.gradient_checkpointing))
        stays = _while_training(job, working)
    headroom = FREE + GATHERED * FLOAT32 * max(job.policy.tensors)
    return math.floor(100 * max(1 - (stays + headroom) / (memory * GIB), 0)) / 100


def _sampler(job: Job) -> dict[str, Any]:
    """Return the part of the sampler on a training GPU, by name; none for a server."""
    args, memory = job.grpo, job.options.gpu_memory
    if job.serves:
        return {}
    if job.colocates:
        share = args.vllm_gpu_memory_utilization
        share = sampler_share(job, memory) if share is None else share
        slept = ", asleep while training" if args.vllm_enable_sleep_mode else ""
        return {"vLLM": _part(share * memory * GIB, f"{share:g} of {memory:g} GiB{slept}")}
    sequences, width = job.per_device * args.steps_per_generation, job.lengths.whole
    token = job.policy.cache_token() * job.compute
    formula = f"{token:,.0f} bytes a token x {sequences} responses x {width:,}"
    return {"KV cache": _part(sequences * width * token, formula)}


def _total(*parts: dict[str, Any]) -> int:
    return sum(part["bytes"] for some in parts for part in some.values())


def _gathered(job: Job) -> dict[str, Any]:
    return {"gathered weights": _gathered_weights(job)} if job.sharding.shards else {}


def memory(job: Job) -> dict[str, Any]:
    """Return the bytes of one GPU by part, and the peaks of training and of sampling, which alternate."""
    states, gathered = _states(job), _gathered(job)
    activations = {on: _activations(job, on) for on in (True, False)}
    working = gathered | _pass(job, activations[job.args.gradient_checkpointing])
    rollout = {} if job.objective is None else {"rollout": _rollout(job)}
    sampler = {} if job.objective is None else _sampler(job)
    stays = sampler if job.colocates and not job.grpo.vllm_enable_sleep_mode else {}
    training = _while_training(job, working) + _total(stays)
    sampling = _total(_between_steps(job), sampler, {} if job.uses_vllm else gathered) if rollout else 0
    logits = job.scored * job.policy.vocabulary * (job.compute + FLOAT32)
    return {
        "parts": states | working | rollout | sampler,
        "training": training,
        "sampling": sampling,
        "peak": max(training, sampling),
        "activations_without_checkpointing": round(activations[False].peak),
        "activations_with_checkpointing": round(activations[True].peak),
        "full_logits_avoided": logits,
    }
