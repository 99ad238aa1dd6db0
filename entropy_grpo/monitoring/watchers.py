"""Rules that detect faults of a run from its logged rows.

A rule reads the series of a few metrics and returns a sentence with the symptom and a remedy, or None. Most rules
compare the mean of the last RECENT values with the mean of the first RECENT values of the same run. Such a rule needs
twice RECENT values before it can warn. The limits are wide, so that ordinary noise does not trigger a warning.

Rules are pure functions of rows `{"step": ..., metric: value, ...}` as in a run's log history.
"""

import math
from collections.abc import Callable, Sequence

from ..metrics.logged import ENTROPIES, benchmark_accuracies, mean_accuracies
from ..rewards.registry import GRADED, boxed_answers
from ..runs.files import Row
from ..tasks.registry import by_reward

ACTIONS = ("off", "warn", "stop")
# Number of values in a mean. Most metrics have one value per optimiser step; generation metrics have one per rollout.
RECENT = 10
# Rewards that read a box: comparisons of its content, the rewards of all tasks, and the control of the format.
BOXED = {*(name for name, answers in GRADED.items() if answers is boxed_answers), *by_reward(), "format_only"}


class Log:
    """Series of a run's metrics, each collected on request.

    Args:
        rows: rows of the log history.
        kept_share: share of tokens that the run should keep, 1 for all.
    """

    def __init__(self, rows: Sequence[Row], kept_share: float):
        self.rows, self.kept_share = rows, kept_share

    @property
    def reads_box(self) -> bool:
        """True if a reward of the run reads a box; TRL's metrics name the rewards."""
        return any(f"rewards/{name}/mean" in row for row in self.rows for name in BOXED)

    def points(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) pairs of a metric, without values that are not finite."""
        pairs = [(row["step"], row.get(name)) for row in self.rows]
        return [(step, value) for step, value in pairs if value is not None and math.isfinite(value)]

    def values(self, name: str) -> list[float]:
        return [value for _, value in self.points(name)]

    def ends(self, name: str) -> tuple[float, float] | None:
        """Return the means of the first and of the last RECENT values, or None while the two ranges overlap."""
        values = self.values(name)
        if len(values) < 2 * RECENT:
            return None
        return sum(values[:RECENT]) / RECENT, sum(values[-RECENT:]) / RECENT

    def recent(self, name: str) -> float | None:
        """Return the mean of the last RECENT values, or None while there are fewer."""
        values = self.values(name)[-RECENT:]
        return sum(values) / RECENT if len(values) == RECENT else None


def entropy_collapse(log: Log) -> str | None:
    for prefix in ENTROPIES:
        ends = log.ends(f"{prefix}/p95")
        if ends and ends[1] < 0.3 * ends[0]:
            return (
                f"The 95th percentile of the entropy has fallen from {ends[0]:.3g} to {ends[1]:.3g} nats: the policy "
                "explores less at forks. Raise epsilon_high, lower learning_rate or top_entropy_quantile, or train on "
                "harder problems."
            )
    return None


def entropy_explosion(log: Log) -> str | None:
    for prefix in ENTROPIES:
        ends = log.ends(f"{prefix}/mean")
        if ends and ends[1] > 2 * ends[0] + 0.1:
            return (
                f"The mean entropy has risen from {ends[0]:.3g} to {ends[1]:.3g} nats: responses turn into noise. "
                "Lower learning_rate or epsilon_high, or set delta (dual clipping) if negative advantages cause it."
            )
    return None


def length_collapse(log: Log) -> str | None:
    ends = log.ends("completions/mean_length")
    if ends and ends[1] < 0.4 * ends[0]:
        return (
            f"The mean length of responses has fallen from {ends[0]:.0f} to {ends[1]:.0f} tokens: the policy may "
            "guess instead of reasoning. Read samples.jsonl: the overlong penalty may begin too early "
            "(overlong_cache_length), or a short trick may earn the reward."
        )
    return None


def length_runaway(log: Log) -> str | None:
    ends = log.ends("completions/clipped_ratio")
    if ends and ends[1] > max(0.3, 2 * ends[0]):
        return (
            f"{ends[1]:.0%} of the responses are cut off at max_completion_length, after {ends[0]:.0%} at the start: "
            "more and more responses do not end. Add the reward `overlong`, or raise max_completion_length."
        )
    return None


def reward_hacking(log: Log) -> str | None:
    """Warn if held-out accuracy is below its best twice in a row while the reward has risen since the best."""
    held_out = log.points("eval_accuracy") or mean_accuracies(log.rows, benchmark_accuracies(log.rows))
    if len(held_out) < 3:
        return None
    step, best = max(held_out, key=lambda point: point[1])
    later = [value for at, value in held_out if at > step][-2:]
    rewards = log.points("reward")
    then = [value for at, value in rewards if at <= step][-RECENT:]
    now = [value for at, value in rewards if at > step][-RECENT:]
    if len(later) < 2 or max(later) > best - 0.05 or min(len(then), len(now)) < RECENT:
        return None
    before, after = sum(then) / RECENT, sum(now) / RECENT
    if after <= before:
        return None
    return (
        f"The reward has risen from {before:.3g} to {after:.3g} since step {step}, while held-out accuracy has fallen "
        f"from {best:.3g} to {later[-1]:.3g}: the policy memorises the training problems or exploits the reward. Go "
        f"back to the checkpoint of step {step}, and read the responses with the highest rewards."
    )


def clip_rate(log: Log) -> str | None:
    low, high = log.recent("clip_ratio/kept_low"), log.recent("clip_ratio/kept_high")
    if low is not None and high is not None and low + high > 0.2:
        return (
            f"{low + high:.0%} of the kept tokens are clipped: the policy moves too far from the policy that wrote "
            "the rollout. Lower learning_rate or steps_per_rollout."
        )
    return None


def kept_fraction(log: Log) -> str | None:
    kept = log.recent("selection/kept_fraction")
    if kept is not None and abs(kept - log.kept_share) > 0.25 * min(log.kept_share, 1 - log.kept_share) + 0.02:
        return (
            f"{kept:.1%} of a step's tokens are kept instead of {log.kept_share:.1%}: the step has few tokens, or its "
            "entropies differ from the rest of the rollout (with old_logps sampler, from the last step). Use larger "
            "steps, or entropy_scope 'global'."
        )
    return None


def sampler_gap(log: Log) -> str | None:
    gap = log.recent("sampling/sampling_logp_difference/mean")
    if gap is not None and gap > 0.1:
        return (
            f"The sampler's log-probabilities differ from the trainer's by {gap:.3g} nats on average: the sampler may "
            "have old weights, another dtype or another temperature. Restart it, and check that weights are "
            "synchronised."
        )
    return None


def format_collapse(log: Log) -> str | None:
    spread, boxless = log.ends("quality/format_entropy"), log.ends("quality/no_box")
    if boxless and boxless[1] > boxless[0] + 0.25 and log.reads_box:
        return (
            f"{boxless[1]:.0%} of the responses have no boxed answer, after {boxless[0]:.0%} at the start: the policy "
            "unlearns the format that the reward reads. Read samples.jsonl, and lower learning_rate."
        )
    if spread and spread[0] > 0.3 and spread[1] < 0.15 * spread[0]:
        return (
            f"The entropy of the responses' formats has fallen from {spread[0]:.2g} to {spread[1]:.2g} nats: all "
            "responses have the same format, which lowers Pass@k at large k. Lower learning_rate, or train on more "
            "varied problems."
        )
    return None


def verifier_timeouts(log: Log) -> str | None:
    share = log.recent("grading/timeouts")
    if share is not None and share > 0.02:
        return (
            f"{share:.1%} of the answers take too long to grade and count as wrong, even if they are right. Raise "
            "grading_seconds and grading_total_seconds, or look for answers on which sympy takes long."
        )
    return None


def lucky_hits(log: Log) -> str | None:
    one, none, all_right = (log.recent(f"groups/{name}") for name in ("one_right", "all_wrong", "all_right"))
    if one is None or none is None or all_right is None:
        return None
    informative = 1 - none - all_right
    if none > 0.5 and one > 0.7 * informative > 0:
        return (
            f"{none:.0%} of the groups are all wrong, and {one / informative:.0%} of the informative groups have a "
            "single right response: almost impossible problems are rewarded by accident. Set dynamic_sampling and "
            "min_accuracy to exclude them."
        )
    return None


WATCHERS: dict[str, Callable[[Log], str | None]] = {
    rule.__name__: rule
    for rule in (
        entropy_collapse,
        entropy_explosion,
        length_collapse,
        length_runaway,
        reward_hacking,
        clip_rate,
        kept_fraction,
        sampler_gap,
        format_collapse,
        verifier_timeouts,
        lucky_hits,
    )
}
