"""Part A: facts about the device, and tests/test_gpu.py on it."""

import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ROOT

from .report import Report
from .sizes import Sizes


def run(report: Report, sizes: Sizes) -> None:
    """Record the device, then run the tests in a separate process."""
    with report.measure("device") as row:
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            row |= {
                "name of the GPU": properties.name,
                "bytes": properties.total_memory,
                "bytes free": torch.cuda.mem_get_info()[0],
                "multiprocessors": properties.multi_processor_count,
                "capability": torch.cuda.get_device_capability(),
                "matrix product, TFLOP/s": _product(),
            }
    with report.measure("tests/test_gpu.py") as row:
        row |= run_tests(["tests/test_gpu.py"], {})
        if row["exit status"] != 0:
            raise RuntimeError(f"pytest's exit status is {row['exit status']}")


def run_tests(words: list[str], more: dict[str, str]) -> dict[str, Any]:
    """Run tests in a process of their own, and return how each ended.

    Args:
        words: files or names of tests, for pytest.
        more: environment variables to add.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", *words, "-q", "-p", "no:cacheprovider", f"--junitxml={xml}"]
        result = subprocess.run(command, cwd=ROOT, env=os.environ | more, capture_output=True, text=True)
        print(result.stdout, result.stderr, flush=True)
        found: dict[str, Any] = {"exit status": result.returncode}
        for case in ElementTree.parse(xml).iter("testcase"):
            ended = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            found[case.get("name")] = "passed" if ended is None else f"{ended.tag}: {shortened(ended.get('message'))}"
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def shortened(message: str) -> str:
    """The last error of a message that ends with the output of a process, otherwise the message."""
    return (re.findall(r"\b\w*Error: \S.*", message) or [message])[-1].strip()


def _product(size: int = 8192, repeats: int = 10) -> float:
    """TFLOP/s of a bfloat16 matrix product of random data, as a reference for other measurements."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        a @ b
    end.record()
    torch.cuda.synchronize()
    return 2 * size**3 * repeats / start.elapsed_time(end) / 1e9
