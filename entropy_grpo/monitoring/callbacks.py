"""Callbacks of a training: a recorder for the run folder, a progress bar, and the watchers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from peft import PeftModel
from transformers import ProgressCallback, TrainerCallback

from ..metrics.logged import ENTROPIES
from ..objective.objective import Objective
from ..runs import files
from ..runs.environment import git_revision, hardware, peak_memory, versions
from ..runs.folder import RunFolder
from .watchers import WATCHERS, Log


class RunRecorder(TrainerCallback):
    """Writes `environment.json`, `metrics.jsonl` and `samples.jsonl` of the run folder, on the first rank.

    `samples` is a function that returns the sample rows of the next log. Tokens are thus decoded only on the first
    rank and only for a log. Logs are ignored while `paused`, because they come from an evaluation.

    Args:
        objective: what the run computes; None for a run that imitates responses.
    """

    def __init__(self, objective: Objective | None = None):
        self.objective = objective
        self.samples: Callable[[], list[dict[str, Any]]] = list
        self.paused = False

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any):
        if not state.is_world_process_zero:
            return
        environment = {
            "versions": versions(),
            "git_revision": git_revision(),
            "hardware": hardware(),
            "num_processes": args.world_size,
            "distributed": str(args.parallel_mode.value),
            "base_model": model.config._name_or_path,
            # PEFT counts, for any model, whole weights of what ZeRO-3 partitions and 4 bits pack.
            "parameters": PeftModel.get_nb_trainable_parameters(model)[1],
            "arguments": args.to_dict(),
        }
        if self.objective is not None:
            environment["objective"] = self.objective.record()
        folder = RunFolder(Path(args.output_dir))
        files.write_json(folder.environment, environment)
        for path in (folder.metrics, folder.samples, folder.warnings):
            if path.exists():
                files.append_jsonl(path, [{"step": state.global_step, "resumed_from": state.global_step}])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any):
        if not state.is_world_process_zero or self.paused:
            return
        folder = RunFolder(Path(args.output_dir))
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in logs.items()}
        files.append_jsonl(folder.metrics, [{"step": state.global_step, **finite}])
        samples, self.samples = self.samples(), list
        files.append_jsonl(folder.samples, [{"step": state.global_step, **sample} for sample in samples])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        if state.is_world_process_zero:
            row = {"step": state.global_step, "peak_memory": peak_memory()}
            files.append_jsonl(RunFolder(Path(args.output_dir)).metrics, [row])


class RewardProgress(ProgressCallback):
    """One bar for the training, with reward, accuracy and entropy, and one for each evaluation outside of it."""

    SHOWN = ("reward", "accuracy", *(f"{prefix}/mean" for prefix in ENTROPIES))

    def __init__(self):
        super().__init__()
        self.latest: dict[str, str] = {}

    def on_train_begin(self, *args: Any, **kwargs: Any):
        super().on_train_begin(*args, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("training")

    def on_prediction_step(self, *args: Any, **kwargs: Any):
        if self.training_bar is None:
            super().on_prediction_step(*args, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.set_description("held-out problems")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any):
        if self.training_bar is None:
            return
        # Rewards are logged once per rollout and entropy at every step, so the bar shows the latest value of each.
        self.latest |= {name: f"{logs[name]:.3f}" for name in self.SHOWN if logs.get(name) is not None}
        self.training_bar.set_postfix(self.latest)
        held_out = logs.get("eval_accuracy")
        if held_out is not None:
            self.training_bar.write(f"step {state.global_step}: held-out accuracy {held_out:.3f}")


class Watch(TrainerCallback):
    """Callback that runs the watchers. Each watcher warns once per run, in the log and in `warnings.jsonl`.

    Watchers read the trainer's log history, which every rank has and every checkpoint holds. All ranks therefore
    decide alike, and a resumed run still has the values of its start. They do not look while the recorder is paused,
    because nothing can be stopped before and after the training.

    Args:
        actions: `off`, `warn` or `stop` for watchers by name; `warn` by default. `stop` saves a checkpoint and ends
            the run.
        kept_share: share of tokens that the run should keep, NaN if it is not known beforehand.
        recorder: the run's.
    """

    def __init__(self, actions: dict[str, str], kept_share: float, recorder: RunRecorder):
        self.recorder = recorder
        self.actions = {name: actions.get(name, "warn") for name in WATCHERS}
        self.kept_share = kept_share
        self.seen: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any):
        rows = files.read_steps(RunFolder(Path(args.output_dir)).warnings)
        self.seen = {row["watcher"] for row in rows if row["step"] <= state.global_step}

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any):
        if self.recorder.paused:
            return control
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
                files.append_jsonl(RunFolder(Path(args.output_dir)).warnings, [row])
            if action == "stop":
                control.should_save = control.should_training_stop = True
        return control
