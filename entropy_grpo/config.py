"""What a recipe may set: TRL's fields plus the few of the method, with the method's defaults and its refusals.

Nothing here describes hardware (that is `accelerate_configs/`) or repeats a paper's numbers (those are `recipes/`).
"""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path

from trl import GRPOConfig

from .adapters import CheckedModelConfig
from .evaluation.benchmark import CODE
from .evaluation.benchmarks import BENCHMARKS, PUBLISHED
from .names import EMBEDDED, FILE_FORMATS
from .ops.kernels import check_installed
from .prompts import TEMPLATES
from .sampling import LIMITS, informative
from .selection import MAX_TOKENS, SCOPES, SELECTIONS
from .shaping_config import ShapingConfig
from .sources import TRAINING
from .watchers import ACTIONS, WATCHERS

# Losses that TRL divides by the number of tokens, so that the division can be by the number of kept tokens instead.
TOKEN_LEVEL_LOSSES = ("dapo", "cispo", "vespo")
DENOMINATORS = ("kept", "all")
HEADS = ("auto", "liger", "trl")
TRAINERS = ("grpo", "sft")
# What a right and a wrong answer are worth.
REWARD_SCALES = {"0/1": (1.0, 0.0), "+-1": (1.0, -1.0)}
# Losses whose gradient at a token is advantage * ratio unless the ratio is clipped.
CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo")
# Settings that change the distribution that is sampled from, and the values with which they do not. The loss takes the
# log-probabilities of the whole distribution for the sampler's, whether vLLM or transformers samples.
NEUTRAL_SAMPLING = {
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
}


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}.")


