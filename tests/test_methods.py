"""Methods by name: their settings, their faults, and the loss with them against the formula in float64."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.fixtures import fixed_rollout
from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.compare.sweep import variants
from entropy_grpo.config.methods import SHORT_FORMS
from entropy_grpo.config.recipe import RecipeError, build, checked, load, overrides
from entropy_grpo.objective.methods.entries import parse
from entropy_grpo.objective.methods.masks import MASKS
from entropy_grpo.objective.methods.registry import REGISTERED
from entropy_grpo.objective.methods.run import MethodError, Methods, make_view
from entropy_grpo.objective.methods.run import call as call_entry
from entropy_grpo.objective.objective import Objective
from entropy_grpo.objective.ranks import ALONE
from entropy_grpo.objective.selection import SELECTIONS
from entropy_grpo.objective.tokens import with_gradient
from entropy_grpo.objective.window import Pass

from . import own_methods, reference
from .conftest import REPOSITORY
from .test_objective import assert_close, make_batches, make_trainer, run_window, set_old_logps

OWN = "tests.own_methods:"
UNCLIPPED = {"epsilon": 1.0, "epsilon_high": 1e6}
SHAPING = [f"{name}_shaping_{key}" for name in ("ppl", "position") for key in ("start", "end")]
SHAPING += ["ppl_shaping_alpha", "position_shaping_gamma"]


def config(tmp_path, **settings):
    settings = {"use_cpu": True, "bf16": False, "num_generations": 4} | settings
    return EntropyForkGRPOConfig(str(tmp_path), **settings)


# Settings


@pytest.mark.parametrize(
    ("setting", "entry", "words"),
    [
        ("token_weights", "stapoo", "token_weights names 'stapoo', which does not exist. Did you mean stapo?"),
        ("advantages", "stapo", "advantages names 'stapo', which is of the kind weight: name it in token_weights"),
        ("advantages", {"k": 0.4}, "advantages has the entry {'k': 0.4} without a name"),
        ("advantages", {"name": "qae", "kk": 0.4}, "qae has no parameter kk .value 0.4.. Did you mean k?"),
        ("advantages", {"name": "qae", "k": "much"}, "k of qae is 'much', which should be a valid number"),
        ("advantages", {"name": "qae", "k": 1.5}, "k of qae is 1.5, which should be less than or equal to 1"),
        (
            "advantages",
            {"name": "qae", "start": 5, "end": 5},
            "start of qae is 5 and end is 5: set the end to a later",
        ),
        ("advantages", {"name": "qae", "start": 1, "plateau_steps": 5}, "plateau_steps of qae replaces start and end"),
        ("advantages", {"name": "qae", "end": -1}, "end of qae is -1: it must be 0 or more"),
        ("token_weights", OWN + "nothing", "own_methods:nothing', which cannot be imported"),
        ("token_weights", OWN + "torch", "own_methods:torch', which is no function"),
        (
            "token_weights",
            {"name": OWN + "plain", "factor": True},
            "factor of .*plain is True, which should be a valid",
        ),
        ("advantages", "hicra", "hicra needs ngrams: add ngrams to the entry"),
        ("token_weights", {"name": "random", "rho": 2.0}, "rho of random is 2.0, which should be less than"),
        ("token_weights", {"name": "random", "start": 3}, "start of random: a selection of tokens has no schedule"),
    ],
)
def test_an_entry_that_cannot_run_is_refused_before_a_model_loads(tmp_path, setting, entry, words):
    with pytest.raises(ValueError, match=words.replace("{", r"\{")):
        config(tmp_path, **{setting: [entry]})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"advantages": ["qae", "qae"]}, "advantages names 'qae' twice"),
        ({"advantages": [OWN + "louder", "qae"]}, "qae follows .*louder but runs before it"),
        (
            {"advantages": ["w_reinforce"], "dynamic_sampling": True},
            "w_reinforce, which trains on groups that are all",
        ),
        (
            {"token_weights": ["stapo"], "loss_type": "grpo", "entropy_denominator": "all"},
            "stapo.* use loss_type dapo",
        ),
        (
            {"token_weights": ["stapo"], "entropy_scope": "micro_batch"},
            "stapo.* set entropy_scope to global or rollout",
        ),
        (
            {"token_weights": ["stapo"], "entropy_selection": "random_matched"},
            "stapo.* choose another entropy_selection",
        ),
        ({"token_weights": ["aspo"], "importance_sampling_level": "sequence"}, "aspo.* set it to 'token'"),
        (
            {
                "token_weights": ["erc"],
                "top_entropy_quantile": 1.0,
                "gradient_accumulation_steps": 2,
                "steps_per_generation": 3,
            },
            "erc, which sees whole optimiser steps: set steps_per_generation",
        ),
        ({"token_weights": ["aspo"], "delta": 10.0}, "aspo, whose limit .*, but delta is 10: set delta to null"),
        (
            {"token_weights": ["fipo"], "delta": 3.0},
            "fipo, whose threshold 10 .*, but delta is 3: set delta to 10, or",
        ),
        ({"token_weights": [{"name": "fipo", "threshold": 5.0}], "delta": 10.0}, "fipo, whose threshold 5 is"),
        ({"advantages": ["kl_cov"]}, "kl_cov, whose loss clips no ratio, but epsilon is 0.2, epsilon_high is 0.28"),
        ({"advantages": ["kl_cov"], "epsilon": 1.0}, "kl_cov, whose loss clips no ratio, but epsilon is 1, epsilon_"),
        ({"advantages": ["kl_cov"], "epsilon_high": 1e6}, "kl_cov, whose loss clips no ratio, but epsilon is 0.2,"),
        (
            {"advantages": ["kl_cov"], "delta": 10.0} | UNCLIPPED,
            "kl_cov, whose loss .* and delta is 10.0: set epsilon",
        ),
        ({"advantages": ["kl_cov"], "loss_type": "vespo"}, "kl_cov, whose gradient .* but loss_type is 'vespo': use"),
        ({"advantages": "qae"}, "advantages is 'qae': write a list of entries"),
        (
            {"token_weights": [{"name": "random", "rho": 0.5}], "top_entropy_quantile": 0.3},
            "random with top_entropy_quantile 0.5, but top_entropy_quantile is 0.3: leave one of the two out",
        ),
        (
            {"advantages": ["ppl"], "ppl_shaping_alpha": 0.2},
            "ppl with ppl_shaping_alpha 0.01, but ppl_shaping_alpha is",
        ),
    ],
)
def test_combinations_that_no_loss_computes_are_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        config(tmp_path, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"advantages": ["kl_cov"]} | UNCLIPPED,
        {"token_weights": ["fipo"]},
        {"token_weights": ["fipo"], "delta": 10.0},
        {"token_weights": ["aspo", "archer_clip"]},
    ],
    ids=str,
)
def test_the_clip_that_a_method_is_made_for_is_accepted(tmp_path, settings):
    assert Objective.from_args(config(tmp_path, **settings)).entries()


@pytest.mark.parametrize(
    ("entries", "short"),
    [
        (
            {"token_weights": [{"name": "random", "rho": 0.3, "scope": "rollout", "denominator": "all"}]},
            {
                "top_entropy_quantile": 0.3,
                "entropy_selection": "random",
                "entropy_scope": "rollout",
                "entropy_denominator": "all",
            },
        ),
        ({"token_weights": ["forking"], "top_entropy_quantile": 1.0}, {}),
        (
            {"advantages": [{"name": "ppl", "alpha": 0.2, "end": 4}, {"name": "position", "start": "2 rollouts"}]},
            {
                "ppl_shaping_alpha": 0.2,
                "ppl_shaping_end": 4,
                "position_shaping_gamma": 0.1,
                "position_shaping_start": "2 rollouts",
            },
        ),
    ],
)
def test_an_entry_and_its_short_form_are_one_run(tmp_path, entries, short):
    sizes = {"prompts_per_rollout": 4, "steps_per_rollout": 2}
    first, second = config(tmp_path, **entries, **sizes), config(tmp_path, **short, **sizes)
    assert first.to_dict() == second.to_dict()
    assert Objective.from_args(first) == Objective.from_args(second)


@pytest.mark.parametrize(
    "names",
    [
        ["ppl", "qae"],
        ["qae", "ppl"],
        ["psr", "ppl", "qae", "position"],
        ["ppl", "position", "hicra"],
        ["hicra", "position"],
    ],
    ids="-".join,
)
def test_entries_with_short_forms_run_in_the_order_given(tmp_path, names):
    ngrams = {"hicra": {"name": "hicra", "ngrams": "recipes/planning_phrases.txt"}}
    end = {"ppl_shaping_end": "8 rollouts"} if "ppl" in names else {}
    made = config(tmp_path, advantages=[ngrams.get(name, name) for name in names], **end)
    again = config(tmp_path, **{name: getattr(made, name) for name in ("advantages", *SHAPING)})
    for args in (made, again, config(tmp_path, **{key: made.as_given()[key] for key in ("advantages", *SHAPING)})):
        entries = Objective.from_args(args).entries()
        assert [entry.name for entry in entries] == names
        assert all(e.record()["schedule"]["end"] == 8 for e in entries if e.name == "ppl")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["kl_cov", "ppl"], "ppl follows kl_cov but runs before it"),
        (["position", "ppl"], "ppl follows position but runs before it"),
        (["ppl", "ppl"], "names 'ppl' twice"),
    ],
)
def test_an_order_that_no_run_has_is_refused(tmp_path, names, words):
    with pytest.raises(ValueError, match=words):
        config(tmp_path, advantages=names)


def by_parity(completion_ids, **kwargs):
    return [float(sum(ids) % 2) for ids in completion_ids]


def test_what_runs_before_a_quantile_of_rewards_is_replaced_by_it(tiny_model, tmp_path):
    """QAE reads rewards alone, so that PPL shaping changes a run only after it."""
    batch = {"max_steps": 1, "learning_rate": 0.05}
    ppl = {"name": "ppl", "alpha": 0.3}
    alone, before, after = (
        fixed_rollout.weights(
            fixed_rollout.train(tiny_model, tmp_path, reward=by_parity, advantages=advantages, **batch)
        )
        for advantages in (["qae"], [ppl, "qae"], ["qae", ppl])
    )
    assert all(torch.equal(weight, before[name]) for name, weight in alone.items())
    assert not all(torch.equal(weight, after[name]) for name, weight in alone.items())


@pytest.mark.parametrize("first", MASKS)
@pytest.mark.parametrize("second", MASKS)
def test_two_selections_are_refused(tmp_path, first, second):
    words = (
        f"token_weights names {first!r} twice" if first == second else f"names {first} and {second}, and a step has"
    )
    for entry in (second, {"name": second, "rho": 0.5}):
        with pytest.raises(ValueError, match=words):
            config(tmp_path, token_weights=[first, "erc", entry])


@pytest.mark.parametrize("name", MASKS)
def test_an_entry_beside_another_selection_is_refused(tmp_path, name):
    for kind in SELECTIONS:
        if kind not in ("top", MASKS[name]):  # `top` is the default, which a configuration cannot tell from no setting
            with pytest.raises(ValueError, match=f"{name} with entropy_selection '{MASKS[name]}', but entropy_selec"):
                config(tmp_path, token_weights=[name], entropy_selection=kind)


@pytest.mark.parametrize("scope", ["rollout", "global"])
def test_the_forking_mask_trains_alike_in_its_short_form(tiny_model, tmp_path, scope):
    """Two steps of one rollout, and weights equal to the last bit."""
    batch = {"per_device_train_batch_size": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 2}
    batch |= {"max_steps": 2, "learning_rate": 0.5, "entropy_scope": scope}
    short, entry = {"top_entropy_quantile": 0.2}, {"token_weights": [{"name": "forking", "rho": 0.2, "scope": scope}]}
    first, second = (
        fixed_rollout.weights(fixed_rollout.train(tiny_model, tmp_path / name, **batch | spelling))
        for name, spelling in (("short", short), ("entry", entry))
    )
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    start = fixed_rollout.weights(fixed_rollout.make_trainer(tiny_model, tmp_path / "start"))
    assert any((weight != start[name]).any() for name, weight in first.items())


def test_defaults_of_an_entry_are_those_of_its_short_form():
    defaults = {field.name: field.default for field in dataclasses.fields(EntropyForkGRPOConfig)}
    for name, forms in SHORT_FORMS.items():
        parameters = REGISTERED[name].parameters
        strength, *others = [key for key in forms if key in parameters]
        assert defaults[forms[strength]] in (None, parameters[strength].default)  # None: the method is not used
        for key in others:
            assert parameters[key].default == defaults[forms[key]], (name, key)


SIGNATURES = "tests.own_signatures:"


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        (
            "typed_for_checkers",
            {"power": "much"},
            "power of .*typed_for_checkers is 'much', which should be",
        ),
        ("typed_for_checkers", {"most": "much"}, "most of .*typed_for_checkers is 'much', which should be a valid"),
        ("untyped", {"power": "much"}, "power of .*untyped is 'much', which should be a valid number"),
        ("untyped", {"number": "two"}, "number of .*untyped is 'two', which should be a valid"),
        ("untyped", {"text": 2}, "text of .*untyped is 2, which should be a valid string"),
        ("untyped", {"flag": 1}, "flag of .*untyped is 1, which should be a valid boolean"),
        ("of_no_type", {"power": "much"}, "power of .*of_no_type is 'much'"),
        ("of_no_type", {"other": "much"}, "other of .*of_no_type is 'much'"),
        ("any_keyword", {"power": "much"}, "power of .*any_keyword is 'much'"),
        ("any_keyword", {"view": 1.0}, "any_keyword has no parameter view"),
        ("any_arguments", {"pover": 1.0}, "any_arguments has no parameter pover .value 1.0.. Did you mean power"),
        ("declared", {"share": 2.0}, "share of .*declared is 2.0, which should be less than or equal to 1"),
        ("squared", {"power": "much"}, "power of .*squared is 'much'"),
        ("half_declared", {"share": 2.0}, "share of .*half_declared is 2.0, which should be less"),
        ("scaled", {"power": "much"}, "power of .*scaled is 'much'"),
        ("scaled", {"scale": 2.0}, "scaled has no parameter scale"),
        ("shaped", {}, "which is of the kind advantage"),
    ],
)
def test_keywords_of_every_signature_are_checked(tmp_path, name, params, words):
    with pytest.raises(ValueError, match=words) as error:
        config(tmp_path, token_weights=[{"name": SIGNATURES + name} | params])
    assert str(error.value).startswith("token_weights") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "params", "value"),
    [
        ("typed_for_checkers", {"powers": [2.0], "power": 3}, 12.0),
        ("untyped", {"number": 0.5, "flag": True, "powers": [1, 2]}, 1.0),
        ("of_no_type", {"other": 3}, 3.0),
        ("any_keyword", {"power": 2, "more": 0.25, "others": 0.25}, 2.5),
        ("any_keyword", {}, 1.0),
        ("any_arguments", {"power": 2.5}, 2.5),
        ("squared", {}, 2.0),
        ("squared", {"power": 2.5}, 2.5),
        ("half_declared", {}, 0.25),
        ("twice_declared", {"share": 1.0}, 2.0),
        ("scaled", {"power": 0.5}, 1.5),
    ],
)
def test_functions_of_every_signature_run(tmp_path, name, params, value):
    spec = Objective.from_args(config(tmp_path, token_weights=[{"name": SIGNATURES + name} | params]))
    (entry,) = spec.token_weights
    assert (entry.method.stage, entry.moment) == (("loss", "loss") if "declared" in name else ("step", "step"))
    (inputs,) = make_batches((8,))
    noise = inputs.pop("noise")
    view = make_view(inputs, Pass(noise, noise.abs()), entry.moment, group_size=4, ranks=ALONE)
    assert call_entry(entry, view)[view.mask].unique().tolist() == [value]
    json.dumps(entry.record())
    assert len(entry.digest) == 64


OTHER_TYPES = {"number": 5, "none": None, "function": own_methods.plain, "pairs": [("name", "stapo")]}


@pytest.mark.parametrize("given", OTHER_TYPES.values(), ids=OTHER_TYPES)
def test_an_entry_of_another_type_is_one_sentence(tmp_path, given):
    with pytest.raises(ValueError, match=r"token_weights has the entry .* without a name: write NAME"):
        config(tmp_path, token_weights=[given])


def test_a_function_without_a_signature_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"token_weights names 'torch:abs', whose signature .*: write a function"):
        config(tmp_path, token_weights=["torch:abs"])


def test_entries_come_from_recipes_and_from_the_command_line(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(f"token_weights: [{{name: stapo, q: 0.5}}, '{OWN}plain']\nadvantages: [{{name: qae, k: 1}}]\n")
    base = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "num_generations": 4}
    base = overrides([word for key, value in base.items() for word in (f"--{key}", str(value).lower())])
    (made,) = build(load(path) | base, [EntropyForkGRPOConfig])
    assert [e.name for e in Objective.from_args(made).entries()] == ["qae", "stapo", OWN + "plain"]
    (words,) = variants(["token_weights=[{name: stapo, q: 0.25}]"], [])  # as a sweep passes them on
    (made,) = build(load(path) | base | overrides(words), [EntropyForkGRPOConfig])
    assert made.token_weights == [{"name": "stapo", "q": 0.25}]
    (made,) = build(load(path) | base | overrides(["--token_weights", "erc", "stapo"]), [EntropyForkGRPOConfig])
    assert made.token_weights == ["erc", "stapo"]
    with pytest.raises(RecipeError, match=r"one.yaml:1: token_weights: q of stapo is 2, which should be less"):
        path.write_text("token_weights: [{name: stapo, q: 2}]\n")
        build(load(path) | base, [EntropyForkGRPOConfig])


def test_a_record_has_parameters_papers_and_the_digest_of_a_users_file(tmp_path):
    import hashlib

    made = config(tmp_path, token_weights=["stapo", {"name": OWN + "by_id", "least": 0.1}], advantages=["qae"])
    record = json.loads(json.dumps(Objective.from_args(made).record(), allow_nan=False))
    first, second = record["token_weights"]
    assert first["parameters"] == {"tau_p": 0.002, "q": 0.75} and first["paper"] == "arXiv 2602.15620"
    digest = hashlib.sha256((REPOSITORY / "tests" / "own_methods.py").read_bytes()).hexdigest()
    assert (second["parameters"], second["source_sha256"]) == ({"least": 0.1}, digest)
    assert record["advantages"][0]["name"] == "qae" and record["shaping"] == []


def test_every_method_declares_a_paper_or_is_a_control():
    assert {name for name, method in REGISTERED.items() if not method.paper} == {
        "random",
        "gradient_norm",
        "random_matched",
    }


# Faults


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", "fails at step 3: KeyError: 'no such.*key'"),
        ("of_another_shape", r"returns the shape \(8,\) instead of \(8, 11\) at step 3"),
        ("not_finite", "returns a value that is not finite"),
        ("negative", "returns a negative weight"),
        ("with_gradient", "returns a tensor with a gradient: detach it"),
        ("whole_numbers", "returns int64 instead of float32"),
        ("no_tensor", "returns float instead of a tensor"),
        ("in_place", "changes advantages of the view in place"),
        ("undeclared", "fails at step 3: AttributeError: 'NoneType' .* does not declare in needs are None"),
        (
            "statistics_in_the_loss",
            "fails at step 3: RuntimeError: over_ranks needs all tokens of the optimiser step.*declare the stage step",
        ),
        ("revives", "gives an advantage to tokens without one: declare revives=True"),
    ],
)
def test_faults_of_a_function_are_one_sentence_with_its_name(name, words):
    setting = "advantages" if name == "revives" else "token_weights"
    (entry,) = parse(setting, [OWN + name])
    (inputs,) = make_batches((8,))
    inputs["advantages"][3] = 0.0
    noise = inputs.pop("noise")
    view = make_view(inputs, Pass(noise, noise.abs()), "step", group_size=4, ranks=ALONE, step=2)
    with pytest.raises(MethodError, match=f"^{setting}: {OWN}{name} {words}") as error:
        call_entry(entry, view)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", ["negative", "statistics_in_the_loss"])
def test_a_fault_ends_the_first_step_before_weights_change(tiny_model, tmp_path, accumulation, name):
    settings = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 8 // accumulation}
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path, token_weights=[OWN + name], **settings)
    before = fixed_rollout.weights(trainer)
    with pytest.raises(MethodError, match=f"token_weights: {OWN}{name} .*at step 1"):
        trainer.train()
    after = fixed_rollout.weights(trainer)
    assert all(torch.equal(weight, after[key]) for key, weight in before.items())


# The loss


def reference_loss(tiny_model, batches, settings):
    """Loss and gradient of a step in float64, from the methods' formulas as tensors of all its tokens."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    b = {key: torch.cat([batch[key] for batch in batches]) for key in (*keys, "advantages", "old_per_token_logps")}
    logps, entropies = reference.score(model, *(b[key] for key in keys), 0.7)
    mask, old = b["completion_mask"].bool(), b["old_per_token_logps"].double()
    places = torch.arange(mask.size(1)) * len(mask) + torch.arange(len(mask)).unsqueeze(1)
    kept = reference.top(entropies.detach(), mask, settings["top_entropy_quantile"], places)
    advantages = b["advantages"].double().unsqueeze(1).expand_as(logps)
    current, valid, others = logps.detach(), torch.ones_like(logps), torch.ones_like(logps)
    names = [str(e).removeprefix(OWN) for e in (*settings.get("token_weights", []), *settings.get("advantages", []))]
    if "by_id" in names:
        valid = 0.5 + 0.5 * (b["completion_ids"] % 7) / 6
    if "around_the_mean" in names:
        far = (current - current[mask].mean()).abs()
        others = others * far / (1 + far) * (entropies >= entropies[mask].quantile(0.3))
    if "in_the_loss" in names:
        others = others / (1 + (current - old).exp()) * entropies
    if "louder" in names:
        advantages = advantages * (1 + (entropies > entropies[mask].mean()).double())
    ratio = torch.exp(logps - old)
    surrogate = torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    loss = -(surrogate * (kept * valid * others).detach())[mask].sum() / (kept * valid)[mask].sum().detach()
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("rho", "head"), [(0.5, "auto"), (1.0, "trl")])
@pytest.mark.parametrize("sizes", [(3, 5), (8,)], ids=str)
@pytest.mark.parametrize(
    ("weights", "advantages"),
    [(["by_id", "around_the_mean"], []), (["in_the_loss"], ["louder"]), (["in_the_loss", "by_id"], [])],
    ids=["step", "loss", "both"],
)
def test_loss_and_gradient_are_the_formula(tiny_model, tmp_path, weights, advantages, sizes, rho, head):
    settings = {"token_weights": [OWN + name for name in weights], "advantages": [OWN + name for name in advantages]}
    settings |= {"top_entropy_quantile": rho, "fused_lm_head": head}
    trainer = make_trainer(tiny_model, tmp_path, len(sizes), **settings)
    batches = make_batches(sizes, empty_rows=(2,))
    set_old_logps(trainer.model, batches)
    batches[0]["advantages"][1] = 0.0
    loss, gradients = run_window(trainer, [dict(b) for b in batches])
    wanted, others = reference_loss(tiny_model, batches, settings)
    assert loss == pytest.approx(wanted, rel=1e-4)
    assert_close(gradients, others, 1e-4)


