"""The pool of graders: what it says, how long it takes to say it, and what it survives."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.fixtures.hostile_answers import hostile_answers
from entropy_grpo.grading import Verdict, compare
from entropy_grpo.grading.pool import Grader, core_count, plain_verdict, worker_count
from entropy_grpo.rewards.registry import get_rewards


@pytest.fixture(scope="module")
def grader():
    made = Grader(2, seconds=20, total_seconds=60)
    made(["\\sqrt{4}"], ["2"])  # the workers have started
    return made


@pytest.mark.parametrize(
    ("answer", "reference", "verdict"),
    [
        ("8", "8", Verdict.RIGHT),
        (" x+1 ", "x+1", Verdict.RIGHT),
        ("008", "8", Verdict.RIGHT),
        ("+8", "8", Verdict.RIGHT),
        ("9", "8", Verdict.WRONG),
        ("-8", "8", Verdict.WRONG),
        (None, "8", Verdict.WRONG),
        ("  ", "8", Verdict.WRONG),
        ("8" * 2000, "8" * 2000, Verdict.RIGHT),
        ("8" * 2001, "8" * 2001, Verdict.WRONG),
        ("(" * 21 + "9" + ")" * 21, "8", Verdict.WRONG),
        ("\\sqrt{(" * 10 + "8" + ")}" * 10, "8", None),
        ("[" + ", ".join(["(0, 1]"] * 100) + "]", "8", None),
        ("8.0", "8", Verdict.RIGHT),
        ("\\frac{16}{2}", "8", Verdict.RIGHT),
        ("17/2", "8", Verdict.WRONG),
        ("8/0", "8", None),
        ("1,000", "1000", None),
        ("2^3", "8", None),
        ("\u0668", "8", None),  # a digit for Python, not for us
    ],
)
def test_plain_verdicts(answer, reference, verdict):
    assert plain_verdict(answer, reference) is verdict
    if verdict is not None and answer is not None and answer.strip() and len(answer) <= 40:
        assert compare(answer, reference) is verdict, "the short cut must say what math-verify says"


def scheduled_by(grader, monkeypatch):
    """The pairs that go to the workers from here on."""
    pairs, schedule = [], grader._pool.schedule
    monkeypatch.setattr(grader._pool, "schedule", lambda f, **kw: pairs.append(kw["args"]) or schedule(f, **kw))
    return pairs


def test_equal_answers_are_graded_once(grader, monkeypatch):
    scheduled = scheduled_by(grader, monkeypatch)
    root, power = "\\sqrt{4}", "2^1"
    assert grader([root, power, root, root], [power, power, power, "1"]) == [1.0, 1.0, 1.0, 0.0]
    assert scheduled == [(root, power), (root, "1")]


ANSWERS = ["4/8+0", "0.50+0", "3/8+0", None, "4/8+0", "9^{9^{9^{9}}}"]
GRADES = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]


def test_what_was_begun_is_collected_and_forgotten(monkeypatch):
    grader = Grader(2, seconds=0.3, total_seconds=60)
    grader(["\\sqrt{4}"], ["2"])
    scheduled = scheduled_by(grader, monkeypatch)
    start = time.perf_counter()
    grader.begin(ANSWERS, ["0.5"] * 6)
    (reward,) = get_rewards(["accuracy"], grader, 48)
    texts = ["" if answer is None else f"\\boxed{{{answer}}}" for answer in ANSWERS]
    futures = reward.begin(prompts=texts, completions=texts, solution=["0.5"] * 6)
    assert time.perf_counter() - start < 0.2
    assert len(scheduled) == 4 and len(grader._begun) == 4
    time.sleep(2)  # as generation or a forward pass would
    *early, late = futures
    assert [future.result(0) for future in early] == GRADES[:-1]
    assert not late.done(), "it has exceeded its first limit, and may turn out to be right"
    start, logged = time.perf_counter(), {}
    assert grader(ANSWERS, ["0.5"] * 6, logged.__setitem__) == GRADES
    assert time.perf_counter() - start < 0.2, "the answers have been graded meanwhile"
    assert logged == {
        "grading/timeouts": 1 / 6,
        "grading/failures": 0.0,
        "grading/unparseable_references": 0.0,
    }
    assert len(scheduled) == 4 and not grader._begun
    assert grader(ANSWERS[:3], ["0.5"] * 3) == GRADES[:3] and len(scheduled) == 7


def test_what_was_begun_and_never_asked_for_is_bounded(grader, monkeypatch):
    monkeypatch.setattr("entropy_grpo.grading.pool.MOST_BEGUN", 5)
    answers = [f"{i}/7" for i in range(20)]
    grader.begin(answers, ["3/7 + 0"] * 20)
    assert [answer for answer, _ in grader._begun] == answers[15:]
    assert grader(answers, ["3/7 + 0"] * 20) == [float(i == 3) for i in range(20)]


@pytest.mark.parametrize("name", ["accuracy", "inverted", "dapo_accuracy", "walk_accuracy"])
def test_rewards_that_grade_can_begin(name, grader, monkeypatch):
    (reward,) = get_rewards([name], grader, 48)
    completions = ["\\boxed{15-4-1-1-1}\nAnswer: 16/2", "\\boxed{15-7}\nAnswer: 9", "Answer: \\boxed{15-4-1}"]
    columns = {"prompts": ["go 15 to 8 need -7 with +7 -4 -1\n"] * 3, "completions": completions}
    columns |= {"solution": ["\\frac{16}{2}+0"] * 3, "completion_ids": [[1]] * 3, "log_metric": lambda *_: None}
    alone = reward(**columns)
    scheduled = scheduled_by(grader, monkeypatch)
    futures = reward.begin(**columns)
    begun = len(scheduled)
    assert begun > 0 and reward(**columns) == alone and len(scheduled) == begun
    assert [future.result(10) for future in futures] == alone


def test_rewards_that_do_not_grade_cannot_begin(grader):
    rewards = get_rewards(["random", "format_only", "overlong", "math:fsum"], grader, 48, 8)
    assert not any(hasattr(reward, "begin") for reward in rewards)


def test_unparseable_references_are_counted(grader):
    logged = {}
    answers, references = ["8", "\\frac{", "1/2", "4/8"], ["\\frac{", "\\frac{", "?!", "0.5"]
    assert grader(answers, references, logged.__setitem__) == [0.0, 1.0, 0.0, 1.0]
    assert logged == {"grading/timeouts": 0.0, "grading/failures": 0.0, "grading/unparseable_references": 0.5}


COUNT = 120


def workers_of(grader):
    return {pid for pid, process in grader._pool._pool_manager.worker_manager.workers.items() if process.is_alive()}


def running(pids):
    return [p for p in pids if Path(f"/proc/{p}/stat").exists() and "Z" not in Path(f"/proc/{p}/stat").read_text()]


def test_slow_answers_hold_up_none_but_each_other():
    grader = Grader(1, seconds=3, total_seconds=4)
    grader(["\\sqrt{4}"], ["2"])
    slow, honest = [f"9^{{9^{{9^{{{i}}}}}}}" for i in (8, 9)], [f"{i}/7" for i in range(30)]
    logged = {}
    verdicts = grader(slow + honest, ["8/9"] * 2 + [f"\\frac{{{i}}}{{7}}" for i in range(30)], logged.__setitem__)
    assert verdicts == [0.0] * 2 + [1.0] * 30 and logged["grading/timeouts"] == 2 / 32


def test_a_call_waits_no_longer_than_its_limit_and_leaves_nothing_behind(caplog):
    grader = Grader(2, seconds=2, total_seconds=3)
    grader(["\\sqrt{4}"], ["2"])
    before, logged = workers_of(grader), {}
    slow = [f"{i}^{{9^{{9^{{9}}}}}}" for i in range(2, 2000)]
    start = time.perf_counter()
    assert grader(slow, ["8/9"] * len(slow), logged.__setitem__) == [0.0] * len(slow)
    assert time.perf_counter() - start < 3 + 2
    assert logged["grading/timeouts"] == 1.0
    assert "answers count as wrong, because they were not graded within grading_total_seconds (3 s)" in caplog.text
    assert not running(before)
    start = time.perf_counter()
    honest = [f"{i}/7+0" for i in range(60)]
    assert grader(honest, [f"\\frac{{{i}}}{{7}}" for i in range(60)]) == [1.0] * 60
    assert time.perf_counter() - start < 2, "the answers that were given up must not be in the way"


def test_a_pool_whose_workers_die_is_replaced(caplog):
    grader = Grader(2, seconds=5, total_seconds=60)
    honest, references = [f"{i}/7+0" for i in range(20)], [f"\\frac{{{i}}}{{7}}" for i in range(20)]
    grader(honest, references)
    for _ in range(3):
        for pid in workers_of(grader):
            os.kill(pid, 9)
        assert grader(honest, references) == [1.0] * 20
    assert not caplog.text


def test_a_pool_opens_when_it_is_first_asked():
    grader = Grader(1, seconds=5, total_seconds=60)
    grader.close()
    (begun,) = grader.begin(["\\sqrt{9}"], ["3"])
    assert begun.result(60) is Verdict.RIGHT
    grader.close()


def test_a_pool_that_cannot_work_is_no_verdict(monkeypatch):
    monkeypatch.setattr("entropy_grpo.grading.pool._prepare_worker", sys.exit)  # every worker ends as it begins
    with pytest.raises(RuntimeError, match="grading processes do not grade"):
        Grader(1, seconds=5, total_seconds=20)(["\\sqrt{4}"], ["2"])


def test_the_code_of_the_attack_would_be_seen(tmp_path):
    answers = hostile_answers(4000, marker=str(tmp_path / "hacked"))
    code = next(a for a in answers if a.startswith("__import__('os')"))
    exec(code)
    assert len(list(tmp_path.iterdir())) == 1


def test_under_attack(tmp_path):
    grader, logged = Grader(2, seconds=0.25, total_seconds=60), {}
    hostile = hostile_answers(COUNT, marker=str(tmp_path / "hacked"))
    assert len(set(hostile)) == COUNT
    start = time.perf_counter()
    verdicts = grader(hostile, ["8", "x+1", "\\frac{3}{7}", "\\{1, 2\\}"] * (COUNT // 4), logged.__setitem__)
    assert time.perf_counter() - start < COUNT / 2 * (0.25 + 0.3) + 5  # at worst every answer costs a worker
    assert verdicts == [0.0] * COUNT
    assert 0 < logged["grading/timeouts"] < 0.7
    honest = [f"x+{i}/7" for i in range(100)]  # no plain numbers, which need no worker
    assert grader(honest, [f"\\frac{{{i}}}{{7}}+x" for i in range(100)]) == [1.0] * 100
    assert len(workers_of(grader)) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone ties a process to cores")
def test_workers_are_those_of_the_cores_that_the_process_has(monkeypatch):
    given = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(given)})
        assert core_count() == 1 and worker_count() == 1
    finally:
        os.sched_setaffinity(0, given)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(7)))
    for processes, workers in (("1", 7), ("2", 3), ("9", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert worker_count() == workers
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, cores in ((5, 5), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert core_count() == cores


def test_a_script_without_a_guard_runs_once(tmp_path):
    """Worker processes of `multiprocessing` run the main module again, and would train in there."""
    script = tmp_path / "script.py"
    script.write_text(
        "from entropy_grpo.grading.pool import Grader\n"
        "print('once')\n"
        "grade = Grader(2, seconds=20, total_seconds=60)\n"
        "print(grade(['1/2', '3/4'], ['0.5', '0.5']))\n"
        "grade.close()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("once\n[1.0, 0.0]\n", 0), done.stderr
