"""What a recipe will do on given machines, worked out before a GPU is touched.

Batches, memory, operations, warnings and commands.

Nothing is downloaded and no GPU is needed: the recipe is resolved and refused as a launch would, the shape of its
model is known (`models`), and the rest is arithmetic (`costs`). Memory is what tensors take: the CUDA context, NCCL's
buffers and what the allocator cannot use come on top, so a plan that fills a GPU to the brim will not fit.
"""

import json
import math
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from . import costs, recipe
from .adapters import CheckedModelConfig, check_quantised
from .config import CLASSES, EntropyForkGRPOConfig, RunConfig, batch_shape
from .launch import find_config
from .models import (
    Shape,
    dora_tensors,
    linear_layers,
    linear_parameters,
    lora_tensors,
    parameters,
    shape_of,
    tensors,
)
from .names import EMBEDDED, RUNS
from .recipe import RecipeError, Setting, Settings
from .sft_config import CLASSES as SFT_CLASSES
from .sft_config import SFTRunConfig, TeacherSFTConfig

GIB = 2**30
EMBEDDED_PROMPT, ASSUMED_PROMPT = 16, 2048  # tokens of the longest prompt, where no limit is set
PORT = 29500  # of the launcher, where it is not told another
# PEFT's own choice for these models, where a recipe names no targets.
LORA_TARGETS = ("q_proj", "v_proj")
SAVED_MODULES = ("embed_tokens", "lm_head")
# Bytes of an Adam moment of a parameter, by `optim`; the others are counted as AdamW in float32.
EIGHT_BIT = ("adamw_bnb_8bit", "paged_adamw_8bit", "adamw_8bit")
SERVE = (
    "--weight-transfer-config",
    '{"backend": "nccl"}',
    "--logprobs-mode",
    "processed_logprobs",
    "--max-logprobs=-1",
)


@dataclass(frozen=True)
class Machines:
    """What a recipe is planned for: GPUs of a machine, machines, and GiB of a GPU."""

    gpus: int
    nodes: int
    memory: float = 80.0

    @property
    def processes(self) -> int:
        """One per GPU."""
        return self.gpus * self.nodes


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and of a response at most, and the mean response, if it is given."""

    prompt: int
    completion: int
    mean: float | None = None


@dataclass(frozen=True)
class Sharding:
    """How an accelerate configuration spreads a model: `none`, `ddp`, `fsdp2` or `zero3`, and its precision."""

    kind: str
    file: str | None = None
    mixed_precision: str | None = None

    @property
    def shards(self) -> bool:
        """Whether weights, gradients and states are divided by the number of GPUs."""
        return self.kind in ("fsdp2", "zero3")


@dataclass(frozen=True)
class Job:
    """A resolved recipe on its machines. `args` has the whole batch on one process (see `resolve`).

    Of a cold start, whose `trainer` is `sft`, the response is all of a sequence.
    """

    recipe: str
    words: tuple[str, ...]
    run: RunConfig | SFTRunConfig
    args: EntropyForkGRPOConfig | TeacherSFTConfig
    model: CheckedModelConfig
    shape: Shape
    machines: Machines
    sharding: Sharding
    lengths: Lengths
    prompt_assumed: bool
    use_cpu: bool
    problems: int | None

    @property
    def samples(self) -> bool:
        """Whether the model writes its responses itself."""
        return isinstance(self.args, EntropyForkGRPOConfig)

    @property
    def uses_vllm(self) -> bool:
        """Whether vLLM samples them."""
        return self.samples and self.args.use_vllm

    @property
    def per_device(self) -> int:
        """Responses of a micro-batch on one process."""
        return self.args.per_device_train_batch_size // self.machines.processes

    @property
    def responses(self) -> int:
        """Responses of an optimiser step, over all processes."""
        return self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps

    @property
    def precision(self) -> str:
        """The recipe's own: bf16, fp16 or no."""
        return "fp16" if self.args.fp16 else "bf16" if self.args.bf16 else "no"

    @property
    def compute(self) -> int:
        """Bytes of an activation."""
        return 4 if self.precision == "no" else 2

    @property
    def loaded(self) -> int:
        """Bytes of a weight as it is loaded; published weights are bfloat16."""
        return 4 if self.model.dtype == "float32" else 2

    @property
    def attention(self) -> str:
        """The implementation of attention, of those that `costs` knows."""
        name = self.model.attn_implementation or "sdpa"
        return "flash_attention_2" if "flash" in name else name

    @property
    def share(self) -> float:
        """The kept share of the tokens."""
        if not self.samples:
            return 1.0
        rho = self.args.top_entropy_quantile
        return 1 - rho if self.args.entropy_selection == "bottom" else rho


