"""LoRA and QLoRA: what is trained and saved, resume, merging, and what is refused, on tiny models."""

import importlib.util
import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from trl.generation.vllm_generation import VLLMGeneration

from benchmarks.fixtures import fixed_rollout, killed_runs
from benchmarks.fixtures.tiny_model import save_tiny_model
from entropy_grpo import cli, launch
from entropy_grpo.config.run import CLASSES
from entropy_grpo.models import adapters
from entropy_grpo.models.config import CheckedModelConfig
from entropy_grpo.models.merge import recipe_dtype
from entropy_grpo.planning import plan
from entropy_grpo.planning.options import PlanOptions
from entropy_grpo.runs import seal
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.runs.seal import COMPLETE
from entropy_grpo.training.checkpoints import SETTINGS
from entropy_grpo.training.claim import compare_settings

from .conftest import REPOSITORY

STEPS, RANK, ALPHA = 4, 3, 8
# The literal command; several targets, more than one checkpoint, and a rate at which a step can be seen.
LITERAL = ["-m", "accelerate.commands.launch", killed_runs.RECIPE]
LORA = killed_runs.ONE_PROCESS | {
    "use_peft": "true",
    "lora_r": RANK,
    "lora_alpha": ALPHA,
    "lora_target_modules": "[q_proj, down_proj]",
    "max_steps": STEPS,
    "logging_steps": 1,
    "save_total_limit": STEPS,
}
QLORA = LORA | {
    "load_in_4bit": "true",
    "use_bnb_nested_quant": "true",
    "max_steps": 2,
    "resume_from_checkpoint": "auto",
}
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of this module's own, with a generation configuration that can be told from the default."""
    path = tmp_path_factory.mktemp("base")
    save_tiny_model(path)
    GenerationConfig(max_new_tokens=17, eos_token_id=2, pad_token_id=0).save_pretrained(path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory, preloaded):
    """A run by the literal command that nothing interrupts."""
    before, folder = contents(base), tmp_path_factory.mktemp("lora") / "alone"
    killed_runs.finish(killed_runs.start(killed_runs.Case(LITERAL, LORA), str(base), folder, preloaded), folder)
    assert contents(base) == before
    return folder


@pytest.mark.parametrize("adapted", [True, False])
def test_shards_of_adapters_go_on_as_adapters_alone(tmp_path, adapted):
    """With SHARDED_STATE_DICT a checkpoint has no adapter_config.json, and its seal knows the settings."""
    run, settings = RunFolder(tmp_path), {"use_peft": adapted}
    checkpoint = run.path / "checkpoint-4"
    (checkpoint / "pytorch_model_fsdp_0").mkdir(parents=True)
    (checkpoint / "pytorch_model_fsdp_0" / ".metadata").touch()
    seal.write(checkpoint, {SETTINGS: settings}, [])
    adapters.check_resumed(str(checkpoint), adapted)
    assert compare_settings(str(checkpoint), run, settings, CLASSES, []) == {}
    with pytest.raises(ValueError, match=f"use_peft is {not adapted} and was {adapted} in .*checkpoint-4"):
        adapters.check_resumed(str(checkpoint), not adapted)
        compare_settings(str(checkpoint), run, {"use_peft": not adapted}, CLASSES, [])


def adapter_weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def moments(checkpoint):
    states = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    return [state[name] for state in states.values() for name in ("exp_avg", "exp_avg_sq")]


def logits(model):
    ids = torch.arange(2, 60).view(2, 29)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


# Training


