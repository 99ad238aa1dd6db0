"""Optimiser steps on what a real vLLM writes, as a server and in the trainer's process, in float32 on a processor."""

import json
import math
from dataclasses import dataclass

import pytest
import requests
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.test_own_sampling import kept

from .conftest import run_python, start_python

pytestmark = pytest.mark.timeout(900)

STEPS, RHO, CAP = 4, 0.2, 3.0
# Mean absolute difference of log-probabilities, in nats. Float32 makes one of 1e-6; a step here moves them by about 1.
NOISE, VISIBLE = 1e-4, 0.1
DIFFERENCE = "sampling/sampling_logp_difference/mean"
LOGPS = ("completion_ids", "old_per_token_logps", "sampling_per_token_logps")
# Two micro-batches a step of responses that are ragged, since one token in seven ends them: so sequences are regrouped
# by length, and their ratios with them.
STOP = {"stop_token_ids": list(range(3, 57))}
SETTINGS = {
    "generation_kwargs": STOP,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "vllm_max_model_length": 128,
}
ROLLOUT = {"entropy_scope": "rollout"}
TRAINED = ROLLOUT | {"max_steps": STEPS, "optim": "adamw_torch", "learning_rate": 0.05}


@dataclass
class Run:
    steps: list[dict]
    rollouts: list[dict[str, torch.Tensor]]
    weights: dict[str, torch.Tensor]


def words(model, folder, settings) -> list[str]:
    return ["-m", "tests_vllm.steps", model, str(folder), json.dumps(SETTINGS | settings)]


def run(model, folder, **settings) -> Run:
    run_python(*words(model, folder, settings), seconds=240)
    steps = [row for row in json.loads((folder / "log.json").read_text()) if "loss" in row]
    rollouts = [load_file(path) for path in sorted(folder.glob("rollout-?.safetensors"))]
    return Run(steps, rollouts, load_file(folder / "weights.safetensors"))


def on_server(port: int) -> dict:
    return {"vllm_mode": "server", "vllm_server_host": "127.0.0.1", "vllm_server_port": port}


@pytest.fixture(scope="module", params=["server", "colocate"])
def runs(request, model, tmp_path_factory) -> dict[str, Run]:
    """Trained with a weight sync before every rollout, and with one before the first only."""
    mode = {"vllm_mode": "colocate"}
    if request.param == "server":
        mode = on_server(request.getfixturevalue("server"))
    folder = tmp_path_factory.mktemp(request.param)
    found = {}
    for sync in ("always", "first"):
        (folder / sync).mkdir()
        found[sync] = run(model, folder / sync, sync=sync, **mode, **TRAINED)
        differences = ", ".join(f"{row[DIFFERENCE]:.1e}" for row in found[sync].steps)
        seconds = sum(row["step_time"] for row in found[sync].steps)
        print(f"{request.param}, sync {sync}: log-probability differences {differences}; {seconds:.1f} s")
    return found


def test_difference_is_noise_after_every_sync(runs):
    differences = [row[DIFFERENCE] for row in runs["always"].steps]
    assert len(differences) == STEPS
    assert max(differences) < NOISE


def test_difference_shows_without_sync(runs):
    """What the test above would see if weights were not, or wrongly, synchronised."""
    first, *later = [row[DIFFERENCE] for row in runs["first"].steps]
    assert len(later) == STEPS - 1
    assert first < NOISE
    assert min(later) > VISIBLE


@pytest.mark.parametrize("sync", ["always", "first"])
def test_ratio_is_of_single_tokens(runs, sync):
    for row, rollout in zip(runs[sync].steps, runs[sync].rollouts, strict=True):
        mask = rollout["completion_mask"].bool()
        ratio = rollout["importance_sampling_ratio"]
        difference = rollout["old_per_token_logps"] - rollout["sampling_per_token_logps"]
        torch.testing.assert_close(ratio[mask], difference[mask].double().exp().clamp(max=CAP).float())
        assert row["sampling/importance_sampling_ratio/mean"] == pytest.approx(ratio[mask].mean().item(), rel=1e-5)
    last = runs[sync].rollouts[-1]
    extremes = last["importance_sampling_ratio"][last["completion_mask"].bool()].aminmax()
    if sync == "always":
        assert extremes.min.item() == pytest.approx(1, abs=1e-3)
        assert extremes.max.item() == pytest.approx(1, abs=1e-3)
    else:
        assert extremes.min < 0.5
        assert extremes.max == CAP


