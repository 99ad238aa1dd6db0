"""A recipe resolved for given machines, checked as a launch checks it, without a GPU or a download."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..config import recipe
from ..config.batches import batch_shape
from ..config.grpo import EntropyForkGRPOConfig
from ..config.recipe import RecipeError, Setting, Settings
from ..config.run import CLASSES, RunConfig
from ..config.sft import CLASSES as SFT_CLASSES
from ..config.sft import SFTRunConfig, TeacherSFTConfig
from ..config.sharding import find_config
from ..models.adapters import check_quantised
from ..models.config import CheckedModelConfig
from ..runs.folder import RUNS
from ..tasks.registry import find
from .models import Shape, linear_layers, shape_of

ASSUMED_PROMPT = 2048  # tokens of the longest prompt, if neither the recipe nor a task limits it
# PEFT's own choice for these models, where a recipe names no targets.
LORA_TARGETS = ("q_proj", "v_proj")
SAVED_MODULES = ("embed_tokens", "lm_head")


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
        problems: of the training set; else those of a task.
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
    task = find(run.dataset_name)
    assumed = prompt_length is None and task is None and not supervised
    if supervised:
        prompt_length, longest, limit = 0, args.max_length or shape.positions, "max_length"
    else:
        longest, limit = args.max_completion_length, "max_completion_length"
    if prompt_length is None:
        prompt_length = ASSUMED_PROMPT if task is None else task.longest_prompt
    if problems is None:
        problems = run.num_responses if supervised else run.num_train_problems if task is not None else None
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
