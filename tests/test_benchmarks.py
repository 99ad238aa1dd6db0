"""What is read of published benchmarks, on rows made by hand after their cards: none is copied from a set."""

import json
import random

import datasets
import httpx
import huggingface_hub
import pandas
import pytest
from huggingface_hub.errors import GatedRepoError

from entropy_grpo.data import hub
from entropy_grpo.data.benchmarks import BENCHMARKS, PUBLISHED
from entropy_grpo.data.benchmarks.benchmark import CODE, MATHS, seed_of
from entropy_grpo.data.prompts import TEMPLATES
from entropy_grpo.evaluation import questions
from entropy_grpo.evaluation.judging import judge
from entropy_grpo.evaluation.options import Options
from entropy_grpo.grading import Verdict
from entropy_grpo.grading.code.sandbox import unavailable
from entropy_grpo.tasks.number_walk import VALUES, Problem

BOXED = TEMPLATES["boxed"]
needs_sandbox = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


def gpqa_row(i, **more):
    wrong = {f"Incorrect Answer {j}": f" wrong {j} of {i}" for j in (1, 2, 3)}
    return {"Question": f"Which {i}? ", "Correct Answer": f"right {i}\n", "Record ID": f"rec{i:03d}", **wrong, **more}


def olympiad_row(final_answer, **more):
    return {"id": 7, "question": "Find $x$.", "final_answer": final_answer, "context": None, "unit": None} | more


# (name, row, question, reference); the cards' own examples of answers.
READ = [
    ("aime24", {"id": 60, "problem": "P?", "solution": "s", "answer": "025", "year": "2024"}, "P?", "25"),
    ("aime24", {"id": 61, "problem": "P?", "answer": "000"}, "P?", "0"),
    ("aime25", {"problem": "P?", "answer": "70", "id": "0"}, "P?", "70"),
    ("aime26", {"id": 1, "problem": "P?", "answer": "062"}, "P?", "62"),
    ("aime26", {"id": 1, "problem": "P?", "answer": 277}, "P?", "277"),
    ("amc23", {"id": 1, "question": "Q?", "answer": 27.0, "url": "u"}, "Q?", "27"),
    ("amc23", {"id": 1, "question": "Q?", "answer": "-1.0"}, "Q?", "-1"),
    ("amc23", {"id": 1, "question": "Q?", "answer": "3159"}, "Q?", "3159"),
    ("math500", {"problem": "P?", "answer": "\\text{Evelyn}", "unique_id": "test/a/1.json"}, "P?", "\\text{Evelyn}"),
    ("minerva", {"question": "Q?", "answer": "4.5e33"}, "Q?", "4.5e33"),
    ("olympiadbench", olympiad_row(["$69$,$84$"]), "Find $x$.", "69,84"),
    ("olympiadbench", olympiad_row("['2']"), "Find $x$.", "2"),
    ("olympiadbench", olympiad_row(["$(-\\infty, 0) \\cup\\{1\\}$."]), "Find $x$.", "(-\\infty, 0) \\cup\\{1\\}"),
    ("olympiadbench", olympiad_row(["5"], context="Let $x>0$."), "Let $x>0$.\nFind $x$.", "5"),
]


@pytest.mark.parametrize("name, row, text, reference", READ)
def test_rows_are_read(name, row, text, reference):
    benchmark = BENCHMARKS[name]
    [question] = benchmark.read([row])
    assert (question.text, question.reference) == (text, reference)
    assert question.prompt == BOXED.replace("{question}", text)
    assert question.id == str(row[benchmark.id_column] if benchmark.id_column else 0)


@pytest.mark.parametrize(
    "name, row, said",
    [
        ("aime24", {"id": 1, "problem": "P?"}, "answer was expected and is missing"),
        ("aime24", {"id": 1, "problem": "P?", "answer": "336^\\circ"}, "336"),
        ("aime26", {"id": 1, "problem": "P?", "answer": "340 or 850"}, "340 or 850"),
        ("aime26", {"id": 1, "problem": "P?"}, "invalid literal"),
        ("amc23", {"question": "Q?", "answer": "27.5"}, "27.5, but an integer was expected"),
        ("amc23", {"question": "Q?", "answer": None}, "None, but a number was expected"),
        ("math500", {"problem": "P?", "answer": 3}, "answer is 3, but text was expected"),
        ("olympiadbench", olympiad_row(["1", "2"]), "but a list of one text was expected"),
        ("olympiadbench", olympiad_row("[1"), "but a list was expected"),
        ("gpqa", {"Question": "Q?", "Record ID": "a"}, "Correct Answer was expected"),
    ],
)
def test_rows_of_another_form_are_refused(name, row, said):
    with pytest.raises(
        ValueError, match=f"{name}: row 0 of .* has an unexpected form: .*{said.replace('^', '.')[:40]}"
    ):
        BENCHMARKS[name].read([row])