@pytest.mark.slow
def test_adapters_alone_are_saved(alone, base):
    assert not list(alone.rglob("model*.safetensors")) and not list(alone.rglob("pytorch_model*"))
    found = [adapter_weights(folder) for folder in (*sorted(alone.glob("checkpoint-*")), alone)]
    assert len(found) == STEPS + 1
    for weights in found:
        sizes = sorted(tuple(w.shape) for w in weights.values())
        assert sizes == sorted([(RANK, 24), (24, RANK), (RANK, 40), (24, RANK)] * 2)
        assert all("lora_" in name for name in weights)
    for before, after in itertools.pairwise(found[:-1]):
        assert max((after[name] - weight).abs().max() for name, weight in before.items()) > 1e-4
    assert all(torch.equal(w, found[-2][n]) for n, w in found[-1].items())
    config = json.loads((alone / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base) and config["revision"] == "main"
    assert config["lora_dropout"] == 0


@pytest.mark.slow
def test_a_killed_run_ends_like_one_left_alone(alone, base, tmp_path, preloaded):
    victim, case = tmp_path / "victim", killed_runs.Case(LITERAL, LORA)
    process = killed_runs.start(case, str(base), victim, preloaded)
    assert killed_runs.kill_at(process, victim, step=2, in_save=False, delay=0.0)
    assert not (victim / "adapter_model.safetensors").exists()
    killed_runs.finish(killed_runs.start(case, str(base), victim, preloaded), victim)
    assert killed_runs.differences(victim, alone) == []
    mine, others = (moments(folder / f"checkpoint-{STEPS}") for folder in (victim, alone))
    assert len(mine) == 2 * len(adapter_weights(alone))
    assert all(torch.equal(one, other) for one, other in zip(mine, others, strict=True))


@pytest.mark.parametrize("copied", [None, ["lm_head"]], ids=["adapters", "and a copy of the head"])
def test_first_step_is_stock_trls(tiny_model, tmp_path, copied):
    """Loss and gradient; the rate is 1 and the optimiser SGD, so that a change is a gradient. The base stays."""
    steps, losses = [], []
    for name, settings in (("stock", {"stock": True}), ("ours", {"top_entropy_quantile": 1.0})):
        peft = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "up_proj"], modules_to_save=copied, bias="none"
        )
        peft.init_lora_weights = False  # else only B has a gradient
        trainer = fixed_rollout.make_trainer(
            tiny_model, tmp_path / name, peft_config=peft, loss_type="dapo", beta=0.0, **settings
        )
        before = fixed_rollout.weights(trainer)
        trainer.train()
        after = fixed_rollout.weights(trainer)
        changed = {n for n in after if not torch.equal(before[n], after[n])}
        assert changed == {n for n in after if "lora_" in n or "modules_to_save" in n}
        steps.append({n: after[n] - before[n] for n in changed})
        losses.append(trainer.state.log_history[0])
    for name, change in steps[0].items():
        torch.testing.assert_close(steps[1][name], change, rtol=1e-4, atol=1e-5 * change.abs().max().item(), msg=name)
    for figure in ("loss", "grad_norm"):
        assert losses[1][figure] == pytest.approx(losses[0][figure], rel=1e-4, abs=1e-7)


@pytest.fixture
def alone_in_a_group():
    """A group of one process, which is enough to shard a model."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


class Dist:
    """TRL's view of a model that needs no gathering."""

    is_fsdp = False
    gather_params = staticmethod(lambda parameters: torch.no_grad())


def adapted_model(tiny_model):
    """A model in bfloat16 with adapters that change it, and its weights without them."""
    torch.manual_seed(0)
    stock = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    start = {name: weight.clone() for name, weight in stock.state_dict().items()}
    return get_peft_model(stock, LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False)), start


def stand_in(model, sent):
    """TRL's generation without an engine, which only a GPU or another environment has. It reads later, as a packer."""
    generation = VLLMGeneration.__new__(VLLMGeneration)
    generation.model, generation._dist = model, Dist()
    generation.sync_weights = lambda: sent.append(dict(generation._iter_named_params()))
    return generation


def is_unchanged(model, start):
    names = (n.removeprefix("base_model.model.").replace(".base_layer", "") for n, _ in model.named_parameters())
    whole = (w.full_tensor() if isinstance(w, DTensor) else w for w in model.parameters())
    left = dict(zip(names, whole, strict=True))
    return all(torch.equal(left[name], weight) for name, weight in start.items())


@pytest.mark.parametrize("exact", [True, False], ids=["put back", "as TRL leaves it"])
def test_a_weight_sync_leaves_the_base_as_it_was(tiny_model, exact):
    """In bfloat16, where W + BA - BA is not W; what is sent is W + BA with this very W every time."""
    model, start = adapted_model(tiny_model)
    sent = []
    generation = stand_in(model, sent)
    if exact:
        adapters.sync_exactly(model, generation)
    for _ in range(3):
        generation.sync_weights()
    assert is_unchanged(model, start) == exact
    adapted = 0
    for name, weight in start.items():
        layer = model.get_submodule(f"base_model.model.{name.removesuffix('.weight')}")
        expected = weight
        if hasattr(layer, "lora_A"):
            adapted += 1
            delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
            expected = (weight.float() + delta.float()).bfloat16()
        if exact:
            assert all(torch.equal(s[name], sent[0][name]) for s in sent)
            torch.testing.assert_close(sent[2][name], expected, rtol=2**-7, atol=1e-2)
    assert adapted == 14 and sent[0].keys() == start.keys()


