"""Old log-probabilities from the sampler: tokens kept by the threshold of the last step, no pass over a rollout."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from benchmarks.fixtures import fixed_rollout
from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.objective.objective import Objective
from entropy_grpo.objective.sampling import Group, Response
from entropy_grpo.planning import flops, plan, simulate
from entropy_grpo.training.rollouts import DynamicSampling

from . import reference, written_parts
from .test_drafts import RESUMED as PARTS
from .test_durable import RESUMED, assert_goes_on
from .test_objective import TEMPERATURE, assert_close, make_batches, make_trainer, padded, set_old_logps
from .test_sized import job

SAMPLER = {"old_logps": "sampler", "entropy_scope": "rollout"}


class Counted(fixed_rollout.EntropyForkGRPOTrainer):
    """A trainer that notes the optimiser step of every pass, by whether it has a gradient."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.passes, run = {True: [], False: []}, self.scorer.run

        def noted(*given, **named):
            self.passes[torch.is_grad_enabled()].append(self.state.global_step)
            return run(*given, **named)

        self.scorer.run = noted


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(fixed_rollout, "EntropyForkGRPOTrainer", Counted)


def in_float64(tiny_model, batches, threshold, kind):
    """Loss and gradient of a step in float64, over the tokens that a threshold keeps; and all entropies."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    scores = [reference.score(model, *(b[key] for key in keys), TEMPERATURE) for b in batches]
    logps, entropies = (padded(list(parts)) for parts in zip(*scores, strict=True))
    mask = padded([b["completion_mask"] for b in batches]).bool()
    old, advantages = (
        padded([b["old_per_token_logps"] for b in batches]),
        torch.cat([b["advantages"] for b in batches]),
    )
    above = entropies.detach() >= threshold
    kept = mask & (~above if kind == "bottom" else above)
    loss = reference.objective(logps, old.double(), advantages.double(), kept, 0.2, 0.28)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, kept.sum().item(), sorted(entropies[mask].tolist(), reverse=True)


def second_step(trainer, batches):
    """Losses and gradient of a window that is not the first of its rollout, as the training loop gets them."""
    trainer.model.zero_grad()
    trainer._buffered_inputs, trainer._step, losses = [None, None, *batches], 2, []
    for place in range(len(batches)):
        trainer.accelerator.gradient_state._set_sync_gradients(place == len(batches) - 1)
        losses.append(trainer.training_step(trainer.model, None).item())
    return losses, {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["top", "bottom"])
def test_loss_and_gradient_are_means_over_the_tokens_that_the_last_threshold_keeps(tiny_model, tmp_path, kind):
    """Few of the tokens or many, whatever share was asked for; and the next threshold is that of this step."""
    batches = make_batches((3, 5), empty_rows=(2,))
    settings = SAMPLER | {"entropy_selection": kind, "top_entropy_quantile": 0.2, "steps_per_generation": 4}
    settings |= {"batch_by_length": False, "max_grad_norm": 1e-3}  # the loop clips after a step is divided
    trainer = make_trainer(tiny_model, tmp_path, 2, per_device_train_batch_size=4, **settings)
    set_old_logps(trainer.model, batches)
    *_, everything = in_float64(tiny_model, batches, 0.0, "top")
    for rank in (2, len(everything) // 2, len(everything) - 2):
        used = (everything[rank - 1] + everything[rank]) / 2
        trainer.threshold = used
        losses, gradients = second_step(trainer, batches)
        loss, expected, kept, _ = in_float64(tiny_model, batches, used, kind)
        assert kept == (rank if kind == "top" else len(everything) - rank)
        assert sum(losses) == pytest.approx(loss, rel=1e-5, abs=1e-7)
        assert_close(gradients, expected, 2e-5)
        logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        asked = -(-len(everything) // 5)
        assert logged["selection/kept_fraction"] == pytest.approx(kept / len(everything))
        wanted = asked if kind == "top" else len(everything) - asked
        assert logged["selection/requested_fraction"] == pytest.approx(wanted / len(everything))
        assert logged["selection/threshold"] == used
        assert logged["selection/step_threshold"] == trainer.threshold == pytest.approx(everything[asked - 1])


def test_a_step_without_kept_tokens_has_no_gradient_and_the_next_one_has(tiny_model, tmp_path):
    trainer = make_trainer(tiny_model, tmp_path, 2, per_device_train_batch_size=4, steps_per_generation=4, **SAMPLER)
    batches = make_batches((3, 5))
    set_old_logps(trainer.model, batches)
    trainer.threshold = 100.0
    losses, gradients = second_step(trainer, batches)
    assert losses == [0, 0] and all((g == 0).all() for g in gradients.values())
    assert any((g != 0).any() for g in second_step(trainer, batches)[1].values())


def test_with_all_tokens_it_is_the_ordinary_run_without_its_pass(tiny_model, tmp_path, counted):
    """Two steps of a rollout that transformers wrote: their ratios differ by rounding, as do the log-probabilities."""
    settings = {"sampled": True, "temperature": TEMPERATURE, "per_device_train_batch_size": 4, "max_steps": 2}
    settings |= {"gradient_accumulation_steps": 1, "steps_per_generation": 2, "learning_rate": 0.1}
    settings |= {"top_entropy_quantile": 1.0}
    scored = fixed_rollout.train(tiny_model, tmp_path / "scored", **settings)
    sampler = fixed_rollout.train(tiny_model, tmp_path / "sampler", old_logps="sampler", **settings)
    assert scored.passes == {True: [0, 1], False: [0]} and sampler.passes == {True: [0, 1], False: []}
    start = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert_close(*({n: w - start[n] for n, w in fixed_rollout.weights(t).items()} for t in (sampler, scored)), 1e-4)
    rows = [t.state.log_history[:2] for t in (scored, sampler)]
    for row, other in zip(*rows, strict=True):
        for name in ("grad_norm", "clip_ratio/high_mean", "selection/kept_fraction", "entropy"):
            assert other[name] == pytest.approx(row[name], rel=1e-3, abs=1e-6), name
    # The rollout's tokens under the policy that wrote them, once; or those of each step, under its own policy.
    names = [[{n for n in row if n.startswith(("entropy/", "step_entropy/"))} for row in of] for of in rows]
    assert not names[0][1] and names[1][0] == names[1][1] == {f"step_{name}" for name in names[0][0]} != set()
    assert rows[1][0]["step_entropy/mean"] != rows[0][0]["entropy/mean"]
    gap = "sampling/sampling_logp_difference/mean"
    assert 0 < rows[1][0][gap] < 1e-5 and gap not in rows[1][1] and gap not in rows[0][0]
    for row in (rows[0][0], rows[1][0]):
        tokens = row["sampling/seconds"] * row["sampling/tokens_per_second"]
        assert tokens == pytest.approx(8 * row["completions/mean_length"])
        assert "sampling/seconds" not in rows[0][1]


def test_the_first_step_is_that_of_global_scope_and_others_take_over_its_threshold(tiny_model, tmp_path, counted):
    """A policy that does not move: the share comes out as it would by each step's own threshold, or nearly."""
    settings = SAMPLER | {"top_entropy_quantile": 0.3, "per_device_train_batch_size": 4, "learning_rate": 0.0}
    settings |= {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 4}
    trainer = fixed_rollout.train(tiny_model, tmp_path / "carried", **settings)
    assert trainer.passes[False] == [0] and trainer.passes[True] == [0, 0, 1, 1, 2, 2, 3, 3]
    rows = [row for row in trainer.state.log_history if "loss" in row]
    for last, row in itertools.pairwise(rows):
        assert row["selection/threshold"] == last["selection/step_threshold"] != row["selection/step_threshold"]
        assert 0.2 < row["selection/kept_fraction"] < 0.5 and 0.3 <= row["selection/requested_fraction"] < 0.32
    assert len({row["selection/kept_fraction"] for row in rows}) > 1
    assert rows[0]["selection/threshold"] == rows[0]["selection/step_threshold"]
    assert rows[0]["selection/kept_fraction"] == rows[0]["selection/requested_fraction"]
    one = settings | {"old_logps": "scored", "entropy_scope": "global", "max_steps": 1}
    (first, *_) = fixed_rollout.train(tiny_model, tmp_path / "global", **one).state.log_history
    for name in ("selection/threshold", "selection/kept_fraction", "selection/kept_entropy"):
        assert rows[0][name] == pytest.approx(first[name], rel=1e-6), name


