"""Benchmarks before and during training: the policy answers them through the trainer's own generation.

Temperature and top_p are those of the training unless the recipe sets others. The length is that of the training, with
`num_generations_eval` responses to each question. A benchmark fails if its questions do not load, a prompt is too long
for vLLM, or its responses cannot be graded. Failures are counted and logged with the reason, and the run continues. An
error in the generation ends the run, because the next rollout would raise it again, or other processes wait for this
one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from ..data.benchmarks.benchmark import CODE, Benchmark, Question
from ..models.load import as_plain_text, positions_of, rendered
from ..runs import files
from ..runs.environment import git_revision, hardware, versions
from ..runs.folder import RunFolder, results_of
from ..runs.launched import Leave
from . import prompting, questions, results
from .judging import judge

FAILURES = "eval_failures"


class BenchmarkError(Exception):
    """Failure of a benchmark on the first process, raised on all processes."""


def from_first_process(make: Callable[[], Any], is_first: bool) -> Any:
    """Call `make` on the first process, and return its result, plain data, on every process.

    Raises:
        BenchmarkError: `make` raised any error; raised on every process.
    """
    made: list[Any] = [None, None]
    if is_first:
        try:
            made[0] = make()
        except Exception as error:  # loading and grading may raise any error, and do not change the run
            made[1] = f"{type(error).__name__}: {error}"
    broadcast_object_list(made)
    if made[1] is not None:
        raise BenchmarkError(made[1])
    return made[0]


@contextmanager
def without_logs(handler: CallbackHandler) -> Iterator[None]:
    """Keep TRL's own metrics of a benchmark's answers from trackers, records and the progress bar.

    They have the names of the metrics of the held-out problems, such as `eval_accuracy`.
    """
    vars(handler)["on_log"] = lambda args, state, control, logs: control
    try:
        yield
    finally:
        del vars(handler)["on_log"]


class BenchmarkCallback(TrainerCallback):
    """Evaluates benchmarks before training and every `steps` optimiser steps.

    Parameters:
        trainer: trainer with a method `answer(problems, metric_key_prefix, sampling, graded) -> rows`.
        names: benchmarks, as on the command line of `entropy-grpo eval`.
        steps: optimiser steps between evaluations.
        sampling: `temperature` and `top_p` of the answers.
        folder: run folder, which receives the results.
        grading_seconds: wall-clock limit for grading one answer.
    """

    def __init__(
        self,
        trainer: Any,
        names: Sequence[str],
        steps: int,
        sampling: dict[str, float],
        folder: RunFolder,
        grading_seconds: float,
    ):
        self.trainer, self.names, self.steps, self.folder = trainer, list(dict.fromkeys(names)), steps, folder
        self.sampling, self.grading_seconds = sampling, grading_seconds
        self.form = prompting.form_of(None, str(folder.path))
        # Benchmark, questions, and settings of the results; only on the first process, which grades.
        self.loaded: dict[str, tuple[Benchmark, list[Question], dict[str, Any]]] = {}
        self.problems: dict[str, tuple[str, Dataset]] = {}
        self.failures = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0 and self._is_due(state.global_step):
            self._evaluate_undisturbed(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self._evaluate_undisturbed(args, state, control)

    def _is_due(self, step: int) -> bool:
        """Return whether results of a step are missing, as at the beginning and after a stop in an evaluation."""
        try:
            titles = {self._read(name)[0] for name in self.names}
        except BenchmarkError:  # the evaluation counts and logs it
            return True

        def missing() -> bool:
            return not titles <= set(results.names_in(self.folder.benchmarks / results_of(step)))

        return from_first_process(missing, self.trainer.is_world_process_zero())

    def _evaluate_undisturbed(self, args: Any, state: Any, control: Any) -> None:
        """Evaluate without an effect on the plans and the random numbers of the training."""
        planned = dict(vars(control))
        gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(gpus):  # training draws the same random numbers as without benchmarks
            torch.manual_seed(args.seed)
            with suppress(Leave):  # a continued run evaluates again
                self._evaluate_all(state.global_step)
        # An evaluation's log resets flags, such as that a training log is due. A watcher may set others.
        vars(control).update({flag: value or planned[flag] for flag, value in vars(control).items()})

    def _evaluate_all(self, step: int) -> None:
        """Evaluate all benchmarks and log their metrics, and each failure with its reason."""
        metrics: dict[str, float] = {}
        for name in self.names:
            try:
                metrics |= self._evaluate(name, step)
            except BenchmarkError as error:
                self.failures += 1
                get_logger(__name__).warning(f"eval_benchmarks: {name} failed at step {step}: {error}")
        self.trainer.model.eval()  # in training mode the trainer would add unfinished training metrics to this log
        self.trainer.log(metrics | {FAILURES: self.failures})

    def _load(self, name: str) -> tuple[str, dict[str, list[str]]]:
        """Load a benchmark on the first process.

        Returns:
            (name of the benchmark, columns of its problems), which other processes can receive. The benchmark itself
            holds functions, which cannot be sent.
        """
        benchmark, asked = questions.load(name)
        if benchmark.kind == CODE:
            raise ValueError("its answers are programs, which only entropy-grpo eval can run.")
        of_the_form = self.form.about(benchmark)
        benchmark, asked = prompting.put(benchmark, asked, self.form, self._chat)
        prompts = [q.prompt for q in asked]
        self._check_lengths(prompts)
        self.loaded[name] = benchmark, asked, questions.origin(benchmark, asked) | of_the_form
        return benchmark.name, {"prompt": prompts, "solution": [q.reference for q in asked]}

    def _chat(self, messages: list[dict[str, str]], kwargs: dict[str, Any]) -> str:
        tokenizer = self.trainer.processing_class
        return as_plain_text(tokenizer, rendered(tokenizer, messages, "the model", **kwargs))

    def _check_lengths(self, prompts: list[str]) -> None:
        """Refuse prompts that are too long for vLLM, which would raise on one process while other processes wait."""
        args = self.trainer.args
        if not args.use_vllm:
            return
        room = args.vllm_max_model_length or positions_of(self.trainer.model.config)
        if room is None:
            return
        longest = max(len(ids) for ids in self.trainer.processing_class(prompts)["input_ids"])
        if longest + args.max_completion_length > room:
            raise ValueError(
                f"its longest prompt has {longest} tokens, which with max_completion_length "
                f"({args.max_completion_length}) exceed vLLM's {room} tokens: raise vllm_max_model_length, or remove "
                "the benchmark."
            )

    def _read(self, name: str) -> tuple[str, Dataset]:
        """Return (name, problems) of a benchmark on every process, loaded once."""
        if name not in self.problems:
            title, columns = from_first_process(lambda: self._load(name), self.trainer.is_world_process_zero())
            self.problems[name] = title, Dataset.from_dict(columns)
        return self.problems[name]

    def _evaluate(self, name: str, step: int) -> dict[str, float]:
        """Answer one benchmark, write its files and return the metrics to log."""
        title, problems = self._read(name)
        logged = len(self.trainer.state.log_history)
        start = time.perf_counter()
        with without_logs(self.trainer.callback_handler):
            answers = self.trainer.answer(problems, f"eval_{title}", self.sampling, graded=False)
        seconds = (time.perf_counter() - start) / len(answers)
        del self.trainer.state.log_history[logged:]

        def write() -> dict[str, float]:
            return self._write(*self.loaded[name], answers, step, seconds)

        return from_first_process(write, self.trainer.is_world_process_zero())

    def _write(
        self,
        benchmark: Benchmark,
        asked: list[Question],
        origin: dict[str, Any],
        answers: list[files.Row],
        step: int,
        seconds: float,
    ) -> dict[str, float]:
        """Grade the answers, write the benchmark's files, and return the metrics to log.

        Args:
            origin: origin of the questions and form of the prompts, for the results.
            seconds: mean time of a response.
        """
        args = self.trainer.args
        rows = sample_rows(asked, answers, seconds)
        samples = results.table(benchmark, asked, rows, judge(benchmark, asked, rows, self.grading_seconds))
        about = {"model": f"step {step}", "backend": "trainer", "max_tokens": args.max_completion_length}
        about |= self.sampling | {"top_k": args.top_k, "seed": args.seed}
        figures = {"settings": origin | about, "step": step, **results.summary(samples, asked), "versions": versions()}
        figures |= {"git_revision": git_revision(), "hardware": hardware()}
        results.write(self.folder.benchmarks / results_of(step), benchmark.name, samples, figures)
        metrics = figures["metrics"]
        count = metrics["num_samples"]
        return {
            f"eval_{benchmark.name}/acc@{count}": metrics["acc@N"]["value"],
            f"eval_{benchmark.name}/maj@{count}": metrics["maj@N"]["value"],
            f"eval_{benchmark.name}/pass@{count}": metrics["pass@k"][count]["value"],
            f"eval_{benchmark.name}/len@{count}": metrics["len@N"]["value"],
        }


def sample_rows(asked: Sequence[Question], answers: Sequence[files.Row], seconds: float) -> list[files.Row]:
    """Convert the trainer's answers to samples of an evaluation, question by question.

    `seconds` is the mean time of a response.
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
            "finish": "stop" if answer["ended"] else "length",
            "seconds": seconds,
        }
        for q in asked
        for i, answer in enumerate(by_prompt[q.prompt])
    ]
