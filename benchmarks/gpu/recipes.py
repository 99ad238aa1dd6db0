"""Part I: recipes as they ship on a tiny model on the GPU, and errors of Liger's layers in their architectures."""

import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ROOT

from .layers import errors
from .models import random_model
from .report import Report
from .sizes import Sizes

TESTS = "tests/test_shipped.py"


def test(on_gpu: bool, words: list[str]) -> dict[str, Any]:
    """Run tests of `TESTS` in a process of their own, and return how each ended."""
    start = time.perf_counter()
    environment = os.environ | ({"SHIPPED_ON_GPU": "1"} if on_gpu else {})
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", *words, "-q", "-p", "no:cacheprovider", f"--junitxml={xml}"]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        print(result.stdout, result.stderr, flush=True)
        found: dict[str, Any] = {"exit status": result.returncode}
        for case in ElementTree.parse(xml).iter("testcase"):
            ended = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            found[case.get("name")] = "passed" if ended is None else f"{ended.tag}: {shortened(ended.get('message'))}"
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def shortened(message: str) -> str:
    """The last error of a message that ends with the output of a process, otherwise the message."""
    return (re.findall(r"\b\w*Error: \S.*", message) or [message])[-1].strip()


def run(report: Report, sizes: Sizes) -> None:
    """Compare the layers' errors, then run the tests, some processes side by side."""
    for name, config in sizes.layers_models.items():
        with report.measure(f"errors of the layers: {name}") as row:
            ids = torch.randint(3, config.vocab_size, (2, sizes.probe_longest), generator=torch.Generator())
            row |= errors(random_model(config, sizes.device), ids.to(sizes.device))
    functions = ("test_it_trains_evaluates_saves_and_loads", "test_it_goes_on_from_a_checkpoint")
    jobs = {name: [f"{TESTS}::{function}[{name}]" for function in functions] for name in sizes.recipes}
    jobs |= {column: [f"{TESTS}::test_dtypes_are_those_of_the_table[{column}]"] for column in sizes.columns}
    with ThreadPoolExecutor(sizes.jobs) as pool:
        started = {name: pool.submit(test, sizes.device == "cuda", words) for name, words in jobs.items()}
        for name, future in started.items():
            with report.measure(name) as row:
                row |= future.result()
                if row["exit status"] != 0:
                    raise RuntimeError(f"pytest's exit status is {row['exit status']}")
