"""Train a few GRPO steps with vLLM as the sampler, and write down what happened: steps.py MODEL OUTPUT JSON

A process of its own for every run, since vLLM in colocate mode keeps the process's threads and process group for good.
The JSON holds settings of the trainer, `lora` for adapters, and `sync`: whether weights are synchronised `always`, at
`first` or `never`. With `stop_after` the process gets SIGTERM in the rollout after so many steps. With `resume` it
continues from a checkpoint.
Writes log.json, the trained weights, the tensors of every rollout, and ahead.json, the number of requests to a server
that were made before their round. A stopped run writes steps.json, with the
number of the engine's steps after SIGTERM.
"""

import json
import math
import signal
import sys
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

from benchmarks.fixtures import fixed_rollout
from entropy_grpo.training import server, stop
from tests_vllm import on_cpu

SYNC = {"always": math.inf, "first": 1, "never": 0}
RECORDED = (
    *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages"),
    *("old_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio", "kept_mask"),
)


def limit_sync(generation: VLLMGeneration, most: float) -> None:
    """Drop TRL's calls to synchronise weights after so many of them."""
    synchronise, left = generation.sync_weights, most

    def limited():
        nonlocal left
        if left > 0:
            left -= 1
            synchronise()

    generation.sync_weights = limited


def record_rollouts(trainer: GRPOTrainer, folder: Path) -> None:
    """Save the tensors of every rollout as it comes out of scoring."""
    score, count = trainer._generate_and_score_completions, 0

    def recorded(inputs):
        nonlocal count
        output = score(inputs)
        save_file(
            {k: output[k].contiguous() for k in RECORDED if k in output}, folder / f"rollout-{count}.safetensors"
        )
        count += 1
        return output

    trainer._generate_and_score_completions = recorded


def record_requests_ahead() -> list[dict]:
    """Return a list that takes the arguments of every request made before its round."""
    foresee, made = server.Requests.foresee, []

    def recorded(requests, arguments):
        made.append(arguments)
        foresee(requests, arguments)

    server.Requests.foresee = recorded
    return made


def stop_in_rollout(trainer: GRPOTrainer, after: int, path: Path) -> None:
    """Send SIGTERM while vLLM writes the rollout after so many optimiser steps, and count its steps from there."""
    if trainer.vllm_mode == "server":
        owner, name, first = trainer.vllm_generation, "generate", 1
    else:
        owner, name, first = trainer.vllm_generation.llm.llm_engine, "step", 3
    take, steps = getattr(owner, name), []

    def step(*args, **kwargs):
        if trainer.state.global_step == after:
            steps.append(len(steps))
            path.write_text(json.dumps(len(steps) - first))
            if len(steps) == first:
                signal.raise_signal(signal.SIGTERM)
        return take(*args, **kwargs)

    setattr(owner, name, step)


def main() -> None:
    model, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    sync, lora = settings.pop("sync"), settings.pop("lora", None)
    stop_after, checkpoint = settings.pop("stop_after", None), settings.pop("resume", None)
    if settings["vllm_mode"] == "server":
        (folder / "sent").mkdir()
        on_cpu.sync_by_file(folder / "sent")
    else:
        on_cpu.keep_weights_unpacked()
        on_cpu.colocate_in_float32()
    adapters = LoraConfig(**lora) if lora else None
    trainer = fixed_rollout.make_trainer(model, folder, sampled=True, use_vllm=True, peft_config=adapters, **settings)
    limit_sync(trainer.vllm_generation, SYNC[sync])
    record_rollouts(trainer, folder)
    ahead = record_requests_ahead()
    if stop_after is not None:
        stop_in_rollout(trainer, stop_after, folder / "steps.json")
    with stop.stoppable(trainer, finish=lambda trainer: None):
        stop.train(trainer, checkpoint)
    save_file(fixed_rollout.weights(trainer), folder / "weights.safetensors")
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
    (folder / "ahead.json").write_text(json.dumps(len(ahead)))


if __name__ == "__main__":
    main()
