"""Tables of docs/papers.md: a row for every table, figure, equation and point of criticism of both papers.

    python -m benchmarks.papers            # plan every recipe of the rows, write benchmarks/results/papers.json
    python -m benchmarks.papers --table    # only the tables, of the recorded plans

A row has commands, and the place of a small-scale result. GPUs and hours are those of `entropy-grpo plan`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import experiments, measure
from entropy_grpo import cli
from entropy_grpo.compare import sweep, sweep_file
from entropy_grpo.compare.options import SweepOptions
from entropy_grpo.config import recipe
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.planning import plan
from entropy_grpo.planning.options import PlanOptions
from entropy_grpo.rewards.registry import CONTROL_REWARDS

RESULTS = measure.RESULTS / "papers.json"
COMMAND = "python -m benchmarks.papers --table"
# 40% of an H100's peak in bfloat16, which large models reach in training.
TFLOPS = 400.0
# Assumed mean lengths of responses, in tokens, by the beginning of a recipe's name: neither paper states a mean.
MEAN_LENGTHS = {"qwen3": 7000.0, "llama": 2000.0, "qwen25": 2000.0}


@dataclass(frozen=True)
class Row:
    """Item of a paper or point of a reader, with its commands, their needs, and the small-scale result.

    `needs` describes commands without a recipe, whose hours are not planned. The needs of recipes are planned, and
    stand before it.
    """

    item: str
    commands: Sequence[str]
    small: str
    needs: str = ""


ONE_GPU = "1 GPU with the model"
SMALL_RHO = "[sweep of rho](experiments.md#tokens-to-train-on)"
SMALL_SHAPING = "[shaping](experiments.md#advantage-shaping): no difference is shown"
SMALL_FIGURES = "[the embedded task](entropy.md#the-embedded-task)"
SMALL_DIVERGENCE = "[divergence](entropy.md#divergence), also by perplexity and position"
UPDATED = "[the embedded task](entropy.md#the-embedded-task), recorded by `make updates`"
NONE = "none recorded"
THINKING = "--model Qwen/Qwen3-8B --chat --thinking true"
MATHS = "aime24,aime25,amc23,math500,minerva,olympiadbench"
STAGE = (
    "entropy-grpo analyze collect --model begin=runs/qwen25_7b_grpo/weights/step-3200 "
    "--against end=runs/qwen25_7b_grpo/weights/step-4800 --benchmarks aime24 --output runs/qwen25_7b_grpo/analysis"
)
# A model of 32B does not fit one GPU with 80 GB beside its cache.
GPUS = " --tensor-parallel 2"
JUDGE = (
    f"entropy-grpo analyze irrelevant --model Qwen/Qwen3-32B{GPUS} --chat --thinking false "
    "--responses runs/qwen25_7b_grpo/benchmarks/step-4800/aime24.parquet --output runs/qwen25_7b_grpo/analysis"
)
TEACHER = (
    f"entropy-grpo eval --model Qwen/Qwen3-32B --chat{GPUS} --benchmarks dapo_math --samples 1 "
    "--output runs/llama31_8b_teacher"
)
# The temperatures of Fig. 3, and its longest response in tokens.
TEMPERATURES = "0 0.05 0.3 0.6 1 2 3 5"
FORKED = f"--t-high {TEMPERATURES} --t-low {TEMPERATURES} --max-tokens 28672"
# The arms of Fig. 9: the run's name, and the arguments of its launch.
OUT_OF_DOMAIN = {
    "qwen3_32b_dapo": "qwen3_32b_dapo",
    "qwen3_32b": "qwen3_32b",
    "qwen3_32b_top10": "qwen3_32b --top_entropy_quantile 0.1 --output_dir runs/qwen3_32b_top10",
}
RHO = "top_entropy_quantile=0.1,0.15,0.2,0.25,0.3,1.0"
SIZES = ("8b", "14b", "32b")
FAMILIES = ("qwen25_7b", "qwen25_math_7b")
SHAPING = ("grpo", "ppl", "position", "ppl_position")


def launches(*names: str) -> list[str]:
    """Return the commands that train recipes, each named with the settings of its launch, if any."""
    return [f"entropy-grpo launch {name}" for name in names]


def small(name: str) -> str:
    """Return the command of an experiment on the embedded task."""
    if name not in experiments.EXPERIMENTS:
        raise KeyError(name)
    return f"python -m benchmarks.experiments {name}"


def compared(*names: str, output: str = "") -> str:
    """Return the command that compares the runs of recipes, or of folders in `runs/`, with the first."""
    folders = [f"runs/{name}" for name in names]
    return f"entropy-grpo compare {' '.join(folders)} --baseline {folders[0]}" + (
        f" --output {output}" if output else ""
    )


def over_training(name: str, base: str) -> str:
    """Return the command that scores the last model's answers with the base and with all kept models of a recipe."""
    steps = recipe.load(name)["keep_weights"].value
    kept = " ".join(f"{step}=runs/{name}/weights/step-{step}" for step in steps)
    return (
        f"entropy-grpo analyze collect --model base={base} --against {kept} --answered-by {steps[-1]} "
        f"--benchmarks {MATHS} --output runs/{name}/analysis"
    )


