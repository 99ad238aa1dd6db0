"""Rows of a local file, or of a data set on the Hub at its pinned commit; nothing else is ever loaded instead."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset, load_dataset
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError

from .sources import FILE_FORMATS, Source

# Formats of files on the Hub.
FORMATS = FILE_FORMATS | {".csv": "csv"}


class GatedError(ValueError):
    """A data set whose terms have to be accepted on the Hub first."""


def load_file(name: str, path: str) -> Dataset:
    """The rows of a local file that setting `name` names."""
    if not Path(path).is_file():
        raise ValueError(f"{name} is {path!r}: there is no such file.")
    return load_dataset(FORMATS[Path(path).suffix], data_files=path, split="train")


def download(name: str, hub_id: str, file: str, revision: str | None) -> str:
    """The path of a file of a data set on the Hub that setting `name` names, downloaded once."""
    with _explain_errors(name, hub_id):
        return hf_hub_download(hub_id, file, repo_type="dataset", revision=revision)


def load_hub(name: str, source: Source) -> Dataset:
    """The rows of a data set on the Hub that setting `name` names, checked for their number.

    Raises:
        GatedError: the data set has terms that were not accepted.
        ValueError: the data set does not load, or has another number of rows.
    """
    if source.file is not None:
        rows = load_file(name, download(name, source.hub_id, source.file, source.revision))
    else:
        with _explain_errors(name, source.hub_id):
            rows = load_dataset(source.hub_id, source.config, revision=source.revision, split=source.split)
    if source.rows is not None and len(rows) != source.rows:
        raise ValueError(
            f"{name}: {source.hub_id} at {source.revision} has {len(rows)} rows where {source.rows} were expected: "
            "load it again, and if it is the same, name a local file of it instead."
        )
    return rows


@contextmanager
def _explain_errors(name: str, hub_id: str) -> Iterator[None]:
    """Turn errors of the Hub's client into one sentence that says which setting asked for the data set."""
    try:
        yield
    except GatedRepoError as error:
        raise GatedError(
            f"{name}, which is gated: accept the terms of {hub_id} on the Hub, and set HF_TOKEN."
        ) from error
    except OSError as error:
        raise ValueError(f"{name}, which does not load: {str(error).strip().splitlines()[0]}") from error
