"""Benchmarks by name. Each module gives the source of the rows, their reader, and known traps in the data."""

from ...tasks import registry
from . import aime24, aime25, aime26, amc23, gpqa, humaneval, livecodebench, math500, minerva, olympiadbench
from .benchmark import MATHS, Benchmark
from .generated import COUNT, of_task

MODULES = (aime24, aime25, aime26, amc23, math500, minerva, olympiadbench, gpqa, humaneval, livecodebench)
BENCHMARKS = {module.BENCHMARK.name: module.BENCHMARK for module in MODULES} | {
    task.name: of_task(task) for task in registry.TASKS.values()
}
# Benchmarks whose problems can be searched in a training set.
PUBLISHED = {name: b for name, b in BENCHMARKS.items() if b.kind == MATHS and b.source is not None}


def catalogue() -> list[tuple[str, str]]:
    """Return name and description of every benchmark: the first paragraph of its module, or the name of its task."""
    published = [(module.BENCHMARK.name, module.__doc__.partition("\n\n")[0]) for module in MODULES]
    generated = [(task.name, f"The first {COUNT} test problems of {name}.") for name, task in registry.TASKS.items()]
    return published + generated


def find(name: str) -> Benchmark | None:
    """The benchmark with this name, or the task with this name (`embedded:NAME`); None if there is none.

    Raises:
        ValueError: the name begins like a task's name, but there is no such task.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    task = registry.find(name, "benchmark")
    return None if task is None else of_task(task)
