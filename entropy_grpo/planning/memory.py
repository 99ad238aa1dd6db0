"""Bytes of one GPU by part: resident states, working memory of a pass, and sampling.

The decoder's activations are measured (`models.measure`), and all other parts are computed. States follow ZeRO
(Rajbhandari et al., arXiv 1910.02054, section 3.1): per parameter a weight, a gradient and Adam's two moments. Each is
divided by the GPUs that share it. Quantised weights follow QLoRA (Dettmers et al., arXiv 2305.14314, section 3).
"""

import math
from collections import Counter
from collections.abc import Callable, Collection
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
# Parts that stay between optimiser steps, while responses are written.
STAYING = ("weights", "optimizer", "reference model", "rollout")
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


def trained_by_element(job: Job) -> Counter[int]:
    """Return the numbers of trained parameters by their bytes per element."""
    # Under mixed precision FSDP2 keeps trained weights in float32, and DeepSpeed in bfloat16 with float32 masters.
    fixed = {"fsdp2": 4, "zero3": 2}.get(job.sharding.kind) if job.compute == 2 else None
    counts: Counter[int] = Counter()
    for parameter in job.trained:
        counts[fixed or parameter.element_size()] += parameter.numel()
    return counts


def trained_bytes(job: Job, each: Callable[[int], int] = int) -> tuple[int, str]:
    """Return bytes of the trained parameters, over all GPUs, and text such as `4 bytes x 8,190,735,360 trained`.

    Args:
        each: function from the bytes of a parameter to the bytes that count; by default the same.
    """
    counts = sorted(trained_by_element(job).items())
    size = sum(each(element) * n for element, n in counts)
    return size, " + ".join(f"{each(element)} bytes x {n:,} trained" for element, n in counts)


def _frozen_weights(job: Job) -> float:
    """Return the bytes of the frozen base under adapters, on one GPU."""
    policy, model = job.policy, job.model
    if not model.use_peft:
        return 0.0
    if not model.is_quantised:
        return policy.parameters * job.loaded / job.shards
    linear, bits, nested = policy.linear, 4 if model.load_in_4bit else 8, model.use_bnb_nested_quant
    quantised = sum(quantised_weight(outputs, inputs, bits, nested) for outputs, inputs in linear)
    return (policy.parameters - sum(outputs * inputs for outputs, inputs in linear)) * job.loaded + quantised


def keeps_whole_gradients(job: Job) -> bool:
    """Return whether FSDP2 accumulates unsharded gradients.

    accelerate's `no_sync` reduces gradients only at the last micro-batch of a step.
    """
    config = job.args.accelerator_config
    assert isinstance(config, AcceleratorConfig)  # transformers has read it from the recipe
    given = config.gradient_accumulation_kwargs or {}
    accumulates = job.args.gradient_accumulation_steps > 1 and not given.get("sync_each_batch", False)
    return job.sharding.kind == "fsdp2" and accumulates


def optimizer_states(job: Job) -> tuple[int, str]:
    """Return the bytes of AdamW's states and DeepSpeed's master weights, over all GPUs, and their formula."""
    has_masters = job.sharding.kind == "zero3" and job.compute == 2

    def moments(element: int) -> int:
        """Return the bytes of two moments: in the dtype of their parameter, or in float32 with master weights."""
        return 2 * (1 if job.args.optim in EIGHT_BIT else FLOAT32 if has_masters else element)

    size, formula = trained_bytes(job, moments)
    if has_masters:
        size, formula = size + FLOAT32 * trained_by_element(job).total(), f"{formula} + 4 for masters"
    return size + ADAMW_STEP * len(job.trained), f"AdamW: {formula}"


