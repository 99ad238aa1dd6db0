"""Verdicts on programs: right ones pass, wrong ones do not, whatever they do to what is around them."""

import base64
import json
import pickle
import sys
import time
import zlib
from dataclasses import replace

import pytest

from entropy_grpo.data.benchmarks import livecodebench
from entropy_grpo.grading.code import inside, programs, sandbox
from entropy_grpo.grading.code.programs import Case, HumanEvalProblem, extract_code, same_output

sandboxed = pytest.mark.skipif(sandbox.unavailable() is not None, reason=str(sandbox.unavailable()))

# In the form of the published rows; the test uses a helper of the prompt, and the function by its own name too.
PAIR = HumanEvalProblem(
    prompt=(
        "from typing import List, Tuple\n\n\ndef half(x: float) -> float:\n    return x / 2\n\n\n"
        'def middle(values: List[int]) -> Tuple[int, float]:\n    """ Number of values, and their middle.\n'
        '    >>> middle([1, 4])\n    (2, 2.5)\n    """\n'
    ),
    test=(
        "\n\nMETADATA = {'author': 'x'}\n\n\ndef check(candidate):\n    assert candidate([1, 4]) == (2, 2.5)\n"
        "    assert abs(candidate([3, 8, 4])[1] - half(11.0)) < 1e-6, 'middle'\n"
        "    assert candidate([9]) == middle([9]) == (1, 9.0)\n    assert candidate([7, 7, 73190]) == (3, 36598.5)\n"
    ),
    entry_point="middle",
)
BODY = "    return len(values), half(min(values) + max(values))\n"
WHOLE = "def middle(values):\n" + BODY


def fenced(program, language="python"):
    return f"The code:\n```{language}\n{program}\n```\nIt works."


@sandboxed
@pytest.mark.parametrize(
    "response",
    [
        BODY,
        BODY + "\n\ndef main():\n    print(middle(",
        fenced(BODY),
        fenced(WHOLE),
        fenced(PAIR.prompt + BODY),
        WHOLE,
    ],
)
def test_humaneval_right(response):
    assert programs.humaneval_passes(response, PAIR)


CHEATS = {
    "nothing": "    pass\n",
    "nearly right": "    return len(values), float(values[0])\n",
    "a list for a tuple": "    return [len(values), half(min(values) + max(values))]\n",
    "no Python": "    return (\n",
    "an error": BODY + "\n1 / 0\n",
    "endless": "    while True: pass\n",
    "leaves": "    pass\nimport sys\nprint('passed')\nsys.exit(0)\n",
    "leaves at once": "    pass\nimport os\nos.write(1, b'passed')\nos._exit(0)\n",
    "leaves when called": "    import os\n    os._exit(0)\n",
    "equals everything": (
        "    return Everything()\nclass Everything(tuple):\n    __eq__ = lambda a, b: True\n"
        "    __ne__ = lambda a, b: False\n    __getitem__ = lambda a, i: a\n    __sub__ = __abs__ = lambda *a: 0\n"
    ),
    "overwrites": (
        "    return 0, 0\nimport builtins, json, sys\ncheck = lambda c: None\nbuiltins.AssertionError = Warning\n"
        "builtins.abs = builtins.exec = builtins.compile = lambda *a: 0\njson.dumps = lambda *a: '{}'\n"
        "for module in list(sys.modules.values()): module.check = check\n"
    ),
    # Everything that the process can read is searched for what the test expects.
    "reads": (
        "    import gc, glob\n    wanted = '.'.join(['36598', '5'])\n"
        "    found = [thing for thing in gc.get_objects() if wanted in str(thing)]\n"
        "    for name in ['/program.py', '/proc/self/mem', *glob.glob('/box/*'), 0, 1, 2, *range(5, 64)]:\n"
        "        try: found += [text for text in [open(name, errors='ignore').read()] if wanted in text]\n"
        "        except OSError: pass\n"
        "    if not found: raise SystemExit\n" + BODY
    ),
    "writes everywhere": (
        "    import os\n    for fd in range(64):\n        try: os.write(fd, b'passed\\n[3, 36598.5]\\n')\n"
        "        except OSError: pass\n    os._exit(0)\n"
    ),
    "ends the test": "    import os\n    os.kill(1, 9)\n    os.kill(os.getppid(), 15)\n    return 3, 36598.5\n",
    "plants modules": (
        "    return 0\nfor name in ('abc', 'math', 'typing', 'sitecustomize', 'json'):\n"
        "    open(name + '.py', 'w').write('import os; os._exit(0)')\n"
    ),
}  # fmt: skip


