"""A run that answers benchmarks while it trains, one of which fails."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOTrainer

from benchmarks.fixtures import fixed_rollout
from entropy_grpo import EntropyForkGRPOConfig, launch
from entropy_grpo.config.run import RunConfig
from entropy_grpo.evaluation import callback, results
from entropy_grpo.evaluation.backends.transformers import TransformersBackend
from entropy_grpo.grading.pool import Grader
from entropy_grpo.models import load
from entropy_grpo.monitoring.watchers import WATCHERS
from entropy_grpo.rewards.registry import get_rewards
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.training.ending import save_whole
from entropy_grpo.training.weights import save_weights

from .conftest import REPOSITORY

SETTINGS = {
    "num_train_problems": 16,
    "num_dev_problems": 0,
    "num_test_problems": 0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "num_generations": 4,
    "num_generations_eval": 2,
    "per_device_train_batch_size": 8,
    "steps_per_generation": 1,
    "max_completion_length": 12,
    "max_steps": 3,
    "disable_tqdm": "true",
    "rewards": "[random]",  # so that steps have a gradient
}


def train(model: str, run: RunFolder, **more) -> None:
    words = {"model_name_or_path": model, "output_dir": run.path, **SETTINGS, **more}
    launch.run(
        str(REPOSITORY / "recipes" / "demo_cpu.yaml"), [w for k, v in words.items() for w in (f"--{k}", str(v))]
    )


@pytest.mark.slow
def test_a_benchmark_that_fails_does_not_stop_the_run(tiny_model, tmp_path, monkeypatch):
    benchmark = tmp_path / "walks.jsonl"
    rows = [json.dumps({"problem": f"go {n} to 8 need {8 - n:+d} with +7 -4 -1\n", "answer": 8}) for n in range(1, 6)]
    benchmark.write_text("\n".join(rows) + "\n")
    run = RunFolder(tmp_path / "run")
    names = f"[{benchmark}, {tmp_path / 'nowhere.jsonl'}]"
    sampling = {"eval_benchmark_temperature": 0.6, "eval_benchmark_top_p": 0.95}
    drawn, held_out = watch_sampling(monkeypatch), []
    monkeypatch.setitem(WATCHERS, "held_out", lambda log: held_out.extend(log.values("eval_accuracy")))
    train(tiny_model, run, eval_benchmarks=names, eval_benchmark_steps=2, keep_weights="[1, 3]", **sampling)
    # Evaluations before the first step and after the second, and a rollout for each step.
    assert drawn == [(False, 0.6, 0.95), (True, 1.0, 1.0), (True, 1.0, 1.0), (False, 0.6, 0.95), (True, 1.0, 1.0)]
    assert held_out == []  # there are no held-out problems
    logged = list(files.read_jsonl(run.metrics))
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3]
    first, evaluated = [row for row in logged if "eval_failures" in row]
    assert (first["step"], first["eval_failures"]) == (0, 1)
    assert (evaluated["step"], evaluated["eval_failures"]) == (2, 2)
    assert not any("reward" in row for row in logged if "eval_failures" in row)
    samples, figures = results.read(run.benchmarks / "step-2", "walks")
    table = samples.to_pylist()
    assert [(row["question"], row["sample"]) for row in table] == [(str(q), n) for q in range(5) for n in range(2)]
    assert evaluated["eval_walks/acc@2"] == sum(row["verdict"] == "right" for row in table) / 10
    assert evaluated["eval_walks/len@2"] == sum(row["tokens"] for row in table) / 10
    assert {row["finish"] for row in table if row["tokens"] == 12} == {"length"}
    assert figures["settings"]["max_tokens"] == 12 and figures["step"] == 2
    assert (figures["settings"]["temperature"], figures["settings"]["top_p"]) == (0.6, 0.95)
    assert [results.names_in(run.benchmarks / f"step-{step}") for step in (0, 2)] == [["walks"], ["walks"]]
    # Weights alone, in the precision of the final model, which the last of them is.
    assert sorted(path.name for path in (run.path / "weights").iterdir()) == ["step-1", "step-3"]
    kept, final = (load_file(path / "model.safetensors") for path in (run.weights(3), run.path))
    assert kept.keys() == final.keys() and all(torch.equal(kept[name], final[name]) for name in final)
    assert not all(
        torch.equal(weight, final[name]) for name, weight in load_file(run.weights(1) / "model.safetensors").items()
    )
    assert len(AutoTokenizer.from_pretrained(run.weights(1))) == len(AutoTokenizer.from_pretrained(run.path))

    without = RunFolder(tmp_path / "without")
    train(tiny_model, without)
    assert list(files.read_jsonl(run.samples)) == list(files.read_jsonl(without.samples))


def test_no_callback_is_told_a_benchmarks_accuracy_as_that_of_the_held_out_problems(tiny_model, tmp_path):
    """Trackers, which draw one curve of `eval_accuracy`, and the progress bar, which prints it."""
    told = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append({name for name in logs if name.startswith("eval_")})

    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path / "run", num_generations_eval=4)
    trainer.add_callback(Tracker)
    trainer.answer(fixed_rollout.prompts(2))
    (own,) = told
    for name in ("first", "second"):
        row = {"problem": f"go 3 to 8 need +5 with +7 -4 -1 {name}\n", "answer": 8}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    names = [str(tmp_path / f"{name}.jsonl") for name in ("first", "second")]
    evaluation = callback.BenchmarkCallback(trainer, names, 2, {}, RunFolder(tmp_path / "run"), 5.0)
    evaluation.on_train_begin(trainer.args, trainer.state, trainer.control)
    measures = {f"eval_{name}/{of}@4" for name in ("first", "second") for of in ("acc", "maj", "pass", "len")}
    assert told[1:] == [measures | {"eval_failures"}]
    trainer.answer(fixed_rollout.prompts(2))
    assert told[2] == own and "eval_reward" in own


def test_a_resumed_run_measures_the_benchmarks_that_its_step_lacks(tiny_model, tmp_path, monkeypatch):
    """By their names, of which a resumed run may have others, or one twice."""
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path / "run", num_generations_eval=4)
    measured, write = [], results.write
    monkeypatch.setattr(
        results, "write", lambda folder, name, *rest: (measured.append(name), write(folder, name, *rest))
    )
    for name in ("first", "second"):
        row = {"problem": f"go 3 to 8 need +5 with +7 -4 -1 {name}\n", "answer": 8}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")

    def begin(*names):
        measured.clear()
        paths = [str(tmp_path / f"{name}.jsonl") for name in names]
        evaluation = callback.BenchmarkCallback(trainer, paths, 2, {}, RunFolder(tmp_path / "run"), 5.0)
        evaluation.on_train_begin(trainer.args, trainer.state, trainer.control)
        return measured

    assert begin("first", "first") == ["first"]
    assert begin("first", "first") == begin("first") == []
    assert begin("second") == ["second"]
    assert begin("first", "second") == []
    assert begin("nowhere", "second") == ["second"]  # a failure is tried again


def make_boxing_trainer(model, run, monkeypatch, reward, columns):
    """A trainer on 8 problems with further columns, whose every response is `\\boxed{8}`."""

    def boxed(prompts, trainer):
        rollout = fixed_completions(prompts, trainer)
        tokenizer = trainer.processing_class
        answer = [*tokenizer(" \\boxed{8}")["input_ids"], tokenizer.eos_token_id]
        rollout["completion_ids"] = [answer] * len(prompts)
        rollout["logprobs"] = [[-1.0] * len(answer)] * len(prompts)
        return rollout

    fixed_completions = fixed_rollout.fixed_completions
    monkeypatch.setattr(fixed_rollout, "fixed_completions", boxed)
    data = fixed_rollout.prompts(8)
    for name, values in columns.items():
        data = data.add_column(name, values)
    return fixed_rollout.make_trainer(model, run.path, reward=reward, data=data, num_generations_eval=4)


def evaluates_eights(trainer, run, folder):
    """Add the evaluation, before the first step, of a benchmark with two questions, of which 8 answers one."""
    rows = [{"problem": f"{name}: go 3 to 8 need +5 with +7 -4 -1\n", "answer": name} for name in (8, 204)]
    (folder / "eights.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return callback.BenchmarkCallback(trainer, [str(folder / "eights.jsonl")], 2, {}, run, 5.0)


def test_kept_weights_load_in_the_dtype_of_the_final_model(tiny_model, tmp_path):
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path, bf16=True)
    save_weights(trainer, tmp_path / "weights" / "step-3")
    assert trainer.model.dtype == torch.float32
    save_whole(trainer)
    kept, final = (
        AutoModelForCausalLM.from_pretrained(path, dtype="auto") for path in (tmp_path / "weights/step-3", tmp_path)
    )
    assert kept.dtype == final.dtype == torch.bfloat16
    assert all(torch.equal(kept.state_dict()[name], weight) for name, weight in final.state_dict().items())


@pytest.mark.slow
def test_the_runs_rewards_see_no_benchmark(tiny_model, tmp_path, monkeypatch):
    """A benchmark has neither the columns nor the answers that they read, and their values are not used."""
    begun, graded = [], []

    class WithinBudget:
        __name__ = "within_budget"

        def begin(self, prompts, budget, **columns):
            begun.extend(prompts)

        def __call__(self, prompts, completion_ids, budget, **columns):
            graded.extend(prompts)
            return [float(len(ids) <= most) for ids, most in zip(completion_ids, budget, strict=True)]

    run = RunFolder(tmp_path / "run")
    trainer = make_boxing_trainer(tiny_model, run, monkeypatch, WithinBudget(), {"budget": [3] * 8})
    trainer.add_callback(evaluates_eights(trainer, run, tmp_path))
    trainer.train()
    assert trainer.state.global_step == 1
    _, figures = results.read(run.benchmarks / "step-0", "eights")
    assert figures["metrics"]["acc@N"]["value"] == 0.5
    # One rollout of two groups.
    assert len(graded) == 8 and sorted(begun) == sorted(graded)
    assert set(graded) <= set(fixed_rollout.prompts(8)["prompt"])


def test_a_tasks_reward_does_not_read_a_benchmarks_references(tiny_model, tmp_path, monkeypatch):
    """Those of reasoning_gym are JSON of another form."""
    run = RunFolder(tmp_path / "run")
    (reward,) = get_rewards(["gym_accuracy"], Grader(1, 5.0, 60.0), 16)
    trainer = make_boxing_trainer(tiny_model, run, monkeypatch, reward, {"solution": ["{}"] * 8})
    evaluates_eights(trainer, run, tmp_path).on_train_begin(trainer.args, trainer.state, trainer.control)
    _, figures = results.read(run.benchmarks / "step-0", "eights")
    assert figures["metrics"]["acc@N"]["value"] == 0.5
    assert trainer.state.log_history[-1]["eval_failures"] == 0


def test_training_and_evaluation_end_at_the_same_tokens(tiny_model, tmp_path):
    """The tokens that the model's files declare; an end of a turn that they do not declare ends nothing."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.eos_token_id = [7, tokenizer.eos_token_id]
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    trainer = fixed_rollout.make_trainer(str(tmp_path / "model"), tmp_path / "run")
    backend = TransformersBackend(*load.load_model(str(tmp_path / "model"), None, "auto"), batch_size=2)
    asked = load.end_ids(tokenizer, load.load_generation_config(str(tmp_path / "model")))  # as vLLM's backend does
    assert sorted(trainer.eos_token_ids) == backend.stops == asked == sorted([7, tokenizer.eos_token_id])


