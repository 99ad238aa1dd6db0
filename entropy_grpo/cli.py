"""`entropy-grpo train RECIPE`, `plan RECIPE` (both with `--key value ...`) and `card RUN`.

Imports late, so that help is instant.
"""

import argparse
import os
import sys


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a wrong argument is one sentence and exit status 2."""
    parser = argparse.ArgumentParser(prog="entropy-grpo", description="RLVR that trains on the tokens that matter.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a recipe in this process", add_help=False)
    train.add_argument("recipe", help="a file of recipes/, or any YAML")
    plan = commands.add_parser(
        "plan",
        help="batches, memory, operations and commands of a recipe, without a GPU",
        epilog="Other --key value pairs override settings of the recipe, as in a launch.",
        allow_abbrev=False,
    )
    plan.add_argument("recipe", help="a file of recipes/, or any YAML")
    plan.add_argument("--gpus", type=int, help="GPUs of a machine; else as the recipe's accelerate configuration says")
    plan.add_argument("--nodes", type=int, help="machines; else as the recipe's accelerate configuration says")
    plan.add_argument("--gpu-memory", type=float, default=80.0, help="GiB of a GPU (80)")
    plan.add_argument(
        "--mean-length", type=float, help="tokens of a response on average, for the operations of a step"
    )
    plan.add_argument("--prompt-length", type=int, help="tokens of the longest prompt (the recipe's limit, or 2048)")
    plan.add_argument("--problems", type=int, help="problems of the training set, for the number of steps")
    plan.add_argument("--model-config", help="config.json of a model that is not known, or its folder")
    plan.add_argument("--json", action="store_true", help="print JSON and nothing else")
    card = commands.add_parser("card", help="rebuild the model card of a run folder from its files")
    card.add_argument("run", help="the run folder, runs/NAME")
    options, rest = parser.parse_known_args(arguments)
    if options.command == "train":
        from . import launch

        launch.run(options.recipe, rest)
        return
    if options.command == "plan":
        _plan(options, rest)
        return
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")

    from .card import write_card

    try:
        print(write_card(options.run))
    except ValueError as error:
        sys.exit(f"error: {error}")


def _plan(options: argparse.Namespace, overrides: list[str]) -> None:
    from . import plan
    from .recipe import RecipeError

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # of a job that this may run in: a plan is made by one process
        os.environ.pop(name, None)
    try:
        plan.run(
            options.recipe,
            overrides,
            options.json,
            gpus=options.gpus,
            nodes=options.nodes,
            memory=options.gpu_memory,
            mean_length=options.mean_length,
            prompt_length=options.prompt_length,
            problems=options.problems,
            model_config=options.model_config,
        )
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
