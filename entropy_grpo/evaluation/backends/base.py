"""Interface of the generation backends: transformers in this process, vLLM in this process, or a running server.

A backend takes requests and yields responses as they finish, in any order. The seed of a request is derived from its
question and number. The composition of a batch changes a response only through rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...registry import installed

FORKED = ("t_high", "t_low", "entropy_threshold")
TRANSFORMERS, VLLM, AUTO = "transformers", "vllm", "auto"


@dataclass(frozen=True)
class Sampling:
    """Sampling settings: temperature 0 takes the most probable token; top_p 1 and top_k 0 cut nothing off.

    `t_high`, `t_low` and `entropy_threshold` (nats) request forked decoding, see `decoding.forked`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 20480
    t_high: float | None = None
    t_low: float | None = None
    entropy_threshold: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}: it must be a finite number, 0 or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: it must lie in (0, 1].")
        for name, least in (("top_k", 0), ("max_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {least} or more.")
        given = [name for name in FORKED if getattr(self, name) is not None]
        if given and len(given) < len(FORKED):
            missing = ", ".join(name for name in FORKED if name not in given)
            raise ValueError(
                f"{', '.join(given)} requests forked decoding, which also needs {missing}: set all of "
                f"{', '.join(FORKED)}."
            )
        if given and self.temperature != 1:
            raise ValueError(
                f"temperature is {self.temperature}, but forked decoding takes entropies at temperature 1: set it to "
                "1."
            )
        for name in given:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}: it must be a finite number, 0 or more.")

    @property
    def forked(self) -> dict[str, float] | None:
        """Arguments of forked decoding, or None if it is not requested."""
        return None if self.t_high is None else {name: getattr(self, name) for name in FORKED}


@dataclass(frozen=True)
class Request:
    """Request for one response. `seed` is below 2^31; equal requests give equal responses up to rounding."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Response:
    """Finished response.

    Attributes:
        text: text without special tokens.
        tokens: number of tokens, including the token that ended the response.
        finish: `stop`, or `length` if the response was cut off.
        seconds: with transformers an equal share of the batch's time, otherwise the time from request to response.
    """

    text: str
    tokens: int
    finish: str
    seconds: float


class Backend(Protocol):
    """Interface of a generator of responses.

    Attributes:
        name: name in the results.
        in_batches: whether the rounding of a response depends on its batch. If so, a batch with a missing response is
            generated again as a whole.
    """

    name: str
    in_batches: bool

    @property
    def served(self) -> str | None:
        """Name of the model at a running server; None for a model in this process."""

    def check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """Raise `ValueError` if a request is longer than the model can take."""

    def parts(self, requests: Sequence[Request]) -> list[list[int]]:
        """Return the positions of requests that are generated together; equal requests give equal parts."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Response]]:
        """Yield (position, response) of every request as the responses finish."""


class Writer(Protocol):
    """Interface of a backend that continues token ids.

    Attributes:
        in_batches: as in `Backend`; `write` then makes one batch of its arguments.
        stops: tokens that end a response.
    """

    in_batches: bool
    stops: list[int]

    def write(
        self, prefixes: Sequence[Sequence[int]], seeds: Sequence[int], limits: Sequence[int], sampling: Sampling
    ) -> list[list[int]]:
        """Return the token ids that follow each prefix, including the token that ends the response.

        Args:
            prefixes, seeds: as in `Request`, with the token ids of a prompt and the beginning of its response.
            limits: largest number of tokens after each prefix, 1 or more, instead of `sampling.max_tokens`.
        """


def check_length(longest: int, max_tokens: int, positions: int | None) -> None:
    """Raise `ValueError` if the longest prompt and a whole response exceed the positions, if a model limits them."""
    if positions is not None and longest + max_tokens > positions:
        raise ValueError(
            f"max_tokens is {max_tokens}, but the model has {positions} positions and the longest prompt has "
            f"{longest} tokens: set it to at most {positions - longest}."
        )


def choose(name: str, has_adapter: bool) -> str:
    """Return the backend that `--backend` names; `auto` is vLLM if it is installed and the model has no adapter."""
    if name.startswith(("http://", "https://")) or name == TRANSFORMERS:
        return name
    if name == AUTO:
        return VLLM if installed("vllm") and not has_adapter else TRANSFORMERS
    if name != VLLM:
        raise ValueError(f"backend is {name!r}: choose auto, transformers, vllm or the URL of a server.")
    if not installed("vllm"):
        raise ValueError("backend is 'vllm', which is not installed: pip install 'entropy-grpo[vllm]'.")
    if has_adapter:
        raise ValueError("backend is 'vllm' but the model is a LoRA adapter: use transformers, or merge the adapter.")
    return name
