"""Effect of forks on the embedded task: the sampled and the best other token are forced, then paths are sampled.

python -m benchmarks.divergence            # benchmarks/results/divergence.json, ten minutes on two cores
python -m benchmarks.divergence --draw     # only the picture and the table of the recorded results
"""

import argparse
import json
from dataclasses import asdict

from benchmarks import measure, walks
from entropy_grpo.analysis.divergence import impact, summary
from entropy_grpo.analysis.divergence.forks import Settings, divergence, find_forks
from entropy_grpo.analysis.report import figures
from entropy_grpo.evaluation.backends.transformers import TransformersBackend
from entropy_grpo.metrics import tables

RESULTS = measure.RESULTS / "divergence.json"
TABLE = "python -m benchmarks.divergence --draw"
PROBLEMS = 200
SETTINGS = Settings(rho=0.2, forks=1, continuations=32, max_tokens=walks.MAX_TOKENS, batch_size=1024)


def measured(name: str) -> dict:
    """Measure the forks of one model's responses."""
    model, tokenizer = walks.load(name)
    problems = walks.problems(PROBLEMS)
    responses = walks.write(model, tokenizer, [problem.prompt for problem in problems], seed=0)

    def grade(i, texts):
        return [walks.answer(problems[i], text) for text in texts]

    rows = []
    forks, writer = find_forks(model, responses, SETTINGS), TransformersBackend(model, tokenizer, SETTINGS.batch_size)
    for row in divergence(forks, writer, tokenizer, responses, grade, SETTINGS):
        rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        if len(rows) % 100 == 0:
            print(f"{name}: {len(rows)} forks", flush=True)
    by_group = impact.impact(rows, SETTINGS.continuations)
    return {"summary": summary.summarize(rows), "bins": summary.bins(rows), "impact": by_group, "forks": rows}


def table(results: dict) -> str:
    """The recorded means in Markdown."""
    summaries = {name: model["summary"] for name, model in results["models"].items()}
    by_group = {name: model["impact"] for name, model in results["models"].items() if "impact" in model}
    rows = [summary.table(summaries)] + ([impact.table(by_group)] if by_group else [])
    return "\n\n".join(map(tables.table, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draw", action="store_true", help="only draw what is recorded")
    if not parser.parse_args().draw:
        models = walks.of_models(measured)
        found = {"problems": PROBLEMS, "settings": asdict(SETTINGS), "models": models}
        measure.write("divergence", "python -m benchmarks.divergence", found)
    results = json.loads(RESULTS.read_text())
    figures.save(figures.divergence(results["models"]), measure.DOCS / "figures" / "divergence.png")
    measure.write_block(TABLE, table(results))
    print(table(results))


if __name__ == "__main__":
    main()
