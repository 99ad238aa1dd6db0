"""Grading in a pool of processes, with a time limit for each answer and for each call.

sympy may take seconds on a short answer and never return on a hostile one. A time limit by a signal, as in
math-verify, does not interrupt code that does not return to Python. Here a worker that exceeds the limit is killed and
replaced. Workers are renewed after `TASKS_PER_WORKER` answers because sympy's caches grow. Their memory is limited to
`WORKER_BYTES`.

Answers that need no mathematics do not go to a worker, and equal pairs are graded once. The first limit of an answer
is `FIRST_SECONDS`. An answer that exceeded it is graded again with the full limit after all others, so that it delays
only other slow answers. An answer whose worker ended is also graded again, because another process may have killed the
worker.
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
from concurrent.futures import Future, TimeoutError, wait
from contextlib import contextmanager
from fractions import Fraction
from itertools import accumulate
from multiprocessing import context, forkserver
from pathlib import Path
from types import ModuleType
from typing import Any

from pebble import ProcessFuture, ProcessPool

from . import Verdict, compare

LogMetric = Callable[[str, float], None]
Pair = tuple[str | None, str]

# Characters. Reference answers of mathematical data sets are far shorter, and the parser's time grows with the length.
LONGEST_ANSWER = 2000
# Levels of brackets. Reference answers have far fewer, and the parser's time grows even faster with the depth.
DEEPEST_ANSWER = 20
FIRST_SECONDS = 0.3
TASKS_PER_WORKER = 1000
START_SECONDS = 60.0
WORKER_BYTES = 4 * 2**30
# Reference of a first comparison, which detects answers that take too long to parse.
PROBE = "\\frac{3}{7}"
# Largest number of begun pairs whose verdicts are not requested yet. The oldest ones beyond it are cancelled.
MOST_BEGUN = 2**15

BRACKET = re.compile(r"[(\[{]|([)\]}])")
TERM = re.compile(r"[+-]?[0-9]{1,18}")
SUM = re.compile(rf"{TERM.pattern}(?:[+-][0-9]{{1,18}})*")
INTEGER = "([0-9]{1,18})"
QUOTIENT = re.compile(
    rf"([+-]?)(?:\\[dtc]?frac\{{{INTEGER}\}}\{{{INTEGER}\}}|{INTEGER}/{INTEGER}|{INTEGER}\.{INTEGER})"
)
METRICS = {
    "timeouts": Verdict.TIMEOUT,
    "failures": Verdict.FAILURE,
    "unparseable_references": Verdict.UNPARSEABLE_REFERENCE,
}


def nesting(text: str) -> int:
    """Return the largest number of brackets, of any kind, that are open at once."""
    steps = (-1 if bracket[1] else 1 for bracket in BRACKET.finditer(text))
    return max(accumulate(steps, initial=0))


def plain_value(text: str) -> int | Fraction | None:
    """Return the value of an integer, of a sum of integers, of a decimal or of a fraction, or None for other text."""
    if SUM.fullmatch(text):
        return sum(map(int, TERM.findall(text)))
    if not (match := QUOTIENT.fullmatch(text)):
        return None
    sign, *pairs, whole, decimals = match.groups()
    if decimals:
        return Fraction(f"{sign}{whole}.{decimals}")
    over, under = (int(number) for number in pairs if number)
    return Fraction(-over if sign == "-" else over, under) if under else None


def plain_verdict(answer: str | None, reference: str, relative_tolerance: float = 0.0) -> Verdict | None:
    """Return the verdict of `compare` if it takes no mathematics, otherwise None.

    An answer is wrong if it is missing or empty, is longer than `LONGEST_ANSWER` characters, or nests brackets deeper
    than `DEEPEST_ANSWER`.
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
    """Hide the path of the program's main module, so that a process started meanwhile does not import the module."""
    main: ModuleType = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    vars(main).update(dict.fromkeys(kept))
    try:
        yield
    finally:
        vars(main).update(kept)


class _Worker(context.ForkServerProcess):
    """Process that does not import the caller's script, which would train there if it has no `__main__` guard."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _without_script():
            return context.ForkServerProcess._Popen(process_obj)


class WorkerContext(context.ForkServerContext):
    """Context of `multiprocessing` whose processes do not import the caller's script."""

    Process = _Worker


def _prepare_worker() -> None:
    # Address space that the worker inherited does not count, because torch alone takes gigabytes.
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + WORKER_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # The pool's handler of SIGTERM waits until the worker returns to Python, and the pool waits for the worker.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _verdict(future: ProcessFuture, late: bool) -> Verdict:
    """Return the verdict of a scheduled comparison. If it is not done, it was `late`, or its pool broke."""
    if not future.done():
        return Verdict.TIMEOUT if late else Verdict.FAILURE
    try:
        return future.result()
    except TimeoutError:
        return Verdict.TIMEOUT
    except Exception:  # sympy raises errors of many types on a model's text, and the worker may end
        return Verdict.FAILURE


