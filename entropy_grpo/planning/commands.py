"""Warnings about a job on its machines, and commands that run the job."""

import shlex
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.recipe import launch_words
from .job import Job
from .memory import EIGHT_BIT, GIB, keeps_whole_gradients
from .vllm import holds_a_sequence

PORT = 29500  # accelerate's default
SERVE = (
    "--weight-transfer-config",
    '{"backend": "nccl"}',
    "--logprobs-mode",
    "processed_logprobs",
    "--max-logprobs=-1",
)


def port_in_use(port: int) -> bool:
    """Return whether a process on this machine listens on a port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ports(job: Job) -> dict[str, int]:
    """Return the ports that the run needs on this machine, by the setting that changes them."""
    args = job.args
    needed = {"--main_process_port": PORT} if job.machines.processes > 1 else {}
    if job.uses_vllm and args.vllm_mode == "server":
        needed["vllm_group_port"] = args.vllm_group_port
    return needed


def _smaller_training(job: Job) -> list[str]:
    """Return the changes open to this job that reduce the memory of training."""
    args, changes = job.args, []
    if not args.gradient_checkpointing:
        changes.append("set gradient_checkpointing: true")
    if job.per_device > 1:
        changes.append("lower per_device_train_batch_size")
    if job.uses_vllm and args.vllm_mode == "colocate" and not args.vllm_enable_sleep_mode:
        changes.append("set vllm_enable_sleep_mode: true")
    if job.sharding.shards:
        changes.append("shard over more GPUs")
    elif not job.model.is_quantised:
        changes.append("shard over several GPUs with accelerate_configs/fsdp2.yaml")
    if not job.model.use_peft:
        changes.append("train with LoRA")
    return [*changes, "lower max_completion_length"]


def _smaller_sampling(job: Job) -> list[str]:
    """Return the changes open to this job that reduce the memory of sampling."""
    if job.uses_vllm:
        changes = ["lower vllm_gpu_memory_utilization", "serve the model on a GPU of its own with vllm_mode: server"]
    else:
        changes = ["make rollouts smaller"]
    return [*changes, *(["shard over more GPUs"] if job.sharding.shards else [])]


def _memory_warnings(job: Job, needed: dict[str, Any]) -> list[str]:
    room = job.machines.memory * GIB
    if job.use_cpu or needed["peak"] <= 0.9 * room:
        return []
    if needed["peak"] <= room:
        return [
            f"{needed['peak'] / GIB:.1f} of {job.machines.memory:g} GiB are tensors, more than nine tenths: the CUDA "
            "context and the allocator may not find the room that they need."
        ]
    advice = {"training": _smaller_training(job), "sampling": _smaller_sampling(job)}
    return [
        f"{when} takes {needed[when] / GIB:.1f} GiB of a GPU, which has {job.machines.memory:g}: "
        f"{', '.join(changes[:-1])}{' or ' if changes[:-1] else ''}{changes[-1]}."
        for when, changes in advice.items()
        if needed[when] > room
    ]


def _vllm_warnings(job: Job, cache: dict[str, Any]) -> list[str]:
    sentences, args, longest = [], job.args, cache["max_model_len"]
    width = job.lengths.prompt + job.lengths.completion
    if not holds_a_sequence(cache):
        if longest > width:
            change = f"set vllm_max_model_length to {width}, the longest prompt and response"
        elif cache["mode"] == "colocate":
            change = "raise vllm_gpu_memory_utilization or vllm_tensor_parallel_size"
        else:
            change = "serve the model on more GPUs with --tensor-parallel-size"
        sentences.append(
            f"vLLM refuses to start: beside its weights and its first pass, {cache['share']:g} of "
            f"{job.machines.memory:g} GiB hold {cache['cached_tokens']:,} tokens, fewer than the {longest:,} of one "
            f"sequence: {change}."
        )
    if longest < width:
        sentences.append(
            f"vllm_max_model_length is {args.vllm_max_model_length}, but a prompt and its response have up to {width} "
            f"tokens: set it to {width}."
        )
    if cache["mode"] == "colocate" and job.machines.processes % cache["gpus"]:
        sentences.append(
            f"vllm_tensor_parallel_size is {cache['gpus']} on {job.machines.processes} GPUs: choose a divisor of them."
        )
    return sentences


def warnings(job: Job, needed: dict[str, Any], cache: dict[str, Any] | None) -> list[str]:
    """Return a sentence for every likely problem, with the change that solves it."""
    args, lengths, sentences = job.args, job.lengths, _memory_warnings(job, needed)
    if keeps_whole_gradients(job):
        size = needed["parts"]["gradients"]["bytes"] / GIB
        sentences.append(
            f"gradient_accumulation_steps is {args.gradient_accumulation_steps} under FSDP2, which adds up whole "
            f"gradients ({size:.1f} GiB) in {'bfloat16' if job.compute == 2 else 'float32'}: sharded float32 ones "
            "with accelerator_config: {gradient_accumulation_kwargs: {sync_each_batch: true}}."
        )
    precision = job.sharding.mixed_precision
    if precision is not None and precision != job.precision:
        sentences.append(
            f"{job.sharding.file} has mixed_precision: {precision} and the recipe trains with {job.precision}: with "
            "--config_file the former wins; make them the same."
        )
    width = lengths.prompt + lengths.completion
    if job.policy.positions is not None and width > job.policy.positions:
        sentences.append(
            f"max_completion_length is {lengths.completion} behind prompts of {lengths.prompt}: {width} tokens, but "
            f"the model has {job.policy.positions} positions; lower it, or raise them with max_position_embeddings."
        )
    if cache is not None:
        sentences += _vllm_warnings(job, cache)
    if job.prompt_assumed:
        sentences.append(
            f"no max_prompt_length is set: prompts of up to {lengths.prompt} tokens are assumed; --prompt-length says "
            "how long they are."
        )
    if args.optim not in EIGHT_BIT and not args.optim.startswith("adamw_torch"):
        sentences.append(f"optim is {args.optim.value!r}: its states are counted as AdamW's in float32.")
    for name, port in ports(job).items():
        if port_in_use(port):
            sentences.append(f"port {port} is in use on this machine: choose another with {name}.")
    serves = job.uses_vllm and args.vllm_mode == "server" and not args.vllm_server_base_url
    local = serves and args.vllm_server_host in ("0.0.0.0", "localhost", "127.0.0.1")
    if local and port_in_use(args.vllm_server_port):
        sentences.append(
            f"port {args.vllm_server_port} is in use on this machine: fine if the vLLM server of this run already "
            "listens there, else choose another with vllm_server_port."
        )
    return sentences


def without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return a command line's words without the words of given settings, which a script sets itself."""
    left, drops = [], False
    for word in words:
        if word.startswith("--"):
            drops = word[2:].partition("=")[0].replace("-", "_") in names
        if not drops:
            left.append(word)
    return left


