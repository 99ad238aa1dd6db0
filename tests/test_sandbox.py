"""Hostile programs, each really run, and then a look at the outside: what they reached, and what is left of them."""

import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from entropy_grpo.grading.code import sandbox
from entropy_grpo.grading.code.sandbox import Limits

pytestmark = pytest.mark.skipif(sandbox.unavailable() is not None, reason=str(sandbox.unavailable()))
SMALL = Limits(seconds=2.0, memory=256 << 20, output=1 << 16, processes=8, disk=1 << 20, files=64)


def run(program, limits=SMALL, stdin=""):
    return sandbox.run(textwrap.dedent(program), stdin, limits)


def runs_in_jail(process):
    try:
        return bool({str(sandbox.JAIL), "/program.py"} & set(process.cmdline()))
    except psutil.Error:
        return False


def left_behind():
    """Processes of the jail: those that descend from this one, and orphans."""
    orphans = [process for process in psutil.process_iter(["ppid"]) if process.info["ppid"] == 1]
    return [p.pid for p in orphans + psutil.Process().children(recursive=True) if runs_in_jail(p)]


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path):
    """Around every program: the same processes, mounts and files afterwards, and a time that is bounded."""
    mounts = Path("/proc/self/mounts").read_text()
    before, start = left_behind(), time.monotonic()
    descriptors = os.listdir("/proc/self/fd")
    canary = tmp_path / "canary"
    canary.write_text("here")
    yield
    assert time.monotonic() - start < 30
    assert set(left_behind()) <= set(before)
    assert Path("/proc/self/mounts").read_text() == mounts
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    assert canary.read_text() == "here"


@pytest.fixture
def home_file():
    path = Path.home() / f".entropy_grpo_test_{os.getpid()}"
    path.write_text("secret")
    path.chmod(0o666)
    yield path
    assert path.read_text() == "secret"
    path.unlink()


def test_a_program_runs():
    outcome = run("import sys; print(input()[::-1]); print('note', file=sys.stderr)", stdin="a\u00e9\u20ac\n")
    assert (outcome.ended, outcome.exit_code) == ("ok", 0)
    assert (outcome.stdout, outcome.stderr) == ("\u20ac\u00e9a\n", "note\n")
    assert 0 < outcome.seconds < 2


@pytest.mark.parametrize(
    ("program", "ended", "code"),
    [
        ("raise SystemExit(3)", "error", 3),
        ("1 / 0", "error", 1),
        ("import os; os.kill(os.getpid(), 9)", "error", -9),
        ("import ctypes; ctypes.string_at(0)", "error", -11),
        ("def f(", "error", 1),
        ("\ud800", "error", 1),
        ("import sys; sys.stdin.close(); import os; os.close(1); os.close(2)", "ok", 0),
    ],
)  # fmt: skip
def test_endings(program, ended, code):
    outcome = sandbox.run(program, "", SMALL)
    assert (outcome.ended, outcome.exit_code) == (ended, code)


def test_recursion_without_end():
    program = "import functools, sys; sys.setrecursionlimit(10**9); f = functools.cache(lambda n: f(n + 1)); f(0)"
    assert run(program).ended in ("error", "memory")


def test_numpy_is_there_as_far_as_it_is_here():
    assert run("import numpy; print(numpy.arange(3) @ numpy.arange(3))", Limits()).stdout == "5\n"


def test_stdin_is_empty_and_not_the_parents():
    assert run("import sys; print(repr(sys.stdin.read()))").stdout == "''\n"


def test_endless_loop_that_ignores_signals():
    outcome = run("""
        import signal
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        print("ignoring", flush=True)
        while True: pass
    """)
    assert (outcome.ended, outcome.stdout) == ("timeout", "ignoring\n")
    assert 2 <= outcome.seconds < 4


def test_sleep_is_timed_by_the_clock():
    assert run("import time; time.sleep(60)").ended == "timeout"


def test_fork_bomb():
    most = []

    def count():
        while running.is_set():
            most.append(len(left_behind()))

    running = threading.Event()
    running.set()
    watcher = threading.Thread(target=count)
    watcher.start()
    outcome = run("""
        import os, time
        print("started", flush=True)
        while True:
            try: os.fork()
            except OSError: time.sleep(0.01)
    """)
    running.clear()
    watcher.join()
    assert (outcome.ended, outcome.stdout) == ("timeout", "started\n")
    assert 3 < max(most) <= SMALL.processes + 4


