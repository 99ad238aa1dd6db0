"""`analyze divergence` against everything that a model of six tokens may write, resumed, refused and reported."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from entropy_grpo import cli
from entropy_grpo.analysis.divergence import run as divergence_run
from entropy_grpo.analysis.report import run as report
from entropy_grpo.data.benchmarks import BENCHMARKS
from entropy_grpo.data.benchmarks.benchmark import Question
from entropy_grpo.evaluation import results
from entropy_grpo.evaluation.backends.transformers import TransformersBackend
from entropy_grpo.runs import files

from . import tiny_vocabulary
from .tiny_vocabulary import END

# Two of the answers are the same number.
TEXTS = [r"\boxed{7}", r"\boxed{3+4}", r"\boxed{8}", "d", "e", "."]
VALUES = {0: 7, 1: 7, 2: 8}
RESPONSES = [([4, 0], [1, 2, 3, 3]), ([4, 0], [3, 3, 1, END]), ([2], [0, 4, 4, END])]
K, MOST = 300, 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with the model and a tokenizer whose letters are boxed answers, and a file of responses."""
    return save_tiny(tmp_path_factory.mktemp("tiny_vocabulary"))


def save_tiny(folder, **sizes):
    tokenizer = Tokenizer(models.WordLevel({text: i for i, text in enumerate(TEXTS)}, unk_token="d"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{[^}]*\}|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=".", pad_token=".")
    tokenizer.save_pretrained(folder)
    tiny_vocabulary.make_model(**sizes).save_pretrained(folder)
    write_rows(folder / "rows.jsonl", [row_of(*ids) for ids in RESPONSES])
    return folder