def test_advantages_of_a_rollout_are_those_of_its_groups(tiny_model, tmp_path):
    """Two steps share the rollout, and only the second takes the advantages of QAE."""
    trainer = fixed_rollout.train(
        tiny_model,
        tmp_path,
        reward="coins",
        per_device_train_batch_size=4,
        steps_per_generation=4,
        gradient_accumulation_steps=2,
        max_steps=2,
        advantages=[{"name": "qae", "start": 1}],
        token_weights=[OWN + "of_the_rollout"],
    )
    batches = trainer._buffered_inputs
    order = torch.cat([b["sequence_index"] for b in batches]).argsort()
    found, rewards = (torch.cat([b[key] for b in batches])[order].view(-1, 4) for key in ("advantages/qae", "rewards"))
    for row, own in zip(rewards.tolist(), found, strict=True):
        baseline = sorted(row)[1]  # ceil(0.4 * 4)
        std = torch.tensor(row).std()
        torch.testing.assert_close(own, (torch.tensor(row) - baseline) / (std + 1e-4), rtol=1e-5, atol=1e-6)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["shaping/qae"] for row in rows] == [0.0, 1.0]
    assert all(0 < row[f"weight/{OWN}of_the_rollout"] < 1 for row in rows)


def some_unscored(completion_ids, **kwargs):
    """By the tokens alone, a third of the rewards each are 1, 0 and None."""
    return [(1.0, 0.0, None)[sum(ids) % 3] for ids in completion_ids]


