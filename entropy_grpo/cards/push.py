"""A trained model on the Hub: what of its folders belongs there, laid out in one folder, and uploaded.

That is the model, its tokenizer, the card with its pictures, and the records that the card is written from. Optimizer
states, responses and `environment.json`, which names places on the machine, stay behind.
"""

import shutil
import tempfile
from pathlib import Path

from httpx import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..runs import trained, weights
from ..runs.folder import SECRETS, RunFolder
from ..runs.trained import Trained
from .card import write_card


def _records(model: Trained) -> list[Path]:
    run = model.run
    of_the_end = [run.metrics, run.evaluation] if model.is_last else []
    return [path for path in (run.recipe, run.data, *of_the_end) if path.exists()]


def lay_out(folder: Path, repository: str, place: Path) -> None:
    """Fill an empty folder with what is to be uploaded: large files as links, card and pictures made anew.

    Raises:
        ValueError: there is no model that a reader could load, or a record holds a secret.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"--push {repository}: it is no id of the Hub: name OWNER/NAME.") from error
    model = trained.read(folder)
    files = weights.files(folder)
    if not files:
        pieces = "a model in pieces: make a whole one of them, as its card says"
        held = pieces if model.weights == weights.SHARDED else "no weights"
        raise ValueError(f"--push {repository}: {folder} holds {held}.")
    for secret in SECRETS:
        if model.recipe.get(secret):
            raise ValueError(f"--push {repository}: {model.run.recipe} holds {secret}, a secret: take it out.")
    for file in files + _records(model):
        (place / file.name).symlink_to(file.resolve())
    if RunFolder(folder).plots.is_dir():
        shutil.copytree(RunFolder(folder).plots, RunFolder(place).plots, ignore=lambda _, names: _not_png(names))
    write_card(folder, repository=repository, output=place)


def _not_png(names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".png")]


def described(place: Path, repository: str) -> str:
    """What an upload would do: the repository, the files with their sizes, the card."""
    files = sorted(path for path in place.rglob("*") if path.is_file())
    width = max(len(f"{path.stat().st_size:,}") for path in files)
    lines = [f"{path.stat().st_size:>{width},} bytes  {path.relative_to(place)}" for path in files]
    card = RunFolder(place).card.read_text(encoding="utf-8")
    return "\n".join([f"would push to {repository}:", *lines, "", card])


def push(place: Path, repository: str) -> str:
    """Upload a folder in one commit, into a repository that is made if there is none; returns the commit's address."""
    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=place, commit_message="Model and card")
    except (OSError, HTTPError) as error:  # no token, no network, no permission
        raise ValueError(f"--push {repository}: {error}") from error
    return commit.commit_url


def main(folder: str, repository: str | None, only_show: bool) -> None:
    """`entropy-grpo card`: write the card into the folder, publish it with its model, or show what that would do."""
    if repository is None and not only_show:
        print(write_card(folder))
        return
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if repository is None:
            print(write_card(folder, output=place).read_text(encoding="utf-8"))
            return
        lay_out(Path(folder), repository, place)
        print(described(place, repository) if only_show else push(place, repository))
