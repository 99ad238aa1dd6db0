"""JSON file of a part. Every measurement rewrites it, so that a killed part keeps its figures."""

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ROOT
from entropy_grpo.runs import files
from entropy_grpo.runs.environment import git_revision, hardware, versions

RUNNING, COMPLETE, FAILED = "running", "complete", "failed"
CONSOLE_WIDTH = 400  # characters of a measurement that the console shows; the file has all of it


def relative(value: Any, folders: Sequence[Path]) -> Any:
    """A value of a JSON file, in which names below these folders are relative to them."""
    if isinstance(value, dict):
        return {key: relative(item, folders) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [relative(item, folders) for item in value]
    if isinstance(value, str):
        for folder in folders:
            value = value.replace(f"{folder}/", "")
    return value


class Report:
    """Figures of one part.

    Names below `folders` are written relative to them, because such places are one machine's.

    Args:
        path: the JSON file.
        part: letter of the part.
        revision: commit of the source tree; by default git's.
    """

    def __init__(self, path: Path, part: str, revision: str | None = None):
        self.path, self.start = path, time.perf_counter()
        self.folders = [ROOT]
        self.content: dict[str, Any] = {
            "command": f"python -m benchmarks.gpu --part {part}",
            "status": RUNNING,
            "hardware": hardware(),
            "versions": versions() | {"cuda": torch.version.cuda},
            "git_revision": revision or git_revision(),
            "measurements": [],
        }
        self._write()

    def _write(self) -> None:
        files.write_json(self.path, relative(self.content, self.folders))

    def note(self, **facts: Any) -> None:
        """Add facts that hold for the whole part."""
        self.content |= facts
        self._write()

    @contextmanager
    def measure(self, name: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Context of a measurement. The row that the block fills is written when the block ends.

        An error is written into the row and fails the part, but later measurements still run.
        """
        row = {"name": name, **facts}
        start = time.perf_counter()
        try:
            yield row
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
            row["traceback"] = traceback.format_exc().splitlines()[-12:]
        row["seconds_taken"] = round(time.perf_counter() - start, 3)
        self.content["measurements"].append(row)
        self._write()
        print(str(row)[:CONSOLE_WIDTH], flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def finish(self) -> int:
        """Close the file, and return the part's exit status."""
        failed = [row["name"] for row in self.content["measurements"] if "error" in row]
        status = FAILED if failed else COMPLETE
        self.note(status=status, failed=failed, seconds=round(time.perf_counter() - self.start, 1))
        return 1 if failed else 0