def evaluated(*names: str, benchmarks: str, preset: str) -> list[str]:
    """Return the commands that evaluate the runs of recipes on benchmarks."""
    return [
        f"entropy-grpo eval --model runs/{name}{GPUS if '_32b' in name else ''} --benchmarks {benchmarks} "
        f"--preset {preset}"
        for name in names
    ]


OF_SIZES = [f"qwen3_{size}{arm}" for size in SIZES for arm in ("_dapo", "")]
OF_RHO = [f"qwen3_8b{arm}" for arm in ("_dapo", "_top10", "", "_top50", "_bottom80")]
OF_BONUS = [f"qwen3_8b_dapo{arm}" for arm in ("", "_clip20", "_bonus")]
OF_FAMILIES = [f"{family}_{arm}" for family in FAMILIES for arm in SHAPING]
OF_ARMS = [compared(*(f"{family}_{arm}" for arm in SHAPING), output=f"runs/{family}") for family in FAMILIES]
SECTIONS: dict[str, list[Row]] = {
    "arXiv 2506.01939, high-entropy minority tokens": [
        Row(
            "Eq. 1, Fig. 1a and 2 (entropy of tokens, words at forks)",
            [
                f"entropy-grpo analyze collect {THINKING} --benchmarks aime24,aime25 --output analysis/qwen3_8b",
                "entropy-grpo analyze report analysis/qwen3_8b",
            ],
            SMALL_FIGURES,
            ONE_GPU,
        ),
        Row("Eq. 2 to 4 (the baseline, DAPO)", launches("qwen3_8b_dapo"), "[the demo](demo.md)"),
        Row(
            "Eq. 5, Fig. 3 (temperatures at forks and elsewhere)",
            [
                f"entropy-grpo analyze decoding {THINKING} --benchmarks aime24,aime25 {FORKED} "
                "--output analysis/decoding"
            ],
            "[forked decoding](entropy.md#forked-decoding): agrees for T_low, disagrees for T_high",
            ONE_GPU,
        ),
        Row("Eq. 6 (the objective on the top 20%)", launches("qwen3_8b"), "[the demo](demo.md)"),
        Row(
            "Table 1, Fig. 4 and 5 (forks over training)",
            [
                *launches("qwen3_14b_dapo"),
                over_training("qwen3_14b_dapo", "Qwen/Qwen3-14B-Base"),
                "entropy-grpo analyze report runs/qwen3_14b_dapo",
            ],
            SMALL_FIGURES,
        ),
        Row(
            "Table 2, Fig. 6 (accuracy and length at 8B, 14B, 32B, at the end and over training)",
            [
                *launches(*OF_SIZES),
                *evaluated(*OF_SIZES, benchmarks=MATHS, preset="forking"),
                compared(*OF_SIZES),
            ],
            f"{SMALL_RHO}: no difference between rho = 0.2 and 1.0 is shown",
        ),
        Row(
            "Fig. 7 (rho, bottom 80%)",
            [
                *launches(*OF_RHO),
                compared(*OF_RHO, output="runs/rho_8b"),
                "entropy-grpo sweep recipes/sweeps/rho.yaml --seeds 1",
            ],
            SMALL_RHO,
        ),
        Row(
            "Fig. 1b and 8 (gain against the size of the model)",
            [
                *launches(*OF_SIZES),
                compared(*OF_SIZES, output="runs/sizes"),
                "python -m benchmarks.model_sizes --plan",
            ],
            "[sizes](experiments.md#gain-against-the-size-of-the-model): no growth with size is shown",
        ),
        Row(
            "Fig. 9 (out of domain, LiveCodeBench over training, 32B)",
            [
                *launches(*OUT_OF_DOMAIN.values()),
                *(
                    f"entropy-grpo eval --model runs/{name}/weights/step-{step}{GPUS} --benchmarks livecodebench"
                    for name in OUT_OF_DOMAIN
                    for step in (160, 480, 840, 1280)
                ),
                compared(*OUT_OF_DOMAIN, output="runs/out_of_domain"),
            ],
            NONE,
        ),
        Row(
            "Fig. 10 (32B with responses of 29,696 tokens)",
            [*launches("qwen3_32b", "qwen3_32b_29k"), compared("qwen3_32b", "qwen3_32b_29k", output="runs/longer")],
            NONE,
        ),
        Row(
            "Fig. 11 (Llama-3.1-8B)",
            [
                TEACHER,
                *launches("llama31_8b_cold_start", "llama31_8b_dapo", "llama31_8b"),
                compared("llama31_8b_dapo", "llama31_8b"),
            ],
            NONE,
            "not counted: the teacher's 17,398 responses, on 8 GPUs in `make llama31_8b`",
        ),
        Row(
            "Discussion 1 (forks after supervised training and after RL, from one start)",
            [
                "entropy-grpo analyze collect --model start=Qwen/Qwen3-8B-Base --against rl=runs/qwen3_8b_dapo "
                "sft=runs/sft --benchmarks aime24 --output runs/sft_and_rl",
                "entropy-grpo analyze report runs/sft_and_rl",
                "python -m benchmarks.branches",
            ],
            "[branches](experiments.md#forks-after-supervised-training-and-after-rl)",
            "1 GPU with the models; `sft` is a run of `trainer: sft` from the same start",
        ),
        Row(
            "Discussion 3 (entropy bonus and clip-higher; entropy of tokens above the clip)",
            [*launches(*OF_BONUS), compared(*OF_BONUS, output="runs/bonus"), small("bonus_tiny")],
            "[sweep](experiments.md#entropy-bonus-and-clip-higher)",
        ),
        Row(
            "Fig. 12 to 17 (responses in colours)",
            [
                "entropy-grpo analyze collect --model Qwen/Qwen3-8B --chat --thinking true --benchmarks aime24,aime25 "
                "--output analysis/qwen3_8b",
                "entropy-grpo analyze report analysis/qwen3_8b",
            ],
            "[coloured text](entropy.md#coloured-text)",
            ONE_GPU,
        ),
    ],
    "arXiv 2508.02260, entropy-performance exchange": [
        Row("Eq. 1 to 3, Fig. 1 (baseline, entropy and accuracy by stage)", launches("qwen25_7b_grpo"), SMALL_SHAPING),
        Row(
            "Entropy of right and wrong responses; format violations, language mixing, irrelevant content, any issue",
            [*launches("qwen25_7b_grpo"), JUDGE, "entropy-grpo analyze report runs/qwen25_7b_grpo"],
            "[logged entropies](entropy.md#the-embedded-task); [a judge](entropy.md#irrelevant-content) finds none",
        ),
        Row(
            "Eq. 4 (gradient of a token), Fig. 2 and 3 (changes of probability, gradient by entropy, categories of "
            "updates, words)",
            [STAGE, "entropy-grpo analyze report runs/qwen25_7b_grpo", "python -m benchmarks.updates"],
            UPDATED,
            ONE_GPU,
        ),
        Row(
            "Eq. 5 and 6, Fig. 4 (another token; perplexity and position)",
            [
                STAGE,
                "entropy-grpo analyze divergence --model runs/qwen25_7b_grpo/weights/step-3200 "
                "--responses runs/qwen25_7b_grpo/analysis/responses/aime24.parquet "
                "--output runs/qwen25_7b_grpo/analysis",
                "entropy-grpo analyze report runs/qwen25_7b_grpo",
            ],
            SMALL_DIVERGENCE,
            ONE_GPU,
        ),
        Row(
            "Fig. 6 (entropy by position), appendix C (categories of tokens)",
            [STAGE, "entropy-grpo analyze report runs/qwen25_7b_grpo"],
            SMALL_FIGURES,
            ONE_GPU,
        ),
        Row("Eq. 7 and 9 (perplexity)", launches("qwen25_7b_ppl"), SMALL_SHAPING),
        Row("Eq. 8 and 10 (position)", launches("qwen25_7b_position"), SMALL_SHAPING),
        Row(
            "Main table (Acc@8, Maj@8, Pass@8), Qwen2.5-7B and Qwen2.5-Math-7B",
            [
                *launches(*OF_FAMILIES),
                *evaluated(*OF_FAMILIES, benchmarks="aime24,aime25,amc23,math500,minerva", preset="shaping"),
                *OF_ARMS,
            ],
            SMALL_SHAPING,
        ),
        Row(
            "Out of domain (GPQA, HumanEval)",
            [
                *launches(*OF_FAMILIES),
                *evaluated(*OF_FAMILIES, benchmarks="gpqa,humaneval", preset="shaping"),
                *OF_ARMS,
            ],
            NONE,
        ),
        Row(
            "Ablations (early tokens, high perplexity)",
            [
                *launches(*(f"{family}_{arm}" for family in FAMILIES for arm in ("position_early", "ppl_high"))),
                small("signs_tiny"),
            ],
            "[sweep](experiments.md#the-signs-of-advantage-shaping)",
        ),
    ],
    "Points of a referee and of a critical essay": [
        Row(
            "rho from 0.1 to 0.3 in steps of 0.05, several seeds, intervals, paired tests",
            [f"entropy-grpo sweep qwen3_8b --set {RHO} --seeds 3"],
            SMALL_RHO,
        ),
        Row(
            "A control matched in gradient norm; is entropy only a proxy for large gradients?",
            [*launches("qwen3_8b_matched20", "qwen3_8b_gradient20"), small("controls_tiny")],
            "[sweep](experiments.md#controls-by-gradient-norm)",
        ),
        Row(
            "rho at 14B and 32B",
            ["entropy-grpo sweep recipes/sweeps/rho.yaml --seeds 1"],
            SMALL_RHO,
        ),
        Row("A random fifth of the tokens", launches("qwen3_8b_random20"), f"{SMALL_RHO}: random 0.2"),
        Row(
            "Spurious rewards",
            launches(*(f"{one}_reward_{name}" for one in ("qwen3_8b", "qwen25_math_7b") for name in CONTROL_REWARDS)),
            "[rewards](experiments.md#true-and-spurious-rewards)",
        ),
        Row(
            "Pass@k of base and trained model",
            [
                "entropy-grpo eval --model Qwen/Qwen3-14B-Base --benchmarks aime24 --samples 64 --output runs/base",
                "entropy-grpo eval --model runs/qwen3_14b --benchmarks aime24 --samples 64 --compare runs/base",
            ],
            "[evaluation](evaluation.md)",
            ONE_GPU,
        ),
        Row(
            "A benchmark that is newer than the models",
            [
                "entropy-grpo eval --model runs/qwen3_14b --benchmarks aime26",
                "entropy-grpo eval --model runs/qwen3_14b --benchmarks newer.jsonl --since 2026-02-01",
            ],
            NONE,
            f"{ONE_GPU}; for the second command a file with problem, answer and date",
        ),
        Row(
            "Contamination of benchmarks",
            ["entropy-grpo eval --model Qwen/Qwen3-14B-Base --benchmarks aime24,aime25 --contamination"],
            NONE,
            ONE_GPU,
        ),
    ],
}


