"""What `Objective` says of a run, against rows and passes that are counted in the LM head's kernel while it trains."""

import dataclasses
import itertools
import json
import math
from collections import Counter

import pytest
import torch
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback
from trl.kernels import ChunkedLogProbFunction

from benchmarks.fixtures import fixed_rollout
from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.objective.objective import Objective

RESPONSES, TOKENS = 8, 10  # of an optimiser step, and of each response
# A whole number of 80 tokens and of the 40 of a micro-batch, and so many that every response has kept tokens.
RHO = 0.75
# torch's counter does not know the product that adds to its own sum.
IN_PLACE = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}


def equal_lengths(prompts, trainer, ragged=fixed_rollout.fixed_completions):
    """TRL's `rollout_func`: the completions of `fixed_rollout`, repeated up to one length."""
    rollout = ragged(prompts, trainer)
    ids = [(row * TOKENS)[:TOKENS] for row in rollout["completion_ids"]]
    return rollout | {"completion_ids": ids, "logprobs": [[0.0] * TOKENS for _ in ids]}


def by_turn(completion_ids, **kwargs):
    """No response has the mean reward of its group, so that every advantage differs from zero."""
    return [float(i % fixed_rollout.GENERATIONS) for i in range(len(completion_ids))]


class CountedRows(TrainerCallback):
    """Rows that the kernel under both heads has seen, and its matmuls of a row, at every optimiser step's end."""

    def __init__(self, monkeypatch):
        self.rows, self.by_step = Counter(), []
        forward, backward = ChunkedLogProbFunction.forward, ChunkedLogProbFunction.backward

        def counted_forward(ctx, hidden, weight, *args):
            self.rows["projected" if hidden.requires_grad else "scored"] += hidden.size(0)
            with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
                results = forward(ctx, hidden, weight, *args)
            self.rows["matmuls"] += hidden.requires_grad * counter.get_total_flops() / (2 * weight.numel())
            return results

        def counted_backward(ctx, *gradients):
            hidden, weight = ctx.saved_tensors[:2]
            self.rows["differentiated"] += hidden.size(0)
            with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
                results = backward(ctx, *gradients)
            self.rows["matmuls"] += counter.get_total_flops() / (2 * weight.numel())
            return results

        monkeypatch.setattr(ChunkedLogProbFunction, "forward", staticmethod(counted_forward))
        monkeypatch.setattr(ChunkedLogProbFunction, "backward", staticmethod(counted_backward))
        # On a GPU, TRL's head leaves out prompts and padding.
        monkeypatch.setattr("trl.trainer.utils._use_triton", lambda device: True)

    def on_step_end(self, *args, **kwargs):
        self.by_step.append(Counter(self.rows))


