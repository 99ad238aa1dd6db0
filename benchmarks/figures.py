"""All figures of token entropy for an embedded task, before any training, after its cold start and after RLVR.

    python -m benchmarks.figures                 # trains, answers, scores; docs/figures/, results/figures.json
    python -m benchmarks.figures word_stories    # the word stories; docs/figures/words/, results/figures_words.json
    python -m benchmarks.figures --table         # only the table of the recorded results

Every seed has a cold start and a run of the demo recipe, which keeps its checkpoints. The order is that of arXiv
2506.01939, Table 1 and Fig. 4. The last step answers the test problems, and every checkpoint scores these answers. The
cold start gives the top positions and the bins. Its own answers give its words, and the changes from it to the last
step. Holm's method corrects the tests of the changes as one family. The pictures are those of the first
seed. Finished parts are not repeated.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread

from benchmarks import embedded, measure, walks
from benchmarks.walks import COLD, TRAINED
from entropy_grpo.analysis.report import figures, run
from entropy_grpo.metrics.intervals import gain_interval
from entropy_grpo.metrics.seeds import correct, over_seeds
from entropy_grpo.metrics.tables import cell, p_text
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import plots
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.tasks import cold_start, registry, taught

RANDOM = "random weights"
SEEDS, SAVES, SAMPLES = range(3), 6, 4
SHOWN = "overlap change percentiles".split()
LOGGED = "log-percentiles log-signs".split()
WORDS = "categories words-0-highest words-0-lowest".split()
UPDATES = "updates update-categories update-perplexity".split()
COMMAND = "python -m benchmarks.figures"
SOURCE = f"{COMMAND}: one run of the demo, 400 test problems with 4 answers each"
LOG_SOURCE = f"{COMMAND}: the rollouts that one run of the demo logged"
RECORD = walks.Record("figures", "--table", "about ten minutes on two quiet cores")
# The tables show the changes from this percentile of the cold start's entropies on. Below it nearly all tokens are
# certain before and after.
SHOWN_FROM = 50
ORDER = (
    "The numbers are means over {seeds} seeds with 95% intervals. The last step answers, and every checkpoint scores "
    "its answers, as in the paper. The cold start gives the top positions and the bins."
)
ORDER_OF_ONE = (
    "The numbers are those of one run. The cold start answers, and every checkpoint scores its answers. In the paper "
    "the last model answers, so the paper's overlap is not beside these."
)


class Places:
    """Folders of one seed of a task, and of the pictures.

    Attributes:
        run: the run, whose `analysis` has the last step's responses as all checkpoints score them.
        own: by model, the folder of the tokens of its own responses.
        pictures: folder in the docs.
    """

    def __init__(self, task: str, seed: int):
        self.study, self.seed = embedded.STUDIES[task], seed
        self.run = RunFolder(measure.ROOT / "runs" / f"figures{self.study.suffix}" / f"seed{seed}")
        own = self.run.path / "own"
        self.own = {RANDOM: own / "random", COLD: own / "cold"}
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
    command += ["--seed", str(places.seed), "--resume_from_checkpoint", "auto"]
    subprocess.run(command, cwd=measure.ROOT, check=True)


def random_model(places: Places) -> Path:
    """The model with which the cold start begins."""
    folder = places.run.path / "own" / "weights"
    if not (folder / "tokenizer_config.json").exists():
        tokenizer = taught.build_tokenizer(registry.LESSONS[places.study.name])
        cold_start.build_model(tokenizer, places.seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def collect(places: Places, folder: Path, model: str, *options: str) -> None:
    """Run `entropy-grpo analyze collect` on the test problems."""
    command = [sys.executable, "-m", "entropy_grpo.cli", "analyze", "collect", "--output", str(folder)]
    command += ["--model", model, "--benchmarks", places.study.task.name, "--samples", str(SAMPLES)]
    command += ["--seed", str(places.seed), "--backend", "transformers", *options]
    subprocess.run(command, cwd=measure.ROOT, check=True)


def prepare(places: Places) -> None:
    """Train a seed and collect its tokens."""
    train(places)
    cold = f"{COLD}={walks.model_path(places.study, COLD, places.seed)}"
    checkpoints = {f"step {n}": f"{places.run.path}/checkpoint-{n}" for n in places.steps}
    against = [f"{name}={path}" for name, path in checkpoints.items()]
    collect(places, places.run.analysis, cold, "--against", *against, "--answered-by", list(checkpoints)[-1])
    collect(places, places.own[COLD], cold, "--against", against[-1])
    collect(places, places.own[RANDOM], f"{RANDOM}={random_model(places)}")


def reports(places: Places) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
    """The report of the last step's responses, that of the cold start's, and each model's figures of its own."""
    folders = (places.run.analysis, places.own[COLD], places.own[RANDOM])
    over_training, cold, random = (json.loads((folder / "report.json").read_text()) for folder in folders)
    last = list(over_training["checkpoints"])[-1]
    own = {
        RANDOM: random["checkpoints"][RANDOM],
        COLD: cold["checkpoints"][COLD],
        TRAINED: over_training["checkpoints"][last],
    }
    return over_training, cold, own


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


