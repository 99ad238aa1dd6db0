"""True and spurious rewards on planted runs: what is told apart, what is claimed, and how often wrongly."""

import json
from dataclasses import fields

import numpy as np
import pytest
from scipy import stats

from entropy_grpo import cli
from entropy_grpo.compare import tables
from entropy_grpo.compare.claims import Trial, pairs, report
from entropy_grpo.compare.compare import compare
from entropy_grpo.config.run import RunConfig
from entropy_grpo.metrics.seeds import holm
from entropy_grpo.rewards import registry

from .test_compare import plant

VARIANTS = {
    "accuracy": {"rewards": ["accuracy"]},
    "random": {"rewards": ["accuracy", "random"], "reward_weights": [0, 1]},
    "inverted": {"rewards": ["accuracy", "inverted"], "reward_weights": [0, 1]},
    "format_only": {"rewards": ["accuracy", "format_only"], "reward_weights": [0, 1]},
}
STARTS = [0.2, 0.25, 0.3]


def runs_of(folder, shares, **settings):
    """Runs of three seeds for each reward, which end with these accuracies."""
    return [
        plant(folder / name / str(seed), end, seed, before=STARTS[seed], **VARIANTS[name], **settings)
        for name, ends in shares.items()
        for seed, end in enumerate(ends)
    ]


ENDS = {
    "accuracy": [0.7, 0.8, 0.75],
    "random": [0.2, 0.2625, 0.2875],
    "inverted": [0.05, 0.0875, 0.15],
    "format_only": [0.4, 0.45, 0.5125],
}


def test_controls_are_those_that_rewards_makes():
    assert set(registry.CONTROL_REWARDS) == {*registry.CONTROLS, "inverted"}
    assert set(registry.CONTROL_REWARDS) <= {*registry.CONTROLS, *registry.GRADED}
    # What a recipe without rewards means.
    assert next(f.default_factory() for f in fields(RunConfig) if f.name == "rewards") == ["accuracy"]


def test_gains_are_paired_with_the_start_and_with_the_control(tmp_path):
    found = compare(runs_of(tmp_path, ENDS))
    assert list(found["groups"]) == [f"reward {name}" for name in ENDS]
    assert found["baseline"] == "reward accuracy" and len(found["differences"]) == 3
    gains, beyond = found["rewards"]["gains"], found["rewards"]["beyond"]
    tested = {name: stats.ttest_rel(ends, STARTS) for name, ends in ENDS.items()}
    for name, expected in tested.items():
        gain = gains[f"reward {name}"]
        assert gain["control"] == (name != "accuracy") and gain["reward"] == name
        interval = expected.confidence_interval()
        assert (gain["low"], gain["high"]) == pytest.approx((interval.low, interval.high))
    corrected = [gain["p_corrected"] for gain in gains.values()]
    assert corrected == pytest.approx(holm([gain.pvalue for gain in tested.values()]))
    more = {name: stats.ttest_rel(ENDS["accuracy"], ENDS[name]) for name in list(ENDS)[1:]}
    assert [test["p_value"] for test in beyond.values()] == pytest.approx([test.pvalue for test in more.values()])
    assert [test["p_corrected"] for test in beyond.values()] == pytest.approx(holm([t.pvalue for t in more.values()]))


def test_each_control_has_its_sentence(tmp_path):
    found = compare(runs_of(tmp_path, ENDS))
    said = {label: test["claim"] for label, test in found["rewards"]["beyond"].items()}
    assert "is not significant (+0.000 [" in said["reward random"]
    assert "can be attributed to accuracy" in said["reward random"]
    # (0.75 - 0.25), (0.4542 - 0.25), by hand
    assert "gains 41% of the true reward's gain (+0.204 of +0.500)" in said["reward format_only"]
    assert (
        "loses accuracy (-0.154" in said["reward inverted"]
        and "At most its own gain, +0.500" in said["reward inverted"]
    )
    text, markdown = tables.as_text(found), tables.as_markdown(found)
    assert all(sentence in text for sentence in said.values())
    assert "| reward format_only |" in markdown
    json.dumps(found)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ({"accuracy": [0.3, 0.2, 0.4], "random": [0.2, 0.3, 0.3]}, "nothing can be claimed"),
        ({"accuracy": [0.2, 0.25, 0.3], "inverted": [0.05, 0.1, 0.1625]}, "itself shows no significant gain"),
        ({"accuracy": [0.3, 0.35, 0.4125], "random": [0.6, 0.6625, 0.7]}, "the control gains more, by +0.300"),
    ],
)
def test_no_more_is_claimed_than_was_found(tmp_path, ends, expected):
    ((test),) = compare(runs_of(tmp_path, ends))["rewards"]["beyond"].values()
    assert expected in test["claim"] and "can be attributed to accuracy" not in test["claim"]


def test_one_seed_is_compared_over_problems_and_says_so(tmp_path):
    runs = [
        plant(tmp_path / name, end, 0, problems=200, before=0.25, **VARIANTS[name])
        for name, end in {"accuracy": 0.75, "random": 0.25}.items()
    ]
    ((test),) = compare(runs)["rewards"]["beyond"].values()
    assert test["over"] == "200 problems" and test["claim"].endswith("so this holds only for these two runs.")
    other = plant(tmp_path / "seed", 0.25, 1, problems=200, before=0.25, **VARIANTS["inverted"])
    unpaired = compare([runs[0], other])["rewards"]["beyond"]["reward inverted"]
    assert "value" not in unpaired and "nothing can be claimed" in unpaired["claim"]


