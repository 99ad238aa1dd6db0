"""Script that builds a jail around one program, runs the program and reports how it ended. `sandbox.run` starts it.

It is a separate process, because only a process with one thread can enter a user namespace. There are three processes,
and the program sees only processes that it starts:

    keeper    new user, pid, network, IPC and host-name namespaces; watches time and memory; kills the pid namespace
    init      pid 1: new mount namespace with an empty root; reaps; its death is the death of all processes inside
    program   no capability, a uid that owns nothing, resource limits, a filter of system calls, descriptors 0 to 2

The script imports only a few modules of the standard library, because their import delays every program.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import NoReturn

NOBODY = 65534
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWCGROUP = 0x08000000, 0x04000000, 0x02000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
MOUNT_SETATTR = 442  # one number on every architecture

# Calls that namespaces and limits leave open: sockets of families that no namespace divides (vsock), key rings,
# looking into another process of the same user, memory that no limit counts, corners of the kernel without use here.
# Architecture -> (its audit number, number of pivot_root, numbers of the refused calls).
REFUSED_EVERYWHERE = [425, 438, 447]  # io_uring_setup, pidfd_getfd, memfd_secret
# socket, ptrace, process_vm_readv, process_vm_writev, keyctl, add_key, request_key, shmget, semget, msgget,
# memfd_create, bpf, perf_event_open, userfaultfd, unshare, setns
ARCHITECTURES = {
    "x86_64": (0xC000003E, 155, [41, 101, 310, 311, 250, 248, 249, 29, 64, 68, 319, 321, 298, 323, 272, 308]),
    "aarch64": (0xC00000B7, 41, [198, 117, 270, 271, 219, 217, 218, 194, 190, 186, 279, 280, 241, 282, 97, 268]),
}

libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


class Refused(Exception):
    """Error of a setup step that the machine does not allow."""


def check(step: str, result: int) -> None:
    if result != 0:
        raise Refused(f"{step}: {os.strerror(ctypes.get_errno())}")


def write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise Refused(f"writing {path}: {error.strerror}") from None


def enter_namespaces() -> None:
    """Enter new namespaces and map a user id for the program: the own one, or under root one other than root's.

    Root has no limit on processes and could change root's files, so the program must not run under root's id.
    """
    flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
    uid, gid, keeper = os.geteuid(), os.getegid(), os.getpid()
    if uid != 0:
        check("making namespaces", libc.unshare(flags))
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{NOBODY} {uid} 1")
        write("/proc/self/gid_map", f"{NOBODY} {gid} 1")
        return
    # Only a process outside may write a map of two lines.
    ready, go = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(go)
        os.read(ready, 1)
        try:
            write(f"/proc/{keeper}/uid_map", f"0 0 1\n{NOBODY} {NOBODY} 1")
            write(f"/proc/{keeper}/gid_map", f"0 0 1\n{NOBODY} {NOBODY} 1")
        except Refused:
            os._exit(1)
        os._exit(0)
    check("making namespaces", libc.unshare(flags))
    os.close(go)
    if os.waitpid(mapper, 0)[1] != 0:
        raise Refused("giving the program a user id of its own: Operation not permitted")
    os.close(ready)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = [text.encode() for text in (source, target, kind)]
    check(f"mounting {target}", libc.mount(*arguments, flags, options.encode()))


def read_only(target: str) -> None:
    """Make a mount and all mounts below it read-only. Restrictions of the host remain."""
    change = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    result = libc.syscall(MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, change, ctypes.c_size_t(len(change)))
    check(f"making {target} read-only (which takes Linux 5.14)", result)


def show(source: str, target: str) -> None:
    """Bind a file or a folder of the host into the new root."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT, 0o444))
    mount(source, target, "none", MS_BIND | MS_REC)


def build_root(program: str, shown: dict[str, str], links: dict[str, str], work: str) -> None:
    """Replace the host's files by a new root, with the paths of `shown` and `links`, the program, and an empty /box.

    There is no /proc, no home, no /tmp, and no device except the harmless ones of `sandbox.DEVICES`.

    Args:
        shown: host path -> path inside.
        links: symbolic link inside -> its destination.
        work: mount options of /box, the only writable place.
    """
    mount("none", "/", "none", MS_REC | MS_PRIVATE)
    # /proc always exists and is no longer needed, and no shown path is below it.
    mount("tmpfs", "/proc", "tmpfs", MS_NOSUID, "size=64m,mode=755")
    os.mkdir("/proc/jail", 0o755)
    for source, inside in shown.items():
        show(source, "/proc/jail" + inside)
    for link, destination in links.items():
        os.symlink(destination, "/proc/jail" + link)
    with open("/proc/jail/program.py", "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(program)
    os.mkdir("/proc/jail/box")
    read_only("/proc")
    mount("tmpfs", "/proc/jail/box", "tmpfs", MS_NOSUID | MS_NODEV, work)
    os.chdir("/proc")
    check("changing the root", libc.syscall(ARCHITECTURES[os.uname().machine][1], b".", b"."))
    check("leaving the old root", libc.umount2(b".", MNT_DETACH))
    # A process whose root is not its namespace's root cannot make user namespaces, and so cannot regain a capability.
    os.chroot("/jail")
    os.chdir("/box")


def system_call_filter() -> bytes:
    """Return a BPF program that refuses the calls of `ARCHITECTURES`.

    It kills a process that calls by the table of another architecture.
    """
    architecture, _, refused = ARCHITECTURES[os.uname().machine]
    refused = refused + REFUSED_EVERYWHERE
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | 1, 0x80000000
    rules = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, kill), (load, 0, 0, 0)]
    rules += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, kill)]  # x86-64's second table (x32)
    rules += [(equal, len(refused) - i, 0, number) for i, number in enumerate(refused)]
    rules += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)


