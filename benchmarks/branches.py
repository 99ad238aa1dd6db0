"""Entropy at forks after supervised training and after RL, from one start (arXiv 2506.01939, Discussion 1).

    python -m benchmarks.branches                 # the number walk: missing parts, then record, draw and tabulate
    python -m benchmarks.branches word_stories    # the word stories
    python -m benchmarks.branches --table         # only the table and the plot of the recorded results

Both branches begin with the same cold start, and have the same learning rate, optimiser steps and responses per step.
One imitates the start's own right responses (rejection sampling), each once. The other is trained by RL on all tokens.
Every checkpoint scores the same responses of the start to test problems, and answers test problems itself. Which
tokens are forks is known from the task. A finished part is not repeated, and an interrupted run continues.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import arms, embedded, measure, walks
from entropy_grpo.evaluation.decoding.forked import entropies
from entropy_grpo.metrics.answers import pass_curve
from entropy_grpo.metrics.intervals import gain_interval
from entropy_grpo.metrics.seeds import correct, over_seeds
from entropy_grpo.metrics.tables import interval_text
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import files, plots
from entropy_grpo.runs.folder import RunFolder, step_of
from entropy_grpo.runs.trained import cost
from entropy_grpo.tasks import word_stories

START, SFT, RL = BRANCHES = ("start", "SFT", "RL")
# Settings that both branches share.
RATE, BATCH = "1.0e-4", 32
DRAWN_AT_ONCE = 512
PERCENTILES = (50, 90, 95, 99)
DECISIONS, WORDING, OTHER = "decisions", "wording", "other tokens"
PLOT = measure.DOCS / "figures" / "branches.png"
CAPTION = "entropy at decisions, elsewhere, and against accuracy"
PICTURES = {task: {CAPTION: "figures/branches.png"} for task in embedded.STUDIES}
RECORD = walks.Record("branches", "--table", "about 20 minutes on two cores, cold starts apart", PICTURES)


@dataclass(frozen=True)
class Sizes:
    """Optimiser steps (None for those of the demo's recipe), seeds, and test problems with their answers each."""

    steps: int | None = None
    seeds: int = 3
    problems: int = 256
    samples: int = 8


# Forks


def walk_groups(tokens: Sequence[str]) -> list[str]:
    """The group of each token of a number walk. A decision is the move after `take`."""
    before = [""] + [token.strip() for token in tokens[:-1]]
    return [DECISIONS if word == "take" else OTHER for word in before]


def _first(*forms: str) -> set[str]:
    return {form.split()[0] for form in forms}


DECIDING = _first(*(form for forms in word_stories.OPERATIONS.values() for form in forms))
FREE = _first(*word_stories.OPENINGS, *word_stories.CONNECTIVES, *word_stories.REASONS, word_stories.WAIT)
FREE |= _first(*word_stories.RESULTS, *word_stories.ENDINGS)


def story_groups(tokens: Sequence[str]) -> list[str]:
    """The group of each token of a word story: its decisions, and the free choice of connectives and of `wait`."""
    words = [token.strip() for token in tokens]
    groups = []
    for before, word in zip(["", *words[:-1]], words, strict=True):
        # `that` begins a result, but follows from `after`.
        free = word in FREE and (before, word) != ("after", "that")
        groups.append(DECISIONS if word in DECIDING else WORDING if free else OTHER)
    return groups


GROUPS = {"number_walk": walk_groups, "word_stories": story_groups}


# Parts of a run


def folder(task: str, seed: int, sizes: Sizes) -> Path:
    """The folder of a seed's parts."""
    name = f"{task}-{steps_of(task, sizes)}x{sizes.problems}x{sizes.samples}"
    return measure.ROOT / "runs" / "branches" / name / f"seed{seed}"


def steps_of(task: str, sizes: Sizes) -> int:
    """Optimiser steps of a branch."""
    return embedded.max_steps(embedded.STUDIES[task]) if sizes.steps is None else sizes.steps


def draw_right(task: str, seed: int, count: int, path: Path) -> None:
    """Write the start's right responses to `count` different training problems, one each, sampled at temperature 1."""
    if path.exists():
        return
    study = embedded.STUDIES[task]
    model, tokenizer = walks.pretrained(study.task.model(seed))
    stream = study.task.problems("train", 1000 + seed)  # not the stream of the demonstrations
    rows: list[dict[str, str]] = []
    drawn = 0
    while len(rows) < count:
        problems = [next(stream) for _ in range(DRAWN_AT_ONCE)]
        prompts = [problem.prompt for problem in problems]
        paths = walks.write(model, tokenizer, prompts, seed=drawn, max_tokens=study.task.max_tokens)
        drawn += len(problems)
        for problem, (_, ids) in zip(problems, paths, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            if ids[-1] == tokenizer.eos_token_id and walks.answer(study.task, problem, text)[1]:
                rows.append({"prompt": problem.prompt, "response": text, "solution": problem.solution})
        print(f"{task}, seed {seed}: {len(rows)} right of {drawn} responses", flush=True)
    files.replace_jsonl(path, rows[:count])


def sft_settings(task: str, seed: int, steps: int, place: Path, responses: Path) -> dict[str, Any]:
    """Settings of the supervised branch, with the optimiser of the RL recipe."""
    return {
        "trainer": "sft",
        "accelerate_config": "accelerate_configs/cpu.yaml",
        "model_name_or_path": str(embedded.STUDIES[task].task.model(seed)),
        "dataset_name": str(responses),
        "max_length": None,
        "max_steps": steps,
        "responses_per_step": BATCH,
        "per_device_train_batch_size": BATCH,
        "learning_rate": float(RATE),
        "lr_scheduler_type": "constant",
        "save_steps": max(steps // 4, 1),
        "seed": seed,
        "output_dir": str(place),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 10,
        "report_to": "none",
    }


def train(task: str, branch: str, seed: int, sizes: Sizes) -> Path:
    """Train a branch with a checkpoint after each quarter, or continue it, and return its folder."""
    place, steps = folder(task, seed, sizes) / branch, steps_of(task, sizes)
    if (place / "model.safetensors").exists():
        return place
    common = ["--resume_from_checkpoint", "auto", "--disable_tqdm", "true"]
    if branch == SFT:
        responses, recipe = place.with_name("right.jsonl"), place.with_name("sft.yaml")
        draw_right(task, seed, steps * BATCH, responses)
        files.write_text(recipe, yaml.safe_dump(sft_settings(task, seed, steps, place, responses)))
        words = ["-m", "entropy_grpo.launch", str(recipe), *common]
    else:
        words = [embedded.STUDIES[task].recipe, *common, "--top_entropy_quantile", "1.0", "--learning_rate", RATE]
        words += ["--max_steps", str(steps), "--save_steps", str(max(steps // 4, 1)), "--eval_strategy", "no"]
        words += ["--num_dev_problems", "0", "--num_test_problems", "0", "--seed", str(seed)]
        words += ["--output_dir", str(place)]
    arms.call(place.with_name(f"{branch}.log"), *words)
    return place


@torch.inference_mode()
def score(model, paths: Sequence[walks.SequencePair]) -> list[np.ndarray]:
    """Entropy in nats, float32, of each token of each response."""
    found = []
    for start in range(0, len(paths), 128):
        part = paths[start : start + 128]
        whole = [torch.tensor(prompt + ids) for prompt, ids in part]
        batch = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in whole], batch_first=True)
        logits = model(input_ids=batch, attention_mask=mask).logits
        for (prompt, ids), row in zip(part, logits, strict=True):
            found.append(entropies(row[len(prompt) - 1 : len(prompt) + len(ids) - 1]).numpy())
    return found


def by_group(
    task: str, tokenizer, paths: Sequence[walks.SequencePair], scores: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Number, mean and percentiles of the entropies of all tokens and of each group."""
    names = [name for _, ids in paths for name in GROUPS[task](tokenizer.convert_ids_to_tokens(ids))]
    values, groups = np.concatenate(scores), np.array(names)
    found = {}
    for name in ("all tokens", DECISIONS, WORDING, OTHER):
        chosen = values if name == "all tokens" else values[groups == name]
        if len(chosen):
            marks = zip(PERCENTILES, np.percentile(chosen, PERCENTILES), strict=True)
            found[name] = {"tokens": len(chosen), "mean": float(chosen.mean())}
            found[name] |= {f"p{percentile}": float(value) for percentile, value in marks}
    return found


def answers(
    study: embedded.Study, model, tokenizer, sizes: Sizes
) -> tuple[dict[str, float], list[walks.SequencePair]]:
    """(accuracy, Pass@k for k = 1, 2, 4, ..., right choices) on test problems, and the first response to each."""
    task = study.task
    problems = walks.problems(task, sizes.problems)
    prompts = [problem.prompt for problem in problems]
    drawn = [walks.write(model, tokenizer, prompts, seed, task.max_tokens) for seed in range(sizes.samples)]
    right, choices = np.zeros((sizes.problems, sizes.samples), bool), np.zeros(2)
    for sample, paths in enumerate(drawn):
        for i, (problem, (_, ids)) in enumerate(zip(problems, paths, strict=True)):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            right[i, sample] = walks.answer(task, problem, text)[1]
            choices += task.choices({"prompt": problem.prompt, "completion": text})
    curve = pass_curve(right).mean(1)
    ks = [k for k in (1, 2, 4, 8, 16, 32) if k <= sizes.samples]
    figures = {"accuracy": float(right.mean()), "good_choices": float(choices[0] / choices[1])}
    return figures | {f"pass@{k}": float(curve[k - 1]) for k in ks}, drawn[0]


def measured(task: str, path: Path, seed: int, sizes: Sizes, record: Path) -> None:
    """Measure a model, unless its record is there."""
    if record.exists():
        return
    study = embedded.STUDIES[task]
    model, tokenizer = walks.pretrained(path)
    figures, own = answers(study, model, tokenizer, sizes)
    common = files.read_json(folder(task, seed, sizes) / "common.json").get("paths") or own
    figures["common responses"] = by_group(task, tokenizer, common, score(model, common))
    figures["own responses"] = by_group(task, tokenizer, own, score(model, own))
    if path == study.task.model(seed):
        files.write_json(folder(task, seed, sizes) / "common.json", {"paths": common})
    files.write_json(record, figures)


def part(task: str, branch: str, seed: int, sizes: Sizes) -> None:
    """Make a branch of a seed with the records of its checkpoints; the start's record has step 0."""
    torch.set_num_threads(1)
    records = folder(task, seed, sizes) / "records"
    if branch == START:
        measured(task, embedded.STUDIES[task].task.model(seed), seed, sizes, records / f"{START}-0.json")
        return
    for path in sorted(train(task, branch, seed, sizes).glob("checkpoint-*")):
        measured(task, path, seed, sizes, records / f"{branch}-{step_of(path.name)}.json")
    print(f"done  {task}, seed {seed}, {branch}", flush=True)


# Summary


def flat(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of nested figures, by the names on their way."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def summary(task: str, sizes: Sizes) -> dict[str, Any]:
    """Mean and Student's t interval over seeds of every figure, by branch and step, and SFT minus RL in pairs."""
    seeds = range(sizes.seeds)
    every = [{path.stem: flat(files.read_json(path)) for path in records(task, seed, sizes)} for seed in seeds]
    models = {}
    for name in every[0]:
        values = {key: [one[name][key] for one in every] for key in every[0][name] if not key.endswith("/tokens")}
        branch, _, step = name.rpartition("-")
        models.setdefault(branch, {})[step] = {
            key: over_seeds(rows) | {"by_seed": rows} for key, rows in values.items()
        }
    last = str(steps_of(task, sizes))
    pairs = {
        key: over_seeds([a - b for a, b in zip(one["by_seed"], models[RL][last][key]["by_seed"], strict=True)])
        for key, one in models[SFT][last].items()
    }
    tokens = {
        branch: [cost(files.read_steps(RunFolder(folder(task, seed, sizes) / branch).metrics)) for seed in seeds]
        for branch in (SFT, RL)
    }
    return {
        "sizes": asdict(sizes) | {"steps": int(last), "responses": int(last) * BATCH},
        "tokens": {branch: [one["tokens"] for one in costs] for branch, costs in tokens.items()},
        "learning_rate": RATE,
        "models": models,
        "sft_minus_rl": pairs,
    }


def records(task: str, seed: int, sizes: Sizes) -> list[Path]:
    """The records of a seed by branch and step."""
    paths = (folder(task, seed, sizes) / "records").glob("*.json")
    return sorted(paths, key=lambda path: (BRANCHES.index(path.stem.rpartition("-")[0]), int(path.stem.split("-")[1])))


def run_all(task: str, sizes: Sizes, jobs: int) -> dict[str, Any]:
    """Run all missing parts and summarise them."""
    os.environ["OMP_NUM_THREADS"] = "1"
    seeds = range(sizes.seeds)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for branches in ((START,), (RL, SFT)):
            waiting = [pool.submit(part, task, branch, seed, sizes) for branch in branches for seed in seeds]
            for one in waiting:
                one.result()
    return summary(task, sizes)


def table(found: Mapping[str, Any]) -> str:
    """The recorded figures in Markdown: accuracies and mean entropies with intervals, and percentiles by group."""
    samples = found["sizes"]["samples"]
    groups = [name for name in (DECISIONS, WORDING, OTHER) if f"common responses/{name}/mean" in last(found, RL)]
    heads = ["", "accuracy", f"Pass@{samples}", "good choices", *(f"entropy, {name}" for name in groups)]
    rows, marks = [heads], [["", "tokens", "mean", *(f"p{p}" for p in PERCENTILES)]]
    keys = ["accuracy", f"pass@{samples}", "good_choices", *(f"common responses/{name}/mean" for name in groups)]
    for branch in BRANCHES:
        for step, one in found["models"][branch].items():
            label = branch if branch == START else f"{branch}, step {step}"
            rows.append([label, *(interval_text(one[key]) for key in keys)])
    rows.append(["SFT minus RL, last step", *(interval_text(found["sft_minus_rl"][key], sign="+") for key in keys)])
    rows.append(["p, corrected", *(f"{test['p_corrected']:.2f}" for test in tests(found, keys))])
    for branch in BRANCHES:
        for name in ("all tokens", *groups):
            one = last(found, branch)
            values = [
                one[f"common responses/{name}/{key}"]["value"] for key in ("mean", *(f"p{p}" for p in PERCENTILES))
            ]
            marks.append([branch, name, *(f"{value:.3f}" for value in values)])
    return f"{markdown_table(rows)}\n\n{markdown_table(marks)}"


def tests(found: Mapping[str, Any], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Tests of SFT minus RL at the last step, paired by seed, with Holm's correction over these figures."""
    sides = [[last(found, branch)[key]["by_seed"] for branch in (RL, SFT)] for key in keys]
    family = [gain_interval(*pair, bounded=False) for pair in sides]
    correct(family)
    return family


def last(found: Mapping[str, Any], branch: str) -> Mapping[str, Any]:
    """Figures of the last step of a branch."""
    steps = found["models"][branch]
    return steps[max(steps, key=int)]


def bars(axes: Axes, points: Sequence[tuple[Any, Mapping[str, float]]], style: Mapping[str, Any]) -> None:
    """Draw values with their intervals. A point's place is a number, or a value with an interval of its own."""
    places = [
        place if isinstance(place, Mapping) else dict.fromkeys(("value", "low", "high"), place) for place, _ in points
    ]
    sides = [
        [[one["value"] - one["low"] for one in side], [one["high"] - one["value"] for one in side]]
        for side in (places, [value for _, value in points])
    ]
    x, y = [one["value"] for one in places], [value["value"] for _, value in points]
    axes.errorbar(x, y, xerr=sides[0], yerr=sides[1], capsize=3, markersize=5, elinewidth=0.8, **style)


def draw(recorded: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot, for each task, entropy at decisions and elsewhere over the steps, and at decisions against accuracy."""
    figure = Figure(figsize=(9.6, 3.3 * len(recorded) + 0.3), layout="constrained")
    rows = figure.subplots(len(recorded), 3, squeeze=False)
    for (task, found), panels in zip(recorded.items(), rows, strict=True):
        for i, branch in enumerate((SFT, RL)):
            style = {"label": branch, **plots.style(i)}
            models = found["models"][START] | found["models"][branch]
            beside = 0.02 * i * max(map(int, models))  # so that no bar hides another
            for panel, group in zip(panels, (DECISIONS, OTHER), strict=False):
                points = [(int(step) + beside, one[f"common responses/{group}/mean"]) for step, one in models.items()]
                bars(panel, points, style)
                panel.set(xlabel="optimiser step", ylabel=f"mean entropy of {group} (nats)")
            key = f"common responses/{DECISIONS}/mean"
            bars(panels[2], [(one["accuracy"], one[key]) for one in models.values()], style)
            panels[2].set(xlabel="accuracy", ylabel=f"mean entropy of {DECISIONS} (nats)")
        panels[0].set_title(task.replace("_", " "), loc="left")
        for panel in panels:
            panel.grid(alpha=0.3)
            panel.set_ylim(bottom=0)
    handles, names = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


def main() -> None:
    parser = RECORD.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=embedded.JOBS, help="parts at a time, one thread each")
    for name, value in asdict(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=value, help="of a trial, which is printed and not recorded")
    options = parser.parse_args()
    sizes = Sizes(**{name: getattr(options, name) for name in asdict(Sizes())})
    if not options.only_show:
        found = run_all(options.task, sizes, options.jobs)
        if sizes != Sizes():
            print(table(found))
            return
        RECORD.write(options.task, found)
    if recorded := RECORD.recorded():
        plots.save(draw(recorded), PLOT, "benchmarks/results/branches*.json: 95% intervals over seeds")
    RECORD.write_block(options.task, table)


if __name__ == "__main__":
    main()
