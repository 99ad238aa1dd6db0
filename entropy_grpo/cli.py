"""Commands of `entropy-grpo`. Each command is a dataclass of its options, from which tyro builds the command line.

Heavy modules are imported only when a command runs, so that help is fast.
"""

import os
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import tyro
from tyro.conf import Positional, UseAppendAction, arg, subcommand
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from .analysis.collect.options import Options as CollectOptions
from .analysis.decoding.options import Options as DecodingOptions
from .analysis.divergence.options import Options as DivergenceOptions
from .analysis.irrelevant.options import Options as IrrelevantOptions
from .analysis.text.options import Options as TextOptions
from .compare.options import CompareOptions, SweepOptions
from .evaluation.options import PRESETS, names_in
from .evaluation.options import Options as EvalOptions
from .planning.options import PlanOptions
from .runs.processes import leave_launch, on_one_line, print_any_name, wait_passively

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = TypeVar("Kind", bound="DataclassInstance")
Recipe = Positional[Annotated[str, arg(metavar="RECIPE", help="name that `entropy-grpo recipes` lists, or a file")]]
Prompt = Annotated[str | None, arg(aliases=("--template",))]
RunPath = Positional[Annotated[Path, arg(metavar="RUN")]]


def checked(options: Any, kind: type[Kind], **changed: Any) -> Kind:
    """Convert the options of a command line to `kind`, whose checks raise `ValueError`."""
    return kind(**({field.name: getattr(options, field.name) for field in fields(kind)} | changed))


class Unchecked:
    """Options that are checked only when their command runs, because tyro would print a failed check as a box."""

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class Train:
    """Train a recipe in this process. Further --key value pairs override its settings."""

    recipe: Recipe

    def __call__(self, overrides: Sequence[str]) -> None:
        from . import launch

        launch.run(self.recipe, overrides)


@dataclass(frozen=True)
class Launch:
    """Train a recipe with accelerate's launcher: entropy-grpo launch [ACCELERATE'S OPTIONS] RECIPE [--key value ...].

    The options are those of `accelerate launch`. Ctrl-C, SIGTERM and errors end the run with one line.
    """

    def __call__(self, overrides: Sequence[str]) -> None:
        from .training import launcher

        sys.exit(launcher.main(overrides))


@dataclass(frozen=True)
class Plan(Unchecked, PlanOptions):
    """Show batches, memory, operations and launch commands of a recipe, without a GPU.

    Further --key value pairs override settings of the recipe.
    """

    recipe: Recipe
    json: bool = False
    """print only JSON"""
    serve: bool = False
    """print only the command of the vLLM server, a word per line; nothing if no server must be started"""
    simulate: bool = False
    """print only simulated seconds of a rollout and its optimiser steps, colocated and divided; needs --mean-length"""

    def __call__(self, overrides: Sequence[str]) -> None:
        from .planning import plan, simulate

        leave_launch()  # a surrounding job has one, but one process makes a plan
        options = checked(self, PlanOptions)
        if self.simulate:
            simulate.run(options, overrides, self.json)
        else:
            plan.run(options, overrides, self.json, self.serve)


@dataclass(frozen=True)
class Eval(Unchecked, EvalOptions):
    """Evaluate a model on benchmarks. The same command continues a killed evaluation.

    entropy-grpo eval --list prints all benchmarks, a line each.
    With several GPUs, or machines that share a file system: accelerate launch -m entropy_grpo.cli eval ...
    """

    preset: Annotated[
        Literal["forking", "shaping"],
        arg(
            help="settings of a paper, arXiv 2506.01939 or arXiv 2508.02260: "
            + "; ".join(f"{name}: " + ", ".join(f"{k} {v}" for k, v in one.items()) for name, one in PRESETS.items())
        ),
    ] = EvalOptions.preset
    prompt: Prompt = EvalOptions.prompt

    def __call__(self, overrides: Sequence[str]) -> None:
        from .evaluation import run

        run.run(checked(self, EvalOptions, benchmarks=names_in(self.benchmarks)))


@dataclass(frozen=True)
class Collect(Unchecked, CollectOptions):
    """Collect entropy and log-probability of every token of a model's responses.

    The same command continues a killed collection, and can add checkpoints with --against.
    """

    prompt: Prompt = CollectOptions.prompt

    def __call__(self, overrides: Sequence[str]) -> None:
        from .analysis.collect import run

        collection = run.run(checked(self, CollectOptions, benchmarks=names_in(self.benchmarks)))
        print(f"tokens  {collection.path}")