def test_two_rows_of_one_name_are_refused():
    row = {"id": 60, "problem": "P?", "answer": "1"}
    with pytest.raises(ValueError, match="two rows have the id '60'"):
        BENCHMARKS["aime24"].read([row, row])


# What data.md's sources and public loaders pin.
PINNED = {
    "aime24": ("HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", 30),
    "aime25": ("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", 30),
    "aime26": ("math-ai/aime26", "79037aebdb6580008fb960d17cb21fd3099083e3", 30),
    "amc23": ("math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057", 40),
    "math500": ("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", 500),
    "minerva": ("math-ai/minervamath", "ee46ddc498933b1977577953250ca5c66be64f96", 272),
    "olympiadbench": ("Hothan/OlympiadBench", "91184b52131e7fc9455fef848035173aea8cc01a", 674),
    "gpqa": ("Idavidrein/gpqa", "633f5ee89ab8ad4522a9f850766b73f62147ffdd", 198),
    "humaneval": ("openai/openai_humaneval", "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544", 164),
}


def test_sets_are_pinned():
    found = {name: b.source for name, b in BENCHMARKS.items() if b.source is not None}
    assert {name: (s.hub_id, s.revision, s.rows) for name, s in found.items()} == PINNED
    assert list(PUBLISHED) == ["aime24", "aime25", "aime26", "amc23", "math500", "minerva", "olympiadbench"]


class TestGpqa:
    def test_choices_are_shuffled_by_the_record_alone(self):
        rows = [gpqa_row(i) for i in range(198)]
        read = BENCHMARKS["gpqa"].read(rows)
        by_id = {q.id: q for q in read}
        random.Random(1).shuffle(rows)
        assert {q.id: q for q in BENCHMARKS["gpqa"].read(rows)} == by_id
        letters = [q.reference for q in read]
        # 198 fair draws among four: each letter 49.5 times, give or take 4 standard deviations of 6.1.
        assert all(25 < letters.count(letter) < 75 for letter in "ABCD")
        for i, question in enumerate(read):
            lines = question.text.split("\n")
            assert lines[0] == f"Which {i}?"
            assert f"{question.reference}. right {i}" in lines
            assert sorted(line[3:] for line in lines[2:6]) == sorted(
                [f"right {i}", *(f"wrong {j} of {i}" for j in (1, 2, 3))]
            )

    @pytest.mark.parametrize(
        "boxed, letter",
        [
            ("C", "C"),
            ("(C)", "C"),
            ("\\text{C}", "C"),
            ("\\text{(C)}", "C"),
            ("C. 3 kg", "C"),
            ("\\mathrm{D}", "D"),
            ("A typical one", None),
            ("E", None),
            ("", None),
            ("CD", None),
            ("c", None),
        ],
    )
    def test_letters_are_taken(self, boxed, letter):
        [question] = BENCHMARKS["gpqa"].read([gpqa_row(0)])
        assert BENCHMARKS["gpqa"].take(question, f"so \\boxed{{{boxed}}}") == letter
        assert BENCHMARKS["gpqa"].take(question, "C") is None

    def test_without_its_terms_it_is_gated(self, monkeypatch):
        def refuse(*args, **kwargs):
            raise GatedRepoError("gated", response=httpx.Response(403, request=httpx.Request("GET", "https://x")))

        monkeypatch.setattr(hub, "hf_hub_download", refuse)
        with pytest.raises(hub.GatedError, match="accept the terms of Idavidrein/gpqa on the Hub, and set HF_TOKEN"):
            questions.load("gpqa")


def published_rows(name):
    rows = {
        "aime24": [{"id": i, "problem": f"{i}?", "answer": f"{i:03d}"} for i in range(30)],
        "gpqa": [gpqa_row(i) for i in range(198)],
        "minerva": [{"question": f"{i}?", "answer": "1.6"} for i in range(272)],
    }
    return rows[name]


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The Hub's own cache, read by the real client without a network; gives a function that fills it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def fill(name, rows):
        source = BENCHMARKS[name].source
        folder = tmp_path / "hub" / f"datasets--{source.hub_id.replace('/', '--')}" / "snapshots" / source.revision
        path = folder / source.file
        path.parent.mkdir(parents=True)
        frame = pandas.DataFrame(rows)
        if path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif path.suffix == ".csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path)

    return fill


