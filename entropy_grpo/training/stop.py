"""Stops of a run: SIGTERM, as SLURM sends it before it takes the machines away, saves a checkpoint at a step's end."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..objective.ranks import Ranks
from ..runs import seal
from ..runs.launched import REQUEUE, Stopped
from .ranks import ranks_of


class StopAtStepEnd(TrainerCallback):
    """Stops the training at the end of the optimiser step in which a rank received SIGTERM, with a checkpoint.

    The checkpoint is there after the rest of the step and the time that writing takes. On receipt the log says how
    long the last step and the last checkpoint took.

    Attributes:
        happened: whether the training was stopped.
    """

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.asked = self.happened = False
        self.step_began = time.monotonic()
        self.step_ended = self.step_seconds = self.save_seconds = 0.0
        self.before: Any = signal.SIG_DFL

    def _ask(self, *_: Any) -> None:
        first, self.asked = not self.asked, True
        if first and self.ranks.index == 0:
            known = ((self.step_seconds, "step"), (self.save_seconds, "checkpoint"))
            took = " and ".join(f"{seconds:.1f} s for the last {what}" for seconds, what in known if seconds)
            text = f"SIGTERM: a checkpoint follows at the end of this step{f' ({took})' if took else ''}.\n"
            os.write(2, text.encode())  # a handler must not print: it may have interrupted a print

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any):
        self.before = signal.signal(signal.SIGTERM, self._ask)
        self.step_began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        self.step_ended = time.monotonic()
        self.step_seconds, self.step_began = self.step_ended - self.step_began, self.step_ended
        if self.ranks.largest(int(self.asked)):  # all ranks stop at the same step
            self.happened = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        if self.happened:  # at the end of the step all has been done
            control.should_save = control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any):
        self.step_began = time.monotonic()
        self.save_seconds = self.step_began - self.step_ended

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        signal.signal(signal.SIGTERM, self.before)


def train_unless_stopped(trainer: Any, checkpoint: str | None, finish: Callable[[Any], None]) -> None:
    """Train, from a checkpoint if there is one.

    Args:
        finish: called with the trainer if it was stopped.

    Raises:
        Stopped: the process was asked to stop.
    """
    stop = StopAtStepEnd(ranks_of(trainer.accelerator))
    trainer.add_callback(stop)
    trainer.train(resume_from_checkpoint=checkpoint)
    if stop.happened:
        step = trainer.state.global_step
        advice = seal.continuation(Path(trainer.args.output_dir))
        sentence = f"the run was stopped by SIGTERM after step {step}: {advice}."
        finish(trainer)
        raise Stopped(sentence, REQUEUE)
