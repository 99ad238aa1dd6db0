"""A process that has imported the third-party packages, from which the programs of tests are forked.

Most of a short run's time is the import of torch, transformers and TRL. The program that `preloaded` names behaves
like `sys.executable`: it takes a module or a file with arguments, keeps streams, folder and environment, and ends with
the program's exit status. It runs in the network namespace of its client, and SIGKILL of the client kills the program
with all its processes. The package itself is imported by each program anew. Tests that send other signals, that
name a hub of their own, or whose point is the literal command start the real interpreter.

Run as a server: preloaded.py SOCKET PROCESS, which ends with that process.
"""

import array
import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

PACKAGES = (
    "scipy.stats sympy latex2sympy2_extended.latex2sympy2 pebble torch datasets peft jinja2 rapidfuzz ruamel.yaml "
    "tyro torch.distributed.run accelerate.commands.launch transformers.models.qwen3.modeling_qwen3 "
    "transformers.models.qwen2.modeling_qwen2 transformers.models.llama.modeling_llama trl.trainer.grpo_trainer "
    "torch.distributed.fsdp torch.distributed.checkpoint.state_dict matplotlib"
).split()
NETWORK = "/proc/self/ns/net"
CLIENT = """#!{python} -IS
import array, json, os, signal, socket, struct, sys
if sys.argv[1:2] and sys.argv[1][0] == "-" and sys.argv[1] not in ("-m", "-u"):  # an option of the interpreter
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps({{"words": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}}).encode()
network = os.open({network!r}, os.O_RDONLY)
streams = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2, network]))
server.sendmsg([struct.pack("I", len(request))], [streams])
server.sendall(request)
signal.signal(signal.SIGTERM, lambda number, frame: server.sendall(b"t"))
status = server.recv(4)
sys.exit(struct.unpack("i", status)[0] if len(status) == 4 else "the preloaded process ended without a status")
"""


def receive(connection):
    """The request of a client: its streams and network namespace, and its words, folder and environment."""
    head, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(16))
    streams = array.array("i")
    for _, _, data in ancillary:
        streams.frombytes(data)
    (length,), body = struct.unpack("I", head), b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return list(streams), json.loads(body)


def become(streams, request):
    """Turn this process into the interpreter that was asked for, and run its program."""
    os.setpgid(0, 0)
    *streams, network = streams
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    if os.stat(network).st_ino != os.stat(NETWORK).st_ino and ctypes.CDLL(None, use_errno=True).setns(network, 0):
        raise OSError(ctypes.get_errno(), "the network namespace of the client cannot be entered")
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.executable, *words = request["words"]
    added = os.environ.get("PYTHONPATH")
    sys.path[:0] = added.split(os.pathsep) if added else []
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = words[1:] if words[0] == "-u" else words
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, request["folder"])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


def status_of(streams, request):
    """The exit status of the program, once its threads and exit functions are done.

    The interpreter itself is not torn down: its collector knows nothing of the frozen objects of the packages.
    """
    status = 1
    try:
        become(streams, request)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return status & 255


def watch(connection, child):
    """Pass on a request to end, and kill the program with its processes if its client has gone."""
    while connection.recv(1) == b"t":
        os.kill(child, signal.SIGTERM)
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(child).children(recursive=True):  # of other groups, too, as torchrun's workers
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def attend(connection):
    """Fork the program of a client, and tell it the exit status."""
    streams, request = receive(connection)
    child = os.fork()
    if child == 0:
        connection.close()
        os._exit(status_of(streams, request))
    with contextlib.suppress(OSError):  # the child has done it, or has ended
        os.setpgid(child, child)
    for stream in streams:
        os.close(stream)
    threading.Thread(target=watch, args=(connection, child), daemon=True).start()
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):  # the client may be gone
        connection.sendall(struct.pack("i", os.waitstatus_to_exitcode(status)))
    os._exit(0)


def serve(address, owner):
    del sys.path[0]  # the folder of this file, which the programs do not have
    gc.disable()
    for package in PACKAGES:
        importlib.import_module(package)
    gc.freeze()
    gc.enable()
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no client waits for an attendant
    server.settimeout(1)
    while os.path.exists(f"/proc/{owner}"):
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            try:
                attend(connection)
            finally:
                os._exit(1)
        connection.close()


def start(folder, owner):
    """Make the program, and start the process that serves it until `owner` ends."""
    address, program = str(folder / "socket"), folder / "python"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([sys.executable, __file__, address, str(owner)], env=environment, cwd=folder)
    while not os.path.exists(address):
        assert server.poll() is None, "the preloading process has ended"
        signal.sigtimedwait([], 0.1)
    program.write_text(CLIENT.format(python=sys.executable, address=address, network=NETWORK))
    program.chmod(0o755)


@pytest.fixture(scope="session")
def preloaded(shared_folder):
    """Path of a program that behaves like `sys.executable` and has the third-party packages imported."""
    folder = shared_folder / "preloaded"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            start(folder, os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid())
    return str(folder / "python")


if __name__ == "__main__":
    serve(*sys.argv[1:])