@pytest.mark.parametrize("name", ["aime24", "gpqa", "minerva"])
def test_a_set_loads_at_its_commit(cached, name):
    rows = published_rows(name)
    cached(name, rows)
    benchmark, asked = questions.load(name)
    assert len(asked) == benchmark.source.rows
    assert asked == benchmark.read(rows)


def test_another_number_of_rows_is_refused(cached):
    cached("minerva", published_rows("minerva")[:-1])
    with pytest.raises(ValueError, match=r"'minerva': math-ai/minervamath at ee46.* has 271 rows, but 272"):
        questions.load("minerva")


def test_a_set_that_does_not_load_is_named(cached):
    with pytest.raises(ValueError, match="benchmarks names 'aime25', which does not load"):
        questions.load("aime25")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"names 'math_500': choose among aime24, .*files that end in .jsonl"):
        questions.load("math_500")


@pytest.mark.parametrize("problem", ["problem", "question", "prompt"])
@pytest.mark.parametrize("answer", ["answer", "solution"])
def test_files_are_benchmarks(tmp_path, problem, answer):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({problem: f"{i}?", answer: i}) + "\n" for i in range(3)))
    benchmark, asked = questions.load(str(path))
    assert (benchmark.name, benchmark.kind) == ("mine", MATHS)
    assert [(q.id, q.text, q.reference) for q in asked] == [("0", "0?", "0"), ("1", "1?", "1"), ("2", "2?", "2")]


def test_questions_before_a_day_are_left_out(tmp_path):
    path = tmp_path / "new.jsonl"
    days = ["2025-12-31", "2026-02-01", "2026-02-01T09:00:00", "2026-03-05"]
    rows = [{"problem": f"{i}?", "answer": i, "date": day} for i, day in enumerate(days)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [q.text for q in questions.load(str(path), "2026-02-01")[1]] == ["1?", "2?", "3?"]
    assert len(questions.load(str(path))[1]) == 4
    with pytest.raises(ValueError, match=r"every question of .* is older"):
        questions.load(str(path), "2026-03-06")
    with pytest.raises(ValueError, match="benchmarks names 'aime25': only files of questions have a date"):
        questions.load("aime25", "2026-02-01")
    path.write_text(path.read_text() + json.dumps({"problem": "x", "answer": 1, "date": "March"}) + "\n")
    with pytest.raises(ValueError, match=r"line 5 of .* has date 'March': it must be YYYY-MM-DD"):
        questions.load(str(path), "2026-02-01")
    with pytest.raises(ValueError, match=r"since is '2026-2-1': it must be a day"):
        Options("model", [str(path)], since="2026-2-1")


def test_files_without_the_columns_are_refused(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"problem": "1?", "key": 1}\n')
    with pytest.raises(ValueError, match=r"whose columns are problem, key: it needs one of problem, .*answer"):
        questions.load(str(path))


def test_the_number_walk_is_the_demos_test_set():
    benchmark, asked = questions.load("number_walk")
    assert len({q.prompt for q in asked}) == len(asked) == 400
    problem = Problem.from_prompt(asked[0].prompt)
    assert asked[0].reference == str(problem.target)
    # Any sequence of at most six moves within the values is taken, right or wrong; the bare target is not.
    value, move = problem.start, next(m for m in problem.moves if problem.start + m in VALUES)
    assert benchmark.take(asked[0], f"\\boxed{{{value}{move:+d}}}") == f"{value}{move:+d}"
    assert benchmark.take(asked[0], f"\\boxed{{{problem.target}}}") is None


def test_seeds_are_spread_and_fixed():
    seeds = {seed_of(0, question, sample) for question in range(100) for sample in range(16)}
    assert len(seeds) == 1600
    assert all(0 <= seed < 2**31 for seed in seeds)
    # printf '0\0007\0003' | sha256sum begins with c9e1191f.
    assert seed_of(0, "7", 3) == 0xC9E1191F >> 1


def test_only_open_sets_repeat_their_questions():
    assert [name for name, b in BENCHMARKS.items() if not b.is_open] == ["gpqa"]
    assert {name for name, b in BENCHMARKS.items() if b.kind == CODE} == {"humaneval", "livecodebench"}


def rows_of(texts):
    return [{"text": text} for text in texts]


def test_answers_are_graded_within_their_tolerance_and_put_into_classes():
    rows = [{"question": "1?", "answer": "4.5e33"}, {"question": "2?", "answer": "\\frac{1}{2}"}]
    asked = BENCHMARKS["minerva"].read(rows)
    boxes = ["4.51 \\times 10^{33}", "4.7e33", "4.51e33", None, "0.5", "1/2", "x", "\\frac12"]
    texts = [f"so \\boxed{{{box}}}" if box else "no idea" for box in boxes]
    found = judge(BENCHMARKS["minerva"], asked, rows_of(texts), 5.0)
    assert [one.answer for one in found] == boxes
    assert [one.verdict is Verdict.RIGHT for one in found] == [True, False, True, False, True, True, False, True]
    groups = [one.group for one in found]
    assert groups[3] == -1 and groups[0] == groups[2] != groups[1]
    assert groups[4] == groups[5] == groups[7] != groups[6]


def test_letters_are_judged_by_themselves():
    asked = BENCHMARKS["gpqa"].read([gpqa_row(0)])
    right = asked[0].reference
    wrong = next(letter for letter in "ABCD" if letter != right)
    texts = [f"\\boxed{{({right})}}", f"\\boxed{{{wrong}}}", "none", f"\\boxed{{\\text{{{right}}}}}"]
    found = judge(BENCHMARKS["gpqa"], asked, rows_of(texts), 5.0)
    assert [one.verdict is Verdict.RIGHT for one in found] == [True, False, False, True]
    assert [one.group for one in found] == [0, 1, -1, 0]


HUMANEVAL_ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a, b):\n    """Add two numbers."""\n',
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    "entry_point": "add",
}


