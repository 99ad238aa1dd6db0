"""Runs side by side, on planted data: a true difference is found, a false one as often as it should be."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from matplotlib.image import imread
from scipy import stats
from transformers import TrainerState, TrainingArguments

from entropy_grpo import cli
from entropy_grpo.compare import compare, tables
from entropy_grpo.compare.compare import AVERAGE, CURVES, grouped
from entropy_grpo.compare.runs import COMPARED, read_run
from entropy_grpo.compare.sizes import WITHIN
from entropy_grpo.evaluation import results
from entropy_grpo.grading import Verdict
from entropy_grpo.metrics import answers
from entropy_grpo.metrics.seeds import difference, holm
from entropy_grpo.models.load import output_folder
from entropy_grpo.monitoring.callbacks import RunRecorder
from entropy_grpo.runs import files, plots
from entropy_grpo.runs.folder import RunFolder


def plant(path, accuracy=0.5, seed=0, problems=20, samples=4, before=None, **settings):
    """A run folder as a run leaves it, whose share of right answers is `accuracy` to 1 / (problems * samples)."""
    rng = np.random.default_rng(seed)
    (path / "answers").mkdir(parents=True)
    for when, share in (("before", before), ("after", accuracy)):
        if share is not None:
            right = rng.permutation(problems * samples) < round(share * problems * samples)
            rows = [{"prompt": f"p{i // samples}", "rewards": {"accuracy": float(r)}} for i, r in enumerate(right)]
            (path / "answers" / f"{when}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"recipe": 'r"""', "seed": seed, "output_dir": str(path)} | settings
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    summary = {
        "num_problems": problems,
        "accuracy": {"value": right.mean(), "low": 0.1, "high": 0.9},
        "mean_length": 5.0,
    }
    (path / "evaluation.json").write_text(json.dumps({"after": summary}))
    steps = [
        {"step": step, "entropy/mean": 1.0 + seed + step, "step_time": 2.0, "num_tokens": 100.0 * step}
        for step in (1, 2, 3)
    ]
    steps[2] |= {"eval_accuracy": accuracy}
    steps += [{"step": 2, "resumed_from": 2}, {"step": 3, "entropy/mean": 9.0, "step_time": 2.0, "num_tokens": 300.0}]
    steps.append({"step": 3, "peak_memory": 3 * 2**30})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    return read_run(path)


def runs_of(tmp_path, accuracies, **settings):
    name = "-".join(f"{v}" for v in settings.values())
    return [plant(tmp_path / name / str(seed), a, seed, **settings) for seed, a in enumerate(accuracies)]


def test_a_run_that_goes_on_has_no_accuracy_of_its_earlier_end(tmp_path):
    run = plant(tmp_path / "run", before=0.25)
    evaluation = files.read_json(tmp_path / "run" / "evaluation.json")
    files.write_json(tmp_path / "run" / "evaluation.json", evaluation | {"step": 3})
    assert read_run(run.path).measures == run.measures and run.measures["accuracy"]["value"] == 0.5
    files.append_jsonl(tmp_path / "run" / "metrics.jsonl", [{"step": 3, "resumed_from": 3}, {"step": 4}])
    went_on = read_run(run.path)
    assert went_on.measures == {} and went_on.answers == {} and len(went_on.held_out("before")) == 20


