"""Simulated speed-ups of a cycle at the paper's size, by place of the sampler and number of GPUs.

    python -m benchmarks.simulated    # benchmarks/results/simulated.json, and the table in docs/planning.md

Nothing is measured: the figures are those of `entropy-grpo plan --simulate`.
"""

from typing import Any

from benchmarks import measure
from entropy_grpo.metrics.tables import table
from entropy_grpo.planning.options import PlanOptions
from entropy_grpo.planning.simulate import simulate
from entropy_grpo.runs import files

COMMAND = "python -m benchmarks.simulated"
RESULTS = measure.RESULTS / "simulated.json"
MEAN = 7000  # tokens of a response, arXiv 2506.01939
# Share of the first variant, with which all are compared: a part of a GPU that fits beside all of a run.
SHARE = "0.4"
SIZES = (("qwen3_14b", 1), ("qwen3_14b", 2), ("qwen3_14b", 8), ("qwen3_32b", 2), ("qwen3_32b", 8))
SPARED = "... with old_logps: sampler"
# Variants by their place among the simulated ones.
ROWS = {
    "colocated, {share} of a GPU": 0,
    "... in rounds of 4,096 tokens (partial rollouts)": 1,
    "colocated, the share that sleep mode frees": 2,
    "... in rounds of 4,096 tokens": 3,
    "... with the fastest number of GPUs a copy": -4,
    "... in rounds of 4,096 tokens, too": -3,
    SPARED: -4,
    "half of the GPUs train and half serve, in turns": -2,
    "... a rollout ahead (not built)": -1,
}


def simulated(recipe: str, nodes: int) -> dict[str, Any]:
    """Simulate a recipe on machines of 8 GPUs."""
    options = PlanOptions(recipe, gpus=8, nodes=nodes, mean_length=MEAN)
    return simulate(options, ["--vllm_gpu_memory_utilization", SHARE])


def tables(record: dict[str, Any]) -> str:
    """Return the table of simulated speed-ups, and the assumptions."""
    runs = record["runs"]
    header = ["simulated", *(f"{run['recipe']}, {run['gpus']} GPUs" for run in runs)]
    columns = [[variant["cycle"] for variant in run["simulated"]] for run in runs]
    spared = [[variant["spared"] for variant in run["simulated"]] for run in runs]
    seconds = ["seconds of a cycle in the first row", *(f"{column[0]['seconds']:,.0f}" for column in columns)]
    rows = [
        [
            name.format(share=SHARE),
            *(
                _speed_up(column[0], other[place])
                for column, other in zip(columns, spared if name == SPARED else columns, strict=True)
            ),
        ]
        for name, place in ROWS.items()
    ]
    assumed = runs[0]["assumptions"]
    device = assumed["device"]
    sentence = (
        f"Simulated, not measured. Assumed: {device['name']}s at {device['bandwidth'] / 1e12:.2f} TB/s, "
        f"{device['decoding'] / 1e12:.0f} TFLOP/s while decoding and {device['training'] / 1e12:.0f} in training; "
        f"log-normal lengths of {assumed['mean']:,} tokens on average, sigma {assumed['sigma']:g}, cut at "
        f"{assumed['longest']:,}; {assumed['informative']:.0%} of the groups informative; {assumed['sync']:g} s for "
        f"each transfer of the weights."
    )
    return f"{table([header, seconds, *rows])}\n\n{sentence}"


def _speed_up(first: dict[str, Any], other: dict[str, Any] | None) -> str:
    return "does not fit" if other is None else f"{first['seconds'] / other['seconds']:.2f}"


def main() -> None:
    """Simulate every size and write figures and table."""
    measure.write("simulated", COMMAND, {"measured": False, "runs": [simulated(*size) for size in SIZES]})
    measure.write_block(COMMAND, tables(files.read_json(RESULTS)))


if __name__ == "__main__":
    main()
