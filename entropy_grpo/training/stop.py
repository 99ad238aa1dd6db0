"""Stops of a run: SIGTERM, as SLURM sends it before it takes the machines away, saves a checkpoint.

Where SIGTERM finds a run decides how long the checkpoint takes, apart from the time that writing it takes:

- before the training the process ends at once, and nothing is lost;
- a rollout or an evaluation is left at the next token, after which a continued run begins it again. Rewards end first;
- an optimiser step ends first, and so does a save, which is then the checkpoint;
- the final save ends first, and with it the run.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria, TrainerCallback

from ..objective.ranks import Ranks
from ..runs import seal
from ..runs.launched import REQUEUE, Leave, Stopped
from .ranks import ranks_of


class RandomStates:
    """States of the generators that TRL's checkpoints hold, at the time of construction."""

    def __init__(self):
        self.states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self.device = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        """Return the generators to these states."""
        python, numpy, torchs = self.states
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torchs)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device)


class Stop(TrainerCallback, StoppingCriteria):
    """Stops the training after SIGTERM on any rank, with a checkpoint. All ranks stop at the same place.

    Attributes:
        asked: whether this rank received SIGTERM.
        happened: whether the training was stopped.
        evaluation_due: whether a continued run has to make up for an evaluation that the stop left out.
    """

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.asked = self.happened = self.evaluation_due = False
        self.step_began = time.monotonic()
        self.step_ended = self.step_seconds = self.save_seconds = 0.0
        self.before: Any = None
        self.at_step_end = RandomStates()

    def _ask(self, *_: Any) -> None:
        first, self.asked = not self.asked, True
        if first and self.ranks.index == 0:
            known = ((self.step_seconds, "step"), (self.save_seconds, "checkpoint"))
            took = " and ".join(f"{seconds:.1f} s for the last {what}" for seconds, what in known if seconds)
            when = f"at the latest at the end of this step{f' ({took})' if took else ''}"
            text = f"SIGTERM: a checkpoint follows, {when}.\n"
            os.write(2, text.encode())  # a handler must not print: it may have interrupted a print

    def release(self) -> None:
        """Give SIGTERM back its meaning before the training."""
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    # Rollouts and evaluations

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(B,) bool: whether each response ends at this token."""
        return torch.full((len(input_ids),), self.asked, device=input_ids.device)

    def leave_if_asked(self, in_evaluation: bool = False) -> None:
        """Leave a rollout or an evaluation of the training if a rank was asked to stop. Every rank must call this.

        Raises:
            Leave: a rank was asked.
        """
        if not self.ranks.largest(int(self.asked)):
            return
        if in_evaluation:
            self.evaluation_due = True
            self.at_step_end.restore()
        raise Leave

    # The training loop

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any):
        self.before = signal.signal(signal.SIGTERM, self._ask)
        self.step_began = time.monotonic()

    def _stops(self, control: Any) -> bool:
        if self.ranks.largest(int(self.asked)):
            self.happened = control.should_training_stop = True
        return self.happened

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        self.step_ended = time.monotonic()
        self.step_seconds, self.step_began = self.step_ended - self.step_began, self.step_ended
        self.at_step_end = RandomStates()
        if self._stops(control):
            self.evaluation_due, control.should_evaluate, control.should_save = control.should_evaluate, False, True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        if self.happened:  # at the end of the step all has been done
            control.should_save = control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any):
        self.step_began = time.monotonic()
        self.save_seconds = self.step_began - self.step_ended
        self._stops(control)


@contextmanager
def stoppable(trainer: Any, finish: Callable[[Any], None]) -> Iterator[None]:
    """Handle SIGTERM from the beginning of the training in the body of the `with` statement until the body ends.

    Args:
        finish: called with the trainer if it was stopped.

    Raises:
        Stopped: the process was asked to stop before the training and the evaluation after it were over.
    """
    stop = trainer.stop = Stop(ranks_of(trainer.accelerator))
    trainer.add_callback(stop)
    try:
        yield
        return
    except Leave:
        pass
    finally:
        stop.release()
    step, advice = trainer.state.global_step, seal.continuation(Path(trainer.args.output_dir))
    finish(trainer)
    raise Stopped(f"the run was stopped by SIGTERM after step {step}: {advice}.", REQUEUE)


def train(trainer: Any, checkpoint: str | None) -> None:
    """Train in `stoppable`, from a checkpoint if there is one.

    Raises:
        Leave: the training was stopped.
    """
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.stop.happened:
        raise Leave


class Colocated:
    """Lets vLLM in the training processes leave a rollout between two steps of its engine.

    The responses are then one token long, so that the processes reach the place at which all of them leave. An engine
    on several GPUs takes its steps together on all of them, and finishes the rollout.

    Args:
        generation: TRL's, whose `generate` and whose engine's `step` are replaced.
        leaves: whether this process was asked to leave the rollout.
        end: the token of these responses.
    """

    def __init__(self, generation: Any, leaves: Callable[[], bool], end: int):
        self.leaves, self.end = leaves, end
        if generation.tensor_parallel_size == 1:
            self._generate, self._step = generation.generate, generation.llm.llm_engine.step
            generation.generate, generation.llm.llm_engine.step = self.generate, self.step

    def step(self) -> Any:
        """Take a step of the engine, or leave."""
        if self.leaves():
            raise Leave
        return self._step()

    def generate(self, prompts: list[list[int]], *others: Any, **named: Any) -> tuple[list, list, list, list]:
        """Return what TRL's `VLLMGeneration.generate` returns."""
        try:
            return self._generate(prompts, *others, **named)
        except Leave:
            count = len(prompts)
            return prompts, [[self.end]] * count, [[[0.0]]] * count, [[[self.end]]] * count
