"""Rows of a local file, or of a data set on the Hub at its pinned commit, without any fallback to other data."""

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
    """Error for a data set whose terms must first be accepted on the Hub."""


def load_file(name: str, path: str) -> Dataset:
    """The rows of a local file. `name` is the setting that names the file, for the error message."""
    if not Path(path).is_file():
        raise ValueError(f"{name} is {path!r}: there is no such file.")
    return load_dataset(FORMATS[Path(path).suffix], data_files=path, split="train")


def download(name: str, hub_id: str, file: str, revision: str | None) -> str:
    """The local path of a file of a data set on the Hub, which is downloaded once.

    Args:
        name: beginning of error messages, with the setting that names the data set.
    """
    with _explain_errors(name, hub_id):
        return hf_hub_download(hub_id, file, repo_type="dataset", revision=revision)


def load_hub(name: str, source: Source) -> Dataset:
    """The rows of a data set on the Hub, whose number is checked.

    Args:
        name: beginning of error messages, with the setting that names the data set.

    Raises:
        GatedError: the terms of the data set were not accepted.
        ValueError: the data set does not load, or the number of rows is not the expected one.
    """
    if source.file is not None:
        rows = load_file(name, download(name, source.hub_id, source.file, source.revision))
    else:
        with _explain_errors(name, source.hub_id):
            rows = load_dataset(source.hub_id, source.config, revision=source.revision, split=source.split)
    if source.rows is not None and len(rows) != source.rows:
        raise ValueError(
            f"{name}: {source.hub_id} at {source.revision} has {len(rows)} rows, but {source.rows} were expected: "
            "load it again, or name a local file of it."
        )
    return rows


@contextmanager
def _explain_errors(name: str, hub_id: str) -> Iterator[None]:
    """Turn errors of the Hub's client into one sentence that begins with `name`."""
    try:
        yield
    except GatedRepoError as error:
        raise GatedError(
            f"{name}, a gated data set: accept the terms of {hub_id} on the Hub, and set HF_TOKEN."
        ) from error
    except OSError as error:
        raise ValueError(f"{name}, which does not load: {str(error).strip().splitlines()[0]}") from error
