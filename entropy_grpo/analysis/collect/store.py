"""Collection on disk: responses, and every checkpoint's statistics of their tokens.

    DIR/settings.json                   settings that decide the figures
    DIR/responses.parquet               id, prompt, response, correct, prompt_ids, completion_ids
    DIR/tokens/NAME/part-00000.parquet  one row per token of checkpoint NAME, with the columns `TOKENS`

Row group i of the responses and part i of every checkpoint hold the same responses, and parts are written atomically.
The tokens therefore need not fit in memory, and a killed run continues with the first missing part.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...runs import files, parquet
from ...runs.folder import RunFolder

RESPONSES = pa.schema(
    [
        ("id", pa.int32()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("correct", pa.bool_()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
    ]
)
TOKENS = pa.schema(
    [
        ("response", pa.int32()),
        ("position", pa.int32()),
        ("token", pa.int32()),
        ("text", pa.dictionary(pa.int32(), pa.string())),
        ("entropy", pa.float32()),
        ("log_prob", pa.float32()),
        ("gradient", pa.float32()),
        ("correct", pa.bool_()),
        ("checkpoint", pa.dictionary(pa.int32(), pa.string())),
    ]
)
RIGHT, WRONG, UNKNOWN = 1, 0, -1
_STEP = re.compile(r"(?:checkpoint|step)-(\d+)")

Columns = dict[str, np.ndarray]


def by_step(names: Sequence[str]) -> list[str]:
    """Return names of checkpoints in the order of their steps, because a shell sorts `step-*` as text; others last."""
    steps = {name: int(match[1]) for name in names if (match := _STEP.fullmatch(name))}
    return sorted(names, key=lambda name: steps.get(name, math.inf))


@dataclass(frozen=True)
class Collection:
    """Files of a collection, written by `collect` and read by every view."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def responses(self) -> Path:
        return self.path / "responses.parquet"

    def part(self, checkpoint: str, number: int) -> Path:
        return self.path / "tokens" / checkpoint / f"part-{number:05d}.parquet"

    @property
    def checkpoints(self) -> list[str]:
        """Names of complete checkpoints: first the baseline of comparisons, then all by their steps."""
        named = [*files.read_json(self.settings).get("checkpoints", {})]
        ordered = named[:1] + by_step(named[1:])
        return [name for name in ordered if all(self.part(name, i).exists() for i in range(self.num_parts))]

    @property
    def num_parts(self) -> int:
        with parquet.opened(self.responses) as file:
            return file.metadata.num_row_groups

    @property
    def num_responses(self) -> int:
        return _num_rows(self.responses)

    @property
    def num_tokens(self) -> int:
        first = self.checkpoints[0]
        return sum(_num_rows(self.part(first, i)) for i in range(self.num_parts))

    def parts(self, checkpoint: str, names: Sequence[str]) -> Iterator[Columns]:
        """Yield columns (n,) of a checkpoint's tokens, part by part. `correct` is `RIGHT`, `WRONG` or `UNKNOWN`.

        A column that a file lacks is NaN: collections of earlier versions have no `gradient`.
        """
        for i in range(self.num_parts):
            table = parquet.read(self.part(checkpoint, i), names)
            absent = np.full(len(table), np.nan, np.float32)
            yield {name: _array(table[name]) if name in table.column_names else absent for name in names}

    def column(self, checkpoint: str, name: str) -> np.ndarray:
        """Return a whole column (N,), four bytes per token, for views that sort it."""
        arrays = [part[name] for part in self.parts(checkpoint, [name])]
        return np.concatenate(arrays) if arrays else np.zeros(0, np.float32)

    def texts(self) -> dict[int, str]:
        """Return the text of every token that occurs, by id."""
        texts: dict[int, str] = {}
        for checkpoint in self.checkpoints[:1]:
            for part in self.parts(checkpoint, ["token", "text"]):
                tokens, first = np.unique(part["token"], return_index=True)
                texts |= dict(zip(tokens.tolist(), part["text"][first].tolist(), strict=True))
        return texts


def _array(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_boolean(column.type):
        return pc.fill_null(pc.cast(column, pa.int8()), UNKNOWN).to_numpy()
    return column.to_numpy()


def _num_rows(path: Path) -> int:
    with parquet.opened(path) as file:
        return file.metadata.num_rows


def find(path: str | Path) -> Collection:
    """Return the collection in a folder, or in `analysis/` of a run.

    Raises:
        ValueError: neither folder holds collected tokens.
    """
    for folder in (Path(path), RunFolder(Path(path)).analysis):
        collection = Collection(folder)
        if collection.responses.exists() and collection.checkpoints:
            return collection
    raise ValueError(f"{path} holds no collected tokens: run entropy-grpo analyze collect ... --output {path}.")
