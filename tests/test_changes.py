"""Settings that a resumed run may change, must ask for, and records."""

import dataclasses
from types import SimpleNamespace

import pytest
from datasets import Dataset

from entropy_grpo.config import changes, recipe, run, sft
from entropy_grpo.config.recipe import Setting
from entropy_grpo.data.problems import Problems
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.training.claim import PROGRAM
from entropy_grpo.training.resume import FITTED, OF_GROUPS
from entropy_grpo.training.start import check_data

BEFORE = {"max_steps": 40, "learning_rate": 1e-5, "lr_scheduler_type": "constant", "rewards": ["accuracy"]}


def settings(**values):
    return recipe.checked({name: Setting(value, "here") for name, value in values.items()}, run.CLASSES)


def compare(now, before=BEFORE, classes=run.CLASSES):
    return changes.compare(before, {name: setting.value for name, setting in settings(**now).items()}, classes)


def test_changes_are_found_through_defaults():
    assert compare(BEFORE) == {}
    assert (
        compare(BEFORE | {"beta": 0, "save_steps": 500.0, "rewards": "accuracy"}) == {}
    )  # defaults, and one in a list
    without = {name: value for name, value in BEFORE.items() if name != "learning_rate"}
    default = changes.defaults(run.CLASSES)["learning_rate"]
    assert compare(without) == {"learning_rate": (1e-5, default)} and default == 1e-6
    assert compare(BEFORE | {"save_steps": 20}) == {"save_steps": (500, 20)}
    # A setting of an earlier version, which there is no more.
    assert compare(BEFORE, BEFORE | {"of_yore": 3}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("logging_steps", 7),
            ("save_steps", 7),
            ("save_total_limit", 3),
            ("report_to", "tensorboard"),
            ("run_name", "x"),
        ),
        *(("eval_steps", 3), ("eval_benchmarks", ["aime24"]), ("num_generations_eval", 2), ("push_to_hub", True)),
        *(("max_steps", 90), ("num_train_epochs", 9.0), ("accelerate_config", "accelerate_configs/fsdp2.yaml")),
        *(("watch", {"clip_rate": "off"}), ("vllm_server_host", "node8"), ("gradient_checkpointing", False)),
    ],
)
def test_harmless_changes_are_taken(name, value):
    found = compare(BEFORE | {name: value})
    assert list(found) == [name]
    changes.check(found, BEFORE, [], "checkpoint-3")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("learning_rate", 2e-5), ("top_entropy_quantile", 0.5), ("epsilon_high", 0.3), ("beta", 0.1), ("seed", 7)),
        *(("rewards", ["dapo_accuracy"]), ("dataset_name", "gsm8k"), ("num_dev_problems", 8), ("lora_r", 4)),
        *(("model_name_or_path", "other"), ("temperature", 0.9), ("num_generations", 4), ("optim", "sgd")),
        *(("vllm_importance_sampling_mode", "sequence_mask"), ("lr_scheduler_type", "linear"), ("use_vllm", True)),
        *(("per_device_train_batch_size", 2), ("max_completion_length", 9), ("loss_type", "bnpo"), ("bf16", False)),
    ],
)
def test_changes_of_what_is_trained_are_refused_unless_they_are_asked_for(name, value):
    found = compare(BEFORE | {name: value})
    with pytest.raises(ValueError, match=rf"^{name} is .* and was .* in checkpoint-3, .* --allow_changes {name}\.$"):
        changes.check(found, BEFORE, [], "checkpoint-3")
    changes.check(found, BEFORE, [name], "checkpoint-3")


def test_all_refused_changes_are_named_at_once():
    found = compare(BEFORE | {"beta": 0.1, "seed": 7, "save_steps": 3})
    with pytest.raises(ValueError, match=r"beta is 0.1 and was 0.0, seed is 7 and was 42 in .* them .* beta seed\.$"):
        changes.check(found, BEFORE, [], "checkpoint-3")


def test_length_is_free_where_the_learning_rate_does_not_follow_it():
    before = BEFORE | {"lr_scheduler_type": "cosine"}
    with pytest.raises(ValueError, match="max_steps is 90 and was 40"):
        changes.check(compare(before | {"max_steps": 90}, before), before, [], "it")
    del before["lr_scheduler_type"]  # TRL's is linear
    assert not changes.is_free("max_steps", before)
    assert changes.is_free("max_steps", BEFORE | {"warmup_steps": 10})
    assert not changes.is_free("max_steps", BEFORE | {"warmup_steps": 0.1})  # a share of the run


def test_the_micro_batch_is_free_where_the_recipe_gives_the_whole():
    before = BEFORE | {"prompts_per_rollout": 8, "steps_per_rollout": 2}
    changes.check(compare(before | {"per_device_train_batch_size": 2}, before), before, [], "it")


def test_every_free_name_is_a_setting():
    names = {field.name for one in (*run.CLASSES, *sft.CLASSES) for field in dataclasses.fields(one)}
    for free in changes.FREE:
        assert any(name.startswith(free) if free.endswith("_") else name == free for name in names), free


def test_what_rollouts_and_waiting_groups_fit_are_settings_that_do_not_change_unasked():
    names = {field.name for one in run.CLASSES for field in dataclasses.fields(one)} | set(PROGRAM)
    assert names >= OF_GROUPS | set(FITTED)
    assert [name for name in OF_GROUPS if changes.is_free(name, {})] == []


def test_changes_are_recorded_and_void_with_their_steps(tmp_path):
    folder = RunFolder(tmp_path)
    changes.record(folder, 10, {})
    assert not folder.changes.exists()
    changes.record(folder, 10, {"learning_rate": (1e-5, 2e-5)})
    changes.record(folder, 20, {"save_steps": (500, 7)})
    changes.record(folder, 20, {"save_steps": (500, 8)})  # from the same checkpoint again
    assert changes.sentences(changes.read(folder)) == [
        "learning_rate is 2e-05 from step 11 on, and was 1e-05 before.",
        "save_steps is 8 from step 21 on, and was 500 before.",
    ]
    changes.record(folder, 10, {})  # from the first checkpoint, as it was
    assert changes.read(folder) == []


def test_notes_are_comments_of_the_recipe(tmp_path):
    text = recipe.dump(settings(**BEFORE), ['rewards is ["a"] from step 3 on'])
    (tmp_path / "recipe.yaml").write_text(text)
    compile(text, "recipe.yaml", "exec")
    assert '# rewards is ["a"] from step 3 on\n' in text
    assert {key: setting.value for key, setting in recipe.load(tmp_path / "recipe.yaml").items()} == BEFORE


def test_other_problems_of_the_same_name_are_refused(tmp_path):
    folder, rows = RunFolder(tmp_path), {"prompt": ["a", "b"], "solution": ["1", "2"]}

    def digest(rows, checkpoint="checkpoint-3", allowed=()):
        args = SimpleNamespace(resume_from_checkpoint=checkpoint)
        problems = Problems(Dataset.from_dict(rows), None, None, {})
        return check_data(problems, args, folder, list(allowed))

    first = digest(rows, None)
    files.write_json(folder.data, {"digest": first})
    assert digest(rows) == digest(rows | {"source": ["x", "y"]}) == first
    corrected = rows | {"solution": ["1", "3"]}
    with pytest.raises(ValueError, match=r"other problems than dataset_name has .* --allow_changes dataset_name\.$"):
        digest(corrected)
    assert digest(corrected, allowed=["dataset_name"]) != first
