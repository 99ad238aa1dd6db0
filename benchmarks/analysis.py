"""Time and memory of the analysis of a million synthetic tokens with a vocabulary of 151,936.

    python -m benchmarks.analysis            # benchmarks/results/analysis.json
    python -m benchmarks.analysis --table    # only the table of docs/entropy.md, of the recorded results

Collecting is measured without the model's layers: only the head on random hidden states, and the files. Every view
then reads two checkpoints of the tokens.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks import measure
from entropy_grpo.analysis.collect.run import PART_TOKENS, token_table
from entropy_grpo.analysis.collect.store import RESPONSES, Collection
from entropy_grpo.analysis.report import run as report
from entropy_grpo.analysis.views import categories, distribution, over_training, position, updates, words
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.models.kernels import choose
from entropy_grpo.runs import files, parquet

RESULTS = measure.RESULTS / "analysis.json"
COMMAND = "python -m benchmarks.analysis --table"

VOCABULARY, TOKENS, LENGTH = 151_936, 2**20, 4096
PASS_TOKENS = 16384  # `collect`'s default
# The model is narrow on a CPU, because the vocabulary needs most of the memory and of the time.
HIDDEN = 4096 if torch.cuda.is_available() else 64
CHECKPOINTS = ("base", "trained")
STATISTICS = {"entropy", "log_sum_sq_probs"}
ENTROPY, WORDS = ["entropy"], ["token", "entropy"]


def texts() -> dict[int, str]:
    """A text for every token: words, numbers and signs."""
    return {i: (f" word{i}", str(i), " so", "+")[i % 4] for i in range(VOCABULARY)}


def head() -> None:
    """Compute the entropies of `TOKENS` random hidden states, in passes as in `collect`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    kernel = choose("auto", device, STATISTICS)
    weight = torch.randn(VOCABULARY, HIDDEN, device=device, dtype=dtype)
    for _ in range(TOKENS // PASS_TOKENS):
        rows = torch.randn(PASS_TOKENS, HIDDEN, device=device, dtype=dtype) / HIDDEN**0.5
        targets = torch.randint(VOCABULARY, (PASS_TOKENS,), device=device)
        with torch.inference_mode():
            scores, _ = kernel.forward(rows, weight, targets, 1.0, STATISTICS)
        scores.entropy.cpu()


def write_files(collection: Collection) -> None:
    """Write a first checkpoint of `TOKENS` tokens with random entropies, part by part as in `collect`."""
    rng, of_token = np.random.default_rng(0), texts()
    collection.path.mkdir(parents=True, exist_ok=True)
    with parquet.writing(collection.responses, RESPONSES) as writer:
        for number in range(TOKENS // PART_TOKENS):
            count = PART_TOKENS // LENGTH
            tokens = (rng.random((count, LENGTH)) ** 6 * VOCABULARY).astype(np.int32)
            rows = [
                {
                    "id": number * count + i,
                    "prompt": "",
                    "response": "",
                    "correct": i % 2 == 0,
                    "prompt_ids": [0],
                    "completion_ids": tokens[i].tolist(),
                }
                for i in range(count)
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=RESPONSES))
            # Half of the tokens are nearly certain, some are open, as in a text.
            scores = [list(sign * rng.random(tokens.shape, np.float32) ** 6 * 4) for sign in (1, -1, 1)]
            parquet.write(collection.part(CHECKPOINTS[0], number), token_table(rows, scores, of_token, CHECKPOINTS[0]))
    files.write_json(collection.settings, {"checkpoints": dict.fromkeys(CHECKPOINTS)})


def second_checkpoint(collection: Collection) -> None:
    """Write a second checkpoint of the same tokens with other entropies."""
    rng = np.random.default_rng(0)
    for number in range(collection.num_parts):
        table = parquet.read(collection.part(CHECKPOINTS[0], number))
        place = table.schema.get_field_index("entropy")
        changed = table["entropy"].to_numpy() * rng.uniform(0.5, 1.2, len(table)).astype(np.float32)
        parquet.write(collection.part(CHECKPOINTS[1], number), table.set_column(place, "entropy", pa.array(changed)))


def views(collection: Collection) -> dict[str, Callable[[], Any]]:
    """Every view of the collection by name, computed from its files."""
    first = CHECKPOINTS[0]

    def entropies() -> dict[str, np.ndarray]:
        return {name: collection.column(name, "entropy") for name in CHECKPOINTS}

    def extremes() -> Any:
        counts, mean = words.means(collection.parts(first, WORDS))
        return words.extremes(counts, mean, collection.texts(), words.LEAST)

    places = ["response", "position", "entropy", "correct"]
    kinds = ["token", "entropy", "log_prob"]
    return {
        "distribution": lambda: distribution.summary(collection.column(first, "entropy")),
        "histogram": lambda: distribution.histogram(p["entropy"] for p in collection.parts(first, ENTROPY)),
        "words": extremes,
        "overlap": lambda: over_training.overlaps(entropies()),
        "change per bin": lambda: over_training.change_per_bin(*entropies().values()),
        "percentiles": lambda: over_training.percentile_curves(entropies()),
        "position": lambda: position.by_position(collection.parts(first, places)),
        "categories": lambda: categories.by_category(collection.parts(first, kinds), collection.texts()),
        "updates": lambda: updates.of_collection(collection, collection.texts()),
        "whole report": lambda: report.write(collection.path),
    }


def measured(function: Callable[[], Any]) -> dict[str, float]:
    """Seconds and peak bytes of one call."""
    start = time.perf_counter()
    peak = measure.peak_memory(function)
    return {"seconds": time.perf_counter() - start, "peak_bytes": peak}


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        collection = Collection(Path(folder) / "tokens")
        found = {"collect: the head": measured(head)}
        found["collect: the files"] = measured(lambda: write_files(collection))
        print(found, flush=True)
        second_checkpoint(collection)
        for name, view in views(collection).items():
            found[name] = measured(view)
            print(name, found[name], flush=True)
    return {"tokens": TOKENS, "vocabulary": VOCABULARY, "hidden": HIDDEN, "parts": found}


def table(results: dict[str, Any]) -> str:
    """The recorded figures in Markdown."""
    rows = [("", "seconds", "peak MiB")]
    for name, part in results["parts"].items():
        rows.append((name, f"{part['seconds']:.1f}", f"{part['peak_bytes'] / 2**20:,.0f}"))
    return (
        f"{results['tokens']:,} tokens, vocabulary {results['vocabulary']:,}, hidden size {results['hidden']}, "
        f"{results['hardware']}.\n\n{markdown_table(rows)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="only write the table of the recorded results")
    options = parser.parse_args()
    if not options.table:
        measure.write("analysis", "python -m benchmarks.analysis", run())
    text = table(json.loads(RESULTS.read_text()))
    measure.write_block(COMMAND, text)
    print(text)


if __name__ == "__main__":
    main()
