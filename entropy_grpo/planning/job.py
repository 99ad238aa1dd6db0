"""Recipe resolved for given machines, with the checks of a launch, without a GPU or a download."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import recipe
from ..config.batches import batch_shape, limit_vllm
from ..config.grpo import EntropyForkGRPOConfig
from ..config.recipe import RecipeError, Setting, Settings
from ..config.run import CLASSES, RunConfig, check_held_out
from ..config.sft import CLASSES as SFT_CLASSES
from ..config.sft import SFTRunConfig, TeacherSFTConfig
from ..config.sharding import find_config
from ..models.adapters import check_quantised
from ..models.config import CheckedModelConfig
from ..objective.objective import Objective
from ..runs import yaml12
from ..runs.folder import RUNS
from ..tasks.registry import find
from .measure import Model
from .models import read_config

ASSUMED_PROMPT = 2048  # tokens of the longest prompt, if neither the recipe nor a task limits it


@dataclass(frozen=True)
class Machines:
    """Machines of a plan: GPUs per machine, number of machines, and GiB per GPU."""

    gpus: int
    nodes: int
    memory: float = 80.0

    @property
    def processes(self) -> int:
        """Number of processes, one per GPU."""
        return self.gpus * self.nodes


@dataclass(frozen=True)
class Lengths:
    """Maximum tokens of a prompt and of a response, and the mean length of a response, if it is given."""

    prompt: int
    completion: int
    mean: float | None = None


@dataclass(frozen=True)
class Sharding:
    """Sharding of a model by an accelerate configuration.

    Attributes:
        kind: `none`, `ddp`, `fsdp2` or `zero3`.
        file: configuration file.
        mixed_precision: precision in the configuration.
        in_pieces: whether every process writes its own part of a checkpoint.
    """

    kind: str
    file: str | None = None
    mixed_precision: str | None = None
    in_pieces: bool = False

    @property
    def shards(self) -> bool:
        """True if weights, gradients and optimiser states are divided by the number of GPUs."""
        return self.kind in ("fsdp2", "zero3")


@dataclass(frozen=True)
class Job:
    """Resolved recipe on its machines; `args` has the whole batch on one process (see `_on_one_process`).

    In a cold start (`trainer: sft`) the response stands for the whole sequence, and there is no `objective`.
    """

    recipe: str
    words: tuple[str, ...]
    run: RunConfig | SFTRunConfig
    args: EntropyForkGRPOConfig | TeacherSFTConfig
    model: CheckedModelConfig
    policy: Model
    objective: Objective | None
    machines: Machines
    sharding: Sharding
    lengths: Lengths
    prompt_assumed: bool
    use_cpu: bool
    problems: int | None

    @property
    def samples(self) -> bool:
        """True if the model generates its own responses."""
        return isinstance(self.args, EntropyForkGRPOConfig)

    @property
    def uses_vllm(self) -> bool:
        """True if vLLM generates the responses."""
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
        """Precision of the recipe: bf16, fp16 or no."""
        return "fp16" if self.args.fp16 else "bf16" if self.args.bf16 else "no"

    @property
    def compute(self) -> int:
        """Bytes of an activation."""
        return 4 if self.precision == "no" else 2

    @property
    def loaded(self) -> int:
        """Bytes of a loaded weight; published weights are bfloat16."""
        return 4 if self.model.dtype == "float32" else 2

    @property
    def autocasts(self) -> bool:
        """True if torch's autocast changes the dtype of the arithmetic; FSDP and DeepSpeed cast weights instead."""
        return self.compute != self.loaded and not self.sharding.shards

    @property
    def trains_head(self) -> bool:
        """True if the LM head's weight has a gradient."""
        return not self.model.use_peft or "lm_head" in (self.model.lora_modules_to_save or [])


