"""The search of `fixtures.answer_grammar` for wrong answers that grading counts right, on two thousand answers.

python -m benchmarks.false_positives            # ten minutes, benchmarks/results/false_positives.json and the table
python -m benchmarks.false_positives --table    # only the table of the recorded results
"""

import argparse
from typing import Any

from benchmarks.fixtures.answer_grammar import search
from entropy_grpo.metrics.tables import table as markdown_table

COMMAND = "python -m benchmarks.false_positives"
ANSWERS, SEED = 2000, 0


def table(results: dict[str, Any]) -> str:
    """The recorded results in Markdown."""
    counts = [f"{results[name]:,}" for name in ("answers", "pairs", "told_apart")]
    header = ("answers of a grammar", "pairs", "told apart by their values", "of these counted as right")
    return markdown_table([header, (*counts, len(results["false_positives"]))])


def main() -> None:
    from benchmarks import measure
    from entropy_grpo.runs import files as records

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="only write the table of the recorded results")
    if not parser.parse_args().table:
        measure.write("false_positives", COMMAND, search(ANSWERS, SEED))
    text = table(records.read_json(measure.RESULTS / "false_positives.json"))
    measure.write_block(COMMAND, text)
    print(text)


if __name__ == "__main__":
    main()
