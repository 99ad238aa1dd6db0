"""Models by name: location of their files, loading, fingerprints of weights, and folders for results."""

import hashlib
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from httpx import TransportError
from huggingface_hub import snapshot_download, try_to_load_from_cache
from jinja2 import TemplateError
from peft import PeftConfig, PeftModel
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..registry import nearest
from ..runs import files
from ..runs.folder import OF_WEIGHTS, RUNS, WEIGHTS, RunFolder, run_of
from ..runs.processes import local_rank
from ..runs.trained import read_recipe
from ..runs.weights import ADAPTER_CONFIG, MODEL_CONFIG, deciding, has_adapter, has_tokenizer
from ..tasks.cold_start import cache_dir
from ..tasks.registry import TASKS, find
from .adapters import unwrapped
from .config import DTYPES, CheckedModelConfig
from .known import KNOWN

RESULTS = Path("evaluations")
# Files that transformers and vLLM load. Some repositories hold their weights a second time in another form.
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
ORIGINALS = ["original/*", "consolidated*"]


def resolve(name: str | None, seed: int = 0, setting: str = "model") -> str:
    """Return the Hub id or local folder of a model by name. The first call for a task's own model trains the model.

    All processes of a run may call this function at once. Adapter folders are returned unchanged, see `base_of`.

    Args:
        name: Hub id, local folder, or a task's name.
        seed: seed of a task's own model.
        setting: setting that gave the name, for error messages.

    Raises:
        ValueError: there is no name, no such folder, no such task, or the task has no model of its own.
    """
    if not name:
        own = [known for known, task in TASKS.items() if task.model is not None]
        raise ValueError(f"{setting} is missing: set it to a Hub id, a folder or {' or '.join(own)}.")
    task = find(name, setting)
    if task is None:
        refuse_missing(name, setting)
        return name
    if task.model is None:
        raise ValueError(f"{setting} is {name!r}, a task without a model of its own: name a Hub id or a folder.")
    return str(task.model(seed))


def refuse_missing(name: str, setting: str) -> None:
    """Refuse a path that does not exist, for which transformers would ask the Hub several times.

    Raises:
        ValueError: there is no such path, it is no folder of a model, or its name is not UTF-8.
    """
    files.refuse_bytes(setting, name)
    path = Path(name)
    is_path = name.count("/") > 1 or name.split("/")[0] in ("", ".", "..", "~", RUNS.name, RESULTS.name)
    if is_path and not path.exists():
        beside = map(str, path.parent.iterdir()) if path.parent.is_dir() else ()
        question = nearest(str(path), beside)
        raise ValueError(f"{setting} is {name!r}, but there is no such folder: correct it.{question}")
    if path.is_file():
        raise ValueError(f"{setting} is {name!r}, which is a file: name the folder of a model.")
    if path.is_dir() and not (path / MODEL_CONFIG).is_file() and not has_adapter(name):
        if RunFolder(path).recipe.is_file():
            raise ValueError(f"{setting} is {name!r}, a run without a final model: name one of its checkpoints.")
        raise ValueError(f"{setting} is {name!r}, a folder without {MODEL_CONFIG}: name the folder of a model.")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def base_of(path: str, revision: str | None) -> tuple[str, str | None]:
    """Return (model, revision) of an adapter's base, or the arguments if the model is not an adapter."""
    if not has_adapter(path):
        return path, revision
    try:
        config = PeftConfig.from_pretrained(path)
    except Exception as error:
        raise ValueError(
            f"{Path(path) / ADAPTER_CONFIG}: PEFT cannot read this adapter: {first_line(error)}"
        ) from error
    if not config.base_model_name_or_path:
        raise ValueError(f"{Path(path) / ADAPTER_CONFIG} names no base_model_name_or_path: add the adapter's base.")
    return config.base_model_name_or_path, config.revision


def _load(auto: Any, subject: str, path: str, revision: str | None, **options: Any) -> Any:
    """Load with an auto class of transformers, and turn errors into a `ValueError` that begins with `subject`."""
    try:
        return auto.from_pretrained(path, revision=revision, **options)
    except Exception as error:  # a damaged file raises what its format's library likes
        raise ValueError(f"{subject} does not load{_at(path, revision)}: {first_line(error)}") from error