def watch_sampling(monkeypatch):
    """(is a rollout, temperature, top_p) of every generation, as transformers is asked for it."""
    drawn, generate = [], GRPOTrainer._generate_single_turn

    def note(self, *args, **kwargs):
        config = self.generation_config
        drawn.append((self.model.training, config.temperature, config.top_p))
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", note)
    return drawn


@pytest.mark.slow
def test_generation_that_fails_ends_the_run(tiny_model, tmp_path, monkeypatch):
    """The next rollout would fail alike, or the other processes wait in the middle of it."""
    benchmark = tmp_path / "walks.jsonl"
    benchmark.write_text(json.dumps({"problem": "go 3 to 8 need +5 with +7 -4 -1\n", "answer": 8}) + "\n")
    generate = GRPOTrainer._generate_single_turn

    def fail_in_evaluation(self, *args, **kwargs):
        if not self.model.training:
            raise RuntimeError("out of memory")
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", fail_in_evaluation)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tiny_model, RunFolder(tmp_path / "run"), eval_benchmarks=f"[{benchmark}]", eval_benchmark_steps=2)


def test_answers_become_samples_of_their_questions():
    asked = [SimpleNamespace(id="a", prompt="1?"), SimpleNamespace(id="b", prompt="2?")]
    answers = [
        {"prompt": p, "completion": c, "length": n, "ended": n < 5}
        for p, c, n in [("2?", "x", 3), ("1?", "y", 5), ("2?", "z", 4)]
    ]
    rows = callback.sample_rows(asked, answers, 0.25)
    assert [(row["question"], row["sample"], row["text"], row["finish"]) for row in rows] == [
        ("a", 0, "y", "length"),
        ("b", 0, "x", "stop"),
        ("b", 1, "z", "stop"),
    ]


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"eval_benchmarks": ["aime24"]}, "eval_benchmark_steps is None and eval_benchmarks is"),
        ({"eval_benchmark_steps": 3}, "eval_benchmark_steps is 3, which nothing reads without eval_benchmarks"),
        ({"eval_benchmark_temperature": 0.6}, "eval_benchmark_temperature is 0.6, which nothing reads"),
        (
            {"eval_benchmarks": ["aime24"], "eval_benchmark_steps": 1, "eval_benchmark_top_p": 1.5},
            "eval_benchmark_top_p is 1.5",
        ),
        (
            {"eval_benchmarks": ["aime24"], "eval_benchmark_steps": 1, "eval_benchmark_temperature": 0.0},
            "eval_benchmark_temperature is 0.0",
        ),
        (
            {"eval_benchmarks": ["aime"], "eval_benchmark_steps": 1},
            "eval_benchmarks names 'aime': choose among aime24",
        ),
        (
            {"eval_benchmarks": ["humaneval"], "eval_benchmark_steps": 1},
            "eval_benchmarks names 'humaneval', a benchmark of programs",
        ),
        (
            {"eval_benchmarks": ["easy/test.jsonl", "hard/test.csv"], "eval_benchmark_steps": 1},
            "names 'easy/test.jsonl' and 'hard/test.csv', whose results would have the same name, 'test'",
        ),
        (
            {"eval_benchmarks": ["aime24", "own/aime24.JSONL"], "eval_benchmark_steps": 1},
            "names 'aime24' and 'own/aime24.JSONL', whose results",
        ),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        RunConfig(dataset_name="gsm8k", **settings)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"eval_benchmarks": ["aime24"], "eval_benchmark_steps": 0}, "eval_benchmark_steps is 0: write 1 or more"),
        ({"eval_benchmarks": ["aime24"], "eval_benchmark_steps": "2 rolls"}, "eval_benchmark_steps is '2 rolls'"),
        ({"keep_weights": [3, "0 rollouts"]}, "keep_weights is '0 rollouts': write 1 or more"),
    ],
)
def test_steps_are_read_by_the_size_of_a_rollout(settings, said, tmp_path):
    args = EntropyForkGRPOConfig(
        str(tmp_path),
        use_cpu=True,
        bf16=False,
        num_generations=2,
        prompts_per_rollout=8,
        steps_per_rollout=4,
        per_device_train_batch_size=2,
    )
    good = RunConfig(
        dataset_name="gsm8k",
        eval_benchmarks=["aime24"],
        eval_benchmark_steps="3 rollouts",
        keep_weights=[5, "1 rollout"],
    )
    assert (good.evaluation_steps(args), good.weight_steps(args)) == (12, [5, 4])
    config = RunConfig(dataset_name="gsm8k", **settings)
    with pytest.raises(ValueError, match=said):
        config.evaluation_steps(args)
        config.weight_steps(args)
