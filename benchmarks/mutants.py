"""Mutation testing of the pure modules: one fault at a time is put into a module, and its quick tests must fail.

    python -m benchmarks.mutants                         # every module, benchmarks/results/mutants.json
    python -m benchmarks.mutants objective/selection     # modules by name; figures of other modules stay
    python -m benchmarks.mutants --survivors NAME ...    # only the last survivors without a reason

A mutant differs from the module in one place: a comparison, constant, operator, condition or sign, a minimum for a
maximum, or a missing statement. Regular expressions and texts are not changed. A mutant of a function runs in a
process forked from one that has collected the tests, and replaces the function's code there. A mutant of the module's
own statements runs in a process that imports the package anew. Processes that the tests start import the unchanged
module, so that code which only a grading worker runs is not tested here.

If no test can distinguish a survivor from the module, `benchmarks/equivalent_mutants.json` lists it with the reason.
All other survivors are gaps in the tests.
"""

import argparse
import ast
import copy
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from multiprocessing import forkserver
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

from benchmarks import measure
from benchmarks.fixtures import REPOSITORY
from entropy_grpo.grading.pool import core_count
from entropy_grpo.runs import files

RESULTS = measure.RESULTS / "mutants.json"
EQUIVALENT = REPOSITORY / "benchmarks" / "equivalent_mutants.json"
PAIRS = ["test_grading.py", "test_equivalence.py", "test_rewards.py"]
# Quick tests by module. Tests that load a model, train or start workers are excluded.
TESTS = {
    "objective/selection": ["test_selection.py", "test_diagnostics.py"],
    "objective/share": ["test_selection.py"],
    "objective/advantages": ["test_shaping.py"],
    "objective/stages": ["test_shaping.py"],
    "objective/sampling": ["test_sampling.py"],
    "objective/batching": ["test_batching.py"],
    "objective/window": ["test_window.py"],
    "objective/tokens": ["test_window.py", "test_steps.py"],
    "monitoring/steps": ["test_steps.py"],
    "metrics/answers": ["test_metrics.py"],
    "metrics/intervals": ["test_intervals.py"],
    "grading/__init__": PAIRS,
    "grading/arguments": ["test_expressions.py", *PAIRS],
    "grading/answers": ["test_answers.py", *PAIRS],
    "grading/characters": PAIRS,
    "grading/equivalence": PAIRS,
    "grading/expressions": ["test_expressions.py", *PAIRS],
    "grading/latex": PAIRS,
    "grading/number_sets": PAIRS,
    "grading/phrases": ["test_phrases.py", *PAIRS],
    "grading/simple": ["test_simple.py", *PAIRS],
    "grading/units": ["test_units.py", *PAIRS],
    "grading/values": ["test_values.py", *PAIRS],
    "grading/pool": ["test_grading.py", "test_grader.py"],
}
SLOW_FIXTURES = {"tiny_model", "trained", "demo_run"}
SLOW_TESTS = {
    *("test_more_tokens_than_stock_quantile_takes", "test_long_texts_are_read_in_no_time", "test_under_attack"),
    *("test_a_grader_with_a_tolerance", "test_answers_that_take_for_ever_are_classes_of_their_own"),
    "test_the_code_of_the_attack_would_be_seen",
}
WITHOUT_WORKERS = {"grader"}
PRELOADED = (
    "pytest numpy scipy.stats sympy latex2sympy2_extended.latex2sympy2 pebble torch datasets peft "
    "transformers.models.qwen3.modeling_qwen3 trl.trainer.grpo_trainer"
).split()
SHORTEST_LIMIT, FIRST_LIMIT = 15.0, 120.0
NOT_IN_PLACE = 98  # exit status of a child whose mutant is not within a function

