"""Rows of a local file, or of a data set on the Hub at its pinned commit, without any fallback to other data."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from datasets import load_dataset
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError

from . import rows
from .rows import Rows
from .sources import Source


class GatedError(ValueError):
    """Error for a data set whose terms must first be accepted on the Hub."""


def download(name: str, hub_id: str, file: str, revision: str | None) -> str:
    """The local path of a file of a data set on the Hub, which is downloaded once.

    Args:
        name: beginning of error messages, with the setting that names the data set.
    """
    with _explain_errors(name, hub_id):
        return hf_hub_download(hub_id, file, repo_type="dataset", revision=revision)


def load_hub(name: str, source: Source) -> Rows:
    """The rows of a data set on the Hub, whose number is checked.

    Args:
        name: beginning of error messages, with the setting that names the data set.

    Raises:
        GatedError: the terms of the data set were not accepted.
        ValueError: the data set does not load, or the number of rows is not the expected one.
    """
    if source.file is not None:
        found = rows.load(name, download(name, source.hub_id, source.file, source.revision))
    else:
        if os.path.exists(source.hub_id):  # `load_dataset` would read it instead
            raise ValueError(f"{name}: {source.hub_id} is a folder here, too: run from another folder, or rename it.")
        with _explain_errors(name, source.hub_id):
            loaded = load_dataset(source.hub_id, source.config, revision=source.revision, split=source.split)
        places = [f"row {number} of {source.hub_id}" for number in range(len(loaded))]
        narrow = rows.narrow_columns(loaded.features.arrow_schema)
        found = Rows(
            loaded.column_names, [rows.with_shortest(row, narrow) for row in loaded] if narrow else loaded, places
        )
    if source.rows is not None and len(found.rows) != source.rows:
        raise ValueError(
            f"{name}: {source.hub_id} at {source.revision} has {len(found.rows)} rows, but {source.rows} were "
            "expected: load it again, or name a local file of it."
        )
    return found


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
