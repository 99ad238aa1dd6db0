"""The distribution that rollouts are drawn from, whatever the model's own generation configuration says."""

import math
import shutil

import pytest
import torch
from transformers import GenerationConfig
from trl import GRPOConfig, GRPOTrainer

from benchmarks.fixtures import fixed_rollout
from entropy_grpo import EntropyForkGRPOConfig, EntropyForkGRPOTrainer
from entropy_grpo.models import truncation
from entropy_grpo.models.truncation import Truncation

OWN = {
    "do_sample": True,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": [5, 6, 7],
    "min_new_tokens": 16,
    "min_p": 0.9,
    "typical_p": 0.2,
    "repetition_penalty": 3.0,
    "temperature": 0.1,
    "top_k": 2,
    "top_p": 0.3,
    "bad_words_ids": [[8]],
    "exponential_decay_length_penalty": [2, 1.5],
}


def test_rollouts_ignore_the_models_own_sampling(tiny_model, tmp_path, caplog):
    own = tmp_path / "model"
    shutil.copytree(tiny_model, own)
    config = GenerationConfig.from_pretrained(tiny_model)
    config.update(**OWN)
    config.save_pretrained(own)
    plain = fixed_rollout.train(tiny_model, tmp_path / "plain", sampled=True)
    with caplog.at_level("INFO"):
        other = fixed_rollout.train(str(own), tmp_path / "own", sampled=True)
    assert "no_repeat_ngram_size 1" in caplog.text and "suppress_tokens [5, 6, 7]" in caplog.text
    ours, theirs = fixed_rollout.weights(plain), fixed_rollout.weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    saved = other.model.generation_config  # and a checkpoint keeps it
    assert all(getattr(saved, name) == value for name, value in OWN.items())


def kept(probabilities, top_p=1.0, top_k=0, min_p=None, min_p_first=False):
    """The tokens that sampling leaves, worked out one by one: top_k, then the nucleus of what is left, then min_p.

    vLLM cuts by min_p first.
    """
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    if min_p_first:
        order = [token for token in order if probabilities[token] >= (min_p or 0) * probabilities[order[0]]]
    order = order[:top_k] if top_k else order
    total, mass, nucleus = sum(probabilities[token] for token in order), 0.0, []
    for token in order:
        if mass >= top_p * total:
            break
        nucleus.append(token)
        mass += probabilities[token]
    return [token for token in nucleus if probabilities[token] >= (min_p or 0) * probabilities[order[0]]]


CUTS = [{"top_p": 0.6}, {"top_k": 3}, {"min_p": 0.3}, {"top_p": 0.8, "top_k": 5, "min_p": 0.1}, {"top_p": 1e-6}]
CUTS += [{"top_p": 0.8, "min_p": 0.2, "min_p_first": True}]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("chunk", [2**25, 1])
def test_the_kernel_scores_by_what_the_sampler_leaves(monkeypatch, cut, chunk):
    """Against the definition in float64, with gradients by autograd; also a row at a time."""
    monkeypatch.setattr(truncation, "CHUNK", chunk)
    torch.manual_seed(0)
    temperature, n, vocabulary = 0.7, 9, 13
    hidden, weight = 2 * torch.randn(n, 6), torch.randn(vocabulary, 6)
    upstream, targets = torch.randn(n), torch.randint(vocabulary, (n,))
    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    logits = exact[0] @ exact[1].T / temperature
    whole, rows, squares = logits.log_softmax(-1), [], []
    for i, target in enumerate(targets.tolist()):
        tokens = sorted({*kept(whole[i].exp().tolist(), **cut), target})
        inside = logits[i, tokens].log_softmax(0)
        rows.append(inside[tokens.index(target)])
        squares.append((2 * inside).logsumexp(0))
    wanted = torch.stack(rows)
    kernel = Truncation(**cut).kernel()
    outputs = ("log_probs", "entropy", "log_sum_sq_probs")
    scores, state = kernel.forward(hidden, weight, targets, temperature, outputs)
    close = {"atol": 1e-5, "rtol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(scores.log_probs, wanted, **close)
    torch.testing.assert_close(scores.entropy, -(whole.exp() * whole).sum(-1), **close)
    torch.testing.assert_close(scores.log_sum_sq_probs, torch.stack(squares), **close)
    gradients = torch.autograd.grad(wanted, exact, upstream.double())
    found = kernel.backward(state, hidden, weight, targets, None, upstream, (True, True))
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, **close)
    some = torch.tensor([1, 4])  # any subset of the rows
    part = kernel.backward(state, hidden[some], weight, targets[some], None, upstream[some], (True, False))
    torch.testing.assert_close(part[0], found[0][some])
    assert part[1] is None


