"""Responses to analyse, from a file or from results of `entropy-grpo eval`.

Each response is tokenized once, by the tokenizer of the first checkpoint, so that every checkpoint reads the same ids.
Sampled ids in a file (`prompt_ids`, `completion_ids`) are kept. Text is tokenized again, which may split a word
differently from the sampled tokens.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...data import rows as data_rows
from ...grading import Verdict
from ...runs import parquet
from ...runs.files import Row
from .store import RESPONSES, Collection

# Names of the response column: in results of `entropy-grpo eval`, and in a run's `answers/`.
TEXT_COLUMNS = ("response", "completion")
# Values of the column `correct`, as text.
CORRECT = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def read(path: Path) -> Iterator[data_rows.Placed]:
    """Stream (place, row) of a file, as `data.rows` reads it. The place is for messages, as in "line 3 of FILE".

    Raises:
        ValueError: the file cannot be read; the message names it and the place.
    """
    for place, row in data_rows.iterate(f"responses is {str(path)!r}", str(path)):
        yield f"{place} of {path}", row


def correctness(row: Mapping[str, Any], place: str) -> bool | None:
    """Return whether a response is right, from `correct` or `verdict`, or None if the row has neither.

    Raises:
        ValueError: `correct` is neither true nor false, nor 1 or 0, nor such a text, as CSV has it.
    """
    correct = row.get("correct")
    if correct is None or correct == "":
        return row["verdict"] == Verdict.RIGHT if row.get("verdict") is not None else None
    found = CORRECT.get(str(correct).lower())
    if found is None:
        raise ValueError(f"responses, {place}: correct is {correct!r:.60}, but it must be true or false.")
    return found


def texts_of(row: Mapping[str, Any], place: str) -> tuple[str, str]:
    """Return prompt and response of a row.

    Raises:
        ValueError: one of them is missing or no text. The message names the place.
    """
    name = next((name for name in TEXT_COLUMNS if name in row), None)
    for column in ("prompt", name):
        if not isinstance(row.get(column), str):
            raise ValueError(
                f"responses, {place}: {column or 'response'} is {type(row.get(column)).__name__}, but it must be "
                "text: a row has a prompt and a response."
            )
    return row["prompt"], row[name]


def tokenized(placed: Iterable[data_rows.Placed], tokenizer: Any) -> Iterator[Row]:
    """Yield the rows of `RESPONSES`. If the text's `finish` is `stop`, EOS is appended."""
    for number, (place, row) in enumerate(placed):
        prompt, response = texts_of(row, place)
        prompt_ids, completion_ids = row.get("prompt_ids"), row.get("completion_ids")
        if prompt_ids is None:
            prompt_ids = tokenizer(prompt)["input_ids"]
        if completion_ids is None:
            completion_ids = tokenizer(response, add_special_tokens=False)["input_ids"]
            if row.get("finish") == "stop" and tokenizer.eos_token_id is not None:
                completion_ids.append(tokenizer.eos_token_id)
        if not len(prompt_ids):
            raise ValueError(f"responses, {place}: the prompt has no tokens, but the first token needs one before it.")
        yield {
            "id": number,
            "prompt": prompt,
            "response": response,
            "correct": correctness(row, place),
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
        }


def write(collection: Collection, rows: Iterable[Row], part_tokens: int) -> None:
    """Write the responses atomically, in row groups of at least `part_tokens` tokens.

    Raises:
        ValueError: there are no responses, or they have no tokens.
    """
    with parquet.writing(collection.responses, RESPONSES) as writer:
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
