"""A cold start on a teacher's responses, and the training that goes on from it with the problems that it left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from benchmarks.fixtures.tiny_model import save_tiny_model
from entropy_grpo.config import recipe
from entropy_grpo.config.recipe import RecipeError, Setting
from entropy_grpo.config.sft import CLASSES, SFTRunConfig
from entropy_grpo.data import rows as read_rows
from entropy_grpo.data.benchmarks.benchmark import Benchmark
from entropy_grpo.data.prompts import render
from entropy_grpo.data.sources import TRAINING
from entropy_grpo.evaluation import results
from entropy_grpo.evaluation.judging import Judgement
from entropy_grpo.grading import Verdict
from entropy_grpo.runs import seal
from entropy_grpo.tasks.cold_start import build_tokenizer
from entropy_grpo.training.sft import choose, load_rows

from .conftest import ACCELERATE, REPOSITORY


def teach(number, solution=None, response=None, question=None):
    return {
        "problem": question or f"What is {number} + {number}?",
        "response": response or f"so \\boxed{{{2 * number}}}",
        "reference": solution or str(2 * number),
    }


ROWS = [
    teach(1),
    teach(2, response="so \\boxed{5}"),
    teach(3, response="so 6"),
    teach(4, response="need need need need need need need need need need so \\boxed{8}"),
    teach(4),
    teach(4, response="no so \\boxed{8}"),
    teach(5, question="Which number is on the wall?", solution="\\frac{1}{2}", response="\\boxed{0.5}"),
    teach(6),
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(tmp_path, rows=ROWS, **fields):
    named = {"prompt_column": "problem", "solution_column": "reference"} | fields
    return SFTRunConfig(dataset_name=write(tmp_path / "teacher.jsonl", rows), **named)


def taken(cfg, max_length=None, seed=0):
    rows = load_rows(cfg)
    return choose(cfg, rows, build_tokenizer(), max_length, seed)


def test_the_first_right_response_of_a_problem_is_taken(tmp_path):
    found, origin = taken(config(tmp_path))
    assert found == [0, 3, 6, 7]
    assert origin["left_out"] == {"wrong": 2, "further right responses to a problem": 2}


def test_one_that_is_too_long_gives_way_to_a_shorter_one(tmp_path):
    tokenizer = build_tokenizer()
    lengths = [len(tokenizer(row["problem"] + row["response"])["input_ids"]) + 1 for row in ROWS]
    longest = lengths[3] - 1
    assert max(lengths[4], lengths[6]) <= longest
    found, origin = taken(config(tmp_path), longest)
    assert found == [0, 4, 6, 7]
    assert origin["left_out"][f"over {longest} tokens"] == 1


def test_evaluation_problems_are_left_out(tmp_path):
    held_out = write(tmp_path / "held_out.jsonl", [{"problem": "What is 1+1?"}])
    found, _ = taken(config(tmp_path, decontaminate_against=[held_out]))
    assert found == [3, 6, 7]


def test_too_few_right_responses_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"num_responses is 5, but .* has 4 usable responses"):
        taken(config(tmp_path, num_responses=5))


def test_the_responses_are_drawn_at_random(tmp_path):
    """Each problem equally often, not the first ones of the file."""
    rows = [teach(i) for i in range(1, 13)]
    cfg = config(tmp_path, rows, num_responses=3)
    draws = [taken(cfg, seed=seed)[0] for seed in range(60)]
    assert all(draw == sorted(set(draw)) and len(draw) == 3 for draw in draws)
    assert draws[0] == taken(cfg, seed=0)[0]
    counts = [sum(i in draw for draw in draws) for i in range(12)]
    assert 4 < min(counts) and max(counts) < 30  # 15 on average, standard deviation 3.4
    assert taken(cfg, seed=0)[1]["drawn_from"] == 12


def test_the_results_of_an_evaluation_of_the_teacher_are_read(tmp_path):
    """With the columns that the recipe names."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"What is {i}?", "solution": str(i)}) + "\n" for i in range(3)))
    given = read_rows.load("benchmarks", str(data)).rows
    benchmark = Benchmark("dapo_math", TRAINING["dapo_math"])
    asked = benchmark.read(given)
    written = [
        {"question": q.id, "sample": 0, "text": f"\\boxed{{{i % 2}}}", "tokens": 3, "finish": "stop", "seconds": 0.1}
        for i, q in enumerate(asked)
    ]
    judgements = [Judgement(str(i % 2), Verdict.RIGHT, 0) for i in range(3)]
    results.write(tmp_path, "dapo_math", results.table(benchmark, asked, written, judgements), {})
    named = {key: s.value for key, s in recipe.load(REPOSITORY / "recipes" / "llama31_8b_cold_start.yaml").items()}
    columns = {key: named[key] for key in ("prompt_column", "response_column", "solution_column", "prompt_template")}
    cfg = SFTRunConfig(dataset_name=str(tmp_path / "dapo_math.parquet"), **columns)
    assert Path(named["dataset_name"]).name == "dapo_math.parquet"
    found, _ = taken(cfg)
    assert found == [0, 1] and list(load_rows(cfg)["prompt"]) == [f"What is {i}?" for i in range(3)]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"dataset_name": None}, "dataset_name is missing"),
        ({"num_responses": 0}, "num_responses is 0"),
        ({"prompt_template": "chat"}, "prompt_template is 'chat': choose one of boxed"),
        ({"decontaminate_against": ["aime"]}, "decontaminate_against names 'aime'"),
        ({"grading_seconds": 0.0}, "grading_seconds is 0"),
        ({"responses_per_step": 7, "per_device_train_batch_size": 2}, "responses_per_step is 7, but .* multiple of 2"),
        (
            {"responses_per_step": 8, "gradient_accumulation_steps": 3},
            "gradient_accumulation_steps is 3, but respon",
        ),
        ({"top_entropy_quantile": 0.2}, "there is no setting top_entropy_quantile"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(tmp_path, fields, sentence):
    values = {"trainer": "sft", "dataset_name": "x.jsonl", "use_cpu": True, "bf16": False} | fields
    settings = {key: Setting(value, "here") for key, value in values.items()}
    with pytest.raises(RecipeError, match=sentence):
        recipe.build(settings, CLASSES)


def test_missing_column_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"response_column is 'answer', which .* does not have: .* one of response\."):
        load_rows(config(tmp_path, response_column="answer"))