@pytest.mark.parametrize("name", ["psr", "nsr", "w_reinforce", "gtpo", "grpo_s"])
def test_a_response_without_a_reward_has_no_advantage(tiny_model, tmp_path, name):
    """In stock TRL it has none, either."""
    settings = {"reward": some_unscored, "per_device_train_batch_size": 4, "steps_per_generation": 4}
    trainer = fixed_rollout.train(tiny_model, tmp_path, gradient_accumulation_steps=2, advantages=[name], **settings)
    seen: dict = {1.0: [], 0.0: [], None: []}
    for batch in trainer._buffered_inputs:
        for ids, mask, given in zip(
            batch["completion_ids"], batch["completion_mask"].bool(), batch[f"advantages/{name}"], strict=True
        ):
            (reward,) = some_unscored([ids[mask].tolist()])
            seen[reward] += given[mask].tolist() if given.dim() else [given.item()]
    assert seen[None] and not any(seen[None])
    assert any(seen[1.0]) == (name != "nsr") and any(seen[0.0]) == (name != "psr")


class Rounded(fixed_rollout.EntropyForkGRPOTrainer):
    """A trainer each of whose passes has rounding errors of its own, and which keeps the advantages of its steps."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps, run, draws = [], self.scorer.run, torch.Generator().manual_seed(0)

        def rounded(*given, **named):
            scored = run(*given, **named)
            scored.logps = scored.logps * (1 + 1e-3 * torch.rand(scored.logps.shape, generator=draws))
            return scored

        self.scorer.run = rounded

    def _plan(self, batches):
        window = super()._plan(batches)
        self.steps.append((batches, window.batches))
        return window


def test_rounding_adds_nothing_to_the_first_step_of_a_rollout(tiny_model, tmp_path, monkeypatch):
    """KL-Cov reads the sign of a difference between two policies, which are one in the first step and not later."""
    monkeypatch.setattr(fixed_rollout, "EntropyForkGRPOTrainer", Rounded)
    batch = {"per_device_train_batch_size": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 2}
    settings = batch | UNCLIPPED | {"max_steps": 4, "batch_by_length": False, "top_entropy_quantile": 1.0}
    kl_cov = {"name": "kl_cov", "share": 0.5, "coefficient": 5.0}
    trainer = fixed_rollout.train(tiny_model, tmp_path, advantages=[kl_cov], **settings)
    changed = []
    for before, after in trainer.steps:
        pairs = [
            (b["advantages"].unsqueeze(1), a["advantages"], b["completion_mask"].bool())
            for b, a in zip(before, after, strict=True)
        ]
        changed.append(any((old.expand_as(new) != new)[mask].any().item() for old, new, mask in pairs))
    assert changed == [False, True] * 2


def test_a_run_with_methods_goes_on_to_the_last_bit(tiny_model, tmp_path):
    """From a checkpoint in the middle of a rollout, whose columns are restored."""
    settings = {
        "per_device_train_batch_size": 4,
        "steps_per_generation": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "learning_rate": 0.05,
        "save_strategy": "steps",
        "save_steps": 3,
        "advantages": [{"name": "qae", "end": 3}, OWN + "louder"],
        "token_weights": [OWN + "of_the_rollout", "erc", {"name": "clip_cov", "share": 0.2, "low": 0.01}],
    }
    whole = fixed_rollout.train(tiny_model, tmp_path / "a", **settings)
    again = fixed_rollout.make_trainer(tiny_model, tmp_path / "b", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    for name, weight in fixed_rollout.weights(whole).items():
        assert torch.equal(weight, fixed_rollout.weights(again)[name]), name


def test_a_users_module_may_lie_in_the_working_directory(tmp_path, monkeypatch):
    shutil.copy(own_methods.__file__, tmp_path / "mine_only_here.py")
    monkeypatch.chdir(tmp_path)
    (entry,) = Objective.from_args(config(tmp_path, token_weights=["mine_only_here:plain"])).token_weights
    assert entry.record()["parameters"] == {"factor": 1.0} and len(entry.digest) == 64


def test_draws_differ_between_steps_and_between_methods(tmp_path):
    (inputs,) = make_batches((8,))
    inputs.pop("noise")
    settings = {"token_weights": [OWN + "drawn", OWN + "drawn_too"], "top_entropy_quantile": 1.0}
    spec = Objective.from_args(config(tmp_path, **settings))
    found = [
        planned["weight/" + OWN + name]
        for step in (0, 1)
        for planned in Methods(spec, step=step, seed=100 + step).plan([inputs], None)
        for name in ("drawn", "drawn_too")
    ]
    assert all((a != b).any() for i, a in enumerate(found) for b in found[i + 1 :])
    (again,) = Methods(spec, step=1, seed=101).plan([inputs], None)
    assert torch.equal(again["weight/" + OWN + "drawn_too"], found[-1])


def test_tokens_of_weight_0_need_no_gradient(tmp_path):
    (inputs,) = make_batches((8,))
    spec = Objective.from_args(config(tmp_path, token_weights=[OWN + "drawn"], top_entropy_quantile=1.0))
    (planned,) = Methods(spec).plan([inputs], None)
    wanted = inputs["completion_mask"].bool() & (planned["token_weights"] > 0)
    assert torch.equal(with_gradient(planned), wanted) and 0 < wanted.sum() < inputs["completion_mask"].sum()


FORKING = "token_weights: [{name: forking, rho: 0.1}]\n"
PPL = "advantages: [{name: ppl, alpha: 0.01}]\n"


def layered(folder, parent, child, words):
    """The run's settings of a recipe, its parent and the command line, and the settings that a run records."""
    (folder / "parent.yaml").write_text(f"output_dir: {folder}\nuse_cpu: true\nbf16: false\n{parent}")
    (folder / "child.yaml").write_text(f"base: parent.yaml\n{child}")
    settings = checked(load(folder / "child.yaml") | overrides(words), [EntropyForkGRPOConfig])
    (made,) = build(settings, [EntropyForkGRPOConfig])
    return made, {key: setting.value for key, setting in settings.items()}


