"""Responses from vLLM in this process, each request with its own seed.

vLLM decides what runs together from what is there, so a rerun is the same up to rounding, and a token may differ where
two lie within it; its batch-invariant mode (VLLM_BATCH_INVARIANT=1, on GPUs that have it) takes that away.
"""

import os
import time
from collections.abc import Iterator, Sequence

import torch

from .base import TURN_ENDS, VLLM, Request, Response, Sampling, check_length

# What tells torch.distributed that this process is one of several: the engines do not know of each other.
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def check_gpus(count: int, visible: int) -> None:
    """Refuse more GPUs than the processes of this machine have, `count` each; `visible` is asked of torch."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if visible and count * processes > visible:
        raise ValueError(
            f"tensor-parallel is {count}, which for {processes} processes on this machine takes {count * processes} "
            f"GPUs, and there are {visible}: lower it, or launch {max(visible // count, 1)} processes."
        )


def take_own_gpus(count: int) -> None:
    """Show this process of a launch `count` GPUs of its own, before anything has asked for one."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if "LOCAL_RANK" in os.environ:
        gpus = range(local * count, (local + 1) * count)
        names = [str(gpu) for gpu in gpus] if not seen else [seen.split(",")[gpu] for gpu in gpus]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names)
    for name in LAUNCHER:
        os.environ.pop(name, None)


class VllmBackend:
    """vLLM's engine.

    Parameters:
        path, revision: the model.
        dtype: as in `load_model`.
        tensor_parallel: GPUs that share the model.
        more: further arguments of the engine.
    """

    name, in_batches = VLLM, False

    def __init__(self, path: str, revision: str | None, dtype: str, tensor_parallel: int, **more: int | bool | str):
        check_gpus(tensor_parallel, torch.cuda.device_count())
        take_own_gpus(tensor_parallel)
        from vllm import LLM

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
        vocabulary = self.llm.get_tokenizer().get_vocab()
        self.turn_ends = [vocabulary[text] for text in TURN_ENDS if text in vocabulary]

    def check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """`ValueError` where prompt and response may have more tokens than the engine holds."""
        tokenize = self.llm.get_tokenizer()
        longest = max(len(tokenize(prompt)["input_ids"]) for prompt in {request.prompt for request in requests})
        check_length(longest, sampling.max_tokens, self.llm.llm_engine.model_config.max_model_len)

    def parts(self, requests: Sequence[Request]) -> list[list[int]]:
        """One request each: the engine itself decides what it runs together."""
        return [[i] for i in range(len(requests))]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Response]]:
        """Responses as they are finished."""
        from vllm import SamplingParams

        engine, start = self.llm.llm_engine, {}
        for i, request in enumerate(requests):
            params = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                seed=request.seed,
                stop_token_ids=self.turn_ends,
                extra_args=sampling.forked,
            )
            engine.add_request(str(i), request.prompt, params)
            start[str(i)] = time.perf_counter()
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    written = output.outputs[0]
                    seconds = time.perf_counter() - start[output.request_id]
                    yield (
                        int(output.request_id),
                        Response(written.text, len(written.token_ids), written.finish_reason, seconds),
                    )
