"""Options of `entropy-grpo compare` and `sweep`, without heavy imports, because the command line's help reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CompareOptions:
    """Runs, their baseline and the setting that groups them."""

    runs: Sequence[str]
    """run folders"""
    baseline: str | None = None
    """run with which all other groups are compared"""
    group_by: str | None = None
    """setting that defines the groups; if unset, all that differ, except the seed, files, measurements and devices"""
    output: Path | None = None
    """folder for comparison.md, comparison.json and comparison.png"""


@dataclass(frozen=True)
class SweepOptions:
    """Recipe of a sweep, its variants, and settings of the launch."""

    recipe: str
    """name of a recipe, or a file"""
    products: Sequence[str] = ()
    """settings with their values; every combination of values is a variant"""
    others: Sequence[Sequence[str]] = ()
    """settings of one more variant; may be repeated"""
    seeds: int = 3
    """number of seeds of each variant, from 0"""
    baseline: Sequence[str] = ()
    """variant with which all other variants are compared; if unset, the first"""
    output: Path | None = None
    """folder for the runs; if unset, runs/sweeps/RECIPE"""
    jobs: int = 1
    """number of concurrent runs; several runs have one CPU thread each"""
    launcher: str = "accelerate launch"
    """command that launches a run"""
    only_print: bool = False
    """print the commands and run nothing"""