VARIANTS = {
    "top": {},
    "bottom": {"entropy_selection": "bottom"},
    "gradient norm": {"entropy_selection": "gradient_norm"},
    "all tokens": {"top_entropy_quantile": 1.0},
    "TRL's head": {"fused_lm_head": "trl"},
    "entropy bonus": {"entropy_coef": 0.01},
    "KL": {"beta": 0.1},
    "KL, two iterations": {"beta": 0.1, "num_iterations": 2},
    "sequence ratios": {"importance_sampling_level": "sequence"},
    "vespo": {"loss_type": "vespo"},
    "off-policy mask": {"off_policy_mask_threshold": 100.0},
    "bnpo": {"loss_type": "bnpo", "entropy_denominator": "all"},
    "perplexity": {"ppl_shaping_alpha": 0.3},
    "position": {"position_shaping_gamma": 0.1},
    "LoRA": {"peft_config": LoraConfig(target_modules="all-linear")},
    "LoRA with a trained head": {"peft_config": LoraConfig(modules_to_save=["lm_head"])},
    "LoRA, KL": {"peft_config": LoraConfig(target_modules="all-linear"), "beta": 0.1},
    "LoRA, TRL's head": {"peft_config": LoraConfig(target_modules="all-linear"), "fused_lm_head": "trl"},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(
    ("scope", "accumulation", "steps"),
    [("micro_batch", 2, 1), ("global", 1, 1), ("global", 2, 2), ("rollout", 1, 1), ("rollout", 2, 2)],
)
def test_rows_and_passes_are_those_that_are_made(
    tiny_model, tmp_path, monkeypatch, settings, scope, accumulation, steps
):
    check_counts(tiny_model, tmp_path, monkeypatch, settings, scope, accumulation, steps)


OWN = "tests.own_methods:"
METHODS = {
    "a pass for the step": ({"token_weights": [OWN + "ones_for_the_step"]}, 1, True),
    "a pass for the step, twice": (
        {"token_weights": [OWN + "ones_for_the_step"], "advantages": [OWN + "louder"]},
        1,
        True,
    ),
    "all rows for the loss": ({"token_weights": [OWN + "ones_in_the_loss"]}, 0, False),
    "a pass over the rollout": ({"advantages": [OWN + "unchanged"]}, 0, True),
}


@pytest.mark.parametrize(("settings", "window", "projects"), METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(("scope", "accumulation", "steps"), [("global", 1, 1), ("rollout", 2, 2)])
def test_methods_make_the_passes_that_they_declare(
    tiny_model, tmp_path, monkeypatch, settings, window, projects, scope, accumulation, steps
):
    spec = check_counts(tiny_model, tmp_path, monkeypatch, settings, scope, accumulation, steps)
    # The first of two steps has the policy of the pass over their rollout.
    assert spec.scoring_passes["ranking"] == (window / 2 if steps == 2 else window)
    assert spec.projects_kept == (projects and scope == "rollout")


OLD_OF_THE_STEP = {"name": "stapo", "tau_p": 0.5}  # in a rollout of one step, it takes the values of the step's pass


@pytest.mark.parametrize(
    ("token_weights", "passes"),
    [
        ([{"name": OWN + "ones_for_the_step", "start": 1, "end": 3}], [0, 1, 1, 0]),
        ([{"name": "clip_cov", "start": 1}, {"name": OWN + "ones_for_the_step", "end": 2}], [1, 1, 1, 1]),
        ([{"name": OWN + "ones_for_the_step", "start": 2}, OLD_OF_THE_STEP], [1, 1, 1, 1]),
    ],
    ids=str,
)
def test_a_step_has_a_pass_only_if_an_active_method_reads_it(tiny_model, tmp_path, monkeypatch, token_weights, passes):
    monkeypatch.setattr(fixed_rollout, "fixed_completions", equal_lengths)
    counted = CountedRows(monkeypatch)
    trainer = fixed_rollout.make_trainer(
        tiny_model,
        tmp_path,
        reward=by_turn,
        top_entropy_quantile=1.0,
        per_device_train_batch_size=RESPONSES // 2,
        gradient_accumulation_steps=2,
        max_steps=4,
        learning_rate=0.01,
        token_weights=token_weights,
    )
    trainer.add_callback(counted)
    trainer.train()
    rows = [0, *(counter["scored"] for counter in counted.by_step)]
    assert [(after - before) / (RESPONSES * TOKENS) for before, after in itertools.pairwise(rows)] == passes


def check_counts(tiny_model, tmp_path, monkeypatch, settings, scope, accumulation, steps):
    """Train, and compare the counts of the second rollout, whose policy is no longer the reference."""
    monkeypatch.setattr(fixed_rollout, "fixed_completions", equal_lengths)
    counted = CountedRows(monkeypatch)
    steps *= settings.get("num_iterations", 1)
    trainer = fixed_rollout.make_trainer(
        tiny_model,
        tmp_path,
        reward=by_turn,
        **{
            "top_entropy_quantile": RHO,
            "entropy_scope": scope,
            "per_device_train_batch_size": RESPONSES // accumulation,
            "gradient_accumulation_steps": accumulation,
            "steps_per_generation": accumulation * steps // settings.get("num_iterations", 1),
            "max_steps": 2 * steps,
            "learning_rate": 0.01,
        }
        | (
            {} if settings.get("loss_type") == "vespo" else {"epsilon": 0.9, "epsilon_high": 9.0}
        )  # no token is clipped
        | settings,
    )
    trainer.add_callback(counted)
    trainer.train()
    before, after = counted.by_step[steps - 1], counted.by_step[-1]
    made = {name: (after[name] - before[name]) / (steps * RESPONSES * TOKENS) for name in after}
    spec = trainer.spec
    assert made["projected"] == spec.projected_share
    assert made["differentiated"] == spec.differentiated_share
    assert made["matmuls"] == pytest.approx(spec.head_units)
    assert made.get("scored", 0) == sum(spec.scoring_passes.values())
    return spec


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 1),  # the loss's own pass gives the old log-probabilities, too
        ({"gradient_accumulation_steps": 4}, 1),
        ({"beta": 0.1}, 2),
        ({"beta": 0.1, "gradient_accumulation_steps": 4}, 2),
        ({"fused_lm_head": "trl"}, 1),
    ],
)
def test_an_evaluation_scores_its_responses_once_and_logs_what_trl_logs(
    tiny_model, tmp_path, monkeypatch, settings, passes
):
    logged, rows = {}, {}
    every = {"steps_per_generation": 4, "gradient_accumulation_steps": 1, "top_entropy_quantile": 1.0}
    every |= {"num_generations_eval": 4, "held_out": fixed_rollout.prompts(6), "per_device_eval_batch_size": 8}
    monkeypatch.setattr(fixed_rollout, "fixed_completions", equal_lengths)
    for name, stock in (("ours", False), ("stock", True)):
        own = {key: value for key, value in settings.items() if not (stock and key == "fused_lm_head")}
        own |= {"entropy_scope": "global"} if not stock else {"use_liger_kernel": False}
        trainer = fixed_rollout.make_trainer(tiny_model, tmp_path / name, stock, **(every | own))
        with monkeypatch.context() as patched:
            counter = CountedRows(patched)
            logged[name] = trainer.evaluate()
        rows[name] = counter.rows["scored"]
    measured = [key for key in logged["stock"] if not key.endswith(("runtime", "per_second", "_time"))]
    assert {"eval_loss", "eval_entropy", "eval_clip_ratio/region_mean"} <= set(measured)
    assert {key: logged["ours"][key] for key in measured} == pytest.approx(
        {key: logged["stock"][key] for key in measured}, rel=1e-5, abs=1e-6
    )
    assert rows["ours"] == passes * 6 * 4 * TOKENS


