"""Planning: formulas against counts, tensors and operations of real small models; sentences; commands."""

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
from entropy_grpo.config.recipe import RecipeError
from entropy_grpo.planning import costs, models, plan
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

RECIPE = f"""
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
"""


def small(family="qwen3", **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family], **options)


def shape_of(family="qwen3"):
    return models.shape_from_config(json.loads(FAMILIES[family].to_json_string(use_diff=False)), family)


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


# Shapes


def test_every_known_model_has_its_published_count():
    embedded = "embedded:number_walk"
    model = cold_start.build_model(cold_start.build_tokenizer(), 0)
    counts = PUBLISHED | {embedded: sum(p.numel() for p in model.parameters())}
    assert {name: models.parameters(shape) for name, shape in models.SHAPES.items()} == counts
    assert models.SHAPES[embedded] == models.shape_from_config(model.config.to_dict(), embedded)


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_the_models(family, tmp_path):
    model = small(family)
    assert sorted(models.tensors(shape_of(family))) == sorted(p.numel() for p in model.parameters())
    linear = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    assert models.linear_parameters(shape_of(family)) == sum(m.weight.numel() for m in linear)
    model.config.save_pretrained(tmp_path)
    assert models.shape_of(str(tmp_path)) == shape_of(family)
    assert models.shape_of("a/b", str(tmp_path / "config.json")) == shape_of(family)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], list(models.linear_layers(shape_of()))])
def test_lora_tensors_are_pefts(targets):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(small(), LoraConfig(r=3, target_modules=targets))
    trained = sorted(p.numel() for p in model.parameters() if p.requires_grad)
    assert sorted(models.lora_tensors(shape_of(), 3, tuple(targets))) == trained


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
    parts = plan.memory(plan.resolve(recipe_file, words, gpus=1))["parts"]
    assert {name: parts[name]["bytes"] for name in measured} == measured


