"""Accuracy of SmolLM2-135M-Instruct before training on tasks that are harder than sums of two numbers.

    python -m benchmarks.harder            # half an hour of two cores; benchmarks/results/harder.json and its page
    python -m benchmarks.harder --table    # only the table of the recorded results

A task on which nearly no answer is right gives almost no group of answers with a reward that differs. Every problem
follows two solved ones of other splits in the same chat, in the form in which it is to be answered. A last row
has the countdown game after a short cold start, as part J of `benchmarks.gpu` gives it, without solved problems.
"""

import argparse
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import measure, smollm2, walks
from benchmarks.gpu import countdown, pretrained, sums, weights
from entropy_grpo.data.prompts import render
from entropy_grpo.metrics.intervals import share_interval
from entropy_grpo.metrics.tables import interval_text
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import files
from entropy_grpo.tasks import registry
from entropy_grpo.tasks.task import Problem, Task

RESULTS = measure.RESULTS / "harder.json"
COMMAND = "python -m benchmarks.harder"
TABLE = f"{COMMAND} --table"
PROBLEMS, ANSWERS, BATCH, SEED = 50, 4, 50, 0
# Generators of the harder tasks, with the longest answer in tokens.
GENERATORS = {
    "countdown with three numbers": (countdown.TASK, 32),
    "word problems": ("reasoning_gym:gsm_symbolic", 96),
}
# Longest answers of parts H and J.
SUM_TOKENS, SEARCH_TOKENS = (int(job.settings["max_completion_length"]) for job in (weights.SUMS, countdown.JOB))
# Searches that the model imitates, a fifth of part J's, once, and settings of that launch.
SEARCHES = 400
COLD_START = {
    "num_train_epochs": "1",
    "use_cpu": "true",
    "use_liger_kernel": "false",
    "responses_per_step": "16",
    "per_device_train_batch_size": "16",
}


@dataclass(frozen=True)
class Candidate:
    """Prompts or chats that end with a problem, the longest answer in tokens, and (place, text) -> is it right."""

    asked: Sequence[str | list[dict[str, str]]]
    max_tokens: int
    is_right: Callable[[int, str], bool]


def of_sums() -> Candidate:
    """The task of part H: sums of three numbers in two steps."""
    rows = sums.problems(PROBLEMS, SEED)

    def is_right(place: int, text: str) -> bool:
        found = re.search(r"^Answer: (\d+)$", text.strip(), re.MULTILINE)
        return found is not None and found[1] == rows[place]["solution"]

    return Candidate([row["prompt"] for row in rows], SUM_TOKENS, is_right)


def of_generator(name: str, max_tokens: int) -> Candidate:
    """Held-out problems of a generator after two training problems with their reference answers."""
    task = registry.load(name)
    shown = [
        {"role": role, "content": content}
        for problem in itertools.islice(task.problems("train", SEED), 2)
        for role, content in (
            ("user", problem.prompt),
            ("assistant", f"\\boxed{{{json.loads(problem.solution)['answer']}}}"),
        )
    ]
    problems = walks.problems(task, PROBLEMS)
    chats = [[*shown, {"role": "user", "content": problem.prompt}] for problem in problems]
    return Candidate(chats, max_tokens, partial(scored, task, problems))


def of_searches() -> Candidate:
    """The task of part J: the countdown game in its own template."""
    task = registry.load(countdown.TASK)
    problems = walks.problems(task, PROBLEMS)
    prompts = [render(task.template, problem.prompt) for problem in problems]
    return Candidate(prompts, SEARCH_TOKENS, partial(scored, task, problems))


def scored(task: Task, problems: Sequence[Problem], place: int, text: str) -> bool:
    """Return whether a response to a problem is right by the task's own score."""
    return task.scores_right(problems[place], task.answer(problems[place].prompt, text))


def accuracy(candidate: Candidate, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Accuracy of answers at temperature 1, and the share of problems whose answers differ in reward."""
    prompts = [
        asked
        if isinstance(asked, str)
        else tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        for asked in candidate.asked
    ]
    right = [0] * len(prompts)
    for start, turn in itertools.product(range(0, len(prompts), BATCH), range(ANSWERS)):
        written = walks.write(model, tokenizer, prompts[start : start + BATCH], SEED + turn, candidate.max_tokens)
        for place, (_, ids) in enumerate(written, start):
            right[place] += candidate.is_right(place, tokenizer.decode(ids, skip_special_tokens=True))
    return {
        "accuracy": share_interval([count / ANSWERS for count in right]),
        "informative": share_interval([float(0 < count < ANSWERS) for count in right]),
    }


def run() -> dict[str, Any]:
    """Measure all tasks."""
    folder = pretrained.convert(smollm2.weights(None))
    model, tokenizer = walks.pretrained(folder)
    candidates = {"sums of three numbers": of_sums()}
    candidates |= {name: of_generator(*given) for name, given in GENERATORS.items()}
    found = {name: accuracy(candidate, model, tokenizer) for name, candidate in candidates.items()}
    with tempfile.TemporaryDirectory() as scratch:
        run, _ = countdown.cold_start(folder, SEARCHES, COLD_START, Path(scratch))
        taught = accuracy(of_searches(), *walks.pretrained(run.path))
    found[f"countdown after a cold start on {SEARCHES} searches"] = taught
    return {"problems": PROBLEMS, "answers": ANSWERS, "generators": GENERATORS, "searches": SEARCHES, "tasks": found}


def table(recorded: Mapping[str, Any]) -> str:
    """The recorded figures in Markdown."""
    rows = [["task", "accuracy before RL", f"groups of {recorded['answers']} answers that differ in reward"]]
    for name, one in recorded["tasks"].items():
        rows.append([name, interval_text(one["accuracy"]), interval_text(one["informative"])])
    return markdown_table(rows)


def text() -> str:
    """The table, or a sentence that there are no results."""
    recorded = files.read_json(RESULTS)
    return table(recorded) if recorded else "Not run. The command takes half an hour of two cores."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="only write the table of the recorded results")
    if not parser.parse_args().table:
        measure.write(RESULTS.stem, COMMAND, run())
    measure.write_block(TABLE, text())
    print(text())


if __name__ == "__main__":
    main()
