"""Training sets by name: their place and commit on the Hub, their number of rows, and the reader of a row.

`read` turns a row into (question, answer), both plain text. The question lacks the text that its publisher put around
it. The answer is a reference for the rewards, and empty if the row has none. A row of another form raises a
`ValueError` that names the expected form. This module loads no data.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..grading import boxed

Row = Mapping[str, Any]
Problem = tuple[str, str]

GURU_INSTRUCTION = "Please output the final answer within \\boxed{}."


@dataclass(frozen=True)
class Source:
    """A data set on the Hub.

    Parameters:
        hub_id: id of the data set.
        read: row -> (question, answer).
        config, split: configuration and split to load, if `file` is None.
        file: path of the only file to load in the repository.
        revision: commit; None if no commit is known, so that the newest is loaded.
        rows: number of rows of that commit; None if no reliable number is known.
        languages: ISO 639-1 codes of the problems' languages; empty if they are not documented.
    """

    hub_id: str
    read: Callable[[Row], Problem]
    config: str | None = None
    split: str = "train"
    file: str | None = None
    revision: str | None = None
    rows: int | None = None
    languages: tuple[str, ...] = ()


def text_at(row: Row, *path: str | int) -> str:
    """The text at a place in a row, given by keys and indices.

    Raises:
        ValueError: the place is missing or holds no text.
    """
    value: Any = row
    shown = ".".join(map(str, path))
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{shown} was expected and is missing") from error
    if not isinstance(value, str):
        raise ValueError(f"{shown} is {value!r:.60}, but text was expected")
    return value


def columns(question: str, answer: str) -> Callable[[Row], Problem]:
    """Reader of rows with one column for the question and one for the answer."""
    return lambda row: (text_at(row, question), text_at(row, answer))


def reference_in(row: Row, column: str) -> str:
    """Return the reference in a column as text, which is empty if there is none. Whole numbers have no decimal point.

    Raises:
        ValueError: the reference is neither text nor a number.
    """
    value = row.get(column)
    if value is None or value != value:  # pandas writes missing numbers as NaN
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or value in (math.inf, -math.inf):
        raise ValueError(f"{column} is {value!r:.60} where text or a number was expected")
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value) if whole else value)


def prompt_in(row: Row, column: str) -> str | list:
    """Return the prompt in a column, text or a list of messages.

    Raises:
        ValueError: the prompt is neither.
    """
    prompt = row.get(column)
    parts = prompt if isinstance(prompt, list) and prompt else [{"role": "user", "content": prompt}]
    for part in parts:
        if not isinstance(part, dict) or not all(isinstance(part.get(key), str) for key in ("role", "content")):
            raise ValueError(f"{column} is {prompt!r:.60} where text or messages were expected")
    if not question_text(prompt).strip():
        raise ValueError(f"{column} is empty")
    return prompt


def question_text(prompt: str | list) -> str:
    """Return the text of a prompt, which is a text or a list of messages."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def last_box(text: str) -> str:
    """The content of the last `\\boxed` or `\\fbox` of a text, empty if there is none. MATH may omit the braces."""
    return (boxed(text) or "").strip()


def read_rows(name: str, source: Source, rows: Iterable[Row], places: Sequence[str] | None) -> list[Problem]:
    """(question, answer) of every row.

    Args:
        places: places of the rows, for messages; if None, "row 0 of ID", "row 1 of ID", ...

    Raises:
        ValueError: a row has an unexpected form. The message names the set and the row's place.
    """
    problems = []
    for number, row in enumerate(rows):
        try:
            question, answer = source.read(row)
            if not question.strip():
                raise ValueError("the question is empty")
        except ValueError as error:
            place = f"row {number} of {source.hub_id}" if places is None else places[number]
            raise ValueError(f"{name}: {place} has an unexpected form: {error}.") from error
        problems.append((question, answer))
    return problems


def read_math(row: Row) -> Problem:
    """Read a row of MATH: the answer is the last box of the worked solution."""
    return text_at(row, "problem"), last_box(text_at(row, "solution"))


def read_gsm8k(row: Row) -> Problem:
    """Read a row of GSM8K: the answer follows the last `####`, with commas in large numbers."""
    _, mark, answer = text_at(row, "answer").rpartition("####")
    if not mark:
        raise ValueError(f"answer is {answer!r:.60}, but a text with '####' was expected")
    return text_at(row, "question"), answer.replace(",", "").strip()


