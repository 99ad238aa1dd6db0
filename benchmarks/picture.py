"""The README's picture: responses with their forks coloured, beside what training on them does.

    python -m benchmarks.picture            # asks the cold start; results/picture.json, docs/figures/forks.png
    python -m benchmarks.picture --table    # only draws the recorded responses

The curves are those of `make reproduce-tiny`.
"""

import argparse
from itertools import islice, takewhile
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import experiments, measure
from entropy_grpo.objective.selection import select
from entropy_grpo.runs import files, plots
from entropy_grpo.tasks import registry

COMMAND = "python -m benchmarks.picture"
RESULTS = measure.RESULTS / "picture.json"
PICTURE = measure.DOCS / "figures" / "forks.png"
RHO, RESPONSES = 0.2, 4
ARMS = {"rho = 0.2": "top 20%", "rho = 1.0": "all tokens", "bottom 0.8": "bottom 80%"}
SHOWN, LINE, ROW = 3, 62, 0.08  # responses in the picture, characters of a line, height of a line


def measure_responses() -> dict[str, Any]:
    """Return tokens, entropies and kept marks of one response to each of a few problems."""
    task = registry.load("embedded:number_walk")
    path = task.model(0)
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    prompts = [problem.prompt for problem in islice(task.problems("test", 0), RESPONSES)]
    torch.manual_seed(0)
    rows, entropies = [], []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        start = ids["input_ids"].shape[1]
        sequence = model.generate(**ids, do_sample=True, max_new_tokens=48, pad_token_id=tokenizer.pad_token_id)
        with torch.no_grad():
            log_p = model(sequence).logits[0, start - 1 : -1].float().log_softmax(-1)
        entropies.append(-(log_p.exp() * log_p).sum(-1))
        tokens = [tokenizer.decode(i) for i in sequence[0, start:] if i != tokenizer.eos_token_id]
        rows.append({"prompt": prompt.strip(), "tokens": tokens})
    scores = torch.cat(entropies)
    kept, threshold = select(scores, torch.ones_like(scores), RHO, torch.arange(len(scores)))
    for row, own, marks in zip(rows, entropies, kept.split([len(e) for e in entropies]), strict=True):
        row |= {"entropies": [round(value, 4) for value in own.tolist()], "kept": marks.int().tolist()}
    return {"rho": RHO, "threshold": threshold, "responses": rows}


def draw_responses(axes: Axes, responses: list[dict[str, Any]]) -> None:
    """Write the tokens in lines. A kept token has a ground that is darker for a higher entropy, and a frame."""
    axes.axis("off")
    y, highest = 1.0, max(max(row["entropies"]) for row in responses)
    for row in responses:
        axes.text(0, y, row["prompt"], family="monospace", fontsize=8.5, color="0.45", va="top")
        y -= ROW
        column = 0
        for i, (token, entropy, kept) in enumerate(zip(row["tokens"], row["entropies"], row["kept"], strict=False)):
            joined = takewhile(lambda following: following[0] != " ", row["tokens"][i + 1 :])
            if token[0] == " " and column + len(token) + sum(map(len, joined)) > LINE:
                y, column = y - ROW, 0
                token = token.lstrip()
            blank = len(token) - len(token.lstrip())
            place = (column + blank) / LINE
            share = entropy / highest
            # A box that is wider than its text would cover a neighbour that no blank separates.
            box = {
                "boxstyle": f"round,pad={0.15 if blank or not column else 0}",
                "facecolor": (1, 1 - 0.35 * share, 1 - 0.85 * share),
                "lw": 0.8,
            }
            axes.text(
                *(place, y, token.strip()),
                family="monospace",
                fontsize=8.5,
                va="top",
                weight="bold" if kept else "normal",
                bbox=box if kept else None,
            )
            column += len(token)
        y -= 1.6 * ROW
    axes.set_xlim(0, 1)
    axes.set_ylim(y + ROW, 1.02)


def draw_curves(axes: Axes, recorded: dict[str, Any]) -> None:
    """Draw held-out accuracy over the steps, and at the end its interval over the seeds."""
    for number, (arm, label) in enumerate(ARMS.items()):
        look = plots.style(number)
        curve = recorded["arms"][arm]["curves"]["eval_accuracy"]
        steps, values = [int(step) for step in curve], experiments.means(curve)
        end = recorded["arms"][arm]["measures"]["accuracy"]
        bar = [[end["value"] - end["low"]], [end["high"] - end["value"]]]
        axes.plot(steps, values, markersize=4, label=label, **look)
        place = steps[-1] + 14 + 12 * list(ARMS).index(arm)
        ends = {"color": look["color"], "marker": look["marker"]}
        axes.errorbar([place], [end["value"]], bar, markersize=3.5, capsize=2, **ends)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("held-out accuracy")
    axes.legend(title="trained on", fontsize=8, title_fontsize=8, loc="upper left")
    axes.grid(alpha=0.3)
    axes.set_title("training on them: three seeds, 95% intervals", fontsize=9)


def draw(results: dict[str, Any], recorded: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(8, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    left.set_title("the fifth of the tokens with the highest entropy", fontsize=9)
    draw_responses(left, results["responses"][:SHOWN])
    draw_curves(right, recorded)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="only draw the recorded responses")
    if not parser.parse_args().table:
        measure.write("picture", COMMAND, measure_responses())
    recorded = files.read_json(experiments.results("reproduce_tiny"))
    source = "benchmarks/results/picture.json (the cold start's responses) and reproduce_tiny.json (three seeds)"
    plots.save(draw(files.read_json(RESULTS), recorded), PICTURE, source)
    print(PICTURE)


if __name__ == "__main__":
    main()
