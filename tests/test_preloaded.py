"""The preloaded interpreter that other tests start: it must be like the real one where they rely on it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import json, os, sys
already = "trl" in sys.modules
import numpy
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get("MARK"), __name__, already, sys.stdin.read()]))
print("told", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("status", [0, 3])
def test_it_runs_a_program_like_the_interpreter(preloaded, tmp_path, status):
    (tmp_path / "program.py").write_text(PROGRAM)
    results = [
        subprocess.run(
            [python, *words, str(status), "two words"],
            cwd=tmp_path,
            env=os.environ | {"MARK": "x"},
            input="asked",
            capture_output=True,
            text=True,
            timeout=60,
        )
        for python in (sys.executable, preloaded)
        for words in (["program.py"], ["-m", "program"])
    ]
    assert [result.returncode for result in results] == [status] * 4
    assert all("told" in result.stderr for result in results)
    expected = [[str(status), "two words"], str(tmp_path), "x", "__main__", False, "asked"]
    found = [json.loads(result.stdout) for result in results]
    assert found == [expected, expected, *[[*expected[:4], True, "asked"]] * 2]


def test_an_error_is_a_traceback_and_a_status(preloaded, tmp_path):
    (tmp_path / "program.py").write_text("raise ValueError('no')")
    result = subprocess.run([preloaded, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "ValueError: no" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_its_end_ends_the_program(preloaded, tmp_path, number):
    (tmp_path / "program.py").write_text("import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)")
    process = subprocess.Popen([preloaded, "program.py"], cwd=tmp_path)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=30) != 0
    for _ in range(1000):
        if not os.path.exists(f"/proc/{pid.read_text()}"):
            return
        time.sleep(0.01)
    pytest.fail("the program outlives its client")
