"""Additions to TRL's samplers: settings of a colocated vLLM, log-probabilities, and a clock."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from ..config.batches import VLLM_BATCHED_TOKENS
from ..config.grpo import EntropyForkGRPOConfig
from ..models.truncation import Truncation


def engine_settings(args: EntropyForkGRPOConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of TRL's `VLLMGeneration` that this package changes.

    Responses are read as ids and decoded by TRL, so that vLLM need not decode every token while it writes. It decodes
    where it has to look for texts that end a response.

    Args:
        given: TRL's settings.
    """
    sampling = given["generation_kwargs"] or {}
    decodes = {"stop", "detokenize"} & sampling.keys()
    return {
        "max_num_seqs": min(given["max_num_seqs"], args.vllm_max_num_seqs or VLLM_BATCHED_TOKENS),
        "generation_kwargs": sampling if decodes else sampling | {"detokenize": False},
    }


@contextmanager
def sized(args: EntropyForkGRPOConfig) -> Iterator[None]:
    """Let TRL's trainer make its colocated vLLM with `engine_settings`.

    Raises:
        ValueError: nothing has decided the engine's share of a GPU.
    """
    if not args.use_vllm or args.vllm_mode != "colocate":
        yield
        return
    if args.vllm_gpu_memory_utilization is None:
        raise ValueError(
            "vllm_gpu_memory_utilization is null, which a launch of a recipe on a GPU turns into a number: set the "
            "share that `entropy-grpo plan` prints."
        )
    made = grpo_trainer.VLLMGeneration

    def make(**given: Any) -> VLLMGeneration:
        return made(**given | engine_settings(args, given))

    vars(grpo_trainer)["VLLMGeneration"] = make  # the name by which TRL's trainer makes its engine
    try:
        yield
    finally:
        vars(grpo_trainer)["VLLMGeneration"] = made


class Recorder:
    """Records the log-probabilities under which transformers' `generate` draws its tokens.

    Args:
        temperature, truncation: of the distribution that the tokens are drawn from.
    """

    def __init__(self, temperature: float, truncation: Truncation):
        self.temperature, self.truncation = temperature, truncation
        self.columns: list[Tensor] = []  # (B, 1) float32 of every token so far

    def _before(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        self.logits = logits  # of the model: generate applies temperature and truncation afterwards
        return logits

    def _after(self, input_ids: Tensor, scores: Any, **others: Any) -> Tensor:
        drawn = input_ids[:, -1]
        logps = self.truncation.log_probs(self.logits / self.temperature, drawn)
        self.columns.append(logps.gather(1, drawn.unsqueeze(1)))
        return torch.zeros_like(drawn, dtype=torch.bool)  # ends no response

    @contextmanager
    def listening(self, model: PreTrainedModel) -> Iterator[None]:
        """Record the tokens of one call of `generate`, which keeps the stopping criteria that it has."""
        own = vars(model).get("generate")
        generate: Any = model.generate  # a method of GenerationMixin, which PreTrainedModel does not declare
        standing = getattr(generate, "keywords", {}).get("stopping_criteria", [])

        def recorded(*args: Any, stopping_criteria: Any = (), **named: Any) -> Any:
            criteria = StoppingCriteriaList([*standing, *stopping_criteria, self._after])
            processors = LogitsProcessorList([self._before])
            return generate(*args, logits_processor=processors, stopping_criteria=criteria, **named)

        vars(model)["generate"] = recorded
        try:
            yield
        finally:
            if own is None:
                del vars(model)["generate"]
            else:
                vars(model)["generate"] = own

    def of(self, responses: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probabilities of the tokens of responses, which `generate` may have padded."""
        rows = torch.cat(self.columns, dim=1).tolist()
        return [row[: len(ids)] for row, ids in zip(rows, responses, strict=True)]


class Clock:
    """Seconds and tokens of the sampler on this process, since the beginning of a rollout."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a rollout."""
        self.seconds, self.tokens = 0.0, 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the seconds of a call of the sampler."""
        begun = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begun

    def count(self, responses: Sequence[Sequence[int]]) -> None:
        """Count the tokens of responses that the sampler has written."""
        self.tokens += sum(map(len, responses))

    def around(self, rollout_func: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        """Return TRL's `rollout_func` with its seconds and tokens counted."""

        def counted(*args: Any) -> dict[str, Any]:
            with self.running():
                output = rollout_func(*args)
            self.count(output.get("completion_ids", []))
            return output

        return counted

    def metrics(self) -> dict[str, float]:
        """Return the seconds of the slowest process, and the tokens that all processes wrote in one of them.

        Every process must call it.
        """
        seconds, tokens = zip(*gather_object([(self.seconds, self.tokens)]), strict=True)
        found = {"sampling/seconds": max(seconds)}
        return found | ({"sampling/tokens_per_second": sum(tokens) / max(seconds)} if sum(tokens) else {})