def recipes_of(command: str) -> list[str]:
    """Return the names of the recipes that a command trains, also by a sweep file."""
    _, action, *words = command.split()
    if action not in ("launch", "sweep"):
        return []
    found = sweep_file.read(measure.ROOT / words[0])
    return [Path(file).stem for file in found["recipes"]] if found else [words[0]]


def folders_of(command: str) -> list[str]:
    """Return the run folders that a launch writes: the command's own, or those of its recipes."""
    words = command.split()
    if "--output_dir" in words:
        return [words[words.index("--output_dir") + 1]]
    return [f"runs/{name}" for name in recipes_of(command)] if words[1] == "launch" else []


def runs_of(command: str) -> int:
    """Return the number of runs that a command trains with each of its recipes."""
    words = command.split()
    if words[1] != "sweep":
        return 1
    parsed, _ = cli.parse(words[1:])
    file = measure.ROOT / parsed.recipe
    options = replace(cli.checked(parsed, SweepOptions), recipe=str(file) if file.is_file() else parsed.recipe)
    one = sweep_file.sweeps(options)[0]
    return len(sweep.variants(one.products, one.others)) * one.seeds


def all_recipes() -> list[str]:
    """Return the names of the recipes of all rows."""
    commands = [command for rows in SECTIONS.values() for row in rows for command in row.commands]
    return list(dict.fromkeys(name for command in commands for name in recipes_of(command)))


