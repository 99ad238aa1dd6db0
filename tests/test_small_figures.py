"""Figures of the embedded tasks' entropy: the paper's order, against loops over tokens, and means over seeds."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import figures, measure
from entropy_grpo import cli
from entropy_grpo.analysis.report import run

from .test_report import synthetic

TEXTS = ["7", " so", "Wait", " the", "x", "+", " if", "=", " we", "12"]
STEPS = ["step 40", "step 80"]


@pytest.fixture
def places(tmp_path, monkeypatch):
    with monkeypatch.context() as root:
        root.setattr(measure, "ROOT", tmp_path)
        return figures.Places("number_walk", 1)


def test_the_last_step_answers_and_every_checkpoint_of_its_seed_scores_its_answers(places, monkeypatch):
    commands = []
    monkeypatch.setattr(figures.subprocess, "run", lambda command, **_: commands.append(list(map(str, command))))
    monkeypatch.setattr(figures.walks, "model_path", lambda study, name, seed: Path(name) / str(seed))
    monkeypatch.setattr(figures, "random_model", lambda places: Path("random"))
    figures.prepare(places)
    train, *collects = commands
    assert train[train.index("--seed") + 1] == "1" and train[train.index("--save_steps") + 1] == "40"
    asked = [cli.checked(cli.parse(command[3:])[0].view, cli.CollectOptions) for command in collects]
    by_folder = {one.output: one for one in asked}
    over_training, cold = by_folder[places.run.analysis], by_folder[places.own[figures.COLD]]
    assert over_training.model == "cold start=cold start/1" and over_training.answered_by == "step 240"
    assert over_training.against == [
        f"step {n}={places.run.path}/checkpoint-{n}" for n in (40, 80, 120, 160, 200, 240)
    ]
    # The words, categories and updates of the cold start are those of its own answers.
    assert cold.answered_by is None and cold.against == over_training.against[-1:]
    assert {one.seed for one in asked} == {1} and len(asked) == 3


def collected(places):
    """Reports of synthetic tokens in the folders of a seed."""
    kept = {
        places.run.analysis: [figures.COLD, *STEPS],
        places.own[figures.COLD]: [figures.COLD, STEPS[-1]],
        places.own[figures.RANDOM]: [figures.RANDOM],
    }
    found = {}
    for folder, names in kept.items():
        folder.mkdir(parents=True)
        found[folder] = synthetic(folder, TEXTS, names)
        run.write(places.run.path if folder == places.run.analysis else folder)
    return found[places.run.analysis]


def test_positions_and_bins_are_those_of_the_cold_start(places):
    collection = collected(places)
    first, *others = (collection.column(name, "entropy").astype(float).tolist() for name in (figures.COLD, *STEPS))
    found, n = figures.of_seed(places), len(first)

    def top(entropy):
        return set(sorted(range(n), key=lambda i: -entropy[i])[: math.ceil(n / 5)])

    shared = [len(top(first) & top(other)) / math.ceil(n / 5) for other in others]
    assert list(found["overlaps"]["all"].values()) == pytest.approx(shared)
    order = sorted(range(n), key=lambda i: first[i])
    for number, places_of in enumerate(np.array_split(order, 20)):
        row = found["changes"]["all"][number]
        assert row["entropy"] == pytest.approx(np.mean([first[i] for i in places_of]))
        assert row["change"] == pytest.approx(np.mean([others[-1][i] - first[i] for i in places_of]))
    own = found["own responses"]
    assert own[figures.TRAINED]["mean"] == pytest.approx(np.mean(others[-1])) and own[figures.COLD]["tokens"] == n


def of_a_seed(seed):
    """Figures of one seed as by `of_seed`, with a category that one seed lacks, and one that the last step lacks."""
    rng = np.random.default_rng(seed)
    kinds = ["formal reasoning", *(["metacognitive"] if seed < 2 else [])]
    one = {
        "tokens": 100 + seed,
        "mean": rng.random(),
        "share_below_0.01": rng.random(),
        "held_by_top_20": rng.random(),
        "percentiles": {"80": rng.random()},
        "categories": {kind: {"tokens": 50, "share": rng.random(), "entropy": rng.random()} for kind in kinds},
    }
    return {
        "own responses": dict.fromkeys((figures.RANDOM, figures.COLD, figures.TRAINED), one)
        | {
            figures.COLD: one
            | {"categories": one["categories"] | {"logical structuring": one["categories"][kinds[0]]}}
        },
        "overlaps": {"all": {step: rng.random() for step in STEPS}},
        "changes": {"all": [{"entropy": i / 10, "change": rng.normal(i / 10)} for i in range(20)]},
        "category_changes": {
            kind: {"entropy": rng.random(), "probability": rng.random()} for kind in (*kinds, "logical structuring")
        },
    }


def test_tables_have_means_over_seeds_and_corrected_tests():
    by_seed = [of_a_seed(seed) for seed in range(3)]
    found = figures.of_seeds(by_seed)
    text = figures.table(found | {"pictures": []})
    lines = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.split("\n")
        if "|" in line
    }
    values = np.array([one["overlaps"]["all"][STEPS[-1]] for one in by_seed])
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert lines["all responses"][-1] == f"{values.mean():.1%} [{low:.1%}, {high:.1%}]"
    assert lines[figures.COLD][0] == "303" and "formal reasoning" in lines
    assert not lines.keys() & {"metacognitive", "logical structuring"}
    assert "The last step answers" in text and "above 86%" in text
    changes = np.array([[row["change"] for row in one["changes"]["all"]] for one in by_seed])[:, 10:]
    p_values = stats.ttest_1samp(changes, 0).pvalue
    order = np.argsort(p_values)
    corrected = np.maximum.accumulate(np.minimum(p_values[order] * np.arange(10, 0, -1), 1))
    assert [found["tests"][i]["p_corrected"] for i in order] == pytest.approx(corrected)
    assert lines["95 to 100"][-1] == f"{found['tests'][-1]['p_corrected']:.3f}"


def test_recorded_figures_of_one_run_are_shown_without_the_papers_overlap():
    one = of_a_seed(0) | {"pictures": []}
    text = figures.table(one)
    assert f"{one['overlaps']['all'][STEPS[0]]:.1%} |" in text
    assert "The cold start answers" in text and "86%" not in text and "corrected" not in text
