"""Tables of docs/gpu.md, from the recorded results.

python -m benchmarks.gpu.page
"""

from collections.abc import Mapping
from typing import Any

from benchmarks import measure
from entropy_grpo.metrics.tables import interval_text, table
from entropy_grpo.runs import files

from .sizes import COUNTDOWN_CHANGES, WEIGHTS_CHANGES

TABLE = "python -m benchmarks.gpu"
GIB = 2**30


def recorded(name: str) -> dict[str, Any]:
    """The recorded file of a part."""
    return files.read_json(measure.RESULTS / f"gpu_{name}.json")


def rows_of(name: str, prefix: str = "") -> list[dict[str, Any]]:
    """Measurements of a part whose names have the same beginning."""
    return [row for row in recorded(name)["measurements"] if row["name"].startswith(prefix)]


def head() -> str:
    """Table of milliseconds, memory and errors of the head's variants. Other tile widths are only in the file."""
    errors = {row["name"].removeprefix("errors: "): row for row in rows_of("head", "errors: ")}
    timed: dict[str, dict[tuple[int, float], dict[str, Any]]] = {}
    for row in rows_of("head"):
        if "forward_ms" in row and "tiles of" not in row["name"]:
            timed.setdefault(row["name"], {})[row["rows"], row["rho"]] = row
    sizes = sorted({size for runs in timed.values() for size in runs})
    header = ["head, ms forward + backward", *(f"n {n:,}, rho {rho:g}" for n, rho in sizes)]
    header += ["peak GiB", "error of log-probabilities", "of entropies", "of the weight's gradient"]
    lines = []
    for name, runs in timed.items():
        times = [f"{runs[s]['forward_ms']['median']:.1f} + {runs[s]['backward_ms']['median']:.1f}" for s in sizes]
        found = [errors[name][key] for key in ("log_probs", "entropies", "grad_weight")]
        told = ["-" if value is None else f"{value:.1e}" for value in found]
        lines.append([name, *times, f"{max(run['peak_gib'] for run in runs.values()):.1f}", *told])
    return table([header, *lines])


def step() -> str:
    """Table of two optimiser steps of this package and of TRL, in each turn."""
    (plan,) = rows_of("step", "plan")
    lines = []
    for row in rows_of("step"):
        if "seconds_per_step" in row:
            lines.append(
                [
                    f"{row['name']}, turn {row['turn'] + 1}",
                    f"{row['seconds_per_step']:.2f}",
                    f"{row['tokens_per_second']:,.0f}",
                    f"{row['mfu']:.1%}",
                    f"{row['peak_gib']:.1f}",
                ]
            )
    lines.append(["plan", "", "", "", f"{plan['training'] / GIB:.1f}"])
    syncs = {row["name"][7:]: row["synchronisations of each micro-batch"] for row in rows_of("step", "probe: ")}
    said = "; ".join(f"{name} {', '.join(map(str, counts))}" for name, counts in syncs.items())
    return (
        table([["optimiser steps, Qwen3-1.7B", "s a step", "tokens/s", "MFU", "peak GiB"], *lines])
        + f"\n\nSynchronisations of the host in each of the four micro-batches of a rollout: {said}."
    )


def recipes() -> str:
    """Tables of the errors of both kinds of layers, and of the tests of shipped recipes."""
    before = "errors of the layers: "
    lines = []
    for row in rows_of("recipes", before):
        for layers in ("transformers", "Liger"):
            found = row[layers]
            name = row["name"].removeprefix(before).partition("/")[2]
            errors = (found["root_mean_square"], found["largest"], found["gradients"])
            lines.append([name, layers, *(f"{error:.4f}" for error in errors)])
    header = [
        "four layers, bfloat16 autocast against float32",
        "layers",
        "log-probabilities, nats",
        "largest",
        "gradients",
    ]
    tests, errors = [["recipe, or column of the precision table", "test", "ended"]], []
    for row in recorded("recipes")["measurements"]:
        for key, value in row.items():
            if key.startswith("test_"):
                ended, _, why = value.partition(": ")
                errors += [why] if ended not in ("passed", "skipped") else []
                tests.append([row["name"], key.removeprefix("test_").partition("[")[0].replace("_", " "), ended])
    said = "".join(f"\n\n{errors.count(error)} of them: `{error}`" for error in dict.fromkeys(errors))
    return f"{table([header, *lines])}\n\n{table(tests, str)}{said}"


def memory() -> str:
    """Table of measured and planned bytes that grow with the number of layers of a 14B-shaped model."""
    lines = []
    for row in rows_of("memory", "slope: "):
        measured, planned = row["measured"], row["planned"]
        lines.append(
            [
                row["name"].removeprefix("slope: "),
                *(f"{x['bytes_per_layer'] / 1e9:.2f}" for x in (measured, planned)),
                *(f"{x['bytes_once'] / 1e9:.1f}" for x in (measured, planned)),
            ]
        )
    return table([["14B-shaped, one sequence", "GB a layer", "planned", "GB once", "planned"], *lines])


