"""Options of `entropy-grpo analyze divergence`, without heavy imports, because the command line's help reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...objective.share import RHO

LONGEST = 20480


@dataclass(frozen=True)
class Settings:
    """Settings of the choice and the continuation of forks."""

    rho: float = RHO
    """share of the tokens that are of high entropy"""
    forks: int = 1
    """of high and of low entropy, from each response"""
    continuations: int = 32
    """after each of the two tokens of a fork"""
    temperature: float = 1.0
    """of sampling, and of the entropies"""
    top_p: float = 1.0
    """of sampling"""
    max_tokens: int | None = None
    """of a whole response; if unset, the benchmark's own, or 20,480"""
    batch_size: int = 64
    """continuations that are sampled together"""
    seed: int = 0
    """decides forks and continuations"""

    def __post_init__(self) -> None:
        for name, least in (("forks", 1), ("continuations", 2), ("max_tokens", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: it must be {least} or more.")
        for name in ("rho", "top_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must lie in (0, 1].")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}: continuations are sampled, it must be above 0.")

    @property
    def longest(self) -> int:
        """Maximum number of tokens of a whole response."""
        return LONGEST if self.max_tokens is None else self.max_tokens


@dataclass(frozen=True, kw_only=True)
class Options(Settings):
    """Model and responses whose forks are analysed."""

    model: str
    """[NAME=]a Hub id, a model, checkpoint or adapter folder, an embedded model"""
    output: Path
    """folder of the forks, in divergence/NAME; a run's is RUN/analysis"""
    responses: Path | None = None
    """.jsonl or .parquet with prompt, response and reference, as results of eval"""
    benchmarks: Sequence[str] = ()
    """in place of responses: the model answers each question of these once, as in entropy-grpo eval"""
    limit: int | None = None
    """at most so many of the responses, drawn at random; if unset, all"""
    dtype: str = "auto"
    """of the weights: auto, bfloat16, float32, ..."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.responses is None) == (not self.benchmarks):
            raise ValueError("give either responses, a file, or benchmarks to answer.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}: it must be 1 or more.")
        if self.responses is not None and not self.responses.is_file():
            raise ValueError(f"responses is {str(self.responses)!r}: there is no such file.")
