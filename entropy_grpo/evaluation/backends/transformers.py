"""Responses from a model in transformers, in batches of prompts of similar length; each response has its own seed."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ...models.load import end_ids, positions_of
from ..decoding.forked import ForkedTemperature, Temperatures
from ..decoding.seeded import SeededSampler
from .base import TRANSFORMERS, Request, Response, Sampling, check_length


class TransformersBackend:
    """Backend that uses `generate` of transformers.

    Parameters:
        model, tokenizer: model and tokenizer as `models.load.load_model` returns them.
        batch_size: responses of a batch.
    """

    name, in_batches, served = TRANSFORMERS, True, None

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, batch_size: int):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.stops = end_ids(tokenizer, model.generation_config)
        if not self.stops:
            raise ValueError(
                f"model is {model.config._name_or_path!r}, which names no EOS token: no response would end."
            )
        self.pad = self.stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # Sampling settings of the model's own configuration, such as penalties, would add to the requested ones.
        model.generation_config = GenerationConfig(pad_token_id=self.pad, eos_token_id=self.stops)
        logging.disable_progress_bar()

    def _lengths(self, prompts: Sequence[str]) -> list[int]:
        different = list(dict.fromkeys(prompts))
        lengths = dict(zip(different, map(len, self.tokenizer(different)["input_ids"]), strict=True))
        return [lengths[prompt] for prompt in prompts]

    def parts(self, requests: Sequence[Request]) -> list[list[int]]:
        """Return batches of prompts of similar length, longest first, so that lack of memory shows at once."""
        lengths = self._lengths([request.prompt for request in requests])
        order = sorted(range(len(requests)), key=lambda i: -lengths[i])
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """Raise `ValueError` if prompt and response may exceed the model's positions."""
        longest = max(self._lengths([request.prompt for request in requests]))
        check_length(longest, sampling.max_tokens, positions_of(self.model.config))

    @torch.inference_mode()
    def write(
        self, prefixes: Sequence[Sequence[int]], seeds: Sequence[int], limits: Sequence[int], sampling: Sampling
    ) -> list[list[int]]:
        """Generate the token ids that follow each prefix in one batch, as `base.Writer` says."""
        width, device, most = max(map(len, prefixes)), self.model.device, max(limits)
        ids = [[self.pad] * (width - len(prefix)) + list(prefix) for prefix in prefixes]
        mask = [[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in prefixes]
        processors = LogitsProcessorList()
        if sampling.forked:
            processors.append(ForkedTemperature(Temperatures(*sampling.forked.values())))
        if sampling.temperature > 0:
            drawn = (sampling.temperature, sampling.top_p, sampling.top_k)
            processors.append(SeededSampler(list(seeds), width, most, *drawn, device))
        generate: Any = self.model.generate  # a method of GenerationMixin, which PreTrainedModel does not declare
        written = generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=most,
            do_sample=False,
            logits_processor=processors,
        )[:, width:]
        ended = torch.isin(written, torch.tensor(self.stops, device=device))
        lengths = torch.where(ended.any(-1), ended.int().argmax(-1) + 1, written.shape[1]).tolist()
        return [row[: min(ends)] for row, *ends in zip(written.tolist(), lengths, limits, strict=True)]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Response]]:
        """Yield the responses of one batch after the whole batch has finished."""
        start = time.perf_counter()
        prefixes = self.tokenizer([request.prompt for request in requests])["input_ids"]
        limits = [sampling.max_tokens] * len(requests)
        written = self.write(prefixes, [request.seed for request in requests], limits, sampling)
        share = (time.perf_counter() - start) / len(requests)
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        for i, (ids, text) in enumerate(zip(written, texts, strict=True)):
            yield i, Response(text, len(ids), "stop" if ids[-1] in self.stops else "length", share)
