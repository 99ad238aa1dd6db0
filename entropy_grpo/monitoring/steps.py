"""Logs of rollouts and optimiser steps: entropies, kept tokens, clip rates, and quality of responses."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..metrics.correctness import is_right
from ..metrics.logged import ENTROPY_PERCENTILES, OF_STEPS
from ..metrics.quality import quality
from ..objective.objective import Objective
from ..objective.ranks import Ranks
from ..objective.selection import Reduce, percentiles
from ..objective.tokens import Inputs, flatten, loss_mask, probability_ratio, row_advantages, sequence_ratio
from ..objective.window import Pass, Scored, Window, check_kept, token_gradient_norms
from ..rewards.registry import text_of
from .callbacks import RunRecorder
from .diagnostics import (
    TokenCategories,
    answer_metrics,
    gradient_metrics,
    rollout_diagnostics,
    share,
    step_metrics,
)
from .pieces import piece


def window_metrics(
    scored: Sequence[Scored],
    everything: Sequence[Scored],
    limits: tuple[float, float],
    token_ratio: bool,
    reduce: Reduce,
) -> dict[str, float]:
    """Compute the metrics of a finished window over all ranks.

    Args:
        scored: micro-batches of the training pass, from which clip rates are computed.
        everything: all sequences with known entropies, including sequences that batching left out.
        limits: lowest and highest ratio that the loss does not clip (`Objective.ratio_limits`).
        token_ratio: whether the loss clips the ratios of tokens, or else those of sequences.
        reduce: function that sums a tensor over ranks.

    Returns:
        Mean entropies (nats) of kept and dropped tokens, the kept fraction, clip rates of kept tokens, and mean
        entropies of the clipped tokens (arXiv 2506.01939, Discussion 3). `kept` and `all` are numbers of tokens. The
        entropies are the scores that ranked the tokens of `everything`. Arms can be compared by the entropies of
        `rollout_metrics`. A mean over no tokens is NaN.
    """
    mask, kept = flatten([s.mask for s in everything]), flatten([s.kept for s in everything])
    entropies = flatten([s.entropies for s in everything])
    groups = {"all": mask, "kept": kept, "dropped": mask & ~kept}
    run = flatten([s.kept for s in scored])
    run_advantages = flatten([row_advantages(s.inputs).expand_as(s.mask) for s in scored])
    ratios = flatten(
        [
            probability_ratio(s.logps, s.inputs) if token_ratio else sequence_ratio(s.logps, s.inputs, s.mask)
            for s in scored
        ]
    )
    clipped = {
        "low": run & (run_advantages < 0) & (ratios < limits[0]),
        "high": run & (run_advantages > 0) & (ratios > limits[1]),
    }
    counts = [group.sum() for group in (*groups.values(), *clipped.values())]
    run_entropies = flatten([s.entropies for s in scored])
    sums = [(entropies * group).sum() for group in groups.values()]
    sums += [(run_entropies * group).sum() for group in clipped.values()]
    totals = reduce(torch.stack([x.double() for x in (*counts, *sums)])).tolist()
    count, total_entropy = (
        dict(zip((*groups, *clipped), part, strict=True)) for part in (totals[: len(counts)], totals[len(counts) :])
    )

    metrics = {
        f"selection/{name}_entropy": share(total_entropy[name], count[name]) for name in groups if name != "all"
    }
    metrics |= {f"clip_ratio/{side}_entropy": share(total_entropy[side], count[side]) for side in clipped}
    metrics["selection/kept_fraction"] = share(count["kept"], count["all"])
    metrics |= {f"clip_ratio/kept_{side}": share(count[side], count["kept"]) for side in clipped}
    return metrics | {"kept": count["kept"], "all": count["all"]}


def rollout_metrics(batches: Sequence[Inputs], entropies: Sequence[Tensor], reduce: Reduce) -> dict[str, float]:
    """Compute the entropies of a rollout's tokens over all ranks, in nats. A mean over no tokens is NaN.

    All tokens count, also dropped tokens and sequences that are not run, so that runs with different selections can be
    compared.

    Args:
        batches: this rank's sequences of the rollout; `right` is (B,) bool.
        entropies: (B, T) of each batch, under the policy that wrote the rollout.
        reduce: function that sums a tensor over ranks.

    Returns:
        Mean and percentiles, and the means by correctness (`right`, `wrong`: the positive and negative samples of
        arXiv 2508.02260) and by the sign of the advantage (`positive`, `negative`). A right response can have a
        negative advantage, for example if it is overlong.
    """
    mask = flatten([loss_mask(b) for b in batches]).bool()
    values = flatten(entropies)
    right = flatten([b["right"].unsqueeze(1).expand_as(e) for b, e in zip(batches, entropies, strict=True)])
    advantages = flatten([row_advantages(b).expand_as(e) for b, e in zip(batches, entropies, strict=True)])
    groups = {
        "mean": mask,
        "right": mask & right,
        "wrong": mask & ~right,
        "positive": mask & (advantages > 0),
        "negative": mask & (advantages < 0),
    }
    sums = [(values * group).sum() for group in groups.values()]
    counts = [group.sum() for group in groups.values()]
    totals = reduce(torch.stack([x.double() for x in (*sums, *counts)])).tolist()
    means = [share(*pair) for pair in zip(totals[: len(groups)], totals[len(groups) :], strict=True)]
    levels = percentiles(values, mask, tuple(ENTROPY_PERCENTILES), reduce)
    names = (*groups, *ENTROPY_PERCENTILES.values())
    return {f"entropy/{name}": value for name, value in zip(names, (*means, *levels), strict=True)}


def token_samples(scored: Scored, number: int, tokenizer: Any) -> list[dict[str, Any]]:
    """Return the first `number` responses of a micro-batch: text, verdict, and each token's id, entropy, kept mark."""
    samples = []
    for i in range(min(number, scored.mask.size(0))):
        mask = scored.mask[i]
        ids = scored.inputs["completion_ids"][i][mask].tolist()
        advantages = row_advantages(scored.inputs)[i].expand_as(mask)[mask]
        prompt = scored.inputs["prompt_ids"][i][scored.inputs["prompt_mask"][i].bool()]
        samples.append(
            {
                "prompt": tokenizer.decode(prompt),
                "tokens": [piece(tokenizer, token) for token in ids],
                "token_ids": ids,
                "entropies": [round(h, 4) for h in scored.entropies[i][mask].tolist()],
                "kept": scored.kept[i][mask].int().tolist(),
                "advantage": round(advantages.mean().item(), 4) if ids else 0.0,
                "right": bool(scored.inputs["right"][i]),
            }
        )
    return samples


