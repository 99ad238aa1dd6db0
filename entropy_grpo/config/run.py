"""Settings of a recipe beside TRL's fields: problems, rewards, sharding and benchmarks of a run."""

from dataclasses import dataclass, field
from pathlib import Path

from ..data.benchmarks import BENCHMARKS, find
from ..data.benchmarks.benchmark import CODE
from ..data.config import DataConfig
from ..data.sources import FILE_FORMATS
from ..grading.config import GradingConfig
from ..models.config import CheckedModelConfig
from ..registry import one_of
from ..rewards.registry import REWARD_SCALES
from .grpo import EntropyForkGRPOConfig

TRAINERS = ("grpo", "sft")


@dataclass
class RunConfig(DataConfig, GradingConfig):
    """Problems, rewards, sharding and benchmarks of a run.

    Parameters, beside the parameters of `DataConfig` and `GradingConfig`:
        trainer: `grpo`, or `sft` for a cold start, whose settings are in `sft.SFTRunConfig`.
        accelerate_config: file in `accelerate_configs/` (or any path) that sets the sharding if a launch with several
            processes names no file itself; `none` for plain data parallelism.
        max_position_embeddings: number of positions in a copy of the model's configuration, which vLLM, checkpoints
            and evaluations read; null for the model's own.
        rewards: names of reward functions (see `rewards.REWARDS`), `overlong`, or `module:function`; the first one
            decides whether a response is right. TRL's `reward_weights` are their factors.
        overlong_cache_length: with `overlong`, the last tokens before `max_completion_length`, over which DAPO's
            penalty falls from 0 to -1.
        reward_scale: values of a right and a wrong answer for rewards by name: `0/1` for 1 and 0, `+-1` for 1 and -1.
            `overlong` and your own functions have their own values.
        eval_benchmarks: benchmarks that the policy answers during training, `num_generations_eval` times per question;
            names of `entropy-grpo eval` or files. A benchmark that fails is logged, and the run continues.
        eval_benchmark_steps: optimiser steps between evaluations; with eval_benchmarks.
    """

    trainer: str = "grpo"
    accelerate_config: str = "none"
    max_position_embeddings: int | None = None
    rewards: list[str] = field(default_factory=lambda: ["accuracy"])
    overlong_cache_length: int | None = None
    reward_scale: str = "0/1"
    eval_benchmarks: list[str] = field(default_factory=list)
    eval_benchmark_steps: int | None = None

    def __post_init__(self) -> None:
        one_of("trainer", self.trainer, TRAINERS)
        self.check_data()
        if self.max_position_embeddings is not None and self.max_position_embeddings < 1:
            raise ValueError(
                f"max_position_embeddings is {self.max_position_embeddings}: it must be 1 or more, or null."
            )
        self.check_grading()
        one_of("reward_scale", self.reward_scale, tuple(REWARD_SCALES))
        self._check_benchmarks()

    @property
    def reference_grading(self) -> GradingConfig | None:
        """Limits of the grader that reads the references, or None if the user's own function grades."""
        return None if ":" in self.rewards[0] else self

    def _check_benchmarks(self) -> None:
        for name in self.eval_benchmarks:
            benchmark = find(name)
            if benchmark is not None and benchmark.kind == CODE:
                raise ValueError(f"eval_benchmarks names {name!r}, whose programs only entropy-grpo eval runs.")
            if benchmark is None and Path(name).suffix not in FILE_FORMATS:
                raise ValueError(
                    f"eval_benchmarks names {name!r}: choose among {', '.join(BENCHMARKS)} and files that end in "
                    f"{' or '.join(FILE_FORMATS)}."
                )
        steps = self.eval_benchmark_steps
        if bool(self.eval_benchmarks) != (steps is not None) or (steps is not None and steps < 1):
            raise ValueError(
                f"eval_benchmark_steps is {steps} and eval_benchmarks is {self.eval_benchmarks}: set both, the steps "
                "to 1 or more, or neither."
            )


# Dataclasses whose fields a recipe may set.
CLASSES = (RunConfig, EntropyForkGRPOConfig, CheckedModelConfig)
