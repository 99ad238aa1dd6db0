"""Every recipe as it ships, but for what `shipped.CHANGES` lists: trained, evaluated, saved, resumed and loaded again.

Recipes for several GPUs run on two processes under the FSDP2 configuration that they name, those for one GPU on one.
By default a few run that differ in kind; `--every-recipe` takes all.

With SHIPPED_ON_GPU=1 the recipes for GPUs run on one GPU, those with FSDP2 sharded over that one process.
"""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from functools import cache

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.fixtures.tiny_model import byte_level_tokenizer, save_tiny_model
from entropy_grpo.config import recipe
from entropy_grpo.config.sharding import sharding_environment
from entropy_grpo.data.prompts import TEMPLATES
from entropy_grpo.data.sources import TRAINING
from entropy_grpo.runs import files, yaml12
from entropy_grpo.runs.folder import RunFolder

from .conftest import REPOSITORY
from .shipped import ADDED, CHANGES, ON_GPU
from .test_paper_recipes import FAMILIES, ROWS, family_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EVERY = sorted(p.stem for p in (REPOSITORY / "recipes").glob("*.yaml") if p.stem != "base")
# FSDP2 with dynamic sampling and ranked tokens; FSDP2 with another architecture, shaping and raised positions; FSDP2
# with a divisor of token weights, and with a pass before every step; all weights, and adapters, on one GPU; a
# processor; a cold start.
KINDS = ["qwen3_14b", "qwen25_math_7b_ppl_position", "qwen3_8b_stapo", "qwen25_7b_kl_cov"]
KINDS += ["qwen3_0_6b", "qwen3_8b_lora", "demo_cpu", "llama31_8b_cold_start"]
POSITIONS = 384
ZERO3 = "accelerate_configs/zero3.yaml"
TIED = ("qwen3_0_6b", "qwen3_1_7b", "qwen3_0_6b_countdown", "qwen3_1_7b_countdown")


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        names = EVERY if metafunc.config.getoption("every_recipe") else KINDS
        metafunc.parametrize("name", [name for name in names if not (ON_GPU and values(name).get("use_cpu"))])


@cache
def values(name):
    return {key: setting.value for key, setting in recipe.load(REPOSITORY / "recipes" / f"{name}.yaml").items()}


def processes(name):
    """As many as the accelerate configuration that the recipe names has GPUs, at most two."""
    config = yaml12.parse((REPOSITORY / values(name)["accelerate_config"]).read_text())
    return min(config["num_processes"], 2)


def changed(name, folder):
    """The recipe's settings that are changed, and the files that stand for those on the Hub."""
    settings = values(name)
    sft = settings.get("trainer") == "sft"
    new = {key: change.value for key, change in CHANGES.items() if key in settings}
    new = {key: value(settings[key]) if callable(value) else value for key, value in new.items()}
    read = {"max_sampling_rounds": settings.get("dynamic_sampling"), "eval_benchmark_steps": not sft}
    new |= {key: change.value for key, change in ADDED.items() if read.get(key, True)}
    # The recipes' models have byte-level BPE, and that of the embedded tasks their words.
    # Questions of generators are in English, like the licence.
    texts = [*TEMPLATES.values(), json.dumps(ROWS), (REPOSITORY / "LICENSE").read_text()]
    embedded = settings["dataset_name"].startswith("embedded:")
    new["model_name_or_path"] = save_tiny_model(
        folder / "model",
        FAMILIES[family_of(name)[0]],
        tokenizer=None if embedded else byte_level_tokenizer(texts, 1000),
        tie_word_embeddings=name in TIED,
        max_position_embeddings=POSITIONS,
    )
    if sft:
        rows = [
            {"problem": f"What is {i} + {i}?", "response": f"so \\boxed{{{2 * i}}}", "reference": str(2 * i)}
            for i in range(1, 13)
        ]
        new["dataset_name"] = write(folder / "teacher.jsonl", rows)
        return new
    if settings["dataset_name"] in TRAINING:
        new["dataset_file"] = write(folder / "rows.jsonl", ROWS[settings["dataset_name"]])
    asked = [{"problem": f"go {n} to 8 need {8 - n:+d} with +7 -4 -1\n", "answer": 8} for n in range(1, 6)]
    return new | {"eval_benchmarks": [write(folder / "walks.jsonl", asked)]}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def python(request):
    """A process that was forked from one with torch's threads cannot use a GPU."""
    return sys.executable if ON_GPU else request.getfixturevalue("preloaded")


