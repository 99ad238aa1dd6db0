"""What a fork decides on the embedded task: the sampled and the best other token forced, and paths sampled after each.

python -m benchmarks.divergence            # benchmarks/results/divergence.json and .png, ten minutes on two cores
python -m benchmarks.divergence --draw     # only the picture and the table of the recorded results
"""

import argparse
import itertools
import json
from dataclasses import asdict

import numpy as np
from matplotlib.figure import Figure

from benchmarks import measure, walks
from entropy_grpo.analysis.divergence import HIGH, LOW, Settings, divergence, summarize
from entropy_grpo.card_results import share_text
from entropy_grpo.evaluation.intervals import gain_interval

RESULTS = measure.RESULTS / "divergence.json"
PAGE = measure.ROOT / "docs" / "entropy.md"
TABLE = "python -m benchmarks.divergence --draw"
PROBLEMS = 200
SETTINGS = Settings(rho=0.2, forks=1, continuations=32, max_tokens=walks.MAX_TOKENS, batch_size=1024)
# Of entropy in nats; half of the tokens lie below the first.
EDGES = (0.0, 0.01, 0.1, 0.4, 0.7, 0.9, 1.0, 1.1, np.inf)
COLUMNS = {
    "accuracy": "accuracy after the sampled token",
    "other_accuracy": "after the other",
    "intervention": "I_t",
    "distance": "edit distance beyond chance",
    "changed": "answers changed beyond chance",
}


def measured(name: str) -> dict:
    """The forks of one model's responses."""
    model, tokenizer = walks.load(name)
    problems = walks.problems(PROBLEMS)
    responses = walks.write(model, tokenizer, [problem.prompt for problem in problems], seed=0)

    def grade(i, texts):
        return [walks.answer(problems[i], text) for text in texts]

    rows = []
    for row in divergence(model, tokenizer, responses, grade, SETTINGS):
        rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        if len(rows) % 100 == 0:
            print(f"{name}: {len(rows)} forks", flush=True)
    return {"summary": summarize(rows), "bins": bins(rows), "forks": rows}


def bins(rows: list[dict]) -> list[dict]:
    """Mean I_t by entropy, with intervals whose clusters are the responses."""
    found = []
    for low, high in itertools.pairwise(EDGES):
        mine = [row for row in rows if low <= row["entropy"] < high]
        if len(mine) < 10:
            continue
        cluster = np.unique([row["response"] for row in mine], return_inverse=True)[1]
        forks = np.bincount(cluster)
        sides = (np.bincount(cluster, [row[side] for row in mine]) for side in ("other_accuracy", "accuracy"))
        entropy = float(np.mean([row["entropy"] for row in mine]))
        found.append({"entropy": entropy, "forks": len(mine), "intervention": gain_interval(*sides, forks, forks)})
    return found


def draw(results: dict) -> Figure:
    """I_t against entropy, a panel for each model."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, len(results["models"]), sharey=True)
    for axes, (name, model) in zip(panels, results["models"].items(), strict=True):
        for kind, colour in ((HIGH, "tab:red"), (LOW, "tab:blue")):
            mine = [row for row in model["forks"] if row["kind"] == kind]
            x, y = ([row[key] for row in mine] for key in ("entropy", "intervention"))
            axes.plot(x, y, ".", color=colour, alpha=0.25, label=f"{kind} entropy, one fork a response")
        x = [part["entropy"] for part in model["bins"]]
        values = np.array(
            [[part["intervention"][key] for key in ("value", "low", "high")] for part in model["bins"]]
        ).T
        axes.errorbar(
            x, values[0], yerr=[values[0] - values[1], values[2] - values[0]], fmt="ko-", capsize=3, label="mean"
        )
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(title=name, xlabel="entropy (nats)")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="intervention $I_t$")
    panels[-1].legend(fontsize="small")
    return figure


def table(results: dict) -> str:
    """The recorded means in Markdown."""
    lines = [f"| model | entropy | mean | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 3) + "|"]
    for name, model in results["models"].items():
        for kind, summary in model["summary"].items():
            cells = [
                share_text(summary[key], "+" if key in ("intervention", "distance", "changed") else "")
                for key in COLUMNS
            ]
            lines.append(f"| {name} | {kind} | {summary['entropy']:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draw", action="store_true", help="only draw what is recorded")
    if not parser.parse_args().draw:
        figures = {"problems": PROBLEMS, "settings": asdict(SETTINGS)}
        figures["models"] = walks.of_models(measured)
        measure.write("divergence", "python -m benchmarks.divergence", figures)
    results = json.loads(RESULTS.read_text())
    draw(results).savefig(RESULTS.with_suffix(".png"), dpi=120)
    measure.write_readme(TABLE, table(results), PAGE)
    print(table(results))


if __name__ == "__main__":
    main()
