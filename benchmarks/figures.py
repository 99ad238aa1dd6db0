"""All figures of token entropy for an embedded task, before any training, after its cold start and after RLVR.

    python -m benchmarks.figures                 # trains, answers, scores; docs/figures/, results/figures.json
    python -m benchmarks.figures word_stories    # the word stories; docs/figures/words/, results/figures_words.json
    python -m benchmarks.figures --table         # only the table of the recorded results

The demo recipe runs once and keeps its checkpoints. Each model answers the test problems, and every checkpoint scores
the cold start's answers. Finished parts are not repeated.
"""

import json
import os
import subprocess
import sys
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread

from benchmarks import embedded, measure, walks
from entropy_grpo.analysis.report import figures, run
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import plots
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.tasks import cold_start, registry, taught

COLD, RANDOM, TRAINED = "cold start", "random weights", "trained"
SAVES, SAMPLES = 6, 4
SHOWN = "overlap change percentiles categories words-0-highest words-0-lowest".split()
LOGGED = "log-percentiles log-signs".split()
UPDATES = "updates update-categories update-perplexity".split()
COMMAND = "python -m benchmarks.figures"
SOURCE = f"{COMMAND}: one run of the demo, 400 test problems with 4 answers each"
LOG_SOURCE = f"{COMMAND}: the rollouts that one run of the demo logged"
RECORD = walks.Record("figures", "--table", "about a quarter of an hour on two cores")


