"""The numbers in the README are those of the recorded results, and the recorded results are what their parts say."""

import json
import math

import pytest

from benchmarks import embedded, measure, speed


@pytest.fixture
def results():
    return json.loads(embedded.RESULTS.read_text())


def test_readme_holds_the_recorded_table(results):
    assert measure.readme_block(embedded.TABLE)[1] == embedded.table(results).strip()


def test_readme_holds_the_recorded_speed():
    assert measure.readme_block(speed.TABLE)[1] == speed.tables().strip()


def test_intervals_are_those_of_the_seeds(results):
    """Student's t with two degrees of freedom has its 97.5% point at 4.303."""
    for arm in results["arms"].values():
        after = [seed["after"]["accuracy"] for seed in arm["seeds"].values()]
        mean = sum(after) / 3
        half = 4.302652730 * math.sqrt(sum((x - mean) ** 2 for x in after) / 2 / 3)
        recorded = arm["accuracy"]["after"]
        assert [recorded["low"], recorded["value"], recorded["high"]] == pytest.approx(
            [mean - half, mean, mean + half]
        )


def test_learning_rates_are_the_best_on_dev(results):
    for arm in results["arms"].values():
        assert arm["dev_accuracy"][arm["learning_rate"]] == max(arm["dev_accuracy"].values())
