"""The direction of imports, and what importing the package costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import entropy_grpo

PACKAGE = Path(entropy_grpo.__file__).parent

EVALUATION = (
    "backends generation judging models questions report results sampler server_backend transformers_backend "
    "vllm_backend"
).split()
ANALYSIS = (
    "by_category collect collection command distribution divergence divergence_run divergence_summary figures inputs "
    "page pieces position render report scoring terminal text tokens training views vllm_decoding words"
).split()
BENCHMARKS = "aime24 aime25 amc23 gpqa humaneval livecodebench math500 minerva number_walk olympiadbench".split()

# The row of the house: a module imports only modules that stand to the right of it, or on the same shelf.
ROW = [
    ["cli"],
    ["plan"],
    ["planning.commands", "planning.operations"],
    ["planning.memory"],
    ["planning.job"],
    ["launch"],
    ["train", "sft", "merge"],
    ["trainer"],
    ["shaped"],
    ["rollouts"],
    ["durable", "diagnostics"],
    [f"analysis.{name}" for name in ANALYSIS],
    ["evaluation.run", "evaluation.in_training"],
    [
        "watching",
        "start",
        "ops.head",
        "batching",
        "scoring",
        "window",
        "callbacks",
        "publish",
        "card",
        "card_metadata",
        "card_results",
        "card_snippets",
        "trained",
        "trackers",
        "plots",
        "data",
        "rewards",
        "compare",
        "comparison_tables",
        "claims",
        "differences",
        "runs",
        "sweep",
    ],
    ["sft_config"],
    [
        "ops.kernels",
        "config",
        "adapters",
        "shaping_config",
        "grader",
        "warm_grading",
        "filters",
        "evaluation.metrics",
        "evaluation.intervals",
        "evaluation.quality",
        "evaluation.contamination",
        *(f"evaluation.{name}" for name in EVALUATION),
        "hub",
        "records",
        "recipe",
        "embedded.cold_start",
        "checkpoint",
        "costs",
        "analysis.decoding",
        "analysis.alternatives",
    ],
    ["evaluation.benchmarks"],
    [f"evaluation.benchmarks.{name}" for name in BENCHMARKS],
    ["evaluation.benchmark"],
    ["evaluation.livecodebench"],
    ["evaluation.code"],
    ["evaluation.sandbox", "evaluation.inside", "evaluation.jail"],
    [
        "models",
        "weights",
        "selection",
        "shaping",
        "stages",
        "watchers",
        "sampling",
        "grading",
        "sources",
        "categories",
        "embedded.number_walk",
    ],
    ["grading.equivalence"],
    ["grading.number_sets"],
    ["grading.answers", "grading.expressions"],
    ["grading.phrases"],
    ["grading.latex", "grading.units"],
    ["embedded", "evaluation", "analysis", "planning", "ops", "names", "prompts", "markdown", ""],
]
# Leaves that never touch the training stack, so that they can be read, tested and reused by themselves.
PURE = [
    "selection",
    "shaping",
    "shaping_config",
    "stages",
    "batching",
    "scoring",
    "window",
    "diagnostics",
    "watchers",
    "records",
    "checkpoint",
    "sampling",
    "recipe",
    "grading",
    "grading.equivalence",
    "grading.number_sets",
    "grading.answers",
    "grading.expressions",
    "grading.phrases",
    "grading.latex",
    "grading.units",
    "grader",
    "warm_grading",
    "filters",
    "sources",
    "categories",
    *(f"analysis.{n}" for n in "by_category collection distribution position render training views words".split()),
    "analysis.divergence_summary",
    "evaluation.intervals",
    "evaluation.metrics",
    "evaluation.quality",
    "evaluation.contamination",
    "evaluation.backends",
    "evaluation.benchmark",
    "evaluation.benchmarks",
    *(f"evaluation.benchmarks.{name}" for name in BENCHMARKS),
    "evaluation.generation",
    "evaluation.judging",
    "evaluation.report",
    "evaluation.results",
    "evaluation.livecodebench",
    "evaluation.code",
    "evaluation.sandbox",
    "evaluation.inside",
    "evaluation.jail",
    "analysis.alternatives",
    "embedded.number_walk",
    "names",
    "prompts",
    "markdown",
    "weights",
    "trained",
    "runs",
    "differences",
    "claims",
    "comparison_tables",
]
STACK = {"trl", "transformers", "accelerate", "peft", "vllm", "datasets"}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(module):
    """(modules of the package, other packages) that a module names anywhere, type-checking blocks excepted."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    base = module.split(".") if MODULES[module].name == "__init__.py" and module else module.split(".")[:-1]
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    own, others = set(), set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            anchor = base[: len(base) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                whole = ".".join([*anchor, alias.name])
                own.add(whole if whole in MODULES else ".".join(anchor))
    return own - {module}, others


def test_every_module_has_its_place():
    assert sorted(MODULES) == sorted(name for shelf in ROW for name in shelf)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_one_way(module):
    place = {name: i for i, shelf in enumerate(ROW) for name in shelf}
    for imported in imports_of(module)[0]:
        assert place[imported] >= place[module], f"{module} imports {imported}, which stands before it"
        assert module not in imports_of(imported)[0], f"{module} and {imported} import each other"


@pytest.mark.parametrize("module", PURE)
def test_leaves_are_pure(module):
    own, others = imports_of(module)
    assert not others & STACK
    assert own <= {*PURE, "embedded", "evaluation", "analysis"}


def test_evaluation_and_analysis_never_import_the_trainer():
    for module in MODULES:
        if module.startswith(("evaluation", "analysis")):
            assert not imports_of(module)[0] & {"trainer", "train"}


@pytest.mark.parametrize("code", ["import entropy_grpo", "import entropy_grpo.cli"])
def test_import_is_light(code):
    script = f"{code}; import sys; print(sorted({{'torch', 'trl', 'transformers', 'numpy'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names_resolve():
    from trl import GRPOConfig, GRPOTrainer

    assert issubclass(entropy_grpo.EntropyForkGRPOTrainer, GRPOTrainer)
    assert issubclass(entropy_grpo.EntropyForkGRPOConfig, GRPOConfig)
    with pytest.raises(AttributeError, match="Nonsense"):
        entropy_grpo.Nonsense  # noqa: B018