def test_first_rollout_is_scored_and_selected_as_by_transformers(runs, model):
    """vLLM's log-probabilities, and which tokens are kept, against the model run by transformers and a sort."""
    rollout = runs["always"].rollouts[0]
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model)(ids, attention_mask=mask).logits
    logps = logits[:, rollout["prompt_ids"].size(1) - 1 : -1].log_softmax(-1)  # (B, T, V)
    tokens = rollout["completion_mask"].bool()
    sampled = logps.gather(2, rollout["completion_ids"].unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(rollout["sampling_per_token_logps"][tokens], sampled[tokens], atol=1e-3, rtol=0)

    entropies = -(logps.exp() * logps).sum(-1)
    kept = rollout["kept_mask"]
    assert kept.sum() == math.ceil(RHO * tokens.sum())
    assert not (kept & ~tokens).any()
    # The first tokens of a group tie but for rounding.
    assert entropies[kept].min() > entropies[tokens & ~kept].max() - 1e-4


def test_kept_fraction_is_rho(runs):
    for row, rollout in zip(runs["always"].steps, runs["always"].rollouts, strict=True):
        tokens = rollout["completion_mask"].sum().item()
        assert row["selection/kept_fraction"] == pytest.approx(math.ceil(RHO * tokens) / tokens)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"stock": True}, {"top_entropy_quantile": 1.0}),
        (ROLLOUT | {"fused_lm_head": "trl", "batch_by_length": False}, ROLLOUT),
    ],
    ids=["all tokens, stock TRL", "kept tokens, TRL's head and batches"],
)
def test_step_is_corrected_alike(model, other_model, server, tmp_path, left, right):
    """One step on what a sampler with other weights wrote, where the ratios run from near 0 to the cap."""
    call = {"method": "reload_weights", "kwargs": {"weights_path": other_model}}
    trained = []
    for name, settings in (("left", left), ("right", right)):
        requests.post(f"http://127.0.0.1:{server}/collective_rpc", json=call, timeout=60).raise_for_status()
        (tmp_path / name).mkdir()
        settings = settings | {
            "vllm_importance_sampling_mode": "token_truncate",
            "generation_kwargs": STOP | {"seed": 0},
        }
        trained.append(run(model, tmp_path / name, sync="never", **on_server(server), **settings))
    (before, after) = trained
    (written,), (again,) = before.rollouts, after.rollouts
    assert torch.equal(written["completion_ids"], again["completion_ids"])
    assert len(written["completion_mask"].sum(1).unique()) > 4
    ratio = written["importance_sampling_ratio"][written["completion_mask"].bool()]
    assert ratio.min() < 0.1
    assert ratio.max() == CAP
    start = AutoModelForCausalLM.from_pretrained(model).state_dict()
    for name, value in before.weights.items():
        change, other = value - start[name], after.weights[name] - start[name]
        assert change.abs().max() > 0
        torch.testing.assert_close(other, change, rtol=1e-3, atol=1e-3 * change.abs().max().item(), msg=name)


