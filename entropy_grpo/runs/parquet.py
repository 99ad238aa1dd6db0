"""Parquet files by any name.

pyarrow takes only names in UTF-8, and `read_table` makes a column of a folder named `a=b`. Here it sees open files.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from . import files


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file to read its parts."""
    with path.open("rb") as content, pq.ParquetFile(content) as file:
        yield file


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file, or only some of its columns; names that it lacks are passed over."""
    with opened(path) as file:
        return file.read(None if columns is None else list(columns))


@contextmanager
def writing(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Replace a file atomically by the row groups that the body writes."""
    with files.replacing(path) as scratch, scratch.open("wb") as content, pq.ParquetWriter(content, schema) as writer:
        yield writer


def write(path: Path, table: pa.Table) -> None:
    """Replace a file atomically by a table."""
    with files.replacing(path) as scratch, scratch.open("wb") as content:
        pq.write_table(table, content)
