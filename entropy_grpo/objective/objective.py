"""Decision of a run's computations: the kept tokens, the forward passes, and the outputs of the LM head.

Every decision follows from the arguments and a few facts about the model. The trainer acts on the decisions, and the
planner counts their cost. Neither has rules of its own.

Costs are shares of the response tokens of an optimiser step. Effects of the data are not included: sequences without
an advantage, clipped tokens, and groups that dynamic sampling carries over. A recipe costs at most the shares given
here.
"""

import math
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, get_args

from .share import BY_NORM, MATCHED, kept_count, kept_share

if TYPE_CHECKING:
    from .methods.entries import Entry

# Losses that TRL divides by the number of tokens, and that can be divided by the number of kept tokens instead.
TOKEN_LEVEL_LOSSES = ("dapo", "cispo", "vespo")
# Losses that keep the ratio of a token within [1 - epsilon, 1 + epsilon_high], and below `delta` where it is set.
# Their gradient at a token is advantage * ratio unless the ratio is clipped. LUSPO clips the ratio of a sequence.
TOKEN_CLIPPING_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo")
CLIPPING_LOSSES = (*TOKEN_CLIPPING_LOSSES, "luspo")
Denominator = Literal["kept", "all"]
DENOMINATORS = get_args(Denominator)
# Where the old log-probabilities come from: a pass of the policy that wrote the rollout, or the sampler.
OLD_LOGPS_FROM = ("scored", "sampler")


def backward_matmuls(trains_head: bool) -> int:
    """Return the matmuls of the LM head's backward pass: logits, gradient of hidden states, gradient of the weight."""
    return 2 + trains_head


def _check_head(
    args: Any, why_not: str | None, has_bonus: bool, aux_loss_enabled: bool, entries: "tuple[Entry, ...]"
) -> str | None:
    """Return the reason why the sparse LM head cannot serve the run, or None if it can or if TRL's head is chosen.

    Raises:
        ValueError: a setting needs the sparse head, which cannot serve or is not chosen.
    """
    by_norm = next((entry for entry in entries if "residual_norms" in entry.needs), None)
    if args.fused_lm_head == "trl":
        if by_norm is not None:
            raise ValueError(
                f"{by_norm.setting} names {by_norm.name}, which reads gradient norms, but fused_lm_head is 'trl': set "
                "it to auto."
            )
        return None
    reason = why_not
    if has_bonus:
        reason = "the loss has an entropy bonus"
    elif aux_loss_enabled:
        reason = "the loss has a load-balancing term (router_aux_loss_coef)"
    if reason is not None and args.truncation:
        raise ValueError(
            f"allow_truncated_sampling is true, but {reason}, so that the LM head is TRL's, which scores with the "
            "whole distribution: sample from the whole distribution."
        )
    if reason is not None and args.fused_lm_head == "liger":
        raise ValueError(f"fused_lm_head is 'liger', but {reason}: choose auto or trl.")
    if reason is not None and args.entropy_selection in BY_NORM:
        raise ValueError(
            f"entropy_selection is {args.entropy_selection!r}, but {reason}: choose another entropy_selection."
        )
    if reason is not None and by_norm is not None:
        raise ValueError(
            f"{by_norm.setting} names {by_norm.name}, which reads gradient norms, but {reason}: leave it out."
        )
    return reason


def _check_budget(objective: "Objective") -> None:
    """Refuse a budget of tokens where a loss depends on the micro-batches, or where they cannot be chosen."""
    budget = objective.token_budget
    if budget is None:
        return
    if budget < 1:
        raise ValueError(f"token_budget is {budget}: it must be 1 or more, or null.")
    refusals = {
        "batch_by_length is false: set it to true": not objective.by_length,
        f"loss_type is {objective.loss_type!r}, whose means depend on the micro-batches: use loss_type "
        f"{' or '.join(TOKEN_LEVEL_LOSSES)}": not objective.token_level,
        "the loss has an entropy bonus or a load-balancing term, which is a mean over a micro-batch: leave it "
        "out": objective.batch_means,
        "entropy_scope is 'micro_batch', whose kept tokens depend on the micro-batches: use global or "
        "rollout": objective.selects and objective.scope == "micro_batch",
        "steps_per_generation is no multiple of gradient_accumulation_steps: make it one": not objective.whole_steps,
        "the positions of this model depend on the width of its batch, so that padding stays: leave token_budget "
        "out": not objective.inert,
    }
    for reason, applies in refusals.items():
        if applies:
            raise ValueError(f"token_budget is {budget}, but {reason}.")