def test_an_evaluation_scores_its_responses_once_if_vllm_is_trusted(tiny_model, tmp_path, monkeypatch):
    """The arguments ask for vLLM's correction, which the trainer has switched off for lack of its pass."""
    settings = {"steps_per_generation": 4, "gradient_accumulation_steps": 1, "old_logps": "sampler"}
    settings |= {"num_generations_eval": 4, "held_out": fixed_rollout.prompts(2), "per_device_eval_batch_size": 8}
    monkeypatch.setattr(fixed_rollout, "fixed_completions", equal_lengths)
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path, entropy_scope="rollout", **settings)
    trainer.spec = dataclasses.replace(trainer.spec, corrects_sampler=True)
    counter = CountedRows(monkeypatch)
    trainer.evaluate()
    assert counter.rows["scored"] == 2 * 4 * TOKENS


@pytest.mark.parametrize("corrects", [False, True], ids=["reference", "vLLM's correction"])
@pytest.mark.parametrize("trims", [True, False], ids=["trimmed", "padded"])
def test_every_pass_of_an_evaluation_is_as_small_as_those_of_training(tiny_model, tmp_path, corrects, trims):
    """TRL's own passes over its responses, too: here of one sequence, however many are written at a time."""
    held_out = fixed_rollout.prompts(2)
    settings = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 8, "held_out": held_out}
    settings |= {"steps_per_generation": 4, "gradient_accumulation_steps": 1, "batch_by_length": trims}
    settings |= {"entropy_scope": "rollout"} if corrects else {"beta": 0.1}
    trainer, sizes = fixed_rollout.make_trainer(tiny_model, tmp_path, **settings), []
    trainer.spec = dataclasses.replace(trainer.spec, corrects_sampler=corrects)
    for model in filter(None, (trainer.model, trainer.ref_model)):
        model.register_forward_pre_hook(
            lambda model, args, inputs: sizes.append(inputs["input_ids"].numel()), with_kwargs=True
        )
    trainer.evaluate()
    longest_prompt = max(map(len, trainer.processing_class(list(held_out["prompt"]))["input_ids"]))
    assert len(sizes) > 2 and max(sizes) <= longest_prompt + trainer.args.max_completion_length


def test_only_the_ranking_pass_computes_entropies(tiny_model, tmp_path, monkeypatch):
    """With adapters, the reference policy is the policy's own model, and its pass is not the policy's."""
    asked, forward = [], ChunkedLogProbFunction.forward

    def noted(ctx, hidden, *args):
        asked.append("entropy" in args[-1])
        return forward(ctx, hidden, *args)

    monkeypatch.setattr(ChunkedLogProbFunction, "forward", staticmethod(noted))
    settings = {"beta": 0.1, "peft_config": LoraConfig(target_modules="all-linear"), "entropy_scope": "rollout"}
    # Two steps share the rollout, so that TRL scores it: old log-probabilities, then those of the reference policy.
    fixed_rollout.train(tiny_model, tmp_path, max_steps=2, steps_per_generation=2, **settings)
    assert sum(asked) == asked.index(False) > 0


def decided(tmp_path, **settings):
    """The decisions of a recipe, without a model."""
    args = EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=4, **settings)
    return Objective.from_args(args)


ROLLOUT = {"entropy_scope": "rollout", "gradient_accumulation_steps": 2, "steps_per_generation": 4}


