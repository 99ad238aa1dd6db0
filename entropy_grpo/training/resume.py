"""Exact resume, and skipped optimiser steps.

`Resume` adds to TRL's checkpoint the current rollout, the place in it, and the metrics gathered for the next log. It
also adds the order of prompts from the second epoch on. Old checkpoints are deleted only when the new checkpoint is
complete (see `runs.seal`).
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from trl.trainer.utils import RepeatSampler

from ..data.config import DataConfig
from ..objective.advantages import ppl_advantages
from ..objective.methods.run import SHAPED
from ..runs import seal
from ..runs.launched import Leave, ServerError
from ..runs.state import RANK_STATE, SHARED_STATE, State, load_state, savable, save_state
from ..tasks.stream import Stream
from .checkpoints import sealing
from .claim import DATA, REWARDS
from .fsdp2 import reshard
from .rollouts import without_waiting
from .stop import RandomStates

# Settings that decide the micro-batches of a rollout and of a step, its groups, its passes and its columns.
FITTED = (
    *("per_device_train_batch_size", "steps_per_generation", "gradient_accumulation_steps", "num_iterations"),
    *("num_generations", "top_entropy_quantile", "entropy_selection", "entropy_scope", "old_logps"),
    *("use_vllm", "vllm_importance_sampling_correction", "temperature"),
)
# Settings that decide the problems, the sizes and the rewards of groups that wait for a rollout.
OF_GROUPS = {
    *("num_generations", "max_completion_length", "fork_rollouts", "chat_template_kwargs"),
    *("rewards", "reward_scale", "overlong_cache_length", REWARDS, DATA),
    *(field.name for field in dataclasses.fields(DataConfig)),
}


class Resume:
    """Saves and restores the state that TRL's checkpoint lacks, and counts skipped steps.

    If the number of processes has changed since the checkpoint, its rollout is lost and a new rollout begins.

    Args:
        trainer: an `EntropyForkGRPOTrainer`; its state and the state of its parts are saved.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.sampler: RepeatSampler | None = None  # of the training problems; a stream has none
        self.skipped_steps = 0  # of the run
        self.skipped_in_a_row = 0
        self.problems: Stream | None = None  # of training problems that are generated when they are read
        self.saved_step = 0  # of the newest checkpoint
        self.at_first: State | None = None  # shared state before the first training of this process

    def draw_orders(self, epochs: int) -> None:
        """Draw the orders of finished epochs again, so that the next epoch has the same order as without a stop."""
        if self.sampler is not None and self.sampler.shuffle:
            for _ in range(epochs):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)

    def check_gradient(self, model: Any, norm: float) -> None:
        """Drop a gradient that is not finite before the optimiser's step.

        Without gradients the optimiser changes neither the weights nor its own state.

        Args:
            norm: norm of the whole gradient, equal on all ranks.

        Raises:
            RuntimeError: more than `max_skipped_steps` consecutive optimiser steps had no finite gradient.
        """
        finite, limit = math.isfinite(norm), self.trainer.args.max_skipped_steps
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if not finite:
            self.skipped_steps += 1
            model.zero_grad(set_to_none=True)
            step = self.trainer.state.global_step + 1
            get_logger(__name__).warning(f"Step {step} is skipped, because the norm of its gradient is {norm}.")
        if self.skipped_in_a_row > limit:
            raise RuntimeError(
                f"{self.skipped_in_a_row} consecutive optimiser steps had no finite gradient, but max_skipped_steps "
                f"is {limit}. The weights are those of the last finite step. Lower learning_rate, or look for the "
                "cause after the last checkpoint."
            )

    def begin(self) -> None:
        """Forget an earlier call of `train` in this process, which may have ended within a step."""
        trainer = self.trainer
        trainer._buffered_inputs, trainer._window, trainer._call, self.saved_step = None, None, None, 0
        trainer._total_loss_scalar, trainer._globalstep_last_logged = 0.0, 0  # as transformers begins
        if trainer.use_vllm:
            trainer._last_loaded_step = -1  # vLLM has the weights of a step that now has the number of another one
        if self.at_first is None:
            self.at_first = self.shared_state()
            return
        trainer._metrics["train"].clear()
        self.restore_shared_state(self.at_first)

    # State

    def shared_state(self) -> State:
        """Return the state that all ranks share."""
        trainer = self.trainer
        return {
            "step": trainer._step,
            "step_begun": trainer._step_begun,
            "total_loss": trainer._total_loss_scalar,
            "last_logged": trainer._globalstep_last_logged,
            "metrics": {name: list(values) for name, values in trainer._metrics["train"].items()},
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "rollout_accuracy": trainer.monitor.accuracy,
            "rollout_entropy": trainer.monitor.entropy,
            "threshold": trainer.threshold,
            "stages": trainer.stages.state(),
            "evaluation_due": trainer.stop.evaluation_due,
            **trainer.rollouts.state(),
        }

    def restore_shared_state(self, state: State) -> None:
        """Continue from the result of `shared_state`."""
        trainer = self.trainer
        trainer._step, trainer._window = state["step"], None
        trainer._step_begun = state.get("step_begun", state["step"])  # older checkpoints have none
        trainer._total_loss_scalar, trainer._globalstep_last_logged = state["total_loss"], state["last_logged"]
        trainer._metrics["train"].update(state["metrics"])
        self.skipped_steps, self.skipped_in_a_row = state["skipped_steps"], state["skipped_in_a_row"]
        trainer.monitor.accuracy = state["rollout_accuracy"]
        trainer.monitor.entropy = state.get("rollout_entropy", math.nan)  # older checkpoints have none
        trainer.threshold = state.get("threshold", math.nan)  # likewise; the next step then ranks its own tokens
        trainer.stages.restore(state["stages"])
        trainer.rollouts.restore(state)
        if self.problems is not None and "problems" in state:
            self.problems.restore(state["problems"])

    def rank_state(self) -> State:
        """Return the state of this rank alone."""
        trainer = self.trainer
        state: State = {"buffered_inputs": trainer._buffered_inputs, "loss": trainer._tr_loss}
        if trainer.log_completions:
            # The logs are only shown. Rows keep their places among the images, which TRL shows beside the prompts.
            state["logs"] = savable(trainer._logs) | {"images": [[] for _ in trainer._logs["images"]]}
        return state

    def restore_rank_state(self, state: State) -> None:
        """Continue from the result of `rank_state`."""
        trainer = self.trainer
        trainer._buffered_inputs, trainer._tr_loss = state["buffered_inputs"], state["loss"]
        # Older checkpoints hold the threshold of a ranked rollout outside the rollout.
        threshold = [*state.get("thresholds", []), math.nan][0]
        for batch in trainer._buffered_inputs:
            if "kept_mask" in batch:
                batch.setdefault("threshold", torch.tensor(threshold))
                batch.setdefault("counted", batch["kept_mask"].sum(1))
            if "right" in batch:  # older checkpoints call all other responses wrong
                batch.setdefault("wrong", ~batch["right"])
            if "perplexity_weights" in batch:  # of an older checkpoint
                weights, alpha = batch.pop("perplexity_weights"), trainer.args.ppl_shaping_alpha
                batch[f"{SHAPED}ppl"] = ppl_advantages(batch["advantages"], weights, alpha)
        for name, values in state.get("logs", {}).items():
            if isinstance(values, dict):
                for key, items in values.items():
                    trainer._logs[name][key].extend(items)
            else:
                trainer._logs[name].extend(values)

    def shape(self) -> dict[str, Any]:
        """Return what a saved rollout fits: the processes, the micro-batches that it is divided into, its columns."""
        methods = [
            json.dumps([entry.name, entry.params, entry.schedule, entry.digest], default=str)
            for entry in self.trainer.spec.entries()
        ]
        fitted = {name: getattr(self.trainer.args, name) for name in FITTED}
        facts = {"num_processes": self.trainer.accelerator.num_processes, "methods": methods}
        return facts | {"has_reference": self.trainer.spec.has_reference} | fitted

    def outdated(self) -> list[str]:
        """Return the settings whose change makes groups that wait in a checkpoint unfit for the run.

        The rows of `dataset_name` may have changed without its name, which `allow_changes` then has.
        """
        changed = self.trainer.changed | ({"dataset_name"} & set(self.trainer.args.allow_changes))
        return sorted(changed & OF_GROUPS)

    # Checkpoints

    @contextmanager
    def saving(self, folder: Path) -> Iterator[None]:
        """Save the run's state around TRL's own saving, and seal the checkpoint afterwards."""
        trainer = self.trainer
        with sealing(trainer, folder, self.shape(), trainer.settings):
            if trainer.args.should_save:
                problems = {} if self.problems is None else {"problems": self.problems.state()}
                save_state(folder / SHARED_STATE, self.shared_state() | problems)
            save_state(folder / RANK_STATE.format(trainer.accelerator.process_index), self.rank_state())
            yield
        self.saved_step = trainer.state.global_step

    @contextmanager
    def whole_rollout(self) -> Iterator[None]:
        """Undo what a rollout has changed if it is left, or if the server fails, before it is whole."""
        before, tokens = self.shared_state(), self.trainer.state.num_input_tokens_seen
        random_states = RandomStates()
        try:
            yield
        except (Leave, ServerError):
            random_states.restore()
            self.trainer._metrics["train"].clear()
            self.restore_shared_state(before)
            self.trainer.state.num_input_tokens_seen = tokens
            raise

    @contextmanager
    def saving_if_interrupted(self, model: Any) -> Iterator[None]:
        """Save a checkpoint if the server fails, or the run is left, between two optimiser steps of an epoch.

        The error of a server names the checkpoint.
        """
        first, random_state = self.trainer.state.global_step, torch.get_rng_state()
        try:
            yield
        except (Leave, ServerError) as error:
            trainer, step = self.trainer, self.trainer.state.global_step
            if step == first:  # the resumed run draws a seed for the epoch's data loader again
                torch.set_rng_state(random_state)
            if step == 0 or trainer.is_within_step:
                raise
            self.save(model)
            if isinstance(error, Leave):
                raise
            raise ServerError(
                f"{str(error).rstrip('.')}; --resume_from_checkpoint true continues from checkpoint-{step}."
            ) from error

    @contextmanager
    def saving_if_left(self) -> Iterator[None]:
        """Save a checkpoint of the last step if the evaluation after the training is left."""
        random_states = RandomStates()
        try:
            yield
        except Leave:
            random_states.restore()
            self.save(self.trainer.model_wrapped)
            raise

    def save(self, model: Any) -> None:
        """Save a checkpoint of the last step, unless there is one.

        Args:
            model: the wrapped model.
        """
        if self.trainer.state.global_step > self.saved_step:
            reshard(self.trainer.model)
            self.trainer._save_checkpoint(model, trial=None)

    def load(self, folder: Path) -> None:
        """Restore the run's state from a checkpoint.

        A checkpoint that is not complete restores nothing. A checkpoint of another number of processes, of other
        micro-batches, steps, columns or methods restores the shared state and begins a new rollout. Groups that wait
        are dropped if they have other problems, sizes or rewards than this run. All of this is logged.
        """
        if not (folder / seal.COMPLETE).exists():
            get_logger(__name__).warning(f"{folder} has no {seal.COMPLETE}, so a new rollout begins.")
            return
        self.saved_step = self.trainer.state.global_step
        shared, outdated = load_state(folder / SHARED_STATE), self.outdated()
        if outdated and "sampler" in shared:  # of dynamic sampling
            named = ", ".join(outdated)
            get_logger(__name__).warning(f"Groups that wait in {folder} are dropped: the run has another {named}.")
            shared = without_waiting(shared)
        if outdated:  # the numbers may be candidates of another data set, which this run's stream has not split
            shared.pop("problems", None)
        written, shape = seal.read(folder), self.shape()
        # Seals of earlier versions lack some of these facts.
        other = [f"{k} {written[k]}, now {v}" for k, v in shape.items() if written.get(k, v) != v]
        if other:
            get_logger(__name__).warning(f"{folder} was written with {', '.join(other)}, so a new rollout begins.")
            self.restore_shared_state(shared | {"step": 0, "step_begun": 0})
        else:
            self.restore_shared_state(shared)
            rank = RANK_STATE.format(self.trainer.accelerator.process_index)
            self.restore_rank_state(load_state(folder / rank, self.trainer.accelerator.device))
        if shared.get("evaluation_due"):  # which a stop has left out; older checkpoints do not know
            self.trainer._determine_best_metric(self.trainer._evaluate(None, None), None)
