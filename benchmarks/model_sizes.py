"""Gain of the top 20% over all tokens against the size of the model: arXiv 2506.01939, Fig. 8, at small scale.

    python -m benchmarks.model_sizes --plan             # the runs that are missing, and their minutes; runs nothing
    python -m benchmarks.model_sizes                    # the number walk: missing runs, then record, draw and tabulate
    python -m benchmarks.model_sizes word_stories       # the word stories
    python -m benchmarks.model_sizes --sizes 0.3M 2M    # only some sizes; later commands add others
    python -m benchmarks.model_sizes --sizes 6M 21M --gpu   # cold starts and runs on the GPU
    python -m benchmarks.model_sizes --table            # only the table of the recorded results

Every size and seed has its own cold start, which is cached. A finished run is not repeated, and an interrupted run
continues from its checkpoint. `entropy-grpo compare` computes and draws the gains.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import arms, embedded, measure, walks
from entropy_grpo.compare import compare
from entropy_grpo.compare.runs import COMPARED
from entropy_grpo.metrics.seeds import over_seeds
from entropy_grpo.metrics.tables import interval_text, size_text
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.tasks import cold_start, registry, sized, taught

# Seeds by size, more of them at the two ends. The size without a name is the task's own.
OWN = "0.7M"
SEEDS = {"0.3M": 5, OWN: 3, "2M": 3, "6M": 5, "21M": 5}
# Sizes that run only if they are named, because two cores need a working day for them.
BY_NAME = ("21M",)
REFERENCE, ARM = RHOS = ("1.0", "0.2")
RATE = "1.0e-4"
# Minutes of a quiet core by task and size: cold start and run. Those of the two smallest sizes were measured. The
# others follow from the operations, with a fixed part for the start and the sampler.
MINUTES = {
    "number_walk": {"0.3M": (2.4, 0.8), OWN: (4.1, 1.2), "2M": (9.0, 2.5), "6M": (26.0, 6.5), "21M": (90.0, 21.0)},
    "word_stories": {"0.3M": (1.5, 0.7), OWN: (2.7, 1.0), "2M": (5.5, 2.0), "6M": (15.0, 5.0), "21M": (50.0, 17.0)},
}
PICTURES = {
    task: {"gain of rho = 0.2 against the number of parameters": f"figures/model_sizes{study.suffix}.png"}
    for task, study in embedded.STUDIES.items()
}
RECORD = walks.Record("model_sizes", "--table", "hours, which `--plan` lists", PICTURES)


@dataclass(frozen=True)
class Trial:
    """A run of an arm."""

    task: str
    size: str
    rho: str
    seed: int
    steps: int | None = None
    gpu: bool = False

    @property
    def model(self) -> str:
        """The model's name in a recipe."""
        name = embedded.STUDIES[self.task].name
        return name if self.size == OWN else f"{name}:{self.size}"

    @property
    def folder(self) -> RunFolder:
        root = "model_sizes" if self.steps is None else "model_sizes_trial"
        return RunFolder(measure.ROOT / "runs" / root / self.task / self.size / f"rho{self.rho}-seed{self.seed}")

    @property
    def is_done(self) -> bool:
        return "after" in files.read_json(self.folder.evaluation)


def trials(task: str, sizes: Sequence[str], steps: int | None = None, gpu: bool = False) -> list[Trial]:
    """The runs, size by size and seed by seed, so that an interrupted command has whole pairs."""
    seeds = dict.fromkeys(sizes, 1) if steps else SEEDS
    return [Trial(task, size, rho, seed, steps, gpu) for size in sizes for seed in range(seeds[size]) for rho in RHOS]


def checkpoint(task: str, size: str, seed: int) -> Path:
    """The place of a cold start in the cache."""
    lessons = registry.LESSONS[f"embedded:{task}"]
    if size != OWN:
        return taught.checkpoint_path(sized.lessons_of(lessons, size), seed)
    return cold_start.checkpoint_path(seed) if task == "number_walk" else taught.checkpoint_path(lessons, seed)


def plan(planned: Sequence[Trial]) -> str:
    """The missing runs and cold starts of each size with their minutes, as a table."""
    rows = [["task", "size", "missing cold starts", "minutes each", "missing runs", "minutes each", "minutes"]]
    total = 0.0
    for task, size in dict.fromkeys((trial.task, trial.size) for trial in planned):
        mine = [trial for trial in planned if (trial.task, trial.size) == (task, size) and not trial.is_done]
        starts = {trial.seed for trial in mine if not checkpoint(task, size, trial.seed).exists()}
        cold, run_minutes = MINUTES[task][size]
        minutes = len(starts) * cold + len(mine) * run_minutes
        total += minutes
        rows.append([task, size, len(starts), f"{cold:g}", len(mine), f"{run_minutes:g}", f"{minutes:.0f}"])
    gpu = "With --gpu a size took two to five minutes of one H100, both tasks side by side."
    return f"{markdown_table(rows)}\n\n{total:.0f} minutes of a quiet core, {total / 2:.0f} minutes on two. {gpu}"