def _at(path: str, revision: str | None) -> str:
    """Return words for the revision of an id on the Hub, which may be that of another model; empty for the newest."""
    return f" at its revision {revision}" if revision not in (None, "main") and not Path(path).is_dir() else ""


def load_tokenizer(path: str, revision: str | None = None, setting: str = "model") -> PreTrainedTokenizerBase:
    """Load a model's tokenizer with padding on the left. An adapter without a tokenizer has the tokenizer of its base.

    Args:
        path: model as `resolve` returns it.
        setting: setting that named the model, for error messages.
    """
    base, revision = base_of(path, revision)
    with_tokenizer = path if has_tokenizer(path) else base
    subject = f"{setting} is {path!r}, whose tokenizer"
    return _load(AutoTokenizer, subject, with_tokenizer, revision, padding_side="left")


def end_ids(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> list[int]:
    """Return the tokens that end a response: the EOS tokens that a model's files declare, as TRL takes them to train.

    Training, evaluation and analysis share this definition. A base Qwen3 declares `<|endoftext|>` alone, although
    its chat template writes `<|im_end|>`; a post-trained one declares both.
    """
    named = generation.eos_token_id
    declared = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id}
    return sorted(declared - {None})


def load_generation_config(path: str, revision: str | None = None) -> GenerationConfig:
    """Load a model's generation configuration, made of its configuration if it has none, as transformers does."""
    base, revision = base_of(path, revision)
    try:
        return GenerationConfig.from_pretrained(base, revision=revision)
    except OSError:
        return GenerationConfig.from_model_config(load_config(path, revision))


def check_ends(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Raise `ValueError` if the tokenizer of the model to train has no EOS token, or reads no text."""
    if not tokenizer("1 a")["input_ids"]:  # transformers makes an empty one if the files are missing
        raise ValueError(
            f"model_name_or_path is {path!r}, whose tokenizer has no tokens for text: add its files, such as "
            "tokenizer.json, to the folder."
        )
    if tokenizer.eos_token is None:
        raise ValueError(
            f"model_name_or_path is {path!r}, whose tokenizer has no EOS token, so that no response would end: set "
            "eos_token in its tokenizer_config.json."
        )


def rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict], subject: str, **kwargs: Any) -> str:
    """Return the text of a conversation in the model's chat template, with the opening of an answer.

    Args:
        subject: beginning of messages, which names the setting and the model.
        kwargs: the recipe's `chat_template_kwargs`.

    Raises:
        ValueError: the tokenizer has no chat template, or the template refuses the conversation.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{subject}, whose tokenizer has no chat template, but the prompts are messages: bring prompts as text, "
            "with a prompt_template, or a tokenizer with a chat template."
        )
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **kwargs)
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise ValueError(
            f"{subject}, whose chat template refuses a prompt with the roles {roles}: "
            f"{str(error).strip().splitlines()[0]}."
        ) from error
    assert isinstance(text, str)  # because tokenize is False
    return text


