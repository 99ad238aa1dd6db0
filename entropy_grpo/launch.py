"""What a recipe file runs: read the recipe, choose the sharding, train.

accelerate launch recipes/demo_cpu.yaml --max_steps 4
accelerate launch -m entropy_grpo.launch FILE --max_steps 4     # FILE may be plain YAML
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .config import recipe
from .config.recipe import RecipeError
from .config.sharding import choose_sharding


def is_first_process() -> bool:
    """Whether this is rank 0, before anything distributed is set up."""
    return os.environ.get("RANK", "0") == "0"


def run(recipe_file: str, arguments: Sequence[str]) -> None:
    """Train a recipe with overrides; exits with status 2 and one sentence where it cannot be run."""
    try:
        path = Path(recipe_file)
        settings = recipe.load(path) | recipe.overrides(arguments)
        sharding = choose_sharding(settings)
        if "use_cpu" in settings and settings["use_cpu"].value is True:
            # Else it is cpu:0 and cpu:1 in two processes, places that torch.load does not find on resume.
            os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")

        if is_first_process():
            print(sharding)
        trainer = settings.get("trainer")
        if trainer is not None and trainer.value == "sft":
            from .training import sft as chosen
        else:
            from .training import train as chosen
        chosen.main(settings, path.stem)
    except RecipeError as error:
        if is_first_process():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def main(recipe_file: str | None = None) -> None:
    """Run the recipe that was executed, or the one that the command line names first."""
    arguments = sys.argv[1:]
    if recipe_file is None:
        if not arguments or arguments[0].startswith("--"):
            sys.exit("usage: accelerate launch -m entropy_grpo.launch FILE [--key value ...]")
        recipe_file, *arguments = arguments
    run(recipe_file, arguments)


if __name__ == "__main__":
    main()
