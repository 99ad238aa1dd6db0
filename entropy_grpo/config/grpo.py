"""Settings of a recipe: TRL's fields and the method's own fields, with the method's defaults and checks.

Hardware is described in `accelerate_configs/`, and the papers' numbers are in `recipes/`.
"""

import json
import math
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from transformers import GenerationConfig
from trl import GRPOConfig

from ..models.truncation import Truncation
from ..monitoring.watchers import ACTIONS, WATCHERS
from ..objective.drawing import NEUTRAL_SAMPLING, TRUNCATING
from ..objective.objective import DENOMINATORS, OLD_LOGPS_FROM, TOKEN_CLIPPING_LOSSES, TOKEN_LEVEL_LOSSES, Objective
from ..objective.sampling import LIMITS, PREFIXES, informative_counts
from ..objective.selection import MAX_TOKENS, SCOPES, SELECTIONS
from ..objective.share import BY_NORM, RHO
from ..registry import one_of, refuse_unread, unread
from ..runs.processes import process_count
from .batches import Share, Steps, batch_shape, check_evaluation_batch, check_sampler, optimizer_steps
from .bounds import check_bounds
from .losses import check_loss
from .methods import check_combinations, count_in_steps, to_short_forms
from .shaping import ShapingConfig
from .unread import RULES

# Sampling settings under which a response that is written in parts differs from one that is written at once.
WHOLE_RESPONSES = ("seed", "stop", "stop_strings", "max_time", "max_tokens", "max_new_tokens", "max_length", "n")
# Settings of TRL with which a run goes wrong, and how.
BROKEN = {
    "remove_unused_columns": "would remove the rewards' references",
    # TRL 1.16 casts the model in place before it generates, and sets it to training mode afterwards.
    "use_transformers_continuous_batching": "leaves the trained weights in half precision, and trains in evaluations",
    # SyncRefModelCallback changes `ref_model`, which neither TRL nor `training.resume` saves.
    "sync_ref_model": "moves the reference policy, and a resumed run would begin again with the first one",
    "bf16_full_eval": "casts the trained weights themselves if an evaluation precedes the training",
    "fp16_full_eval": "casts the trained weights themselves if an evaluation precedes the training",
    "dataloader_drop_last": "leaves the last problems out of every evaluation",
    "load_best_model_at_end": "would save the weights of an earlier step with the figures of the last step "
    "(metric_for_best_model keeps the best checkpoint)",
}
Number = TypeVar("Number", int, float)
HEADS = ("auto", "liger", "trl")
# Settings that may be counted in rollouts, and those of them that cannot be 0.
INTERVALS = ("max_steps", "save_steps", "eval_steps", "logging_steps", "plateau_window")
STEPS = (
    *("warmup_steps", *INTERVALS),
    *(f"{method}_shaping_{when}" for method in ("ppl", "position") for when in ("start", "end", "plateau_steps")),
)


