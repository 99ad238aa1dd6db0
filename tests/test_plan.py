"""Planning: memory, batches and operations of recipes, sentences, and commands."""

import json
import re
import shlex
import socket
from itertools import chain

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from entropy_grpo import cli
from entropy_grpo.config import recipe
from entropy_grpo.planning import commands, disk, flops, memory, plan, vllm
from entropy_grpo.planning.memory import sampler_share
from entropy_grpo.planning.options import PlanOptions

from .conftest import REPOSITORY
from .small_models import BATCH, WIDTH, measured, small, tokens

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


def resolve(recipe_file, words=(), **options):
    return plan.resolve(PlanOptions(str(recipe_file), **options), words)


def shipped(name):
    return REPOSITORY / f"recipes/{name}.yaml"


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
    return plan.make(resolve(path, ["--seed", "3"], mean_length=7000, problems=17_398))


# Memory


def test_autocast_keeps_its_copies_while_a_checkpointed_model_runs(recipe_file):
    """On one GPU, float32 weights: the casts of all layers, until the end of the forward pass."""
    words = "--dtype float32 --accelerate_config none --max_completion_length 16 --prompts_per_rollout 16".split()
    words += ["--steps_per_rollout", "1", "--model_name_or_path", "Qwen/Qwen3-0.6B-Base"]
    parts = memory.memory(resolve(recipe_file, words, gpus=1, prompt_length=16))["parts"]
    # Weights of a layer's seven linear layers.
    assert parts["decoder"]["bytes"] == pytest.approx(2 * 28 * 15_728_640, rel=0.02)


def test_memory_follows_the_sharding(recipe_file):
    """16 bytes a parameter: divided under FSDP2 and ZeRO-3, whole with DDP's buckets, a fraction of it with LoRA."""
    count, each = 8_190_735_360, ["weights", "gradients", "optimizer"]

    def states(*words, gpus):
        parts = memory.memory(resolve(recipe_file, words, gpus=gpus))["parts"]
        return [parts[name]["bytes"] / count for name in each]

    sync = ["--accelerator_config", "{gradient_accumulation_kwargs: {sync_each_batch: true}}"]
    zero3 = ["--accelerate_config", str(REPOSITORY / "accelerate_configs/zero3.yaml")]
    ddp = ["--accelerate_config", "none"]
    assert states(*sync, gpus=8) == pytest.approx([4 / 8, 4 / 8, 8 / 8], rel=1e-3)
    assert states(gpus=8) == pytest.approx([4 / 8, 4, 8 / 8], rel=1e-3)  # whole float32 gradients add up
    assert states(*zero3, gpus=8) == pytest.approx([2 / 8, 2 / 8, 12 / 8], rel=1e-3)
    assert states(*ddp, gpus=8) == pytest.approx([4, 8, 8], rel=1e-3)
    assert states(gpus=1) == pytest.approx([4, 4, 8], rel=1e-3)
    assert states("--dtype", "bfloat16", gpus=1) == pytest.approx([2, 2, 4], rel=1e-3)
    lora = ["--use_peft", "--lora_r", "8", "--dtype", "bfloat16"]
    adapters = 36 * 8 * (4096 + 4096 + 4096 + 1024) / count
    assert states(*lora, gpus=1) == pytest.approx([2 + 4 * adapters, 4 * adapters, 8 * adapters], rel=1e-3)


def test_without_a_dtype_weights_are_the_float32_that_trl_loads(recipe_file):
    words = ["--model_name_or_path", "Qwen/Qwen3-0.6B-Base", "--accelerate_config", "none", "--dtype"]
    unset, wanted = (memory.memory(resolve(recipe_file, [*words, dtype], gpus=1)) for dtype in ("null", "float32"))
    assert unset == wanted and unset["parts"]["weights"]["bytes"] == 4 * 596_049_920


def test_fsdp2_that_keeps_gathered_weights_has_all_of_them_in_a_pass(recipe_file, tmp_path):
    config = (REPOSITORY / "accelerate_configs/fsdp2.yaml").read_text(encoding="utf-8")
    (tmp_path / "kept.yaml").write_text(config.replace("after_forward: true", "after_forward: false"))
    found = memory.memory(resolve(recipe_file, ["--accelerate_config", str(tmp_path / "kept.yaml")]))["parts"]
    assert found["gathered weights"]["bytes"] == 2 * 8_190_735_360
    assert found["weights"] == memory.memory(resolve(recipe_file))["parts"]["weights"]