def test_seeds_with_equal_gains_are_not_called_one_seed(tmp_path):
    runs = [
        plant(tmp_path / name / str(seed), end, seed, before=0.0, **VARIANTS[name])
        for name, end in {"accuracy": 1.0, "random": 0.0}.items()
        for seed in range(3)
    ]
    ((test),) = compare(runs)["rewards"]["beyond"].values()
    assert test["over"] == "20 problems" and "One seed" not in test["claim"]
    assert test["claim"].endswith("The difference is the same for all 3 seeds, so this holds only for these runs.")


def test_only_what_else_is_one_recipe_is_set_side_by_side(tmp_path):
    true, other = {"accuracy": [0.7, 0.8, 0.75]}, {"random": [0.2, 0.2, 0.3]}
    runs = runs_of(tmp_path / "a", true, rho=0.2) + runs_of(tmp_path / "b", other, rho=1.0)
    found = compare(runs)
    assert "rewards" not in found and list(found["groups"]) == ["rho 0.2, reward accuracy", "rho 1.0, reward random"]
    runs += runs_of(tmp_path / "c", other, rho=0.2)
    assert list(compare(runs)["rewards"]["beyond"]) == ["rho 0.2, reward random"]
    # Judged by the coin itself, or punished for its length where the other is not.
    judged = [plant(tmp_path / "d", 0.5, 0, before=0.5, rho=0.2, rewards=["random"])]
    found = compare([*runs[:3], *judged])
    assert "rewards" not in found and "answers are judged by accuracy and random" in found["notes"][0]
    assert "rho" not in list(found["groups"])[1] and "judged by random" in list(found["groups"])[1]
    long = {"rewards": ["accuracy", "random", "overlong"], "reward_weights": [0, 1, 0.5]}
    found = compare([*runs[:3], plant(tmp_path / "e", 0.5, 0, before=0.5, rho=0.2, **long)])
    assert "rewards" not in found and "reward random + 0.5 overlong" in found["groups"]
    mixed = {"rewards": ["accuracy", "random"], "reward_weights": [1, 1]}
    assert "rewards" not in compare([*runs[:3], plant(tmp_path / "f", 0.5, 0, before=0.5, rho=0.2, **mixed)])


def test_the_command_tells_it(tmp_path, capsys):
    folders = [str(run.path) for run in runs_of(tmp_path, ENDS)]
    cli.main(["compare", *folders, "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "gain over its own start" in printed and "above reward accuracy" in printed
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())["rewards"]
    assert set(written["beyond"]) == {f"reward {name}" for name in list(ENDS)[1:]}
    assert "can be attributed to" in (tmp_path / "out" / "comparison.md").read_text()


def trials(rng, effects, seeds=3, problems=20, spread=0.03):
    """A true reward and controls whose accuracy rises by `effects`, with noise by seed and by answer."""
    made = []
    starts = rng.uniform(0.3, 0.5, (seeds, problems))
    for name, effect in effects.items():
        ends = starts + effect + rng.normal(0, spread, (seeds, 1))
        sides = [rng.binomial(8, np.clip(side, 0, 1)) / 8 for side in (starts, ends)]
        before, after = ({s: {str(i): x for i, x in enumerate(row)} for s, row in enumerate(side)} for side in sides)
        made.append(Trial(name, name, (name,), "accuracy", "", before, after))
    return made


def test_false_claims_are_as_rare_as_they_should_be():
    """Four hundred draws of three controls: with no difference, one in twenty families claims one, or fewer."""
    rng = np.random.default_rng(0)
    same = dict.fromkeys(("accuracy", *registry.CONTROL_REWARDS), 0.0)
    differing = gaining = found = 0
    for _ in range(400):
        told = report(trials(rng, same))
        gaining += any(gain["p_corrected"] < 0.05 for gain in told["gains"].values())
        differing += any("nothing can be claimed" not in test["claim"] for test in told["beyond"].values())
        told = report(trials(rng, same | {"accuracy": 0.3, "random": 0.3}, seeds=5))["beyond"]
        found += "can be attributed to accuracy" in told["inverted"]["claim"]
    # Three standard errors of a share of 0.05 in 400 draws.
    assert gaining / 400 < 0.05 + 0.033 and differing / 400 < 0.05 + 0.033
    assert differing / 400 > 0.005  # they are made at all
    assert found / 400 > 0.9


def test_a_single_control_is_claimed_wrongly_once_in_twenty():
    rng = np.random.default_rng(1)
    claimed = 0
    for _ in range(600):
        told = report(trials(rng, {"accuracy": 0.2, "random": 0.2}, seeds=4))["beyond"]["random"]
        claimed += "nothing can be claimed" not in told["claim"]
    assert 0.05 - 0.027 < claimed / 600 < 0.05 + 0.027


def test_pairs_take_the_true_reward_of_the_same_recipe():
    def trial(names, recipe="a", judge="accuracy"):
        return Trial("", "", names, judge, recipe, {}, {})

    true, control = trial(("accuracy",)), trial(("random", "format_only"))
    mixed, own, untrained = trial(("accuracy", "random")), trial(("mine:f",), judge="mine:f"), trial(())
    assert pairs([true, control, mixed, own, untrained, trial(("random",), "b")]) == [(true, control)]