def test_groups_that_waited_are_corrected_by_the_policy_that_wrote_them(model, tmp_path):
    """Dynamic sampling carries groups over a step that moves log-probabilities by about 1; their ratios stay at 1."""
    settings = TRAINED | {"dynamic_sampling": True, "reward": "coins", "vllm_mode": "colocate"}
    found = run(model, tmp_path, sync="always", **settings)
    assert sum(row["dynamic_sampling/carried"] for row in found.steps) > 0
    assert len(found.rollouts) == STEPS
    for rollout in found.rollouts:
        groups = rollout["advantages"].view(-1, 4)
        assert ((groups > 0).any(1) & (groups < 0).any(1)).all(), "every group has right and wrong responses"
        ratio = rollout["importance_sampling_ratio"][rollout["completion_mask"].bool()]
        assert (ratio - 1).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("mode", "forks"),
    [("server", {}), ("colocate", {}), ("colocate", {"fork_rollouts": 2, "fork_min_chars": 1})],
    ids=["server", "colocate", "colocate, forks"],
)
def test_parts_have_recorded_log_probabilities(request, model, tmp_path, mode, forks):
    """Of every token, whatever rollout wrote it: against transformers, since a rate of 0 leaves one policy."""
    where = on_server(request.getfixturevalue("server")) if mode == "server" else {"vllm_mode": "colocate"}
    settings = TRAINED | where | {"dynamic_sampling": True, "min_accuracy": 0.0, "max_accuracy": 1.0}
    # A large age draws more groups than a rollout needs, so that some are unfinished whatever a sampler draws.
    settings |= {"max_new_tokens_per_round": 3, "max_response_age": 6, "learning_rate": 0.0} | forks
    found = run(model, tmp_path, sync="always", **settings)
    assert sum(row["partial_rollouts/unfinished"] for row in found.steps) > 0
    shares = [row["partial_rollouts/older_share"] for row in found.steps]
    assert any(0 < share < 1 for share in shares), shares
    assert any(row.get("fork_rollouts/prefix_share", 0) > 0 for row in found.steps) == bool(forks)
    policy = AutoModelForCausalLM.from_pretrained(model)
    for rollout in found.rollouts:
        ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
        mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
        with torch.no_grad():
            logps = policy(ids, attention_mask=mask).logits[:, rollout["prompt_ids"].size(1) - 1 : -1].log_softmax(-1)
        expected = logps.gather(2, rollout["completion_ids"].unsqueeze(2)).squeeze(2)
        tokens = rollout["completion_mask"].bool()
        for name in ("old_per_token_logps", "sampling_per_token_logps"):
            torch.testing.assert_close(rollout[name][tokens], expected[tokens], atol=1e-3, rtol=0)
        ends = torch.tensor([policy.config.eos_token_id, *STOP["stop_token_ids"]])
        ended = torch.isin(rollout["completion_ids"], ends) & tokens
        assert (ended.sum(1) <= 1).all(), "a response that had ended was continued"
        assert (ended.any(1) | (tokens.sum(1) == 16)).all(), "a response was cut"


def test_requests_ahead_of_their_round_change_no_rollout(server, model, tmp_path):
    """A seed of its own decides each request's responses, so that a server draws them again in any order.

    A reward that is known only after the round makes no request ahead, and everything else is equal.
    """
    settings = TRAINED | on_server(server) | {"dynamic_sampling": True, "sampling_round_size": 1}
    settings |= {"generation_kwargs": STOP | {"seed": 11}, "max_sampling_rounds": 20, "sync": "always"}
    found, ahead = {}, {}
    for reward in ("early_coins", "text_coins"):
        (tmp_path / reward).mkdir()
        found[reward] = run(model, tmp_path / reward, reward=reward, **settings)
        ahead[reward] = json.loads((tmp_path / reward / "ahead.json").read_text())
        assert max(row[DIFFERENCE] for row in found[reward].steps) < NOISE
    assert ahead["early_coins"] > 0 and ahead["text_coins"] == 0
    early, late = found["early_coins"], found["text_coins"]
    for key in ("dynamic_sampling/drawn", "dynamic_sampling/rounds"):
        assert [row[key] for row in early.steps] == [row[key] for row in late.steps]
    assert sum(row["dynamic_sampling/rounds"] for row in early.steps) > STEPS
    for ours, theirs in zip(early.rollouts, late.rollouts, strict=True):
        assert torch.equal(ours["completion_ids"], theirs["completion_ids"])
        assert torch.equal(ours["advantages"], theirs["advantages"])


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_adapters_are_merged_into_what_vllm_gets(request, model, tmp_path, mode):
    """With every sync the difference is noise, without it shows; the base comes out of four syncs bit for bit."""
    where = on_server(request.getfixturevalue("server")) if mode == "server" else {"vllm_mode": "colocate"}
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    found = {}
    for sync in ("always", "first") if mode == "colocate" else ("always",):
        (tmp_path / sync).mkdir()
        found[sync] = run(model, tmp_path / sync, sync=sync, lora=lora, **where, **TRAINED)
        differences = [row[DIFFERENCE] for row in found[sync].steps]
        print(f"{mode}, LoRA, sync {sync}: differences {', '.join(f'{d:.1e}' for d in differences)}")
        assert differences[0] < NOISE
        assert max(differences) < NOISE if sync == "always" else min(differences[1:]) > VISIBLE
    start = AutoModelForCausalLM.from_pretrained(model).state_dict()
    left = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in found["always"].weights.items()
        if "lora_" not in name
    }
    assert left.keys() == start.keys()
    assert all(torch.equal(weight, start[name]) for name, weight in left.items())


