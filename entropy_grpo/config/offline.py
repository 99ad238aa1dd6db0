"""A recipe resolved for given machines, with the checks of a launch, on a machine without their GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ..models.config import CheckedModelConfig
from ..rewards.registry import check_rewards
from . import recipe
from .batches import batch_shape
from .grpo import EntropyForkGRPOConfig
from .recipe import RecipeError, Setting, Settings
from .run import CLASSES, RunConfig
from .sft import CLASSES as SFT_CLASSES
from .sft import SFTRunConfig, TeacherSFTConfig
from .sharding import Sharding, read_sharding


@dataclass(frozen=True)
class Resolved:
    """Checked settings of a recipe on its machines.

    Attributes:
        run, args, model: settings by class; `args` has the whole batch on one process (see `_on_one_process`).
        sharding: sharding of the model over the processes.
        gpus, nodes: GPUs per machine, with a process each, and number of machines.
        use_cpu: whether the recipe trains on processors.
    """

    run: RunConfig | SFTRunConfig
    args: EntropyForkGRPOConfig | TeacherSFTConfig
    model: CheckedModelConfig
    sharding: Sharding
    gpus: int
    nodes: int
    use_cpu: bool

    @property
    def processes(self) -> int:
        """Number of processes, one per GPU."""
        return self.gpus * self.nodes


def resolve(recipe_file: str, words: Sequence[str], gpus: int | None = None, nodes: int | None = None) -> Resolved:
    """Resolve a recipe with overrides, and refuse what a launch would refuse before it loads a model.

    Args:
        words: overrides, as on a launch's command line.
        gpus, nodes: GPUs per machine and machines, by default from the recipe's accelerate configuration.

    Raises:
        RecipeError: the recipe or an override is wrong, or a reward function of the user's own cannot be imported.
    """
    settings = recipe.load(recipe_file) | recipe.overrides(words)
    classes = SFT_CLASSES if recipe.is_cold_start(settings) else CLASSES
    settings = recipe.checked(settings, classes)
    sharding = read_sharding(settings)
    gpus, nodes = gpus or sharding.gpus, nodes or sharding.nodes
    if gpus * nodes == 1:
        sharding = replace(sharding, kind="none")
    run, args, model = recipe.build(_on_one_process(settings, gpus * nodes, classes[1]), classes)
    if isinstance(run, RunConfig) and isinstance(args, EntropyForkGRPOConfig):
        try:
            check_rewards(run.rewards, args.max_completion_length, run.overlong_cache_length)
        except ValueError as error:
            places = dict.fromkeys(recipe.sources(settings, error))
            raise RecipeError(f"{', '.join(places) or settings['rewards'].source}: {error}") from error
    use_cpu = "use_cpu" in settings and settings["use_cpu"].value
    return Resolved(run, args, model, sharding, gpus, nodes, use_cpu)


def _on_one_process(
    settings: Settings, processes: int, args_class: type[EntropyForkGRPOConfig] | type[TeacherSFTConfig]
) -> Settings:
    """Return settings with the same batch on one CPU process, so that they can be checked without a GPU.

    Batch settings depend on the number of processes only through its product with a process's batch size.
    """

    defaults = {field.name: field.default for field in fields(args_class)}

    def value(name: str) -> Any:
        return settings[name].value if name in settings else defaults[name]

    per_device = value("per_device_train_batch_size")
    rollout = (None, None)
    if args_class is EntropyForkGRPOConfig:
        rollout = value("prompts_per_rollout"), value("steps_per_rollout")
    if all(isinstance(x, int) and x > 0 for x in (*rollout, per_device)):
        try:
            batch_shape(*rollout, value("num_generations"), per_device, processes)
        except ValueError as error:
            raise RecipeError(f"{settings['prompts_per_rollout'].source}: {error}") from error
    changed = {
        "per_device_train_batch_size": per_device * processes,
        "per_device_eval_batch_size": value("per_device_eval_batch_size") * processes,
        "use_cpu": True,
        "use_liger_kernel": False,  # which `use_cpu` refuses
        "liger_kernel_config": None,
        "tf32": None,
    }
    sources = {name: settings[name].source if name in settings else "default" for name in changed}
    return settings | {name: Setting(new, sources[name]) for name, new in changed.items()}
