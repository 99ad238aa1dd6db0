"""What a recipe may set beside TRL's fields: where a run's problems, rewards and files come from and go to."""

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
    """Where a run's problems, rewards and files come from and go to.

    Parameters, beside those of `DataConfig` and `GradingConfig`:
        trainer: `grpo`, or `sft` for a cold start, whose settings are those of `sft.SFTRunConfig`.
        accelerate_config: file in `accelerate_configs/` (or any path) that says how the model is sharded when a launch
            with several processes names none itself; `none` for plain data parallelism.
        max_position_embeddings: how many positions the model is told to have, in a copy of its configuration that
            vLLM, checkpoints and evaluations read, too; null for its own.
        rewards: names of reward functions (see `rewards.REWARDS`), `overlong`, or `module:function`; the first says
            whether a response is right. Their factors are TRL's `reward_weights`.
        overlong_cache_length: with `overlong`, the last tokens before `max_completion_length`, over which DAPO's
            punishment falls from 0 to -1.
        reward_scale: what a right and a wrong answer are worth to rewards by name: `0/1` for 1 and 0, `+-1` for 1 and
            -1. `overlong` and your own functions have their own values.
        eval_benchmarks: benchmarks that the policy answers during training, `num_generations_eval` times, as it does
            held-out problems; names of `entropy-grpo eval` or files. One that fails is logged, and the run goes on.
        eval_benchmark_steps: how many optimiser steps lie between; with eval_benchmarks.
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
        """The limits of the grader that has to read the references; None where a function of the user's own grades."""
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


# All that a recipe may set.
CLASSES = (RunConfig, EntropyForkGRPOConfig, CheckedModelConfig)
