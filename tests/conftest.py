import os
import subprocess
import sys

# Before anything imports torch: no hub, no telemetry, and two threads whatever the machine, one for each of several
# workers.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

from pathlib import Path

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

from entropy_grpo.tasks.cold_start import build_tokenizer

REPOSITORY = Path(__file__).parent.parent
ACCELERATE = Path(sys.executable).parent / "accelerate"
DEMO = "recipes/demo_cpu.yaml"
TINY_DEMO = "--max_steps 2 --num_dev_problems 4 --num_test_problems 8 --eval_steps 2 --disable_tqdm true".split()


def save_tiny_model(
    path: Path, seed=0, head_dim=8, config_class=Qwen3Config, model_class=Qwen3ForCausalLM, tied=False
) -> str:
    """Save a random model with the embedded task's tokenizer: odd sizes, weights that give uneven entropies."""
    tokenizer = build_tokenizer()
    set_seed(seed)
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=head_dim,
        max_position_embeddings=128,
        initializer_range=0.35,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model_class(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def pytest_addoption(parser):
    parser.addoption("--every-recipe", action="store_true", help="take two steps of every recipe, not of each kind")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def accelerate_launch(*words, cwd=REPOSITORY, env=None):
    return subprocess.run(
        [str(ACCELERATE), "launch", *map(str, words)],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="session")
def demo_run(tiny_model, tmp_path_factory):
    """Folder, for reading, and output of a two-step run of the demo recipe, launched literally, on the tiny model."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    result = accelerate_launch(DEMO, *TINY_DEMO, "--model_name_or_path", tiny_model, "--output_dir", folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, result
