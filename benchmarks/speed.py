"""All figures about speed: run the benchmarks, then write their tables into docs/speed.md.

python -m benchmarks.speed            # head, step, end_to_end and scopes, then the tables (an hour on two cores)
python -m benchmarks.speed --table    # only the tables of the recorded results
"""

import argparse
import subprocess
import sys

from benchmarks import measure
from entropy_grpo.cards.results import share_text
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import files

TABLE = "python -m benchmarks.speed --table"
PARTS = ("head", "step", "end_to_end", "scopes")


def times(figure: dict) -> str:
    """Median with the lowest and the highest of the repeats."""
    return f"{figure['median']:.1f}x [{figure['low']:.1f}, {figure['high']:.1f}]"


HEADS = {
    "TRL's kernel in our tiles": "TRL's kernel, our tiles",
    "known after": "current policy's mask",
    "known before": "rollout's mask",
    "known after, on Liger": "current, on Liger",
    "known before, on Liger": "rollout, on Liger",
}


def head_table(results: dict) -> list[str]:
    """Table of the LM head."""
    lines = [
        f"LM head, forward and backward: {results['rows']} rows, H = {results['hidden_size']}, {results['dtype']}, "
        f"{results['hardware']}. Times faster than TRL's head: median [lowest, highest], and what the number of "
        "matmuls alone would give.",
        "",
    ]
    timed = [("V", "rho", "TRL's head", *HEADS.values(), "peak MiB, TRL", "ours")]
    cells: dict[tuple, dict[str, dict]] = {}
    for row in results["times"]:
        cells.setdefault((row["vocabulary"], row["rho"]), {})[row["variant"]] = row
    for (vocabulary, rho), row in cells.items():
        faster = [f"{times(row[name]['times faster than TRL'])}, {4 / row[name]['units']:.1f}x" for name in HEADS]
        peaks = [f"{row[name]['peak_bytes'] / 2**20:.0f}" for name in ("TRL", "known after")]
        seconds = f"{row['TRL']['seconds']['median']:.2f} s"
        timed.append((f"{vocabulary:,}", rho, seconds, *faster, *peaks))
    errors = [
        ("relative error against float64", "log-probability", "entropy", "gradient of hidden", "gradient of weight")
    ]
    for row in results["accuracy"]:
        values = (row[name] for name in ("log_probs", "entropy", "grad_hidden", "grad_weight"))
        errors.append((f"{row['dtype']}, {row['variant']}", *(f"{x:.1e}" for x in values)))
    return [*lines, markdown_table(timed), "", markdown_table(errors)]


def step_table(results: dict) -> list[str]:
    """Table of whole optimiser steps."""
    lines = [
        f"Optimiser steps of a 6M-parameter Qwen3, rho = 0.2, log-normal lengths up to {results['longest']}, "
        f"{results['batch']} x {results['accumulation']} sequences a step, {results['steps_per_rollout']} steps a "
        "rollout with its scoring. *Limit* is padded over real tokens: what trimming alone could give.",
        "",
    ]
    rows = [("mean length over longest", "trainer", "seconds a step", "times faster", "limit")]
    for row in results["times"]:
        seconds, limit = f"{row['seconds_per_step']['median']:.2f}", f"{row['padded_over_real']:.2f}x"
        rows.append((row["mean_length"], row["variant"], seconds, times(row["times faster than TRL"]), limit))
    return [*lines, markdown_table(rows)]


def end_to_end_table(results: dict) -> list[str]:
    """Table of the embedded job."""
    rows = [("trainer", "seconds", "times faster", "generation")]
    for row in results["runs"]:
        taken = ", ".join("not reached" if x is None else f"{x:.0f}" for x in row["seconds"])
        faster = row.get("times faster than TRL")
        share = results.get("generation", {}).get(row["variant"])
        rows.append((row["variant"], taken, times(faster) if faster else "", "" if share is None else f"{share:.0%}"))
    said = (
        f"The embedded job: {results.get('clock', 'seconds')} of training to a held-out accuracy of "
        f"{results['accuracy']}, by seed, and the share of the time that generation takes."
    )
    return [said, "", markdown_table(rows)]


def scopes_table(results: dict) -> list[str]:
    """Table of the agreement of the scopes."""
    lines = [
        "Share of the tokens that `global` keeps and another scope keeps, too (embedded task, learning rate 1e-4, a "
        "hundred times the papers').",
        "",
    ]
    shares = [("steps per rollout", "rollout, mean", "first step of a rollout", "last", "micro_batch, mean")]
    for run in results["runs"]:
        places = run["rollout"]["by_place_in_rollout"]
        values = (run["rollout"]["mean"], places[0], places[-1], run["micro_batch"]["mean"])
        shares.append((run["steps_per_rollout"], *(f"{value:.3f}" for value in values)))
    learned = [("scope", "accuracy after training, three seeds", "share of good moves")]
    for row in results["learned"]:
        learned.append((row["scope"], share_text(row["accuracy"]), share_text(row["good_choices"])))
    return [*lines, markdown_table(shares), "", markdown_table(learned)]


TABLES = {"head": head_table, "step": step_table, "end_to_end": end_to_end_table, "scopes": scopes_table}


def tables() -> str:
    """All tables of the recorded results, in Markdown."""
    recorded = [(name, measure.RESULTS / f"{name}.json") for name in PARTS]
    parts = [TABLES[name](files.read_json(path)) for name, path in recorded if path.exists()]
    return "\n\n".join("\n".join(lines) for lines in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="only write the tables of the recorded results")
    options = parser.parse_args()
    if not options.table:
        for name in PARTS:
            subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
    text = tables()
    measure.write_block(TABLE, text)
    print(text)


if __name__ == "__main__":
    main()