@pytest.mark.parametrize("exact", [True, False], ids=["put back", "as TRL leaves it"])
def test_a_weight_sync_leaves_adapted_parameters_as_they_were(exact):
    """The experts of a mixture, which `lora_target_parameters` adapts: their modules have no weight of that name."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    sizes |= {"num_key_value_heads": 2, "vocab_size": 32, "num_experts": 2, "num_experts_per_tok": 1}
    stock = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, moe_intermediate_size=8)).bfloat16()
    start = {name: weight.clone() for name, weight in stock.state_dict().items()}
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    config = LoraConfig(r=RANK, target_modules=["q_proj"], target_parameters=targets, init_lora_weights=False)
    model, sent = get_peft_model(stock, config), []
    generation = stand_in(model, sent)
    if exact:
        adapters.sync_exactly(model, generation)
    for _ in range(3):
        generation.sync_weights()
    assert is_unchanged(model, start) == exact and sent[0].keys() == start.keys()
    changed = {name.split("layers.0.")[-1] for name in start if not torch.equal(sent[0][name], start[name])}
    assert not exact or {*(f"mlp.{name}" for name in targets), "self_attn.q_proj.weight"} <= changed
    assert not exact or all(torch.equal(sent[0][name], sent[2][name]) for name in start)


@pytest.mark.parametrize("exact", [True, False], ids=["put back", "as TRL leaves it"])
def test_a_weight_sync_leaves_a_base_as_it_was_that_is_sharded_later(tiny_model, alone_in_a_group, exact):
    """FSDP2 gives a model new parameters after the trainer has been made."""
    model, start = adapted_model(tiny_model)
    sent = []
    generation = stand_in(model, sent)
    if exact:
        adapters.sync_exactly(model, generation)
    for layer in adapters.unwrapped(model).model.layers:
        fully_shard(layer, mesh=alone_in_a_group)
    fully_shard(model, mesh=alone_in_a_group)
    for _ in range(3):
        generation.sync_weights()
    assert is_unchanged(model, start) == exact
    assert not exact or all(torch.equal(sent[0][name].full_tensor(), sent[2][name].full_tensor()) for name in start)


# Merging


@pytest.mark.slow
def test_merged_model_is_the_adapted_one(alone, base, tmp_path, capsys):
    for checkpoint in (alone, alone / "checkpoint-2"):
        output = tmp_path / checkpoint.name
        cli.main(["merge", str(checkpoint), "--output", str(output)])
        assert capsys.readouterr().out.strip() == str(output)
        assert not list(output.glob("adapter*"))
        stock, merged = (AutoModelForCausalLM.from_pretrained(path) for path in (base, output))
        weights = adapter_weights(checkpoint)
        for name, weight in merged.state_dict().items():
            expected = stock.state_dict()[name].double()
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{prefix}.lora_A.weight" in weights:
                a, b = (weights[f"{prefix}.lora_{x}.weight"].double() for x in "AB")
                expected = expected + ALPHA / RANK * b @ a
            torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-7, msg=name)
        adapted = PeftModel.from_pretrained(stock, checkpoint)
        torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-5, atol=1e-5)
        assert (logits(merged) - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 1e-3
        assert GenerationConfig.from_pretrained(output).max_new_tokens == 17
        text = "go 5 to 9 need +4 with +8 -5 -1\n"
        mine, others = (AutoTokenizer.from_pretrained(path) for path in (output, base))
        assert mine(text) == others(text) and mine.eos_token == others.eos_token


@pytest.mark.parametrize(
    ("text", "dtype"), [("dtype: null\n", "float32"), ("seed: 1\n", "float32"), ("dtype: bfloat16\n", "bfloat16")]
)
def test_a_base_is_merged_in_the_dtype_of_its_training(text, dtype, tmp_path):
    """TRL loads float32 if no dtype is set, also if a recipe unsets it."""
    (tmp_path / "recipe.yaml").write_text(text)
    for folder in (tmp_path, tmp_path / "checkpoint-5", tmp_path / "weights" / "step-5"):
        folder.mkdir(parents=True, exist_ok=True)
        assert recipe_dtype(folder) == dtype
    assert recipe_dtype(tmp_path / "elsewhere") == "auto"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda run, out: (run / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda run, out: (run / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda run, out: (run / "adapter_config.json").write_text("{"), "is not JSON"),
        (lambda run, out: edit(run / "adapter_config.json", base_model_name_or_path=None), "has no base_model"),
        (lambda run, out: edit(run / "adapter_config.json", base_model_name_or_path="a/b"), "'a/b' (revision main)"),
        (lambda run, out: (out.mkdir(), (out / "x").touch()), "is not empty"),
    ],
    ids=["no config", "no weights", "no JSON", "no base", "unknown base", "full output"],
)
def test_what_cannot_be_merged_is_said_in_a_sentence(alone, tmp_path, capsys, broken, said):
    folder, output = tmp_path / "run", tmp_path / "out"
    shutil.copytree(alone, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    broken(folder, output)
    with pytest.raises(SystemExit) as end:
        cli.main(["merge", str(folder), "--output", str(output)])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert end.value.code == 2 and len(told) == 1 and said in told[0]
    assert not output.exists() or [path.name for path in output.iterdir()] == ["x"]


# Cards


@pytest.mark.slow
def test_card_of_a_run_says_that_it_is_adapters(alone):
    card = ModelCard.load(alone / "README.md")
    assert card.data.library_name == "peft"
    assert "entropy-grpo merge" in card.text


# Refusals


def shape_only(folder, tied):
    """A folder with a `config.json` and no weights: nothing can load from it."""
    config = Qwen3Config(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, tie_word_embeddings=tied
    )
    config.architectures = ["Qwen3ForCausalLM"]
    config.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("settings", "tied", "said"),
    [
        ({"lora_target_modules": ["all-linear"]}, True, None),
        ({"lora_target_modules": ["q_proj"]}, True, None),
        ({}, True, None),
        ({"lora_target_modules": ["q_proj"], "lora_modules_to_save": ["lm_head", "embed_tokens"]}, False, None),
        ({"lora_target_modules": ["q_proj", "embed_tokens"]}, False, None),
        ({"lora_target_modules": ["q_proj"], "lora_modules_to_save": ["lm_head"]}, True, "names the LM head"),
        ({"lora_target_modules": ["q_proj"], "lora_modules_to_save": ["embed_tokens"]}, True, "names the embedding"),
        ({"lora_target_modules": ["q_proj", "embed_tokens"]}, True, "names the embedding"),
        ({"lora_target_modules": ["q_proj", "lm_head"]}, False, "adapts the LM head"),
        ({"lora_target_modules": ["query"]}, False, r"lora_target_modules is \['query'\]: Target modules"),
        ({"lora_target_modules": ["q_proj", "query"]}, False, "lora_target_modules names 'query'"),
        ({"lora_target_modules": ["q_proj"], "lora_modules_to_save": ["head"]}, False, "lora_modules_to_save names"),
    ],
)
def test_targets_are_checked_before_weights_load(tmp_path, settings, tied, said):
    model, config = shape_only(tmp_path, tied), CheckedModelConfig(use_peft=True, **settings)
    if said is None:
        adapters.check_targets(model, config)
        return
    with pytest.raises(ValueError, match=said):
        adapters.check_targets(model, config)


@pytest.mark.parametrize(("gpus", "refused"), [(2, True), (1, False)])
def test_quantised_weights_are_not_sharded(gpus, refused):
    """By a recipe's own sharding, which applies to several processes."""
    recipe = str(REPOSITORY / "recipes/qwen3_8b_qlora.yaml")
    words = ["--accelerate_config", str(REPOSITORY / "accelerate_configs/fsdp2.yaml")]
    if not refused:
        assert plan.resolve(PlanOptions(recipe, gpus, 1), words).sharding.kind == "none"
        return
    with pytest.raises(ValueError, match="load_in_4bit is true, but accelerate_config shards"):
        plan.resolve(PlanOptions(recipe, gpus, 1), words)


