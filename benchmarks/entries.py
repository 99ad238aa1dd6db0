"""Seconds of an optimiser step with each method by name, and the registry's own share of a step with the forking mask.

    python -m benchmarks.entries            # benchmarks/results/entries.json, ten minutes on two quiet cores
    python -m benchmarks.entries --table    # only the table of the recorded figures

Rollouts and model are those of `benchmarks.step`, smaller. All arms take turns, and each is divided by the arm without
a method in the same turn. The settings of an arm are those of the sweeps (`benchmarks.experiments`), so that a method
has the clips and the loss of its authors. The registry's share is the time within `objective.methods.run.Methods`.
"""

import argparse
import inspect
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from ruamel.yaml import YAML

from benchmarks import experiments, measure
from benchmarks.step import STEPS, lengths, make_model, run
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.objective.methods.registry import REGISTERED
from entropy_grpo.objective.methods.run import Methods
from entropy_grpo.runs import files

COMMAND = "python -m benchmarks.entries --table"
RESULTS = measure.RESULTS / "entries.json"
LONGEST, BATCH, ACCUMULATION, MEAN = 128, 4, 4, 0.35
BASE = "no method"
RHO = ("top_entropy_quantile=0.2",)
# Methods that the sweeps do not have by their names.
OTHERS = {
    BASE: (experiments.ALL,),
    "forking": RHO,
    **{name: (*RHO, f"entropy_selection={name}") for name in ("bottom", "random", "gradient_norm", "random_matched")},
    "ppl": (experiments.ALL, "ppl_shaping_alpha=0.01"),
    "position": (experiments.ALL, "position_shaping_gamma=0.1", "position_shaping_start=0"),
}


def arms() -> dict[str, dict[str, Any]]:
    """Settings of the trainer for every registered method, by its name, after the arms without a method."""
    swept = experiments.EXPERIMENTS["methods_tiny"].arms | experiments.EXPERIMENTS["methods_more_tiny"].arms
    found = OTHERS | {name: swept[name] for name in REGISTERED if name not in OTHERS}
    return {
        name: {key: YAML(typ="safe").load(value) for key, _, value in (setting.partition("=") for setting in settings)}
        for name, settings in found.items()
    }


class Within:
    """Seconds within the methods of a class. A method that another one calls is not counted again."""

    def __init__(self, owner: type):
        self.seconds, self.depth = 0.0, 0
        for name, function in inspect.getmembers(owner, inspect.isfunction):
            setattr(owner, name, self.timed(function))

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time added."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start, self.depth = time.perf_counter(), self.depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                self.depth -= 1
                self.seconds += 0.0 if self.depth else time.perf_counter() - start

        return call


def measured(repeats: int) -> dict[str, Any]:
    """Seconds of a step by arm, their ratio to the arm without a method, and the registry's own."""
    taken: dict[str, list[float]] = {name: [] for name in arms()}
    own: dict[str, list[float]] = {name: [] for name in arms()}
    within = Within(Methods)
    sizes = lengths(BATCH * ACCUMULATION * STEPS, MEAN, LONGEST)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model)
        for turn in range(repeats + 1):  # the first is not counted
            for name, settings in arms().items():
                within.seconds = 0.0
                seconds, _ = run(model, sizes, LONGEST, BATCH, ACCUMULATION, **settings)
                if turn:
                    taken[name].append(seconds)
                    own[name].append(within.seconds / STEPS)
                print(f"{turn}  {name:20s} {seconds:7.3f} s per step, {within.seconds / STEPS:.4f} s of it methods")
    return {
        name: {
            "seconds": measure.spread(taken[name]),
            "times as long": measure.ratios(taken[name], taken[BASE]),
            "seconds within methods": measure.spread(own[name]),
            "share": measure.ratios(own[name], taken[name]),
        }
        for name in taken
    }


def table(results: dict[str, Any]) -> str:
    """The recorded figures in Markdown, the cheapest method first."""
    rows = [["method", "step, times that without a method", "within the registry, ms", "share of the step"]]
    found = sorted(results["arms"].items(), key=lambda item: (item[0] != BASE, item[1]["times as long"]["median"]))
    for name, arm in found:
        times = "{median:.2f} [{low:.2f}, {high:.2f}]".format(**arm["times as long"])
        own = "{:.1f}".format(1e3 * arm["seconds within methods"]["median"])
        rows.append([name, times, own, "{:.1%}".format(arm["share"]["median"])])
    return (
        f"Steps of {BATCH * ACCUMULATION} responses, {results['hardware']}. Median [lowest, highest] of "
        f"{results['repeats']} turns.\n\n{markdown_table(rows)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="only write the table of the recorded figures")
    options = parser.parse_args()
    if not options.table:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        logging.disable(logging.WARNING)
        figures = {"repeats": options.repeats, "arms": measured(options.repeats)}
        measure.write("entries", "python -m benchmarks.entries", figures)
    measure.write_block(COMMAND, table(files.read_json(RESULTS)))


if __name__ == "__main__":
    main()
