"""Problems to train on and problems held out, as data sets with the columns `prompt` and `solution`.

A source is `embedded:number_walk`, a local `.jsonl` or `.parquet` file, or a data set's id on the Hub.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Value, load_dataset

from .config import RunConfig
from .embedded import number_walk
from .names import EMBEDDED, FILE_FORMATS

COLUMNS = ("prompt", "solution")


@dataclass(frozen=True)
class Problems:
    """Disjoint sets of problems; `dev` and `test` are None where none were asked for."""

    train: Dataset
    dev: Dataset | None
    test: Dataset | None


def load_problems(config: RunConfig, seed: int) -> Problems:
    """Load, check and split; `ValueError` naming the data set, what is wrong with it and what to do."""
    if config.dataset_name.startswith(EMBEDDED):
        return _embedded(config, seed)
    suffix = Path(config.dataset_name).suffix
    if suffix in FILE_FORMATS:
        if not Path(config.dataset_name).is_file():
            raise ValueError(f"dataset_name is {config.dataset_name!r}: there is no such file.")
        rows = load_dataset(FILE_FORMATS[suffix], data_files=config.dataset_name, split="train")
    else:
        rows = _from_hub(config)
    missing = [column for column in COLUMNS if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"dataset_name is {config.dataset_name!r}, whose columns are {', '.join(rows.column_names)}: "
            f"rename its columns so that it has {' and '.join(missing)}."
        )
    held_out = config.num_dev_problems + config.num_test_problems
    if held_out >= len(rows):
        raise ValueError(
            f"num_dev_problems + num_test_problems is {held_out} but {config.dataset_name} has {len(rows)} problems: "
            "hold out fewer."
        )
    if not rows.features["solution"].dtype.endswith("string"):
        # Answers that are plain numbers are read as such by JSON and parquet; graders compare text.
        rows = rows.cast_column("solution", Value("string"))
    # Held-out problems are the same for every seed, so that runs can be compared.
    rows = rows.shuffle(seed=0)
    dev, test = rows.select(range(config.num_dev_problems)), rows.select(range(config.num_dev_problems, held_out))
    return Problems(rows.select(range(held_out, len(rows))), dev if len(dev) else None, test if len(test) else None)


def _from_hub(config: RunConfig) -> Dataset:
    try:
        return load_dataset(
            config.dataset_name,
            config.dataset_config,
            revision=config.dataset_revision,
            split=config.dataset_train_split,
        )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"dataset_name is {config.dataset_name!r}, which does not load: {reason}") from error


def _embedded(config: RunConfig, seed: int) -> Problems:
    if config.dataset_name != EMBEDDED + number_walk.NAME:
        raise ValueError(f"dataset_name is {config.dataset_name!r}: choose {EMBEDDED}{number_walk.NAME}.")

    def make(split: str, count: int) -> Dataset | None:
        problems = number_walk.problems(split, seed if split == "train" else 0)
        rows = [{"prompt": p.prompt, "solution": str(p.target)} for p in itertools.islice(problems, count)]
        return Dataset.from_list(rows) if rows else None

    train = make("train", config.num_train_problems)
    if train is None:
        raise ValueError("num_train_problems is 0: make at least one generation batch of problems.")
    return Problems(train, make("dev", config.num_dev_problems), make("test", config.num_test_problems))


def check_size(train: Dataset, problems_per_rollout: int) -> None:
    """Refuse a data set too small for one rollout: TRL would train for zero steps, without an error."""
    if len(train) < problems_per_rollout:
        raise ValueError(
            f"the training set has {len(train)} problems but one rollout takes {problems_per_rollout} "
            "(generation_batch_size / num_generations): lower generation_batch_size, per_device_train_batch_size or "
            "gradient_accumulation_steps, or bring more problems."
        )
