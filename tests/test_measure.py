"""Measurement of models without weights, against counts, tensors, allocations and operations of real models."""

import copy
from contextlib import nullcontext
from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from entropy_grpo.models.config import CheckedModelConfig
from entropy_grpo.models.known import KNOWN
from entropy_grpo.models.load import read_local_config
from entropy_grpo.models.measure import Model, model_of
from entropy_grpo.tasks import cold_start

from .small_models import BATCH, FAMILIES, WIDTH, measured, small, tokens

# Published counts, each from the model's own card or index.
PUBLISHED = {
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B-Base": 4_022_468_096,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "Qwen/Qwen3-14B-Base": 14_768_307_200,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-Math-7B": 7_615_616_512,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
}


def test_every_known_model_has_its_published_count():
    found = {name: Model(read_local_config(name), CheckedModelConfig()) for name in KNOWN}
    assert {name: model.parameters for name, model in found.items()} == PUBLISHED
    built = cold_start.build_model(cold_start.build_tokenizer(), 0)
    embedded = Model(read_local_config("embedded:number_walk"), CheckedModelConfig())
    assert embedded.parameters == sum(p.numel() for p in built.parameters())
    # The LM head's weight: the card's 8.2B parameters are 6.95B without the embeddings.
    assert found["Qwen/Qwen3-8B-Base"].vocabulary * found["Qwen/Qwen3-8B-Base"].hidden == 622_329_856
    assert found["Qwen/Qwen3-32B"].head_refusal is None


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [({"intermediate_size": 176}, {}), ({}, {"dtype": "bfloat16"}), ({}, {"use_peft": True, "lora_r": 3})],
    ids=str,
)
def test_equal_models_are_measured_once_and_others_anew(sizes, settings):
    def figures(model):
        return model.loaded, model.tensors, model.operations(False)

    config, plain = copy.deepcopy(FAMILIES["qwen3"]), CheckedModelConfig()
    known = model_of(config, plain)
    known_figures = figures(known)
    for name, size in sizes.items():
        setattr(config, name, size)
    other, anew = (make(config, CheckedModelConfig(**settings)) for make in (model_of, Model))
    assert other is not known and figures(other) == figures(anew) != known_figures
    assert model_of(FAMILIES["qwen3"], CheckedModelConfig()) is known and figures(known) == known_figures


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_the_models(family, tmp_path):
    built, model = small(family), measured(family)
    assert model.tensors == [p.numel() for p in built.parameters()]
    linear = [m for m in built.model.modules() if isinstance(m, torch.nn.Linear)]
    assert model.linear == [tuple(m.weight.shape) for m in linear]
    assert model.layer_sizes == [sum(p.numel() for p in layer.parameters()) for layer in built.model.layers]
    built.config.save_pretrained(tmp_path)
    for config in read_local_config(str(tmp_path)), read_local_config("a/b", path=str(tmp_path / "config.json")):
        assert Model(config, CheckedModelConfig()).tensors == model.tensors