def _check_sampler(objective: "Objective", args: Any, is_deepspeed: bool) -> None:
    """Refuse settings that need the pass over the rollout which `old_logps: sampler` leaves out."""
    if not objective.trusts_sampler:
        return
    refusals = {
        f"entropy_selection is {objective.selection!r}, which has no threshold of entropy that a step could take over "
        "from the last: use top or bottom, or entropy_scope global": objective.carries
        and objective.selection not in ("top", "bottom"),
        "the loss has a KL term, an entropy bonus or a load-balancing term, which must not be divided by the kept "
        "tokens at the end of a step: leave it out, or use entropy_denominator all or entropy_scope "
        "global": objective.divides_late and not objective.surrogate,
        "DeepSpeed takes its step before the kept tokens are known: use FSDP2, or entropy_denominator all or "
        "entropy_scope global": objective.divides_late and is_deepspeed,
    }
    refusals |= {
        f"{entry.setting} names {entry.name}, which reads the entropies or the gradient norms of the rollout, and no "
        "pass computes them: leave it out": "old_entropies" in entry.needs
        or (entry.moment == "rollout" and "residual_norms" in entry.needs)
        for entry in objective.entries()
    }
    for reason, applies in refusals.items():
        if applies:
            raise ValueError(f"old_logps is 'sampler', but {reason}.")


