"""Logs of rollouts and optimiser steps: entropies, kept tokens, clip rates, and quality of responses."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..metrics.correctness import is_right
from ..metrics.logged import ENTROPY_PERCENTILES
from ..metrics.quality import quality
from ..objective.objective import Objective
from ..objective.ranks import Ranks
from ..objective.selection import Reduce, percentiles
from ..objective.window import (
    Inputs,
    Pass,
    Scored,
    Window,
    check_kept,
    flatten,
    loss_mask,
    probability_ratio,
    row_advantages,
    token_gradient_norms,
)
from ..rewards.registry import text_of
from .callbacks import RunRecorder
from .diagnostics import TokenCategories, answer_metrics, gradient_metrics, share, step_metrics


def window_metrics(
    scored: Sequence[Scored], everything: Sequence[Scored], epsilon_low: float, epsilon_high: float, reduce: Reduce
) -> dict[str, float]:
    """Compute the metrics of a finished window over all ranks.

    Args:
        scored: micro-batches of the training pass, from which clip rates are computed.
        everything: all sequences with known entropies, including sequences that batching left out.
        epsilon_low, epsilon_high: clip range of the surrogate.
        reduce: function that sums a tensor over ranks.

    Returns:
        Mean entropies (nats) of kept and dropped tokens and by the sign of the advantage, percentiles of the entropy,
        the kept fraction, and clip rates of kept tokens. `kept` and `all` are numbers of tokens, and `mean_entropy`
        is the mean over all tokens. A mean over no tokens is NaN.
    """
    mask, kept = flatten([s.mask for s in everything]), flatten([s.kept for s in everything])
    entropies = flatten([s.entropies for s in everything])
    advantages = flatten([row_advantages(s.inputs).expand_as(s.mask) for s in everything])
    groups = {
        "all": mask,
        "kept": kept,
        "dropped": mask & ~kept,
        "positive": mask & (advantages > 0),
        "negative": mask & (advantages < 0),
    }
    run = flatten([s.kept for s in scored])
    run_advantages = flatten([row_advantages(s.inputs).expand_as(s.mask) for s in scored])
    ratios = flatten([probability_ratio(s.logps, s.inputs) for s in scored])
    clipped = {
        "low": run & (run_advantages < 0) & (ratios < 1 - epsilon_low),
        "high": run & (run_advantages > 0) & (ratios > 1 + epsilon_high),
    }
    counts = [group.sum() for group in (*groups.values(), *clipped.values())]
    sums = [(entropies * group).sum() for group in groups.values()]
    totals = reduce(torch.stack([x.double() for x in (*counts, *sums)])).tolist()
    count = dict(zip((*groups, *clipped), totals, strict=False))
    total_entropy = dict(zip(groups, totals[len(count) :], strict=True))

    metrics = {f"entropy/{name}": share(total_entropy[name], count[name]) for name in groups if name != "all"}
    levels = percentiles(entropies, mask, tuple(ENTROPY_PERCENTILES), reduce)
    metrics |= {f"entropy/{name}": value for name, value in zip(ENTROPY_PERCENTILES.values(), levels, strict=True)}
    metrics["selection/kept_fraction"] = share(count["kept"], count["all"])
    metrics |= {f"clip_ratio/kept_{side}": share(count[side], count["kept"]) for side in clipped}
    mean_entropy = share(total_entropy["all"], count["all"])
    return metrics | {"kept": count["kept"], "all": count["all"], "mean_entropy": mean_entropy}


def token_samples(scored: Scored, number: int, tokenizer: Any) -> list[dict[str, Any]]:
    """Return the first `number` responses of a micro-batch with text, id, entropy (nats) and kept mark of each "
    "token."""
    samples = []
    for i in range(min(number, scored.mask.size(0))):
        mask = scored.mask[i]
        ids = scored.inputs["completion_ids"][i][mask].tolist()
        advantages = row_advantages(scored.inputs)[i].expand_as(mask)[mask]
        prompt = scored.inputs["prompt_ids"][i][scored.inputs["prompt_mask"][i].bool()]
        samples.append(
            {
                "prompt": tokenizer.decode(prompt),
                "tokens": [tokenizer.decode([token]) for token in ids],
                "token_ids": ids,
                "entropies": [round(h, 4) for h in scored.entropies[i][mask].tolist()],
                "kept": scored.kept[i][mask].int().tolist(),
                "advantage": round(advantages.mean().item(), 4) if ids else 0.0,
            }
        )
    return samples


class StepMonitor:
    """Logs rollouts and optimiser steps among TRL's own metrics, and holds the accuracy of the latest rollout.

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
        metrics: dict[str, dict[str, list[float]]],
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
        self.accuracy = math.nan

    def log(self, values: dict[str, float], mode: str = "train") -> None:
        """Add values to the next log."""
        for name, value in values.items():
            self.metrics[mode][name].append(value)

    def rewards(self, rewards: Tensor, prompts: list, completions: list, lengths: list[int], mode: str) -> None:
        """Log the accuracy and, in training, the lengths and the quality of responses.

        Args:
            rewards: (responses of all ranks, F), group by group. The first column decides correctness.
            prompts, completions, lengths: this rank's responses, with lengths in tokens.
        """
        right = is_right(rewards[:, 0])
        accuracy = right.float().mean().item()
        self.log({"accuracy": accuracy}, mode)
        if mode != "train":
            return
        self.accuracy = accuracy
        if self.objective.diagnostics:
            everywhere = self.ranks.gather(torch.tensor(lengths, device=rewards.device), False)
            self.log(answer_metrics(right, everywhere, self.group_size) | self._quality(prompts, completions, rewards))

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

    def step(self, window: Window, size: int) -> float:
        """Log a finished optimiser step over all ranks, and check the number of kept tokens.

        Args:
            size: sequences of a micro-batch on one rank, before sequences are dropped.

        Returns:
            Mean entropy of the step's tokens in nats, NaN without tokens.
        """
        scored, everything, objective = window.scored, window.all_tokens(), self.objective
        metrics = window_metrics(scored, everything, objective.epsilon_low, objective.epsilon_high, self.ranks.sum)
        kept, total, mean_entropy = metrics.pop("kept"), metrics.pop("all"), metrics.pop("mean_entropy")
        if objective.ranked_in in ("window", "loss"):  # the trainer checks the kept tokens of a ranked rollout
            check_kept(kept, total, window.kept, objective, len(window.thresholds))
        if objective.diagnostics:
            metrics |= step_metrics(scored, everything, self.categories, self.ranks.sum)
        if window.thresholds:
            metrics["selection/threshold"] = sum(window.thresholds) / len(window.thresholds)
        metrics["batching/run_fraction"] = sum(s.mask.size(0) for s in scored) / (size * len(scored))
        self.log(metrics)
        shown = everything[len(everything) // 2]
        self.recorder.samples = partial(token_samples, shown, self.num_samples, self.tokenizer)
        return mean_entropy
