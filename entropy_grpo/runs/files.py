"""Files of JSON rows and JSON objects. A killed run loses nothing that it has written.

A file is either replaced in one step or only appended to.
"""

import json
import os
import platform
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from .processes import started

Row = dict[str, Any]
T = TypeVar("T")
# For bytes of file names that are no UTF-8, which Python holds as half surrogates: JSON's own escape, as in "\\udcff".
ESCAPE = "backslashreplace"


def refuse_bytes(setting: str, folder: str | Path) -> None:
    """Refuse a folder of a model whose name is not UTF-8, because the library tokenizers takes no such name.

    Raises:
        ValueError: the message names the setting.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{setting} is {str(folder)!r}, whose name is not UTF-8, as tokenizers needs it: rename the folder."
        ) from error


def append_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Append rows, one line each. A line that a killed run left unfinished is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str).encode(errors=ESCAPE) + b"\n")


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a file, none if it is absent. An unfinished line, which only a killed run leaves, is skipped."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def read_steps(path: Path) -> list[Row]:
    """The valid rows of `metrics.jsonl` or `samples.jsonl`.

    A run that was killed may have rows of later steps than the checkpoint from which it was resumed. A row with
    `resumed_from` makes the rows after that step void.
    """
    rows: list[Row] = []
    for row in read_jsonl(path):
        if "resumed_from" in row:
            rows = [earlier for earlier in rows if earlier["step"] <= row["resumed_from"]]
        else:
            rows.append(row)
    return rows


def read_whole(path: Path, read: Callable[[Path], T]) -> T:
    """Return what `read` makes of a file.

    Raises:
        ValueError: the file cannot be read, as one that was cut while it was copied. The message names the file.
    """
    try:
        return read(path)
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the file system, not of the content
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read ({reason}): restore it, or move it out of the folder.") from error


def read_samples(path: Path) -> list[Row]:
    """The rows of `samples.jsonl` that have tokens. A response that was cut off and masked has none."""
    return [row for row in read_steps(path) if row.get("entropies")]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch path to write to, and then replace the file by the scratch file in one step.

    An exception leaves the file unchanged. Several processes and threads of several machines may replace a file at the
    same time, because each has its own scratch file. Scratch files of this machine's ended processes are deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = f".{path.name}.{platform.node().replace('/', '-')}-"
    scratch = path.with_name(f"{mine}{os.getpid()}-{threading.get_native_id()}.tmp")
    yield scratch
    scratch.replace(path)
    for left in path.parent.glob(".*.tmp"):
        owner = re.fullmatch(rf"{re.escape(mine)}(\d+)-\d+\.tmp", left.name)
        if owner and started(int(owner[1])) is None:
            left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors=ESCAPE)


def replace_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Replace a file by rows."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def read_json(path: Path) -> Row:
    """The object in a file, empty if the file is absent.

    Raises:
        ValueError: the file cannot be read, or holds no object. The message names the file.
    """
    return read_mapping(path, lambda path: json.loads(path.read_text(encoding="utf-8")))


def read_mapping(path: Path, read: Callable[[Path], Any]) -> Row:
    """The mapping that `read` makes of a file, as `read_json` does."""
    mapping = read_whole(path, read) if path.exists() else {}
    if not isinstance(mapping, dict):
        raise ValueError(f"{path} holds no mapping: restore it, or move it out of the folder.")
    return mapping


def write_json(path: Path, value: Row) -> None:
    """Replace a file by an object."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")