def known(verdict: Verdict) -> Future[Verdict]:
    """Return a future that has its result."""
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future


class Grader:
    """Grader of answers in a pool of processes.

    Parameters:
        workers: number of processes.
        seconds: wall-clock limit for one answer.
        total_seconds: longest time that a call waits. Answers not graded by then are timeouts.
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
        """Open a pool if there is none, and replace a broken one. pebble's pool breaks if an idle worker is killed."""
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
            future: ProcessFuture[Verdict] = ProcessFuture()
            future.set_exception(error)
            return future

    def _check_workers(self) -> None:
        """Check that the workers grade a known pair, so that no run trains on missing verdicts.

        Raises:
            RuntimeError: the pair is not graded as right.
        """
        known = ("\\sqrt{4}", "2")
        if self._collect([known], START_SECONDS, time.monotonic() + START_SECONDS)[known] is not Verdict.RIGHT:
            raise RuntimeError(
                "The grading processes do not grade \\sqrt{4} against 2; their errors are printed above."
            )

    def begin(self, answers: Sequence[str | None], references: Sequence[str]) -> list[Future[Verdict]]:
        """Start to grade and return at once. A later call with the same answers collects the verdicts.

        Returns:
            The verdict of each answer, as a future. A call grades an answer again if its future failed.
        """
        self._open_pool()
        pairs = list(zip(answers, references, strict=True))
        plain = {pair: plain_verdict(*pair, self.relative_tolerance) for pair in pairs}
        for pair, verdict in plain.items():
            if pair not in self._begun and verdict is None:
                self._begun[pair] = self._schedule(pair, min(FIRST_SECONDS, self.seconds))
        futures = [self._begun[pair] if plain[pair] is None else known(plain[pair]) for pair in pairs]
        while len(self._begun) > MOST_BEGUN:
            self._begun.pop(next(iter(self._begun))).cancel()
        return futures

    def _collect(self, pairs: Iterable[Pair], seconds: float, deadline: float) -> dict[Pair, Verdict]:
        """Return the workers' verdicts. Pairs not done at `deadline`, a time of `time.monotonic`, are timeouts."""
        self._open_pool()
        futures = {pair: self._begun.pop(pair, None) or self._schedule(pair, seconds) for pair in pairs}
        waiting: set[Future] = set(futures.values())
        while waiting and self._pool.active and (left := deadline - time.monotonic()) > 0:
            waiting = wait(waiting, min(left, 1.0)).not_done
        late = time.monotonic() >= deadline
        verdicts = {pair: _verdict(future, late) for pair, future in futures.items()}
        if waiting:
            if late:
                logging.getLogger(__name__).warning(
                    f"{len(waiting)} answers count as wrong, because they were not graded within "
                    f"grading_total_seconds ({self.total_seconds:g} s)."
                )
            self.close()
        return verdicts

    def _grade(self, pairs: Sequence[Pair], deadline: float) -> dict[Pair, Verdict]:
        """Return the verdict of every pair. Equal pairs are graded once."""
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
        """Return the verdict of each answer against its reference. Answers not graded in time are timeouts."""
        pairs = list(zip(answers, references, strict=True))
        by_pair = self._grade(pairs, time.monotonic() + self.total_seconds)
        return [by_pair[pair] for pair in pairs]

    def classes(self, answers: Sequence[str | None]) -> list[int]:
        """Number the answers to one question: equivalent answers share a number, and -1 is a missing answer.

        Classes are numbered in order of first appearance. Each answer is compared with the first answer of each class.
        An answer forms its own class with equal texts if it takes too long to parse, or if the time of the call ends.
        """
        deadline = time.monotonic() + self.total_seconds
        texts = [answer.strip() if answer else "" for answer in answers]
        values = {text: plain_value(text) for text in texts if text}
        by_value: dict[int | Fraction, str] = {}
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
        """Return 1.0 for each answer equivalent to its reference, and 0.0 for each other answer.

        Args:
            log_metric: receives three shares of the answers. `grading/timeouts` exceeded a limit. `grading/failures`
                raised an error or ended their worker. `grading/unparseable_references` have a reference that is
                neither mathematics nor words.
        """
        verdicts = self.verdicts(answers, references)
        if log_metric is not None and verdicts:
            counts = Counter(verdicts)
            for name, verdict in METRICS.items():
                log_metric(f"grading/{name}", counts[verdict] / len(verdicts))
        return [float(verdict is Verdict.RIGHT) for verdict in verdicts]


def core_count() -> int:
    """Return the number of cores that this process may use. A batch system may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count() -> int:
    """Return the number of workers per training process that lets all processes of the machine use all cores."""
    return max(1, core_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
