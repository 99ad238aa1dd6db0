"""The grader under attack, and its speed on ordinary answers compared with plain math-verify.

python -m benchmarks.verifier            # ten minutes on two cores, benchmarks/results/verifier.json and the tables
python -m benchmarks.verifier --parts throughput    # one part; recorded results of other parts stay
python -m benchmarks.verifier --table    # only the tables of the recorded results
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from benchmarks.fixtures.hostile_answers import KINDS, hostile_answers
from entropy_grpo.grading.pool import FIRST_SECONDS, Grader, plain_verdict
from entropy_grpo.metrics.tables import table as markdown_table

# `benchmarks.measure` is imported where it is used: every worker imports the main module again, and `measure` needs
# torch.

COMMAND = "python -m benchmarks.verifier"
ATTACKS, SEED, WORKERS = 10_000, 0, 2
ATTACKED_WORKERS = 4
REFERENCES = ("8", "x+1", "\\frac{3}{7}", "\\{1, 2\\}")
# An attack within ordinary answers, under the limits that a recipe has by default.
MIXED, SECONDS, TOTAL_SECONDS = 300, 5.0, 120.0
PROBLEMS, GROUP, TURNS = 128, 16, 3


# Ordinary answers resemble a rollout: groups of answers to one problem, many of them equal.


def _forms(rng: Random) -> tuple[list[str], Callable[[], str]]:
    """Forms of the answer to a problem, the reference first, and a function that draws wrong answers."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.choice((2, 3, 5, 6, 7))
    n = rng.randint(0, 99_999)
    kinds: list[tuple[float, list[str], Callable[[int], str]]] = [
        (45, [f"{n}", f"{n}.0", f"{n:,}", f"\\boxed{{{n}}}", f"x={n}"], lambda d: f"{n + d}"),
        (
            12,
            [f"\\frac{{{a}}}{{{b}}}", f"\\dfrac{{{a}}}{{{b}}}", f"{a}/{b}", f"\\frac{{{2 * a}}}{{{2 * b}}}"],
            lambda d: f"\\frac{{{a + d}}}{{{b}}}",
        ),
        (6, [f"{n / 100:.2f}", f"{n / 100:.3f}", f"\\frac{{{n}}}{{100}}"], lambda d: f"{(n + d) / 100:.2f}"),
        (
            15,
            [f"{a}\\sqrt{{{c}}}", f"\\sqrt{{{c}}}\\cdot {a}", f"\\sqrt{{{a * a * c}}}"],
            lambda d: f"{a + d}\\sqrt{{{c}}}",
        ),
        (5, [f"\\frac{{{a}\\pi}}{{{b}}}", f"{a}\\pi/{b}"], lambda d: f"\\frac{{{a + d}\\pi}}{{{b}}}"),
        (6, [f"{a}x^2+{b}x+{c}", f"{c}+{b}x+{a}x^{{2}}"], lambda d: f"{a}x^2+{b + d}x+{c}"),
        (3, [f"\\{{{a}, {a + b}\\}}", f"\\{{{a + b},{a}\\}}"], lambda d: f"\\{{{a}, {a + b + d}\\}}"),
        (4, [f"[{a}, {a + b})", f"[{a},{a + b})"], lambda d: f"[{a}, {a + b + d})"),
        (3, [f"({a}, {b})", f"({a},{b})"], lambda d: f"({a + d}, {b})"),
        (1, ["\\text{Monday}", "Monday"], lambda d: f"\\text{{day {d}}}"),
    ]
    _, right, wrong = rng.choices(kinds, [share for share, *_ in kinds])[0]
    return right, lambda: wrong(rng.choice((1, 1, 2, 3, 10)))


def ordinary_pairs(seed: int) -> list[tuple[str | None, str]]:
    """`PROBLEMS` groups of `GROUP` answers: 8% missing, 55% right (most in the reference's words), the rest wrong."""
    rng, pairs = Random(seed), []
    for _ in range(PROBLEMS):
        right, wrong = _forms(rng)
        for _ in range(GROUP):
            kind = rng.choices(("none", "same", "right", "wrong"), (8, 38, 17, 37))[0]
            answer = {"none": None, "same": right[0], "right": rng.choice(right), "wrong": wrong()}[kind]
            pairs.append((answer, right[0]))
    return pairs