def row_of(prompt_ids, ids, /, **changed):
    texts = ["".join(TEXTS[i] for i in part if i != END) for part in (prompt_ids, ids)]
    row = {"prompt": texts[0], "response": texts[1], "finish": "stop" if ids[-1] == END else "length"}
    return row | {"reference": "7"} | changed


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(tiny, output, **changed):
    given = {"model": f"tiny={tiny}", "responses": tiny / "rows.jsonl", "output": output, "max_tokens": MOST}
    given |= {"continuations": K, "batch_size": 2 * K, "rho": 0.3, "forks": 2, "seed": 3} | changed
    return [str(x) for key, value in given.items() if value is not None for x in (f"--{key.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    """The folder of all forks' rows, made by the command line."""
    output = tmp_path_factory.mktemp("run") / "analysis"
    cli.main(["analyze", "divergence", *command(tiny, output)])
    return output / "divergence" / "tiny"


def test_rows_are_expectations_over_all_continuations(found):
    """Accuracy and changed answers, `3+4` being 7, against every continuation with its probability."""
    model, rows = tiny_vocabulary.make_model(), list(files.read_jsonl(found / "forks.jsonl"))
    assert {(row["response"], row["question"]) for row in rows} == {(0, 0), (1, 0), (2, 2)}
    assert len(rows) > 8 and {row["kind"] for row in rows} == {"high", "low"}
    for row in rows:
        prompt, ids = RESPONSES[row["response"]]
        answers = []
        for token in (row["token"], row["other"]):
            begun = [*ids[: row["position"]], token]
            left = 0 if token == END else MOST - len(begun)
            shares = dict.fromkeys([*VALUES.values(), None], 0.0)
            for path, share in tiny_vocabulary.continuations(model, prompt + begun, left).items():
                last = next((VALUES[i] for i in reversed([*begun, *path]) if i in VALUES), None)
                shares[last] += share
            answers.append(shares)
        differ = {  # two answers at random, one of each side
            (a, b): 1 - sum(answers[a][value] * answers[b][value] for value in answers[0])
            for a, b in ((0, 1), (0, 0), (1, 1))
        }
        wanted = {
            "accuracy": answers[0][7],
            "other_accuracy": answers[1][7],
            "intervention": answers[0][7] - answers[1][7],
            "changed_between": differ[0, 1],
            "changed_within": (differ[0, 0] + differ[1, 1]) / 2,
        }
        for name, value in wanted.items():
            assert row[name] == pytest.approx(value, abs=4.5 * 0.5 / K**0.5), (name, row)
        assert row["ungraded"] == 0
    assert max(abs(row["intervention"]) for row in rows) > 0.2


def test_summary_picture_and_table(found, tiny, tmp_path, capsys):
    figures, rows = files.read_json(found / "divergence.json"), list(files.read_jsonl(found / "forks.jsonl"))
    for kind in ("high", "low"):
        mine = [row["intervention"] for row in rows if row["kind"] == kind]
        assert figures["summary"][kind]["intervention"]["value"] == pytest.approx(np.mean(mine))
        assert figures["summary"][kind]["questions"] == 2
    assert (found / "divergence.png").stat().st_size > 5000
    shutil.copytree(found, tmp_path / "divergence" / "tiny")
    cli.main(["analyze", "divergence", *command(tiny, tmp_path)])  # has all forks, and prints what they say
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    for kind in ("high", "low"):
        assert f"{figures['summary'][kind]['intervention']['value']:+.3f} [" in lines["I_t"]
        assert f"{figures['summary'][kind]['distance']['value']:+.3f} [" in lines["edit distance beyond chance"]
        early = [abs(row["intervention"]) for row in rows if row["kind"] == kind and row["relative"] < 0.5]
        assert figures["impact"][kind]["early"]["size"]["value"] == pytest.approx(np.mean(early))


def test_a_killed_command_goes_on(found, tiny, tmp_path, monkeypatch):
    """It ends with the rows of one that was not killed, and continues no fork that was done."""
    whole = (found / "forks.jsonl").read_bytes().splitlines(keepends=True)
    folder = tmp_path / "divergence" / "tiny"
    shutil.copytree(found, folder)
    figures = files.read_json(folder / "divergence.json")
    files.write_json(folder / "divergence.json", {"settings": figures["settings"]})
    (folder / "forks.jsonl").write_bytes(b"".join(whole[:4]) + whole[4][:50])  # killed in the middle of a line
    sampled, write = [], TransformersBackend.write

    def spy(self, prefixes, seeds, limits, sampling):
        sampled.extend(seeds)
        return write(self, prefixes, seeds, limits, sampling)

    monkeypatch.setattr(TransformersBackend, "write", spy)
    cli.main(["analyze", "divergence", *command(tiny, tmp_path, batch_size=7 * K)])
    assert list(files.read_jsonl(folder / "forks.jsonl")) == [json.loads(line) for line in whole]
    assert (folder / "forks.jsonl").read_bytes().startswith(b"".join(whole[:4]))
    assert files.read_json(folder / "divergence.json") == figures
    assert len(sampled) == len(set(sampled)) <= (len(whole) - 4) * 2 * K


def test_what_a_benchmark_was_answered_with_is_graded_as_that_benchmark(tmp_path):
    """`8` equals the target of a number walk and solves nothing."""
    prompt = "go 5 to 8 need +3 with +3 -2 +1\n"
    rows = [{"question": "0", "sample": 0, "problem": prompt, "reference": "8", "prompt": prompt, "response": "so"}]
    samples = results.pa.Table.from_pylist(rows, schema=results.SCHEMA)
    results.write(tmp_path, "number_walk", samples, {"settings": {"benchmark": "number_walk"}})
    benchmark = divergence_run.benchmark_of(tmp_path / "number_walk.parquet")
    assert benchmark is BENCHMARKS["number_walk"]
    given = divergence_run.Given(([0], [0]), benchmark, Question("0", prompt, prompt, "8"))
    found = divergence_run.Grading([given])(0, [r"\boxed{8}", r"\boxed{5+3}", "so", r"\boxed{5+1+1+1}"])
    assert [right for _, right in found] == [False, True, False, True]
    assert found[1][0] == found[3][0] and found[0][0] is None and found[2][0] is None


def write_results(path, **settings):
    """Results of `entropy-grpo eval` with settings."""
    row = {"question": "0", "sample": 0, "problem": "1 + 4?", "reference": "5", "prompt": "1 + 4?", "response": "so"}
    samples = results.pa.Table.from_pylist([row], schema=results.SCHEMA)
    results.write(path.parent, path.stem, samples, {"settings": settings})
    return path


def make_run(path, **recipe):
    path.mkdir()
    (path / "recipe.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in recipe.items()))
    return path


@pytest.mark.parametrize("rewards", ["accuracy", "dapo_accuracy"])
def test_continuations_are_read_where_the_responses_have_their_answers(tmp_path, rewards):
    """In a box, or in the line of DAPO's prompt: results of eval, of a training, and answers of a run's model."""
    in_line = rewards == "dapo_accuracy"
    run = make_run(tmp_path / "run", rewards=[rewards])
    answers = {"answers": "answer_line"} if in_line else {}
    about = {"benchmark": "math500", "data_set": "HuggingFaceH4/MATH-500"}
    of_eval = write_results(tmp_path / "eval" / "math500.parquet", **about, **answers)
    of_training = write_results(run / "benchmarks" / "step-4" / "math500.parquet", **about, backend="trainer")
    options = divergence_run.Options(model="m", output=tmp_path, benchmarks=["math500"])
    (asked, _), *_ = divergence_run.sources(options, tmp_path, str(run))
    for benchmark in (divergence_run.benchmark_of(of_eval), divergence_run.benchmark_of(of_training), asked):
        given = divergence_run.Given(([0], [0]), benchmark, Question("0", "1 + 4?", "1 + 4?", "5"))
        graded = divergence_run.Grading([given])(0, ["So it is 5.\nAnswer: 5", r"\boxed{5}", "5"])
        assert [right for _, right in graded] == [in_line, not in_line, False]
    shutil.copytree(of_training.parent, tmp_path / "a" / "b" / "copy")
    with pytest.raises(ValueError, match="written by a training, which does not record the form of the answers"):
        divergence_run.benchmark_of(tmp_path / "a" / "b" / "copy" / "math500.parquet")


def test_results_of_some_questions_are_graded_as_their_benchmark(tmp_path):
    def sources(name, **settings):
        file = write_results(tmp_path / f"{name}.parquet", benchmark=name, **settings)
        options = divergence_run.Options(model="m", output=tmp_path, responses=file)
        return divergence_run.sources(options, tmp_path, "m")[0][0]

    assert sources("minerva-first20", limit=20, data_set="math-ai/minervamath").relative_tolerance == 0.01
    assert sources("number_walk-first3", limit=3) is BENCHMARKS["number_walk"]
    assert sources("own-first3", limit=3, data_set="own.jsonl").relative_tolerance == 0
    with pytest.raises(ValueError, match="humaneval, whose answers are programs"):
        sources("humaneval-first20", limit=20, data_set="openai/openai_humaneval")
    with pytest.raises(ValueError, match=r"'chain_sum', whose problems are generated.*with --benchmarks"):
        sources("chain_sum", package="reasoning-gym", version="0.1.25")


def test_a_model_answers_benchmarks_itself(tmp_path, tiny_model):
    problems = [{"problem": f"go {i} to 9 need +2 with +3 -2 +1\n", "answer": "9"} for i in range(3)]
    few = write_rows(tmp_path / "few.jsonl", problems)
    given = {"model": f"base={tiny_model}", "max_tokens": 7, "continuations": 2}
    rows = {}
    for name, source in {"asked": {"benchmarks": few}, "file": {"responses": tmp_path / "answers.parquet"}}.items():
        output = tmp_path / name
        cli.main(["analyze", "divergence", *command(tmp_path, output, **{"responses": None} | given | source)])
        rows[name] = list(files.read_jsonl(output / "divergence" / "base" / "forks.jsonl"))
        if name == "asked":
            answers = output / "divergence" / "base" / "responses" / "few.parquet"
            shutil.copy(answers, tmp_path / "answers.parquet")
            shutil.copy(answers.with_suffix(".json"), tmp_path / "answers.json")
    assert {row["response"] for row in rows["asked"]} == {0, 1, 2}
    assert rows["asked"] == rows["file"]


@torch.no_grad()
def test_forks_of_an_adapter_are_those_of_its_merged_model(tiny, tmp_path):
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), lora)
    model.save_pretrained(tmp_path / "adapter")  # without a tokenizer: its base has one
    merged = model.merge_and_unload()
    found = divergence_run.Options(
        model=str(tmp_path / "adapter"),
        output=tmp_path,
        responses=tiny / "rows.jsonl",
        max_tokens=MOST,
        rho=0.3,
        forks=2,
        continuations=2,
    )
    rows = list(files.read_jsonl(divergence_run.run(found) / "forks.jsonl"))
    assert len(rows) > 8
    for row in rows:
        prompt, ids = RESPONSES[row["response"]]
        p = np.array(tiny_vocabulary.next_token(merged, prompt + ids[: row["position"]]))
        assert row["entropy"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)


def test_some_of_the_responses_are_drawn(tiny, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [row_of(*RESPONSES[i % 3], reference=i) for i in range(40)])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny)
    drawn = []
    for seed in range(4):
        options = divergence_run.Options(model="m", output=tmp_path, responses=rows, limit=9, seed=seed)
        given = divergence_run.read([(divergence_run.benchmark_of(rows), rows)], tokenizer, options)
        numbers = [int(one.question.reference) for one in given]
        assert numbers == sorted(set(numbers)) and len(numbers) == 9
        assert [one.ids for one in given] == [RESPONSES[i % 3] for i in numbers]
        drawn.append(tuple(numbers))
    assert len(set(drawn)) == 4


