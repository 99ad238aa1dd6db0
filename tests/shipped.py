"""A recipe as it ships, on a tiny model: all that is changed of it, and what its run is watched for.

On processors, unless the environment says SHIPPED_ON_GPU=1, which takes one GPU.

Run by torchrun, or by itself for one process: shipped.py RECIPE FOLDER_OF_REPORTS [--key value ...]
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if os.environ.get("SHIPPED_ON_GPU") != "1":
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

import torch
import transformers
from accelerate import DistributedType, PartialState
from peft import PeftModel
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

from entropy_grpo import launch
from entropy_grpo.models.adapters import sync_exactly
from entropy_grpo.training import fsdp2, sft, train

from . import dtypes


class Change(NamedTuple):
    """A setting that cannot stay as the recipe has it: its value, perhaps made of the recipe's, and the reason."""

    value: Any | Callable[[Any], Any]
    reason: str


ON_GPU = os.environ.get("SHIPPED_ON_GPU") == "1"
SIZE = "size"
# A setting that a recipe does not have stays out; those of ADDED come in.
CHANGES = {
    "use_vllm": Change(False, "vLLM runs in `make test-vllm` alone; the walk over weights that it needs is made here"),
    "model_revision": Change("main", "a commit on the Hub, and the tiny model is a folder"),
    "decontaminate_against": Change([], "the benchmarks are on the Hub"),
    "rewards": Change(
        lambda names: names if "random" in names else ["random", *names[1:]], "a random model gives no right answer"
    ),
    "prompts_per_rollout": Change(4, SIZE),
    "num_generations": Change(4, SIZE),
    "steps_per_rollout": Change(2, SIZE),
    "steps_per_generation": Change(2, SIZE),
    "per_device_train_batch_size": Change(lambda size: min(size, 8), SIZE),
    "per_device_eval_batch_size": Change(8, SIZE),
    "max_completion_length": Change(16, SIZE),
    "overlong_cache_length": Change(lambda length: length and 8, SIZE),
    "max_position_embeddings": Change(512, "size; the tiny model has 384"),
    "max_steps": Change(4, SIZE),
    "warmup_steps": Change(lambda steps: "1 rollouts" if isinstance(steps, str) else steps, SIZE),
    "keep_weights": Change(lambda steps: [1, 3] if steps else [], SIZE),
    "num_generations_eval": Change(4, SIZE),
    "save_steps": Change(3, "size; in the middle of the second rollout"),
    "eval_steps": Change(2, SIZE),
    "num_dev_problems": Change(4, SIZE),
    "num_test_problems": Change(4, SIZE),
    "position_shaping_start": Change(1, SIZE),
    "position_shaping_end": Change(3, SIZE),
    "num_responses": Change(8, SIZE),
    "responses_per_step": Change(4, SIZE),
}
if not ON_GPU:
    CHANGES["use_liger_kernel"] = Change(False, "Triton's kernels need a GPU")
ADDED = {
    "max_sampling_rounds": Change(2, SIZE),
    "eval_benchmark_steps": Change(2, SIZE),
    "disable_tqdm": Change(True, "the output of a test is read when it fails"),
}


