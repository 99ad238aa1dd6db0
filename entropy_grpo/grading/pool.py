"""Grading in worker processes that no answer can stop: each answer has a time limit, and so has each call.

Sympy may take seconds on a short answer and never return on a hostile one. A time limit by a signal, as in
math-verify, does not interrupt code that does not return to Python. Here a worker that exceeds the limit is killed and
replaced. Workers are renewed after `TASKS_PER_WORKER` answers because sympy's caches grow, and their memory is
bounded.

Answers that are plainly right or wrong do not go to a worker, and equal pairs are graded once. An answer has
`FIRST_SECONDS` at first. An answer that needs more gets the full limit after all others, so that a slow answer delays
only other slow answers. An answer that ended its worker gets a second try, too, because a worker may also have been
killed from outside.
"""

import logging
import os
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import TimeoutError, wait
from contextlib import contextmanager
from itertools import accumulate
from multiprocessing import context, forkserver
from pathlib import Path
from types import ModuleType
from typing import Any

from pebble import ProcessFuture, ProcessPool

from . import Verdict, compare

LogMetric = Callable[[str, float], None]
Pair = tuple[str | None, str]

# No reference answer of a mathematical data set is nearly as long, and the parser's time grows with the length.
LONGEST_ANSWER = 2000
# No reference answer is nested nearly as deeply, and the parser's time grows even faster with the depth.
DEEPEST_ANSWER = 20
FIRST_SECONDS = 0.3
TASKS_PER_WORKER = 1000
START_SECONDS = 60.0
WORKER_BYTES = 4 * 2**30
# Reference of a first comparison, which finds answers that take too long with any reference.
PROBE = "\\frac{3}{7}"
# Largest number of begun pairs whose verdicts nobody has requested; the oldest are forgotten.
MOST_BEGUN = 2**15

BRACKET = re.compile(r"[(\[{]|([)\]}])")
TERM = re.compile(r"[+-]?[0-9]{1,18}")
SUM = re.compile(rf"{TERM.pattern}(?:[+-][0-9]{{1,18}})*")
METRICS = {
    "timeouts": Verdict.TIMEOUT,
    "failures": Verdict.FAILURE,
    "unparseable_references": Verdict.UNPARSEABLE_REFERENCE,
}


def nesting(text: str) -> int:
    """Largest number of brackets, of any kind, that are open at once."""
    steps = (-1 if bracket[1] else 1 for bracket in BRACKET.finditer(text))
    return max(accumulate(steps, initial=0))


def plain_value(text: str) -> int | None:
    """The value of an integer in digits, or of a sum of such; None for other text."""
    return sum(map(int, TERM.findall(text))) if SUM.fullmatch(text) else None


def plain_verdict(answer: str | None, reference: str, relative_tolerance: float = 0.0) -> Verdict | None:
    """The verdict of `compare` if it takes no mathematics; None otherwise.

    An answer is wrong if it is missing or empty, or has more than `LONGEST_ANSWER` characters or `DEEPEST_ANSWER`
    brackets within brackets.
    """
    if answer is None or not answer.strip() or len(answer) > LONGEST_ANSWER:
        return Verdict.WRONG
    answer, reference = answer.strip(), reference.strip()
    if answer == reference:
        return Verdict.RIGHT
    value, wanted = plain_value(answer), plain_value(reference)
    if not relative_tolerance and value is not None and wanted is not None:
        return Verdict.RIGHT if value == wanted else Verdict.WRONG
    return Verdict.WRONG if nesting(answer) > DEEPEST_ANSWER else None


@contextmanager
def _without_script() -> Iterator[None]:
    """Hide where the program's main module lies, so that a process which begins now does not import it."""
    main: ModuleType = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    vars(main).update(dict.fromkeys(kept))
    try:
        yield
    finally:
        vars(main).update(kept)


class _Worker(context.ForkServerProcess):
    """A process that does not run the caller's script again: without a `__main__` guard it would train in there."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _without_script():
            return context.ForkServerProcess._Popen(process_obj)


class WorkerContext(context.ForkServerContext):
    """Context of `multiprocessing` whose processes know nothing of the caller's script."""

    Process = _Worker


