"""Launch of a recipe file: read the recipe, choose the sharding, train.

accelerate launch recipes/demo_cpu.yaml --max_steps 4
accelerate launch -m entropy_grpo.launch FILE --max_steps 4     # also for plain YAML
"""

import atexit
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .config import recipe
from .config.recipe import RecipeError, Setting, Settings
from .config.sharding import choose_sharding, launcher_config, launcher_shards
from .registry import FunctionError
from .runs import launched
from .runs.launched import INTERRUPTED, ServerError, Stopped
from .runs.processes import (
    local_count,
    local_rank,
    print_any_name,
    process_count,
    rank,
    wait_passively,
    without_launch,
)


def is_first_process() -> bool:
    """Return whether this process is rank 0, before torch.distributed is set up."""
    return rank() == 0


@contextmanager
def without_collections() -> Iterator[None]:
    """Import without garbage collection, and exclude the imported objects from later collections.

    Collections during the imports took a fifth of their time and freed nothing. Later collections took a third of a
    second longer.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # otherwise nanobind reports the frozen objects as leaks
        gc.enable()


def run(recipe_file: str, arguments: Sequence[str]) -> None:
    """Train a recipe with overrides. An invalid recipe, or a function or a server that fails, gives one sentence.

    The exit status is 2 for an invalid recipe, and 1 for a function or a server that fails.
    """
    launched.register()
    wait_passively()
    print_any_name()
    try:
        train(Path(recipe_file), arguments)
        return
    except RecipeError as error:
        end = partial(launched.end, 2, f"error: {error}", alike=True)
    except FunctionError as error:
        end = partial(launched.end, 1, f"error: {error}")
    except ServerError as error:
        end = partial(launched.end, 1, f"error: {error}", by_all=True, alike=True)
    except Stopped as stopped:
        end = partial(launched.end, stopped.status, str(stopped), by_all=True, alike=True)
    except KeyboardInterrupt:
        sentence = "the run was stopped by Ctrl-C before it began."
        end = partial(launched.end, INTERRUPTED, sentence, by_all=True, alike=True)
    end()  # outside of the handlers, which keep the trainer alive


def size_sampler(settings: Settings, path: Path, arguments: Sequence[str]) -> Settings:
    """Return settings in which a colocated vLLM has a share of a GPU, if the recipe leaves the share to the package.

    Raises:
        RecipeError: there is no GPU, nothing is left of it, or the model's configuration cannot be downloaded.
    """
    name, values = "vllm_gpu_memory_utilization", {key: setting.value for key, setting in settings.items()}
    if name not in values or values[name] is not None or not values.get("use_vllm"):
        return settings
    import torch

    from .models.load import fetch_config
    from .planning.vllm import holds_a_sequence
    from .training.start import refusals

    if not torch.cuda.is_available():
        raise RecipeError(f"{name} is null, but there is no GPU whose memory could be divided: set a number.")
    memory = torch.cuda.get_device_properties(local_rank()).total_memory

    def make() -> dict[str, Any]:
        model, revision = map(recipe.without_unread(settings).get, ("model_name_or_path", "model_revision"))
        if model is not None and isinstance(model.value, str):
            with refusals():
                fetch_config(model.value, None if revision is None else revision.value)  # a plan downloads nothing
        return _planned(path, arguments, memory / 2**30)

    cache = once_per_machine(make)
    if not holds_a_sequence(cache):
        raise RecipeError(
            f"{name} is null, but the training leaves {cache['share']:.0%} of a GPU, which hold vLLM's weights and "
            f"{cache['cached_tokens']:,} tokens, and one sequence has {cache['max_model_len']:,}: shard over more "
            "GPUs, raise vllm_tensor_parallel_size, or set vllm_enable_sleep_mode: true."
        )
    found = {name: cache["share"], "vllm_max_num_seqs": cache["max_num_seqs"]}
    return settings | {
        key: Setting(value, settings[name].source) for key, value in found.items() if values.get(key) is None
    }


def once_per_machine(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what the first process of this machine makes, in JSON types.

    The processes of torchrun and of accelerate share it through the launcher's store. Without one, each makes its own.

    Raises:
        RecipeError: the first process raised it; raised in all of them.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return make()
    from torch.distributed import PrefixStore, rendezvous

    launcher, _, _ = next(rendezvous("env://"))
    store = PrefixStore(f"entropy_grpo/{os.environ['GROUP_RANK']}", launcher)
    if local_rank() == 0:
        try:
            made: dict[str, Any] = {"made": make()}
        except RecipeError as error:
            made = {"error": str(error)}
        store.set("plan", json.dumps(made))
    found = json.loads(store.get("plan"))
    if "error" in found:
        raise RecipeError(found["error"])
    return found["made"]


def _planned(path: Path, arguments: Sequence[str], memory: float) -> dict[str, Any]:
    """Return the plan of colocated vLLM on the machines of this launch, with the launch's sharding.

    Another process makes the plan, because settings that are checked as for one process would join the launch's
    process group here. It reads no variable of the launch, so that a file states the launcher's own sharding.

    Args:
        memory: memory of a GPU in GiB.
    """
    from .planning.commands import without

    gpus, processes = local_count(), process_count()
    command = [sys.executable, "-m", "entropy_grpo.cli", "plan", str(path), "--json", "--gpus", str(gpus)]
    command += ["--nodes", str(processes // gpus), "--gpu-memory", f"{memory:.3f}"]
    with tempfile.TemporaryDirectory(prefix="entropy-grpo-") as folder:
        file = Path(folder) / "launcher.yaml"
        if launcher_shards():
            file.write_text(json.dumps(launcher_config()), encoding="utf-8")
            arguments = [*without(arguments, "accelerate_config"), "--accelerate_config", str(file)]
        command += arguments
        result = subprocess.run(command, env=without_launch(), capture_output=True, text=True, check=False)
    if not result.stdout:  # a plan that does not fit is printed, too
        sentence = result.stderr.strip().rpartition("\n")[2].removeprefix("error: ")
        raise RecipeError(sentence.replace(str(file), "the launcher's own configuration"))
    return json.loads(result.stdout)["vllm"]


def train(path: Path, arguments: Sequence[str]) -> None:
    """Train a recipe with overrides."""
    path = recipe.find(path)
    settings = recipe.load(path) | recipe.overrides(arguments)
    if is_first_process():
        print(f"{path.stem}: loading PyTorch, transformers and TRL", flush=True)
    sharding = choose_sharding(settings)
    if "use_cpu" in settings and settings["use_cpu"].value is True:
        # By default two processes use cpu:0 and cpu:1, devices that torch.load cannot restore on resume.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")

    if is_first_process():
        print(sharding, flush=True)
    with without_collections():
        if recipe.is_cold_start(settings):
            from .training.sft import main as run_training
        else:
            from .training.train import main as run_training
        settings = size_sampler(settings, path, arguments)
    with ExitStack() as held:
        run_training(settings, path.stem, held)


def main(recipe_file: str | None = None) -> None:
    """Run `recipe_file`, or else the first argument of the command line."""
    arguments = sys.argv[1:]
    if recipe_file is None:
        if not arguments or arguments[0].startswith("--"):
            sys.exit("usage: accelerate launch -m entropy_grpo.launch FILE [--key value ...]")
        recipe_file, *arguments = arguments
    run(recipe_file, arguments)


if __name__ == "__main__":
    main()
