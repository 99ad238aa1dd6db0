"""Bytes of one GPU by part: what is resident, what a pass works with, what sampling takes."""

from typing import Any

from . import costs
from .job import Job, lora_targets, saved_modules
from .models import dora_tensors, linear_parameters, lora_tensors, parameters, tensors

GIB = 2**30
# Bytes of an Adam moment of a parameter, by `optim`; the others are counted as AdamW in float32.
EIGHT_BIT = ("adamw_bnb_8bit", "paged_adamw_8bit", "adamw_8bit")


def scaled_bytes(size: float) -> str:
    """Bytes in a unit that suits them."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.2f} MiB"


def _part(size: float, formula: str) -> dict[str, Any]:
    return {"bytes": round(size), "formula": formula}


def trained_tensors(job: Job) -> list[tuple[int, int]]:
    """(size, bytes of an element) of every tensor that is trained."""
    shape, model = job.shape, job.model
    # DeepSpeed trains in bfloat16. FSDP2 keeps trained weights in float32 under mixed precision, and so does PEFT its
    # adapters, which TRL casts to bfloat16 where the base is quantised; copies of modules have the base's dtype.
    element = 4 if job.sharding.kind == "fsdp2" and job.compute == 2 else job.loaded
    if job.sharding.kind == "zero3" and job.compute == 2:
        element = 2
    if not model.use_peft:
        return [(size, element) for size in tensors(shape)]
    fixed = job.sharding.shards and job.compute == 2
    adapter = element if fixed else 2 if model.is_quantised else 4
    copy = element if fixed else 2 if model.is_quantised else job.loaded
    sizes = [(size, adapter) for size in lora_tensors(shape, model.lora_r, lora_targets(job))]
    if model.use_dora:
        sizes += [(size, element if fixed else 4) for size in dora_tensors(shape, lora_targets(job))]
    return sizes + [(shape.vocab * shape.hidden, copy)] * len(saved_modules(job))


def frozen_weights(job: Job) -> float:
    """Bytes of the base that adapters leave as it is, on one GPU."""
    shape, model = job.shape, job.model
    if not model.use_peft:
        return 0.0
    if not model.is_quantised:
        return parameters(shape) * job.loaded / (job.machines.processes if job.sharding.shards else 1)
    quantised = costs.quantised_weights(shape, 4 if model.load_in_4bit else 8, model.use_bnb_nested_quant)
    return (parameters(shape) - linear_parameters(shape)) * job.loaded + quantised


def _states(job: Job) -> dict[str, Any]:
    """Weights, gradients, optimiser states: ZeRO (arXiv 1910.02054), section 3.1."""
    shape, sharding = job.shape, job.sharding
    group = job.machines.processes if sharding.shards else 1
    divided = f" / {group} GPUs" if group > 1 else ""
    whole, frozen, trained = parameters(shape), frozen_weights(job), trained_tensors(job)
    number, size = sum(n for n, _ in trained), sum(n * element for n, element in trained)
    elements = sorted({element for _, element in trained})
    said = " + ".join(f"{e} bytes x {sum(n for n, b in trained if b == e):,} trained" for e in elements) + divided
    masters = 4 * number if sharding.kind == "zero3" and job.compute == 2 else 0  # kept with its states
    # AdamW's moments have the dtype of their parameter.
    moments = {e: 1 if job.args.optim in EIGHT_BIT else 4 if masters else e for e in elements}
    states = sum(costs.adamw_states([n for n, b in trained if b == e], moments[e]) for e in elements)
    gradients, gradient_formula = size / group, said
    if keeps_whole_gradients(job):
        gradients = number * job.compute
        gradient_formula = f"{job.compute} bytes x {number:,}: not divided while micro-batches add up"
    elif sharding.kind == "ddp":
        gradients, gradient_formula = 2 * gradients, f"{gradient_formula}, and DDP's buckets of the same size"
    moment_formula = " + ".join(
        f"{2 * moments[e]} bytes x {sum(n for n, b in trained if b == e):,} trained" for e in elements
    )
    parts = {
        "weights": _part(frozen + size / group, said + (f" + {scaled_bytes(frozen)} frozen" if frozen else "")),
        "gradients": _part(gradients, gradient_formula),
        "optimizer": _part(
            (states + masters) / group, f"AdamW: {moment_formula}{' + 4 for masters' if masters else ''}{divided}"
        ),
    }
    if job.samples and job.args.beta != 0 and not job.model.use_peft:
        parts["reference model"] = _part(whole * job.loaded / group, f"{job.loaded} bytes x {whole:,}{divided}")
    return parts


def keeps_whole_gradients(job: Job) -> bool:
    """Whether FSDP2 adds up whole gradients: accelerate's `no_sync` reduces at the last micro-batch of a step only."""
    given = job.args.accelerator_config.gradient_accumulation_kwargs or {}
    accumulates = job.args.gradient_accumulation_steps > 1 and not given.get("sync_each_batch", False)
    return job.sharding.kind == "fsdp2" and accumulates