def test_groups_are_what_differs_but_for_the_seed(tmp_path):
    a = runs_of(tmp_path, [0.5, 0.5], rho=0.2, learning_rate=1e-4)
    b = runs_of(tmp_path, [0.5, 0.5], rho=1.0, learning_rate=1e-4)
    found = grouped([*a, *b])
    assert {label: [run.seed for run in members] for label, members in found.items()} == {
        "rho 0.2": [0, 1],
        "rho 1.0": [0, 1],
    }
    assert list(grouped(a)) == ["all"]
    c = runs_of(tmp_path, [0.5], rho=1.0, learning_rate=2e-4)
    assert list(grouped([*a, *b, *c], by="rho")) == ["rho 0.2", "rho 1.0"]
    with pytest.raises(ValueError, match=r"group-by is 'alpha', but no run's recipe sets it: name a setting\.$"):
        grouped(a, by="alpha")
    with pytest.raises(ValueError, match=r"Did you mean learning_rate\?"):
        grouped(a, by="learning_rat")
    with pytest.raises(ValueError, match=r"the same recipe and the same seed \(0\)"):
        grouped([a[0], plant(tmp_path / "again", seed=0, rho=0.2, learning_rate=1e-4)])
    with pytest.raises(ValueError, match=r"no recipe\.yaml"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("vllm_server_host", ["node7", "node8"]),
        ("hub_model_id", ["a/seed-0", "a/seed-1"]),
        ("vllm_gpu_memory_utilization", [0.3, 0.5]),
        ("gradient_checkpointing", [True, False]),
        ("dataloader_num_workers", [0, 4]),
        ("token_budget", [4096, 8192]),
        ("use_liger_kernel", [True, False]),
    ],
)
def test_seeds_on_other_machines_are_one_group(tmp_path, name, values):
    runs = [plant(tmp_path / str(seed), seed=seed, **{name: value}) for seed, value in enumerate(values)]
    assert {label: len(members) for label, members in grouped(runs).items()} == {"all": 2}
    # Runs of one seed that differ in nothing else are compared in it, for their cost.
    runs = [plant(tmp_path / f"again-{value}".replace("/", "-"), **{name: value}) for value in values]
    assert sorted(grouped(runs)) == sorted(f"{name} {value}" for value in values)


def test_a_default_that_a_recipe_names_is_the_same_setting(tmp_path):
    """The recorded training arguments have every default. Recipes of other settings remain other groups."""
    given = [{"temperature": 1.0}, {}, {"temperature": 0.7}, {"loss_type": "grpo"}]
    runs = []
    for seed, settings in enumerate(given):
        path = tmp_path / str(seed)
        plant(path, seed=seed, **settings)
        files.write_json(
            path / "environment.json", {"arguments": {"temperature": 1.0, "loss_type": "dapo"} | settings}
        )
        runs.append(read_run(path))
    assert {label: len(members) for label, members in grouped(runs[:2]).items()} == {"all": 2}
    assert {label: len(members) for label, members in grouped(runs).items()} == {
        "loss_type dapo, temperature 1.0": 2,
        "loss_type dapo, temperature 0.7": 1,
        "loss_type grpo, temperature 1.0": 1,
    }


def test_long_series_are_means_of_stretches_from_the_lowest_to_the_highest_run(tmp_path):
    rows = [
        [{"step": step, "entropy/mean": float((7 * step + 3 * seed) % 11)} for step in range(1, 51)] for seed in (0, 1)
    ]
    runs = runs_of(tmp_path, [0.5, 0.5])
    for run, log in zip(runs, rows, strict=True):
        run.steps[:] = log
    found = compare.curve(runs, "entropy/mean")
    assert list(found) == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45, 48, 50]
    for last, first in ((3, 1), (48, 46), (50, 49)):
        means = [np.mean([row["entropy/mean"] for row in log if first <= row["step"] <= last]) for log in rows]
        assert found[last] == pytest.approx({"value": np.mean(means), "low": min(means), "high": max(means)})


def test_entropies_of_rollouts_and_of_steps_are_curves_of_their_own(tmp_path):
    scored, sampler = runs_of(tmp_path, [0.5], rho=0.2) + runs_of(tmp_path, [0.5], rho=0.3)
    sampler.steps[:] = [{"step": row["step"], "step_entropy/mean": 7.0} for row in sampler.steps]
    groups = compare.compare([scored, sampler])["groups"].values()
    found = [[bool(group["curves"][f"{begin}entropy/mean"]) for begin in ("", "step_")] for group in groups]
    assert sorted(found) == [[False, True], [True, False]]


