"""Sandbox for untrusted Python programs: a program leaves nothing behind, and sees and touches nothing outside.

`run` isolates the program in new Linux namespaces (see `jail`). The program has no network and no privileges, and sees
no other processes. The only files of the host that it sees are the interpreter with its libraries, the system's files
of `SYSTEM`, and numpy, all read-only. It works in an empty folder in memory, with limits on time, memory, processes,
files and output. The folder and all processes are gone when `run` returns. `run` needs Linux 5.14 and a kernel that
lets this user make user namespaces. Without them, `run` refuses every program, and `unavailable` gives the reason.

bubblewrap 0.8 cannot replace `jail`. Its tmpfs has no limit on the number of files. Under root, as in most containers,
its program keeps root's kernel uid, to which no limit on processes applies. It does not limit memory, time or output.

Three gaps remain. A program can exploit a kernel bug in a system call that `jail` does not refuse. It can read files
below /usr and in the interpreter's libraries. The sum of memory is checked every 30 ms, so for that time a program can
use `processes` times `memory`.
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
# Time limit of the setup, in addition to the limit of the program.
SETUP_SECONDS = 30.0
FIX = (
    "enable user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
    "kernel.apparmor_restrict_unprivileged_userns; in a container --security-opt seccomp=unconfined) "
    "or leave the code benchmarks out"
)


@dataclass(frozen=True)
class Limits:
    """Limits of a program. Exceeding `seconds`, `memory` or `output` stops it. Beyond another limit, its system calls
    fail.
    """

    seconds: float = 6.0
    """wall-clock time from the start of the program"""
    memory: int = 2 << 30
    """resident bytes of all processes together, and bytes of address space of each process"""
    output: int = 8 << 20
    """bytes of each of stdout and stderr"""
    processes: int = 16
    """number of processes and threads at the same time"""
    disk: int = 32 << 20
    """bytes in the working directory, and in each file"""
    files: int = 256
    """number of files and folders in the working directory"""


@dataclass(frozen=True)
class Outcome:
    """The end of a program.

    Attributes:
        ended: `ok` (exit code 0), `error` (any other exit code), or the limit that stopped the program: `timeout`,
            `memory` or `output`. `memory` includes Python's MemoryError.
        exit_code: negative number of the signal if a signal ended the program. It may be None if a limit stopped the
            program.
        stdout, stderr: at most `Limits.output` bytes each. Undecodable bytes are replaced.
        seconds: wall-clock time from the start of the program.
    """

    ended: Literal["ok", "error", "timeout", "memory", "output"]
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float


@cache
def unavailable() -> str | None:
    """Return why this machine cannot sandbox programs, in one sentence, or None if it can."""
    if sys.platform != "linux":
        return f"Code benchmarks need a sandbox of Linux namespaces, and {sys.platform} has none: leave them out."
    try:
        outcome = _run("print(6 * 7)", "", Limits(seconds=SETUP_SECONDS))
    except RuntimeError as error:
        return str(error)
    if outcome.stdout != "42\n":
        return (
            f"Python does not start in the sandbox ({outcome.stderr.strip()[-300:]}): leave the code benchmarks out."
        )
    return None


def run(program: str, stdin: str = "", limits: Limits = Limits()) -> Outcome:
    """Run a Python program. Threads may call this at the same time.

    Raises:
        RuntimeError: the machine refuses the sandbox, or the sandbox was killed.
    """
    if reason := unavailable():
        raise RuntimeError(reason)
    return _run(program, stdin, limits)


@cache
def _interpreter() -> str:
    """Return the interpreter behind the virtual environment, because the sandbox has no environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@cache
def _shown() -> tuple[dict[str, str], dict[str, str]]:
    """Return all files that a program can read: {host path: path in the sandbox}, and {symbolic link: destination}."""
    shown, links = {}, {}
    for path in SYSTEM:
        if os.path.islink(path):
            links[path] = os.readlink(path)
        elif os.path.exists(path):
            shown[path] = path
    # The whole prefix is not shown, because it can be a home directory.
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
            # Otherwise numpy's BLAS starts a thread, with its own address space, for every core.
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
            # The two processes of the jail may count, too.
            "NPROC": limits.processes + 2,
            "NOFILE": 64,
            "CORE": 0,
            "MSGQUEUE": 0,
            "MEMLOCK": 0,
        },
    }


def _sealed(name: str, text: str) -> int:
    """Return a descriptor of a text that no process can change through any descriptor."""
    fd = os.memfd_create(name, os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with open(fd, "w", encoding="utf-8", errors="surrogatepass", newline="", closefd=False) as file:
        file.write(text)
    os.lseek(fd, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _collect(process: subprocess.Popen, cap: int, seconds: float) -> tuple[list[bytes], bool]:
    """Read standard output and error until both end, `seconds` have passed, or one has more than `cap` bytes.

    Returns:
        [stdout, stderr] of at most `cap` bytes each, and whether one had more.
    """
    kept = {process.stdout: bytearray(), process.stderr: bytearray()}
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for pipe, text in kept.items():
            selector.register(pipe, selectors.EVENT_READ, text)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(1.0):
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fileobj)
                key.data.extend(chunk)
                if len(key.data) > cap:
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
            # The jail ends all its processes before it ends itself.
            process.terminate()
            process.wait(SETUP_SECONDS)
        finally:
            process.kill()
        report_text = reports.read()
    stdout, stderr = (text.decode("utf-8", "replace") for text in outputs)
    if not report_text:
        raise RuntimeError(f"The sandbox was killed, or Python does not start in it: {stderr[-300:]}")
    verdict = json.loads(report_text)
    if "refused" in verdict:
        raise RuntimeError(
            f"Code benchmarks need a sandbox, and this machine refuses it ({verdict['refused']}): {FIX}."
        )
    exit_code = None if verdict["status"] is None else os.waitstatus_to_exitcode(verdict["status"])
    ended = verdict["how"]
    if overflow:
        ended = "output"
    elif ended == "ended":
        out_of_memory = exit_code != 0 and stderr.rstrip().rpartition("\n")[2].startswith("MemoryError")
        ended = "ok" if exit_code == 0 else "memory" if out_of_memory else "error"
    return Outcome(ended, exit_code, stdout, stderr, verdict["seconds"])
