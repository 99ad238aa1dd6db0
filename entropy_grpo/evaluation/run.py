"""`entropy-grpo eval`, top to bottom: questions, responses, judgements, results, comparison.

Bad input is refused before a model is loaded. No model is loaded if no response is missing.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from tqdm import tqdm

from ..data.benchmarks.benchmark import CODE, Benchmark
from ..data.hub import GatedError
from ..grading.code.sandbox import unavailable
from ..models import load
from ..runs import files, plots, trained
from ..runs.environment import git_revision, hardware, versions
from ..runs.folder import COMPARISON, LIMIT
from ..runs.weights import has_adapter
from . import contamination, prompting, questions, report, results
from .backends.base import FORKED, TRANSFORMERS, VLLM, Backend, Sampling, check_length, choose
from .generation import Work, process
from .judging import judge
from .options import PRESETS, Options

# Shortest and longest pause of the first process between looks for the responses of other processes.
WAIT_SECONDS = (0.5, 60.0)
# Wall-clock limit for grading one answer.
GRADING_SECONDS = 5.0


def sampling_of(options: Options, benchmark: Benchmark) -> tuple[int, Sampling]:
    """Return (samples per question, sampling settings) for a benchmark. The preset supplies settings not given."""
    preset = PRESETS[options.preset]
    given = {name: value for name in preset if (value := getattr(options, name)) is not None}
    chosen: dict[str, Any] = {**preset, **given}
    if options.max_tokens is None and benchmark.max_tokens is not None:
        chosen["max_tokens"] = benchmark.max_tokens
    chosen |= {name: getattr(options, name) for name in ("top_k", *FORKED)}
    return chosen.pop("samples"), Sampling(**chosen)


@dataclass(frozen=True)
class Job:
    """Benchmark, responses to generate for it, and completions for the contamination diagnostic."""

    benchmark: Benchmark
    answers: Work
    completions: Work | None

    @property
    def works(self) -> list[Work]:
        return [self.answers] if self.completions is None else [self.answers, self.completions]


def jobs_of(options: Options, backend: str, path: str) -> list[Job]:
    """Load the requested benchmarks. A gated benchmark whose terms were not accepted is skipped with a message."""
    settings: dict[str, Any] = {
        "model": options.model,
        "model_revision": options.revision,
        "weights": load.fingerprint(path),
        "backend": backend,
        "dtype": options.dtype,
    }
    if backend == TRANSFORMERS:  # the composition of a batch decides the rounding of its responses
        settings["batch_size"] = options.batch_size
    if options.since is not None:
        settings["since"] = options.since
    form = form_of(options, path)
    jobs: dict[str, Job] = {}
    for name in dict.fromkeys(options.benchmarks):
        try:
            benchmark, asked = questions.load(name, options.since)
        except GatedError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        if benchmark.kind == CODE and (reason := unavailable()) is not None:
            raise ValueError(f"benchmarks names {name!r}, whose programs need a sandbox: {reason}")
        whole = benchmark.name
        benchmark, asked = questions.first(benchmark, asked, options.limit)
        if benchmark.name in jobs:
            raise ValueError(
                f"benchmarks is {', '.join(options.benchmarks)}: two have the name {benchmark.name}, so rename a file."
            )
        of_the_form = form.about(benchmark)
        benchmark, asked = prompting.put(benchmark, asked, form, chat_of(path, options.revision))
        samples, sampling = sampling_of(options, benchmark)
        about = questions.origin(benchmark, asked) | settings | of_the_form
        if benchmark.name != whole:
            about[LIMIT] = options.limit
        answers = Work(options.output / benchmark.name, asked, samples, options.seed, sampling, about)
        jobs[benchmark.name] = Job(benchmark, answers, completions_of(answers) if options.contamination else None)
    if not jobs:
        named = ", ".join(options.benchmarks) or "empty"
        raise ValueError(f"benchmarks is {named}: none is left to evaluate, so name another.")
    return list(jobs.values())


def form_of(options: Options, path: str) -> prompting.Form:
    """Return the form in which the model is asked: a chat, or the form of a run or a template."""
    if not options.chat:
        return prompting.form_of(options.prompt, options.model)
    form = prompting.chat_form(options.system, options.thinking)
    prompting.check_chat(form, load.load_tokenizer(path, options.revision), path, options.revision)
    return form


def chat_of(path: str, revision: str | None) -> prompting.Chat:
    """Return the function that writes a conversation as the model's chat template does; it loads the tokenizer."""

    def chat(messages: list[dict[str, str]], kwargs: dict[str, Any]) -> str:
        tokenizer = tokenizer_of(path, revision)
        return load.as_plain_text(tokenizer, load.rendered(tokenizer, messages, f"model is {path!r}", **kwargs))

    tokenizer_of = cache(load.load_tokenizer)
    return chat