def test_values_are_means_over_seeds_with_students_interval(tmp_path):
    accuracies = [0.25, 0.5, 0.45]
    group = compare.compare(runs_of(tmp_path, accuracies, rho=0.2))["groups"]["all"]
    found = group["measures"][COMPARED]
    half = 4.302653 * np.std(accuracies, ddof=1) / math.sqrt(3)  # Student's 97.5% quantile with 2 degrees of freedom
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.4, 0.4 - half, 0.4 + half), abs=1e-6)
    assert found["over"] == "3 seeds"
    # Rows behind the checkpoint that a run went on from are void: the third step counts once.
    assert group["cost"] == {"seconds": 6.0, "tokens": 300.0, "peak_memory": 3 * 2**30}
    assert group["curves"]["entropy/mean"][1]["value"] == pytest.approx(3.0)
    assert group["curves"]["entropy/mean"][3]["value"] == 9.0
    alone = compare.compare(runs_of(tmp_path, [0.5], rho=0.3))["groups"]["all"]["measures"]
    assert alone[COMPARED] == {"value": 0.5, "low": 0.1, "high": 0.9, "over": "problems"}


def test_difference_is_paired_over_seeds_and_else_over_problems(tmp_path):
    rng = np.random.default_rng(1)
    sides = [{s: {f"p{i}": float(rng.random()) for i in range(9)} for s in (1, 2, 3, 9)} for _ in range(2)]
    del sides[1][9]
    found = difference(*sides)
    means = [[np.mean(list(side[s].values())) for s in (1, 2, 3)] for side in sides]
    expected = stats.ttest_rel(means[1], means[0])
    assert found["p_value"] == pytest.approx(expected.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval()))
    assert found["over"] == "3 seeds"
    one = difference({1: sides[0][1]}, {1: sides[1][1]})
    assert one["over"] == "9 problems" and one["value"] == pytest.approx(means[1][0] - means[0][0])
    assert difference({1: sides[0][1]}, {2: sides[1][2]}) is None


@pytest.mark.parametrize(("seeds", "problems"), [(2, 16), (2, 6), (3, 12)])
def test_false_findings_are_rare_where_seeds_have_equal_gains(seeds, problems):
    """One answer to each problem, and a few problems: the gains of two seeds are then often equal."""
    rng = np.random.default_rng(0)
    solved, found, equal = rng.beta(1, 1, (1500, 1, 1, problems)), 0, 0
    for right in (rng.random((1500, 2, seeds, problems)) < solved).astype(float):
        sides = [{s: {f"p{i}": x for i, x in enumerate(row)} for s, row in enumerate(side)} for side in right]
        test = difference(*sides)
        gains = right[1].mean(1) - right[0].mean(1)
        assert test["value"] == pytest.approx(gains.mean()) and test["low"] < test["high"] and test["p_value"] > 0
        assert test["minimum_detectable"] > 0
        equal += bool(np.ptp(gains) < 1e-9)
        found += test["p_value"] < 0.05
    assert equal > 20 and found / 1500 < 0.06


def test_equal_values_of_seeds_have_the_interval_over_problems(tmp_path):
    measures = compare.compare(runs_of(tmp_path, [0.5, 0.5], rho=0.2))["groups"]["all"]["measures"]
    assert measures[COMPARED] == {"value": 0.5, "low": 0.1, "high": 0.9, "over": "problems"}
    assert measures["mean_length"] == {"value": 5.0}


def test_runs_of_one_seed_in_a_group_count_as_their_mean(tmp_path):
    ends = {(rho, lr): [0.3 + rho, 0.5 + lr] for rho in (0.1, 0.2) for lr in (0.1, 0.3)}
    runs = [run for (rho, lr), e in ends.items() for run in runs_of(tmp_path, e, rho=rho, learning_rate=lr)]
    found = compare.compare(runs, runs[0], by="rho")["differences"]["rho 0.2"][COMPARED]
    expected = stats.ttest_rel([0.5, 0.7], [0.4, 0.7])
    assert found["over"] == "2 seeds" and found["value"] == pytest.approx(0.05)
    assert found["p_value"] == pytest.approx(expected.pvalue)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_error_rates_are_nominal_over_a_thousand_draws():
    """Three seeds with noise of their own, four groups: with no difference 5% of families have a false finding."""
    rng = np.random.default_rng(0)

    def seeds(shift):
        return {s: {f"p{i}": float(x) for i, x in enumerate(row)} for s, row in enumerate(shift + noise())}

    def noise():
        return rng.normal(0, 0.02, (3, 1)) + rng.normal(0, 0.05, (3, 6))

    single = family = found = 0
    for _ in range(1000):
        problems = rng.normal(0.5, 0.2, (1, 6)) + rng.normal(0, 0.05, (3, 1))  # a seed's own cold start is shared
        baseline = seeds(problems)
        p_values = [difference(baseline, seeds(problems))["p_value"] for _ in range(3)]
        single += p_values[0] < 0.05
        family += min(holm(p_values)) < 0.05
        true = [difference(baseline, seeds(problems + 0.25))["p_value"], *p_values[1:]]
        found += holm(true)[0] < 0.05
    assert 0.035 < single / 1000 < 0.065
    assert family / 1000 < 0.065
    assert found / 1000 > 0.8