def of_seed(places: Places) -> dict[str, Any]:
    """The figures of a seed's reports that are recorded."""
    over_training, cold, own = reports(places)
    kept = ("tokens", "mean", "share_below_0.01", "held_by_top_20", "percentiles", "categories")
    training = over_training["training"]
    first, *steps = over_training["checkpoints"]
    return {
        "own responses": {
            name: {key: one[key] for key in kept} | {"mean_by_correctness": position_groups(one)}
            for name, one in own.items()
        },
        "overlaps": {group: {step: one["overlaps"][first][step] for step in steps} for group, one in training.items()},
        "changes": {
            group: [{key: row[key] for key in ("entropy", "change")} for row in one["changes"][steps[-1]]]
            for group, one in training.items()
        },
        "category_changes": cold["category_changes"][steps[-1]],
    }


def shared(found: Sequence[Any]) -> list[Any]:
    """The results of seeds without what some seed lacks, such as a category that it never wrote."""
    if not isinstance(found[0], dict):
        return list(found)
    keys = [key for key in found[0] if all(key in one for one in found)]
    columns = {key: shared([one[key] for one in found]) for key in keys}
    return [{key: columns[key][i] for key in keys} for i in range(len(found))]


def shown_bins(rows: Sequence[Any]) -> range:
    """Numbers of the bins that the tables show, of bins from the lowest to the highest entropy."""
    return range(len(rows) * SHOWN_FROM // 100, len(rows))


def of_seeds(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with intervals, and the tests that the changes in the shown bins are 0."""
    rows = found[0]["changes"]["all"]
    values = [[one["changes"]["all"][i]["change"] for one in found] for i in shown_bins(rows)]
    tests = [gain_interval([0] * len(found), changes, bounded=False) for changes in values]
    correct(tests)
    return {"seeds": len(found), **walks.over_seeds(shared(found), over_seeds), "tests": tests}


def draw(places: Places) -> dict[str, Any]:
    """Copy a seed's pictures into the docs, and return their names and the words that the pictures show."""
    _, _, own = reports(places)
    folder = places.pictures
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*SHOWN, *LOGGED):
        adopt(places.run.analysis / "figures" / f"{name}.png", folder, LOG_SOURCE if name in LOGGED else SOURCE)
    for name in (*WORDS, *UPDATES):
        adopt(places.own[COLD] / "figures" / f"{name}.png", folder, SOURCE)
    histograms = {
        name: (np.array(one["histogram"]["edges"]), np.array(one["histogram"]["counts"])) for name, one in own.items()
    }
    marks = {name: one["percentiles"]["80"] for name, one in own.items()}
    plots.save(figures.histogram(histograms, marks), folder / "histogram.png", SOURCE)
    for name in (COLD, TRAINED):
        drawn = figures.position(own[name]["position"], name)
        plots.save(drawn, folder / f"position-{name.replace(' ', '-')}.png", SOURCE)
    # The page of the number walk has the other pictures among its text.
    listed = UPDATES if folder == measure.DOCS / "figures" else ["histogram", *SHOWN, *LOGGED, *WORDS, *UPDATES]
    return {
        "pictures": [f"{folder.relative_to(measure.DOCS)}/{name}.png" for name in listed],
        "words": {
            name: {side: [r["text"] for r in one["words"][side][:10]] for side in ("highest", "lowest")}
            for name, one in own.items()
        },
    }


def text_of(found: float | Mapping[str, float], form: str) -> str:
    """A number of one run, or a mean over seeds with its interval, in a format such as `.1%`."""
    if not isinstance(found, Mapping):
        return f"{found:{form}}"
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def table(results: dict[str, Any]) -> str:
    """The recorded figures and the paper's figures, in Markdown."""
    own, tests = results["own responses"], results.get("tests", [])
    entropies = [
        ("", *"tokens; mean, nats; below 0.01 nats; 80th percentile; entropy held by the top 20%".split("; "))
    ]
    for name, one in own.items():
        means = ((one["mean"], ".3f"), (one["share_below_0.01"], ".1%"), (one["percentiles"]["80"], ".3f"))
        shown = (text_of(*mean) for mean in (*means, (one["held_by_top_20"], ".1%")))
        entropies.append((name, f"{one['tokens']:,}", *shown))
    steps = list(results["overlaps"]["all"])
    overlaps = [("top 20% shared with the cold start", *steps)]
    for group, shares in results["overlaps"].items():
        overlaps.append((f"{group} responses", *(text_of(shares[step], ".1%") for step in steps)))
    if tests:
        overlaps.append(("*the paper's base, 1360 steps*", *[""] * (len(steps) - 1), "*above 86%*"))
    groups = list(results["changes"])
    heads = ["percentile of the cold start's entropy", "its mean", *(f"change, {g}" for g in groups)]
    changes = [(*heads, "p, corrected")] if tests else [tuple(heads)]
    rows = results["changes"]["all"]
    for number, i in enumerate(shown_bins(rows)):
        moved = [text_of(results["changes"][g][i]["change"], "+.3f") for g in groups]
        moved += [cell(p_text(tests[number]["p_corrected"]))] if tests else []
        edges = f"{100 * i / len(rows):.0f} to {100 * (i + 1) / len(rows):.0f}"
        changes.append((edges, text_of(rows[i]["entropy"], ".3f"), *moved))
    heads = "category; tokens, cold start; trained; mean entropy; change on the same tokens; of probability".split(
        "; "
    )
    categories = [tuple(heads)]
    for kind, change in results["category_changes"].items():
        if not all(kind in own[name]["categories"] for name in (COLD, TRAINED)):
            continue
        before, after = own[COLD]["categories"][kind], own[TRAINED]["categories"][kind]
        counts = [f"{one['tokens']:,} ({text_of(one['share'], '.1%')})" for one in (before, after)]
        moved = [text_of(change[name], "+.4f") for name in ("entropy", "probability")]
        categories.append((kind, *counts, text_of(before["entropy"], ".4f"), *moved))
    pictures = [f"![{Path(one).stem}]({one})" for one in results["pictures"]]
    # The paper's figures are in italics.
    tables = [markdown_table(rows, as_text=str) for rows in (entropies, overlaps, changes, categories)]
    order = ORDER.format(seeds=results["seeds"]) if tests else ORDER_OF_ONE
    return "\n\n".join([order, *tables, *pictures])


def main() -> None:
    parser = RECORD.parser(__doc__)
    options = parser.parse_args()
    if not options.only_show:
        if find_spec("wordcloud") is None:
            parser.error("the word clouds need pip install 'entropy-grpo[analysis]'")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ["OMP_NUM_THREADS"] = "1"
        seeds = [Places(options.task, seed) for seed in SEEDS]
        with ThreadPoolExecutor(embedded.JOBS) as pool:
            list(pool.map(prepare, seeds))
        for places in seeds:
            for folder in (places.run.path, *places.own.values()):
                run.write(folder)
        RECORD.write(options.task, of_seeds([of_seed(places) for places in seeds]) | draw(seeds[0]))
    RECORD.write_block(options.task, table)


if __name__ == "__main__":
    main()
