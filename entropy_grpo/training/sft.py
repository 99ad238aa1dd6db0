"""Cold start: supervised fine-tuning on a teacher's right responses, for models that solve too few problems for RLVR.

arXiv 2506.01939 gives Llama-3.1-8B a cold start. The run folder lists its problems, so that the following training can
exclude them (`decontaminate_against`). Loss, batches and checkpoints are TRL's.
"""

import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging
from trl import SFTTrainer, get_quantization_config

from ..config import recipe
from ..config.recipe import FILE_NAME, RecipeError, Setting, Settings
from ..config.sft import CLASSES, SFTRunConfig
from ..data.filters import normalised
from ..data.problems import evaluation_questions, load_columns
from ..data.prompts import render
from ..data.sources import question_text
from ..grading import boxed
from ..grading.pool import Grader, worker_count
from ..models.adapters import check_installed, check_quantised, check_resumed, check_targets, lora_config
from ..models.load import (
    check_ends,
    load_tokenizer,
    model_init_kwargs,
    resolve,
    resolve_snapshot,
    restore_name,
)
from ..monitoring.callbacks import RunRecorder
from ..runs import files
from .checkpoints import find_checkpoint, sealing
from .fsdp2 import Float32Results
from .requirements import check_packages, check_processes
from .setup import claim_folder, finish, save_whole, shards, write_recipe

GRADED_AT_ONCE = 1024


class Imitation(SFTTrainer):
    """TRL's trainer, whose checkpoints are sealed."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        about = {"step": self.state.global_step, "num_processes": self.accelerator.num_processes}
        with sealing(self, folder, about):
            super()._save_checkpoint(model, trial)


def main(settings: Settings, name: str, held: ExitStack) -> None:
    """Fine-tune by the settings. `name` is the run's name if the settings name none.

    What must last as long as the run, such as the lock of its folder, is entered into `held`.
    """
    settings = recipe.checked({"run_name": Setting(name, FILE_NAME)} | settings, CLASSES)
    check_processes(settings)
    # The arguments themselves need deepspeed.
    check_packages({name: settings[name] for name in ("deepspeed",) if name in settings})
    run_config, args, model_config = recipe.build(settings, CLASSES)
    resumes = args.resume_from_checkpoint is not None
    try:
        check_quantised(model_config, False, shards())
        check_packages(settings)
        check_installed(model_config)
        folder = claim_folder(args, settings, resumes, held)
        args.resume_from_checkpoint = find_checkpoint(args, settings)
        check_resumed(args.resume_from_checkpoint, model_config)
        rows = load_rows(run_config)
        named = resolve(model_config.model_name_or_path, args.seed, "model_name_or_path")
        model_path = resolve_snapshot(named, model_config)
        tokenizer = load_tokenizer(model_path, model_config.model_revision, "model_name_or_path")
        check_ends(tokenizer, model_path)
        check_targets(model_path, model_config)
        taken, origin = choose(run_config, rows, tokenizer, args.max_length, args.seed)
        args.model_init_kwargs = {**(args.model_init_kwargs or {}), **model_init_kwargs(model_config)}
        trainer = Imitation(
            model=model_path,
            args=args,
            train_dataset=imitated(run_config, rows.select(taken)),
            processing_class=tokenizer,
            peft_config=lora_config(model_config),
            quantization_config=get_quantization_config(model_config),
            callbacks=[Float32Results(), RunRecorder()],
        )
    except ValueError as error:
        raise RecipeError(str(error)) from error
    restore_name(trainer.model, named, model_config.model_revision)
    if trainer.is_world_process_zero() and args.resume_from_checkpoint is None:
        write_recipe(settings, folder)
        files.write_json(folder.data, origin)
        files.replace_jsonl(folder.problems, ({"problem": rows[i]["prompt"]} for i in taken))
    logging.disable_progress_bar()  # of the files that every checkpoint writes
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    save_whole(trainer)
    if trainer.is_world_process_zero():
        print(f"\nrun folder  {folder.path}\nproblems    {folder.problems}")
    finish(trainer)


def load_rows(config: SFTRunConfig) -> Dataset:
    """Rows of the teacher's responses, with the columns `prompt`, `response` and `solution`.

    Raises:
        ValueError: the data set has no column `response_column`, or its prompts are messages.
    """
    rows = load_columns(config, response_column=config.response_column)
    if not isinstance(rows[0]["prompt"], str):
        raise ValueError(
            f"dataset_name is {config.dataset_name!r}, whose {config.prompt_column} holds messages: a cold start "
            "takes prompts as text, with prompt_template around them."
        )
    return rows


def imitated(config: SFTRunConfig, rows: Dataset) -> Dataset:
    """TRL's columns `prompt` and `completion`. TRL appends EOS, and only completions have a loss."""
    return Dataset.from_dict(
        {
            "prompt": [render(config.prompt_template, prompt) for prompt in rows["prompt"]],
            "completion": list(rows["response"]),
        }
    )


