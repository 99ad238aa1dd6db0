"""Effect of forks on an embedded task: the sampled and the best other token are forced, then paths are sampled.

python -m benchmarks.divergence                 # benchmarks/results/divergence.json, ten minutes on two cores
python -m benchmarks.divergence word_stories    # divergence_words.json
python -m benchmarks.divergence --draw          # only the picture and the table of the recorded results
"""

from dataclasses import asdict, replace

from benchmarks import embedded, measure, walks
from entropy_grpo.analysis.divergence import impact, summary
from entropy_grpo.analysis.divergence.forks import Settings, divergence, find_forks
from entropy_grpo.analysis.report import figures
from entropy_grpo.evaluation.backends.transformers import TransformersBackend
from entropy_grpo.metrics import tables
from entropy_grpo.runs import plots

RECORD = walks.Record("divergence", "--draw", "about ten minutes on two cores")
PROBLEMS = 200
SETTINGS = Settings(rho=0.2, forks=1, continuations=32, max_tokens=48, batch_size=1024)


def settings(key: str) -> Settings:
    """The settings of a task, with its own limit of a response."""
    return replace(SETTINGS, max_tokens=embedded.STUDIES[key].task.max_tokens)


def measured(key: str, name: str) -> dict:
    """Measure the forks of one model's responses to a task."""
    study = embedded.STUDIES[key]
    model, tokenizer = walks.load(study, name)
    problems = walks.problems(study.task, PROBLEMS)
    prompts = [problem.prompt for problem in problems]
    responses = walks.write(model, tokenizer, prompts, 0, study.task.max_tokens)

    def grade(i, texts):
        return [walks.answer(study.task, problems[i], text) for text in texts]

    rows = []
    chosen = settings(key)
    forks, writer = find_forks(model, responses, chosen), TransformersBackend(model, tokenizer, chosen.batch_size)
    for row in divergence(forks, writer, tokenizer, responses, grade, chosen):
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
    options = RECORD.parser(__doc__).parse_args()
    task = options.task
    if not options.only_show:
        models = walks.of_models(measured, task)
        RECORD.write(task, {"problems": PROBLEMS, "settings": asdict(settings(task)), "models": models})
    shown = {
        name if key == "number_walk" else f"{name}, {key}": model
        for key, results in RECORD.recorded().items()
        for name, model in results["models"].items()
    }
    source = f"benchmarks/results/divergence*.json: {PROBLEMS} problems of a task, 95% intervals over problems"
    plots.save(figures.divergence(shown), measure.DOCS / "figures" / "divergence.png", source)
    RECORD.write_block(task, table)


if __name__ == "__main__":
    main()