def test_the_samplers_log_probabilities_are_the_old_ones(model, tmp_path):
    """Without a pass that would compare them: the first step of a rollout shows the gap, which is rounding."""
    found = run(model, tmp_path, sync="always", vllm_mode="colocate", old_logps="sampler", **TRAINED)
    for row, rollout in zip(found.steps, found.rollouts, strict=True):
        assert row[DIFFERENCE] < NOISE and row["sampling/tokens_per_second"] > 0
        assert "importance_sampling_ratio" not in rollout and "kept_mask" not in rollout
        assert (rollout["old_per_token_logps"][rollout["completion_mask"].bool()] < 0).all()
    assert found.steps[0]["selection/kept_fraction"] == found.steps[0]["selection/requested_fraction"]
    assert found.steps[1]["selection/threshold"] == found.steps[0]["selection/step_threshold"]


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_truncated_rollouts_have_the_log_probabilities_of_what_is_left(request, model, tmp_path, mode):
    """vLLM's own, the trainer's under the weights that wrote them, and those of a sort by hand agree."""
    cut, temperature = {"top_p": 0.7, "top_k": 12, "min_p": 0.4}, 0.3
    where = on_server(request.getfixturevalue("server")) if mode == "server" else {"vllm_mode": "colocate"}
    settings = {"max_steps": 2, "temperature": temperature, "allow_truncated_sampling": True}
    found = run(model, tmp_path, sync="always", **TRAINED | where | settings | cut)
    assert max(row[DIFFERENCE] for row in found.steps) < NOISE
    rollout, policy, others = found.rollouts[0], AutoModelForCausalLM.from_pretrained(model), 0
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = policy(ids, attention_mask=mask).logits[:, rollout["prompt_ids"].size(1) - 1 : -1]
    written = rollout["completion_mask"].bool()
    columns = (rollout[name][written] for name in LOGPS)
    probabilities = (logits / temperature).softmax(-1)[written]
    for row, token, ours, theirs in zip(*(column.tolist() for column in (probabilities, *columns)), strict=True):
        tokens = kept(row, **cut, min_p_first=True)
        assert token in tokens
        exact = pytest.approx(math.log(row[token] / sum(row[other] for other in tokens)), abs=1e-3)
        assert (ours, theirs) == (exact, exact)
        others += tokens != kept(row, **cut)
    assert others > 0, "in the order of transformers the same tokens would be left"


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_sigterm_leaves_a_rollout_and_the_run_goes_on(request, model, tmp_path, mode):
    """In colocate mode the continued run draws the same responses again; a server has drawn others in between."""
    modes = {"vllm_mode": "colocate"} if mode == "colocate" else on_server(request.getfixturevalue("server"))
    settings = TRAINED | modes | {"sync": "always", "save_strategy": "steps", "save_steps": 1}
    whole, stopped, again = (tmp_path / name for name in ("whole", "stopped", "again"))
    for folder in (whole, stopped, again):
        folder.mkdir()
    left = start_python(*words(model, stopped, settings | {"stop_after": 2}), seconds=240)
    assert left.returncode != 0 and "the run was stopped by SIGTERM after step 2" in left.stderr, left.stderr[-3000:]
    assert json.loads((stopped / "steps.json").read_text()) == 0  # nothing was written after it
    continued = run(model, again, **settings, resume=str(stopped / "checkpoint-2"))
    assert [row["step"] for row in continued.steps] == [1, 2, 3, 4]
    assert max(row[DIFFERENCE] for row in continued.steps[2:]) < NOISE
    if mode == "colocate":
        once = run(model, whole, **settings)
        for ours, theirs in zip(continued.rollouts, once.rollouts[2:], strict=True):
            assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
        assert all(torch.equal(weight, continued.weights[name]) for name, weight in once.weights.items())


def test_the_seed_decides_what_is_drawn(model, tmp_path):
    """vLLM seeds the process by its rank when it starts, whatever the run's seed is."""
    drawn = {}
    for name, seed in (("once", 1), ("again", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        settings = TRAINED | {"vllm_mode": "colocate", "sync": "first", "max_steps": 1, "seed": seed}
        (rollout,) = run(model, tmp_path / name, **settings).rollouts
        drawn[name] = rollout["completion_ids"]
    assert torch.equal(drawn["once"], drawn["again"])
    assert drawn["once"].shape != drawn["other"].shape or not torch.equal(drawn["once"], drawn["other"])
