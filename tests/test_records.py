"""Files of a run folder after what a killed run, odd text or a failing writer does to them."""

import json
import os
import platform
import subprocess
import sys

import pytest

from entropy_grpo.runs import files

UNICODE = {
    "text": "Größe π² 中文 \U0001f600 e\u0301",
    # Characters at which some readers end a line, though JSON lines do not.
    "breaks": "a\nb\r\nc\u2028d\u2029e\x85f\x0bg\x0ch",
    "quotes": '"\\boxed{1}" \\n \x00\t',
}


def test_rows_are_appended_in_order(tmp_path):
    path = tmp_path / "deep" / "folder" / "rows.jsonl"
    files.append_jsonl(path, [{"a": 1}, {"a": 2}])
    files.append_jsonl(path, iter([{"a": 3}]))
    files.append_jsonl(path, [])
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n{"a": 3}\n'
    assert list(files.read_jsonl(path)) == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_appending_after_a_line_cut_anywhere_loses_no_complete_row(tmp_path):
    first, second, third = {"step": 1, "text": "eins"}, {"step": 2, "text": "zwei µ\U0001f600"}, {"step": 3}
    complete = json.dumps(first).encode() + b"\n"
    last = json.dumps(second, ensure_ascii=False).encode() + b"\n"
    for cut in range(len(last) + 1):  # also in the middle of a character
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(complete + last[:cut])
        whole = [second] if cut >= len(last) - 1 else []
        assert list(files.read_jsonl(path)) == [first, *whole]
        files.append_jsonl(path, [third])
        files.append_jsonl(path, [third])
        assert list(files.read_jsonl(path)) == [first, *whole, third, third]
        assert path.read_bytes().startswith(complete + last[:cut])


def test_a_row_that_cannot_be_written_leaves_those_before_it_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(TypeError):
        files.append_jsonl(path, [{"a": 1}, {("no", "key"): 1}])
    assert path.read_bytes() == b'{"a": 1}\n'


def test_unicode_survives_appending_and_replacing(tmp_path):
    appended, replaced, written = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.json"
    files.append_jsonl(appended, [UNICODE, {"a": 1}])
    files.replace_jsonl(replaced, [UNICODE, {"a": 1}])
    files.write_json(written, UNICODE)
    assert list(files.read_jsonl(appended)) == list(files.read_jsonl(replaced)) == [UNICODE, {"a": 1}]
    assert files.read_json(written) == UNICODE
    # Readable by eye and by any other reader of JSON lines, which end at \n alone.
    for path in (appended, replaced):
        assert "Größe π² 中文 \U0001f600" in path.read_text(encoding="utf-8")
        assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == [UNICODE, {"a": 1}]


def test_replacing_leaves_the_old_file_to_those_who_have_it_open(tmp_path):
    # A file that were emptied and written again would show them a part, or nothing.
    path, other_name = tmp_path / "rows.jsonl", tmp_path / "old.jsonl"
    files.replace_jsonl(path, [{"a": i} for i in range(3)])
    os.link(path, other_name)
    with path.open() as reader:
        assert reader.readline() == '{"a": 0}\n'
        files.replace_jsonl(path, [{"b": 1}])
        assert reader.read() == '{"a": 1}\n{"a": 2}\n'
    assert list(files.read_jsonl(other_name)) == [{"a": 0}, {"a": 1}, {"a": 2}]
    assert path.read_bytes() == b'{"b": 1}\n'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old.jsonl", "rows.jsonl"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    files.replace_jsonl(path, [{"a": 1}])

    def rows():
        yield {"b": 1}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        files.replace_jsonl(path, rows())
    with pytest.raises(TypeError):
        files.replace_jsonl(path, [{"b": 1}, {("no", "key"): 1}])
    assert path.read_bytes() == b'{"a": 1}\n'


def test_replacing_passes_over_what_a_killed_writer_left_beside_the_file(tmp_path):
    path = tmp_path / "evaluation.json"
    files.write_json(path, {"a": 1})
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f".evaluation.json.{platform.node()}-{ended.pid}-{ended.pid}.tmp").write_text('{"a": 2, "half')
    assert files.read_json(path) == {"a": 1}
    files.write_json(path, {"a": 3})
    assert files.read_json(path) == {"a": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]


REPLACE_TOGETHER = """
import os, sys
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from entropy_grpo.runs import files
context = get_context("fork")
barrier = context.Barrier(4)
failed = context.Value("i", 0)

def write():
    try:
        files.write_text(Path(sys.argv[1]), "whole" * 1000)
    except OSError:
        failed.value += 1

def several():
    for _ in range(50):
        barrier.wait()
        threads = [Thread(target=write) for _ in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]

processes = [context.Process(target=several) for _ in range(4)]
[process.start() for process in processes]
[process.join() for process in processes]
print(failed.value)
"""


def test_processes_and_threads_may_replace_a_file_at_the_same_time(tmp_path):
    """All ranks of a machine name the run's folder to their launcher at the same moment."""
    path = tmp_path / "run"
    command = [sys.executable, "-c", REPLACE_TOGETHER, str(path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"
    assert path.read_text() == "whole" * 1000 and list(tmp_path.iterdir()) == [path]


def test_an_absent_file_reads_as_nothing(tmp_path):
    assert list(files.read_jsonl(tmp_path / "absent.jsonl")) == []
    assert files.read_json(tmp_path / "absent.json") == {}
    assert list(tmp_path.iterdir()) == []


def test_an_object_with_values_of_other_types_is_written_as_text(tmp_path):
    path = tmp_path / "new" / "environment.json"
    files.write_json(path, {"output_dir": tmp_path, "seed": 1, "delta": None})
    assert json.loads(path.read_text()) == {"output_dir": str(tmp_path), "seed": 1, "delta": None}
