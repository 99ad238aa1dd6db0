"""Recipes: both of a file's readings, inheritance, and one sentence for everything that can be wrong with one."""

import dataclasses
import runpy
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
import yaml
from trl import ModelConfig

from entropy_grpo.config import recipe
from entropy_grpo.config.batches import batch_shape
from entropy_grpo.config.grpo import EntropyForkGRPOConfig
from entropy_grpo.config.recipe import RecipeError
from entropy_grpo.config.run import CLASSES as RUN_CLASSES
from entropy_grpo.config.run import RunConfig
from entropy_grpo.config.sft import CLASSES as SFT_CLASSES
from entropy_grpo.runs import yaml12
from entropy_grpo.training.start import Start

from .conftest import REPOSITORY

CLASSES = (RunConfig, EntropyForkGRPOConfig, ModelConfig)
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))


@dataclass
class Small:
    """Stands for the configuration classes where loading those would only be slow."""

    rate: float = 1.0
    steps: int = 1
    name: str = "x"
    on: bool = False
    rewards: list[str] = field(default_factory=list)
    maybe: float | None = None

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}: it must be 0 or more.")


def write(path, text):
    path.write_text(text)
    return path


def settings_of(tmp_path, text, *words):
    return recipe.load(write(tmp_path / "r.yaml", text)) | recipe.overrides(words)


# Every recipe in the repository


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_yaml_and_python(path, monkeypatch):
    """The same file, read by another YAML parser and executed by Python, which must call `main` with its path."""
    text = path.read_text()
    assert text.splitlines()[0] == recipe.FIRST_LINE
    assert text.splitlines()[-1] == recipe.LAST_LINE
    values = yaml.safe_load(text)
    assert values.pop("recipe") == 'r"""'
    assert {"base", *recipe.load(path)} >= set(values)

    import entropy_grpo.launch

    called = []
    monkeypatch.setattr(entropy_grpo.launch, "main", called.append)
    namespace = runpy.run_path(str(path), run_name="__main__")
    assert called == [str(path)]
    body = text[len(recipe.FIRST_LINE) : text.rindex('# """')]
    assert namespace["__annotations__"]["recipe"] == body + "# "
    # A spawned child runs the file again, under another name, and must not start a second training.
    runpy.run_path(str(path), run_name="__mp_main__")
    assert len(called) == 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_sets_known_fields_and_repeats_nothing(path):
    values = yaml.safe_load(path.read_text())
    values.pop("recipe")
    parent = values.pop("base", None)
    classes = SFT_CLASSES if values.get("trainer") == "sft" else CLASSES
    known = {field.name for cls in classes for field in dataclasses.fields(cls)}
    assert set(values) <= known
    if parent is not None:
        inherited = {key: setting.value for key, setting in recipe.load(path.parent / parent).items()}
        assert not {key for key in values if inherited.get(key, ...) == values[key]}, "repeats its parent's value"
        words = "--output_dir unused --use_cpu true --bf16 false".split()  # no GPU is needed to check a recipe
        recipe.build(recipe.load(path) | recipe.overrides(words), CLASSES)


@pytest.mark.parametrize("classes", [CLASSES, SFT_CLASSES])
def test_no_field_is_in_two_classes(classes):
    names = [field.name for cls in classes for field in dataclasses.fields(cls)]
    assert len(names) == len(set(names))


# Reading


