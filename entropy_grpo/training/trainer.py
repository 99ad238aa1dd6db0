"""`EntropyForkGRPOTrainer`: TRL's `GRPOTrainer` with the kept-token objective of arXiv 2506.01939 (Eq. 6).

TRL computes the loss; this class only decides which tokens are in it and what it is divided by, at these seams:

- `_prepare_inputs`: before the first forward pass of an optimiser step (a *window* of `gradient_accumulation_steps`
  micro-batches on every rank), shape its advantages, fix how many of its tokens are kept, and group its sequences by
  length;
- `get_high_entropy_mask`: return a weight instead of a 0/1 mask, since TRL multiplies the per-token loss by it:
  indicator * (TRL's denominator / the window's kept tokens), so that what is left is the mean over kept tokens;
- `_generate_and_score_completions`: rank the tokens of a rollout, and weigh its responses by their perplexity;
- `_get_per_token_logps_and_entropies`: run each pass without shared padding, and ask the LM head for no more than the
  pass is for;
- `_compute_loss`, `_calculate_rewards`: watch what goes by, for the records.

What the kept set depends on: with `micro_batch` scope, on which sequences share a forward pass (on all ranks
together); with `global` scope only on the sequences of the optimiser step, however they are split; with `rollout`
scope on the whole rollout and the policy that wrote it, so that it is the same for every pass over that rollout.

Shapes: B sequences of the local micro-batch, T completion tokens including padding.
"""

import inspect
from functools import partial
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOTrainer

from ..cards.card import write_card
from ..config.grpo import TOKEN_LEVEL_LOSSES
from ..models.adapters import sync_exactly
from ..models.head import add_sparse_lm_head, why_not
from ..monitoring.callbacks import RunRecorder, Watch
from ..monitoring.diagnostics import TokenCategories, gradient_metrics, step_metrics
from ..objective.batching import by_length, cut, deal, merge, positions_are_relative, take, trimmed_passes
from ..objective.selection import gradient_norms, select
from ..objective.share import kept_count, kept_share
from ..objective.window import (
    Inputs,
    Scored,
    Window,
    flatten,
    loss_mask,
    probability_ratio,
    row_advantages,
    token_samples,
    window_metrics,
)
from ..runs.state import State
from ..runs.weights import ADAPTER, WHOLE
from .fsdp2 import Float32Results, answering, reshard_before_sync
from .scoring import Pass, run_passes
from .shaped import ShapedGRPOTrainer

# The parts of a micro-batch that scoring takes by name (images and the like).
SCORING_ARGUMENTS = frozenset(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)