def launch(python, name, folder, settings, *, number):
    if ON_GPU and number > 1 and torch.__version__ < "2.13":
        pytest.skip("before torch 2.13, FSDP2 does not end a pass that leaves out the LM head")
    folder.mkdir(exist_ok=True)
    start = f"-m torch.distributed.run --standalone --nproc_per_node {1 if ON_GPU else number}" if number > 1 else ""
    if settings.get("accelerate_config") == ZERO3:  # which only accelerate's launcher sets up
        start = f"-m accelerate.commands.launch --config_file {ZERO3} --num_processes {number} --main_process_port "
        start += str(free_port())
    words = [word for key, value in settings.items() for word in (f"--{key}", json.dumps(value).strip('"'))]
    command = [python, *start.split(), "-m", "tests.shipped", f"recipes/{name}.yaml", str(folder), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ENTROPY_GRPO_CACHE": str(folder / "cache")}
    environment |= {} if ON_GPU else {"DS_ACCELERATOR": "cpu"}
    if ON_GPU and number > 1:  # one process is sharded only if the launcher says so
        environment |= sharding_environment(
            REPOSITORY / settings.get("accelerate_config", values(name)["accelerate_config"])
        )
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def shipped(tmp_path_factory, python):
    """Trains a recipe once: its folder, with the run in `run` and the reports beside it, and what was changed."""
    made = {}

    def train(name, **more):
        key = (name, *more.items())
        if key not in made:
            if name == "qwen3_8b_qlora":
                pytest.importorskip("bitsandbytes")
            folder = tmp_path_factory.mktemp(name)
            settings = changed(name, folder) | {"output_dir": str(folder / "run")} | more
            launch(python, name, folder, settings, number=processes(name))
            made[key] = folder, settings
        return made[key]

    return train


def rows(run):
    """The rows of a run without what depends on the clock or the memory."""
    clocked = ("time", "seconds", "per_second", "peak_memory", "resumed_from")
    return [
        {k: v for k, v in row.items() if not any(word in k for word in clocked)}
        for row in files.read_steps(RunFolder(run).metrics)
    ]


def load(run):
    kind = AutoPeftModelForCausalLM if (run / "adapter_config.json").exists() else AutoModelForCausalLM
    return kind.from_pretrained(run)


def test_it_trains_evaluates_saves_and_loads(name, shipped):
    folder, _ = shipped(name)
    run, report, settings = folder / "run", json.loads((folder / "report.json").read_text()), values(name)
    assert report["sharded"] == ("fsdp2" in settings["accelerate_config"])
    steps = [row for row in rows(run) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1)) and len(steps) >= 4
    assert all(math.isfinite(row["loss"]) for row in steps)
    # A random model has only wrong answers without a box, so that no group of these rewards has a gradient.
    if settings.get("rewards", [])[1:2] not in (["inverted"], ["format_only"]):
        assert any(row["grad_norm"] > 0 for row in steps)
    if settings.get("trainer") != "sft":
        evaluated = [row for row in rows(run) if "eval_failures" in row]
        assert [(row["step"], row["eval_failures"]) for row in evaluated] == [(0, 0), (2, 0), (4, 0)]
        assert report["walks"] == ([0, 2, 4, 4] if settings.get("use_vllm") else None)
        if report["sharded"]:
            assert report["left_whole"]
        if settings.get("use_vllm") and not settings.get("use_peft"):
            assert report["walked"] == report["names"]

    model, trained = load(run), load_file(folder / "weights.safetensors")
    saved = {n.replace(".default", ""): w for n, w in model.state_dict().items()}
    kept = torch.bfloat16 if settings["bf16"] and not settings.get("use_peft") else torch.float32
    for weight in trained:
        assert torch.equal(saved[weight.replace(".default", "")].to(kept), trained[weight].to(kept)), weight
    if not settings.get("use_peft"):
        assert {weight.dtype for weight in model.parameters()} == {kept}
    tokenizer = AutoTokenizer.from_pretrained(run)
    assert model(**tokenizer("go 3 to 8 need +5 with +7 -4 -1\n", return_tensors="pt")).logits.isfinite().all()


