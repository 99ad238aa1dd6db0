"""Rows of local files. Every fault of a file is reported in one sentence with the file and the line.

A path is a name and never a pattern, so that brackets and asterisks have no special meaning. JSON is one object per
line or one array of objects. Text is UTF-8, with or without a byte order mark.
"""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .sources import FILE_FORMATS, Row, format_of

# First bytes of files that are no UTF-8 text -> format and remedy.
_FOREIGN = {
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"\x1f\x8b": "a compressed file: unpack it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"PAR1": "a Parquet file: let its name end in .parquet",
}
_BATCH = 1024
_NARROW: dict[pa.DataType, type[np.floating]] = {pa.float16(): np.float16, pa.float32(): np.float32}

# (place, row). The place is "line 3", counted from 1, or "row 2", counted from 0.
Placed = tuple[str, Row]


class Rows(NamedTuple):
    """Rows of a data set and their places in it.

    Attributes:
        columns: names of all columns, in the order in which they appear.
        places: place of each row for messages, such as "line 3 of FILE".
    """

    columns: list[str]
    rows: list[Row]
    places: list[str]


class _Fault(ValueError):
    """Fault in a file, in a phrase without the file's name."""


def load(subject: str, path: str) -> Rows:
    """Return all rows of a local file. `iterate` has the errors."""
    places, rows = zip(*iterate(subject, path), strict=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Rows(columns, list(rows), [f"{place} of {path}" for place in places])


def iterate(subject: str, path: str) -> Iterator[Placed]:
    """Stream the rows of a local file.

    Args:
        subject: beginning of messages, which names the setting and the file.

    Raises:
        ValueError: the file is missing, cannot be read, or has no rows.
    """
    check_path(subject, path)
    number = 0
    try:
        for number, placed in enumerate(_READERS[format_of(path)](path), 1):  # noqa: B007
            yield placed
    except _Fault as fault:
        raise ValueError(f"{subject}: {fault}.") from fault
    except OSError as error:
        raise ValueError(f"{subject}: it cannot be read ({error.strerror or error}).") from error
    if not number:
        raise ValueError(f"{subject}: the file has no rows.")


def check_path(subject: str, path: str) -> None:
    """Refuse a path that is no file of a known format.

    Raises:
        ValueError: the path is missing, is a folder or another special file, or has another ending.
    """
    if os.path.isdir(path):
        raise ValueError(f"{subject}: that is a folder: name a file in it.")
    if not os.path.exists(path):
        raise ValueError(f"{subject}: there is no such file.")
    if not os.path.isfile(path):
        raise ValueError(f"{subject}: that is no file.")
    if format_of(path) is None:
        raise ValueError(f"{subject}: a file's name must end in {' or '.join(FILE_FORMATS)}.")


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Return the lines of a text file with their numbers from 1, without a byte order mark."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                for start, what in _FOREIGN.items():
                    if line.startswith(start):
                        raise _Fault(f"its content is {what}")
            if b"\0" in line:
                raise _Fault(f"line {number} has null bytes, as UTF-16 and binary files have: save it as UTF-8")
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise _Fault(f"line {number} is not UTF-8 (byte 0x{byte:02x}): save the file as UTF-8") from error


def _json(path: str) -> Iterator[Placed]:
    lines = _lines(path)
    for number, line in lines:
        if line.lstrip().startswith("["):
            yield from _array(number, line + "".join(rest for _, rest in lines))
        elif line.strip():
            yield f"line {number}", _as_row(f"line {number}", _parsed(number, line))


def _array(first: int, text: str) -> Iterator[Placed]:
    """Return the objects of one array, which begins in line `first`."""
    for number, value in enumerate(_parsed(first, text)):
        yield f"row {number}", _as_row(f"row {number}", value)


def _as_row(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise _Fault(f"{place} is {value!r:.60}, where an object with columns belongs")
    return value


def _parsed(first: int, text: str) -> Any:
    """Return the value of a JSON text that begins in line `first` of its file."""
    where = f"line {first}"
    try:
        value = json.loads(text.rstrip(), object_pairs_hook=_without_repeats)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        line = first + error.lineno - 1
        raise _Fault(
            f"line {line} is not JSON ({error.msg.removesuffix(' at')} at column {error.colno}): mend the line"
        ) from error
    except UnicodeEncodeError as error:
        raise _Fault(
            f"{where} has half of a surrogate pair, \\u{ord(error.object[error.start]):04x}: mend it"
        ) from error
    except RecursionError as error:
        raise _Fault(f"{where} is nested too deeply") from error
    except ValueError as error:  # a repeated name, or an integer that Python does not read
        raise _Fault(f"{where} cannot be read ({str(error).split(';')[0]})") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return named


def _check_columns(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise _Fault(f"two columns are named {name!r}: rename one")


def _csv(path: str) -> Iterator[Placed]:
    """Return the rows of comma-separated values, all of them text."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        names = next(reader, [])
        _check_columns(names)
        for fields in filter(None, reader):
            if len(fields) != len(names):
                raise _Fault(f"line {reader.line_num} has {len(fields)} fields, where {len(names)} belong")
            yield f"line {reader.line_num}", dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise _Fault(f"line {reader.line_num} is not CSV ({error}): mend the line") from error


def narrow_columns(schema: pa.Schema) -> dict[str, type[np.floating]]:
    """Return the columns of numbers in half or single precision, with NumPy's type of each."""
    return {field.name: _NARROW[field.type] for field in schema if field.type in _NARROW}


def with_shortest(row: Row, narrow: Mapping[str, type[np.floating]]) -> Row:
    """Return a row whose `narrow` numbers are those of their shortest texts: 0.1 instead of 0.10000000149011612."""
    return {**row, **{name: float(str(kind(row[name]))) for name, kind in narrow.items() if row[name] is not None}}


def _parquet(path: str) -> Iterator[Placed]:
    try:
        # pyarrow takes only names in UTF-8.
        with open(path, "rb") as content, pq.ParquetFile(content) as file:
            _check_columns(file.schema_arrow.names)
            narrow = narrow_columns(file.schema_arrow)
            number = 0
            for batch in file.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    yield f"row {number}", with_shortest(row, narrow)
                    number += 1
    except _Fault:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _Fault(f"it is not read as Parquet ({str(error).strip().splitlines()[0]:.200})") from error


_READERS: dict[str, Callable[[str], Iterator[Placed]]] = {
    ".jsonl": _json,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}
