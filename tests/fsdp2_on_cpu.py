"""`fixed_rollout` under FSDP2 on processors: accelerate, which shards on accelerators only, is told that gloo is one.

Run by torchrun: fsdp2_on_cpu.py MODEL OUTPUT JSON_OF_OVERRIDES, or fsdp2_on_cpu.py --recipe FILE [--key value ...]
"""

import os
import sys
from pathlib import Path

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

import torch
from accelerate import DistributedType, PartialState
from torch.distributed.tensor import DTensor

from entropy_grpo import launch
from entropy_grpo.config.sharding import sharding_environment

from . import fixed_rollout

CONFIG = Path(__file__).parent.parent / "accelerate_configs" / "fsdp2.yaml"


def check_sharded(model):
    sharded = all(isinstance(p, DTensor) for p in model.parameters())
    assert sharded, "FSDP2 has not sharded the parameters: this would be a test of DDP"


def run_recipe(recipe_file, *arguments):
    from entropy_grpo.training import train

    finish = train.finish

    def check_and_finish(trainer):
        check_sharded(trainer.model)
        finish(trainer)

    train.finish = check_and_finish
    launch.run(recipe_file, arguments)


def main():
    asked = {k: v for k, v in os.environ.items() if k.startswith("FSDP_")}
    os.environ.update(sharding_environment(CONFIG) | asked)
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    if sys.argv[1] == "--recipe":
        run_recipe(*sys.argv[2:])
        return
    trained = fixed_rollout.train

    def train_sharded(*args, **kwargs):
        trainer = trained(*args, use_cpu=False, **kwargs)
        check_sharded(trainer.model)
        return trainer

    fixed_rollout.train = train_sharded
    fixed_rollout.main()


if __name__ == "__main__":
    main()
