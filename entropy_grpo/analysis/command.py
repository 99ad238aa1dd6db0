"""The arguments of `entropy-grpo analyze ...`, and what each subcommand calls; imports late, for instant help."""

from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add `analyze` and its subcommands; each sets `run_command`, a function of its arguments."""
    analyze = commands.add_parser("analyze", help="see the forks: token entropy of a model, a checkpoint or a run")
    subcommands = analyze.add_subparsers(required=True)
    _add_collect(subcommands)
    _add_divergence(subcommands)
    _add_report(subcommands)
    _add_text(subcommands)


def _names(benchmarks: str | None) -> list[str]:
    return [name.strip() for name in (benchmarks or "").split(",") if name.strip()]


def _add_collect(subcommands: Any) -> None:
    collect = subcommands.add_parser(
        "collect",
        help="write entropy and log-probability of every token of some responses",
        epilog="The same command goes on where a killed one stopped; more checkpoints may come with --against.",
        allow_abbrev=False,
    )
    collect.set_defaults(run_command=_collect)
    add = collect.add_argument
    add("--model", required=True, help="[NAME=]a Hub id, a model, checkpoint or adapter folder, a task's own model")
    add("--against", nargs="+", default=[], metavar="MODEL", help="others, to score the same responses")
    add("--output", type=Path, required=True, help="folder of the tokens; a run's is RUN/analysis")
    add("--responses", type=Path, help=".jsonl or .parquet with prompt and response, and correct if it is known")
    add("--benchmarks", help="instead: let the model answer these, as in entropy-grpo eval")
    add("--samples", type=int, help="with --benchmarks, responses to each question (16)")
    add("--max-tokens", type=int, help="with --benchmarks, of a response")
    add("--seed", type=int, default=0, help="with --benchmarks, decides every response (0)")
    add("--backend", default="auto", help="with --benchmarks: transformers, vllm, the URL of a server, or auto")
    add("--temperature", type=float, default=1.0, help="of decoding, and of the entropies (1.0)")
    add("--dtype", default="auto", help="of the weights: auto, bfloat16, float32, ...")
    add("--batch-tokens", type=int, default=16384, help="padded tokens of a forward pass (16384)")


def _collect(benchmarks: str | None, **given: Any) -> None:
    from .collect import run as collect

    collection = collect.run(collect.Options(benchmarks=_names(benchmarks), **given))
    print(f"tokens  {collection.path}")


def _add_divergence(subcommands: Any) -> None:
    divergence = subcommands.add_parser(
        "divergence",
        help="force another token at forks of responses, continue, and see what it decides",
        epilog="The same command goes on where a killed one stopped.",
        allow_abbrev=False,
    )
    divergence.set_defaults(run_command=_divergence)
    add = divergence.add_argument
    add("--model", required=True, help="[NAME=]a Hub id, a model, checkpoint or adapter folder, a task's own model")
    add("--output", type=Path, required=True, help="folder of the forks, in divergence/NAME; a run's is RUN/analysis")
    add("--responses", type=Path, help=".jsonl or .parquet with prompt, response and reference, as results of eval")
    add("--benchmarks", help="instead: let the model answer each question of these once, as in entropy-grpo eval")
    add("--limit", type=int, help="at most so many of the responses, drawn at random (all)")
    add("--rho", type=float, default=0.2, help="share of the tokens that are of high entropy (0.2)")
    add("--forks", type=int, default=1, help="of high and of low entropy, from each response (1)")
    add("--continuations", type=int, default=32, help="after each of the two tokens of a fork (32)")
    add("--temperature", type=float, default=1.0, help="of sampling, and of the entropies (1.0)")
    add("--top-p", type=float, default=1.0, help="of sampling (1.0)")
    add("--max-tokens", type=int, help="of a whole response (the benchmark's own, or 20480)")
    add("--seed", type=int, default=0, help="decides forks and continuations (0)")
    add("--batch-size", type=int, default=64, help="continuations that are written together (64)")
    add("--dtype", default="auto", help="of the weights: auto, bfloat16, float32, ...")


def _divergence(
    model: str,
    output: Path,
    responses: Path | None,
    benchmarks: str | None,
    limit: int | None,
    max_tokens: int | None,
    dtype: str,
    **sampling: Any,
) -> None:
    from .divergence import run as divergence_run
    from .divergence.forks import Settings

    settings = Settings(**sampling)
    given = {"limit": limit, "max_tokens": max_tokens, "dtype": dtype, "settings": settings}
    options = divergence_run.Options(model, output, responses, _names(benchmarks), **given)
    print(f"forks  {divergence_run.run(options)}")


def _add_report(subcommands: Any) -> None:
    report = subcommands.add_parser("report", help="one HTML and one Markdown page of all that a run allows")
    report.set_defaults(run_command=_report)
    report.add_argument("run", type=Path, help="a run folder, or a folder of collected tokens")


def _report(run: Path) -> None:
    from .report import run as report

    for path in report.write(run):
        print(path)


def _add_text(subcommands: Any) -> None:
    text = subcommands.add_parser(
        "text", help="the last responses of a run, each token on the colour of its entropy, here and as a page"
    )
    text.set_defaults(run_command=_text)
    add = text.add_argument
    add("run", type=Path, help="a run folder")
    add("--checkpoints", nargs="+", default=[], metavar="MODEL", help="[NAME=]PATH, to score the tokens side by side")
    add("--responses", type=int, default=8, help="how many of the last ones (8)")
    add("--rho", type=float, default=0.2, help="share of the tokens that are marked (0.2)")
    add("--temperature", type=float, default=1.0, help="with --checkpoints, of the entropies (1.0)")
    add("--dtype", default="auto", help="with --checkpoints, of the weights: auto, bfloat16, float32, ...")


def _text(run: Path, checkpoints: list[str], **options: Any) -> None:
    from .collect.run import named
    from .text import run as text

    print(f"page  {text.run(text.Options(run, named(checkpoints), **options))}")
