"""Problems to train on and problems held out, as data sets with the columns `prompt` and `solution`.

A source is a task (`PROVIDER:NAME`), one of `sources.TRAINING`, a local file of `sources.FILE_FORMATS`, or a data
set's id on the Hub. Problems of a task are used as they are. Problems of all other sources are filtered, see
`_filter`.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy
import pyarrow as pa
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from ..grading.config import GradingConfig
from ..grading.pool import core_count
from ..tasks.stream import Exhausted, Stream
from ..tasks.task import Problem, Task
from . import rows
from .benchmarks import PUBLISHED
from .benchmarks.benchmark import PROBLEM_COLUMNS
from .config import DataConfig, SourceConfig
from .filters import LeftOut, final_answer, normalised, repeated, unreadable
from .hub import load_hub
from .prompts import render
from .sources import (
    TRAINING,
    Row,
    Source,
    columns,
    is_local,
    prompt_in,
    question_text,
    read_rows,
    reference_in,
    text_at,
)

COLUMNS = ("prompt", "solution")
# Columns that TRL reads as images, and columns whose content TRL replaces before the rewards.
IMAGE_COLUMNS = ("image", "images")
TRL_COLUMNS = (
    *(*IMAGE_COLUMNS, "prompts", "completion", "completions", "completion_ids"),
    *("trainer_state", "log_extra", "log_metric", "environments"),
)
NUM_SHOWN = 3

# Function from prompts to their numbers of tokens.
PromptLengths = Callable[[list], list[int]]


@dataclass(frozen=True)
class Problems:
    """Disjoint sets of problems.

    Attributes:
        train, dev, test: problems of each split; `dev` and `test` are None if none were requested.
        origin: source, number of problems, and number of excluded problems by reason.
        stream: source of training problems that are generated when they are read, in their order; None if they are in
            `train`.
    """

    train: Dataset
    dev: Dataset | None
    test: Dataset | None
    origin: dict[str, Any]
    stream: Stream | None = None


def load_problems(
    config: DataConfig,
    seed: int,
    grading: GradingConfig | None = None,
    prompt_lengths: PromptLengths | None = None,
    keeps_columns: bool = False,
) -> Problems:
    """Load, check, filter and split the problems. All processes of a run call this together.

    Args:
        grading: limits of the grader that must read the references; None if only the user's own functions read them.
        prompt_lengths: needed only with `max_prompt_length`.
        keeps_columns: whether the user's own function may read other columns than the problem and its reference.

    Raises:
        ValueError: the problems cannot be used. The message names the data set, the fault and the fix.
    """
    if config.task is not None:
        return _generate(config.task, config, seed, prompt_lengths)
    source = _source(config)
    if config.dataset_name in TRAINING:
        loaded = _load_training(config, source)
    else:
        loaded = load_columns(config, lambda name: keeps_columns and name not in TRL_COLUMNS)
    kept, left_out = _filter(config, loaded, grading, prompt_lengths)
    held_out = config.num_dev_problems + config.num_test_problems
    if held_out >= len(kept):
        raise ValueError(
            f"num_dev_problems plus num_test_problems is {held_out}, but {config.dataset_name} has {len(kept)} "
            "problems: hold out fewer."
        )
    # Held-out problems are the same for every seed, so that runs can be compared.
    kept = kept.shuffle(seed=0)
    dev, test = kept.select(range(config.num_dev_problems)), kept.select(range(config.num_dev_problems, held_out))
    train = kept.select(range(held_out, len(kept)))
    origin = {
        "dataset": source.hub_id,
        "config": source.config,
        "file": source.file,
        "revision": source.revision,
        **left_out,
        **_conversations(kept["prompt"]),
        "train": len(train),
        "dev": len(dev),
        "test": len(test),
    }
    return Problems(train, dev if len(dev) else None, test if len(test) else None, origin)


def _conversations(prompts: Sequence[str | list]) -> dict[str, Any]:
    """Record of prompts that are messages, for evaluations: the most frequent system message, if any."""
    systems = Counter(p[0]["content"] if p[0]["role"] == "system" else None for p in prompts if isinstance(p, list))
    return {"messages": {"system": systems.most_common(1)[0][0]}} if systems else {}


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
        found = rows.load(f"dataset_file is {config.dataset_file!r}", config.dataset_file)
    else:
        found = load_hub(f"dataset_name is {config.dataset_name!r}", source)
    problems = read_rows(config.dataset_name, source, found.rows, found.places)
    return Dataset.from_dict({"prompt": [question for question, _ in problems], "solution": [a for _, a in problems]})


def load_columns(
    config: SourceConfig, keeps: Callable[[str], bool] | None = None, response_column: str | None = None
) -> Dataset:
    """The rows of a file or a Hub id, with problems and references in the columns `prompt` and `solution`.

    Args:
        keeps: whether another column is read by anyone; by default the other ones are left out.
        response_column: a column of texts to be named `response`.

    Raises:
        ValueError: a column is missing, or a row has something else than text, messages or numbers where they belong;
            the message names the row's place.
    """
    subject = f"dataset_name is {config.dataset_name!r}"
    is_file = is_local(config.dataset_name)
    found = rows.load(subject, config.dataset_name) if is_file else load_hub(subject, named_source(config))
    _check_columns(config, subject, found.columns, response_column)
    columns: dict[str, list] = {"prompt": [], "solution": []}
    for row, place in zip(found.rows, found.places, strict=True):
        try:
            _refuse_images(row)
            columns["prompt"].append(prompt_in(row, config.prompt_column))
            columns["solution"].append(reference_in(row, config.solution_column))
            if response_column is not None:
                columns.setdefault("response", []).append(text_at(row, response_column))
        except ValueError as error:
            raise ValueError(f"dataset_name: {place} has an unexpected form: {error}.") from error
    taken = (*columns, config.prompt_column, config.solution_column)
    others = [name for name in found.columns if keeps is not None and name not in taken and keeps(name)]
    columns |= {name: [row.get(name) for row in found.rows] for name in others}
    for name, values in columns.items():
        _check_alike(subject, name, values, found.places)
    return Dataset.from_dict(columns)


def _check_columns(config: SourceConfig, subject: str, names: list[str], response_column: str | None) -> None:
    missing = [name for name in (config.prompt_column, config.solution_column) if name not in names]
    if missing:
        raise ValueError(
            f"{subject}, which has the columns {', '.join(names)} and no column {' or '.join(missing)}: name its "
            "columns with prompt_column and solution_column."
        )
    if response_column is not None and response_column not in names:
        others = ", ".join(name for name in names if name not in (config.prompt_column, config.solution_column))
        raise ValueError(
            f"response_column is {response_column!r}, which {config.dataset_name} does not have: set it to the column "
            f"with the teacher's responses, one of {others}."
        )


def _refuse_images(row: Row) -> None:
    for name in IMAGE_COLUMNS:
        if row.get(name):
            raise ValueError(f"{name} holds an image, and policies here read text alone")


def _check_alike(subject: str, name: str, values: list, places: Sequence[str]) -> None:
    """Refuse a column whose values have no common type."""
    try:
        pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        kinds = {type(value): place for value, place in reversed(list(zip(values, places, strict=True)))}
        told = ", ".join(f"{kind.__name__} in {place}" for kind, place in kinds.items() if kind is not type(None))
        raise ValueError(f"{subject}, whose column {name} has values of several types ({told}).") from error


def evaluation_questions(name: str) -> set[str]:
    """The normalised problems of one of `PUBLISHED` or of a file."""
    if name in PUBLISHED:
        source = PUBLISHED[name].source
        found = load_hub(f"decontaminate_against names {name!r}", source)
        problems = read_rows(name, source, found.rows, found.places)
        return {normalised(question) for question, _ in problems}
    found = rows.load(f"decontaminate_against names {name!r}", name)
    column = next((column for column in PROBLEM_COLUMNS if column in found.columns), None)
    if column is None:
        raise ValueError(
            f"decontaminate_against names {name!r}, whose columns are {', '.join(found.columns)}: rename the column "
            f"of the problems to {PROBLEM_COLUMNS[0]}."
        )
    questions = set()
    for row, place in zip(found.rows, found.places, strict=True):
        try:
            questions.add(normalised(question_text(prompt_in(row, column))))
        except ValueError as error:
            raise ValueError(f"decontaminate_against: {place} has an unexpected form: {error}.") from error
    return questions


def leave_out_evaluated(left_out: LeftOut, questions: Sequence[str], names: Sequence[str]) -> None:
    """Leave out the rows whose questions, as `normalised` gives them, are in evaluation sets."""
    for name in names:
        evaluated = evaluation_questions(name)
        left_out.add(f"in {name}", (i for i, question in enumerate(questions) if question in evaluated))


def _find_unreadable(grading: GradingConfig | None, references: list[str]) -> list[str]:
    """Result of `filters.unreadable`, computed on the first process; empty if no grader reads the references."""
    shared: list[list[str]] = [[]]
    if grading is not None:
        if PartialState().is_main_process:
            shared = [unreadable(references, core_count(), grading.grading_seconds)]
        broadcast_object_list(shared)
    return shared[0]


def _with_references(problems: Dataset) -> tuple[Dataset, int]:
    """(problems with the answer of every worked solution in its place, number of such solutions)."""
    solutions = list(problems["solution"])
    references = [final_answer(solution) for solution in solutions]
    read = sum(one != other for one, other in zip(solutions, references, strict=True))
    if not read:
        return problems, 0
    return problems.remove_columns("solution").add_column("solution", references), read


def _render_prompts(config: DataConfig, problems: Dataset) -> Dataset:
    """Rows whose prompts are in the template."""
    if config.prompt_template is None:
        return problems
    prompts = list(problems["prompt"])
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(
            f"prompt_template is {config.prompt_template!r}, but the prompts of {config.dataset_name} are messages, "
            "to which the tokenizer's chat template applies: set it to null."
        )
    return problems.remove_columns("prompt").add_column("prompt", [render(config.prompt_template, p) for p in prompts])


def _filter(
    config: DataConfig, problems: Dataset, grading: GradingConfig | None, prompt_lengths: PromptLengths | None
) -> tuple[Dataset, dict[str, Any]]:
    """Filter the problems, and put the prompts into the template.

    A problem is excluded for the first reason that holds:

    - it has no answer;
    - it is repeated, or its question has different answers;
    - the grader cannot read its reference, unless only the user's own functions read it;
    - it is in an evaluation set;
    - its prompt is too long.

    Returns:
        (remaining problems, record with the number of rows, the number of excluded problems by reason, the number of
        worked solutions whose answer was read, and the unreadable references).
    """
    problems, worked = (problems, 0) if grading is None else _with_references(problems)
    answers = [answer.strip() for answer in problems["solution"]]
    questions = [normalised(question_text(prompt)) for prompt in problems["prompt"]]
    left_out = LeftOut(len(problems))
    left_out.add("no answer", (i for i, answer in enumerate(answers) if not answer))
    kept = left_out.kept()
    again, conflicting = repeated([questions[i] for i in kept], [answers[i] for i in kept])
    left_out.add("repeated", (kept[i] for i in again))
    left_out.add("different answers", (kept[i] for i in conflicting))
    references = list(problems["solution"])
    unread = _find_unreadable(grading, [references[i] for i in left_out.kept()])
    unreadable_ones = set(unread)
    left_out.add("unreadable reference", (i for i, reference in enumerate(references) if reference in unreadable_ones))
    leave_out_evaluated(left_out, questions, config.decontaminate_against)
    problems, kept = _render_prompts(config, problems), left_out.kept()
    longest = config.max_prompt_length
    if longest is not None and kept:
        lengths = zip(kept, prompt_lengths(problems.select(kept)["prompt"][:]), strict=True)
        left_out.add(f"over {longest} tokens", (i for i, length in lengths if length > longest))

    kept, summary = left_out.kept(), left_out.summary()
    if not kept:
        raise ValueError(
            f"dataset_name is {config.dataset_name!r}, but all its {len(problems)} problems are left out ({summary}): "
            "name another data set, or change the setting that excludes them."
        )
    if PartialState().is_main_process:
        print(
            f"{config.dataset_name}: {len(kept)} of {len(problems)} problems are used; left out: {summary}", flush=True
        )
        if worked:
            print(f"  {worked} references are the last box of a worked solution, or what follows its ####", flush=True)
        for reference in unread[:NUM_SHOWN]:
            print(f"  the grader cannot read the reference {reference!r:.200}", flush=True)
    record = {"rows": len(problems), "left_out": left_out.counts()}
    return problems.select(kept), record | {"worked_solutions": worked, "unreadable_references": unread}


class _InPrompts:
    """Rows of a stream's problems, generated when they are read: the transform of a data set of places.

    Behind the last problem that the generator has, the stream begins again, as an epoch does.
    """

    def __init__(self, stream: Stream, template: str | None):
        self.stream, self.template = stream, template

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[str]]:
        problems = [self._problem(place) for place in batch["place"]]
        prompts = [render(self.template, problem.prompt) for problem in problems]
        return {"prompt": prompts, "solution": [problem.solution for problem in problems]}

    def _problem(self, place: int) -> Problem:
        try:
            return self.stream[place]
        except Exhausted as end:
            if not len(self.stream):
                raise ValueError(
                    f"dataset_name: {end}: set other dataset_options or a larger max_prompt_length."
                ) from end
            return self.stream[place % len(self.stream)]


def _is_short(problem: Problem, template: str | None, longest: int, prompt_lengths: PromptLengths) -> bool:
    """Return whether the prompt of a problem has at most `longest` tokens."""
    return prompt_lengths([render(template, problem.prompt)])[0] <= longest


def _generate(task: Task, config: DataConfig, seed: int, prompt_lengths: PromptLengths | None) -> Problems:
    """Generate the first problems of each split. Held-out problems are the same for every seed.

    Training problems that take long to generate are generated when they are read.
    """
    longest, keeps = config.max_prompt_length, None
    if longest is not None:  # no function within this one, which could not be sent to a worker of the data loader
        keeps = partial(_is_short, template=task.template, longest=longest, prompt_lengths=prompt_lengths)

    def make(split: str, count: int) -> Dataset | None:
        source = seed if split == "train" else 0
        problems = task.problems(split, source) if task.stream is None else task.stream(split, source, keeps)
        made = list(itertools.islice(problems, count))
        if len(made) < count:
            of_length = "" if keeps is None else f" with prompts of at most {longest} tokens"
            longer = "" if keeps is None else ", raise max_prompt_length"
            raise ValueError(
                f"num_{split}_problems is {count}, but {config.task_name} has only {len(made)} different {split} "
                f"problems{of_length}: lower it to {len(made)}{longer}, or set other dataset_options."
            )
        rows = [{"prompt": render(task.template, problem.prompt), "solution": problem.solution} for problem in made]
        return Dataset.from_list(rows) if rows else None

    if config.num_train_problems == 0:
        raise ValueError("num_train_problems is 0: set it to at least the prompts of one rollout.")
    stream = None if task.stream is None else task.stream("train", seed, keeps)
    if stream is None:
        train = make("train", config.num_train_problems)
    else:
        places = Dataset(pa.table({"place": numpy.arange(config.num_train_problems)}))
        train = places.with_transform(_InPrompts(stream, task.template))
    dev, test = make("dev", config.num_dev_problems), make("test", config.num_test_problems)
    sizes = {name: len(part) if part else 0 for name, part in (("train", train), ("dev", dev), ("test", test))}
    template = {} if task.template is None else {"prompt_template": task.template}
    return Problems(train, dev, test, {"dataset": config.task_name, **task.origin, **template, **sizes}, stream)


def check_size(train: Dataset, problems_per_rollout: int, prompts_per_rollout: int | None = None) -> None:
    """Refuse a data set that is too small for one rollout, for which TRL would train zero steps without an error.

    Args:
        prompts_per_rollout: the setting, which replaces TRL's sizes of batches where it is set.
    """
    if len(train) >= problems_per_rollout:
        return
    needs = f"the training set has {len(train)} problems, but one rollout needs {problems_per_rollout}"
    if prompts_per_rollout is not None:
        raise ValueError(
            f"{needs} (prompts_per_rollout): lower prompts_per_rollout to {len(train)} or fewer, or provide more "
            "problems."
        )
    raise ValueError(
        f"{needs} (generation_batch_size / num_generations): lower generation_batch_size, per_device_train_batch_size "
        "or gradient_accumulation_steps, or provide more problems."
    )