OPERATORS = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd},
    **{ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.Continue: ast.Break, ast.Break: ast.Continue},
}
_SWAPS = "min/max minimum/maximum any/all floor/ceil flip/clone argmin/argmax startswith/endswith lstrip/rstrip"
NAMES = dict(pair for swap in _SWAPS.split() for pair in (tuple(swap.split("/")), tuple(swap.split("/")[::-1])))


@dataclass(frozen=True)
class Mutant:
    """A module with one fault. `key` names the fault independently of its line, and `code` is the compiled module.

    `function` is the dotted name of the function or class that holds the fault, or "".
    """

    key: str
    line: int
    function: str
    code: CodeType


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    """Copies of the node with one fault each."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield ast.Constant(node.value * 1.5 if node.value else 1.0)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield node.operand
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in OPERATORS:
        yield _with(node, op=OPERATORS[type(node.op)]())
    elif isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            yield _with(node, ops=[*node.ops[:i], OPERATORS[type(operator)](), *node.ops[i + 1 :]])
    elif isinstance(node, ast.Continue | ast.Break):
        yield OPERATORS[type(node)]()
    elif isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):
        yield _with(node, id=NAMES[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield _with(node, attr=NAMES[node.attr])
    elif isinstance(node, ast.keyword) and node.arg in ("min", "max"):
        yield _with(node, arg=NAMES[node.arg])
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield from (_with(node, test=ast.Constant(value)) for value in (False, True)[: 1 + isinstance(node, ast.If)])
    if isinstance(node, ast.comprehension) and node.ifs:
        yield _with(node, ifs=[])
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()


def _with(node: ast.AST, **changes: Any) -> ast.AST:
    changed = copy.copy(node)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _places(node: ast.AST, function: str = "") -> Iterator[tuple[ast.AST, str, int | None, ast.AST, str]]:
    """(parent, field, index, node, function) of all nodes except annotations, decorators and `zip`'s `strict`."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for i, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if isinstance(child, ast.AST) and not (isinstance(child, ast.keyword) and child.arg == "strict"):
                named = isinstance(child, ast.FunctionDef | ast.ClassDef)
                inner = f"{function}.{child.name}".lstrip(".") if named else function
                yield node, field, i, child, inner
                yield from _places(child, inner)


def _first_line(node: ast.AST) -> str:
    return ast.unparse(node).split("\n")[0]


def mutants(path: Path) -> list[Mutant]:
    """All mutants of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found, seen = [], Counter()
    for parent, field, i, node, function in _places(tree):
        line = getattr(node, "lineno", getattr(parent, "lineno", 0))
        whole = parent if isinstance(node, ast.Constant | ast.keyword) else node
        before = _first_line(whole)
        for replacement in _replacements(node):
            ast.copy_location(replacement, node)
            _put(parent, field, i, replacement)
            after = _first_line(parent if whole is parent else replacement)
            key = f"{function or 'module'}: {before} -> {after}"
            seen[key] += 1
            key += f" ({seen[key]})" if seen[key] > 1 else ""
            found.append(Mutant(key, line, function, compile(ast.fix_missing_locations(tree), str(path), "exec")))
            _put(parent, field, i, node)
    return found


def _put(parent: ast.AST, field: str, i: int | None, node: ast.AST) -> None:
    if i is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[i] = node


class _Loader(SourceFileLoader):
    """Loads given code instead of a file's code."""

    code: CodeType

    def get_code(self, fullname: str) -> CodeType:
        return self.code


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module with the code of a mutant."""

    def __init__(self, module: str, path: Path, code: CodeType):
        self.module, self.path, self.code = module, path, code

    def find_spec(self, name: str, path: Any = None, target: Any = None):
        if name != self.module:
            return None
        loader = _Loader(name, str(self.path))
        loader.code = self.code
        inside = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            name, self.path, loader=loader, submodule_search_locations=inside
        )


class _Quick:
    """pytest plugin that skips slow tests."""

    def __init__(self, workers: bool):
        self.fixtures = SLOW_FIXTURES if workers else SLOW_FIXTURES | WITHOUT_WORKERS

    def pytest_collection_modifyitems(self, items: list) -> None:
        def quick(item) -> bool:
            return self.fixtures.isdisjoint(item.fixturenames) and item.originalname not in SLOW_TESTS

        items[:] = [item for item in items if quick(item)]


def _path(name: str) -> Path:
    return REPOSITORY / "entropy_grpo" / f"{name}.py"


def _module(name: str) -> str:
    return ".".join(["entropy_grpo", *name.removesuffix("/__init__").split("/")])


def _pytest(name: str, *plugins: Any) -> int:
    """Run the quick tests of a module, and return pytest's exit code."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu and not record"]
    tests = [str(REPOSITORY / "tests" / test) for test in TESTS[name]]
    return int(pytest.main([*options, *tests], plugins=[_Quick(workers=name == "grading/pool"), *plugins]))