def test_missing_bitsandbytes_is_one_sentence(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.chdir(REPOSITORY)
    words = ["--model_name_or_path", tiny_model, "--output_dir", str(tmp_path / "run"), "--use_peft", "--load_in_4bit"]
    with pytest.raises(SystemExit):
        launch.run(killed_runs.RECIPE, words)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and 'pip install "entropy-grpo[qlora]"' in told[0]
    assert not (tmp_path / "run").exists()


# QLoRA


@needs_bitsandbytes
@pytest.mark.slow
def test_qlora_trains_resumes_and_merges(base, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    before = contents(base)

    def run(folder):  # in this process: importing everything once more takes longer than the steps
        settings = killed_runs.SETTINGS | QLORA | {"model_name_or_path": base, "output_dir": folder}
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        launch.run(killed_runs.RECIPE, words)

    whole = tmp_path / "whole"
    run(whole)
    assert contents(base) == before and not list(whole.rglob("model*.safetensors"))
    weights, first = adapter_weights(whole), adapter_weights(whole / "checkpoint-1")
    assert all("lora_" in name and weight.dtype == torch.bfloat16 for name, weight in weights.items())
    assert any(not torch.equal(weights[name], first[name]) for name in weights)

    part = tmp_path / "part"
    shutil.copytree(whole, part, ignore=shutil.ignore_patterns("checkpoint-2"))
    (part / "adapter_model.safetensors").unlink()
    assert (part / "checkpoint-1" / COMPLETE).exists()
    run(part)
    assert killed_runs.differences(part, whole) == []
    states = [moments(folder / "checkpoint-2") for folder in (part, whole)]
    assert all(a.dtype == torch.bfloat16 and torch.equal(a, b) for a, b in zip(*states, strict=True))

    cli.main(["merge", str(whole), "--output", str(tmp_path / "merged")])
    stock, merged = (AutoModelForCausalLM.from_pretrained(path) for path in (base, tmp_path / "merged"))
    assert not hasattr(merged.config, "quantization_config")
    adapted = PeftModel.from_pretrained(stock, whole)
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-5, atol=1e-5)