def _working_weights(job: Job) -> tuple[str, dict[str, Any]] | None:
    """Copies of weights that exist while the model runs."""
    shape, compute = job.shape, job.compute
    if job.sharding.shards:
        layer = linear_parameters(shape) // shape.layers
        head = shape.vocab * shape.hidden
        return "gathered weights", _part(
            compute * (2 * layer + head), f"{compute} bytes x (2 layers x {layer:,} + LM head {head:,})"
        )
    if compute < job.loaded and not job.model.is_quantised:
        # Trained weights are cast once for a whole pass, frozen ones at each use, which keeps them for its backward.
        recomputed = job.model.use_peft and job.args.gradient_checkpointing
        number = linear_parameters(shape) // (shape.layers if recomputed else 1)
        return "cast weights", _part(compute * number, f"{compute} bytes x {number:,}: autocast's copies in a forward")
    return None


def _sampler(job: Job) -> tuple[str, dict[str, Any]] | None:
    """What sampling takes on a training GPU."""
    args, shape = job.args, job.shape
    if not job.samples:
        return None
    if not args.use_vllm:
        sequences = job.per_device * args.steps_per_generation
        width = job.lengths.prompt + job.lengths.completion
        token = costs.kv_cache_token(shape, job.compute)
        return "KV cache", _part(
            sequences * width * token,
            f"{token:,} bytes a token (2 x {shape.layers} layers x {shape.keys} x {job.compute}) x {sequences} "
            f"responses x {width:,}",
        )
    if args.vllm_mode == "server":
        return None
    share = args.vllm_gpu_memory_utilization
    slept = ", asleep while training" if args.vllm_enable_sleep_mode else ""
    return "vLLM", _part(share * job.machines.memory * GIB, f"{share:g} of {job.machines.memory:g} GiB{slept}")


def memory(job: Job) -> dict[str, Any]:
    """Bytes of one GPU by part, and the peaks of training and of sampling, which take turns."""
    args, shape, lengths = job.args, job.shape, job.lengths
    width = lengths.prompt + lengths.completion
    tokens = job.per_device * width
    autocast = job.compute < job.loaded and not job.sharding.shards
    per_token = {on: costs.activations(shape, width, job.compute, autocast, job.attention, on) for on in (True, False)}
    checkpointing = args.gradient_checkpointing
    parts = _states(job)
    resident = [name for name in parts if name != "gradients"]
    working = _working_weights(job)
    parts |= dict([working] if working else [])
    said = "with" if checkpointing else "without"
    parts["activations"] = _part(
        tokens * per_token[checkpointing],
        f"{per_token[checkpointing]:,.0f} bytes a token ({said} gradient checkpointing) x "
        f"{job.per_device} x {width:,}",
    )
    rows = job.per_device * lengths.completion * job.share
    element = job.compute if job.sharding.shards else job.loaded
    head_trains = not job.model.use_peft or "lm_head" in saved_modules(job)
    parts["head"] = _part(
        costs.head_memory(shape, rows, job.compute, element, head_trains),
        f"a tile of logits, {rows:,.0f} kept rows of {shape.hidden}"
        + ("" if not head_trains else f", float32 gradient of {shape.vocab} x {shape.hidden}"),
    )
    if job.samples:
        local = job.per_device * args.steps_per_generation
        parts["rollout"] = _part(
            costs.rollout_buffer(lengths.prompt, lengths.completion, local),
            f"{local} responses x ({lengths.prompt} x {costs.PROMPT_TOKEN} + {lengths.completion} x "
            f"{costs.COMPLETION_TOKEN} bytes)",
        )
    sampling_part = _sampler(job)
    training = sum(part["bytes"] for part in parts.values())
    # Between optimiser steps there are no gradients.
    between = [*resident, "rollout"] if job.samples else []
    if job.sharding.shards and job.samples and not args.use_vllm:
        between.append("gathered weights")
    sampling = sum(parts[name]["bytes"] for name in between)
    if sampling_part is not None:
        name, part = sampling_part
        parts[name] = part
        sampling += part["bytes"]
        if name == "vLLM" and not args.vllm_enable_sleep_mode:
            training += part["bytes"]
    return {
        "parts": parts,
        "training": training,
        "sampling": sampling,
        "peak": max(training, sampling),
        "activations_without_checkpointing": round(tokens * per_token[False]),
        "activations_with_checkpointing": round(tokens * per_token[True]),
        "full_logits_avoided": round(costs.full_logits(shape, job.per_device * lengths.completion, job.compute)),
    }


def sampler(job: Job) -> dict[str, Any] | None:
    """vLLM's own share: weights, bytes of a token, and how many tokens and whole responses its cache holds."""
    args = job.args
    if not job.uses_vllm:
        return None
    colocated = args.vllm_mode == "colocate"
    ranks = args.vllm_tensor_parallel_size if colocated else 1
    weights = costs.inference_weights(job.shape) / ranks
    token = costs.kv_cache_token(job.shape) / ranks
    # On a server of its own vLLM takes 0.92 of a GPU, its default.
    share = args.vllm_gpu_memory_utilization if colocated else 0.92
    room = max(share * job.machines.memory * GIB - weights, 0)
    return {
        "mode": args.vllm_mode,
        "share": share,
        "weights": round(weights),
        "bytes_per_token": round(token),
        "cached_tokens": int(room / token),
        "whole_responses": int(room / token / (job.lengths.prompt + job.lengths.completion)),
    }
