"""Forked decoding (see `decoding.forked`) with vLLM, in its process or as a server:

    LLM(model, logits_processors=["entropy_grpo.evaluation.decoding.vllm:ForkedTemperature"])
    SamplingParams(temperature=1.0, extra_args={"t_high": 1.2, "t_low": 1.0, "entropy_threshold": 0.672})

    vllm serve MODEL --logits-processors entropy_grpo.evaluation.decoding.vllm:ForkedTemperature
    {"prompt": ..., "temperature": 1.0, "vllm_xargs": {"t_high": 1.2, "t_low": 1.0, "entropy_threshold": 0.672}}

Requests without these arguments are sampled as usual, in the same batch. Speculative decoding is not supported,
because vLLM's first model runner applies no logits processors to it. The module needs vLLM.

vLLM 0.31 has two model runners, each with an interface of its own for logits processors: by default the second on GPUs
with Triton, the first on processors. Which of them runs is decided inside the engine, so that one class serves both.
"""

from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondLogitsProcessor

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


class ForkedTemperature(LogitsProcessor, SecondLogitsProcessor):
    """Logits processor of both model runners of vLLM.

    The first runner calls `update_state`, which assigns requests to rows of the batch. It applies the processor after
    the temperature of the request, which is 1. The second calls `add_request`, which assigns a request to a slot, and
    `apply_staged_writes` before every pass. It applies the processor before the temperature.
    """

    def __init__(
        self, vllm_config: VllmConfig, where: torch.device | LogitsProcRequestState, is_pin_memory: bool = False
    ):
        """The first runner gives its device, the second the states of requests."""
        self.requests: dict[int, Temperatures] = {}  # by row of the batch, or by slot
        if isinstance(where, torch.device):
            self.device = where
            self.rows = torch.empty(0)  # (n,) of the batch
            self.settings = torch.empty(0)  # (3, n) t_high, t_low and threshold of those rows
        else:
            self.device = where.device
            self.slots = torch.full((3, where.max_num_reqs), torch.nan)  # NaN where decoding is not forked
            self.settings = self.slots.to(self.device)
            self.is_stale = False

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        temperatures_of(sampling_params)

    def apply(self, logits: torch.Tensor, ctx: LogitsContext | None = None) -> torch.Tensor:
        if not self.requests or (ctx is not None and self.requests.keys().isdisjoint(ctx.idx_mapping_np.tolist())):
            return logits
        if ctx is None:
            logits[self.rows] = scale(logits[self.rows], *self.settings).to(logits.dtype)
            return logits
        settings = self.settings[:, ctx.expanded_idx_mapping]  # (3, rows)
        return torch.where(settings[0].isnan().unsqueeze(-1), logits, scale(logits, *settings))

    # First model runner

    def is_argmax_invariant(self) -> bool:
        """Return True, because a temperature keeps the argmax."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        def of(params: SamplingParams, *_: Any) -> Temperatures | None:
            return temperatures_of(params)

        if process_dict_updates(self.requests, batch_update, of):
            self.rows = torch.tensor(list(self.requests), dtype=torch.long, device=self.device)
            values = [(t.t_high, t.t_low, t.threshold) for t in self.requests.values()]
            self.settings = torch.tensor(values, device=self.device).reshape(-1, 3).T

    # Second model runner

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Store the temperatures of a request in its slot, and return whether its decoding is forked."""
        before, given = self.requests.pop(req_idx, None), temperatures_of(sampling_params)
        if given is not None:
            self.requests[req_idx] = given
            self.slots[:, req_idx] = torch.tensor((given.t_high, given.t_low, given.threshold))
        elif before is not None:
            self.slots[:, req_idx] = torch.nan
        self.is_stale |= before != given
        return given is not None

    def apply_staged_writes(self) -> None:
        if self.is_stale:
            self.settings, self.is_stale = self.slots.to(self.device, copy=True), False
