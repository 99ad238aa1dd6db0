"""`EntropyForkGRPOTrainer`: TRL's `GRPOTrainer` with the kept-token objective of arXiv 2506.01939 (Eq. 6).

TRL computes the loss. This class decides the tokens in the loss, its divisor, the batches of sequences and the source
of rollouts. Its methods override seams of TRL and delegate to objects that the trainer owns:

- `spec` decides what the run computes (`objective.objective`), and `objective.window` plans each optimiser step;
- `methods` shape the advantages and weigh the tokens of a step by name (`objective.methods.run`), at moments that
  `stages` may decide (`objective.stages`);
- `rollouts` supplies rollouts (`rollouts`), and `scorer` runs passes without shared padding (`scoring`);
- `monitor` logs (`monitoring.steps`), and `resume` completes checkpoints (`resume`).

`Call` carries values from one seam to another during a call into TRL. `objective.window.Window` holds the state of an
optimiser step.

Shapes: B sequences of the local micro-batch, T completion tokens including padding.
"""

import inspect
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object, is_peft_model, set_seed
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Sampler
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from trl import GRPOConfig, GRPOTrainer
from trl.data_utils import is_conversational
from trl.trainer.utils import RepeatSampler, get_config_model_id, is_async_callable

from ..cards.card import write_card
from ..cards.metadata import TAGS
from ..config.grpo import EntropyForkGRPOConfig
from ..metrics.correctness import is_right, is_wrong
from ..models.adapters import sync_exactly, unwrapped
from ..models.head import add_sparse_lm_head, trains_head, why_not
from ..models.layers import prepare_liger, use_liger
from ..monitoring.callbacks import RunRecorder, Watch
from ..monitoring.diagnostics import share
from ..monitoring.steps import StepMonitor
from ..objective.advantages import at_group_mean
from ..objective.batching import padding_is_inert
from ..objective.drawing import NEUTRAL_SAMPLING, truncation_note
from ..objective.methods.run import FIRST, LOSS_WEIGHTS, WEIGHTS, Methods
from ..objective.objective import Objective
from ..objective.selection import above
from ..objective.stages import StageDetector
from ..objective.tokens import Inputs, loss_mask, with_gradient
from ..objective.window import (
    Pass,
    Scored,
    Window,
    check_kept,
    count_tokens,
    evaluation_window,
    plan_window,
    select_tokens,
    step_threshold,
)
from ..rewards.guard import Guarded, GuardedAsync
from ..rewards.registry import BUILT_IN, distinct
from ..runs import seal
from ..runs.weights import ADAPTER, WHOLE
from .claim import claimed
from .drafts import Piece, pieces_of
from .foresight import Foresight
from .fsdp2 import Float32Results, answering, reshard_before_sync
from .ranks import ranks_of
from .requirements import check_package
from .resume import Resume
from .rollouts import (
    Finished,
    Generated,
    Policy,
    RolloutSource,
    Row,
    Supply,
    make_source,
    with_extra,
    with_old_logps,
)
from .sampler import Clock, Recorder, sized
from .scoring import Outputs, Scorer
from .server import InParts
from .stop import Colocated, Stop

# Entries of a micro-batch, such as images, that TRL's scoring takes by name.
SCORING_ARGUMENTS = frozenset(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)


@dataclass
class Call:
    """State of the current call into TRL: inputs for TRL's seams, and their results.

    Attributes:
        inputs: the micro-batch whose loss is computed; empty in all other calls.
        rows: the problems that are answered.
        prompts: their prompts, as TRL's `_generate` has them.
        begun: places of the responses whose grading has begun.
        finished: responses that replace those of TRL's sampler.
        foresight: takes rewards that are known early, and tells the problems of the next round that are certain.
        supply: responses and rewards that replace TRL's generation and grading.
        scores_rollout: whether the first pass computes entropies, to log and to rank a rollout. With adapters, a pass
            of the reference policy follows, which is the same model without them.
        is_spared: whether the first pass is left out, because the sampler or a later pass gives its results.
        carried: for every response, log-probabilities (t,) under an older policy, or None. They replace the
            log-probabilities of the next pass.
        rewards: (responses of all ranks, F), set when TRL has them.
        passes: results of the passes so far, without autograd graphs.
        weight: (B, T) float32, factor of each token's loss.
        kept: (B, T) bool, the kept tokens, if some are dropped.
    """

    inputs: Inputs = field(default_factory=dict)
    rows: list[Row] | None = None
    prompts: list = field(default_factory=list)
    begun: set[int] = field(default_factory=set)
    finished: Finished | None = None
    foresight: Foresight | None = None
    supply: Supply | None = None
    scores_rollout: bool = False
    is_spared: bool = False
    carried: list[Tensor | None] | None = None
    rewards: Tensor | None = None
    passes: list[Pass] = field(default_factory=list)
    weight: Tensor | None = None
    kept: Tensor | None = None


def _short_name(model: str | PreTrainedModel | PeftModel) -> str:
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return name.rstrip("/").rpartition("/")[2]


@cache
def _warn_of_extra_logs() -> None:
    get_logger(__name__).warning(
        "log_extra: the columns of a reward function are not logged, because dynamic_sampling is true and they have a "
        "row for every drawn response: use log_metric, or set dynamic_sampling to false."
    )


