"""Texts on the terminal at the beginning and at the end of a run."""

from pathlib import Path

from ..cards.results import results_table
from ..config.grpo import EntropyForkGRPOConfig
from ..config.run import RunConfig
from ..data.problems import Problems
from ..metrics.tables import aligned
from ..objective.objective import Objective
from ..runs import files
from ..runs.environment import hardware
from ..runs.folder import RunFolder, checkpoints


def _batches(args: EntropyForkGRPOConfig, objective: Objective) -> str:
    rollout = f"{args.rollout_groups} prompts x {args.num_generations} responses per rollout"
    steps = f"{float(objective.steps_per_rollout):g} optimiser steps per rollout"
    length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    return f"{rollout}, {steps}, {length}"


def beginning(
    args: EntropyForkGRPOConfig,
    config: RunConfig,
    objective: Objective,
    model: str | None,
    problems: Problems,
    folder: RunFolder,
) -> str:
    """Return the text before the first rollout: run folder, model, problems, batches and machine.

    Args:
        model: the model as the recipe names it.
    """
    counts = {"training": problems.train, "dev": problems.dev, "test": problems.test}
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in counts.items() if part is not None)
    rows = [
        ("run folder", str(folder.path)),
        ("model", str(model)),
        ("problems", f"{config.dataset_name}: {sizes}"),
        ("batches", _batches(args, objective)),
        ("machine", f"{hardware()}, processes: {args.world_size}"),
    ]
    if args.resume_from_checkpoint is not None:
        rows.append(("resumes from", str(args.resume_from_checkpoint)))
    return aligned(rows)


def ending(folder: RunFolder, plots: list[Path], card: Path) -> str:
    """Return the text after a run: the measured change, the files, and commands that read them."""
    lines = [""]
    evaluation = files.read_json(folder.evaluation)
    if evaluation:
        rows: list[tuple[str, ...]] = [("held-out problems", "before", "after", "gain")]
        rows += [tuple(row.values()) for row in results_table(evaluation)]
        lines += [aligned(rows), ""]
    named = {
        "model": folder.path,
        "model card": card,
        "recipe": folder.recipe,
        "metrics": folder.metrics,
        "responses": folder.samples,
        "plots": ", ".join(str(path) for path in plots),
    }
    newest = checkpoints(folder.path)[-1:]
    named["checkpoint"] = newest[0] if newest else ""
    named |= {
        "the run on one page": f"entropy-grpo analyze report {folder.path}",
        "forks in the terminal": f"entropy-grpo analyze text {folder.path}",
    }
    return "\n".join([*lines, aligned([(name, str(value)) for name, value in named.items() if str(value)])])
