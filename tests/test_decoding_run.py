"""`entropy-grpo analyze decoding` on a small model: which temperatures at which threshold, and what is written."""

import gc
import itertools
import json
import sys
import types
import weakref

import numpy as np
import pytest
from matplotlib.image import imread
from transformers import AutoTokenizer, PreTrainedModel

from entropy_grpo import cli
from entropy_grpo.analysis.collect.store import Collection
from entropy_grpo.analysis.decoding import run
from entropy_grpo.analysis.decoding.options import Options
from entropy_grpo.data.benchmarks import find
from entropy_grpo.evaluation import results
from entropy_grpo.evaluation.backends.vllm import VllmBackend
from entropy_grpo.metrics.intervals import share_interval


def save_problems(path, count):
    rows = [{"problem": f"go {i} to 9 need +2 with +3 -2 +1\n", "answer": "9"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def benchmark(tmp_path):
    return save_problems(tmp_path / "walks.jsonl", 4)


def test_the_defaults_are_those_of_the_paper(tmp_path, benchmark):
    """Fig. 3 of arXiv 2506.01939: its axis, and the response length of its text. A task's own limit stays."""
    options = Options("m", tmp_path, [benchmark])
    assert options.t_high == options.t_low == (0, 0.05, 0.3, 0.6, 1, 2, 3, 5)
    lines = [(t, 1) for t in options.t_high] + [(1, t) for t in options.t_low if t != 1]
    assert run.pairs(options) == lines
    task = find("embedded:number_walk")
    assert run.longest(options, [task]) is None and run.longest(options, [task, find("aime24")]) == 28672
    assert run.longest(Options("m", tmp_path, max_tokens=5), [find("aime24")]) == 5


def test_a_grid_has_all_combinations_and_the_average_over_benchmarks(tiny_model, benchmark, tmp_path, capsys):
    """The average gives each benchmark the same weight, whatever its size."""
    other = save_problems(tmp_path / "others.jsonl", 2)
    words = ["--model", tiny_model, "--output", str(tmp_path / "out"), "--benchmarks", f"{benchmark},{other}"]
    words += ["--t-high", "0", "0.5", "--t-low", "1", "1.4", "--grid", "--entropy-threshold", "4.5"]
    cli.main(["analyze", "decoding", *words, "--samples", "2", "--max-tokens", "4", "--backend", "transformers"])
    found = json.loads((tmp_path / "out" / "decoding.json").read_text())
    assert [(one["t_high"], one["t_low"]) for one in found["pairs"]] == [(0, 1), (0, 1.4), (0.5, 1), (0.5, 1.4)]
    for one in found["pairs"]:
        both = [one["benchmarks"][name]["acc@N"]["value"] for name in ("walks", "others")]
        assert one["average"]["value"] == pytest.approx(sum(both) / 2)
    assert "walks" in (printed := capsys.readouterr().out) and "average over benchmarks" in printed
    assert imread(tmp_path / "out" / "decoding.png").std() > 0.05


def test_the_average_over_benchmarks():
    """Of equal sizes it is the mean over all questions, with its interval; of others each has the same weight."""
    a, b = np.array([1.0, 0.0, 0.5, 0.25]), np.array([0.0, 0.0, 1.0, 0.75])
    assert run.average([a, b]) == pytest.approx(share_interval(np.concatenate([a, b])))
    uneven = run.average([a, np.array([1.0])])
    assert uneven["value"] == pytest.approx((a.mean() + 1) / 2) and uneven["low"] < uneven["value"] < uneven["high"]


@pytest.mark.parametrize("drawn", [run.draw, run.draw_grid])
def test_the_average_is_drawn(tmp_path, drawn):
    """Pictures differ if the average differs at one combination of temperatures."""

    def picture(value):
        point = {"acc@N": {"value": 0.5, "low": 0.4, "high": 0.6}}
        found = [
            {"t_high": high, "t_low": low, "benchmarks": {"a": point, "b": point}, "average": point["acc@N"]}
            for high, low in itertools.product((0.0, 1.0), repeat=2)
        ]
        found[1]["average"] = {"value": value, "low": 0.4, "high": 0.9}
        return imread(drawn({"pairs": found}, tmp_path / "picture.png"))

    assert (picture(0.5) != picture(0.8)).any()


def test_the_scored_model_is_gone_when_an_engine_starts(tiny_model, benchmark, tmp_path, monkeypatch):
    """vLLM checks the free memory when it starts. The model that gave the threshold, also in a cycle, must be gone."""
    before = weakref.WeakSet(one for one in gc.get_objects() if isinstance(one, PreTrainedModel))
    options = Options(tiny_model, tmp_path / "out", [benchmark], max_tokens=4, backend="transformers")
    started = []

    class Engine:
        def __init__(self, path, **settings):
            started.append([o for o in gc.get_objects() if isinstance(o, PreTrainedModel) and o not in before])

        def get_tokenizer(self):
            return AutoTokenizer.from_pretrained(tiny_model)

    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=Engine))
    gc.disable()
    try:
        run.own_threshold(options)
        VllmBackend(tiny_model, None, "float32", 1)
    finally:
        gc.enable()
    assert started == [[]]