@dataclass
class EntropyForkGRPOConfig(ShapingConfig, GRPOConfig):
    """`trl.GRPOConfig` with the objective of arXiv 2506.01939 (Eq. 6) as its default.

    Parameters:
        top_entropy_quantile: rho, the share of tokens that `top`, `random` and `gradient_norm` keep; `bottom` keeps
            1 - rho. With 1.0 the loss is stock TRL's loss.
        entropy_selection: rule that chooses the kept tokens: `top` (highest entropy), `bottom` (all that `top` drops),
            `random`, or `gradient_norm` (largest norm of the LM head's gradient). `random_matched` draws random tokens
            until their norms sum up to those of `top`.
        entropy_scope: tokens that share a threshold, over all ranks: those of one forward pass (`micro_batch`), one
            optimiser step (`global`) or one rollout (`rollout`). With gradient accumulation, `global` costs one more
            forward pass without gradient per micro-batch. `rollout` ranks by the entropies of the policy that wrote
            the rollout, from the pass that scores old log-probabilities. If the kept tokens are known before the
            forward pass, the LM head projects only them. The logged entropies then come from the pass that ranked the
            tokens.
        entropy_denominator: divisor of the loss: `kept` for the kept tokens of the optimiser step (Eq. 6), `all` for
            all completion tokens as in stock TRL. `all` makes the loss smaller by the factor rho.
        old_logps: source of the old log-probabilities. `scored`: a pass of the policy that wrote the rollout.
            `sampler`: the sampler's own, of vLLM or of transformers' generation, so that this pass falls away (verl's
            bypass mode). Importance ratios are then to the sampler, and vLLM's correction is off. With `rollout` scope
            a step keeps the tokens above the threshold of the last step, and the first step of a run ranks its own
            tokens in an extra pass. The mean over kept tokens is exact, and the share of kept tokens is near rho.
        fused_lm_head: `auto` differentiates only the rows that have a gradient, on the fastest kernel for the device;
            `liger` does so on Liger's kernel; `trl` is TRL's head. Models that the sparse head cannot serve keep
            TRL's head.
        batch_by_length: group the sequences of an optimiser step by length, trim padding that a whole pass shares, and
            leave out sequences without a gradient. Losses and gradients stay the same up to rounding. The exception is
            `micro_batch` scope, where other tokens share a threshold. If a loss is a mean over a micro-batch (bnpo, an
            entropy bonus, load balancing), TRL's micro-batches stay together. `false` batches like TRL.
        token_budget: tokens of a training micro-batch on one process, padding included (`ppo_max_token_len_per_gpu`
            of verl's dynamic batches). Each optimiser step then has as few micro-batches as the budget allows, and
            never more than `gradient_accumulation_steps`; a longer sequence is a micro-batch of its own. Losses and
            gradients stay the same up to rounding. `null`: as many micro-batches as TRL makes.
        prompts_per_rollout, steps_per_rollout: prompts of a rollout over all processes, and optimiser steps that share
            the rollout. With `num_generations` and `per_device_train_batch_size` they determine
            `steps_per_generation` and `gradient_accumulation_steps`.
        advantages, token_weights: methods by name (`objective.methods`), in the order in which they run. An entry is a
            name, or a mapping of `name` and parameters, of which `start`, `end` and `plateau_steps` limit it to some
            optimiser steps. `module:function` names a function of your own. Weights multiply each other and the kept
            tokens. Evaluations use neither.
        dynamic_sampling: draw groups until a rollout is full of informative groups (DAPO). A group is informative if
            its share of right responses is neither 0 nor 1. The first reward whose weight is not 0 and that scores
            the group decides. Surplus groups open the next rollout. Dynamic sampling draws the training problems in an
            order of its own. `num_train_epochs` counts rollouts as without dynamic sampling.
        min_accuracy, max_accuracy: the lowest and the highest share of right responses of an informative group. `null`
            takes every share above 0, or below 1.
        max_sampling_rounds: rounds of generation for one rollout.
        sampling_round_size: largest number of prompts that a round draws, in multiples of a rollout's prompts. With
            `max_sampling_rounds` this is DAPO's limit.
        at_sampling_limit: action if groups are missing after the last round. `raise` ends the run. `top_up` fills up
            with groups that are not informative, whose tokens have no gradient and count in the denominator.
            `partial` trains on a smaller rollout, with losses that are divided by a number of tokens.
        max_group_age: rollouts that a surplus informative group may wait; 0 discards surplus groups.
        max_new_tokens_per_round: tokens by which a response grows in a round of dynamic sampling; null for no limit. A
            rollout ends when it is full of whole groups, and unfinished responses continue in the next rollout. The
            first rounds draw more groups than the rollout needs, 1 + `max_response_age` / 2 times as many.
        max_response_age: rollouts over which a response may continue after its first rollout. The last of them writes
            it to its end.
        fork_rollouts: responses of a group that are written whole; null for all. The others continue them from a token
            of high entropy, in equal numbers, which spares the tokens before it.
        fork_candidates: tokens of highest entropy in a response among which its fork is drawn.
        fork_entropy_weight: how much the entropy that follows a candidate counts in the draw: 0 if all are equally
            likely (CURE), 0.2 for ARPO's weighting (`training.forks`).
        fork_min_chars: characters, surrounding space aside, that the text of a token has at which a response may fork.
        fork_prefix: loss of the tokens before a fork: `once`, in the response that was written whole, or `never`.
        allow_truncated_sampling: accept `top_p` below 1, `top_k` and `min_p`, which are otherwise refused. The
            log-probabilities are then of the truncated distribution (`models.truncation`). They need whole rows of
            logits, which costs time. Entropies remain those of the whole distribution.
        allow_changes: settings that a resumed run may change although they concern the training (see `changes`).
        max_skipped_steps: consecutive optimiser steps that may be skipped because their gradient is not finite.
        vllm_gpu_memory_utilization: share of a GPU that colocated vLLM takes. `null`: what the run leaves while vLLM
            is awake (`planning.memory.sampler_share`), which a launch computes from the device's memory.
        vllm_max_num_seqs: sequences that colocated vLLM writes at a time. `null`: TRL's number, the responses of a
            rollout on the GPUs that share a model; where the share of memory is `null`, too, no more than the cache
            holds at a sixteenth of their largest length.
        vllm_server_requests: requests, of a group each, that a vLLM server has at a time. Their responses should be
            more than the sequences that the server's engines write at a time, so that none of them waits.
        log_diagnostics: log the quality of responses, entropies by category of tokens, and changes of the policy.
        watch: action of each watcher (`monitoring.watchers.WATCHERS`) by its name: `off`, `warn`, or `stop`, which
            saves a checkpoint and ends the run. Watchers without an entry warn.
        reward_seconds: seconds that a call of a reward function of your own may take, after which the run ends with a
            sentence; null for no limit. Rewards by name have `grading_seconds`.
        num_logged_samples: responses per log whose tokens and token entropies go to `samples.jsonl`; 0 for none.
        max_steps, warmup_steps, save_steps, eval_steps, logging_steps, and the shaping settings in steps: a number
            counts optimiser steps; `"10 rollouts"` counts rollouts, and stands for the optimiser steps of so many
            (verl counts rollouts). `self` holds optimiser steps.
    """

    # TRL's and transformers' fields, with rollouts as a second unit.
    max_steps: Steps = field(default=-1, metadata={"help": "Steps, or 'N rollouts', of the run; -1 for epochs."})
    warmup_steps: Share = field(
        default=0, metadata={"help": "Steps, 'N rollouts', or a share of the run below 1, of a linear warm-up."}
    )
    save_steps: Share = field(default=500, metadata={"help": "Steps, or 'N rollouts', between checkpoints."})
    eval_steps: Share | None = field(
        default=None, metadata={"help": "Steps, or 'N rollouts', between evaluations on held-out problems."}
    )
    logging_steps: Share = field(default=10, metadata={"help": "Steps, or 'N rollouts', between logs."})
    # Defaults of the method that differ from TRL's (arXiv 2506.01939, section 5.2).
    top_entropy_quantile: float = field(
        default=RHO, metadata={"help": "rho: share of highest-entropy tokens that carry gradient, in (0, 1]."}
    )
    epsilon_high: float | None = field(
        default=0.28, metadata={"help": "Upper clip range (clip-higher); the lower one is `epsilon`."}
    )
    # TRL's default drops responses whose product of ratios exceeds a cap, which long responses exceed more often.
    vllm_importance_sampling_mode: str = field(
        default="token_truncate",
        metadata={
            "help": "TRL's correction for the gap between vLLM and the policy; per token and capped by default."
        },
    )
    vllm_gpu_memory_utilization: float | None = field(
        default=0.3, metadata={"help": "Share of a GPU for colocated vLLM; null for all that the run leaves."}
    )
    vllm_max_num_seqs: int | None = field(
        default=None, metadata={"help": "Sequences that colocated vLLM writes at a time; null for a number that fits."}
    )
    vllm_server_requests: int = field(
        default=256, metadata={"help": "Requests, of a group each, that a vLLM server has at a time."}
    )
    entropy_selection: str = field(
        default="top",
        metadata={"help": "Rule for the kept tokens: top, bottom, random, random_matched or gradient_norm."},
    )
    entropy_scope: str = field(
        default="rollout",
        metadata={"help": "Tokens that share a threshold: micro_batch, global (optimiser step) or rollout."},
    )
    entropy_denominator: str = field(
        default="kept", metadata={"help": "Divide the loss by the kept tokens (Eq. 6) or by all completion tokens."}
    )
    old_logps: str = field(
        default="scored",
        metadata={"help": "Old log-probabilities: scored by the policy in a pass, or the sampler's own (sampler)."},
    )
    fused_lm_head: str = field(
        default="auto", metadata={"help": "LM head: auto or liger skip rows without gradient, trl computes all rows."}
    )
    batch_by_length: bool = field(
        default=True, metadata={"help": "Group sequences by length, trim shared padding, skip those without gradient."}
    )
    token_budget: int | None = field(
        default=None,
        metadata={"help": "Tokens of a training micro-batch on one process; null for TRL's number of sequences."},
    )
    prompts_per_rollout: int | None = field(
        default=None, metadata={"help": "Prompts of a rollout over all processes; determines gradient accumulation."}
    )
    steps_per_rollout: int | None = field(
        default=None, metadata={"help": "Optimiser steps that share a rollout; set it with prompts_per_rollout."}
    )
    advantages: list[str | dict[str, Any]] = field(
        default_factory=list,
        metadata={"help": "Methods that shape advantages, in order: names, or mappings of name and parameters."},
    )
    token_weights: list[str | dict[str, Any]] = field(
        default_factory=list,
        metadata={"help": "Methods that weigh tokens, in order: names, or mappings of name and parameters."},
    )
    dynamic_sampling: bool = field(
        default=False, metadata={"help": "Draw groups of responses until a rollout is full of informative groups."}
    )
    min_accuracy: float | None = field(
        default=None, metadata={"help": "Lowest share of right responses in an informative group; above 0 by default."}
    )
    max_accuracy: float | None = field(
        default=None,
        metadata={"help": "Highest share of right responses in an informative group; below 1 by default."},
    )
    max_sampling_rounds: int = field(default=10, metadata={"help": "Rounds of generation for one rollout."})
    sampling_round_size: int = field(
        default=3, metadata={"help": "Prompts that a round draws at most, in multiples of a rollout's prompts."}
    )
    at_sampling_limit: str = field(
        default="top_up",
        metadata={"help": "Action if groups are missing after the last round: raise, top_up, partial."},
    )
    max_group_age: int = field(
        default=1, metadata={"help": "Rollouts that a surplus informative group may wait; 0 discards surplus groups."}
    )
    max_new_tokens_per_round: int | None = field(
        default=None, metadata={"help": "Tokens that a round adds to a response, which continues in later rollouts."}
    )
    max_response_age: int = field(
        default=2, metadata={"help": "Rollouts over which a response may continue after the one in which it began."}
    )
    fork_rollouts: int | None = field(
        default=None,
        metadata={"help": "Responses of a group that are written whole; others continue them from a fork."},
    )
    fork_candidates: int = field(
        default=20, metadata={"help": "Tokens of highest entropy in a response among which its fork is drawn."}
    )
    fork_entropy_weight: float = field(
        default=0.0, metadata={"help": "Weight of the entropy after a candidate in the draw of a fork; 0.2 in ARPO."}
    )
    fork_min_chars: int = field(
        default=2, metadata={"help": "Fewest characters of a token, without spaces, at which a response may fork."}
    )
    fork_prefix: str = field(
        default="once", metadata={"help": "Train tokens before a fork once, in the whole response, or never."}
    )
    allow_truncated_sampling: bool = field(
        default=False, metadata={"help": "Accept top_p, top_k and min_p, and score by the truncated distribution."}
    )
    allow_changes: list[str] = field(
        default_factory=list,
        metadata={"help": "Settings that a resumed run may change although they concern the training."},
    )
    max_skipped_steps: int = field(
        default=10, metadata={"help": "Consecutive steps that may be skipped because their gradient is not finite."}
    )
    log_diagnostics: bool = field(
        default=True, metadata={"help": "Log the quality of responses, entropy by token category, and policy changes."}
    )
    watch: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "Action of each watcher, by its name: off, warn (the default) or stop."},
    )
    reward_seconds: float | None = field(
        default=None, metadata={"help": "Seconds that a call of your own reward function may take; null for no limit."}
    )
    num_logged_samples: int = field(
        default=2,
        metadata={"help": "Responses per log that samples.jsonl keeps with their token entropies; 0 for none."},
    )

    def __post_init__(self) -> None:
        given = self._values()
        self._complete()
        self._before = {name: (given[name], value) for name, value in self._values().items()}

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.init}

    def as_given(self) -> dict[str, Any]:
        """Return the settings as a user gave them, without the values that the number of processes determines."""
        now = self._values()
        return {name: given if now[name] == derived else now[name] for name, (given, derived) in self._before.items()}

    def _complete(self) -> None:
        to_short_forms(self)
        check_bounds(self)
        one_of("entropy_selection", self.entropy_selection, SELECTIONS)
        one_of("entropy_scope", self.entropy_scope, SCOPES)
        one_of("entropy_denominator", self.entropy_denominator, DENOMINATORS)
        one_of("old_logps", self.old_logps, OLD_LOGPS_FROM)
        one_of("fused_lm_head", self.fused_lm_head, HEADS)
        check_loss(self)
        self._refuse_broken()
        refuse_unread(self, RULES)
        self._check_shapes()
        rho = self.top_entropy_quantile
        if not 0 < rho <= 1:
            raise ValueError(f"top_entropy_quantile is {rho}: the kept share rho must lie in (0, 1].")
        self._check_sampling()
        for name, action in self.watch.items():
            one_of("a name in watch", name, tuple(WATCHERS))
            one_of(f"watch: {name}", action, ACTIONS)
        self._shape_batches()
        for name in STEPS:
            given = getattr(self, name)
            setattr(self, name, self.in_steps(name, given))
            if isinstance(given, str) and not getattr(self, name) and name in INTERVALS:
                raise ValueError(f"{name} is {given!r}: write 1 or more.")
        count_in_steps(self)
        self.check_shaping(self.num_generations)
        for name in ("num_logged_samples", "max_skipped_steps", "max_group_age"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more.")
        if self.eval_strategy != "no":
            check_evaluation_batch(self, process_count())
        check_sampler(self)
        if self.reward_seconds is not None and self.reward_seconds <= 0:
            raise ValueError(f"reward_seconds is {self.reward_seconds}: it must be above 0, or null for no limit.")
        super().__post_init__()
        self._refuse_biased_sampling()
        self._refuse_unknown_generation()
        self._check_objective(Objective.from_args(self))
        if self.generation_batch_size * self.max_completion_length >= MAX_TOKENS:
            raise ValueError(
                f"generation_batch_size is {self.generation_batch_size} and max_completion_length is "
                f"{self.max_completion_length}: their product must stay below {MAX_TOKENS} tokens, so lower one of "
                "them."
            )

    def _refuse_broken(self) -> None:
        """Refuse settings of TRL with which a run goes wrong."""
        for name, effect in BROKEN.items():
            if getattr(self, name):
                raise ValueError(f"{name} is true, which {effect}: leave it out.")

    def _check_shapes(self) -> None:
        """Refuse group sizes and response lengths with which TRL cannot train."""
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations is {self.num_generations}: an advantage compares the responses to one problem, so "
                "it must be 2 or more."
            )
        if self.max_completion_length is None or self.max_completion_length < 1:
            raise ValueError(f"max_completion_length is {self.max_completion_length}: it must be 1 or more.")

    def _check_objective(self, objective: Objective) -> None:
        """Refuse settings whose combination the objective cannot compute."""
        check_combinations(objective, self.dynamic_sampling)
        self._check_partial(objective)
        if objective.selection in BY_NORM:
            if self.fused_lm_head == "trl":
                raise ValueError(
                    f"entropy_selection {self.entropy_selection!r} needs fused_lm_head 'auto' or 'liger', not 'trl'."
                )
            if objective.loss_type not in TOKEN_CLIPPING_LOSSES or not objective.token_ratio:
                raise ValueError(
                    f"entropy_selection is {self.entropy_selection!r} but loss_type is {self.loss_type!r} with "
                    f"importance_sampling_level {self.importance_sampling_level!r}: use loss_type "
                    f"{' or '.join(TOKEN_CLIPPING_LOSSES)} with importance_sampling_level 'token'."
                )
        if objective.selects and objective.denominator == "kept" and not objective.token_level:
            raise ValueError(
                f"entropy_denominator is 'kept' but loss_type is {self.loss_type!r}, which does not divide by a "
                f"number of tokens: use loss_type {' or '.join(TOKEN_LEVEL_LOSSES)}, or entropy_denominator 'all'."
            )
        if objective.selects and not objective.whole_steps:
            raise ValueError(
                f"steps_per_generation is {self.steps_per_generation} and gradient_accumulation_steps is "
                f"{self.gradient_accumulation_steps}: set the first to a multiple of the second, because an optimiser "
                "step must not need tokens of the next rollout."
            )
        if objective.loss_type == "cispo" and objective.epsilon_high < 1:
            raise ValueError(
                f"epsilon_high is {objective.epsilon_high} but loss_type is 'cispo', which caps the ratio itself at "
                "epsilon_high, so even a ratio of 1 would be cut: set epsilon_high to 5.0 (arXiv 2510.13786), or at "
                "least to 1."
            )
        # Methods by name may read it.
        unread = objective.loss_type == "cispo" and self.epsilon_high is not None and not objective.entries()
        if unread and self.epsilon != GRPOConfig.epsilon:
            raise ValueError(
                f"epsilon is {self.epsilon}, but loss_type is 'cispo', which has no lower limit and whose cap is "
                "epsilon_high: leave epsilon out."
            )

    def _check_partial(self, objective: Objective) -> None:
        """Refuse means over sequences, micro-batches or rewards that missing groups would enter as zeros."""
        if self.at_sampling_limit != "partial":
            return
        refusals = {
            f"loss_type is {self.loss_type!r}, whose means would count the missing groups: use loss_type "
            f"{' or '.join(TOKEN_LEVEL_LOSSES)}": not objective.token_level,
            "the loss has an entropy bonus, a mean over each micro-batch, which may hold missing groups alone: set "
            "entropy_coef to 0 and use_adaptive_entropy to false": objective.token_level and objective.batch_means,
            "scale_rewards is 'batch', whose standard deviation would count the missing groups: set it to group or "
            "none": self.scale_rewards == "batch",
            "multi_objective_aggregation is 'normalize_then_sum', whose mean over the rollout would count the missing "
            "groups: set it to sum_then_normalize": self.multi_objective_aggregation == "normalize_then_sum",
        }
        for reason, applies in refusals.items():
            if applies:
                raise ValueError(f"at_sampling_limit is 'partial', but {reason}, or set at_sampling_limit to top_up.")

    def _shape_batches(self) -> None:
        """Set TRL's batch sizes from the size of the rollout, if the recipe gives it."""
        given = (self.prompts_per_rollout, self.steps_per_rollout)
        if given == (None, None):
            return
        for name, value in zip(("prompts_per_rollout", "steps_per_rollout"), given, strict=True):
            if value is None or value < 1:
                raise ValueError(
                    f"{name} is {value}: set prompts_per_rollout and steps_per_rollout together, each to 1 or more."
                )
        processes = process_count()
        steps, accumulation = batch_shape(*given, self.num_generations, self.per_device_train_batch_size, processes)
        derived = {"steps_per_generation": (None, steps), "gradient_accumulation_steps": (1, accumulation)}
        for name, (default, value) in derived.items():
            if getattr(self, name) not in (default, value):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but prompts_per_rollout and steps_per_rollout determine it "
                    f"({value}): leave it out."
                )
            setattr(self, name, value)

    def in_steps(self, name: str, value: Number | str) -> Number | int:
        """Return the optimiser steps of a setting's value, a number or `"N rollouts"`.

        Raises:
            ValueError: the text is neither, or the size of a rollout is not given.
        """
        if not isinstance(value, str):
            return value
        if self.generation_batch_size is not None and self.steps_per_generation is None:
            raise ValueError(
                f"{name} is {value!r} beside generation_batch_size: set prompts_per_rollout and steps_per_rollout "
                "instead of it, so that a rollout has a known number of steps."
            )
        micro_batches = self.steps_per_generation or self.gradient_accumulation_steps
        return optimizer_steps(name, value, micro_batches * self.num_iterations, self.gradient_accumulation_steps)

    @property
    def rollout_groups(self) -> int:
        """Groups of a rollout over all processes, each with the responses to one prompt."""
        return self.generation_batch_size // self.num_generations

    @property
    def extra_sampling(self) -> dict[str, Any]:
        """`generation_kwargs`, which TRL also takes as JSON."""
        given = self.generation_kwargs or {}
        return json.loads(given) if isinstance(given, str) else given

    def _check_sampling(self) -> None:
        """Refuse settings of dynamic sampling under which no group could be informative, or that nothing reads."""
        one_of("at_sampling_limit", self.at_sampling_limit, LIMITS)
        for name in ("max_sampling_rounds", "sampling_round_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more.")
        for name in ("min_accuracy", "max_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}: a share of right responses must lie in [0, 1].")
        self._check_rounds()
        self._check_forks()
        if self.dynamic_sampling:
            group = self.num_generations
            if not any(informative_counts(group, self.min_accuracy, self.max_accuracy)):
                raise ValueError(
                    f"min_accuracy is {self.min_accuracy} and max_accuracy is {self.max_accuracy}: no number of right "
                    f"responses out of num_generations ({group}) lies between them, so widen them."
                )

    def _check_rounds(self) -> None:
        """Refuse a budget of tokens that no round can keep."""
        budget, longest = self.max_new_tokens_per_round, self.max_completion_length
        if budget is None:
            return
        if not 1 <= budget < longest:
            raise ValueError(
                f"max_new_tokens_per_round is {budget}, but a round must add at least 1 token and fewer than "
                f"max_completion_length ({longest}): set it between them, or leave it out."
            )
        if self.max_response_age < 1:
            raise ValueError(
                f"max_response_age is {self.max_response_age}: a response that continues in a later rollout "
                "needs 1 or more."
            )
        self._refuse_whole_responses("max_new_tokens_per_round")

    def _check_forks(self) -> None:
        """Refuse forks that a group cannot have."""
        one_of("fork_prefix", self.fork_prefix, PREFIXES)
        trunks, group = self.fork_rollouts, self.num_generations
        if trunks is None:
            return
        if not 1 <= trunks < group or group % trunks:
            fitting = ", ".join(str(n) for n in range(1, group) if group % n == 0)
            raise ValueError(
                f"fork_rollouts is {trunks}, but num_generations is {group}: equally many responses continue each of "
                f"the first, so choose {fitting}."
            )
        for name, least in (("fork_candidates", 1), ("fork_min_chars", 0), ("fork_entropy_weight", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {least} or more.")
        self._refuse_whole_responses("fork_rollouts")

    def _refuse_unknown_generation(self) -> None:
        """Refuse names that transformers' generation would take without a word and never read."""
        known = GenerationConfig()
        unknown = [name for name in self.extra_sampling if not (self.use_vllm or hasattr(known, name))]
        if unknown:
            raise ValueError(
                f"generation_kwargs names {unknown[0]!r}, which transformers' GenerationConfig does not have: leave "
                "it out."
            )

    def _refuse_whole_responses(self, setting: str) -> None:
        """Refuse sampling settings for responses that are written at once, beside a setting that divides them."""
        given = [name for name in WHOLE_RESPONSES if name in self.extra_sampling]
        if given:
            raise ValueError(
                f"generation_kwargs: {given[0]} is set beside {setting}, but it is meant for responses that are "
                "written in one call: leave one of them out."
            )

    def _refuse_biased_sampling(self) -> None:
        """Refuse sampling settings that change the distribution in a way that the loss does not score."""
        if self.allow_truncated_sampling:
            self._check_truncation()
        fields = {name: getattr(self, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
        neutral = NEUTRAL_SAMPLING | {"temperature": (self.temperature,)}
        for where, sampling in (("", fields), ("generation_kwargs: ", self.extra_sampling)):
            for name in sampling.keys() & neutral.keys():
                truncates = not where and name in TRUNCATING
                if sampling[name] in neutral[name] or (truncates and self.allow_truncated_sampling):
                    continue
                remedy = ", or set allow_truncated_sampling: true to score by the truncated distribution"
                allowed = remedy if truncates else ""
                raise ValueError(
                    f"{where}{name} is {sampling[name]}: rollouts would come from another distribution than their "
                    f"scores, which biases every ratio, so set {name} to {neutral[name][0]} for training{allowed}."
                )

    def _check_truncation(self) -> None:
        if not self.truncation:
            raise ValueError("allow_truncated_sampling is true, but top_p, top_k and min_p cut nothing off: set one.")
        for name, value, fits in (
            ("top_p", self.top_p, 0 < self.top_p <= 1),
            ("top_k", self.top_k, self.top_k >= -1),
            ("min_p", self.min_p, self.min_p is None or 0 <= self.min_p <= 1),
        ):
            if not fits:
                raise ValueError(f"{name} is {value}: a share lies in (0, 1], and top_k is 1 or more, or 0 for all.")
        if self.fused_lm_head != "auto":
            raise ValueError(
                f"fused_lm_head is {self.fused_lm_head!r}, which scores with the whole distribution: with "
                "allow_truncated_sampling it has to be auto."
            )
        if self.beta:
            raise ValueError(
                f"beta is {self.beta} with allow_truncated_sampling: the reference policy is scored with the whole "
                "distribution, so that the KL term would compare unlike distributions; set beta to 0."
            )

    @property
    def truncation(self) -> Truncation:
        """Truncation of the distribution that rollouts are sampled from."""
        return Truncation(self.top_p, max(self.top_k, 0), self.min_p, min_p_first=self.use_vllm)

    @classmethod
    def of(cls, args: GRPOConfig | None, output_dir: str) -> "EntropyForkGRPOConfig":
        """Return a trainer's arguments as an object of this class.

        Args:
            args: unchanged if they are of this class. A plain `GRPOConfig` is completed with the defaults of this
                class's own fields. None gives the defaults, in `output_dir`.
        """
        if args is None:
            return cls(output_dir)
        if isinstance(args, cls):
            return args
        # Defaults of TRL that nothing reads may differ from those of this class, and would count as set there.
        left_out = {name for _, name, is_set in unread(args, RULES) if not is_set}
        # TRL has derived this field, and refuses it together with the field that it came from.
        left_out.add("generation_batch_size")
        return cls(**{f.name: getattr(args, f.name) for f in fields(args) if f.init and f.name not in left_out})
