"""The benchmarks by name; each file says where its rows are, how one is read, and which traps are in them."""

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
# Those whose problems a training set can be searched for.
PUBLISHED = {name: b for name, b in BENCHMARKS.items() if b.kind == MATHS and b.source is not None}


def find(name: str) -> Benchmark | None:
    """The benchmark of a name, or of a task's whole name (`embedded:NAME`); None if there is none.

    Raises:
        ValueError: a task's provider has none of that name.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    task = registry.find(name, "benchmark")
    return None if task is None else of_task(task)
