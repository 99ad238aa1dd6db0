"""Runs of one recipe with other settings and seeds, one after the other or several at once, and their comparison.

A sweep is a folder with a run in each of its own; which of them are done stands in its `sweep.json`, so that a sweep
that was killed goes on where it was: runs that are done are not repeated, one that was under way resumes.
"""

import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from ..runs import files
from ..runs.folder import RUNS
from .compare import compare_folders, write
from .tables import as_text

LIST = "sweep.json"


@dataclass(frozen=True)
class Trial:
    """One run: the words that it adds to the recipe, its seed, and its folder."""

    words: tuple[str, ...]
    seed: int
    folder: Path

    def command(self, recipe: str, launcher: Sequence[str]) -> list[str]:
        """What runs it, from the start or from its newest checkpoint."""
        ours = ["--seed", str(self.seed), "--output_dir", str(self.folder), "--resume_from_checkpoint", "auto"]
        return [*launcher, recipe, *self.words, *ours]


def _pairs(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", key) or not value:
        raise ValueError(f"{text!r} sets nothing: write key=value.")
    return key, value


def variants(products: Sequence[str], others: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The words of every variant: all combinations of `key=a,b,c`, and each list of `key=value` as it is.

    A list, in brackets, is one value.
    """
    choices = []
    for text in products:
        key, value = _pairs(text)
        values = [value] if value.startswith("[") else value.split(",")
        choices.append([(f"--{key}", chosen) for chosen in values])
    found = [tuple(itertools.chain(*combination)) for combination in itertools.product(*choices)] if choices else []
    for words in others:
        found.append(tuple(itertools.chain(*((f"--{key}", value) for key, value in map(_pairs, words)))))
    return list(dict.fromkeys(found)) or [()]


def trials(words: Sequence[tuple[str, ...]], seeds: int, folder: Path) -> list[Trial]:
    """Every variant with seeds 0, 1, ...; seeds turn fastest last, so that a sweep cut short has whole rounds."""
    if seeds < 1:
        raise ValueError(f"--seeds is {seeds}: it must be 1 or more.")
    names = ["-".join(word.removeprefix("--") for word in variant) or "as-it-is" for variant in words]
    names = [re.sub(r"[^\w.=-]+", "_", name) for name in names]
    if len(set(names)) < len(names):
        raise ValueError("two variants have names that differ in signs alone, so their folders would be one.")
    return [
        Trial(variant, seed, folder / name / f"seed{seed}")
        for seed in range(seeds)
        for name, variant in zip(names, words, strict=True)
    ]


def run(recipe: str, planned: Sequence[Trial], folder: Path, launcher: Sequence[str], jobs: int) -> list[Trial]:
    """Run what is not done, `jobs` at a time; the trials that failed.

    Raises:
        ValueError: the folder has a sweep of another recipe.
    """
    state = files.read_json(folder / LIST) or {"recipe": recipe, "done": []}
    if state["recipe"] != recipe:
        raise ValueError(f"--output is {folder}, which has a sweep of {state['recipe']}: name another folder.")
    lock, failed = Lock(), []
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})

    def one(trial: Trial) -> None:
        name = str(trial.folder.relative_to(folder))
        if name in state["done"]:
            return
        trial.folder.mkdir(parents=True, exist_ok=True)
        with (trial.folder.parent / f"{trial.folder.name}.log").open("ab") as log:
            command = trial.command(recipe, launcher)
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


def commands(recipe: str, planned: Sequence[Trial], launcher: Sequence[str]) -> list[str]:
    """The shell commands of a sweep, to be run elsewhere."""
    return [shlex.join(trial.command(recipe, launcher)) for trial in planned]


def main(
    recipe: str,
    products: Sequence[str],
    others: Sequence[Sequence[str]],
    seeds: int,
    baseline: Sequence[str] | None,
    output: str | None,
    jobs: int,
    launcher: str,
    only_print: bool,
) -> bool:
    """Run or print a sweep and compare its runs; whether all of them ended well.

    Raises:
        ValueError: a variant says nothing, the baseline is none of them, or the folder has another sweep.
    """
    words = variants(products, others)
    folder = Path(output) if output else RUNS / "sweeps" / Path(recipe).stem
    planned, start = trials(words, seeds, folder), shlex.split(launcher)
    reference = words[0] if baseline is None else variants([], [baseline])[0]
    if reference not in words:
        raise ValueError(f"--baseline is {' '.join(baseline or ())}, which is none of the variants: name one of them.")
    if not Path(recipe).is_file():
        raise ValueError(f"{recipe}: there is no such recipe file.")
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}: it must be 1 or more.")
    if only_print:
        print("\n".join(commands(recipe, planned, start)))
        return True
    failed = run(recipe, planned, folder, start, jobs)
    ended = [trial for trial in planned if trial not in failed]
    if ended:
        first = next((trial.folder for trial in ended if trial.words == reference), None)
        found = compare_folders([trial.folder for trial in ended], first, None)
        print(f"\n{as_text(found)}\n")
        print("\n".join(str(path) for path in write(found, folder)))
    return not failed
