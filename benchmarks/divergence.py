"""Effect of forks on an embedded task: the sampled and the best other token are forced, then paths are sampled.

python -m benchmarks.divergence                 # benchmarks/results/divergence.json
python -m benchmarks.divergence word_stories    # divergence_words.json
python -m benchmarks.divergence --draw          # only the picture and the table of the recorded results

Every seed has a cold start and a trained model of its own. Means and intervals are over seeds, and Holm's method
corrects the tests of I_t and of the two differences as one family.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from benchmarks import embedded, measure, walks
from entropy_grpo.analysis.divergence import impact, summary
from entropy_grpo.analysis.divergence.forks import Settings, divergence, find_forks
from entropy_grpo.analysis.report import figures
from entropy_grpo.evaluation.backends.transformers import TransformersBackend
from entropy_grpo.metrics import tables
from entropy_grpo.metrics.seeds import correct
from entropy_grpo.runs import plots
from entropy_grpo.runs.files import Row

RECORD = walks.Record("divergence", "--draw", "about ten minutes on two quiet cores")
PROBLEMS = 200
SETTINGS = Settings(rho=0.2, forks=1, continuations=32, max_tokens=48, batch_size=1024)


def settings(key: str) -> Settings:
    """The settings of a task, with its own limit of a response."""
    return replace(SETTINGS, max_tokens=embedded.STUDIES[key].task.max_tokens)


def measured(key: str, name: str, seed: int) -> list[Row]:
    """The forks of one seed of a model in its responses to a task."""
    study = embedded.STUDIES[key]
    model, tokenizer = walks.pretrained(walks.model_path(study, name, seed))
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
            print(f"{name}, seed {seed}: {len(rows)} forks", flush=True)
    return rows


def of_model(by_seed: Sequence[list[Row]]) -> dict:
    """The means over seeds, and the forks of all seeds."""
    forks = [row | {"seed": seed} for seed, rows in zip(walks.SEEDS, by_seed, strict=True) for row in rows]
    return {
        "summary": walks.over_seeds([summary.summarize(rows) for rows in by_seed]),
        # The responses of two seeds to one question are not independent, so that the clusters are still the questions.
        "bins": summary.bins(forks),
        "impact": walks.over_seeds([impact.impact(rows, SETTINGS.continuations) for rows in by_seed]),
        "forks": forks,
    }


def tests(models: Mapping[str, dict]) -> dict[tuple[str, str, str], dict]:
    """The tests of I_t and of the differences by model, kind of fork and measure."""
    return {
        (name, kind, key): one[key]
        for name, model in models.items()
        for kind, one in model["summary"].items()
        for key in summary.DIFFERENCES
    }


def table(results: dict) -> str:
    """The recorded means in Markdown."""
    models = results["models"]
    found = tests(models)
    values = [("p, corrected", *(summary.COLUMNS[key] for key in summary.DIFFERENCES))]
    for name, kind in dict.fromkeys((name, kind) for name, kind, _ in found):
        row = (found[name, kind, key]["p_corrected"] for key in summary.DIFFERENCES)
        values.append((f"{name}, {kind}", *map(tables.p_text, row)))
    rows = [
        summary.table({name: model["summary"] for name, model in models.items()}),
        values,
        impact.table({name: model["impact"] for name, model in models.items()}),
    ]
    return "\n\n".join(map(tables.table, rows))


def main() -> None:
    options = RECORD.parser(__doc__).parse_args()
    task = options.task
    if not options.only_show:
        models = {name: of_model(by_seed) for name, by_seed in walks.of_models(measured, task).items()}
        correct(tests(models).values())
        about = {"problems": PROBLEMS, "seeds": len(walks.SEEDS), "settings": asdict(settings(task))}
        RECORD.write(task, about | {"models": models})
    shown = {
        name if key == "number_walk" else f"{name}, {key}": model
        for key, results in RECORD.recorded().items()
        for name, model in results["models"].items()
    }
    source = f"benchmarks/results/divergence*.json: {PROBLEMS} problems of a task, 95% intervals of means over seeds"
    plots.save(figures.divergence(shown), measure.DOCS / "figures" / "divergence.png", source)
    RECORD.write_block(task, table)


if __name__ == "__main__":
    main()
