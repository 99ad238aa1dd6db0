"""Runs the watchers over a run's log, warns of what they see, and ends the run where that was asked for."""

from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from transformers import TrainerCallback

from . import records
from .records import RunFolder
from .watchers import WATCHERS, Log


class Watch(TrainerCallback):
    """Each watcher speaks once in a run, in the log and in `warnings.jsonl`.

    What it reads is the trainer's own log history, which every rank has, and which a checkpoint holds: so all ranks
    decide alike, and a run that goes on from a checkpoint knows its start.
    """

    def __init__(self, actions: dict[str, str], kept_share: float):
        self.actions = {name: actions.get(name, "warn") for name in WATCHERS}
        self.kept_share = kept_share
        self.seen: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any):
        rows = records.read_steps(RunFolder(Path(args.output_dir)).warnings)
        self.seen = {row["watcher"] for row in rows if row["step"] <= state.global_step}

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any):
        log = Log(state.log_history, self.kept_share)
        for name, action in self.actions.items():
            if action == "off" or name in self.seen:
                continue
            sentence = WATCHERS[name](log)
            if sentence is None:
                continue
            self.seen.add(name)
            get_logger(__name__).warning(f"Step {state.global_step}, {name}: {sentence}")
            if state.is_world_process_zero:
                row = {"step": state.global_step, "watcher": name, "action": action, "sentence": sentence}
                records.append_jsonl(RunFolder(Path(args.output_dir)).warnings, [row])
            if action == "stop":
                control.should_save = control.should_training_stop = True
        return control