LONG = [3] * 30
REFUSED = {
    "there is no such file": {"responses": "/nowhere.jsonl"},
    "either responses, a file, or benchmarks": {"benchmarks": "few.jsonl"},
    "limit is 0": {"limit": 0},
    "continuations is 1": {"continuations": 1},
    "top_p is 0.0": {"top_p": 0.0},
    "backend is 'http://localhost:8000': choose auto, transformers or vllm": {"backend": "http://localhost:8000"},
    "backend is 'vllm', which is not installed": {"backend": "vllm", "batch_size": None},
    "batch_size": {"backend": "vllm"},
    "tensor_parallel": {"backend": "transformers", "tensor_parallel": 2},
    "max_tokens is 0": {"max_tokens": 0},
    "humaneval, whose answers are programs": {"responses": None, "benchmarks": "humaneval"},
    "has no column reference or solution": {"rows": [row_of(*RESPONSES[0], reference=None)]},
    ": prompt is NoneType": {"rows": [row_of(*RESPONSES[0], prompt=None)]},
    "the file has no rows": {"rows": []},
    "response 1 has no tokens": {"rows": [row_of(*RESPONSES[0]), row_of([0], [0], response="")]},
    "max_tokens is 4, but response 0 has 5 tokens": {"rows": [row_of([0], [3] * 5)]},
    "32 positions and the longest prompt has 30 tokens": {"rows": [row_of(LONG, [0])]},
    "model has 6 token ids, but response 0": {"rows": [row_of([0], [0], prompt_ids=[0], completion_ids=[6])]},
    "forks with rho 0.3, but 0.4 is requested": {"rho": 0.4, "done": True},
}


