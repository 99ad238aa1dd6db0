"""Responses from vLLM in this process, each request with its own seed.

vLLM batches the requests that are present, so that a rerun is the same only up to rounding. A token may differ if two
tokens are equally probable up to rounding. vLLM's batch-invariant mode (VLLM_BATCH_INVARIANT=1, on GPUs that support
it) removes the difference.
"""

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import release_memory

from ...models.load import end_ids, load_generation_config
from ...runs.processes import leave_launch, local_count, local_rank
from .base import VLLM, Request, Response, Sampling, check_length


def check_gpus(count: int, visible: int) -> None:
    """Refuse a launch whose processes need more GPUs than this machine has.

    Args:
        count: GPUs of each process.
        visible: number of GPUs that torch sees.
    """
    processes = local_count()
    if visible and count * processes > visible:
        raise ValueError(
            f"tensor_parallel is {count}, so {processes} processes on this machine need {count * processes} GPUs, but "
            f"it has {visible}: lower it, or launch {max(visible // count, 1)} processes."
        )


def take_own_gpus(count: int) -> None:
    """Restrict this process of a launch to `count` GPUs of its own, before CUDA is initialised."""
    local = local_rank()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if "LOCAL_RANK" in os.environ:
        gpus = range(local * count, (local + 1) * count)
        names = [str(gpu) for gpu in gpus] if not seen else [seen.split(",")[gpu] for gpu in gpus]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names)
    leave_launch()  # the engines are independent


class VllmBackend:
    """Backend that uses vLLM's engine.

    Parameters:
        path, revision: model.
        dtype: dtype as in `load_model`.
        tensor_parallel: GPUs that share the model.
        more: further arguments of the engine.
    """

    name, in_batches, served = VLLM, False, None

    def __init__(self, path: str, revision: str | None, dtype: str, tensor_parallel: int, **more: int | bool | str):
        check_gpus(tensor_parallel, torch.cuda.device_count())
        take_own_gpus(tensor_parallel)
        from vllm import LLM

        release_memory()  # of earlier models of this process, because vLLM reserves most of the GPU's memory
        self.llm = LLM(
            path,
            revision=revision,
            tokenizer_revision=revision,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel,
            seed=0,
            disable_log_stats=True,
            logits_processors=["entropy_grpo.evaluation.decoding.vllm:ForkedTemperature"],
            **more,
        )
        self.stops = end_ids(self.llm.get_tokenizer(), load_generation_config(path, revision))

    def check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """Raise `ValueError` if prompt and response may exceed the engine's maximum length."""
        tokenize = self.llm.get_tokenizer()
        longest = max(len(tokenize(prompt)["input_ids"]) for prompt in {request.prompt for request in requests})
        check_length(longest, sampling.max_tokens, self.llm.llm_engine.model_config.max_model_len)

    def parts(self, requests: Sequence[Request]) -> list[list[int]]:
        """Return one part per request, because the engine forms its own batches."""
        return [[i] for i in range(len(requests))]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Response]]:
        """Yield responses as they finish."""
        prompts, limits = [request.prompt for request in requests], [sampling.max_tokens] * len(requests)
        for i, one, seconds in self._finished(prompts, [request.seed for request in requests], limits, sampling):
            yield i, Response(one.text, len(one.token_ids), one.finish_reason, seconds)

    def write(
        self, prefixes: Sequence[Sequence[int]], seeds: Sequence[int], limits: Sequence[int], sampling: Sampling
    ) -> list[list[int]]:
        """Return the token ids that follow each prefix, as `base.Writer` says."""
        given = [{"prompt_token_ids": list(prefix)} for prefix in prefixes]
        written = {i: list(one.token_ids) for i, one, _ in self._finished(given, seeds, limits, sampling)}
        return [written[i] for i in range(len(prefixes))]

    def _finished(
        self, prompts: Sequence[Any], seeds: Sequence[int], limits: Sequence[int], sampling: Sampling
    ) -> Iterator[tuple[int, Any, float]]:
        """Yield (position, vLLM's `CompletionOutput`, seconds) of every prompt as they finish."""
        from vllm import SamplingParams

        engine, start = self.llm.llm_engine, []
        for i, (prompt, seed, limit) in enumerate(zip(prompts, seeds, limits, strict=True)):
            params = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=limit,
                seed=seed,
                stop_token_ids=self.stops,
                extra_args=sampling.forked,
            )
            engine.add_request(str(i), prompt, params)
            start.append(time.perf_counter())
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    i = int(output.request_id)
                    yield i, output.outputs[0], time.perf_counter() - start[i]
