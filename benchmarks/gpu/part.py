"""One part of the kit, in this process: python -m benchmarks.gpu.part A --output FILE [--tiny] [--revision COMMIT]."""

import argparse
import importlib
import sys
from pathlib import Path

from .__main__ import PARTS
from .report import Report
from .sizes import FULL, TINY


def main() -> int:
    """Run a part; the exit status is 1 if one of its measurements failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--revision")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    report = Report(options.output, options.part, options.revision)
    module = importlib.import_module(f".{PARTS[options.part][0]}", __package__)
    module.run(report, TINY if options.tiny else FULL)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
