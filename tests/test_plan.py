"""Planning: measurements and formulas against counts, tensors and operations of real models; sentences; commands."""

import copy
import json
import re
import shlex
import socket
from contextlib import nullcontext
from itertools import chain

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from entropy_grpo import cli
from entropy_grpo.config import recipe
from entropy_grpo.config.recipe import RecipeError
from entropy_grpo.models.config import CheckedModelConfig
from entropy_grpo.planning import commands, disk, flops, memory, models, plan, vllm
from entropy_grpo.planning.measure import Model
from entropy_grpo.tasks import cold_start

from .conftest import REPOSITORY

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
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
}
SMALL = {
    "vocab_size": 61,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
FAMILIES = {
    "qwen3": Qwen3Config(**SMALL),
    "qwen2": Qwen2Config(**{k: v for k, v in SMALL.items() if k != "head_dim"}, tie_word_embeddings=True),
    "llama": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
}
BATCH, WIDTH = 2, 48

RECIPE = f"""{recipe.FIRST_LINE}
base: {REPOSITORY / "recipes/base.yaml"}
accelerate_config: {REPOSITORY / "accelerate_configs/fsdp2.yaml"}
model_name_or_path: Qwen/Qwen3-8B-Base
dataset_name: open-r1/DAPO-Math-17k-Processed
prompts_per_rollout: 512
steps_per_rollout: 16
num_generations: 16
per_device_train_batch_size: 2
max_completion_length: 20480
learning_rate: 1.0e-6
use_vllm: true
vllm_enable_sleep_mode: true
{recipe.LAST_LINE}
"""


def small(family="qwen3", **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family], **options)


def measured(family="qwen3", **settings):
    return Model(FAMILIES[family], CheckedModelConfig(**settings))


