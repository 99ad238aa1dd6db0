"""The lock of a run folder: who is refused, and who takes over from the dead."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from entropy_grpo.config.recipe import Setting
from entropy_grpo.runs import lock
from entropy_grpo.runs.lock import LOCK, InUse, locked
from entropy_grpo.training.claim import claim_folder

HOLD = """
import sys, time
from pathlib import Path
from entropy_grpo.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_until_the_first_one_is_killed(tmp_path, other_process, monkeypatch):
    """Also where the file system grants locks to everybody, and the process is what is looked at."""
    named = rf"process {other_process.pid} on {os.uname().nodename}, since 20"
    with pytest.raises(InUse, match=named), locked(tmp_path):
        pass
    with monkeypatch.context() as context:
        context.setattr(fcntl, "lockf", lambda *args: None)
        with pytest.raises(InUse, match=named), locked(tmp_path):
            pass
    # The same through the settings of a run, whether it goes on or begins.
    args = SimpleNamespace(output_dir=str(tmp_path), run_name="run")
    settings = {"output_dir": Setting(str(tmp_path), "here"), "run_name": Setting("run", "here")}
    for resumes in (True, False):
        with ExitStack() as held, pytest.raises(ValueError, match=named):
            claim_folder(args, settings, resumes, held)
    args.output_dir = str(tmp_path / ("x" * 300))
    with (
        ExitStack() as held,
        pytest.raises(ValueError, match=r"^output_dir is '.*', which cannot be written \(File name too"),
    ):
        claim_folder(args, settings, False, held)
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_a_process_that_took_the_number_of_the_dead_one_does_not_hold_its_lock(tmp_path):
    record = lock._record() | {"started": "1"}
    (tmp_path / LOCK).write_text(json.dumps(record))
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["started"] != "1"


ELSEWHERE = {"host": "node7", "process": 12, "since": "2026-01-01 00:00:00 +0000", "machine": "other", "started": "5"}


def test_a_run_on_another_machine_counts_as_dead_without_heartbeat(tmp_path, monkeypatch, capsys):
    path = tmp_path / LOCK
    path.write_text(json.dumps(ELSEWHERE))
    os.utime(path, (0, 0))
    start = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - start < 1
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(lock, "STALE", 0.2)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    path.write_text(json.dumps(ELSEWHERE))
    with locked(tmp_path):
        assert "was in use by process 12 on node7 a moment ago: waiting up to 0 s" in capsys.readouterr().err


TRY = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("refused")
"""


def test_who_took_over_from_a_run_that_beat_a_moment_ago_has_the_kernels_lock(tmp_path, monkeypatch):
    """It opened the file again to see the heartbeat, and the end of that frees the lock of the whole process."""
    path = tmp_path / LOCK
    path.write_text(json.dumps(ELSEWHERE))
    monkeypatch.setattr(lock, "STALE", 0.2)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    command = [sys.executable, "-c", TRY, str(path)]
    with locked(tmp_path):
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "refused\n"


def test_a_run_on_another_machine_that_beats_is_alive(tmp_path, monkeypatch):
    path = tmp_path / LOCK
    path.write_text(json.dumps(ELSEWHERE))
    monkeypatch.setattr(lock, "STALE", 5.0)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    beat = threading.Timer(0.1, os.utime, [path])
    beat.start()
    with pytest.raises(InUse, match="process 12 on node7, since 2026-01-01"), locked(tmp_path):
        pass
    beat.join()


def test_file_systems_without_locks_do_with_process_and_heartbeat(tmp_path, monkeypatch):
    def without(*args):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", without)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with locked(tmp_path):
        with pytest.raises(InUse, match=f"process {os.getpid()} on"), locked(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()


def test_a_run_beats_and_ends_when_another_one_has_taken_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    lost, path = threading.Event(), tmp_path / LOCK
    with locked(tmp_path, lost.set):
        os.utime(path, (0, 0))
        until = time.monotonic() + 5
        while path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0 and not lost.is_set()
        path.write_text(json.dumps(ELSEWHERE))
        assert lost.wait(5) and "was taken over by another run" in capsys.readouterr().err
    assert json.loads(path.read_text()) == ELSEWHERE  # which is not this run's to delete


def test_an_unreadable_lock_is_taken(tmp_path):
    (tmp_path / LOCK).write_text('{"host": ')
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_a_refused_run_leaves_no_folder_and_a_run_without_a_name_takes_the_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"run_name": Setting("mine", "here")}
    with ExitStack() as first, ExitStack() as second:
        folders = [
            claim_folder(SimpleNamespace(run_name="mine"), settings, False, held).path for held in (first, second)
        ]
        assert [str(folder) for folder in folders] == ["runs/mine", "runs/mine-2"]
    assert not list((tmp_path / "runs").iterdir())
