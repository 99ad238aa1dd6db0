"""Helpers for analyses of the embedded tasks: their models, problems, responses, and correctness."""

import argparse
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList

from benchmarks import embedded, measure
from entropy_grpo.grading import boxed
from entropy_grpo.metrics import seeds
from entropy_grpo.metrics.intervals import gain_interval
from entropy_grpo.runs import files
from entropy_grpo.tasks.task import Problem, Task

MODELS = COLD, TRAINED = ("cold start", "trained")
SEEDS, RATE = range(5), "1.0e-4"
# Token ids of a prompt and of a response to it.
SequencePair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Record:
    """Files and commands of a benchmark that measures either task. A task is named by its key in `embedded.STUDIES`.

    Attributes:
        name: name of the benchmark's module and of its results.
        option: option with which the command only draws and tabulates the recorded results.
        cost: how long the command takes, for pages without its results.
        pictures: by task, captions and files of the pictures that follow the table, relative to the docs.
    """

    name: str
    option: str
    cost: str
    pictures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def parser(self, text: str) -> argparse.ArgumentParser:
        """The parser of the command line: `task`, and `only_show` for recorded results."""
        parser = argparse.ArgumentParser(description=text.split("\n")[0])
        parser.add_argument("task", nargs="?", choices=embedded.STUDIES, default="number_walk")
        parser.add_argument(self.option, dest="only_show", action="store_true", help="only show what is recorded")
        return parser

    def results(self, task: str) -> Path:
        """The file of a task's figures."""
        return measure.RESULTS / f"{self.name}{embedded.STUDIES[task].suffix}.json"

    def command(self, task: str) -> str:
        """The command that measures a task."""
        return f"python -m benchmarks.{self.name}" + (f" {task}" if task != "number_walk" else "")

    def table(self, task: str) -> str:
        """The command that writes a task's table, which is also the mark of its place in the page."""
        return f"{self.command(task)} {self.option}"

    def write(self, task: str, figures: dict[str, Any]) -> None:
        """Record a task's figures."""
        measure.write(self.results(task).stem, self.command(task), figures)

    def recorded(self) -> dict[str, dict[str, Any]]:
        """The recorded figures by task."""
        return {task: files.read_json(self.results(task)) for task in embedded.STUDIES if self.results(task).exists()}

    def text(self, task: str, table: Callable[[dict[str, Any]], str]) -> str:
        """The table of a task with its pictures, or a sentence if it has no results."""
        if task not in (recorded := self.recorded()):
            return f"Not run. The command takes {self.cost}."
        shown = [f"![{caption}]({file})" for caption, file in self.pictures.get(task, {}).items()]
        return "\n\n".join([table(recorded[task]), *shown])

    def write_block(self, task: str, table: Callable[[dict[str, Any]], str]) -> None:
        """Put a task's table into its page, and print it."""
        measure.write_block(self.table(task), self.text(task, table))
        print(self.text(task, table))


def pretrained(path):
    """(model, tokenizer) of a folder, for sampling."""
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path, padding_side="left")


def model_path(study: embedded.Study, name: str, seed: int) -> Path:
    """Folder of a seed's cold start, or of the run that trained it on the top 20%. Missing ones are trained."""
    if name == COLD:
        return study.task.model(seed)
    arm = "rho = 0.2"
    return embedded.run(arm, study.arms[arm], RATE, seed, answers=False, study=study).path


def problems(task: Task, count: int) -> list[Problem]:
    """The first test problems, which evaluations also use."""
    return list(itertools.islice(task.problems("test", 0), count))


def of_models(measure: Callable[[str, str, int], Any], task: str) -> dict[str, list[Any]]:
    """Results by model of a function of a task's key, a model's name and a seed, one for each of SEEDS.

    As many processes as there are cores run at the same time, with one thread each.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    places = list(itertools.product(MODELS, SEEDS))
    for name in MODELS:
        with ThreadPoolExecutor(embedded.JOBS) as threads:  # made once, before the processes begin
            list(threads.map(partial(model_path, embedded.STUDIES[task], name), SEEDS))
    with ProcessPoolExecutor(embedded.JOBS, mp_context=get_context("spawn")) as pool:
        found = dict(zip(places, pool.map(partial(measure, task), *zip(*places, strict=True)), strict=True))
    return {name: [found[name, seed] for seed in SEEDS] for name in MODELS}


def over_seeds(found: Sequence[Any], of_number: Callable[[Sequence[float]], Any] = fmean) -> Any:
    """One result of the same form as those of the seeds.

    A value with an interval gets its interval over seeds, and a gain also the test against 0. Counts are summed.

    Args:
        of_number: function that joins the seeds' values of other numbers.
    """
    first = found[0]
    if isinstance(first, dict) and "value" in first:
        values = [one["value"] for one in found]
        test = gain_interval([0] * len(values), values, bounded=False) if "p_value" in first else {}
        return seeds.over_seeds(values) | test | {"by_seed": values}
    if isinstance(first, dict):
        return {key: over_seeds([one[key] for one in found], of_number) for key in first}
    if isinstance(first, list):
        return [over_seeds(items, of_number) for items in zip(*found, strict=True)]
    return sum(found) if isinstance(first, int) else of_number(found)


@torch.inference_mode()
def write(
    model, tokenizer, prompts: Sequence[str], seed: int, max_tokens: int, processors: Sequence[LogitsProcessor] = ()
) -> list[SequencePair]:
    """(prompt ids, response ids) of one response per prompt, sampled at temperature 1 after the logits processors."""
    torch.manual_seed(seed)
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, return_token_type_ids=False)
    width = inputs["input_ids"].shape[1]
    written = model.generate(
        **inputs,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=max_tokens,
        logits_processor=LogitsProcessorList(processors),
    )[:, width:].tolist()
    ends = [ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids) for ids in written]
    given = [
        ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    return [(prompt, ids[:end]) for prompt, ids, end in zip(given, written, ends, strict=True)]


def answer(task: Task, problem: Problem, text: str) -> tuple[str | None, bool]:
    """(boxed text of a response, whether it is right). Without a score of the task's own, the answer is a sum."""
    found = task.answer(problem.prompt, text)
    if found is None:
        return boxed(text), False
    if task.score is not None:
        return found, task.scores_right(problem, found)
    return found, sum(map(int, re.findall(r"[+-]?\d+", found))) == int(problem.solution)