def completions_of(answers: Work) -> Work:
    """Return the work of continuing the first part of every long enough problem greedily.

    The reference of each question is the rest of the problem.
    """
    parts = {q.id: contamination.partial_prompt(q.text) for q in answers.questions}
    halved = [replace(q, prompt=parts[q.id][0], reference=parts[q.id][1]) for q in answers.questions if parts[q.id]]
    # Two characters per token; text beyond the length of the rest is not compared.
    longest = max((len(q.reference) for q in halved), default=0)
    sampling = Sampling(temperature=0.0, max_tokens=max(longest // 2, 16))
    return Work(answers.folder / "contamination", halved, 1, answers.seed, sampling, answers.about)


def longest_sequence(works: Sequence[Work], path: str, revision: str | None) -> int:
    """Return the tokens of the longest prompt with a whole response.

    Raises:
        ValueError: the model has too few positions.
    """
    tokenizer, positions = load.load_tokenizer(path, revision), load.positions_of(load.load_config(path, revision))
    lengths = []
    for work in works:
        if work.questions:
            prompts = list({request.prompt for request in work.requests})
            longest = max(map(len, tokenizer(prompts)["input_ids"]))
            check_length(longest, work.sampling.max_tokens, positions)
            lengths.append(longest + work.sampling.max_tokens)
    return max(lengths)


def load_backend(options: Options, name: str, path: str, works: Sequence[Work]) -> Backend:
    """Load a backend with its model."""
    if name == TRANSFORMERS:
        from .backends.transformers import TransformersBackend

        return TransformersBackend(*load.load_model(path, options.revision, options.dtype), options.batch_size)
    if name == VLLM:
        from .backends.vllm import VllmBackend

        # Otherwise vLLM wants a cache for as many tokens as the model has positions, 131,072 for Llama 3.1.
        length = longest_sequence(works, path, options.revision)
        return VllmBackend(path, options.revision, options.dtype, options.tensor_parallel, max_model_len=length)
    from .backends.server import ServerBackend

    return ServerBackend(name, options.batch_size, path)


def generate(works: Sequence[Work], backend: Backend) -> None:
    """Write this process's share of the responses, with a progress bar on the first process.

    Raises:
        ValueError: a request is too long, or another model of a server wrote the finished responses.
    """
    works = [work for work in works if work.questions]  # all problems may be too short to be completed
    for work in works:
        work.claim(backend.served)
        backend.check(work.requests, work.sampling)
    shares = [work.share(backend) for work in works]
    total = sum(len(part) for share in shares for part in share)
    start, tokens = time.perf_counter(), 0
    with tqdm(desc=works[0].folder.name, total=total, unit="response", disable=process()[0] > 0) as bar:

        def progress(count: int) -> None:
            nonlocal tokens
            tokens += count
            bar.update()
            bar.set_postfix_str(f"{tokens / (time.perf_counter() - start):.0f} tokens/s", refresh=False)

        for work, share in zip(works, shares, strict=True):
            bar.set_description(work.folder.name)
            work.write(backend, share, progress)


def wait_for_others(works: Sequence[Work]) -> None:
    """Wait until every response is finished. If another process fails, the launcher also ends this process."""
    pause, longest = WAIT_SECONDS
    while missing := sum(len(work.missing()) for work in works):
        print(f"waiting for {missing} responses from other processes", file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(2 * pause, longest)


def write_results(job: Job, folder: Path, step: int | None) -> None:
    """Judge the responses and write both files of a benchmark.

    Args:
        step: optimiser steps of the model, if its run records them.
    """
    asked, rows = job.answers.questions, job.answers.rows()
    samples = results.table(job.benchmark, asked, rows, judge(job.benchmark, asked, rows, GRADING_SECONDS))
    figures = {
        "settings": job.answers.recorded,
        **({} if step is None else {"step": step}),
        **results.summary(samples, asked),
        "versions": versions(),
        "git_revision": git_revision(),
        "hardware": hardware(),
    }
    if job.completions is not None:
        written = {row["question"]: row["text"] for row in job.completions.rows()}
        rests = {q.id: q.reference for q in job.completions.questions}
        figures["contamination"] = contamination.summary(
            [contamination.matches(written[q.id], rests[q.id]) if q.id in rests else None for q in asked]
        )
    results.write(folder, job.benchmark.name, samples, figures)


def compare(output: Path, others: Sequence[Path], names: Sequence[str]) -> None:
    """Print differences from the results in other folders, and add them to `comparison.json`."""
    gains: dict[str, Any] = files.read_json(output / COMPARISON)
    for other in others:
        common = [name for name in names if name in results.names_in(other)]
        found = {name: results.compare(output, other, name) for name in common}
        if common:
            gains[str(other)] = gains.get(str(other), {}) | found
            print(report.gains_table(found, str(other)))
        else:
            print(f"{other} has no results of {', '.join(names)}, so that nothing is compared.")
    if others:
        files.write_json(output / COMPARISON, gains)


def draw(output: Path, others: Sequence[Path], name: str) -> Path:
    """Draw the Pass@k curves of all compared models on a benchmark, `NAME_pass_at_k.png`, and return its path."""
    curves: dict[str, Any] = {}
    for folder in (output, *others):
        if name in results.names_in(folder):
            figures = results.read(folder, name)[1]
            model = figures["settings"]["model"]
            curves[model if model not in curves else str(folder)] = figures["metrics"]["pass@k"]
    return plots.pass_at_k(curves, output / f"{name}_pass_at_k.png", f"{name}.json of the compared folders")


def run(options: Options) -> None:
    """Evaluate a model on benchmarks.

    Raises:
        ValueError: an option is invalid. The message is one sentence.
    """
    for other in options.compare:
        if not results.names_in(other):
            raise ValueError(
                f"compare names {str(other)!r}, which holds no results: name a folder of entropy-grpo eval."
            )
    datasets.disable_progress_bars()
    if len(options.compare) >= len(plots.COLOURS):
        raise ValueError(f"compare names {len(options.compare)} folders: name at most {len(plots.COLOURS) - 1}.")
    options = replace(options, output=options.output or load.output_folder(options.model))
    questions.check_names(options.benchmarks)  # a mistake in a name costs no cold start of an embedded model
    path = load.resolve(options.model)
    if options.revision is not None and Path(path).is_dir():
        raise ValueError(
            f"revision is {options.revision!r}, but model is {options.model!r}, a folder, which has no revisions: "
            "leave it out."
        )
    backend = choose(options.backend, has_adapter(path))
    step = trained.steps_of(Path(path)) if Path(path).is_dir() else None
    jobs = jobs_of(options, backend, path)
    works = [work for job in jobs for work in job.works]
    for work in works:
        work.claim()
    if any(work.missing() for work in works):
        generate(works, load_backend(options, backend, path, works))
    if process()[0] > 0:
        return
    wait_for_others(works)
    for job in jobs:
        write_results(job, options.output, step)
    names = [job.benchmark.name for job in jobs]
    print(report.metrics_table({name: results.read(options.output, name)[1] for name in names}))
    compare(options.output, options.compare, names)
    for name in names:
        draw(options.output, options.compare, name)
    print(f"results  {options.output}")
