"""Changes of tokens' probabilities by RLVR on an embedded task, over seeds: arXiv 2508.02260, Fig. 2 to 4.

    python -m benchmarks.updates                 # benchmarks/results/updates.json
    python -m benchmarks.updates word_stories    # updates_words.json
    python -m benchmarks.updates --table         # only the table of the recorded results

Every seed has a cold start and a trained model of its own. The cold start answers the test problems, and both models
score these answers. Finished parts are not repeated. Holm's method corrects the tests as one family.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from benchmarks import embedded, measure, walks
from benchmarks.walks import COLD, TRAINED
from entropy_grpo.analysis.collect.store import Collection
from entropy_grpo.analysis.views import updates
from entropy_grpo.cards.results import share_text
from entropy_grpo.metrics.intervals import gain_interval
from entropy_grpo.metrics.seeds import correct, over_seeds
from entropy_grpo.metrics.tables import interval_text, p_text
from entropy_grpo.metrics.tables import table as markdown_table

SAMPLES = 4
RECORD = walks.Record("updates", "--table", "about ten minutes on two quiet cores")


def of_seed(key: str, seed: int) -> dict[str, Any]:
    """The changes of one seed's models, for the record."""
    study = embedded.STUDIES[key]
    folder = measure.ROOT / "runs" / f"updates{study.suffix}" / f"seed{seed}"
    cold, trained = (walks.model_path(study, name, seed) for name in walks.MODELS)
    command = [sys.executable, "-m", "entropy_grpo.cli", "analyze", "collect", "--output", str(folder)]
    command += ["--model", f"{COLD}={cold}", "--against", f"{TRAINED}={trained}", "--backend", "transformers"]
    command += ["--benchmarks", study.task.name, "--samples", str(SAMPLES), "--seed", str(seed)]
    subprocess.run(command, cwd=measure.ROOT, check=True)
    collection = Collection(folder)
    return kept(updates.of_collection(collection, collection.texts())[TRAINED])


def kept(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of `updates.between` that are recorded."""
    columns, groups = ("tokens", "change", "size", "below_0.06", "raised"), found["by_correctness"]
    return {
        "by_correctness": {group: {key: row[key] for key in columns} for group, row in groups.items()},
        "categories": {
            kind: {key: row[key] for key in ("share", "top_share")} for kind, row in found["categories"].items()
        },
        "correlations": {key: found["gradient"][key] for key in ("correlation", "size_correlation")},
        "perplexity": found["perplexity"],
    }


def of_seeds(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds with intervals, and the tests."""
    return {"seeds": len(found), **walks.over_seeds(found, over_seeds), "tests": tests(found)}


def tests(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Tests by group of responses, that the mean change is 0, and by category, that both shares are equal."""
    means = {group: [one["by_correctness"][group]["change"] for one in found] for group in found[0]["by_correctness"]}
    sides = {
        kind: [[one["categories"][kind][key] for one in found] for key in ("share", "top_share")]
        for kind in found[0]["categories"]
    }
    by_group = {group: gain_interval([0] * len(found), values, bounded=False) for group, values in means.items()}
    by_kind = {kind: gain_interval(before, after, bounded=False) for kind, (before, after) in sides.items()}
    correct([*by_group.values(), *by_kind.values()])
    return {"change": by_group, "top_share": by_kind}


def table(found: Mapping[str, Any]) -> str:
    """The recorded changes by correctness, by category and by perplexity, and the correlations, in Markdown."""
    by_group, by_kind = found["tests"]["change"], found["tests"]["top_share"]
    groups: list[tuple[str, ...]] = [
        ("changes of probability", "tokens", "mean", "p, corrected", "mean size", "size below 0.06", "raised")
    ]
    for group, row in found["by_correctness"].items():
        mean, size = interval_text(row["change"], 4, "+"), interval_text(row["size"], 4)
        shares = (share_text(row[key]) for key in ("below_0.06", "raised"))
        p = p_text(by_group[group]["p_corrected"])
        groups.append((f"{group} responses", f"{row['tokens']:,}", mean, p, size, *shares))
    kinds: list[tuple[str, ...]] = [
        ("category", "share of all tokens", "share of the 20% with the largest changes", "p, corrected")
    ]
    for kind, row in found["categories"].items():
        shares = (share_text(row[key]) for key in ("share", "top_share"))
        kinds.append((kind, *shares, p_text(by_kind[kind]["p_corrected"])))
    perplexities: list[tuple[str, ...]] = [
        ("perplexity of the response", "right", "share of all tokens", "share of the largest changes")
    ]
    for row in found["perplexity"]:
        shares = (share_text(row[key]) for key in ("right", "share", "top_share"))
        perplexities.append((f"{row['from']['value']:.3f} to {row['to']['value']:.3f}", *shares))
    by = found["correlations"]
    text = (
        f"Rank correlation of a token's entropy with its gradient norm: {share_text(by['correlation'])}; with the "
        f"size of its change: {share_text(by['size_correlation'])}."
    )
    return "\n\n".join([*(markdown_table(rows) for rows in (groups, kinds, perplexities)), text])


def main() -> None:
    options = RECORD.parser(__doc__).parse_args()
    if not options.only_show:
        os.environ["OMP_NUM_THREADS"] = "1"
        with ThreadPoolExecutor(embedded.JOBS) as pool:
            found = list(pool.map(partial(of_seed, options.task), walks.SEEDS))
        RECORD.write(options.task, of_seeds(found))
    RECORD.write_block(options.task, table)


if __name__ == "__main__":
    main()
