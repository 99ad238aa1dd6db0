"""One arm of part H: the launch of a recipe whose training is stopped after some seconds.

python -m benchmarks.gpu.arm SECONDS RECIPE [--key value ...]
"""

import sys
import time

from entropy_grpo import launch
from entropy_grpo.monitoring.watchers import WATCHERS, Log

NAME = "seconds"


def main(seconds: float, recipe: str, words: list[str]) -> None:
    """Launch with an additional watcher, which stops the training when the time is over."""
    start = time.monotonic()

    def over(log: Log) -> str | None:
        return f"{seconds:g} seconds are over." if time.monotonic() - start > seconds else None

    WATCHERS[NAME] = over
    launch.run(recipe, [*words, "--watch", f"{{{NAME}: stop}}"])


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3:])
