"""What reaches a tracker: through transformers' own callbacks, read back from the files that real trackers write."""

import importlib.util
import io
import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import CallbackHandler

from entropy_grpo.monitoring.callbacks import RunRecorder
from entropy_grpo.monitoring.trackers import send_plots
from entropy_grpo.runs.files import read_steps
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.training.claim import _tracked_name

from .conftest import DEMO, TINY_DEMO, accelerate_launch

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
    board_callback = handler.callbacks[-1]
    board_callback.on_train_begin(args, state, control)  # RunRecorder's own beginning asks for a model
    for state.global_step, logs in enumerate(LOGS, start=1):
        handler.on_log(args, state, control, logs | {"entropy/positive": None})
    handler.on_train_end(args, state, control)

    (events,) = (path.parent for path in tmp_path.rglob("events.out.tfevents.*"))
    board = EventAccumulator(str(events))
    board.Reload()
    recorded = [row for row in read_steps(RunFolder(tmp_path).metrics) if "reward" in row]
    assert all(row["entropy/positive"] is None for row in recorded)
    assert not any("positive" in tag for tag in board.Tags()["scalars"])
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


@pytest.fixture(scope="module")
def tracked_run(tiny_model, tmp_path_factory, preloaded):
    """A run of the demo recipe whose trackers write to a folder beside it."""
    installed = [name for name in ("wandb", "trackio") if importlib.util.find_spec(name)]
    if not installed:
        pytest.skip("neither wandb nor trackio is installed: pip install 'entropy-grpo[trackers]'")
    folder = tmp_path_factory.mktemp("tracked")
    words = ["--model_name_or_path", tiny_model, "--output_dir", folder / "run", "--report_to", *installed]
    result = accelerate_launch(
        DEMO,
        *TINY_DEMO,
        *words,
        python=preloaded,
        env={"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "TRACKIO_DIR": str(folder / "trackio")},
    )
    assert result.returncode == 0, result.stderr
    return folder


def wandb_rows(folder):
    """What is in W&B's log: records in LevelDB's format, in blocks of 2^15 bytes, the first after a header of 7."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.rglob("run-*.wandb")
    data, place, record, rows = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            items = Record.FromString(record).history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
            record = b""
    return rows


def trackio_rows(folder):
    (path,) = folder.rglob("trackio/*.db")
    with sqlite3.connect(path) as base:
        assert base.execute("select count(distinct run_id) from metrics").fetchone() == (1,)
        return [json.loads(row[0]) for row in base.execute("select metrics from metrics order by id")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_has_its_metrics_and_its_plots_in_the_tracker(tracked_run, name):
    pytest.importorskip(name)
    rows = {"wandb": wandb_rows, "trackio": trackio_rows}[name](tracked_run)
    recorded = [row for row in read_steps(RunFolder(tracked_run / "run").metrics) if "entropy/p95" in row]
    sent = [row for row in rows if "train/entropy/p95" in row]
    assert [row["train/global_step"] for row in sent] == [row["step"] for row in recorded] == [1, 2]
    for row, told in zip(recorded, sent, strict=True):
        values = {f"train/{key}": value for key, value in row.items() if key != "step" and value is not None}
        assert {key: told[key] for key in values} == pytest.approx(values)
        assert None not in told.values()
    for when in ("before", "after"):  # outside the training
        assert sum(f"test/{when}_loss" in row for row in rows) == 1
    pictures = {picture.read_bytes() for picture in (tracked_run / name).rglob("*.png")}
    drawn = {path.read_bytes() for path in (tracked_run / "run" / "plots").glob("*.png")}
    (shown,) = (row for row in rows if any(key.startswith("plots/reward") for key in row))
    assert {key.split("/")[1] for key in shown if key.startswith("plots/")} == {"reward", "entropy", "kept"}
    assert len(drawn) == 3 and drawn <= pictures


def test_runs_have_names_of_their_own():
    assert _tracked_name(Path("runs/demo_cpu-2")) == "demo_cpu-2"
    assert _tracked_name(Path("runs/sweeps/demo/rho-0.1/seed0")) == "sweeps-demo-rho-0.1-seed0"
    assert _tracked_name(Path("/data/rho-0.1/seed0")) == "rho-0.1-seed0" and _tracked_name(Path("/run")) == "run"
