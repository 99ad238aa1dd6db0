"""Shell commands that run a job, by the machine that runs them."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from ..config.recipe import launch_words
from ..config.run import RunConfig
from ..config.shipped import CONFIGS
from .job import Job
from .options import PlanOptions
from .warnings import PORT

SERVER_HOST = GRPOConfig.vllm_server_host  # of a recipe that names none
SERVE = (
    *("--weight-transfer-config", '{"backend": "nccl"}'),
    *("--logprobs-mode", "processed_logprobs", "--max-logprobs=-1"),
)


def without(words: Sequence[str], *names: str) -> list[str]:
    """Return a command line's words without the words of given settings."""
    left, drops = [], False
    for word in words:
        if word.startswith("--"):
            drops = word[2:].partition("=")[0].replace("-", "_") in names
        if not drops:
            left.append(word)
    return left


def _beside(job: Job, name: str) -> Path:
    """Return the path of a file in the folder of the recipe's accelerate configuration, or else of the shipped one."""
    file = Path(job.sharding.file or "accelerate_configs/none").with_name(name)
    return file if file.is_file() else CONFIGS / name


def _words(job: Job) -> list[str]:
    """Return the overrides of a launch, with the accelerate configuration for several machines if it has any."""
    if job.nodes == 1 or job.sharding.kind != "fsdp2":
        return list(job.words)
    several = _beside(job, "fsdp2_multinode.yaml")
    return [*without(job.words, "accelerate_config"), "--accelerate_config", str(several)]


def _launcher_options(job: Job) -> list[str]:
    """Return the options of `accelerate launch` that start the processes of a machine."""
    if job.sharding.kind == "zero3":  # only the launcher can set up DeepSpeed
        options = ["--config_file", job.sharding.file]
    elif not job.use_cpu:
        options = ["--multi_gpu"] if job.processes > 1 else []
    elif job.processes > 1:  # accelerate starts several CPU processes only from a configuration
        options = ["--config_file", str(_beside(job, "ddp_cpu.yaml"))]
    else:
        return []
    return [*options, "--num_processes", str(job.processes)]


def names_server(job: Job) -> bool:
    """Return whether the recipe says where its server runs, so that no script starts one."""
    return job.grpo.vllm_server_base_url is not None or job.grpo.vllm_server_host != SERVER_HOST


def serve_words(job: Job, cache: dict[str, Any]) -> list[str]:
    """Return the command of the recipe's server, in the sizes of the plan.

    Args:
        cache: vLLM's part of the plan.
    """
    args, model, run = job.grpo, job.model, job.run
    assert isinstance(run, RunConfig)  # a cold start has no server
    words = ["vllm", "serve", model.model_name_or_path]
    if model.model_revision not in (None, "main") and not Path(model.model_name_or_path).is_dir():
        words += ["--revision", model.model_revision]
    words += [*SERVE, "--port", str(args.vllm_server_port), "--seed", str(args.seed)]
    if args.vllm_max_model_length is not None:
        words += ["--max-model-len", str(args.vllm_max_model_length)]
    if run.max_position_embeddings is not None:
        words += ["--hf-overrides", json.dumps({"max_position_embeddings": run.max_position_embeddings})]
    return [*words, "--tensor-parallel-size", str(cache["gpus"]), "--data-parallel-size", str(cache["copies"])]


def _launches(job: Job) -> list[str]:
    """Return the command of each machine that trains."""
    start, words = ["accelerate", "launch", *_launcher_options(job)], _words(job)
    recipe = [*launch_words(job.options.recipe), job.options.recipe]
    if job.nodes == 1:
        return [shlex.join([*start, *recipe, *words])]
    words += ["--output_dir", "SHARED_FOLDER"] if without(words, "output_dir") == words else []
    start += ["--num_machines", str(job.nodes), "--rdzv_backend", "static"]
    start += ["--main_process_ip", "ADDRESS_OF_RANK_0", "--main_process_port", str(PORT)]
    return [shlex.join([*start, "--machine_rank", str(rank), *recipe, *words]) for rank in range(job.nodes)]


def _batch(job: Job, script: Path) -> str:
    """Return the command that submits a job to SLURM, without the settings that the script sets itself."""
    words, serves, memory = _words(job), job.serves and not names_server(job), job.options.gpu_memory
    exported = [f"PLAN_OPTIONS=--gpu-memory {memory:g}"] if serves and memory != PlanOptions.gpu_memory else []
    if without(words, "output_dir") != words:
        exported.append(f"RUN_FOLDER={job.args.output_dir}")
    batch = ["sbatch", "--nodes", str(job.nodes + serves), "--gpus-per-node", str(job.gpus)]
    batch += ["--export", ",".join(["ALL", *exported])] if exported else []
    own = without(words, "output_dir", "resume_from_checkpoint")
    return shlex.join([*batch, str(script), job.options.recipe, *own])


def commands(job: Job, cache: dict[str, Any] | None) -> dict[str, list[str]]:
    """Return shell commands by the machine that runs them.

    Args:
        cache: vLLM's part of the plan.
    """
    by_machine = {}
    if job.serves:
        by_machine["server"] = [f"VLLM_SERVER_DEV_MODE=1 {shlex.join(serve_words(job, cache))}"]
    by_machine["one machine" if job.nodes == 1 else "each machine"] = _launches(job)
    if not job.use_cpu and job.sharding.kind != "zero3":
        by_machine["SLURM"] = [_batch(job, _beside(job, "slurm.sh"))]
    return by_machine