@pytest.mark.parametrize(
    ("parent", "child", "words", "said"),
    [
        (FORKING, "top_entropy_quantile: 1.0\n", "", "top_entropy_quantile 0.1, but top_entropy_quantile is 1.0"),
        (FORKING, "top_entropy_quantile: 0.2\n", "", "top_entropy_quantile 0.1, but top_entropy_quantile is 0.2"),
        (FORKING, "", "--top_entropy_quantile 1.0", "top_entropy_quantile is 1.0"),
        (FORKING, "", "--top_entropy_quantile 0.2", "top_entropy_quantile is 0.2"),
        ("", FORKING + "top_entropy_quantile: 1.0\n", "", "top_entropy_quantile is 1.0"),
        ("token_weights: [random]\n", "", "--entropy_selection top", "'random', but entropy_selection is 'top'"),
        (PPL, "ppl_shaping_alpha: null\n", "", "ppl_shaping_alpha 0.01, but ppl_shaping_alpha is None"),
    ],
)
def test_a_later_short_form_is_not_replaced_by_an_inherited_entry(tmp_path, parent, child, words, said):
    """Also if its value is the default, which a configuration cannot tell from a setting that is left out."""
    with pytest.raises(RecipeError, match=f"{re.escape(said)}: leave one of the two out") as refusal:
        layered(tmp_path, parent, child, words.split())
    assert "command line" in str(refusal.value) if words else "child.yaml:" in str(refusal.value)


@pytest.mark.parametrize("share", [1.0, 0.2, 0.3])
def test_a_later_entry_replaces_an_inherited_short_form(tmp_path, share):
    parent = f"top_entropy_quantile: {share}\nentropy_scope: rollout\n"
    made, recorded = layered(tmp_path, parent, FORKING, [])
    assert (made.top_entropy_quantile, made.entropy_scope) == (0.1, "rollout")
    assert "top_entropy_quantile" not in recorded and recorded["entropy_scope"] == "rollout"


def test_an_entry_and_an_equal_short_form_are_accepted(tmp_path):
    made, _ = layered(tmp_path, FORKING, "top_entropy_quantile: 0.1\n", [])
    assert made.top_entropy_quantile == 0.1
