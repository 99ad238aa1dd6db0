"""The tutorials of the docs run as they are, on an untrained model that stands for the trained cold start."""

import os
import subprocess

import pytest

from .conftest import REPOSITORY

TUTORIALS = sorted((REPOSITORY / "docs" / "tutorials").glob("*.py"))
# What each leaves behind, and words of its output.
LEFT = {
    "kept_tokens": (["runs/tutorial/samples.jsonl"], ["tokens are kept", "loss"]),
    "own_reward": (["runs/mine/README.md", "runs/mine/model.safetensors"], ["rewards/within_budget/mean"]),
    "reading_a_run": (["comparison/comparison.md", "runs/fifth/analysis/report.html"], ["kept [0.2", "model-index"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_it_runs(tutorial, tiny_model, preloaded, tmp_path):
    environment = os.environ | {"TUTORIAL_MODEL": tiny_model, "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    result = subprocess.run(
        [preloaded, str(tutorial)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    files, words = LEFT[tutorial.stem]
    assert [name for name in files if not (tmp_path / name).exists()] == []
    assert [word for word in words if word not in result.stdout] == [], result.stdout[-3000:]
