"""`entropy-grpo launch`: accelerate's launcher, with its arguments, for runs that end with one line.

Ctrl-C under `accelerate launch` shows tracebacks of accelerate and torch after the run's own words. SIGTERM leaves a
run 30 s, less than a step of a large model takes. Here the run is a session of its own, and only this process
signals its workers. Ctrl-C ends them at once. SIGTERM and SIGHUP end them at the end of their step, with a checkpoint.
"""

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ..config import recipe
from ..config.recipe import RecipeError
from ..config.shipped import find_file
from ..runs import launched, seal
from ..runs.launched import INTERRUPTED, REQUEUE
from ..runs.processes import on_one_line

# Seconds after Ctrl-C in which workers may end by themselves; a worker that waits for others does not see the signal.
GRACE = 10.0
# Seconds that a requeued run leaves the launchers of other machines to end alike, before srun ends them for this one.
PAUSE = 10.0

# Module that trains the recipe of its first argument.
MODULE = "entropy_grpo.launch"


def complete(options: argparse.Namespace) -> None:
    """Complete the parsed arguments of `accelerate launch` by the recipe, which may be a name or plain YAML.

    Without a word about processes, accelerate would start one for every GPU, also for a recipe for the CPU, and would
    follow the user's default configuration.

    Raises:
        RecipeError: there is no such recipe, or it is not YAML.
    """
    if options.config_file is not None:
        options.config_file = str(find_file(options.config_file, [Path()]) or options.config_file)
    words = [options.training_script, *options.training_script_args]
    if options.module and words[0] == MODULE:
        words = words[1:]
    elif options.module or options.no_python or words[0].endswith(".py"):
        return
    settings = recipe.load(words[0]) | recipe.overrides(words[1:])
    if recipe.launch_words(words[0]):
        options.module, options.training_script, options.training_script_args = True, MODULE, words
    on_processor = "use_cpu" in settings and settings["use_cpu"].value is True
    if on_processor and not any((options.config_file, options.multi_gpu, options.num_processes)):
        options.cpu, options.num_processes = True, 1


def start() -> None:
    """Run accelerate's launcher on the words of the command line, and make one sentence of a refusal."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)  # hints on values that are not set
    try:
        options = launch_command_parser().parse_args()
        complete(options)
        launch_command(options)
    except RecipeError as error:
        print(f"error: {on_one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    except ChildFailedError:  # the processes of the run have said why
        sys.exit(1)
    except (OSError, ValueError) as error:  # a port in use, a configuration that does not exist
        sys.exit(f"error: {' '.join(str(error).split())}")


def _signal(processes: Sequence[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


class Launch:
    """A launch and its processes.

    Args:
        words: arguments of `accelerate launch`.
        place: folder for messages of the workers (see `runs.launched`).
    """

    def __init__(self, words: Sequence[str], place: Path):
        self.place = place
        self.interrupted: float | None = None  # since when
        self.terminated = False
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, "--quiet", *words],
            env=os.environ | {launched.PLACE: str(place)},
            start_new_session=True,
        )

    def kill(self) -> None:
        """Kill the launcher and its workers, which torch puts into sessions of their own."""
        self._signal_launcher(signal.SIGKILL)
        _signal(launched.workers(self.place), signal.SIGKILL)

    def _signal_launcher(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end_group(self) -> None:
        """End processes that outlive their worker, such as the cold start of a run that SIGTERM has ended."""
        self._signal_launcher(signal.SIGKILL)

    def interrupt(self, *_: object) -> None:
        """End the workers at once; the second time, without waiting for them."""
        workers = launched.workers(self.place)
        if self.interrupted is not None or not workers:
            self.kill()
        self.interrupted = self.interrupted or time.monotonic()
        _signal(workers, signal.SIGINT)

    def terminate(self, *_: object) -> None:
        """Have the workers stop at the end of their step, if they are there."""
        self.terminated = True
        workers = launched.workers(self.place)
        _signal(workers, signal.SIGTERM)
        if not workers:
            self._signal_launcher(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the end, and return the launcher's exit status."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(timeout=0.5)
            if self.interrupted is not None and time.monotonic() - self.interrupted > GRACE:
                self.kill()


def _ending(launch: Launch, status: int) -> tuple[int, str]:
    """Return exit status and last line of a run. The line is empty if the run has printed its reason itself."""
    run = launched.run_folder(launch.place)
    begin = "begin again" if run is None else seal.continuation(Path(os.path.relpath(run)))
    if launch.interrupted is not None:
        return INTERRUPTED, f"the run was stopped by Ctrl-C: {begin}."
    told = launched.ending(launch.place)
    if told is not None:
        return told
    if launch.terminated and status != 0:
        return REQUEUE, f"the run ended by SIGTERM before its step was over: {begin}."
    if status != 0 and run is not None:
        return status if status > 0 else 128 - status, f"the run failed, see above: mend it, and {begin}."
    return status if status >= 0 else 128 - status, ""


def main(words: Sequence[str]) -> int:
    """Launch a recipe with accelerate's arguments, and return the exit status, 75 if the run wants to be requeued."""
    print(f"entropy-grpo {version('entropy-grpo')}: loading accelerate's launcher", flush=True)
    with tempfile.TemporaryDirectory(prefix="entropy-grpo-") as place:
        # A shell ignores SIGINT in its background jobs, and workers that inherit this would not end on Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        launch = Launch(words, Path(place))
        signal.signal(signal.SIGINT, launch.interrupt)
        signal.signal(signal.SIGTERM, launch.terminate)
        signal.signal(signal.SIGHUP, launch.terminate)
        status, line = _ending(launch, launch.wait())
        launch.end_group()
    if line:
        print(f"\n{on_one_line(line)}", file=sys.stderr, flush=True)  # what came before may lack an end of line
    if status == REQUEUE and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        time.sleep(PAUSE)
    return status


if __name__ == "__main__":
    start()