def as_plain_text(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a rendered conversation without the BOS token, which the tokenizer adds to every text."""
    start = tokenizer.bos_token
    adds = start is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(start) if adds else text


def check_conversations(
    tokenizer: PreTrainedTokenizerBase, prompts: Iterable[str | list], path: str, **kwargs: Any
) -> None:
    """Refuse prompts that the chat template refuses. One prompt of each sequence of roles is rendered."""
    firsts = {tuple(m["role"] for m in prompt): prompt for prompt in prompts if not isinstance(prompt, str)}
    for messages in firsts.values():
        rendered(tokenizer, messages, f"model_name_or_path is {path!r}", **kwargs)


def refuse_adapter(path: str) -> None:
    """Refuse a local LoRA adapter as the model to train.

    Raises:
        ValueError: the path holds an adapter.
    """
    if has_adapter(path):
        raise ValueError(
            f"model_name_or_path is {path!r}, which holds a LoRA adapter and no model: make one of it with "
            f"entropy-grpo merge {path} --output FOLDER, or name its base, {base_of(path, None)[0]}."
        )


def count_tokens(tokenizer: PreTrainedTokenizerBase, prompts: list, path: str, **kwargs: Any) -> list[int]:
    """Return the number of tokens of each prompt, a text or a list of messages, as the trainer will encode it.

    Args:
        path: the model, for error messages.
        kwargs: the recipe's `chat_template_kwargs`.
    """
    if isinstance(prompts[0], str):
        return [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    texts = [rendered(tokenizer, prompt, f"model_name_or_path is {path!r}", **kwargs) for prompt in prompts]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def load_config(path: str, revision: str | None = None) -> PreTrainedConfig:
    """Load the part of a model's configuration that describes its text model."""
    config = _load(AutoConfig, f"model is {path!r}, which", *base_of(path, revision))
    take_positions(config, path)
    return config.get_text_config()


def take_positions(config: PreTrainedConfig, path: str | Path) -> None:
    """Set the positions of an adapter's base to those of its run, whose recipe may have raised them.

    The adapter itself names the base with its own positions, because the raised copy is a folder of one machine.
    """
    run = run_of(Path(path)) if has_adapter(path) else None
    positions = None if run is None else read_recipe(run).get("max_position_embeddings")
    if positions is not None:
        config.get_text_config().max_position_embeddings = positions


def positions_of(config: PreTrainedConfig) -> int | None:
    """Return the number of positions of a model, or None if there is no limit (ALiBi, state-space models)."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def read_local_config(name: str, revision: str | None = None, path: str | None = None) -> PreTrainedConfig:
    """Read the configuration of a model without a download.

    Args:
        name: Hub id, local folder, or a task's name.
        revision: commit of the Hub id, for the Hub's local cache.
        path: `config.json`, or its folder, to read instead.

    Raises:
        ValueError: no local source has the configuration, or transformers cannot read it.
    """
    file = Path(path or name)
    if path is None and not file.is_dir():
        if name in KNOWN:
            return AutoConfig.for_model(**KNOWN[name].config)
        task = find(name, "model_name_or_path")
        if task is not None and task.model_config is not None:
            return task.model_config()
        cached = try_to_load_from_cache(name, MODEL_CONFIG, revision=revision) if name.count("/") <= 1 else None
        if not isinstance(cached, str):
            raise ValueError(
                f"model_name_or_path is {name!r}, which is no local folder, no model of the recipes, and not in the "
                "Hub's local cache: give its config.json, or the folder that holds it, with --model-config PATH."
            )
        file = Path(cached)
    file = file / MODEL_CONFIG if file.is_dir() else file
    try:
        return AutoConfig.from_pretrained(file, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model_name_or_path: transformers cannot read {file}: {reason}") from error


def fetch_config(name: str, revision: str | None) -> None:
    """Download the configuration of a model that only the Hub has, so that `read_local_config` finds it.

    Raises:
        ValueError: there is no such folder or task, or the configuration cannot be downloaded.
    """
    if Path(name).is_dir() or name in KNOWN or find(name, "model_name_or_path") is not None:
        return
    refuse_missing(name, "model_name_or_path")
    _load(AutoConfig, f"model_name_or_path is {name!r}, which", name, revision)


def count_parameters(path: str, revision: str | None) -> int:
    """Return the number of a causal model's parameters, from its configuration; 0 for models of another kind."""
    config = load_config(path, revision)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return 0
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def load_model(
    path: str, revision: str | None, dtype: str
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load a model onto this process's device, with its adapter if it has one, and its tokenizer."""
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype is {dtype!r}: choose auto, {', '.join(DTYPES)}.")
    tokenizer = load_tokenizer(path, revision)
    model = _load(AutoModelForCausalLM, f"model is {path!r}, which", *base_of(path, revision), dtype=dtype)
    take_positions(model.config, path)
    if has_adapter(path):
        model = _adapted(model, path)
    if torch.cuda.is_available():
        model = model.to(f"cuda:{local_rank()}")
    return model.eval(), tokenizer


def _adapted(model: PreTrainedModel, path: str) -> PeftModel:
    try:
        return PeftModel.from_pretrained(model, path)
    except Exception as error:
        raise ValueError(f"model is {path!r}, an adapter that does not load: {first_line(error)}") from error


def resolve_snapshot(model_path: str, model_config: CheckedModelConfig) -> str:
    """The folder of a model's files; for a Hub id, the snapshot of its revision.

    TRL gives vLLM the model's name without a revision. With a Hub id, vLLM would load another commit than the trained
    one, or fail offline.

    Raises:
        ValueError: the model cannot be downloaded.
    """
    if Path(model_path).is_dir():
        refuse_adapter(model_path)
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
            except (ConnectionError, TransportError):
                # This machine is offline, and the cache may lack the list of files.
                return fetch(local_files_only=True)
        except (OSError, TransportError) as error:
            reason = str(error).strip().splitlines()[0]
            at = _at(model_path, model_config.model_revision)
            raise ValueError(f"model_name_or_path is {model_path!r}, which does not load{at}: {reason}") from error


def unread_revision(model_path: str, model_config: CheckedModelConfig) -> str | None:
    """Return a sentence about a revision that is not read, because a local folder has none; None otherwise.

    A recipe often has the revision from its parent, so that it is no mistake.
    """
    revision = model_config.model_revision
    if revision in (None, "main") or not Path(model_path).is_dir():
        return None
    return f"model_revision is {revision!r}, which is not read, because the model is the folder {model_path}."


def restore_name(model: torch.nn.Module, name: str, revision: str | None) -> None:
    """Give a model that was loaded from a snapshot its Hub id as a name, for its cards and adapters."""
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            config.base_model_name_or_path, config.revision = name, revision
    inner = unwrapped(model)
    inner.name_or_path = inner.config._name_or_path = name


def raise_positions(model_path: str, positions: int) -> str:
    """Make a folder that links a model's files and holds its configuration with `max_position_embeddings` raised.

    vLLM builds its table of rotations from the configuration file and refuses longer responses, and checkpoints copy
    the configuration. An argument to transformers would reach neither. The rotations of existing positions do not
    change.

    Returns:
        Path of the folder.

    Raises:
        ValueError: the model has more positions than `positions`, or its rotations depend on the number of positions.
    """
    with PartialState().local_main_process_first():
        source = Path(model_path)
        text = (source / MODEL_CONFIG).read_text(encoding="utf-8")
        config = json.loads(text)
        # A model that also reads images describes its text model in a part of its configuration.
        part = config if "max_position_embeddings" in config else config.get("text_config", {})
        has = part.get("max_position_embeddings")
        if has is None:
            raise ValueError(
                f"max_position_embeddings is {positions}, but {model_path} names no number of positions: leave it out."
            )
        rope = part.get("rope_parameters") or part.get("rope_scaling") or {}
        if positions < has or rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ValueError(
                f"max_position_embeddings is {positions}, but {model_path} has {has} positions"
                + (
                    ": leave it out."
                    if positions <= has
                    else " and scales its rotations by this number: leave it out."
                )
            )
        digest = hashlib.sha256(f"{source.resolve()}\0{positions}\0{text}".encode()).hexdigest()[:12]
        folder = cache_dir() / f"{source.resolve().name}-{positions}-positions-{digest}"
        if not (folder / MODEL_CONFIG).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            for file in source.iterdir():
                link = folder / file.name
                if file.name != MODEL_CONFIG and file.is_file() and not link.is_symlink():
                    link.symlink_to(file.resolve())
            part["max_position_embeddings"] = positions
            files.write_json(folder / MODEL_CONFIG, config)
    return str(folder)


def model_init_kwargs(model_config: CheckedModelConfig) -> dict[str, Any]:
    """Return the keyword arguments that TRL passes to `from_pretrained`."""
    chosen = {
        "revision": model_config.model_revision,
        "dtype": model_config.dtype,
        "attn_implementation": model_config.attn_implementation,
    }
    return {key: value for key, value in chosen.items() if value is not None}


def fingerprint(path: str) -> str | None:
    """Return a digest of all files that decide a local model's responses, or None for a Hub id.

    The digest covers the content of weights, configuration and tokenizer, and for an adapter also that of a local
    base.
    """
    if not Path(path).is_dir():
        return None
    digest = hashlib.sha256()
    for file in deciding(Path(path)):
        with file.open("rb") as content:
            digest.update(f"{file.name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\0".encode())
    if has_adapter(path):
        digest.update(str(fingerprint(base_of(path, None)[0])).encode())
    return digest.hexdigest()[:16]


def output_folder(name: str) -> Path:
    """Return the default folder for results: in the run's folder for a run, its checkpoints and its kept weights."""
    path = Path(name)
    if (run := run_of(path)) is not None:
        model, parent = path.resolve(), path.resolve().parent.name
        of_weights = f"{OF_WEIGHTS * (parent == WEIGHTS)}{model.name}"
        return run.benchmarks / ("final" if run.path == path else of_weights)
    return RESULTS / name.strip("/.").replace("/", "--").replace(":", "--")
