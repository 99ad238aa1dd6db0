"""LiveCodeBench's problems of August 2024 to January 2025, read from the data set's own JSON lines.

The data set (livecodebench/code_generation_lite, test.jsonl and test2.jsonl to test6.jsonl) comes with a loading
script, which `datasets` no longer runs, and its hidden cases are a pickle inside zlib inside base64. The pickle holds
one string, and here it can hold nothing else: `decoded` never looks up a class or a function that a pickle names.
"""

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...grading.code.programs import Case

WINDOW = ("2024-08-01", "2025-02-01")  # the first day, and the first one after it
IN_WINDOW = 279  # in that window, by LiveCodeBench's own count
LARGEST = 1 << 29  # bytes of one problem's hidden cases, so that a small file cannot fill the memory


class _TextOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> None:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def decoded(text: str) -> list[dict]:
    """`private_test_cases`, as JSON or packed; ValueError if it is neither or is packed with anything but a string."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        stream = zlib.decompressobj()
        packed = stream.decompress(base64.b64decode(text, validate=True), LARGEST)
        if not stream.eof:
            raise ValueError(f"it is cut short or holds more than {LARGEST} bytes")
        inner = _TextOnly(io.BytesIO(packed)).load()
        if not isinstance(inner, str):
            raise ValueError(f"it holds a {type(inner).__name__}, not a string")
        return json.loads(inner)
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"private_test_cases cannot be decoded: {error}; download the file again") from error


@dataclass(frozen=True)
class Problem:
    """What the model is told, and where the cases are."""

    question_id: str
    question_content: str
    starter_code: str
    platform: str
    difficulty: str
    contest_date: str
    path: Path
    offset: int

    def cases(self) -> list[Case]:
        """The public cases and then the hidden ones, read now."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            row = json.loads(file.readline())
        function = json.loads(row["metadata"]).get("func_name")
        cases = json.loads(row["public_test_cases"]) + decoded(row["private_test_cases"])
        return [Case(case["input"], case["output"], function) for case in cases]


def _problems(path: Path) -> Iterator[Problem]:
    """One line in memory at a time: a file has up to 1.25 GB, a line some tens of MB."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                texts = [row[name] for name in list(Problem.__dataclass_fields__)[:6]]
                yield Problem(*texts, path, offset)
            offset += len(line)


def read(paths: Iterable[Path], expected: int = IN_WINDOW) -> list[Problem]:
    """The problems of the window in all files; ValueError if there are not as many as `expected`."""
    first, end = WINDOW
    found = [problem for path in paths for problem in _problems(path) if first <= problem.contest_date[:10] < end]
    if len(found) != expected or len({problem.question_id for problem in found}) != expected:
        raise ValueError(
            f"LiveCodeBench has {expected} problems dated {first} to {end}, but the files have {len(found)}: "
            f"give test.jsonl and test2.jsonl to test6.jsonl of livecodebench/code_generation_lite, each once."
        )
    return found
