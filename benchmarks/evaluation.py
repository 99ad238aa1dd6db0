"""Evaluation of the embedded task like any benchmark: three models, killed evaluations, and the speed of generation.

    python -m benchmarks.evaluation            # benchmarks/results/evaluation.json, about half an hour on two cores
    python -m benchmarks.evaluation --run RUN  # with a trained run of the demo recipe instead of training one
    python -m benchmarks.evaluation --table    # only the table of the recorded results

The models are a model with random weights, the cold start, and the model that the demo recipe trains from it. Each
answers the 400 test problems 64 times. Acc@16 and Maj@16 use the first 16 answers. Finished parts are not repeated.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import GenerationConfig

from benchmarks import embedded, measure
from entropy_grpo.evaluation import questions, results
from entropy_grpo.evaluation.backends.base import Request, Sampling
from entropy_grpo.evaluation.backends.transformers import TransformersBackend
from entropy_grpo.metrics.answers import paired, summarize_samples
from entropy_grpo.metrics.tables import interval_text
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.models import load
from entropy_grpo.runs import files, plots
from entropy_grpo.tasks import cold_start

RESULTS = measure.RESULTS / "evaluation.json"
PICTURE = measure.DOCS / "figures" / "evaluation_pass_at_k.png"
RUNS = measure.ROOT / "runs" / "evaluation"
TABLE = "python -m benchmarks.evaluation --table"

NAME = embedded.TASK.name
SAMPLES, FIRST = 64, 16
SHOWN_K = (1, 4, 16, 64)
BATCH_SIZE = 256
# Sizes of the killed evaluation, and of the timed evaluation.
KILLS, FEW_SAMPLES, KILL_BATCH = 5, 2, 64
REPEATS, TIMED_QUESTIONS, TIMED_SAMPLES = 5, 64, 4


def random_model() -> Path:
    """A model with random weights and the task's tokenizer."""
    path = RUNS / "random"
    if not (path / "model.safetensors").exists():
        tokenizer = cold_start.build_tokenizer()
        tokenizer.save_pretrained(path)
        cold_start.build_model(tokenizer, 0).save_pretrained(path)
    return path


def trained_model() -> Path:
    """The run of the demo recipe, which continues after a kill."""
    path = RUNS / "trained"
    if not (path / "model.safetensors").exists():
        command = [sys.executable, "recipes/demo_cpu.yaml", "--output_dir", str(path), "--disable_tqdm", "true"]
        subprocess.run([*command, "--resume_from_checkpoint", "auto"], cwd=measure.ROOT, check=True)
    return path


def evaluate(model: str | Path, output: Path, samples: int, batch_size: int) -> subprocess.Popen:
    """Start or continue `entropy-grpo eval`."""
    command = [sys.executable, "-m", "entropy_grpo.cli", "eval", "--model", str(model), "--benchmarks", NAME]
    command += ["--backend", "transformers", "--samples", str(samples), "--batch-size", str(batch_size)]
    return subprocess.Popen([*command, "--output", str(output)], cwd=measure.ROOT)


def finish(process: subprocess.Popen) -> None:
    if process.wait() != 0:
        raise RuntimeError(f"this failed: {' '.join(process.args)}")


def first(samples: pa.Table, count: int) -> pa.Table:
    """The first samples of every question."""
    return samples.filter(pc.less(samples["sample"], count))


def compare_models(folders: dict[str, Path]) -> dict[str, Any]:
    """Metrics of the models, and the paired difference of the last two."""
    tables = {name: results.read(folder, NAME)[0] for name, folder in folders.items()}
    curves = {name: summarize_samples(results.samples_of(table))["pass@k"] for name, table in tables.items()}
    sixteen = {name: results.samples_of(first(table, FIRST)) for name, table in tables.items()}
    _, before, after = sixteen.values()
    return {
        "models": {name: summarize_samples(one) | {"pass@k": curves[name]} for name, one in sixteen.items()},
        "gain": paired(before, after),
        "num_samples": SAMPLES,
    }


def compare_killed(folder: Path) -> dict[str, Any]:
    """Compare an evaluation that is repeatedly killed with an uninterrupted evaluation."""
    alone, killed = folder / "alone", folder / "killed"
    model = load.resolve(embedded.NAME)
    finish(evaluate(model, alone, FEW_SAMPLES, KILL_BATCH))
    moments: list[int] = []
    total = len(rows_in(alone))
    for number in range(1, KILLS + 1):
        process = evaluate(model, killed, FEW_SAMPLES, KILL_BATCH)
        while process.poll() is None and len(rows_in(killed)) < total * number / (KILLS + 1):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        moments.append(len(rows_in(killed)))
    finish(evaluate(model, killed, FEW_SAMPLES, KILL_BATCH))
    keys = [(row["question"], row["sample"]) for row in rows_in(killed)]
    tables = [results.read(path, NAME)[0].drop_columns(["seconds"]) for path in (alone, killed)]
    return {
        "responses": total,
        "finished_at_kills": moments,
        "written_twice": len(keys) - len(set(keys)),
        "lost": total - len(set(keys)),
        "differing_rows": sum(a != b for a, b in zip(*(table.to_pylist() for table in tables), strict=True)),
    }