def batch_shape(
    prompts_per_rollout: int, steps_per_rollout: int, num_generations: int, per_device: int, processes: int
) -> tuple[int, int]:
    """TRL's (steps_per_generation, gradient_accumulation_steps) of a rollout that is stated by what it holds.

    Args:
        prompts_per_rollout, num_generations: a rollout has so many prompts and so many responses to each.
        steps_per_rollout: optimiser steps that share them.
        per_device: responses of a micro-batch on one process.
        processes: how many there are.

    Raises:
        ValueError: the responses of a step are no multiple of those of a micro-batch on all processes; it names the
            numbers of processes for which they are.
    """
    step, rest = divmod(prompts_per_rollout * num_generations, steps_per_rollout)
    if rest:
        raise ValueError(
            f"steps_per_rollout is {steps_per_rollout}, which does not divide prompts_per_rollout "
            f"({prompts_per_rollout}) times num_generations ({num_generations}): choose a divisor of "
            f"{prompts_per_rollout * num_generations}."
        )
    accumulation, rest = divmod(step, per_device * processes)
    if rest:
        fitting = [str(n) for n in range(1, step // per_device + 1) if step % (per_device * n) == 0]
        sizes = f"use {', '.join(fitting)} processes" if fitting else f"lower it to a divisor of {step}"
        raise ValueError(
            f"per_device_train_batch_size is {per_device} on {processes} processes, but an optimiser step has {step} "
            f"responses (prompts_per_rollout times num_generations over steps_per_rollout): {sizes}."
        )
    return accumulation * steps_per_rollout, accumulation


@dataclass
class EntropyForkGRPOConfig(ShapingConfig, GRPOConfig):
    """`trl.GRPOConfig` with the objective of arXiv 2506.01939 (Eq. 6) as its default.

    Parameters:
        top_entropy_quantile: rho, the share of tokens that `top` and `random` keep; `bottom` keeps 1 - rho. With 1.0
            the loss is stock TRL's.
        entropy_selection: which tokens are kept: `top` (highest entropy), `bottom` (all that `top` drops), `random`,
            or `gradient_norm` (those whose gradient in the LM head's weight has the largest norm).
        entropy_scope: among which tokens the threshold is taken, always over all ranks: `micro_batch` (those of one
            forward pass), `global` (those of one optimiser step; with gradient accumulation this costs one more
            forward pass without gradient per micro-batch) or `rollout` (those of a whole rollout, by the policy that
            wrote it: the entropies come from the pass that scores the old log-probabilities). Where the kept tokens
            are known before the forward pass, the LM head projects no others; entropies that are logged are then
            those of the pass that ranked the tokens.
        entropy_denominator: the loss is divided by the `kept` tokens of the optimiser step (Eq. 6), or, as in stock
            TRL, by `all` completion tokens, which makes it rho times too small.
        fused_lm_head: `auto` differentiates only the rows that have a gradient, on the fastest kernel for the device;
            `liger` does so on Liger's; `trl` is TRL's own head. Models that the sparse head cannot serve keep TRL's.
        batch_by_length: group the sequences of an optimiser step by length, run every pass without the padding that
            its sequences share, and leave out sequences that have no gradient. Losses and gradients stay the same up
            to rounding, except that with `micro_batch` scope other tokens share a threshold; where a loss is a mean
            over a micro-batch (bnpo, an entropy bonus, load balancing), those stay together that TRL puts together.
            `false` batches like TRL.
        prompts_per_rollout, steps_per_rollout: the prompts of a rollout and the optimiser steps that share it, on
            however many processes: `steps_per_generation` and `gradient_accumulation_steps` follow from them,
            `num_generations` and `per_device_train_batch_size`.
        dynamic_sampling: draw groups until a rollout is full of informative ones (DAPO). Informative is a group whose
            share of right responses, those whose first reward is above 0, is neither 0 nor 1. Groups beyond the need
            open the next rollout. The training problems are drawn in an order of its own; `num_train_epochs` counts
            rollouts as without.
        min_accuracy, max_accuracy: the lowest and the highest share of right responses of an informative group.
        max_sampling_rounds: rounds of generation for one rollout.
        sampling_round_size: prompts that a round may draw, in rollouts. With the former this is DAPO's limit.
        at_sampling_limit: what to do when the rounds are over and groups are missing: `raise`, `top_up` (fill up with
            other groups, whose tokens count in the denominator) or `partial` (a smaller rollout).
        max_group_age: rollouts that an informative group may wait for its turn; 0 throws away what is beyond the need.
        max_skipped_steps: optimiser steps in a row that may be skipped because their gradient is not finite.
        num_logged_samples: responses per log whose tokens and token entropies go to `samples.jsonl`; 0 for none.
    """

    # The method's defaults where they differ from TRL's (arXiv 2506.01939, section 5.2).
    top_entropy_quantile: float = field(
        default=0.2, metadata={"help": "rho: share of highest-entropy tokens that carry gradient, in (0, 1]."}
    )
    epsilon_high: float | None = field(
        default=0.28, metadata={"help": "Upper clip range (clip-higher); the lower one is `epsilon`."}
    )
    # TRL's default drops the responses whose product of ratios is above a cap, which it grows past with their length.
    vllm_importance_sampling_mode: str = field(
        default="token_truncate",
        metadata={
            "help": "Correction for the gap between vLLM and the policy: per token and capped, or one of TRL's."
        },
    )
    entropy_selection: str = field(
        default="top", metadata={"help": "Which tokens are kept: top, bottom (the others), random or gradient_norm."}
    )
    entropy_scope: str = field(
        default="rollout",
        metadata={"help": "Tokens that share a threshold: micro_batch, global (optimiser step) or rollout."},
    )
    entropy_denominator: str = field(
        default="kept", metadata={"help": "Divide the loss by the kept tokens (Eq. 6) or by all completion tokens."}
    )
    fused_lm_head: str = field(
        default="auto", metadata={"help": "LM head: auto or liger (rows without gradient cost nothing), or trl."}
    )
    batch_by_length: bool = field(
        default=True, metadata={"help": "Group sequences by length, trim shared padding, skip those without gradient."}
    )
    prompts_per_rollout: int | None = field(
        default=None, metadata={"help": "Prompts of a rollout, over all processes; accumulation follows from it."}
    )
    steps_per_rollout: int | None = field(
        default=None, metadata={"help": "Optimiser steps that share a rollout; with prompts_per_rollout."}
    )
    dynamic_sampling: bool = field(
        default=False, metadata={"help": "Draw groups until a rollout is full of informative ones."}
    )
    min_accuracy: float | None = field(
        default=None, metadata={"help": "Lowest share of right responses of an informative group; above 0 by default."}
    )
    max_accuracy: float | None = field(
        default=None, metadata={"help": "Highest share of right responses; below 1 by default."}
    )
    max_sampling_rounds: int = field(default=10, metadata={"help": "Rounds of generation for one rollout."})
    sampling_round_size: int = field(default=3, metadata={"help": "Prompts that a round may draw, in rollouts."})
    at_sampling_limit: str = field(
        default="top_up", metadata={"help": "When the rounds are over: raise, top_up or partial."}
    )
    max_group_age: int = field(
        default=1, metadata={"help": "Rollouts that an informative group may wait for its turn; 0 for none."}
    )
    max_skipped_steps: int = field(
        default=10, metadata={"help": "Steps in a row that may be skipped for want of a finite gradient."}
    )
    log_diagnostics: bool = field(
        default=True, metadata={"help": "Log what tells how a run is doing: quality, token categories, changes."}
    )
    watch: dict[str, str] = field(
        default_factory=dict, metadata={"help": "What a watcher does, by name: off, warn (the default) or stop."}
    )
    num_logged_samples: int = field(
        default=2, metadata={"help": "Responses per log written to samples.jsonl with their token entropies."}
    )

    def __post_init__(self) -> None:
        one_of("entropy_selection", self.entropy_selection, SELECTIONS)
        one_of("entropy_scope", self.entropy_scope, SCOPES)
        one_of("entropy_denominator", self.entropy_denominator, DENOMINATORS)
        one_of("fused_lm_head", self.fused_lm_head, HEADS)
        if self.entropy_selection == "gradient_norm":
            if self.fused_lm_head == "trl":
                raise ValueError("entropy_selection 'gradient_norm' needs fused_lm_head 'auto' or 'liger', not 'trl'.")
            if self.loss_type not in CLIPPED_LOSSES or self.importance_sampling_level != "token":
                raise ValueError(
                    f"entropy_selection is 'gradient_norm' but loss_type is {self.loss_type!r} with "
                    f"importance_sampling_level {self.importance_sampling_level!r}: use loss_type "
                    f"{' or '.join(CLIPPED_LOSSES)} with importance_sampling_level 'token'."
                )
        rho = self.top_entropy_quantile
        if not 0 < rho <= 1:
            raise ValueError(f"top_entropy_quantile is {rho}: the kept share rho must lie in (0, 1].")
        if rho == 1 and self.entropy_selection == "bottom":
            raise ValueError("entropy_selection 'bottom' keeps 1 - top_entropy_quantile = 0 tokens: set it below 1.")
        if rho < 1 and self.entropy_denominator == "kept" and self.loss_type not in TOKEN_LEVEL_LOSSES:
            raise ValueError(
                f"entropy_denominator is 'kept' but loss_type is {self.loss_type!r}, which is not divided by a number "
                f"of tokens: use loss_type {' or '.join(TOKEN_LEVEL_LOSSES)}, or entropy_denominator 'all'."
            )
        self._check_sampling()
        self.check_shaping(self.num_generations)
        for name, action in self.watch.items():
            one_of("a name in watch", name, tuple(WATCHERS))
            one_of(f"watch: {name}", action, ACTIONS)
        self._shape_batches()
        for name in ("num_logged_samples", "max_skipped_steps", "max_group_age"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more.")
        super().__post_init__()
        self._refuse_biased_sampling()
        check_installed(self.fused_lm_head, self.device)
        if rho < 1 and self.steps_per_generation % self.gradient_accumulation_steps != 0:
            raise ValueError(
                f"steps_per_generation is {self.steps_per_generation}, gradient_accumulation_steps is "
                f"{self.gradient_accumulation_steps}: the first must be a multiple of the second, so that an "
                "optimiser step does not reach into a rollout that does not exist yet."
            )
        if self.generation_batch_size * self.max_completion_length >= MAX_TOKENS:
            raise ValueError(
                f"generation_batch_size ({self.generation_batch_size}) times max_completion_length "
                f"({self.max_completion_length}) must stay below {MAX_TOKENS} tokens: generate in smaller batches."
            )

    def _shape_batches(self) -> None:
        """Set TRL's numbers from those of the rollout, where those are given."""
        given = (self.prompts_per_rollout, self.steps_per_rollout)
        if given == (None, None):
            return
        for name, value in zip(("prompts_per_rollout", "steps_per_rollout"), given, strict=True):
            if value is None or value < 1:
                raise ValueError(
                    f"{name} is {value}: set prompts_per_rollout and steps_per_rollout, both to 1 or more."
                )
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        steps, accumulation = batch_shape(*given, self.num_generations, self.per_device_train_batch_size, processes)
        derived = {"steps_per_generation": (None, steps), "gradient_accumulation_steps": (1, accumulation)}
        for name, (default, value) in derived.items():
            if getattr(self, name) not in (default, value):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but it follows from prompts_per_rollout and steps_per_rollout, "
                    f"which make it {value}: leave it out."
                )
            setattr(self, name, value)

    def _check_sampling(self) -> None:
        one_of("at_sampling_limit", self.at_sampling_limit, LIMITS)
        for name in ("max_sampling_rounds", "sampling_round_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more.")
        for name in ("min_accuracy", "max_accuracy"):
            value = getattr(self, name)
            if value is not None and not self.dynamic_sampling:
                raise ValueError(f"{name} is {value}, which only dynamic sampling reads: set dynamic_sampling: true.")
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}: a share of right responses lies in [0, 1].")
        if self.dynamic_sampling:
            group = self.num_generations
            shares = [right / group for right in range(group + 1)]
            if not any(informative(share, self.min_accuracy, self.max_accuracy) for share in shares):
                raise ValueError(
                    f"min_accuracy is {self.min_accuracy} and max_accuracy is {self.max_accuracy}: no number of right "
                    f"responses out of num_generations ({group}) lies between them."
                )

    def _refuse_biased_sampling(self) -> None:
        """Training rollouts are drawn from the very distribution that the loss scores them by."""
        fields = {name: getattr(self, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
        neutral = NEUTRAL_SAMPLING | {"temperature": (self.temperature,)}
        for where, sampling in (("", fields), ("generation_kwargs: ", self.generation_kwargs or {})):
            for name in sampling.keys() & neutral.keys():
                if sampling[name] not in neutral[name]:
                    raise ValueError(
                        f"{where}{name} is {sampling[name]}: rollouts would not be drawn from the distribution that "
                        f"scores them, which biases every ratio; set {name} to {neutral[name][0]} for training."
                    )


def check_template(name: str | None) -> None:
    """Refuse a prompt template that there is not."""
    if name is not None and name not in TEMPLATES:
        raise ValueError(
            f"prompt_template is {name!r}: choose one of {', '.join(TEMPLATES)}, or null for prompts as they are."
        )


def check_decontamination(names: list[str]) -> None:
    """Refuse what is neither an evaluation set nor a file."""
    for name in names:
        if name not in PUBLISHED and Path(name).suffix not in FILE_FORMATS:
            raise ValueError(
                f"decontaminate_against names {name!r}: choose among {', '.join(PUBLISHED)} and files that end "
                f"in {' or '.join(FILE_FORMATS)}."
            )


def check_grading(seconds: float, total_seconds: float) -> None:
    """Refuse time limits of grading that leave no time."""
    if seconds <= 0:
        raise ValueError(f"grading_seconds is {seconds}: it must be above 0.")
    if total_seconds < seconds:
        raise ValueError(f"grading_total_seconds is {total_seconds}: it must be at least grading_seconds ({seconds}).")


@dataclass
class RunConfig:
    """Where a run's problems, rewards and files come from and go to.

    Parameters:
        trainer: `grpo`, or `sft` for a cold start, whose settings are those of `sft_config.SFTRunConfig`.
        accelerate_config: file in `accelerate_configs/` (or any path) that says how the model is sharded when a launch
            with several processes names none itself; `none` for plain data parallelism.
        dataset_name: `embedded:number_walk`, one of `sources.TRAINING`, a `.jsonl` / `.parquet` file, or a Hub id.
        dataset_file: for one of `sources.TRAINING`, a local copy of its rows instead of those on the Hub.
        dataset_config: configuration of the data set on the Hub.
        dataset_revision: commit of the data set on the Hub.
        dataset_train_split: split to train on.
        prompt_column, solution_column: the columns of a file or a Hub id that hold the problem and its reference.
        prompt_template: what to put around a problem, one of `prompts.TEMPLATES`; null for nothing.
        max_prompt_length: leave out problems whose prompt has more tokens; null for no limit.
        max_position_embeddings: how many positions the model is told to have, in a copy of its configuration that
            vLLM, checkpoints and evaluations read, too; null for its own.
        decontaminate_against: leave out problems that occur in these evaluation sets, each one of
            `evaluation.benchmarks.PUBLISHED` or a file with a column `problem`, `question` or `prompt`.
        rewards: names of reward functions (see `rewards.REWARDS`), `overlong`, or `module:function`; the first says
            whether a response is right. Their factors are TRL's `reward_weights`.
        overlong_cache_length: with `overlong`, the last tokens before `max_completion_length`, over which DAPO's
            punishment falls from 0 to -1.
        reward_scale: what a right and a wrong answer are worth to rewards by name: `0/1` for 1 and 0, `+-1` for 1 and
            -1. `overlong` and your own functions have their own values.
        grading_seconds: wall-clock limit for grading one answer; one that passes it counts as wrong, and so does one
            whose reference cannot be read, unless the two are the same text.
        grading_total_seconds: how long a process waits at most for the grading of a rollout or an evaluation batch;
            answers that are not graded by then count as wrong.
        num_train_problems: for an embedded data set, how many problems to make.
        num_dev_problems: held-out problems for evaluation during training (0 for none).
        num_test_problems: held-out problems for the evaluation before and after training (0 for none).
        eval_benchmarks: benchmarks that the policy answers during training, `num_generations_eval` times, as it does
            held-out problems; names of `entropy-grpo eval` or files. One that fails is logged, and the run goes on.
        eval_benchmark_steps: how many optimiser steps lie between; with eval_benchmarks.
    """

    trainer: str = "grpo"
    accelerate_config: str = "none"
    dataset_name: str | None = None
    dataset_file: str | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    dataset_train_split: str = "train"
    prompt_column: str = "prompt"
    solution_column: str = "solution"
    prompt_template: str | None = None
    max_prompt_length: int | None = None
    max_position_embeddings: int | None = None
    decontaminate_against: list[str] = field(default_factory=list)
    rewards: list[str] = field(default_factory=lambda: ["accuracy"])
    overlong_cache_length: int | None = None
    reward_scale: str = "0/1"
    grading_seconds: float = 5.0
    grading_total_seconds: float = 120.0
    num_train_problems: int = 4096
    num_dev_problems: int = 0
    num_test_problems: int = 0
    eval_benchmarks: list[str] = field(default_factory=list)
    eval_benchmark_steps: int | None = None

    def __post_init__(self) -> None:
        one_of("trainer", self.trainer, TRAINERS)
        if not self.dataset_name:
            raise ValueError(
                f"dataset_name is missing: name an embedded data set, {', '.join(TRAINING)}, a Hub id or a "
                ".jsonl/.parquet file."
            )
        self._check_data()
        for name in ("num_train_problems", "num_dev_problems", "num_test_problems"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more.")
        check_grading(self.grading_seconds, self.grading_total_seconds)
        one_of("reward_scale", self.reward_scale, tuple(REWARD_SCALES))
        self._check_benchmarks()

    def _check_benchmarks(self) -> None:
        for name in self.eval_benchmarks:
            if name in BENCHMARKS and BENCHMARKS[name].kind == CODE:
                raise ValueError(f"eval_benchmarks names {name!r}, whose programs only entropy-grpo eval runs.")
            if name not in BENCHMARKS and Path(name).suffix not in FILE_FORMATS:
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

    def _check_data(self) -> None:
        check_template(self.prompt_template)
        for name in ("max_prompt_length", "max_position_embeddings"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be 1 or more, or null.")
        check_decontamination(self.decontaminate_against)
        if self.dataset_file is not None:
            if self.dataset_name not in TRAINING:
                raise ValueError(
                    f"dataset_file is {self.dataset_file!r} but dataset_name is {self.dataset_name!r}: it is a copy "
                    f"of one of {', '.join(TRAINING)}; name any other file as dataset_name."
                )
            if Path(self.dataset_file).suffix not in FILE_FORMATS:
                raise ValueError(f"dataset_file is {self.dataset_file!r}: it must end in {' or '.join(FILE_FORMATS)}.")
        unread = []
        if self.dataset_name.startswith(EMBEDDED):
            unread = "prompt_column solution_column prompt_template max_prompt_length decontaminate_against".split()
        elif self.dataset_name in TRAINING:
            unread = "dataset_config dataset_train_split prompt_column solution_column".split()
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name in unread and value not in (setting.default, []):
                raise ValueError(
                    f"{setting.name} is {value!r} but dataset_name {self.dataset_name!r} does not read it: leave it "
                    "out."
                )


# All that a recipe may set.
CLASSES = (RunConfig, EntropyForkGRPOConfig, CheckedModelConfig)