def test_threads_count_as_processes():
    outcome = run("""
        import threading, time
        threading.stack_size(65536)
        started = 0
        try:
            for _ in range(1000):
                threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
                started += 1
        except RuntimeError:
            print(started)
    """)
    assert 1 <= int(outcome.stdout) <= SMALL.processes + 2


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output(stream):
    before = psutil.Process().memory_info().rss
    outcome = run(f"import sys\nwhile True: sys.{stream}.write('x' * 4096)")
    assert outcome.ended == "output"
    assert len(getattr(outcome, stream)) == SMALL.output
    assert psutil.Process().memory_info().rss - before < 50 << 20


def test_output_up_to_the_limit_is_whole():
    assert len(run(f"print('x' * {SMALL.output - 1})").stdout) == SMALL.output
    assert run(f"print('x' * {SMALL.output})").ended == "output"


def test_output_that_nobody_reads_after_the_end():
    outcome = run("import os\nif os.fork() == 0:\n  import time; time.sleep(60)\nprint('parent is done')")
    assert (outcome.ended, outcome.stdout) == ("ok", "parent is done\n")
    assert outcome.seconds < 2


def test_memory_of_one_process():
    assert run("x = bytearray(300 << 20)").ended == "memory"


def test_memory_of_many_processes():
    outcome = run("""
        import os, time
        os.fork(), os.fork()
        x = bytearray(b"x") * (150 << 20)
        print("x" * 1000 if len(x) < 0 else "", end="")
        time.sleep(10)
    """, Limits(seconds=8.0, memory=256 << 20))  # fmt: skip
    assert outcome.ended == "memory"


@pytest.mark.parametrize(
    "make",
    [
        "libc.memfd_create(b'x', 0)",
        "libc.shmget(0, 1 << 20, 0o1600)",
        "libc.syscall({'x86_64': 319, 'aarch64': 279}[os.uname().machine], b'x', 0)",
    ],
)
def test_memory_that_no_limit_counts(make):
    program = f"import ctypes, os; libc = ctypes.CDLL(None, use_errno=True); print({make}, ctypes.get_errno())"
    assert run(program).stdout == "-1 1\n"


def test_deleting_and_writing_outside(tmp_path, home_file):
    os.chmod(tmp_path, 0o777)
    targets = [tmp_path, tmp_path / "canary", home_file, Path(__file__), "/etc/passwd", Path.home() / ".bashrc"]
    outcome = run(f"""
        import os, shutil
        for target in {[str(target) for target in targets]!r}:
            for action in (os.unlink, shutil.rmtree, os.stat, open, os.listdir, lambda t: open(t, "w")):
                try: action(target)
                except OSError: continue
                print(action, target)
    """)
    assert outcome.stdout == ""
    assert sorted(os.listdir(tmp_path)) == ["canary"]


def test_only_the_working_folder_can_be_written_to():
    outcome = run("""
        import os
        print(os.getcwd(), os.listdir())
        open("mine", "w").write("x")
        for folder, folders, _ in os.walk("/"):
            if folder.count("/") > 3: folders.clear()
            try: open(os.path.join(folder, "new"), "w").close()
            except OSError: continue
            print(folder)
        for name in ("/program.py", "/usr/bin/env", os.__file__):
            for action in (os.unlink, lambda n: open(n, "a"), lambda n: os.chmod(n, 0o777), lambda n: os.utime(n)):
                try: action(name)
                except OSError: continue
                print(name)
    """, Limits(seconds=20.0))  # fmt: skip
    assert outcome.stdout == "/box []\n/box\n"


def test_nothing_of_one_run_is_in_the_next():
    assert run("import os; open('left', 'w').write('x'); print(os.listdir())").stdout == "['left']\n"
    assert run("import os; print(os.listdir())").stdout == "[]\n"


def test_links_lead_nowhere(tmp_path, home_file):
    os.chmod(tmp_path, 0o777)
    outcome = run(f"""
        import os, shutil
        os.symlink({str(tmp_path)!r}, "folder")
        os.symlink({str(home_file)!r}, "file")
        os.symlink("/", "root")
        os.symlink("../../../../../../../../..", "up")
        os.symlink("loop", "loop")
        for action in (lambda: open("file", "w"), lambda: open("folder/canary", "w"), lambda: os.link("file", "hard"),
                       lambda: shutil.rmtree("folder/"), lambda: open("up{home_file}").read(),
                       lambda: os.link({str(home_file)!r}, "hard"), lambda: open("root{tmp_path}/canary").read(),
                       lambda: os.rename("folder/canary", "mine"), lambda: open("loop")):
            try: print(action())
            except OSError: continue
    """)  # fmt: skip
    assert outcome.stdout == "None\n"  # a second name for the link itself
    assert (tmp_path / "canary").exists()