def test_child_replaces_parent_over_two_generations(tmp_path):
    write(tmp_path / "a.yaml", "rate: 1.0\nsteps: 1\nname: a\n")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "b.yaml", "base: ../a.yaml\nsteps: 2\nname: b\n")
    settings = recipe.load(write(tmp_path / "c.yaml", "base: sub/b.yaml\nname: c\n"))
    assert recipe.build(settings, [Small]) == [Small(rate=1.0, steps=2, name="c")]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("1.0e-6", 1e-6), ("2E+3", 2000.0), (".5", 0.5), ("3", 3), ("-1e-4", -1e-4)],
)
def test_numbers_are_numbers_in_files_and_on_the_command_line(tmp_path, text, value):
    assert recipe.build(settings_of(tmp_path, f"rate: {text}\n"), [Small])[0].rate == value
    assert recipe.build(settings_of(tmp_path, "steps: 1\n", "--rate", text), [Small])[0].rate == value


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--steps", "4"], Small(steps=4)),
        (["--steps=4", "--name=a=b"], Small(steps=4, name="a=b")),
        (["--on"], Small(on=True)),
        (["--on", "false"], Small(on=False)),
        (["--rewards", "a", "b"], Small(rewards=["a", "b"])),
        (["--rewards", "[a]"], Small(rewards=["a"])),
        (["--rewards", "a"], Small(rewards=["a"])),
        (["--name", "7"], Small(name="7")),
        (["--name", "no"], Small(name="no")),
        (["--name", "007"], Small(name="007")),
        (["--name", "data #2.jsonl"], Small(name="data #2.jsonl")),
        (["--name", "#2.jsonl"], Small(name="#2.jsonl")),
        (["--name", "a: b.jsonl"], Small(name="a: b.jsonl")),
        (["--name", "[x]"], Small(name="[x]")),
        (["--name", " a.jsonl"], Small(name=" a.jsonl")),
        (["--name", "a\nb.jsonl"], Small(name="a\nb.jsonl")),
        (["--name", "a\rb.jsonl"], Small(name="a\rb.jsonl")),
        (["--name", "&a b.jsonl"], Small(name="&a b.jsonl")),
        (["--name", "!!str b.jsonl"], Small(name="!!str b.jsonl")),
        (["--name", "\ufeffb.jsonl"], Small(name="\ufeffb.jsonl")),
        (["--name", "b\udcff.jsonl"], Small(name="b\udcff.jsonl")),
        (["--name", '"a\\nb"'], Small(name="a\nb")),
        (["--rewards", "- b.jsonl"], Small(rewards=["- b.jsonl"])),
        (["--rewards", " b.jsonl", "&c d"], Small(rewards=[" b.jsonl", "&c d"])),
        (["--name=--x=1.jsonl"], Small(name="--x=1.jsonl")),
        (["--rewards", "a: b", "c #d"], Small(rewards=["a: b", "c #d"])),
        (["--maybe", "null"], Small(maybe=None)),
        (["--rate", "-2.5"], Small(rate=-2.5)),
    ],
)
def test_overrides(tmp_path, words, expected):
    assert recipe.build(settings_of(tmp_path, "steps: 1\n", *words), [Small]) == [expected]


@pytest.mark.parametrize("text", ["no", "y", "off", "1:30", "2026-01-01"])
def test_words_are_text_as_in_yaml_1_2(tmp_path, text):
    """`save_strategy: no` is a strategy; YAML 1.1 would make it false."""
    assert recipe.build(settings_of(tmp_path, f"name: {text}\non: true\n"), [Small]) == [Small(name=text, on=True)]


def test_a_scalar_is_a_list_of_one_where_a_list_belongs(tmp_path):
    """In a file as on the command line, and in the resolved recipe it is a list."""
    settings = recipe.checked(settings_of(tmp_path, "rewards: a\n"), [Small])
    assert settings["rewards"].value == ["a"]
    assert recipe.build(settings_of(tmp_path, "steps: 1\n", "--rewards", "a"), [Small])[0].rewards == ["a"]


# Refusing


