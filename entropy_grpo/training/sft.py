"""Cold start: supervised fine-tuning on a teacher's right responses, for models that solve too few problems for RLVR.

arXiv 2506.01939 gives Llama-3.1-8B a cold start. The run folder lists its problems, so that the following training can
exclude them (`decontaminate_against`). Loss, batches and checkpoints are TRL's.
"""

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from ..config.recipe import Settings
from ..config.sft import CLASSES, SFTRunConfig
from ..data.filters import LeftOut, final_answer, normalised
from ..data.problems import leave_out_evaluated, load_columns
from ..data.prompts import render
from ..data.sources import question_text
from ..grading import boxed
from ..grading.pool import Grader, worker_count
from ..monitoring.callbacks import RunRecorder
from ..runs import files
from ..runs.files import Row
from ..runs.state import RANK_STATE, load_state, save_state
from .checkpoints import sealing
from .ending import finish, save_whole
from .fsdp2 import Float32Results
from .start import Start, refusals
from .stop import stoppable, train

GRADED_AT_ONCE = 1024


class Imitation(SFTTrainer):
    """TRL's trainer, whose checkpoints are sealed and hold the sums of the log, which a resumed run continues."""

    settings: Row  # of the run
    changed: set[str]  # settings that are not those of the checkpoint

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with sealing(self, folder, {"num_processes": self.accelerator.num_processes}, self.settings):
            sums = {"loss": self._tr_loss, "total_loss": self._total_loss_scalar}
            sums |= {"last_logged": self._globalstep_last_logged, "num_tokens": self._total_train_tokens}
            save_state(folder / RANK_STATE.format(self.accelerator.process_index), sums)
            super()._save_checkpoint(model, trial)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Load the random states, which the training loop restores last, and then the sums of the log."""
        super()._load_rng_state(checkpoint)
        path = Path(checkpoint or "") / RANK_STATE.format(self.accelerator.process_index)
        if checkpoint is not None and path.exists():  # older checkpoints, and those of fewer processes, have none
            sums = load_state(path, self.args.device)
            self._tr_loss, self._total_loss_scalar = sums["loss"], sums["total_loss"]
            self._globalstep_last_logged, self._total_train_tokens = sums["last_logged"], sums["num_tokens"]


def main(settings: Settings, name: str, held: ExitStack) -> None:
    """Fine-tune by the settings. `name` is the run's name if the settings name none.

    Contexts that last as long as the run, such as the lock of its folder, are entered into `held`.
    """
    with refusals():
        start = Start(settings, name, CLASSES)
        config, args = start.config, start.args
        folder, rows, path = start.claim_folder(held), load_rows(config), start.snapshot()
        taken, origin = choose(config, rows, start.tokenizer, args.max_length, args.seed)
        with start.loading():
            trainer = Imitation(
                **start.options(path),
                train_dataset=imitated(config, rows.select(taken)),
                callbacks=[Float32Results(), RunRecorder()],
            )
    if start.record(trainer, folder, origin):
        files.replace_jsonl(folder.problems, ({"problem": rows[i]["prompt"]} for i in taken))
    with stoppable(trainer, finish):
        train(trainer, args.resume_from_checkpoint)
        save_whole(trainer)
        if trainer.is_world_process_zero():
            print(f"\nrun folder  {folder.path}\nproblems    {folder.problems}")
        finish(trainer)


def load_rows(config: SFTRunConfig) -> Dataset:
    """Return the rows of the teacher's responses, with the columns `prompt`, `response` and `solution`.

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
    """Return TRL's columns `prompt` and `completion`. TRL appends EOS, and only completions have a loss."""
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
    left_out = LeftOut(len(rows))
    left_out.add("wrong", (i for i, right in enumerate(_graded(config, rows)) if not right))
    leave_out_evaluated(left_out, questions, config.decontaminate_against)
    if max_length is not None and (kept := left_out.kept()):
        texts = imitated(config, rows.select(kept))
        whole = tokenizer([p + c for p, c in zip(texts["prompt"], texts["completion"], strict=True)])["input_ids"]
        too_long = (i for i, ids in zip(kept, whole, strict=True) if len(ids) + 1 > max_length)
        left_out.add(f"over {max_length} tokens", too_long)
    usable = left_out.kept()
    first = {questions[i]: i for i in reversed(usable)}
    left_out.add("further right responses to a problem", (i for i in usable if first[questions[i]] != i))
    taken = left_out.kept()
    wanted = len(taken) if config.num_responses is None else config.num_responses
    if not taken or len(taken) < wanted:
        raise ValueError(
            f"num_responses is {config.num_responses}, but {config.dataset_name} has {len(taken)} usable responses "
            f"(left out: {left_out.summary()}): lower it, or sample more of the teacher."
        )
    if PartialState().is_main_process:
        used = f"{config.dataset_name}: {wanted} of {len(rows)} responses are imitated"
        print(f"{used}; left out: {left_out.summary()}", flush=True)
    origin = {"dataset": config.dataset_name, "rows": len(rows), "left_out": left_out.counts(), "train": wanted}
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
            verdicts[0] += [
                right == 1.0 for right in grade(answers, [final_answer(str(s or "")) for s in part["solution"]])
            ]
        grade.close()
    broadcast_object_list(verdicts)
    return verdicts[0]
