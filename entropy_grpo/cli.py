"""`entropy-grpo train RECIPE [--key value ...]` and `entropy-grpo card RUN`. Imports late, so that help is instant."""

import argparse
import sys


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a wrong argument is one sentence and exit status 2."""
    parser = argparse.ArgumentParser(prog="entropy-grpo", description="RLVR that trains on the tokens that matter.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a recipe in this process", add_help=False)
    train.add_argument("recipe", help="a file of recipes/, or any YAML")
    card = commands.add_parser("card", help="rebuild the model card of a run folder from its files")
    card.add_argument("run", help="the run folder, runs/NAME")
    options, rest = parser.parse_known_args(arguments)
    if options.command == "train":
        from . import launch

        launch.run(options.recipe, rest)
        return
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")

    from .card import write_card

    try:
        print(write_card(options.run))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
