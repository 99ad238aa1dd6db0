"""Faults of machines, people, files and reward functions, and the behaviour of a run in each.

    python -m benchmarks.faults                     # benchmarks/results/faults.json, a quarter of an hour on two cores
    python -m benchmarks.faults --parts "data files"  # one part; recorded results of other parts stay
    python -m benchmarks.faults --table             # only the table of the recorded results

Most faults have tests, which state the required behaviour and run here. Data files go through the command that
trains on them. Killed runs are `benchmarks.kill`'s: whole runs, compared bit for bit with runs that were left alone.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kill, measure
from benchmarks.fixtures.hostile_inputs import INPUTS, Input
from benchmarks.fixtures.killed_runs import CASES
from benchmarks.fixtures.tiny_model import save_tiny_model
from entropy_grpo.metrics.tables import table as markdown_table
from entropy_grpo.runs import files

RESULTS = measure.RESULTS / "faults.json"
TABLE = "python -m benchmarks.faults --table"
KILLS = 3  # of every case


@dataclass(frozen=True)
class Tested:
    """Faults that have tests: what must happen, and by the name of the fault the test, or its parameters' name."""

    must: str
    file: str
    test: str
    faults: dict[str, str]

    def node(self, fault: str) -> str:
        """The id of a fault's test; a test without parameters has all of its faults."""
        parameters = self.faults[fault]
        return f"tests/{self.file}::{self.test}{f'[{parameters}]' if parameters else ''}"


def _named(*names: str) -> dict[str, str]:
    return {name: name for name in names}


