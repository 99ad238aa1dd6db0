"""Options of `entropy-grpo plan`, without heavy imports, because the command line's help reads them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PlanOptions:
    """Recipe of a plan, its machines, and facts that the recipe does not give.

    Raises:
        ValueError: a number is not above 0.
    """

    recipe: str
    """name of a recipe, or a file"""
    gpus: int | None = None
    """number of GPUs of a machine; by default that of the recipe's accelerate configuration"""
    nodes: int | None = None
    """number of machines; by default that of the recipe's accelerate configuration"""
    gpu_memory: float = 80.0
    """memory of a GPU in GiB"""
    mean_length: float | None = None
    """mean number of tokens of a response, for the operations of a step"""
    prompt_length: int | None = None
    """number of tokens of the longest prompt; by default the recipe's limit, or 2048"""
    tflops: float | None = None
    """operations that a GPU achieves per second, in TFLOP, for the hours of the run"""
    problems: int | None = None
    """number of training problems, for the number of steps"""
    model_config: str | None = None
    """config.json of a model that is not known, or its folder"""

    def __post_init__(self) -> None:
        for name in ("gpus", "nodes", "gpu_memory", "prompt_length", "tflops"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} is {value}: it must be above 0.")