def saved_bytes(family, dtype, autocast, attention, checkpointing):
    """Bytes of what the backbone keeps for its backward pass, parameters apart, every storage once."""
    model = small(family, attn_implementation=attention).to(dtype).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
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
        model.model(input_ids=tokens(), attention_mask=mask, use_cache=False)
    return sum(sizes.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype, autocast", [("float32", False), ("bfloat16", False), ("float32", True)])
def test_activations_are_what_autograd_saves(family, attention, dtype, autocast):
    """Within 3%: rotary tables and the mask, which all layers share, are left out of the formula."""
    shape = shape_of(family)
    compute = 2 if autocast or dtype == "bfloat16" else 4
    per_token = costs.activations(shape, WIDTH, compute, autocast, attention, checkpointing=False)
    expected = BATCH * WIDTH * per_token
    if autocast:  # and the casts of the weights, a part of their own
        expected += compute * models.linear_parameters(shape)
    measured = saved_bytes(family, getattr(torch, dtype), autocast, attention, checkpointing=False)
    assert 0.97 < expected / measured < 1.03


def test_checkpointing_keeps_the_inputs_of_layers():
    shape = shape_of()
    measured = saved_bytes("qwen3", torch.float32, False, "sdpa", checkpointing=True)
    per_token = costs.activations(shape, WIDTH, 4, False, "sdpa", checkpointing=True)
    # Autograd has nothing of the layer that is computed again yet.
    between = per_token - costs.layer_activations(shape, WIDTH, 4, False, "sdpa")
    assert 0.97 < BATCH * WIDTH * between / measured < 1.03


def test_memory_follows_the_sharding(recipe_file):
    """16 bytes a parameter: divided under FSDP2 and ZeRO-3, whole with DDP's buckets, a fraction of it with LoRA."""
    count, each = PUBLISHED["Qwen/Qwen3-8B-Base"], ["weights", "gradients", "optimizer"]

    def states(*words, gpus):
        parts = plan.memory(plan.resolve(recipe_file, words, gpus=gpus))["parts"]
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
def test_operations_are_torchs(checkpointing):
    """The backbone and a dense head, forward and backward, as torch counts them."""
    model, shape = small(attn_implementation="eager").train(), shape_of()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens(), use_cache=False).logits.sum().backward()
    expected = (
        costs.backbone_forward(shape, WIDTH, BATCH)
        + costs.backbone_backward(shape, WIDTH, BATCH, checkpointing, frozen=False)
        + 3 * costs.head_matmul(shape, BATCH * WIDTH)
    )
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_generation_is_what_decoding_counts():
    """With a cache: the prompt, then a token at a time; attention grows by one."""
    model, shape = small(attn_implementation="eager").eval(), shape_of()
    with FlopCounterMode(display=False) as counter:
        model.generate(tokens(), max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    assert costs.generation(shape, WIDTH, 5, BATCH) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_frozen_weights_cost_no_gradient():
    model, shape = small(attn_implementation="eager").train(), shape_of()
    model.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        embedded = model.get_input_embeddings()(tokens()).requires_grad_()
        model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state.sum().backward()
    expected = costs.backbone_forward(shape, WIDTH, BATCH) + costs.backbone_backward(shape, WIDTH, BATCH, False, True)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.parametrize(
    "words, units",
    [
        ([], 0.8),  # 4 rho
        (["--entropy_scope", "micro_batch"], 1.6),  # 1 + 3 rho
        (["--entropy_scope", "global"], 0.8),
        (["--top_entropy_quantile", "1.0"], 4),
        (["--fused_lm_head", "trl"], 4),
        (["--entropy_selection", "bottom"], 3.2),
        (["--beta", "0.01"], 1.6),
    ],
)
def test_head_costs_what_its_rows_cost(recipe_file, words, units):
    found = plan.operations(plan.resolve(recipe_file, words))
    assert found["head_units"] == pytest.approx(units)
    rows = 512 * 20_480
    assert found["parts"]["head"] == pytest.approx(units * 2 * rows * 4096 * 151_936)
    assert (found["parts"]["ranking pass"] > 0) == ("global" in words)
    assert found["total"] == pytest.approx(sum(found["parts"].values()))


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
    assert plan.batches(job)["steps"] == expected


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
        (["--use_peft", "--lora_target_modules", "lm_head"], {}, r"lora_target_modules has 'lm_head': choose from"),
        (["--accelerate_config", "nowhere.yaml"], {}, r"accelerate_config is 'nowhere.yaml', and there is no such"),
        (["--steps_per_generation", "3"], {}, r"steps_per_generation is 3.*leave it out"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(recipe_file, words, options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        plan.resolve(recipe_file, words, **options)


def test_a_model_of_another_kind_is_refused(tmp_path, recipe_file, capsys):
    (tmp_path / "config.json").write_text(AutoConfig.for_model("gpt2").to_json_string())
    with pytest.raises(SystemExit, match="2"):
        cli.main(["plan", recipe_file, "--model-config", str(tmp_path)])
    said = capsys.readouterr()
    assert said.out == "" and "model_type is 'gpt2'" in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize(
    "words, options, sentence",
    [
        ([], {"gpus": 1, "memory": 24}, r"training takes .* GiB of a GPU, which has 24"),
        ([], {}, r"adds up whole gradients \(15.3 GiB\) in bfloat16.*sync_each_batch: true"),
        (["--bf16", "false"], {}, r"fsdp2.yaml has mixed_precision: bf16 and the recipe trains with no"),
        (["--max_completion_length", "40000"], {}, r"42048 tokens, but the model has 32768 positions"),
        ([], {"gpus": 8, "memory": 52}, r"tokens remain beside its weights, fewer than one response"),
        (["--optim", "sgd"], {}, r"optim is 'sgd': its states are counted as AdamW's"),
        ([], {}, r"prompts of up to 2048 tokens are assumed"),
    ],
)
def test_warnings(recipe_file, words, options, sentence):
    found = plan.make(plan.resolve(recipe_file, words, **options))["warnings"]
    assert any(re.search(sentence, warning) for warning in found), found


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
    found = plan.commands(job)
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
        assert plan.batches(again) == plan.batches(job) and again.sharding.file.endswith("fsdp2_multinode.yaml")


def test_launchers_take_the_printed_options(recipe_file):
    """accelerate's own parser reads each command."""
    from accelerate.commands.launch import launch_command_parser

    zero3 = ["--accelerate_config", str(REPOSITORY / "accelerate_configs/zero3.yaml")]
    for words, nodes, processes in ([], 1, 8), ([], 2, 16), (zero3, 1, 8):
        job = plan.resolve(recipe_file, words, nodes=nodes, gpus=8)
        command = next(c for where, c in plan.commands(job).items() if "machine" in where)[-1]
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
    plan_parts = plan.memory(job)["parts"]
    assert {name: plan_parts[name]["bytes"] for name in ("weights", "gradients", "optimizer")} == state_bytes(model)
    assert plan.make(job)["recipe"]["trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
