"""qwen3_14b as it ships, under FSDP2 on two processes, with a real vLLM in them or as a server.

It answers before training, in the middle and after it, each of which leaves parameters whole that TRL's walk over the
weights needs sharded. `tests.shipped` lists what is changed of the recipe, `CHANGED` what more, and `on_cpu` the rest.
"""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.fixtures.tiny_model import save_tiny_model
from tests.test_fsdp2 import TWO
from tests.test_shipped import changed, rows, values

from .conftest import run_python
from .test_steps import DIFFERENCE, on_server

pytestmark = pytest.mark.timeout(900)

RECIPE = "qwen3_14b"
CHANGED = {
    "max_prompt_length": 96,  # the tiny model has 128 positions
    "max_steps": 6,
    "learning_rate": 0.02,  # a step moves log-probabilities by more than rounding does
    "num_test_problems": 4,  # recipes leave the evaluation before and after training to the command line
}
# Mean absolute difference of log-probabilities, in nats, between policy and vLLM, which both multiply in bfloat16.
NOISE = 0.03


def launch(folder, settings):
    words = [word for key, value in settings.items() for word in (f"--{key}", json.dumps(value).strip('"'))]
    program = ["-m", "tests_vllm.fsdp2", f"recipes/{RECIPE}.yaml", str(folder)]
    for left in Path("/dev/shm").glob("-tp:*-cpushm_*"):
        left.unlink()  # by a run that was killed: vLLM has the same names in every run, and fails if they are taken
    result = run_python(*TWO, *program, *words, OMP_NUM_THREADS="1", ENTROPY_GRPO_CACHE=str(folder / "cache"))
    assert "Traceback" not in result.stderr, result.stderr[-3000:]


@pytest.fixture(scope="module", params=["colocate", "server"])
def trained(request, tmp_path_factory):
    """The folder of a run, and the settings that were changed."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = {key: value for key, value in changed(RECIPE, folder).items() if key != "use_vllm"} | CHANGED
    if request.param == "server":
        settings |= on_server(request.getfixturevalue("server"))
        settings["model_name_or_path"] = request.getfixturevalue("model")
    else:  # two processes share a copy of the model in vLLM, whose heads they divide
        settings["model_name_or_path"] = save_tiny_model(
            folder / "model", head_dim=32, num_attention_heads=4, num_key_value_heads=2
        )
    settings["output_dir"] = str(folder / "run")
    launch(folder, settings)
    return folder, settings


def differences(run):
    return {row["step"]: row[DIFFERENCE] for row in rows(run) if DIFFERENCE in row}


def test_vllm_has_the_policy_s_weights_after_every_evaluation(trained):
    folder, _ = trained
    found = differences(folder / "run")
    print(f"{folder.name}: log-probability differences {found}")
    assert list(found) == [1, 3, 5]  # of the rollouts' first steps
    assert max(found.values()) < NOISE
    evaluated = [(row["step"], row["eval_failures"]) for row in rows(folder / "run") if "eval_failures" in row]
    assert evaluated == [(0, 0), (2, 0), (4, 0), (6, 0)]
    for when in ("before", "after"):
        assert len((folder / "run" / "answers" / f"{when}.jsonl").read_text().splitlines()) == 4 * 4


def test_it_ran_as_it_ships(trained):
    """In the precision, the sharding and the mode of the recipe."""
    folder, _ = trained
    report, shipped = json.loads((folder / "report.json").read_text()), values(RECIPE)
    if report["mode"] == "colocate":
        assert report["sleeps"] == shipped["vllm_enable_sleep_mode"] and report["mode"] == shipped["vllm_mode"]
        assert report["gpus"] == shipped["vllm_tensor_parallel_size"]
        assert not (folder / "requests.txt").exists()
    else:
        sizes = [int(line) for line in (folder / "requests.txt").read_text().split()]
        assert set(sizes) == {4} and len(sizes) > 20  # a group each


def test_it_goes_on_from_a_checkpoint_in_a_rollout(trained):
    """The rest of the rollout is trained on as before; the next one is sampled with the weights of then."""
    folder, settings = trained
    again = folder / "again"
    (again / "run").mkdir(parents=True)
    shutil.copytree(folder / "run" / "checkpoint-3", again / "run" / "checkpoint-3")
    for left in ("recipe.yaml", "metrics.jsonl", "evaluation.json", "data.json"):
        shutil.copy(folder / "run" / left, again / "run")
    launch(again, settings | {"output_dir": str(again / "run"), "resume_from_checkpoint": True})
    once, resumed = ([row for row in rows(run / "run") if row["step"] == 4] for run in (folder, again))
    assert [row for row in once if "loss" in row] == [row for row in resumed if "loss" in row]
    assert differences(again / "run").keys() == {1, 3, 5} and differences(again / "run")[5] < NOISE
