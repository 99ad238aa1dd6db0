"""Options of `entropy-grpo analyze collect`, without heavy imports, because the command line reads them for help."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...evaluation.options import CHAT
from ...registry import ReadIf, refuse_unread

ASKING = ("prompt", "chat", "system", "thinking")
ANSWERING = ("answered_by", "samples", "max_tokens", "seed", "backend", *ASKING)
READ_IF = (ReadIf(ANSWERING, "benchmarks", bool, "without benchmarks to answer: leave it out"), CHAT)


@dataclass(frozen=True)
class Options:
    """Responses and the checkpoints that score them."""

    model: str
    """[NAME=]a Hub id, a model, checkpoint or adapter folder, an embedded model"""
    output: Path
    """folder of the tokens; a run's is RUN/analysis"""
    against: Sequence[str] = ()
    """other models, as [NAME=]MODEL, which score the same responses"""
    responses: Path | None = None
    """.jsonl or .parquet with prompt and response, and correct if it is known"""
    benchmarks: Sequence[str] = ()
    """in place of responses: the model answers these, as in entropy-grpo eval"""
    answered_by: str | None = None
    """with benchmarks, name of the checkpoint that answers them; if unset, the model"""
    prompt: str | None = None
    """with benchmarks, as in entropy-grpo eval"""
    chat: bool = False
    """with benchmarks, ask with the chat template of the model's tokenizer"""
    system: str | None = None
    """with chat, the system message"""
    thinking: Literal["true", "false"] | None = None
    """with chat, thinking mode; if unset, the template's default"""
    samples: int | None = None
    """with benchmarks, responses to each question; if unset, 16"""
    max_tokens: int | None = None
    """with benchmarks, of a response"""
    seed: int = 0
    """with benchmarks, decides every response"""
    backend: str = "auto"
    """with benchmarks: transformers, vllm, the URL of a server, or auto"""
    temperature: float = 1.0
    """of decoding, and of the entropies"""
    dtype: str = "auto"
    """of the weights: auto, bfloat16, float32, ..."""
    batch_tokens: int = 16384
    """padded tokens of a forward pass"""

    def __post_init__(self) -> None:
        if (self.responses is None) == (not self.benchmarks):
            raise ValueError("give either responses, a file, or benchmarks to answer.")
        refuse_unread(self, READ_IF)
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}: it must be above 0 to have entropies.")
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens is {self.batch_tokens}: it must be 1 or more.")
