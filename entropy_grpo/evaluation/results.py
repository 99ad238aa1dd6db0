"""Results of one benchmark: every sample in a parquet file, and their summary in a JSON file beside it.

DIR/BENCHMARK.parquet    question, sample, problem, reference, prompt, response, tokens, finish, answer, verdict, ...
DIR/BENCHMARK.json       settings, versions, metrics with their intervals, quality
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..data.benchmarks.benchmark import Benchmark, Question
from ..grading import Verdict
from ..metrics.answers import Samples, paired, summarize_samples
from ..metrics.quality import quality
from ..runs import files, parquet
from ..runs.trained import COMPARED, digest_of
from .judging import Judgement

SCHEMA = pa.schema(
    [
        ("question", pa.string()),
        ("sample", pa.int64()),
        ("problem", pa.string()),
        ("reference", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("tokens", pa.int64()),
        ("finish", pa.string()),
        ("answer", pa.string()),
        ("verdict", pa.string()),
        ("class", pa.int64()),
        ("seconds", pa.float64()),
    ]
)


def table(
    benchmark: Benchmark,
    questions: Sequence[Question],
    rows: Sequence[files.Row],
    judgements: Sequence[Judgement],
) -> pa.Table:
    """Return the samples of a benchmark, question by question.

    The columns with the question's texts are null if the benchmark's terms forbid repeating them.
    """
    asked = {q.id: q for q in questions} if benchmark.is_open else {}
    return pa.Table.from_pylist(
        [
            {
                "question": row["question"],
                "sample": row["sample"],
                **_texts(asked.get(row["question"])),
                "response": row["text"],
                "tokens": row["tokens"],
                "finish": row["finish"],
                "answer": judgement.answer,
                "verdict": str(judgement.verdict),
                "class": judgement.group,
                "seconds": row["seconds"],
            }
            for row, judgement in zip(rows, judgements, strict=True)
        ],
        schema=SCHEMA,
    )


def _texts(question: Question | None) -> dict[str, str | None]:
    """Return the columns with the texts of a question."""
    if question is None:
        return dict.fromkeys(("problem", "reference", "prompt"))
    return {"problem": question.text, "reference": question.reference, "prompt": question.prompt}


def samples_of(samples: pa.Table) -> Samples:
    """Return the arrays (questions, samples) of a table that is ordered by question, with equal numbers of samples."""
    columns = {name: samples[name].to_pylist() for name in ("question", "verdict", "tokens", "finish", "class")}
    shape = (len(set(columns["question"])), -1)
    return Samples(
        correct=(np.array(columns["verdict"]) == Verdict.RIGHT).reshape(shape),
        lengths=np.array(columns["tokens"]).reshape(shape),
        truncated=(np.array(columns["finish"]) == "length").reshape(shape),
        classes=np.array(columns["class"]).reshape(shape),
    )


def summary(samples: pa.Table, questions: Sequence[Question]) -> dict[str, Any]:
    """Return metrics, quality, verdicts and tokens of the samples, for the JSON file."""
    texts = {q.id: q.text for q in questions}
    asked = [texts[id] for id in samples["question"].to_pylist()]
    return {
        "metrics": summarize_samples(samples_of(samples)),
        "quality": quality(samples["response"].to_pylist(), asked),
        "verdicts": dict(Counter(samples["verdict"].to_pylist())),
        "tokens": sum(samples["tokens"].to_pylist()),
    }


def write(folder: Path, name: str, samples: pa.Table, figures: dict[str, Any]) -> None:
    """Write both files, each atomically."""
    parquet.write(folder / f"{name}.parquet", samples)
    files.write_json(folder / f"{name}.json", figures)


def names_in(folder: Path) -> list[str]:
    """Return the benchmarks whose results a folder holds."""
    return sorted(path.stem for path in folder.glob("*.json") if path.with_suffix(".parquet").exists())


def read(folder: Path, name: str) -> tuple[pa.Table, dict[str, Any]]:
    """Read the samples and the figures of a benchmark.

    Raises:
        ValueError: a file cannot be read. The message names the file.
    """
    samples = files.read_whole(folder / f"{name}.parquet", parquet.read)
    return samples, files.read_json(folder / f"{name}.json")


def compare(folder: Path, other: Path, name: str) -> dict[str, Any]:
    """Return the paired differences of the results in `folder` from the results in `other`, with digests of both.

    Raises:
        ValueError: the two folders hold different questions.
    """
    (ours, figures), (theirs, other_figures) = (read(path, name) for path in (folder, other))
    # Two files may give different questions the same numbers. Results without questions have only names.
    named = ("question", "problem", "reference")
    asked, asked_there = (
        list(dict.fromkeys(zip(*(one[name].to_pylist() for name in named), strict=True))) for one in (ours, theirs)
    )
    if asked != asked_there:
        raise ValueError(
            f"compare: {other} has {len(asked_there)} questions of {name} and {folder} has {len(asked)}, which are "
            "not the same: evaluate both models on the same questions."
        )
    digests = [digest_of(figures), digest_of(other_figures)]
    return {COMPARED: digests, **paired(samples_of(theirs), samples_of(ours))}
