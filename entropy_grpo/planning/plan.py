"""Plan of a recipe for given machines: batches, memory, operations, warnings and commands.

A plan needs no download and no GPU. The recipe is resolved and checked as by a launch, its model is measured without
weights (`models.measure`), and the trainer's own `Objective` determines the passes. All other figures are computed
from these. Memory counts tensors only. The CUDA context, NCCL's buffers and fragmentation add to it, so that a plan
that fills a GPU completely does not fit.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from ..config import recipe
from ..config.sft import SFTRunConfig
from ..metrics.tables import aligned
from .commands import commands, names_server, serve_words
from .disk import disk
from .flops import batches, hours, operations
from .job import Job, resolve
from .memory import GIB, memory, scaled_bytes, trained_by_element
from .options import PlanOptions
from .vllm import holds_a_sequence, sampler
from .warnings import warnings

SERVED = {"use_vllm": True, "vllm_mode": "server"}


def _essentials(job: Job) -> dict[str, Any]:
    """Return the objective of the recipe and the lengths of its sequences."""
    objective, run = job.objective, job.run
    if objective is None or isinstance(run, SFTRunConfig):
        return {"objective": "cross-entropy on right responses", "max_length": job.lengths.completion}
    args = job.grpo
    because = "" if objective.head_refusal is None else f", because {objective.head_refusal}"
    return {
        "rewards": run.rewards,
        "objective": f"{args.loss_type}, clip {args.epsilon:g} / {args.epsilon_high:g}, beta {args.beta:g}",
        "rho": objective.rho,
        "selection": objective.selection,
        "scope": objective.scope,
        "old_logps": objective.old_logps,
        "lm_head": "sparse" if objective.sparse_head else f"TRL's{because}",
        "max_prompt_length": job.lengths.prompt,
        "max_completion_length": job.lengths.completion,
        "sampler": f"vLLM, {args.vllm_mode}" if args.use_vllm else "transformers",
    }


def verdict(job: Job, needed: dict[str, Any], cache: dict[str, Any] | None) -> dict[str, Any]:
    """Return whether the run fits its GPUs (`None` on a CPU), with a sentence."""
    if job.use_cpu:
        return {"fits": None, "sentence": f"runs on the CPU: {scaled_bytes(needed['peak'])}"}
    sizes = f"{needed['peak'] / GIB:.0f} of {job.options.gpu_memory:g} GiB"
    if needed["peak"] > job.options.gpu_memory * GIB:
        return {"fits": False, "sentence": f"does not fit: {sizes}"}
    if cache is not None and not holds_a_sequence(cache):
        tokens, longest = cache["cached_tokens"], cache["max_model_len"]
        sentence = f"does not fit: vLLM's cache holds {tokens:,} tokens, but a sequence has {longest:,}"
        return {"fits": False, "sentence": sentence}
    return {"fits": True, "sentence": f"fits: {sizes}"}


def make(job: Job) -> dict[str, Any]:
    """Return the whole plan, in JSON types."""
    args, needed, cache, flops = job.args, memory(job), sampler(job), operations(job)
    return {
        "recipe": {
            "file": job.options.recipe,
            "model": job.model.model_name_or_path,
            "parameters": job.policy.parameters,
            "trained": trained_by_element(job).total(),
            "data": job.run.dataset_name,
            **_essentials(job),
            "learning_rate": args.learning_rate,
            "precision": args.mixed_precision,
            "accelerate_config": job.sharding.file,
            "sharding": job.sharding.kind,
        },
        "machines": {"nodes": job.nodes, "gpus": job.gpus, "gpu_memory_gib": job.options.gpu_memory},
        "verdict": verdict(job, needed, cache),
        "batches": batches(job),
        "memory": needed,
        "vllm": cache,
        "disk": disk(job),
        "operations": flops,
        "hours": hours(job, flops["total"]),
        "warnings": warnings(job, needed, cache),
        "commands": commands(job, cache),
    }


def _scaled_operations(number: float) -> str:
    units = {"PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9, "MFLOP": 1e6, "FLOP": 1}
    unit, size = next((unit, size) for unit, size in units.items() if number >= size)
    return f"{number / size:.2f} {unit}"


def _block(title: str, rows: list[tuple[str, str, str]]) -> str:
    """Return a titled block of rows of name, size and note."""
    return f"{title}\n{aligned(rows, right=(1,), indent='  ')}"


def _recipe_block(plan: dict[str, Any]) -> str:
    shown = dict(plan["recipe"])
    shown["parameters"] = f"{shown['parameters']:,} ({shown.pop('trained'):,} trained)"
    if "rewards" in shown:
        shown["rewards"] = ", ".join(shown["rewards"])
    return _block("recipe", [(name.replace("_", " "), "", f"{value}") for name, value in shown.items()])


def _batch_block(plan: dict[str, Any]) -> str:
    unknown = {"steps": "unknown: give --problems or max_steps"}
    counts = {name: unknown.get(name) if n is None else f"{n:,}" for name, n in plan["batches"].items()}
    rows = [(name.replace("_", " "), count, "") for name, count in counts.items() if count is not None]
    return _block(f"batches: {plan['machines']['nodes']} x {plan['machines']['gpus']} GPUs", rows)


def _memory_block(plan: dict[str, Any]) -> str:
    needed = plan["memory"]
    sizes = [(name, part["bytes"], part["formula"]) for name, part in needed["parts"].items()]
    sizes.append(("peak, training", needed["training"], "of head and decoder, only the larger counts"))
    sizes += [("peak, sampling", needed["sampling"], "")] if needed["sampling"] else []
    others = ("activations_without_checkpointing", "activations_with_checkpointing", "full_logits_avoided")
    sizes += [(f"({name.replace('_', ' ')})", needed[name], "") for name in others]
    return _block("memory of one GPU", [(name, scaled_bytes(size), note) for name, size, note in sizes])


def _vllm_block(cache: dict[str, Any]) -> str:
    sequences = f"{cache['max_num_seqs']:,}"
    rows = [
        ("weights", scaled_bytes(cache["weights"]), ""),
        ("profiled", scaled_bytes(cache["profiled"]), f"set aside for max_num_seqs = {sequences} sequences at once"),
        ("cache", f"{cache['cached_tokens']:,} tokens", f"{cache['bytes_per_token']:,} bytes each"),
        ("at once", f"{cache['concurrent_sequences']:,} sequences", f"on {cache['gpus']} GPU(s)"),
        *([("copies", f"{cache['copies']:,}", "of the model")] if "copies" in cache else []),
        ("longest", f"{cache['max_model_len']:,} tokens", "max_model_len, which the cache has to hold"),
        ("speed", f"{cache['tokens_per_second']:,} tokens/s", "on all of these GPUs if they are H100s; assumed rates"),
    ]
    if "sampler_share" in cache:
        rows.append(("left", f"{cache['sampler_share']:.2f} of a GPU", "vllm_gpu_memory_utilization: null takes it"))
        speeds = [f"{ranks}: {speed:,}" for ranks, speed in cache["by_tensor_parallel"].items()]
        rows.append(("", "", f"tokens/s by vllm_tensor_parallel_size: {', '.join(speeds) or 'none starts'}"))
    return _block(f"vLLM ({cache['mode']}), {cache['share']:g} of a GPU", rows)


def _disk_block(files: dict[str, Any]) -> str:
    copies = "the model twice" if files["copies_of_weights"] == 2 else "the model"
    rollout = f"at most {scaled_bytes(files['rollout_at_most'])} of rollout"
    sizes = [
        ("checkpoint", files["checkpoint"], f"{copies}, the optimizer, {rollout}"),
        ("weights", files["kept_weights"], "models of the steps that keep_weights names"),
        ("run", files["run"], f"{files['kept']} checkpoints, one being written, the model"),
        ("rank 0", files["gathered_on_rank_0"], "gathered in its memory for a checkpoint"),
    ]
    return _block("disk", [(name, scaled_bytes(size), note) for name, size, note in sizes if size])


def _operation_block(flops: dict[str, Any]) -> str:
    parts = {name: value for name, value in {**flops["parts"], "total": flops["total"]}.items() if value}
    rows = [(name, _scaled_operations(value), f"{value / flops['total']:.1%}") for name, value in parts.items()]
    block = _block(f"operations of an optimiser step, responses of {flops['length']:g} tokens", rows)
    spared = flops["spared_by_sampler"]
    if spared:
        block += (
            f"\n  old_logps: sampler spares a pass over the rollout, {_scaled_operations(spared)}, "
            f"{spared / (flops['total'] + spared):.1%} of the step with it"
        )
    if flops["saved_by_selection"] > 0:
        block += (
            f"\n  the head on all tokens takes {_scaled_operations(flops['head_on_all_tokens'])}: selection saves "
            f"{flops['share_of_head_saved']:.1%} of that, {flops['share_of_step_saved']:.1%} of the step"
        )
    return block


def render(plan: dict[str, Any]) -> str:
    """Return the plan as text, with the verdict last."""
    blocks = [_recipe_block(plan), _batch_block(plan), _memory_block(plan)]
    blocks += [_vllm_block(plan["vllm"])] if plan["vllm"] else []
    blocks += [_disk_block(plan["disk"]), _operation_block(plan["operations"])]
    if plan["hours"] is not None:
        blocks[-1] += f"\n  the run's steps take at least {plan['hours']:,.1f} hours at --tflops of every GPU"
    listed = {"warnings": plan["warnings"]} | plan["commands"]
    blocks += ["\n  ".join([title, *sentences]) for title, sentences in listed.items() if sentences]
    return "\n\n".join([*blocks, plan["verdict"]["sentence"]])


def server_words(options: PlanOptions, words: Sequence[str]) -> list[str]:
    """Return the command of the server that the recipe needs, or nothing if it needs none or says where it runs."""
    settings = recipe.load(options.recipe) | recipe.overrides(words)
    if not SERVED.items() <= {name: setting.value for name, setting in settings.items()}.items():
        return []
    job = resolve(options, words)
    return [] if names_server(job) else serve_words(job, sampler(job))


def run(options: PlanOptions, words: Sequence[str], as_json: bool, serve: bool) -> None:
    """Print the plan of a recipe, and exit with status 1 if it does not fit.

    Args:
        serve: whether to print its server's command instead, a word a line.

    Raises:
        ValueError: the recipe or an option is invalid.
    """
    if serve:
        print("\n".join(server_words(options, words)))
        return
    plan = make(resolve(options, words))
    print(json.dumps(plan, indent=2) if as_json else render(plan))
    if plan["verdict"]["fits"] is False:
        sys.exit(1)
