"""Questions of a benchmark, by its name or from the user's own file."""

from pathlib import Path
from typing import Any

from ..data.benchmarks import BENCHMARKS, find
from ..data.benchmarks.benchmark import Benchmark, Question, from_file
from ..data.hub import download, load_file, load_hub
from ..data.sources import FILE_FORMATS, TRAINING


def load(name: str) -> tuple[Benchmark, list[Question]]:
    """Load a benchmark, or a training set of `sources.TRAINING` for a teacher to answer.

    Returns:
        The benchmark and its questions in order.

    Raises:
        hub.GatedError: the data set's terms have to be accepted first.
        ValueError: the name is unknown, the data does not load, or its columns are not those of the benchmark.
    """
    benchmark = find(name)
    if benchmark is not None:
        if benchmark.make is not None:
            return benchmark, list(benchmark.make())
        if benchmark.files is not None:
            files = benchmark.files
            subject = f"benchmarks names {name!r}"
            paths = [Path(download(subject, files.hub_id, file, files.revision)) for file in files.names]
            return benchmark, list(files.read(paths))
        return benchmark, benchmark.read(load_hub(f"benchmarks names {name!r}", benchmark.source))
    if name in TRAINING:
        benchmark = Benchmark(name, TRAINING[name])
        return benchmark, benchmark.read(load_hub(f"benchmarks names {name!r}", benchmark.source))
    if Path(name).suffix not in FILE_FORMATS:
        raise ValueError(
            f"benchmarks names {name!r}: choose among {', '.join([*BENCHMARKS, *TRAINING])} and files that end in "
            f"{' or '.join(FILE_FORMATS)}."
        )
    rows = load_file("benchmarks", name)
    if not len(rows):
        raise ValueError(f"benchmarks names {name!r}, a file without rows: name a file with questions.")
    benchmark = from_file(name, rows.column_names)
    return benchmark, benchmark.read(rows)


def origin(benchmark: Benchmark, count: int) -> dict[str, Any]:
    """Return the origin of the questions, for the results."""
    source = benchmark.source or benchmark.files
    about = {} if source is None else {"data_set": source.hub_id, "revision": source.revision}
    return {
        "benchmark": benchmark.name,
        **about,
        "num_questions": count,
        "template": benchmark.template,
        "relative_tolerance": benchmark.relative_tolerance,
    }