@dataclass(frozen=True)
class Objective:
    """The computations of a run, decided once from its arguments and its model.

    Attributes:
        rho: `top_entropy_quantile`.
        selection: `entropy_selection`.
        scope: `entropy_scope`.
        denominator: `entropy_denominator`.
        old_logps: `old_logps`.
        loss_type: TRL's name of the loss.
        epsilon_low: lower clip limit of the surrogate, as its distance from 1.
        epsilon_high: upper clip limit, as its distance from 1.
        delta: upper limit of every ratio (the dual clip), or None.
        accumulation: micro-batches of an optimiser step on one process.
        micro_batches: micro-batches of a rollout on one process.
        iterations: optimiser steps that see each response.
        by_length: `batch_by_length`.
        token_budget: tokens of a micro-batch on one process, padding included; None for TRL's number of sequences.
        inert: whether a sequence's scores are independent of the width of its batch (`batching.padding_is_inert`).
        diagnostics: `log_diagnostics`.
        corrects_sampler: whether vLLM's importance correction compares its log-probabilities with the policy's.
        has_reference: whether the loss has a KL term, for which a reference policy scores the rollout.
        group_size: responses to a problem.
        advantages: methods that shape advantages, in the order in which they run (see `methods`).
        token_weights: methods that weigh tokens, in their order. The selection of tokens is not among them.
        trains_head: whether the LM head's weight has a gradient.
        sparse_head: whether the sparse LM head serves the policy instead of TRL's.
        head_refusal: the reason why TRL's head serves although it was not requested; None otherwise.
        token_ratio: whether importance ratios are per token, so that a token's loss has no gradient in other tokens.
        per_token: whether a token's loss needs no other token's log-probability.
        surrogate: whether the surrogate is the only term of the loss (no KL, entropy bonus or load balancing). Then
            tokens without advantage or without weight have no gradient.
        has_bonus: whether the loss has TRL's entropy bonus, so that entropies have a gradient.
        batch_means: whether a term of the loss is a mean within a micro-batch (bnpo, entropy bonus, load balancing),
            so that TRL's micro-batches must stay together.
        balances: whether the loss has a load-balancing term, which is computed under a padding mask.
    """

    rho: float
    selection: str
    scope: str
    denominator: str
    old_logps: str
    loss_type: str
    epsilon_low: float
    epsilon_high: float
    delta: float | None
    accumulation: int
    micro_batches: int
    iterations: int
    by_length: bool
    token_budget: int | None
    inert: bool
    diagnostics: bool
    corrects_sampler: bool
    has_reference: bool
    group_size: int
    advantages: "tuple[Entry, ...]"
    token_weights: "tuple[Entry, ...]"
    trains_head: bool
    sparse_head: bool
    head_refusal: str | None
    token_ratio: bool
    per_token: bool
    surrogate: bool
    has_bonus: bool
    batch_means: bool
    balances: bool

    @classmethod
    def from_args(
        cls,
        args: Any,
        why_not: str | None = None,
        aux_loss_enabled: bool = False,
        trains_head: bool = True,
        inert: bool = True,
        is_deepspeed: bool = False,
    ) -> "Objective":
        """Decide from a run's arguments and its model.

        Args:
            args: an `EntropyForkGRPOConfig`. The decisions do not depend on the number of processes.
            why_not: why the sparse LM head cannot serve the model (see `models.head.why_not`), or None.
            aux_loss_enabled: whether the loss has the load-balancing term of a mixture of experts.
            trains_head: whether the LM head's weight has a gradient (see `models.head.trains_head`).
            inert: whether the model's scores are independent of padding (see `batching.padding_is_inert`).
            is_deepspeed: whether DeepSpeed takes the optimiser's step, at the end of the last backward pass.

        Raises:
            ValueError: `fused_lm_head` or `entropy_selection` needs the sparse head, which cannot serve. Or
                `token_budget` stands beside a setting or a model that needs TRL's micro-batches. Or `old_logps`
                leaves out a pass that another setting needs.
        """
        from .methods.entries import entries_of  # needs torch, which a reader of the record does without

        advantages, token_weights = entries_of(args)
        has_bonus = args.entropy_coef != 0 or args.use_adaptive_entropy
        uses_trl_head = args.fused_lm_head == "trl"
        refusal = _check_head(args, why_not, has_bonus, aux_loss_enabled, advantages + token_weights)
        token_ratio = args.importance_sampling_level == "token"
        objective = cls(
            rho=args.top_entropy_quantile,
            selection=args.entropy_selection,
            scope=args.entropy_scope,
            denominator=args.entropy_denominator,
            old_logps=args.old_logps,
            loss_type=args.loss_type,
            epsilon_low=args.epsilon,
            epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
            delta=args.delta,
            accumulation=args.gradient_accumulation_steps,
            micro_batches=args.steps_per_generation,
            iterations=args.num_iterations,
            by_length=args.batch_by_length,
            token_budget=args.token_budget,
            inert=inert,
            diagnostics=args.log_diagnostics,
            corrects_sampler=args.use_vllm and args.vllm_importance_sampling_correction,
            has_reference=args.beta != 0,
            group_size=args.num_generations,
            advantages=advantages,
            token_weights=token_weights,
            trains_head=trains_head,
            sparse_head=not uses_trl_head and refusal is None,
            head_refusal=refusal,
            token_ratio=token_ratio,
            per_token=token_ratio and args.loss_type != "vespo" and args.off_policy_mask_threshold is None,
            surrogate=args.beta == 0 and not has_bonus and not aux_loss_enabled,
            has_bonus=has_bonus,
            batch_means=args.loss_type == "bnpo" or has_bonus or aux_loss_enabled,
            balances=aux_loss_enabled,
        )
        _check_budget(objective)
        _check_sampler(objective, args, is_deepspeed or args.deepspeed is not None)
        return objective

    # Tokens

    @property
    def selects(self) -> bool:
        """True if some tokens are dropped."""
        return self.rho < 1

    @property
    def kept_share(self) -> float:
        """Divisor of the loss as a share of all tokens: the kept share, or that of `top` if norms are matched."""
        return kept_share(self.rho, self.selection)

    @property
    def matches_norms(self) -> bool:
        """True if tokens are drawn until their gradient is that of the top tokens, so that their number is unknown."""
        return self.selection == MATCHED

    @property
    def largest_kept_share(self) -> float:
        """Upper bound of the share of tokens that are kept."""
        return 1.0 if self.matches_norms else self.kept_share

    def kept_count(self, n: int) -> int:
        """Number of kept tokens among `n` that share a threshold."""
        return kept_count(n, self.rho, self.selection)

    @property
    def ranked_in(self) -> str | None:
        """The pass that ranks the tokens: `rollout`, `window` (an extra pass), `loss`, or None if all are kept.

        With `last step` they are not ranked: the loss keeps the tokens above the threshold of the last optimiser step.
        """
        if not self.selects:
            return None
        if self.scope == "global":
            return "window" if self.accumulation > 1 or self.sums_weights else "loss"
        if self.scope == "rollout":
            return "last step" if self.trusts_sampler else "rollout"
        return "loss"

    @property
    def trusts_sampler(self) -> bool:
        """True if the sampler's log-probabilities are the old ones, so that no pass scores a rollout."""
        return self.old_logps == "sampler"

    @property
    def carries(self) -> bool:
        """True if an optimiser step takes over the threshold of the last one, whose tokens it approximately has."""
        return self.ranked_in == "last step"

    @property
    def divides_late(self) -> bool:
        """True if the divisor of the loss, the number of kept tokens, is known only at the end of a step."""
        return self.carries and self.denominator == "kept"

    @property
    def spans_steps(self) -> bool:
        """True if the policy changes before the last optimiser step of a rollout, so that TRL scores the rollout."""
        return self.accumulation % self.passes_per_rollout != 0

    @property
    def passes_per_rollout(self) -> int:
        """Micro-batches of a rollout on one process, each use of a response counted."""
        return self.micro_batches * self.iterations

    @property
    def kept_known(self) -> bool:
        """True if the kept tokens are known before the loss is computed."""
        return self.ranked_in in ("rollout", "window")

    @property
    def ratio_limits(self) -> tuple[float, float]:
        """Importance ratios at which the loss clips, for negative and for positive advantages."""
        if self.loss_type in CLIPPING_LOSSES:
            return 1 - self.epsilon_low, 1 + self.epsilon_high
        return 0.0, self.epsilon_high if self.loss_type == "cispo" else math.inf

    # Methods by name

    def entries(self, kind: str = "", *moments: str) -> "list[Entry]":
        """Return the entries of a kind that run at these moments, in the order in which they run; all by default."""
        everything = self.advantages + self.token_weights
        return [e for e in everything if kind in ("", e.method.kind) and (not moments or e.moment in moments)]

    @property
    def shaping(self) -> tuple[str, ...]:
        """Names of the methods of arXiv 2508.02260 that shape advantages."""
        return tuple(entry.name for entry in self.advantages if entry.name in ("ppl", "position"))

    @property
    def sums_weights(self) -> bool:
        """True if the loss is divided by a sum of token weights, which must be known before the loss."""
        return any(entry.method.denominator == "valid" for entry in self.token_weights)

    @property
    def loss_needs(self) -> frozenset[str]:
        """Fields of the view that entries read in the loss."""
        return frozenset().union(*(entry.needs for entry in self.entries("", "loss")))

    @property
    def scores_window(self) -> bool:
        """True if a pass without gradient over the step's sequences precedes its loss.

        It ranks the tokens, or gives the current policy's values to entries that read all tokens of the step. For
        entries alone it is made only in the steps in which they are active.
        """
        by_entry = any(entry.current for entry in self.entries("", "step"))
        return by_entry or self.ranked_in == "window"

    def reads_rollout_pass(self, entry: "Entry") -> bool:
        """Return whether an entry needs a pass over the rollout, which TRL may not make by itself.

        If TRL makes none, the rollout serves one optimiser step. Its policy is then the current policy, whose own
        passes give the same values to later entries. The sampler's log-probabilities need no pass.
        """
        if self.trusts_sampler:
            return False
        if entry.moment == "rollout":
            return bool(entry.old) or "residual_norms" in entry.needs
        return bool(entry.old) and (entry.moment == "sequence" or (entry.moment == "step" and not self.scores_window))

    @property
    def first_step_reads(self) -> frozenset[str]:
        """Fields of the current policy that the first step of a rollout takes from the pass over the rollout.

        Both have one policy, so that the step needs no pass for its entries. What they compare with the policy that
        wrote the rollout is then equal to the last bit, where two passes would differ by rounding.
        """
        current = frozenset().union(*(entry.current for entry in self.entries("", "step")))
        spares = self.measures_rollout and self.ranked_in != "window"
        return current | {"logps"} if current and spares else frozenset()

    @property
    def kept_of_rollout(self) -> frozenset[str]:
        """Fields of the pass over the rollout that later entries read."""
        later = self.entries("", "sequence", "step", "loss")
        return frozenset().union(*(entry.old for entry in later))

    # Sequences

    @property
    def token_level(self) -> bool:
        """True if the loss is a sum over tokens, regardless of their sequences, divided by a number of tokens."""
        return self.loss_type in TOKEN_LEVEL_LOSSES

    @property
    def whole_steps(self) -> bool:
        """True if a rollout is a whole number of optimiser steps, so that a step begins with all its sequences."""
        return self.micro_batches % self.accumulation == 0

    @property
    def steps_per_rollout(self) -> Fraction:
        """Optimiser steps for which a rollout is used."""
        return Fraction(self.passes_per_rollout, self.accumulation)

    @property
    def regroups(self) -> bool:
        """True if the sequences of an optimiser step are grouped by length (sequences with images never are)."""
        return self.by_length and not self.batch_means and self.whole_steps

    @property
    def trims(self) -> bool:
        """True if passes run without the padding that their sequences share."""
        return self.by_length and self.inert

    @property
    def aligns(self) -> bool:
        """True if training passes need no padding mask (see `training.scoring`)."""
        return self.trims and not self.balances

    @property
    def drops_sequences(self) -> bool:
        """True if sequences without a gradient are left out of the forward pass.

        That takes an earlier pass over all of them, because the entropies of all tokens of a rollout are logged.
        """
        measured = self.measures_rollout or self.ranked_in == "window"
        if any(entry.method.revives for entry in self.entries("advantage", "loss")):
            return False
        return self.regroups and self.surrogate and self.token_level and self.ranked_in != "loss" and measured

    # The LM head

    @property
    def projects_kept(self) -> bool:
        """True if the head projects only the kept tokens. Entries in the loss read the values of all tokens."""
        reads_all = bool(self.entries("", "loss"))
        return self.sparse_head and self.kept_known and self.per_token and self.surrogate and not reads_all

    @property
    def projected_share(self) -> float:
        """Share of the response tokens that the head projects to compute the loss."""
        return self.largest_kept_share if self.projects_kept else 1.0

    @property
    def differentiated_share(self) -> float:
        """Share of the response tokens that the head differentiates, at most; token weights of 0 are not counted."""
        return self.largest_kept_share if self.sparse_head and self.surrogate and self.token_ratio else 1.0

    @property
    def head_units(self) -> float:
        """Cost of the head in a training pass, in matmuls of all response tokens."""
        return self.projected_share + backward_matmuls(self.trains_head) * self.differentiated_share

    def outputs(self, ranks: bool, in_rollout: bool) -> tuple[str, ...]:
        """Name the outputs that the sparse head computes in a pass.

        Args:
            ranks: whether the pass needs entropies, to rank or to log its tokens.
            in_rollout: whether the pass scores a rollout. The log then also needs gradient norms, which cost one more
                sum over the vocabulary.
        """
        by_norm = self.selection in BY_NORM or any("residual_norms" in entry.needs for entry in self.entries())
        wants_norms = by_norm or (self.diagnostics and in_rollout)
        return ("log_probs", *(["entropy"] if ranks else []), *(["residual_norm"] if ranks and wants_norms else []))

    # Passes

    @property
    def asks_old_logps(self) -> bool:
        """True if TRL itself scores the rollout, unless the sampler gives the old log-probabilities."""
        return self.spans_steps or self.corrects_sampler

    @property
    def scores_rollout(self) -> bool:
        """True if TRL itself scores the rollout."""
        return self.asks_old_logps and not self.trusts_sampler

    @property
    def measures_rollout(self) -> bool:
        """True if a pass over the rollout, made for another purpose, also gives the entropies of its tokens.

        Otherwise the rollout serves a single optimiser step, whose own passes are made by the policy that wrote it
        and give the same entropies. With the sampler's log-probabilities, the passes of every step give the entropies
        of its tokens under its policy.
        """
        return self.scores_rollout or self.ranked_in == "rollout"

    @property
    def spares_pass(self) -> bool:
        """True if the rollout would be scored in a pass, but for the sampler's log-probabilities."""
        return self.trusts_sampler and (self.asks_old_logps or self.carries)

    @property
    def spares_evaluation_pass(self) -> bool:
        """True if TRL would score the responses of an evaluation in a pass that vLLM's correction does not need."""
        return self.spans_steps and (self.trusts_sampler or not self.corrects_sampler)

    @property
    def scoring_passes(self) -> dict[str, float]:
        """Passes without gradient over the responses of an optimiser step, by purpose.

        A pass over a rollout counts for each of the `iterations` steps that see its responses. If an entry has a
        schedule, its passes over rollouts and steps are made only while the schedule is active.
        """
        by_entry = any(self.reads_rollout_pass(entry) for entry in self.entries())
        scored = self.scores_rollout or self.ranked_in == "rollout" or by_entry
        return {
            "rollout": scored / self.iterations,
            "reference": self.has_reference / self.iterations,
            "ranking": float(self.scores_window - bool(self.first_step_reads) / self.steps_per_rollout),
        }

    def record(self) -> dict[str, Any]:
        """Return the decisions and what a reader of the run asks of them, in JSON types, for the files of the run."""
        methods = {name: [e.record() for e in getattr(self, name)] for name in ("advantages", "token_weights")}
        decisions = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in methods}
        return (
            decisions
            | methods
            | {
                "shaping": self.shaping,
                "kept_share": self.kept_share,
                "ranked_in": self.ranked_in,
                "scores_rollout": self.scores_rollout,
                "steps_per_rollout": float(self.steps_per_rollout),
                "head_units": self.head_units,
                "scoring_passes": self.scoring_passes,
            }
        )
