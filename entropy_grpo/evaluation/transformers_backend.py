"""Responses from a model that transformers loads, in batches of prompts of like length, each with its own seed."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessorList
from transformers.utils import logging

from ..analysis.decoding import ForkedTemperature, Temperatures
from .backends import TRANSFORMERS, TURN_ENDS, Request, Response, Sampling, check_length
from .models import has_adapter
from .sampler import SeededSampler


def load_model(path: str, revision: str | None, dtype: str) -> tuple[torch.nn.Module, AutoTokenizer]:
    """A model on this process's device, its adapter on top if it is one, and its tokenizer, padding on the left."""
    base = path
    if has_adapter(path):
        from peft import PeftConfig, PeftModel

        config = PeftConfig.from_pretrained(path)
        base, revision = config.base_model_name_or_path, config.revision
    with_tokenizer = path if (Path(path) / "tokenizer_config.json").is_file() else base
    try:
        tokenizer = AutoTokenizer.from_pretrained(with_tokenizer, revision=revision, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(base, revision=revision, dtype=dtype)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model is {path!r}, which does not load: {reason}") from error
    if has_adapter(path):
        model = PeftModel.from_pretrained(model, path)
    if torch.cuda.is_available():
        model = model.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return model.eval(), tokenizer


def stop_ids(model: torch.nn.Module, tokenizer: AutoTokenizer) -> list[int]:
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
        model, tokenizer: as `load_model` gives them.
        batch_size: responses that are written together.
    """

    name, in_batches = TRANSFORMERS, True

    def __init__(self, model: torch.nn.Module, tokenizer: AutoTokenizer, batch_size: int):
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
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Response]]:
        """The responses of one batch, at its end."""
        start = time.perf_counter()
        prompts = [request.prompt for request in requests]
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.model.device)
        inputs.pop("token_type_ids", None)
        width = inputs["input_ids"].shape[1]
        processors = LogitsProcessorList()
        if sampling.forked:
            processors.append(ForkedTemperature(Temperatures(*sampling.forked.values())))
        if sampling.temperature > 0:
            processors.append(
                SeededSampler(
                    [request.seed for request in requests],
                    width,
                    sampling.max_tokens,
                    sampling.temperature,
                    sampling.top_p,
                    sampling.top_k,
                    self.model.device,
                )
            )
        written = self.model.generate(
            **inputs, max_new_tokens=sampling.max_tokens, do_sample=False, logits_processor=processors
        )[:, width:]
        ended = torch.isin(written, torch.tensor(self.stops, device=written.device))
        first = torch.where(ended.any(-1), ended.int().argmax(-1), written.shape[1]).tolist()
        share = (time.perf_counter() - start) / len(requests)
        for i, (row, end) in enumerate(zip(written.tolist(), first, strict=True)):
            ids = row[: end + 1]
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            yield i, Response(text, len(ids), "stop" if end < len(row) else "length", share)