def launch(python, name, words, *more):
    command = [
        python,
        str(ACCELERATE),
        "launch",
        f"recipes/{name}.yaml",
        *words.split(),
        *more,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr


def completion_loss(model, tokenizer, row):
    """(sum of -log p over response and EOS, their number), in float64."""
    prompt = tokenizer(render("boxed", row["problem"]))["input_ids"]
    ids = torch.tensor([prompt + tokenizer(row["response"])["input_ids"] + [tokenizer.eos_token_id]])
    logps = model(ids).logits.double().log_softmax(-1)[0, len(prompt) - 1 : -1]
    return -logps.gather(1, ids[0, len(prompt) :, None]).sum().item(), len(logps)


CPU = "--use_cpu true --bf16 false --dtype float32 --accelerate_config none --model_revision main --disable_tqdm true "


@pytest.mark.slow
def test_cold_start_and_what_follows_by_the_literal_commands(tmp_path, preloaded):
    """The recipes of the paper's Llama, but for sizes and devices."""
    model = save_tiny_model(tmp_path / "model", LlamaConfig)
    rows = [teach(number) for number in range(1, 21)]
    teacher = write(tmp_path / "teacher.jsonl", rows)
    run, problems = tmp_path / "cold", tmp_path / "cold" / "problems.jsonl"
    words = CPU + "--decontaminate_against [] --num_responses 4 --responses_per_step 4 --max_steps 2 --max_length 128"
    words += " --per_device_train_batch_size 2 --learning_rate 1e-3 --warmup_steps 0 --seed 3"
    paths = ["--model_name_or_path", model, "--dataset_name", teacher, "--output_dir", str(run)]
    launch(preloaded, "llama31_8b_cold_start", words, *paths)

    chosen = [json.loads(line)["problem"] for line in problems.read_text().splitlines()]
    drawn = [row for row in rows if row["problem"] in chosen]  # at random, and not the first
    assert len(chosen) == len(drawn) == 4 and drawn != rows[:4]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in logged if "loss" in row]
    assert len(losses) == 2
    assert [path.name for path in seal.complete_checkpoints(run)] == ["checkpoint-1", "checkpoint-2"]
    assert "optimizer.pt" in seal.read(run / "checkpoint-2")["files"]
    before, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    expected = [completion_loss(before, tokenizer, row) for row in drawn]
    whole = sum(total for total, _ in expected) / sum(number for _, number in expected)
    assert losses[0] == pytest.approx(whole, abs=1e-4)  # as logged, with four decimals
    after = AutoModelForCausalLM.from_pretrained(run).eval()
    assert sum(completion_loss(after, tokenizer, row)[0] for row in drawn) < sum(total for total, _ in expected)

    data = write(tmp_path / "rows.jsonl", [{"prompt": r["problem"], "solution": r["reference"]} for r in rows])
    words = CPU + "--use_vllm false --vllm_enable_sleep_mode false --max_steps 2 --prompts_per_rollout 4 "
    words += "--steps_per_rollout 2 --num_generations 4 --per_device_train_batch_size 2 --max_completion_length 16 "
    words += "--overlong_cache_length 8 --max_sampling_rounds 2 --save_strategy no"
    paths = ["--model_name_or_path", str(run), "--dataset_file", data, "--output_dir", str(tmp_path / "run")]
    launch(preloaded, "llama31_8b", words, *paths, "--decontaminate_against", f"[{problems}]")
    origin = json.loads((tmp_path / "run" / "data.json").read_text())
    assert origin["left_out"] == {f"in {problems}": 4}
    assert origin["train"] == 16


def test_prompt_of_the_cold_start_is_that_of_the_training():
    cold, later = (recipe.load(REPOSITORY / "recipes" / f"llama31_8b{end}.yaml") for end in ("_cold_start", ""))
    assert cold["prompt_template"].value == later["prompt_template"].value
    assert later["model_name_or_path"].value == "runs/llama31_8b_cold_start"
    assert cold["max_length"].value == later["max_prompt_length"].value + later["max_completion_length"].value
