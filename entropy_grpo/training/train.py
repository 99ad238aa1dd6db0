"""A training run, top to bottom, from settings to model card. Only this module imports all parts of a run."""

from contextlib import ExitStack
from functools import partial
from typing import Any

from transformers import ProgressCallback

from ..cards.card import write_card
from ..config.batches import limit_vllm
from ..config.grpo import EntropyForkGRPOConfig
from ..config.recipe import Settings
from ..config.run import CLASSES, RunConfig
from ..data.problems import Problems, check_size, load_problems
from ..evaluation.callback import BenchmarkCallback
from ..grading.pool import Grader, worker_count
from ..metrics import answers as metrics
from ..models.load import check_conversations, count_tokens, raise_positions
from ..monitoring.callbacks import RewardProgress
from ..monitoring.trackers import open_trackio, send_plots
from ..rewards.registry import get_rewards
from ..runs import files, plots
from ..runs.folder import RunFolder
from ..runs.launched import ServerError
from . import announce
from .ending import finish, save_whole
from .requirements import check_port
from .server import check_server
from .start import Start, check_data, refusals
from .stop import stoppable, train
from .trainer import EntropyForkGRPOTrainer
from .weights import KeepWeights


def main(settings: Settings, name: str, held: ExitStack) -> None:
    """Train by the settings. `name` is the run's name if the settings name none.

    Contexts that last as long as the run, such as the lock of its folder, are entered into `held`.
    """
    with refusals():
        start = Start(settings, name, CLASSES)
        run_config, args = start.config, start.args
        check_port(args)
        every, weight_steps = run_config.evaluation_steps(args), run_config.weight_steps(args)
        limit_vllm(args, run_config.max_prompt_length)
        check_server(args)
        grader = Grader(worker_count(), run_config.grading_seconds, run_config.grading_total_seconds)
        reward_funcs = get_rewards(
            run_config.rewards,
            grader,
            args.max_completion_length,
            run_config.overlong_cache_length,
            run_config.reward_scale,
        )
        folder = start.claim_folder(held)
        problems, digest = load_data(start, folder)
        path = start.snapshot()
        if run_config.max_position_embeddings is not None:
            path = raise_positions(path, run_config.max_position_embeddings)
        with start.loading():
            trainer = EntropyForkGRPOTrainer(
                **start.options(path),
                reward_funcs=reward_funcs,
                train_dataset=problems.train,
                eval_dataset=problems.dev,
            )
    trainer.resume.problems = problems.stream
    start.record(trainer, folder, problems.origin | {"digest": digest})
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(RewardProgress())
    send_plots(trainer)
    if trainer.is_world_process_zero():
        model = start.model.model_name_or_path
        print(announce.beginning(args, run_config, trainer.spec, model, problems, folder), flush=True)

    if run_config.eval_benchmarks:
        names, seconds = run_config.eval_benchmarks, run_config.grading_seconds
        trainer.add_callback(
            BenchmarkCallback(trainer, names, every, benchmark_sampling(run_config, args), folder, seconds)
        )
    trainer.add_callback(KeepWeights(trainer, weight_steps, folder))

    if args.resume_from_checkpoint is None:
        evaluate(trainer, problems, run_config, folder, "before")
    with stoppable(trainer, finish):
        train(trainer, args.resume_from_checkpoint)
        conclude(trainer, problems, run_config, folder)
        finish(trainer)


class PromptLengths:
    """Numbers of tokens of prompts. The tokenizer is loaded when it is needed, or with a copy for another process."""

    def __init__(self, start: Start):
        self.start = start

    def __call__(self, prompts: list) -> list[int]:
        return self._counting()(prompts)

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self._counting().__reduce__()

    def _counting(self) -> partial:
        start = self.start
        return partial(count_tokens, start.tokenizer, path=start.named, **(start.args.chat_template_kwargs or {}))


def load_data(start: Start, folder: RunFolder) -> tuple[Problems, str]:
    """Load the problems of a run and check them. Returns: the problems, and the digest of the training data."""
    run_config, args, templating = start.config, start.args, start.args.chat_template_kwargs or {}
    lengths, own_rewards = PromptLengths(start), run_config.has_own_rewards
    problems = load_problems(run_config, args.seed, run_config.reference_grading, lengths, own_rewards)
    digest = check_data(problems, args, folder, args.allow_changes)
    check_size(problems.train, args.rollout_groups, args.prompts_per_rollout)
    if templating and isinstance(problems.train[0]["prompt"], str):  # texts and messages do not mix
        raise ValueError(
            f"chat_template_kwargs is {templating}, but the prompts of {run_config.dataset_name} are texts, to which "
            "no chat template applies: leave it out."
        )
    args.shuffle_dataset &= problems.stream is None
    for part in filter(None, (None if problems.stream else problems.train, problems.dev, problems.test)):
        check_conversations(start.tokenizer, part["prompt"], start.named, **templating)
    return problems, digest


def conclude(trainer: EntropyForkGRPOTrainer, problems: Problems, run_config: RunConfig, folder: RunFolder) -> None:
    """Answer the test problems after the training, and write the model, the plots and the card."""
    try:
        with trainer.resume.saving_if_left():
            evaluate(trainer, problems, run_config, folder, "after")
    except ServerError:  # the training is over, and its model is saved
        save_whole(trainer)
        raise
    save_whole(trainer)
    if trainer.is_world_process_zero():
        drawn = plots.draw(folder)
        card = write_card(folder.path, repository=trainer.hub_model_id, draws=False)
        print(announce.ending(folder, drawn, card), flush=True)


def benchmark_sampling(run_config: RunConfig, args: EntropyForkGRPOConfig) -> dict[str, float]:
    """Temperature and top_p of the answers to benchmarks."""
    temperature, top_p = run_config.eval_benchmark_temperature, run_config.eval_benchmark_top_p
    return {
        "temperature": args.temperature if temperature is None else temperature,
        "top_p": args.top_p if top_p is None else top_p,
    }


def evaluate(
    trainer: EntropyForkGRPOTrainer, problems: Problems, run_config: RunConfig, folder: RunFolder, when: str
) -> None:
    """Answer the test problems, store the answers, and update the summary.

    Args:
        when: `before` or `after` the training.
    """
    if problems.test is None:
        return
    open_trackio(trainer)
    answers = trainer.answer(problems.test, metric_key_prefix=f"test_{when}")
    if not trainer.is_world_process_zero():
        return
    files.replace_jsonl(folder.answers(when), answers)
    choices = None if run_config.task is None else run_config.task.choices
    reward = trainer.reward_func_names[0]
    entropy = {"mean_entropy": trainer.state.log_history[-1]["eval_entropy"]}
    summary = files.read_json(folder.evaluation) | {when: metrics.summarize(answers, reward, choices) | entropy}
    before = list(files.read_jsonl(folder.answers("before")))
    if when == "after":
        summary["step"] = trainer.state.global_step
        if before:
            summary["gain"] = metrics.gains(before, answers, reward, choices)
    files.write_json(folder.evaluation, summary)
