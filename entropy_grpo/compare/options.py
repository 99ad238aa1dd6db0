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
    """the run, of those, whose recipe the others are tested against"""
    group_by: str | None = None
    """one setting that makes the groups; if unset, all that differ but the seed"""
    output: Path | None = None
    """folder for comparison.md, .json and .png"""


@dataclass(frozen=True)
class SweepOptions:
    """Recipe of a sweep, its variants, and settings of the launch."""

    recipe: str
    """a file of recipes/, or any YAML"""
    products: Sequence[str] = ()
    """all combinations of these values"""
    others: Sequence[Sequence[str]] = ()
    """one more variant; may be repeated"""
    seeds: int = 3
    """seeds of each variant, from 0"""
    baseline: Sequence[str] = ()
    """the variant that the others are tested against; if unset, the first"""
    output: Path | None = None
    """folder of the runs; if unset, runs/sweeps/RECIPE"""
    jobs: int = 1
    """runs at a time, with one thread each if there are several"""
    launcher: str = "accelerate launch"
    """what launches a run"""
    only_print: bool = False
    """print the commands and run nothing"""
