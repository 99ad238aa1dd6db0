"""Whole optimiser steps of a small Qwen3 on responses of log-normal length, against stock TRL.

    python -m benchmarks.step    # benchmarks/results/step.json

The responses of a rollout are given, and are rewarded, scored and trained on in 16 optimiser steps. Everything except
generation is timed. Every group has right and wrong responses, as after dynamic sampling, so that every sequence has
an advantage. Entropies differ within a response, so that almost every sequence has a kept token. The body of the model
has three times the parameters of its head, as in Qwen3-0.6B. The limit of trimming alone is TRL's time divided by
padded over real tokens.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from benchmarks import measure
from benchmarks.fixtures.tiny_model import tiny_decoder
from entropy_grpo import EntropyForkGRPOConfig, EntropyForkGRPOTrainer
from entropy_grpo.tasks.cold_start import build_tokenizer

VOCABULARY, PROMPT, GENERATIONS, STEPS = 6144, 8, 8, 16
MEANS = (0.35, 0.18)
VARIANTS = {
    "TRL": {"stock": True},
    "ours, global": {"entropy_scope": "global"},
    "ours, rollout": {"entropy_scope": "rollout"},
    "ours, rho = 1": {"top_entropy_quantile": 1.0},
}


def make_model(folder: Path) -> None:
    """A random Qwen3 of 6M parameters, whose entropies differ between the tokens of a response."""
    tiny_decoder(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=8,
        head_dim=64,
        max_position_embeddings=32768,
        initializer_range=0.15,
        eos_token_id=1,
        pad_token_id=0,
    ).save_pretrained(folder)


def lengths(count: int, mean: float, longest: int) -> list[int]:
    """Log-normal lengths with a given share of the longest as their mean. The last length is the longest."""
    normal = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(count) + 0.5) / count)
    shape = 0.8

    def cut(location: float) -> torch.Tensor:
        return torch.exp(location + shape * normal).mul(longest).round().clamp(2, longest)

    low, high = -10.0, 2.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if cut(middle).mean() < mean * longest else (low, middle)
    values = cut(low).long()
    values[-1] = longest
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return values[order].tolist()


def rollout(sizes: list[int]):
    """TRL's `rollout_func` that returns random tokens of given lengths."""
    generator = torch.Generator().manual_seed(0)
    responses = [torch.randint(3, VOCABULARY, (size,), generator=generator).tolist() for size in sizes]

    def write(prompts: list, trainer: GRPOTrainer) -> dict:
        start = time.perf_counter()
        ids = [responses[i % len(responses)] for i in range(len(prompts))]
        found = {
            "prompt_ids": [[3 + i % 97] * PROMPT for i in range(len(prompts))],
            "completion_ids": ids,
            "logprobs": [[0.0] * len(x) for x in ids],
        }
        trainer.written = time.perf_counter() - start
        return found

    return write


def reward(completion_ids: list, **kwargs) -> list[float]:
    """Right and wrong rewards in turn, so that every group has both."""
    return [float(i % 2) for i in range(len(completion_ids))]


def run(
    model: Path, sizes: list[int], longest: int, batch: int, accumulation: int, stock=False, **settings
) -> tuple[float, float]:
    """Measure one rollout.

    Returns:
        (seconds per optimiser step without generation, share of responses that were trained on).
    """
    trainer_class, config_class = (
        (GRPOTrainer, GRPOConfig) if stock else (EntropyForkGRPOTrainer, EntropyForkGRPOConfig)
    )
    problems = Dataset.from_dict({"prompt": [f"go {i}" for i in range(len(sizes) // GENERATIONS)]})
    with tempfile.TemporaryDirectory() as output:
        gpu = torch.cuda.is_available()
        args = config_class(
            output_dir=output,
            max_steps=STEPS,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=STEPS * accumulation,
            num_generations=GENERATIONS,
            max_completion_length=longest,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            logging_steps=STEPS,
            save_strategy="no",
            report_to="none",
            use_cpu=not gpu,
            bf16=gpu,
            gradient_checkpointing=False,
            disable_tqdm=True,
            **{"top_entropy_quantile": 0.2, "epsilon_high": 0.28, **settings},
        )
        trainer = trainer_class(
            model=str(model),
            reward_funcs=reward,
            args=args,
            train_dataset=problems,
            processing_class=build_tokenizer(),
            rollout_func=rollout(sizes),
        )
        # One warm-up step on the shapes would cost as much as it shows: on a processor nothing is compiled.
        taken = measure.seconds(trainer.train)
        run_fraction = trainer.state.log_history[0].get("batching/run_fraction", 1.0)
        return (taken - trainer.written) / STEPS, run_fraction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=8)
    parser.add_argument("--means", type=float, nargs="+", default=MEANS)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model)
        count = options.batch * options.accumulation * STEPS
        for mean in options.means:
            sizes = lengths(count, mean, options.longest)
            padded = (PROMPT + options.longest) * count / sum(PROMPT + size for size in sizes)
            taken, trained = {name: [] for name in VARIANTS}, {}
            for _ in range(options.repeats):
                for name, settings in VARIANTS.items():
                    seconds, trained[name] = run(
                        model, sizes, options.longest, options.batch, options.accumulation, **settings
                    )
                    taken[name].append(seconds)
                    print(f"mean {mean}  {name:20s} {seconds:7.3f} s per step", flush=True)
            for name, values in taken.items():
                faster = measure.ratios(taken["TRL"], values)
                figures.append(
                    {
                        "mean_length": mean,
                        "padded_over_real": padded,
                        "variant": name,
                        "seconds_per_step": measure.spread(values),
                        "times faster than TRL": faster,
                        "of_the_no_padding_limit": faster["median"] / padded,
                        "responses trained on": trained[name],
                    }
                )
                print(f"mean {mean}  {name:20s} {faster['median']:5.2f}x  limit {padded:4.2f}x", flush=True)
    sizes = {"longest": options.longest, "batch": options.batch, "accumulation": options.accumulation}
    measure.write("step", "python -m benchmarks.step", sizes | {"steps_per_rollout": STEPS, "times": figures})


if __name__ == "__main__":
    main()
