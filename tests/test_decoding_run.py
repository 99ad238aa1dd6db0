"""`entropy-grpo analyze decoding` on a small model: which temperatures at which threshold, and what is written."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from entropy_grpo import cli
from entropy_grpo.analysis.collect.store import Collection
from entropy_grpo.analysis.decoding import run
from entropy_grpo.analysis.decoding.options import Options
from entropy_grpo.evaluation import results


@pytest.fixture
def benchmark(tmp_path):
    path = tmp_path / "walks.jsonl"
    rows = [{"problem": f"go {i} to 9 need +2 with +3 -2 +1\n", "answer": "9"} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


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
        ({"t_high": (-1.0,)}, r"t_high is \[-1.0\]"),
        ({"entropy_threshold": -0.1}, "entropy_threshold is -0.1"),
        ({"thinking": "true"}, "thinking is 'true', which nothing reads without chat"),
    ],
)
def test_wrong_options_are_refused(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        Options("m", tmp_path, **settings)
