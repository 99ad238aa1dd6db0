"""One run, from settings to model card, top to bottom. The only module that imports the whole row."""

import gc
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import AutoTokenizer, PreTrainedTokenizerBase, ProgressCallback
from transformers.utils import logging
from trl import ModelConfig, get_peft_config, get_quantization_config

from . import plots, recipe, records
from .callbacks import RewardProgress
from .card import results_table, write_card
from .checkpoint import newest_checkpoint
from .config import CLASSES, EntropyForkGRPOConfig, RunConfig
from .data import Problems, check_size, load_problems
from .embedded import cold_start, number_walk
from .evaluation import metrics
from .grader import Grader, worker_count
from .names import EMBEDDED
from .recipe import RecipeError, Setting, Settings
from .records import RunFolder
from .rewards import get_rewards
from .trainer import EntropyForkGRPOTrainer

RUNS = Path("runs")


def main(settings: Settings, name: str) -> None:
    """Train as the settings say; `name` is the run's unless they name one."""
    settings = recipe.checked({"run_name": Setting(name, "file name")} | settings, CLASSES)
    run_config, args, model_config = recipe.build(settings, CLASSES)
    resumes = args.resume_from_checkpoint is not None
    try:
        grader = Grader(worker_count(), run_config.grading_seconds, run_config.grading_total_seconds)
        reward_funcs = get_rewards(
            run_config.rewards,
            grader,
            args.max_completion_length,
            run_config.overlong_cache_length,
            run_config.reward_scale,
        )
        args.resume_from_checkpoint = find_checkpoint(args, settings)
        problems = load_problems(run_config, args.seed, partial(prompt_lengths, model_config, args.seed))
        check_size(problems.train, args.generation_batch_size // args.num_generations)
        folder = claim_folder(args, settings, resumes)
        model_path = load_embedded(model_config.model_name_or_path, args.seed)
        tokenizer = load_tokenizer(model_path, model_config)
        args.model_init_kwargs = {**(args.model_init_kwargs or {}), **model_init_kwargs(model_config)}
        trainer = EntropyForkGRPOTrainer(
            model=model_path,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=problems.train,
            eval_dataset=problems.dev,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_config),
            quantization_config=get_quantization_config(model_config),
        )
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if trainer.is_world_process_zero() and args.resume_from_checkpoint is None:
        write_recipe(settings, folder)
        records.write_json(folder.data, problems.origin)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(RewardProgress())

    logging.disable_progress_bar()  # of the files that every checkpoint writes

    if args.resume_from_checkpoint is None:
        evaluate(trainer, problems, run_config, folder, "before")
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    evaluate(trainer, problems, run_config, folder, "after")
    if trainer.is_fsdp_enabled:  # a run goes on from sharded weights, but transformers does not load them
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    if trainer.is_world_process_zero():
        drawn = plots.draw(folder)
        print(report(folder, [*drawn, write_card(folder.path)]))
    finish(trainer)


def finish(trainer: EntropyForkGRPOTrainer) -> None:
    """Leave the process group in an orderly way: together, and with nothing of it still referenced.

    A rank that leaves early makes gloo abort or hang on the others, and a DDP model that outlives its group aborts the
    interpreter at its end.
    """
    accelerator = trainer.accelerator
    accelerator.wait_for_everyone()
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    gc.collect()
    accelerator.end_training()


def find_checkpoint(args: EntropyForkGRPOConfig, settings: Settings) -> str | None:
    """The checkpoint to continue from: the named one, or the newest complete one of `output_dir`.

    `true` demands that there is one; `auto`, for a run that is started again whenever it dies, begins without.
    """
    wanted = args.resume_from_checkpoint
    if wanted is None:
        return None
    if wanted.lower() not in ("true", "auto"):
        if not (Path(wanted) / "trainer_state.json").is_file():
            raise ValueError(
                f"resume_from_checkpoint is {wanted!r}: it has no trainer_state.json, so it is no checkpoint."
            )
        return wanted
    if "output_dir" not in settings:
        raise ValueError(f"resume_from_checkpoint is {wanted}: name the run to continue with --output_dir runs/NAME.")
    newest = newest_checkpoint(Path(args.output_dir))
    if newest is None and wanted.lower() == "true":
        raise ValueError(
            f"resume_from_checkpoint is true, but {args.output_dir} has no complete checkpoint: auto begins anew then."
        )
    return None if newest is None else str(newest)


def claim_folder(args: EntropyForkGRPOConfig, settings: Settings, resumes: bool) -> RunFolder:
    """Make the run folder and see that it can be written; the same folder on every rank.

    A folder that was named must be free, unless a run in it is resumed; one that was not is `runs/NAME`, or the first
    free `runs/NAME-2`, `runs/NAME-3`, ...
    """
    chosen: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            path = _free_folder(args, settings, resumes)
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                chosen[0] = str(path)
        except ValueError as error:
            chosen[1] = str(error)
        except OSError as error:
            where = str(args.output_dir if "output_dir" in settings else RUNS)
            chosen[1] = f"output_dir is {where!r}: cannot write there ({error.strerror}): name another."
    broadcast_object_list(chosen)
    if chosen[1] is not None:
        raise ValueError(chosen[1])
    args.output_dir = chosen[0]
    return RunFolder(Path(chosen[0]))


