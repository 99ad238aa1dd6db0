"""Grading in worker processes that no answer can stop: each answer has a wall-clock limit of its own.

math-verify hands an answer to sympy, which may take seconds over a short one and for ever over a hostile one, and its
own time limit, a signal, does not interrupt what does not return to Python. Here a worker that passes the limit is
killed and replaced, workers are renewed after a while because sympy's caches grow, and their memory is bounded.
Answers that are plainly right or wrong do not go to a worker, and equal pairs go once.
"""

import os
import re
import resource
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError
from functools import cached_property
from multiprocessing import get_context

from pebble import ProcessPool

from .grading import equivalent

LogMetric = Callable[[str, float], None]

# No reference answer of a mathematical data set is nearly as long, and the parser's time grows with the length.
LONGEST_ANSWER = 2000
TASKS_PER_WORKER = 2000
WORKER_BYTES = 4 * 2**30
# A worker imports sympy and the parser before its first answer, on a machine that may be busy.
START_SECONDS = 60.0

INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def plain_verdict(answer: str | None, reference: str) -> bool | None:
    """The verdict where it takes no mathematics; None where it does.

    No answer, an empty one and one of more than `LONGEST_ANSWER` characters are wrong.
    """
    if answer is None or not answer.strip() or len(answer) > LONGEST_ANSWER:
        return False
    answer, reference = answer.strip(), reference.strip()
    if answer == reference:
        return True
    if INTEGER.fullmatch(answer) and INTEGER.fullmatch(reference):
        return int(answer) == int(reference)
    return None


def _bound_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))


def _ready() -> None:
    equivalent("\\frac{1}{2}", "0.5")


class Grader:
    """Grades answers in a pool of processes; `workers` of them, `seconds` for an answer."""

    def __init__(self, workers: int, seconds: float):
        self.workers, self.seconds = workers, seconds

    @cached_property
    def _pool(self) -> ProcessPool:
        # Not forked from this process: its threads may hold locks.
        pool = ProcessPool(
            max_workers=self.workers,
            max_tasks=TASKS_PER_WORKER,
            initializer=_bound_memory,
            context=get_context("forkserver"),
        )
        for started in [pool.schedule(_ready, timeout=START_SECONDS) for _ in range(self.workers)]:
            started.result()
        return pool

    def __call__(
        self, answers: Sequence[str | None], references: Sequence[str], log_metric: LogMetric | None = None
    ) -> list[float]:
        """1.0 for an answer that is equivalent to its reference, else 0.0, also where that was not found out.

        `log_metric` gets `grading/timeouts`, answers that passed the limit, and `grading/failures`, those that ended
        their worker or raised, as shares of the answers.
        """
        pairs = list(zip(answers, references, strict=True))
        verdicts = {pair: plain_verdict(*pair) for pair in pairs}
        waiting = {
            pair: self._pool.schedule(equivalent, args=pair, timeout=self.seconds)
            for pair, verdict in verdicts.items()
            if verdict is None
        }
        failed: dict[tuple, str] = {}
        for pair, future in waiting.items():
            try:
                verdicts[pair] = future.result()
            except TimeoutError:
                verdicts[pair], failed[pair] = False, "timeouts"
            except Exception:  # whatever sympy raises over text that a model wrote, or the end of its worker
                verdicts[pair], failed[pair] = False, "failures"
        if log_metric is not None and pairs:
            counts = Counter(failed[pair] for pair in pairs if pair in failed)
            for name in ("timeouts", "failures"):
                log_metric(f"grading/{name}", counts[name] / len(pairs))
        return [float(verdicts[pair]) for pair in pairs]


def worker_count() -> int:
    """Workers for this one of the machine's training processes, so that together they fill it."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