def read_sharding(settings: Settings, processes: int) -> tuple[Sharding, Machines]:
    """Return the sharding of a launch with these settings, and the machines that its configuration file describes."""
    file = find_config(settings.get("accelerate_config"))
    if file is None:
        return Sharding("none" if processes == 1 else "ddp"), Machines(1, 1)
    config = yaml12.parse(file.read_text(encoding="utf-8"))
    kind = {"FSDP": "fsdp2", "DEEPSPEED": "zero3"}.get(config["distributed_type"], "ddp")
    nodes = config.get("num_machines", 1)
    written_for = Machines(config.get("num_processes", 1) // nodes, nodes)
    in_pieces = config.get("fsdp_config", {}).get("fsdp_state_dict_type") == "SHARDED_STATE_DICT"
    kind = "none" if processes == 1 else kind
    return Sharding(kind, str(file), config.get("mixed_precision"), in_pieces), written_for


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
    """Resolve a recipe with overrides, with the checks of a launch.

    Args:
        words: overrides, as on a launch's command line.
        gpus, nodes: GPUs per machine and machines, by default from the recipe's accelerate configuration.
        memory: GiB per GPU.
        mean_length: mean tokens of a response.
        prompt_length: tokens of the longest prompt, by default the recipe's `max_prompt_length`, the longest prompt
            of a task, or else 2048.
        problems: problems of the training set, by default the task's number.
        model_config: local `config.json` that replaces the model's own.

    Raises:
        RecipeError: the recipe or an argument is wrong.
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
    if not supervised:
        limit_vllm(args, run.max_prompt_length)
    if not model.model_name_or_path:
        raise RecipeError("model_name_or_path is missing: name a Hub id or a local folder.")
    try:
        if not supervised:  # what a launch would refuse
            check_held_out(run, args, 1)
            run.evaluation_steps(args), run.weight_steps(args)
        policy, objective = _decide(run, args, model, _origin(model, Path(recipe_file)), model_config)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if prompt_length is None and "max_prompt_length" in settings:
        prompt_length = settings["max_prompt_length"].value
    task = find(run.dataset_name)
    assumed = prompt_length is None and task is None and not supervised
    if supervised:
        prompt_length, longest, limit = 0, args.max_length or policy.positions or ASSUMED_PROMPT, "max_length"
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
        policy=policy,
        objective=objective,
        machines=machines,
        sharding=read_sharding(settings, machines.processes)[0],
        lengths=Lengths(prompt_length, longest, mean_length),
        prompt_assumed=assumed,
        use_cpu="use_cpu" in settings and settings["use_cpu"].value,
        problems=problems,
    )
    try:
        check_quantised(model, job.uses_vllm, job.sharding.shards)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return job


def check(recipe_file: str, words: Sequence[str]) -> None:
    """Refuse a recipe with overrides that a launch would refuse, without reading its model."""
    settings = recipe.load(Path(recipe_file)) | recipe.overrides(words)
    classes = SFT_CLASSES if "trainer" in settings and settings["trainer"].value == "sft" else CLASSES
    settings = recipe.checked(settings, classes)
    processes = read_sharding(settings, 1)[1].processes
    recipe.build(_on_one_process(settings, processes, classes[1]), classes)


def _decide(
    run: RunConfig | SFTRunConfig,
    args: EntropyForkGRPOConfig | TeacherSFTConfig,
    model: CheckedModelConfig,
    origin: tuple[str, str | None],
    config_path: str | None,
) -> tuple[Model, Objective | None]:
    """Return the model of a recipe and the trainer's objective; raise `ValueError` if either is impossible."""
    config = read_config(*origin, config_path)
    text = config.get_text_config()
    supervised = isinstance(run, SFTRunConfig)
    if not supervised and run.max_position_embeddings is not None:
        text.max_position_embeddings = run.max_position_embeddings
    policy = Model(config, model)
    if supervised:
        return policy, None
    coefficient = args.router_aux_loss_coef
    coefficient = getattr(text, "router_aux_loss_coef", 0.0) if coefficient is None else coefficient
    balances = hasattr(text, "output_router_logits") and coefficient != 0  # same rule as TRL
    return policy, Objective.from_args(args, policy.head_refusal, balances)


def _origin(model: CheckedModelConfig, recipe_file: Path) -> tuple[str, str | None]:
    """Return name and commit of the model.

    If another recipe has yet to produce the model, return the base of that recipe.
    """
    name, revision = model.model_name_or_path, model.model_revision
    maker = recipe_file.parent / f"{Path(name).name}.yaml"
    while Path(name).parent == RUNS and not Path(name).is_dir() and maker.is_file():
        settings = recipe.load(maker)
        name, revision = settings["model_name_or_path"].value, settings["model_revision"].value
        maker = maker.parent / f"{Path(name).name}.yaml"
    return name, revision


def _on_one_process(settings: Settings, processes: int, args_class: type) -> Settings:
    """Return settings with the same batch on one CPU process, so that they can be checked without a GPU.

    Batch settings depend on the number of processes only through its product with a process's batch size.
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