@needs_sandbox
def test_humaneval_asks_for_the_function_and_runs_it():
    asked = BENCHMARKS["humaneval"].read([HUMANEVAL_ROW])
    assert asked[0].prompt.startswith("User:\nComplete this Python function.") and asked[0].id == "HumanEval/0"
    assert HUMANEVAL_ROW["prompt"] in asked[0].prompt and "return" not in asked[0].prompt
    whole = "```python\ndef add(a, b):\n    return a {} b\n```"
    texts = [whole.format("+"), whole.format("-"), "    return a + b\n", " "]
    found = judge(BENCHMARKS["humaneval"], asked, rows_of(texts), 5.0)
    assert [one.verdict is Verdict.RIGHT for one in found] == [True, False, True, False]
    assert [one.group for one in found] == [0, 1, 2, -1]


def livecodebench_row(i, **more):
    return {
        "question_title": f"t{i}",
        "question_content": f"Print the double of the number {i}.",
        "platform": "atcoder",
        "question_id": f"abc{i}",
        "contest_id": "abc",
        "contest_date": "2024-09-01T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps([{"input": "2\n", "output": "4\n", "testtype": "stdin"}]),
        "private_test_cases": "[]",
        "metadata": "{}",
    } | more


@needs_sandbox
def test_livecodebench_is_read_from_its_files_and_run(cached, tmp_path):
    files = BENCHMARKS["livecodebench"].files
    folder = tmp_path / "hub" / f"datasets--{files.hub_id.replace('/', '--')}" / "snapshots" / files.revision
    folder.mkdir(parents=True)
    for name in files.names:
        (folder / name).write_text("")
    rows = [livecodebench_row(i, starter_code="class S:" if i == 1 else "") for i in range(279)]
    late = livecodebench_row(300, contest_date="2025-02-01T00:00:00")
    (folder / files.names[4]).write_text("".join(json.dumps(row) + "\n" for row in [late, *rows]))
    benchmark, asked = questions.load("livecodebench")
    assert [q.id for q in asked] == [f"abc{i}" for i in range(279)]
    assert "Print the double of the number 0." in asked[0].prompt and "Read the inputs from stdin" in asked[0].prompt
    assert "starter code" in asked[1].prompt and "class S:" in asked[1].prompt
    texts = ["```python\nprint(2 * int(input()))\n```", "```python\nprint(3)\n```"]
    found = judge(benchmark, asked[:1], rows_of(texts), 5.0)
    assert [one.verdict is Verdict.RIGHT for one in found] == [True, False]
