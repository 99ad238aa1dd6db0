"""`EntropyForkGRPOTrainer`: TRL's `GRPOTrainer` with the kept-token objective of arXiv 2506.01939 (Eq. 6).

TRL computes the loss; this class only decides which tokens are in it and what it is divided by, at these seams:

- `_prepare_inputs`: before the first forward pass of an optimiser step (a *window* of `gradient_accumulation_steps`
  micro-batches on every rank), count its tokens and so fix how many of them will be kept;
- `get_high_entropy_mask`: return a weight instead of a 0/1 mask, since TRL multiplies the per-token loss by it:
  indicator * (TRL's denominator / the window's kept tokens), so that what is left is the mean over kept tokens;
- `_get_per_token_logps_and_entropies`, `_compute_loss`, `_calculate_rewards`: watch what goes by, for the records.

What the kept set depends on: with `micro_batch` scope, on which sequences share a forward pass (on all ranks
together); with `global` scope only on the sequences of the optimiser step, however they are split; with `rollout`
scope on the whole rollout and the policy that wrote it, so that it is the same for every pass over that rollout.

Shapes: B sequences of the local micro-batch, T completion tokens including padding.
"""

import inspect
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from trl import GRPOTrainer

from .callbacks import RunRecorder
from .card import write_card
from .config import EntropyForkGRPOConfig
from .selection import kept_count, percentiles, select

PERCENTILES = (5, 25, 50, 75, 90, 95, 99)

# The parts of a micro-batch that scoring takes by name (images and the like).
SCORING_ARGUMENTS = frozenset(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)

Inputs = dict[str, Any]


def loss_mask(inputs: Inputs) -> Tensor:
    """(B, T): the completion tokens that the policy wrote itself."""
    mask = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def flatten(tensors: list[Tensor]) -> Tensor:
    """All elements of the tensors in one dimension."""
    return torch.cat([t.flatten() for t in tensors])


@dataclass
class Window:
    """The kept tokens of one optimiser step.

    `kept` counts over all micro-batches and ranks. `masks` holds the local kept masks, one per micro-batch, where they
    are known before the window's first forward pass.
    """

    kept: int
    masks: list[Tensor] | None = None


@dataclass
class Scored:
    """What one micro-batch's loss saw, detached; tensors are (B, T)."""

    inputs: Inputs
    mask: Tensor
    kept: Tensor
    entropies: Tensor
    logps: Tensor

    @property
    def old_logps(self) -> Tensor:
        """TRL leaves them out where the policy has not changed since the rollout."""
        old = self.inputs.get("old_per_token_logps")
        return self.logps if old is None else old

    @property
    def advantages(self) -> Tensor:
        """(B, 1) or (B, T)."""
        advantages = self.inputs["advantages"]
        return advantages.unsqueeze(1) if advantages.dim() == 1 else advantages