@pytest.mark.parametrize("scope", ["global", "rollout"])
def test_the_gap_to_the_sampler_is_that_of_all_tokens(tiny_model, tmp_path, scope):
    """In float64, from the weights that wrote the rollout: of tokens that are dropped or without an advantage, too."""
    settings = {"old_logps": "sampler", "entropy_scope": scope, "top_entropy_quantile": 0.2, "max_steps": 2}
    settings |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    trainer = fixed_rollout.train(tiny_model, tmp_path, reward="coins", **settings)
    model, gaps = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64), []
    for batch in trainer._buffered_inputs[:2]:
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        logps, _ = reference.score(model, *(batch[name] for name in names), 1.0)
        gaps.append((logps - batch["old_per_token_logps"]).abs()[batch["completion_mask"].bool()])
    gap = "sampling/sampling_logp_difference/mean"
    first, second = (row for row in trainer.state.log_history if "loss" in row)
    assert first[gap] == pytest.approx(torch.cat(gaps).mean().item(), rel=1e-4) and gap not in second


@pytest.mark.parametrize("other", [{"token_budget": 80}, {"batch_by_length": False}], ids=str)
def test_micro_batches_change_nothing(tiny_model, tmp_path, other):
    settings = SAMPLER | {"top_entropy_quantile": 0.2, "max_steps": 3, "learning_rate": 0.1}
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "steps_per_generation": 16}
    whole = fixed_rollout.train(tiny_model, tmp_path / "a", **settings, steps_per_generation=2)
    parts = fixed_rollout.train(tiny_model, tmp_path / "b", **settings, **split, **other)
    start = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert_close(*({n: w - start[n] for n, w in fixed_rollout.weights(t).items()} for t in (whole, parts)), 1e-5)
    rows = [[row for row in t.state.log_history if "loss" in row] for t in (whole, parts)]
    for row, second in zip(*rows, strict=True):
        for name in ("loss", "grad_norm", "selection/threshold", "selection/step_threshold", "step_entropy/p90"):
            assert second[name] == pytest.approx(row[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("saved", [1, 3, 4])
def test_a_run_goes_on_with_the_threshold_of_its_last_step(tiny_model, tmp_path, saved):
    settings = RESUMED | SAMPLER | {"data": fixed_rollout.prompts(8), "max_steps": 5, "save_steps": saved}
    settings |= {"sampled": True}
    whole = fixed_rollout.train(tiny_model, tmp_path / "a", **settings)
    assert_goes_on(tiny_model, tmp_path / "b", whole, tmp_path / "a" / f"checkpoint-{saved}", **settings)


@pytest.mark.parametrize("first", ["scored", "sampler"])
def test_a_run_that_changes_it_begins_a_new_rollout(tiny_model, tmp_path, caplog, first):
    """In the middle of a rollout, whose columns are those of the other source."""
    settings = RESUMED | SAMPLER | {"data": fixed_rollout.prompts(8), "max_steps": 3, "save_steps": 1}
    fixed_rollout.train(tiny_model, tmp_path, **settings | {"old_logps": first, "max_steps": 1})
    (second,) = {"scored", "sampler"} - {first}
    settings |= {"old_logps": second, "allow_changes": ["old_logps"]}
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert f"was written with old_logps {first}, now {second}, so a new rollout begins" in caplog.text
    assert trainer.state.global_step == 3 and ("kept_mask" in trainer._buffered_inputs[0]) == (second == "scored")


# Groups that wait because more were informative than were needed.
WAITING = {"max_new_tokens_per_round": None, "min_accuracy": None, "max_accuracy": None, "max_group_age": 5}


@pytest.mark.parametrize("first", ["scored", "sampler"])
@pytest.mark.parametrize("kind", [WAITING, {"reward": "reward"}], ids=["groups that wait", "parts of responses"])
def test_responses_of_a_checkpoint_keep_their_log_probabilities_if_it_changes(ending_model, tmp_path, first, kind):
    """Beside new responses, which the other source scores."""
    settings = PARTS | SAMPLER | {"learning_rate": 0.2, "save_steps": 2} | kind
    before = fixed_rollout.train(ending_model, tmp_path, **settings | {"old_logps": first, "max_steps": 2}).rollouts
    known = {}
    for group in [*before.sampler.waiting, *before.drafts.unfinished]:
        for response, logps in zip(group.responses, group.old_logps, strict=True):
            if len(logps) == len(response.completion_ids) > 0:
                known[*response.prompt_ids.tolist(), *response.completion_ids.tolist()] = logps
    assert before.sampler.waiting if kind is WAITING else before.drafts.unfinished
    (second,) = {"scored", "sampler"} - {first}
    settings |= {"old_logps": second, "allow_changes": ["old_logps"], "max_steps": 4}
    trainer, seen, new = fixed_rollout.make_trainer(ending_model, tmp_path, **settings), set(), []
    original = trainer._generate_and_score_completions

    def watched(inputs):
        output = original(inputs)
        for (prompt, ids), old in zip(written_parts.written_ids(output), output["old_per_token_logps"], strict=True):
            n = max((n for n in range(1, len(ids) + 1) if (*prompt, *ids[:n]) in known), default=0)
            if n:
                seen.add((*prompt, *ids[:n]))
                assert torch.equal(old[:n], known[*prompt, *ids[:n]])
            new.append(len(ids) - n)
        return output

    trainer._generate_and_score_completions = watched
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4 and len(seen) > 4 and any(new)


def test_parts_have_the_log_probabilities_of_the_policy_that_wrote_them_without_a_pass(
    ending_model, tmp_path, monkeypatch, counted
):
    """Of groups that waited and of responses that were written in several rollouts."""
    batch = {"per_device_train_batch_size": 4, "steps_per_generation": 2}
    trainer = written_parts.check(ending_model, tmp_path, batch | {"old_logps": "sampler"})
    assert trainer.passes[False] == [0], "a pass beside the one that ranks the first step"


def test_a_waiting_group_that_was_written_in_parts_has_all_recorded_log_probabilities():
    """Of a response whose last part was written after the log-probabilities of its first one were kept."""
    logprobs = torch.tensor([-1.0, -2.0, -3.0])
    response = Response(torch.tensor([4]), torch.tensor([5, 6, 7]), "text", logprobs, None, {})
    group = Group(0, [response], torch.ones(1, 1), born=1, old_logps=[logprobs[:2]], begun=0)
    source = DynamicSampling.__new__(DynamicSampling)
    source.args = SimpleNamespace(old_logps="sampler")
    source.sampler, source.drafts = SimpleNamespace(waiting=[group]), SimpleNamespace(keep_recorded=lambda: None)
    source.finish({}, SimpleNamespace(num_filling=0))
    assert torch.equal(group.old_logps[0], logprobs)


def test_a_token_that_the_sampler_could_not_score_is_scored_by_the_policy(tiny_model, tmp_path, monkeypatch, counted):
    original, recorded = fixed_rollout.fixed_completions, []

    def without_one(prompts, trainer):
        rollout = original(prompts, trainer)
        rollout["logprobs"][1][1] = None
        recorded.append(torch.tensor(rollout["logprobs"][0][0]))
        return rollout

    monkeypatch.setattr(fixed_rollout, "fixed_completions", without_one)
    trainer = fixed_rollout.train(tiny_model, tmp_path, **SAMPLER)
    (batch,) = trainer._buffered_inputs
    tokens = batch["completion_mask"].bool()
    own = batch["old_per_token_logps"][tokens & (batch["old_per_token_logps"] != recorded[0])]
    assert len(own) == 1 and -8 < own < -4 and trainer.passes[False] == [0, 0]


def test_a_rollout_without_log_probabilities_is_one_sentence(tiny_model, tmp_path, monkeypatch):
    original = fixed_rollout.fixed_completions
    monkeypatch.setattr(fixed_rollout, "fixed_completions", lambda *a: original(*a) | {"logprobs": None})
    with pytest.raises(ValueError, match="let rollout_func return them as logprobs, or set old_logps to scored"):
        fixed_rollout.train(tiny_model, tmp_path, **SAMPLER)


REFUSED = [
    ({"old_logps": "vllm"}, "choose one of scored, sampler"),
    ({"entropy_selection": "random"}, "use top or bottom, or entropy_scope global"),
    ({"entropy_selection": "gradient_norm"}, "use top or bottom"),
    ({"beta": 0.1}, "KL term.*use entropy_denominator all or entropy_scope global"),
    ({"entropy_coef": 0.1}, "an entropy bonus"),
    ({"token_weights": ["erc"]}, "token_weights names erc, which reads the entropies"),
    ({"use_vllm": True, "vllm_importance_sampling_clip_max": 2.0}, "ratios are to vLLM already"),
]


def config(folder, **settings):
    base = {"use_cpu": True, "bf16": False, "num_generations": 2, "steps_per_generation": 2}
    return EntropyForkGRPOConfig(str(folder), **base | SAMPLER | settings)


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_needs_the_pass_is_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        config(tmp_path, **settings)


def test_deepspeed_is_refused_unless_it_divides_beforehand(tmp_path):
    with pytest.raises(ValueError, match="DeepSpeed takes its step before the kept tokens are known: use FSDP2"):
        Objective.from_args(config(tmp_path), is_deepspeed=True)
    for settings in ({"entropy_denominator": "all"}, {"entropy_scope": "global"}, {"top_entropy_quantile": 1.0}):
        assert not Objective.from_args(config(tmp_path, **settings), is_deepspeed=True).divides_late


def test_what_needs_no_pass_is_not(tmp_path):
    """KL beside another denominator, perplexity of the rollout, dynamic sampling; and what each still scores."""
    for settings in (
        {"beta": 0.1, "entropy_denominator": "all"},
        {"ppl_shaping_alpha": 0.01},
        {"dynamic_sampling": True},
        {"use_vllm": True, "steps_per_generation": 1},
        {"allow_truncated_sampling": True, "top_p": 0.9},
    ):
        found = Objective.from_args(config(tmp_path, **settings))
        passes = {"rollout": 0, "reference": float("beta" in settings), "ranking": 0}
        assert found.scoring_passes == passes and not found.measures_rollout and not found.projects_kept
        assert json.loads(json.dumps(found.record()))["ranked_in"] == "last step"
    exact = Objective.from_args(config(tmp_path, entropy_scope="global", gradient_accumulation_steps=2))
    assert exact.scoring_passes == {"rollout": 0, "reference": 0, "ranking": 1}


def test_the_plan_has_the_operations_that_are_spared():
    """As many as it has for the pass over the rollout without the setting; the head then projects every token."""
    words = ["--old_logps", "sampler"]
    scored, spared = job(), job(words=words)
    before, after = flops.operations(scored), flops.operations(spared)
    assert after["spared_by_sampler"] == before["parts"]["old log-probabilities"] > 0 == before["spared_by_sampler"]
    assert after["parts"]["old log-probabilities"] == 0 and after["head_units"] == pytest.approx(1 + 3 * 0.2)
    assert before["head_units"] == pytest.approx(4 * 0.2)
    text = plan.render(plan.make(spared))
    assert "old_logps: sampler spares a pass over the rollout" in text and "old logps" in text
    assert simulate._trainer_spared(spared.options, words, (), None) is None
    assert simulate._trainer_spared(scored.options, ["--beta", "0.1"], (), None) is None


def test_trl_reads_the_attribute_that_turns_its_correction_off():
    import inspect

    source = inspect.getsource(GRPOTrainer)
    assert "self.args.vllm_importance_sampling_correction" not in source, "Read EntropyForkGRPOTrainer.__init__."