def _states(job: Job) -> dict[str, Any]:
    """Return the parts for weights, gradients, optimiser states, and the reference model of a KL term."""
    divided = f" / {job.shards} GPUs" if job.shards > 1 else ""
    (size, formula), (states, of_states) = trained_bytes(job), optimizer_states(job)
    number, frozen = trained_by_element(job).total(), _frozen_weights(job)
    also = f" + {scaled_bytes(frozen)} frozen" if frozen else ""
    gradients = _part(size / job.shards, formula + divided)
    if keeps_whole_gradients(job):  # in the dtype of the reduction, see `training.fsdp2`
        gradients = _part(FLOAT32 * number, f"{FLOAT32} bytes x {number:,}: not divided while micro-batches add up")
    elif job.sharding.kind == "ddp":
        gradients = _part(2 * size, f"{formula}, and DDP's buckets of the same size")
    parts = {
        "weights": _part(frozen + size / job.shards, formula + divided + also),
        "gradients": gradients,
        "optimizer": _part(states / job.shards, of_states + divided),
    }
    if job.objective is not None and job.objective.has_reference and not job.model.use_peft:
        whole = job.policy.parameters
        parts["reference model"] = _part(whole * job.loaded / job.shards, f"{job.loaded} bytes x {whole:,}{divided}")
    return parts


# Working memory of a pass


def _gathered(job: Job) -> dict[str, Any]:
    """Return the part for gathered weights, of a job that shards.

    FSDP2 and ZeRO-3 gather a layer while the previous layer is computed, and the LM head for the whole pass. FSDP2
    without `fsdp_reshard_after_forward` keeps all layers from the forward pass to the backward pass.
    """
    if not job.sharding.shards:
        return {}
    if not job.sharding.reshards:
        formula = f"{job.compute} bytes x {job.policy.parameters:,}, until the backward pass"
        return {"gathered weights": _part(job.compute * job.policy.parameters, formula)}
    layer, head = max(job.policy.layer_sizes), job.policy.vocabulary * job.policy.hidden
    formula = f"{job.compute} bytes x (2 layers x {layer:,} + LM head {head:,})"
    return {"gathered weights": _part(job.compute * (2 * layer + head), formula)}


def _activations(job: Job, checkpointing: bool) -> Activations:
    """Return the measured activations of the largest micro-batch, of sequences of about the largest length."""
    compute = torch.float32 if job.compute == FLOAT32 else torch.bfloat16
    autocasts = job.compute != job.loaded and not job.sharding.shards  # FSDP and DeepSpeed cast weights instead
    attention, masked = job.model.attn_implementation, job.objective is None or not job.objective.aligns
    sequences = job.tokens // job.lengths.whole
    width = math.ceil(job.tokens / sequences)
    return job.policy.activations(sequences, width, compute, autocasts, attention, checkpointing, masked)


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
    policy, objective, element = job.policy, job.objective, job.compute if job.sharding.shards else job.loaded
    shares = (1.0, 1.0) if objective is None else (objective.projected_share, objective.differentiated_share)
    projected, differentiated = (job.scored * share for share in shares)
    sizes = (policy.vocabulary, policy.hidden)
    size = head_memory(*sizes, projected, differentiated, job.compute, element, policy.trains_head)
    formula = f"a tile of logits, {projected:,.0f} rows of {policy.hidden}, {differentiated:,.0f} with a gradient"
    if policy.trains_head:
        formula += f", float32 gradient of {policy.vocabulary} x {policy.hidden}"
    return _part(size, formula)


def _pass(job: Job) -> dict[str, Any]:
    """Return the parts of a training pass. Head and decoder differentiate one after the other."""
    activations = _activations(job, job.args.gradient_checkpointing)
    mode = "with" if job.args.gradient_checkpointing else "without"
    size = f"{activations.kept / job.tokens:,.0f} bytes a token ({mode} gradient checkpointing)"
    return {
        "activations": _part(activations.kept, f"{size} x {job.tokens:,}"),
        "head": _head(job),
        "decoder": _part(activations.peak - activations.kept, "a layer's own tensors and gradients, after the head"),
    }