def plain_math_verify(pairs: list[tuple[str | None, str]]) -> list[float]:
    """math-verify alone, one pair after the other, with its own time limits."""
    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def grade(answer: str | None, reference: str) -> float:
        if answer is None:
            return 0.0
        read = [parse(f"\\boxed{{{text}}}", extraction_config=config) for text in (reference, answer)]
        return float(verify(*read))

    return [grade(*pair) for pair in pairs]


class Watch(threading.Thread):
    """Measures every few milliseconds how long workers have been busy with their answers."""

    def __init__(self, grader: Grader):
        super().__init__(daemon=True)
        self.grader, self.longest, self.stopped = grader, 0.0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.005):
            if self.grader._pool is not None:
                tasks = dict(self.grader._pool._pool_manager.task_manager.tasks)
                ages = [time.time() - task.timestamp for task in tasks.values() if task.started]
                self.longest = max([self.longest, *ages])


def living_workers(grader: Grader) -> int:
    """Worker processes that are alive."""
    return sum(w.is_alive() for w in grader._pool._pool_manager.worker_manager.workers.values())


def graded(
    grader: Grader, answers: list[str | None], references: list[str]
) -> tuple[list[float], dict[str, float], float]:
    """(grades, logged metrics, seconds)."""
    logged: dict[str, float] = {}
    start = time.perf_counter()
    grades = grader(answers, references, logged.__setitem__)
    return grades, logged, time.perf_counter() - start


def attack() -> dict[str, Any]:
    """Grade all hostile answers in one call with a limit of `FIRST_SECONDS` each, and then ordinary answers."""
    references = [REFERENCES[i % len(REFERENCES)] for i in range(ATTACKS)]
    ordinary = list(dict.fromkeys(pair for pair in ordinary_pairs(99) if plain_verdict(*pair) is None))[:100]
    expected = plain_math_verify(ordinary)
    with tempfile.TemporaryDirectory() as folder:
        answers = hostile_answers(ATTACKS, f"{folder}/hacked")
        grader = Grader(ATTACKED_WORKERS, FIRST_SECONDS, 3600.0)
        graded(grader, ["\\sqrt{4}"], ["2"])
        watch = Watch(grader)
        watch.start()
        grades, logged, seconds = graded(grader, answers, references)
        watch.stopped.set()
        after, _, seconds_after = graded(grader, *map(list, zip(*ordinary, strict=True)))
        time.sleep(1)  # the last workers that were killed are being replaced
        alive = living_workers(grader)
        files = len(list(Path(folder).iterdir()))
    grader.close()
    return {
        "answers": ATTACKS,
        "kinds": [kind.__name__ for kind in KINDS],
        "without_worker": sum(plain_verdict(*p) is not None for p in zip(answers, references, strict=True)),
        "limit_seconds": FIRST_SECONDS,
        "graded_right": int(sum(grades)),
        "timeouts": round(logged["grading/timeouts"] * ATTACKS),
        "failures": round(logged["grading/failures"] * ATTACKS),
        "longest_beyond_limit_seconds": watch.longest - FIRST_SECONDS,
        "workers": ATTACKED_WORKERS,
        "workers_alive_after": alive,
        "files_made": files,
        "seconds": seconds,
        "ordinary_after": len(ordinary),
        "ordinary_after_as_math_verify": sum(a == b for a, b in zip(after, expected, strict=True)),
        "ordinary_after_seconds": seconds_after,
    }


def mixed() -> dict[str, Any]:
    """Grade hostile and ordinary answers together under a recipe's default limits."""
    ordinary = list(dict.fromkeys(pair for pair in ordinary_pairs(98) if plain_verdict(*pair) is None))[:MIXED]
    pairs = [*ordinary, *((answer, "8") for answer in hostile_answers(MIXED, "hacked", seed=1))]
    Random(SEED).shuffle(pairs)
    grader = Grader(WORKERS, SECONDS, TOTAL_SECONDS)
    graded(grader, ["\\sqrt{4}"], ["2"])
    grades, logged, seconds = graded(grader, *map(list, zip(*pairs, strict=True)))
    found = dict(zip(pairs, grades, strict=True))
    grader.close()
    expected = plain_math_verify(ordinary)
    return {
        "hostile": MIXED,
        "ordinary": len(ordinary),
        "limit_seconds": SECONDS,
        "total_limit_seconds": TOTAL_SECONDS,
        "seconds": seconds,
        "timeouts": round(logged["grading/timeouts"] * len(pairs)),
        "ordinary_as_math_verify": sum(found[p] == e for p, e in zip(ordinary, expected, strict=True)),
    }


