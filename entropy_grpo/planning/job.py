"""A recipe resolved for given machines, checked as a launch checks it, without a GPU or a download."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import recipe
from ..config.batches import batch_shape, limit_vllm
from ..config.grpo import EntropyForkGRPOConfig
from ..config.recipe import RecipeError, Setting, Settings
from ..config.run import CLASSES, RunConfig
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
    """How an accelerate configuration spreads a model, and how it saves it.

    Attributes:
        kind: `none`, `ddp`, `fsdp2` or `zero3`.
        file: the configuration.
        mixed_precision: its precision.
        in_pieces: every process writes its own part of a checkpoint.
    """

    kind: str
    file: str | None = None
    mixed_precision: str | None = None
    in_pieces: bool = False

    @property
    def shards(self) -> bool:
        """Whether weights, gradients and states are divided by the number of GPUs."""
        return self.kind in ("fsdp2", "zero3")


@dataclass(frozen=True)
class Job:
    """A resolved recipe on its machines. `args` has the whole batch on one process (see `resolve`).

    Of a cold start, whose `trainer` is `sft`, the response is all of a sequence, and there is no `objective`.
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
    def autocasts(self) -> bool:
        """Whether torch's autocast makes the arithmetic what the weights are not; FSDP and DeepSpeed cast weights."""
        return self.compute != self.loaded and not self.sharding.shards

    @property
    def trains_head(self) -> bool:
        """Whether the LM head's weight has a gradient."""
        return not self.model.use_peft or "lm_head" in (self.model.lora_modules_to_save or [])


def read_sharding(settings: Settings, processes: int) -> tuple[Sharding, Machines]:
    """The sharding that a launch of these settings gets, and the machines that its file is written for."""
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
    """The recipe with its overrides, checked as a launch checks it; `RecipeError` says what is wrong.

    Args:
        words: overrides, as on a launch's command line.
        gpus, nodes: of a machine, and machines; else those that the recipe's accelerate configuration is written for.
        memory: GiB of a GPU.
        mean_length: tokens of a response on average.
        prompt_length: tokens of the longest prompt; else the recipe's `max_prompt_length`, else 2048.
        problems: of the training set; else those of a task.
        model_config: a local `config.json` to take instead of the model's own.
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
        policy, objective = _decide(run, args, model, _origin(model, Path(recipe_file)), model_config)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if prompt_length is None and "max_prompt_length" in settings:
        prompt_length = settings["max_prompt_length"].value
    task = find(run.dataset_name)
    assumed = prompt_length is None and task is None and not supervised
    if supervised:
        prompt_length, longest, limit = 0, args.max_length or policy.positions, "max_length"
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
    """Refuse a recipe with overrides that a launch on its own machines would refuse; its model is not looked at."""
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
    """The model of a recipe, and what the trainer would decide for it; `ValueError` says what cannot be."""
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
    balances = hasattr(text, "output_router_logits") and coefficient != 0  # as TRL decides
    return policy, Objective.from_args(args, policy.head_refusal, balances)


def _origin(model: CheckedModelConfig, recipe_file: Path) -> tuple[str, str | None]:
    """Name and commit of the model, or, if another recipe has yet to make it, of the one that recipe begins with."""
    name, revision = model.model_name_or_path, model.model_revision
    maker = recipe_file.parent / f"{Path(name).name}.yaml"
    while Path(name).parent == RUNS and not Path(name).is_dir() and maker.is_file():
        settings = recipe.load(maker)
        name, revision = settings["model_name_or_path"].value, settings["model_revision"].value
        maker = maker.parent / f"{Path(name).name}.yaml"
    return name, revision


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
