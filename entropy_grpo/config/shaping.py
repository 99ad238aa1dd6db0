"""Settings of advantage shaping and of plateau detection, and checks of their combinations."""

from dataclasses import dataclass, field

from ..objective.advantages import Schedule, largest_weight
from .batches import Steps


@dataclass
class ShapingConfig:
    """Fields of arXiv 2508.02260 in `EntropyForkGRPOConfig`; by default no advantage is shaped.

    Optimiser steps are counted from 0, and each number of them may be written as `"N rollouts"` (see
    `EntropyForkGRPOConfig.in_steps`). Each optimiser step decides whether its advantages are shaped. If several steps
    share a rollout, some of the steps may shape the advantages and others not.

    Parameters:
        ppl_shaping_alpha: strength of PPL shaping. Advantages become A * (1 - alpha * w), where w is the standardised
            log-perplexity of the response within its group (Eq. 7, 9). The log-perplexity is that of the policy that
            wrote the response, at the sampling temperature. Above 0, responses of low perplexity weigh more. Below 0,
            responses of high perplexity do, which is the paper's ablation.
        position_shaping_gamma: strength of position shaping. Advantages become A + sign(A) * b with the bonus
            b = gamma * sigmoid(d * m * (l - n)), where l is the token's relative position in [0, 1] (Eq. 8, 10).
        position_shaping_d, position_shaping_m, position_shaping_n: shape of the bonus. With d = 1 it favours late
            tokens, with d = -1 early tokens, which is the paper's ablation. With the paper's printed n = -0.5, every
            token has almost the same bonus (see `objective.advantages`).
        position_shaping_cap: largest bonus as a share of |A|, 0.5 in the released code.
        ppl_shaping_start, position_shaping_start: first optimiser step with shaping.
        ppl_shaping_end, position_shaping_end: first later optimiser step without shaping. null shapes until the end
            of the run.
        ppl_shaping_plateau_steps, position_shaping_plateau_steps: replaces start and end. Shaping is active for this
            many optimiser steps after the plateau is detected.
        plateau_window: optimiser steps over which the change of entropy and accuracy is measured (see
            `objective.stages`).
        plateau_share: the plateau begins when entropy and accuracy change by at most this share of their fastest
            change so far.
    """

    ppl_shaping_alpha: float | None = field(
        default=None,
        metadata={"help": "Strength of PPL shaping, below 0 to favour high perplexity; none by default."},
    )
    ppl_shaping_start: Steps = field(default=0, metadata={"help": "First optimiser step with PPL shaping."})
    ppl_shaping_end: Steps | None = field(
        default=None,
        metadata={"help": "First later optimiser step without PPL shaping; the end of the run by default."},
    )
    ppl_shaping_plateau_steps: Steps | None = field(
        default=None,
        metadata={"help": "Optimiser steps with PPL shaping after the detected plateau; replaces start and end."},
    )
    position_shaping_gamma: float | None = field(
        default=None, metadata={"help": "Strength of position shaping, the largest bonus of a token; none by default."}
    )
    position_shaping_d: float = field(
        default=1.0, metadata={"help": "Direction of the bonus: above 0 for late tokens, below 0 for early tokens."}
    )
    position_shaping_m: float = field(default=15.0, metadata={"help": "Steepness of the bonus."})
    position_shaping_n: float = field(default=0.5, metadata={"help": "Relative position with half the bonus."})
    position_shaping_cap: float | None = field(
        default=None, metadata={"help": "Largest bonus as a share of the absolute advantage; none by default."}
    )
    position_shaping_start: Steps = field(default=0, metadata={"help": "First optimiser step with position shaping."})
    position_shaping_end: Steps | None = field(
        default=None,
        metadata={"help": "First later optimiser step without position shaping; the end of the run by default."},
    )
    position_shaping_plateau_steps: Steps | None = field(
        default=None,
        metadata={"help": "Optimiser steps with position shaping after the detected plateau; replaces start and end."},
    )
    plateau_window: Steps = field(
        default=80, metadata={"help": "Optimiser steps over which the change of entropy and accuracy is measured."}
    )
    plateau_share: float = field(
        default=0.2,
        metadata={"help": "Plateau: entropy and accuracy change by at most this share of their fastest change."},
    )

    @property
    def ppl_schedule(self) -> Schedule:
        return Schedule(self.ppl_shaping_start, self.ppl_shaping_end, self.ppl_shaping_plateau_steps)

    @property
    def position_schedule(self) -> Schedule:
        return Schedule(self.position_shaping_start, self.position_shaping_end, self.position_shaping_plateau_steps)

    def check_shaping(self, group_size: int) -> None:
        """Refuse invalid shaping settings for groups of `group_size` responses."""
        for method, strength in (("ppl_shaping", "alpha"), ("position_shaping", "gamma")):
            self._check_method(method, f"{method}_{strength}")
        alpha, limit = self.ppl_shaping_alpha, 1 / largest_weight(group_size)
        if alpha is not None and (alpha == 0 or abs(alpha) >= limit):
            raise ValueError(
                f"ppl_shaping_alpha is {alpha}: with num_generations {group_size} it must lie between "
                f"-{limit:.4g} and {limit:.4g}, so that no advantage can change its sign, and it must not be 0: set "
                "it to null for no shaping."
            )
        if self.position_shaping_d == 0:
            raise ValueError(
                "position_shaping_d is 0, with which every token has the same bonus: set it above 0 to favour late "
                "tokens, or below 0 to favour early tokens."
            )
        if self.position_shaping_m <= 0:
            raise ValueError(
                f"position_shaping_m is {self.position_shaping_m}: it must be above 0, and the sign of "
                "position_shaping_d chooses the end of a response that the bonus favours."
            )
        if self.position_shaping_cap is not None and self.position_shaping_cap <= 0:
            raise ValueError(f"position_shaping_cap is {self.position_shaping_cap}: it must be above 0, or null.")
        if self.plateau_window < 2:
            raise ValueError(f"plateau_window is {self.plateau_window}: it must be 2 or more optimiser steps.")
        if not 0 < self.plateau_share < 1:
            raise ValueError(f"plateau_share is {self.plateau_share}: it must lie between 0 and 1.")

    def _check_method(self, method: str, strength: str) -> None:
        """Refuse an invalid schedule."""
        if getattr(self, strength) is None:
            return
        if strength == "position_shaping_gamma" and self.position_shaping_gamma <= 0:
            raise ValueError(f"{strength} is {getattr(self, strength)}: it must be above 0, or null for no shaping.")
        start, end, plateau_steps = (getattr(self, f"{method}_{name}") for name in ("start", "end", "plateau_steps"))
        if plateau_steps is not None and (start, end) != (0, None):
            raise ValueError(
                f"{method}_plateau_steps is {plateau_steps}, which replaces {method}_start ({start}) and {method}_end "
                f"({end}): leave start and end out."
            )
        if plateau_steps is not None and plateau_steps < 1:
            raise ValueError(f"{method}_plateau_steps is {plateau_steps}: it must be 1 or more optimiser steps.")
        if start < 0:
            raise ValueError(f"{method}_start is {start}: it must be 0 or more.")
        if end is not None and end <= start:
            raise ValueError(
                f"{method}_start is {start} and {method}_end is {end}: set the end to a later step than the start."
            )