def test_report_has_every_group_and_its_corrected_test(tmp_path):
    baseline = runs_of(tmp_path, [0.5, 0.55, 0.45], rho=1.0)
    better = runs_of(tmp_path, [0.8, 0.8, 0.75], rho=0.2)
    odd = runs_of(tmp_path, [0.5, 0.5, 0.5], rho="<b>|x`")
    found = compare.compare([*baseline, *better, *odd], baseline[0])
    assert found["baseline"] == "rho 1.0" and found["differing"] == ["rho"]
    tests = found["differences"]
    better, odd = tests["rho 0.2"][COMPARED], tests["rho <b>|x`"][COMPARED]
    assert better["p_corrected"] == pytest.approx(min(1, 2 * better["p_value"]))
    assert better["p_corrected"] < 0.05 < odd["p_corrected"]
    text, markdown = tables.as_text(found), tables.as_markdown(found)
    assert "rho 0.2" in text and "3.00" in text
    for table in (text, markdown):
        assert "held-out accuracy" in table and "mean length (tokens)" in table and "mean_length" not in table
    widths = {line.replace("\\|", "").count("|") for line in markdown.split("\n\n")[0].splitlines()}
    assert len(widths) == 1 and "<b>" not in markdown
    json.dumps(found)
    curves = {name: group["curves"] for name, group in found["groups"].items()}
    plots.comparison(curves, CURVES, tmp_path / "c.png", "a test")
    assert imread(tmp_path / "c.png").std() > 0.05


def plant_benchmark(run, correct, name="aime", **settings):
    """Results of `entropy-grpo eval --model RUN`; `correct` is a row of booleans for each question."""
    correct = np.array(correct)
    rows = [
        {"question": f"q{i}", "sample": j, "tokens": 9, "finish": "stop", "class": 0, "verdict": str(Verdict(verdict))}
        for i, row in enumerate(correct)
        for j, verdict in enumerate(np.where(row, Verdict.RIGHT, Verdict.WRONG).tolist())
    ]
    samples = pa.Table.from_pylist(rows, schema=results.SCHEMA)
    found = {"settings": {"model": str(run.path), "temperature": 1.0} | settings}
    found["metrics"] = answers.summarize_samples(results.samples_of(samples))
    results.write(output_folder(str(run.path)), name, samples, found)
    return read_run(run.path)


def test_benchmarks_of_the_runs_are_compared_in_pairs_and_in_one_family(tmp_path):
    rng = np.random.default_rng(0)
    correct = {(rho, s): rng.random((7, 3)) < 0.3 + 0.4 * (rho == 0.2) for rho in (0.2, 1.0) for s in range(3)}
    runs = [
        plant_benchmark(run, correct[rho, run.seed], **{"data_set": "a/b"} if rho == 1 else {})
        for rho in (0.2, 1.0)
        for run in runs_of(tmp_path, [0.4, 0.5, 0.6], rho=rho)
    ]
    found = compare.compare(runs, runs[-1])
    shares = {rho: [correct[rho, s].mean() for s in range(3)] for rho in (0.2, 1.0)}
    measured = found["groups"]["rho 0.2"]["measures"]["aime Acc@3"]
    interval = stats.t.interval(0.95, 2, np.mean(shares[0.2]), stats.sem(shares[0.2]))
    assert (measured["value"], measured["low"], measured["high"]) == pytest.approx((np.mean(shares[0.2]), *interval))
    tests = found["differences"]["rho 0.2"]
    assert set(tests) == {COMPARED, "aime Acc@3"} and not found["notes"]
    assert tests["aime Acc@3"]["p_value"] == pytest.approx(stats.ttest_rel(shares[0.2], shares[1.0]).pvalue)
    p_values = [tests[name]["p_value"] for name in tests]
    assert [tests[name]["p_corrected"] for name in tests] == pytest.approx(holm(p_values))
    assert "aime Acc@3" in tables.as_text(found) and "aime Acc@3" in tables.as_markdown(found)
    assert json.loads(json.dumps(tests)) == tests