def test_zero_is_planned_in_its_third_stage_alone(recipe_file, tmp_path):
    """The stage stands in accelerate's file or in DeepSpeed's own, which it names."""
    config = (REPOSITORY / "accelerate_configs/zero3.yaml").read_text(encoding="utf-8")
    head = config.partition("deepspeed_config:")[0]
    words = ["--accelerate_config", str(tmp_path / "zero.yaml")]
    for stage in (3, 2):
        (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        own = f"{head}deepspeed_config:\n  deepspeed_config_file: {tmp_path / 'ds.json'}\nnum_processes: 8\n"
        for text in (config.replace("zero_stage: 3", f"zero_stage: {stage}"), own):
            (tmp_path / "zero.yaml").write_text(text)
            if stage == 3:
                assert resolve(recipe_file, words).shards == 8
                continue
            with pytest.raises(ValueError, match=r"zero\.yaml has DeepSpeed's ZeRO of stage 2.*stage 3"):
                resolve(recipe_file, words)
            assert resolve(recipe_file, words, gpus=1).sharding.kind == "none"


def test_parts_and_peaks_add_up(planned):
    needed = planned["memory"]
    sizes = {name: part["bytes"] for name, part in needed["parts"].items()}
    assert needed["training"] == sum(sizes.values()) - sizes["vLLM"] - min(sizes["head"], sizes["decoder"])
    assert needed["sampling"] == sum(sizes[name] for name in ("weights", "optimizer", "rollout", "vLLM"))
    assert sizes["vLLM"] == round(0.3 * 80 * 2**30)
    # 20,480 tokens of two responses times the vocabulary, in bfloat16 and float32.
    assert needed["full_logits_avoided"] == 2 * 20_480 * 151_936 * 6
    assert planned["vllm"]["bytes_per_token"] == 2 * 36 * 8 * 128 * 2


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
        (["--entropy_scope", "global"], 0.8),
        (["--entropy_coef", "0.01"], 4),  # TRL's head
        (["--use_peft", "--lora_target_modules", "all-linear"], 0.6),  # 3 rho: no gradient of the weight
        (["--use_peft", "--lora_modules_to_save", "[lm_head]"], 0.8),
    ],
)
def test_head_costs_what_its_rows_cost(recipe_file, words, units):
    found = flops.operations(resolve(recipe_file, words))
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
    assert memory.memory(resolve(recipe_file, words))["parts"]["head"]["bytes"] == pytest.approx(expected)


def test_an_entropy_bonus_leaves_nothing_to_save(capsys):
    recipe_file = str(shipped("qwen3_8b"))
    cli.main(["plan", recipe_file])
    assert "selection saves 80.0% of that" in capsys.readouterr().out
    cli.main(["plan", recipe_file, "--entropy_coef", "0.01"])
    said = capsys.readouterr().out
    assert "selection saves" not in said and "TRL's, because the loss has an entropy bonus" in said


# Settings with which TRL scores no rollout: it serves one step, transformers samples, and all tokens are kept.
ONE_STEP = "--top_entropy_quantile 1.0 --steps_per_rollout 1".split()
UNSCORED = [*ONE_STEP, *"--use_vllm false --vllm_enable_sleep_mode false".split()]


@pytest.mark.parametrize(
    "words, scored",
    [
        ([], {"old log-probabilities": 1}),
        (UNSCORED, {}),
        ([*UNSCORED, "--ppl_shaping_alpha", "0.01"], {"old log-probabilities": 1}),
        (["--entropy_scope", "global"], {"old log-probabilities": 1, "ranking pass": 1}),
        (["--beta", "0.01", "--num_iterations", "2"], {"old log-probabilities": 1 / 2, "reference model": 1 / 2}),
        ([*ONE_STEP], {"old log-probabilities": 1}),  # for vLLM's importance correction alone
        ([*ONE_STEP, "--vllm_importance_sampling_correction", "false"], {}),
    ],
)
def test_passes_without_gradient_are_those_that_are_made(recipe_file, words, scored):
    """Each is a forward pass of the backbone and one product of the head with all tokens."""
    job = resolve(recipe_file, words)
    parts = flops.operations(job)["parts"]
    one = parts["backbone forward"] + 2 * job.responses * 20_480 * 4096 * 151_936
    for name in ("old log-probabilities", "reference model", "ranking pass"):
        assert parts[name] == pytest.approx(scored.get(name, 0) * one)


