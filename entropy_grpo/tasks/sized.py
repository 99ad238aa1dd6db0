"""A task's own model in another size, `PROVIDER:NAME:SIZE` in `model_name_or_path`.

The problems, the tokenizer and the demonstrations are those of the task. The learning rate of the cold start is
inversely proportional to the width. Without a size, a name means the task's own model of 0.7M parameters.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from . import stories, taught, walk
from .task import Task

# Width and number of layers by number of parameters. Heads have 32 dimensions, as in the task's own model.
SIZES = {"0.3M": (96, 2), "2M": (192, 4), "6M": (256, 7), "21M": (448, 8)}
OWN_WIDTH = 128
# Lessons of the tasks' own models by the task's name.
LESSONS = {lessons.name: lessons for lessons in (walk.LESSONS, stories.COLD_START)}


def lessons_of(lessons: taught.Taught, size: str) -> taught.Taught:
    """The lessons of a task for a model of a size, under a name of their own."""
    rate = lessons.learning_rate * OWN_WIDTH / SIZES[size][0]
    return replace(lessons, name=f"{lessons.name}-{size}", sources=(*lessons.sources, __file__), learning_rate=rate)


def config(tokenizer: Any, size: str) -> Any:
    """The `Qwen3Config` of a size: that of the task's own model with another width and another number of layers."""
    from transformers import Qwen3Config

    width, layers = SIZES[size]
    values = taught.config_for(tokenizer).to_dict()
    del values["layer_types"]  # derived from the number of layers
    heads = width // values["head_dim"]
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    return Qwen3Config(**values | shape | {"num_attention_heads": heads, "num_key_value_heads": heads})


def build_model(shape: Any, seed: int) -> Any:
    """A Qwen3 of a shape (`config`) with random weights."""
    from transformers import Qwen3ForCausalLM, set_seed

    set_seed(seed)
    return Qwen3ForCausalLM(shape)


def ensure(task: str, size: str, seed: int) -> Path:
    """Return the checkpoint of a task, size and seed. The first call trains it, in a process of its own."""
    path = taught.checkpoint_path(lessons_of(LESSONS[task], size), seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    taught.announce(path, seed)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            env = {k: v for k, v in os.environ.items() if not k.startswith(taught.LAUNCHER) and k not in taught.RANKS}
            command = [sys.executable, "-m", __name__, task, size, "--seed", str(seed), "--output", str(path)]
            subprocess.run(command, env=env, check=True)
    return path


def of(task: Task, size: str) -> Task:
    """The task with its model in a size."""
    tokenizer = partial(taught.build_tokenizer, LESSONS[task.name])
    return replace(task, model=partial(ensure, task.name, size), model_config=lambda: config(tokenizer(), size))


def main() -> None:
    """Train the cold start that the command line names."""
    parser = argparse.ArgumentParser(description="Train the cold start of a task's model in another size.")
    parser.add_argument("task", choices=LESSONS)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    lessons = lessons_of(LESSONS[options.task], options.size)
    shape = config(taught.build_tokenizer(lessons), options.size)
    # `taught.train` builds the model that this name holds. Its text must not change, because it keys cached models.
    taught.build_model = lambda tokenizer, seed: build_model(shape, seed)
    taught.train(lessons, options.seed, options.output)


if __name__ == "__main__":
    main()