def _only_message(row: Row) -> str:
    prompt = row.get("prompt")
    if not isinstance(prompt, list) or len(prompt) != 1:
        raise ValueError(f"prompt is {prompt!r:.60}, but a list of one message was expected")
    return text_at(row, "prompt", 0, "content")


def read_guru(row: Row) -> Problem:
    """Read a row of guru: one message, which ends in an instruction that is not part of the question."""
    content = _only_message(row).rstrip()
    if not content.endswith(GURU_INSTRUCTION):
        raise ValueError(f"prompt ends in {content[-60:]!r}, but {GURU_INSTRUCTION!r} was expected")
    return content.removesuffix(GURU_INSTRUCTION).rstrip(), text_at(row, "reward_model", "ground_truth")


def read_still_3(row: Row) -> Problem:
    """Read a row of STILL-3: one prompt for a base model, with the question between `User:` and `Assistant:`."""
    content = _only_message(row)
    _, user, rest = content.partition("User:")
    question, assistant, _ = rest.rpartition("Assistant:")
    if not user or not assistant or content.count("User:") != 1:
        raise ValueError(f"prompt is {content!r:.60}, but one 'User:' and a later 'Assistant:' were expected")
    return question.strip(), text_at(row, "reward_model", "ground_truth")


_DAPO = "open-r1/DAPO-Math-17k-Processed"
_DAPO_REVISION = "31dd309567e3da778038cc87d868b6097a3ccf68"

TRAINING = {
    # Processed form of the training set of arXiv 2506.01939, with its 3,282 Chinese problems. The paper's Llama runs
    # divide it into 10,000 and 7,398 rows. `solution` is the bare answer.
    "dapo_math": Source(
        _DAPO,
        columns("prompt", "solution"),
        config="all",
        revision=_DAPO_REVISION,
        rows=17_398,
        languages=("en", "zh"),
    ),
    "dapo_math_en": Source(
        _DAPO,
        columns("prompt", "solution"),
        config="en",
        revision=_DAPO_REVISION,
        rows=14_116,
        languages=("en",),
    ),
    # Training set of the released scripts of arXiv 2506.01939. One file is loaded, because the schemas of the files
    # differ.
    "guru_math": Source(
        "LLM360/guru-RL-92k",
        read_guru,
        file="train/math__combined_54.4k.parquet",
        revision="2e2790a962a3c099bfb5ea61389cbf98a5ea439b",
        rows=54_404,
    ),
    # arXiv 2508.02260. No pinned commit is known, and its size is published only as about 90,000 rows.
    "still_3": Source("RUC-AIBOX/STILL-3-RL-90K", read_still_3),
    "math": Source(
        "DigitalLearningGmbH/MATH-lighteval",
        read_math,
        config="default",
        revision="0530c78699ea5e8eb5530600900e1f328b48acad",
        rows=7_500,
        languages=("en",),
    ),
    "deepscaler": Source(
        "agentica-org/DeepScaleR-Preview-Dataset",
        columns("problem", "answer"),
        file="deepscaler.json",
        revision="b6ae8c60f5c1f2b594e2140b91c49c9ad0949e29",
        rows=40_315,
        languages=("en",),
    ),
    "gsm8k": Source(
        "openai/gsm8k",
        read_gsm8k,
        config="main",
        revision="740312add88f781978c0658806c59bc2815b9866",
        rows=7_473,
        languages=("en",),
    ),
}


# Endings of the names of readable files, in upper or lower case.
FILE_FORMATS = (".jsonl", ".json", ".parquet", ".csv")
# Endings of names that are certainly files, in formats that cannot be read.
OTHER_FORMATS = (".gz", ".zip", ".zst", ".xz", ".bz2", ".tsv", ".txt", ".arrow", ".xlsx")


def format_of(name: str) -> str | None:
    """Return the ending in `FILE_FORMATS` of a file's name, or None."""
    return next((end for end in FILE_FORMATS if name.lower().endswith(end)), None)


def is_local(name: str) -> bool:
    """Return whether a name is a file's or a folder's on this machine, and not an id on the Hub."""
    is_path = name.startswith(("/", "./", "../", "~"))
    return is_path or name.lower().endswith(FILE_FORMATS + OTHER_FORMATS) or os.path.exists(name)


def public_name(name: str) -> str:
    """Return the name of a data set or model for other machines. For a local one it is the last part of its path."""
    return Path(name).name if is_local(name) else name


def hub_id(name: str | None) -> str | None:
    """Return the Hub id of a data set or model, or None if it is local or a task's."""
    if not name or is_local(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name