def throughput() -> dict[str, Any]:
    """Answers per second. Every turn has other answers, and the first is not counted."""
    graders = {f"grader, {n} worker{'s' * (n > 1)}": Grader(n, SECONDS, 3600.0) for n in (1, WORKERS)}
    rates: dict[str, list[float]] = {"plain math-verify": [], **{name: [] for name in graders}}
    different, no_worker, repeated, count = 0, 0, 0, PROBLEMS * GROUP
    for turn in range(TURNS + 1):
        pairs = ordinary_pairs(turn)
        start = time.perf_counter()
        expected = plain_math_verify(pairs)
        taken = {"plain math-verify": time.perf_counter() - start}
        for name, grader in graders.items():
            grades, _, taken[name] = graded(grader, *map(list, zip(*pairs, strict=True)))
            different += sum(a != b for a, b in zip(grades, expected, strict=True))
        plain = sum(plain_verdict(*pair) is not None for pair in pairs)
        no_worker += plain
        repeated += count - plain - len({pair for pair in pairs if plain_verdict(*pair) is None})
        if turn:
            for name in rates:
                rates[name].append(count / taken[name])
    for grader in graders.values():
        grader.close()
    every = count * (TURNS + 1)
    return {
        "answers": count,
        "turns": TURNS,
        "answers_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "every_turn": rates,
        "plain_share": no_worker / every,
        "repeated_share": repeated / every,
        "graded_otherwise_than_math_verify": different,
    }


PARTS = {"throughput": throughput, "attack": attack, "mixed": mixed}


def table(results: dict[str, Any]) -> str:
    """The recorded results in Markdown."""
    a, m, t = results["attack"], results["mixed"], results["throughput"]
    alone = t["answers_per_second"]["plain math-verify"]
    hostile = f"{a['answers']:,} hostile answers, {len(a['kinds'])} kinds, one call, {a['limit_seconds']:g} s each"
    after = f"{a['ordinary_after_as_math_verify']} of {a['ordinary_after']}, {a['ordinary_after_seconds']:.1f} s"
    attack = [
        (hostile, ""),
        ("graded right", a["graded_right"]),
        ("too long or too deep for a worker", f"{a['without_worker']:,}"),
        ("timeouts, failures", f"{a['timeouts']:,}, {a['failures']}"),
        ("longest time at one answer beyond the limit", f"{a['longest_beyond_limit_seconds']:.2f} s"),
        ("workers alive afterwards", f"{a['workers_alive_after']} of {a['workers']}"),
        ("files made by code in answers", a["files_made"]),
        ("whole time", f"{a['seconds']:.0f} s"),
        ("ordinary answers right after, same limit, graded as by math-verify", after),
    ]
    rates = [
        (f"ordinary answers ({t['answers']:,} a turn, median of {t['turns']})", "answers per second", "times plain")
    ]
    for name, rate in t["answers_per_second"].items():
        rates.append((name, f"{rate:.0f}", f"{rate / alone:.1f}x"))
    lines = [
        markdown_table(attack),
        "",
        f"Among {m['hostile']} hostile answers, with the default limits of {m['limit_seconds']:g} s for an answer and "
        f"{m['total_limit_seconds']:g} s for a call, {m['ordinary_as_math_verify']} of {m['ordinary']} ordinary ones "
        f"are graded as by math-verify; the call takes {m['seconds']:.0f} s.",
        "",
        markdown_table(rates),
        "",
        f"{t['plain_share']:.0%} of these need no worker, {t['repeated_share']:.0%} repeat another; "
        f"{t['graded_otherwise_than_math_verify']} are graded otherwise than by plain math-verify.",
    ]
    return "\n".join(lines)


def main() -> None:
    from benchmarks import measure
    from entropy_grpo.runs import files as records

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--table", action="store_true", help="only write the tables of the recorded results")
    options = parser.parse_args()
    for part in [] if options.table else options.parts:
        recorded = records.read_json(measure.RESULTS / "verifier.json")
        found = PARTS[part]()
        measure.write("verifier", COMMAND, {name: found if name == part else recorded[name] for name in PARTS})
    text = table(records.read_json(measure.RESULTS / "verifier.json"))
    measure.write_block(COMMAND, text)
    print(text)


if __name__ == "__main__":
    main()