def _import_anew(name: str, code: CodeType) -> None:
    """Let a mutant be imported instead of its module."""
    for loaded in [key for key in sys.modules if key.split(".")[0] in ("entropy_grpo", "benchmarks")]:
        del sys.modules[loaded]
    sys.meta_path.insert(0, _Finder(_module(name), _path(name), code))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Code of all functions and classes within a module's code."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _plain_function(member: Any) -> FunctionType | None:
    """The function behind a method, property, cache or context manager of the module; None for other members."""
    for attribute in ("__func__", "fget", "func", "__wrapped__"):
        while (inner := getattr(member, attribute, None)) is not None:
            member = inner
    return member if isinstance(member, FunctionType) else None


def _functions(module: ModuleType) -> dict[str, FunctionType]:
    """Functions and methods of a module by their dotted names."""
    members = list(vars(module).values())
    classes = [member for member in members if isinstance(member, type) and member.__module__ == module.__name__]
    members += [member for kind in classes for member in vars(kind).values()]
    plain = [function for member in members if (function := _plain_function(member)) is not None]
    return {function.__qualname__: function for function in plain if function.__module__ == module.__name__}


def _put_in_place(name: str, mutant: Mutant) -> bool:
    """Give a function of the imported module the code of a mutant, with empty caches.

    Returns:
        False if the fault is not within a function, so that the module must be imported anew.
    """
    module = importlib.import_module(_module(name))
    functions, parts = _functions(module), mutant.function.split(".")
    for length in range(len(parts), 0, -1):
        function = functions.get(".".join(parts[:length]))
        if function is not None:
            (code,) = [code for code in _codes(mutant.code) if code.co_qualname == function.__qualname__][:1]
            if code == function.__code__:
                return False  # the fault is in a default value
            function.__code__ = code
            for member in vars(module).values():
                if hasattr(member, "cache_clear"):
                    member.cache_clear()
            return True
    return False


def _start_alone() -> None:
    """Give a forked process a group of its own and no output. It cannot wait for the fork server of its parent."""
    os.setpgid(0, 0)
    vars(forkserver._forkserver)["_forkserver_pid"] = None
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


class Trial:
    """The tests of a mutant, or of the unchanged module, in a separate process.

    Attributes:
        outcome: survived, killed or timeout, or None while the tests run.
        seconds: duration of the tests.
    """

    def __init__(self, child: int, limit: float):
        self.child, self.limit = child, limit
        self.start, self.outcome, self.seconds = time.monotonic(), "", 0.0

    def is_over(self) -> bool:
        """Return whether the tests have ended. Tests that exceed the time limit are killed."""
        if self.outcome:
            return True
        self.seconds = time.monotonic() - self.start
        done, status = os.waitpid(self.child, os.WNOHANG)
        if not done and self.seconds < self.limit:
            return False
        _end_group(self.child)
        if not done:
            os.waitpid(self.child, 0)
            self.outcome = "timeout"
        elif (code := os.waitstatus_to_exitcode(status)) == NOT_IN_PLACE:
            self.outcome = "not in place"
        else:
            self.outcome = "survived" if code == 0 else "killed"
        return True


