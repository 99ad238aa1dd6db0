"""One part of the measurements: python -m benchmarks.gpu.part A --output FILE --seconds N [--tiny] ..."""

import argparse
import importlib
import sys
from dataclasses import replace
from pathlib import Path

from .__main__ import PARTS
from .report import Report
from .sizes import FULL, TINY


def main() -> int:
    """Run a part. The exit status is 1 if one of its measurements failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--revision")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    report = Report(options.output, options.part, options.revision)
    module = importlib.import_module(f".{PARTS[options.part][0]}", __package__)
    sizes = TINY if options.tiny else FULL
    module.run(report, replace(sizes, weights=options.weights, seconds=options.seconds))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