@pytest.mark.parametrize(
    ("text", "words", "parts"),
    [
        ("name: x\n\nstepz: 1\n", [], ["r.yaml:3: ", "stepz", "1", "Did you mean steps?"]),
        ("steps: '5'\n", [], ["r.yaml", "steps is '5'", "a string", "int", "write 5 without quotes"]),
        ("rate: '1e-6'\n", [], ["r.yaml", "rate is '1e-6'", "a string", "float", "write 1e-6 without quotes"]),
        ("steps: 1.5\n", [], ["r.yaml", "steps is 1.5", "a number", "int"]),
        ("steps: true\n", [], ["r.yaml", "steps is True", "a boolean", "int"]),
        ("steps:\n", [], ["r.yaml", "steps is None", "empty"]),
        ("on: 'true'\n", [], ["r.yaml", "on is 'true'", "bool"]),
        ("rewards: {a: 1}\n", [], ["r.yaml", "rewards is {'a': 1}", "a mapping", "list[str]"]),
        ("rewards: 3\n", [], ["r.yaml", "rewards is 3", "list[str]"]),
        ("name: 3\n", [], ["r.yaml", "name is 3", "str"]),
        ("steps: -1\n", [], ["r.yaml", "steps is -1: it must be 0 or more"]),
        ("steps: 1\n", ["--steps", "-1"], ["command line", "steps is -1: it must be 0 or more"]),
        ("steps: 1\n", ["--stepz", "2"], ["command line", "stepz", "Did you mean steps?"]),
        ("steps: 1\n", ["--steps", "two"], ["command line", "steps is 'two'", "int"]),
        ("steps: 1\n", ["--steps", "1", "--steps", "2"], ["command line", "--steps is given twice"]),
        ("steps: 1\n", ["4"], ["command line", "'4' is a value without a key"]),
        ("steps: 1\n# two\nsteps: 2\n", [], ["r.yaml:3: steps is given twice: remove one of the two."]),
        ("rewards: [{a: 1, b: 2,\n  a: 3}]\n", [], ["r.yaml:2: a is given twice"]),
        ("1: 2\n", [], ["r.yaml:1: there is no setting 1 (value 2)."]),
        ("- 1\n", [], ["r.yaml", "a mapping of keys to values", "a list"]),
        ("a: [1\n", [], ["r.yaml:2: the file is not YAML: expected ',' or ']'"]),
        ("steps: 1\n---\nsteps: 2\n", [], ["r.yaml:2: the file is not YAML", "another document"]),
        ("name: \0\n", [], ["r.yaml: the file is not YAML: unacceptable character"]),
        ("base: other.yaml\n", [], ["other.yaml", "base of", "r.yaml", "no such recipe file"]),
        ("base: 3\n", [], ["r.yaml", "base is 3"]),
    ],
)
def test_refusals_are_one_sentence(tmp_path, text, words, parts):
    with pytest.raises(RecipeError) as refusal:
        recipe.build(settings_of(tmp_path, text, *words), [Small])
    message = str(refusal.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_cycle_is_named(tmp_path):
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    with pytest.raises(RecipeError, match=r"is its own base \(.*a.yaml -> .*b.yaml -> .*a.yaml\)"):
        recipe.load(tmp_path / "a.yaml")


def test_values_cannot_run_code(tmp_path):
    with pytest.raises(RecipeError, match="not YAML"):
        recipe.load(write(tmp_path / "r.yaml", "name: !!python/object/apply:os.system ['true']\n"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output_dir", ""], r"--output_dir is empty: write a value, or null"),
        (["--resume_from_checkpoint="], r"--resume_from_checkpoint is empty"),
        (["--rewards", "accuracy", ""], r"--rewards is empty"),
        (["--optim", "nope"], r"optim is 'nope': nope is not a valid OptimizerNames"),
        (["--eval_benchmark_temperature", ".nan"], r"eval_benchmark_temperature is nan: it must be a number"),
        (["--reward_weights", "1", ".nan"], r"reward_weights is \[1, nan\]: it must be a number"),
        (["--use_peft", "true", "--lora_r", "0"], r"lora_r is 0: it must be 1 or more"),
        (["--use_peft", "true", "--lora_alpha", "0"], r"lora_alpha is 0: it must be 1 or more"),
        (["--dtype", "float99"], r"dtype is 'float99': choose auto, bfloat16"),
    ],
)
def test_values_that_others_would_refuse_later_are_named(words, said):
    with pytest.raises(RecipeError, match=f"^command line: {said}"):
        recipe.build(recipe.load("demo_cpu") | recipe.overrides(words), RUN_CLASSES)


def start(**settings):
    given = {name: recipe.Setting(value, "here") for name, value in settings.items()}
    words = ["--dataset_name", "embedded:number_walk", "--use_cpu", "true", "--bf16", "false"]
    return Start(recipe.overrides(words) | given, "demo", RUN_CLASSES)


def test_a_run_without_name_and_folder_has_those_of_its_recipe():
    settings = start(run_name=None, output_dir=None).settings
    assert "output_dir" not in settings and settings["run_name"].value == "demo"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval_strategy": "steps", "num_dev_problems": 0}, "eval_strategy is 'steps', but num_dev_problems is 0"),
        ({"reward_weights": [1.0, 2.0]}, "reward_weights has 2 numbers, but rewards names 1"),
        (
            {"allow_changes": ["sed"]},
            r"allow_changes names 'sed', which is no setting: correct it. Did you mean seed\?",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_at_the_start(settings, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        start(**settings)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_a_name_does_not_lead_out_of_the_folder_of_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    one = start(run_name=name)
    with pytest.raises(ValueError, match=f"^run_name is '{name}', a path: name the run's folder with output_dir"):
        with ExitStack() as held:
            one.claim_folder(held)


# Writing


def test_dump_is_the_same_recipe(tmp_path):
    """In both readings, also for the values that YAML or Python might take for something else."""
    rewards = '''[a, 'b: c', "d'", 'ü\\n', '#', "--- x\\n--- y", '"""', '"']'''
    settings = settings_of(tmp_path, f"rate: 1e-6\nsteps: 3\nname: 'no'\non: false\nmaybe:\nrewards: {rewards}\n")
    copy = write(tmp_path / "copy.yaml", recipe.dump(settings))
    assert recipe.build(recipe.load(copy), [Small]) == recipe.build(settings, [Small])
    compile(copy.read_text(), "copy", "exec")
    assert copy.read_text().splitlines()[0] == recipe.FIRST_LINE
    assert copy.read_text().splitlines()[-1] == recipe.LAST_LINE


TEXTS = "no y On NULL ~ 7 1e-6 0o17 0x1f 1_000 1:30 2026-01-01 .inf .5 = << true null -".split()


@pytest.mark.parametrize(
    "value",
    [*TEXTS, "", " a", "a: b", "- a", "\ud7ff", "a\tb", "a\x85b", "a\u2028", '"""', 1e-6, -2.5e300, 3, True, None],
)
def test_dump_means_the_same_to_readers_of_yaml_1_1(value):
    """Other tools read a run's recipe with PyYAML."""
    text = recipe.dump({"name": recipe.Setting(value, "here"), "list": recipe.Setting([value], "here")})
    for values in (yaml.safe_load(text), yaml12.parse(text)):
        assert (values["name"], values["list"]) == (value, [value])
        assert type(values["name"]) is type(value)


def test_dump_of_checked_settings_needs_no_second_guess(tmp_path):
    """On the command line `7` may be text and a word a list of one; in a file they are not: the dump is explicit."""
    settings = recipe.checked(settings_of(tmp_path, "steps: 2\n", "--name", "7", "--rewards", "a"), [Small])
    copy = write(tmp_path / "copy.yaml", recipe.dump(settings))
    assert recipe.build(recipe.load(copy), [Small]) == [Small(steps=2, name="7", rewards=["a"])]


def test_comments_that_would_end_the_string_are_refused():
    with pytest.raises(RecipeError, match="cannot hold"):
        recipe.dump({}, notes=['a """ in a note'])


# The method's own refusals


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--top_entropy_quantile", "0"], ["top_entropy_quantile is 0", "(0, 1]"]),
        (["--top_entropy_quantile", "1.2"], ["top_entropy_quantile is 1.2"]),
        (["--entropy_selection", "topp"], ["entropy_selection is 'topp'", "top, bottom, random"]),
        (["--entropy_scope", "window"], ["entropy_scope is 'window'", "micro_batch, global, rollout"]),
        (["--fused_lm_head", "cce"], ["fused_lm_head is 'cce'", "auto, liger, trl"]),
        (
            ["--entropy_selection", "gradient_norm", "--fused_lm_head", "trl"],
            ["needs fused_lm_head 'auto' or 'liger'"],
        ),
        (
            ["--entropy_selection", "gradient_norm", "--loss_type", "cispo", "--epsilon_high", "5.0"],
            ["entropy_selection is 'gradient_norm' but loss_type is 'cispo'", "use loss_type"],
        ),
        (["--loss_type", "ppo"], ["loss_type is 'ppo'", "vespo"]),
        (["--loss_type", "cispo"], ["epsilon_high is 0.28", "'cispo'", "5.0"]),
        (["--loss_type", "cispo", "--epsilon_high", "null"], ["epsilon_high is 0.2 ", "'cispo'", "5.0"]),
        (
            ["--loss_type", "cispo", "--epsilon_high", "5.0", "--epsilon", "0.1"],
            ["epsilon is 0.1, but loss_type is 'cispo'", "leave epsilon out"],
        ),
        (["--loss_type", "sapo", "--delta", "10.0"], ["delta is 10.0", "'sapo'", "set delta to null"]),
        (["--loss_type", "luspo"], ["importance_sampling_level is 'token'", "'luspo'", "'sequence'"]),
        (["--loss_type", "vespo", "--importance_sampling_level", "sequence"], ["'vespo'", "to 'token'"]),
        (
            ["--loss_type", "vespo", "--use_vllm", "--vllm_importance_sampling_mode", "sequence_mask"],
            ["vllm_importance_sampling_mode is 'sequence_mask'", "token_truncate"],
        ),
        (["--entropy_denominator", "some"], ["entropy_denominator is 'some'", "kept, all"]),
        (
            ["--entropy_selection", "bottom", "--top_entropy_quantile", "1.0"],
            ["entropy_selection is 'bottom'", "below 1"],
        ),
        (["--loss_type", "grpo"], ["entropy_denominator is 'kept'", "loss_type is 'grpo'", "dapo"]),
        (["--per_device_train_batch_size", "31"], ["124", "num_generations (8)"]),
        (["--gradient_accumulation_steps", "3"], ["steps_per_generation is 4", "gradient_accumulation_steps is 3"]),
        (["--top_p", "0.95"], ["top_p is 0.95", "set top_p to 1.0"]),
        (["--top_k", "20"], ["top_k is 20", "set top_k to 0"]),
        (["--min_p", "0.05"], ["min_p is 0.05", "set min_p to None"]),
        (["--repetition_penalty", "1.1"], ["repetition_penalty is 1.1", "set repetition_penalty to 1.0"]),
        (["--use_vllm", "--top_p", "0.95"], ["top_p is 0.95", "set top_p to 1.0"]),
        (["--generation_kwargs", "{top_k: 20}"], ["generation_kwargs: top_k is 20", "set top_k to 0"]),
        (["--generation_kwargs", "{temperature: 0.6}"], ["temperature is 0.6", "set temperature to 1.0"]),
        (["--generation_kwargs", "{presence_penalty: 0.5}"], ["presence_penalty is 0.5", "to 0.0"]),
        (
            ["--use_transformers_continuous_batching", "true"],
            ["use_transformers_continuous_batching is true", "half precision", "leave it out"],
        ),
        (
            ["--sync_ref_model", "true", "--beta", "0.1"],
            ["sync_ref_model is true", "the reference policy", "leave it out"],
        ),
        (["--prompts_per_rollout", "16"], ["steps_per_rollout is None", "set prompts_per_rollout"]),
        (["--prompts_per_rollout", "32", "--steps_per_rollout", "2"], ["steps_per_generation is 4", "leave it out"]),
        (["--num_logged_samples", "-1"], ["num_logged_samples is -1"]),
        (["--num_dev_problems", "-1"], ["num_dev_problems is -1"]),
        (["--dataset_name", "null"], ["dataset_name"]),
        (["--max_completion_length", "100000000"], ["generation_batch_size is 128", "max_completion_length"]),
    ],
)
def test_method_refusals_name_field_value_and_fix(words, parts):
    settings = recipe.load(REPOSITORY / "recipes" / "demo_cpu.yaml") | recipe.overrides(words)
    with pytest.raises(RecipeError) as refusal:
        recipe.build(settings | recipe.overrides(["--output_dir", "unused"]), CLASSES)
    for part in parts:
        assert part in str(refusal.value), str(refusal.value)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--top_p", "1.0", "--top_k", "-1", "--min_p", "0.0", "--repetition_penalty", "1.0"],
        ["--temperature", "0.7", "--generation_kwargs", "{temperature: 0.7}"],
        ["--use_vllm", "--vllm_importance_sampling_mode", "sequence_mask"],
    ],
)
def test_sampling_that_changes_nothing_is_allowed(words):
    settings = recipe.load(REPOSITORY / "recipes" / "demo_cpu.yaml") | recipe.overrides(words)
    recipe.build(settings | recipe.overrides(["--output_dir", "unused"]), CLASSES)