def planned(name: str) -> dict[str, Any]:
    """Plan a recipe for the GPUs of its accelerate configuration."""
    length = next((length for start, length in MEAN_LENGTHS.items() if name.startswith(start)), None)
    options = PlanOptions(name, mean_length=length, tflops=TFLOPS, problems=17_398)
    made = plan.make(plan.resolve(options, ()))
    machines = made["machines"]
    return {
        "gpus": machines["gpus"] * machines["nodes"],
        "hours": made["hours"],
        "steps": made["batches"]["steps"],
        "verdict": made["verdict"]["sentence"],
    }


def needs(row: Row, plans: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the GPUs and hours of a row's recipes, and the row's own words."""
    trained = [(plans[name], runs_of(command)) for command in row.commands for name in recipes_of(command)]
    if not trained or all(one["hours"] is None for one, _ in trained):
        return f"{row.needs}; hours not planned"
    gpus = sorted({one["gpus"] for one, _ in trained})
    hours = [one["hours"] * one["gpus"] * runs for one, runs in trained]
    number = sum(runs for _, runs in trained)
    runs = "1 run" if number == 1 else f"{number} runs"
    training = f"{runs} on {' or '.join(map(str, gpus))} GPUs, {sum(hours):,.0f} GPU hours"
    return f"{training}; {row.needs}" if row.needs else training


def tables(plans: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the tables of all sections in Markdown."""
    parts = []
    for title, rows in SECTIONS.items():
        cells = [("what", "commands", "needs", "at small scale")]
        cells += [
            (row.item, "<br>".join(f"`{command}`" for command in row.commands), needs(row, plans), row.small)
            for row in rows
        ]
        parts.append(f"## {title}\n\n{markdown_table(cells, as_text=str)}")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="only write the tables of the recorded plans")
    if not parser.parse_args().table:
        about = {"command": "python -m benchmarks.papers", "tflops": TFLOPS, "mean_lengths": MEAN_LENGTHS}
        measure.files.write_json(RESULTS, about | {"plans": {name: planned(name) for name in all_recipes()}})
    measure.write_block(COMMAND, tables(json.loads(RESULTS.read_text())["plans"]))


if __name__ == "__main__":
    main()