PASSED_OVER = "auto names the damage and continues from the newest intact checkpoint; a named one is refused"
ONE_SENTENCE = "one sentence with the function's name, the step and the checkpoint to continue from"
REFUSED = "one sentence before a model loads, with the fix"
STOPS = "test_sigterm_saves_and_asks_for_more_and_ctrl_c_says_how_to_go_on"
TESTED = {
    "checkpoints": [
        Tested(
            PASSED_OVER,
            "test_seal.py",
            "test_damage_is_found_named_and_gone_round",
            _named(
                *(
                    "a flipped bit in the weights",
                    "a flipped bit in the optimizer",
                    "a flipped bit in the run's state",
                ),
                *("a flipped bit in a shard", "a missing file of random states", "a truncated file", "an empty file"),
                *("an empty seal", "a truncated seal", "a seal that was changed"),
            ),
        ),
        Tested(
            "the run is refused, not begun anew",
            "test_seal.py",
            "test_a_run_with_damaged_checkpoints_alone_is_refused_and_one_without_any_begins",
            {"all checkpoints are damaged": ""},
        ),
        Tested(
            "it is taken, with a line that it cannot be checked",
            "test_seal.py",
            "test_checkpoints_without_digests_are_taken_with_a_line",
            {"a checkpoint of an earlier version": ""},
        ),
        Tested(
            "it is neither read nor deleted",
            "test_seal.py",
            "test_old_checkpoints_and_those_of_an_abandoned_course_go_first",
            {"a folder checkpoint-backup beside the checkpoints": "5-1-None-left1"},
        ),
        Tested(
            "nothing of it runs",
            "test_durable.py",
            "test_a_hostile_pickle_in_a_checkpoint_runs_nothing",
            {f"a hostile pickle in {name}": name for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")},
        ),
        Tested(
            "the run begins a new rollout",
            "test_durable.py",
            "test_another_micro_batch_begins_a_new_rollout",
            {"a checkpoint of other micro-batches": ""},
        ),
    ],
    "two runs in one folder": [
        Tested(
            "the second is refused with host and process of the first",
            "test_lock.py",
            "test_a_second_run_is_refused_until_the_first_one_is_killed",
            {"a run that is alive": ""},
        ),
        Tested(
            "the next run takes over at once",
            "test_lock.py",
            "test_a_process_that_took_the_number_of_the_dead_one_does_not_hold_its_lock",
            {"a killed run whose process number another process has": ""},
        ),
        Tested(
            "the next run takes over after two minutes without heartbeat",
            "test_lock.py",
            "test_a_run_on_another_machine_counts_as_dead_without_heartbeat",
            {"a run on a machine that died": ""},
        ),
        Tested(
            "the second is refused within a heartbeat",
            "test_lock.py",
            "test_a_run_on_another_machine_that_beats_is_alive",
            {"a run on another machine, on a file system without locks": ""},
        ),
        Tested(
            "the first ends",
            "test_lock.py",
            "test_a_run_beats_and_ends_when_another_one_has_taken_over",
            {"a run that stood still until another took over": ""},
        ),
        Tested("it is taken", "test_lock.py", "test_an_unreadable_lock_is_taken", {"a lock that is cut short": ""}),
    ],
    "reward functions": [
        Tested(
            ONE_SENTENCE,
            "test_guard.py",
            "test_a_fault_is_one_sentence_with_name_step_and_checkpoint",
            {
                f"a function that {name}": name
                for name in (
                    *("raises", "exits", "lets its own time run out", "returns None", "returns text"),
                    *("returns too few", "returns a number"),
                )
            },
        ),
        Tested(
            ONE_SENTENCE,
            "test_guard.py",
            "test_a_function_that_hangs_is_interrupted",
            {"a function that sleeps for ever": "asleep", "one that handles every exception": "handling everything"},
        ),
        Tested(
            ONE_SENTENCE,
            "test_guard.py",
            "test_coroutine_functions_alike",
            {"a coroutine that hangs, raises or exits": ""},
        ),
        Tested(
            ONE_SENTENCE,
            "test_guard.py",
            "test_code_that_no_signal_reaches_is_ended_from_outside",
            {
                "compiled code that never ends": "hangs--9-has not returned after reward_seconds (0.1 s)",
                "a function that ends the process": "leaves-0-ended the process",
            },
        ),
    ],
    "stops": [
        Tested(
            "a checkpoint at the end of the step, status 75, one line; the same command continues",
            "test_stops.py",
            STOPS,
            {"SIGTERM under two processes": ""},
        ),
        Tested("one last line that says how to continue", "test_stops.py", STOPS, {"Ctrl-C": ""}),
        Tested(
            "the run leaves it at the next token, and continues bit for bit like a run left alone",
            "test_stop.py",
            "test_a_run_leaves_at_once_and_goes_on_exactly",
            {"SIGTERM in a rollout": "rollout-2", "SIGTERM in an evaluation": "evaluation-2"},
        ),
        Tested(
            "the step ends first, and a continued run is bit for bit like one left alone",
            "test_stop.py",
            "test_a_run_leaves_at_once_and_goes_on_exactly",
            {"SIGTERM in an optimiser step": "step-3"},
        ),
        Tested(
            "they end first, and nothing begins after them",
            "test_stop.py",
            "test_rewards_and_saves_end_first",
            {"SIGTERM in rewards": "reward", "SIGTERM while a checkpoint is written": "save"},
        ),
        Tested(
            "a checkpoint of the last step",
            "test_stop.py",
            "test_the_evaluation_after_the_training_is_left_with_a_checkpoint",
            {"SIGTERM in the evaluation after the training": ""},
        ),
        Tested(
            "its sentence is the last line",
            "test_stops.py",
            "test_a_refused_recipe_is_the_last_line",
            {"a setting that does not exist": ""},
        ),
    ],
    "changed settings": [
        Tested(
            "it is taken and recorded",
            "test_launch.py",
            "test_resume_goes_on_and_loses_nothing",
            {"a longer run on resume": ""},
        ),
        Tested(
            "it is refused with both values unless it is allowed by name",
            "test_changes.py",
            "test_changes_of_what_is_trained_are_refused_unless_they_are_asked_for",
            {
                "another learning rate on resume": "learning_rate-2e-05",
                "another reward on resume": "rewards-value5",
                "another data set on resume": "dataset_name-gsm8k",
                "another model on resume": "model_name_or_path-other",
            },
        ),
        Tested(
            "it is refused unless it is allowed by name",
            "test_changes.py",
            "test_other_problems_of_the_same_name_are_refused",
            {"a data file of the same name with other problems": ""},
        ),
    ],
    "Python programs": [
        Tested(
            "the call of train is refused with host and process of the first run",
            "test_claim.py",
            "test_a_folder_in_use_is_refused_and_left_alone",
            {"a folder that another run has locked": ""},
        ),
        Tested(
            PASSED_OVER,
            "test_claim.py",
            "test_a_damaged_checkpoint_is_gone_round_and_a_named_one_refused",
            {"a damaged checkpoint in Python": "True"},
        ),
        Tested(
            "they are refused with both values unless they are allowed by name",
            "test_claim.py",
            "test_changed_settings_are_refused_or_recorded",
            {"other settings, data, rewards or adapters on resume in Python": ""},
        ),
        Tested(
            "it begins anew",
            "test_claim.py",
            "test_a_second_call_of_train_begins_anew_even_after_one_that_ended_within_a_step",
            {"a second call of train in one process, after Ctrl-C": ""},
        ),
    ],
    "machines": [
        Tested(
            REFUSED,
            "test_requirements.py",
            "test_a_package_that_is_missing_is_named",
            {
                "no vLLM": "values0-parts0",
                "no DeepSpeed": "values1-parts1",
                "no flash-attn": "values2-parts2",
                "no tracker": "values3-parts3",
            },
        ),
        Tested(
            REFUSED,
            "test_requirements.py",
            "test_processes_fit_the_recipe",
            {
                "fewer GPUs than processes": ("environment7-False-4-started 8 processes on this machine, which has 4"),
                "one process that sees eight GPUs": "environment4-False-8-one process sees 8 GPUs",
            },
        ),
        Tested(
            REFUSED,
            "test_requirements.py",
            "test_a_disk_must_hold_two_checkpoints",
            {"a disk that does not hold two checkpoints": "float32-adamw_torch_fused-12"},
        ),
        Tested(
            REFUSED,
            "test_requirements.py",
            "test_a_port_that_another_process_listens_on_is_named",
            {"a port in use": ""},
        ),
        Tested(
            "the step is skipped, weights and optimizer as they were",
            "test_durable.py",
            "test_a_gradient_that_is_not_finite_changes_nothing",
            {"a gradient that is NaN": "nan-1.0", "an infinite gradient": "inf-1.0"},
        ),
        Tested(
            "the run ends with a sentence",
            "test_durable.py",
            "test_too_many_of_them_in_a_row_end_the_run",
            {"gradients that stay NaN": ""},
        ),
    ],
}
DATA, KILLED = "data files", "killed runs"
PARTS = (*TESTED, DATA, KILLED)


@dataclass
class Outcomes:
    """Pytest plugin that collects the outcome of every test."""

    found: dict[str, Any] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: Any) -> None:
        known = self.found.setdefault(report.nodeid, {"held": True, "seconds": 0.0, "why": ""})
        known["seconds"] += report.duration
        if report.failed or report.skipped:
            known.update(held=False, why=str(report.longrepr).strip().splitlines()[-1][:200])


