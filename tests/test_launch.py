"""Launching for real: `accelerate launch` on recipe files, in processes of their own, on a tiny random model."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import warnings

import pytest
import yaml
from accelerate.utils.other import is_port_in_use
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_grpo import launch
from entropy_grpo.config import recipe, sharding
from entropy_grpo.runs import processes

from .conftest import DEMO, REPOSITORY, TINY_DEMO, accelerate_launch

pytestmark = pytest.mark.slow


def rows(run):
    """The training rows of a run, without what depends on the clock."""
    with open(run / "metrics.jsonl") as file:
        found = [json.loads(line) for line in file]
    return [
        {k: v for k, v in row.items() if not any(word in k for word in ("time", "seconds", "per_second"))}
        for row in found
        if "loss" in row
    ]


@pytest.fixture(scope="module")
def run(demo_run):
    assert "sharding: none, because there is one process" in demo_run[1]
    return demo_run


def test_run_folder_is_complete(run):
    folder, printed = run
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        *("recipe.yaml", "environment.json", "data.json", "metrics.jsonl", "samples.jsonl", "evaluation.json"),
        "README.md",
        *("answers/before.jsonl", "answers/after.jsonl", "model.safetensors", "checkpoint-2/model.safetensors"),
        "trainer_state.json",  # the step of the model, also if the run is continued and its log goes on
        *("plots/reward.png", "plots/entropy.png", "plots/kept.png"),
    } <= names
    assert str(folder) in printed and "before" in printed
    assert printed.count(f"model_revision is '{'a' * 40}', which is not read, because the model is the folder") == 1
    assert [row["step"] for row in rows(folder)] == [1, 2]
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 2


def test_records_agree_with_one_another(run):
    folder, _ = run
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["arguments"]["top_entropy_quantile"] == 0.2
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint-2")
    assert environment["parameters"] == sum(p.numel() for p in model.parameters())
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint-2")
    with open(folder / "samples.jsonl") as file:
        samples = [json.loads(line) for line in file]
    assert len(samples) == 2 * 2
    for sample in samples:
        assert len(sample["tokens"]) == len(sample["entropies"]) == len(sample["kept"]) == len(sample["token_ids"])
        assert tokenizer.decode(sample["token_ids"]) == "".join(sample["tokens"])
        # The threshold of the step parts the kept from the dropped.
        threshold = rows(folder)[sample["step"] - 1]["selection/threshold"]
        for entropy, kept in zip(sample["entropies"], sample["kept"], strict=True):
            assert (entropy >= threshold - 1e-4) if kept else (entropy <= threshold + 1e-4)
    answers = [json.loads(line) for line in open(folder / "answers" / "after.jsonl")]
    assert len(answers) == 8 * 4
    accuracy = sum(row["rewards"]["walk_accuracy"] for row in answers) / len(answers)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["after"]["accuracy"]["value"] == pytest.approx(accuracy)


def test_resolved_recipe_is_the_same_run(run, tmp_path, preloaded):
    """As the parent of a plain file that is launched through the module, from another working directory."""
    folder, _ = run
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert "output_dir" not in values and "base" not in values
    plain = tmp_path / "plain.yaml"
    plain.write_text(f"base: {folder / 'recipe.yaml'}\n")
    result = accelerate_launch("-m", "entropy_grpo.launch", plain, python=preloaded, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    # A run whose folder was not named is runs/NAME in the working directory.
    again = tmp_path / "runs" / values["run_name"]
    assert rows(again) == rows(folder)
    assert yaml.safe_load((again / "recipe.yaml").read_text()) == values


def test_resume_goes_on_and_loses_nothing(run, tmp_path, preloaded):
    folder, _ = run
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    # A kill during a save leaves a newer folder without trainer_state.json, which must be passed over.
    (copy / "checkpoint-3").mkdir()
    words = ["--output_dir", copy, "--resume_from_checkpoint", "true", "--max_steps", "4"]
    result = accelerate_launch(folder / "recipe.yaml", *words, python=preloaded)
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in rows(copy)] == [1, 2, 3, 4]
    assert rows(copy)[:2] == rows(folder)
    # The records say what ran: the recipe, the changes of it, and the card.
    first, now = ((path / "recipe.yaml").read_text() for path in (folder, copy))
    said = "# max_steps is 4 from step 3 on, and was 2 before.\n"
    assert said in now and now.replace(said, "").replace("max_steps: 4", "max_steps: 2") == first
    assert json.loads((copy / "changes.json").read_text())["changes"] == [
        {"from_step": 3, "setting": "max_steps", "before": 2, "now": 4}
    ]
    assert "| 3 | max_steps | 2 | 4 |" in (copy / "README.md").read_text()
    assert (copy / "answers" / "before.jsonl").read_text() == (folder / "answers" / "before.jsonl").read_text()


def test_two_processes_write_one_run(tiny_model, tmp_path, preloaded):
    result = accelerate_launch(
        *("--config_file", "accelerate_configs/ddp_cpu.yaml", "--main_process_port", "0", DEMO, *TINY_DEMO),
        *("--model_name_or_path", tiny_model, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", "16"),
        *("--entropy_scope", "global"),
        python=preloaded,
    )
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in rows(tmp_path / "two")] == [1, 2]
    assert all(row["selection/kept_fraction"] == pytest.approx(0.2, abs=2e-3) for row in rows(tmp_path / "two"))
    answers = [json.loads(line) for line in open(tmp_path / "two" / "answers" / "after.jsonl")]
    assert len(answers) == 8 * 4
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["num_processes"] == 2


def test_variables_are_those_that_a_real_launch_sets(tmp_path, preloaded, monkeypatch):
    """Those for a recipe's own configuration file are those of `--config_file` with the same file, and a process that
    leaves the launch keeps none of its variables."""
    script = tmp_path / "show.py"
    script.write_text("import json, os; os.environ['RANK'] == '0' and print('ENV' + json.dumps(dict(os.environ)))")
    config = REPOSITORY / "accelerate_configs" / "fsdp2.yaml"
    words = ["--config_file", config, "--num_processes", "2", "--main_process_port", "0", script]
    result = accelerate_launch(*words, python=preloaded)
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("ENV"))
    everything = json.loads(line[3:])
    real = {k: v for k, v in everything.items() if k.startswith(sharding.SHARDING_VARIABLES)}
    assert real["ACCELERATE_USE_FSDP"] == "true" and real["FSDP_VERSION"] == "2"
    assert sharding.sharding_environment(config) == real
    of_others = {*os.environ, "TORCH_NCCL_ASYNC_ERROR_HANDLING"}
    monkeypatch.setattr(os, "environ", everything)
    processes.leave_launch()
    assert everything.keys() <= of_others


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_multinode"])
def test_sharding_is_read_while_the_launcher_holds_its_port(name, monkeypatch):
    """accelerate's port, 29500, is the one that rank 0's own launcher listens on."""
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # then another test holds it, which is as good
            listener.bind(("127.0.0.1", 29500))
            listener.listen()
        assert is_port_in_use(29500)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = sharding.sharding_environment(REPOSITORY / "accelerate_configs" / f"{name}.yaml")
    assert found["ACCELERATE_USE_FSDP"] == "true" and found["FSDP_STATE_DICT_TYPE"] == "SHARDED_STATE_DICT"


@pytest.mark.parametrize(
    ("environment", "value", "sharded", "said"),
    [
        ({"WORLD_SIZE": "2"}, "accelerate_configs/fsdp2.yaml", True, "from accelerate_configs/fsdp2.yaml"),
        ({"WORLD_SIZE": "2"}, "accelerate_configs/ddp.yaml", False, "from accelerate_configs/ddp.yaml"),
        ({"WORLD_SIZE": "2"}, "none", False, "none"),
        ({"WORLD_SIZE": "1"}, "accelerate_configs/fsdp2.yaml", False, "there is one process"),
        ({}, "accelerate_configs/fsdp2.yaml", False, "there is one process"),
        (
            {"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"},
            "accelerate_configs/fsdp2.yaml",
            False,
            "the launcher's own",
        ),
    ],
)
def test_sharding_is_the_recipes_unless_the_launcher_chose(environment, value, sharded, said, tmp_path, monkeypatch):
    """From another working directory; the recipe that names the file lies in the repository."""
    monkeypatch.chdir(tmp_path)
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*sharding.SHARDING_VARIABLES, "WORLD_SIZE"))}
    monkeypatch.setattr(os, "environ", kept | environment)
    setting = recipe.Setting(value, "here", REPOSITORY / "recipes")
    assert said in sharding.choose_sharding({"accelerate_config": setting})
    assert (os.environ.get("ACCELERATE_USE_FSDP") == "true") is sharded


@pytest.mark.parametrize("version", ["  fsdp_version: 1\n", ""])
def test_fsdp1_is_refused(version, tmp_path, monkeypatch):
    """By the launch, from the recipe's file or the launcher's, and by the plan. accelerate's default is 1."""
    shipped = (REPOSITORY / "accelerate_configs" / "fsdp2.yaml").read_text(encoding="utf-8")
    file = tmp_path / "mine.yaml"
    file.write_text(shipped.replace("  fsdp_version: 2\n", version), encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*sharding.SHARDING_VARIABLES, "WORLD_SIZE"))}
    monkeypatch.setattr(os, "environ", kept | {"WORLD_SIZE": "2"})
    said = r" has FSDP with fsdp_version 1, but this package shards with FSDP2 only: set fsdp_version to 2, "
    settings = {"accelerate_config": recipe.Setting(str(file), "here", tmp_path)}
    for read in (sharding.choose_sharding, sharding.read_sharding):
        with pytest.raises(recipe.RecipeError, match=rf"^accelerate_config is '{file}', which{said}"):
            read(settings)
    of_launcher = sharding.sharding_environment(file)
    assert of_launcher["FSDP_VERSION"] == "1"
    os.environ.update(of_launcher)
    with pytest.raises(recipe.RecipeError, match=rf"^the launcher's configuration{said}"):
        sharding.choose_sharding({})


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--learning_rat", "1e-4"], ["command line", "learning_rat", "Did you mean learning_rate?"]),
        (["--num_train_problems", "15"], ["15 problems", "one rollout needs 16"]),
        (
            ["--chat_template_kwargs", "{enable_thinking: true}"],
            ["chat_template_kwargs is {'enable_thinking': True}", "prompts of embedded:number_walk are texts"],
        ),
        (["--output_dir", "/proc/nowhere"], ["output_dir is '/proc/nowhere'", "cannot be written"]),
        (
            ["--output_dir", str(REPOSITORY / "recipes")],
            ["output_dir", "is not empty", "--resume_from_checkpoint true"],
        ),
        (["--rewards", "acuracy"], ["rewards is ['acuracy']", "walk_accuracy"]),
        (["--dataset_name", "nowhere.jsonl"], ["dataset_name is 'nowhere.jsonl'", "no such file"]),
        (["--dataset_name", "nobody/nothing"], ["dataset_name is 'nobody/nothing'", "does not load"]),
        (["--model_name_or_path", "nobody/nothing"], ["model_name_or_path is 'nobody/nothing'", "does not load"]),
        (["--model_name_or_path", "embedded:chess"], ["model_name_or_path is 'embedded:chess'", "number_walk"]),
        (["--accelerate_config", "fsdp3.yaml"], ["accelerate_config is 'fsdp3.yaml'", "accelerate_configs/"]),
        (["--resume_from_checkpoint", "nowhere"], ["resume_from_checkpoint is 'nowhere'", "trainer_state.json"]),
    ],
)
def test_bad_input_is_one_sentence_before_a_model_loads(words, parts, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)
    if "--output_dir" not in words:
        words = [*words, "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        launch.run(DEMO, words)
    assert stop.value.code == 2
    shown = capfd.readouterr().err
    errors = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for part in parts:
        assert part in errors[0], errors[0]
    assert "Loading weights" not in shown and "cold start" not in shown
    # Nothing stands in the way of the same command, put right.
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_error_ends_the_process_with_its_sentence(preloaded):
    result = subprocess.run(
        [preloaded, DEMO, "--max_stepz", "4"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: command line: there is no setting max_stepz")
    assert "Traceback" not in result.stderr


def test_tokenizer_without_eos_is_refused(tiny_model, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(SystemExit):
        launch.run(DEMO, ["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "run")])
    assert "has no EOS token" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--use_peft", "true", "--lora_target_modules", "q_proj", "lm_head"],
            "adapts the LM head",
        ),
        (["--use_peft", "--lora_target_modules", "query"], "lora_target_modules is ['query']: Target modules"),
        (["--use_peft", "--lora_target_modules", "q_proj", "query"], "lora_target_modules names 'query'"),
        (["--use_peft", "--lora_modules_to_save", "head"], "lora_modules_to_save names 'head'"),
        (["--fused_lm_head", "liger", "--cast_lm_head_to_fp32", "true"], "fused_lm_head is 'liger', but cast_lm_head"),
    ],
)
def test_what_the_model_rules_out_is_one_sentence(words, said, tiny_model, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        launch.run(DEMO, ["--model_name_or_path", tiny_model, "--output_dir", str(folder), *words])
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert not folder.exists()


def test_a_method_that_fails_is_one_sentence(tiny_model, tmp_path, monkeypatch, capfd):
    """It has the line of the function, and is not lost in a traceback."""
    monkeypatch.chdir(REPOSITORY)
    words = "--num_train_problems 32 --num_dev_problems 0 --num_test_problems 0 --eval_strategy no --disable_tqdm true"
    words = [*words.split(), "--model_name_or_path", tiny_model, "--output_dir", str(tmp_path / "run")]
    words += ["--max_completion_length", "4"]
    with pytest.raises(SystemExit) as stop:
        launch.run(DEMO, [*words, "--token_weights", "tests.own_methods:raises"])
    shown = capfd.readouterr().err
    (error,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    line = 1 + (REPOSITORY / "tests/own_methods.py").read_text().splitlines().index(
        '    raise KeyError("no such\\nkey")'
    )
    assert error.startswith("error: token_weights: tests.own_methods:raises fails at step 1: KeyError: ")
    assert error.endswith(f"own_methods.py:{line}.") and stop.value.code == 1 and "Traceback" not in shown


def test_recipe_overrides_reach_the_run(run):
    folder, _ = run
    resolved = {key: setting.value for key, setting in recipe.load(folder / "recipe.yaml").items()}
    demo = {key: setting.value for key, setting in recipe.load(REPOSITORY / DEMO).items()}
    changed = {key for key in resolved if resolved[key] != demo.get(key)}
    overridden = {word[2:] for word in TINY_DEMO if word.startswith("--")}
    assert changed == overridden | {"model_name_or_path", "model_revision", "run_name"}
