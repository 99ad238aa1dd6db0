"""Responses from a model that transformers loads, in batches of prompts of like length, each with its own seed."""

import time
from collections.abc import Iterator, Sequence

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.utils import logging

from ..decoding.forked import ForkedTemperature, Temperatures
from ..decoding.seeded import SeededSampler
from .base import TRANSFORMERS, TURN_ENDS, Request, Response, Sampling, check_length


def stop_ids(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a response: those that the model names, the tokenizer's EOS, and the ends of a turn."""
    named = model.generation_config.eos_token_id
    found = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id}
    found |= {tokenizer.get_vocab().get(text) for text in TURN_ENDS}
    stops = sorted(found - {None})
    if not stops:
        raise ValueError(f"model is {model.config._name_or_path!r}, which names no EOS token: no response would end.")
    return stops


class TransformersBackend:
    """`generate` of transformers.

    Parameters:
        model, tokenizer: as `models.load.load_model` returns them.
        batch_size: responses that are written together.
    """

    name, in_batches = TRANSFORMERS, True

    def __init__(self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.stops = stop_ids(model, tokenizer)
        self.pad = self.stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # What the model's own configuration says of sampling, penalties among it, would come on top of what is asked.
        model.generation_config = GenerationConfig(pad_token_id=self.pad, eos_token_id=self.stops)
        logging.disable_progress_bar()

    def _lengths(self, prompts: Sequence[str]) -> list[int]:
        different = list(dict.fromkeys(prompts))
        lengths = dict(zip(different, map(len, self.tokenizer(different)["input_ids"]), strict=True))
        return [lengths[prompt] for prompt in prompts]

    def parts(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches of prompts of like length, the longest first, so that what does not fit fails at once."""
        lengths = self._lengths([request.prompt for request in requests])
        order = sorted(range(len(requests)), key=lambda i: -lengths[i])
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """`ValueError` where prompt and response may have more tokens than the model has positions."""
        longest = max(self._lengths([request.prompt for request in requests]))
        check_length(longest, sampling.max_tokens, self.model.config.max_position_embeddings)

    @torch.inference_mode()
    def write(self, prefixes: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[list[int]]:
        """The token ids that follow those of each prefix, with the one that ends them."""
        width, device = max(map(len, prefixes)), self.model.device
        ids = [[self.pad] * (width - len(prefix)) + list(prefix) for prefix in prefixes]
        mask = [[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in prefixes]
        processors = LogitsProcessorList()
        if sampling.forked:
            processors.append(ForkedTemperature(Temperatures(*sampling.forked.values())))
        if sampling.temperature > 0:
            drawn = (sampling.temperature, sampling.top_p, sampling.top_k)
            processors.append(SeededSampler(list(seeds), width, sampling.max_tokens, *drawn, device))
        written = self.model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            logits_processor=processors,
        )[:, width:]
        ended = torch.isin(written, torch.tensor(self.stops, device=device))
        lengths = torch.where(ended.any(-1), ended.int().argmax(-1) + 1, written.shape[1]).tolist()
        return [row[:length] for row, length in zip(written.tolist(), lengths, strict=True)]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Response]]:
        """The responses of one batch, at its end."""
        start = time.perf_counter()
        prefixes = self.tokenizer([request.prompt for request in requests])["input_ids"]
        written = self.write(prefixes, [request.seed for request in requests], sampling)
        share = (time.perf_counter() - start) / len(requests)
        for i, ids in enumerate(written):
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            yield i, Response(text, len(ids), "stop" if ids[-1] in self.stops else "length", share)
