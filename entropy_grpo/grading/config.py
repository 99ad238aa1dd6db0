"""The settings of grading."""

from dataclasses import dataclass


@dataclass
class GradingConfig:
    """How long grading may take.

    Parameters:
        grading_seconds: wall-clock limit for grading one answer; one that passes it counts as wrong, and so does one
            whose reference cannot be read, unless the two are the same text.
        grading_total_seconds: how long a process waits at most for the grading of a rollout or an evaluation batch;
            answers that are not graded by then count as wrong.
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
