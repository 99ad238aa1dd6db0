"""Options of `entropy-grpo plan`, without heavy imports, because the command line's help reads them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PlanOptions:
    """Recipe of a plan, its machines, and what the recipe does not tell.

    Raises:
        ValueError: a number is not above 0.
    """

    recipe: str
    """a file of recipes/, or any YAML"""
    gpus: int | None = None
    """GPUs of a machine; if unset, as the recipe's accelerate configuration says"""
    nodes: int | None = None
    """machines; if unset, as the recipe's accelerate configuration says"""
    gpu_memory: float = 80.0
    """GiB of a GPU"""
    mean_length: float | None = None
    """tokens of a response on average, for the operations of a step"""
    prompt_length: int | None = None
    """tokens of the longest prompt; if unset, the recipe's limit, or 2048"""
    problems: int | None = None
    """problems of the training set, for the number of steps"""
    model_config: str | None = None
    """config.json of a model that is not known, or its folder"""

    def __post_init__(self) -> None:
        for name in ("gpus", "nodes", "gpu_memory", "prompt_length"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} is {value}: it must be above 0.")
