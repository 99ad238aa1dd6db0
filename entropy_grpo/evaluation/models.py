"""Which model is evaluated: what its name stands for, what tells its weights apart, and where its results go."""

import hashlib
import os
from pathlib import Path

from ..embedded import cold_start, number_walk
from ..names import EMBEDDED
from ..records import RunFolder

ADAPTER = "adapter_config.json"
RESULTS = Path("evaluations")
# The header of a weights file and its last tensors: enough to tell two checkpoints apart.
READ_BYTES = 2**16


def local_path(name: str) -> str:
    """The folder of an embedded model, made on first use; other names pass through."""
    if not name.startswith(EMBEDDED):
        return name
    if name != EMBEDDED + number_walk.NAME:
        raise ValueError(f"model is {name!r}: choose {EMBEDDED}{number_walk.NAME}.")
    return str(cold_start.ensure(0))


def has_adapter(path: str) -> bool:
    """Whether a local model is a LoRA adapter beside a base model."""
    return (Path(path) / ADAPTER).is_file()


def fingerprint(path: str) -> str | None:
    """A digest of a local model's weight files, of their beginnings and ends; None for an id on the Hub."""
    if not Path(path).is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(Path(path).glob("*.safetensors")):
        with file.open("rb") as weights:
            digest.update(weights.read(READ_BYTES))
            weights.seek(-min(READ_BYTES, file.stat().st_size), os.SEEK_END)
            digest.update(weights.read())
    return digest.hexdigest()[:16]


def output_folder(name: str) -> Path:
    """Where results go if nobody says so: into the run folder of a run's model or checkpoint, else `evaluations/`."""
    path = Path(name)
    if RunFolder(path).recipe.exists():
        return RunFolder(path).benchmarks / "final"
    if RunFolder(path.parent).recipe.exists():
        return RunFolder(path.parent).benchmarks / path.name
    return RESULTS / name.strip("/.").replace("/", "--").replace(":", "--")