class Places:
    """Folders of a task's run, of the models' own responses, and of the pictures.

    Attributes:
        run: the run, whose checkpoints score the cold start's responses.
        own: by model, the folder of the tokens of its own responses.
        pictures: folder in the docs.
    """

    def __init__(self, task: str):
        self.study = embedded.STUDIES[task]
        self.run = RunFolder(measure.ROOT / "runs" / f"figures{self.study.suffix}")
        own = self.run.path / "own"
        self.own = {RANDOM: own / "random", COLD: self.run.path / "analysis", TRAINED: own / "trained"}
        self.pictures = measure.DOCS / "figures" / self.study.suffix.removeprefix("_")

    @cached_property
    def steps(self) -> list[int]:
        """Optimiser steps of the checkpoints."""
        last = embedded.max_steps(self.study)
        return list(range(last // SAVES, last + 1, last // SAVES))


def train(places: Places) -> None:
    """The run of the demo with all its checkpoints, which continues after an interruption."""
    folder = places.run.path
    if (folder / "model.safetensors").exists():
        return
    command = [sys.executable, places.study.recipe, "--output_dir", str(folder), "--disable_tqdm", "true"]
    command += ["--max_steps", str(places.steps[-1]), "--save_steps", str(places.steps[0])]
    command += ["--resume_from_checkpoint", "auto"]
    subprocess.run(command, cwd=measure.ROOT, check=True)


def random_model(places: Places) -> Path:
    """The model with which the cold start begins."""
    folder = places.run.path / "own" / "weights"
    if not (folder / "tokenizer_config.json").exists():
        tokenizer = taught.build_tokenizer(registry.LESSONS[places.study.name])
        cold_start.build_model(tokenizer, 0).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def collect(places: Places, name: str, model: str, *against: str) -> None:
    """Run `entropy-grpo analyze collect` on the test problems."""
    command = [sys.executable, "-m", "entropy_grpo.cli", "analyze", "collect", "--output", str(places.own[name])]
    command += ["--model", f"{name}={model}", "--benchmarks", places.study.task.name, "--samples", str(SAMPLES)]
    command += ["--backend", "transformers", *(["--against", *against] if against else [])]
    subprocess.run(command, cwd=measure.ROOT, check=True)


def collect_all(places: Places) -> None:
    folder = places.run.path
    collect(places, COLD, places.study.name, *(f"step {n}={folder}/checkpoint-{n}" for n in places.steps))
    collect(places, TRAINED, str(folder))
    collect(places, RANDOM, str(random_model(places)))


def position_groups(found: dict[str, Any]) -> dict[str, float]:
    """Mean entropy of right and of wrong responses."""
    means = {}
    for group, row in found["position"].items():
        tokens, entropy = np.array(row["tokens"]), np.nan_to_num(np.array(row["entropy"], float))
        means[group] = float((tokens * entropy).sum() / tokens.sum())
    return means


def adopt(picture: Path, folder: Path, source: str) -> None:
    """Copy a picture of a report into the docs, whose readers do not have the report, and name another source."""
    pixels = (imread(picture) * 255).round().astype(np.uint8)
    plots.save_pixels(pixels[: -round(plots.SOURCE_INCHES * plots.DPI)], folder / picture.name, source)


def sum_up(places: Places) -> dict[str, Any]:
    """Figures and plots of the reports for the page."""
    found = {name: json.loads((folder / "report.json").read_text()) for name, folder in places.own.items()}
    own = {name: one["checkpoints"][name] for name, one in found.items()}
    folder = places.pictures
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*SHOWN, *LOGGED, *UPDATES):
        adopt(places.own[COLD] / "figures" / f"{name}.png", folder, LOG_SOURCE if name in LOGGED else SOURCE)
    histograms = {
        name: (np.array(one["histogram"]["edges"]), np.array(one["histogram"]["counts"])) for name, one in own.items()
    }
    marks = {name: one["percentiles"]["80"] for name, one in own.items()}
    plots.save(figures.histogram(histograms, marks), folder / "histogram.png", SOURCE)
    for name in (COLD, TRAINED):
        drawn = figures.position(own[name]["position"], name)
        plots.save(drawn, folder / f"position-{name.replace(' ', '-')}.png", SOURCE)
    kept = ("tokens", "mean", "share_below_0.01", "held_by_top_20", "percentiles", "categories")
    # The page of the number walk has the other pictures among its text.
    listed = UPDATES if folder == measure.DOCS / "figures" else ["histogram", *SHOWN, *LOGGED, *UPDATES]
    training = found[COLD]["training"]
    first, *steps = found[COLD]["checkpoints"]
    return {
        "own responses": {
            name: {key: one[key] for key in kept} | {"mean_by_correctness": position_groups(one)}
            for name, one in own.items()
        },
        "overlaps": {group: {step: one["overlaps"][first][step] for step in steps} for group, one in training.items()},
        "changes": {group: one["changes"][steps[-1]] for group, one in training.items()},
        "category_changes": found[COLD]["category_changes"][steps[-1]],
        "pictures": [f"{folder.relative_to(measure.DOCS)}/{name}.png" for name in listed],
        "words": {
            name: {side: [r["text"] for r in one["words"][side][:10]] for side in ("highest", "lowest")}
            for name, one in own.items()
        },
    }


def table(results: dict[str, Any]) -> str:
    """The recorded figures and the paper's figures, in Markdown."""
    own = results["own responses"]
    entropies = [
        ("", *"tokens; mean, nats; below 0.01 nats; 80th percentile; entropy held by the top 20%".split("; "))
    ]
    for name, one in own.items():
        shares = (f"{one['share_below_0.01']:.1%}", f"{one['percentiles']['80']:.3f}", f"{one['held_by_top_20']:.1%}")
        entropies.append((name, f"{one['tokens']:,}", f"{one['mean']:.3f}", *shares))
    steps = list(results["overlaps"]["all"])
    overlaps = [("top 20% shared with the cold start", *steps)]
    for group, shares in results["overlaps"].items():
        overlaps.append((f"{group} responses", *(f"{shares[step]:.1%}" for step in steps)))
    overlaps.append(("*the paper's base, 1360 steps*", *[""] * (len(steps) - 1), "*above 86%*"))
    groups = list(results["changes"])
    changes = [("percentile of the cold start's entropy", "its mean", *(f"change, {g}" for g in groups))]
    for i, row in enumerate(results["changes"]["all"]):
        if row["from"] >= 50:
            moved = (f"{results['changes'][g][i]['change']:+.3f}" for g in groups)
            changes.append((f"{row['from']:.0f} to {row['to']:.0f}", f"{row['entropy']:.3f}", *moved))
    heads = "category; tokens, cold start; trained; mean entropy; change on the same tokens; of probability"
    categories = [heads.split("; ")]
    for kind, change in results["category_changes"].items():
        before, after = own[COLD]["categories"][kind], own[TRAINED]["categories"][kind]
        counts = [f"{one['tokens']:,} ({one['share']:.1%})" for one in (before, after)]
        moved = [f"{change[name]:+.4f}" for name in ("entropy", "probability")]
        categories.append([kind, *counts, f"{before['entropy']:.4f}", *moved])
    pictures = [f"![{Path(one).stem}]({one})" for one in results["pictures"]]
    # The paper's figures are in italics.
    tables = [markdown_table(rows, as_text=str) for rows in (entropies, overlaps, changes, categories)]
    return "\n\n".join([*tables, *pictures])


def main() -> None:
    parser = RECORD.parser(__doc__)
    options = parser.parse_args()
    if not options.only_show:
        if find_spec("wordcloud") is None:
            parser.error("the word clouds need pip install 'entropy-grpo[analysis]'")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        places = Places(options.task)
        train(places)
        collect_all(places)
        for folder in (places.run.path, places.own[TRAINED], places.own[RANDOM]):
            run.write(folder)
        RECORD.write(options.task, sum_up(places))
    RECORD.write_block(options.task, table)


if __name__ == "__main__":
    main()
