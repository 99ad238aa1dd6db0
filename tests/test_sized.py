"""Colocated vLLM takes what a run leaves of its GPUs: by hand, in the plan, and at a launch."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from trl.trainer import grpo_trainer

from entropy_grpo import EntropyForkGRPOConfig, launch
from entropy_grpo.config import recipe
from entropy_grpo.config.recipe import RecipeError
from entropy_grpo.planning import plan, vllm
from entropy_grpo.planning.memory import memory, sampler_share
from entropy_grpo.planning.options import PlanOptions
from entropy_grpo.training.sampler import engine_settings, sized

from .test_measure import FAMILIES
from .test_plan import shipped

GIB = 2**30
NULL = ["--vllm_gpu_memory_utilization", "null", "--vllm_max_num_seqs", "null"]


def job(name="qwen3_14b", gpus=8, nodes=1, gpu_memory=80, words=(), **options):
    return plan.resolve(PlanOptions(str(shipped(name)), gpus, nodes, gpu_memory, **options), [*words])


def test_share_of_the_largest_recipe_by_hand():
    """Qwen3-14B on eight GPUs: float32 weights and moments, and a rollout of 1,024 responses on each."""
    found = job()
    parameters, embedding = 14_768_307_200, 151_936 * 5_120
    states = (4 + 8) * parameters / 8
    rollout = 1_024 * (2_048 * 16 + 20_480 * 33)
    headroom = 4 * GIB + 2 * 4 * embedding
    left = 1 - (states + rollout + headroom) / (80 * GIB)
    assert found.policy.parameters == parameters and max(found.policy.tensors) == embedding
    assert 0.61 < left < 0.62 and sampler_share(found, 80) == 0.61
    assert [sampler_share(job(nodes=n), 80) for n in (1, 2, 4, 8)] == [0.61, 0.74, 0.81, 0.84]


@pytest.mark.parametrize(
    ("name", "gpus", "nodes", "gpu_memory"),
    [("qwen3_32b", 8, 4, 80), ("qwen25_7b_grpo", 8, 1, 80), ("qwen3_1_7b", 1, 1, 80), ("qwen3_0_6b", 1, 1, 24)],
)
def test_the_share_leaves_the_headroom(name, gpus, nodes, gpu_memory):
    """Beside all that is there while vLLM is awake; and vLLM starts on it, with as many sequences as fit."""
    found = job(name, gpus, nodes, gpu_memory, NULL)
    needed, cache = memory(found), vllm.sampler(found)
    share = sampler_share(found, gpu_memory)
    headroom = 4 * GIB + 8 * max(found.policy.tensors)
    assert needed["parts"]["vLLM"]["bytes"] == round(share * gpu_memory * GIB)
    assert 0 <= gpu_memory * GIB - headroom - needed["sampling"] < 0.01 * gpu_memory * GIB + 1
    assert cache["share"] == cache["sampler_share"] == share and vllm.holds_a_sequence(cache)
    held = cache["cached_tokens"] / (cache["max_model_len"] / 16)
    rollout = found.args.generation_batch_size // found.processes * cache["gpus"]
    assert cache["max_num_seqs"] <= min(max(held, 64), rollout, 4096)
    assert str(cache["gpus"]) in cache["by_tensor_parallel"]


def test_an_engine_that_never_sleeps_gets_less():
    asleep, awake = job("qwen3_1_7b", 1), job("qwen3_1_7b", 1, words=[*NULL, "--vllm_enable_sleep_mode", "false"])
    assert 0 < sampler_share(awake, 80) < sampler_share(asleep, 80) - 0.1
    assert memory(awake)["training"] <= 76 * GIB


def test_what_is_left_must_hold_a_sequence():
    small = job(gpu_memory=45, words=NULL)
    assert plan.verdict(small, {"peak": 0}, vllm.sampler(small))["fits"] is False
    assert sampler_share(small, 10) == 0


def test_the_plan_shows_the_share_and_warns_of_what_is_unused():
    words = ["--vllm_gpu_memory_utilization", "0.4"]
    found = plan.make(job(words=words, mean_length=7000))
    (warning,) = [sentence for sentence in found["warnings"] if "vllm_gpu_memory_utilization" in sentence]
    assert "is 0.4, but the run leaves 0.61 of a GPU while vLLM is awake, 21% more: set it to null" in warning
    cache, text = found["vllm"], plan.render(found)
    assert "0.61 of a GPU" in text and f"{cache['tokens_per_second']:,} tokens/s" in text
    assert f"2: {cache['by_tensor_parallel']['2']:,}" in text
    sized_cache = vllm.sampler(job(words=NULL, mean_length=7000))
    assert sized_cache["cached_tokens"] > 2 * cache["cached_tokens"]
    assert 1.3 < sized_cache["tokens_per_second"] / cache["tokens_per_second"] < 2.5


def test_the_plan_has_room_for_the_budget():
    """More tokens in a pass, and no other change."""
    plain, same, twice = (memory(job(words=["--token_budget", b])) for b in ("null", "22528", "45056"))
    parts = [found["parts"]["activations"]["bytes"] for found in (plain, same, twice)]
    assert parts[0] == parts[1] and parts[2] == pytest.approx(2 * parts[1], rel=1e-3)
    assert "x 45,056" in twice["parts"]["activations"]["formula"]
    assert same["parts"]["head"]["bytes"] > plain["parts"]["head"]["bytes"], "prompts may be short"
    assert plain["sampling"] == same["sampling"] == twice["sampling"]


GIVEN = {"max_num_seqs": 8192, "generation_kwargs": None, "mode": "colocate"}


def make_args(tmp_path, **settings):
    base = {"use_cpu": True, "bf16": False, "num_generations": 2, "use_vllm": True, "vllm_mode": "colocate"}
    return EntropyForkGRPOConfig(str(tmp_path), **base | settings)


def test_settings_of_the_engine(tmp_path):
    """No more sequences than vLLM takes or than are asked for, and no text unless a text ends responses."""
    plain, limited = make_args(tmp_path), make_args(tmp_path, vllm_max_num_seqs=288)
    assert engine_settings(plain, GIVEN) == {"max_num_seqs": 4096, "generation_kwargs": {"detokenize": False}}
    assert engine_settings(limited, GIVEN)["max_num_seqs"] == 288
    assert engine_settings(limited, GIVEN | {"max_num_seqs": 64})["max_num_seqs"] == 64
    for own in ({"stop": ["\n"]}, {"detokenize": True}):
        assert engine_settings(plain, GIVEN | {"generation_kwargs": own})["generation_kwargs"] == own
    seed = engine_settings(plain, GIVEN | {"generation_kwargs": {"logit_bias": {}}})["generation_kwargs"]
    assert seed == {"logit_bias": {}, "detokenize": False}


def test_trl_makes_the_engine_with_them(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", lambda **given: made.append(given))
    known = grpo_trainer.VLLMGeneration
    with sized(make_args(tmp_path, vllm_max_num_seqs=9)):
        grpo_trainer.VLLMGeneration(**GIVEN, temperature=1.0)
    expected = {"max_num_seqs": 9, "generation_kwargs": {"detokenize": False}, "mode": "colocate", "temperature": 1.0}
    assert made == [expected] and grpo_trainer.VLLMGeneration is known
    with sized(make_args(tmp_path, vllm_mode="server")):
        assert grpo_trainer.VLLMGeneration is known
    unknown = make_args(tmp_path, vllm_gpu_memory_utilization=None)
    with pytest.raises(ValueError, match="set the share that `entropy-grpo plan` prints"), sized(unknown):
        pass


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vllm_gpu_memory_utilization": 1.5}, r"must lie in \(0, 1\], or be null"),
        ({"vllm_max_num_seqs": 0}, "between 1 and 4096"),
        ({"vllm_max_num_seqs": 5000}, "between 1 and 4096"),
        ({"vllm_mode": "server", "vllm_max_num_seqs": 9}, "vllm_max_num_seqs"),
        ({"vllm_mode": "server", "vllm_gpu_memory_utilization": None}, "vllm_gpu_memory_utilization"),
    ],
    ids=str,
)
def test_what_vllm_would_refuse_is_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        make_args(tmp_path, **settings)


def launched(*words):
    path = shipped("qwen3_14b")
    return launch.size_sampler(recipe.load(path) | recipe.overrides(words), path, words)


def show_gpu(monkeypatch):
    """Add one GPU of 80 GiB, as a launch sees it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=80 * GIB))