def take_processors_for_gpus():
    """accelerate shards over accelerators alone, and transformers has bfloat16 there alone, unless told `use_cpu`.

    Everything else of the launch, the choice of the sharding included, is the run's own.
    """
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "--use_cpu" not in sys.argv:
        PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def keep_four_bits_as_they_are():
    """On some processors bitsandbytes repacks 4-bit weights for good when a model evaluates, which no GPU does."""
    from bitsandbytes.nn import modules

    modules.has_avx512bf16 = lambda: False


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Walk:
    """TRL's walk over the weights, at the moments at which it would send them to vLLM."""

    def __init__(self, trainer):
        self.trainer, self.last, self.steps, self.names = trainer, -1, [], set()
        # TRL's own object without an engine, which the walk does not need.
        self.generation = VLLMGeneration.__new__(VLLMGeneration)
        self.generation.accelerator, self.generation._dist = trainer.accelerator, trainer._dist
        self.generation.sync_weights = self.walk
        if isinstance(trainer.model, PeftModel):  # as the trainer does with vLLM
            sync_exactly(trainer.model, self.generation)
        fsdp2.reshard_before_sync(self.generation)
        self.generate, trainer._generate_single_turn = trainer._generate_single_turn, self.generate_after_sync

    def walk(self):
        self.steps.append(self.trainer.state.global_step)
        for name, weight in self.generation._iter_named_params():
            assert not isinstance(weight, DTensor), name
            self.names.add(name)

    @torch.no_grad()
    def after_a_pass_without_gradient(self):
        """Whether such a pass left parameters whole, on which TRL's walk by itself would fail."""
        model = self.generation.model = self.trainer.model
        model(input_ids=torch.ones(1, 3, dtype=torch.long, device=self.trainer.accelerator.device))
        left_whole = not all(isinstance(p, DTensor) for p in model.parameters())
        self.generation.sync_weights()
        return left_whole

    def generate_after_sync(self, *args, **kwargs):
        if self.trainer.state.global_step != self.last:
            self.generation.model = self.trainer.model
            self.generation.sync_weights()
            self.last = self.trainer.state.global_step
        return self.generate(*args, **kwargs)


class Snapshot(TrainerCallback):
    """Writes the trained weights as the optimiser has them, before they are cast to be saved, and walks over them."""

    def __init__(self, path, walk):
        self.path, self.walk, self.left_whole = path, walk, None

    def on_train_end(self, args, state, control, model=None, **kwargs):
        weights = {name: whole(p.detach()).clone() for name, p in model.named_parameters() if p.requires_grad}
        if state.is_world_process_zero:
            save_file(weights, self.path)
        if self.walk is not None:
            self.left_whole = self.walk.after_a_pass_without_gradient()


def timeout():
    """Seconds that a collective may take in the process group that accelerate made."""
    if not torch.distributed.is_initialized():
        return None
    backend = torch.distributed.group.WORLD._get_backend(torch.device("cuda" if ON_GPU else "cpu"))
    return backend.options._timeout.total_seconds()


def report(trainer, found, walk, snapshot, reduced):
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        found.found["gradients between processes"] |= reduced
    return found.report() | {
        "sharded": isinstance(trainer.model, FSDPModule),
        "timeout": timeout(),
        "walks": walk and walk.steps,
        "left_whole": snapshot.left_whole,
        "walked": walk and sorted(walk.names),
        "names": sorted(name for name, _ in trainer.accelerator.unwrap_model(trainer.model).named_parameters()),
    }


def main():
    recipe, folder, *words = sys.argv[1:]
    if not ON_GPU:
        take_processors_for_gpus()
    shipped = {key: setting.value for key, setting in launch.recipe.load(recipe).items()}
    if shipped.get("load_in_4bit"):
        keep_four_bits_as_they_are()
    reduced, watched = set(), []

    def watch(trainer_class):
        def make(*args, **kwargs):
            trainer = trainer_class(*args, **kwargs)
            reinforces = isinstance(trainer, GRPOTrainer)
            # A walk merges adapters, which changes 4-bit weights for good: nothing does so without vLLM.
            walk = Walk(trainer) if shipped.get("use_vllm") else None
            snapshot = Snapshot(Path(folder) / "weights.safetensors", walk)
            trainer.add_callback(snapshot)
            watched[:] = [dtypes.Dtypes(trainer, reinforces), walk, snapshot]
            return trainer

        return make

    def report_first(finish):
        def report_and_finish(trainer):
            rows = report(trainer, *watched, reduced)
            if trainer.is_world_process_zero():
                (Path(folder) / "report.json").write_text(json.dumps(rows))
            finish(trainer)

        return report_and_finish

    train.EntropyForkGRPOTrainer, sft.Imitation = map(watch, (train.EntropyForkGRPOTrainer, sft.Imitation))
    train.finish, sft.finish = map(report_first, (train.finish, sft.finish))
    with dtypes.reductions(reduced):
        launch.run(recipe, words)


if __name__ == "__main__":
    main()
