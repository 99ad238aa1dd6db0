"""`entropy-grpo analyze divergence`: the effect of forks in responses, one row per fork, and their summary.

    DIR/divergence/NAME/forks.jsonl      one row per fork of model NAME, written when its continuations are graded
    DIR/divergence/NAME/divergence.json  settings, means of each kind of fork, mean I_t by entropy, and by group
    DIR/divergence/NAME/divergence.png   plot of forks, means and mean I_t
    DIR/divergence/NAME/responses/       results of `entropy-grpo eval`, if the model answered benchmarks

Bad input is refused before a model is loaded. Continuations of results of `entropy-grpo eval` are graded by their
benchmark. Continuations of other files are graded by comparing their boxed answer with the row's reference.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from accelerate.utils import release_memory
from tqdm import tqdm

from ...data.benchmarks import BENCHMARKS
from ...data.benchmarks.benchmark import CODE, Benchmark, Question
from ...data.sources import reference_in
from ...evaluation import questions, results
from ...evaluation.backends.base import TRANSFORMERS, VLLM, Writer, check_length, choose
from ...evaluation.judging import judge
from ...evaluation.run import GRADING_SECONDS
from ...grading import Verdict
from ...metrics.tables import aligned
from ...models import load
from ...runs import files, parquet, plots
from ...runs.files import Row
from ...runs.weights import has_adapter
from ..collect import inputs
from ..collect.run import digest, generate, named
from ..report import figures
from . import impact
from .forks import divergence, find_forks
from .options import Options, Settings
from .summary import FIGURES, ROWS, bins, folder_of, summarize, table

# Names of the reference column: in results of `entropy-grpo eval`, and in a run's `answers/`.
REFERENCE_COLUMNS = ("reference", "solution")
# Options of `entropy-grpo eval` for the answers to benchmarks.
HOW = ("seed", "batch_size", "dtype", "backend", "tensor_parallel")
UNGRADED = (Verdict.TIMEOUT, Verdict.FAILURE)


@dataclass(frozen=True)
class Given:
    """Response (prompt ids, response ids), with benchmark and question for grading its continuations."""

    ids: tuple[list[int], list[int]]
    benchmark: Benchmark
    question: Question


def benchmark_of(path: Path) -> Benchmark:
    """Return the benchmark whose results a file holds, or a benchmark with boxed answers for other files."""
    if path.suffix == ".parquet":
        with parquet.opened(path) as file:
            is_of_results = file.schema_arrow.names == results.SCHEMA.names
        if is_of_results:
            name = results.read(path.parent, path.stem)[1].get("settings", {}).get("benchmark", path.stem)
            return BENCHMARKS.get(name, Benchmark(name))
    return Benchmark(path.stem)


def sources(options: Options, folder: Path) -> list[tuple[Benchmark, Path]]:
    """Return the files of responses, present or to be generated, each with its benchmark."""
    if options.responses is not None:
        pairs = [(benchmark_of(options.responses), options.responses)]
    else:
        asked = [BENCHMARKS.get(name) or questions.load(name)[0] for name in options.benchmarks]
        pairs = [(benchmark, folder / "responses" / f"{benchmark.name}.parquet") for benchmark in asked]
    for benchmark, _ in pairs:
        if benchmark.kind == CODE:
            raise ValueError(
                f"benchmarks names {benchmark.name}, whose answers are programs and cannot be compared: name another."
            )
    return pairs


def _question(row: Mapping[str, Any], number: int, place: str) -> Question:
    column = next((name for name in REFERENCE_COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise ValueError(
            f"responses, {place}, has no column {' or '.join(REFERENCE_COLUMNS)}, which grading of continuations "
            "needs: add the right answer, or name results of entropy-grpo eval."
        )
    try:
        reference = reference_in(row, column)
    except ValueError as error:
        raise ValueError(f"responses, {place}: {error}.") from error
    text = row.get("problem") or row["prompt"]
    return Question(row.get("question") or str(number), text, row["prompt"], reference)


def read(found: Sequence[tuple[Benchmark, Path]], tokenizer: Any, options: Options) -> list[Given]:
    """Read the responses to analyse."""
    given = []
    for benchmark, path in found:
        placed = list(inputs.read(path))
        for (place, row), one in zip(placed, inputs.tokenized(placed, tokenizer), strict=True):
            ids = list(one["prompt_ids"]), list(one["completion_ids"])
            given.append(Given(ids, benchmark, _question(row, one["id"], place)))
    if options.limit is not None and options.limit < len(given):
        chosen = random.Random(options.seed).sample(range(len(given)), options.limit)
        given = [given[i] for i in sorted(chosen)]
    return given


def check(given: Sequence[Given], settings: Settings, config: Any) -> None:
    """Raise `ValueError` for responses that the model cannot have written or cannot continue."""
    if not given:
        raise ValueError("responses has no rows: name a file with responses.")
    for number, (prompt, ids) in enumerate(one.ids for one in given):
        if not ids:
            raise ValueError(f"responses: response {number} has no tokens: leave it out.")
        if len(ids) > settings.longest:
            raise ValueError(
                f"max_tokens is {settings.longest}, but response {number} has {len(ids)} tokens: raise max_tokens."
            )
        if max(*prompt, *ids) >= config.vocab_size:
            raise ValueError(
                f"model has {config.vocab_size} token ids, but response {number} has a higher id: name the model that "
                "wrote the responses."
            )
    check_length(max(len(one.ids[0]) for one in given), settings.longest, load.positions_of(config))


def claim(path: Path, wanted: Row) -> None:
    """Store the settings of the rows.

    Raises:
        ValueError: existing rows were made with other settings.
    """
    # Rows of earlier versions name no backend.
    before = {"backend": TRANSFORMERS} | files.read_json(path).get("settings", wanted)
    for name, value in wanted.items():
        if before.get(name) != value:
            raise ValueError(
                f"output: {path.parent} holds forks with {name} {before.get(name)!r}, but {value!r} is requested: "
                f"name another output folder or another model name, as in NAME=PATH, or delete {path.parent}."
            )
    files.write_json(path, files.read_json(path) | {"settings": wanted})


class Grading:
    """Grader of continuations as responses to their questions. It counts continuations that could not be graded."""

    def __init__(self, given: Sequence[Given]):
        self.given, self.ungraded = given, 0

    def __call__(self, i: int, texts: Sequence[str]) -> list[tuple[str | None, bool]]:
        """Return (number of the class of equivalent answers, right) of each text."""
        one = self.given[i]
        judged = judge(one.benchmark, [one.question], [{"text": text} for text in texts], GRADING_SECONDS)
        self.ungraded = sum(judgement.verdict in UNGRADED for judgement in judged)
        return [(None if j.group < 0 else str(j.group), j.verdict is Verdict.RIGHT) for j in judged]


def continue_forks(given: Sequence[Given], path: str, options: Options, rows_path: Path, backend: str) -> list[Row]:
    """Compute the missing forks, append each row to the file, and return the rows of all forks."""
    rows = list(files.read_jsonl(rows_path))
    done = {(row["response"], row["position"]) for row in rows}
    model, tokenizer = load.load_model(path, None, options.dtype)
    ids, grading = [one.ids for one in given], Grading(given)
    forks = [fork for fork in find_forks(model, ids, options) if (fork.response, fork.position) not in done]
    if not forks:
        return rows
    if backend == VLLM:
        model = None  # vLLM, which has a copy of its own, needs the memory of the GPU
    writer = writer_of(model, tokenizer, path, options, max(len(prompt) for prompt, _ in ids))
    with tqdm(desc="forks", unit="fork", initial=len(rows), total=len(rows) + len(forks)) as bar:
        for row in divergence(forks, writer, tokenizer, ids, grading, options):
            rows.append(row | {"ungraded": grading.ungraded})
            files.append_jsonl(rows_path, rows[-1:])
            bar.update()
    return rows


def writer_of(model: Any, tokenizer: Any, path: str, options: Options, longest_prompt: int) -> Writer:
    """Return the backend that writes continuations: with this model, or with vLLM's own copy if there is none."""
    if model is not None:
        from ...evaluation.backends.transformers import TransformersBackend

        return TransformersBackend(model, tokenizer, options.batch_size)
    from ...evaluation.backends.vllm import VllmBackend

    release_memory()
    positions = longest_prompt + options.longest
    return VllmBackend(path, None, options.dtype, options.tensor_parallel, max_model_len=positions)