def launcher_options(job: Job) -> list[str]:
    """Return the options of `accelerate launch` that start the processes of a machine."""
    number, file = job.machines.processes, job.sharding.file
    if job.sharding.kind == "zero3":
        return ["--config_file", file, "--num_processes", str(number)]  # only the launcher can set up DeepSpeed
    if not job.use_cpu:
        return [*(["--multi_gpu"] if number > 1 else []), "--num_processes", str(number)]
    if number == 1:
        return []
    # accelerate starts several CPU processes only from a configuration file.
    return ["--config_file", str(beside(job, "ddp_cpu.yaml")), "--num_processes", str(number)]


def beside(job: Job, name: str) -> Path:
    """Return the path of a file in the folder of the recipe's accelerate configuration."""
    return Path(job.sharding.file or "accelerate_configs/none").with_name(name)


def commands(job: Job) -> dict[str, list[str]]:
    """Return shell commands by the machine that runs them."""
    machines, args = job.machines, job.args
    server = job.uses_vllm and args.vllm_mode == "server"
    words, options, module = list(job.words), launcher_options(job), launch_words(job.recipe)
    by_machine: dict[str, list[str]] = {}
    if server:
        serve = ["vllm", "serve", job.model.model_name_or_path, *SERVE, "--port", str(args.vllm_server_port)]
        if args.vllm_max_model_length is not None:
            serve += ["--max-model-len", str(args.vllm_max_model_length)]
        by_machine["server"] = [f"VLLM_SERVER_DEV_MODE=1 {shlex.join(serve)}"]
    several = beside(job, "fsdp2_multinode.yaml")
    if machines.nodes > 1 and job.sharding.kind == "fsdp2" and several.is_file():
        words = [*without(words, ["accelerate_config"]), "--accelerate_config", str(several)]
    if machines.nodes == 1:
        by_machine["one machine"] = [shlex.join(["accelerate", "launch", *options, *module, job.recipe, *words])]
    else:
        named = [] if without(words, ["output_dir"]) != words else ["--output_dir", "SHARED_FOLDER"]
        options += ["--num_machines", str(machines.nodes), "--rdzv_backend", "static"]
        options += ["--main_process_ip", "ADDRESS_OF_RANK_0", "--main_process_port", str(PORT)]
        start = ["accelerate", "launch", *options]
        by_machine["each machine"] = [
            shlex.join([*start, "--machine_rank", str(rank), *module, job.recipe, *words, *named])
            for rank in range(machines.nodes)
        ]
    script = beside(job, "slurm.sh")
    if script.is_file() and not module and not job.use_cpu and job.sharding.kind != "zero3":
        exported = [f"VLLM_MODEL={job.model.model_name_or_path}"] if server else []
        if without(words, ["output_dir"]) != words:
            exported.append(f"RUN_FOLDER={args.output_dir}")
        batch = ["sbatch", "--nodes", str(machines.nodes + server), "--gpus-per-node", str(machines.gpus)]
        batch += ["--export", ",".join(["ALL", *exported])] if exported else []
        its_own = ["output_dir", "resume_from_checkpoint"]
        its_own += ["use_vllm", "vllm_mode", "vllm_server_host"] if server else []
        by_machine["SLURM"] = [shlex.join([*batch, str(script), job.recipe, *without(words, its_own)])]
    return by_machine