def rows_in(folder: Path) -> list[files.Row]:
    return [row for path in sorted((folder / NAME).glob("samples-*.jsonl")) for row in files.read_jsonl(path)]


def compare_speed() -> dict[str, Any]:
    """Tokens per second of the backend and of plain loops around `generate`, alternating on the same problems."""
    model, tokenizer = load.load_model(load.resolve(embedded.NAME), None, "auto")
    asked = questions.load(NAME)[1][:TIMED_QUESTIONS]
    prompts = [question.prompt for question in asked for _ in range(TIMED_SAMPLES)]
    requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts)]
    backend = TransformersBackend(model, tokenizer, len(prompts))
    written: dict[str, int] = {}

    def ours() -> None:
        responses = backend.generate(requests, Sampling(max_tokens=48))
        written["backend"] = sum(response.tokens for _, response in responses)

    def plain(name: str, batch_size: int) -> None:
        sampling = GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=48, pad_token_id=backend.pad, eos_token_id=backend.stops
        )
        total = 0
        for start in range(0, len(prompts), batch_size):
            inputs = tokenizer(prompts[start : start + batch_size], return_tensors="pt", padding=True)
            ids = inputs["input_ids"]
            with torch.inference_mode():
                out = model.generate(
                    input_ids=ids, attention_mask=inputs["attention_mask"], generation_config=sampling
                )
            total += int((out[:, ids.shape[1] :] != backend.pad).sum())
        written[name] = total

    variants = {
        "backend": ours,
        "generate, the same batch": lambda: plain("generate, the same batch", len(prompts)),
        "generate, a question at a time": lambda: plain("generate, a question at a time", TIMED_SAMPLES),
    }
    times = measure.in_turns(variants, REPEATS)
    rates = {name: [written[name] / seconds for seconds in taken] for name, taken in times.items()}
    return {
        "tokens_per_second": {name: measure.spread(of_one) for name, of_one in rates.items()},
        "times_faster": {name: measure.ratios(rates["backend"], of_one) for name, of_one in rates.items()},
    }


def table(found: dict[str, Any]) -> str:
    """The figures in Markdown."""
    names = list(found["models"])
    models = found["models"].values()
    metrics = {"Acc@16": "acc@N", "Maj@16": "maj@N", "no answer": "no_answer", "cut off": "truncated"}
    rows = [("", *names)]
    rows += [(name, *(interval_text(one[key]) for one in models)) for name, key in metrics.items()]
    rows.append(("Len@16", *(interval_text(one["len@N"], 1) for one in models)))
    rows += [(f"Pass@{k}", *(interval_text(one["pass@k"][str(k)]) for one in models)) for k in SHOWN_K]
    gain, kill, speed = found["gain"]["acc@N"], found["kill"], found["speed"]
    rate = speed["tokens_per_second"]["backend"]
    times = {name: times for name, times in speed["times_faster"].items() if name != "backend"}
    of_backend = [
        ("transformers backend on the demo's model, processor", ""),
        ("tokens per second", f"{rate['median']:.0f}"),
        *((f"times {name}", f"{t['median']:.1f} ({t['low']:.1f} to {t['high']:.1f})") for name, t in times.items()),
    ]
    lines = [
        markdown_table(rows),
        "",
        f"{names[-1]} minus {names[-2]}, question by question: Acc@16 {interval_text(gain, sign='+')}, p = "
        f"{gain['p_value']:.1g}; a difference of {gain['minimum_detectable']:.3f} would have been found four times "
        "in five.",
        "",
        f"An evaluation of {kill['responses']} responses, killed {len(kill['finished_at_kills'])} times and started "
        f"again: {kill['written_twice']} written twice, {kill['lost']} lost, {kill['differing_rows']} that differ "
        "from those of one left alone.",
        "",
        markdown_table(of_backend),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="a run of the demo recipe, instead of training one")
    parser.add_argument("--table", action="store_true", help="put the table of the recorded results into its page")
    options = parser.parse_args()
    if not options.table:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        paths = {
            "random weights": random_model(),
            "cold start": load.resolve(embedded.NAME),
            "trained": options.run or trained_model(),
        }
        folders = {name: RUNS / "results" / name.replace(" ", "-") for name in paths}
        for name, path in paths.items():
            finish(evaluate(path, folders[name], SAMPLES, BATCH_SIZE))
        with tempfile.TemporaryDirectory() as scratch:
            killed = compare_killed(Path(scratch))
        figures = compare_models(folders) | {"kill": killed, "speed": compare_speed()}
        measure.write("evaluation", "python -m benchmarks.evaluation", figures)
    recorded = files.read_json(RESULTS)
    curves = {name: one["pass@k"] for name, one in recorded["models"].items()}
    plots.pass_at_k(curves, PICTURE, "benchmarks/results/evaluation.json: 95% intervals over questions")
    measure.write_block(TABLE, table(recorded))


if __name__ == "__main__":
    main()
