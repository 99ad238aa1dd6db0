"""Plots as images read back: each shows what it is about and nothing else changes it."""

import itertools
import json

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from entropy_grpo.runs import plots
from entropy_grpo.runs.folder import RunFolder

NAMES = ["entropy.png", "kept.png", "reward.png"]


def rows(count=5):
    return [
        {
            "step": step,
            "reward": 0.1 * step,
            "eval_accuracy": 0.05 * step if step % 2 else None,
            "entropy/mean": 0.5 - 0.02 * step,
            **{f"entropy/{key}": 0.1 * i for i, key in enumerate(("p5", "p25", "p50", "p75", "p90", "p95", "p99"))},
            "selection/kept_entropy": 1.0 - 0.05 * step,
            "selection/dropped_entropy": 0.05,
            "selection/threshold": 0.3,
            "selection/kept_fraction": 0.2,
        }
        for step in range(1, count + 1)
    ]


def draw(folder, metrics):
    """Pixels by file name. The run's name, which a picture shows, is the same for all."""
    folder = folder / "run"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    paths = plots.draw(RunFolder(folder))
    assert sorted(paths) == sorted((folder / "plots").iterdir())
    for path in paths:
        with Image.open(path) as image:
            image.verify()
            assert image.format == "PNG" and min(image.size) > 300
    return {path.name: matplotlib.image.imread(path) for path in paths}


def differing(one, other):
    return [name for name in NAMES if not np.array_equal(one[name], other[name])]


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("usual"), rows())


def test_the_plots_are_images_with_something_on_them(tmp_path, usual):
    # Rows without any known metric are fine, and leave the axes empty.
    empty = draw(tmp_path, [{"step": 0, "test_before_loss": 0.1}, {"step": 1, "train_runtime": 3.0}])
    assert sorted(usual) == sorted(empty) == NAMES
    assert differing(empty, usual) == NAMES


def test_accuracy_on_test_problems_begins_at_step_0(tmp_path, usual):
    accuracy = {"value": 0.2, "low": 0.15, "high": 0.25}
    found = {}
    for name, sides in (("before", ["before"]), ("both", ["before", "after"])):
        folder = tmp_path / name / "run"
        folder.mkdir(parents=True)
        (folder / "evaluation.json").write_text(json.dumps({side: {"accuracy": accuracy} for side in sides}))
        found[name] = draw(tmp_path / name, rows())
    assert differing(found["before"], usual) == differing(found["both"], found["before"]) == ["reward.png"]
    assert plots.accuracy_on_test(rows(), {"before": {"accuracy": accuracy}}) == ([0], [accuracy])


def test_a_run_that_goes_on_has_no_point_of_its_earlier_end(tmp_path):
    measured, last = {"accuracy": {"value": 0.2, "low": 0.15, "high": 0.25}}, rows()[-1]["step"]
    found = {}
    for name, evaluation in (
        ("start", {"before": measured}),
        ("end", {"before": measured, "after": measured, "step": last}),
        ("earlier", {"before": measured, "after": measured, "step": last - 1}),
    ):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "evaluation.json").write_text(json.dumps(evaluation))
        found[name] = draw(tmp_path / name, rows())
    assert differing(found["earlier"], found["start"]) == [] and differing(found["end"], found["start"]) != []


def test_low_percentiles_are_off_the_axis(tmp_path, usual):
    """Values of a real run: 2e-6, 1e-4 and 8e-4 nats lie at heights that a reader tells apart."""
    small = [row | {"entropy/p5": 2e-6, "entropy/p25": 1e-4, "entropy/p50": 8e-4} for row in rows()]
    figure = plots.entropy_figure(small)
    (axes,) = figure.axes
    heights = [axes.transAxes.inverted().transform(axes.transData.transform((0, y)))[1] for y in (0, 2e-6, 1e-4, 8e-4)]
    assert all(b - a > 0.02 for a, b in itertools.pairwise(heights)), heights


@pytest.mark.parametrize(("lowest", "bottom_is_0"), [(-0.9, False), (0.0, True), (0.4, True)])
def test_every_reward_is_in_the_picture(lowest, bottom_is_0):
    metrics = [row | {"reward": lowest + 0.1 * row["step"] - 0.1} for row in rows()]
    (axes,) = plots.reward_figure(metrics, {}).axes
    bottom, top = axes.get_ylim()
    assert all(bottom <= row["reward"] <= top for row in metrics)
    assert (bottom == 0) == bottom_is_0


