"""Responses to analyse, from a file or from results of `entropy-grpo eval`.

Each response is tokenized once, by the tokenizer of the first checkpoint, so that every checkpoint reads the same ids.
Sampled ids in a file (`prompt_ids`, `completion_ids`) are kept. Text is tokenized again, which may split a word
differently from the sampled tokens.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...data import rows as data_rows
from ...grading import Verdict
from ...runs import files
from ...runs.files import Row
from .store import RESPONSES, Collection

# Names of the response column: in results of `entropy-grpo eval`, and in a run's `answers/`.
TEXT_COLUMNS = ("response", "completion")


def read(path: Path) -> Iterator[Mapping[str, Any]]:
    """Stream the rows of a file, as `data.rows` reads them.

    Raises:
        ValueError: the file cannot be read; the message names it and the place.
    """
    return (row for _, row in data_rows.iterate(f"responses is {str(path)!r}", str(path)))


def correctness(row: Mapping[str, Any]) -> bool | None:
    """Return whether a response is right, from `correct` or `verdict`, or None if the row has neither."""
    if row.get("correct") is not None:
        return bool(row["correct"])
    return row["verdict"] == Verdict.RIGHT if row.get("verdict") is not None else None


def texts_of(row: Mapping[str, Any], number: int) -> tuple[str, str]:
    """Return prompt and response of a row.

    Raises:
        ValueError: one of them is missing or no text. The message names the row by `number`.
    """
    name = next((name for name in TEXT_COLUMNS if name in row), None)
    for column in ("prompt", name):
        if not isinstance(row.get(column), str):
            raise ValueError(
                f"responses, row {number}: {column or 'response'} is {type(row.get(column)).__name__}, but it must be "
                "text: a row has a prompt and a response."
            )
    return row["prompt"], row[name]


def tokenized(rows: Iterable[Mapping[str, Any]], tokenizer: Any) -> Iterator[Row]:
    """Yield the rows of `RESPONSES`. If the text's `finish` is `stop`, EOS is appended."""
    for number, row in enumerate(rows):
        prompt, response = texts_of(row, number)
        prompt_ids, completion_ids = row.get("prompt_ids"), row.get("completion_ids")
        if prompt_ids is None:
            prompt_ids = tokenizer(prompt)["input_ids"]
        if completion_ids is None:
            completion_ids = tokenizer(response, add_special_tokens=False)["input_ids"]
            if row.get("finish") == "stop" and tokenizer.eos_token_id is not None:
                completion_ids.append(tokenizer.eos_token_id)
        if not len(prompt_ids):
            raise ValueError(
                f"responses, row {number}: the prompt has no tokens, but the first token needs one before it."
            )
        yield {
            "id": number,
            "prompt": prompt,
            "response": response,
            "correct": correctness(row),
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
        }


def write(collection: Collection, rows: Iterable[Row], part_tokens: int) -> None:
    """Write the responses atomically, in row groups of at least `part_tokens` tokens.

    Raises:
        ValueError: there are no responses, or they have no tokens.
    """
    with files.replacing(collection.responses) as scratch, pq.ParquetWriter(scratch, RESPONSES) as writer:
        group: list[Row] = []
        tokens = written = 0
        for row in rows:
            group.append(row)
            tokens += len(row["completion_ids"])
            if tokens >= part_tokens:
                writer.write_table(pa.Table.from_pylist(group, schema=RESPONSES))
                written, tokens, group = written + tokens, 0, []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=RESPONSES))
        if not written + tokens:
            raise ValueError("responses has no rows, or its rows have no tokens: name a file with responses.")
