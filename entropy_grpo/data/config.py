"""Settings of a run's problems."""

import json
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from ..tasks import registry
from ..tasks.task import Task
from .benchmarks import PUBLISHED
from .prompts import TEMPLATES
from .sources import FILE_FORMATS, TRAINING, format_of, is_local


def _to_default(default: Any) -> str:
    """Return the advice to leave a setting out, or to undo it where a recipe's parent sets it."""
    return f"leave it out, or set it to {json.dumps(default)} if a parent of the recipe sets it"


@dataclass
class SourceConfig:
    """Location of the rows of a file or of a Hub id, and the columns to read.

    Parameters:
        dataset_name: file or Hub id.
        dataset_config, dataset_revision: configuration and commit of the data set on the Hub.
        dataset_train_split: split to train on.
        prompt_column, solution_column: columns of the problem and of its reference, in a file or a Hub data set.
        prompt_template: text around a problem: `boxed`, `answer_line` or `code` (`prompts.TEMPLATES`); null for the
            bare problem.
        decontaminate_against: evaluation sets whose problems are excluded. Each is a benchmark of mathematics that
            `entropy-grpo eval --list` names, or a file with a column `problem`, `question` or `prompt`.
    """

    dataset_name: str | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    dataset_train_split: str = "train"
    prompt_column: str = "prompt"
    solution_column: str = "solution"
    prompt_template: str | None = None
    decontaminate_against: list[str] = field(default_factory=list)

    def check_source(self) -> None:
        """Raise `ValueError` if the template or a set to decontaminate against does not exist."""
        if self.prompt_template is not None and self.prompt_template not in TEMPLATES:
            raise ValueError(
                f"prompt_template is {self.prompt_template!r}: choose one of {', '.join(TEMPLATES)}, or null for the "
                "bare problem."
            )
        if self.dataset_name and is_local(self.dataset_name):
            of_the_hub = {"dataset_config": None, "dataset_revision": None, "dataset_train_split": "train"}
            for name, default in of_the_hub.items():
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name} is {getattr(self, name)!r}, but dataset_name {self.dataset_name!r} is a file, which "
                        f"does not read it: {_to_default(default)}."
                    )
        if self.prompt_column == self.solution_column:
            raise ValueError(
                f"prompt_column and solution_column are both {self.prompt_column!r}: name the column of the "
                "references."
            )
        for name in self.decontaminate_against:
            if name not in PUBLISHED and not is_local(name):
                raise ValueError(
                    f"decontaminate_against names {name!r}: choose among {', '.join(PUBLISHED)} and files that end "
                    f"in {' or '.join(FILE_FORMATS)}."
                )


@dataclass
class DataConfig(SourceConfig):
    """Problems to train on and problems to hold out.

    Parameters:
        dataset_name: a task (`embedded:NAME` or `reasoning_gym:NAME`), a set by name (`sources.TRAINING`), a file
            (`.jsonl`, `.json`, `.parquet`, `.csv`), or a Hub id.
        dataset_options: options of a task's generators, by name if there are several.
        dataset_file: local copy of the rows of one of `sources.TRAINING`, which is read instead of the Hub.
        max_prompt_length: largest number of tokens of a prompt. Problems with longer prompts are excluded; null for no
            limit.
        num_train_problems: number of different training problems that a task generates.
        num_dev_problems: number of held-out problems for evaluation during training; 0 for none.
        num_test_problems: number of held-out problems for evaluation before and after training; 0 for none.
    """

    dataset_options: dict[str, Any] = field(default_factory=dict)
    dataset_file: str | None = None
    max_prompt_length: int | None = None
    num_train_problems: int = 4096
    num_dev_problems: int = 0
    num_test_problems: int = 0

    def check_data(self) -> None:
        """Raise `ValueError` if settings name no data, contradict each other, or are not read."""
        if not self.dataset_name:
            raise ValueError(
                f"dataset_name is missing: name {', '.join([*registry.TASKS, *TRAINING])}, a Hub id or a "
                f"file that ends in {' or '.join(FILE_FORMATS)}."
            )
        self.check_source()
        if self.max_prompt_length is not None and self.max_prompt_length < 1:
            raise ValueError(f"max_prompt_length is {self.max_prompt_length}: it must be 1 or more, or null.")
        self._check_file()
        unread, task = [], self.task
        if task is not None:
            unread = "prompt_column solution_column prompt_template decontaminate_against".split()
            unread += "dataset_config dataset_revision dataset_train_split".split()
            unread += ["max_prompt_length"] * (task.longest_prompt is not None)
        elif self.dataset_name in TRAINING:
            unread = "dataset_config dataset_train_split prompt_column solution_column".split()
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name in unread and value not in (setting.default, []):
                default = [] if setting.default is MISSING else setting.default
                raise ValueError(
                    f"{setting.name} is {value!r} but dataset_name {self.dataset_name!r} does not read it: "
                    f"{_to_default(default)}."
                )
        for name in ("num_train_problems", "num_dev_problems", "num_test_problems"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more.")

    @property
    def task(self) -> Task | None:
        """The task that generates the problems; None for other data."""
        return registry.find(self.task_name, "dataset_name")

    @property
    def task_name(self) -> str | None:
        """`dataset_name` with `dataset_options`."""
        return registry.full_name(self.dataset_name, self.dataset_options)

    def _check_file(self) -> None:
        if self.dataset_file is None:
            return
        if self.dataset_name not in TRAINING:
            raise ValueError(
                f"dataset_file is {self.dataset_file!r} but dataset_name is {self.dataset_name!r}: set dataset_name "
                f"to the file, or to one of {', '.join(TRAINING)} if the file is a copy of it."
            )
        if format_of(self.dataset_file) is None:
            raise ValueError(f"dataset_file is {self.dataset_file!r}: it must end in {' or '.join(FILE_FORMATS)}.")