# Reading


def read_sharding(settings: Settings, processes: int) -> tuple[Sharding, Machines]:
    """The sharding that a launch of these settings gets, and the machines that its file is written for."""
    file = find_config(settings.get("accelerate_config"))
    if file is None:
        return Sharding("none" if processes == 1 else "ddp"), Machines(1, 1)
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    kind = {"FSDP": "fsdp2", "DEEPSPEED": "zero3"}.get(config["distributed_type"], "ddp")
    nodes = config.get("num_machines", 1)
    written_for = Machines(config.get("num_processes", 1) // nodes, nodes)
    return Sharding("none" if processes == 1 else kind, str(file), config.get("mixed_precision")), written_for


def resolve(
    recipe_file: str,
    words: Sequence[str],
    gpus: int | None = None,
    nodes: int | None = None,
    memory: float = 80.0,
    mean_length: float | None = None,
    prompt_length: int | None = None,
    problems: int | None = None,
    model_config: str | None = None,
) -> Job:
    """The recipe with its overrides, checked as a launch checks it; `RecipeError` says what is wrong.

    Args:
        words: overrides, as on a launch's command line.
        gpus, nodes: of a machine, and machines; else those that the recipe's accelerate configuration is written for.
        memory: GiB of a GPU.
        mean_length: tokens of a response on average.
        prompt_length: tokens of the longest prompt; else the recipe's `max_prompt_length`, else 2048.
        problems: of the training set; else those of an embedded one.
        model_config: a local `config.json` to take the shape from.
    """
    settings = recipe.load(Path(recipe_file)) | recipe.overrides(words)
    for name, value in (("gpus", gpus), ("nodes", nodes), ("gpu-memory", memory), ("prompt-length", prompt_length)):
        if value is not None and value <= 0:
            raise RecipeError(f"--{name} is {value}: it must be above 0.")
    supervised = "trainer" in settings and settings["trainer"].value == "sft"
    classes = SFT_CLASSES if supervised else CLASSES
    settings = recipe.checked(settings, classes)
    if gpus is None or nodes is None:
        _, written_for = read_sharding(settings, 1)
        gpus, nodes = gpus or written_for.gpus, nodes or written_for.nodes
    machines = Machines(gpus, nodes, memory)
    run, args, model = recipe.build(_on_one_process(settings, machines.processes, classes[1]), classes)
    if not model.model_name_or_path:
        raise RecipeError("model_name_or_path is missing: name a Hub id or a local folder.")
    try:
        shape = shape_of(_origin(model.model_name_or_path, Path(recipe_file)), model_config)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if not supervised and run.max_position_embeddings is not None:
        shape = replace(shape, positions=run.max_position_embeddings)
    if prompt_length is None and "max_prompt_length" in settings:
        prompt_length = settings["max_prompt_length"].value
    embedded = run.dataset_name.startswith(EMBEDDED)
    assumed = prompt_length is None and not embedded and not supervised
    if supervised:
        prompt_length, longest, limit = 0, args.max_length or shape.positions, "max_length"
    else:
        longest, limit = args.max_completion_length, "max_completion_length"
    if prompt_length is None:
        prompt_length = EMBEDDED_PROMPT if embedded else ASSUMED_PROMPT
    if problems is None:
        problems = run.num_responses if supervised else run.num_train_problems if embedded else None
    if mean_length is not None and not 0 < mean_length <= longest:
        raise RecipeError(f"--mean-length is {mean_length:g}: it must lie between 0 and {limit} ({longest}).")
    job = Job(
        recipe=recipe_file,
        words=tuple(words),
        run=run,
        args=args,
        model=model,
        shape=shape,
        machines=machines,
        sharding=read_sharding(settings, machines.processes)[0],
        lengths=Lengths(prompt_length, longest, mean_length),
        prompt_assumed=assumed,
        use_cpu="use_cpu" in settings and settings["use_cpu"].value,
        problems=problems,
    )
    lora_targets(job)
    saved_modules(job)
    try:
        check_quantised(model, job.uses_vllm, job.sharding.shards)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return job


def _origin(model: str, recipe_file: Path) -> str:
    """The model, or, where it is what another recipe has yet to make, the one that that recipe begins with."""
    maker = recipe_file.parent / f"{Path(model).name}.yaml"
    if Path(model).parent != RUNS or Path(model).is_dir() or not maker.is_file():
        return model
    return _origin(recipe.load(maker)["model_name_or_path"].value, maker)


def _on_one_process(settings: Settings, processes: int, args_class: type) -> Settings:
    """The same batch on one process, and on its processor, so that the settings are checked where no GPU is.

    All that depends on the number of processes depends on its product with a process's batch size.
    """

    def value(name: str) -> Any:
        field = args_class.__dataclass_fields__[name]
        return settings[name].value if name in settings else field.default

    per_device = value("per_device_train_batch_size")
    rollout = (value("prompts_per_rollout"), value("steps_per_rollout")) if args_class is CLASSES[1] else (None, None)
    if all(isinstance(x, int) and x > 0 for x in (*rollout, per_device)):
        try:
            batch_shape(*rollout, value("num_generations"), per_device, processes)
        except ValueError as error:
            raise RecipeError(f"{settings['prompts_per_rollout'].source}: {error}") from error
    changed = {
        "per_device_train_batch_size": per_device * processes,
        "per_device_eval_batch_size": value("per_device_eval_batch_size") * processes,
        "use_cpu": True,
        "tf32": None,
    }
    sources = {name: settings[name].source if name in settings else "default" for name in changed}
    return settings | {name: Setting(new, sources[name]) for name, new in changed.items()}


def lora_targets(job: Job) -> tuple[str, ...]:
    """The linear layers that LoRA adapts; none without LoRA."""
    if not job.model.use_peft:
        return ()
    named = job.model.lora_target_modules or list(LORA_TARGETS)
    named = [named] if isinstance(named, str) else named  # TRL makes one of a list of one
    layers = tuple(linear_layers(job.shape))
    if named == ["all-linear"]:
        return layers
    for name in named:
        if name not in layers:
            raise RecipeError(f"lora_target_modules has {name!r}: choose from all-linear, {', '.join(layers)}.")
    return tuple(named)


def saved_modules(job: Job) -> tuple[str, ...]:
    """The whole modules that PEFT trains copies of."""
    named = tuple(job.model.lora_modules_to_save or ())
    for name in named:
        if name not in SAVED_MODULES:
            raise RecipeError(f"lora_modules_to_save has {name!r}: a plan knows {', '.join(SAVED_MODULES)}.")
    return named


# Batches


def batches(job: Job) -> dict[str, Any]:
    """Micro-batches, steps and tokens."""
    args, lengths = job.args, job.lengths
    steps = args.max_steps if args.max_steps > 0 else None
    tokens = job.responses * (lengths.prompt + lengths.completion)
    found = {
        "processes": job.machines.processes,
        "responses_per_micro_batch": job.per_device,
        "micro_batches_per_step": args.gradient_accumulation_steps,
        "responses_per_step": job.responses,
    }
    if not job.samples:
        if steps is None and job.problems is not None:
            steps = math.ceil(args.num_train_epochs * math.ceil(job.problems / job.responses))
        return found | {"steps": steps, "tokens_per_step_max": tokens}
    steps_of_rollout = Fraction(args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps)
    if steps is None and job.problems is not None:
        # TRL's sampler leaves out the problems that fill no rollout.
        prompts = args.generation_batch_size // args.num_generations
        steps = math.ceil(args.num_train_epochs * (job.problems // prompts * steps_of_rollout))
    return found | {
        "responses_per_rollout": args.generation_batch_size,
        "prompts_per_rollout": args.generation_batch_size // args.num_generations,
        "steps_per_rollout": int(steps_of_rollout) if steps_of_rollout >= 1 else float(steps_of_rollout),
        "steps": steps,
        "tokens_per_step_max": tokens,
        "response_tokens_per_step_max": job.responses * lengths.completion,
        "response_tokens_per_step_expected": lengths.mean and round(job.responses * lengths.mean),
    }


# Memory


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
        "weights": _part(frozen + size / group, said + (f" + {_scaled_bytes(frozen)} frozen" if frozen else "")),
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


# Operations


def head_units(job: Job) -> float:
    """Products with the LM head that a training pass makes, in units of one over all response tokens.

    Dense: 1 forward, 3 backward (logits again, two gradients); see `ops.head` for the others.
    """
    args = job.args
    if not job.samples or job.share == 1 or args.fused_lm_head == "trl":
        return 4
    known = args.entropy_scope == "rollout" or (
        args.entropy_scope == "global" and args.gradient_accumulation_steps > 1
    )
    per_token = args.importance_sampling_level == "token" and args.loss_type != "vespo"
    surrogate = args.beta == 0 and args.off_policy_mask_threshold is None
    return 4 * job.share if known and per_token and surrogate else 1 + 3 * job.share


def _sampling_operations(job: Job, forward: float, head: float) -> dict[str, float]:
    """Operations for a step's responses before it trains on them; a forward pass and its head are given."""
    args, lengths = job.args, job.lengths
    written = costs.generation(job.shape, lengths.prompt, lengths.mean or lengths.completion, job.responses)
    every = args.steps_per_generation * args.num_iterations
    scores = args.gradient_accumulation_steps % every != 0
    scores |= args.use_vllm and args.vllm_importance_sampling_correction
    scores |= args.entropy_scope == "rollout" and args.top_entropy_quantile < 1
    ranks = args.entropy_scope == "global" and args.gradient_accumulation_steps > 1 and args.top_entropy_quantile < 1
    return {
        "generation": written / args.num_iterations,
        "old log-probabilities": (forward + head) / args.num_iterations if scores else 0.0,
        "reference model": forward + head if args.beta != 0 else 0.0,
        "ranking pass": forward + head if ranks else 0.0,
    }


def operations(job: Job) -> dict[str, Any]:
    """Operations of one optimiser step over all GPUs, by pass, at the mean length or else the longest."""
    args, shape = job.args, job.shape
    prompt, completion = job.lengths.prompt, job.lengths.mean or job.lengths.completion
    width, number = prompt + completion, job.responses
    forward = costs.backbone_forward(shape, width, number)
    head = costs.head_matmul(shape, number * completion)
    sampled = _sampling_operations(job, forward, head) if job.samples else {}
    parts = {
        **sampled,
        "backbone forward": forward,
        "backbone backward": costs.backbone_backward(
            shape, width, number, args.gradient_checkpointing, frozen=job.model.use_peft
        ),
        "head": head_units(job) * head,
    }
    total, dense = sum(parts.values()), 4 * head
    saved = dense - parts["head"] - parts.get("ranking pass", 0)
    return {
        "parts": {name: round(value) for name, value in parts.items()},
        "total": round(total),
        "length": completion,
        "head_units": head_units(job),
        "head_on_all_tokens": round(dense),
        "saved_by_selection": round(saved),
        "share_of_head_saved": 1 - parts["head"] / dense,
        "share_of_step_saved": saved / (total + saved),
    }


# Warnings and commands


def port_in_use(port: int) -> bool:
    """Whether something on this machine listens there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ports(job: Job) -> dict[str, int]:
    """The ports that the run needs on this machine, by the setting that changes them."""
    args = job.args
    needed = {"--main_process_port": PORT} if job.machines.processes > 1 else {}
    if job.uses_vllm and args.vllm_mode == "server":
        needed["vllm_group_port"] = args.vllm_group_port
    return needed


def warnings(job: Job, needed: dict[str, Any], cache: dict[str, Any] | None) -> list[str]:
    """What may go wrong, each in a sentence that says what to change."""
    args, lengths, found = job.args, job.lengths, []
    room = job.machines.memory * GIB
    if needed["peak"] > room and not job.use_cpu:
        when = "training" if needed["training"] >= needed["sampling"] else "sampling"
        found.append(
            f"{when} takes {needed['peak'] / GIB:.1f} GiB of a GPU, which has {job.machines.memory:g}: lower "
            "per_device_train_batch_size or vllm_gpu_memory_utilization, shard over more GPUs, or train with LoRA."
        )
    elif needed["peak"] > 0.9 * room and not job.use_cpu:
        found.append(
            f"{needed['peak'] / GIB:.1f} of {job.machines.memory:g} GiB are tensors, more than nine tenths: the CUDA "
            "context and the allocator may not find the room that they need."
        )
    if keeps_whole_gradients(job):
        size = needed["parts"]["gradients"]["bytes"] / GIB
        found.append(
            f"gradient_accumulation_steps is {args.gradient_accumulation_steps} under FSDP2, which adds up whole "
            f"gradients ({size:.1f} GiB) in {'bfloat16' if job.compute == 2 else 'float32'}: sharded float32 ones "
            "with accelerator_config: {gradient_accumulation_kwargs: {sync_each_batch: true}}."
        )
    said = job.sharding.mixed_precision
    if said is not None and said != job.precision:
        found.append(
            f"{job.sharding.file} has mixed_precision: {said} and the recipe trains with {job.precision}: with "
            "--config_file the former wins; make them the same."
        )
    width = lengths.prompt + lengths.completion
    if width > job.shape.positions:
        found.append(
            f"max_completion_length is {lengths.completion} behind prompts of {lengths.prompt}: {width} tokens, but "
            f"the model has {job.shape.positions} positions; lower it, or raise them with max_position_embeddings."
        )
    if cache is not None and cache["whole_responses"] < 1:
        found.append(
            f"vLLM has {cache['share']:g} of {job.machines.memory:g} GiB, of which {cache['cached_tokens']:,} tokens "
            f"remain beside its weights, fewer than one response of {width:,}: raise vllm_gpu_memory_utilization or "
            "vllm_tensor_parallel_size."
        )
    if job.prompt_assumed:
        found.append(
            f"no max_prompt_length is set: prompts of up to {lengths.prompt} tokens are assumed; --prompt-length says "
            "how long they are."
        )
    if args.optim not in EIGHT_BIT and not args.optim.startswith("adamw_torch"):
        found.append(f"optim is {args.optim.value!r}: its states are counted as AdamW's in float32.")
    for name, port in ports(job).items():
        if port_in_use(port):
            found.append(f"port {port} is in use on this machine: choose another with {name}.")
    serves = job.uses_vllm and args.vllm_mode == "server" and not args.vllm_server_base_url
    local = serves and args.vllm_server_host in ("0.0.0.0", "localhost", "127.0.0.1")
    if local and port_in_use(args.vllm_server_port):
        found.append(
            f"port {args.vllm_server_port} is in use on this machine: fine if the vLLM server of this run already "
            "listens there, else choose another with vllm_server_port."
        )
    return found


def without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """The command line's words less those of these settings, which a script sets itself."""
    left, drops = [], False
    for word in words:
        if word.startswith("--"):
            drops = word[2:].partition("=")[0].replace("-", "_") in names
        if not drops:
            left.append(word)
    return left


def launcher_options(job: Job) -> list[str]:
    """What `accelerate launch` has to be told to start the processes of a machine."""
    number, file = job.machines.processes, job.sharding.file
    if job.sharding.kind == "zero3":
        return ["--config_file", file, "--num_processes", str(number)]  # only the launcher can set DeepSpeed up
    if not job.use_cpu:
        return [*(["--multi_gpu"] if number > 1 else []), "--num_processes", str(number)]
    if number == 1:
        return []
    # accelerate starts several processes on a processor from a file alone.
    return ["--config_file", str(beside(job, "ddp_cpu.yaml")), "--num_processes", str(number)]


def beside(job: Job, name: str) -> Path:
    """A file next to the recipe's accelerate configuration."""
    return Path(job.sharding.file or "accelerate_configs/none").with_name(name)


def commands(job: Job) -> dict[str, list[str]]:
    """Shell commands by where they run."""
    machines, args = job.machines, job.args
    server = job.uses_vllm and args.vllm_mode == "server"
    words, options = list(job.words), launcher_options(job)
    found: dict[str, list[str]] = {}
    if server:
        serve = ["vllm", "serve", job.model.model_name_or_path, *SERVE, "--port", str(args.vllm_server_port)]
        found["server"] = [f"VLLM_SERVER_DEV_MODE=1 {shlex.join(serve)}"]
    several = beside(job, "fsdp2_multinode.yaml")
    if machines.nodes > 1 and job.sharding.kind == "fsdp2" and several.is_file():
        words = [*without(words, ["accelerate_config"]), "--accelerate_config", str(several)]
    if machines.nodes == 1:
        found["one machine"] = [shlex.join(["accelerate", "launch", *options, job.recipe, *words])]
    else:
        named = [] if without(words, ["output_dir"]) != words else ["--output_dir", "SHARED_FOLDER"]
        options += ["--num_machines", str(machines.nodes), "--rdzv_backend", "static"]
        options += ["--main_process_ip", "ADDRESS_OF_RANK_0", "--main_process_port", str(PORT)]
        found["each machine"] = [
            shlex.join(["accelerate", "launch", *options, "--machine_rank", str(rank), job.recipe, *words, *named])
            for rank in range(machines.nodes)
        ]
    script = beside(job, "slurm.sh")
    if script.is_file() and not job.use_cpu and job.sharding.kind != "zero3":
        exported = [f"VLLM_MODEL={job.model.model_name_or_path}"] if server else []
        if without(words, ["output_dir"]) != words:
            exported.append(f"RUN_FOLDER={args.output_dir}")
        batch = ["sbatch", "--nodes", str(machines.nodes + server), "--gpus-per-node", str(machines.gpus)]
        batch += ["--export", ",".join(["ALL", *exported])] if exported else []
        its_own = ["output_dir", "resume_from_checkpoint"]
        its_own += ["use_vllm", "vllm_mode", "vllm_server_host"] if server else []
        found["SLURM"] = [shlex.join([*batch, str(script), job.recipe, *without(words, its_own)])]
    return found


# Output


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


def _scaled_bytes(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.2f} MiB"


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
    rows = [(name, _scaled_bytes(part["bytes"]), part["formula"]) for name, part in needed["parts"].items()]
    rows += [(f"peak, {name}", _scaled_bytes(needed[name]), "") for name in ("training", "sampling") if needed[name]]
    others = ("activations_without_checkpointing", "activations_with_checkpointing", "full_logits_avoided")
    rows += [(f"({name.replace('_', ' ')})", _scaled_bytes(needed[name]), "") for name in others]
    lines += _table(rows)
    if plan["vllm"]:
        cache = plan["vllm"]
        lines.append(
            f"  vLLM ({cache['mode']}): {_scaled_bytes(cache['weights'])} of weights, {cache['bytes_per_token']:,} "
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
