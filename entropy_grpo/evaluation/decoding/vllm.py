"""Forked decoding (see `decoding.forked`) with vLLM, in its process or as a server:

    LLM(model, logits_processors=["entropy_grpo.evaluation.decoding.vllm:ForkedTemperature"])
    SamplingParams(temperature=1.0, extra_args={"t_high": 1.2, "t_low": 1.0, "entropy_threshold": 0.672})

    vllm serve MODEL --logits-processors entropy_grpo.evaluation.decoding.vllm:ForkedTemperature
    {"prompt": ..., "temperature": 1.0, "vllm_xargs": {"t_high": 1.2, "t_low": 1.0, "entropy_threshold": 0.672}}

Requests without these arguments are sampled as usual, in the same batch. Speculative decoding is not supported,
because vLLM applies no logits processors to it. The module needs vLLM.
"""

from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from .forked import Temperatures, scale

ARGUMENTS = {"t_high": "t_high", "t_low": "t_low", "entropy_threshold": "threshold"}


def temperatures_of(params: SamplingParams) -> Temperatures | None:
    """Return the temperatures of a request, or None if it does not request forked decoding.

    Raises:
        ValueError: an argument is missing or invalid, or the request's temperature is not 1.
    """
    given = {name: (params.extra_args or {}).get(name) for name in ARGUMENTS}
    if all(value is None for value in given.values()):
        return None
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"forked decoding needs t_high, t_low and entropy_threshold, but {', '.join(missing)} is missing: set all "
            "three."
        )
    if params.temperature != 1:
        raise ValueError(
            f"temperature is {params.temperature:g}, but forked decoding takes entropies at temperature 1: set it to "
            "1."
        )
    return Temperatures(**{ARGUMENTS[name]: value for name, value in given.items()})


class ForkedTemperature(LogitsProcessor):
    """Logits processor of vLLM: `update_state` assigns requests to rows of the batch, `apply` scales the logits."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        self.device = device
        self.requests: dict[int, Temperatures] = {}
        self.rows = torch.empty(0)  # (n,) of the batch
        self.settings = torch.empty(0)  # (3, n) t_high, t_low and threshold of those rows

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        temperatures_of(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """Return True, because a temperature keeps the argmax.

        vLLM therefore applies the processor after its own temperature, which is 1.
        """
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        def of(params: SamplingParams, *_: Any) -> Temperatures | None:
            return temperatures_of(params)

        if process_dict_updates(self.requests, batch_update, of):
            self.rows = torch.tensor(list(self.requests), dtype=torch.long, device=self.device)
            values = [(t.t_high, t.t_low, t.threshold) for t in self.requests.values()]
            self.settings = torch.tensor(values, device=self.device).reshape(-1, 3).T

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.requests:
            logits[self.rows] = scale(logits[self.rows], *self.settings).to(logits.dtype)
        return logits