@pytest.mark.parametrize("match", REFUSED)
def test_what_cannot_be_done_is_refused_before_a_model_loads(match, tiny, found, tmp_path, monkeypatch, capsys):
    """The model's folder has no weights; and a data set that had to be downloaded would fail."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, "weightless", ignore=shutil.ignore_patterns("*.safetensors"))
    changed = dict(REFUSED[match])
    if changed.pop("done", False):
        shutil.copytree(found, tmp_path / "out" / "divergence" / "tiny")
    if "rows" in changed:
        changed["responses"] = write_rows(tmp_path / "rows.jsonl", changed.pop("rows"))
    given = {"model": "tiny=weightless", "responses": tiny / "rows.jsonl"} | changed
    with pytest.raises(SystemExit):
        cli.main(["analyze", "divergence", *command(tiny, tmp_path / "out", **given)])
    said = capsys.readouterr().err.strip()
    assert match in said and said.startswith("error: ") and said.count("\n") == 0
    assert not (tmp_path / "out" / "divergence" / "tiny" / "forks.jsonl").exists() or "rho" in match


def test_a_report_shows_the_forks_of_every_model(found, tmp_path):
    for name in ("base", "</script>|$x$".replace("/", "-")):
        shutil.copytree(found, tmp_path / "run" / "analysis" / "divergence" / name)
    unfinished = tmp_path / "run" / "analysis" / "divergence" / "unfinished"
    files.write_json(unfinished / "divergence.json", {"settings": {}})
    report.write(tmp_path / "run")
    text = (tmp_path / "run" / "analysis" / "report.md").read_text()
    summary = files.read_json(found / "divergence.json")["summary"]
    for kind, field in itertools.product(("high", "low"), ("intervention", "distance", "changed")):
        one = summary[kind][field]
        cell = f"{one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
        assert text.count(cell) >= 2
    assert "| base | high |" in text and "unfinished" not in text
    assert "](figures/divergence.png)" in text
    for name in ("divergence", "impact"):
        assert (tmp_path / "run" / "analysis" / "figures" / f"{name}.png").stat().st_size > 5000
    assert text.count("| early |") == 4  # of two models and two kinds of forks
    assert "<script" not in (tmp_path / "run" / "analysis" / "report.html").read_text()
