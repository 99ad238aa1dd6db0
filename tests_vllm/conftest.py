"""A real `vllm serve` process, and the model that it serves."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from benchmarks.fixtures.tiny_model import save_tiny_model
from entropy_grpo.planning.commands import SERVE
from tests.conftest import REPOSITORY

START_SECONDS = 240
# The guard ends the server's whole process group when the server ends, and when its own standard input is closed: that
# is, when the tests end in whatever way, killed included.
GUARD = '("$@"; kill -KILL 0) & cat; kill -KILL 0'
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
}


def start_python(
    *words: str, folder: Path = REPOSITORY, given: str | None = None, seconds: float = 400, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, as vLLM wants it, with `given` as standard input."""
    return subprocess.run(
        [sys.executable, *words],
        input=given,
        cwd=folder,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def run_python(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python as `start_python` does; it must end well."""
    result = start_python(*words, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    # vLLM's attention on a processor has kernels for heads of 32 and more.
    return save_tiny_model(tmp_path_factory.mktemp("model"), head_dim=32)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory) -> str:
    """Like `model`, with other weights."""
    return save_tiny_model(tmp_path_factory.mktemp("other"), seed=1, head_dim=32)


@pytest.fixture(scope="session")
def server(model, tmp_path_factory):
    """Port of a server of the model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "vllm"), "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    command += [*SERVE, "--dtype", "float32", "--max-model-len", "128", "--enforce-eager"]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with open(log, "w") as file:
        process = subprocess.Popen(
            ["sh", "-c", GUARD, "guard", *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | ENVIRONMENT,
        )
    try:
        wait_until_healthy(process, f"http://127.0.0.1:{port}/health", log)
        yield port
    finally:
        end_group(process)


def wait_until_healthy(process: subprocess.Popen, url: str, log: Path) -> None:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit and process.poll() is None:
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.RequestException:  # not listening yet
            pass
        time.sleep(1)
    pytest.fail(f"vllm serve did not start within {START_SECONDS} s:\n{log.read_text()[-3000:]}")


def end_group(process: subprocess.Popen) -> None:
    """Ask the server to end, which frees its shared memory, and end the group for certain."""
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(5)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # all of them have ended
        pass
    process.wait()
