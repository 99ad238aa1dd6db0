"""Partial rollouts: parts against whole responses, log-probabilities against the policies that wrote each part."""

import itertools
import json
import random
import subprocess
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.fixtures import fixed_rollout
from entropy_grpo.config.grpo import EntropyForkGRPOConfig
from entropy_grpo.objective.ranks import ALONE
from entropy_grpo.training.drafts import Drafts, Piece
from entropy_grpo.training.rollouts import DynamicSampling, Policy

from . import written_parts
from .conftest import REPOSITORY
from .test_durable import assert_goes_on
from .test_objective import DDP, FSDP2
from .test_sampling import group_of

LONGEST = 16


def test_parts_add_up_to_the_greedy_response(ending_model, tmp_path):
    """With one token to choose from, at every rate of progress, whatever is in the batch beside a response."""
    model = AutoModelForCausalLM.from_pretrained(ending_model)
    greedy = {"allow_truncated_sampling": True, "top_k": 1, "learning_rate": 0.0, "max_steps": 3}
    checked = set()
    for budget in (2, 5, 15):
        trainer = written_parts.made(
            ending_model,
            tmp_path / str(budget),
            max_new_tokens_per_round=budget,
            data=fixed_rollout.prompts(32),
            **greedy,
        )
        for output in written_parts.rollouts_of(trainer):
            for prompt, ids in written_parts.written_ids(output):
                whole = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=LONGEST)[0]
                assert whole[len(prompt) :].tolist() == ids
                checked.add((*prompt, len(ids)))
        assert sum(row.get("partial_rollouts/older_share", 0) > 0 for row in trainer.state.log_history) > 0
    assert len({length for *_, length in checked}) > 1, "no response ended by itself"


@pytest.mark.parametrize("steps_per_generation", [1, 2], ids=["TRL scores no rollout", "TRL scores the rollout"])
def test_tokens_have_the_log_probabilities_of_the_policy_that_wrote_them(ending_model, tmp_path, steps_per_generation):
    batch = {"per_device_train_batch_size": 8 // steps_per_generation, "steps_per_generation": steps_per_generation}
    written_parts.check(ending_model, tmp_path, batch)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["DDP", "FSDP2"])
def test_so_they_have_on_two_processes(ending_model, tmp_path, preloaded, sharding):
    """Groups of four on ranks with four responses each, whose drafts are dealt to both: with forks and without.

    Under DDP a run goes on with other problems, too, for which all ranks drop their drafts.
    """
    batch = {"per_device_train_batch_size": 2, "steps_per_generation": 2}
    runs = json.dumps([batch, batch | written_parts.FORKS])
    launcher, last = (DDP, ()) if sharding == "DDP" else (FSDP2, ("fsdp2",))
    command = [preloaded, "-m", *launcher, "-m", "tests.written_parts", ending_model, tmp_path, runs, *last]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr


class Sampler:
    """Writes responses of given lengths, and records the calls."""

    def __init__(self, lengths):
        self.lengths, self.calls, self.begun = lengths, [], 0

    def __call__(self, problems, written, limit):
        self.calls.append((len(problems), limit))
        pieces = []
        for problem, before in zip(problems, written, strict=True):
            number = before[0] if before else self.begun
            self.begun += not before
            length = self.lengths[number]
            new = [number] * min(limit, length - len(before))
            ids = torch.tensor(new, dtype=torch.int32)
            pieces.append(Piece(torch.tensor([problem]), ids, ids / 2, len(before) + len(new) == length))
        return pieces


def test_every_response_is_written_once_and_in_time():
    """A response of n tokens has n in the end, and has them at most `max_age` rollouts after its first token."""
    rng = random.Random(0)
    lengths = [min(int(rng.lognormvariate(2, 1)) + 1, 40) for _ in range(400)]
    for budget in (1, 7, 39):
        sampler = Sampler(lengths)
        drafts = Drafts(lambda row: row, sampler, 2, budget, 40, 2, ALONE, part=5)
        whole = []
        for rollout in range(1, 30):
            drafts.begin()
            while len(drafts.unfinished) < 12 and sampler.begun < 380:
                drafts.add([len(whole)], rollout)
            drafts.write(rollout, to_the_end=False)
            taken = drafts.take_whole(3)
            assert len(taken) % 3 == 0
            assert not drafts.is_due(rollout)
            whole += [response for draft in taken for response in draft.responses]
            assert all(rollout - draft.begun <= 2 or all(draft.ended) for draft in drafts.unfinished)
        drafts.write(30, to_the_end=True)
        whole += [response for draft in drafts.unfinished for response in draft.responses]
        numbers = [int(response.completion_ids[0]) for response in whole]
        assert sorted(numbers) == list(range(sampler.begun)) and sampler.begun > 200
        for number, response in zip(numbers, whole, strict=True):
            assert response.completion_ids.tolist() == [number] * lengths[number]
            assert response.logprobs.tolist() == [number / 2] * lengths[number]
        assert max(count for count, _ in sampler.calls) == 5
        assert all(limit <= budget or limit < 40 for _, limit in sampler.calls)


def test_a_group_that_waits_for_even_ranks_goes_first():
    drafts = Drafts(lambda row: row, Sampler([1] * 20), 2, 3, 40, 2, ALONE, part=None)
    drafts.add([7, 8, 9, 10, 11], 1)
    drafts.write(1, to_the_end=False)
    assert [draft.row for draft in drafts.take_whole(2)] == [7, 8, 9, 10]
    drafts.add([12], 2)
    drafts.write(2, to_the_end=False)
    assert [draft.row for draft in drafts.take_whole(2)] == [11, 12] and drafts.unfinished == []