def test_it_goes_on_from_a_checkpoint(name, shipped, python):
    """In the middle of a rollout; what comes is what an uninterrupted run has, bit for bit."""
    folder, settings = shipped(name)
    first = min((folder / "run").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    again = folder / "again"
    (again / "run").mkdir(parents=True)
    shutil.copytree(first, again / "run" / first.name)
    for left in ("recipe.yaml", "metrics.jsonl", "answers", "evaluation.json", "data.json"):
        source = folder / "run" / left
        if source.exists():
            (shutil.copytree if source.is_dir() else shutil.copy)(source, again / "run" / left)
    more = {"output_dir": str(again / "run"), "resume_from_checkpoint": True}
    launch(python, name, again, settings | more, number=processes(name))
    assert rows(again / "run") == rows(folder / "run")
    once, resumed = (load_file(path / "weights.safetensors") for path in (folder, again))
    assert once.keys() == resumed.keys() and all(torch.equal(once[n], resumed[n]) for n in once)


TABLE = re.findall(r"^\| (.+) \|$", (REPOSITORY / "docs" / "numerics.md").read_text(), re.MULTILINE)
HEADER, *CELLS = ([cell.strip() for cell in line.split("|")] for line in TABLE)
DDP = {"accelerate_config": "none", "use_cpu": True}  # gloo has no other way than accelerate's own for processors
COLUMNS = {
    "FSDP2": ("qwen3_14b", {}),
    "DDP": ("qwen3_14b", DDP),
    "ZeRO-3": ("qwen3_14b", {"accelerate_config": ZERO3}),  # `make test-zero3` installs DeepSpeed
    "one GPU": ("qwen3_0_6b", {}),
    "LoRA": ("qwen3_8b_lora", {}),
    "processor": ("demo_cpu", {}),
}


def weights_of_a_checkpoint(folder):
    """The dtypes of the trained weights in a checkpoint, whole or in pieces."""
    pieces = folder / "pytorch_model_fsdp_0"
    if pieces.is_dir():
        found = FileSystemReader(pieces).read_metadata().state_dict_metadata.values()
        return {entry.properties.dtype for entry in found}
    return weights_of_a_model(folder)


def weights_of_a_model(folder):
    (file,) = folder.glob("*model.safetensors")
    return {weight.dtype for weight in load_file(file).values()}


@pytest.mark.parametrize("column", [c for c in COLUMNS if not ON_GPU or c in ("FSDP2", "one GPU", "LoRA")])
def test_dtypes_are_those_of_the_table(column, shipped):
    """`on_grid` has numbers all of whose values bfloat16 holds, which in float32 are rounded all the same."""
    name, more = COLUMNS[column]
    if column == "ZeRO-3":
        pytest.importorskip("deepspeed")
    folder, _ = shipped(name, **more)
    report = json.loads((folder / "report.json").read_text())
    found = report["dtypes"]
    for number, weights in (
        ("weights in a checkpoint", weights_of_a_checkpoint(folder / "run" / "checkpoint-3")),
        ("weights of the saved model", weights_of_a_model(folder / "run")),
    ):
        found[number] = [str(dtype).removeprefix("torch.") for dtype in weights]
    place = HEADER.index(column)
    said = {row[0]: [row[place]] for row in CELLS if row[place]}
    if ON_GPU:  # one process reduces nothing
        said.pop("gradients between processes", None)
        assert found.pop("gradients between processes", []) == []
    assert found == said
    assert report["on_grid"] == []
    if column == "FSDP2":  # transformers passes no timeout to the process group of `use_cpu`
        assert report["timeout"] == values(name)["ddp_timeout"]


def test_every_change_has_a_reason():
    assert all(change.reason for change in (*CHANGES.values(), *ADDED.values()))
