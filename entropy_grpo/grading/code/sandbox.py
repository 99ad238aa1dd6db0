"""Run a Python program that nobody has read, so that nothing of it is left and nothing outside is touched or seen.

`run` gives the program a Linux machine of its own (see `jail`). There is no network and no privilege, and no process
but the program's own. The program sees no file of the host but the interpreter, its libraries, the system's and numpy
if it is installed, all read-only. It works in an empty folder in memory, with limits on time, memory, processes, files
and output. All of it, the folder included, is gone when `run` returns. `run` needs Linux 5.14 and a kernel that lets
this user make user namespaces. Otherwise it refuses and `unavailable` gives the reason: a program is never run with
less.

bubblewrap 0.8 does not take `jail`'s place. Its tmpfs has no limit on the number of files. Under root, as in most
containers, its program keeps root's kernel uid, which no limit on processes binds. Memory, time, output and system
calls would stay ours to bound.

Three gaps remain. A hole in a system call that `jail` does not refuse is a hole here. Files below /usr and among the
interpreter's libraries can be read. The sum of memory is checked every 30 ms, so until then `processes` times `memory`
is the bound.
"""

import fcntl
import json
import os
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

JAIL = Path(__file__).with_name("jail.py")
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
DEVICES = ("null", "zero", "full", "random", "urandom")
# Seconds that the setup may take beyond the limit of the program itself.
SETUP_SECONDS = 30.0
FIX = (
    "enable user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
    "kernel.apparmor_restrict_unprivileged_userns; in a container --security-opt seccomp=unconfined) "
    "or leave the code benchmarks out"
)


@dataclass(frozen=True)
class Limits:
    """Limits of a program. Beyond time, memory or output it is stopped; beyond any other limit its calls fail."""

    seconds: float = 6.0
    """wall clock, from its start"""
    memory: int = 2 << 30
    """bytes resident in all its processes together, and bytes of address space of each"""
    output: int = 8 << 20
    """bytes of stdout, and of stderr"""
    processes: int = 16
    """processes and threads at once"""
    disk: int = 32 << 20
    """bytes in the working directory, and in one file"""
    files: int = 256
    """files and folders in the working directory"""


@dataclass(frozen=True)
class Outcome:
    """The end of a program.

    Attributes:
        ended: `ok` (exit code 0), `error` (another exit code, or a signal, whose negative number the code is), or the
            limit that stopped it: `timeout`, `memory` (also Python's own MemoryError), `output`.
        exit_code: may be None if a limit stopped the program.
        stdout, stderr: at most `Limits.output` bytes each, undecodable ones replaced.
        seconds: wall clock, from the start of the program.
    """

    ended: Literal["ok", "error", "timeout", "memory", "output"]
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float


@cache
def unavailable() -> str | None:
    """The reason why programs cannot be sandboxed on this machine, in one sentence; None if they can."""
    if sys.platform != "linux":
        return f"Code benchmarks run model output in a sandbox made of Linux namespaces, which {sys.platform} lacks."
    try:
        outcome = _run("print(6 * 7)", "", Limits(seconds=SETUP_SECONDS))
    except RuntimeError as error:
        return str(error)
    if outcome.stdout != "42\n":
        return (
            f"Python does not start in the sandbox ({outcome.stderr.strip()[-300:]}); leave the code benchmarks out."
        )
    return None


def run(program: str, stdin: str = "", limits: Limits = Limits()) -> Outcome:
    """Run a Python program. Threads may call this at the same time.

    Raises:
        RuntimeError: the program cannot be run safely.
    """
    if reason := unavailable():
        raise RuntimeError(reason)
    return _run(program, stdin, limits)


