"""Warnings about a job on its machines: a sentence for every likely problem, with the change that solves it."""

import math
from collections.abc import Iterator
from typing import Any

from transformers.training_args import OptimizerNames

from ..training.requirements import port_in_use
from .job import Job
from .memory import EIGHT_BIT, GIB, keeps_whole_gradients
from .vllm import holds_a_sequence

PORT = 29500  # accelerate's default
LOCAL = ("0.0.0.0", "localhost", "127.0.0.1")


def _smaller(job: Job) -> dict[str, dict[str, bool]]:
    """Return the changes that reduce the memory of training and of sampling, with whether this job is open to them."""
    shards = job.sharding.shards
    return {
        "training": {
            "set gradient_checkpointing: true": not job.args.gradient_checkpointing,
            "lower per_device_train_batch_size": job.per_device > 1,
            "set vllm_enable_sleep_mode: true": job.colocates and not job.grpo.vllm_enable_sleep_mode,
            "shard over more GPUs": shards,
            "shard over several GPUs with accelerate_configs/fsdp2.yaml": not (shards or job.model.is_quantised),
            "train with LoRA": not job.model.use_peft,
            "lower max_completion_length": True,
        },
        "sampling": {
            "make rollouts smaller": not job.uses_vllm,
            "lower vllm_gpu_memory_utilization": job.uses_vllm,
            "serve the model on a GPU of its own with vllm_mode: server": job.uses_vllm,
            "shard over more GPUs": shards,
        },
    }


def _about_memory(job: Job, needed: dict[str, Any]) -> Iterator[str]:
    room, peak = job.options.gpu_memory, needed["peak"] / GIB
    if job.use_cpu:
        return
    if 0.9 * room < peak <= room:
        yield (
            f"Tensors need {peak:.1f} of {room:g} GiB, more than 90%, so that the memory may not suffice for the CUDA "
            "context and the allocator."
        )
    for when, changes in _smaller(job).items():
        if needed[when] > room * GIB:
            *others, last = [change for change, is_open in changes.items() if is_open]
            advice = f"{', '.join(others)}{' or ' if others else ''}{last}"
            yield f"{when} needs {needed[when] / GIB:.1f} GiB of a GPU, which has {room:g}: {advice}."


def _about_settings(job: Job, needed: dict[str, Any]) -> Iterator[str]:
    args, lengths = job.args, job.lengths
    if keeps_whole_gradients(job):
        yield (
            f"gradient_accumulation_steps is {args.gradient_accumulation_steps} under FSDP2, which accumulates "
            f"unsharded float32 gradients ({needed['parts']['gradients']['bytes'] / GIB:.1f} GiB): for sharded "
            "gradients set accelerator_config: {gradient_accumulation_kwargs: {sync_each_batch: true}}."
        )
    if job.sharding.mixed_precision not in (None, job.args.mixed_precision):
        yield (
            f"{job.sharding.file} has mixed_precision: {job.sharding.mixed_precision}, but the recipe trains with "
            f"{job.args.mixed_precision}: make them equal, because with --config_file the file's value wins."
        )
    if job.policy.positions is not None and lengths.whole > job.policy.positions:
        yield (
            f"max_completion_length is {lengths.completion}, which with prompts of {lengths.prompt} gives "
            f"{lengths.whole} tokens, but the model has {job.policy.positions} positions: lower it, or set "
            "max_position_embeddings."
        )


def _about_vllm(job: Job, cache: dict[str, Any]) -> Iterator[str]:
    longest, width = cache["max_model_len"], job.lengths.whole
    if not holds_a_sequence(cache):
        change = "serve the model on a machine with more GPUs, or with more memory"
        if longest > width:
            change = f"set vllm_max_model_length to {width}, the longest prompt and response"
        elif job.colocates:
            change = "raise vllm_gpu_memory_utilization or vllm_tensor_parallel_size"
        yield (
            f"vLLM refuses to start, because {cache['share']:g} of {job.options.gpu_memory:g} GiB hold its weights, "
            f"its first pass and {cache['cached_tokens']:,} tokens, but one sequence has {longest:,}: {change}."
        )
    if job.colocates and (unused := cache["sampler_share"] - cache["share"]) > 0.1:
        yield (
            f"vllm_gpu_memory_utilization is {cache['share']:g}, but the run leaves {cache['sampler_share']:g} of a "
            f"GPU while vLLM is awake, {unused:.0%} more: set it to null, or to {cache['sampler_share']:g}."
        )
    if job.colocates and job.policy.config.get_text_config().num_attention_heads % cache["gpus"]:
        yield (
            f"vllm_tensor_parallel_size is {cache['gpus']}, which does not divide the model's attention heads, so "
            "that vLLM refuses to start: set it to a divisor."
        )
    if longest < width:
        yield (
            f"vllm_max_model_length is {job.grpo.vllm_max_model_length}, but a prompt and its response have up to "
            f"{width} tokens: set it to {width}."
        )
    args, written = job.grpo, cache["concurrent_sequences"] * cache.get("copies", 1)
    asked = args.vllm_server_requests * args.num_generations
    if job.serves and asked < min(written, args.generation_batch_size):
        yield (
            f"vllm_server_requests is {args.vllm_server_requests}, whose groups are {asked} responses, but the server "
            f"has room for {written} at a time: set it to {math.ceil(written / args.num_generations)}."
        )
    if job.colocates and job.processes % cache["gpus"]:
        yield (
            f"vllm_tensor_parallel_size is {cache['gpus']}, but the run has {job.processes} GPUs: set it to a divisor."
        )


def _about_ports(job: Job) -> Iterator[str]:
    needed = {"--main_process_port": PORT} if job.processes > 1 else {}
    if job.serves:
        needed["vllm_group_port"] = job.grpo.vllm_group_port
        if not job.grpo.vllm_server_base_url and job.grpo.vllm_server_host in LOCAL:
            unless = "unless this run's vLLM server already listens there"
            needed[f"vllm_server_port, {unless}"] = job.grpo.vllm_server_port
    for change, port in needed.items():
        if port_in_use(port):
            yield f"port {port} is in use on this machine: choose another with {change}."


def warnings(job: Job, needed: dict[str, Any], cache: dict[str, Any] | None) -> list[str]:
    """Return the warnings about a job with this memory and this cache of vLLM."""
    sentences = [*_about_memory(job, needed), *_about_settings(job, needed)]
    sentences += [] if cache is None else _about_vllm(job, cache)
    if job.lengths.assumed:
        sentences.append(
            f"max_prompt_length is not set, so prompts of up to {job.lengths.prompt} tokens are assumed: give their "
            "length with --prompt-length."
        )
    optim = OptimizerNames(job.args.optim).value
    if optim not in EIGHT_BIT and not optim.startswith("adamw_torch"):
        sentences.append(f"optim is {optim!r}, whose states are counted as AdamW's in float32.")
    return [*sentences, *_about_ports(job)]
