"""Train on completions that depend on nothing but the prompt, so that runs can be compared whatever their batching.

Run as a script by the tests that need several processes: fixed_rollout.py MODEL OUTPUT JSON_OF_OVERRIDES
"""

import json
import random
import sys

from datasets import Dataset
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from trl import GRPOConfig, GRPOTrainer

from entropy_grpo import EntropyForkGRPOConfig, EntropyForkGRPOTrainer
from entropy_grpo.tasks.cold_start import build_tokenizer
from entropy_grpo.training.setup import finish

GENERATIONS = 4


def fixed_completions(prompts, trainer):
    """TRL's `rollout_func`: ragged token sequences drawn from the prompt's text and its turn in the group."""
    tokenizer = build_tokenizer()
    first = 0 if trainer is None else trainer.accelerator.process_index * len(prompts)
    rollout = {"prompt_ids": [], "completion_ids": [], "logprobs": []}
    for i, prompt in enumerate(prompts, start=first):
        rng = random.Random(f"{prompt}-{i % GENERATIONS}")
        ids = [rng.randrange(3, len(tokenizer)) for _ in range(rng.randint(2, 11))] + [tokenizer.eos_token_id]
        rollout["prompt_ids"].append(tokenizer(prompt)["input_ids"])
        rollout["completion_ids"].append(ids)
        rollout["logprobs"].append([0.0] * len(ids))
    return rollout


def reward(completion_ids, **kwargs):
    """Uneven, and decided by the tokens alone."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def coins(completion_ids, **kwargs):
    """One in five is right, decided by the tokens alone."""
    return [float(sum(ids) % 5 == 0) for ids in completion_ids]


REWARDS = {"reward": reward, "coins": coins}


def prompts(count):
    # The entropies at the first position of a group are equal but for rounding. With these prompts the threshold lies
    # elsewhere, so that the kept set does not hang on a rounding error that another batching makes differently.
    texts = [f"go {5 + i} to {9 + 3 * i} need +{4 + 2 * i} with +8 -5 -1\n" for i in range(count)]
    return Dataset.from_dict({"prompt": texts})


def make_trainer(model, output, stock=False, sampled=False, reward=reward, peft_config=None, data=None, **overrides):
    """For one optimiser step of plain SGD with rate 1 and no clipping: the change of the weights is the gradient.

    With `stock`, TRL's own trainer. With `sampled` the model writes the completions.
    """
    reward = REWARDS[reward] if isinstance(reward, str) else reward
    settings = {
        "output_dir": str(output),
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "num_generations": GENERATIONS,
        "max_completion_length": 16,
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "epsilon_high": 0.28,
        "shuffle_dataset": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
    } | overrides
    if not stock:
        settings.setdefault("entropy_scope", "global")
    trainer_class, config_class = (
        (GRPOTrainer, GRPOConfig) if stock else (EntropyForkGRPOTrainer, EntropyForkGRPOConfig)
    )
    return trainer_class(
        model=model,
        reward_funcs=reward,
        args=config_class(**settings),
        train_dataset=data or prompts(8),
        rollout_func=None if sampled else fixed_completions,
        peft_config=peft_config,
    )


def train(model, output, **settings):
    """The trainer of `make_trainer`, trained."""
    trainer = make_trainer(model, output, **settings)
    trainer.train()
    return trainer


def weights(trainer):
    """The model's parameters, whole; every rank has to ask."""
    parameters = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    return {
        name: (p.detach().full_tensor() if isinstance(p, DTensor) else p.detach().clone()) for name, p in parameters
    }


def main():
    model, output, overrides = sys.argv[1:]
    trainer = train(model, output, **json.loads(overrides))
    trained = weights(trainer)
    if trainer.is_world_process_zero():
        save_file(trained, f"{output}/weights.safetensors")
        with open(f"{output}/log.json", "w") as file:
            json.dump(trainer.state.log_history[0], file)
    finish(trainer)


if __name__ == "__main__":
    main()