def _prepare_worker() -> None:
    # Memory that the worker was forked with does not count: a script with torch has gigabytes of address space.
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + WORKER_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # The pool's own handler waits until the worker is back in Python; meanwhile the pool would stand still.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _verdict(future: ProcessFuture, late: bool) -> Verdict:
    """The verdict of a scheduled comparison; a comparison that is not done was `late`, or its pool broke."""
    if not future.done():
        return Verdict.TIMEOUT if late else Verdict.FAILURE
    try:
        return future.result()
    except TimeoutError:
        return Verdict.TIMEOUT
    except Exception:  # sympy raises errors of many types over text that a model wrote; its worker may end
        return Verdict.FAILURE


class Grader:
    """Grader of answers in a pool of processes.

    Parameters:
        workers: number of processes.
        seconds: wall-clock limit for one answer.
        total_seconds: longest time that a call waits; answers that are not graded by then are timeouts, too.
        relative_tolerance: largest distance of a real number from the reference, as a share of the reference.
    """

    def __init__(self, workers: int, seconds: float, total_seconds: float, relative_tolerance: float = 0.0):
        self.workers, self.seconds, self.total_seconds = workers, seconds, total_seconds
        self.relative_tolerance = relative_tolerance
        self._pool: ProcessPool | None = None
        self._begun: dict[Pair, ProcessFuture] = {}
        # The fork server imports while the caller does something else. The workers are forked from it, not from this
        # process, whose threads may hold locks.
        forkserver.set_forkserver_preload([f"{__package__}.warm_up"])
        forkserver.ensure_running()

    def _open_pool(self) -> None:
        """Open a pool if there is none, and replace a broken one: pebble's breaks when an idle worker is killed."""
        if self._pool is not None and not self._pool.active:
            self.close()
        if self._pool is None:
            self._pool = ProcessPool(
                max_workers=self.workers,
                max_tasks=TASKS_PER_WORKER,
                initializer=_prepare_worker,
                context=WorkerContext(),
            )

    def close(self) -> None:
        """Kill the workers. Comparisons that they began start again when their verdicts are requested."""
        self._begun.clear()
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _schedule(self, pair: Pair, seconds: float) -> ProcessFuture:
        try:
            tolerance = {"relative_tolerance": self.relative_tolerance}
            return self._pool.schedule(compare, args=pair, kwargs=tolerance, timeout=seconds)
        except RuntimeError as error:  # the pool broke just now
            future = ProcessFuture()
            future.set_exception(error)
            return future

    def _check_workers(self) -> None:
        """Raise `RuntimeError` if the pool grades nothing at all, so that nobody trains on missing verdicts."""
        known = ("1/2", "0.5")
        if self._collect([known], START_SECONDS, time.monotonic() + START_SECONDS)[known] is not Verdict.RIGHT:
            raise RuntimeError("No worker process grades a plain answer; what they ended with stands above.")

    def begin(self, answers: Sequence[str | None], references: Sequence[str]) -> None:
        """Start to grade and return at once; a later call with the same answers collects the verdicts."""
        self._open_pool()
        for pair in dict.fromkeys(zip(answers, references, strict=True)):
            if pair not in self._begun and plain_verdict(*pair, self.relative_tolerance) is None:
                self._begun[pair] = self._schedule(pair, min(FIRST_SECONDS, self.seconds))
        while len(self._begun) > MOST_BEGUN:
            self._begun.pop(next(iter(self._begun))).cancel()

    def _collect(self, pairs: Iterable[Pair], seconds: float, deadline: float) -> dict[Pair, Verdict]:
        """The workers' verdicts; pairs not done at the deadline, a reading of `time.monotonic`, are timeouts."""
        self._open_pool()
        futures = {pair: self._begun.pop(pair, None) or self._schedule(pair, seconds) for pair in pairs}
        waiting = set(futures.values())
        while waiting and self._pool.active and (left := deadline - time.monotonic()) > 0:
            waiting = wait(waiting, min(left, 1.0)).not_done
        late = time.monotonic() >= deadline
        verdicts = {pair: _verdict(future, late) for pair, future in futures.items()}
        if waiting:
            if late:
                logging.getLogger(__name__).warning(
                    f"{len(waiting)} answers count as wrong: they were not graded within grading_total_seconds "
                    f"({self.total_seconds:g})."
                )
            self.close()
        return verdicts

    def _grade(self, pairs: Sequence[Pair], deadline: float) -> dict[Pair, Verdict]:
        """The verdict of every pair; equal pairs are graded once."""
        verdicts = {pair: plain_verdict(*pair, self.relative_tolerance) for pair in pairs}
        waiting = [pair for pair, verdict in verdicts.items() if verdict is None]
        if waiting:
            verdicts |= self._collect(waiting, min(FIRST_SECONDS, self.seconds), deadline)
        more = self.seconds > FIRST_SECONDS
        again = [p for p in waiting if verdicts[p] is Verdict.FAILURE or (more and verdicts[p] is Verdict.TIMEOUT)]
        if again and time.monotonic() < deadline:
            verdicts |= self._collect(again, self.seconds, deadline)
        if waiting and all(verdicts[pair] is Verdict.FAILURE for pair in waiting):
            self._check_workers()
        return verdicts

    def verdicts(self, answers: Sequence[str | None], references: Sequence[str]) -> list[Verdict]:
        """The verdict of each answer against its reference; an answer that was not graded in time is a timeout."""
        pairs = list(zip(answers, references, strict=True))
        by_pair = self._grade(pairs, time.monotonic() + self.total_seconds)
        return [by_pair[pair] for pair in pairs]

    def classes(self, answers: Sequence[str | None]) -> list[int]:
        """Number the answers to one question: equivalent answers share a number, and -1 is no answer.

        Classes are numbered in order of first appearance, and each answer is compared with the first answer of each
        class. An answer has a class of its own text if it takes too long to read, or if the time of the call ends.
        """
        deadline = time.monotonic() + self.total_seconds
        texts = [answer.strip() if answer else "" for answer in answers]
        values = {text: plain_value(text) for text in texts if text}
        by_value: dict[int, str] = {}
        equals = {text: text if value is None else by_value.setdefault(value, text) for text, value in values.items()}
        left = list(dict.fromkeys(equals.values()))
        probes = self._grade([(text, PROBE) for text in left if values[text] is None], deadline)
        slow = {text for (text, _), verdict in probes.items() if verdict in (Verdict.TIMEOUT, Verdict.FAILURE)}
        firsts: dict[str, str] = {text: text for text in slow}
        left = [text for text in left if text not in slow]
        while left:
            first, *others = left
            firsts[first] = first
            open_ = [(text, first) for text in others if values[text] is None or values[first] is None]
            verdicts = self._grade(open_, deadline) if open_ and time.monotonic() < deadline else {}
            same = {text for (text, _), verdict in verdicts.items() if verdict is Verdict.RIGHT}
            firsts |= dict.fromkeys(same, first)
            left = [text for text in others if text not in same]
        first_of = {text: firsts[equal] for text, equal in equals.items()}
        numbers = {f: number for number, f in enumerate(dict.fromkeys(first_of[text] for text in texts if text))}
        return [numbers[first_of[text]] if text else -1 for text in texts]

    def __call__(
        self, answers: Sequence[str | None], references: Sequence[str], log_metric: LogMetric | None = None
    ) -> list[float]:
        """Grade answers: 1.0 for an answer that is equivalent to its reference, otherwise 0.0, also without a verdict.

        Args:
            log_metric: receives three shares of the answers. `grading/timeouts` exceeded a limit. `grading/failures`
                ended their worker or raised. `grading/unparseable_references` have a reference that is neither
                mathematics nor words.
        """
        verdicts = self.verdicts(answers, references)
        if log_metric is not None and verdicts:
            counts = Counter(verdicts)
            for name, verdict in METRICS.items():
                log_metric(f"grading/{name}", counts[verdict] / len(verdicts))
        return [float(verdict is Verdict.RIGHT) for verdict in verdicts]


def core_count() -> int:
    """Cores that this process may run on: a batch system may give it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count() -> int:
    """Number of workers for one training process, so that the workers of all the machine's processes fill it."""
    return max(1, core_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
