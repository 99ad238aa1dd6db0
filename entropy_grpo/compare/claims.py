"""Claims that true and spurious rewards on one recipe support.

Some models gain as much from a random reward as from a true reward (arXiv 2506.10947). A gain is therefore evidence
for its reward only beyond the gains of controls, which reward chance, wrong answers or a box. Groups are comparable if
their recipes differ only in the trained rewards, and the same reward judges their answers.

A group's gain is its accuracy on held-out problems minus the accuracy at its own start, paired as in `metrics.seeds`.
The difference of two gains is paired again, by seed and problem. Holm's method corrects two families of tests
separately: whether each group gains, and whether the true reward gains more than each control. A sentence claims a
gain or a difference only if its corrected p-value is below 0.05. Intervals are not corrected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics.seeds import SIGNIFICANT, Side, common_seeds, correct, difference
from ..metrics.tables import interval_text, p_text
from ..rewards.registry import CONTROL_REWARDS

Test = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """Group of runs whose recipes differ only in the seed.

    Attributes:
        label: name of the group.
        reward: text of the trained rewards.
        names: names of the trained rewards.
        judge: name of the reward that decides correctness.
        recipe: text of all other settings, equal if the settings are equal.
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
        """True if the group was trained only on rewards that do not depend on correctness."""
        return bool(self.names) and set(self.names) <= set(CONTROL_REWARDS)

    @property
    def is_true(self) -> bool:
        """True if the group was trained only on the judging reward, and this reward is not a control."""
        return self.names == (self.judge,) and not self.is_control

    @property
    def gains(self) -> Side:
        """Accuracy after minus before of each problem with both, by seed."""
        return {
            seed: {problem: after[problem] - start for problem, start in self.before[seed].items() if problem in after}
            for seed, after in self.after.items()
            if seed in self.before
        }


def pairs(trials: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
    """Return pairs (true, control) with the same recipe and judge, for every control that has a true counterpart."""
    true = {(trial.recipe, trial.judge): trial for trial in trials if trial.is_true}
    controls = [trial for trial in trials if trial.is_control]
    return [(true[c.recipe, c.judge], c) for c in controls if (c.recipe, c.judge) in true]


def report(trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Test gains of all groups, and the gain of true rewards beyond their controls.

    Returns:
        `gains` by label and `beyond` by the control's label, in JSON types; None without a pair of true reward and
        control. An entry of `beyond` has `true`, the label of the true reward, and `claim`, a sentence. Figures are
        omitted if no run has answers before and after, or no seed is shared.
    """
    matched = pairs(trials)
    if not matched:
        return None
    taking_part = {trial.label: trial for pair in matched for trial in pair}
    tests = {label: difference(trial.before, trial.after) for label, trial in taking_part.items()}
    correct(test for test in tests.values() if test is not None)
    beyond = {control.label: difference(control.gains, true.gains) for true, control in matched}
    correct(test for test in beyond.values() if test is not None)
    named = {label: {"reward": one.reward, "control": one.is_control} for label, one in taking_part.items()}
    return {
        "gains": {label: named[label] | (tests[label] or {}) for label in named},
        "beyond": {
            control.label: (beyond[control.label] or {})
            | {"true": true.label}
            | {"claim": claim(true, control, tests[true.label], tests[control.label], beyond[control.label])}
            for true, control in matched
        },
    }


def _sign(test: Test) -> int:
    """Return the sign of a test's value if the corrected test is significant, else 0."""
    return 0 if test["p_corrected"] >= SIGNIFICANT else 1 if test["value"] > 0 else -1


def claim(true: Trial, control: Trial, gain: Test | None, spurious: Test | None, beyond: Test | None) -> str:
    """Return one or two sentences with the claim that the gains of the true reward and the control support."""
    names = f"{true.reward} and {control.reward}"
    if gain is None or spurious is None or beyond is None:
        return f"{names}: no seed has answers before and after under both, so nothing can be claimed."
    text = f"{names}: {_beyond_text(true, control, gain, spurious, beyond)}"
    if beyond["over"].endswith("problems"):
        count = len(common_seeds(control.gains, true.gains))
        if count == 1:
            text += " One seed was compared, so this holds only for these two runs."
        else:
            text += f" The difference is the same for all {count} seeds, so this holds only for these runs."
    return text


def _beyond_text(true: Trial, control: Trial, gain: Test, spurious: Test, beyond: Test) -> str:
    difference_text, own = interval_text(beyond, sign="+"), interval_text(gain, sign="+")
    if _sign(beyond) == 0:
        return (
            f"nothing can be claimed: the difference of the gains, {difference_text}, is not significant (p "
            f"{beyond['p_corrected']:.3f}, corrected), which does not show that they are equal. A true difference of "
            f"{beyond['minimum_detectable']:.3f} would be detected with 80% power, before correction."
            + _control_gains(control, spurious)
        )
    if _sign(beyond) < 0:
        return (
            f"the control gains more, by {interval_text(_negative(beyond), sign='+')}, so no gain can be claimed for "
            f"{true.reward}."
        )
    if _sign(gain) <= 0:
        return (
            f"{true.reward} itself shows no significant gain ({own}), so no gain can be claimed for it, "
            f"although it ends {difference_text} above the control."
        )
    if _sign(spurious) > 0:
        return (
            f"the control gains {spurious['value'] / gain['value']:.0%} of the true reward's gain "
            f"({spurious['value']:+.3f} of {gain['value']:+.3f}), although it does not reward right answers. Only the "
            f"difference, {difference_text}, can be attributed to {true.reward}."
        )
    if _sign(spurious) < 0:
        return (
            f"the control loses accuracy ({interval_text(spurious, sign='+')}), so the difference of the gains, "
            f"{difference_text}, is partly its loss. At most its own gain, {own}, can be attributed to {true.reward}."
        )
    return (
        f"the control's gain is not significant ({interval_text(spurious, sign='+')}), though it may be as large as "
        f"the interval allows. The difference, {difference_text}, can be attributed to {true.reward}."
    )


def _negative(test: Test) -> Test:
    return {"value": -test["value"], "low": -test["high"], "high": -test["low"]}


def _control_gains(control: Trial, spurious: Test) -> str:
    """Return a further sentence if the control gains by itself, else an empty text."""
    if _sign(spurious) <= 0:
        return ""
    gained = interval_text(spurious, sign="+")
    return f" {control.reward}, which does not reward right answers, gains {gained} by itself."


def tables(found: dict[str, Any]) -> list[list[list[str]]]:
    """Return the rows of two tables, headers first: gains over the own start, and gains beyond each control."""
    gains = [["reward trained on", "", "gain over its own start", "over", "p", "p, corrected"]] + [
        [label, "control" if test["control"] else "true", *_cells(test)] for label, test in found["gains"].items()
    ]
    beyond = [
        ["gain of", "beyond", "difference", "over", "p", "p, corrected", "difference detected with 80% power"]
    ] + [
        [test["true"], label, *_cells(test), f"{test['minimum_detectable']:.3f}" if "value" in test else ""]
        for label, test in found["beyond"].items()
    ]
    return [gains, beyond]


def _cells(test: Test) -> list[str]:
    if "value" not in test:
        return ["", "", "", ""]
    return [interval_text(test, sign="+"), test["over"], p_text(test["p_value"]), p_text(test["p_corrected"])]
