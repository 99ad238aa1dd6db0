"""What reaches a tracker: through transformers' own callbacks, read back from the files of a real TensorBoard."""

import io
from types import SimpleNamespace

import pytest
from PIL import Image
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import CallbackHandler

from entropy_grpo.callbacks import RunRecorder
from entropy_grpo.records import RunFolder, read_steps
from entropy_grpo.trackers import send_plots

LOGS = [
    {"reward": 0.25, "entropy": 0.5, "entropy/p95": 1.5, "selection/kept_fraction": 0.2},
    {"reward": 0.75, "entropy": 0.375, "entropy/p95": 1.25, "selection/kept_fraction": 0.2},
]


def test_tensorboard_gets_the_metrics_and_the_plots(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    handler = CallbackHandler([TensorBoardCallback(), RunRecorder()], None, None, None, None)
    send_plots(SimpleNamespace(callback_handler=handler))
    handler.callbacks[1].on_train_begin(args, state, control)  # RunRecorder's own beginning asks for a model
    for state.global_step, logs in enumerate(LOGS, start=1):
        handler.on_log(args, state, control, dict(logs))
    handler.on_train_end(args, state, control)

    (events,) = (path.parent for path in tmp_path.rglob("events.out.tfevents.*"))
    board = EventAccumulator(str(events))
    board.Reload()
    recorded = [row for row in read_steps(RunFolder(tmp_path).metrics) if "reward" in row]
    for name in LOGS[0]:
        (tag,) = (tag for tag in board.Tags()["scalars"] if tag.removeprefix("train/") == name)
        assert [(event.step, event.value) for event in board.Scalars(tag)] == [
            (row["step"], pytest.approx(row[name])) for row in recorded
        ]
    assert set(board.Tags()["images"]) == {"plots/reward", "plots/entropy", "plots/kept"}
    for tag in board.Tags()["images"]:
        (event,) = board.Images(tag)
        sent = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
        drawn = Image.open(tmp_path / f"{tag}.png").convert("RGB")
        assert event.step == 2 and sent.tobytes() == drawn.tobytes()
