"""The benchmarks by name; each file says where its rows are, how one is read, and which traps are in them."""

from . import aime24, aime25, amc23, gpqa, humaneval, livecodebench, math500, minerva, number_walk, olympiadbench
from .benchmark import MATHS

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
        number_walk,
    )
}
# Those whose problems a training set can be searched for.
PUBLISHED = {name: b for name, b in BENCHMARKS.items() if b.kind == MATHS and b.source is not None}
