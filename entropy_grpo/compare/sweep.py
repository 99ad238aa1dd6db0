"""Sweeps: runs of one recipe with other settings and seeds, sequential or concurrent, and their comparison.

A sweep is a folder with a subfolder per run. `sweep.json` lists the finished runs, so that a killed sweep does not
repeat them. An unfinished run resumes from its newest checkpoint.
"""

import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from ..config.recipe import launch_words
from ..runs import files
from ..runs.folder import RUNS
from .compare import compare_folders, write
from .options import SweepOptions
from .tables import as_text

LIST = "sweep.json"


@dataclass(frozen=True)
class Trial:
    """Run of a sweep: overriding words, seed and folder."""

    words: tuple[str, ...]
    seed: int
    folder: Path

    @property
    def settings(self) -> list[str]:
        """All overriding words, including seed, output folder and resumption from the newest checkpoint."""
        ours = ["--seed", str(self.seed), "--output_dir", str(self.folder), "--resume_from_checkpoint", "auto"]
        return [*self.words, *ours]


def _pairs(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", key) or not value:
        raise ValueError(f"variant {text!r} sets nothing: write KEY=VALUE.")
    return key, value


def _values(text: str) -> list[str]:
    """Split a text at the commas outside brackets and braces."""
    depth, values = 0, [""]
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return values


def variants(products: Sequence[str], others: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the words of every variant: all combinations of `key=a,b,c`, and each list of `key=value`.

    A list or mapping in brackets or braces is one value, or a part of one.
    """
    choices = []
    for text in products:
        key, value = _pairs(text)
        choices.append([(f"--{key}", chosen) for chosen in _values(value)])
    combinations = (
        [tuple(itertools.chain(*combination)) for combination in itertools.product(*choices)] if choices else []
    )
    for words in others:
        combinations.append(tuple(itertools.chain(*((f"--{key}", value) for key, value in map(_pairs, words)))))
    return list(dict.fromkeys(combinations)) or [()]


def trials(words: Sequence[tuple[str, ...]], seeds: int, folder: Path) -> list[Trial]:
    """Return every variant with seeds 0, 1, ..., seed by seed, so that an interrupted sweep has complete seeds."""
    if seeds < 1:
        raise ValueError(f"--seeds is {seeds}: it must be 1 or more.")
    names = ["-".join(word.removeprefix("--") for word in variant) or "as-it-is" for variant in words]
    names = [re.sub(r"[^\w.=-]+", "_", name) for name in names]
    if len(set(names)) < len(names):
        raise ValueError(
            "--set and --variant give two variants the same folder, because their values differ only in punctuation: "
            "change a value."
        )
    return [
        Trial(variant, seed, folder / name / f"seed{seed}")
        for seed in range(seeds)
        for name, variant in zip(names, words, strict=True)
    ]


def run(recipe: str, planned: Sequence[Trial], folder: Path, launch: Sequence[str], jobs: int) -> list[Trial]:
    """Run the unfinished trials, `jobs` at a time.

    Args:
        recipe: recipe file and shared settings, as text. A folder can hold only one sweep.
        launch: command that runs the recipe, to which a trial adds its settings.

    Returns:
        The trials that failed.

    Raises:
        ValueError: the folder has a sweep of another recipe, or with other shared settings.
    """
    state = files.read_json(folder / LIST) or {"recipe": recipe, "done": []}
    if state["recipe"] != recipe:
        raise ValueError(f"--output is {folder}, which holds a sweep of {state['recipe']}: name another folder.")
    lock, failed = Lock(), []
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})

    def one(trial: Trial) -> None:
        name = str(trial.folder.relative_to(folder))
        if name in state["done"]:
            return
        trial.folder.mkdir(parents=True, exist_ok=True)
        with (trial.folder.parent / f"{trial.folder.name}.log").open("ab") as log:
            command = [*launch, *trial.settings]
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
        with lock:
            if code:
                failed.append(trial)
                print(f"failed  {name} (exit status {code}): see {log.name}", file=sys.stderr, flush=True)
                return
            state["done"].append(name)
            files.write_json(folder / LIST, state)
            print(f"done    {name}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, planned))
    return failed


@dataclass(frozen=True)
class Sweep:
    """Checked sweep: its folder, its trials, the command to which a trial adds its settings, and the baseline."""

    folder: Path
    trials: list[Trial]
    launch: list[str]
    reference: tuple[str, ...]


def prepare(options: SweepOptions, shared: Sequence[str], check: Callable[[str, Sequence[str]], object]) -> Sweep:
    """Return a sweep whose variants have all been checked.

    Args:
        shared: words that override settings of every run.
        check: function that raises an error if a launch would refuse a recipe with overriding words.

    Raises:
        ValueError: a variant is invalid, or the baseline is not a variant.
    """
    recipe, words = options.recipe, variants(options.products, options.others)
    folder = options.output or RUNS / "sweeps" / Path(recipe).stem
    planned = trials(words, options.seeds, folder)
    launch = [*shlex.split(options.launcher), *launch_words(recipe), recipe, *shared]
    reference = variants([], [options.baseline])[0] if options.baseline else words[0]
    if reference not in words:
        raise ValueError(
            f"--baseline is {' '.join(options.baseline)}, which is not among the variants: name one of the variants."
        )
    if options.jobs < 1:
        raise ValueError(f"--jobs is {options.jobs}: it must be 1 or more.")
    for trial in planned[: len(words)]:  # trials of the first seed, because the seed cannot make a recipe invalid
        check(recipe, [*shared, *trial.settings])
    return Sweep(folder, planned, launch, reference)


def main(options: SweepOptions, shared: Sequence[str], check: Callable[[str, Sequence[str]], object]) -> bool:
    """Run or print a sweep and compare its runs. See `prepare` for the arguments.

    Returns:
        True if all runs succeeded.

    Raises:
        ValueError: a variant is invalid, the baseline is not a variant, or the folder has another sweep.
    """
    sweep = prepare(options, shared, check)
    if options.only_print:
        print("\n".join(shlex.join([*sweep.launch, *trial.settings]) for trial in sweep.trials))
        return True
    failed = run(shlex.join([options.recipe, *shared]), sweep.trials, sweep.folder, sweep.launch, options.jobs)
    ended = [trial for trial in sweep.trials if trial not in failed]
    if ended:
        first = next((trial.folder for trial in ended if trial.words == sweep.reference), None)
        comparison = compare_folders([trial.folder for trial in ended], first, None)
        print(f"\n{as_text(comparison)}\n")
        print("\n".join(str(path) for path in write(comparison, sweep.folder)))
    return not failed
