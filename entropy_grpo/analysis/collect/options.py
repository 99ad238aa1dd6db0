"""Options of `entropy-grpo analyze collect`, without heavy imports, because the command line reads them for help."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...evaluation.options import BACKEND_READS, CHAT
from ...registry import ReadIf, refuse_unread

ASKING = ("prompt", "chat", "system", "thinking")
ANSWERING = ("answered_by", "samples", "max_tokens", "seed", "backend", "tensor_parallel", *ASKING)
READ_IF = (ReadIf(ANSWERING, "benchmarks", bool, "without benchmarks to answer: leave it out"), CHAT, *BACKEND_READS)


@dataclass(frozen=True)
class Options:
    """Responses and the checkpoints that score them."""

    model: str
    """[NAME=]MODEL: Hub id, folder of a model, checkpoint or adapter, or name of an embedded model"""
    output: Path
    """folder for the tokens; for a run RUN/analysis"""
    against: Sequence[str] = ()
    """other models that score the same responses, as [NAME=]MODEL"""
    responses: Path | None = None
    """file (.jsonl, .json, .parquet, .csv) with the columns prompt and response, and optionally correct"""
    benchmarks: Sequence[str] = ()
    """benchmarks that the model answers first, as in entropy-grpo eval, instead of responses"""
    answered_by: str | None = None
    """with benchmarks, name of the checkpoint that answers them; by default the model"""
    prompt: str | None = None
    """with benchmarks, prompt template, as in entropy-grpo eval"""
    chat: bool = False
    """with benchmarks, use the chat template of the model's tokenizer"""
    system: str | None = None
    """with chat, the system message"""
    thinking: Literal["true", "false"] | None = None
    """with chat, thinking mode; by default the template's"""
    samples: int | None = None
    """with benchmarks: number of responses to each question; if unset, 16"""
    max_tokens: int | None = None
    """with benchmarks: maximum number of tokens of a response"""
    seed: int = 0
    """with benchmarks: seed of all responses"""
    backend: str = "auto"
    """with benchmarks: transformers, vllm, the URL of a server, or auto"""
    tensor_parallel: int = 1
    """with benchmarks: number of GPUs that share the model with vllm"""
    temperature: float = 1.0
    """temperature of sampling and of the entropies"""
    dtype: str = "auto"
    """dtype of the weights: auto, bfloat16, float32, ..."""
    batch_tokens: int = 16384
    """number of tokens of a forward pass, including padding"""

    def __post_init__(self) -> None:
        if (self.responses is None) == (not self.benchmarks):
            raise ValueError("give either responses, a file, or benchmarks to answer.")
        refuse_unread(self, READ_IF)
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature}: it must be above 0, because entropies are taken at it."
            )
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens is {self.batch_tokens}: it must be 1 or more.")