def row_settings(options: Options, path: str) -> Row:
    """Return the settings that decide the rows, without `batch_size`, which changes only rounding."""
    asked = {"responses": str(options.responses), "sha256": digest(options.responses)} if options.responses else {}
    return {
        **{field.name: getattr(options, field.name) for field in fields(Settings) if field.name != "batch_size"},
        "benchmarks": list(options.benchmarks),
        **asked,
        "limit": options.limit,
        "dtype": options.dtype,
        "path": path,
        "weights": load.fingerprint(path),
    }


def run(options: Options) -> Path:
    """Continue the missing forks, summarise all forks, print the table, and return the folder.

    Raises:
        ValueError: an option or a response is invalid. The message is one sentence.
    """
    (name, given_path), *_ = named([options.model]).items()
    folder = folder_of(options.output, name)
    pairs = sources(options, folder)
    own = [benchmark.max_tokens for benchmark, _ in pairs if benchmark.max_tokens is not None]
    most = max(own, default=options.longest) if options.max_tokens is None else options.max_tokens
    path = load.resolve(given_path)
    backend = choose(options.backend, has_adapter(path))
    options = replace(options, max_tokens=most)
    tokenizer, config = load.load_tokenizer(path), load.load_config(path)
    if options.benchmarks:
        sampling = {"samples": 1, "temperature": options.temperature, "top_p": options.top_p, "max_tokens": most}
        how = {name: getattr(options, name) for name in HOW}
        generate(given_path, options.benchmarks, folder / "responses", **sampling, **how)
    given = read(pairs, tokenizer, options)
    check(given, options, config)
    about = row_settings(options, path) | {"backend": backend}
    claim(folder / FIGURES, about)
    rows = continue_forks(given, path, options, folder / ROWS, backend)
    summed: dict[str, Any] = {"settings": about, "summary": summarize(rows), "bins": bins(rows)}
    summed["impact"] = impact.impact(rows, options.continuations)
    summed["ungraded"] = sum(row["ungraded"] for row in rows)
    files.write_json(folder / FIGURES, summed)
    drawn = figures.divergence({name: summed | {"forks": rows}})
    source = f"{folder.name}/{FIGURES}: {len(rows)} forks, 95% intervals over questions"
    plots.save(drawn, folder / "divergence.png", source)
    print(aligned(list(zip(*table({name: summed["summary"]}), strict=True))))
    print(f"\n{aligned(impact.table({name: summed['impact']}))}")
    return folder