def test_a_configuration_of_the_hubs_cache_is_found(tmp_path, monkeypatch):
    """In the layout that `huggingface_hub` documents, at the commit that a recipe names."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--someone--model" / "snapshots" / "c0ffee"
    FAMILIES["llama"].save_pretrained(folder)
    found = Model(read_local_config("someone/model", "c0ffee"), CheckedModelConfig())
    assert found.tensors == measured("llama").tensors
    with pytest.raises(ValueError, match="not in the Hub's local cache"):
        read_local_config("someone/model", "another")


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["all-linear"]])
def test_lora_tensors_are_pefts(targets):
    from peft import LoraConfig, get_peft_model

    named = "all-linear" if targets == ["all-linear"] else targets
    built = get_peft_model(small(), LoraConfig(r=3, target_modules=named))
    model = measured(use_peft=True, lora_r=3, lora_target_modules=targets)
    trained = [p.numel() for p in model.whole.parameters() if p.requires_grad]
    assert trained == [p.numel() for p in built.parameters() if p.requires_grad]


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "mistral", "phi3", "qwen3_moe", "gpt_oss"])
def test_any_architecture_is_measured(kind):
    """Parameters and a dense forward pass, as torch counts them on the model itself; experts by the chosen ones."""
    sizes = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 97}
    also = {"gpt2": {}, "phi3": {"pad_token_id": 0}}.get(kind, {"num_key_value_heads": 2, "head_dim": 16})
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    experts = experts if kind in ("qwen3_moe", "gpt_oss") else {}
    config = AutoConfig.for_model(
        kind, **sizes, **also, **experts, **({} if kind == "gpt2" else {"intermediate_size": 96})
    )
    model = Model(config, CheckedModelConfig())
    built = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    assert model.tensors == [p.numel() for p in built.parameters()]
    if experts:
        built.config._experts_implementation = "batched_mm"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built.base_model(torch.zeros(1, 70, dtype=torch.long), use_cache=False)
    forward, backward = model.operations(checkpointing=False)
    assert forward(70) == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert 1.9 < backward(70) / forward(70) <= 2
    kept = model.activations(1, 70, torch.bfloat16, False, None, True)
    assert 3 * 70 * 64 * 2 <= kept.kept < kept.peak


def test_layers_that_differ_are_measured_whole():
    """A dense layer before layers of experts: twice the second layer is not the third."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 97, "num_attention_heads": 4}
    experts = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
    ranks = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    layers = {"num_hidden_layers": 3, "first_k_dense_replace": 1, "num_key_value_heads": 4, "topk_group": 1}
    config = AutoConfig.for_model("deepseek_v3", **sizes, **experts, **ranks, **layers)
    model = Model(config, CheckedModelConfig())
    built = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    built.config._experts_implementation = "batched_mm"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built.base_model(torch.zeros(1, 70, dtype=torch.long), use_cache=False)
    assert model.operations(checkpointing=False)[0](70) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def allocations(run):
    """Bytes that torch's own allocator holds at most and at the end, beyond those from before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        left = run()  # referred to until the profiler is closed
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = list(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    del left
    return max(sizes), sizes[-1]


def pass_bytes(model, autocast=False, masked=True):
    """Bytes of a decoder after its forward pass, and at most in both passes, gradients of parameters apart."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    decoder = getattr(model, "get_base_model", lambda: model)().model
    ids, mask = tokens(), torch.ones(BATCH, WIDTH, dtype=torch.long)
    mask[0, :5] = 0
    mask = mask if masked else None

    def forward():
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            hidden = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return hidden.sum()

    return allocations(forward)[1], allocations(lambda: forward().backward())[0]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "family, attention, dtype, autocast",
    [
        ("qwen3", "sdpa", "float32", False),
        ("qwen3", "sdpa", "bfloat16", False),
        ("qwen3", "sdpa", "float32", True),
        ("qwen3", "eager", "float32", False),
        ("qwen2", "sdpa", "float32", False),
        ("llama", "eager", "bfloat16", False),
    ],
)
def test_activations_are_what_a_pass_allocates(family, attention, dtype, autocast, checkpointing):
    """By torch's profiler on the whole model with real tensors; a mask of integers and two copies differ a little.

    In bfloat16 a processor's kernels have buffers of their own; `test_gpu_kit` compares the peaks with a GPU's.
    """
    compute = torch.bfloat16 if autocast else getattr(torch, dtype)
    model = small(family, attn_implementation=attention).to(getattr(torch, dtype)).train()
    if checkpointing:
        # The state of the random numbers has 5 kB a layer, which is much beside these small layers.
        without_state = {"use_reentrant": False, "preserve_rng_state": False}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=without_state)
    found = measured(family, dtype=dtype).activations(BATCH, WIDTH, compute, autocast, attention, checkpointing)
    kept, peak = pass_bytes(model, autocast)
    assert found.kept == pytest.approx(kept, rel=0.02) and found.peak < 1.02 * peak
    assert compute == torch.bfloat16 or found.peak == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_pass_without_a_mask_keeps_neither_mask_nor_repeated_keys(attention):
    model = small(attn_implementation=attention).train()
    sizes = [
        measured(dtype="float32").activations(BATCH, WIDTH, torch.float32, False, attention, False, masked)
        for masked in (True, False)
    ]
    assert (sizes[1].kept, sizes[1].peak) == pytest.approx(pass_bytes(model, masked=False), rel=0.02)
    assert (sizes[1].kept < sizes[0].kept) == (attention == "sdpa")
    other = measured(dtype="float32").activations(BATCH, WIDTH, torch.float32, False, "kernels-community/x", False)
    assert attention == "eager" or other == sizes[1]