def give_up_privileges() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    check("giving up privileges", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    rules = system_call_filter()
    buffer = ctypes.create_string_buffer(rules, len(rules))
    header = ctypes.create_string_buffer(struct.pack("HP", len(rules) // 8, ctypes.addressof(buffer)))
    check("filtering system calls", libc.prctl(PR_SET_SECCOMP, 2, ctypes.addressof(header), 0, 0))


def become_program(argv: list[str], env: dict[str, str], limits: dict[str, int]) -> None:
    os.setsid()
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    give_up_privileges()
    os.execve(argv[0], argv, env)


def be_init(spec: dict, report: int) -> None:
    """Run as process 1. It reports a line 'running' when the program starts, and the wait status when it has ended."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    # Signals from inside reach process 1 only if it has a handler, so it has none.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.umask(0o022)
    check("making a mount namespace", libc.unshare(CLONE_NEWNS))
    build_root(spec["program"], spec["shown"], spec["links"], spec["work"])
    program = os.fork()
    if program == 0:
        or_report(report, lambda: become_program(spec["argv"], spec["env"], spec["limits"]))
    os.write(report, b"running\n")
    pid = 0
    while pid != program:
        pid, status = os.wait()
    os.write(report, b"%d\n" % status)


def or_report(report: int, action: Callable[[], None]) -> NoReturn:
    """Run the action of a forked process, then end the process. If the action fails, report a line '!reason'."""
    try:
        action()
    except Refused as error:
        os.write(report, f"!{error}\n".encode())
    except OSError as error:
        os.write(report, f"!starting Python in the sandbox: {error}\n".encode())
    finally:
        os._exit(1)


def resident(pid: int) -> int:
    """Return the resident memory of a process and all its descendants in bytes. Shared pages count in each process."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            total = int(file.read().split()[1]) * resource.getpagesize()
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                total += sum(resident(int(child)) for child in file.read().split())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return total


def watch(init: int, seconds: float, memory: int) -> str:
    """Wait for the end of the run, reap `init`, and return how the run ended: ended, timeout, memory or stopped.

    The kernel allows `init` to be reaped only when all processes inside have ended.
    """
    deadline = time.monotonic() + seconds
    while True:
        signal_info = signal.sigtimedwait([signal.SIGCHLD, signal.SIGTERM], 0.03)
        if os.waitpid(init, os.WNOHANG)[0]:
            return "ended"
        if signal_info is not None and signal_info.si_signo == signal.SIGTERM:
            reason = "stopped"
        elif time.monotonic() > deadline:
            reason = "timeout"
        elif resident(init) > memory:
            reason = "memory"
        else:
            continue
        os.kill(init, signal.SIGKILL)
        os.waitpid(init, 0)
        return reason


def keep(spec: dict) -> dict:
    """Run the program under the limits of `spec`.

    Returns:
        `how`: ended, timeout, memory or stopped. `status`: the wait status, or None. `seconds`: wall-clock time.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM])
    if os.uname().machine not in ARCHITECTURES:
        raise Refused(f"filtering the system calls of {os.uname().machine}: only {', '.join(ARCHITECTURES)} are known")
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        raise Refused("watching memory: the kernel is built without CONFIG_PROC_CHILDREN")
    # If the machine runs out of memory, the kernel kills these processes first.
    write("/proc/self/oom_score_adj", "1000")
    enter_namespaces()
    # Only now, because a change of privileges clears this setting.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    inner, report = os.pipe()
    init = os.fork()
    if init == 0:
        or_report(report, lambda: be_init(spec, report))
    os.close(report)
    first = os.read(inner, 1)
    start = time.monotonic()
    how = watch(init, spec["seconds"], spec["memory"])
    seconds = time.monotonic() - start
    lines = (first + b"".join(iter(lambda: os.read(inner, 4096), b""))).decode().splitlines()
    for line in lines:
        if line.startswith("!"):
            raise Refused(line[1:])
    if not lines:
        raise Refused("starting process 1: it was killed")
    return {"how": how, "status": int(lines[1]) if len(lines) > 1 else None, "seconds": seconds}


def main() -> None:
    """Run the spec of standard input, in JSON.

    The arguments are the descriptors of the report, in JSON, and of the program's input.
    """
    report, program_input = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(report, False)
    with open(0, encoding="utf-8", errors="surrogatepass", closefd=False) as file:
        spec = json.load(file)
    os.dup2(program_input, 0)
    os.close(program_input)
    try:
        outcome = keep(spec)
    except Refused as refused:
        outcome = {"refused": str(refused)}
    os.write(report, json.dumps(outcome).encode())


if __name__ == "__main__":
    main()