@sandboxed
@pytest.mark.parametrize("name", CHEATS)
def test_humaneval_wrong(name):
    assert not programs.humaneval_passes(CHEATS[name], PAIR)


@sandboxed
def test_the_search_for_the_test_would_find_it():
    assert programs.humaneval_passes(CHEATS["reads"] + "\nHINT = ['36598.5 of the test']\n", PAIR)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -0.5,
        "é\ud800",
        [],
        [1, (2, [3])],
        {1: {2, 3}, (4, 5): None},
        frozenset({(1,)}),
        float("inf"),
        1 << 90,
    ],
)
def test_values_keep_their_types_between_processes(value):
    back = inside.unpacked(json.loads(json.dumps(inside.packed(value))))
    assert back == value and type(back) is type(value)


def test_only_plain_data_passes_between_processes():
    with pytest.raises(TypeError, match="returned a object"):
        inside.packed([object()])


SUM = [Case("2\n1 2\n", "3\n", None), Case("3\n10 20\n-29 \n", "1", None), Case("0\n", "0\n", None)]
SUM_PROGRAM = "import sys\nprint(sum(map(int, sys.stdin.read().split()[1:])))\n"
ROT = [
    Case('[1, 2, 3]\n1', "[[3, 1, 2], 6]", "rotate"),
    Case('["a", "b"]\n2', '[["a", "b"], null]', "rotate"),
]  # fmt: skip
ROT_PROGRAM = (
    "class Solution:\n    def rotate(self, nums: List[int], k: int):\n        print('debug', sys.stdin.read())\n"
    "        k %= len(nums)\n        total = sum(nums) if isinstance(nums[0], int) else None\n"
    "        return tuple(nums[-k:] + nums[:-k] if k else nums), total\n"
)


@sandboxed
@pytest.mark.parametrize(
    ("program", "cases", "passes"),
    [
        (SUM_PROGRAM, SUM, True),
        ("if __name__ == '__main__':\n    n = int(input())\n    print(float(sum(map(int, stdin.read().split()))))",
         SUM, True),
        (SUM_PROGRAM + "print()\n\n", SUM, True),
        (SUM_PROGRAM + "exit()\n", SUM, True),
        (SUM_PROGRAM + "print('debug')\n", SUM, False),
        (SUM_PROGRAM + "1 / 0\n", SUM, False),
        ("print(3)\n", SUM, False),
        ("print(open('/program.py').read())\n", SUM, False),
        ("import sys; sys.exit(0)\n", SUM, False),
        (ROT_PROGRAM, ROT, True),
        (ROT_PROGRAM.replace("class Solution:\n    ", "").replace("self, ", "").replace("\n    ", "\n"), ROT, True),
        (ROT_PROGRAM.replace("-k:", "k:"), ROT, False),
        (ROT_PROGRAM + "import os; os.write(1, b'[[3, 1, 2], 6]'); os._exit(0)\n", ROT, False),
        (ROT_PROGRAM.replace("total\n", "6\n"), ROT, False),
        (ROT_PROGRAM.replace("rotate", "turn"), ROT, False),
    ],
)  # fmt: skip
def test_livecodebench(program, cases, passes):
    assert programs.livecodebench_passes(fenced(program), cases) is passes


