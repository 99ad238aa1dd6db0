"""Plan of an optimiser step: its tokens, the kept tokens, and the sequences of each micro-batch.

The kept tokens depend on the scope. With `micro_batch` scope they depend on the sequences that share a forward pass,
over all ranks. With `global` scope they depend only on the sequences of the optimiser step, not on micro-batches. With
`rollout` scope they depend on the whole rollout and the policy that wrote it. They are therefore equal in every pass
over the rollout.

The functions do not change their arguments and need no trainer. Shapes: B sequences of a micro-batch, T completion
tokens including padding.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .batching import by_length, cut, deal, fewest, merge, take
from .methods.over_ranks import total
from .methods.run import Methods
from .objective import Objective
from .ranks import Ranks
from .selection import gradient_norms, select, select_matched
from .share import BY_NORM
from .tokens import Inputs, flatten, loss_mask, probability_ratio, row_advantages, token_places, with_gradient


@dataclass
class Pass:
    """Scores of the completion tokens, (B, T) float32 with zeros in the padding.

    Attributes:
        logps: log-probabilities at the temperature.
        entropies: nats, or None.
        residual_norms: see `models.head.SparseHeadOutput`, or None.
        aux_loss: load-balancing loss of a mixture of experts, a scalar, or None.
    """

    logps: Tensor
    entropies: Tensor | None = None
    residual_norms: Tensor | None = None
    aux_loss: Tensor | None = None

    def detach(self) -> "Pass":
        """Return the pass without its graph."""
        return Pass(*(x if x is None else x.detach() for x in vars(self).values()))


@dataclass
class Scored:
    """Detached (B, T) tensors of one micro-batch. `logps` come from the training pass, or are None without one."""

    inputs: Inputs
    mask: Tensor
    kept: Tensor
    entropies: Tensor
    logps: Tensor | None = None


@dataclass
class Window:
    """One optimiser step.

    Attributes:
        batches: local micro-batches to run. If the kept tokens are known beforehand, they have `kept_mask` and
            `entropies`, (B, T).
        kept: divisor of the loss with the denominator `kept`, over all micro-batches and ranks. It is the number of
            kept tokens, or for `random_matched` the number of tokens that `top` would keep. With `threshold` it is the
            requested number.
        everything: if the kept tokens are known beforehand, local micro-batches including sequences that are not run;
            None otherwise.
        thresholds: lowest kept score of each selection so far.
        ranking: passes that ranked the window's tokens, and their micro-batches.
        scored: micro-batches that have been run so far.
        divisor: divisor of the loss if token weights determine it; None otherwise.
        weights: sum of the weights of this process's tokens and their number, (2,) float64, by the name of the method.
        opened: micro-step of training in which the window was planned.
        threshold: threshold of the last step, by which the loss keeps tokens; None if tokens are ranked.
    """

    batches: list[Inputs]
    kept: int
    everything: list[Inputs] | None = None
    thresholds: list[float] = field(default_factory=list)
    ranking: tuple[list[Pass], list[Inputs]] | None = None
    scored: list[Scored] = field(default_factory=list)
    divisor: float | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    opened: int | None = None
    threshold: float | None = None

    @property
    def trained(self) -> tuple[list[Pass], list[Inputs]]:
        """Passes of the loss so far, and their micro-batches."""
        return [Pass(s.logps, s.entropies) for s in self.scored], [s.inputs for s in self.scored]

    def all_tokens(self) -> list[Scored]:
        """Return all tokens whose entropies are known."""
        if self.everything is None:
            return self.scored
        return [Scored(b, loss_mask(b).bool(), b["kept_mask"], b["entropies"]) for b in self.everything]


# Selection


def token_gradient_norms(scored: Pass, inputs: Inputs, objective: Objective) -> Tensor:
    """(B, T) G_t (see `selection.gradient_norms`) of the tokens of a micro-batch."""
    norms = gradient_norms(
        scored.residual_norms,
        row_advantages(inputs),
        probability_ratio(scored.logps, inputs),
        objective.epsilon_low,
        objective.epsilon_high,
        objective.delta,
    )
    return norms * inputs.get("importance_sampling_ratio", 1.0)


def select_tokens(
    passes: Sequence[Pass], batches: Sequence[Inputs], objective: Objective, ranks: Ranks, seed: int
) -> tuple[list[Tensor], float]:
    """Select the kept tokens of several micro-batches on all ranks by one threshold.

    Returns:
        (one (B, T) bool mask per micro-batch, threshold). The threshold is the lowest score that `top` keeps, and NaN
        for random tokens.
    """
    entropies = [p.entropies for p in passes]
    norms = None
    if objective.selection in BY_NORM:
        norms = [token_gradient_norms(p, b, objective) for p, b in zip(passes, batches, strict=True)]
    mask, places = flatten([loss_mask(b) for b in batches]), flatten([token_places(b) for b in batches])
    if objective.matches_norms:
        kept = select_matched(flatten(entropies), flatten(norms), mask, objective.rho, places, seed, ranks.sum)
        threshold = math.nan
    else:
        scores = flatten(norms or entropies)
        kept, threshold = select(scores, mask, objective.rho, places, objective.selection, seed, ranks.sum)
    parts = kept.split([e.numel() for e in entropies])
    return [part.view_as(e) for part, e in zip(parts, entropies, strict=True)], threshold


def check_kept(kept: float, total: float, expected: int, objective: Objective, selections: int = 1) -> None:
    """Check that the kept tokens are the requested share of all tokens.

    Args:
        kept, total: kept and all tokens, over all ranks.
        expected: number of tokens by which the loss is divided.
        selections: number of thresholds. Each rounds by less than one token.

    Raises:
        RuntimeError: the number of kept tokens is wrong.
    """
    share = objective.kept_share
    if total and (kept != expected or abs(kept - share * total) >= selections):
        raise RuntimeError(
            f"A selection kept {kept:.0f} of {total:.0f} tokens instead of the share {share:g}, {expected} tokens, so "
            "that the loss would be wrong."
        )


def step_threshold(window: Window, objective: Objective, ranks: Ranks, seed: int) -> float:
    """Return the threshold by which a finished step would have kept exactly the requested share.

    The next step takes it over. It is that of the last step if this step has no tokens.
    """
    if window.threshold is None:
        return window.thresholds[0]
    _, found = select_tokens(*window.trained, objective, ranks, seed)
    return window.threshold if math.isnan(found) else found


# Sequences


def gather_sequences(sequences: Inputs, ranks: Ranks) -> Inputs:
    """The sequences of all ranks, in the order of the ranks, padded to the same width."""
    gathered = {
        key: ranks.gather(value, key.startswith("prompt_")) if isinstance(value, Tensor) and value.dim() else value
        for key, value in sequences.items()
    }
    ratio, mask = gathered.get("importance_sampling_ratio"), loss_mask(gathered)
    if ratio is not None and ratio.shape == mask.shape:
        # TRL's padding has the ratio 1, and VESPO sums the logarithms of a row without a mask.
        gathered["importance_sampling_ratio"] = ratio.masked_fill(mask == 0, 1)
    return gathered


def can_regroup(batches: Sequence[Inputs], objective: Objective) -> bool:
    """Return whether sequences may move between micro-batches. Lists with an entry per sequence (images) cannot."""
    return objective.regroups and not any(isinstance(value, list) for value in batches[0].values())


def regroup(batches: list[Inputs], objective: Objective, ranks: Ranks, size: int) -> list[Inputs]:
    """Group the sequences of a window by length, and drop sequences without a gradient if the objective allows it.

    Sequences are redistributed over all ranks, because ranks wait for each other in every micro-batch.

    Args:
        size: sequences of a micro-batch on one rank, before sequences are dropped.

    Returns:
        The micro-batches of the optimiser step on this rank: with a budget of tokens as few as it allows, the same
        number on every rank.
    """
    if not can_regroup(batches, objective):
        return batches
    number = objective.accumulation
    sequences = gather_sequences(merge(batches), ranks)
    lengths = sequences["prompt_mask"].sum(1) + sequences["completion_mask"].sum(1)
    live, count = None, None
    if objective.drops_sequences:
        live = with_gradient(sequences).any(dim=1)
        # All ranks run equally many sequences, at least one per micro-batch, because TRL and FSDP synchronise in each.
        least = number if objective.token_budget is None else 1
        count = max(-(-int(live.sum()) // ranks.count), least) * ranks.count
    order = by_length(lengths, live, count)
    sizes = [size] * number  # losses that average over sequences average within micro-batches
    if objective.token_level:
        sizes = _cut(lengths[order][:: ranks.count], objective, size * int(lengths.max()))
    return [take(sequences, hands[ranks.index]) for hands in deal(order, sizes, ranks.count)]


def _cut(lengths: Tensor, objective: Objective, room: int) -> list[int]:
    """Return the number of sequences of each micro-batch of a window on one rank.

    Args:
        lengths: (n,) tokens of the longest of the ranks' sequences in each place, longest first.
        room: tokens of TRL's micro-batches, which hold if the budget would need more micro-batches than there are.
    """
    number, budget = objective.accumulation, objective.token_budget
    if budget is None or (needed := fewest(lengths, budget)) > number:
        return cut(lengths, number, room)
    return cut(lengths, needed, budget)


def plan_window(
    batches: list[Inputs],
    objective: Objective,
    ranks: Ranks,
    score: Callable[[Inputs], Pass],
    size: int,
    seed: int,
    methods: Methods | None = None,
    threshold: float = math.nan,
) -> Window:
    """Plan an optimiser step: the number of kept tokens over all ranks, their masks if known, and the micro-batches.

    Args:
        batches: the step's micro-batches on this rank, with the advantages of the step.
        score: scores a micro-batch under the current policy, without a graph. Called if the window ranks its tokens,
            or if active methods read the pass (`Methods.reads_pass`).
        size: sequences of a micro-batch on one rank.
        seed: seed of this step, for `random`.
        methods: methods by name at this step; by default those of the objective at its first step.
        threshold: threshold of the last step, if the objective carries it. The first step has NaN, and ranks its own
            tokens in an extra pass.
    """
    methods = methods or Methods(objective, ranks, seed=seed)
    passes = None
    is_first = objective.carries and math.isnan(threshold)
    if objective.ranked_in == "window" or is_first or methods.reads_pass(batches[0]):
        batches = [merge(batches)] if can_regroup(batches, objective) else batches
        passes = [score(b) for b in batches]
    batches = methods.plan(batches, passes)
    if objective.carries and not is_first:
        batches = regroup(batches, objective, ranks, size)
        asked = objective.kept_count(sum(count_tokens(batches, ranks)))
        window = Window(batches, asked, threshold=threshold, thresholds=[threshold])
    else:
        window = _select(batches, passes, objective, ranks, size, seed)
    whole = batches if window.everything is None else window.everything
    window.weights = methods.sums(whole)
    window.divisor = _divisor(whole, methods, objective, ranks)
    return window


def _divisor(batches: list[Inputs], methods: Methods, objective: Objective, ranks: Ranks) -> float | None:
    """Sum of the token weights by which the loss is divided, over the step's tokens; None without such weights."""
    valid = [methods.valid_weights(b) for b in batches]
    if any(weights is None for weights in valid):
        return None
    keeps = objective.selects and objective.denominator == "kept"
    masks = flatten([b["kept_mask"] if keeps else loss_mask(b).bool() for b in batches])
    return total(flatten(valid), masks, ranks)


