"""The arguments of `entropy-grpo analyze ...`, and what each subcommand calls; imports late, for instant help."""

from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add `analyze` and its subcommands; each sets `run_command`, a function of its arguments."""
    analyze = commands.add_parser("analyze", help="see the forks: token entropy of a model, a checkpoint or a run")
    subcommands = analyze.add_subparsers(required=True)
    _add_collect(subcommands)
    _add_report(subcommands)
    _add_text(subcommands)


def _add_collect(subcommands: Any) -> None:
    collect = subcommands.add_parser(
        "collect",
        help="write entropy and log-probability of every token of some responses",
        epilog="The same command goes on where a killed one stopped; more checkpoints may come with --against.",
        allow_abbrev=False,
    )
    collect.set_defaults(run_command=_collect)
    add = collect.add_argument
    add("--model", required=True, help="[NAME=]a Hub id, a model, checkpoint or adapter folder, an embedded model")
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
    from . import collect

    names = [name.strip() for name in (benchmarks or "").split(",") if name.strip()]
    collection = collect.run(collect.Options(benchmarks=names, **given))
    print(f"tokens  {collection.path}")


def _add_report(subcommands: Any) -> None:
    report = subcommands.add_parser("report", help="one HTML and one Markdown page of all that a run allows")
    report.set_defaults(run_command=_report)
    report.add_argument("run", type=Path, help="a run folder, or a folder of collected tokens")


def _report(run: Path) -> None:
    from . import report

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
    from . import text
    from .collect import named

    print(f"page  {text.run(text.Options(run, named(checkpoints), **options))}")
