"""The grader under attack, and how fast it grades ordinary answers beside plain math-verify.

python -m benchmarks.verifier            # ten minutes on two cores, benchmarks/results/verifier.json and the tables
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

from entropy_grpo.grading.pool import FIRST_SECONDS, Grader, plain_verdict

# `benchmarks.measure` is imported where it is used: every worker imports the main module again, and `measure` needs
# torch.

COMMAND = "python -m benchmarks.verifier"
ATTACKS, SEED, WORKERS = 10_000, 0, 2
ATTACKED_WORKERS = 4
REFERENCES = ("8", "x+1", "\\frac{3}{7}", "\\{1, 2\\}")
# An attack within ordinary answers, under the limits that a recipe has by default.
MIXED, SECONDS, TOTAL_SECONDS = 300, 5.0, 120.0
PROBLEMS, GROUP, TURNS = 128, 16, 3


# Hostile answers: none is equivalent to a reference, each kind breaks something else. Names are those of the table.


def _nested(rng: Random, opening: str, middle: str, closing: str, depths: tuple[int, int]) -> str:
    depth = rng.randint(*depths)
    return opening * depth + middle + closing * depth


def huge_powers(rng: Random) -> str:
    a, b, c = (rng.randint(2, 99) for _ in range(3))
    forms = (
        f"{a}^{{{b}^{{{c}^{{9}}}}}}",
        f"{a}^{{{rng.randint(10**7, 10**12)}}}",
        f"{a}^{{-{b}^{{{c}^{{7}}}}}}",
        f"({a}^{{{b}}})^{{10^{{{c}}}}}",
    )
    return rng.choice(forms)


def factorials(rng: Random) -> str:
    n = rng.randint(10**5, 10**12)
    return rng.choice(
        (f"{n}!", f"({n % 97 + 20}!)!+{n}", f"\\binom{{{n}}}{{{n // 3}}}", f"\\Gamma({n})", f"{n % 89 + 10}!!!!!+{n}")
    )


def nested_brackets(rng: Random) -> str:
    middle = str(rng.randint(10, 10**6))
    return rng.choice(
        (
            _nested(rng, "{", middle, "}", (50, 900)),
            _nested(rng, "(", middle, ")", (50, 900)),
            _nested(rng, "\\left(", middle, "\\right)", (20, 120)),
            _nested(rng, "|", middle, "|", (20, 900)),
            "{(" * rng.randint(100, 900) + middle,
        )
    )


def deep_fractions(rng: Random) -> str:
    middle = rng.choice(("x", str(rng.randint(2, 10**6))))
    return _nested(rng, f"\\frac{{1}}{{{rng.randint(1, 9)}+", middle, "}", (10, 120))


def deep_roots(rng: Random) -> str:
    return _nested(rng, f"\\sqrt{{{rng.randint(2, 99)}+", f"\\sqrt[{rng.randint(3, 99)}]{{7}}", "}", (5, 120))


def digits(rng: Random) -> str:
    """Up to a megabyte of them."""
    many = "".join(rng.choices("0123456789", k=1000)) * rng.choice((1, 1, 2, 10, 1000))
    return rng.choice(
        (many, f"0.{many}", f"{many[:900]}^{{{many[:900]}}}", f"\\frac{{{many[:900]}}}{{{many[1:900]}}}")
    )


def unicode(rng: Random) -> str:
    zeros = [0x0660, 0x06F0, 0x0966, 0x0E50, 0xFF10, 0x1D7CE, 0x1D7F6]
    number = "".join(chr(rng.choice(zeros) + rng.randint(0, 9)) for _ in range(rng.randint(2, 30)))
    odd = "".join(rng.choices("\u200b\u202e\u2066\ufeff\u0301\u0338\u00bd\u2468\u2167\u221e\U0001f600\ud800", k=4))
    return rng.choice((number, f"8{odd}", f"{odd}{number}", f"x+1{odd}", f"\\frac{{{number}}}{{7}}", odd * 200))


def control_characters(rng: Random) -> str:
    odd = "".join(chr(rng.choice((0, 0, 1, 8, 11, 27, 127, 133, 0x2028))) for _ in range(rng.randint(3, 9)))
    return rng.choice((f"8{odd}9", f"{odd}9", f"\\frac{{3{odd}1}}{{7}}", f"x{odd}+2", odd + f"9{odd}" * 50))


def python_code(rng: Random) -> str:
    """Code that leaves a file called MARKER behind if anything runs it."""
    shell = f"touch MARKER{rng.randint(0, 10**9)}"
    name = f"MARKER{rng.randint(0, 10**9)}"
    code = rng.choice(
        (
            f"__import__('os').system('{shell}')",
            f"open('{name}','w')",
            f"exec(\"import os; os.system('{shell}')\")",
            f"().__class__.__base__.__subclasses__()[{rng.randint(40, 200)}]('{shell}',shell=True)",
            f"[c for c in ().__class__.__mro__[1].__subclasses__() if c.__name__=='Popen'][0](['touch','{name}'])",
            f"lambda: __import__('pathlib').Path('{name}').touch()",
        )
    )
    around = (
        "{}", "\\text{{{}}}", "\\mathrm{{{}}}", "\\operatorname{{{}}}", "x_{{{}}}", "\\verb|{}|", "$`{}`$", "8; {}",
        "\\input{{{}}}", "\\mathit{{{}}}(8)", "eval({})", "{{{{{}}}}}", "sympify('{}')",
    )  # fmt: skip
    return rng.choice(around).format(code)


def lambdify(rng: Random) -> str:
    """Names that sympy would write into the code that it makes of an expression to put numbers in."""
    name = rng.choice(
        ("exec", "eval", "print", "__import__", "open('MARKER','w')", "x);open('MARKER','w')#", "os.system")
    )
    n = rng.randint(2, 10**6)
    forms = (
        f"\\sum_{{n=1}}^{{\\infty}} \\frac{{\\text{{{name}}}(n)}}{{n^{{{n}}}}}",
        f"\\int_0^{{{n}}} \\mathrm{{{name}}}(x) dx",
        f"\\text{{{name}}}({n})+x",
        f"\\prod_{{n=1}}^{{{n}}} \\mathit{{{name}}}",
        f"\\sum_{{n=1}}^{{\\infty}} \\frac{{x_{{{name}}}^n}}{{n!}} + {n}",
    )
    return rng.choice(forms)


def simplifications(rng: Random) -> str:
    a, b = rng.randint(3, 60), rng.randint(3, 60)
    forms = (
        "+".join(f"\\sin(x^{{{i}}})^{{{i + a}}}\\cos({b}x)" for i in range(2, 2 + rng.randint(3, 20))),
        f"(x+y+z+w)^{{{a}}}-(x-y)^{{{b}}}",
        f"\\sqrt{{2+\\sqrt{{3+\\sqrt{{5+\\sqrt{{7+\\sqrt{{{a}}}}}}}}}}}^{{{b}}}",
        f"\\lim_{{x \\to 0}} \\frac{{\\sin(\\tan x)-\\tan(\\sin x)}}{{x^{{{a}}}}}+{b}",
        f"x^{{{a}}}-3x^{{5}}+\\sin({b}x)>0",
        f"\\cos({a}^{{{b}^{{{a}}}}})",
    )
    return rng.choice(forms)


def integrals_and_sums(rng: Random) -> str:
    a, b = rng.randint(3, 10**4), rng.randint(3, 99)
    forms = (
        f"\\int_0^{{\\infty}} \\frac{{\\sin(x^x)}}{{\\log({a}+x^{{{b}}})}} dx",
        f"\\int e^{{x^x}}\\sin(\\cos({a}x^{{{b}}}))dx",
        f"\\int_0^1 \\int_0^1 \\int_0^1 \\sin({a}xyz)e^{{xyz}} dx dy dz",
        f"\\sum_{{n=1}}^{{10^{{{b}}}}} n^{{n}}+{a}",
        f"\\sum_{{n=1}}^{{\\infty}} \\frac{{\\sin(n)}}{{n^{{{b}}}+{a}n!}}",
        f"\\prod_{{n=1}}^{{{a}000}} (1+\\frac{{1}}{{n^{{{b}}}}})",
    )
    return rng.choice(forms)


def matrices(rng: Random) -> str:
    size, tag = rng.randint(3, 9), rng.randint(10, 10**6)
    rows = "\\\\".join("&".join(f"x_{{{i}{j}}}" for j in range(size)) for i in range(size))
    matrix = f"\\begin{{pmatrix}}{rows}\\end{{pmatrix}}"
    forms = f"{matrix}^{{-1}}+{tag}", f"\\det{matrix}+{tag}", f"{matrix}^{{{tag}}}", f"\\operatorname{{eye}}({tag})"
    return rng.choice(forms)


def sets(rng: Random) -> str:
    start, count = rng.randint(10, 10**6), rng.randint(20, 300)
    numbers = ",".join(str(start + i) for i in range(count))
    unions = "\\cup".join(f"[{start + 2 * i},{start + 2 * i + 1})" for i in range(count // 5))
    return rng.choice((f"\\{{{numbers}\\}}", numbers, unions, "=".join(numbers.split(",")), f"({numbers})"))


def repetitions(rng: Random) -> str:
    parts = (
        "+",
        "=",
        "8%",
        "\\%",
        "x",
        "\\frac",
        "^",
        "_",
        "\\\\",
        "\\sqrt",
        "&",
        "8 or ",
        "\\text{",
        "!",
        "\\pi",
        "\\cdot 9",
    )
    return "".join(rng.choice(parts) * rng.randint(1, 60) for _ in range(rng.randint(2, 12))) + str(
        rng.randint(10, 99)
    )


KINDS = (
    huge_powers, factorials, nested_brackets, deep_fractions, deep_roots, digits, unicode, control_characters,
    python_code, lambdify, simplifications, integrals_and_sums, matrices, sets, repetitions,
)  # fmt: skip


def hostile_answers(count: int, marker: str, seed: int = SEED) -> list[str]:
    """So many different ones, the kinds in turns; code among them would make files whose paths begin with `marker`."""
    rng, made = Random(seed), {}
    while len(made) < count:
        made[KINDS[len(made) % len(KINDS)](rng).replace("MARKER", marker)] = None
    return list(made)


# Ordinary answers, as a rollout has them: groups of answers to one problem, many of them alike.


def _forms(rng: Random) -> tuple[list[str], Callable[[], str]]:
    """Ways to write the answer to a problem, the reference first, and what draws a wrong one."""
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
    """math-verify by itself, one pair after the other, under its own time limits."""
    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def grade(answer: str | None, reference: str) -> float:
        if answer is None:
            return 0.0
        read = [parse(f"\\boxed{{{text}}}", extraction_config=config) for text in (reference, answer)]
        return float(verify(*read))

    return [grade(*pair) for pair in pairs]


class Watch(threading.Thread):
    """Looks every few milliseconds how long the workers have been at their answers."""

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
    """Grades, what was logged, and the seconds that it took."""
    logged: dict[str, float] = {}
    start = time.perf_counter()
    grades = grader(answers, references, logged.__setitem__)
    return grades, logged, time.perf_counter() - start


def attack() -> dict[str, Any]:
    """All hostile answers in one call with a limit of `FIRST_SECONDS` for each, and ordinary ones right after."""
    references = [REFERENCES[i % len(REFERENCES)] for i in range(ATTACKS)]
    ordinary = list(dict.fromkeys(pair for pair in ordinary_pairs(99) if plain_verdict(*pair) is None))[:100]
    expected = plain_math_verify(ordinary)
    with tempfile.TemporaryDirectory() as folder:
        answers = hostile_answers(ATTACKS, f"{folder}/hacked")
        grader = Grader(ATTACKED_WORKERS, FIRST_SECONDS, 3600.0)
        graded(grader, ["1/2"], ["0.5"])
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
    """Hostile answers among ordinary ones under a recipe's default limits."""
    ordinary = list(dict.fromkeys(pair for pair in ordinary_pairs(98) if plain_verdict(*pair) is None))[:MIXED]
    pairs = [*ordinary, *((answer, "8") for answer in hostile_answers(MIXED, "hacked", seed=1))]
    Random(SEED).shuffle(pairs)
    grader = Grader(WORKERS, SECONDS, TOTAL_SECONDS)
    graded(grader, ["1/2"], ["0.5"])
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
    """Answers per second; every turn has answers of its own, the first is not counted."""
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


