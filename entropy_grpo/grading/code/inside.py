"""Script around a sandboxed program whose functions are called. It imports only the standard library.

There are two processes. The asking process reads a task from its standard input, and holds the test and the token,
which the program must not see. The answering process runs the program. It has only a pipe for questions and a pipe
for answers, both of plain data. It cannot reach the memory of the asking process (`jail` refuses the calls, and there
is no /proc) or its standard output. The program can therefore change or end only its own process.
"""

import json
import os
import subprocess
import sys
import types

PLAIN = (type(None), bool, int, float, str)
CONTAINERS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def packed(value):
    """Encode a value as JSON that keeps the types of containers; `unpacked` decodes it.

    Raises:
        TypeError: the value is not plain data.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, dict):
        return {"dict": [[packed(key), packed(item)] for key, item in value.items()]}
    for name, kind in CONTAINERS.items():
        if isinstance(value, kind):
            return {name: [packed(item) for item in value]}
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"the function returned a {type(value).__name__}, which is not plain data")


def unpacked(value):
    """Decode a value that `packed` encoded."""
    if not isinstance(value, dict):
        return value
    ((name, items),) = value.items()
    if name == "dict":
        return {unpacked(key): unpacked(item) for key, item in items}
    return CONTAINERS[name](unpacked(item) for item in items)


def answer():
    """Run the program of the first line of standard input, then answer each further line, a list of arguments."""
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    task = json.loads(questions.readline())
    # The name is not `__main__`, so that the part of a program that runs only as a script does not run.
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    exec(task["preamble"], module.__dict__)
    exec(compile(task["program"], "<solution>", "exec"), module.__dict__)
    owner = module.Solution() if hasattr(module, "Solution") else module
    function = getattr(owner, task["name"])
    for line in questions:
        answers.write(json.dumps(packed(function(*unpacked(json.loads(line))))) + "\n")
        answers.flush()


class Candidate:
    """The program's function, callable in the asking process."""

    def __init__(self, task):
        command = [sys.executable, "-s", "-P", "-B", __file__, "answer"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process.stdin.write(json.dumps({key: task[key] for key in ("preamble", "program", "name")}) + "\n")

    def __call__(self, *arguments):
        self.process.stdin.write(json.dumps(packed(arguments)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the program ended without an answer")
        return unpacked(json.loads(line))


def ask():
    """Read a task from standard input and print the result.

    With a test, the result is the task's token, printed only if the test passes. Without a test, it is the returned
    value of the function.
    """
    with open(0) as file:
        task = json.load(file)
    candidate = Candidate(task)
    if task["test"] is None:
        print(json.dumps(packed(candidate(*unpacked(task["arguments"])))))
        return
    # The prompt defines names that the test may use. Some tests also call the function by its own name.
    names = {}
    exec(task["prompt"], names)
    names[task["name"]] = candidate
    exec(task["test"], names)
    names["check"](candidate)
    print(task["token"])


if __name__ == "__main__":
    sys.set_int_max_str_digits(50_000)  # as programs.INTEGER_DIGITS; this script imports nothing of the package
    answer() if sys.argv[1:] == ["answer"] else ask()
