"""Problems to train on and problems held out, as data sets with the columns `prompt` and `solution`.

A source is a task (`embedded:NAME`), one of `sources.TRAINING`, a local `.jsonl` or `.parquet` file, or a data set's
id on the Hub. Problems of a task are used as they are. Problems of all other sources are filtered, see `_filter`.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, Value

from ..grading.config import GradingConfig
from ..grading.pool import core_count
from ..tasks import registry
from ..tasks.task import Task
from .benchmarks import PUBLISHED
from .benchmarks.benchmark import PROBLEM_COLUMNS
from .config import DataConfig, SourceConfig
from .filters import normalised, repeated, unreadable
from .hub import load_file, load_hub
from .prompts import render
from .sources import FILE_FORMATS, TRAINING, Source, columns, read_rows

COLUMNS = ("prompt", "solution")
NUM_SHOWN = 3

# Function from prompts to their numbers of tokens.
PromptLengths = Callable[[list], list[int]]


@dataclass(frozen=True)
class Problems:
    """Disjoint sets of problems.

    Attributes:
        train, dev, test: problems of each split; `dev` and `test` are None if none were requested.
        origin: source, number of problems, and number of excluded problems by reason.
    """

    train: Dataset
    dev: Dataset | None
    test: Dataset | None
    origin: dict[str, Any]


def load_problems(
    config: DataConfig, seed: int, grading: GradingConfig | None = None, prompt_lengths: PromptLengths | None = None
) -> Problems:
    """Load, check, filter and split the problems. All processes of a run call this together.

    Args:
        grading: limits of the grader that must read the references; None if the user's own function grades.
        prompt_lengths: needed only with `max_prompt_length`.

    Raises:
        ValueError: the problems cannot be used. The message names the data set, the fault and the fix.
    """
    task = registry.find(config.dataset_name, "dataset_name")
    if task is not None:
        return _generate(task, config, seed)
    source = _source(config)
    rows = _load_training(config, source) if config.dataset_name in TRAINING else load_columns(config, source)
    rows, left_out = _filter(config, rows, grading, prompt_lengths)
    held_out = config.num_dev_problems + config.num_test_problems
    if held_out >= len(rows):
        raise ValueError(
            f"num_dev_problems plus num_test_problems is {held_out}, but {config.dataset_name} has {len(rows)} "
            "problems: hold out fewer."
        )
    # Held-out problems are the same for every seed, so that runs can be compared.
    rows = rows.shuffle(seed=0)
    dev, test = rows.select(range(config.num_dev_problems)), rows.select(range(config.num_dev_problems, held_out))
    train = rows.select(range(held_out, len(rows)))
    origin = {
        "dataset": source.hub_id,
        "config": source.config,
        "file": source.file,
        "revision": source.revision,
        **left_out,
        "train": len(train),
        "dev": len(dev),
        "test": len(test),
    }
    return Problems(train, dev if len(dev) else None, test if len(test) else None, origin)


def _source(config: DataConfig) -> Source:
    """The source of the problems. The number of rows is unknown for a local copy and for a user's own commit."""
    if config.dataset_name in TRAINING:
        source = TRAINING[config.dataset_name]
        if config.dataset_file is not None:
            return replace(source, file=config.dataset_file, revision=None, rows=None)
        if config.dataset_revision not in (None, source.revision):
            return replace(source, revision=config.dataset_revision, rows=None)
        return source
    return named_source(config)


def named_source(config: SourceConfig) -> Source:
    """The source that the settings name: a Hub id, or a file, for which only the columns apply."""
    return Source(
        config.dataset_name,
        columns(config.prompt_column, config.solution_column),
        config=config.dataset_config,
        split=config.dataset_train_split,
        revision=config.dataset_revision,
    )


def _load_training(config: DataConfig, source: Source) -> Dataset:
    """The rows of one of `TRAINING`, read into the columns `prompt` and `solution`."""
    if config.dataset_file is not None:
        rows = load_file("dataset_file", config.dataset_file)
    else:
        rows = load_hub(f"dataset_name is {config.dataset_name!r}", source)
    problems = read_rows(config.dataset_name, source, rows)
    return Dataset.from_dict({"prompt": [question for question, _ in problems], "solution": [a for _, a in problems]})


def load_columns(config: SourceConfig, source: Source) -> Dataset:
    """The rows of a file or a Hub id, with problems and references in the columns `prompt` and `solution`."""
    if Path(config.dataset_name).suffix in FILE_FORMATS:
        rows = load_file("dataset_name", config.dataset_name)
    else:
        rows = load_hub(f"dataset_name is {config.dataset_name!r}", source)
    wanted = {config.prompt_column: "prompt", config.solution_column: "solution"}
    missing = [column for column in wanted if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"dataset_name is {config.dataset_name!r}, which has the columns {', '.join(rows.column_names)} and no "
            f"column {' or '.join(missing)}: name its columns with prompt_column and solution_column."
        )
    in_the_way = [column for column in COLUMNS if column in rows.column_names and column not in wanted]
    rows = rows.remove_columns(in_the_way).rename_columns(wanted)
    solution = rows.features["solution"]
    if not isinstance(solution, Value):
        raise ValueError(
            f"dataset_name is {config.dataset_name!r}, whose column {config.solution_column} is no text: name another "
            "column with solution_column, or make a file with plain references."
        )
    # JSON and parquet read plain numbers as numbers, but graders compare text.
    return rows if solution.dtype.endswith("string") else rows.cast_column("solution", Value("string"))