def table(results: dict[str, Any]) -> str:
    """The recorded results in Markdown."""
    a, m, t = results["attack"], results["mixed"], results["throughput"]
    alone = t["answers_per_second"]["plain math-verify"]
    lines = [
        f"| {a['answers']:,} hostile answers, {len(a['kinds'])} kinds, one call, {a['limit_seconds']:g} s each | |",
        "|---|---|",
        f"| graded right | {a['graded_right']} |",
        f"| too long or too deep for a worker | {a['without_worker']:,} |",
        f"| timeouts, failures | {a['timeouts']:,}, {a['failures']} |",
        f"| longest time at one answer beyond the limit | {a['longest_beyond_limit_seconds']:.2f} s |",
        f"| workers alive afterwards | {a['workers_alive_after']} of {a['workers']} |",
        f"| files made by code in answers | {a['files_made']} |",
        f"| whole time | {a['seconds']:.0f} s |",
        "| ordinary answers right after, same limit, graded as by math-verify | "
        f"{a['ordinary_after_as_math_verify']} of {a['ordinary_after']}, {a['ordinary_after_seconds']:.1f} s |",
        "",
        f"Among {m['hostile']} hostile answers, with the default limits of {m['limit_seconds']:g} s for an answer and "
        f"{m['total_limit_seconds']:g} s for a call, {m['ordinary_as_math_verify']} of {m['ordinary']} ordinary ones "
        f"are graded as by math-verify; the call takes {m['seconds']:.0f} s.",
        "",
        f"| ordinary answers ({t['answers']:,} a turn, median of {t['turns']}) | answers per second | times plain |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {rate:.0f} | {rate / alone:.1f}x |" for name, rate in t["answers_per_second"].items()]
    lines += [
        "",
        f"{t['plain_share']:.0%} of these need no worker, {t['repeated_share']:.0%} repeat another; "
        f"{t['graded_otherwise_than_math_verify']} are graded otherwise than by plain math-verify.",
    ]
    return "\n".join(lines)


def main() -> None:
    from benchmarks import measure
    from entropy_grpo.runs import files as records

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="only write the tables of the recorded results")
    if not parser.parse_args().table:
        measure.write("verifier", COMMAND, {"throughput": throughput(), "attack": attack(), "mixed": mixed()})
    text = table(records.read_json(measure.RESULTS / "verifier.json"))
    measure.write_readme(COMMAND, text)
    print(text)


if __name__ == "__main__":
    main()