def test_disk_is_bounded():
    outcome = run("""
        import os
        written = 0
        try:
            for number in range(100):
                with open(str(number), "wb") as file: written += file.write(b"x" * 100_000)
        except OSError as error: print(error.errno)
        print(written <= 1 << 20)
        for i in range(100): os.path.exists(str(i)) and os.unlink(str(i))
        made = 0
        try:
            for number in range(10_000):
                open(str(number), "w").close()
                made += 1
        except OSError as error: print(error.errno, made)
    """)
    assert outcome.stdout == f"28\nTrue\n28 {SMALL.files}\n"


def test_one_file_is_bounded():
    assert run("import os; os.truncate(open('sparse', 'w').fileno(), 1 << 40)").exit_code in (1, -25)


def test_deep_folders():
    outcome = run("""
        import os
        depth = 0
        while True:
            try: os.mkdir("d" * 200); os.chdir("d" * 200)
            except OSError: break
            os.chmod(".", 0o500) if depth == 40 else None
            depth += 1
        print(depth)
    """)
    assert int(outcome.stdout) >= 40


def test_no_network():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        outcome = run(f"""
            import socket
            for family in [*socket.AddressFamily, 40, 16, 17, 38]:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
                    try: s = socket.socket(family, kind)
                    except OSError: continue
                    print(family, kind)
                    s.connect(("127.0.0.1", {listener.getsockname()[1]}))
            try: socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}), timeout=1)
            except OSError: print("refused")
            try: socket.create_server(("", 8765))
            except OSError: print("refused")
            try: socket.getaddrinfo("example.org", 80)
            except OSError: print("refused")
        """)
        assert outcome.stdout == "refused\n" * 3, outcome.stderr
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_network_is_empty_below_the_filter():
    # The namespace by itself: no interface but a loopback of its own, so the host's addresses lead nowhere.
    script = f"""
        import socket, sys
        sys.path.insert(0, {str(sandbox.JAIL.parent)!r})
        import jail
        jail.enter_namespaces()
        print([name for _, name in socket.if_nameindex()], flush=True)
        socket.socket().connect(("127.0.0.1", int(sys.argv[1])))
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", textwrap.dedent(script), str(listener.getsockname()[1])]
        result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout == "['lo']\n"
    assert "Network is unreachable" in result.stderr


def test_daemon_does_not_survive():
    outcome = run("""
        import os, signal, time
        if os.fork() == 0:
            os.setsid()
            for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)
            if os.fork(): os._exit(0)
            open("daemon", "w").close()
            os.closerange(0, 64)
            while True: time.sleep(1)
        while not os.path.exists("daemon"): time.sleep(0.01)
        print("done")
    """)
    assert (outcome.ended, outcome.stdout) == ("ok", "done\n")
    assert outcome.seconds < 2


def test_killing_around():
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        outcome = run(f"""
            import os, signal
            print(os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0))
            def send(call, target, number):
                try: call(target, number)
                except OSError: pass
            for target in (os.getppid(), {victim.pid}, {os.getpid()}, -1):
                for number in (9, 15, 2, 19, 23): send(os.kill, target, number)
            send(os.killpg, {os.getpgrp()}, 9)
            signal.signal(15, signal.SIG_IGN)
            send(os.killpg, 0, 15)
            print("alive", flush=True)
            send(os.killpg, 0, 9)
        """)
        assert outcome.stdout == "2 1 2 2\nalive\n"
        assert (outcome.ended, outcome.exit_code) == ("error", -9)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_looking_around(monkeypatch, home_file):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    secret = os.memfd_create("secret", 0)
    os.write(secret, b"hf_secret")
    os.set_inheritable(secret, True)
    outside = ["/proc", "/sys", "/tmp", "/home", "/var", "/run", "/dev/shm", "/etc/passwd", "/dev/tty", "/dev/kmsg"]
    outside += [str(home_file), str(Path(sandbox.__file__).parent), os.getcwd()]
    try:
        outcome = run(f"""
            import os
            print(sorted(os.environ))
            for fd in range(3, 1024):
                try: os.fstat(fd)
                except OSError: continue
                print("open", fd)
            print([path for path in {outside!r} if os.path.exists(path)], os.getuid(), os.geteuid(), os.getgid())
        """)
    finally:
        os.close(secret)
    names = ["HOME", "LANG", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PATH", "PYTHONHASHSEED", "PYTHONPATH"]
    assert outcome.stdout == f"{names}\n[] 65534 65534 65534\n"


def test_no_privilege_can_be_had():
    # PTRACE_ATTACH to process 1 and PTRACE_TRACEME among them; clone and clone3 can ask for a user namespace too.
    outcome = run("""
        import ctypes, os, resource
        libc = ctypes.CDLL(None, use_errno=True)
        for name, *arguments in (
            ("unshare", 0x10000000), ("unshare", 0x00020000), ("setns", 0, 0), ("ptrace", 16, 1, 0, 0),
            ("ptrace", 0, 0, 0, 0), ("mount", b"none", b"/box", b"tmpfs", 0, 0), ("umount2", b"/box", 2),
            ("chroot", b"/box"), ("setuid", 0), ("setresuid", 0, 0, 0), ("setgroups", 0, 0), ("sethostname", b"x", 1),
            ("mknod", b"/box/d", 0o20666, 0x501),
            ("process_vm_readv", 1, 0, 0, 0, 0, 0), ("setpriority", 0, 0, -5), ("nice", -5), ("reboot", 0),
        ):
            if getattr(libc, name)(*arguments) != -1: print(name)
        clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
        if libc.syscall(clone, 0x10000000 | 17, 0, 0, 0, 0) != -1: print("clone")
        if libc.syscall(435, (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17, 0, 0, 0), 64) != -1: print("clone3")
        for limit in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
            try: resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            except (OSError, ValueError): continue
            print(limit)
        try: os.execv("/usr/bin/su", ["su", "-c", "id"])
        except OSError: pass
    """)
    assert outcome.stdout == "", outcome.stdout
    assert "uid=0" not in outcome.stderr


def test_niceness_stays_inside():
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    outcome = run("""
        import os
        os.nice(19)
        for kind in (os.PRIO_PROCESS, os.PRIO_PGRP, os.PRIO_USER):
            try: os.setpriority(kind, 0, 19)
            except OSError: pass
    """)
    assert outcome.ended == "ok"
    assert os.getpriority(os.PRIO_PROCESS, 0) == nice


def test_killed_together_with_the_caller():
    script = "from entropy_grpo.grading.code.sandbox import *; run('import time; time.sleep(60)', '', Limits(60))"
    caller = psutil.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent.parent)
    inside, deadline = [], time.monotonic() + 20
    try:
        # The keeper, process 1 and the program; the first run is the one that finds out whether there is a sandbox.
        while len(inside) < 3 or not any("/program.py" in process.cmdline() for process in inside):
            assert time.monotonic() < deadline
            inside = [process for process in caller.children(recursive=True) if runs_in_jail(process)]
            time.sleep(0.5)
            inside = [process for process in inside if process.is_running()]
    finally:
        caller.kill()
        caller.wait()
    assert not psutil.wait_procs(inside, timeout=5)[1]


def test_many_at_once():
    with_threads = [None] * 6

    def one(i):
        with_threads[i] = run(f"import os; open('f', 'w').write('{i}'); print(open('f').read(), os.listdir())").stdout

    threads = [threading.Thread(target=one, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert with_threads == [f"{i} ['f']\n" for i in range(6)]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
def test_without_namespaces_nothing_runs(tmp_path):
    # A machine that refuses them: a user namespace that may not hold another one.
    script = f"""
        import sys
        from entropy_grpo.grading.code import sandbox
        print(sandbox.unavailable())
        try: sandbox.run("open({str(tmp_path / "ran")!r}, 'w')")
        except RuntimeError as error: print(error)
    """
    shell = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
    command = ["unshare", "-Ur", "sh", "-c", shell, sys.executable, textwrap.dedent(script)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    first, second = result.stdout.splitlines()
    assert first == second
    assert first.startswith("Code benchmarks need a sandbox, and this machine refuses it (making namespaces: ")
    assert first.endswith("or leave the code benchmarks out.")
    assert not (tmp_path / "ran").exists()
