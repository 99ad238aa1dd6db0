"""Errors of the grader and of plain math-verify on the answer pairs of the tests.

The pairs of `fixtures/public_pairs.jsonl` are from public bug reports and tests of graders (math-verify, verl, TRL,
lm-eval and others), each with its source. What was wrong among those `seen` was mended; those `held out` were graded
once before that, and once when it was done, and nothing was changed for their sake.

python -m benchmarks.grading            # a minute, benchmarks/results/grading.json and the table
python -m benchmarks.grading --table    # only the table of the recorded results
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

from math_verify import parse, verify

from benchmarks.fixtures import REPOSITORY
from benchmarks.fixtures.answer_pairs import NEAR, Case, cases
from entropy_grpo.grading import Verdict, boxed, compare
from entropy_grpo.metrics.tables import table as markdown_table

COMMAND = "python -m benchmarks.grading"
PUBLIC = REPOSITORY / "benchmarks" / "fixtures" / "public_pairs.jsonl"
PARTS = ("seen", "held out")


def ours(response: str, reference: str, relative_tolerance: float) -> bool:
    """Grade as in the reward, but without worker processes."""
    answer = boxed(response)
    return answer is not None and compare(answer, reference, relative_tolerance) is Verdict.RIGHT


def plain_math_verify(response: str, reference: str, relative_tolerance: float) -> bool:
    """Grade with math-verify's default settings for both texts. It has no tolerance."""
    return bool(verify(parse(f"\\boxed{{{reference}}}"), parse(response)))


GRADERS = {"ours": ours, "plain math-verify": plain_math_verify}


def public_cases(part: str) -> list[Case]:
    """Pairs from public reports, as `cases` of the kind `part`: "seen" or "held out"."""
    rows = [json.loads(line) for line in PUBLIC.read_text(encoding="utf-8").splitlines()]
    return [(part, f"\\boxed{{{r['answer']}}}", r["reference"], 0.0, r["right"]) for r in rows if r["part"] == part]


def wrong(grade: Callable[[str, str, float], bool], found: list[Case]) -> dict[str, list[Case]]:
    """The cases that a grader gets wrong: (false positives, false negatives)."""
    mistakes = [case for case in found if grade(*case[1:4]) is not case[4]]
    return {
        "false_positives": [case for case in mistakes if not case[4]],
        "false_negatives": [case for case in mistakes if case[4]],
    }


def table(results: dict[str, Any]) -> str:
    """The recorded results in Markdown."""
    answers = f"{results['equal']} answers that are right, {results['unequal']} that are not"
    rows = [(answers, "counted as right though wrong", "counted as wrong though right")]
    for name in GRADERS:
        rows.append((name, *(len(results[name][kind]) for kind in ("false_positives", "false_negatives"))))
    near = sum(case[0] == NEAR for case in results["plain math-verify"]["false_negatives"])
    said = f"{near} of those that plain math-verify refuses are right within 1%, for which it has no setting."
    public = [("pairs from public reports", "graded rightly", "wrong ones counted as right")]
    for part, figures in results["public"].items():
        for name in GRADERS:
            false = [len(figures[name][sort]) for sort in ("false_positives", "false_negatives")]
            share = 1 - sum(false) / figures["pairs"]
            public.append((f"{figures['pairs']} {part}, {name}", f"{share:.3f}", false[0]))
    return f"{markdown_table(rows)}\n\n{said}\n\n{markdown_table(public)}"


def listing(results: dict[str, Any]) -> str:
    """All mistakes, one per line."""
    lines = []
    found = [(name, sort, mistakes) for name in GRADERS for sort, mistakes in results[name].items()]
    found += [(f"ours, public, {PARTS[0]}", sort, m) for sort, m in results["public"][PARTS[0]]["ours"].items()]
    for name, sort, mistakes in found:
        lines += [f"\n{name}, {sort.replace('_', ' ')}: {len(mistakes)}"]
        lines += [f"  {kind}: {boxed(text) or text!r} for {reference}" for kind, text, reference, *_ in mistakes]
    return "\n".join(lines)


def main() -> None:
    from benchmarks import measure
    from entropy_grpo.runs import files

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="only write the table of the recorded results")
    if not parser.parse_args().table:
        found = list(cases())
        right = sum(case[4] for case in found)
        figures = {"equal": right, "unequal": len(found) - right}
        figures |= {name: wrong(grade, found) for name, grade in GRADERS.items()}
        public = {part: public_cases(part) for part in PARTS}
        figures["public"] = {
            part: {"pairs": len(pairs)} | {name: wrong(grade, pairs) for name, grade in GRADERS.items()}
            for part, pairs in public.items()
        }
        measure.write("grading", COMMAND, figures)
    results = files.read_json(measure.RESULTS / "grading.json")
    measure.write_block(COMMAND, table(results))
    print(listing(results), table(results), sep="\n\n")


if __name__ == "__main__":
    main()