@pytest.mark.parametrize(
    ("settings", "units"),
    [
        ({}, 4 * 0.2),
        ({"entropy_coef": 0.01}, 4),
        ({"use_adaptive_entropy": True}, 4),
        ({"beta": 0.04}, 4),
        ({"importance_sampling_level": "sequence"}, 4),
        ({"loss_type": "vespo"}, 1 + 3 * 0.2),
        ({"entropy_selection": "bottom"}, 4 * 0.8),
        ({"entropy_selection": "random_matched"}, 4),  # at most: how many tokens it takes is in the data
        ({"entropy_scope": "micro_batch"}, 1 + 3 * 0.2),
        ({"top_entropy_quantile": 1.0}, 4),
    ],
    ids=str,
)
def test_units_of_the_head(tmp_path, settings, units):
    assert decided(tmp_path, **ROLLOUT | settings).head_units == pytest.approx(units)


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"entropy_scope": "global"}, (0, 0, 0)),
        ({"entropy_scope": "global", "ppl_shaping_alpha": 0.3}, (1, 0, 0)),
        ({"entropy_scope": "global", "beta": 0.04, "num_iterations": 4}, (1 / 4, 1 / 4, 0)),
        ({"entropy_scope": "global", "gradient_accumulation_steps": 2, "ppl_shaping_alpha": 0.3}, (1, 0, 1)),
        ({"entropy_scope": "rollout", "ppl_shaping_alpha": 0.3}, (1, 0, 0)),
        ({"entropy_scope": "micro_batch", "use_vllm": True}, (1, 0, 0)),
    ],
    ids=str,
)
def test_passes_beside_the_loss(tmp_path, settings, passes):
    assert tuple(decided(tmp_path, **settings).scoring_passes.values()) == passes


def test_a_head_that_cannot_serve_is_refused_or_replaced(tmp_path):
    def decide(why_not=None, aux_loss_enabled=False, **settings):
        args = EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=4, **settings)
        return Objective.from_args(args, why_not, aux_loss_enabled)

    replaced = decide("the LM head has a bias", **ROLLOUT)
    assert (replaced.sparse_head, replaced.head_refusal) == (False, "the LM head has a bias")
    assert (replaced.projects_kept, replaced.head_units) == (False, 4)
    assert decide(aux_loss_enabled=True).head_refusal == "the loss has a load-balancing term (router_aux_loss_coef)"
    chosen = decide("the LM head has a bias", fused_lm_head="trl")
    assert (chosen.sparse_head, chosen.head_refusal) == (False, None)
    with pytest.raises(ValueError, match="fused_lm_head is 'liger', but the loss has an entropy bonus: choose auto"):
        decide(fused_lm_head="liger", entropy_coef=0.01)
    with pytest.raises(
        ValueError, match="'gradient_norm', but the LM head has a bias: choose another entropy_selection"
    ):
        decide("the LM head has a bias", entropy_selection="gradient_norm")
    by_norm = {"token_weights": [OWN + "by_norm"]}
    with pytest.raises(ValueError, match="reads gradient norms, but the LM head has a bias: leave it out"):
        decide("the LM head has a bias", **by_norm)
    with pytest.raises(
        ValueError, match=r"token_weights names .*by_norm, which .* but fused_lm_head is 'trl': set it"
    ):
        decide(fused_lm_head="trl", **by_norm)


def test_decisions_cannot_be_changed(tmp_path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        decided(tmp_path).rho = 0.5


@pytest.mark.parametrize(
    ("loss_type", "clip", "limits"),
    [
        ("dapo", {"epsilon": 0.25, "epsilon_high": 0.5}, (0.75, 1.5)),
        ("cispo", {"epsilon_high": 5.0}, (0.0, 5.0)),
        ("cispo", {"epsilon": 5.0, "epsilon_high": None}, (0.0, 5.0)),  # TRL's default of the one is the other
        ("vespo", {}, (0.0, math.inf)),
    ],
)
def test_ratios_are_clipped_where_the_loss_clips_them(tmp_path, loss_type, clip, limits):
    assert decided(tmp_path, loss_type=loss_type, **clip).ratio_limits == limits


def test_a_record_holds_the_decisions_as_json(tmp_path):
    made = decided(tmp_path, **ROLLOUT, entropy_selection="bottom", position_shaping_gamma=0.1)
    record = json.loads(json.dumps(made.record(), allow_nan=False))
    assert record["kept_share"] == 0.8 and record["ranked_in"] == "rollout" and record["steps_per_rollout"] == 2
    assert record["shaping"] == ["position"] and record["head_units"] == pytest.approx(4 * 0.8)
    assert all(record[field.name] is not None for field in dataclasses.fields(made) if field.name not in NULLABLE)


# Nothing was set, and nothing refused.
NULLABLE = ("delta", "head_refusal", "token_budget")
