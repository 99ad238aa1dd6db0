"""Grading in worker processes that no answer can stop: each answer has a time limit, and so has each call.

Grading hands an answer to sympy, which may take seconds over a short one and for ever over a hostile one. A time limit
by a signal, as math-verify has one, does not interrupt what does not return to Python. Here a worker that passes the
limit is killed and replaced, workers are renewed after a while because sympy's caches grow, and their memory is
bounded.

Answers that are plainly right or wrong do not go to a worker, and equal pairs go once. An answer has `FIRST_SECONDS`
at first; those that need more get the limit after all others, so that slow answers hold up few but each other. What
ended its worker has a second try, too: a worker may also have been killed from outside.
"""

import logging
import os
import re
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import TimeoutError, wait
from itertools import accumulate
from multiprocessing import forkserver, get_context
from pathlib import Path

from pebble import ProcessFuture, ProcessPool

from . import Verdict, compare

LogMetric = Callable[[str, float], None]
Pair = tuple[str | None, str]

# No reference answer of a mathematical data set is nearly as long, and the parser's time grows with the length.
LONGEST_ANSWER = 2000
# Nor is one nested nearly as deeply, and it grows faster than that with the depth.
DEEPEST_ANSWER = 20
FIRST_SECONDS = 0.3
TASKS_PER_WORKER = 1000
START_SECONDS = 60.0
WORKER_BYTES = 4 * 2**30
# What answers are compared with to find those that take too long with whatever.
PROBE = "\\frac{3}{7}"
# Pairs that were begun and never asked for are forgotten beyond this many.
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
    """How many brackets are open at once at most, of whatever kind."""
    steps = (-1 if bracket[1] else 1 for bracket in BRACKET.finditer(text))
    return max(accumulate(steps, initial=0))


def plain_value(text: str) -> int | None:
    """The value of an integer in digits, or of a sum of such; None for other text."""
    return sum(map(int, TERM.findall(text))) if SUM.fullmatch(text) else None