class EntropyForkGRPOTrainer(GRPOTrainer):
    """Trainer for GRPO or DAPO on the share rho of tokens with the highest entropy.

    The arguments are those of `GRPOTrainer`. `args.output_dir` becomes a run folder (see `runs.folder`). Without
    `args`, the settings are the method's defaults, and the folder is named after the model. A plain `GRPOConfig` keeps
    its values, so that its `top_entropy_quantile` of 1 trains on all tokens.
    """

    _tag_names = TAGS
    _name = "EntropyForkGRPO"
    args: EntropyForkGRPOConfig
    model: PreTrainedModel | PeftModel
    _buffered_inputs: list[Inputs] | None  # type: ignore[assignment]  # TRL declares its first value alone, None

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        *others: Any,
        **kwargs: Any,
    ):
        args = EntropyForkGRPOConfig.of(args, f"{_short_name(model)}-{self._name}")
        with sized(args):
            super().__init__(
                model,
                reward_funcs,
                args,
                train_dataset,
                eval_dataset,
                processing_class,
                reward_processing_classes,
                [Float32Results(), *(callbacks or [])],
                *others,
                **kwargs,
            )
        self.settings: dict[str, Any] | None = None  # of the run, as checkpoints hold them
        self.changed: set[str] = set()  # settings that are not those of the checkpoint
        self._call: Call | None = None
        self._window: Window | None = None
        self._answers: list[Row] | None = None  # of the current evaluation
        self._grades = True  # whether the run's rewards are called
        self.clock = Clock()
        if self.rollout_func is not None:
            self.rollout_func = self.clock.around(self.rollout_func)
        self._use_liger()
        self.ranks = ranks_of(self.accelerator)
        self.stop = Stop(self.ranks)  # without SIGTERM, which a launch gives it
        self.spec = self._decide()
        self.threshold = math.nan  # of the last optimiser step, if steps take it over
        self._step_begun = 0  # micro-batches before the current optimiser step
        self._step_loss: Tensor | float = 0.0  # of the micro-steps of the current optimiser step so far
        self._asked_over_kept = 1.0  # tokens of the last optimiser step
        if self.spec.trusts_sampler:
            self.vllm_importance_sampling_correction = False  # which compares the sampler with a pass that is not made
        if self.spec.token_weights:
            self.top_entropy_quantile = 0.0  # TRL asks for weights if this is below 1, and its value goes unread
        self._prepare_adapters()
        self._leave_out_tied_weights()
        if self.use_vllm:
            self._prepare_vllm()
        self._tell_own_sampling()
        self.scorer = Scorer(self.spec.trims, self.ranks.largest)
        self.stages = StageDetector(self.args.plateau_window, self.args.plateau_share)
        self.rollouts = self._make_source()
        self.resume = Resume(self)
        # TRL names functions without their modules, and metrics and answers have one entry for each name.
        self.reward_func_names = distinct(self.reward_func_names)
        self.reward_funcs = [
            self._guarded(reward, name) for reward, name in zip(self.reward_funcs, self.reward_func_names, strict=True)
        ]
        self.monitor = self._make_monitor()

    def _make_monitor(self) -> StepMonitor:
        """Make the monitor of rollouts and steps, and add the callbacks that write its records and watch them."""
        recorder = RunRecorder(self.spec)
        self.add_callback(recorder)
        kept_share = math.nan if self.spec.matches_norms else self.spec.kept_share
        self.add_callback(Watch(self.args.watch, kept_share, recorder))
        vocabulary = max(self.model.config.get_text_config().vocab_size, len(self._tokenizer))
        return StepMonitor(
            self._metrics,
            self.spec,
            self.ranks,
            self._tokenizer,
            vocabulary,
            self.num_generations,
            self.args.num_logged_samples,
            recorder,
        )

    def _use_liger(self) -> None:
        """Put Liger's kernels into the model and the reference model, if the settings say so."""
        prepare_liger(self.args.use_liger_kernel, self.args.device)
        if not self.args.use_liger_kernel:
            return
        models = [self._base_model]
        if self.ref_model is not None:
            models.append(self.accelerator.unwrap_model(self.ref_model))
        why = use_liger(models, self.args.liger_kernel_config or {})
        if why is not None:
            get_logger(__name__).warning(f"use_liger_kernel: the layers are those of transformers, because {why}.")

    def _decide(self) -> Objective:
        """Decide what the run computes, and install the sparse LM head if it supports the model."""
        check_package("fused_lm_head", self.args.fused_lm_head)
        model = self._base_model
        spec = Objective.from_args(
            self.args,
            why_not(model),
            self.aux_loss_enabled,
            trains_head(model),
            self._padding_is_inert(),
            self.is_deepspeed_enabled,
        )
        if self.args.truncation:
            get_logger(__name__).warning(truncation_note(vars(self.args)))
        if spec.sparse_head:
            add_sparse_lm_head(model, self.temperature, self.args.fused_lm_head, self.args.truncation)
        elif spec.head_refusal is not None:
            get_logger(__name__).warning(f"LM head: TRL's head computes all rows, because {spec.head_refusal}.")
        return spec

    def _prepare_adapters(self) -> None:
        """Keep base weights exact when adapters go to vLLM, and adapters' dtype when a checkpoint is loaded."""
        if not isinstance(self.model, PeftModel):
            return
        if self.use_vllm:
            sync_exactly(self.model, self.vllm_generation)
        # PEFT loads adapters in float32, even if TRL trains them in bfloat16, as on a quantised base.
        load_adapter = partial(self.model.load_adapter, autocast_adapter_dtype=False)
        self.model.load_adapter = load_adapter  # type: ignore[method-assign]  # of this object alone

    def _leave_out_tied_weights(self) -> None:
        """Say that checkpoints lack weights that are tied to others; else transformers warns that they are missing."""
        model = self._base_model
        model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *model.all_tied_weights_keys}

    def _prepare_vllm(self) -> None:
        """Let vLLM take sharded weights, draw by the seed, end when a rank is asked to stop, and hand on answers.

        vLLM in a training process draws with the random state of the process. When it starts, it seeds the process by
        the number of the engine alone, so that runs with different seeds would draw alike. Ranks that share an engine
        have to draw alike.
        """
        reshard_before_sync(self.vllm_generation)
        if self.args.vllm_mode == "server":
            InParts(
                self.vllm_generation,
                self.args.ddp_timeout,
                Path(self.args.output_dir),
                self.args.vllm_server_requests,
                self._asked_to_leave,
                self._answers_arrived,
                self._further_prompts,
            )
        else:
            Colocated(self.vllm_generation, self._asked_to_leave, self._tokenizer.eos_token_id)
            set_seed(self.args.seed + self.ranks.index // self.args.vllm_tensor_parallel_size)

    def _make_source(self) -> RolloutSource:
        """Make the source of rollouts that the settings name."""
        return make_source(
            Policy(
                generate=self._answer_problems,
                write=self._continue_answers,
                reward=self._reward_answers,
                log_probs=lambda inputs: self._score(inputs, False).logps,
                entropies=lambda inputs: self._score(inputs, True).entropies,
            ),
            self.train_dataset,
            self.args,
            self.ranks,
            self.reward_weights,
            self._tokenizer,
            self.accelerator.device,
            uses_tools=bool(self.tools) or self.environment_factories is not None,
            has_rollout_func=self.rollout_func is not None,
        )

    def _guarded(self, reward: Any, name: str) -> Any:
        """Return a reward whose faults end the run with a sentence. Models and built-in rewards stay as they are."""
        if isinstance(reward, (torch.nn.Module, *BUILT_IN)):
            return reward
        kind = GuardedAsync if is_async_callable(reward) else Guarded
        return kind(reward, name, self.args.reward_seconds, self._where)

    def _where(self) -> tuple[str, str]:
        """Return words for the current step, and for the continuation of the run."""
        step, trains = self.state.global_step, self.model.training
        place = f"at step {step + 1}" if trains else f"in an evaluation after step {step}"
        return place, seal.continuation(Path(self.args.output_dir))

    def _padding_is_inert(self) -> bool:
        """Return whether the score of a sequence is independent of the width of its micro-batch."""
        inert = padding_is_inert(self.model.config.get_text_config())
        if self.args.batch_by_length and not inert:
            get_logger(__name__).warning(
                "batch_by_length does not trim padding, because this model's positions depend on the width of its "
                "batch."
            )
        return inert

    def _tell_own_sampling(self) -> None:
        """Log the sampling settings of the model's generation configuration, which rollouts ignore."""
        own = self.model.generation_config.to_dict()
        told = {
            name: own.get(name) for name, neutral in NEUTRAL_SAMPLING.items() if own.get(name) not in (None, *neutral)
        }
        if told:
            listed = ", ".join(f"{name} {value}" for name, value in told.items())
            get_logger(__name__).info(
                f"Rollouts ignore the sampling of the model's own generation_config.json ({listed}): the loss needs "
                "responses from the whole distribution, as the recipe's settings draw them."
            )

    @property
    def _base_model(self) -> PreTrainedModel:
        """The model itself, which may hold adapters."""
        return unwrapped(self.model)

    # The current call and step

    @contextmanager
    def _during(self, call: Call) -> Iterator[Call]:
        """Make `call` the current call, and restore the outer call afterwards."""
        outer, self._call = self._call, call
        try:
            yield call
        finally:
            self._call = outer

    @property
    def _mode(self) -> str:
        """TRL's name for the metrics of the current mode: `train` or `eval`."""
        return "train" if self.model.training else "eval"

    @property
    def _step_seed(self) -> int:
        """Seed of random choices in the current optimiser step."""
        return self.args.seed + self.state.global_step

    @property
    def methods(self) -> Methods:
        """Methods by name at the current optimiser step."""
        step = self.state.global_step
        return Methods(self.spec, self.ranks, step, self._step_seed, self.stages.plateau_step, self._tokenizer)

    # Functions for the source of rollouts, see `rollouts.Policy`

    def _answer_problems(
        self, problems: list[Row], finished: Finished | None, foresight: Foresight | None = None
    ) -> Generated:
        with self._during(Call(rows=problems, finished=finished, foresight=foresight)):
            return self._generate([problem["prompt"] for problem in problems])

    def _continue_answers(self, problems: list[Row], written: list[list[int]], limit: int) -> list[Piece]:
        """Let the current policy continue responses, by at most `limit` tokens each: see `drafts.Write`."""
        prompts, _, _ = self._tokenize_prompts([problem["prompt"] for problem in problems])
        contexts = [prompt + ids for prompt, ids in zip(prompts, written, strict=True)]
        setting = "max_completion_length" if self.use_vllm else "max_new_tokens"
        with self._whole_distribution(), self._stoppable(), self._sampling({setting: limit}):
            ids, logprobs = self._sample(contexts, None, {}, 1)
        self._leave_if_asked()
        ends = frozenset([*self.eos_token_ids, *self.args.extra_sampling.get("stop_token_ids", [])])
        return pieces_of(prompts, ids, logprobs, limit, ends)

    def _reward_answers(self, problems: list[Row], generated: Generated) -> Tensor:
        prompts = [problem["prompt"] for problem in problems]
        with self._during(Call(rows=problems)):
            return self._calculate_rewards(problems, prompts, generated[3], generated[1])

    @torch.no_grad()
    def _score(self, inputs: Inputs, entropies: bool, in_rollout: bool = False) -> Pass:
        """Score a micro-batch or a rollout under the current policy, without gradient."""
        images = {name: value for name, value in inputs.items() if name in SCORING_ARGUMENTS}
        with self._during(Call(scores_rollout=in_rollout)) as call:
            self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                inputs["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
                compute_entropy=entropies,
                **images,
            )
        return call.passes[-1]

    def _score_step(self, inputs: Inputs) -> Pass:
        """Return the scores of a micro-batch of an optimiser step, from an earlier pass of its policy if there is one.

        The first step of a rollout has the policy that has scored the rollout.
        """
        known = self.spec.first_step_reads
        if known and self._step % self.spec.passes_per_rollout == 0:
            return Pass(**{name: inputs[FIRST + name] for name in known})
        return self._score(inputs, entropies=True)

    # TRL's seams: the rollout

    def _generate_and_score_completions(self, inputs: list[Row]) -> Inputs:
        if not self.model.training:
            # The loss's own pass has the policy that has answered, whose log-probabilities TRL takes for the old ones.
            with self._during(Call(rows=inputs, is_spared=self.spec.spares_evaluation_pass)):
                output = super()._generate_and_score_completions(inputs)
            if self.spec.spares_evaluation_pass:
                del output["old_per_token_logps"]
            return self._placed(output)
        with self.resume.whole_rollout():
            return self._next_rollout(inputs)

    def _next_rollout(self, inputs: list[Row]) -> Inputs:
        self.clock.begin()
        self.monitor.begin()
        supply = self.rollouts.next(inputs)
        if supply is not None:
            self.monitor.log(supply.metrics)
        rows = inputs if supply is None else supply.rows
        spec = self.spec
        old_logps = supply.old_logps if supply is not None and supply.is_carried and not spec.trusts_sampler else None
        carried = old_logps if spec.scores_rollout else None
        with self._during(
            Call(
                rows=rows,
                supply=supply,
                scores_rollout=spec.scores_rollout,
                is_spared=spec.trusts_sampler and spec.spans_steps,
                carried=carried,
            )
        ) as call:
            output = super()._generate_and_score_completions(rows)
        self.monitor.answers()
        self.monitor.log(self.clock.metrics())
        output = self._placed(self.rollouts.finish(output, supply))
        if spec.trusts_sampler:
            output["old_per_token_logps"] = self._recorded(output)
        is_zero = self._at_mean(call.rewards)[output["sequence_index"]]
        output["advantages"] = output["advantages"].masked_fill(is_zero, 0.0)
        first = call.rewards[:, 0][output["sequence_index"]]
        output["right"], output["wrong"] = is_right(first), is_wrong(first)
        if any("rewards" in entry.needs for entry in self.spec.entries()):
            output["rewards"] = self._summed(call.rewards)[output["sequence_index"]]
            if supply is not None and supply.num_filling:  # methods see filling groups as not scored
                output["rewards"] = output["rewards"].masked_fill(supply.filling, math.nan)
        # If TRL scores old log-probabilities, that pass comes first, before the pass of a reference policy.
        return self._prepare_rollout(output, call.passes[0] if self.spec.scores_rollout else None, old_logps)

    def _recorded(self, output: Inputs) -> Tensor:
        """(B, T) log-probabilities under which the sampler drew the tokens of a rollout, taken from its columns.

        Tokens that it could not score, with NaN, are scored by the current policy.
        """
        recorded = output.pop("sampling_per_token_logps", None)
        if recorded is None:
            raise ValueError(
                "old_logps is 'sampler', but the rollout has no log-probabilities: let rollout_func return them as "
                "logprobs, or set old_logps to scored."
            )
        if self.ranks.sum(recorded.isnan().sum()):
            recorded = torch.where(recorded.isnan(), self._score(output, entropies=False).logps, recorded)
        return recorded

    def _summed(self, rewards: Tensor) -> Tensor:
        """(responses,) float32: weighted sum of the rewards (responses, F), NaN where no function gave a reward."""
        summed = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        return summed.masked_fill(rewards.isnan().all(dim=1), math.nan).float()

    def _at_mean(self, rewards: Tensor) -> Tensor:
        """(responses,) bool: responses whose rewards (responses, F) leave them no advantage but rounding errors."""
        summed = self.multi_objective_aggregation == "sum_then_normalize"
        compared = self._summed(rewards) if summed else rewards * self.reward_weights.to(rewards.device)
        return at_group_mean(compared, self.num_generations)

    def _placed(self, output: Inputs) -> Inputs:
        """Return a rollout with the index of every sequence among the sequences of all ranks, (B,) int64."""
        device, local = self.accelerator.device, output["completion_ids"].size(0)
        return output | {
            "sequence_index": self.ranks.index * local + torch.arange(local, device=device),
            "sequence_count": torch.tensor(self.ranks.count * local, device=device),
        }

    def _prepare_rollout(self, output: Inputs, scored: Pass | None, old_logps: list[Tensor | None] | None) -> Inputs:
        """Add the columns that the optimiser steps of a rollout need, while its groups are still in order.

        Args:
            scored: TRL's pass over the rollout, if TRL made one.
            old_logps: for every response, log-probabilities (t,) under an older policy that wrote it, or None. None
                if all responses are from the current policy.
        """
        ranked = self.spec.ranked_in == "rollout"
        has_steps = scored is not None or old_logps is not None or self.spec.spans_steps
        methods = self.methods
        # TRL skips old log-probabilities only if the rollout serves one step, whose methods are known.
        entries = [e for e in self.spec.entries() if has_steps or methods.is_active(e)]
        reading = [e for e in entries if self.spec.reads_rollout_pass(e)]
        if scored is None and (ranked or old_logps is not None or reading):
            entropies = ranked or any(e.needs & {"old_entropies", "residual_norms"} for e in reading)
            scored = self._score(output, entropies=entropies, in_rollout=ranked)
            if old_logps is not None:
                output["old_per_token_logps"] = with_old_logps(scored.logps, old_logps)
        output = methods.in_rollout(output, scored, has_steps)
        if self.spec.measures_rollout:
            shaped = methods.shape(output)
            self.monitor.rollout([shaped], [scored.entropies])
            self.monitor.gradients([scored], [shaped])
        return self._ranked(output, scored) if ranked else output

    def _ranked(self, output: Inputs, scored: Pass) -> Inputs:
        """Return a rollout with its kept tokens, selected by one threshold."""
        shaped = self.methods.shape(output)
        (kept,), threshold = select_tokens([scored], [shaped], self.spec, self.ranks, self._step_seed)
        counted = kept
        if self.spec.matches_norms:  # one denominator for both arms: the tokens that `top` would keep
            top = replace(self.spec, selection="top")
            (counted,), _ = select_tokens([scored], [shaped], top, self.ranks, self._step_seed)
        (total,) = count_tokens([output], self.ranks)
        check_kept(int(self.ranks.sum(counted.sum())), total, self.spec.kept_count(total), self.spec)
        ranked = {"kept_mask": kept, "counted": counted.sum(1), "entropies": scored.entropies}
        return output | ranked | {"threshold": torch.tensor(threshold)}

    @contextmanager
    def _whole_distribution(self) -> Iterator[None]:
        """Hide the model's generation configuration, from which `generate` would complete the recipe's settings."""
        model = self._base_model
        own, model.generation_config = model.generation_config, GenerationConfig()
        try:
            yield
        finally:
            model.generation_config = own

    @property
    def _may_leave(self) -> bool:
        """True if the run has a whole state to continue from when it leaves the current rollout or evaluation.

        A rollout within an optimiser step is not left, because a checkpoint does not hold gradients.
        """
        return not self.model.training or not self.is_within_step

    @property
    def is_within_step(self) -> bool:
        """True if micro-batches of the next optimiser step have been run."""
        return self._step != self._step_begun

    def _asked_to_leave(self) -> bool:
        """Return whether this rank was asked to stop while it may leave."""
        return self.stop.asked and self._may_leave

    def _leave_if_asked(self) -> None:
        if self._may_leave:
            in_training_loop = not self.model.training and self._answers is None
            self.stop.leave_if_asked(in_evaluation=in_training_loop)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Let transformers' generation end at the next token once this rank is asked to stop."""
        if self.use_vllm or not self._may_leave:
            yield
            return
        own = vars(self.model).get("generate")
        generate: Any = self.model.generate  # a method of GenerationMixin, which PreTrainedModel does not declare
        stoppable = partial(generate, stopping_criteria=StoppingCriteriaList([self.stop]))
        self.model.generate = stoppable  # type: ignore[method-assign]  # of this object alone
        try:
            yield
        finally:
            del self.model.generate
            if own is not None:
                self.model.generate = own  # type: ignore[method-assign]  # of this object alone

    def _generate(self, prompts: list) -> Generated:
        call = self._call
        if call.supply is not None:
            return call.supply.generated
        call.prompts = prompts
        with self._whole_distribution(), self._stoppable():
            generated = super()._generate(prompts)
        self._leave_if_asked()
        left = [place for place in range(len(prompts)) if place not in call.begun]
        self._begin_grading(left, [generated[3][place] for place in left], with_extra(call.rows, generated[5]))
        return generated

    def _begin_grading(self, places: list[int], completions: list, rows: list[Row]) -> None:
        """Let other processes grade the responses at some places, while this process continues."""
        if not self._grades:
            return
        call = self._call
        call.begun.update(places)
        chosen = [rows[place] for place in places]
        names = [name for name in rows[0] if name not in ("prompt", "completion")]
        columns: Row = {name: [row[name] for row in chosen] for name in names}
        prompts = [call.prompts[place] for place in places]
        for i, reward in enumerate(self.reward_funcs if places else []):
            early = None
            decides = call.foresight is not None and call.foresight.reward == i
            if callable(begin := getattr(reward, "begin", None)):
                early = begin(prompts=prompts, completions=completions, **columns)
            elif decides and isinstance(reward, BUILT_IN):
                early = reward(prompts=prompts, completions=completions, **columns)
            if decides and early is not None:
                call.foresight.watch(places, early)

    def _answers_arrived(self, places: list[int], completion_ids: list[list[int]]) -> None:
        """Let the grading of responses begin while a server writes others: see `server.InParts`.

        It begins later for parts of responses, for responses of a `rollout_func`, and for responses that TRL parses or
        in which it calls tools.
        """
        call = self._call
        if call is None or call.rows is None or self.rollout_func is not None or self._parses_answers:
            return
        texts = self._tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        chats = is_conversational({"prompt": call.prompts[0]})
        completions = [[{"role": "assistant", "content": text}] for text in texts] if chats else texts
        self._begin_grading(places, completions, call.rows)

    def _further_prompts(self) -> list[list[int]]:
        """Return the tokens of further prompts that the next round of dynamic sampling is certain to draw."""
        call = self._call
        further = [] if call is None or call.foresight is None else call.foresight.further()
        return self._tokenize_prompts([problem["prompt"] for problem in further])[0] if further else []

    @property
    def _parses_answers(self) -> bool:
        """Return whether TRL makes more of a response than its text."""
        parsers = (getattr(self._tokenizer, name, None) for name in ("response_template", "response_schema"))
        return bool(self.tools) or self.environment_factories is not None or any(p is not None for p in parsers)

    def _generate_single_turn(self, prompt_ids: list, *others: Any, **named: Any) -> tuple[list, list | None]:
        """Return the responses that are written already, or let TRL's sampler write them."""
        finished = self._call.finished
        return self._sample(prompt_ids, *others, **named) if finished is None else finished

    def _sample(self, *contexts: Any, **named: Any) -> tuple[list, list | None]:
        """Let TRL's sampler write responses, with the arguments of its `_generate_single_turn`."""
        records = self.spec.trusts_sampler and self.model.training and not self.use_vllm
        recorder = Recorder(self.temperature, self.args.truncation)
        with self.clock.running(), recorder.listening(self._base_model) if records else nullcontext():
            ids, logprobs = super()._generate_single_turn(*contexts, **named)
        self.clock.count(ids)
        return ids, recorder.of(ids) if records else logprobs

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list) -> Tensor:
        if self._call.supply is not None:
            self._call.rewards = self._call.supply.rewards
            return self._call.rewards
        if self._grades:
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        else:
            rewards = torch.zeros(self.ranks.count * len(prompts), len(self.reward_funcs), device=self.args.device)
        self._leave_if_asked()
        self._call.rewards = rewards
        lengths = [len(ids) for ids in completion_ids_list]
        if self._grades:
            self.monitor.rewards(rewards, prompts, completions, lengths, self._mode)
        if self.args.dynamic_sampling and self._pending_extra_logs:
            # TRL would log columns of training beside the responses of the rollout, which are others. Columns of
            # evaluations alone would be shorter than its table.
            self._pending_extra_logs.clear()
            _warn_of_extra_logs()
        if self._answers is not None:
            ended = [bool(ids) and ids[-1] in self.eos_token_ids for ids in completion_ids_list]
            columns = [gather_object(column) for column in (inputs, completions, lengths, ended)]
            for row, completion, length, end, values in zip(*columns, rewards.tolist(), strict=True):
                scores = dict(zip(self.reward_func_names, values, strict=True))
                answer = {"completion": completion, "length": length, "ended": end, "rewards": scores}
                self._answers.append({**row, **answer})
        return rewards

    # TRL's seams: the optimiser step

    def training_step(self, model: Any, inputs: Inputs, num_items_in_batch: Any = None) -> Tensor:
        """Do nothing in the first micro-steps of a window with fewer micro-batches than the loop has micro-steps.

        The loop synchronises gradients in its last micro-step, which always has a micro-batch.
        """
        if self.spec.token_budget is not None:
            model.train()
            begun = time.perf_counter()
            is_idle = self._prepare_inputs(inputs) is None
            self._current_train_step_time += time.perf_counter() - begun
            if is_idle:
                self._step += 1
                return torch.zeros((), device=self.args.device)
        loss = super().training_step(model, inputs, num_items_in_batch)
        return self._divided(model, loss) if self.spec.divides_late else loss

    def _divided(self, model: Any, loss: Tensor) -> Tensor:
        """Divide the gradient of a finished step by its kept tokens, which were unknown to its micro-batches.

        They have divided by the requested number, so that sums of any size keep their scale. The gradient is
        whole here, over all ranks, and not yet clipped.

        Args:
            loss: of the micro-step.

        Returns:
            The loss to log, whose sum over the step is divided likewise.
        """
        self._step_loss = self._step_loss + loss
        if not self.accelerator.sync_gradients:
            return loss
        factor, whole, self._step_loss = self._asked_over_kept, self._step_loss, 0.0
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return loss + (factor - 1) * whole

    def _prepare_inputs(self, generation_batch: Inputs) -> Inputs | None:
        if self.model.training and self._window is not None and self._window.opened == self._step:
            return self._micro_batch()  # generated and planned by an earlier call in this micro-step
        inputs = super()._prepare_inputs(generation_batch)
        accumulation = self.spec.accumulation
        if not self.model.training:
            self._window = evaluation_window(inputs, self.spec, self.ranks)
            return inputs
        if not self.spec.whole_steps:  # a step needs tokens of the next rollout, which only rho = 1 allows
            self._window = self._window or Window([], 0)
            return self.methods.shape(inputs)
        place = self._step % accumulation
        if place == 0:
            first = self._step % self.spec.micro_batches
            self._window = self._plan(self._buffered_inputs[first : first + accumulation])
            self._window.opened = self._step
        return self._micro_batch()

    def _micro_batch(self) -> Inputs | None:
        """Return the micro-batch of the current micro-step, or None if the window's micro-batches come later."""
        accumulation, batches = self.spec.accumulation, self._window.batches
        place = self._step % accumulation - (accumulation - len(batches))
        return batches[place] if place >= 0 else None

    def _plan(self, batches: list[Inputs]) -> Window:
        """Plan an optimiser step of training."""
        methods = self.methods
        window = plan_window(
            [methods.shape(b) for b in batches],
            self.spec,
            self.ranks,
            self._score_step,
            self.args.per_device_train_batch_size,
            self._step_seed,
            methods,
            self.threshold,
        )
        if window.ranking is not None:
            self.monitor.gradients(*window.ranking)
        return window

    def _compute_loss(self, model: Any, inputs: Inputs) -> Tensor:
        inputs = dict(inputs)  # to which methods in the loss add their columns
        with self._during(Call(inputs=inputs)) as call:
            loss = super()._compute_loss(model, inputs)
        window = self._window
        if self.model.training:
            (scored,), mask = call.passes, loss_mask(inputs).bool()
            kept = mask if call.kept is None else call.kept
            window.scored.append(Scored(inputs, mask, kept, scored.entropies, scored.logps))
            for name, sums in self.methods.sums([inputs], "loss").items():
                window.weights[name] = window.weights.get(name, 0) + sums
            if self.accelerator.sync_gradients:
                self._close(window)
        if not self.model.training or self.accelerator.sync_gradients:
            self._window = None
        return loss

    def _close(self, window: Window) -> None:
        """Log a finished optimiser step, and keep what later steps take over."""
        self._step_begun = self._step + 1  # TRL counts the micro-batch when it is done
        if self.spec.carries:
            self.threshold = step_threshold(window, self.spec, self.ranks, self._step_seed)
            self.monitor.log({"selection/step_threshold": self.threshold})
        if self.spec.trusts_sampler and self._step % self.spec.passes_per_rollout < self.spec.accumulation:
            # The loss gives tokens that the head does not project the sampler's value. A pass that ranks has them all.
            self.monitor.sampler_gap(*(window.ranking or window.trained))
        kept = self.monitor.step(
            window, self.args.per_device_train_batch_size * self.current_gradient_accumulation_steps
        )
        self._asked_over_kept = window.kept / max(kept, 1)
        methods = self.methods
        active = {f"shaping/{entry.name}": float(methods.is_active(entry)) for entry in self.spec.advantages}
        if window.weights:  # mean weight of the tokens that are run or known, 1 for a method that changes nothing
            sums = dict(zip(window.weights, self.ranks.sum(torch.stack(list(window.weights.values()))), strict=True))
            active |= {f"weight/{name}": share(*pair.tolist()) for name, pair in sums.items()}
        self.stages.update(self.state.global_step + 1, self.monitor.entropy, self.monitor.accuracy)
        self.monitor.log(active | {"stage": float(self.stages.stage)})

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
        call, is_policy = self._call or Call(), model is not self.ref_model
        if call.is_spared:
            call.is_spared = False
            return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None
        ranks_rollout = is_policy and call.scores_rollout and not call.passes
        compute_entropy |= ranks_rollout
        known = "kept_mask" in call.inputs
        has_methods = bool(call.inputs) and self.model.training and bool(self.spec.loss_needs)
        reads_more = has_methods and bool(self.spec.loss_needs & {"entropies", "residual_norms"})
        outputs: Outputs = True
        if is_policy and self.spec.sparse_head:
            outputs = self.spec.outputs(compute_entropy and (reads_more or not known), ranks_rollout)
        kept = with_gradient(call.inputs) if known and self.spec.projects_kept else None
        score = partial(
            super()._get_per_token_logps_and_entropies,
            compute_entropy=compute_entropy,
            compute_aux_loss=compute_aux_loss,
            **images,
        )
        has_images = any(value is not None for value in images.values())
        if not self.model.training:  # an evaluation batch is as large as generation needs
            batch_size = self.args.per_device_train_batch_size
        sequences = (input_ids, attention_mask, logits_to_keep)
        scored = self.scorer.run(score, model, outputs, *sequences, batch_size, kept, has_images, compute_aux_loss)
        if has_methods:
            call.inputs |= self.methods.in_loss(call.inputs, scored.detach())
        own_entropies = scored.entropies
        if known:
            scored.entropies = call.inputs["entropies"]
        if kept is not None:  # tokens that were not projected get a ratio of 1
            old = call.inputs.get("old_per_token_logps", torch.zeros_like(scored.logps))
            scored.logps = torch.where(kept, scored.logps, old)
        call.passes.append(scored.detach())
        if call.carried is not None:
            scored.logps, call.carried = with_old_logps(scored.logps, call.carried), None
        # An entropy bonus needs the entropies of this pass. The entropies by which tokens are ranked have no gradient.
        return scored.logps, own_entropies if self.spec.has_bonus else scored.entropies, scored.aux_loss

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        """(B, T) float32 weight of every token's loss; 0 for tokens that are not kept.

        TRL multiplies each token's loss by its weight. With the denominator `kept`, a kept token's weight is TRL's
        denominator divided by the window's kept tokens. The loss is then the mean over kept tokens. The weights of
        methods by name are further factors. In an evaluation they are 1.

        Args:
            threshold: TRL's quantile level 1 - rho, which is ignored, because the number of kept tokens decides.
        """
        call, window = self._call, self._window
        kept = call.inputs.get("kept_mask")
        if window.threshold is not None:
            kept = above(entropies, mask, window.threshold, self.spec.selection)
        elif kept is None and self.spec.selects:
            (kept,), lowest = select_tokens(call.passes, [call.inputs], self.spec, self.ranks, self._step_seed)
            window.thresholds.append(lowest)
            self.monitor.gradients(call.passes, [call.inputs], self._mode)
        call.kept, call.weight = kept, torch.ones_like(entropies) if kept is None else kept.float()
        for column in (WEIGHTS, LOSS_WEIGHTS):
            if column in call.inputs:
                call.weight = call.weight * call.inputs[column]
        divisor = window.divisor
        if divisor is None and self.spec.selects and self.spec.denominator == "kept":
            divisor = max(window.kept, 1)
        if divisor is not None:
            # TRL is about to divide by the rollout's tokens, scaled to one window in training.
            tokens = call.inputs["num_items_in_batch"].clamp(min=1.0)
            if self.model.training:
                tokens = tokens * self.current_gradient_accumulation_steps / self.spec.micro_batches
            call.weight *= tokens / (divisor or 1.0)
        return call.weight

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.is_deepspeed_enabled:  # DeepSpeed has already taken its step, and handles overflows itself
            self.resume.check_gradient(model, float(norm))
            self._metrics["train"]["skipped_steps"] = [self.resume.skipped_steps]
        return norm

    def train(self, resume_from_checkpoint: str | bool | None = None, *others: Any, **named: Any) -> TrainOutput:
        """Train in a locked run folder, from an intact checkpoint with the same settings (see `claim.claimed`).

        Args:
            resume_from_checkpoint: folder of a checkpoint, true for the newest intact one of `args.output_dir`, or
                `auto`, which begins anew if there is none.
        """
        with claimed(self, resume_from_checkpoint) as checkpoint:
            self.resume.begin()
            return super().train(checkpoint, *others, **named)

    # TRL's seams: checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self.resume.saving(folder):
            super()._save_checkpoint(model, trial)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Load TRL's random states, which the training loop restores last, and then the state of `resume`."""
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self.resume.load(Path(checkpoint))

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        sampler = super()._get_train_sampler(dataset)
        assert isinstance(sampler, RepeatSampler)
        self.resume.sampler = sampler
        return sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run an epoch, or stop if the checkpoint is of the last step, where the loop would take one step too many."""
        if kwargs["epoch"] == kwargs["epochs_trained"]:
            self.resume.draw_orders(kwargs["epochs_trained"])
        if self.state.global_step < self.state.max_steps:
            with self.resume.saving_if_interrupted(kwargs["model"]):
                super()._run_epoch(*args, **kwargs)
            return
        self._load_rng_state(kwargs["resume_from_checkpoint"])
        self.control.should_training_stop = True

    def create_model_card(  # type: ignore[override]  # as in TRL, which dropped parameters of transformers
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None
    ) -> None:
        """Write `README.md` from the files of the run folder, and draw new plots if the run is pushed to the Hub.

        TRL calls it before it saves a checkpoint, and before it pushes one.
        """
        if self.is_world_process_zero():
            saves = ADAPTER if is_peft_model(self.model) else WHOLE
            pushes = self.hub_model_id is not None
            write_card(self.args.output_dir, model_name, self.hub_model_id, expected_weights=saves, draws=pushes)

    # Evaluation

    @contextmanager
    def _sampling(self, settings: dict[str, float]) -> Iterator[None]:
        """Sample responses at another temperature or top_p than training's."""
        sampler = self.vllm_generation if self.use_vllm else self.generation_config
        before = {name: getattr(sampler, name) for name in settings}
        vars(sampler).update(settings)
        try:
            yield
        finally:
            vars(sampler).update(before)

    def answer(
        self,
        problems: Dataset,
        metric_key_prefix: str = "eval",
        sampling: dict[str, float] | None = None,
        graded: bool = True,
    ) -> list[Row]:
        """Answer every problem `num_generations_eval` times with the current policy, through TRL's evaluation loop.

        Args:
            sampling: `temperature` and `top_p`; training's by default.
            graded: whether the run's rewards are called. They may need columns and references that other problems
                than the run's own lack. Without them every reward is 0.

        Returns:
            A row per answer, equal on every rank. It has the problem's columns, `completion`, `length` in tokens,
            whether it `ended` by itself (see `models.load.end_ids`), and `rewards` by name. Copies that fill up an
            uneven last batch are excluded.
        """
        self._answers, self._grades, self.monitor.recorder.paused = [], graded, True
        # With persistent workers, transformers keeps one loader and answers its problems in every evaluation.
        loaders, self._eval_dataloaders = vars(self).get("_eval_dataloaders", {}), {}
        try:
            with answering(self), self._sampling(sampling or {}):
                self.evaluate(problems, metric_key_prefix=metric_key_prefix)
            rows = self._answers
        finally:
            self._answers, self._grades, self.monitor.recorder.paused = None, True, False
            self._eval_dataloaders = loaders
        seen: dict[str, int] = {}
        first = []
        for row in rows:
            key = str(row["prompt"])
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= self.num_generations_eval:
                first.append(row)
        return first