@dataclass(frozen=True)
class Decoding(Unchecked, DecodingOptions):
    """Measure accuracy over a range of temperatures at forks and of temperatures elsewhere.

    The same command continues a killed one, also with more temperatures.
    """

    prompt: Prompt = DecodingOptions.prompt

    def __call__(self, overrides: Sequence[str]) -> None:
        from .analysis.decoding import run

        for path in run.run(checked(self, DecodingOptions, benchmarks=names_in(self.benchmarks))):
            print(path)


@dataclass(frozen=True, kw_only=True)
class Divergence(Unchecked, DivergenceOptions):
    """Measure the influence of forks: force another token, continue the response, and grade the result.

    The same command continues a killed measurement.
    """

    def __call__(self, overrides: Sequence[str]) -> None:
        from .analysis.divergence import run

        print(f"forks  {run.run(checked(self, DivergenceOptions, benchmarks=names_in(self.benchmarks)))}")


@dataclass(frozen=True)
class Irrelevant(Unchecked, IrrelevantOptions):
    """Let a language model judge whether responses have irrelevant content, and compare it with the rule.

    The same command continues a killed one.
    """

    def __call__(self, overrides: Sequence[str]) -> None:
        from .analysis.irrelevant import run

        print(f"verdicts  {run.run(checked(self, IrrelevantOptions))}")


@dataclass(frozen=True)
class Report:
    """Write one page of a run: result, curves, warnings, coloured responses, settings, and all analyses of it."""

    run: RunPath
    """run folder, or folder of collected tokens"""

    def __call__(self, overrides: Sequence[str]) -> None:
        from .analysis.report import run

        markdown, page = run.write(self.run)
        print(f"page      {page}\nMarkdown  {markdown}")


@dataclass(frozen=True)
class Text(Unchecked, TextOptions):
    """Show the last responses of a run, with each token coloured by its entropy, here and as a page."""

    run: RunPath
    """run folder"""

    def __call__(self, overrides: Sequence[str]) -> None:
        from .analysis.text import run

        print(f"page  {run.run(checked(self, TextOptions))}")


@dataclass(frozen=True)
class Analyze:
    """Analyse the token entropy of a model, a checkpoint or a run."""

    view: (
        Annotated[Collect, subcommand("collect")]
        | Annotated[Decoding, subcommand("decoding")]
        | Annotated[Divergence, subcommand("divergence")]
        | Annotated[Irrelevant, subcommand("irrelevant")]
        | Annotated[Report, subcommand("report")]
        | Annotated[Text, subcommand("text")]
    )

    def __call__(self, overrides: Sequence[str]) -> None:
        self.view(overrides)


@dataclass(frozen=True)
class Copy:
    """Write a recipe that travels with the package, with the settings of its parents in the same file."""

    name: Positional[Annotated[str, arg(metavar="NAME")]]
    """name of the recipe, as `entropy-grpo recipes` lists it"""
    folder: Positional[Annotated[Path, arg(metavar="DIR")]] = Path()
    """folder for NAME.yaml, which must not exist"""

    def __call__(self, overrides: Sequence[str]) -> None:
        from .config.catalogue import copy

        print(copy(self.name, self.folder))


@dataclass(frozen=True)
class List:
    """List the recipes that travel with the package."""

    def __call__(self, overrides: Sequence[str]) -> None:
        from .config.catalogue import catalogue
        from .metrics.tables import aligned

        print(aligned(catalogue()))


@dataclass(frozen=True)
class Recipes:
    """List the recipes that travel with the package, or copy one of them to change it."""

    action: Annotated[List, subcommand("list")] | Annotated[Copy, subcommand("copy")] = List()

    def __call__(self, overrides: Sequence[str]) -> None:
        self.action(overrides)


@dataclass(frozen=True)
class Card:
    """Write the model card of a run, a checkpoint or a model's folder from its files.

    Nothing is uploaded without --push.
    """

    folder: Positional[Annotated[str, arg(metavar="CHECKPOINT-OR-RUN")]]
    """runs/NAME, runs/NAME/checkpoint-N, or a model's folder"""
    push: Annotated[str | None, arg(metavar="REPO")] = None
    """repository on the Hub that receives model, tokenizer, card and recipe"""
    dry_run: bool = False
    """only print the card; with --push, print the list of files to upload and the card"""

    def __call__(self, overrides: Sequence[str]) -> None:
        from .cards import push

        push.main(self.folder, self.push, self.dry_run)


@dataclass(frozen=True)
class Merge:
    """Merge a LoRA checkpoint into its base, which gives a plain model."""

    checkpoint: Positional[Annotated[str, arg(metavar="CHECKPOINT")]]
    """runs/NAME or runs/NAME/checkpoint-N"""
    output: str
    """new folder for the model"""
    revision: str | None = None
    """commit of the base on the Hub; if unset, the commit in the adapter's configuration"""

    def __call__(self, overrides: Sequence[str]) -> None:
        from .models.merge import merge

        print(merge(self.checkpoint, self.output, self.revision))