def plain_verdict(answer: str | None, reference: str, relative_tolerance: float = 0.0) -> Verdict | None:
    """The verdict where it takes no mathematics, as `compare` finds it; None where it does.

    No answer, an empty one, and one of more than `LONGEST_ANSWER` characters or `DEEPEST_ANSWER` brackets within
    brackets are wrong.
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


def _prepare_worker() -> None:
    # What the worker was forked with counts nothing: a script that imports torch has gigabytes of address space.
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + WORKER_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # The pool's own handler waits until the worker is back in Python; meanwhile the pool would stand still.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _verdict(future: ProcessFuture, late: bool) -> Verdict:
    """What came of a scheduled comparison; one that is not done was `late`, or its pool broke."""
    if not future.done():
        return Verdict.TIMEOUT if late else Verdict.FAILURE
    try:
        return future.result()
    except TimeoutError:
        return Verdict.TIMEOUT
    except Exception:  # whatever sympy raises over text that a model wrote, or the end of its worker
        return Verdict.FAILURE


class Grader:
    """Grades answers in a pool of processes.

    Parameters:
        workers: how many processes.
        seconds: wall-clock limit for one answer.
        total_seconds: how long a call waits at most; what is not graded by then is a timeout, too.
        relative_tolerance: how far a real number may be from the reference, as a share of it.
    """

    def __init__(self, workers: int, seconds: float, total_seconds: float, relative_tolerance: float = 0.0):
        self.workers, self.seconds, self.total_seconds = workers, seconds, total_seconds
        self.relative_tolerance = relative_tolerance
        self._pool: ProcessPool | None = None
        self._begun: dict[Pair, ProcessFuture] = {}
        # Imports while the caller does something else. The workers are forked from that process, not from this one,
        # whose threads may hold locks.
        forkserver.set_forkserver_preload(["__main__", f"{__package__}.warm_up"])
        forkserver.ensure_running()

    def _open_pool(self) -> None:
        """Have a pool that works; one that broke, as pebble's does when an idle worker is killed, is replaced."""
        if self._pool is not None and not self._pool.active:
            self.close()
        if self._pool is None:
            self._pool = ProcessPool(
                max_workers=self.workers,
                max_tasks=TASKS_PER_WORKER,
                initializer=_prepare_worker,
                context=get_context("forkserver"),
            )

    def close(self) -> None:
        """Kill the workers. What was begun with them begins anew, with others, where it is asked for."""
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
        """`RuntimeError` where the pool does not grade at all, so that nobody trains on what it does not say."""
        known = ("1/2", "0.5")
        if self._collect([known], START_SECONDS, time.monotonic() + START_SECONDS)[known] is not Verdict.RIGHT:
            raise RuntimeError("No worker process grades a plain answer; what they ended with stands above.")

    def begin(self, answers: Sequence[str | None], references: Sequence[str]) -> None:
        """Start to grade and return at once; a later call with the same answers collects."""
        self._open_pool()
        for pair in dict.fromkeys(zip(answers, references, strict=True)):
            if pair not in self._begun and plain_verdict(*pair, self.relative_tolerance) is None:
                self._begun[pair] = self._schedule(pair, min(FIRST_SECONDS, self.seconds))
        while len(self._begun) > MOST_BEGUN:
            self._begun.pop(next(iter(self._begun))).cancel()

    def _collect(self, pairs: Iterable[Pair], seconds: float, deadline: float) -> dict[Pair, Verdict]:
        """The workers' verdicts; at the deadline, a reading of `time.monotonic`, the others are timeouts."""
        self._open_pool()
        futures = {pair: self._begun.pop(pair, None) or self._schedule(pair, seconds) for pair in pairs}
        waiting = set(futures.values())
        while waiting and self._pool.active and (left := deadline - time.monotonic()) > 0:
            waiting = wait(waiting, min(left, 1.0)).not_done
        late = time.monotonic() >= deadline
        found = {pair: _verdict(future, late) for pair, future in futures.items()}
        if waiting:
            if late:
                logging.getLogger(__name__).warning(
                    f"{len(waiting)} answers count as wrong: they were not graded within grading_total_seconds "
                    f"({self.total_seconds:g})."
                )
            self.close()
        return found

    def _grade(self, pairs: Sequence[Pair], deadline: float) -> dict[Pair, Verdict]:
        """The verdict of every pair, each found once."""
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
        """What comes of each answer beside its reference; one that was not graded in time is a timeout."""
        pairs = list(zip(answers, references, strict=True))
        found = self._grade(pairs, time.monotonic() + self.total_seconds)
        return [found[pair] for pair in pairs]

    def classes(self, answers: Sequence[str | None]) -> list[int]:
        """A number for each answer to one question, the same for those that say the same; -1 for no answer.

        Classes are numbered as they first appear, and each answer is compared with the first of each. One that takes
        too long to read, and what is left at the end of the time for a call, has a class of its own text.
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
            found = self._grade(open_, deadline) if open_ and time.monotonic() < deadline else {}
            same = {text for (text, _), verdict in found.items() if verdict is Verdict.RIGHT}
            firsts |= dict.fromkeys(same, first)
            left = [text for text in others if text not in same]
        found_first = {text: firsts[equal] for text, equal in equals.items()}
        numbers = {f: number for number, f in enumerate(dict.fromkeys(found_first[text] for text in texts if text))}
        return [numbers[found_first[text]] if text else -1 for text in texts]

    def __call__(
        self, answers: Sequence[str | None], references: Sequence[str], log_metric: LogMetric | None = None
    ) -> list[float]:
        """1.0 for an answer that is equivalent to its reference, else 0.0, also where that was not found out.

        `log_metric` gets shares of the answers: `grading/timeouts`, those that passed a limit, `grading/failures`,
        those that ended their worker or raised, and `grading/unparseable_references`, those whose reference is neither
        mathematics nor words.
        """
        verdicts = self.verdicts(answers, references)
        if log_metric is not None and verdicts:
            counts = Counter(verdicts)
            for name, verdict in METRICS.items():
                log_metric(f"grading/{name}", counts[verdict] / len(verdicts))
        return [float(verdict is Verdict.RIGHT) for verdict in verdicts]


def worker_count() -> int:
    """Workers for this one of the machine's training processes, so that together they fill it."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
