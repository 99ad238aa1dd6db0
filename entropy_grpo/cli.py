"""The commands of `entropy-grpo`: what each is told, and which module does it.

Imports late, so that help is instant.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from .analysis import command as analysis


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a wrong argument or input is one sentence and exit status 2."""
    parser = argparse.ArgumentParser(prog="entropy-grpo", description="RLVR that trains on the tokens that matter.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_train, _add_plan, _add_eval, analysis.add, _add_card, _add_merge, _add_compare, _add_sweep):
        add(commands)
    options, rest = parser.parse_known_args(arguments)
    given = vars(options)
    command, run, takes_overrides = given.pop("command"), given.pop("run_command"), given.pop("overrides", False)
    if rest and not takes_overrides:
        parser.error(f"{command}: unknown arguments: {' '.join(rest)}")
    words = {"overrides": rest} if takes_overrides else {}
    if run is _train:  # a launch says itself what is wrong with a recipe; what training raises is no input's fault
        run(**given, **words)
        return
    try:
        run(**given, **words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train a recipe in this process", add_help=False)
    train.add_argument("recipe", help="a file of recipes/, or any YAML")
    train.set_defaults(run_command=_train, overrides=True)


def _train(recipe: str, overrides: list[str]) -> None:
    from . import launch

    launch.run(recipe, overrides)


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="batches, memory, operations and commands of a recipe, without a GPU",
        epilog="Other --key value pairs override settings of the recipe, as in a launch.",
        allow_abbrev=False,
    )
    plan.add_argument("recipe", help="a file of recipes/, or any YAML")
    plan.add_argument("--gpus", type=int, help="GPUs of a machine; else as the recipe's accelerate configuration says")
    plan.add_argument("--nodes", type=int, help="machines; else as the recipe's accelerate configuration says")
    plan.add_argument("--gpu-memory", type=float, default=80.0, dest="memory", help="GiB of a GPU (80)")
    plan.add_argument(
        "--mean-length", type=float, help="tokens of a response on average, for the operations of a step"
    )
    plan.add_argument("--prompt-length", type=int, help="tokens of the longest prompt (the recipe's limit, or 2048)")
    plan.add_argument("--problems", type=int, help="problems of the training set, for the number of steps")
    plan.add_argument("--model-config", help="config.json of a model that is not known, or its folder")
    plan.add_argument("--json", action="store_true", dest="as_json", help="print JSON and nothing else")
    plan.set_defaults(run_command=_plan, overrides=True)


def _plan(recipe: str, overrides: list[str], as_json: bool, **options: Any) -> None:
    from .planning import plan

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # of a job that this may run in: a plan is made by one process
        os.environ.pop(name, None)
    plan.run(recipe, overrides, as_json, **options)


def _add_eval(commands: Any) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="answer benchmarks with a model, and say how well",
        epilog="The same command goes on where a killed one stopped. Several GPUs or machines, which share a file "
        "system: accelerate launch -m entropy_grpo.cli eval ...",
        allow_abbrev=False,
    )
    add = evaluate.add_argument
    add("--model", required=True, help="a Hub id, a model, checkpoint or adapter folder, a task's own model")
    add("--revision", help="commit of the model on the Hub")
    add("--benchmarks", required=True, help="names or .jsonl/.json/.parquet files, separated by commas")
    add("--preset", choices=("forking", "shaping"), default="forking", help="settings of a paper (forking)")
    add("--samples", type=int, help="responses to each question (preset: 16, 8)")
    add("--temperature", type=float, help="0 for the most probable tokens (preset: 1.0, 0.6)")
    add("--top-p", type=float, help="(preset: 1.0, 0.95)")
    add("--top-k", type=int, default=0, help="0 for all tokens (0)")
    add("--t-high", type=float, help="forked decoding: temperature of tokens whose entropy is above the threshold")
    add("--t-low", type=float, help="forked decoding: temperature of the others")
    add("--entropy-threshold", type=float, help="forked decoding: in nats at temperature 1; 0.672 in arXiv 2506.01939")
    add("--max-tokens", type=int, help="of a response (preset: 20480, 8192; less where a benchmark needs less)")
    add("--seed", type=int, default=0, help="decides every response (0)")
    add("--backend", default="auto", help="transformers, vllm, the URL of a server, or auto: vllm where installed")
    add("--batch-size", type=int, default=64, help="responses that are written together, or requests under way (64)")
    add("--dtype", default="auto", help="of the weights: auto (as they are saved), bfloat16, float32, ...")
    add("--tensor-parallel", type=int, default=1, help="with vllm, GPUs that share the model (1)")
    add("--output", help="folder of the results; a second model needs another (in the run folder, or evaluations/)")
    add("--compare", nargs="+", default=[], metavar="DIR", help="folders of other models' results to be compared with")
    add("--contamination", action="store_true", help="also let the model complete problems from their first part")
    evaluate.set_defaults(run_command=_eval)