def run(trial: Trial) -> None:
    """Train an arm, or continue it, unless it has ended."""
    if trial.is_done:
        return
    settings = {
        "model_name_or_path": trial.model,
        "top_entropy_quantile": trial.rho,
        "learning_rate": RATE,
        "seed": str(trial.seed),
        "output_dir": str(trial.folder.path),
        "resume_from_checkpoint": "auto",
        "save_total_limit": "1",
        "eval_strategy": "no",
        "num_dev_problems": "0",
        "disable_tqdm": "true",
    }
    settings |= {} if trial.steps is None else {"max_steps": str(trial.steps), "num_test_problems": "8"}
    settings |= {"use_cpu": "false"} if trial.gpu else {}
    arms.call(Path(f"{trial.folder.path}.log"), embedded.STUDIES[trial.task].recipe, *arms.words(settings))
    print(f"done  {trial.task} {trial.size} rho {trial.rho} seed {trial.seed}", flush=True)


def start(trial: Trial) -> None:
    """Train the cold start of a trial unless the cache has it."""
    task, path = registry.load(trial.model), checkpoint(trial.task, trial.size, trial.seed)
    if trial.gpu and trial.size in sized.SIZES and not path.exists():
        words = [trial.task, trial.size, "--seed", str(trial.seed), "--output", str(path)]
        arms.call(Path(f"{trial.folder.path}-cold_start.log"), "-m", "benchmarks.gpu.cold_start", *words)
    task.model(trial.seed)


def run_all(planned: Sequence[Trial], jobs: int) -> None:
    """Run all missing cold starts and runs, size by size."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(jobs) as pool:
        for size in dict.fromkeys(trial.size for trial in planned):
            missing = [trial for trial in planned if trial.size == size and not trial.is_done]
            list(pool.map(start, {(trial.model, trial.seed): trial for trial in missing}.values()))
            list(pool.map(run, missing))


def ended(every: Sequence[Trial]) -> list[Trial]:
    """The runs of the sizes whose runs have all ended."""
    unfinished = {trial.size for trial in every if not trial.is_done}
    return [trial for trial in every if trial.size not in unfinished]


def summary(planned: Sequence[Trial]) -> dict[str, Any]:
    """Accuracies of each size and arm, and the gains that `entropy-grpo compare` computes."""
    folders = [trial.folder.path for trial in planned]
    baseline = next(trial.folder.path for trial in planned if trial.rho == REFERENCE)
    compared = compare.compare_folders(folders, baseline, None)
    compare.write(compared, folders[0].parents[1])
    (gains,) = compared["sizes"]["gains"].values()
    rows = []
    for size in dict.fromkeys(trial.size for trial in planned):
        mine = [trial for trial in planned if trial.size == size]
        environments = [files.read_json(trial.folder.environment) for trial in mine]
        parameters = environments[0]["parameters"]
        one: dict[str, Any] = {"size": size, "parameters": parameters, "gain": gains[COMPARED].get(str(parameters))}
        one["hardware"] = sorted({environment["hardware"] for environment in environments})
        for rho in RHOS:
            found = [files.read_json(trial.folder.evaluation) for trial in mine if trial.rho == rho]
            for when in ("before", "after"):
                values = [evaluation[when]["accuracy"]["value"] for evaluation in found]
                one[f"rho = {rho}, {when}"] = over_seeds(values) | {"by_seed": values}
        rows.append(one)
    environment = files.read_json(planned[0].folder.environment)
    return {"learning_rate": RATE, "steps": environment["arguments"]["max_steps"], "sizes": rows}


def table(found: Mapping[str, Any]) -> str:
    """The recorded figures in Markdown."""
    rows = [
        [
            "parameters",
            "seeds",
            "trained on",
            "accuracy before",
            "after, rho = 1.0",
            "after, rho = 0.2",
            "gain of rho = 0.2",
            "p",
            "p, corrected",
        ]
    ]
    for one in found["sizes"]:
        before, all_tokens, forks = (one[key] for key in ("rho = 1.0, before", "rho = 1.0, after", "rho = 0.2, after"))
        gain = one["gain"]
        cells = [interval_text(gain, sign="+"), f"{gain['p_value']:.2f}", f"{gain['p_corrected']:.2f}"]
        values = [interval_text(side) for side in (before, all_tokens, forks)]
        where = ", ".join(one["hardware"])
        rows.append([size_text(one["parameters"]), len(before["by_seed"]), where, *values, *cells])
    return markdown_table(rows)


def main() -> None:
    parser = RECORD.parser(__doc__)
    sizes = [size for size in SEEDS if size not in BY_NAME]
    parser.add_argument("--sizes", nargs="+", choices=SEEDS, default=sizes, help=f"{' '.join(sizes)} if none is named")
    parser.add_argument("--jobs", type=int, default=embedded.JOBS, help="runs at a time, one thread each")
    parser.add_argument("--plan", action="store_true", help="only print the missing runs and their minutes")
    parser.add_argument("--steps", type=int, help="of a trial with one seed, which is not recorded")
    parser.add_argument("--gpu", action="store_true", help="missing cold starts and runs on the GPU")
    options = parser.parse_args()
    planned = trials(options.task, options.sizes, options.steps, options.gpu)
    if options.plan:
        print(plan(planned))
        return
    if not options.only_show:
        run_all(planned, options.jobs)
        planned = ended(trials(options.task, list(SEEDS), options.steps))
        if len({trial.size for trial in planned}) < 2:
            print("The runs of one size have ended: run another size to compare.")
            return
        found = summary(planned)
        if options.steps is not None:
            print(table(found))
            return
        RECORD.write(options.task, found)
        picture = planned[0].folder.path.parents[1] / "sizes.png"
        (measure.DOCS / "figures" / f"{RECORD.results(options.task).stem}.png").write_bytes(picture.read_bytes())
    RECORD.write_block(options.task, table)


if __name__ == "__main__":
    main()