class EntropyForkGRPOTrainer(GRPOTrainer):
    """GRPO/DAPO on the top rho share of tokens by entropy.

    Takes `GRPOTrainer`'s arguments; `args.output_dir` becomes a run folder (see `records`).
    """

    _tag_names = ("trl", "grpo", "rlvr", "entropy-grpo")
    _name = "EntropyForkGRPO"

    args: EntropyForkGRPOConfig

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._window: Window | None = None
        self._scored: list[Scored] = []  # the current window's micro-batches
        self._thresholds: list[float] = []  # the current window's
        self._weight: Tensor | None = None  # what the running loss was weighted by
        self._last_pass: tuple[Tensor, Tensor] | None = None  # log-probabilities and entropies
        self._rollout_pass: list[Tensor] | None = None  # entropies of the passes over the rollout being scored
        self._selection_checked = False
        self._answers: list[dict[str, Any]] | None = None  # the running evaluation's
        self._recorder = RunRecorder()
        self.add_callback(self._recorder)

    # Selection

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _places(self, inputs: Inputs) -> Tensor:
        """(B, T) int64: each token's place in the rollout, whatever the batching, the ranks and the padding."""
        sequences = inputs["sequence_index"].unsqueeze(1)
        positions = torch.arange(inputs["completion_ids"].size(1), device=sequences.device)
        return positions * inputs["sequence_count"] + sequences

    def _select(self, entropies: list[Tensor], batches: list[Inputs]) -> list[Tensor]:
        """One kept mask per micro-batch, under one threshold for all of them on all ranks."""
        kept, threshold = select(
            flatten(entropies),
            flatten([loss_mask(b) for b in batches]),
            self.top_entropy_quantile,
            flatten([self._places(b) for b in batches]),
            kind=self.args.entropy_selection,
            seed=self.args.seed + self.state.global_step,
            reduce=self._sum_over_ranks,
        )
        self._thresholds.append(threshold)
        return [k.view_as(e) for k, e in zip(kept.split([e.numel() for e in entropies]), entropies, strict=True)]

    def _kept_count(self, n: int) -> int:
        return kept_count(n, self.top_entropy_quantile, self.args.entropy_selection)

    def _open_window(self, batches: list[Inputs]) -> Window:
        """Fix how many tokens the window keeps over all ranks, and which, where that takes a pass of its own."""
        if self.args.entropy_scope == "rollout" and self.model.training:
            masks = [b["kept_mask"] for b in batches]
            return Window(int(self._sum_over_ranks(torch.stack([m.sum() for m in masks]).sum())), masks)
        self._thresholds = []
        counts = self._sum_over_ranks(torch.stack([loss_mask(b).sum() for b in batches])).tolist()
        if self.args.entropy_scope == "micro_batch":
            return Window(sum(self._kept_count(n) for n in counts))
        masks = self._select([self._entropies(b) for b in batches], batches) if len(batches) > 1 else None
        return Window(self._kept_count(sum(counts)), masks)

    @torch.no_grad()
    def _entropies(self, inputs: Inputs) -> Tensor:
        """(B, T) entropies under the current policy, without a graph."""
        _, entropies, _ = self._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            batch_size=self.args.per_device_train_batch_size,
            compute_entropy=True,
            **{name: value for name, value in inputs.items() if name in SCORING_ARGUMENTS},
        )
        return entropies

    # TRL's seams

    def _generate_and_score_completions(self, inputs: list[Inputs]) -> Inputs:
        scored = self.args.entropy_scope == "rollout" and self.top_entropy_quantile < 1 and self.model.training
        self._rollout_pass = [] if scored else None
        try:
            output = super()._generate_and_score_completions(inputs)
            passes = self._rollout_pass
        finally:
            self._rollout_pass = None
        device, local = self.accelerator.device, output["completion_ids"].size(0)
        output["sequence_index"] = self.accelerator.process_index * local + torch.arange(local, device=device)
        output["sequence_count"] = torch.tensor(self.accelerator.num_processes * local, device=device)
        if scored:
            # TRL scores old log-probabilities first, if at all, and then perhaps those of a reference model.
            entropies = passes[0] if "old_per_token_logps" in output else self._entropies(output)
            self._thresholds = []
            (output["kept_mask"],) = self._select([entropies], [output])
            counts = torch.stack([output["kept_mask"].sum(), loss_mask(output).sum()])
            kept, total = self._sum_over_ranks(counts).tolist()
            self._check_selection(kept, total, self._kept_count(total))
        return output

    def _prepare_inputs(self, generation_batch: Inputs) -> Inputs:
        inputs = super()._prepare_inputs(generation_batch)
        accumulation = self.args.gradient_accumulation_steps
        if self.top_entropy_quantile == 1:
            return inputs
        if not self.model.training:
            self._window = self._open_window([inputs])
        elif self._step % accumulation == 0:
            first = self._step % self.args.steps_per_generation
            self._window = self._open_window(self._buffered_inputs[first : first + accumulation])
        return inputs

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any):
        watched = self._rollout_pass is not None and model is self.model  # a reference model has no entropy head
        if watched:
            kwargs["compute_entropy"] = True
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if watched:
            self._rollout_pass.append(entropies)
        if entropies is not None:
            self._last_pass = logps.detach(), entropies.detach()
        return logps, entropies, aux_loss

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        """(B, T) float32 weight of every token's loss; 0 for tokens that are not kept.

        `threshold` is TRL's quantile level, 1 - rho, which the count replaces.
        """
        window, inputs = self._window, self._running
        if window.masks is None:
            (kept,) = self._select([entropies.detach()], [inputs])
        else:
            kept = window.masks[self._step % self.args.gradient_accumulation_steps]
        self._weight = kept.float()
        if self.args.entropy_denominator == "kept":
            # TRL is about to divide by the rollout's tokens, scaled to one window in training.
            tokens = inputs["num_items_in_batch"].clamp(min=1.0)
            if self.model.training:
                tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
            self._weight *= tokens / max(window.kept, 1)
        return self._weight

    def _compute_loss(self, model: Any, inputs: Inputs) -> Tensor:
        self._running, self._weight = inputs, None
        loss = super()._compute_loss(model, inputs)
        logps, entropies = self._last_pass
        mask = loss_mask(inputs).bool()
        kept = mask if self._weight is None else self._weight > 0
        if self.model.training:
            self._scored.append(Scored(inputs, mask, kept, entropies, logps))
            if self.accelerator.sync_gradients:
                self._close_window()
        return loss

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._answers is not None:
            lengths = gather_object([len(ids) for ids in completion_ids_list])
            everything = zip(gather_object(inputs), gather_object(completions), lengths, rewards.tolist(), strict=True)
            for row, completion, length, values in everything:
                scores = dict(zip(self.reward_func_names, values, strict=True))
                self._answers.append({**row, "completion": completion, "length": length, "rewards": scores})
        return rewards

    def create_model_card(self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None):
        """Write `README.md` from the files of the run folder."""
        if self.is_world_process_zero():
            write_card(self.args.output_dir, model_name=model_name)

    # Evaluation

    def answer(self, problems: Dataset, metric_key_prefix: str = "eval") -> list[dict[str, Any]]:
        """Answer every problem `num_generations_eval` times with the current policy, through TRL's evaluation loop.

        Returns:
            On every rank, a row per answer: the problem's columns, `completion`, its `length` in tokens, and `rewards`
            by name. The copies that fill up an uneven last batch are left out.
        """
        self._answers, self._recorder.paused = [], True
        try:
            self.evaluate(problems, metric_key_prefix=metric_key_prefix)
            rows = self._answers
        finally:
            self._answers, self._recorder.paused = None, False
        seen: dict[str, int] = {}
        first = []
        for row in rows:
            key = str(row["prompt"])
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= self.num_generations_eval:
                first.append(row)
        return first

    # Records

    def _close_window(self) -> None:
        """Log the finished window over all ranks, and check it once."""
        scored, self._scored = self._scored, []
        metrics = self._metrics["train"]
        mask, kept = flatten([s.mask for s in scored]), flatten([s.kept for s in scored])
        entropies = flatten([s.entropies for s in scored])
        positive = flatten([(s.advantages > 0).expand_as(s.mask) for s in scored])
        negative = flatten([(s.advantages < 0).expand_as(s.mask) for s in scored])
        ratio = torch.exp(flatten([s.logps - s.old_logps for s in scored]))
        groups = {
            "all": mask,
            "kept": kept,
            "dropped": mask & ~kept,
            "positive": mask & positive,
            "negative": mask & negative,
            "clipped_low": kept & negative & (ratio < 1 - self.epsilon_low),
            "clipped_high": kept & positive & (ratio > 1 + self.epsilon_high),
        }
        totals = self._sum_over_ranks(
            torch.stack([torch.stack([group.sum(), (entropies * group).sum()]).double() for group in groups.values()])
        ).tolist()
        count = {name: n for name, (n, _) in zip(groups, totals, strict=True)}
        if self._window is not None and self.args.entropy_scope != "rollout":  # that one is checked as it is selected
            self._check_selection(count["kept"], count["all"], self._window.kept)
        for name, (n, entropy) in zip(groups, totals, strict=True):
            if name in ("kept", "dropped", "positive", "negative"):
                metrics[f"entropy/{name}"].append(entropy / n if n else math.nan)
        levels = percentiles(entropies, mask, PERCENTILES, self._sum_over_ranks)
        for level, value in zip(PERCENTILES, levels, strict=True):
            metrics[f"entropy/p{level}"].append(value)
        metrics["selection/kept_fraction"].append(count["kept"] / count["all"] if count["all"] else math.nan)
        if self._thresholds:
            metrics["selection/threshold"].append(sum(self._thresholds) / len(self._thresholds))
        for side in ("low", "high"):
            clipped = count[f"clipped_{side}"]
            metrics[f"clip_ratio/kept_{side}"].append(clipped / count["kept"] if count["kept"] else math.nan)
        self._recorder.samples = partial(self._token_samples, scored[-1])

    def _check_selection(self, kept: float, total: float, expected: int) -> None:
        """Fail at the first selection whose kept tokens are not the share that was asked for."""
        if self._selection_checked or total == 0:
            return
        share = 1 - self.top_entropy_quantile if self.args.entropy_selection == "bottom" else self.top_entropy_quantile
        # Each selection rounds by less than one token.
        if kept != expected or abs(kept - share * total) >= max(len(self._thresholds), 1):
            raise RuntimeError(
                f"The first optimiser step kept {kept:.0f} of {total:.0f} tokens where {share:g} of them, "
                f"{expected}, should be kept: the loss would not be the one that was asked for."
            )
        self._selection_checked = True

    def _token_samples(self, scored: Scored) -> list[dict[str, Any]]:
        """The first responses of a micro-batch of this rank, token by token."""
        samples = []
        for i in range(min(self.args.num_logged_samples, scored.mask.size(0))):
            mask = scored.mask[i]
            ids = scored.inputs["completion_ids"][i][mask].tolist()
            prompt = scored.inputs["prompt_ids"][i][scored.inputs["prompt_mask"][i].bool()]
            samples.append(
                {
                    "prompt": self._tokenizer.decode(prompt),
                    "tokens": [self._tokenizer.decode([token]) for token in ids],
                    "token_ids": ids,
                    "entropies": [round(h, 4) for h in scored.entropies[i][mask].tolist()],
                    "kept": scored.kept[i][mask].int().tolist(),
                    "advantage": round(scored.advantages[i].mean().item(), 4),
                }
            )
        return samples