@dataclass
class Drawn:
    """Responses of all ranks that were graded together in training.

    Attributes:
        right: (N,) bool, group by group.
        lengths: (N,) int64 tokens, and `quality` the figures of `metrics.quality` by name. Both are empty without
            diagnostics.
    """

    right: Tensor
    lengths: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    quality: dict[str, float] = field(default_factory=dict)


class StepMonitor:
    """Logs rollouts and optimiser steps among TRL's own metrics; holds accuracy and entropy of the latest rollout.

    If no pass measures a rollout that several steps share, the entropy is that of the latest step under its own
    policy.

    Args:
        metrics: TRL's metrics by mode (`train` or `eval`) and name. TRL logs the mean of each list.
        objective: objective of the run.
        ranks: processes that share a step.
        tokenizer: decodes tokens for their categories and for samples.
        vocabulary: number of token ids.
        group_size: responses to a problem in training.
        num_samples: responses per log whose tokens go to the recorder.
        recorder: receives the samples of the latest step.
    """

    def __init__(
        self,
        metrics: Mapping[str, dict[str, list[float]]],
        objective: Objective,
        ranks: Ranks,
        tokenizer: Any,
        vocabulary: int,
        group_size: int,
        num_samples: int,
        recorder: RunRecorder,
    ):
        self.metrics, self.objective, self.ranks = metrics, objective, ranks
        self.tokenizer, self.group_size, self.num_samples, self.recorder = tokenizer, group_size, num_samples, recorder
        self.categories = TokenCategories(tokenizer.decode, vocabulary)
        self.accuracy = self.entropy = math.nan
        self.begin()

    def begin(self) -> None:
        """Begin a rollout."""
        self.drawn: list[Drawn] = []

    def log(self, values: dict[str, float], mode: str = "train") -> None:
        """Add values to the next log."""
        for name, value in values.items():
            self.metrics[mode][name].append(value)

    def rewards(self, rewards: Tensor, prompts: list, completions: list, lengths: list[int], mode: str) -> None:
        """Log the accuracy of an evaluation, or note responses in training, which `answers` logs.

        Args:
            rewards: (responses of all ranks, F), group by group. The first column decides correctness.
            prompts, completions, lengths: this rank's responses, with lengths in tokens.
        """
        right = is_right(rewards[:, 0])
        if mode != "train":
            self.log({"accuracy": right.float().mean().item()}, mode)
            return
        drawn = Drawn(right)
        if self.objective.diagnostics:
            drawn.lengths = self.ranks.gather(torch.tensor(lengths, device=rewards.device), False)
            drawn.quality = self._quality(prompts, completions, rewards)
        self.drawn.append(drawn)

    def answers(self) -> None:
        """Log accuracy, lengths and quality of the responses that were drawn for a rollout, in however many rounds.

        Nothing is logged if none were drawn. `format_entropy` is the mean over rounds, weighted by their responses.
        """
        if not self.drawn:
            return
        right = torch.cat([drawn.right for drawn in self.drawn])
        self.accuracy = right.float().mean().item()
        metrics = {"accuracy": self.accuracy}
        if self.objective.diagnostics:
            metrics |= answer_metrics(right, torch.cat([drawn.lengths for drawn in self.drawn]), self.group_size)
            shares = [len(drawn.right) / len(right) for drawn in self.drawn]
            for name in self.drawn[0].quality:
                values = [drawn.quality[name] for drawn in self.drawn]
                metrics[name] = sum(x * value for x, value in zip(shares, values, strict=True))
        self.log(metrics)

    def _quality(self, prompts: list, completions: list, rewards: Tensor) -> dict[str, float]:
        """Return the figures of `metrics.quality` as means over ranks."""
        figures = quality([text_of(c) for c in completions], [text_of(p) for p in prompts])
        values = torch.tensor(list(figures.values()), device=rewards.device, dtype=torch.float32)
        means = (self.ranks.sum(values) / self.ranks.count).tolist()
        return {f"quality/{name}": value for name, value in zip(figures, means, strict=True)}

    def gradients(self, passes: Sequence[Pass], batches: Sequence[Inputs], mode: str = "train") -> None:
        """Log the norms of token gradients and their correlation with entropies, if the passes have both."""
        if not self.objective.diagnostics or any(p.residual_norms is None for p in passes):
            return
        norms = flatten([token_gradient_norms(p, b, self.objective) for p, b in zip(passes, batches, strict=True)])
        trained = flatten([loss_mask(b) for b in batches]).bool() & (norms > 0)
        entropies = flatten([p.entropies for p in passes])
        self.log(gradient_metrics(norms[trained], entropies[trained], self.ranks.sum), mode)

    def rollout(self, batches: Sequence[Inputs], entropies: Sequence[Tensor], prefix: str = "") -> None:
        """Log the entropies of a rollout's tokens over all ranks; see `rollout_metrics` for the arguments.

        Args:
            prefix: begin of the logged names, not empty if the tokens or the policy are not those of the rollout.
        """
        metrics = rollout_metrics(batches, entropies, self.ranks.sum)
        if self.objective.diagnostics:
            metrics |= rollout_diagnostics(batches, entropies, self.categories, self.ranks.sum)
        self.entropy = metrics["entropy/mean"]
        self.log({prefix + name: value for name, value in metrics.items()})

    def sampler_gap(self, passes: Sequence[Pass], batches: Sequence[Inputs]) -> None:
        """Log the mean difference between the log-probabilities of the policy and of its sampler, over all ranks.

        Args:
            passes: passes of the policy that wrote the tokens.
            batches: their micro-batches, with the sampler's log-probabilities as the old ones.
        """
        mask = flatten([loss_mask(b) for b in batches])
        logps, old = flatten([p.logps for p in passes]), flatten([b["old_per_token_logps"] for b in batches])
        gaps = (logps - old).abs() * mask
        total, count = self.ranks.sum(torch.stack([gaps.sum().double(), mask.sum().double()])).tolist()
        self.log({"sampling/sampling_logp_difference/mean": share(total, count)})

    def step(self, window: Window, sequences: int) -> float:
        """Log a finished optimiser step over all ranks, and check the number of kept tokens.

        Args:
            sequences: sequences of the step on one rank, before sequences are dropped.

        Returns:
            The number of kept tokens.
        """
        scored, everything, objective = window.scored, window.all_tokens(), self.objective
        metrics = window_metrics(scored, everything, objective.ratio_limits, objective.token_ratio, self.ranks.sum)
        kept, total = metrics.pop("kept"), metrics.pop("all")
        if not objective.measures_rollout:  # the passes of the step alone have entropies
            prefix = OF_STEPS if objective.spans_steps else ""
            self.rollout([s.inputs for s in everything], [s.entropies for s in everything], prefix)
        if (
            objective.ranked_in in ("window", "loss") and not objective.matches_norms
        ):  # the trainer checks the kept tokens of a ranked rollout
            check_kept(kept, total, window.kept, objective, len(window.thresholds))
        if objective.diagnostics:
            metrics |= step_metrics(scored, everything, self.categories, self.ranks.sum)
        if objective.carries:
            metrics["selection/requested_fraction"] = share(window.kept, total)
        if window.thresholds:
            metrics["selection/threshold"] = sum(window.thresholds) / len(window.thresholds)
        metrics["batching/run_fraction"] = sum(s.mask.size(0) for s in scored) / sequences
        metrics["batching/micro_batches"] = float(len(scored))
        self.log(metrics)
        shown = everything[len(everything) // 2]
        self.recorder.samples = partial(token_samples, shown, self.num_samples, self.tokenizer)
        return kept
