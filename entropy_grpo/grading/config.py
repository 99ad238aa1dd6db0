"""Settings of grading."""

from dataclasses import dataclass


@dataclass
class GradingConfig:
    """Time limits of grading.

    Parameters:
        grading_seconds: wall-clock limit for grading one answer. An answer that exceeds it counts as wrong. An answer
            whose reference cannot be parsed also counts as wrong, unless both are the same text.
        grading_total_seconds: longest time that a process waits for the grading of a rollout or an evaluation batch.
            Answers not graded by then count as wrong.
    """

    grading_seconds: float = 5.0
    grading_total_seconds: float = 120.0

    def check_grading(self) -> None:
        """Refuse limits that leave no time for grading.

        Raises:
            ValueError: `grading_seconds` is not above 0, or `grading_total_seconds` is lower.
        """
        if self.grading_seconds <= 0:
            raise ValueError(f"grading_seconds is {self.grading_seconds}: it must be above 0.")
        if self.grading_total_seconds < self.grading_seconds:
            raise ValueError(
                f"grading_total_seconds is {self.grading_total_seconds}: it must be at least grading_seconds "
                f"({self.grading_seconds})."
            )