def test_a_copy_of_results_is_no_step_of_the_run(tmp_path):
    run = plant(tmp_path / "run")
    metrics = {"metrics": {"num_samples": 8, "acc@N": {"value": 0.25}}}
    for name in (
        "weights-step-7",
        "weights-step-8-old",
        "weights-step-",
        "weights-step-9 (copy)",
        "old-weights-step-9",
    ):
        files.write_json(RunFolder(run.path).benchmarks / name / "livecodebench.json", metrics)
    assert [row for row in read_run(run.path).steps if "eval_livecodebench/acc@8" in row] == [
        {"step": 7, "eval_livecodebench/acc@8": 0.25}
    ]


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -2])
@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_results_that_were_cut_are_named(tmp_path, capsys, kind, kept):
    """Samples and figures, cut in a copy of the folder, at any place."""
    run = plant_benchmark(plant(tmp_path / "run"), [[True, False], [True, True]])
    file = RunFolder(run.path).benchmarks / "final" / f"aime.{kind}"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    again = plant(tmp_path / "again", seed=1)
    with pytest.raises(SystemExit):
        cli.main(["compare", str(run.path), str(again.path), "--baseline", str(run.path)])
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert str(file) in sentence and "cannot be read" in sentence and "restore it" in sentence
    with pytest.raises(ValueError, match="cannot be read"):
        results.read(file.parent, "aime")


def test_a_benchmark_of_some_runs_or_under_other_settings_is_told(tmp_path):
    runs = runs_of(tmp_path, [0.4, 0.5], rho=0.2) + runs_of(tmp_path, [0.4, 0.5], rho=1.0)
    some = [plant_benchmark(run, [[True, False], [True, True]], "amc") for run in runs[:3]]
    found = compare.compare([*some, runs[3]], runs[3])
    assert found["notes"] == [f"amc Acc@2, amc Len@2: {runs[3].path} did not measure this."]
    assert tables.NO_BASELINE not in tables.as_text(found)
    assert tables.as_text(compare.compare([*some, runs[3]])).endswith(tables.NO_BASELINE)
    assert tables.listed(["accuracy", "amc Acc@2"]) == "held-out accuracy, amc Acc@2"
    assert found["groups"]["rho 1.0"]["measures"]["amc Acc@2"]["over"] == "problems"
    # One seed in common, two questions.
    assert found["differences"]["rho 0.2"]["amc Acc@2"]["over"] == "2 problems"
    assert found["notes"][0] in tables.as_text(found)
    other = [plant_benchmark(run, [[True, False], [True, True]], "amc", temperature=0.6) for run in runs[2:]]
    found = compare.compare([*some[:2], *other], other[0])
    assert found["notes"] == ["amc Acc@2: evaluations differ in temperature, so it is not compared."]
    assert set(found["differences"]["rho 0.2"]) == {COMPARED}
    # Without the samples the share is still known.
    for path in tmp_path.rglob("amc.parquet"):
        path.unlink()
    found = compare.compare([read_run(run.path) for run in runs], other[0])
    assert found["groups"]["rho 1.0"]["measures"]["amc Acc@2"]["value"] == 0.75


