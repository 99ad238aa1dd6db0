"""Partial rollouts: the log-probabilities of every part against the policy that wrote it.

Several processes run it as a script: written_parts.py MODEL OUTPUT JSON_OF_RUNS [fsdp2].
"""

import json
import sys
from collections import Counter

import torch
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, TrainerCallback

from benchmarks.fixtures import fixed_rollout, fsdp2_on_cpu
from entropy_grpo.training.ending import finish

from . import reference

EVERY_GROUP = {"min_accuracy": 0.0, "max_accuracy": 1.0}
PARTS = {"sampled": True, "dynamic_sampling": True, "max_new_tokens_per_round": 3, "max_response_age": 2}
# One-character tokens may fork, since the tiny task has few others.
FORKS = {"fork_rollouts": 2, "fork_candidates": 3, "fork_min_chars": 1}
PARTS |= EVERY_GROUP | {"entropy_scope": "rollout", "top_entropy_quantile": 0.5}


def written_ids(output):
    """The prompt and the response of every row of a rollout."""
    rows = []
    for i in range(len(output["completion_ids"])):
        prompt, ids = (output[f"{name}_ids"][i][output[f"{name}_mask"][i].bool()] for name in ("prompt", "completion"))
        rows.append((prompt.tolist(), ids.tolist()))
    return rows


def made(model, output, **settings):
    return fixed_rollout.make_trainer(model, output, **PARTS | settings)


def rollouts_of(trainer):
    """Train, and return every rollout as it is handed to the optimiser steps."""
    found, original = [], trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: found.append(original(inputs)) or found[-1]
    trainer.train()
    return found


class Weights(TrainerCallback):
    """Keeps the weights before every optimiser step, in float64."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        whole = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in model.named_parameters()}
        self.seen.append({name.removeprefix("module."): p.detach().double().clone() for name, p in whole.items()})


def record_parts(trainer):
    """Return a dictionary: a prompt and a response up to a token -> optimiser steps before which it was written."""
    parts, drafts = {}, trainer.rollouts.drafts
    original = drafts.policy_writes

    def watched(problems, written, limit):
        pieces = original(problems, written, limit)
        for before, piece in zip(written, pieces, strict=True):
            prompt, ids = piece.prompt_ids.tolist(), before + piece.ids.tolist()
            for t in range(len(before), len(ids)):
                parts.setdefault((*prompt, *ids[: t + 1]), set()).add(trainer.state.global_step)
        return pieces

    drafts.policy_writes = watched
    return parts


def scores(model, weights, output, i):
    """(T,) log-probabilities of response i of a rollout under some weights, in float64."""
    model.load_state_dict(weights)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    with torch.no_grad():
        return reference.score(model, *(output[key][i : i + 1] for key in keys), 1.0)[0][0]


def check(model_path, output, settings):
    """Train five rollouts, and recompute old log-probabilities in float64 from the weights that wrote each part."""
    steps_per_generation = settings["steps_per_generation"]
    trainer = made(
        model_path,
        output,
        data=fixed_rollout.prompts(32),
        max_steps=5 * steps_per_generation,
        learning_rate=0.2,
        gradient_accumulation_steps=1,
        max_group_age=3,
        max_new_tokens_per_round=2,
        max_response_age=6,
        **settings,
    )
    weights, parts = Weights(), record_parts(trainer)
    trainer.add_callback(weights)
    rollouts = rollouts_of(trainer)
    everywhere = {}
    for key, steps in gather_object(list(parts.items())):
        everywhere.setdefault(key, set()).update(steps)
    model, ages = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64), Counter()
    for number, output in enumerate(rollouts):
        now = number * steps_per_generation
        for i, (prompt, ids) in enumerate(written_ids(output)):
            own = output["tool_mask"][i].tolist() if "tool_mask" in output else [1] * len(ids)
            places = [t for t in range(len(ids)) if own[t]]
            steps = {t: everywhere[*prompt, *ids[: t + 1]] for t in places}
            if "old_per_token_logps" not in output:
                assert all(now in known for known in steps.values())
                continue
            known = set().union(*steps.values())
            expected = {step: scores(model, weights.seen[step], output, i) for step in known}
            for t in places:
                old = output["old_per_token_logps"][i][t].double()
                right = [step for step in steps[t] if torch.allclose(old, expected[step][t], atol=1e-4)]
                assert right, (number, i, t)
                ages[(now - max(right)) // steps_per_generation] += 1
            ages["mixed"] += len(known) > 1
    assert ages["mixed"] > 4 and ages[1] > 0 and ages[2] > 0, ages
    rows = [row for row in trainer.state.log_history if "partial_rollouts/older_share" in row]
    assert any(0 < row["partial_rollouts/older_share"] < 1 and row["partial_rollouts/unfinished"] > 0 for row in rows)
    first, last = weights.seen[0], weights.seen[-1]
    assert max((first[name] - last[name]).abs().max() for name in first) > 1e-2
    return trainer


def check_dropped(model_path, output, settings):
    """Resume with other problems: all ranks drop the unfinished responses of a checkpoint, and train on together."""
    steps = settings["steps_per_generation"]
    settings = settings | {"save_strategy": "steps", "save_steps": steps, "gradient_accumulation_steps": 1}
    settings |= {"max_new_tokens_per_round": 2, "max_response_age": 6, "max_group_age": 3}
    first = made(model_path, output, data=fixed_rollout.prompts(32), max_steps=steps, **settings)
    first.train()
    assert first.rollouts.drafts.unfinished
    settings |= {"max_steps": 3 * steps, "allow_changes": ["train_dataset"]}
    trainer = made(model_path, output, data=fixed_rollout.prompts(16), **settings)
    left, restore = [], trainer.rollouts.restore
    trainer.rollouts.restore = lambda state: restore(state) or left.append(len(trainer.rollouts.drafts.unfinished))
    trainer.train(resume_from_checkpoint="auto")
    assert gather_object([(trainer.state.global_step, left)]) == [(3 * steps, [0])] * trainer.ranks.count


if __name__ == "__main__":
    is_sharded = sys.argv[4:] == ["fsdp2"]
    if is_sharded:
        fsdp2_on_cpu.prepare()
    for number, settings in enumerate(json.loads(sys.argv[3])):
        trainer = check(sys.argv[1], f"{sys.argv[2]}/{number}", settings | ({"use_cpu": False} if is_sharded else {}))
        if is_sharded:
            fsdp2_on_cpu.check_sharded(trainer.model)
    if not is_sharded:
        check_dropped(sys.argv[1], f"{sys.argv[2]}/dropped", json.loads(sys.argv[3])[0])
    finish(trainer)
