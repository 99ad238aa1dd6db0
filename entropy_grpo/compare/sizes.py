"""Gain of one arm over another against the size of the model (arXiv 2506.01939, Fig. 8).

The size of a run is the number of parameters that its `environment.json` records, without adapters (`by_size`). Runs
of one size differ in their arm and their seed: an arm is the values of the settings that differ within some size. The
baseline's arm is the reference at every size. Gains are paired by seed at each size, as in `metrics.seeds`, and Holm's
method corrects them as a family of their own. Sizes without the reference arm, or with settings of evaluation that
differ, have no gain.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics.seeds import correct, difference
from .runs import Run, differing, label_of, side_of, unlike

# Settings that name the model. They differ between sizes, and may differ with the seed within a size.
MODEL = {"model_name_or_path", "model_revision"}
# Note of a comparison that has models of several sizes, in place of the differences between its groups.
WITHIN = "The runs have models of several sizes, and runs are compared with runs of their own size only."


def by_size(runs: Sequence[Run]) -> dict[int, list[Run]]:
    """Return the runs by their size, in rising order; runs of models without a recorded size are left out.

    Adapters add to the parameters that a run records. Runs of one model thus have the size of the smallest record.
    """
    models: dict[str, list[Run]] = {}
    for run in runs:
        models.setdefault(repr([run.settings.get(name) for name in sorted(MODEL)]), []).append(run)
    sizes: dict[int, list[Run]] = {}
    for members in models.values():
        recorded = [run.parameters for run in members if run.parameters is not None]
        if recorded:
            sizes.setdefault(min(recorded), []).extend(members)
    return dict(sorted(sizes.items()))


def report(sizes: Mapping[int, Sequence[Run]], baseline: Run) -> dict[str, Any] | None:
    """Return the gains of every arm over the baseline's arm, by size.

    Returns:
        {"reference": label, "gains": {arm: {measure: {size: test}}}} in JSON types, or None if no size has the
        baseline's arm and another. A test is that of `metrics.seeds.difference`.
    """
    names = sorted({name for members in sizes.values() for name in differing(members)} - MODEL)
    if not names:
        return None
    runs = [run for members in sizes.values() for run in members]
    reference = label_of(baseline, names, runs)
    gains: dict[str, dict[str, dict[str, Any]]] = {}
    for size, members in sizes.items():
        arms: dict[str, list[Run]] = {}
        for run in members:
            arms.setdefault(label_of(run, names, runs), []).append(run)
        for arm in arms.keys() - {reference}:
            for name, test in _gains(arms.get(reference, []), arms[arm]).items():
                gains.setdefault(arm, {}).setdefault(name, {})[str(size)] = test
    correct(test for measures in gains.values() for tests in measures.values() for test in tests.values())
    return {"reference": reference, "gains": dict(sorted(gains.items()))} if gains else None


def _gains(reference: Sequence[Run], arm: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return the gain of an arm at one size in every measure that both have."""
    both = [*reference, *arm]
    names = dict.fromkeys(name for run in both for name in run.answers)
    tests = {
        name: difference(side_of(reference, name), side_of(arm, name)) for name in names if not unlike(both, name)
    }
    return {name: test for name, test in tests.items() if test is not None}