def test_frozen_weights_keep_no_inputs():
    """With LoRA on two layers, as a real adapted model allocates."""
    from peft import LoraConfig, get_peft_model

    built = get_peft_model(small(attn_implementation="sdpa"), LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))
    settings = {"use_peft": True, "lora_r": 3, "lora_target_modules": ["q_proj", "v_proj"], "dtype": "float32"}
    found = measured(**settings).activations(BATCH, WIDTH, torch.float32, False, "sdpa", False)
    assert (found.kept, found.peak) == pytest.approx(pass_bytes(built.train()), rel=0.02)
    full = measured(dtype="float32").activations(BATCH, WIDTH, torch.float32, False, "sdpa", False)
    assert found.kept < 0.95 * full.kept


@pytest.mark.parametrize(
    "dtype, autocast, bytes_of_a_token",
    [("float32", False, 405_800), ("bfloat16", False, 229_672), ("float32", True, 459_048)],
)
def test_a_layer_of_a_real_model_keeps(dtype, autocast, bytes_of_a_token):
    """Two sequences of 1,024 tokens in Qwen3-8B, counted by hand after arXiv 2205.05198, section 4.

    In bytes of an element c, hidden size H: norms 2 H (4 + c) + 8, inputs of linear layers 2 H c, norms of queries and
    keys 5,120 (4 + c) + 160, attention 4 H c + 128 with a mask of c x 1,024, the MLP 4 x 12,288 c. Under autocast the
    norms of the stream are in float32, linear layers keep 5 inputs, and a cast of every weight is kept.
    """
    config = read_local_config("Qwen/Qwen3-8B-Base")
    compute = torch.float32 if (dtype, autocast) == ("float32", False) else torch.bfloat16
    found = []
    for config.num_hidden_layers in 5, 6:
        config.layer_types = ["full_attention"] * config.num_hidden_layers
        model = Model(config, CheckedModelConfig(dtype=dtype))
        found.append(model.activations(2, 1024, compute, autocast, "sdpa", False))
    assert found[1].kept - found[0].kept == 2 * 1024 * bytes_of_a_token


def test_a_cache_holds_keys_and_values():
    for family in FAMILIES:
        model, kv_heads = measured(family), FAMILIES[family].num_key_value_heads
        head = getattr(FAMILIES[family], "head_dim", None) or 96 // 4
        assert model.cache_token() == 2 * 4 * kv_heads * head


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_operations_are_torchs(checkpointing, lora):
    """Forward and backward of the whole model at another length than the two that were measured."""
    from peft import LoraConfig, get_peft_model

    built = small(attn_implementation="eager").train()
    settings = {"use_peft": True, "lora_r": 3, "lora_target_modules": ["all-linear"]} if lora else {}
    if lora:
        built = get_peft_model(built, LoraConfig(r=3, target_modules="all-linear"))
    if checkpointing:
        built.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora:
            built.enable_input_require_grads()
    backbone = (built.get_base_model() if lora else built).model
    with FlopCounterMode(display=False) as counter:
        hidden = backbone(input_ids=tokens()[:1], use_cache=False).last_hidden_state
        expected = [counter.get_total_flops()]
        hidden.sum().backward()
    expected.append(counter.get_total_flops() - expected[0])
    found = [operations(WIDTH) for operations in measured(**settings).operations(checkpointing)]
    assert found == pytest.approx(expected, rel=1e-6)
