"""What a machine lacks is refused in one sentence before a model loads."""

import os
import socket
import subprocess
from types import SimpleNamespace

import pytest

from entropy_grpo.config.recipe import RecipeError, Setting
from entropy_grpo.evaluation.backends.vllm import check_gpus
from entropy_grpo.grading.pool import worker_count
from entropy_grpo.models.load import load_model
from entropy_grpo.registry import installed
from entropy_grpo.training.requirements import check_disk, check_packages, check_port, check_processes

from .conftest import DEMO, REPOSITORY


def settings(**values):
    return {name: Setting(value, "here.yaml") for name, value in values.items()}


def nothing(*packages):
    return False


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"use_vllm": True}, ["use_vllm is True", 'pip install "entropy-grpo[vllm]"']),
        ({"deepspeed": "ds.json"}, ["deepspeed is 'ds.json'", "pip install deepspeed"]),
        ({"attn_implementation": "flash_attention_2"}, ["attn_implementation is 'flash_attention_2'", "sdpa"]),
        ({"fused_lm_head": "liger"}, ["fused_lm_head is 'liger'", "pip install liger-kernel"]),
        ({"load_in_4bit": True}, ["load_in_4bit is True", 'pip install "entropy-grpo[qlora]"']),
        ({"report_to": ["none", "comet_ml"]}, ["report_to names 'comet_ml'", "pip install comet-ml"]),
        ({"report_to": "clearml"}, ["report_to names 'clearml'"]),
    ],
)
def test_a_package_that_is_missing_is_named(values, parts):
    with pytest.raises(RecipeError) as error:
        check_packages(settings(**values), nothing)
    assert str(error.value).startswith("here.yaml: ") and all(part in str(error.value) for part in parts)


def test_a_folder_of_a_packages_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "pebbles").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not installed("pebbles") and not installed("nowhere_at_all") and installed("pebble")


def test_what_no_package_is_needed_for_passes():
    check_packages(settings(use_vllm=False, fused_lm_head="auto", report_to="none", deepspeed=None), nothing)
    check_packages(settings(report_to=["tensorboard"], attn_implementation="flash_attention_2"), lambda *names: True)


@pytest.mark.parametrize(
    ("environment", "use_cpu", "gpus", "said"),
    [
        ({"WORLD_SIZE": "8"}, True, 8, "use_cpu is true, but the launcher started 8 processes"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "True"}, True, 8, None),
        ({}, True, 8, None),
        ({"WORLD_SIZE": "2"}, True, 0, None),
        ({}, False, 8, "one process sees 8 GPUs"),
        ({"WORLD_SIZE": "8"}, False, 8, None),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, False, 4, None),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, False, 4, "started 8 processes on this machine, which has 4"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, False, 1, "--num_processes 1"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, False, 0, None),
        ({}, False, 1, None),
    ],
)
def test_processes_fit_the_recipe(environment, use_cpu, gpus, said, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if said is None:
        check_processes(settings(use_cpu=use_cpu), gpus)
        return
    with pytest.raises(RecipeError, match=said):
        check_processes(settings(use_cpu=use_cpu), gpus)


@pytest.mark.parametrize(
    ("count", "processes", "visible", "said"),
    [(2, "8", 8, "need 16 GPUs, but it has 8: lower it, or launch 4"), (2, "4", 8, None), (8, None, 8, None)],
)
def test_tensor_parallel_has_its_gpus(count, processes, visible, said, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    if said is None:
        check_gpus(count, visible)
        return
    with pytest.raises(ValueError, match=said):
        check_gpus(count, visible)


def test_workers_are_as_many_as_this_process_may_use(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert worker_count() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert worker_count() == len(allowed)


def test_a_recipe_that_needs_vllm_ends_before_its_data_loads(tmp_path, preloaded):
    """By the literal command, in an environment that has no vLLM."""
    command = [preloaded, DEMO, "--use_vllm", "true", "--output_dir", str(tmp_path / "run")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    said = result.stderr.strip().splitlines()[-1]
    assert said.startswith("error: command line: use_vllm is True, but its package is not installed"), said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("dtype", "optim", "bytes_a_parameter"),
    [
        *((None, "adamw_torch", 12), ("float32", "adamw_torch_fused", 12), ("bfloat16", "adamw_torch", 6)),
        *(("float32", "sgd", 4), ("bfloat16", "adamw_8bit", 2)),
    ],
)
def test_a_disk_must_hold_two_checkpoints(tiny_model, tmp_path, dtype, optim, bytes_a_parameter):
    parameters = sum(weight.numel() for weight in load_model(tiny_model, None, "float32")[0].parameters())
    args = SimpleNamespace(save_strategy="steps", optim=optim, save_only_model=False)
    checkpoint = parameters * bytes_a_parameter
    check_disk(tmp_path, tiny_model, None, args, dtype, free=2 * checkpoint)
    with pytest.raises(ValueError, match=r"output_dir is .*, whose disk has .* GiB free, .* save_strategy to no"):
        check_disk(tmp_path, tiny_model, None, args, dtype, free=2 * checkpoint - 1)
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "complete.json").touch()
    check_disk(tmp_path, tiny_model, None, args, dtype, free=checkpoint)
    args.save_strategy = "no"
    check_disk(tmp_path, tiny_model, None, args, dtype, free=0)


def test_a_port_that_another_process_listens_on_is_named():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        args = SimpleNamespace(use_vllm=True, vllm_mode="server", process_index=0, vllm_group_port=port)
        with pytest.raises(ValueError, match=f"^vllm_group_port is {port}, on which another process"):
            check_port(args)
        for other in ({"use_vllm": False}, {"vllm_mode": "colocate"}, {"process_index": 1}):
            check_port(SimpleNamespace(**vars(args) | other))
    check_port(args)