def write_recipe(settings: Settings, folder: RunFolder) -> None:
    """Write the resolved recipe: every setting but where the run lies and where it goes on from."""
    kept = {key: s for key, s in settings.items() if key not in ("output_dir", "resume_from_checkpoint")}
    records.write_text(folder.recipe, recipe.dump(kept))


def _free_folder(args: EntropyForkGRPOConfig, settings: Settings, resumes: bool) -> Path:
    def taken(path: Path) -> bool:
        return path.exists() and (not path.is_dir() or any(path.iterdir()))

    if "output_dir" in settings:
        path = Path(args.output_dir)
        if taken(path) and not (resumes and RunFolder(path).recipe.exists()):
            raise ValueError(
                f"output_dir is {args.output_dir!r}, which is not empty: name another, or continue that run with "
                "--resume_from_checkpoint true."
            )
        return path
    path, number = RUNS / args.run_name, 2
    while taken(path):
        path, number = RUNS / f"{args.run_name}-{number}", number + 1
    return path


def load_embedded(model_name_or_path: str | None, seed: int) -> str:
    """The path of an embedded model, made on first use; other names pass through."""
    if not model_name_or_path:
        raise ValueError(f"model_name_or_path is missing: name a Hub id, a folder or {EMBEDDED}{number_walk.NAME}.")
    if not model_name_or_path.startswith(EMBEDDED):
        return model_name_or_path
    if model_name_or_path != EMBEDDED + number_walk.NAME:
        raise ValueError(f"model_name_or_path is {model_name_or_path!r}: choose {EMBEDDED}{number_walk.NAME}.")
    state = PartialState()
    with state.main_process_first():
        if state.is_main_process and not cold_start.checkpoint_path(seed).exists():
            print(f"cold start for seed {seed}: training it once, a few minutes", flush=True)
        return str(cold_start.ensure(seed))


def load_tokenizer(model_path: str, model_config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the left; it must know how a response ends."""
    revision = model_config.model_revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path, revision=revision, padding_side="left")
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model_name_or_path is {model_path!r}, whose tokenizer does not load: {reason}") from error
    if tokenizer.eos_token is None:
        raise ValueError(
            f"model_name_or_path is {model_path!r}, whose tokenizer has no EOS token: no response would ever end. Set "
            "eos_token in its tokenizer_config.json."
        )
    return tokenizer


def prompt_lengths(model_config: ModelConfig, seed: int, prompts: list) -> list[int]:
    """Tokens of prompts, texts or lists of messages, as the trainer will write them."""
    tokenizer = load_tokenizer(load_embedded(model_config.model_name_or_path, seed), model_config)
    if isinstance(prompts[0], str):
        return [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    rendered = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)
    return [len(ids) for ids in rendered["input_ids"]]


def model_init_kwargs(model_config: ModelConfig) -> dict[str, Any]:
    """What TRL hands to `from_pretrained`."""
    chosen = {
        "revision": model_config.model_revision,
        "dtype": model_config.dtype,
        "attn_implementation": model_config.attn_implementation,
    }
    return {key: value for key, value in chosen.items() if value is not None}


def walk_choices(row: records.Row) -> tuple[int, int]:
    """(good moves, moves) of an answer to the number walk."""
    return number_walk.count_good_moves(number_walk.Problem.from_prompt(row["prompt"]), row["completion"])


def evaluate(
    trainer: EntropyForkGRPOTrainer, problems: Problems, run_config: RunConfig, folder: RunFolder, when: str
) -> None:
    """Answer the test problems, keep the answers, and renew the summary."""
    if problems.test is None:
        return
    answers = trainer.answer(problems.test, metric_key_prefix=f"test_{when}")
    if not trainer.is_world_process_zero():
        return
    records.replace_jsonl(folder.answers(when), answers)
    choices = walk_choices if run_config.dataset_name == EMBEDDED + number_walk.NAME else None
    reward = trainer.reward_func_names[0]
    entropy = {"mean_entropy": trainer.state.log_history[-1]["eval_entropy"]}
    summary = records.read_json(folder.evaluation) | {when: metrics.summarize(answers, reward, choices) | entropy}
    before = list(records.read_jsonl(folder.answers("before")))
    if when == "after" and before:
        summary["gain"] = metrics.gains(before, answers, reward, choices)
    records.write_json(folder.evaluation, summary)


def report(folder: RunFolder, made: list[Path]) -> str:
    """What a run ends with: the measured change, and where its files are."""
    lines = [""]
    evaluation = records.read_json(folder.evaluation)
    if evaluation:
        rows = [("held-out problems", "before", "after", "gain")]
        rows += [tuple(row.values()) for row in results_table(evaluation)]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        lines.append("")
    checkpoints = sorted(folder.path.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
    lines.append(f"run folder  {folder.path}")
    lines += [
        f"{path.suffix[1:].ljust(10)}  {path}" for path in [folder.recipe, folder.metrics, folder.samples, *made]
    ]
    lines += [f"checkpoint  {path}" for path in checkpoints[-1:]]
    return "\n".join(lines)
