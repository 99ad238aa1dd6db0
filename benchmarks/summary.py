"""The README's few lines of results, from the recorded files.

python -m benchmarks.summary    # writes the lines into README.md
"""

from statistics import fmean
from typing import Any

from benchmarks import embedded, faults, measure
from benchmarks.grading import GRADERS
from entropy_grpo.cards.results import share_text
from entropy_grpo.runs import files

TABLE = "python -m benchmarks.summary"


def _recorded(name: str) -> dict[str, Any]:
    return files.read_json(measure.RESULTS / f"{name}.json")


def _head_milliseconds(name: str) -> float:
    """Forward and backward pass of the head on the largest batch at rho = 0.2, recorded on the GPU."""
    rows = [row for row in _recorded("gpu_head")["measurements"] if row.get("name") == name and row["rho"] == 0.2]
    largest = max(rows, key=lambda row: row["rows"])
    return largest["forward_ms"]["median"] + largest["backward_ms"]["median"]


def _step_on_a_gpu() -> str:
    """Seconds of a step of Qwen3-1.7B by its recipe, and of TRL with both kinds of layers: means of the turns."""
    found = _recorded("gpu_step")
    seconds = {
        name: fmean(row["seconds_per_step"] for row in found["measurements"] if row["name"] == name and "turn" in row)
        for name in ("ours, Liger's layers", "TRL, Liger's layers", "TRL")
    }
    ours, liger, plain = seconds.values()
    return (
        f"{ours:.1f} s where TRL's takes {plain:.1f} s ({plain / ours:.1f}x), and {liger:.1f} s with Liger's layers "
        f"({liger / ours:.1f}x)"
    )


def lines() -> str:
    """Return one line of Markdown per result, with the page that has the whole table."""
    arms = files.read_json(embedded.RESULTS)["arms"]
    gains = ", ".join(f"{name} {share_text(arm['accuracy']['gain'], '+')}" for name, arm in arms.items())
    trl, known = _head_milliseconds("TRL"), _head_milliseconds("ours, known")
    steps = {row["mean_length"]: row for row in _recorded("step")["times"] if row["variant"] == "ours, rollout"}
    faster = ", ".join(f"{row['times faster than TRL']['median']:.1f}x" for row in steps.values())
    grading, pairs = _recorded("grading"), _recorded("false_positives")
    wrong = {grader: len(grading[grader]["false_positives"]) for grader in GRADERS}
    rows = [row for part in files.read_json(faults.RESULTS)["parts"].values() for row in part]
    held = sum(row["held"] for row in rows)
    return "\n".join(
        [
            f"- Held-out accuracy gained on the embedded task, three seeds: {gains} ([the demo](docs/demo.md)).",
            f"- On an H100 at rho = 0.2: LM head {known:.0f} ms where TRL's takes {trl:.0f} ms, with equal errors; "
            f"optimiser step of Qwen3-1.7B {_step_on_a_gpu()} ([GPU](docs/gpu.md)).",
            f"- Optimiser step on a CPU at rho = 0.2, two distributions of lengths: {faster} the speed of stock TRL "
            "([speed](docs/speed.md)).",
            f"- Grading: {wrong['ours']} of {grading['unequal']} wrong answers count as right (plain math-verify: "
            f"{wrong['plain math-verify']}), and {len(pairs['false_positives'])} of {pairs['told_apart']:,} pairs of "
            "a search ([grading](docs/grading.md)).",
            f"- {held} of {len(rows)} faults of machines, people and files end as they must "
            "([reliability](docs/reliability.md)).",
        ]
    )


def main() -> None:
    measure.write_block(TABLE, lines())
    print(lines())


if __name__ == "__main__":
    main()