# Sampling


def rollout_bytes(job: Job, responses: int) -> int:
    """Return the bytes of a number of responses of a rollout, padded to the longest prompt and response."""
    return responses * (job.lengths.prompt * PROMPT_TOKEN + job.lengths.completion * COMPLETION_TOKEN)


def _parts(job: Job) -> dict[str, Any]:
    """Return all parts but the sampler's."""
    parts = _states(job) | _gathered(job) | _pass(job)
    if job.objective is not None:
        local, lengths = job.per_device * job.grpo.steps_per_generation, job.lengths
        token = f"{lengths.prompt} x {PROMPT_TOKEN} + {lengths.completion} x {COMPLETION_TOKEN} bytes"
        parts["rollout"] = _part(rollout_bytes(job, local), f"{local} responses x ({token})")
    return parts


def _total(parts: dict[str, Any], names: Collection[str] = ()) -> int:
    """Return the bytes of the parts with these names, by default of all parts."""
    return sum(part["bytes"] for name, part in parts.items() if not names or name in names)


def _while_training(parts: dict[str, Any]) -> int:
    """Return the bytes of training alone. Of head and decoder, only the larger counts."""
    return _total(parts) - min(parts["head"]["bytes"], parts["decoder"]["bytes"])


def sampler_share(job: Job, memory: float) -> float:
    """Return the share of a GPU that colocated vLLM may take beside all that stays while it is awake.

    Without sleep mode vLLM never frees its share, so that the working memory of training stays, too.

    Args:
        memory: memory of the GPU in GiB.

    Returns:
        Share in hundredths, rounded down; 0 if nothing is left.
    """
    parts = _parts(job)
    stays = _total(parts, STAYING) if job.grpo.vllm_enable_sleep_mode else _while_training(parts)
    headroom = FREE + GATHERED * FLOAT32 * max(job.policy.tensors)
    return math.floor(100 * max(1 - (stays + headroom) / (memory * GIB), 0)) / 100


def vllm_share(job: Job) -> float:
    """Return the share of a GPU that colocated vLLM takes: the recipe's, or all that the run leaves."""
    given = job.grpo.vllm_gpu_memory_utilization
    return sampler_share(job, job.options.gpu_memory) if given is None else given


def _sampler(job: Job) -> dict[str, Any]:
    """Return the part of the sampler on a training GPU, by name; none for a server, or a cold start."""
    if job.objective is None or job.serves:
        return {}
    if job.colocates:
        share, memory = vllm_share(job), job.options.gpu_memory
        slept = ", asleep while training" if job.grpo.vllm_enable_sleep_mode else ""
        return {"vLLM": _part(share * memory * GIB, f"{share:g} of {memory:g} GiB{slept}")}
    sequences, width = job.per_device * job.grpo.steps_per_generation, job.lengths.whole
    token = job.policy.cache_token() * job.compute
    formula = f"{token:,.0f} bytes a token x {sequences} responses x {width:,}"
    return {"KV cache": _part(sequences * width * token, formula)}


def memory(job: Job) -> dict[str, Any]:
    """Return the bytes of one GPU by part, and the peaks of training and of sampling, which alternate."""
    parts, sampler = _parts(job), _sampler(job)
    training, sampling = _while_training(parts), 0
    if job.colocates and not job.grpo.vllm_enable_sleep_mode:
        training += _total(sampler)
    if job.objective is not None:
        stays = STAYING if job.uses_vllm else (*STAYING, "gathered weights")
        sampling = _total(parts, stays) + _total(sampler)
    return {
        "parts": parts | sampler,
        "training": training,
        "sampling": sampling,
        "peak": max(training, sampling),
        "activations_without_checkpointing": round(_activations(job, False).peak),
        "activations_with_checkpointing": round(_activations(job, True).peak),
        "full_logits_avoided": job.scored * job.policy.vocabulary * (job.compute + FLOAT32),
    }
