"""Settings of a recipe beside TRL's fields: problems, rewards, sharding and benchmarks of a run."""

from dataclasses import dataclass, field

from ..data.benchmarks import BENCHMARKS, find
from ..data.benchmarks.benchmark import CODE, name_of_file
from ..data.config import DataConfig
from ..data.sources import FILE_FORMATS, is_local
from ..grading.config import GradingConfig
from ..models.config import CheckedModelConfig
from ..registry import one_of, refuse_unread
from ..rewards.registry import GRADED, REWARD_SCALES
from .batches import check_evaluation_batch
from .grpo import EntropyForkGRPOConfig
from .unread import RULES

TRAINERS = ("grpo", "sft")


@dataclass
class RunConfig(DataConfig, GradingConfig):
    """Problems, rewards, sharding and benchmarks of a run.

    Parameters, beside the parameters of `DataConfig` and `GradingConfig`:
        trainer: `grpo`, or `sft` for a cold start, whose settings are in `sft.SFTRunConfig`.
        accelerate_config: configuration file of accelerate that sets the sharding, such as
            `accelerate_configs/fsdp2.yaml`. It is read if the launch has several processes and names no file itself.
            `none` is plain data parallelism.
        max_position_embeddings: number of positions in a copy of the model's configuration, which vLLM, checkpoints
            and evaluations read. null keeps the model's own number.
        rewards: names of reward functions (see `rewards.registry`), `overlong`, or `module:function`. The first reward
            decides whether a response is right. TRL's `reward_weights` are the factors of the rewards.
        overlong_cache_length: number of tokens before `max_completion_length` over which DAPO's `overlong` penalty
            falls from 0 to -1.
        reward_scale: values of a right and a wrong answer for rewards by name: `0/1` for 1 and 0, `+-1` for 1 and -1.
            `overlong` and your own functions have their own values.
        eval_benchmarks: benchmarks that the policy answers before and during training, `num_generations_eval` times
            per question. Each is a name of `entropy-grpo eval` or a file. A benchmark that fails is logged, and the
            run continues.
        eval_benchmark_steps: optimiser steps, or `"N rollouts"`, between evaluations of `eval_benchmarks`.
        eval_benchmark_temperature, eval_benchmark_top_p: sampling of these answers. null keeps training's.
        keep_weights: optimiser steps, or `"N rollouts"`, after which the weights alone are written to
            `weights/step-N`. No `save_total_limit` deletes them. They serve analyses of the evolution over training.
    """

    trainer: str = "grpo"
    accelerate_config: str = "none"
    max_position_embeddings: int | None = None
    rewards: list[str] = field(default_factory=lambda: ["accuracy"])
    overlong_cache_length: int | None = None
    reward_scale: str = "0/1"
    eval_benchmarks: list[str] = field(default_factory=list)
    eval_benchmark_steps: int | str | None = None
    eval_benchmark_temperature: float | None = None
    eval_benchmark_top_p: float | None = None
    keep_weights: list[int | str] = field(default_factory=list)

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

    def evaluation_steps(self, args: EntropyForkGRPOConfig) -> int | None:
        """Return the optimiser steps between evaluations on benchmarks, or None without benchmarks."""
        if not self.eval_benchmarks:
            return None
        return _at_least_one(args, "eval_benchmark_steps", self.eval_benchmark_steps)

    def weight_steps(self, args: EntropyForkGRPOConfig) -> list[int]:
        """Return the optimiser steps of `keep_weights`."""
        return [_at_least_one(args, "keep_weights", value) for value in self.keep_weights]

    @property
    def reference_grading(self) -> GradingConfig | None:
        """Limits of the grader that reads the references, or None if only the user's own functions read them."""
        return None if ":" in self.rewards[0] and GRADED.keys().isdisjoint(self.rewards) else self

    @property
    def has_own_rewards(self) -> bool:
        """Return whether a reward is the user's own function, which may read any column."""
        return any(":" in name for name in self.rewards)

    def _check_benchmarks(self) -> None:
        titles: dict[str, str] = {}
        for name in dict.fromkeys(self.eval_benchmarks):
            benchmark = find(name)
            if benchmark is not None and benchmark.kind == CODE:
                raise ValueError(
                    f"eval_benchmarks names {name!r}, a benchmark of programs, which only entropy-grpo eval can run: "
                    "remove it."
                )
            if benchmark is None and not is_local(name):
                raise ValueError(
                    f"eval_benchmarks names {name!r}: choose among {', '.join(BENCHMARKS)} and files that end in "
                    f"{' or '.join(FILE_FORMATS)}."
                )
            title = name_of_file(name) if benchmark is None else benchmark.name
            if title in titles:
                raise ValueError(
                    f"eval_benchmarks names {titles[title]!r} and {name!r}, whose results would have the same name, "
                    f"{title!r}: rename a file, or remove one of them."
                )
            titles[title] = name
        refuse_unread(self, RULES)
        if self.eval_benchmarks and self.eval_benchmark_steps is None:
            raise ValueError(
                f"eval_benchmark_steps is None and eval_benchmarks is {self.eval_benchmarks}: set the steps, or the "
                "rollouts, between two evaluations."
            )
        temperature, top_p = self.eval_benchmark_temperature, self.eval_benchmark_top_p
        if temperature is not None and temperature <= 0:
            raise ValueError(f"eval_benchmark_temperature is {temperature}: it must be above 0.")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"eval_benchmark_top_p is {top_p}: it must lie in (0, 1].")


def _at_least_one(args: EntropyForkGRPOConfig, name: str, value: int | str) -> int:
    steps = args.in_steps(name, value)
    if steps < 1:
        raise ValueError(f"{name} is {value!r}: write 1 or more optimiser steps, or rollouts.")
    return steps


def check_held_out(run: RunConfig, args: EntropyForkGRPOConfig, processes: int) -> None:
    """Refuse an evaluation without problems, or whose batch does not fit the problems (`check_evaluation_batch`).

    Refuse also weights of other rewards than the recipe names, and settings that nothing reads beside those of `run`.
    """
    refuse_unread(args, RULES, run)
    strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
    if strategy != "no" and not run.num_dev_problems:
        raise ValueError(
            f"eval_strategy is {strategy!r}, but num_dev_problems is 0: hold out problems, or set eval_strategy to "
            "'no'."
        )
    if args.reward_weights is not None and len(args.reward_weights) != len(run.rewards):
        raise ValueError(
            f"reward_weights has {len(args.reward_weights)} numbers, but rewards names {len(run.rewards)}: give one "
            "for each."
        )
    if run.num_test_problems or run.eval_benchmarks:
        check_evaluation_batch(args, processes)


# Dataclasses whose fields a recipe may set.
CLASSES = (RunConfig, EntropyForkGRPOConfig, CheckedModelConfig)