def _try_all(forks: Iterable[Callable[[], int]], limit: float, jobs: int) -> list[Trial]:
    """Run trials, `jobs` at the same time. Each function forks and returns the child's number."""
    trials: list[Trial] = []
    running: list[Trial] = []
    for fork in forks:
        while len(running) >= jobs:
            time.sleep(0.005)
            running = [trial for trial in running if not trial.is_over()]
        trials.append(Trial(fork(), limit))
        running.append(trials[-1])
    while running:
        time.sleep(0.005)
        running = [trial for trial in running if not trial.is_over()]
    return trials


class _InPlace:
    """pytest plugin that forks after the collection: the children run the tests, each with one mutant.

    A child begins with the tests that have failed in earlier children, the latest first, since the mutants of a
    function mostly fail the same tests. The tests themselves, and so the outcomes, are the same.

    Attributes:
        trials: of the mutants, after the trial of the unchanged module.
        is_child: whether this process is a child, whose exit code is the outcome.
    """

    def __init__(self, name: str, mutants: Sequence[Mutant], jobs: int, failures: Path):
        self.name, self.mutants, self.jobs, self.failures = name, mutants, jobs, failures
        self.trials: list[Trial] = []
        self.is_child = False

    def _fork(self, items: list[pytest.Item], mutant: Mutant | None) -> int:
        if child := os.fork():
            return child
        self.is_child = True
        _start_alone()
        if mutant is not None and not _put_in_place(self.name, mutant):
            os._exit(NOT_IN_PLACE)
        latest = {test: place for place, test in enumerate(self.failures.read_text().splitlines())}
        items.sort(key=lambda item: -latest.get(item.nodeid, -1))
        raise _Child

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            with self.failures.open("a") as file:
                file.write(f"{report.nodeid}\n")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        fork = partial(self._fork, session.items)
        try:
            self.trials = _try_all([partial(fork, None)], FIRST_LIMIT, 1)
            limit = max(SHORTEST_LIMIT, 5 * self.trials[0].seconds)
            if self.trials[0].outcome == "survived":
                self.trials += _try_all([partial(fork, mutant) for mutant in self.mutants], limit, self.jobs)
        except _Child:
            return None  # pytest's own loop follows
        return True


class _Child(Exception):
    """This process is a child that has to run the tests."""


