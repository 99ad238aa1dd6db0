"""Reward functions of users that fail in every way, under guard."""

import asyncio
import functools
import os
import re
import subprocess
import sys
import time
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from trl.trainer.utils import get_callable_name, is_async_callable

from entropy_grpo.rewards.guard import Guarded, GuardedAsync, RewardError

HERE = re.escape(__file__)
END = " at step 3: mend it, and continue from checkpoint-2."


def guarded(reward, seconds=None, kind=Guarded):
    return kind(reward, "mine", seconds, lambda: ("at step 3", "continue from checkpoint-2"))


def call(reward, seconds=None, prompts=("a", "b")):
    return guarded(reward, seconds)(prompts=list(prompts), completions=list(prompts), solution=["1", "2"])


def test_what_works_is_passed_on():
    def reward(prompts, completions, solution, **columns):
        return [torch.tensor(0.5), None]

    assert call(reward) == [0.5, None] and call(reward, 5.0) == [0.5, None]
    assert get_callable_name(guarded(reward)) == "mine" and not is_async_callable(guarded(reward))


def test_what_begins_returns_futures_or_nothing():
    futures = [Future(), Future()]

    class Begins:
        found: Any = None

        def begin(self, prompts, completions):
            return self.found

    for Begins.found in (None, futures):
        assert guarded(Begins()).begin(prompts=["a", "b"], completions=["x", "y"]) == Begins.found
    for Begins.found in (futures[:1], [0.0, 1.0], 3):
        with pytest.raises(RewardError, match=rf"neither None nor a .*Future a response from begin,{END}"):
            guarded(Begins()).begin(prompts=["a", "b"], completions=["x", "y"])


FAULTS = {
    "raises": (lambda **columns: 1 / 0, rf"raises ZeroDivisionError \(division by zero\), {HERE}:\d+, at"),
    "raises in a partial": (
        functools.partial(lambda number, **columns: os.fsencode(number), 3),
        rf"raises TypeError \(.*\), {HERE}:\d+, at",
    ),
    "exits with words": (lambda **columns: sys.exit("no"), r"exits \(status no\) at"),
    "exits": (lambda **columns: sys.exit(), r"exits \(status None\) at"),
    "raises below": (lambda **columns: os.fsencode(3), rf"raises TypeError \(.*\), {HERE}:\d+, at"),
    "raises lines": (lambda **columns: int("x\ny"), r"raises ValueError \(invalid literal .*\), .*, at"),
    "lets its own time run out": (
        lambda **columns: asyncio.run(asyncio.wait_for(asyncio.sleep(9), 0.01)),
        r"raises TimeoutError, .*, at",
    ),
    "returns None": (lambda **columns: None, "returns NoneType, no list of numbers, at"),
    "returns text": (lambda **columns: "10", "returns str, no list of numbers, at"),
    "returns texts": (lambda **columns: ["1", 2], "returns list, no list of numbers, at"),
    "returns too few": (lambda **columns: [1.0], "returns 1 rewards for 2 responses at"),
    "returns a number": (lambda **columns: 0.5, "returns float, no list of numbers, at"),
}


@pytest.mark.parametrize(("reward", "said"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_sentence_with_name_step_and_checkpoint(reward, said):
    with pytest.raises(RewardError, match=rf"^the reward function mine {said}{re.escape(END[3:])}$") as raised:
        call(reward)
    assert "\n" not in str(raised.value)


def test_ctrl_c_is_no_fault_of_the_function():
    def reward(**columns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(reward)


def handles_everything(**columns):
    while True:
        try:
            time.sleep(9)
        except Exception:
            pass


@pytest.mark.parametrize(
    "reward", [handles_everything, lambda **columns: [time.sleep(9)] * 2], ids=["handling everything", "asleep"]
)
def test_a_function_that_hangs_is_interrupted(reward):
    start = time.monotonic()
    with pytest.raises(
        RewardError, match=r"^the reward function mine has not returned after reward_seconds \(0.1 s\)"
    ):
        call(reward, 0.1)
    assert time.monotonic() - start < 3
    assert call(lambda **columns: [1, 0], 0.1) == [1.0, 0.0]
    time.sleep(0.15)  # no alarm is left behind


def await_in_loop(reward, seconds=None):
    async def main():
        return await guarded(reward, seconds, GuardedAsync)(prompts=["a", "b"], completions=["a", "b"])

    return asyncio.run(main())


def test_coroutine_functions_alike():
    async def right(prompts, completions):
        return [1, None]

    async def hangs(**columns):
        await asyncio.sleep(9)

    async def raises(**columns):
        raise KeyError("solution")

    async def leaves(**columns):
        sys.exit(3)

    assert is_async_callable(guarded(right, kind=GuardedAsync)) and await_in_loop(right) == [1.0, None]
    for reward, said in ((hangs, "has not returned"), (raises, "raises KeyError"), (leaves, r"exits \(status 3\)")):
        with pytest.raises(RewardError, match=f"^the reward function mine {said}.*{re.escape(END)}$"):
            await_in_loop(reward, 0.1)


def late_connection(**columns):
    raise TimeoutError("timed out")


async def late_connection_awaited(**columns):
    raise TimeoutError("timed out")


@pytest.mark.parametrize("seconds", [None, 600.0])
def test_a_time_limit_of_the_function_itself_is_its_own_fault(seconds):
    """In Python 3.11 sockets, futures and asyncio raise this error."""
    said = rf"^the reward function mine raises TimeoutError \(timed out\), {HERE}:\d+,{re.escape(END)}$"
    with pytest.raises(RewardError, match=said):
        call(late_connection, seconds)
    with pytest.raises(RewardError, match=said):
        await_in_loop(late_connection_awaited, seconds)


DEAF = """
import collections, itertools, os, sys
from entropy_grpo.rewards import guard
guard.GRACE = 0.2
hangs = sys.argv[1] == "hangs"
reward = lambda **columns: collections.deque(itertools.repeat(0), maxlen=0) if hangs else os._exit(0)
where = lambda: ("at step 3", "continue from checkpoint-2")
guard.Guarded(reward, "mine", 0.1 if hangs else None, where)(prompts=["a"])
"""


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [("hangs", -9, "has not returned after reward_seconds (0.1 s)"), ("leaves", 0, "ended the process")],
)
def test_code_that_no_signal_reaches_is_ended_from_outside(how, status, said):
    """A loop in compiled code that holds the interpreter, and an exit past all handlers."""
    result = subprocess.run([sys.executable, "-c", DEAF, how], capture_output=True, text=True, timeout=60)
    assert result.returncode == status
    assert result.stderr == f"error: the reward function mine {said}{END}\n"
