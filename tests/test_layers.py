"""Liger's kernels in the layers: where they are refused, which models get them, and what is printed."""

import importlib
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from benchmarks.fixtures import fixed_rollout
from entropy_grpo.models.layers import prepare_liger, use_liger
from entropy_grpo.training.start import Start


def test_a_processor_is_refused_and_trls_next_version_announced_to_nobody(tiny_model, tmp_path, recwarn):
    """TRL 1.16 warns of `use_liger_kernel`, which the recipes for GPUs set, that TRL 2 will not have it."""
    start = Start.__new__(Start)  # only its context is needed

    def announced():
        with pytest.raises(ValueError, match=r"use_liger_kernel is true, .*: set use_liger_kernel to false"):
            fixed_rollout.make_trainer(tiny_model, tmp_path, use_liger_kernel=True, use_cpu=False)
        found = [str(warning.message) for warning in recwarn if "use_liger_kernel" in str(warning.message)]
        recwarn.clear()
        return found

    if torch.accelerator.is_available():
        pytest.skip("needs a machine without a GPU")
    assert len(announced()) == 1
    with start.loading():
        assert announced() == []


def test_long_sequences_are_rotated_by_one_kernel(monkeypatch):
    chosen = importlib.import_module("liger_kernel.backends.dispatch")._per_op_env
    monkeypatch.setenv("LIGER_KERNEL_IMPL_ROPE", "")  # so that it is put back
    monkeypatch.delenv("LIGER_KERNEL_IMPL_ROPE")
    prepare_liger(False, torch.device("cuda"))
    assert chosen("rope") is None
    prepare_liger(True, torch.device("cuda"))
    assert chosen("rope") == "triton"
    assert not logging.getLogger("liger_kernel.backends.registry").isEnabledFor(logging.WARNING)
    monkeypatch.setenv("LIGER_KERNEL_IMPL_ROPE", "cutedsl")  # a choice of the user stays
    prepare_liger(True, torch.device("cuda"))
    assert chosen("rope") == "cutedsl"


@pytest.fixture
def architecture(monkeypatch):
    """transformers' module of the tiny model's architecture, in which Liger replaces names. They are put back."""
    module = importlib.import_module("transformers.models.qwen3.modeling_qwen3")
    for name, value in vars(module).copy().items():
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("architecture")
def test_every_model_gets_the_kernels_twice_over(tiny_model):
    """The trained and the reference model; transformers repeats it for the first when training begins."""
    from liger_kernel.transformers.rms_norm import LigerRMSNorm

    models = [AutoModelForCausalLM.from_pretrained(tiny_model) for _ in range(2)]
    heads = [model.forward.__func__ for model in models]
    for _ in range(2):
        assert use_liger(models, {"fused_linear_cross_entropy": False}) is None
    norms = [model.model.layers[0].input_layernorm for model in models]
    assert all(norm.forward.__func__ is LigerRMSNorm.forward for norm in norms)
    assert [model.forward.__func__ for model in models] == heads


def test_an_architecture_that_liger_does_not_know_is_named():
    model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8))
    assert use_liger([model], {}) == "Liger has no kernels for the model type gpt2"