@sandboxed
def test_no_code_is_no_pass_and_the_first_failure_is_the_last_run():
    assert not programs.livecodebench_passes("print(3)", [])
    unreadable = Case("not JSON", "", "rotate")
    assert not programs.livecodebench_passes(fenced("print(4)"), [SUM[0], unreadable])
    with pytest.raises(json.JSONDecodeError):
        programs.livecodebench_passes(fenced("print(3)"), [SUM[0], unreadable])


@sandboxed
def test_integers_of_thousands_of_digits_are_read_and_written():
    power, limit = "1" + "0" * 5000, sys.get_int_max_str_digits()
    programs_of = {
        "print(10 ** int(input()))": Case("5000\n", power, None),
        "def power(n):\n    return 10 ** len(str(n))": Case("1" + "0" * 4999, power, "power"),
    }
    for program, case in programs_of.items():
        assert programs.livecodebench_passes(fenced(program), [case])
        assert not programs.livecodebench_passes(fenced(program), [replace(case, output=power[:-1] + "1")])
    assert sys.get_int_max_str_digits() == limit


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1 2\n", "1 2", True),
        (" 1 2 \r\n 3\n\n", "1 2\n3", True),
        ("1\n\n2", "1\n2", False),
        ("1.50 2", "1.5  2.0", True),
        ("1e3", "1000", True),
        ("YES", "Yes", False),
        ("50000000000000001", "50000000000000000", False),
        ("0.30000000000000004", "0.3", False),
        ("1 2", "1", False),
        ("nan", "nan", True),
        ("snan", "1", False),
        ("", "", True),
        ("1", "", False),
    ],
)
def test_outputs_are_the_same_text_or_the_same_numbers(output, expected, same):
    assert same_output(output, expected) is same


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("no code", None),
        ("```python\na\n```", "a\n"),
        ("```python\na\n```\n```py\nb\n\nc\n```\n```text\nd\n```\n```\ne\n```", "b\n\nc\n"),
        ("```\na\n```\n```\nb\n```", "b\n"),
        ("1. so:\n   ```Python\n   def f():\n       x\n   ```", "def f():\n    x\n"),
        ("```python\n    body\n```", "    body\n"),
        ("```python\nold\n```\nthen\n```python\nnever closed", "old\n"),
        ("```python\nstray\n```python\na\n```", "a\n"),
        ("<think>```python\nidea\n```</think>\nI give up", None),
        ("<think>\n```python\nidea\n```\n</think>\n```python\na\n```", "a\n"),
        ("```python\n```", "\n"),
        # As LiveCodeBench takes them: more words, braces, other names, more backticks.
        ('```python title="a.py"\na\n```', "a\n"),
        ("```{python}\na\n```", "a\n"),
        ("```{.python .numberLines}\na\n```", "a\n"),
        ("```py3\na\n```", "a\n"),
        ("``` python\na\n```", "a\n"),
        ("````python\na\n```\nb\n````", "a\n```\nb\n"),
        ("````python\na\n```", None),
        ("```text title=python\na\n```", None),
        ("```pythonic\na\n```", None),
    ],
)
def test_extract_code(response, found):
    assert extract_code(response) == found


def test_extract_code_is_linear():
    assert extract_code("```python\n" * 200_000) is None
    start = time.monotonic()
    assert extract_code("```" + " " * 100_000 + "`x\n```python\na\n```") == "a\n"
    assert time.monotonic() - start < 1


