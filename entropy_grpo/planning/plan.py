"""What a recipe will do on given machines, worked out before a GPU is touched.

Batches, memory, operations, warnings and commands.

Nothing is downloaded and no GPU is needed: the recipe is resolved and refused as a launch would, the shape of its
model is known (`models`), and the rest is arithmetic (`costs`). Memory is what tensors take: the CUDA context, NCCL's
buffers and what the allocator cannot use come on top, so a plan that fills a GPU to the brim will not fit.
"""

import json
from collections.abc import Sequence
from typing import Any

from .commands import commands, warnings
from .job import Job, resolve
from .memory import memory, sampler, scaled_bytes, trained_tensors
from .models import parameters
from .operations import batches, operations


def _essentials(job: Job) -> dict[str, Any]:
    """What the recipe trains on, and how long it may be."""
    args = job.args
    if not job.samples:
        return {"objective": "cross-entropy on right responses", "max_length": job.lengths.completion}
    return {
        "rewards": job.run.rewards,
        "objective": f"{args.loss_type}, clip {args.epsilon:g} / {args.epsilon_high:g}, beta {args.beta:g}",
        "rho": args.top_entropy_quantile,
        "selection": args.entropy_selection,
        "scope": args.entropy_scope,
        "max_prompt_length": job.lengths.prompt,
        "max_completion_length": job.lengths.completion,
        "sampler": f"vLLM, {args.vllm_mode}" if args.use_vllm else "transformers",
    }


def make(job: Job) -> dict[str, Any]:
    """The whole plan, of JSON's types."""
    args, needed, cache = job.args, memory(job), sampler(job)
    return {
        "recipe": {
            "file": job.recipe,
            "model": job.model.model_name_or_path,
            "parameters": parameters(job.shape),
            "trained": sum(size for size, _ in trained_tensors(job)),
            "data": job.run.dataset_name,
            **_essentials(job),
            "learning_rate": args.learning_rate,
            "precision": job.precision,
            "accelerate_config": job.sharding.file,
            "sharding": job.sharding.kind,
        },
        "machines": {"nodes": job.machines.nodes, "gpus": job.machines.gpus, "gpu_memory_gib": job.machines.memory},
        "batches": batches(job),
        "memory": needed,
        "vllm": cache,
        "operations": operations(job),
        "warnings": warnings(job, needed, cache),
        "commands": commands(job),
    }


def _count(value: Any) -> str:
    return "unknown: give --problems or max_steps" if value is None else f"{value:,}"


def _scaled_operations(number: float) -> str:
    power, unit = next(
        (p, u) for p, u in ((15, "PFLOP"), (12, "TFLOP"), (9, "GFLOP"), (6, "MFLOP"), (0, "FLOP")) if number >= 10**p
    )
    return f"{number / 10**power:.2f} {unit}"


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    names, sizes = (max(len(row[i]) for row in rows) for i in (0, 1))
    return [f"  {name:{names}}  {size:>{sizes}}  {note}".rstrip() for name, size, note in rows]


def render(plan: dict[str, Any]) -> str:
    """The plan as text."""

    shape, needed, flops = plan["batches"], plan["memory"], plan["operations"]
    lines = ["recipe"]
    shown = {
        **plan["recipe"],
        "parameters": f"{plan['recipe']['parameters']:,} ({plan['recipe']['trained']:,} trained)",
    }
    if "rewards" in shown:
        shown |= {"rewards": ", ".join(shown["rewards"])}
    shown.pop("trained")
    lines += _table([(name.replace("_", " "), "", f"{value}") for name, value in shown.items()])
    lines += ["", f"batches: {plan['machines']['nodes']} x {plan['machines']['gpus']} GPUs"]
    names = {name: value for name, value in shape.items() if name == "steps" or value is not None}
    lines += _table([(name.replace("_", " "), _count(value), "") for name, value in names.items()])
    lines += ["", "memory of one GPU"]
    rows = [(name, scaled_bytes(part["bytes"]), part["formula"]) for name, part in needed["parts"].items()]
    rows += [(f"peak, {name}", scaled_bytes(needed[name]), "") for name in ("training", "sampling") if needed[name]]
    others = ("activations_without_checkpointing", "activations_with_checkpointing", "full_logits_avoided")
    rows += [(f"({name.replace('_', ' ')})", scaled_bytes(needed[name]), "") for name in others]
    lines += _table(rows)
    if plan["vllm"]:
        cache = plan["vllm"]
        lines.append(
            f"  vLLM ({cache['mode']}): {scaled_bytes(cache['weights'])} of weights, {cache['bytes_per_token']:,} "
            f"bytes a token, room for {cache['cached_tokens']:,} tokens, {cache['whole_responses']:,} whole responses"
        )
    lines += ["", f"operations of an optimiser step, responses of {flops['length']:g} tokens"]
    lines += _table(
        [
            (name, _scaled_operations(value), f"{value / flops['total']:.1%}")
            for name, value in {**flops["parts"], "total": flops["total"]}.items()
            if value
        ]
    )
    if flops["saved_by_selection"]:
        lines.append(
            f"  the head on all tokens takes {_scaled_operations(flops['head_on_all_tokens'])}: selection saves "
            f"{flops['share_of_head_saved']:.1%} of that, {flops['share_of_step_saved']:.1%} of the step"
        )
    if plan["warnings"]:
        lines += ["", "warnings", *(f"  {warning}" for warning in plan["warnings"])]
    for where, found in plan["commands"].items():
        lines += ["", where, *(f"  {command}" for command in found)]
    return "\n".join(lines)


def run(recipe_file: str, words: Sequence[str], as_json: bool, **options: Any) -> None:
    """Print the plan of a recipe; `RecipeError` says what is wrong with it."""
    plan = make(resolve(recipe_file, words, **options))
    print(json.dumps(plan, indent=2) if as_json else render(plan))