def test_a_truncation_that_leaves_all_is_the_whole_distribution():
    logits, targets = torch.randn(5, 7), torch.tensor([0, 1, 2, 3, 4])
    assert not Truncation() and not Truncation(1.0, 0, 0.0)
    torch.testing.assert_close(Truncation(top_k=7).log_probs(logits, targets), logits.log_softmax(-1))


@pytest.mark.parametrize("cut", [{"top_p": 0.3}, {"top_k": 2}, {"min_p": 0.8}])
def test_truncated_rollouts_are_scored_by_their_own_distribution(tiny_model, tmp_path, caplog, cut):
    """No token of a rollout lies outside of what its policy left to sample from, and its score is relative to that."""
    seen = {}

    class Observed(EntropyForkGRPOTrainer):
        def _prepare_rollout(self, output, scored, old_logps):
            seen.update(output)
            return super()._prepare_rollout(output, scored, old_logps)

    with pytest.raises(ValueError, match="or set allow_truncated_sampling: true"):
        EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **cut)
    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "per_device_train_batch_size": 8,
                "num_generations": 4, "max_completion_length": 8, "max_steps": 2, "steps_per_generation": 2,
                "save_strategy": "no", "gradient_checkpointing": False}  # fmt: skip
    args = EntropyForkGRPOConfig(str(tmp_path), allow_truncated_sampling=True, **settings, **cut)
    trainer = Observed(tiny_model, fixed_rollout.reward, args, train_dataset=fixed_rollout.prompts(8))
    assert next(iter(cut)) in caplog.text and "Rollouts are drawn from a truncated distribution" in caplog.text
    model = trainer.model
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    model.load_state_dict(weights, strict=False)
    ids = torch.cat([seen["prompt_ids"], seen["completion_ids"]], 1)
    mask = torch.cat([seen["prompt_mask"], seen["completion_mask"]], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, seen["prompt_ids"].size(1) - 1 : -1]
    written = seen["completion_mask"].bool()
    columns = (logits.softmax(-1), seen["completion_ids"], seen["old_per_token_logps"])
    for row, token, logp in zip(*(column[written].tolist() for column in columns), strict=True):
        tokens = kept(row, **cut)
        assert token in tokens
        assert logp == pytest.approx(math.log(row[token] / sum(row[other] for other in tokens)), abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "cut nothing off"),
        ({"top_p": 0.9, "fused_lm_head": "trl"}, "fused_lm_head is 'trl'"),
        ({"top_p": 0.9, "beta": 0.1}, "beta is 0.1 with allow_truncated_sampling"),
        ({"top_p": 1.5, "top_k": 2}, "top_p is 1.5"),
        ({"top_p": 0.9, "repetition_penalty": 1.1}, "repetition_penalty is 1.1"),
        ({"top_p": 0.9, "generation_kwargs": {"top_k": 3}}, "generation_kwargs: top_k is 3"),
    ],
)
def test_what_cannot_be_scored_exactly_is_refused(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, allow_truncated_sampling=True, **settings)


def test_a_trainer_without_arguments_has_defaults_as_trls(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The defaults train in bfloat16, which transformers refuses without a GPU.
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    given = {"reward_funcs": fixed_rollout.reward, "train_dataset": fixed_rollout.prompts(8)}
    ours, stock = (made(tiny_model, **given).args for made in (EntropyForkGRPOTrainer, GRPOTrainer))
    assert isinstance(ours, EntropyForkGRPOConfig) and ours.top_entropy_quantile == 0.2
    assert ours.output_dir == stock.output_dir.replace("-GRPO", "-EntropyForkGRPO")


def test_a_plain_configuration_trains_as_it_says(tiny_model, tmp_path):
    """That of stock TRL, with its defaults: all tokens, and the same step."""
    settings = {"max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 16,
                "learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 0.0, "save_strategy": "no",
                "report_to": "none", "use_cpu": True, "bf16": False}  # fmt: skip
    given = {"reward_funcs": fixed_rollout.reward, "train_dataset": fixed_rollout.prompts(8),
             "rollout_func": fixed_rollout.fixed_completions}  # fmt: skip
    stepped = []
    for made in (GRPOTrainer, EntropyForkGRPOTrainer):
        plain = GRPOConfig(str(tmp_path / made.__name__), steps_per_generation=1, **settings)
        trainer = made(tiny_model, args=plain, **given)
        trainer.train()
        stepped.append(fixed_rollout.weights(trainer))
    assert trainer.args.top_entropy_quantile == 1.0 and trainer.args.epsilon_high == plain.epsilon_high
    for name, theirs in stepped[0].items():
        torch.testing.assert_close(stepped[1][name], theirs)
