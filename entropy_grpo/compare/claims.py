"""What true and spurious rewards on one recipe allow one to claim.

Models exist that gain as much from a coin as from the truth (arXiv 2506.10947): a gain says something of its reward
only beyond what controls gain, which are paid for a coin, for wrong answers or for a box. Compared are groups of runs
whose recipes differ in the rewards trained on alone, and whose answers are judged by one reward.

A group's gain is that over its own start, in accuracy on held-out problems, paired as `differences` has it; the
difference of two gains is paired again, by seed and problem. Two families of tests are corrected by Holm's method,
each by itself: whether each group gains, and whether the true reward gains more than each control. A sentence claims a
gain or a difference only where its corrected p-value is below 0.05. The intervals are those of single tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics.seeds import SIGNIFICANT, Side, correct, difference
from ..metrics.tables import interval_text
from ..rewards.registry import CONTROL_REWARDS

Test = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A group of runs of one recipe but for the seed.

    Attributes:
        reward: what it was trained on, as text.
        names: the same as names; `judge` is the reward that says what is right.
        recipe: all other settings, as a text that is equal where they are.
        before, after: accuracy by seed and problem.
    """

    label: str
    reward: str
    names: tuple[str, ...]
    judge: str
    recipe: str
    before: Side
    after: Side

    @property
    def is_control(self) -> bool:
        """Whether it was trained on nothing but rewards that do not say what is right."""
        return bool(self.names) and set(self.names) <= set(CONTROL_REWARDS)

    @property
    def is_true(self) -> bool:
        """Whether it was trained on what says what is right, and on nothing else."""
        return self.names == (self.judge,) and not self.is_control

    @property
    def gains(self) -> Side:
        """How far each problem's accuracy rose, by seed, on the problems that were answered before and after."""
        return {
            seed: {problem: after[problem] - start for problem, start in self.before[seed].items() if problem in after}
            for seed, after in self.after.items()
            if seed in self.before
        }


def pairs(trials: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
    """(true, control) of one recipe and one judge, for every control that has such a true reward."""
    true = {(trial.recipe, trial.judge): trial for trial in trials if trial.is_true}
    controls = [trial for trial in trials if trial.is_control]
    return [(true[c.recipe, c.judge], c) for c in controls if (c.recipe, c.judge) in true]


def report(trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Gains by label, and by the control's what the true reward gains beyond it; None without such a pair.

    Both are of JSON's types. A control has `true`, the label of its true reward, and `claim`, a sentence; the figures
    are left out where no run has answers before and after, or no seed is shared.
    """
    found = pairs(trials)
    if not found:
        return None
    taking_part = {trial.label: trial for pair in found for trial in pair}
    tests = {label: difference(trial.before, trial.after) for label, trial in taking_part.items()}
    correct(test for test in tests.values() if test is not None)
    beyond = {control.label: difference(control.gains, true.gains) for true, control in found}
    correct(test for test in beyond.values() if test is not None)
    named = {label: {"reward": one.reward, "control": one.is_control} for label, one in taking_part.items()}
    return {
        "gains": {label: named[label] | (tests[label] or {}) for label in named},
        "beyond": {
            control.label: (beyond[control.label] or {})
            | {"true": true.label}
            | {"claim": claim(true, control, tests[true.label], tests[control.label], beyond[control.label])}
            for true, control in found
        },
    }


def _sign(test: Test) -> int:
    """1 or -1 where the corrected test tells the value from zero, else 0."""
    return 0 if test["p_corrected"] >= SIGNIFICANT else 1 if test["value"] > 0 else -1


def claim(true: Trial, control: Trial, gain: Test | None, spurious: Test | None, beyond: Test | None) -> str:
    """One or two sentences on what the true reward's gain shows, given what the control gains."""
    names = f"{true.reward} and {control.reward}"
    if gain is None or spurious is None or beyond is None:
        return f"{names}: no seed has answers before and after under both, so nothing can be claimed."
    said = f"{names}: {_beyond_text(true, control, gain, spurious, beyond)}"
    if beyond["over"].endswith("problems"):
        said += " One seed was compared: this holds for these two runs, and says nothing about others."
    return said


def _beyond_text(true: Trial, control: Trial, gain: Test, spurious: Test, beyond: Test) -> str:
    difference_text, own = interval_text(beyond, sign="+"), interval_text(gain, sign="+")
    if _sign(beyond) == 0:
        return (
            f"nothing can be claimed: the gains' difference, {difference_text}, cannot be told from zero (p "
            f"{beyond['p_corrected']:.3f}, corrected), which does not show that they are equal. A true difference of "
            f"{beyond['minimum_detectable']:.3f} would be found eight times in ten, before correction."
            + _control_gains(control, spurious)
        )
    if _sign(beyond) < 0:
        return (
            f"the control gains more, by {interval_text(_negative(beyond), sign='+')}: no gain of {true.reward} can "
            f"be put down to what it says."
        )
    if _sign(gain) <= 0:
        return (
            f"{true.reward} itself gains nothing measurable ({own}), so no gain can be put down to what it says, "
            f"although it ends {difference_text} above the control."
        )
    if _sign(spurious) > 0:
        return (
            f"the control gains {spurious['value'] / gain['value']:.0%} of the true reward's gain "
            f"({spurious['value']:+.3f} of {gain['value']:+.3f}) without being paid for what is right. Only the "
            f"difference, {difference_text}, can be put down to what {true.reward} says."
        )
    if _sign(spurious) < 0:
        return (
            f"the control loses accuracy ({interval_text(spurious, sign='+')}), so the gains' difference, "
            f"{difference_text}, is partly its loss. What can be put down to what {true.reward} says is at most its "
            f"own gain, {own}."
        )
    return (
        f"the control's gain cannot be told from zero ({interval_text(spurious, sign='+')}), though it may be as "
        f"large as that interval allows. The difference, {difference_text}, can be put down to what {true.reward} "
        f"says."
    )


def _negative(test: Test) -> Test:
    return {"value": -test["value"], "low": -test["high"], "high": -test["low"]}


def _control_gains(control: Trial, spurious: Test) -> str:
    """A further sentence where the control gains by itself."""
    if _sign(spurious) <= 0:
        return ""
    gained = interval_text(spurious, sign="+")
    return f" {control.reward}, which does not pay for what is right, gains {gained} by itself."


def tables(found: dict[str, Any]) -> list[list[list[str]]]:
    """Rows of two tables, headers first: gains over the own start, and of the true reward beyond each control."""
    gains = [["reward trained on", "", "gain over its own start", "over", "p", "p, corrected"]] + [
        [label, "control" if test["control"] else "true", *_cells(test)] for label, test in found["gains"].items()
    ]
    beyond = [
        ["gain of", "beyond", "difference", "over", "p", "p, corrected", "smallest difference found 8 times in 10"]
    ] + [
        [test["true"], label, *_cells(test), f"{test['minimum_detectable']:.3f}" if "value" in test else ""]
        for label, test in found["beyond"].items()
    ]
    return [gains, beyond]


def _cells(test: Test) -> list[str]:
    if "value" not in test:
        return ["", "", "", ""]
    return [interval_text(test, sign="+"), test["over"], f"{test['p_value']:.3f}", f"{test['p_corrected']:.3f}"]