@pytest.mark.slow
def test_a_model_that_is_not_there_yet_has_a_share(tmp_path, monkeypatch):
    """The launch fetches its configuration, not at the commit of the parent's model."""
    show_gpu(monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    fetched = []

    def download(name, file, revision=None, **options):
        fetched.append((name, file, revision))
        folder = tmp_path / "cache/models--someone--model/snapshots" / (revision or "c0ffee")
        FAMILIES["llama"].save_pretrained(folder)
        (folder.parents[1] / "refs").mkdir(exist_ok=True)
        (folder.parents[1] / "refs/main").write_text("c0ffee")
        return str(folder / file)

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", download)
    path = tmp_path / "mine.yaml"
    path.write_text("base: qwen3_1_7b\nmodel_name_or_path: someone/model\nmax_position_embeddings: null\n")
    found = launch.size_sampler(recipe.load(path) | recipe.overrides(NULL), path, NULL)
    assert 0.5 < found["vllm_gpu_memory_utilization"].value < 1
    assert set(fetched) == {("someone/model", "config.json", None)}
    nowhere = [*NULL, "--model_name_or_path", "nobody/nothing"]
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", huggingface_hub.hf_hub_download)
    with pytest.raises(RecipeError, match="model_name_or_path is 'nobody/nothing', which does not load: "):
        launch.size_sampler(recipe.load(path) | recipe.overrides(nowhere), path, nowhere)


@pytest.mark.slow
def test_a_launch_turns_null_into_numbers(monkeypatch, preloaded):
    monkeypatch.setattr(sys, "executable", preloaded)
    sequences = vllm.sampler(job(nodes=2, words=NULL))["max_num_seqs"]
    assert launched()["vllm_gpu_memory_utilization"].value == 0.6
    with pytest.raises(RecipeError, match="there is no GPU whose memory could be divided: set a number"):
        launched(*NULL)
    show_gpu(monkeypatch)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8"), monkeypatch.setenv("WORLD_SIZE", "16")
    found = launched(*NULL)
    assert found["vllm_gpu_memory_utilization"].value == 0.74
    assert found["vllm_max_num_seqs"].value == sequences
    assert launched(*NULL, "--use_vllm", "false")["vllm_gpu_memory_utilization"].value is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2"), monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="the training leaves 0% of a GPU, which hold vLLM's weights and 0 tokens"):
        launched(*NULL[:2], "--vllm_max_num_seqs", "100")
    with pytest.raises(RecipeError, match="token_budget is 0"):
        launched(*NULL, "--token_budget", "0")


def test_the_first_process_of_a_machine_plans_for_all(monkeypatch):
    """With torchrun's store, which the launcher holds; and the others have its refusal, too."""

    def never():
        raise AssertionError("a further plan")

    def refused():
        raise RecipeError("nothing is left")

    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert launch.once_per_machine(lambda: {"share": 0.1}) == {"share": 0.1}
    launcher = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in (launcher | {"RANK": "0", "WORLD_SIZE": "4"}).items():
        monkeypatch.setenv(name, value)

    def on(machine, process, make):
        monkeypatch.setenv("GROUP_RANK", machine), monkeypatch.setenv("LOCAL_RANK", process)
        return launch.once_per_machine(make)

    assert on("0", "0", lambda: {"share": 0.5}) == on("0", "1", never) == {"share": 0.5}
    for process, make in (("0", refused), ("1", never)):
        with pytest.raises(RecipeError, match="nothing is left"):
            on("1", process, make)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "environment", "share"),
    [
        ("fsdp2.yaml", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, 0.89),
        ("zero3.yaml", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, 0.88),
    ],
)
def test_the_share_follows_the_sharding_of_the_launcher(file, environment, share, tmp_path, monkeypatch, preloaded):
    """It is that of a recipe with the launcher's file, and not that of the configuration that the recipe names."""
    path = tmp_path / "mine.yaml"
    path.write_text("base: qwen3_1_7b\naccelerate_config: accelerate_configs/ddp.yaml\n")
    words = [*NULL, "--accelerate_config", f"accelerate_configs/{file}"]
    assert sampler_share(plan.resolve(PlanOptions(str(path), 8, 1, 80), words), 80) == share
    monkeypatch.setattr(sys, "executable", preloaded)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8"), monkeypatch.setenv("WORLD_SIZE", "8")
    assert launch._planned(path, NULL, 80)["share"] == 0.68, "plain data parallelism"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launch._planned(path, [*NULL, "--accelerate_config", "none"], 80)["share"] == share


def test_a_plan_that_is_refused_names_the_launchers_configuration(monkeypatch):
    """Its stage is in the file, whose place is of no use to the user."""

    def refuse(command, **options):
        stage = json.loads(Path(command[-1]).read_text())["deepspeed_config"]["zero_stage"]
        return SimpleNamespace(stdout="", stderr=f"a warning\nerror: {command[-1]} has stage {stage}.\n")

    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true"), monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    monkeypatch.setattr(launch.subprocess, "run", refuse)
    with pytest.raises(RecipeError, match=r"^the launcher's own configuration has stage 2\.$"):
        launch._planned(shipped("qwen3_14b"), NULL, 80)
