import atexit
import gc
import json
import os
import subprocess
import sys

# Before anything imports torch: no hub, no telemetry, and one thread whatever the machine, because workers share the
# processors, and threads that wait for each other there take many times as long.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
from filelock import FileLock

from benchmarks.fixtures import REPOSITORY

from .preloaded import preloaded as preloaded

gc.disable()  # until all tests are collected: nothing of what they import is garbage

ACCELERATE = Path(sys.executable).parent / "accelerate"
DEMO = "recipes/demo_cpu.yaml"
TINY_DEMO = (
    "--max_steps 2 --num_train_problems 256 --num_dev_problems 4 --num_test_problems 8 --eval_steps 2 "
    "--disable_tqdm true"
).split()


def pytest_addoption(parser):
    parser.addoption("--every-recipe", action="store_true", help="take two steps of every recipe, not of each kind")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One worker more than there are processors, because tests wait for clocks, disks, networks and processes."""
    return os.cpu_count() + 1


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no worker has one left when the others have ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Later collections leave out what the packages hold: to look through it takes longer than a step of training."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # otherwise nanobind reports the frozen objects as leaks


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Bytes of file names that are no UTF-8 are escaped in captured output: workers send their reports as UTF-8."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """The same for what the tests of a file leave in caches."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A folder of the whole session, which all workers share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    from benchmarks.fixtures.tiny_model import save_tiny_model  # late: the process that directs workers needs no torch

    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def ending_model(tiny_model, tmp_path_factory):
    """The tiny model with a larger weight for its last token, so that responses end at many lengths."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("ending")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 6
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def accelerate_launch(*words, python=sys.executable, cwd=REPOSITORY, env=None):
    """Run `accelerate launch`, by the real interpreter unless another is named."""
    return subprocess.run(
        [python, str(ACCELERATE), "launch", *map(str, words)],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="session")
def demo_run(tiny_model, shared_folder):
    """Folder, for reading, and output of a two-step run of the demo recipe, launched literally, on the tiny model."""
    folder = shared_folder / "demo"
    printed = folder / "printed.json"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            words = [*TINY_DEMO, "--model_name_or_path", tiny_model, "--model_revision", "a" * 40]
            words += ["--output_dir", folder / "first"]
            result = accelerate_launch(DEMO, *words)
            printed.write_text(json.dumps([result.returncode, result.stdout, result.stderr]))
    status, stdout, stderr = json.loads(printed.read_text())
    assert status == 0, stderr
    return folder / "first", stdout