def _eval(model: str, benchmarks: str, output: str | None, compare: list[str], **options: Any) -> None:
    from .evaluation import run
    from .models import load

    names = [name.strip() for name in benchmarks.split(",") if name.strip()]
    folder = Path(output) if output else load.output_folder(model)
    run.run(run.Options(model, names, folder, compare=[Path(other) for other in compare], **options))


def _add_card(commands: Any) -> None:
    card = commands.add_parser(
        "card",
        help="write the model card of a run, a checkpoint or a model by itself from its files",
        epilog="Nothing leaves this machine without --push.",
        allow_abbrev=False,
    )
    card.add_argument("folder", metavar="checkpoint-or-run", help="runs/NAME, runs/NAME/checkpoint-N, or any model")
    card.add_argument(
        "--push", metavar="REPO", dest="repository", help="upload model, tokenizer, card and recipe there"
    )
    card.add_argument("--dry-run", action="store_true", dest="only_show", help="print what would be written or pushed")
    card.set_defaults(run_command=_card)


def _card(**options: Any) -> None:
    from .cards.push import main as publish

    publish(**options)


def _add_merge(commands: Any) -> None:
    merge = commands.add_parser("merge", help="merge a LoRA checkpoint into its base: a plain model")
    merge.add_argument("checkpoint", help="runs/NAME or runs/NAME/checkpoint-N")
    merge.add_argument("--output", required=True, help="new folder for the model")
    merge.add_argument("--revision", help="of the base on the Hub (the one that the adapter was trained on)")
    merge.set_defaults(run_command=_merge)


def _merge(checkpoint: str, output: str, revision: str | None) -> None:
    from .models.merge import merge

    print(merge(checkpoint, output, revision))


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare", help="runs of recipes and seeds side by side: values, tests, curves, cost", allow_abbrev=False
    )
    compare.add_argument("runs", nargs="+", help="run folders")
    compare.add_argument("--baseline", help="the run, of those, whose recipe the others are tested against")
    compare.add_argument("--group-by", help="one setting that makes the groups (all that differ but the seed)")
    compare.add_argument("--json", action="store_true", dest="as_json", help="print JSON and nothing else")
    compare.add_argument("--output", help="folder for comparison.md, .json and .png")
    compare.set_defaults(run_command=_compare)


def _compare(runs: list[str], baseline: str | None, group_by: str | None, as_json: bool, output: str | None) -> None:
    import json

    from .compare.compare import compare_folders, write
    from .compare.tables import as_text

    found = compare_folders(runs, baseline, group_by)
    print(json.dumps(found, indent=2) if as_json else as_text(found))
    if output is not None:
        write(found, Path(output))


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="run a recipe with other settings and seeds, and compare what comes of it",
        epilog="The same command goes on where a killed one stopped.",
        allow_abbrev=False,
    )
    add = sweep.add_argument
    add("recipe", help="a file of recipes/, or any YAML")
    add("--set", nargs="+", default=[], dest="products", metavar="KEY=A,B", help="all combinations of these values")
    add("--variant", nargs="+", action="append", default=[], dest="others", metavar="KEY=A", help="one more variant")
    add("--seeds", type=int, default=3, help="seeds of each variant, from 0 (3)")
    add("--baseline", metavar="KEY=A", nargs="+", help="the variant that the others are tested against (the first)")
    add("--output", help="folder of the runs (runs/sweeps/RECIPE)")
    add("--jobs", type=int, default=1, help="runs at a time, with one thread each if there are several (1)")
    add("--launcher", default="accelerate launch", help="what launches a run (accelerate launch)")
    add("--print", action="store_true", dest="only_print", help="print the commands and run nothing")
    sweep.set_defaults(run_command=_sweep)


def _sweep(**options: Any) -> None:
    from .compare.sweep import main as sweep

    if not sweep(**options):
        sys.exit(1)


if __name__ == "__main__":
    main()
