"""The sparse LM head against float64 from full logits, against TRL's head, and where it must not serve."""

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    PhiConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    set_seed,
)
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import add_fused_lm_head

from benchmarks.fixtures import fixed_rollout
from benchmarks.fixtures.tiny_model import tiny_decoder
from entropy_grpo.models import kernels
from entropy_grpo.models.head import SparseLogProbs, add_sparse_lm_head, residual_norms, why_not
from entropy_grpo.models.kernels import LIGER, TILES, Kernel, choose

TEMPERATURE = 0.7
STATISTICS = ("entropy", "log_sum_sq_probs")


def problem(rows, hidden_size, vocabulary, dtype, share):
    rng = torch.Generator().manual_seed(vocabulary)
    hidden = torch.randn(rows, hidden_size, generator=rng).to(dtype)
    weight = (torch.randn(vocabulary, hidden_size, generator=rng) * 2 / hidden_size**0.5).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,), generator=rng)
    gradients = torch.randn(rows, generator=rng) * (torch.rand(rows, generator=rng) < share)
    return hidden, weight, targets, gradients


def truth(hidden, weight, targets, gradients):
    """Log-probabilities, entropies and gradients in float64, from full logits."""
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logps = (hidden @ weight.t() / TEMPERATURE).log_softmax(-1)
    log_probs = logps[torch.arange(len(targets)), targets]
    log_probs.backward(gradients.double())
    return log_probs.detach(), -(logps.exp() * logps).sum(-1).detach(), hidden.grad, weight.grad


def errors(score, hidden, weight, targets, gradients):
    """Relative errors of the four against the truth, and the gradient of the hidden states."""
    exact = truth(hidden, weight, targets, gradients)
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    log_probs, entropies = score(hidden, weight, targets)[:2]
    log_probs.backward(gradients)
    values = (log_probs, entropies, hidden.grad, weight.grad)
    return [((x.double() - y).norm() / y.norm()).item() for x, y in zip(values, exact, strict=True)], hidden.grad


def trl(hidden, weight, targets):
    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, TEMPERATURE, 32768, None, 1.0, STATISTICS)


def sparse(kernel, outputs=("entropy",)):
    return lambda *args: SparseLogProbs.apply(*args, TEMPERATURE, kernel, outputs)