def numerics() -> str:
    """Table of dtypes and errors under FSDP2 with one process."""
    lines = []
    for row in rows_of("fsdp"):
        if "policy" in row:
            for output in ("log_probs", "entropies"):
                found = row[output]
                lines.append(
                    [
                        row["name"],
                        output,
                        found["dtype"].removeprefix("torch."),
                        f"{found['share on the bfloat16 grid']:.0%}",
                        f"{found['relative error']:.1e}",
                    ]
                )
    return table([["FSDP2", "output", "dtype", "on the bfloat16 grid", "relative error"], *lines])


def select() -> str:
    """Lines on the selection on a rollout's tokens, and on the demo."""
    (row,) = rows_of("select", "selection")
    (resume,) = rows_of("select", "checkpoint and resume")
    (demo,) = rows_of("demo", "demo")
    before, after = (demo["evaluation"][when]["accuracy"]["value"] for when in ("before", "after"))
    equal = all(resume[run]["equal"] for run in ("run again", "resumed at step 2 of 4"))
    return (
        f"- Selection of {row['kept']:,} among {row['tokens']:,} tokens: {row['select, ms']['median']:.1f} ms, "
        f"{row['select, peak bytes'] / GIB:.2f} GiB beyond the scores, "
        f"{'equal' if row['equal_to_a_sort'] else 'NOT equal'} to a sort ({row['sort, ms']['median']:.1f} ms).\n"
        f"- A run that is repeated, and one that goes on from a checkpoint, are bit for bit the same: "
        f"{'yes' if equal else 'no'}.\n"
        f"- The demo on the GPU: held-out accuracy {before:.3f} before and {after:.3f} after 240 steps, "
        f"{demo['seconds_taken']:.0f} s from launch to card, its cold start apart."
    )


def weights(name: str, title: str, reasons: Mapping[str, str]) -> str:
    """Held-out accuracy of the pretrained model's arms, before, during and after training, and their settings."""
    found = recorded(name)
    if not found:
        return f"{title}: not run."
    arms = {arm: row for arm in found["arms"] for row in found["measurements"] if row["name"] == arm}
    header = ["arm", "steps", "held-out accuracy before", "after", "gain", "entropy before, nats", "entropy after"]
    lines = []
    for arm, row in arms.items():
        before, after, gain = (row["evaluation"][when] for when in ("before", "after", "gain"))
        accuracies = [interval_text(x["accuracy"]) for x in (before, after)]
        entropies = [f"{x['mean_entropy']:.3f}" for x in (before, after)]
        lines.append([arm, row["steps"], *accuracies, interval_text(gain["accuracy"], sign="+"), *entropies])
    curves = {
        arm: {point["step"]: point["eval_accuracy"] for point in curve if "eval_accuracy" in point}
        for arm, curve in found["curves"].items()
    }
    steps = sorted({step for curve in curves.values() for step in curve})
    during = [
        [arm, *(f"{curve[step]:.3f}" if step in curve else "" for step in steps)] for arm, curve in curves.items()
    ]
    counts, settings = next(iter(arms.values()))["problems"], found["settings"]
    changes = [[f"`{setting}`", reasons[setting]] for setting in found["changed_of_the_recipe"]]
    return "\n\n".join(
        [
            f"{title}, {found['hardware']}, {found['seconds']:.0f} s in all. Before and after: "
            f"{counts['test']} problems with {settings['num_generations_eval']} answers each, at temperature 1, and "
            "95% intervals.",
            table([header, *lines]),
            f"While they train, accuracy on {counts['dev']} other held-out problems:",
            table([["arm", *(f"step {step}" for step in steps)], *during]),
            "What these arms change of the recipe `qwen3_1_7b`:",
            table([["setting", "here"], *changes], str),
        ]
    )


# Names of the parts on the page, by their files.
TITLES = {
    "device_tests": "tests",
    "head": "head",
    "step": "optimiser steps",
    "memory": "memory",
    "fsdp": "FSDP2",
    "select": "selection and resume",
    "demo": "demo",
    "weights": "pretrained weights",
    "countdown": "countdown",
    "recipes": "recipes and layers",
}


def provenance() -> str:
    """Table of the GPU, the commit and the end of every part."""
    rows = [["part", "GPU", "torch", "commit", "ended"]]
    for name, title in TITLES.items():
        found = recorded(name)
        if not found:
            continue
        commit = f"`{found['git_revision'][:12]}`"
        rows.append([title, found["hardware"], found["versions"]["torch"], commit, found["status"]])
    return table(rows, str)


def tables() -> str:
    """All tables and lines of the page."""
    trained = [
        weights("weights", "Pretrained weights on sums of three numbers", WEIGHTS_CHANGES),
        weights("countdown", "Pretrained weights on the countdown game, after a cold start", COUNTDOWN_CHANGES),
    ]
    return "\n\n".join([provenance(), head(), step(), memory(), recipes(), numerics(), select(), *trained])


if __name__ == "__main__":
    measure.write_block(TABLE, tables())
