"""Options of `entropy-grpo analyze divergence`, without heavy imports, because the command line's help reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...evaluation.options import BACKEND_READS
from ...objective.share import RHO
from ...registry import refuse_unread

LONGEST = 20480


@dataclass(frozen=True)
class Settings:
    """Settings of the choice and the continuation of forks."""

    rho: float = RHO
    """share of the tokens that count as high entropy"""
    forks: int = 1
    """number of forks of high entropy, and of low entropy, in each response"""
    continuations: int = 32
    """number of continuations after each of the two tokens of a fork"""
    temperature: float = 1.0
    """temperature of sampling and of the entropies"""
    top_p: float = 1.0
    """probability mass of the tokens to sample from"""
    max_tokens: int | None = None
    """maximum number of tokens of a whole response; if unset, that of the benchmark, or 20,480"""
    batch_size: int = 64
    """number of continuations of a batch with transformers"""
    seed: int = 0
    """seed of forks and continuations"""

    def __post_init__(self) -> None:
        for name, least in (("forks", 1), ("continuations", 2), ("max_tokens", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: it must be {least} or more.")
        for name in ("rho", "top_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must lie in (0, 1].")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature}: it must be above 0, because continuations are sampled."
            )

    @property
    def longest(self) -> int:
        """Maximum number of tokens of a whole response."""
        return LONGEST if self.max_tokens is None else self.max_tokens


@dataclass(frozen=True, kw_only=True)
class Options(Settings):
    """Model and responses whose forks are analysed."""

    model: str
    """[NAME=]MODEL: Hub id, folder of a model, checkpoint or adapter, or name of an embedded model"""
    output: Path
    """folder for the results, which are in its divergence/NAME; for a run RUN/analysis"""
    responses: Path | None = None
    """file (.jsonl, .json, .parquet, .csv) with prompt, response and reference, as from entropy-grpo eval"""
    benchmarks: Sequence[str] = ()
    """benchmarks whose questions the model answers once, as in entropy-grpo eval, instead of responses"""
    limit: int | None = None
    """maximum number of responses, which are drawn at random; if unset, all"""
    dtype: str = "auto"
    """dtype of the weights: auto, bfloat16, float32, ..."""
    backend: str = "auto"
    """backend of answers and continuations: transformers, vllm, or auto: vllm if it is installed"""
    tensor_parallel: int = 1
    """number of GPUs that share the model with vllm"""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unread(self, BACKEND_READS)
        if self.backend not in ("auto", "transformers", "vllm"):
            raise ValueError(f"backend is {self.backend!r}: choose auto, transformers or vllm.")
        if (self.responses is None) == (not self.benchmarks):
            raise ValueError("give either responses, a file, or benchmarks to answer.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}: it must be 1 or more.")
        if self.responses is not None and not self.responses.is_file():
            raise ValueError(f"responses is {str(self.responses)!r}: there is no such file.")