@pytest.mark.parametrize("kernel", [TILES, LIGER], ids=["tiles", "liger"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocabulary", "rows", "hidden_size"), [(37, 50, 16), (129_920, 9, 8), (151_936, 9, 8)])
def test_errors_are_not_larger_than_those_of_trl(vocabulary, rows, hidden_size, dtype, kernel):
    data = problem(rows, hidden_size, vocabulary, dtype, share=0.3)
    stock, _ = errors(trl, *data)
    ours, gradient = errors(sparse(kernel), *data)
    # What is left is rounding to float32. Liger's fallback has a plain softmax, which sums a long row one by one.
    rounding = 2e-6 if kernel is TILES or vocabulary < 1000 else 1e-4
    assert all(a <= max(1.1 * b, rounding) for a, b in zip(ours, stock, strict=True)), (ours, stock)
    dropped = data[3] == 0
    assert dropped.any() and (gradient[dropped] == 0).all() and (gradient[~dropped] != 0).any(dim=1).all()


def test_bfloat16_sums_of_many_rows_are_float32():
    """Summed in bfloat16, the weight gradient of 3000 rows would be off by an order of magnitude more."""
    data = problem(3000, 16, 37, torch.bfloat16, share=1.0)
    naive = data[0].clone().requires_grad_(), data[1].clone().requires_grad_()
    (naive[0] @ naive[1].t() / TEMPERATURE).log_softmax(-1)[torch.arange(3000), data[2]].backward(data[3].bfloat16())
    exact = truth(*data)[3]
    naive_error = ((naive[1].grad.double() - exact).norm() / exact.norm()).item()
    for kernel in (TILES, LIGER):
        assert errors(sparse(kernel), *data)[0][3] < 0.75 * naive_error


@pytest.mark.parametrize("kernel", [TILES, LIGER], ids=["tiles", "liger"])
def test_backward_sees_only_the_rows_with_a_gradient(kernel):
    seen = []

    def watched(state, hidden, *args):
        seen.append(hidden.size(0))
        return kernel.backward(state, hidden, *args)

    hidden, weight, targets, gradients = problem(40, 8, 37, torch.float32, share=0.3)
    leaf = weight.clone().requires_grad_()
    for upstream in (gradients, torch.ones(40), torch.zeros(40)):
        log_probs, _, _ = sparse(Kernel(kernel.forward, watched))(hidden.clone().requires_grad_(), leaf, targets)
        log_probs.backward(upstream)
    assert seen == [int((gradients != 0).sum()), 40]


def test_not_a_number_reaches_the_weights():
    """A broken upstream gradient must not be taken for a dropped row."""
    hidden, weight, targets, gradients = problem(4, 8, 37, torch.float32, share=1.0)
    gradients[2] = torch.nan
    weight.requires_grad_()
    sparse(TILES)(hidden, weight, targets)[0].backward(gradients)
    assert weight.grad.isnan().all()


def test_residual_norm_is_that_of_the_whole_matrix():
    hidden, weight, targets, _ = problem(9, 8, 37, torch.float32, share=1.0)
    log_probs, _, log_sum_sq_probs = sparse(TILES, STATISTICS)(hidden, weight, targets)
    norms = residual_norms(hidden, log_probs, log_sum_sq_probs)
    for i in range(9):
        leaf = weight.double().requires_grad_()
        (hidden[i].double() @ leaf.t() / TEMPERATURE).log_softmax(-1)[targets[i]].backward()
        assert norms[i].item() == pytest.approx(leaf.grad.norm().item() * TEMPERATURE, rel=1e-5)


# The head in a model, beside TRL's


def tiny(config_class=Qwen3Config, **settings):
    tokens = {"vocab_size": 37, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return tiny_decoder(config_class, **tokens | settings)


def with_heads(model, name):
    """Two copies of a model: one with TRL's head, one with ours before it."""
    copies = copy.deepcopy(model), copy.deepcopy(model)
    for each in copies:
        add_fused_lm_head(each, TEMPERATURE, outputs=("log_probs", "entropy"))
    add_sparse_lm_head(copies[1], TEMPERATURE, name)
    return copies


def inputs(valid=True):
    rng = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 37, (3, 11), generator=rng)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    mask[2, 8:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels if valid else torch.full_like(ids, -100)}


def train_once(model, batch, autocast):
    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with context:
        output = model(**batch, fused_lm_head=True)
    weights = torch.arange(30.0).reshape(3, 10) % 4 - 1  # a quarter of them zero
    (output.log_probs * weights).sum().backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


CASES = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "frozen head": {"freeze": True},
    "autocast": {"autocast": True},
    "gradient checkpointing": {"checkpointing": True},
    "no label": {"valid": False},
    "adapters on the backbone": {"peft": {"target_modules": ["q_proj"]}},
    "a trained copy of the head": {"peft": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}},
}


@pytest.mark.parametrize("name", ["auto", "liger"])
@pytest.mark.parametrize("case", CASES)
def test_model_is_trained_as_with_the_head_of_trl(case, name):
    case = dict(CASES[case])
    freeze, autocast, peft = case.pop("freeze", False), case.pop("autocast", False), case.pop("peft", None)
    checkpointing, batch = case.pop("checkpointing", False), inputs(case.pop("valid", True))
    stock, ours = with_heads(tiny(**case), name)
    assert (
        why_not(get_peft_model(copy.deepcopy(stock), LoraConfig(**peft)).get_base_model() if peft else stock) is None
    )
    models = []
    for model in (stock, ours):
        if freeze:
            model.lm_head.requires_grad_(False)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if peft is not None:
            set_seed(1)
            model = get_peft_model(model, LoraConfig(init_lora_weights=False, **peft))
        models.append(model.train())
    (expected, expected_gradients), (output, gradients) = (train_once(m, batch, autocast) for m in models)
    tolerance = 2e-2 if autocast else 1e-5
    assert output.log_probs.dtype == output.entropy.dtype == torch.float32
    scored = batch["labels"][:, 1:] != -100
    for x, y in ((output.log_probs, expected.log_probs), (output.entropy, expected.entropy)):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)
        assert (x[~scored] == 0).all()
    assert gradients.keys() == expected_gradients.keys() and gradients
    scale = max(g.abs().max().item() for g in expected_gradients.values())
    for key, gradient in expected_gradients.items():
        assert (gradients[key] - gradient).abs().max() <= tolerance * scale, key
    assert (scale > 0) == bool(scored.any())