def _fork_anew(name: str, mutant: Mutant) -> int:
    """Fork a process that imports a mutant and runs the tests."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    result = 99
    try:
        _start_alone()
        _import_anew(name, mutant.code)
        result = _pytest(name)
    finally:
        os._exit(result)


def _outcomes(name: str, mutants: Sequence[Mutant], jobs: int) -> tuple[float, list[str]]:
    """Collect the tests in a separate process and try the mutants there.

    Returns:
        Seconds of the tests on the unchanged module, and the outcome of each mutant.

    Raises:
        RuntimeError: the tests fail without a mutant.
    """
    sys.stdout.flush()
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            result = 99
            try:
                failures = Path(folder, "failures")
                failures.touch()
                trials = _InPlace(name, mutants, jobs, failures)
                _start_alone()
                result = _pytest(name, trials)
                if not trials.is_child:
                    with open(writer, "w") as pipe:
                        json.dump([(trial.seconds, trial.outcome) for trial in trials.trials], pipe)
            finally:
                os._exit(result)
        os.close(writer)
        with open(reader) as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
    (seconds, outcome), *others = json.loads(told) if told else [(0.0, "killed")]
    if outcome != "survived":
        raise RuntimeError(f"{name}: its tests fail without a mutant, or there are none: {TESTS[name]}.")
    return seconds, [outcome for _, outcome in others]


def _end_group(child: int) -> None:
    """End all processes that a child has started, because grading workers outlive interrupted tests."""
    try:
        os.killpg(child, 9)
    except ProcessLookupError:
        pass


def try_module(name: str, most: int, only: set[str] | None, jobs: int) -> dict[str, Any]:
    """Figures and survivors of a module. If it has more than `most` mutants, a sample of them is tried."""
    every = mutants(_path(name))
    chosen = [m for m in every if only is None or m.key in only]
    chosen = sorted(random.Random(0).sample(chosen, min(most, len(chosen))), key=lambda m: m.line)
    seconds, outcomes = _outcomes(name, chosen, jobs)
    anew = [i for i, outcome in enumerate(outcomes) if outcome == "not in place"]
    limit = FIRST_LIMIT + 5 * seconds
    for i, trial in zip(
        anew, _try_all([partial(_fork_anew, name, chosen[i]) for i in anew], limit, jobs), strict=True
    ):
        outcomes[i] = trial.outcome
    counts = Counter(outcomes)
    survivors = [m for m, outcome in zip(chosen, outcomes, strict=True) if outcome == "survived"]
    for mutant in survivors:
        print(f"  {name}:{mutant.line} {mutant.key}", flush=True)
    print(
        f"{name}: {len(every)} mutants, tests {seconds:.1f} s, {len(anew)} imported anew, {dict(counts)}", flush=True
    )
    return {
        "mutants": len(every),
        "tried": counts.total(),
        "timeout": counts["timeout"],
        "survivors": [m.key for m in survivors],
    }


def warm_up() -> None:
    """Fill the parser's tables and sympy's caches, which mutants share because they belong to third-party packages."""
    from benchmarks.fixtures.answer_pairs import cases
    from entropy_grpo.grading import boxed, compare

    for _, response, reference, tolerance, _ in cases():
        compare(boxed(response) or "", reference, tolerance)


def explained(name: str, survivors: list[str], reasons: dict[str, dict[str, str]]) -> dict[str, str | None]:
    """Each survivor with the reason why no test can kill it, or None for a gap in the tests."""
    return {key: reasons.get(name, {}).get(key) for key in survivors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", default=list(TESTS), choices=list(TESTS), metavar="MODULE")
    parser.add_argument("--most", type=int, default=10**6, help="mutants of a module; a sample, where it has more")
    parser.add_argument("--jobs", type=int, default=core_count(), help="mutants that are tried at a time")
    parser.add_argument("--survivors", action="store_true", help="only the last survivors without a reason")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    for package in PRELOADED:
        importlib.import_module(package)
    if any(name.startswith("grading/") for name in options.modules):
        warm_up()
    recorded = files.read_json(RESULTS)["modules"] if RESULTS.exists() else {}
    reasons = files.read_json(EQUIVALENT)
    for name in options.modules:
        before = recorded.get(name)
        if options.survivors and before is None:
            raise SystemExit(f"{RESULTS.name} has nothing of {name}: run it without --survivors first.")
        known = explained(name, before["survivors"], reasons) if options.survivors else {}
        only = {key for key, reason in known.items() if reason is None} if options.survivors else None
        found = try_module(name, options.most, only, options.jobs)
        if options.survivors:
            found |= {"tried": before["tried"], "timeout": before["timeout"]}
        left = [*(key for key, reason in known.items() if reason), *found["survivors"]]
        found["survivors"] = explained(name, left, reasons)
        found["killed"] = found["tried"] - len(found["survivors"])
        found["git_revision"] = measure.REVISION  # modules may be measured one at a time
        recorded[name] = found
        measure.write("mutants", "python -m benchmarks.mutants", {"modules": dict(sorted(recorded.items()))})
    gaps = [f"{name}: {key}" for name in recorded for key, why in recorded[name]["survivors"].items() if why is None]
    print(*gaps, f"{len(gaps)} survivors without a reason", sep="\n")


if __name__ == "__main__":
    main()