@dataclass(frozen=True)
class Compare(CompareOptions):
    """Compare runs of several recipes and seeds: values, tests, curves and cost."""

    runs: Positional[Annotated[tuple[str, ...], arg(metavar="RUN")]]
    """run folders"""
    json: bool = False
    """print only JSON"""

    def __call__(self, overrides: Sequence[str]) -> None:
        import json

        from .compare.compare import compare_folders, write
        from .compare.tables import as_text

        comparison = compare_folders(self.runs, self.baseline, self.group_by)
        print(json.dumps(comparison, indent=2) if self.json else as_text(comparison))
        if self.output is not None:
            write(comparison, self.output)


@dataclass(frozen=True)
class Sweep(SweepOptions):
    """Run a recipe, or the recipes of a sweep file, with several settings and seeds, and compare the runs.

    Further --key value pairs override settings of all runs. The same command continues a killed sweep.
    """

    recipe: Recipe
    products: Annotated[tuple[str, ...], arg(name="set", metavar="KEY=A,B")] = ()
    """settings with their values; every combination of values is a variant"""
    others: Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(name="variant", metavar="KEY=A")] = ()
    """settings of one more variant; may be repeated"""
    baseline: Annotated[tuple[str, ...], arg(metavar="KEY=A")] = ()
    """variant with which all other variants are compared; if unset, the first"""
    only_print: Annotated[bool, arg(name="print")] = False
    """print the commands and run nothing"""

    def __call__(self, overrides: Sequence[str]) -> None:
        from .compare import sweep, sweep_file
        from .config.offline import resolve

        requested = sweep_file.sweeps(checked(self, SweepOptions))
        for one in requested:  # all of them, before the first runs
            sweep.prepare(one, overrides, resolve)
        ended = [sweep.main(one, overrides, resolve) for one in requested]
        if not all(ended):
            sys.exit(1)


Command: Any = (
    Annotated[Train, subcommand("train")]
    | Annotated[Launch, subcommand("launch")]
    | Annotated[Recipes, subcommand("recipes")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Analyze, subcommand("analyze")]
    | Annotated[Card, subcommand("card")]
    | Annotated[Merge, subcommand("merge")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Sweep, subcommand("sweep")]
)
TAKES_OVERRIDES = ("train", "launch", "plan", "sweep")
RULES = ConstructorRegistry()


@RULES.primitive_rule
def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Parse `int | None`, or a `Literal` of words for the int, as optional; tyro would offer the word None."""
    kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
    if get_origin(info.type) not in (Union, types.UnionType) or kinds[1:]:
        return None
    words = get_args(kinds[0]) if get_origin(kinds[0]) is Literal else None
    kind = kinds[0] if words is None else str
    if kind not in (int, float, str, Path):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper() if words is None else f"{{{','.join(words)}}}",
        instance_from_str=lambda given: kind(given[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: ["unset" if value is None else str(value)],
        choices=words,
    )


def parse(words: Sequence[str]) -> tuple[Callable[[Sequence[str]], None], list[str]]:
    """Parse a command line into its command and the words that override settings of its recipe."""
    overridden = bool(words) and words[0] in TAKES_OVERRIDES
    options: dict[str, Any] = {
        "prog": "entropy-grpo",
        "description": "RLVR on high-entropy tokens. entropy-grpo --version prints the version.",
        "args": list(words),
        "config": (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
        "registry": RULES,
    }
    if overridden:
        return tyro.cli(Command, return_unknown_args=True, **options)
    return tyro.cli(Command, **options), []


def list_benchmarks() -> None:
    """Print all benchmarks, a line each."""
    from .data.benchmarks import catalogue
    from .metrics.tables import aligned

    print(aligned(catalogue()))


def _sentence(error: ValueError | OSError) -> str:
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    name = os.fsdecode(error.filename)
    return f"{name!r} cannot be read or written ({error.strerror}): name another path, or mend this one."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Invalid input gives one sentence and exit status 2."""
    words = sys.argv[1:] if arguments is None else arguments
    if list(words) == ["--version"]:
        print(f"entropy-grpo {version('entropy-grpo')}")
        return
    if words[:1] == ["eval"] and "--list" in words:  # without the model and the benchmarks that every evaluation needs
        list_benchmarks()
        return
    if words[:1] == ["launch"] and words[1:] not in ([], ["-h"], ["--help"]):  # all other words are accelerate's
        Launch()(words[1:])
    command, overrides = parse(words)
    wait_passively()
    print_any_name()
    if isinstance(command, Train):  # `launch.run` reports recipe errors itself, and all other errors are faults
        command(overrides)
        return
    try:
        command(overrides)
    except (ValueError, OSError) as error:
        print(f"error: {on_one_line(_sentence(error))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