def test_vllm_is_corrected_token_by_token_unless_asked_otherwise():
    assert EntropyForkGRPOConfig("unused", use_cpu=True, bf16=False).vllm_importance_sampling_mode == "token_truncate"


PINNED = "model_name_or_path: Qwen/Qwen3-8B-Base\nmodel_revision: abc\n"


@pytest.mark.parametrize(
    "child, words, revision",
    [
        ("", [], "abc"),
        ("model_name_or_path: Qwen/Qwen3-4B-Base\n", [], "main"),
        ("model_name_or_path: Qwen/Qwen3-4B-Base\nmodel_revision: def\n", [], "def"),
        ("model_revision: def\n", [], "def"),
        ("", ["--model_name_or_path", "Qwen/Qwen3-4B-Base"], "main"),
        ("", ["--model_name_or_path", "Qwen/Qwen3-4B-Base", "--model_revision", "def"], "def"),
        ("model_name_or_path: Qwen/Qwen3-4B-Base\nmodel_revision: def\n", ["--model_name_or_path", "x"], "main"),
    ],
)
def test_a_commit_belongs_to_the_model_beside_it(tmp_path, child, words, revision):
    (tmp_path / "parent.yaml").write_text(PINNED)
    (tmp_path / "child.yaml").write_text(f"base: parent.yaml\n{child}")
    settings = recipe.load(tmp_path / "child.yaml") | recipe.overrides(words)
    (model,) = recipe.build(settings, (ModelConfig,))
    assert (model.model_revision or "main") == revision


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 16, 64])
def test_batches_follow_from_the_rollout(processes):
    """The paper's: 512 prompts x 16 responses, 16 optimiser steps of 512 responses, whatever the processes."""
    steps_per_generation, accumulation = batch_shape(512, 16, 16, 2, processes)
    assert accumulation * 2 * processes == 512
    assert steps_per_generation * 2 * processes == 512 * 16
    assert steps_per_generation == 16 * accumulation


def test_settings_get_the_batches_of_the_rollout():
    shape = {"num_generations": 16, "per_device_train_batch_size": 2}
    args = EntropyForkGRPOConfig(
        "unused", use_cpu=True, bf16=False, prompts_per_rollout=32, steps_per_rollout=4, **shape
    )
    assert (args.steps_per_generation, args.gradient_accumulation_steps) == (256, 64)
    assert args.generation_batch_size == 32 * 16
    again = dataclasses.replace(args, generation_batch_size=None)
    assert again.gradient_accumulation_steps == 64


@pytest.mark.parametrize(
    ("processes", "per_device", "words"),
    [
        (3, 2, ["3 processes", "use 1, 2, 4, 8, 16, 32, 64, 128, 256 processes"]),
        (1, 3, ["per_device_train_batch_size is 3", "set it to a divisor of 512"]),
    ],
)
def test_processes_that_cannot_share_a_step_are_refused(processes, per_device, words):
    with pytest.raises(ValueError) as refusal:
        batch_shape(512, 16, 16, per_device, processes)
    assert all(word in str(refusal.value) for word in words), refusal.value
    with pytest.raises(ValueError, match="steps_per_rollout is 7"):
        batch_shape(512, 7, 16, 2, 1)
