"""Options of `entropy-grpo analyze text`, without heavy imports, because the command line reads them for its help."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...objective.share import RHO
from ...registry import ReadIf, refuse_unread
from ...runs.folder import RunFolder

READ_IF = (ReadIf(("temperature", "dtype"), "checkpoints", bool, "without checkpoints: leave it out"),)


@dataclass(frozen=True)
class Options:
    """Responses of a run, and the checkpoints that colour their tokens."""

    run: Path
    """run folder"""
    checkpoints: Sequence[str] = ()
    """models with the run's tokenizer that score the tokens, side by side, as [NAME=]MODEL"""
    responses: int = 8
    """number of responses, the last in the run's log"""
    rho: float = RHO
    """share of the tokens that are marked; the page has a slider for it"""
    temperature: float = 1.0
    """with checkpoints: temperature of the entropies"""
    dtype: str = "auto"
    """with checkpoints: dtype of the weights: auto, bfloat16, float32, ..."""

    def __post_init__(self) -> None:
        if not RunFolder(self.run).samples.exists():
            raise ValueError(f"run is {str(self.run)!r}, which has no samples.jsonl: name a run folder.")
        refuse_unread(self, READ_IF)
        if self.responses < 1:
            raise ValueError(f"responses is {self.responses}: it must be 1 or more.")
        for name, value, most in (("rho", self.rho, 1), ("temperature", self.temperature, float("inf"))):
            if not 0 < value <= most:
                raise ValueError(f"{name} is {value}: it must be above 0" + (" and at most 1." if most == 1 else "."))
