"""The pictures of a run in the trackers that `report_to` names; its metrics go there through transformers' callbacks.

They are sent before those callbacks hear that the training is over, since that is when some of them close. Trackio is
opened where something is evaluated outside the training: TRL writes the time of each pass into it, open or not.
"""

from pathlib import Path
from typing import Any

from matplotlib.image import imread
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ..runs import plots
from ..runs.folder import RunFolder
from .callbacks import RunRecorder


def to_tensorboard(callback: TensorBoardCallback, pictures: dict[str, Path], step: int) -> None:
    """Pictures of the optimiser step, by tag, through the callback's own writer."""
    for tag, path in pictures.items():
        callback.tb_writer.add_image(tag, imread(path), step, dataformats="HWC")


def to_wandb(callback: WandbCallback, pictures: dict[str, Path], step: int) -> None:
    """In the open run."""
    wandb = callback._wandb
    wandb.log({tag: wandb.Image(str(path)) for tag, path in pictures.items()} | {"train/global_step": step})


def to_trackio(callback: TrackioCallback, pictures: dict[str, Path], step: int) -> None:
    """In the open run."""
    trackio = callback._trackio
    trackio.log({tag: trackio.Image(str(path)) for tag, path in pictures.items()} | {"train/global_step": step})


SENDERS = {TensorBoardCallback: to_tensorboard, WandbCallback: to_wandb, TrackioCallback: to_trackio}


def open_trackio(trainer: Trainer) -> None:
    """Open Trackio's run, if `report_to` names it and it is closed; after training that is the same run again."""
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
        """Keep what could not be measured, which is None, from the trackers: TensorBoard's complains of each."""
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
    """Have a trainer's plots sent to its trackers, ahead of the callbacks that close them, and behind the records."""
    callbacks = trainer.callback_handler.callbacks
    recorders = [callback for callback in callbacks if isinstance(callback, RunRecorder)]
    others = [callback for callback in callbacks if callback not in recorders]
    callbacks[:] = [*recorders, PlotSender(trainer), *others]
