"""Plots of a run in the trackers that `report_to` names. Metrics reach trackers through transformers' callbacks.

Plots are sent before the trackers' callbacks receive `on_train_end`, because some trackers close then. Trackio's run
is opened for evaluations outside the training, because TRL logs the time of each pass even to a closed run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.image import imread
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ..runs import plots
from ..runs.folder import RunFolder
from .callbacks import RunRecorder


def to_tensorboard(callback: TensorBoardCallback, pictures: dict[str, Path], step: int) -> None:
    """Write pictures of an optimiser step, by tag, through the callback's own writer."""
    for tag, path in pictures.items():
        callback.tb_writer.add_image(tag, imread(path), step, dataformats="HWC")


def to_wandb(callback: WandbCallback, pictures: dict[str, Path], step: int) -> None:
    """Log pictures of an optimiser step, by tag, to the open Weights & Biases run."""
    wandb = callback._wandb
    wandb.log({tag: wandb.Image(str(path)) for tag, path in pictures.items()} | {"train/global_step": step})


def to_trackio(callback: TrackioCallback, pictures: dict[str, Path], step: int) -> None:
    """Log pictures of an optimiser step, by tag, to the open Trackio run."""
    trackio = callback._trackio
    trackio.log({tag: trackio.Image(str(path)) for tag, path in pictures.items()} | {"train/global_step": step})


SENDERS: dict[type, Callable[..., None]] = {
    TensorBoardCallback: to_tensorboard,
    WandbCallback: to_wandb,
    TrackioCallback: to_trackio,
}


def open_trackio(trainer: Trainer) -> None:
    """Open Trackio's run if `report_to` names Trackio and the run is closed. After training, the same run reopens."""
    for callback in trainer.callback_handler.callbacks:
        if type(callback) is TrackioCallback and not callback._initialized:
            callback.setup(trainer.args, trainer.state, trainer.model)
            if trainer.is_world_process_zero():
                trainer.args.run_name = callback._trackio.context_vars.current_run.get().name


class PlotSender(TrainerCallback):
    """Draws the plots of a run at the end of its training and sends them to every tracker that can show pictures."""

    def __init__(self, trainer: Trainer):
        self.handler = trainer.callback_handler

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Remove metrics that are None from the logs, because TensorBoard's callback warns about each of them."""
        for name in [name for name, value in (logs or {}).items() if value is None]:
            del logs[name]

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trackers = [callback for callback in self.handler.callbacks if type(callback) in SENDERS]
        if not state.is_world_process_zero or not trackers:
            return
        pictures = {f"plots/{path.stem}": path for path in plots.draw(RunFolder(Path(args.output_dir)))}
        for callback in trackers:
            SENDERS[type(callback)](callback, pictures, state.global_step)


def send_plots(trainer: Trainer) -> None:
    """Add a `PlotSender` to a trainer, after the recorders and before the callbacks that close trackers."""
    callbacks = trainer.callback_handler.callbacks
    recorders = [callback for callback in callbacks if isinstance(callback, RunRecorder)]
    others = [callback for callback in callbacks if callback not in recorders]
    callbacks[:] = [*recorders, PlotSender(trainer), *others]