def test_lengths_and_averages_stand_beside_the_accuracies(tmp_path):
    """Over the benchmarks that all runs have: a third of one run enters no average."""
    runs = runs_of(tmp_path, [0.4, 0.5], rho=0.2) + runs_of(tmp_path, [0.4, 0.5], rho=1.0)
    shares = []
    for number, run in enumerate(runs):
        aime, amc = [[True] * (number + 1) + [False] * (3 - number)], [[True, False]]
        runs[number] = plant_benchmark(plant_benchmark(run, aime, "aime") and run, amc, "amc")
        shares.append(((number + 1) / 4 + 0.5) / 2)
    runs[0] = plant_benchmark(runs[0], [[True, True]], "minerva")
    found = compare.compare(runs)["groups"]["rho 0.2"]["measures"]
    assert found["Acc@N, average over benchmarks"]["value"] == pytest.approx(np.mean(shares[:2]))
    assert found["Acc@N, average over benchmarks"]["over"] == "2 seeds"
    assert found["Len@N, average over benchmarks"]["value"] == found["aime Len@4"]["value"] == 9
    assert "9 [9, 9]" in tables.as_text(compare.compare(runs))
    alone = compare.compare(runs[:1])["groups"]["all"]["measures"]["Acc@N, average over benchmarks"]
    assert alone == {"value": pytest.approx((1 / 4 + 1 / 2 + 1) / 3)}


def test_benchmarks_that_runs_answer_while_they_train_are_drawn(tmp_path):
    runs = runs_of(tmp_path, [0.4, 0.5], rho=0.2) + runs_of(tmp_path, [0.4, 0.5], rho=1.0)
    for run in runs:
        run.steps.extend(
            {"step": step, "eval_aime24/acc@16": 0.1 * step + run.seed, "eval_aime25/acc@16": 0.3, "eval_failures": 0}
            for step in (0, 2, 4)
        )
    runs[0].steps.append({"step": 4, "eval_amc23/acc@16": 0.9})
    found = compare.compare(runs)
    labels = {key: found["curves"][key] for key in found["curves"].keys() - CURVES.keys()}
    assert labels == {
        "eval_aime24/acc@16": "aime24 Acc@16",
        "eval_aime25/acc@16": "aime25 Acc@16",
        "eval_amc23/acc@16": "amc23 Acc@16",
        compare.AVERAGE: "Acc@N, average over benchmarks",
    }
    curves = found["groups"]["rho 0.2"]["curves"]
    assert curves["eval_aime24/acc@16"][2] == pytest.approx({"value": 0.7, "low": 0.2, "high": 1.2})
    assert curves[compare.AVERAGE][4] == pytest.approx({"value": 0.6, "low": 0.35, "high": 0.85})
    assert curves["eval_amc23/acc@16"] == {} and list(curves[compare.AVERAGE]) == [0, 2, 4]
    paths = compare.write(found, tmp_path / "out")
    assert imread(paths[2]).std() > 0.05


def sized(tmp_path, size, rho, accuracies):
    """Runs of a model of `size` thousand parameters, with the environment as the trainer's callback writes it."""
    runs = []
    for seed, accuracy in enumerate(accuracies):
        path = tmp_path / f"{size}-{rho}-{seed}"
        path.mkdir()
        model = torch.nn.Linear(size, 1000, bias=False)
        model.config = SimpleNamespace(_name_or_path=f"base-{size}")
        arguments = TrainingArguments(output_dir=str(path), seed=seed, use_cpu=True)
        RunRecorder().on_train_begin(arguments, TrainerState(is_world_process_zero=True), None, model=model)
        # A cold start of each seed, as a folder; batches that follow the size.
        settings = {"model_name_or_path": f"base-{size}-{seed}", "per_device_train_batch_size": size}
        runs.append(plant(path, accuracy, seed, top_entropy_quantile=rho, **settings))
    return runs