def _select(
    batches: list[Inputs], passes: list[Pass] | None, objective: Objective, ranks: Ranks, size: int, seed: int
) -> Window:
    """Select the kept tokens of a step if they are known before its loss, and group its sequences.

    Args:
        passes: passes of the current policy over the micro-batches, if it has been scored.
    """
    if objective.ranked_in is None:
        return Window(regroup(batches, objective, ranks, size), 0)
    if objective.ranked_in == "rollout":
        counted = ranks.sum(torch.stack([b["counted"].sum() for b in batches]).sum())
        thresholds = [float(batches[0]["threshold"])]
        return Window(regroup(batches, objective, ranks, size), int(counted), batches, thresholds)
    if objective.ranked_in == "loss":
        batches = regroup(batches, objective, ranks, size)
        return Window(batches, sum(objective.kept_count(n) for n in count_tokens(batches, ranks)))
    kept = objective.kept_count(sum(count_tokens(batches, ranks)))
    masks, threshold = select_tokens(passes, batches, objective, ranks, seed)
    ranked = [
        b | {"kept_mask": mask, "entropies": p.entropies} for b, mask, p in zip(batches, masks, passes, strict=True)
    ]
    return Window(regroup(ranked, objective, ranks, size), kept, ranked, [threshold], (passes, batches))


def count_tokens(batches: Sequence[Inputs], ranks: Ranks) -> list[int]:
    """Number of the policy's tokens in each micro-batch, over all ranks."""
    return ranks.sum(torch.stack([loss_mask(b).sum() for b in batches])).tolist()


def evaluation_window(inputs: Inputs, objective: Objective, ranks: Ranks) -> Window:
    """Make a window of one evaluation micro-batch, whose kept tokens are chosen among its own tokens."""
    return Window([inputs], sum(objective.kept_count(n) for n in count_tokens([inputs], ranks)))
