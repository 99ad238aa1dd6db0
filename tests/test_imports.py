"""The direction of imports, in the package and between tests and benchmarks, and what importing the package costs."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import entropy_grpo

from .conftest import REPOSITORY

PACKAGE = Path(entropy_grpo.__file__).parent
# A module imports its own folder and those before it.
FOLDERS = (
    "metrics objective grading tasks rewards data runs models monitoring config evaluation cards training analysis "
    "compare planning"
).split()
# The package's root: `registry` is for everyone, `cli` and `launch` stand at the end.
FIRST, LAST = ["", "registry"], ["launch", "cli"]
# What can be read, tested and used without the training stack.
LIGHT = ["metrics", "objective", "grading", "tasks", "rewards", "data.benchmarks", "runs", "compare"]
STACK = {"trl", "transformers", "accelerate", "peft", "vllm", "datasets"}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(module):
    """The modules of the package that a module names anywhere, type-checking blocks excepted."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    base = module.split(".") if MODULES[module].name == "__init__.py" and module else module.split(".")[:-1]
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    own = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in skipped:
            anchor = base[: len(base) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                whole = ".".join([*anchor, alias.name])
                own.add(whole if whole in MODULES else ".".join(anchor))
    return own - {module}


def place(module):
    """The position of a module's folder in the order of the house."""
    return [*FIRST, *FOLDERS, *LAST].index(module.split(".")[0])


def test_folders_import_those_before_them():
    wrong = [f"{a} imports {b}" for a in sorted(MODULES) for b in sorted(imports_of(a)) if place(b) > place(a)]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: imports_of(module) for module in MODULES}
    # A package's own page may name its modules, which name the package only by being in it.
    TopologicalSorter(graph).prepare()


def test_every_folder_says_what_it_owns():
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{module} has no docstring"


def imported(path):
    """The absolute names of modules that a file imports anywhere; from a package also each name imported of it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, package):
    return name == package or name.startswith(f"{package}.")


def test_benchmarks_import_no_tests_and_fixtures_no_benchmark():
    for path in (REPOSITORY / "benchmarks").rglob("*.py"):
        outside = ["tests", "tests_vllm"] + (["benchmarks"] if path.parent.name == "fixtures" else [])
        for name in imported(path):
            wrong = any(within(name, package) for package in outside) and not within(name, "benchmarks.fixtures")
            assert not wrong, f"{path.relative_to(REPOSITORY)} imports {name}"


def test_behaviour_tests_import_only_fixtures_of_the_benchmarks():
    """Record checks, which the marker `record` sets apart, also import the benchmark whose results they read, and the
    tests of a benchmark import that benchmark."""
    tested = {"test_gpu_kit.py": "benchmarks.gpu", "test_paper_size.py": "benchmarks.paper_size"}
    tested |= {
        "test_papers_page.py": "benchmarks.papers",
        "test_small_experiments.py": "benchmarks",
        "test_small_figures.py": "benchmarks",
    }
    for path in [*(REPOSITORY / "tests").rglob("*.py"), *(REPOSITORY / "tests_vllm").rglob("*.py")]:
        names = {name for name in imported(path) if within(name, "benchmarks")}
        own = {"benchmarks.fixtures", tested.get(path.name, "benchmarks.fixtures")}
        others = {name for name in names if not any(within(name, package) for package in own)}
        assert not others or "pytestmark = pytest.mark.record" in path.read_text(), f"{path.name} imports {others}"


def loaded(code):
    """Which packages of the training stack, and of the heavy ones, a fresh process has loaded after some code."""
    heavy = sorted(STACK | {"torch", "numpy"})
    script = f"{code}; import sys; print(*set({heavy}) & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("code", ["import entropy_grpo", "import entropy_grpo.cli"])
def test_import_is_light(code):
    assert not loaded(code)


def test_leaves_load_no_training_stack():
    modules = [m for m in MODULES if any(m == light or m.startswith(f"{light}.") for light in LIGHT)]
    lines = "; ".join(f"import entropy_grpo.{m}" for m in sorted(modules))
    assert not loaded(lines) & STACK


def test_public_names_resolve():
    from trl import GRPOConfig, GRPOTrainer

    assert issubclass(entropy_grpo.EntropyForkGRPOTrainer, GRPOTrainer)
    assert issubclass(entropy_grpo.EntropyForkGRPOConfig, GRPOConfig)
    with pytest.raises(AttributeError, match="Nonsense"):
        entropy_grpo.Nonsense  # noqa: B018