def test_the_same_metrics_give_the_same_plots(tmp_path, usual):
    assert differing(draw(tmp_path, rows()), usual) == []


@pytest.mark.parametrize(
    "key, plot",
    [
        ("reward", "reward.png"),
        ("eval_accuracy", "reward.png"),
        ("entropy/mean", "entropy.png"),
        ("entropy/p99", "entropy.png"),
        ("selection/threshold", "entropy.png"),
        ("selection/kept_fraction", "kept.png"),
        ("selection/dropped_entropy", "kept.png"),
    ],
)
def test_a_metric_changes_its_own_plot_alone(tmp_path, usual, key, plot):
    metrics = rows()
    metrics[2][key] = 0.9
    assert differing(draw(tmp_path, metrics), usual) == [plot]


def test_entropies_of_steps_are_drawn_if_the_run_logs_none_of_its_rollouts(tmp_path, usual):
    both = [row | {f"step_{key}": 9.0 for key in row if key.startswith("entropy/")} for row in rows()]
    assert differing(draw(tmp_path / "both", both), usual) == []
    renamed = [{key.replace("entropy/", "step_entropy/"): value for key, value in row.items()} for row in rows()]
    of_steps = draw(tmp_path / "steps", renamed)
    assert differing(of_steps, usual) == ["entropy.png"]
    without = [{key: value for key, value in row.items() if "entropy/" not in key} for row in renamed]
    assert differing(draw(tmp_path / "none", without), of_steps) == ["entropy.png"]


def test_the_plateau_is_marked_where_it_was_found(tmp_path, usual):
    def with_stages(name, stages):
        return draw(tmp_path / name, [row | {"stage": stage} for row, stage in zip(rows(), stages, strict=True)])

    assert differing(with_stages("rising", [0] * 5), usual) == []
    found = with_stages("plateau", [0, 0, 1, 1, 1])
    assert differing(found, usual) == ["entropy.png", "reward.png"]
    assert differing(with_stages("later", [0, 0, 0, 1, 1]), found) == ["entropy.png", "reward.png"]


def test_a_value_is_drawn_at_its_own_step(tmp_path, usual):
    metrics = rows()
    metrics[-1]["step"] = 9
    assert differing(draw(tmp_path, metrics), usual) == NAMES


def test_a_missing_value_is_left_out_of_its_own_curve(tmp_path):
    without_keys, without_row = rows(), rows()
    without_keys[2] = {"step": 3}
    del without_row[2]
    assert differing(draw(tmp_path / "keys", without_keys), draw(tmp_path / "row", without_row)) == []


def test_missing_and_null_values_are_the_same(tmp_path):
    missing, null = rows(), rows()
    for key in ("reward", "entropy/p50", "selection/kept_entropy", "selection/threshold", "eval_accuracy"):
        for i in (0, 3):
            missing[i].pop(key)
            null[i][key] = None
    one = draw(tmp_path / "missing", missing)
    assert differing(one, draw(tmp_path / "null", null)) == []