class EntropyForkGRPOTrainer(ShapedGRPOTrainer):
    """GRPO/DAPO on the top rho share of tokens by entropy.

    Takes `GRPOTrainer`'s arguments; `args.output_dir` becomes a run folder (see `records`).
    """

    _tag_names = ("trl", "grpo", "rlvr", "entropy-grpo")
    _name = "EntropyForkGRPO"

    def __init__(self, *args: Any, callbacks: list[TrainerCallback] | None = None, **kwargs: Any):
        super().__init__(*args, callbacks=[Float32Results(), *(callbacks or [])], **kwargs)
        if self.use_vllm and is_peft_model(self.model):
            sync_exactly(self.model, self.vllm_generation)
        if self.use_vllm:
            reshard_before_sync(self.vllm_generation)
        self._sparse_head = self._add_head()
        self._trims = self.args.batch_by_length and self._padding_is_inert()
        self._window: Window | None = None
        self._scored: list[Scored] = []  # the current window's micro-batches
        self._thresholds: list[float] = []  # the current window's
        self._running: Inputs | None = None  # the micro-batch whose loss is being computed
        self._weight: Tensor | None = None  # what that loss was weighted by
        self._last_pass: Pass | None = None
        self._rollout_passes: list[Pass] | None = None  # over the rollout that is being scored
        self._selection_checked = False
        size = max(self.model.config.get_text_config().vocab_size, len(self._tokenizer))
        self._categories = TokenCategories(self._tokenizer.decode, size)
        self._answers: list[dict[str, Any]] | None = None  # the running evaluation's
        self._recorder = RunRecorder()
        self.add_callback(self._recorder)
        self.add_callback(Watch(self.args.watch, self._kept_share))

    def _add_head(self) -> bool:
        """Put the sparse LM head before TRL's where it can serve the model; whether it does."""
        name = self.args.fused_lm_head
        if name == "trl":
            return False
        model = self.model.get_base_model() if is_peft_model(self.model) else self.model
        reason = why_not(model)
        if self._entropy_bonus_enabled:
            reason = "the loss has an entropy bonus"
        elif self.aux_loss_enabled:
            reason = "the loss has a load-balancing term (router_aux_loss_coef)"
        if reason is None:
            add_sparse_lm_head(model, self.temperature, name)
            return True
        if name == "liger":
            raise ValueError(f"fused_lm_head is 'liger', but {reason}: choose auto or trl.")
        if self.args.entropy_selection == "gradient_norm":
            raise ValueError(f"entropy_selection is 'gradient_norm', but {reason}: choose another selection.")
        get_logger(__name__).warning(f"LM head: TRL's, for all rows, because {reason}.")
        return False

    def _padding_is_inert(self) -> bool:
        """Whether a sequence is scored alike however wide its micro-batch is."""
        rope = getattr(self.model.config.get_text_config(), "rope_parameters", None)
        if rope is not None and positions_are_relative(rope):
            return True
        get_logger(__name__).warning(
            "batch_by_length: padding is not trimmed, because this model's positions depend on the width of its batch."
        )
        return False

    @property
    def _loss_is_per_token(self) -> bool:
        """Whether a token's loss depends on no other token's log-probability."""
        return (
            self.importance_sampling_level == "token"
            and self.loss_type != "vespo"
            and self.off_policy_mask_threshold is None
        )

    @property
    def _loss_has_means(self) -> bool:
        """Whether a term of the loss is a mean over a micro-batch, beside the surrogate."""
        return self._entropy_bonus_enabled or self.aux_loss_enabled

    @property
    def _loss_is_surrogate(self) -> bool:
        """Whether tokens without advantage, or without weight, have no part in the loss."""
        return self.beta == 0 and not self._loss_has_means

    # Selection

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _places(self, inputs: Inputs) -> Tensor:
        """(B, T) int64: each token's place in the rollout, whatever the batching, the ranks and the padding."""
        sequences = inputs["sequence_index"].unsqueeze(1)
        positions = torch.arange(inputs["completion_ids"].size(1), device=sequences.device)
        return positions * inputs["sequence_count"] + sequences

    def _gradient_norms(self, scored: Pass, inputs: Inputs) -> Tensor:
        """(B, T) G_t of the tokens of a micro-batch."""
        norms = gradient_norms(
            scored.residual_norms,
            row_advantages(inputs),
            probability_ratio(scored.logps, inputs),
            self.epsilon_low,
            self.epsilon_high,
            self.args.delta,
        )
        return norms * inputs.get("importance_sampling_ratio", 1.0)

    def _log_gradients(self, passes: list[Pass], batches: list[Inputs]) -> None:
        """Log what is known of the gradients of the tokens that have one, and how it goes with their entropies."""
        norms = flatten([self._gradient_norms(p, b) for p, b in zip(passes, batches, strict=True)])
        trained = flatten([loss_mask(b) for b in batches]).bool() & (norms > 0)
        entropies = flatten([p.entropies for p in passes])
        mode = "train" if self.model.training else "eval"
        for name, value in gradient_metrics(norms[trained], entropies[trained], self._sum_over_ranks).items():
            self._metrics[mode][name].append(value)

    def _select(self, passes: list[Pass], batches: list[Inputs]) -> list[Tensor]:
        """One kept mask per micro-batch, under one threshold for all of them on all ranks."""
        by_norm = self.args.entropy_selection == "gradient_norm"
        scores = [self._gradient_norms(p, b) if by_norm else p.entropies for p, b in zip(passes, batches, strict=True)]
        kept, threshold = select(
            flatten(scores),
            flatten([loss_mask(b) for b in batches]),
            self.top_entropy_quantile,
            flatten([self._places(b) for b in batches]),
            kind=self.args.entropy_selection,
            seed=self.args.seed + self.state.global_step,
            reduce=self._sum_over_ranks,
        )
        self._thresholds.append(threshold)
        if self.args.log_diagnostics and all(p.residual_norms is not None for p in passes):
            self._log_gradients(passes, batches)
        return [k.view_as(s) for k, s in zip(kept.split([s.numel() for s in scores]), scores, strict=True)]

    def _kept_count(self, n: int) -> int:
        return kept_count(n, self.top_entropy_quantile, self.args.entropy_selection)

    def _with_gradient(self, inputs: Inputs) -> Tensor:
        """(B, T) bool: the tokens whose loss is not constant, clipping aside."""
        tokens = loss_mask(inputs).bool() & (row_advantages(inputs) != 0)
        return tokens & inputs["kept_mask"] if "kept_mask" in inputs else tokens

    # Batching

    def _max_over_ranks(self, number: int) -> int:
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())

    def _can_regroup(self, batches: list[Inputs]) -> bool:
        images = any(isinstance(value, list) for value in batches[0].values())
        # A mean over the tokens of a micro-batch depends on which sequences it has.
        means = self.loss_type == "bnpo" or self._loss_has_means
        return self.args.batch_by_length and not images and not means

    def _of_all_ranks(self, sequences: Inputs) -> Inputs:
        """The same with the sequences of the other ranks, first those of the first."""
        if self.accelerator.num_processes == 1:
            return sequences
        everything = {}
        for key, value in sequences.items():
            if isinstance(value, Tensor) and value.dim():
                left, kind = key.startswith("prompt_"), value.dtype
                value = value.byte() if kind == torch.bool else value  # padding would make them integers on one rank
                value = self.accelerator.pad_across_processes(value, dim=1, pad_first=left)
                value = self.accelerator.gather(value).to(kind)
            everything[key] = value
        return everything

    def _regroup(self, batches: list[Inputs], drop: bool = False) -> list[Inputs]:
        """As many micro-batches of the window by length; with `drop`, of the sequences that have a gradient.

        Sequences are dealt out anew over all ranks: in every micro-batch the ranks wait for each other.
        """
        if not self._can_regroup(batches):
            return batches
        number, ranks = self.args.gradient_accumulation_steps, self.accelerator.num_processes
        sequences = self._of_all_ranks(merge(batches))
        lengths = sequences["prompt_mask"].sum(1) + sequences["completion_mask"].sum(1)
        live, count = None, None
        by_token = self.loss_type in TOKEN_LEVEL_LOSSES
        if drop and by_token and self._loss_is_surrogate:
            live = self._with_gradient(sequences).any(dim=1)
            # Every rank runs as many, and every micro-batch has one: TRL and FSDP meet in each of them.
            count = max(-(-int(live.sum()) // ranks), number) * ranks
        order = by_length(lengths, live, count)
        size = self.args.per_device_train_batch_size
        sizes = [size] * number  # a loss that is a mean over sequences takes it within micro-batches
        if by_token:
            sizes = cut(lengths[order][::ranks], number, size * int(lengths.max()))
        return [take(sequences, hands[self.accelerator.process_index]) for hands in deal(order, sizes, ranks)]

    def _open_window(self, batches: list[Inputs]) -> Window:
        """Fix how many tokens the window keeps over all ranks, and which, where they can be known beforehand."""
        if not self.model.training:
            return self._open_evaluation(batches[0])
        batches = [self._shaped(b) for b in batches]
        selects, scope = self.top_entropy_quantile < 1, self.args.entropy_scope
        if selects and scope == "rollout":
            kept = self._sum_over_ranks(torch.stack([b["kept_mask"].sum() for b in batches]).sum())
            return Window(int(kept), self._regroup(batches, drop=True), batches)
        self._thresholds = []
        if not selects:
            return Window(0, self._regroup(batches, drop=True))
        if scope == "micro_batch" or len(batches) == 1:
            batches = self._regroup(batches)
        counts = self._sum_over_ranks(torch.stack([loss_mask(b).sum() for b in batches])).tolist()
        if scope == "micro_batch":
            return Window(sum(self._kept_count(n) for n in counts), batches)
        if len(batches) == 1:
            return Window(self._kept_count(sum(counts)), batches)
        whole = [merge(batches)] if self._can_regroup(batches) else batches
        passes = [self._score(b) for b in whole]
        masks = self._select(passes, whole)
        whole = [
            b | {"kept_mask": mask, "entropies": p.entropies} for b, mask, p in zip(whole, masks, passes, strict=True)
        ]
        return Window(self._kept_count(sum(counts)), self._regroup(whole, drop=True), whole)

    def _open_evaluation(self, inputs: Inputs) -> Window:
        """A micro-batch of an evaluation is a window of its own, with the tokens of its own highest entropies."""
        self._thresholds = []
        return Window(self._kept_count(int(self._sum_over_ranks(loss_mask(inputs).sum()))), [inputs])

    def _score(self, inputs: Inputs) -> Pass:
        """A pass under the current policy, without a graph."""
        images = {name: value for name, value in inputs.items() if name in SCORING_ARGUMENTS}
        self._score_logps(inputs, compute_entropy=True, **images)
        return self._last_pass

    # TRL's seams

    def _generate_and_score_completions(self, inputs: list[Inputs]) -> Inputs:
        ranked = self.args.entropy_scope == "rollout" and self.top_entropy_quantile < 1 and self.model.training
        self._rollout_passes = [] if ranked else None
        try:
            output = super()._generate_and_score_completions(inputs)
            scored, weighs = None, self._needs_weights(output)
            if "old_per_token_logps" not in output and (ranked or weighs):
                scored = self._score(output)
            elif ranked:
                # TRL scores old log-probabilities first, if at all, and then perhaps those of a reference model.
                scored = self._rollout_passes[0]
        finally:
            self._rollout_passes = None
        device, local = self.accelerator.device, output["completion_ids"].size(0)
        output["sequence_index"] = self.accelerator.process_index * local + torch.arange(local, device=device)
        output["sequence_count"] = torch.tensor(self.accelerator.num_processes * local, device=device)
        if weighs:
            logps = output["old_per_token_logps"] if "old_per_token_logps" in output else scored.logps
            output["perplexity_weights"] = self._perplexity_weights(logps, output)
        if ranked:
            self._thresholds = []
            (output["kept_mask"],) = self._select([scored], [self._shaped(output)])
            output["entropies"] = scored.entropies
            counts = torch.stack([output["kept_mask"].sum(), loss_mask(output).sum()])
            kept, total = self._sum_over_ranks(counts).tolist()
            self._check_selection(kept, total, self._kept_count(total))
        return output

    def _prepare_inputs(self, generation_batch: Inputs) -> Inputs:
        inputs = super()._prepare_inputs(generation_batch)
        accumulation, per_rollout = self.args.gradient_accumulation_steps, self.args.steps_per_generation
        if not self.model.training:
            self._window = self._open_window([inputs])
            return inputs
        if per_rollout % accumulation != 0:  # a step reaches into the next rollout; only rho = 1 is allowed to
            self._window = Window(0, [self._shaped(inputs)])
            return self._window.batches[0]
        if self._step % accumulation == 0:
            first = self._step % per_rollout
            self._window = self._open_window(self._buffered_inputs[first : first + accumulation])
        return self._window.batches[self._step % accumulation]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        policy, running = model is not self.ref_model, self._running or {}
        if policy and self._rollout_passes is not None:
            compute_entropy = True
        known = "kept_mask" in running
        outputs: tuple[str, ...] | bool = True
        if policy and self._sparse_head:
            ranks = compute_entropy and not known
            # In the pass over a rollout they cost one more sum over the vocabulary: it has them for the log.
            logs = self.args.log_diagnostics and self._rollout_passes is not None
            by_norm = ranks and (self.args.entropy_selection == "gradient_norm" or logs)
            outputs = ("log_probs", *(["entropy"] if ranks else []), *(["residual_norm"] if by_norm else []))
        kept = None
        if known and self._sparse_head and self._loss_is_per_token and self._loss_is_surrogate:
            kept = self._with_gradient(running)
        if self._trims and all(value is None for value in images.values()):
            plan = trimmed_passes(attention_mask, logits_to_keep, batch_size, self._max_over_ranks)
            batch_size = None
        else:
            plan = [(torch.arange(input_ids.size(0), device=input_ids.device), 0, input_ids.size(1))]
        score = partial(
            super()._get_per_token_logps_and_entropies,
            batch_size=batch_size,
            compute_entropy=compute_entropy,
            compute_aux_loss=compute_aux_loss,
            **images,
        )
        scored = run_passes(score, model, outputs, plan, input_ids, attention_mask, logits_to_keep, kept)
        if known:
            scored.entropies = running["entropies"]
        if kept is not None:  # a ratio of 1 where nothing was projected
            old = running.get("old_per_token_logps", torch.zeros_like(scored.logps))
            scored.logps = torch.where(kept, scored.logps, old)
        if compute_entropy:
            self._last_pass = scored.detach()
            if policy and self._rollout_passes is not None:
                self._rollout_passes.append(self._last_pass)
        return self._as_generated(scored.logps), scored.entropies, scored.aux_loss

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        """(B, T) float32 weight of every token's loss; 0 for tokens that are not kept.

        `threshold` is TRL's quantile level, 1 - rho, which the count replaces.
        """
        inputs = self._running
        kept = inputs.get("kept_mask")
        if kept is None:
            (kept,) = self._select([self._last_pass], [inputs])
        self._weight = kept.float()
        if self.args.entropy_denominator == "kept":
            # TRL is about to divide by the rollout's tokens, scaled to one window in training.
            tokens = inputs["num_items_in_batch"].clamp(min=1.0)
            if self.model.training:
                tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
            self._weight *= tokens / max(self._window.kept, 1)
        return self._weight

    def _compute_loss(self, model: Any, inputs: Inputs) -> Tensor:
        self._running, self._weight = inputs, None
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._running = None
        if self.model.training:
            mask = loss_mask(inputs).bool()
            kept = mask if self._weight is None else self._weight > 0
            self._scored.append(Scored(inputs, mask, kept, self._last_pass.entropies, self._last_pass.logps))
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
        """Write `README.md` from the files of the run folder; with new pictures only where it is about to be pushed.

        TRL asks for it before it saves a checkpoint, and before it pushes one.
        """
        if self.is_world_process_zero():
            saves = ADAPTER if is_peft_model(self.model) else WHOLE
            pushes = self.hub_model_id is not None
            write_card(self.args.output_dir, model_name, self.hub_model_id, expected_weights=saves, draws=pushes)

    # Evaluation

    def answer(self, problems: Dataset, metric_key_prefix: str = "eval") -> list[dict[str, Any]]:
        """Answer every problem `num_generations_eval` times with the current policy, through TRL's evaluation loop.

        Returns:
            On every rank, a row per answer: the problem's columns, `completion`, its `length` in tokens, and `rewards`
            by name. The copies that fill up an uneven last batch are left out.
        """
        self._answers, self._recorder.paused = [], True
        try:
            with answering(self):
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

    def _rank_state(self) -> State:
        return super()._rank_state() | {"thresholds": self._thresholds}

    def _restore_rank_state(self, state: State) -> None:
        super()._restore_rank_state(state)
        self._thresholds = state["thresholds"]

    def _close_window(self) -> None:
        """Log the finished window over all ranks, and check it once."""
        scored, self._scored = self._scored, []
        window, metrics = self._window, self._metrics["train"]
        everything = scored
        if window.everything is not None:
            everything = [Scored(b, loss_mask(b).bool(), b["kept_mask"], b["entropies"]) for b in window.everything]
        found = window_metrics(scored, everything, self.epsilon_low, self.epsilon_high, self._sum_over_ranks)
        kept, total = found.pop("kept"), found.pop("all")
        found |= self._close_stage(found.pop("mean_entropy"))
        if self.args.log_diagnostics:
            found |= step_metrics(scored, everything, self._categories, self._sum_over_ranks)
        if self.top_entropy_quantile < 1 and self.args.entropy_scope != "rollout":  # that is checked when it is made
            self._check_selection(kept, total, window.kept)
        if self._thresholds:
            found["selection/threshold"] = sum(self._thresholds) / len(self._thresholds)
        sequences = self.args.per_device_train_batch_size * len(scored)
        found["batching/run_fraction"] = sum(s.mask.size(0) for s in scored) / sequences
        for name, value in found.items():
            metrics[name].append(value)
        shown = everything[len(everything) // 2]
        self._recorder.samples = partial(token_samples, shown, self.args.num_logged_samples, self._tokenizer)

    @property
    def _kept_share(self) -> float:
        """The share of tokens that is asked for."""
        return kept_share(self.top_entropy_quantile, self.args.entropy_selection)

    def _check_selection(self, kept: float, total: float, expected: int) -> None:
        """Fail at the first selection whose kept tokens are not the share that was asked for."""
        if self._selection_checked or total == 0:
            return
        share = self._kept_share
        # Each selection rounds by less than one token.
        if kept != expected or abs(kept - share * total) >= max(len(self._thresholds), 1):
            raise RuntimeError(
                f"The first optimiser step kept {kept:.0f} of {total:.0f} tokens where {share:g} of them, "
                f"{expected}, should be kept: the loss would not be the one that was asked for."
            )
        self._selection_checked = True
