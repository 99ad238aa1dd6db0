"""Which model is evaluated: what its name stands for, what tells its weights apart, and where its results go."""

import hashlib
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from httpx import TransportError
from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..runs import files
from ..runs.folder import RunFolder
from ..tasks import cold_start, number_walk
from ..tasks.task import EMBEDDED
from .config import CheckedModelConfig

ADAPTER = "adapter_config.json"
RESULTS = Path("evaluations")
# The header of a weights file and its last tensors: enough to tell two checkpoints apart.
READ_BYTES = 2**16
# What transformers and vLLM load; some repositories hold their weights a second time in another form.
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
ORIGINALS = ["original/*", "consolidated*"]


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


def load_embedded(model_name_or_path: str | None, seed: int) -> str:
    """The path of an embedded model, made on first use; other names pass through."""
    if not model_name_or_path:
        raise ValueError(f"model_name_or_path is missing: name a Hub id, a folder or {EMBEDDED}{number_walk.NAME}.")
    if not model_name_or_path.startswith(EMBEDDED):
        return model_name_or_path
    if model_name_or_path != EMBEDDED + number_walk.NAME:
        raise ValueError(f"model_name_or_path is {model_name_or_path!r}: choose {EMBEDDED}{number_walk.NAME}.")
    state = PartialState()
    with state.main_process_first():
        if state.is_main_process and not cold_start.checkpoint_path(seed).exists():
            print(f"cold start for seed {seed}: training it once, a few minutes", flush=True)
        return str(cold_start.ensure(seed))


def load_tokenizer(model_path: str, model_config: CheckedModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the left; it must know how a response ends."""
    revision = model_config.model_revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path, revision=revision, padding_side="left")
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model_name_or_path is {model_path!r}, whose tokenizer does not load: {reason}") from error
    if tokenizer.eos_token is None:
        raise ValueError(
            f"model_name_or_path is {model_path!r}, whose tokenizer has no EOS token: no response would ever end. Set "
            "eos_token in its tokenizer_config.json."
        )
    return tokenizer


def resolve_snapshot(model_path: str, model_config: CheckedModelConfig) -> str:
    """The folder of a model's files, for an id on the Hub that of the snapshot of its revision.

    TRL gives vLLM the model's name without a revision: by the name alone vLLM would load another commit than the one
    that is trained, or fail offline.
    """
    if Path(model_path).is_dir():
        return model_path
    with PartialState().local_main_process_first():
        fetch = partial(
            snapshot_download,
            model_path,
            revision=model_config.model_revision,
            allow_patterns=MODEL_FILES,
            ignore_patterns=ORIGINALS,
        )
        try:
            try:
                return fetch()
            except (
                ConnectionError,
                TransportError,
            ):  # offline; the cache may lack its list of files
                return fetch(local_files_only=True)
        except (OSError, TransportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"model_name_or_path is {model_path!r}, which does not load: {reason}") from error


def restore_name(model: PreTrainedModel | PeftModel, name: str, revision: str | None) -> None:
    """Name a model that was loaded from a snapshot by its id on the Hub, for its cards and adapters."""
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            config.base_model_name_or_path, config.revision = name, revision
        model = model.get_base_model()
    model.name_or_path = model.config._name_or_path = name


def raise_positions(model_path: str, model_config: CheckedModelConfig, positions: int) -> str:
    """A folder with the model's files, as links, and its configuration with `max_position_embeddings` raised.

    vLLM makes its table of rotations from that configuration and refuses longer responses, and what a run saves keeps
    it: an argument of transformers alone would do neither. The rotations of the first positions stay what they are.
    """
    with PartialState().local_main_process_first():
        source = Path(model_path)
        text = (source / "config.json").read_text(encoding="utf-8")
        config = json.loads(text)
        has = config["max_position_embeddings"]
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if positions < has or rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ValueError(
                f"max_position_embeddings is {positions}, but {model_path} has {has} positions"
                + (": leave it out." if positions <= has else " and scales its rotations by them: leave it out.")
            )
        digest = hashlib.sha256(f"{source.resolve()}\0{positions}\0{text}".encode()).hexdigest()[:12]
        folder = cold_start.cache_dir() / f"{source.resolve().name}-{positions}-positions-{digest}"
        if not (folder / "config.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            for file in source.iterdir():
                link = folder / file.name
                if file.name != "config.json" and file.is_file() and not link.is_symlink():
                    link.symlink_to(file.resolve())
            files.write_json(folder / "config.json", config | {"max_position_embeddings": positions})
    return str(folder)


def model_init_kwargs(model_config: CheckedModelConfig) -> dict[str, Any]:
    """What TRL hands to `from_pretrained`."""
    chosen = {
        "revision": model_config.model_revision,
        "dtype": model_config.dtype,
        "attn_implementation": model_config.attn_implementation,
    }
    return {key: value for key, value in chosen.items() if value is not None}