def test_no_round_is_idle(tmp_path):
    """Every round draws, writes or takes groups, whatever number of whole groups waits for even ranks."""
    args = EntropyForkGRPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, num_generations=2, dynamic_sampling=True, max_completion_length=40,
        max_new_tokens_per_round=20, per_device_train_batch_size=8,
    )  # fmt: skip
    rng, waited, tokenizer = random.Random(0), 0, SimpleNamespace(pad_token_id=0)
    for multiple, pass_rate, seed in itertools.product((1, 3, 4, 8), (0.3, 0.88), range(2)):
        writer = Sampler([rng.randint(1, 40) for _ in range(4000)])
        policy = Policy(generate=None, write=writer, reward=None, log_probs=None, entropies=None)
        source = DynamicSampling(policy, range(100), args, ALONE, torch.ones(1), tokenizer, torch.device("cpu"))
        sampler, drafts = source.sampler, source.drafts
        sampler.multiple = multiple
        for _ in range(20):
            sampler.begin()
            drafts.begin()
            while sampler.missing or drafts.is_due(sampler.rollout):
                before = sampler.cursor, drafts.written
                waited += 0 < len(drafts.unfinished) < multiple
                rows, _ = source._begin_round(False)
                assert rows or (sampler.cursor, drafts.written) != before, (multiple, pass_rate, seed)
                kept = [group_of(row, sampler.rollout) for row in rows if rng.random() < pass_rate]
                sampler.add(kept, len(rows))
            sampler.take()
    assert waited > 10


RESUMED = {
    **written_parts.PARTS,
    "data": fixed_rollout.prompts(16),
    "reward": "coins",
    "learning_rate": 0.05,
    "max_steps": 7,
    "per_device_train_batch_size": 4,
    "steps_per_generation": 4,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "shuffle_dataset": True,
}


@pytest.mark.parametrize("saved", [3, 4])
def test_a_run_goes_on_in_the_middle_of_responses(ending_model, tmp_path, saved):
    settings = RESUMED | {"save_steps": saved}
    whole = fixed_rollout.train(ending_model, tmp_path / "a", **settings)
    checkpoint = tmp_path / "a" / f"checkpoint-{saved}"
    assert_goes_on(ending_model, tmp_path / "b", whole, checkpoint, **settings)


def even(completion_ids, **kwargs):
    return [float(len(ids) % 2 == 0) for ids in completion_ids]


@pytest.mark.parametrize(
    ("changed", "settings"),
    [
        ("num_generations", {"num_generations": 8}),
        ("max_completion_length", {"max_completion_length": 8}),
        ("fork_rollouts", {"fork_rollouts": 2}),
        ("train_dataset", {"data": fixed_rollout.prompts(4)}),
        ("reward_funcs", {"reward": [fixed_rollout.coins, even]}),
    ],
)
def test_unfinished_groups_of_other_problems_sizes_or_rewards_are_dropped(
    ending_model, tmp_path, caplog, changed, settings
):
    first = RESUMED | {"max_steps": 2, "save_steps": 2}
    begun = fixed_rollout.train(ending_model, tmp_path, **first).rollouts.drafts.unfinished
    assert begun
    settings = first | settings | {"max_steps": 4, "allow_changes": [changed]}
    trainer = fixed_rollout.make_trainer(ending_model, tmp_path, **settings)
    left, restore = [], trainer.rollouts.restore
    trainer.rollouts.restore = lambda state: restore(state) or left.append(len(trainer.rollouts.drafts.unfinished))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4 and left == [0]
    assert f"are dropped: the run has another {changed}." in caplog.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"dynamic_sampling": False, "min_accuracy": None, "max_accuracy": None},
            ["max_new_tokens_per_round is 3", "dynamic_sampling: true"],
        ),
        ({"max_new_tokens_per_round": 16}, ["max_new_tokens_per_round is 16", "max_completion_length (16)"]),
        ({"max_new_tokens_per_round": 0}, ["max_new_tokens_per_round is 0"]),
        ({"max_response_age": 0}, ["max_response_age is 0", "1 or more"]),
        ({"max_new_tokens_per_round": None, "max_response_age": 1}, ["max_response_age is 1", "max_new_tokens"]),
        ({"generation_kwargs": {"seed": 1}}, ["generation_kwargs: seed", "leave one of them out"]),
        ({"generation_kwargs": '{"seed": 1}'}, ["generation_kwargs: seed", "leave one of them out"]),
        ({"sampled": False}, ["max_new_tokens_per_round is 3", "rollout_func"]),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(tiny_model, tmp_path, settings, words):
    with pytest.raises(ValueError) as error:
        written_parts.made(tiny_model, tmp_path, **settings)
    assert all(word in str(error.value) for word in words), error.value


def test_sampling_settings_as_json_are_read_by_name(tmp_path):
    """`n` is a setting for whole responses, and a letter of this text."""
    sampling = {
        "generation_kwargs": '{"cache_implementation": "dynamic"}',
        "dynamic_sampling": True,
        "max_new_tokens_per_round": 8,
    }
    args = EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **sampling)
    assert args.extra_sampling == {"cache_implementation": "dynamic"}
