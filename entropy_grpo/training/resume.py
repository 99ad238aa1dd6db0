"""A trainer that can be left alone: exact resume, and steps without a usable gradient are skipped.

What TRL's trainer leaves out of a checkpoint, and this one puts in: the rollout that is being trained on and the place
in it, the order of prompts from the second epoch on, and what has been gathered for the next log. And old checkpoints
are deleted only when the new one is complete (see `checkpoint`).
"""

import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from torch.utils.data import Sampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import GRPOTrainer

from ..config.grpo import EntropyForkGRPOConfig
from ..runs import files
from ..runs.state import COMPLETE, RANK_STATE, SHARED_STATE, State, load_state, save_state


class DurableGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` whose checkpoints hold all that the rest of the run depends on.

    With another number of processes than wrote the checkpoint, the rollout in it is lost and a new one is begun.
    """

    args: EntropyForkGRPOConfig

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._skipped_steps = 0  # of the run
        self._skipped_in_a_row = 0

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm, asked for before every optimiser step; a gradient that is not finite is dropped.

        Without gradients the optimiser does nothing: weights and its own state stay as they are.

        Raises:
            RuntimeError: `max_skipped_steps` optimiser steps in a row had no finite gradient.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if self.is_deepspeed_enabled:  # it has taken its step by now, and looks after overflows itself
            return norm
        finite = math.isfinite(float(norm))
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        if not finite:
            self._skipped_steps += 1
            model.zero_grad(set_to_none=True)
            get_logger(__name__).warning(
                f"Step {self.state.global_step + 1}: the gradient's norm is {float(norm)}, the step is skipped."
            )
        if self._skipped_in_a_row > self.args.max_skipped_steps:
            raise RuntimeError(
                f"{self._skipped_in_a_row} optimiser steps in a row had no finite gradient, max_skipped_steps allows "
                f"{self.args.max_skipped_steps}: the weights are those of the last finite step. Lower learning_rate, "
                "or look for the cause from the last checkpoint on."
            )
        self._metrics["train"]["skipped_steps"] = [self._skipped_steps]
        return norm

    # What a run is made of; subclasses add theirs.

    def _shared_state(self) -> State:
        """What all ranks have in common and the rest of the run depends on."""
        return {
            "step": self._step,
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "metrics": dict(self._metrics["train"]),
            "skipped_steps": self._skipped_steps,
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def _restore_shared_state(self, state: State) -> None:
        self._step = state["step"]
        self._total_loss_scalar, self._globalstep_last_logged = state["total_loss"], state["last_logged"]
        self._metrics["train"].update(state["metrics"])
        self._skipped_steps, self._skipped_in_a_row = state["skipped_steps"], state["skipped_in_a_row"]

    def _rank_state(self) -> State:
        """What this rank alone has."""
        state: State = {"buffered_inputs": self._buffered_inputs, "loss": self._tr_loss}
        if self.log_completions:
            state["logs"] = self._logs
        return state

    def _restore_rank_state(self, state: State) -> None:
        self._buffered_inputs, self._tr_loss = state["buffered_inputs"], state["loss"]
        for name, values in state.get("logs", {}).items():
            if isinstance(values, dict):
                for key, items in values.items():
                    self._logs[name][key].extend(items)
            else:
                self._logs[name].extend(values)

    # Saving

    @contextmanager
    def _no_rotation(self):
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial=trial))
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / COMPLETE).unlink(missing_ok=True)
            save_state(folder / SHARED_STATE, self._shared_state())
        self.accelerator.wait_for_everyone()
        save_state(folder / RANK_STATE.format(self.accelerator.process_index), self._rank_state())
        with self._no_rotation():  # the older checkpoint may be the only complete one until this one is
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            about = {"step": self.state.global_step, "num_processes": self.accelerator.num_processes}
            files.write_json(folder / COMPLETE, about)
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    # Resuming

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """PEFT reads adapters as float32, also where TRL trains them in bfloat16, as on a quantised base."""
        loaded = self.model if model is None else model
        dtypes = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, parameter in loaded.named_parameters():
            if parameter.dtype != dtypes[name]:
                parameter.data = parameter.data.to(dtypes[name])

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _init_training_state(self, *args: Any) -> tuple[int, int]:
        epochs_trained, steps = super()._init_training_state(*args)
        sampler = getattr(self, "_train_sampler", None)  # a stream of prompts has none
        if sampler is not None and sampler.shuffle:
            for _ in range(epochs_trained):  # the sampler draws an order per epoch
                torch.randperm(sampler.num_samples, generator=sampler.generator)
        return epochs_trained, steps

    def _run_epoch(self, **kwargs: Any) -> None:
        """An epoch; the training loop would take one more step with a checkpoint of the last one."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)
            return
        self._load_rng_state(kwargs["resume_from_checkpoint"])
        self.control.should_training_stop = True

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The last thing that the training loop restores before it goes on; and then the rest."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        folder, device = Path(checkpoint), self.accelerator.device
        if not (folder / COMPLETE).exists():
            get_logger(__name__).warning(f"{folder} has no {COMPLETE}: a new rollout is begun.")
            return
        shared = load_state(folder / SHARED_STATE)
        written_by = files.read_json(folder / COMPLETE)["num_processes"]
        if written_by != self.accelerator.num_processes:
            get_logger(__name__).warning(
                f"{folder} was written by {written_by} processes and is resumed by {self.accelerator.num_processes}: "
                "a new rollout is begun."
            )
            shared["step"] = 0
            self._restore_shared_state(shared)
            return
        self._restore_shared_state(shared)
        self._restore_rank_state(load_state(folder / RANK_STATE.format(self.accelerator.process_index), device))