def tokens():
    return torch.randint(0, SMALL["vocab_size"], (BATCH, WIDTH), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A plan of the recipe above for eight GPUs."""
    path = tmp_path_factory.mktemp("recipes") / "r.yaml"
    path.write_text(RECIPE)
    return plan.make(plan.resolve(str(path), ["--seed", "3"], mean_length=7000, problems=17_398))


# Models


def test_every_known_model_has_its_published_count():
    found = {name: Model(models.read_config(name), CheckedModelConfig()) for name in models.CONFIGS}
    assert {name: model.parameters for name, model in found.items()} == PUBLISHED
    built = cold_start.build_model(cold_start.build_tokenizer(), 0)
    embedded = Model(models.read_config("embedded:number_walk"), CheckedModelConfig())
    assert embedded.parameters == sum(p.numel() for p in built.parameters())
    # The LM head's weight: the card's 8.2B parameters are 6.95B without the embeddings.
    assert found["Qwen/Qwen3-8B-Base"].vocabulary * found["Qwen/Qwen3-8B-Base"].hidden == 622_329_856
    assert found["Qwen/Qwen3-32B"].head_refusal is None


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_the_models(family, tmp_path):
    built, model = small(family), measured(family)
    assert model.tensors == [p.numel() for p in built.parameters()]
    linear = [m for m in built.model.modules() if isinstance(m, torch.nn.Linear)]
    assert model.linear == [tuple(m.weight.shape) for m in linear]
    assert model.layer_sizes == [sum(p.numel() for p in layer.parameters()) for layer in built.model.layers]
    built.config.save_pretrained(tmp_path)
    for config in models.read_config(str(tmp_path)), models.read_config("a/b", path=str(tmp_path / "config.json")):
        assert Model(config, CheckedModelConfig()).tensors == model.tensors


def test_a_configuration_of_the_hubs_cache_is_found(tmp_path, monkeypatch):
    """In the layout that `huggingface_hub` documents, at the commit that a recipe names."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--someone--model" / "snapshots" / "c0ffee"
    FAMILIES["llama"].save_pretrained(folder)
    found = Model(models.read_config("someone/model", "c0ffee"), CheckedModelConfig())
    assert found.tensors == measured("llama").tensors
    with pytest.raises(ValueError, match="not in the Hub's local cache"):
        models.read_config("someone/model", "another")


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
    assert 3 * 70 * 64 * 2 <= kept.kept < kept.layer


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


# Memory


def test_states_are_the_bytes_of_a_step(tmp_path, recipe_file):
    """Weights, gradients and AdamW's states of a model after a step, tensor by tensor, to the byte."""
    model = small()
    model.save_pretrained(tmp_path / "model")
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    measured = {
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": sum(p.grad.nbytes for p in model.parameters()),
        "optimizer": sum(value.nbytes for value in states),
    }
    words = ["--model_name_or_path", str(tmp_path / "model"), "--bf16", "false"]
    parts = memory.memory(plan.resolve(recipe_file, words, gpus=1))["parts"]
    assert {name: parts[name]["bytes"] for name in measured} == measured


def saved_bytes(family, dtype, autocast, attention, checkpointing):
    """Bytes of what the backbone of a small model keeps for its backward pass."""
    model = small(family, attn_implementation=attention).to(dtype).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return saved_by(model, model.model, autocast)


def saved_by(model, backbone, autocast):
    """Bytes of what a pass keeps for its backward pass, parameters apart, every storage once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, sizes = [], {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept.append(tensor)  # so that no other tensor gets its address
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    mask = torch.ones_like(tokens())
    mask[0, :5] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext(),
    ):
        backbone(input_ids=tokens(), attention_mask=mask, use_cache=False)
    return sum(sizes.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype, autocast", [("float32", False), ("bfloat16", False), ("float32", True)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_saves(family, attention, dtype, autocast, checkpointing):
    """Of the whole model, with real tensors; what a mask and two copies leave out are the parts that layers share."""
    compute = torch.bfloat16 if autocast or dtype == "bfloat16" else torch.float32
    model = measured(family, dtype=dtype)
    found = model.activations(BATCH, WIDTH, compute, autocast, attention, checkpointing)
    expected = saved_bytes(family, getattr(torch, dtype), autocast, attention, checkpointing)
    assert found.kept == pytest.approx(expected, rel=1e-3)
    if not checkpointing:  # every layer keeps as much, less the final norm and what all layers share
        assert found.layer * 4 == pytest.approx(found.kept, rel=0.05) and found.layer * 4 < found.kept


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
    config = models.read_config("Qwen/Qwen3-8B-Base")
    compute = torch.float32 if (dtype, autocast) == ("float32", False) else torch.bfloat16
    found = []
    for config.num_hidden_layers in 5, 6:
        config.layer_types = ["full_attention"] * config.num_hidden_layers
        model = Model(config, CheckedModelConfig(dtype=dtype))
        found.append(model.activations(2, 1024, compute, autocast, "sdpa", False))
    assert found[1].kept - found[0].kept == 2 * 1024 * bytes_of_a_token
    # The first layer also keeps the tables of rotations, which all share.
    assert found[0].layer == pytest.approx(2 * 1024 * bytes_of_a_token, rel=0.003)


def test_autocast_keeps_its_copies_while_a_checkpointed_model_runs(recipe_file):
    """On one GPU, float32 weights: the casts of all layers."""
    words = ["--dtype", "float32", "--accelerate_config", "none", "--max_completion_length", "16"]
    words += [
        "--prompts_per_rollout",
        "16",
        "--steps_per_rollout",
        "1",
        "--model_name_or_path",
        "Qwen/Qwen3-0.6B-Base",
    ]
    job = plan.resolve(recipe_file, words, gpus=1, prompt_length=16)
    found = memory.memory(job)["parts"]["activations"]["bytes"]
    kept = job.policy.activations(2, 32, torch.bfloat16, True, None, True).kept
    assert found - kept == 2 * 28 * 15_728_640  # weights of a layer's seven linear layers


def test_frozen_weights_keep_no_inputs():
    """With LoRA on two layers, as autograd saves it of a real adapted model."""
    from peft import LoraConfig, get_peft_model

    built = get_peft_model(small(attn_implementation="sdpa"), LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))
    settings = {"use_peft": True, "lora_r": 3, "lora_target_modules": ["q_proj", "v_proj"], "dtype": "float32"}
    found = measured(**settings).activations(BATCH, WIDTH, torch.float32, False, "sdpa", False)
    assert found.kept == pytest.approx(saved_by(built.train(), built.get_base_model().model, False), rel=1e-3)
    full = measured(dtype="float32").activations(BATCH, WIDTH, torch.float32, False, "sdpa", False)
    assert found.kept < 0.95 * full.kept


def test_a_cache_holds_keys_and_values():
    for family in FAMILIES:
        model, kv_heads = measured(family), FAMILIES[family].num_key_value_heads
        head = getattr(FAMILIES[family], "head_dim", None) or 96 // 4
        assert model.cache_token() == 2 * 4 * kv_heads * head


def test_memory_follows_the_sharding(recipe_file):
    """16 bytes a parameter: divided under FSDP2 and ZeRO-3, whole with DDP's buckets, a fraction of it with LoRA."""
    count, each = PUBLISHED["Qwen/Qwen3-8B-Base"], ["weights", "gradients", "optimizer"]

    def states(*words, gpus):
        parts = memory.memory(plan.resolve(recipe_file, words, gpus=gpus))["parts"]
        return [parts[name]["bytes"] / count for name in each]

    sync = ["--accelerator_config", "{gradient_accumulation_kwargs: {sync_each_batch: true}}"]
    zero3 = ["--accelerate_config", str(REPOSITORY / "accelerate_configs/zero3.yaml")]
    ddp = ["--accelerate_config", "none"]
    assert states(*sync, gpus=8) == pytest.approx([4 / 8, 4 / 8, 8 / 8], rel=1e-3)
    assert states(gpus=8) == pytest.approx([4 / 8, 2, 8 / 8], rel=1e-3)  # whole bfloat16 gradients add up
    assert states(*zero3, gpus=8) == pytest.approx([2 / 8, 2 / 8, 12 / 8], rel=1e-3)
    assert states(*ddp, gpus=8) == pytest.approx([4, 8, 8], rel=1e-3)
    assert states(gpus=1) == pytest.approx([4, 4, 8], rel=1e-3)
    assert states("--dtype", "bfloat16", gpus=1) == pytest.approx([2, 2, 4], rel=1e-3)
    lora = ["--use_peft", "--lora_r", "8", "--dtype", "bfloat16"]
    adapters = 36 * 8 * (4096 + 4096 + 4096 + 1024) / count
    assert states(*lora, gpus=1) == pytest.approx([2 + 4 * adapters, 4 * adapters, 8 * adapters], rel=1e-3)


def test_parts_and_peaks_add_up(planned):
    needed = planned["memory"]
    sizes = {name: part["bytes"] for name, part in needed["parts"].items()}
    asleep = sum(sizes.values()) - sizes["vLLM"]
    assert needed["training"] == asleep
    assert needed["sampling"] == sum(sizes[name] for name in ("weights", "optimizer", "rollout", "vLLM"))
    assert sizes["vLLM"] == round(0.3 * 80 * 2**30)
    # 20,480 tokens of two responses times the vocabulary, in bfloat16 and float32.
    assert needed["full_logits_avoided"] == 2 * 20_480 * 151_936 * 6
    assert planned["vllm"]["bytes_per_token"] == 2 * 36 * 8 * 128 * 2


# Operations


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


def test_generation_is_what_decoding_counts():
    """With a cache: the prompt, then a token at a time; attention grows by one."""
    built, model = small(attn_implementation="eager").eval(), measured()
    with FlopCounterMode(display=False) as counter:
        built.generate(tokens(), max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    head = 2 * model.vocabulary * model.hidden
    found = BATCH * flops.generation(model.operations(False)[0], head, WIDTH, 5)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.03)  # the last token is not read again


@pytest.mark.parametrize(
    "words, units",
    [
        ([], 0.8),  # 4 rho
        (["--entropy_scope", "micro_batch"], 1.6),  # 1 + 3 rho
        (["--entropy_scope", "global"], 0.8),
        (["--top_entropy_quantile", "1.0"], 4),
        (["--fused_lm_head", "trl"], 4),
        (["--entropy_selection", "bottom"], 3.2),
        (["--beta", "0.01"], 4),  # every token has a gradient
        (["--entropy_coef", "0.01"], 4),  # TRL's head
        (["--use_peft", "--lora_target_modules", "all-linear"], 0.6),  # 3 rho: no gradient of the weight
        (["--use_peft", "--lora_modules_to_save", "[lm_head]"], 0.8),
        (["--importance_sampling_level", "sequence"], 4),  # a kept token's ratio has a gradient in every token
        (["--off_policy_mask_threshold", "0.5"], 1.6),  # the mask needs all log-probabilities
    ],
)
def test_head_costs_what_its_rows_cost(recipe_file, words, units):
    found = flops.operations(plan.resolve(recipe_file, words))
    assert found["head_units"] == pytest.approx(units)
    rows = 512 * 20_480
    assert found["parts"]["head"] == pytest.approx(units * 2 * rows * 4096 * 151_936)
    assert (found["parts"]["ranking pass"] > 0) == ("global" in words)
    assert found["total"] == pytest.approx(sum(found["parts"].values()))


@pytest.mark.parametrize(
    "words, projected, differentiated",
    [([], 0.2, 0.2), (["--entropy_scope", "micro_batch"], 1, 0.2), (["--entropy_coef", "0.01"], 1, 1)],
)
def test_the_head_keeps_the_rows_that_it_projects(recipe_file, words, projected, differentiated):
    """A tile of logits, hidden states in bfloat16, their gradients in float32, and the weight's, cast once."""
    rows, weight = 2 * 20_480, 151_936 * 4096
    expected = 4096 * 32_768 * 2 + rows * 4096 * (2 * projected + 4 * differentiated) + weight * (4 + 2)
    assert memory.memory(plan.resolve(recipe_file, words))["parts"]["head"]["bytes"] == pytest.approx(expected)


def test_an_entropy_bonus_leaves_nothing_to_save(capsys):
    recipe_file = str(REPOSITORY / "recipes/qwen3_8b.yaml")
    cli.main(["plan", recipe_file])
    assert "selection saves 80.0% of that" in capsys.readouterr().out
    cli.main(["plan", recipe_file, "--entropy_coef", "0.01"])
    said = capsys.readouterr().out
    assert "selection saves" not in said and "TRL's, because the loss has an entropy bonus" in said


# Settings with which TRL scores no rollout: it serves one step, transformers samples, and all tokens are kept.
UNSCORED = "--top_entropy_quantile 1.0 --use_vllm false --vllm_enable_sleep_mode false --steps_per_rollout 1".split()


@pytest.mark.parametrize(
    "words, scored",
    [
        ([], {"old log-probabilities": 1}),
        (UNSCORED, {}),
        ([*UNSCORED, "--ppl_shaping_alpha", "0.01"], {"old log-probabilities": 1}),
        (["--entropy_scope", "global"], {"old log-probabilities": 1, "ranking pass": 1}),
        (["--beta", "0.01", "--num_iterations", "2"], {"old log-probabilities": 1 / 2, "reference model": 1 / 2}),
        (  # the importance correction alone needs log-probabilities
            ["--top_entropy_quantile", "1.0", "--steps_per_rollout", "1"],
            {"old log-probabilities": 1},
        ),
    ],
)
def test_passes_without_gradient_are_those_that_are_made(recipe_file, words, scored):
    """Each is a forward pass of the backbone and one product of the head with all tokens."""
    job = plan.resolve(recipe_file, words)
    parts = flops.operations(job)["parts"]
    one = parts["backbone forward"] + 2 * job.responses * 20_480 * 4096 * 151_936
    for name in ("old log-probabilities", "reference model", "ranking pass"):
        assert parts[name] == pytest.approx(scored.get(name, 0) * one)


# Batches, output, refusals


@pytest.mark.parametrize(
    ("words", "scored"),
    [
        (["--use_vllm", "false", "--vllm_enable_sleep_mode", "false"], False),
        (["--vllm_importance_sampling_correction", "false"], False),
        ([], True),
    ],
)
def test_the_importance_correction_of_vllm_needs_a_scoring_pass(recipe_file, words, scored):
    """Nothing else does where a rollout serves one step and all tokens are kept."""
    words = ["--top_entropy_quantile", "1.0", "--steps_per_rollout", "1", *words]
    parts = plan.make(plan.resolve(recipe_file, words))["operations"]["parts"]
    assert (parts["old log-probabilities"] > 0) == scored


def test_batches_are_the_papers(planned):
    assert planned["batches"] == {
        "processes": 8,
        "responses_per_micro_batch": 2,
        "micro_batches_per_step": 32,
        "responses_per_step": 512,
        "tokens_per_micro_batch_max": 2 * (2048 + 20_480),
        "tokens_per_micro_batch_expected": 2 * (2048 + 7000),
        "responses_per_rollout": 8192,
        "prompts_per_rollout": 512,
        "steps_per_rollout": 16,
        "steps": 3 * (17_398 // 512) * 16,
        "tokens_per_step_max": 512 * (2048 + 20_480),
        "response_tokens_per_step_max": 512 * 20_480,
        "response_tokens_per_step_expected": 512 * 7000,
    }


@pytest.mark.parametrize("words", [[], ["--steps_per_generation", "8"], ["--num_iterations", "2"]])
def test_steps_are_those_of_trls_sampler(words):
    """Three epochs of 4,096 problems: the length of TRL's sampler over the responses of a step."""
    from trl.trainer.utils import RepeatSampler

    job = plan.resolve(str(REPOSITORY / "recipes/demo_cpu.yaml"), ["--max_steps", "-1", *words])
    args = job.args
    sampler = RepeatSampler(
        range(job.problems),
        mini_repeat_count=args.num_generations,
        batch_size=args.generation_batch_size // args.num_generations,
        repeat_count=args.num_iterations * args.steps_per_generation,
    )
    # TRL's data loader draws as many items as a rollout has for every micro-batch.
    expected = 3 * len(sampler) / args.generation_batch_size / args.gradient_accumulation_steps
    assert flops.batches(job)["steps"] == expected


def test_direct_batches_are_taken_as_they_are(capsys):
    cli.main(["plan", str(REPOSITORY / "recipes/demo_cpu.yaml"), "--json", "--max_steps", "7"])
    found = json.loads(capsys.readouterr().out)
    assert found["batches"]["micro_batches_per_step"] == 1
    assert found["batches"]["steps_per_rollout"] == 4
    assert found["batches"]["steps"] == 7
    assert found["warnings"] == []


def test_json_and_text_say_the_same(recipe_file, capsys):
    cli.main(["plan", recipe_file, "--mean-length", "7000", "--json"])
    found = json.loads(capsys.readouterr().out)
    text = plan.render(found)
    json.dumps(found, allow_nan=False)
    for said in (*found["warnings"], *chain.from_iterable(found["commands"].values())):
        assert said in text
    for name, part in found["memory"]["parts"].items():
        assert part["bytes"] > 0
        assert part["formula"] in text and name in text and f"{part['bytes'] / 2**30:.2f} GiB" in text


@pytest.mark.parametrize(
    "words, options, sentence",
    [
        (["--model_name_or_path", "someone/model"], {}, r"model_name_or_path is 'someone/model'.*--model-config PATH"),
        (["--model_name_or_path", "null"], {}, r"model_name_or_path is missing"),
        (["--learning_rat", "1"], {}, r"there is no setting learning_rat.*Did you mean learning_rate\?"),
        (["--max_steps", "many"], {}, r"max_steps is 'many'"),
        (["--top_entropy_quantile", "2.0"], {}, r"top_entropy_quantile is 2.0: the kept share"),
        ([], {"gpus": 3}, r"per_device_train_batch_size is 2 on 3 processes.*use 1, 2, 4, 8, .*256 processes"),
        ([], {"gpus": 0}, r"--gpus is 0: it must be above 0"),
        ([], {"mean_length": 1e6}, r"--mean-length is 1e\+06: it must lie between 0 and max_completion_length"),
        (
            ["--use_peft", "--lora_target_modules", "lm_head"],
            {},
            r"lora_target_modules is \['lm_head'\], which adapts the LM head",
        ),
        (["--accelerate_config", "nowhere.yaml"], {}, r"accelerate_config is 'nowhere.yaml', and there is no such"),
        (["--steps_per_generation", "3"], {}, r"steps_per_generation is 3.*leave it out"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(recipe_file, words, options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        plan.resolve(recipe_file, words, **options)


@pytest.mark.parametrize(
    "config, sentence",
    [
        (AutoConfig.for_model("t5").to_json_string(), "transformers builds no causal model of 't5'"),
        ('{"model_type": "not_there"}', "transformers cannot read this config.json"),
        ("no JSON", "transformers cannot read this config.json"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(tmp_path, recipe_file, capsys, config, sentence):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["plan", recipe_file, "--model-config", str(tmp_path)])
    said = capsys.readouterr()
    assert said.out == "" and sentence in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize(
    "words, options, sentence",
    [
        ([], {"gpus": 1, "memory": 24}, r"training takes .* GiB of a GPU, which has 24"),
        ([], {}, r"adds up whole gradients \(15.3 GiB\) in bfloat16.*sync_each_batch: true"),
        (["--bf16", "false"], {}, r"fsdp2.yaml has mixed_precision: bf16 and the recipe trains with no"),
        (["--max_completion_length", "40000"], {}, r"42048 tokens, but the model has 32768 positions"),
        (
            ["--max_prompt_length", "2048"],
            {"gpus": 8, "memory": 60},
            r"vLLM refuses to start.* hold [\d,]+ tokens, fewer than the 22,528 of one sequence: raise vllm_gpu_mem",
        ),
        ([], {"gpus": 8, "memory": 72}, r"fewer than the 32,768 of one sequence: set vllm_max_model_length to 22528"),
        (["--vllm_max_model_length", "9000"], {}, r"is 9000, but a prompt and its response have up to 22528 tokens"),
        (["--vllm_tensor_parallel_size", "3"], {}, r"vllm_tensor_parallel_size is 3 on 8 GPUs: choose a divisor"),
        (["--optim", "sgd"], {}, r"optim is 'sgd': its states are counted as AdamW's"),
        ([], {}, r"prompts of up to 2048 tokens are assumed"),
    ],
)
def test_warnings(recipe_file, words, options, sentence):
    found = plan.make(plan.resolve(recipe_file, words, **options))["warnings"]
    assert any(re.search(sentence, warning) for warning in found), found


SYNC = ["--accelerator_config", "{gradient_accumulation_kwargs: {sync_each_batch: true}}"]


@pytest.mark.parametrize(
    "words, options, advice, impossible",
    [
        (["--per_device_train_batch_size", "1"], {"memory": 20}, "shard over more GPUs", "lower per_device"),
        ([], {"memory": 30}, "lower per_device_train_batch_size, shard", "gradient_checkpointing"),
        (["--gradient_checkpointing", "false"], {}, "set gradient_checkpointing: true", "vllm_enable_sleep_mode"),
        (["--vllm_enable_sleep_mode", "false"], {"memory": 40}, "set vllm_enable_sleep_mode: true", "gradient_check"),
        ([], {"gpus": 1}, "shard over several GPUs", "over more GPUs"),
    ],
)
def test_advice_is_what_the_run_can_do(recipe_file, words, options, advice, impossible):
    found = plan.make(plan.resolve(recipe_file, [*SYNC, *words], **options))
    said = next(warning for warning in found["warnings"] if warning.startswith("training takes"))
    assert advice in said and impossible not in said
    assert found["verdict"]["fits"] is False


def test_a_verdict_is_the_exit_status(recipe_file, capsys):
    cli.main(["plan", recipe_file, *SYNC, "--max_prompt_length", "2048"])
    assert capsys.readouterr().out.splitlines()[-1] == "fits: 47 of 80 GiB"
    for words, said in (["--gpu-memory", "30"], "of 30 GiB"), (["--gpu-memory", "60"], "does not fit: vLLM's cache"):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["plan", recipe_file, *SYNC, "--max_prompt_length", "2048", *words])
        assert exit_.value.code == 1 and said in capsys.readouterr().out.splitlines()[-1]
    cli.main(["plan", str(REPOSITORY / "recipes/demo_cpu.yaml"), "--gpu-memory", "0.01"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("runs on the processor")


# Shipped recipes, and their GPUs: GiB of each where a recipe is not for 80.
SMALLER = {"qwen3_0_6b": 24.0, "qwen3_8b_qlora": 24.0}
SHIPPED = sorted({path.stem for path in (REPOSITORY / "recipes").glob("*.yaml")} - {"base"})


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_fit_with_room_and_warn_of_nothing(name):
    recipe = REPOSITORY / f"recipes/{name}.yaml"
    found = plan.make(plan.resolve(str(recipe), [], memory=SMALLER.get(name, 80.0)))
    assert found["verdict"]["fits"] is not False and found["warnings"] == []
    if found["vllm"]:
        # Several sequences at once on every engine, and at least half of the GPU for it, since it sleeps in training.
        assert found["vllm"]["concurrent_sequences"] >= 8 and found["vllm"]["share"] >= 0.5
        assert found["vllm"]["max_model_len"] == sum(
            found["recipe"][f"max_{part}_length"] for part in ("prompt", "completion")
        )
    text = recipe.read_text()
    if "Four nodes" in text:
        assert found["machines"] == {"nodes": 4, "gpus": 8, "gpu_memory_gib": 80.0}


# vLLM and disk


def test_the_cache_of_a_served_model(recipe_file):
    """Qwen3-8B on two GPUs of 80 GiB, by hand."""
    words = ["--vllm_tensor_parallel_size", "2", "--vllm_gpu_memory_utilization", "0.5", "--max_prompt_length", "2048"]
    found = vllm.sampler(plan.resolve(recipe_file, words))
    weights = 8_190_735_360 * 2 // 2
    sequences = 8192 // 8 * 2  # the responses of a rollout on two of eight GPUs: `max_num_seqs` of TRL's engine
    profiled = sequences * 151_936 * 14
    token = 2 * 36 * 8 * 128 * 2 // 2
    assert 4 <= profiled / 2**30 < 5
    cached = int((0.5 * 80 * 2**30 - weights - profiled) / token)
    assert found == {
        "mode": "colocate",
        "gpus": 2,
        "share": 0.5,
        "weights": weights,
        "profiled": profiled,
        "max_num_seqs": sequences,
        "max_model_len": 22_528,
        "bytes_per_token": token,
        "cached_tokens": cached,
        "concurrent_sequences": cached // 22_528,
    }
    assert vllm.holds_a_sequence(found | {"cached_tokens": 22_528})
    assert not vllm.holds_a_sequence(found | {"cached_tokens": 22_527})


@pytest.mark.parametrize(
    "words, limit",
    [
        ([], 2048 + 20_480),
        (["--vllm_max_model_length", "30000"], 30_000),
        (["--max_prompt_length", "null"], None),
        (["--use_vllm", "false", "--vllm_enable_sleep_mode", "false"], None),
    ],
)
def test_vllm_is_told_the_longest_sequence(words, limit):
    job = plan.resolve(str(REPOSITORY / "recipes/qwen3_14b.yaml"), words)
    assert job.args.vllm_max_model_length == limit


def test_a_checkpoint_of_14b_is_what_fsdp2_writes(tmp_path):
    """Float32 weights and two moments have 177 GB in pieces; a whole state has 236 GB, the model twice in it.

    Three of them are there while the oldest is replaced.
    """
    recipe = str(REPOSITORY / "recipes/qwen3_14b.yaml")
    found = disk.disk(plan.resolve(recipe, []))
    written = found["checkpoint"] - found["rollout_at_most"]
    assert written / 1e9 == pytest.approx(3 * 14.768 * 4, rel=1e-3) == pytest.approx(177.2, abs=0.1)
    assert found["gathered_on_rank_0"] == 0
    assert found["run"] == 3 * found["checkpoint"] + found["weights"]
    config = (REPOSITORY / "accelerate_configs/fsdp2.yaml").read_text(encoding="utf-8")
    (tmp_path / "whole.yaml").write_text(config.replace("SHARDED_STATE_DICT", "FULL_STATE_DICT"), encoding="utf-8")
    whole = disk.disk(plan.resolve(recipe, ["--accelerate_config", str(tmp_path / "whole.yaml")], gpus=8, nodes=1))
    assert whole["gathered_on_rank_0"] / 1e9 == pytest.approx(177.2, abs=0.1)
    assert whole["checkpoint"] - whole["rollout_at_most"] == pytest.approx(written * 4 / 3, rel=1e-4)


def test_a_checkpoint_has_the_bytes_of_its_files(tmp_path):
    """Model and optimizer as transformers saves them on one process; files have headers of a few kilobytes."""
    from safetensors.torch import save_file

    built = small()
    built.save_pretrained(tmp_path / "model")
    optimizer = torch.optim.AdamW(built.parameters())
    built(input_ids=tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    save_file(built.state_dict(), tmp_path / "model.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    words = ["--model_name_or_path", str(tmp_path / "model"), "--max_steps", "7", "--save_steps", "2"]
    found = disk.disk(plan.resolve(str(REPOSITORY / "recipes/demo_cpu.yaml"), words))
    for name, file in ("weights", "model.safetensors"), ("optimizer", "optimizer.pt"):
        assert 0 <= (tmp_path / file).stat().st_size - found[name] < 40_000
    assert found["kept"] == 4 and found["run"] == 4 * found["checkpoint"] + found["weights"]
    none = plan.resolve(str(REPOSITORY / "recipes/demo_cpu.yaml"), [*words[:-2], "--save_strategy", "no"])
    assert disk.disk(none)["run"] == found["weights"]
    kept = disk.disk(plan.resolve(str(REPOSITORY / "recipes/demo_cpu.yaml"), [*words, "--keep_weights", "[3, 7, 9]"]))
    assert kept["kept_weights"] == 2 * found["weights"], "the run has seven steps"
    assert kept["run"] == found["run"] + kept["kept_weights"]


def test_a_port_in_use_is_named(recipe_file):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        words = ["--vllm_mode", "server", "--vllm_group_port", str(port)]
        found = plan.make(plan.resolve(recipe_file, words))["warnings"]
        assert any(f"port {port} is in use" in warning and "vllm_group_port" in warning for warning in found)
    found = plan.make(plan.resolve(recipe_file, words))["warnings"]
    assert not any(f"port {port} " in warning for warning in found)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("words", [[], ["--vllm_mode", "server", "--output_dir", "runs/a b"]])
def test_commands_name_files_and_can_be_read_back(recipe_file, nodes, words):
    job = plan.resolve(recipe_file, words, nodes=nodes)
    found = commands.commands(job)
    assert set(found) == ({"server"} if words else set()) | {"one machine" if nodes == 1 else "each machine", "SLURM"}
    for command in chain.from_iterable(found.values()):
        read = shlex.split(command)
        for word in read:
            if word.endswith((".yaml", ".sh")):
                assert (REPOSITORY / word).is_file()
        assert read[0].startswith("VLLM") or recipe_file in read
    batch = shlex.split(found["SLURM"][0])
    assert batch[:5] == ["sbatch", "--nodes", str(nodes + bool(words)), "--gpus-per-node", "8"]
    # The script sets these itself, and a setting that is given twice is refused.
    assert not {"--output_dir", "--vllm_mode", "--use_vllm"} & set(batch)
    assert ("RUN_FOLDER=runs/a b" in batch[6]) == bool(words)
    for rank, command in enumerate(found.get("each machine", [])):
        read = shlex.split(command)
        assert read[read.index("--machine_rank") + 1] == str(rank)
        assert read[read.index("--num_processes") + 1] == "16"
        settings = read[read.index(recipe_file) + 1 :]
        assert settings.count("--output_dir") == 1 and settings[-1 if not words else settings.index("runs/a b")]
        # What the launch would be given resolves to the same batch.
        again = plan.resolve(recipe_file, settings, gpus=8, nodes=2)
        assert flops.batches(again) == flops.batches(job) and again.sharding.file.endswith("fsdp2_multinode.yaml")


@pytest.mark.parametrize("nodes", [1, 2])
def test_plain_yaml_is_launched_through_the_module(tmp_path, nodes):
    """Python cannot run it; the batch script takes files that Python can run."""
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.removeprefix(f"{recipe.FIRST_LINE}\n").replace(recipe.LAST_LINE, ""))
    found = plan.commands(plan.resolve(str(path), [], nodes=nodes))
    assert "SLURM" not in found
    for command in chain.from_iterable(found.values()):
        read = shlex.split(command)
        assert read[read.index("-m") :][:3] == ["-m", "entropy_grpo.launch", str(path)]


def test_launchers_take_the_printed_options(recipe_file):
    """accelerate's own parser reads each command."""
    from accelerate.commands.launch import launch_command_parser

    zero3 = ["--accelerate_config", str(REPOSITORY / "accelerate_configs/zero3.yaml")]
    for words, nodes, processes in ([], 1, 8), ([], 2, 16), (zero3, 1, 8):
        job = plan.resolve(recipe_file, words, nodes=nodes, gpus=8)
        command = next(c for where, c in commands.commands(job).items() if "machine" in where)[-1]
        read = launch_command_parser().parse_args(shlex.split(command)[2:])
        assert read.training_script == recipe_file and read.num_processes == processes
        assert read.config_file == (zero3[1] if words else None)


def state_bytes(model):
    """Bytes of weights (with what bitsandbytes keeps beside them), gradients and AdamW's states, after a step."""
    weights = sum(p.nbytes for p in model.parameters())
    for module in [m for m in model.modules() if isinstance(m, torch.nn.Linear)]:
        state = getattr(module.weight, "quant_state", None)
        while state is not None:
            weights += sum(value.nbytes for value in vars(state).values() if torch.is_tensor(value))
            state = state.state2
        scales = getattr(module.weight, "SCB", None)
        weights += scales.nbytes if scales is not None else 0
    # In training: in evaluation bitsandbytes repacks 4-bit weights for some processors.
    model.train()(input_ids=tokens(), labels=tokens()).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "weights": weights,
        "gradients": sum(p.grad.nbytes for p in trained),
        "optimizer": sum(value.nbytes for value in states),
    }


@pytest.mark.parametrize(
    "words, loaded",
    [
        (["--use_dora"], {}),
        (["--lora_modules_to_save", "[lm_head, embed_tokens]"], {}),
        (["--load_in_4bit"], {"load_in_4bit": True}),
        (["--load_in_4bit", "--use_bnb_nested_quant"], {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}),
        (["--load_in_8bit"], {"load_in_8bit": True}),
    ],
    ids=["DoRA", "copies", "4 bits", "4 bits, nested", "8 bits"],
)
def test_states_of_adapters_are_the_bytes_of_a_step(tmp_path, recipe_file, words, loaded):
    """To the byte: a bfloat16 base, and what TRL, PEFT and bitsandbytes make of it."""
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig

    if loaded:
        pytest.importorskip("bitsandbytes")
        loaded = {"quantization_config": BitsAndBytesConfig(bnb_4bit_quant_type="nf4", **loaded)}
    small().save_pretrained(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16, **loaded)
    saved = ["lm_head", "embed_tokens"] if "--lora_modules_to_save" in words else None
    lora = LoraConfig(r=5, target_modules="all-linear", use_dora="--use_dora" in words, modules_to_save=saved)
    model = get_peft_model(base, lora)
    for parameter in model.parameters():
        if loaded and parameter.requires_grad:  # as TRL does
            parameter.data = parameter.data.bfloat16()
    words = [*words, "--use_peft", "--lora_r", "5", "--lora_target_modules", "all-linear", "--use_vllm", "false"]
    words += ["--vllm_enable_sleep_mode", "false", "--dtype", "bfloat16"]
    job = plan.resolve(recipe_file, [*words, "--model_name_or_path", str(tmp_path / "model")], gpus=1)
    plan_parts = memory.memory(job)["parts"]
    assert {name: plan_parts[name]["bytes"] for name in ("weights", "gradients", "optimizer")} == state_bytes(model)
    assert plan.make(job)["recipe"]["trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
