"""The dry run of a rollout of the paper's size (benchmarks/paper_size.py), with few and short responses."""

import sys
from functools import partial

import pytest

from benchmarks import paper_size


def calls_of(function):
    """The result of a function, and the number of Python functions that it calls."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        return function(), count
    finally:
        sys.setprofile(None)


@pytest.mark.slow
def test_a_resumed_rollout_takes_the_same_step_and_the_work_grows_with_the_responses(tmp_path):
    found, calls = {}, {}
    for prompts in (2, 8):
        folder = tmp_path / str(prompts)
        folder.mkdir()
        found[prompts], calls[prompts] = calls_of(partial(paper_size.train, folder, prompts, 64, False))
    resumed = paper_size.train(tmp_path / "8", 8, 64, True)
    for part in ("step after the checkpoint", "checkpoint_gib"):
        assert resumed[part] == found[8][part]
    assert found[8]["step after the checkpoint"]["selection/kept_fraction"] > 0
    assert {"grade", "select", "plan", "save"} <= set(found[8]["seconds"]) and "load" in resumed["seconds"]
    # Work that is quadratic in the responses would be sixteen times as much.
    assert calls[8] < 5 * calls[2]


def test_seconds_of_a_part_within_another_count_once():
    clock = paper_size.Clock()
    with clock.part("outer"), clock.part("inner"):
        sum(range(10**6))
    assert clock.seconds["inner"] > 10 * clock.seconds["outer"] > 0


def test_exponents_are_powers_of_the_number_of_responses():
    sizes = [
        {
            "responses": n,
            "train": {"seconds": {"linear": 2.0 * n, "quadratic": 0.5 * n**2, "short": 0.1}},
            "resume": {"seconds": {}},
        }
        for n in (10, 30)
    ]
    assert paper_size.exponents(sizes) == {"train: linear": 1.0, "train: quadratic": 2.0}
