"""Upload of a trained model to the Hub: the files to publish are collected in one folder and uploaded.

The upload has the model, its tokenizer, the card with its plots, and the records behind the card. Optimizer states and
responses are not uploaded, nor is `environment.json`, which names paths on the machine.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from httpx import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..config import recipe
from ..config.recipe import Setting
from ..runs import files, trained, weights
from ..runs.folder import SECRETS, RunFolder
from ..runs.trained import Trained
from .card import write_card

# The folders of an absolute path that follows a space, as in "in /data/held_out.jsonl".
ABSOLUTE = re.compile(r"(?<=\s)~?/(?:.*/)?(?=[^\s/])")


def _records(model: Trained) -> list[Path]:
    run = model.run
    of_the_end = [run.metrics, run.evaluation] if model.is_last else []
    return [path for path in (run.recipe, run.data, *of_the_end) if path.exists()]


def lay_out(folder: Path, repository: str, place: Path) -> None:
    """Fill an empty folder with the files to upload: links to files and records, and a new card with its plots.

    Raises:
        ValueError: the folder holds no model that a reader could load, or a record holds a secret.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"--push is {repository!r}, which is no id of the Hub: name OWNER/NAME.") from error
    model = trained.read(folder)
    parts = weights.files(folder)
    if not parts:
        sharded = "only shards of a model: merge them, as its card says"
        contents = sharded if model.weights == weights.SHARDED else "no weights: name a folder with weights"
        raise ValueError(f"--push is {repository!r}, but {folder} holds {contents}.")
    for secret in SECRETS:
        if model.recipe.get(secret):
            raise ValueError(f"--push is {repository!r}, but {model.run.recipe} holds {secret}, a secret: remove it.")
    for file in parts:
        if file.name != weights.ADAPTER_CONFIG:
            (place / file.name).symlink_to(file.resolve())
    for file in [*(file for file in parts if file.name == weights.ADAPTER_CONFIG), *_records(model)]:
        _publish(file, place / file.name)
    if RunFolder(folder).plots.is_dir():
        shutil.copytree(RunFolder(folder).plots, RunFolder(place).plots, ignore=lambda _, names: _not_png(names))
    write_card(folder, repository=repository, output=place)


def _publish(record: Path, target: Path) -> None:
    """Link a record, or write a copy without folders if it names folders of this machine."""
    is_recipe = record.suffix == ".yaml"
    whole = trained.read_recipe(RunFolder(record.parent)) if is_recipe else {}
    whole = files.read_json(record) if record.suffix == ".json" else whole
    public = without_folders(whole)
    if public == whole:
        target.symlink_to(record.resolve())
    elif is_recipe:
        files.write_text(target, recipe.dump({name: Setting(value, str(record)) for name, value in public.items()}))
    else:
        files.write_json(target, public)


def without_folders(value: Any) -> Any:
    """Return the value of a record, with absolute paths in its texts cut to their last part."""
    if isinstance(value, dict):
        return {without_folders(key): without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_folders(one) for one in value]
    if not isinstance(value, str):
        return value
    # A text that begins like a path is one, also with a line break in it.
    return (Path(value).name or value) if value.startswith(("/", "~/")) else ABSOLUTE.sub("", value)


def _not_png(names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".png")]


def described(place: Path, repository: str) -> str:
    """Describe an upload: the repository, the files with their sizes, and the card."""
    laid_out = sorted(path for path in place.rglob("*") if path.is_file())
    width = max(len(f"{path.stat().st_size:,}") for path in laid_out)
    lines = [f"{path.stat().st_size:>{width},} bytes  {path.relative_to(place)}" for path in laid_out]
    card = RunFolder(place).card.read_text(encoding="utf-8")
    return "\n".join([f"would push to {repository}:", *lines, "", card])


def push(place: Path, repository: str) -> str:
    """Upload a folder in one commit, create the repository if needed, and return the commit's URL."""
    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=place, commit_message="Model and card")
    except (OSError, HTTPError) as error:  # no token, no network, no permission
        raise ValueError(f"--push is {repository!r}, but the upload failed: {error}") from error
    return commit.commit_url


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder without a trace of a run or a model, whose README.md a card would replace.

    Raises:
        ValueError: the message names the folder.
    """
    model = trained.read(folder)
    if model.weights == weights.NONE and not any((model.recipe, model.environment, model.data, model.rows)):
        raise ValueError(f"{folder} holds neither a run nor the weights of a model: name runs/NAME or a checkpoint.")


def main(folder: str, repository: str | None, only_show: bool) -> None:
    """Run `entropy-grpo card`: write the card into the folder, publish it with its model, or only show the result."""
    if repository is None and not only_show:
        refuse_foreign(Path(folder))
        print(write_card(folder))
        return
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if repository is None:
            print(write_card(folder, output=place).read_text(encoding="utf-8"))
            return
        lay_out(Path(folder), repository, place)
        print(described(place, repository) if only_show else push(place, repository))