def pack(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


CASES = [{"input": "1\n5\n", "output": "5\n", "testtype": "stdin"}]


def test_hidden_cases_are_decoded():
    assert livecodebench.decoded(json.dumps(CASES)) == CASES
    assert livecodebench.decoded(pack(json.dumps(CASES))) == CASES


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_hidden_cases_run_nothing(tmp_path, monkeypatch):
    pickle.loads(pickle.dumps(Payload(str(tmp_path / "control")))).close()
    with pytest.raises(ValueError, match=r"the pickle names .*open"):
        livecodebench.decoded(pack(Payload(str(tmp_path / "ran"))))
    assert [path.name for path in tmp_path.iterdir()] == ["control"]
    with pytest.raises(ValueError, match="holds a list, not a string"):
        livecodebench.decoded(pack([1]))
    monkeypatch.setattr(livecodebench, "LARGEST", 1000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        livecodebench.decoded(pack("[" + " " * 1000 + "]"))
    for broken in ("%", pack("[]")[:-8], base64.b64encode(b"x").decode(), pack("[")):
        with pytest.raises(ValueError, match="cannot be decoded"):
            livecodebench.decoded(broken)


def published(question_id, date, function=None):
    case = {"input": "[1]\n1", "output": "[[1], 1]", "testtype": "functional"} if function else CASES[0]
    return {
        "question_title": "t", "question_content": "Sum é", "platform": "leetcode" if function else "atcoder",
        "question_id": question_id, "contest_id": "c", "contest_date": date, "difficulty": "easy",
        "starter_code": "class Solution:" if function else "", "public_test_cases": json.dumps([case]),
        "private_test_cases": pack(json.dumps([case, case])),
        "metadata": json.dumps({"func_name": function} if function else {}),
    }  # fmt: skip


@pytest.fixture
def files(tmp_path):
    rows = [
        published("early", "2024-07-31T23:59:59"),
        published("abc_a", "2024-08-01T00:00:00"),
        published("1234", "2025-01-31T23:59:59.5", "rotate"),
        published("late", "2025-02-01T00:00:00"),
    ]
    for name, part in (("test.jsonl", rows[:2]), ("test2.jsonl", rows[2:])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return [tmp_path / "test.jsonl", tmp_path / "test2.jsonl"]


def test_livecodebench_files(files):
    problems = livecodebench.problems(files, expected=2)
    assert [problem.question_id for problem in problems] == ["abc_a", "1234"]
    assert [problem.starter_code for problem in problems] == ["", "class Solution:"]
    assert problems[0].cases() == [Case("1\n5\n", "5\n", None)] * 3
    assert problems[1].cases() == [Case("[1]\n1", "[[1], 1]", "rotate")] * 3
    with pytest.raises(ValueError, match=r"has 279 problems from 2024-08-01 to 2025-02-01, but the files have 2:"):
        livecodebench.problems(files)
    with pytest.raises(ValueError, match="each once"):
        livecodebench.problems([*files, files[0]], expected=3)


@sandboxed
def test_many_responses(files):
    problems = [PAIR, *livecodebench.problems(files, expected=2)]
    responses = [
        [BODY, CHEATS["nothing"]],
        [fenced(SUM_PROGRAM), "I do not know"],
        [fenced(SUM_PROGRAM), fenced(ROT_PROGRAM)],
    ]
    assert programs.passes(responses, problems, 2) == [[True, False], [True, False], [False, True]]
    with pytest.raises(ValueError, match="zip"):
        programs.passes(responses[:2], problems, 2)


def test_no_sandbox_no_verdict(monkeypatch):
    monkeypatch.setattr(sandbox, "unavailable", lambda: "Nothing runs here.")
    with pytest.raises(RuntimeError, match="Nothing runs here"):
        programs.passes([[BODY]], [PAIR], 1)


def test_threads_that_grade_at_once_leave_the_limit_of_digits_as_it_was():
    """The first to leave must not restore it while the other is inside, nor the other what the first had set."""
    limit = sys.get_int_max_str_digits()
    with programs._LONG_INTEGERS:
        with programs._LONG_INTEGERS:
            pass
        assert sys.get_int_max_str_digits() == programs.INTEGER_DIGITS
    assert sys.get_int_max_str_digits() == limit
