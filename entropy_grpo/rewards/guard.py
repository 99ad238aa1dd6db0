"""Guard around a user's reward function: every fault of the function ends the run with one sentence.

An exception, an exit and a result of the wrong form are reported with the function's name and the step. A time limit
interrupts Python code by an alarm. Compiled code that holds the interpreter does not see the alarm. A small process
beside the call therefore watches it: it kills a call that outlasts its limit, and reports a process that ends inside
the function.
"""

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..registry import FunctionError, line_of

# Seconds after the alarm in which the function may still end by itself.
GRACE = 5.0
# Waits for one byte, at most for a time; no byte in time, and none at all, each have their sentence.
WATCH = """
import os, select, signal, sys
seconds, late, gone, process = sys.argv[1:]
if not select.select([0], [], [], float(seconds) if seconds != "inf" else None)[0]:
    print("error: " + late, file=sys.stderr, flush=True)
    os.kill(int(process), signal.SIGKILL)
elif not os.read(0, 1):
    print("error: " + gone, file=sys.stderr, flush=True)
"""


class RewardError(FunctionError):
    """A fault of a user's reward function."""


class _Expired(BaseException):
    """The time of a call is over; no `Exception`, so that the function does not handle it by accident."""


class _Exited(Exception):
    """A coroutine has called `sys.exit`."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `_Expired` in this thread after some seconds, and every second from then on."""
    if math.isinf(seconds) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(*_: Any) -> None:
        raise _Expired

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _watched(seconds: float, late: str, gone: str) -> Iterator[None]:
    words = [str(seconds + GRACE), late, gone, str(os.getpid())]
    # A session of its own: Ctrl-C is for the run.
    watch = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WATCH, *words], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        watch.communicate(b".")


class _Guard:
    """Shared part of `Guarded` and `GuardedAsync`.

    Args:
        reward: the user's function.
        name: its name in metrics and messages.
        seconds: limit of a call, or None.
        where: returns words for the current step, and for the continuation from the last checkpoint.
    """

    def __init__(
        self, reward: Callable[..., Any], name: str, seconds: float | None, where: Callable[[], tuple[str, str]]
    ):
        self.__name__ = name
        self.reward, self.where = reward, where
        self.seconds = math.inf if seconds is None else seconds
        if callable(begin := getattr(reward, "begin", None)):
            self.begin = partial(self._begin, begin)

    def _begin(self, begin: Callable[..., Any], prompts: list, **columns: Any) -> list[Future] | None:
        """Let the function begin to grade while the run continues."""
        with self._guard(), _alarm(self.seconds):
            begun = begin(prompts=prompts, **columns)
        futures = isinstance(begun, list) and [isinstance(x, Future) for x in begun] == [True] * len(prompts)
        if begun is not None and not futures:
            raise RewardError(
                self._sentence("returns neither None nor a concurrent.futures.Future a response from begin,")
            )
        return begun

    def _sentence(self, fault: str) -> str:
        step, continuation = self.where()
        return f"the reward function {self.__name__} {fault} {step}: mend it, and {continuation}."

    @contextmanager
    def _guard(self) -> Iterator[None]:
        late = self._sentence(f"has not returned after reward_seconds ({self.seconds:g} s)")
        try:
            with _watched(self.seconds, late, self._sentence("ended the process")):
                yield
        except _Expired as error:
            raise RewardError(late) from error
        except (SystemExit, _Exited) as error:
            raise RewardError(self._sentence(f"exits (status {error.args[0] if error.args else None})")) from error
        except Exception as error:
            raise RewardError(self._sentence(self._raised(error))) from error

    def _raised(self, error: BaseException) -> str:
        text = " ".join(str(error).split())
        return f"raises {type(error).__name__}{f' ({text})' if text else ''}, {line_of(error, self.reward)},"

    def _checked(self, rewards: Any, number: int) -> list[float | None]:
        try:
            found = [None if reward is None else float(reward) for reward in rewards]
            if isinstance(rewards, str) or any(isinstance(reward, str) for reward in rewards):
                raise TypeError
        except (TypeError, ValueError):
            raise RewardError(self._sentence(f"returns {type(rewards).__name__}, no list of numbers,")) from None
        if len(found) != number:
            raise RewardError(self._sentence(f"returns {len(found)} rewards for {number} responses"))
        return found


class Guarded(_Guard):
    """A reward function with TRL's signature, whose faults are `RewardError`s."""

    def __call__(self, prompts: list, **columns: Any) -> list[float | None]:
        with self._guard(), _alarm(self.seconds):
            rewards = self.reward(prompts=prompts, **columns)
        return self._checked(rewards, len(prompts))


class GuardedAsync(_Guard):
    """The same for a coroutine function, which TRL awaits beside others in a thread of its own."""

    reward: Callable[..., Awaitable[Any]]

    async def __call__(self, prompts: list, **columns: Any) -> list[float | None]:
        with self._guard():
            try:
                async with asyncio.timeout(None if math.isinf(self.seconds) else self.seconds) as limit:
                    rewards = await self._awaited(prompts=prompts, **columns)
            except TimeoutError as error:
                if limit.expired():  # else the function's own
                    raise _Expired from error
                raise
        return self._checked(rewards, len(prompts))

    async def _awaited(self, **columns: Any) -> Any:
        try:
            return await self.reward(**columns)
        except SystemExit as error:  # which would end TRL's event loop, for whose results the run waits
            raise _Exited(error.code) from None