def evaluation_questions(name: str) -> set[str]:
    """The normalised problems of one of `PUBLISHED` or of a file."""
    if name in PUBLISHED:
        source = PUBLISHED[name].source
        problems = read_rows(name, source, load_hub(f"decontaminate_against names {name!r}", source))
        return {normalised(question) for question, _ in problems}
    rows = load_file("decontaminate_against", name)
    column = next((column for column in PROBLEM_COLUMNS if column in rows.column_names), None)
    if column is None:
        raise ValueError(
            f"decontaminate_against names {name!r}, whose columns are {', '.join(rows.column_names)}: rename the "
            f"column of the problems to {PROBLEM_COLUMNS[0]}."
        )
    return {normalised(question_text(name, i, prompt)) for i, prompt in enumerate(rows[column])}


def question_text(name: str, row: int, prompt: Any) -> str:
    """The text of a prompt, which is a text or a list of messages."""
    parts = [message.get("content") for message in prompt] if isinstance(prompt, list) else [prompt]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{name}: row {row} has the prompt {prompt!r:.60}, but text or messages were expected.")
    return "\n".join(parts)


def _find_unreadable(grading: GradingConfig | None, references: list[str]) -> list[str]:
    """Result of `filters.unreadable`, computed on the first process; empty if the user's own function grades."""
    shared: list[list[str]] = [[]]
    if grading is not None:
        if PartialState().is_main_process:
            shared = [unreadable(references, core_count(), grading.grading_seconds)]
        broadcast_object_list(shared)
    return shared[0]


def _render_prompts(config: DataConfig, rows: Dataset) -> Dataset:
    """Rows whose prompts are in the template."""
    if config.prompt_template is None:
        return rows
    prompts = list(rows["prompt"])
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(
            f"prompt_template is {config.prompt_template!r}, but the prompts of {config.dataset_name} are messages, "
            "to which the tokenizer's chat template applies: leave it out."
        )
    return rows.remove_columns("prompt").add_column("prompt", [render(config.prompt_template, p) for p in prompts])


def _filter(
    config: DataConfig, rows: Dataset, grading: GradingConfig | None, prompt_lengths: PromptLengths | None
) -> tuple[Dataset, dict[str, Any]]:
    """Filter the problems, and put the prompts into the template.

    A problem is excluded for the first reason that holds:

    - it has no answer;
    - it is repeated, or its question has different answers;
    - the grader cannot read its reference, unless the user's own function grades;
    - it is in an evaluation set;
    - its prompt is too long.

    Returns:
        (remaining problems, record with the number of rows, the number of excluded problems by reason, and the
        unreadable references).
    """
    answers = [(answer or "").strip() for answer in rows["solution"]]
    questions = [normalised(question_text(config.dataset_name, i, prompt)) for i, prompt in enumerate(rows["prompt"])]
    reasons = {i: "no answer" for i, answer in enumerate(answers) if not answer}

    def left() -> list[int]:
        return [i for i in range(len(rows)) if i not in reasons]

    kept = left()
    again, conflicting = repeated([questions[i] for i in kept], [answers[i] for i in kept])
    reasons |= {kept[i]: "repeated" for i in again} | {kept[i]: "different answers" for i in conflicting}
    unread = _find_unreadable(grading, [answers[i] for i in left()])
    reasons |= {i: "unreadable reference" for i in left() if answers[i] in set(unread)}
    for name in config.decontaminate_against:
        evaluated = evaluation_questions(name)
        reasons |= {i: f"in {name}" for i in left() if questions[i] in evaluated}
    rows, kept = _render_prompts(config, rows), left()
    if config.max_prompt_length is not None and kept:
        lengths = zip(kept, prompt_lengths(rows.select(kept)["prompt"][:]), strict=True)
        reasons |= {i: f"over {config.max_prompt_length} tokens" for i, n in lengths if n > config.max_prompt_length}

    kept, counts = left(), dict(Counter(reasons.values()))
    summary = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"
    if not kept:
        raise ValueError(
            f"dataset_name is {config.dataset_name!r}, but all its {len(rows)} problems are left out ({summary}): "
            "name another data set, or change the setting that excludes them."
        )
    if PartialState().is_main_process:
        print(f"{config.dataset_name}: {len(kept)} of {len(rows)} problems are used; left out: {summary}", flush=True)
        for reference in unread[:NUM_SHOWN]:
            print(f"  the grader cannot read the reference {reference!r:.200}", flush=True)
    return rows.select(kept), {"rows": len(rows), "left_out": counts, "unreadable_references": unread}


def _generate(task: Task, config: DataConfig, seed: int) -> Problems:
    """Generate the first problems of each split. Held-out problems are the same for every seed."""

    def make(split: str, count: int) -> Dataset | None:
        problems = task.problems(split, seed if split == "train" else 0)
        rows = [problem._asdict() for problem in itertools.islice(problems, count)]
        return Dataset.from_list(rows) if rows else None

    train = make("train", config.num_train_problems)
    if train is None:
        raise ValueError("num_train_problems is 0: set it to at least the prompts of one rollout.")
    dev, test = make("dev", config.num_dev_problems), make("test", config.num_test_problems)
    sizes = {name: len(part) if part else 0 for name, part in (("train", train), ("dev", dev), ("test", test))}
    return Problems(train, dev, test, {"dataset": config.dataset_name, **sizes})


def check_size(train: Dataset, problems_per_rollout: int) -> None:
    """Refuse a data set that is too small for one rollout, for which TRL would train zero steps without an error."""
    if len(train) < problems_per_rollout:
        raise ValueError(
            f"the training set has {len(train)} problems, but one rollout needs {problems_per_rollout} "
            "(generation_batch_size / num_generations): lower generation_batch_size, per_device_train_batch_size or "
            "gradient_accumulation_steps, or provide more problems."
        )