def test_calls_without_the_head_are_the_models_own():
    stock, ours = with_heads(tiny(), "auto")
    batch = inputs()
    assert torch.equal(stock(**batch).logits, ours(**batch).logits)
    assert torch.equal(stock(**batch).loss, ours(**batch).loss)
    prompt = {"input_ids": batch["input_ids"][:1], "attention_mask": batch["attention_mask"][:1]}
    assert torch.equal(
        stock.generate(**prompt, do_sample=False, max_new_tokens=4),
        ours.generate(**prompt, do_sample=False, max_new_tokens=4),
    )


def test_only_what_is_asked_for_is_computed():
    _, ours = with_heads(tiny(), "auto")
    batch = inputs()
    output = ours(**batch, fused_lm_head=("log_probs",))
    assert output.entropy is None and output.residual_norm is None
    assert torch.equal(output.log_probs, ours(**batch, fused_lm_head=True).log_probs)
    assert ours(**batch, fused_lm_head=("residual_norm",)).residual_norm.shape == output.log_probs.shape


# Where it must not serve


@pytest.mark.parametrize(
    ("config_class", "settings", "reason"),
    [
        (Gemma2Config, {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}, "caps its logits"),
        (CohereConfig, {"logit_scale": 0.5}, "scales its logits"),
        (GraniteConfig, {"logits_scaling": 4.0}, "scales its logits"),
        (PhiConfig, {}, "bias"),
        (Qwen3Config, {}, None),
        (Qwen3MoeConfig, {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}, None),
    ],
    ids=["soft-capping", "logit scale", "logit scaling", "bias", "served", "served, mixture of experts"],
)
def test_models_it_cannot_serve(config_class, settings, reason):
    model = tiny(config_class, **settings)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    found = why_not(model)
    assert found is None if reason is None else reason in found


def test_other_heads_are_not_served():
    model = tiny()
    add_fused_lm_head(model, cast_lm_head_to_fp32=True)
    assert "cast_lm_head_to_fp32" in why_not(model)
    model = tiny()
    add_fused_lm_head(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"]))
    assert "lm head is a linear" in why_not(adapted.get_base_model()).lower()


def saved(model, tmp_path, tiny_model):
    """A model in a folder, with the test's tokenizer."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize(
    ("settings", "make", "reason"),
    [
        ({"entropy_coef": 0.01}, None, "entropy bonus"),
        ({"cast_lm_head_to_fp32": True}, None, "cast_lm_head_to_fp32"),
        (
            {},
            lambda size: tiny(
                Qwen3MoeConfig, vocab_size=size, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8
            ),
            "load-balancing",
        ),
        ({}, lambda size: tiny(PhiConfig, vocab_size=size), "bias"),
    ],
    ids=["entropy bonus", "float32 head", "load-balancing loss", "bias"],
)
def test_the_head_of_trl_takes_over_with_one_line(settings, make, reason, tiny_model, tmp_path, caplog):
    """And the step is stock TRL's; `liger`, which was asked for by name, is refused instead."""
    if make is not None:
        size = AutoModelForCausalLM.from_pretrained(tiny_model).config.vocab_size
        tiny_model = saved(make(size), tmp_path, tiny_model)
    settings |= {"top_entropy_quantile": 1.0, "max_completion_length": 16}
    ours = fixed_rollout.train(tiny_model, tmp_path / "a", batch_by_length=False, **settings)
    lines = [r.getMessage() for r in caplog.records if "LM head: TRL's" in r.getMessage()]
    assert len(lines) == 1 and reason in lines[0]
    stock = fixed_rollout.train(tiny_model, tmp_path / "b", stock=True, **settings)
    for name, weight in fixed_rollout.weights(stock).items():
        assert torch.equal(weight, fixed_rollout.weights(ours)[name]), name
    with pytest.raises(ValueError, match=f"fused_lm_head is 'liger', but .*{reason}"):
        fixed_rollout.train(tiny_model, tmp_path / "c", fused_lm_head="liger", **settings)


def test_an_adapter_on_the_head_is_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="lm_head"):
        fixed_rollout.train(tiny_model, tmp_path, peft_config=LoraConfig(target_modules=["q_proj", "lm_head"]))


def test_kernels_serve_what_they_compute_in_float32(monkeypatch):
    cpu = torch.device("cpu")
    assert choose("auto", cpu, ("entropy",)) is TILES
    assert choose("liger", cpu, ("entropy",)) is LIGER
    assert choose("liger", cpu, ("log_sum_sq_probs",)) is TILES
    monkeypatch.setattr(kernels, "hopper", lambda device: True)
    assert choose("liger", cpu, ("entropy",)) is TILES
    assert choose("liger", cpu, ()) is LIGER
