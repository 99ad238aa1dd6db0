"""Benchmarks by name. Each module gives the source of the rows, their reader, and known traps in the data."""

from ...tasks import registry
from . import aime24, aime25, amc23, gpqa, humaneval, livecodebench, math500, minerva, olympiadbench
from .benchmark import MATHS, Benchmark
from .generated import of_task

BENCHMARKS = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (
        aime24,
        aime25,
        amc23,
        math500,
        minerva,
        olympiadbench,
        gpqa,
        humaneval,
        livecodebench,
    )
} | {task.name: of_task(task) for task in registry.TASKS.values()}
# Benchmarks whose problems can be searched in a training set.
PUBLISHED = {name: b for name, b in BENCHMARKS.items() if b.kind == MATHS and b.source is not None}


def find(name: str) -> Benchmark | None:
    """The benchmark with this name, or the task with this name (`embedded:NAME`); None if there is none.

    Raises:
        ValueError: the name begins like a task's name, but there is no such task.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    task = registry.find(name, "benchmark")
    return None if task is None else of_task(task)
