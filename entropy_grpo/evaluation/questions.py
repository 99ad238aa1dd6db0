"""Questions of a benchmark, by its name or from the user's own file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data import rows
from ..data.benchmarks import BENCHMARKS, find
from ..data.benchmarks.benchmark import Benchmark, Question, from_file
from ..data.hub import download, load_hub
from ..data.sources import FILE_FORMATS, TRAINING, is_local
from ..runs.folder import COMPARISON
from .options import is_day

DATE = "date"


def check_names(names: Sequence[str]) -> None:
    """Refuse a name that is neither a benchmark's nor a task's, a training set's or a file's. Nothing is loaded.

    Raises:
        ValueError: the message lists the known names, or names the mistake in the name of a task.
    """
    for name in names:
        if find(name) is None and name not in TRAINING and not is_local(name):
            raise ValueError(
                f"benchmarks names {name!r}: choose among {', '.join([*BENCHMARKS, *TRAINING])} and files that end in "
                f"{' or '.join(FILE_FORMATS)}."
            )


def load(name: str, since: str | None = None) -> tuple[Benchmark, list[Question]]:
    """Load a benchmark, or a training set of `sources.TRAINING` for a teacher to answer.

    Args:
        since: day (YYYY-MM-DD) before which questions of a file are left out, by the file's column `date`. A set that
            is newer than a model cannot have been in its training.

    Returns:
        The benchmark and its questions in order.

    Raises:
        hub.GatedError: the data set's terms have to be accepted first.
        ValueError: the name is unknown, the data does not load, or its columns are not those of the benchmark.
    """
    if since is not None and not is_local(name):
        raise ValueError(f"since is {since!r}, but benchmarks names {name!r}: only files of questions have a date.")
    check_names([name])
    benchmark = find(name)
    if benchmark is not None:
        if benchmark.make is not None:
            return benchmark, list(benchmark.make())
        if benchmark.files is not None:
            files = benchmark.files
            subject = f"benchmarks names {name!r}"
            paths = [Path(download(subject, files.hub_id, file, files.revision)) for file in files.names]
            return benchmark, list(files.read(paths))
        return benchmark, _read(benchmark)
    if name in TRAINING:
        benchmark = Benchmark(name, TRAINING[name])
        return benchmark, _read(benchmark)
    found = rows.load(f"benchmarks names {name!r}", name)
    found = found if since is None else _not_before(found, since, name)
    benchmark = from_file(name, found.columns)
    if not benchmark.name.strip(".") or f"{benchmark.name}.json" == COMPARISON:  # no name of a file of results
        benchmark = replace(benchmark, name=f"file-{benchmark.name}")
    return benchmark, benchmark.read(found.rows, found.places)


def first(benchmark: Benchmark, asked: list[Question], limit: int | None) -> tuple[Benchmark, list[Question]]:
    """Return a benchmark of the first `limit` questions, or the benchmark itself if it has no more questions.

    The new benchmark has a name of its own, by which files, comparisons and cards tell it from the whole one.
    """
    if limit is None or limit >= len(asked):
        return benchmark, asked
    return replace(benchmark, name=f"{benchmark.name}-first{limit}"), asked[:limit]


def _not_before(found: rows.Rows, since: str, name: str) -> rows.Rows:
    """Return the rows of a file whose date is not before a day.

    Raises:
        ValueError: a row has no date, or no row is left.
    """
    pairs = list(zip(found.rows, found.places, strict=True))
    for row, place in pairs:
        if not is_day(str(row.get(DATE))[:10]):
            raise ValueError(f"since is {since!r}, but {place} has {DATE} {row.get(DATE)!r}: it must be YYYY-MM-DD.")
    kept = [(row, place) for row, place in pairs if str(row[DATE])[:10] >= since]
    if not kept:
        raise ValueError(f"since is {since!r}, but every question of {name!r} is older: name an earlier day.")
    return rows.Rows(found.columns, [row for row, _ in kept], [place for _, place in kept])


def _read(benchmark: Benchmark) -> list[Question]:
    found = load_hub(f"benchmarks names {benchmark.name!r}", benchmark.source)
    return benchmark.read(found.rows, found.places)


def digest(asked: Sequence[Question]) -> str:
    """Return the SHA-256 of all prompts and references, without the tests of programs."""
    content = [[question.id, question.prompt, question.reference] for question in asked]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def origin(benchmark: Benchmark, asked: Sequence[Question]) -> dict[str, Any]:
    """Return the origin and the content of the questions, for the results."""
    source = benchmark.source or benchmark.files
    about = benchmark.about if source is None else {"data_set": source.hub_id, "revision": source.revision}
    return {
        "benchmark": benchmark.name,
        **about,
        "num_questions": len(asked),
        "questions_sha256": digest(asked),
        "template": benchmark.template,
        "relative_tolerance": benchmark.relative_tolerance,
    }