def test_a_tensor_parallel_engine_is_asked_for(tmp_path):
    assert Options("m", tmp_path, backend="vllm", tensor_parallel=4).tensor_parallel == 4
    with pytest.raises(ValueError, match="tensor_parallel is 4, which nothing reads unless vLLM answers"):
        Options("m", tmp_path, backend="transformers", tensor_parallel=4)


def test_both_curves_are_evaluated_at_the_models_own_threshold(tiny_model, benchmark, tmp_path, capsys):
    words = ["--model", tiny_model, "--output", str(tmp_path / "out"), "--benchmarks", benchmark, "--samples", "2"]
    words += ["--t-high", "0.5", "1.0", "--t-low", "1.0", "1.4", "--max-tokens", "6", "--backend", "transformers"]
    cli.main(["analyze", "decoding", *words])
    found = json.loads((tmp_path / "out" / "decoding.json").read_text())
    own = np.sort(Collection(tmp_path / "out" / "own").column("own", "entropy"))
    # The lower of two neighbours, as everywhere.
    assert found["threshold"] == own[int(0.8 * (len(own) - 1))]
    assert [(one["t_high"], one["t_low"]) for one in found["pairs"]] == [(0.5, 1), (1, 1), (1, 1.4)]
    for one in found["pairs"]:
        samples, figures = results.read(tmp_path / "out" / f"high-{one['t_high']:g}-low-{one['t_low']:g}", "walks")
        settings = figures["settings"]
        asked = (one["t_high"], one["t_low"], found["threshold"], 1.0)
        assert tuple(settings[k] for k in ("t_high", "t_low", "entropy_threshold", "temperature")) == asked
        assert one["benchmarks"]["walks"]["acc@N"] == figures["metrics"]["acc@N"] and samples.num_rows == 8
    printed = capsys.readouterr().out
    assert "T_high  T_low  walks" in printed and imread(tmp_path / "out" / "decoding.png").std() > 0.05


def test_a_given_threshold_is_taken(tiny_model, benchmark, tmp_path):
    options = {"benchmarks": [benchmark], "samples": 1, "max_tokens": 4, "backend": "transformers"}
    run.run(Options(tiny_model, tmp_path / "out", t_high=(2.0,), t_low=(), entropy_threshold=0.672, **options))
    found = json.loads((tmp_path / "out" / "decoding.json").read_text())
    assert (found["threshold"], found["threshold_from"]) == (0.672, "given")
    assert [(one["t_high"], one["t_low"]) for one in found["pairs"]] == [(2, 1)]
    assert not (tmp_path / "out" / "own").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"t_high": (), "t_low": ()}, "t_high and t_low are empty"),
        ({"t_high": (), "grid": True}, r"t_high is \[\], but a grid needs temperatures for both"),
        ({"t_high": (-1.0,)}, r"t_high is \[-1.0\]"),
        ({"entropy_threshold": -0.1}, "entropy_threshold is -0.1"),
        ({"thinking": "true"}, "thinking is 'true', which nothing reads without chat"),
    ],
)
def test_wrong_options_are_refused(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        Options("m", tmp_path, **settings)