def run_tested(parts: Sequence[str]) -> dict[str, list[files.Row]]:
    """Run the tests of some parts, once each and in one session: pytest has one in a process."""
    nodes = dict.fromkeys(one.node(fault) for part in parts for one in TESTED[part] for fault in one.faults)
    outcomes = Outcomes()
    if nodes:
        pytest.main([*nodes, "-q", "-p", "no:cacheprovider", "--no-header"], plugins=[outcomes])
    absent = {"held": False, "seconds": 0.0, "why": "there is no such test"}
    return {
        part: [
            {"fault": fault, "must": one.must, **outcomes.found.get(one.node(fault), absent)}
            for one in TESTED[part]
            for fault in one.faults
        ]
        for part in parts
    }


def _train_on(one: Input, model: str, folder: Path) -> tuple[int, str, files.Row]:
    """(status, errors, record of the data) of a run of one step on a data file."""
    folder.mkdir(parents=True)
    one.write(folder / one.name)
    words = (
        "--max_steps 1 --num_generations 4 --per_device_train_batch_size 4 --steps_per_generation 1 "
        "--rewards accuracy --num_dev_problems 0 --num_test_problems 2 --eval_strategy no --save_strategy no "
        "--max_completion_length 8 --disable_tqdm true"
    ).split()
    paths = ("--model_name_or_path", model, "--dataset_name", folder / one.name, "--output_dir", folder / "run")
    result = subprocess.run(
        [sys.executable, "recipes/demo_cpu.yaml", *words, *map(str, paths)],
        cwd=measure.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return result.returncode, result.stderr, files.read_json(folder / "run" / "data.json")


def run_inputs() -> list[files.Row]:
    """Train on every data file for one step, or see it refused."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        model = save_tiny_model(Path(scratch) / "model")
        for number, (fault, one) in enumerate(INPUTS.items()):
            start = time.perf_counter()
            status, errors, data = _train_on(one, model, Path(scratch) / str(number))
            last = errors.strip().splitlines()[-1] if errors.strip() else ""
            if one.told:
                must = "one sentence that names it, before a model loads"
                held = status == 2 and last.startswith("error: ") and all(part in last for part in one.told)
            else:
                must = f"the run trains; {one.kept} of its 12 problems are kept"
                held = status == 0 and data.get("train", 0) + data.get("test", 0) == one.kept
            seconds = time.perf_counter() - start
            rows.append({"fault": fault, "must": must, "held": held, "seconds": seconds, "why": "" if held else last})
            print(rows[-1], flush=True)
    return rows


def run_kills(names: list[str]) -> list[files.Row]:
    """Kill runs of some cases at random moments, and inside saves."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        model = save_tiny_model(Path(scratch) / "model")
        for number, name in enumerate(CASES):
            if name not in names:
                continue
            start = time.perf_counter()
            victims = kill.compare(CASES[name], model, Path(scratch) / str(number), KILLS, seed=number)
            moments = [moment for victim in victims for moment in victim["kills"]]
            inside = sum(moment["in_save"] for moment in moments)
            rows.append(
                {
                    "case": name,
                    "fault": f"{name}: {len(moments)} kills, {inside} inside a save",
                    "must": "weights, metrics and tokens are those of a run left alone, bit for bit",
                    "held": not any(victim["differences"] for victim in victims),
                    "kills": len(moments),
                    "seconds": time.perf_counter() - start,
                    "why": "",
                    "victims": victims,
                }
            )
    return rows


def table(results: files.Row) -> str:
    """The figures as Markdown."""
    parts = {part: results["parts"][part] for part in PARTS if part in results["parts"]}
    rows = [row for part in parts.values() for row in part]
    held = sum(row["held"] for row in rows)
    lines = [("fault", "what must happen", "held")]
    for part, of_part in parts.items():
        lines.append((f"{part}:", "", f"{sum(row['held'] for row in of_part)} of {len(of_part)}"))
        lines += [(row["fault"], row["must"], "yes" if row["held"] else "no") for row in of_part]
    return f"{held} of {len(rows)} faults end as they must.\n\n{markdown_table(lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="of the killed runs")
    parser.add_argument("--table", action="store_true", help="put the table of the recorded results into its page")
    options = parser.parse_args()
    chosen = [] if options.table else options.parts
    tested = run_tested([part for part in chosen if part in TESTED])
    for part in chosen:
        if part == KILLED:
            rows = run_kills(options.cases)
        else:
            rows = run_inputs() if part == DATA else tested[part]
        recorded = files.read_json(RESULTS).get("parts", {})
        if part == KILLED:  # cases that were not run stay as they are recorded
            cases = {row["case"]: row for row in [*recorded.get(part, []), *rows]}
            rows = [cases[name] for name in CASES if name in cases]
        parts = {name: found for name in PARTS if (found := rows if name == part else recorded.get(name))}
        measure.write("faults", "python -m benchmarks.faults", {"parts": parts})
        lost = [row["fault"] for row in parts[part] if not row["held"]]
        print(f"{part}: {len(parts[part])} faults, not held: {lost or 'none'}", flush=True)
    measure.write_block(TABLE, table(files.read_json(RESULTS)))


if __name__ == "__main__":
    main()
