"""The settings of grading."""

from dataclasses import dataclass


@dataclass
class GradingConfig:
    """Time limits of grading.

    Parameters:
        grading_seconds: wall-clock limit for grading one answer. An answer that exceeds it counts as wrong, and so
            does an answer whose reference cannot be read, unless both are the same text.
        grading_total_seconds: longest time that a process waits for the grading of a rollout or an evaluation batch.
            Answers that are not graded by then count as wrong.
    """

    grading_seconds: float = 5.0
    grading_total_seconds: float = 120.0

    def check_grading(self) -> None:
        """Refuse limits that leave no time: `ValueError`."""
        if self.grading_seconds <= 0:
            raise ValueError(f"grading_seconds is {self.grading_seconds}: it must be above 0.")
        if self.grading_total_seconds < self.grading_seconds:
            raise ValueError(
                f"grading_total_seconds is {self.grading_total_seconds}: it must be at least grading_seconds "
                f"({self.grading_seconds})."
            )
