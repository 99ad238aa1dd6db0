"""Detection of a run's stage (arXiv 2508.02260): rising, while entropy falls fast and accuracy climbs, or the plateau.

The paper names the stages and gives no rule. The rule here compares the two halves of the last `window` optimiser
steps. The *fall* of entropy is its mean in the first half minus its mean in the second. The *climb* of accuracy is its
mean in the second half minus its mean in the first. The plateau begins when fall and climb are at most `share` of the
largest fall and the largest climb so far. Both largest values must be above zero.

The rule therefore has no unit and needs no assumption about the accuracy that a model can reach. A run whose entropy
has never fallen, or whose accuracy has never climbed, is rising. A run that has reached the plateau stays there. The
window must be long enough to average out noise: with a short window the plateau is detected too early.

Entropy is the mean over all tokens of the rollout under the policy that wrote it. Accuracy is the share of right
responses among all responses drawn for the rollout. Both count at each step of the rollout, so that a window has to
span several rollouts. The mean reward is not used, because dynamic sampling chooses groups by it.
"""

import math
from typing import Any

RISING, PLATEAU = 0, 1


class StageDetector:
    """Detector of the plateau in a run's entropy and accuracy.

    Args:
        window: number of past optimiser steps that the rule reads, at least 2.
        share: in (0, 1). The plateau begins when fall and climb are at most this share of their largest values.
    """

    def __init__(self, window: int, share: float):
        self.window, self.share = window, share
        self.seen: list[list[float]] = []  # (entropy, accuracy) of the last steps, oldest first
        self.largest = [0.0, 0.0]  # fall and climb
        self.plateau_step: int | None = None

    @property
    def stage(self) -> int:
        return RISING if self.plateau_step is None else PLATEAU

    def _changes(self) -> tuple[float, float]:
        """Fall and climb over the window."""
        half = self.window // 2
        early, late = (
            [math.fsum(column) / len(part) for column in zip(*part, strict=True)]
            for part in (self.seen[:half], self.seen[-half:])
        )
        return early[0] - late[0], late[1] - early[1]

    def update(self, step: int, entropy: float, accuracy: float) -> None:
        """Add entropy (nats) and accuracy of the run's `step`-th optimiser step. A step with NaN is skipped."""
        if math.isnan(entropy) or math.isnan(accuracy):
            return
        self.seen = [*self.seen, [entropy, accuracy]][-self.window :]
        if len(self.seen) < self.window:
            return
        changes = self._changes()
        self.largest = [max(pair) for pair in zip(self.largest, changes, strict=True)]
        slow = all(0 < top and now <= self.share * top for now, top in zip(changes, self.largest, strict=True))
        if slow and self.plateau_step is None:
            self.plateau_step = step

    def state(self) -> dict[str, Any]:
        """State on which the detection in later steps depends."""
        return {"seen": self.seen, "largest": self.largest, "plateau_step": self.plateau_step}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state`."""
        self.seen, self.largest, self.plateau_step = state["seen"], state["largest"], state["plateau_step"]
