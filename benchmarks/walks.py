"""Helpers for analyses of the embedded task: its models, its problems, responses, and their correctness."""

import itertools
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList

from benchmarks import embedded
from entropy_grpo.grading import boxed
from entropy_grpo.tasks import cold_start, number_walk

MODELS = ("cold start", "trained")
MAX_TOKENS = 48
# The seed that chose learning rates, so that none of the reported runs is looked at twice.
SEED, RATE = embedded.DEV_SEED, "1.0e-4"
Path = tuple[list[int], list[int]]


def load(name: str):
    """(model, tokenizer) of the cold start, or of the run that trained it on the top 20%. Missing ones are trained."""
    arm = "rho = 0.2"
    paths = {
        "cold start": lambda: cold_start.ensure(SEED),
        "trained": lambda: embedded.run(arm, embedded.ARMS[arm], RATE, SEED, answers=False).path,
    }
    path = paths[name]()
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path, padding_side="left")


def problems(count: int) -> list[number_walk.Problem]:
    """The first test problems, which evaluations also use."""
    return list(itertools.islice(number_walk.problems("test", 0), count))


def of_models(measure: Callable[[str], dict]) -> dict[str, dict]:
    """Result of a function for each model, in one process with one thread per model."""
    for name in MODELS:
        load(name)  # made once, before the processes begin
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(len(MODELS), mp_context=get_context("spawn")) as pool:
        return dict(zip(MODELS, pool.map(measure, MODELS), strict=True))


@torch.inference_mode()
def write(
    model, tokenizer, prompts: Sequence[str], seed: int, processors: Sequence[LogitsProcessor] = ()
) -> list[Path]:
    """(prompt ids, response ids) of one response per prompt, sampled at temperature 1 after the logits processors."""
    torch.manual_seed(seed)
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, return_token_type_ids=False)
    width = inputs["input_ids"].shape[1]
    written = model.generate(
        **inputs,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=MAX_TOKENS,
        logits_processor=LogitsProcessorList(processors),
    )[:, width:].tolist()
    ends = [ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids) for ids in written]
    given = [
        ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    return [(prompt, ids[:end]) for prompt, ids, end in zip(given, written, ends, strict=True)]


def answer(problem: number_walk.Problem, text: str) -> tuple[str | None, bool]:
    """(boxed text of a response, whether it leads from the problem's start to its target by the problem's moves)."""
    found = boxed(text)
    if found is None or not number_walk.uses_what_was_given(problem, found):
        return found, False
    return found, sum(map(int, re.findall(r"[+-]?\d+", found))) == problem.target
