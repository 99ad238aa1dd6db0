"""Options of `entropy-grpo analyze irrelevant`, without heavy imports, because the command line's help reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...evaluation.options import READ_IF as EVALUATION
from ...registry import refuse_unread

# Rules of the evaluation for options that this command also has.
READ_IF = tuple(rule for rule in EVALUATION if "prompt" not in rule.names)


@dataclass(frozen=True)
class Options:
    """Responses, and the model that judges them."""

    model: str
    """the judge: Hub id or folder of a model; with a server, the model whose tokenizer has the chat template"""
    responses: Path
    """file (.jsonl, .json, .parquet, .csv) with the columns prompt (or problem) and response"""
    output: Path
    """folder for the results, which are in its irrelevant/NAME of the file; for a run RUN/analysis"""
    backend: str = "auto"
    """transformers, vllm, the URL of a server, or auto, which is vllm if it is installed"""
    chat: bool = False
    """ask in the chat template of the judge's tokenizer"""
    system: str | None = None
    """with chat, the system message"""
    thinking: Literal["true", "false"] | None = None
    """with chat, thinking mode; by default the template's"""
    limit: int | None = None
    """number of responses, drawn at random; by default all"""
    characters: int = 20000
    """longest response in characters; from a longer one the middle is left out"""
    max_tokens: int = 2048
    """longest reply of the judge in tokens"""
    seed: int = 0
    """seed of the drawn responses"""
    dtype: str = "auto"
    """dtype of the weights: auto, bfloat16, float32, ..."""
    batch_size: int = 64
    """questions of a batch with transformers, or concurrent requests to a server"""
    tensor_parallel: int = 1
    """number of GPUs that share the judge with vllm"""

    def __post_init__(self) -> None:
        refuse_unread(self, READ_IF)
        positive = ("limit", "max_tokens", "batch_size", "tensor_parallel")
        for name, least in (("characters", 100), *((name, 1) for name in positive)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: it must be {least} or more.")
        if not self.responses.is_file():
            raise ValueError(f"responses is {str(self.responses)!r}: there is no such file.")
