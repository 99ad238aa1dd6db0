"""Part I: recipes as they ship on a tiny model on the GPU, and errors of Liger's layers in their architectures."""

from concurrent.futures import ThreadPoolExecutor

import torch

from .device_tests import run_tests
from .layers import errors
from .models import random_model
from .report import Report
from .sizes import Sizes

TESTS = "tests/test_shipped.py"


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
        more = {"SHIPPED_ON_GPU": "1"} if sizes.device == "cuda" else {}
        started = {name: pool.submit(run_tests, words, more) for name, words in jobs.items()}
        for name, future in started.items():
            with report.measure(name) as row:
                row |= future.result()
                if row["exit status"] != 0:
                    raise RuntimeError(f"pytest's exit status is {row['exit status']}")
