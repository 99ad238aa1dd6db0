"""Lock of a run folder, because two runs in one folder would overwrite each other's files.

The lock is the file `_lock` in the folder. transformers does not push names with an underscore to the Hub. The file is
locked in the kernel with POSIX record locks, which NFS servers keep for their clients. Its content names host, process
and start of the run. Its modification time is the heartbeat of the run. A killed process leaves the file behind. The
next run takes it over if the kernel grants the lock and

- on the same machine, no process with that number and start time is alive;
- on another machine, there is no heartbeat for `STALE` seconds. The kernel's lock is not enough, because some file
  systems grant it to everybody (NFS mounted with `nolock`, Lustre without `flock`).
"""

import _thread
import errno
import fcntl
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import Row
from .processes import started

LOCK = "_lock"
# Seconds between two heartbeats, and seconds without a heartbeat after which a run counts as dead.
BEAT, STALE = 15.0, 120.0
REFUSED = (errno.EACCES, errno.EAGAIN)


class InUse(ValueError):
    """Another run writes into the folder. The message names its host and process."""


def _machine() -> str:
    """Return an id of this machine's process numbers: boot and namespace, or the host's name without /proc."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not boot.exists() or not space.exists():
        return socket.gethostname()
    return f"{boot.read_text().strip()} {space.stat().st_ino}"


def _record() -> Row:
    process = os.getpid()
    return {
        "host": socket.gethostname(),
        "process": process,
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": _machine(),
        "started": started(process),
    }


def _read(descriptor: int) -> Row:
    """Return the record in a lock file. It is empty if there is none, or if its writer was killed while writing."""
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _write(descriptor: int, record: Row) -> None:
    content = json.dumps(record).encode()
    os.pwrite(descriptor, content.ljust(512), 0)  # padded, so that it overwrites an older record
    os.fsync(descriptor)


def _lock_in_kernel(descriptor: int, path: Path) -> bool:
    """Lock a file in the kernel without waiting. Returns False if the file system has no locks.

    Raises:
        InUse: another process has locked the file.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in REFUSED:
            raise _in_use(path, _read(descriptor)) from None
        return False
    return True


def _in_use(path: Path, record: Row) -> InUse:
    who = f"process {record.get('process', '?')} on {record.get('host', 'another machine')}"
    return InUse(
        f"{str(path.parent)!r} is in use by a running run, {who}, since {record.get('since', 'just now')}: name "
        "another output_dir, or stop that run first."
    )


def _age(path: Path) -> float:
    """Return the seconds since the heartbeat by the clock of the file system, which may be on another machine."""
    with tempfile.TemporaryFile(dir=path.parent) as now:
        return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime


def _see_dead(path: Path, record: Row) -> None:
    """Check that the run of a record is dead. For a run on another machine this takes up to `STALE` seconds.

    Raises:
        InUse: the run is alive.
    """
    if record["machine"] == _machine():
        if started(record["process"]) == record["started"]:
            raise _in_use(path, record)
        return
    beat, left = path.stat().st_mtime, STALE - _age(path)
    if left > 0:
        sentence = f"{path.parent} was in use by process {record['process']} on {record['host']} a moment ago"
        print(f"{sentence}: waiting up to {left:.0f} s for a sign of that run.", file=sys.stderr, flush=True)
    until = time.monotonic() + left
    while time.monotonic() < until:
        time.sleep(min(BEAT / 5, left))
        with path.open("rb"):  # an NFS client reads the time from the server again when it opens a file
            changed = path.stat().st_mtime != beat
        if changed:
            raise _in_use(path, record)


def _open(path: Path) -> tuple[int, bool]:
    """Return (descriptor of the lock file, whether the kernel has locked it).

    A run that ends at this moment may delete the file, in which case it is opened again.

    Raises:
        InUse: another process has locked the file.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = _lock_in_kernel(descriptor, path)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, locked
        except InUse:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(path: Path) -> tuple[int, Row]:
    """Lock the file for this process.

    Returns:
        The descriptor and the record written into the file.

    Raises:
        InUse: another run holds the lock.
    """
    descriptor, locked = _open(path)
    try:
        before, record = _read(descriptor), _record()
        if before:
            _see_dead(path, before)
            # `_see_dead` closes a second descriptor of the file, at which POSIX frees all locks of the process on it.
            locked = _lock_in_kernel(descriptor, path)
        _write(descriptor, record)
        if not locked:  # another run may take over from the same dead run at this moment
            time.sleep(2.0)
            if _read(descriptor) != record:
                raise _in_use(path, _read(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, record


def _beat(path: Path, descriptor: int, record: Row, ended: threading.Event, lost: Callable[[], None]) -> None:
    while not ended.wait(BEAT):
        if _read(descriptor) != record:  # this process was suspended for so long that another run took over
            print(f"{path.parent} was taken over by another run: this run ends.", file=sys.stderr, flush=True)
            lost()
            return
        os.utime(path)


@contextmanager
def locked(run: Path, lost: Callable[[], None] = _thread.interrupt_main) -> Iterator[None]:
    """Hold the lock of an existing run folder.

    Args:
        lost: called in another thread if another run has taken the folder over. It interrupts the process by default.

    Raises:
        InUse: another run holds the lock.
        OSError: the folder cannot be written.
    """
    path = run / LOCK
    descriptor, record = _take(path)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, descriptor, record, ended, lost), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        if _read(descriptor) == record:
            path.unlink(missing_ok=True)
        os.close(descriptor)