def test_no_metrics_no_files(tmp_path):
    assert plots.draw(RunFolder(tmp_path)) == []
    (tmp_path / "metrics.jsonl").write_text("")
    assert plots.draw(RunFolder(tmp_path)) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "rew')
    assert plots.draw(RunFolder(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_that_goes_on_draws_over_its_plots(tmp_path, usual):
    draw(tmp_path, rows(2))
    assert differing(draw(tmp_path, rows()), usual) == []


def curve(shift=0.0, largest=8):
    return {k: {"value": 0.4 + shift, "low": 0.3 + shift, "high": 0.5 + shift} for k in range(1, largest + 1)}


def pass_at_k(path, curves):
    assert plots.pass_at_k(curves, path, "a test") == path
    return matplotlib.image.imread(path)[..., :3]


def test_pass_at_k_draws_each_model_in_its_colour_at_its_height(tmp_path):
    image = pass_at_k(tmp_path / "two.png", {"base": curve(), "trained": curve(0.3)})
    heights = []
    for colour in plots.COLOURS[:2]:
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        # The line crosses the right half, where no legend is.
        rows = np.nonzero(np.all(np.abs(image[:, 400:800] - wanted) < 0.01, axis=-1).sum(1) > 200)[0]
        assert rows.size
        heights.append(rows.mean())
    assert heights[1] < heights[0] - 50  # rows of pixels count from the top
    assert image.shape[1] >= 800


def test_pass_at_k_takes_what_json_made_of_the_keys(tmp_path):
    drawn = pass_at_k(tmp_path / "numbers.png", {"base": curve(largest=12)})
    again = pass_at_k(tmp_path / "text.png", json.loads(json.dumps({"base": curve(largest=12)})))
    assert np.array_equal(drawn, again)
    wider = {k: {**interval, "low": 0.1} for k, interval in curve(largest=12).items()}
    assert not np.array_equal(drawn, pass_at_k(tmp_path / "wider.png", {"base": wider}))


@pytest.mark.parametrize("count", [0, len(plots.COLOURS) + 1])
def test_pass_at_k_refuses_more_models_than_it_has_colours(tmp_path, count):
    with pytest.raises(ValueError, match=f"curves has {count} models"):
        plots.pass_at_k({str(i): curve() for i in range(count)}, tmp_path / "many.png", "a test")


def grey(colour):
    """Luminance from 0 to 1, as on a grey printer."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_curves_differ_without_colour():
    """Ten arms: every pair has another dash, and another marker or another brightness; each is visible on white."""
    looks = [plots.style(number) for number in range(28)]
    assert len({(look["linestyle"], look["marker"]) for look in looks}) == 28
    for one, other in itertools.combinations(looks[:10], 2):
        brightness = abs(grey(one["color"]) - grey(other["color"]))
        assert (one["linestyle"], one["marker"]) != (other["linestyle"], other["marker"]), (one, other)
        assert brightness > 0.03 or one["linestyle"] != other["linestyle"], (one, other)
    assert all((1 + 0.05) / (grey(colour) ** 2.2 + 0.05) > 2 for colour in plots.COLOURS)


def test_a_picture_names_its_source_and_is_readable_at_800_pixels(tmp_path):
    figure = plots.entropy_figure(rows())
    path = plots.save(figure, tmp_path / "new" / "x.png", "runs/$a/metrics.jsonl")
    other = plots.save(figure, tmp_path / "y.png", "elsewhere")
    image, again = matplotlib.image.imread(path), matplotlib.image.imread(other)
    own = round(figure.get_figheight() * plots.DPI)
    assert image.shape == again.shape == (own + round(plots.SOURCE_INCHES * plots.DPI), image.shape[1], 4)
    assert np.array_equal(image[:own], again[:own]) and not np.array_equal(image[own:], again[own:])
    assert image[own:, :, :3].min() < 0.5 and np.all(image[[own, -1], :, :3] == 1)  # a whole line of text
    assert image.shape[1] >= 800
    # Height of a letter in pixels on a picture that a page shows at 800 pixels.
    texts = [*figure.axes[0].get_xticklabels(), *figure.legends[0].get_texts()]
    assert all(text.get_fontsize() / 72 * plots.DPI * 800 / image.shape[1] >= 10 for text in texts)


def test_a_long_source_has_lines_and_none_is_cut(tmp_path):
    source = (
        "benchmarks/results/reproduce_words.json: 3 seeds, curves are means over them, bands reach from the lowest "
    )
    image = matplotlib.image.imread(plots.save(plots.entropy_figure(rows()), tmp_path / "x.png", 2 * source))
    own = round(4 * plots.DPI)
    below = image[own:, :, :3].min(axis=(1, 2)) < 0.5  # rows with ink
    assert np.count_nonzero(below[1:] & ~below[:-1]) == 2 == (image.shape[0] - own) / (plots.SOURCE_INCHES * plots.DPI)
    assert np.all(image[own:, -5:, :3] == 1), "a line is cut at the right edge"


@pytest.mark.parametrize("name", ["$x^$", "_a", "a\nb", "b\udcff", "\\$", "___"])
def test_a_picture_takes_any_name(tmp_path, name):
    """Of a model, a run or a benchmark: no formula, no hidden entry of a legend, one line."""
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    plots.pass_at_k({name: {1: interval, 2: interval}}, tmp_path / "k.png", name)
    plots.comparison({name: {"reward": {1: interval, 2: interval}}}, {"reward": "reward"}, tmp_path / "c.png", name)
    plots.gain_by_size({name: {"reward": {"1000": interval}}}, name, {}, tmp_path / "g.png")
    assert len(list(tmp_path.iterdir())) == 3
    assert not plots.plain(name).startswith("_") and len(plots.plain(name).splitlines()) == 1