# Batches, output, refusals


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

    job = resolve(shipped("demo_cpu"), ["--max_steps", "-1", *words])
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
    cli.main(["plan", str(shipped("demo_cpu")), "--json", "--max_steps", "7"])
    found = json.loads(capsys.readouterr().out)
    assert found["batches"]["micro_batches_per_step"] == 1
    assert found["batches"]["steps_per_rollout"] == 4
    assert found["batches"]["steps"] == 7
    assert found["warnings"] == []


def test_hours_are_operations_over_their_rate(recipe_file, planned):
    """Of 8 GPUs that achieve 400 TFLOP/s, over 544 steps of 17,398 problems."""
    found = plan.make(resolve(recipe_file, ["--seed", "3"], mean_length=7000, problems=17_398, tflops=400.0))
    assert found["batches"]["steps"] == 3 * 16 * (17_398 // 512)
    seconds = found["operations"]["total"] * found["batches"]["steps"] / (8 * 400e12)
    assert found["hours"] == pytest.approx(seconds / 3600)
    assert f"at least {found['hours']:,.1f} hours" in plan.render(found)
    assert planned["hours"] is None and "hours" not in plan.render(planned)


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
        ([], {"tflops": 0.0}, r"--tflops is 0.0: it must be above 0"),
        ([], {"mean_length": 1e6}, r"--mean-length is 1e\+06: it must lie between 0 and max_completion_length"),
        (
            ["--use_peft", "--lora_target_modules", "lm_head"],
            {},
            r"lora_target_modules is \['lm_head'\], which adapts the LM head",
        ),
        (["--accelerate_config", "nowhere.yaml"], {}, r"accelerate_config is 'nowhere.yaml': there is no such"),
        (["--steps_per_generation", "3"], {}, r"steps_per_generation is 3.*leave it out"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(recipe_file, words, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        resolve(recipe_file, words, **options)


@pytest.mark.parametrize(
    "config, sentence",
    [
        (AutoConfig.for_model("t5").to_json_string(), "'t5', of which transformers builds no causal model"),
        ('{"model_type": "not_there"}', "transformers cannot read"),
        ("no JSON", "transformers cannot read"),
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
        ([], {"gpus": 1, "gpu_memory": 24}, r"training needs .* GiB of a GPU, which has 24"),
        ([], {}, r"accumulates unsharded float32 gradients \(30.5 GiB\).*sync_each_batch: true"),
        (["--bf16", "false"], {}, r"fsdp2.yaml has mixed_precision: bf16, but the recipe trains with no"),
        (["--max_completion_length", "40000"], {}, r"42048 tokens, but the model has 32768 positions"),
        (
            ["--max_prompt_length", "2048"],
            {"gpus": 8, "gpu_memory": 60},
            r"vLLM refuses to start.* [\d,]+ tokens, but one sequence has 22,528: raise vllm_gpu_mem",
        ),
        (
            [],
            {"gpus": 8, "gpu_memory": 72},
            r"but one sequence has 32,768: set vllm_max_model_length to 22528",
        ),
        (["--vllm_max_model_length", "9000"], {}, r"is 9000, but a prompt and its response have up to 22528 tokens"),
        (
            ["--vllm_tensor_parallel_size", "3"],
            {},
            r"vllm_tensor_parallel_size is 3, but the run has 8 GPUs: set it to a divisor",
        ),
        (
            ["--vllm_mode", "server", "--vllm_server_requests", "2"],
            {},
            r"is 2, whose groups are \d+ responses, but the server has room for \d+ at a time: set it to \d+\.",
        ),
        (["--optim", "sgd"], {}, r"optim is 'sgd', whose states are counted as AdamW's"),
        ([], {}, r"prompts of up to 2048 tokens are assumed"),
    ],
)
def test_warnings(recipe_file, words, options, sentence):
    found = plan.make(resolve(recipe_file, words, **options))["warnings"]
    assert any(re.search(sentence, warning) for warning in found), found


SYNC = ["--accelerator_config", "{gradient_accumulation_kwargs: {sync_each_batch: true}}"]


@pytest.mark.parametrize(
    "words, options, advice, impossible",
    [
        (["--per_device_train_batch_size", "1"], {"gpu_memory": 20}, "shard over more GPUs", "lower per_device"),
        ([], {"gpu_memory": 30}, "lower per_device_train_batch_size, shard", "gradient_checkpointing"),
        (["--gradient_checkpointing", "false"], {}, "set gradient_checkpointing: true", "vllm_enable_sleep_mode"),
        (
            ["--vllm_enable_sleep_mode", "false"],
            {"gpu_memory": 40},
            "set vllm_enable_sleep_mode: true",
            "gradient_check",
        ),
        ([], {"gpus": 1}, "shard over several GPUs", "over more GPUs"),
    ],
)
def test_advice_is_what_the_run_can_do(recipe_file, words, options, advice, impossible):
    found = plan.make(resolve(recipe_file, [*SYNC, *words], **options))
    said = next(warning for warning in found["warnings"] if warning.startswith("training needs"))
    assert advice in said and impossible not in said
    assert found["verdict"]["fits"] is False


def test_a_verdict_is_the_exit_status(recipe_file, capsys):
    cli.main(["plan", recipe_file, *SYNC, "--max_prompt_length", "2048"])
    assert re.fullmatch(r"fits: 4\d of 80 GiB", capsys.readouterr().out.splitlines()[-1])
    for words, said in (["--gpu-memory", "30"], "of 30 GiB"), (["--gpu-memory", "60"], "does not fit: vLLM's cache"):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["plan", recipe_file, *SYNC, "--max_prompt_length", "2048", *words])
        assert exit_.value.code == 1 and said in capsys.readouterr().out.splitlines()[-1]
    cli.main(["plan", str(shipped("demo_cpu")), "--gpu-memory", "0.01"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("runs on the CPU")


# Shipped recipes, and their GPUs: GiB of each where a recipe is not for 80.
SMALLER = {"qwen3_0_6b": 24.0, "qwen3_8b_qlora": 24.0}
SHIPPED = sorted({path.stem for path in (REPOSITORY / "recipes").glob("*.yaml")} - {"base"})


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_fit_with_room_and_warn_of_nothing(name):
    recipe = REPOSITORY / f"recipes/{name}.yaml"
    found = plan.make(resolve(str(recipe), [], gpu_memory=SMALLER.get(name, 80.0)))
    # A port that another program of this machine listens on is no fault of the recipe. The share that is left for vLLM
    # has not been measured on a GPU, so recipes keep a smaller one.
    known = (" is in use on ", " of a GPU while vLLM is awake, ")
    assert [text for text in found["warnings"] if not any(part in text for part in known)] == []
    assert found["verdict"]["fits"] is not False
    if found["vllm"]:
        # Several sequences at once on every engine, and at least half of the GPU for it, since it sleeps in training.
        assert found["vllm"]["concurrent_sequences"] >= 8 and found["vllm"]["share"] >= 0.5
        assert found["vllm"]["profiled"] < 1.1 * 2**30, "vLLM sets memory aside for every sequence of max_num_seqs"
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
    words += ["--vllm_max_num_seqs", "null"]
    job = resolve(recipe_file, words)
    found = vllm.sampler(job)
    weights = 8_190_735_360 * 2 // 2
    sequences = 8192 // 8 * 2  # the responses of a rollout on two of eight GPUs: `max_num_seqs` of TRL's engine
    profiled = sequences * 151_936 * 14
    token = 2 * 36 * 8 * 128 * 2 // 2
    assert 4 <= profiled / 2**30 < 5
    cached = int((0.5 * 80 * 2**30 - weights - profiled) / token)
    engine = vllm.Engine(2, weights, 2 * 8_190_735_360, token, in_process=True)
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
        "tokens_per_second": round(4 * engine.tokens_per_second(cached // 22_528, 2_048 + 20_480 / 2)),
        "sampler_share": sampler_share(job, 80),
        "by_tensor_parallel": found["by_tensor_parallel"],
    }
    # A step reads the weights and the caches; 4 ms and 10 us a sequence go to scheduling, and 1 ms to the other GPU.
    seconds = 5e-3 + 30 * 10e-6 + (weights + 30 * 10_000 * token) / (0.75 * 3.35e12)
    assert engine.tokens_per_second(30, 10_000) == pytest.approx(30 / seconds)
    assert found["by_tensor_parallel"]["2"] == found["tokens_per_second"]
    assert vllm.holds_a_sequence(found | {"cached_tokens": 22_528})
    assert not vllm.holds_a_sequence(found | {"cached_tokens": 22_527})


@pytest.mark.parametrize(
    ("name", "memory", "parallel"),
    [
        ("qwen3_14b", 80, (1, 8)),  # 27.5 GiB of weights
        ("qwen3_14b", 40, (2, 4)),
        ("qwen3_32b", 80, (2, 4)),  # 61.0
        ("qwen3_32b", 141, (1, 8)),
        ("qwen25_math_7b_grpo", 24, (2, 4)),  # 14.2 and 28 heads, which eight GPUs do not divide
        ("qwen25_math_7b_grpo", 10, (4, 2)),
    ],
)
def test_as_few_gpus_as_possible_serve_a_copy(name, memory, parallel):
    """A copy's weights leave half of vLLM's share to its cache."""
    words = ["--use_vllm", "true", "--vllm_mode", "server", "--seed", "7"]
    options = PlanOptions(str(shipped(name)), gpus=8, gpu_memory=memory)
    planned = plan.make(plan.resolve(options, words))
    assert (planned["vllm"]["gpus"], planned["vllm"]["copies"]) == parallel
    served = plan.server_words(options, words)
    assert shlex.split(planned["commands"]["server"][0])[1:] == served
    assert served[-4:] == ["--tensor-parallel-size", str(parallel[0]), "--data-parallel-size", str(parallel[1])]
    assert served[served.index("--seed") + 1] == "7"
    named = {word: served[served.index(word) + 1] for word in ("--max-model-len", "--hf-overrides") if word in served}
    longest = {"--max-model-len": str(planned["vllm"]["max_model_len"])}
    raised = {"--hf-overrides": '{"max_position_embeddings": 10240}'} if "math" in name else {}
    assert named == longest | raised


@pytest.mark.parametrize(
    "words",
    [[], ["--use_vllm", "false"], ["--vllm_mode", "server", "--vllm_server_host", "gpu9"]],
    ids=["colocate", "transformers", "named"],
)
def test_nothing_is_served_beside_a_run_that_needs_no_server(words):
    assert plan.server_words(PlanOptions(str(shipped("qwen3_14b"))), words) == []


def test_the_teacher_has_the_gpus_that_a_plan_gives_it():
    """`make llama31_8b` on a machine of eight GPUs with 80 GiB: Qwen3-32B answers, as in a recipe that serves it."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    said = {name: re.search(rf"^{name} \?= (.+)$", makefile, re.MULTILINE)[1] for name in ("TEACHER", "TEACHER_GPUS")}
    words = ["--vllm_mode", "server", "--model_name_or_path", said["TEACHER"], "--model_revision", "main"]
    served = plan.server_words(PlanOptions(str(shipped("qwen3_32b")), gpus=8), words)
    assert said["TEACHER_GPUS"] == served[served.index("--tensor-parallel-size") + 1]
    assert "--tensor-parallel $(TEACHER_GPUS)" in makefile


def test_a_cold_start_that_names_no_commit_is_planned_by_its_base(tmp_path, monkeypatch):
    """Neither a recipe without a commit, nor a child that leaves its parent's model, has one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("base: demo_cpu\nmodel_name_or_path: runs/my_sft\n")
    for text in (
        "trainer: sft\nmodel_name_or_path: Qwen/Qwen3-0.6B-Base\n",
        "base: llama31_8b_cold_start\nmodel_name_or_path: Qwen/Qwen3-0.6B-Base\n",
    ):
        (tmp_path / "my_sft.yaml").write_text(text)
        assert resolve(tmp_path / "mine.yaml").policy.parameters == 596_049_920
    (tmp_path / "my_sft.yaml").write_text("trainer: sft\n")
    with pytest.raises(ValueError, match=r"my_sft\.yaml: model_name_or_path is missing: set it"):
        resolve(tmp_path / "mine.yaml")


def test_a_folder_is_served_without_the_revision_of_the_recipe(tiny_model):
    words = ["--vllm_mode", "server", "--model_name_or_path", tiny_model]
    served = plan.server_words(PlanOptions(str(shipped("qwen3_14b")), gpus=8), words)
    assert served[:3] == ["vllm", "serve", tiny_model] and "--revision" not in served


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
    job = resolve(str(shipped("qwen3_14b")), words)
    assert job.args.vllm_max_model_length == limit


def test_a_checkpoint_of_14b_is_what_fsdp2_writes(tmp_path):
    """Float32 weights and two moments have 177 GB in pieces; a whole state has 236 GB, the model twice in it.

    Three of them are there while the oldest is replaced.
    """
    recipe = str(shipped("qwen3_14b"))
    found = disk.disk(resolve(recipe, []))
    written = found["checkpoint"] - found["rollout_at_most"]
    assert written / 1e9 == pytest.approx(3 * 14.768 * 4, rel=1e-3) == pytest.approx(177.2, abs=0.1)
    assert found["gathered_on_rank_0"] == 0
    assert found["run"] == 3 * found["checkpoint"] + found["weights"] + found["kept_weights"]
    config = (REPOSITORY / "accelerate_configs/fsdp2.yaml").read_text(encoding="utf-8")
    (tmp_path / "whole.yaml").write_text(config.replace("SHARDED_STATE_DICT", "FULL_STATE_DICT"), encoding="utf-8")
    whole = disk.disk(resolve(recipe, ["--accelerate_config", str(tmp_path / "whole.yaml")], gpus=8, nodes=1))
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
    found = disk.disk(resolve(str(shipped("demo_cpu")), words))
    for name, file in ("weights", "model.safetensors"), ("optimizer", "optimizer.pt"):
        assert 0 <= (tmp_path / file).stat().st_size - found[name] < 40_000
    assert found["kept"] == 4 and found["run"] == 4 * found["checkpoint"] + found["weights"]
    none = resolve(shipped("demo_cpu"), [*words[:-2], "--save_strategy", "no"])
    assert disk.disk(none)["run"] == found["weights"]
    kept = disk.disk(resolve(shipped("demo_cpu"), [*words, "--keep_weights", "[3, 7, 9]"]))
    assert kept["kept_weights"] == 2 * found["weights"], "the run has seven steps"
    assert kept["run"] == found["run"] + kept["kept_weights"]


def test_a_checkpoint_of_the_model_only_has_no_states(tmp_path):
    """transformers then saves neither the optimizer nor the copy for resuming, which is of FSDP."""
    config = (REPOSITORY / "accelerate_configs/fsdp2.yaml").read_text(encoding="utf-8")
    (tmp_path / "whole.yaml").write_text(config.replace("SHARDED_STATE_DICT", "FULL_STATE_DICT"), encoding="utf-8")
    for file in ("none", str(tmp_path / "whole.yaml")):
        words = ["--accelerate_config", file, "--save_only_model", "true"]
        found = disk.disk(resolve(shipped("qwen3_14b"), words, gpus=8, nodes=1))
        assert found["checkpoint"] == found["weights"] + found["rollout_at_most"]
        assert found["weights"] == 4 * 14_768_307_200 and found["optimizer"] == 0
        assert found["gathered_on_rank_0"] == (found["weights"] if file != "none" else 0)


def test_a_port_in_use_is_named(recipe_file):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        words = ["--vllm_mode", "server", "--vllm_group_port", str(port)]
        found = plan.make(resolve(recipe_file, words))["warnings"]
        assert any(f"port {port} is in use" in warning and "vllm_group_port" in warning for warning in found)
    found = plan.make(resolve(recipe_file, words))["warnings"]
    assert not any(f"port {port} " in warning for warning in found)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("words", [[], ["--vllm_mode", "server", "--output_dir", "runs/a b"]])
def test_commands_name_files_and_can_be_read_back(recipe_file, nodes, words):
    job = resolve(recipe_file, words, nodes=nodes)
    found = commands.commands(job, vllm.sampler(job))
    assert set(found) == ({"server"} if words else set()) | {"one machine" if nodes == 1 else "each machine", "SLURM"}
    for command in chain.from_iterable(found.values()):
        read = shlex.split(command)
        for word in read:
            if word.endswith((".yaml", ".sh")):
                assert (REPOSITORY / word).is_file()
        assert read[0].startswith("VLLM") or recipe_file in read
    batch = shlex.split(found["SLURM"][0])
    assert batch[:5] == ["sbatch", "--nodes", str(nodes + bool(words)), "--gpus-per-node", "8"]
    # The script sets this itself, and a setting that is given twice is refused.
    assert "--output_dir" not in batch and ("--vllm_mode" in batch) == bool(words)
    assert ("RUN_FOLDER=runs/a b" in batch[6]) == bool(words)
    for rank, command in enumerate(found.get("each machine", [])):
        read = shlex.split(command)
        assert read[read.index("--machine_rank") + 1] == str(rank)
        assert read[read.index("--num_processes") + 1] == "16"
        settings = read[read.index(recipe_file) + 1 :]
        assert settings.count("--output_dir") == 1 and settings[-1 if not words else settings.index("runs/a b")]
        # What the launch would be given resolves to the same batch.
        again = resolve(recipe_file, settings, gpus=8, nodes=2)
        assert flops.batches(again) == flops.batches(job) and again.sharding.file.endswith("fsdp2_multinode.yaml")


@pytest.mark.parametrize("nodes", [1, 2])
def test_plain_yaml_is_launched_through_the_module(tmp_path, nodes):
    """Python cannot run it. The batch script calls `entropy-grpo launch`, which takes any recipe."""
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.removeprefix(f"{recipe.FIRST_LINE}\n").replace(recipe.LAST_LINE, ""))
    found = plan.commands(resolve(str(path), [], nodes=nodes), None)
    assert str(path) in shlex.split(found.pop("SLURM")[0])
    for command in chain.from_iterable(found.values()):
        read = shlex.split(command)
        assert read[read.index("-m") :][:3] == ["-m", "entropy_grpo.launch", str(path)]


def test_launchers_take_the_printed_options(recipe_file):
    """accelerate's own parser reads each command."""
    from accelerate.commands.launch import launch_command_parser

    zero3 = ["--accelerate_config", str(REPOSITORY / "accelerate_configs/zero3.yaml")]
    for words, nodes, processes in ([], 1, 8), ([], 2, 16), (zero3, 1, 8):
        job = resolve(recipe_file, words, nodes=nodes, gpus=8)
        command = next(c for where, c in commands.commands(job, None).items() if "machine" in where)[-1]
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
        ([], None),
        (["--use_dora"], {}),
        (["--lora_modules_to_save", "[lm_head, embed_tokens]"], {}),
        (["--load_in_4bit"], {"load_in_4bit": True}),
        (["--load_in_4bit", "--use_bnb_nested_quant"], {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}),
        (["--load_in_8bit"], {"load_in_8bit": True}),
    ],
    ids=["whole model", "DoRA", "copies", "4 bits", "4 bits, nested", "8 bits"],
)
def test_states_are_the_bytes_of_a_step(tmp_path, recipe_file, words, loaded):
    """To the byte: float32 weights, or a bfloat16 base and what TRL, PEFT and bitsandbytes make of it."""
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig

    if loaded:
        pytest.importorskip("bitsandbytes")
        loaded = {"quantization_config": BitsAndBytesConfig(bnb_4bit_quant_type="nf4", **loaded)}
    small().save_pretrained(tmp_path / "model")
    words = [*words, "--model_name_or_path", str(tmp_path / "model"), "--use_vllm", "false"]
    words += ["--vllm_enable_sleep_mode", "false"]
    if loaded is None:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        words += ["--bf16", "false"]
    else:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16, **loaded)
        saved = ["lm_head", "embed_tokens"] if "--lora_modules_to_save" in words else None
        lora = LoraConfig(r=5, target_modules="all-linear", use_dora="--use_dora" in words, modules_to_save=saved)
        model = get_peft_model(base, lora)
        words += "--use_peft --lora_r 5 --lora_target_modules all-linear --dtype bfloat16".split()
    for parameter in model.parameters():
        if loaded and parameter.requires_grad:  # as TRL does
            parameter.data = parameter.data.bfloat16()
    job = resolve(recipe_file, words, gpus=1)
    parts = memory.memory(job)["parts"]
    assert {name: parts[name]["bytes"] for name in ("weights", "gradients", "optimizer")} == state_bytes(model)
    assert plan.make(job)["recipe"]["trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