class Params4bit(torch.nn.Parameter):
    """A weight of bitsandbytes, by whose name PEFT knows it: two elements are packed into each byte."""


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_a_run_records_whole_weights(tmp_path, storage):
    """DeepSpeed's ZeRO-3 leaves an empty tensor of a weight, and 4 bits half of its elements."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(8, 2, bias=False), torch.nn.Linear(3, 5))
    whole = sum(weight.numel() for weight in model.parameters())
    split = model[0].weight
    split.data, split.ds_numel = torch.empty(0), split.numel()
    packed = torch.zeros(8 * 2 // 2, dtype=torch.uint8)
    model[1].weight = Params4bit(packed.view(storage), requires_grad=False)
    model.config = SimpleNamespace(_name_or_path="base")
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    RunRecorder().on_train_begin(arguments, TrainerState(is_world_process_zero=True), None, model=model)
    assert files.read_json(RunFolder(tmp_path).environment)["parameters"] == whole


def test_gains_stand_against_the_size_of_the_model(tmp_path, capsys):
    """Each size is compared within itself, by the parameters that its runs recorded; batches may follow the size."""
    ends = {500: ([0.5, 0.55, 0.45], [0.45, 0.5, 0.5]), 2000: ([0.5, 0.6, 0.55], [0.8, 0.85, 0.75])}
    runs = {
        size: [sized(tmp_path, size, rho, of) for rho, of in zip((1.0, 0.2), pair, strict=True)]
        for size, pair in ends.items()
    }
    alone = sized(tmp_path, 3000, 0.2, [0.9, 0.9])  # without the baseline's arm there is no gain
    folders = [str(run.path) for arms in runs.values() for arm in arms for run in arm] + [str(r.path) for r in alone]
    out = tmp_path / "out"
    cli.main(["compare", *folders, "--baseline", folders[0], "--output", str(out)])
    written = json.loads((out / "comparison.json").read_text())
    found = written["sizes"]
    assert found["reference"] == "top_entropy_quantile 1.0"
    gains = found["gains"]["top_entropy_quantile 0.2"][COMPARED]
    assert list(gains) == ["500000", "2000000"]
    for (reference, arm), test in zip(ends.values(), gains.values(), strict=True):
        expected = stats.ttest_rel(arm, reference)
        interval = expected.confidence_interval()
        found = (test["value"], test["low"], test["high"], test["p_value"])
        assert found == pytest.approx((np.mean(arm) - np.mean(reference), *interval, expected.pvalue), abs=1e-6)
    assert [test["p_corrected"] for test in gains.values()] == pytest.approx(
        holm([t["p_value"] for t in gains.values()])
    )
    page, printed = (out / "comparison.md").read_text(), capsys.readouterr().out
    assert "![gain against size](sizes.png)" in page and "| 0.5M | -0.017" in page and "2M" in printed
    assert imread(out / "sizes.png").std() > 0.05
    # A table of differences between groups would compare models of different sizes.
    assert written["differences"] == {} and len(written["groups"]) > 2
    assert page.count("| above ") == printed.count("above ") == 1 and WITHIN in page and WITHIN in printed
    same = [run for arm in runs[500] for run in arm]
    assert "sizes" not in compare.compare(same, same[0]) and "sizes" not in compare.compare(same)
    one_arm = compare.compare([*runs[500][0], *runs[2000][0]], same[0])
    assert "sizes" not in one_arm and one_arm["differences"] == {} and WITHIN in one_arm["notes"]


def test_adapters_do_not_make_a_model_another_size(tmp_path):
    """Adapters add to the parameters that a run records; the runs still compare as runs of one model."""
    full = runs_of(tmp_path, [0.5, 0.55, 0.45], use_peft=False, model_name_or_path="base")
    lora = runs_of(tmp_path, [0.8, 0.8, 0.75], use_peft=True, model_name_or_path="base")
    for run in full:
        run.environment["parameters"] = 1000
    for run in lora:
        run.environment["parameters"] = 1064
    found = compare.compare([*lora, *full], full[0])
    assert found["differences"]["use_peft True"][COMPARED]["over"] == "3 seeds"
    assert "sizes" not in found and not found["notes"]


def test_runs_without_a_common_problem_or_seed_are_told_as_not_compared(tmp_path):
    """Problems are told apart by their whole prompts, which another template changes."""
    one, asked_otherwise = (plant(tmp_path / name, prompt_template=name) for name in ("boxed", "plain"))
    answers_path = RunFolder(asked_otherwise.path).answers("after")
    answers_path.write_text(answers_path.read_text().replace('"prompt": "p', '"prompt": "Solve p'))
    other_seed = plant(tmp_path / "seed", seed=1, prompt_template="short")
    together = plant(tmp_path / "together", accuracy=0.75, prompt_template="long")
    runs = [one, *map(read_run, (asked_otherwise.path, other_seed.path, together.path))]
    found = compare.compare(runs, one)
    assert list(found["differences"]) == ["prompt_template long"]
    assert found["notes"] == [
        f"held-out accuracy: prompt_template {name} and prompt_template boxed have no problem of a common seed, so "
        "they are not compared."
        for name in ("plain", "short")
    ]
    assert all(note in tables.as_text(found) and note in tables.as_markdown(found) for note in found["notes"])


def test_a_comparison_of_no_runs_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["compare"])
    assert end.value.code == 2 and capsys.readouterr().err == (
        "error: compare names no run: name run folders such as runs/NAME.\n"
    )


def test_command_writes_what_it_prints(tmp_path, capsys):
    folders = [str(run.path) for rho in (0.2, 1.0) for run in runs_of(tmp_path, [0.5, 0.6], rho=rho)]
    cli.main(["compare", *folders, "--baseline", folders[2], "--output", str(tmp_path / "out")])
    assert "above rho 1.0  in                 difference" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"comparison.{s}" for s in ("md", "json", "png")}
    cli.main(["compare", *folders, "--json"])
    assert set(json.loads(capsys.readouterr().out)["groups"]) == {"rho 0.2", "rho 1.0"}
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", folders[0], "--baseline", folders[1]])
    assert "not among the runs" in capsys.readouterr().err


def test_curves_have_the_benchmarks_of_kept_weights(tmp_path):
    """For benchmarks that a run cannot answer while it trains, such as programs; its own log comes first."""
    run = plant(tmp_path / "run")
    for step, value in ((40, 0.25), (120, 0.5)):
        kept = RunFolder(run.path).weights(step)
        kept.mkdir(parents=True)
        folder = output_folder(str(kept))
        for name in ("livecodebench", "aime24"):
            files.write_json(folder / f"{name}.json", {"metrics": {"num_samples": 8, "acc@N": {"value": value}}})
        files.write_json(folder / "comparison.json", {"other": {}})
    files.append_jsonl(run.path / "metrics.jsonl", [{"step": 3, "eval_aime24/acc@8": 0.75}])
    group = compare.compare([read_run(run.path)])["groups"]["all"]
    curves = {name: {step: point["value"] for step, point in curve.items()} for name, curve in group["curves"].items()}
    assert curves["eval_livecodebench/acc@8"] == {40: 0.25, 120: 0.5}
    assert curves["eval_aime24/acc@8"] == {3: 0.75}
    assert curves[AVERAGE] == {} and group["cost"]["tokens"] == 300.0


def test_benchmarks_of_kept_weights_and_of_the_log_have_an_average(tmp_path):
    run = plant(tmp_path / "run")
    for step, values in ((40, (0.25, 0.5)), (120, (0.5, 1.0))):
        kept = RunFolder(run.path).weights(step)
        kept.mkdir(parents=True)
        for name, value in zip(("livecodebench", "aime25"), values, strict=True):
            figures = {"metrics": {"num_samples": 8, "acc@N": {"value": value}}}
            files.write_json(output_folder(str(kept)) / f"{name}.json", figures)
    curves = compare.compare([read_run(run.path)])["groups"]["all"]["curves"]
    assert {step: point["value"] for step, point in curves[AVERAGE].items()} == {40: 0.375, 120: 0.75}
    logged = [{"step": 40, "eval_aime24/acc@8": 0.0}, {"step": 80, "eval_aime24/acc@8": 0.5}]
    files.append_jsonl(run.path / "metrics.jsonl", logged)
    curves = compare.compare([read_run(run.path)])["groups"]["all"]["curves"]
    assert {step: point["value"] for step, point in curves[AVERAGE].items()} == {40: 0.25}
