"""Helpers of the benchmarks: alternating timing, peak memory, and the files of the figures."""

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from entropy_grpo.runs import files
from entropy_grpo.runs.environment import git_revision, hardware, versions

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", DOCS)
END = "<!-- end of results -->"
# Before the command writes pictures and pages, which differ from the commit then.
REVISION = git_revision()


def peak_memory(function: Callable[[], Any]) -> int:
    """Peak memory of a call in bytes, beyond the memory before it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # memory freed before must not hide memory allocated now
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of the resident set
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of a call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(variants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Wall times of every variant. Variants alternate, so that all see equal noise. The first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, function in variants.items():
            taken = seconds(function)
            if turn:
                times[name].append(taken)
    return times


def spread(values: list[float]) -> dict[str, float]:
    """Median with the lowest and the highest value."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Speed-up in every turn."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def write(name: str, command: str, figures: dict[str, Any]) -> None:
    """Write the figures with the environment in which they were measured."""
    about = {
        "command": command,
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "git_revision": REVISION,
    }
    files.write_json(RESULTS / f"{name}.json", about | figures)


def _mark(command: str) -> str:
    return f"<!-- results: {command} -->"


def page_of(command: str) -> Path:
    """Return the page of the README and the docs that has the marks of a command's tables."""
    readme, docs = PAGES
    pages = [page for page in (readme, *sorted(docs.rglob("*.md"))) if _mark(command) in page.read_text("utf-8")]
    if len(pages) != 1:
        raise RuntimeError(f"{_mark(command)} is to be in one page of README and docs, and is in {len(pages)}.")
    return pages[0]


def block(command: str) -> tuple[str, str, str]:
    """Return the page of a command's tables before, between and after their marks."""
    before, mark, rest = page_of(command).read_text(encoding="utf-8").partition(_mark(command))
    content, end, after = rest.partition(END)
    return before + mark, content.strip(), end + after


def write_block(command: str, text: str) -> None:
    """Write a command's tables between their marks."""
    before, _, after = block(command)
    files.write_text(page_of(command), f"{before}\n\n{text}\n\n{after}")