@cache
def _interpreter() -> str:
    """The interpreter behind the virtual environment, because the sandbox has no environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@cache
def _shown() -> tuple[dict[str, str], dict[str, str]]:
    """All files that a program can read: host paths with their paths in the sandbox, and symbolic links."""
    shown, links = {}, {}
    for path in SYSTEM:
        if os.path.islink(path):
            links[path] = os.readlink(path)
        elif os.path.exists(path):
            shown[path] = path
    # Not the whole prefix, which can be a home directory.
    library = f"{sys.base_exec_prefix}/{sys.platlibdir}"
    places = [_interpreter(), f"{sys.base_prefix}/lib", library, os.path.dirname(os.__file__)]
    for place in map(os.path.realpath, places):
        if os.path.exists(place) and not any(Path(place).is_relative_to(there) for there in shown):
            shown[place] = place
    numpy = find_spec("numpy")
    if numpy is not None and numpy.origin is not None:
        package = Path(numpy.origin).parent
        for folder in (package, package.with_name("numpy.libs")):
            if folder.is_dir():
                shown[str(folder)] = f"/packages/{folder.name}"
    return shown | {f"/dev/{name}": f"/dev/{name}" for name in DEVICES}, links


def _spec(program: str, limits: Limits) -> dict:
    shown, links = _shown()
    return {
        "program": program,
        "argv": [_interpreter(), "-s", "-P", "-B", "/program.py"],
        "env": {
            "PATH": "/usr/bin:/bin",
            "HOME": "/box",
            "LANG": "C.UTF-8",
            "PYTHONPATH": "/packages",
            "PYTHONHASHSEED": "0",
            # numpy's BLAS would start a thread, with its own address space, for every core.
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        },
        "shown": shown,
        "links": links,
        "work": f"size={limits.disk},nr_inodes={limits.files + 1},mode=700,uid=65534,gid=65534",
        "seconds": limits.seconds,
        "memory": limits.memory,
        "limits": {
            "AS": limits.memory,
            "CPU": int(limits.seconds) + 1,
            "FSIZE": limits.disk,
            # The two processes of the jail may count too.
            "NPROC": limits.processes + 2,
            "NOFILE": 64,
            "CORE": 0,
            "MSGQUEUE": 0,
            "MEMLOCK": 0,
        },
    }


def _sealed(name: str, text: str) -> int:
    """A descriptor of a text that nobody can write to, not even through another descriptor."""
    fd = os.memfd_create(name, os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with open(fd, "w", encoding="utf-8", errors="surrogatepass", newline="", closefd=False) as file:
        file.write(text)
    os.lseek(fd, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _collect(process: subprocess.Popen, cap: int, seconds: float) -> tuple[list[bytes], bool]:
    """Read standard output and error until both end, `seconds` have passed or one has more than `cap` bytes.

    Returns:
        [stdout, stderr] of at most `cap` bytes each, and whether there was more.
    """
    kept = {process.stdout: bytearray(), process.stderr: bytearray()}
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for pipe in kept:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(1.0):
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fileobj)
                kept[key.fileobj] += chunk
                if len(kept[key.fileobj]) > cap:
                    return [bytes(text[:cap]) for text in kept.values()], True
    return [bytes(text) for text in kept.values()], False


def _run(program: str, stdin: str, limits: Limits) -> Outcome:
    spec, program_input = _sealed("spec", json.dumps(_spec(program, limits))), _sealed("stdin", stdin)
    report_end, report = os.pipe()
    process = subprocess.Popen(
        [_interpreter(), "-I", "-S", str(JAIL), str(report), str(program_input)],
        stdin=spec,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(report, program_input),
        start_new_session=True,
        cwd="/",
        env={},
    )
    for fd in (spec, program_input, report):
        os.close(fd)
    with process, open(report_end, "rb") as reports:
        try:
            outputs, overflow = _collect(process, limits.output, limits.seconds + SETUP_SECONDS)
            # The process ends everything that it started in the sandbox before it ends itself.
            process.terminate()
            process.wait(SETUP_SECONDS)
        finally:
            process.kill()
        report_text = reports.read()
    stdout, stderr = (text.decode("utf-8", "replace") for text in outputs)
    if not report_text:
        raise RuntimeError(f"The sandbox was killed from outside, or Python does not start in it: {stderr[-300:]}")
    verdict = json.loads(report_text)
    if "refused" in verdict:
        raise RuntimeError(
            f"Code benchmarks need a sandbox, and this machine refuses it ({verdict['refused']}); {FIX}."
        )
    exit_code = None if verdict["status"] is None else os.waitstatus_to_exitcode(verdict["status"])
    ended = verdict["how"]
    if overflow:
        ended = "output"
    elif ended == "ended":
        out_of_memory = exit_code != 0 and stderr.rstrip().rpartition("\n")[2].startswith("MemoryError")
        ended = "ok" if exit_code == 0 else "memory" if out_of_memory else "error"
    return Outcome(ended, exit_code, stdout, stderr, verdict["seconds"])
