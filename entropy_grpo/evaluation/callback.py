"""Benchmarks during training: every n optimiser steps the policy answers them, with the trainer's own generation.

Temperature and length are the training's, with `num_generations_eval` responses to a question. A benchmark fails if
its questions do not load, or its responses cannot be generated or graded. Failures are counted and logged with the
reason, and the run continues. The run cannot continue if one of several processes fails while the other processes
generate.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import TrainerCallback

from ..data.benchmarks.benchmark import CODE, Benchmark, Question
from ..runs import files
from ..runs.environment import git_revision, hardware, versions
from ..runs.folder import RunFolder
from . import questions, results
from .judging import judge

FAILURES = "eval_failures"


def from_first_process(make: Callable[[], Any], is_first: bool) -> Any:
    """Call `make` on the first process and broadcast its result.

    Raises:
        ValueError: `make` raised an error on the first process; raised on all processes.
    """
    outcome: list[Any] = [None, None]
    if is_first:
        try:
            outcome[0] = make()
        except Exception as error:  # loading and grading may raise anything, and no benchmark may end a run
            outcome[1] = f"{type(error).__name__}: {error}"
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]


class BenchmarkCallback(TrainerCallback):
    """Evaluates benchmarks every `steps` optimiser steps.

    Parameters:
        trainer: trainer with a method `answer(problems, metric_key_prefix) -> rows`.
        names: benchmarks, as on the command line of `entropy-grpo eval`.
        grading_seconds: wall-clock limit for grading one answer.
    """

    def __init__(self, trainer: Any, names: Sequence[str], steps: int, folder: RunFolder, grading_seconds: float):
        self.trainer, self.names, self.steps, self.folder = trainer, names, steps, folder
        self.grading_seconds = grading_seconds
        self.questions: dict[str, tuple[Benchmark, list[Question]]] = {}
        self.failures = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps:
            return
        planned = dict(vars(control))  # for example a due training log, which the evaluation's log would reset
        gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(gpus):  # training draws the same random numbers as without benchmarks
            torch.manual_seed(args.seed)
            self._evaluate_all(state.global_step)
        vars(control).update(planned)

    def _evaluate_all(self, step: int) -> None:
        metrics: dict[str, float] = {}
        for name in self.names:
            try:
                metrics |= self._evaluate(name, step)
            except Exception as error:  # generation may raise anything, and no benchmark may end a run
                self.failures += 1
                get_logger(__name__).warning(f"eval_benchmarks: {name} failed at step {step}: {error}")
        self.trainer.model.eval()  # the trainer then logs these metrics alone, without half of a training log
        self.trainer.log(metrics | {FAILURES: self.failures})

    def _read(self, name: str) -> tuple[Benchmark, list[Question]]:
        if name not in self.questions:
            benchmark, asked = from_first_process(lambda: questions.load(name), self.trainer.is_world_process_zero())
            if benchmark.kind == CODE:
                raise ValueError("its answers are programs, which only entropy-grpo eval runs.")
            self.questions[name] = benchmark, asked
        return self.questions[name]

    def _evaluate(self, name: str, step: int) -> dict[str, float]:
        """Answer one benchmark, write its files and return the metrics to log."""
        benchmark, asked = self._read(name)
        start = time.perf_counter()
        problems = Dataset.from_dict({"prompt": [q.prompt for q in asked], "solution": [q.reference for q in asked]})
        answers = self.trainer.answer(problems, metric_key_prefix=f"eval_{benchmark.name}")
        seconds = (time.perf_counter() - start) / len(answers)

        def write() -> dict[str, float]:
            return self._write(benchmark, asked, answers, step, seconds)

        return from_first_process(write, self.trainer.is_world_process_zero())

    def _write(
        self, benchmark: Benchmark, asked: list[Question], answers: list[files.Row], step: int, seconds: float
    ) -> dict[str, float]:
        args = self.trainer.args
        rows = sample_rows(asked, answers, args.max_completion_length, seconds)
        samples = results.table(benchmark, asked, rows, judge(benchmark, asked, rows, self.grading_seconds))
        sampling = ("temperature", "top_p", "top_k", "seed")
        about = {"model": f"step {step}", "backend": "trainer", "max_tokens": args.max_completion_length}
        settings = questions.origin(benchmark, len(asked)) | about | {name: getattr(args, name) for name in sampling}
        figures = {"settings": settings, "step": step, **results.summary(samples, asked), "versions": versions()}
        figures |= {"git_revision": git_revision(), "hardware": hardware()}
        results.write(self.folder.benchmarks / f"step-{step}", benchmark.name, samples, figures)
        metrics = figures["metrics"]
        count = metrics["num_samples"]
        return {
            f"eval_{benchmark.name}/acc@{count}": metrics["acc@N"]["value"],
            f"eval_{benchmark.name}/maj@{count}": metrics["maj@N"]["value"],
            f"eval_{benchmark.name}/pass@{count}": metrics["pass@k"][count]["value"],
            f"eval_{benchmark.name}/len@{count}": metrics["len@N"]["value"],
        }


def sample_rows(
    asked: Sequence[Question], answers: Sequence[files.Row], max_tokens: int, seconds: float
) -> list[files.Row]:
    """Return the trainer's answers as samples of an evaluation, question by question.

    An answer of `max_tokens` tokens counts as cut off.
    """
    by_prompt: dict[str, list[files.Row]] = {}
    for answer in answers:
        by_prompt.setdefault(answer["prompt"], []).append(answer)
    return [
        {
            "question": q.id,
            "sample": i,
            "text": answer["completion"],
            "tokens": answer["length"],
            "finish": "length" if answer["length"] >= max_tokens else "stop",
            "seconds": seconds,
        }
        for q in asked
        for i, answer in enumerate(by_prompt[q.prompt])
    ]
