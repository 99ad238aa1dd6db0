"""Settings of a resumed run that differ from those of the checkpoint.

Some settings do not concern the training itself, but files, measurements and devices. A resumed run takes changes of
them. All other changes are refused unless `allow_changes` names the setting. Every change is recorded.
"""

import dataclasses
import json
import re
from collections.abc import Iterable
from typing import Any

from ..registry import nearest
from ..runs import files
from ..runs.files import Row
from ..runs.folder import SECRETS, RunFolder

# Settings of a launch that are no part of a recipe: paths, permitted changes and secrets.
APART = ("output_dir", "resume_from_checkpoint", "allow_changes", *SECRETS)
# Value in the checkpoint and value now, by the name of the setting.
Changes = dict[str, tuple[Any, Any]]

# Settings of files, logs, measurements, uploads and devices: full names, or beginnings that end with `_`.
FREE = (
    "run_name project report_to disable_tqdm log_ logging_ trackio_ hub_ push_to_hub num_logged_samples "
    "num_completions_to_print watch save_ keep_weights enable_jit_checkpoint eval_ per_device_eval_batch_size "
    "num_generations_eval bf16_full_eval fp16_full_eval prediction_loss_only include_for_metrics batch_eval_metrics "
    "skip_memory_metrics accelerate_config use_cpu ddp_ dataloader_num_workers dataloader_pin_memory "
    "dataloader_prefetch_factor dataloader_persistent_workers dataset_num_proc gradient_checkpointing "
    "gradient_checkpointing_kwargs torch_compile torch_empty_cache_steps fused_lm_head use_liger_kernel "
    "liger_kernel_config attn_implementation debug "
    "vllm_server_ vllm_group_port vllm_gpu_memory_utilization vllm_tensor_parallel_size vllm_enable_sleep_mode "
    "vllm_max_num_seqs token_budget "
    "max_skipped_steps reward_seconds"
).split()
_FREE = re.compile("|".join(f"{name}.*" if name.endswith("_") else name for name in FREE))
# Free if the learning rate does not depend on the number of steps.
LENGTH = ("max_steps", "num_train_epochs")
CONSTANT = ("constant", "constant_with_warmup")
# Free if the recipe gives the batch of an optimiser step without it.
BATCH, TOTALS = "per_device_train_batch_size", ("prompts_per_rollout", "responses_per_step")


def plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value, default=str))


def defaults(classes: Iterable[type]) -> Row:
    """Default of every setting that has one."""
    found: Row = {}
    for field in (field for one in classes for field in dataclasses.fields(one) if field.init):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return plain(found)


def compare(before: Row, now: Row, classes: Iterable[type]) -> Changes:
    """Settings whose value is another one now, defaults included.

    Args:
        before: the settings of the checkpoint.
        now: the settings of this run.
        classes: the dataclasses that have the settings as fields.
    """
    usual = defaults(classes)
    old = usual | {name: value for name, value in before.items() if name in usual or name in now}
    new = usual | plain(now)
    names = sorted((old.keys() | new.keys()) - set(APART))
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def is_apart(name: str, settings: Row) -> bool:
    """Return whether a setting is no part of the training, but of files, measurements and devices.

    Args:
        settings: the other settings of the run.
    """
    if name == BATCH:
        return any(settings.get(total) for total in TOTALS)
    return name in APART or _FREE.fullmatch(name) is not None


def is_free(name: str, settings: Row) -> bool:
    """Return whether a resumed run may change a setting unasked, given its other settings."""
    if name in LENGTH:
        warmup = settings.get("warmup_steps", 0)
        is_share = isinstance(warmup, float) and 0 < warmup < 1
        return settings.get("lr_scheduler_type", "linear") in CONSTANT and not is_share
    return name not in APART and is_apart(name, settings)


def check_names(allowed: Iterable[str], classes: Iterable[type], others: Iterable[str] = ()) -> None:
    """Refuse names in `allow_changes` that are no settings.

    Args:
        classes: the dataclasses that have the settings as fields.
        others: further names.

    Raises:
        ValueError: the message names the nearest setting.
    """
    known = {field.name for one in classes for field in dataclasses.fields(one)} | set(others)
    for name in allowed:
        if name not in known:
            raise ValueError(f"allow_changes names {name!r}, which is no setting: correct it.{nearest(name, known)}")


def check(changes: Changes, before: Row, allowed: Iterable[str], where: str) -> None:
    """Refuse changes that concern the training and are not allowed by name.

    Args:
        before: the settings of the checkpoint.
        allowed: names of further settings that may change.
        where: the checkpoint, as the message names it.

    Raises:
        ValueError: the message has every refused setting with both values.
    """
    refused = [name for name in changes if not is_free(name, before) and name not in allowed]
    if not refused:
        return
    shown = ", ".join(f"{name} is {changes[name][1]!r} and was {changes[name][0]!r}" for name in refused)
    raise ValueError(
        f"{shown} in {where}, which this run continues: leave {'it' if len(refused) == 1 else 'them'} as before, or "
        f"allow the change in allow_changes: --allow_changes {' '.join(refused)}."
    )


# The record of a run, `changes.json`: a row for each change, {"from_step", "setting", "before", "now"}.


def read(folder: RunFolder, until: int | None = None) -> list[Row]:
    """Return the changes of a run in the order of their steps, up to an optimiser step or all of them."""
    rows = files.read_json(folder.changes).get("changes", [])
    return [row for row in rows if until is None or row["from_step"] <= until]


def record(folder: RunFolder, step: int, changed: Changes) -> None:
    """Record the changes of a run that continues from a step. Earlier records of later steps are void."""
    new = [
        {"from_step": step + 1, "setting": name, "before": before, "now": now}
        for name, (before, now) in changed.items()
    ]
    if new or folder.changes.exists():
        files.write_json(folder.changes, {"changes": [*read(folder, until=step), *new]})


def sentences(rows: Iterable[Row]) -> list[str]:
    """Return a sentence about each change, on one line."""
    return [
        f"{row['setting']} is {json.dumps(row['now'])} from step {row['from_step']} on, and was "
        f"{json.dumps(row['before'])} before."
        for row in rows
    ]
