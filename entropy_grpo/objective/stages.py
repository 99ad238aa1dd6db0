"""In which stage a run is (arXiv 2508.02260): rising, while entropy falls fast and accuracy climbs, or the plateau.

The paper names the stages and gives no rule. The one here: over the last `window` optimiser steps, the *fall* of
entropy is its mean in the first half minus that in the second, and the *climb* of accuracy its mean in the second half
minus that in the first. The plateau begins when both are at most `share` of the largest that the run has seen, each of
which must have been above zero. So the rule has no unit and no idea of how far a model can get; a run whose entropy
has never fallen, or whose accuracy has never climbed, is rising. Once on the plateau, a run stays there. The window
must be long enough for its halves' means to be free of noise: too short a one finds a plateau early.

Accuracy is the share of right responses among all that were drawn for the rollout, and counts at each of its steps.
The mean reward would do as well but for dynamic sampling, which chooses groups by it.
"""

import math
from typing import Any

RISING, PLATEAU = 0, 1


class StageDetector:
    """Follows a run's entropy and accuracy.

    Args:
        window: optimiser steps that the rule looks back, at least 2.
        share: of the largest fall and climb, in (0, 1).
    """

    def __init__(self, window: int, share: float):
        self.window, self.share = window, share
        self.seen: list[list[float]] = []  # (entropy, accuracy) of the last steps, the oldest first
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
        """Take in an optimiser step, which is the `step`-th that the run has done; NaN is passed over."""
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
        """What the rest of the run depends on."""
        return {"seen": self.seen, "largest": self.largest, "plateau_step": self.plateau_step}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` said."""
        self.seen, self.largest, self.plateau_step = state["seen"], state["largest"], state["plateau_step"]
