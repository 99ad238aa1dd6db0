"""Rows of a local file, or of a data set on the Hub at its pinned commit; nothing else is ever loaded instead."""

from pathlib import Path

from datasets import Dataset, load_dataset
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError

from .names import FILE_FORMATS
from .sources import Source

# What files on the Hub may also be.
FORMATS = FILE_FORMATS | {".csv": "csv"}


class GatedError(ValueError):
    """A data set whose terms have to be accepted on the Hub first."""


def load_file(name: str, path: str) -> Dataset:
    """The rows of a local file that setting `name` names."""
    if not Path(path).is_file():
        raise ValueError(f"{name} is {path!r}: there is no such file.")
    return load_dataset(FORMATS[Path(path).suffix], data_files=path, split="train")


def load_hub(name: str, source: Source) -> Dataset:
    """The rows of a data set on the Hub that setting `name` names, and as many as it should have.

    `GatedError` where it has terms that were not accepted, `ValueError` where it does not load or has other rows.
    """
    try:
        if source.file is not None:
            path = hf_hub_download(source.hub_id, source.file, repo_type="dataset", revision=source.revision)
            rows = load_file(name, path)
        else:
            rows = load_dataset(source.hub_id, source.config, revision=source.revision, split=source.split)
    except GatedRepoError as error:
        raise GatedError(
            f"{name}, which is gated: accept the terms of {source.hub_id} on the Hub, and log in with a token of yours."
        ) from error
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name}, which does not load: {reason}") from error
    if source.rows is not None and len(rows) != source.rows:
        raise ValueError(
            f"{name}: {source.hub_id} at {source.revision} has {len(rows)} rows where {source.rows} were expected: "
            "load it again, and if it is the same, name a local file of it (dataset_file, decontaminate_against)."
        )
    return rows
