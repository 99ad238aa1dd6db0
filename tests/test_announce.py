"""Texts of a run on the terminal."""

from datasets import Dataset

from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.config.run import RunConfig
from entropy_grpo.data.problems import Problems
from entropy_grpo.objective.objective import Objective
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.training import announce


def test_the_beginning_tells_the_steps_of_a_rollout(tmp_path):
    """Each response is used twice, so that a rollout of four steps serves eight."""
    sizes = {"num_generations": 2, "per_device_train_batch_size": 2, "prompts_per_rollout": 8, "steps_per_rollout": 4}
    args = EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, max_steps=40, num_iterations=2, **sizes)
    problems = Problems(Dataset.from_dict({"prompt": ["1?"] * 9}), None, None, {})
    config, folder = RunConfig(dataset_name="gsm8k"), RunFolder(tmp_path)
    text = announce.beginning(args, config, Objective.from_args(args), "some/model", problems, folder)
    assert "8 prompts x 2 responses per rollout, 8 optimiser steps per rollout, 40 steps" in text
    assert "gsm8k: 9 training" in text and "some/model" in text and str(tmp_path) in text
