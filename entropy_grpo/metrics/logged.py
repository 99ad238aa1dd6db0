"""Names of figures that a run logs and that plots, comparisons, reports and watchers read."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Names of the percentiles of the token entropy by level: `entropy/p95` is the 95th percentile.
ENTROPY_PERCENTILES = {level: f"p{level}" for level in (5, 25, 50, 75, 90, 95, 99)}
# Begin of the names of figures about the tokens of an optimiser step under its own policy, if several steps share a
# rollout that no pass measures. Without it they are of all tokens of a rollout, under the policy that wrote it.
OF_STEPS = "step_"
ENTROPIES = ROLLOUT_ENTROPY, STEP_ENTROPY = ("entropy", f"{OF_STEPS}entropy")
# Accuracy on a benchmark that a run answers while it trains: `eval_aime24/acc@16`.
BENCHMARK_ACCURACY = re.compile(r"eval_(?P<benchmark>.+)/acc@(?P<samples>\d+)")


def series_of(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Return (steps, values) of the logs that have a value of a figure."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def entropy_prefix(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the prefix of a run's logged entropies, `STEP_ENTROPY` only if the run logs none of its rollouts."""
    logged = {name.partition("/")[0] for row in rows for name in row if "/" in name}
    return STEP_ENTROPY if STEP_ENTROPY in logged and ROLLOUT_ENTROPY not in logged else ROLLOUT_ENTROPY


def benchmark_accuracies(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the logged names of accuracies on benchmarks, in the order of their first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row if BENCHMARK_ACCURACY.fullmatch(key)))


def mean_accuracies(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[int, float]]:
    """Return (step, mean accuracy over the benchmarks `names`) for every step that has all of them, in any rows."""
    if not names:
        return []
    by_step: dict[int, dict[str, float]] = {}
    for row in rows:
        by_step.setdefault(row["step"], {}).update({name: row[name] for name in names if row.get(name) is not None})
    return [(step, sum(of.values()) / len(names)) for step, of in by_step.items() if len(of) == len(names)]