def choose(
    config: SFTRunConfig, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, seed: int
) -> tuple[list[int], dict[str, Any]]:
    """Choose the rows to imitate: `num_responses` problems at random, each with its first right response that fits.

    Args:
        max_length: TRL's limit in tokens of prompt, response and EOS. A response beyond it would be cut off, and would
            teach the model never to end.
        seed: seed of the draw. arXiv 2506.01939 draws its 10,000 responses at random.

    Returns:
        (positions of the rows to imitate in rising order, record of the choice for `data.json`).

    Raises:
        ValueError: there are fewer than `num_responses` such responses, or none.
    """
    questions = [normalised(question_text(prompt)) for prompt in rows["prompt"]]
    reasons = {i: "wrong" for i, right in enumerate(_graded(config, rows)) if not right}

    def left() -> list[int]:
        return [i for i in range(len(rows)) if i not in reasons]

    for name in config.decontaminate_against:
        excluded = evaluation_questions(name)
        reasons |= {i: f"in {name}" for i in left() if questions[i] in excluded}
    if max_length is not None and (kept := left()):
        texts = imitated(config, rows.select(kept))
        whole = tokenizer([p + c for p, c in zip(texts["prompt"], texts["completion"], strict=True)])["input_ids"]
        too_long = {i for i, ids in zip(kept, whole, strict=True) if len(ids) + 1 > max_length}
        reasons |= dict.fromkeys(too_long, f"over {max_length} tokens")
    first: dict[str, int] = {}
    for i in left():
        first.setdefault(questions[i], i)
    reasons |= {i: "further right responses to a problem" for i in left() if first[questions[i]] != i}
    taken, counts = left(), dict(Counter(reasons.values()))
    left_out = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"
    wanted = len(taken) if config.num_responses is None else config.num_responses
    if not taken or len(taken) < wanted:
        raise ValueError(
            f"num_responses is {config.num_responses}, but {config.dataset_name} has {len(taken)} usable responses "
            f"(left out: {left_out}): lower it, or sample more of the teacher."
        )
    if PartialState().is_main_process:
        print(
            f"{config.dataset_name}: {wanted} of {len(rows)} responses are imitated; left out: {left_out}", flush=True
        )
    origin = {"dataset": config.dataset_name, "rows": len(rows), "left_out": counts, "train": wanted}
    origin |= {"drawn_from": len(taken), "seed": seed}
    return sorted(random.Random(seed).sample(taken, wanted)), origin


def _graded(config: SFTRunConfig, rows: Dataset) -> list[bool]:
    """Return whether the boxed answer of each response is right, graded on the first process for all processes."""
    verdicts: list[list[bool]] = [[]]
    if PartialState().is_main_process:
        grade = Grader(worker_count(), config.grading_seconds, config.grading_total_seconds)
        for start in range(0, len(rows), GRADED_AT_ONCE):
            part = rows[start : start + GRADED_AT_ONCE]
            answers = [boxed(response) for response in part["response"]]
            verdicts[0] += [right == 1.0 for right in grade(answers, [str(s or "") for s in part["solution"]])]
        grade.close()
    broadcast_object_list(verdicts)
    return verdicts[0]
