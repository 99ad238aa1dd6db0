"""A trainer that puts its rollouts together itself: dynamic sampling, and grading beside other work.

TRL generates one batch of responses per rollout, scores it and rewards it. Here the batch is generated and rewarded
beforehand, in rounds, and TRL is handed what it would have generated: so everything that follows is TRL's, and a group
that is dropped has cost its generation and its grading only.

Every rank knows all groups of a rollout (see `sampling`), and takes its share of the responses in their order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import IterableDataset
from torch import Tensor
from trl.trainer.utils import pad

from ..metrics.quality import quality
from ..monitoring.diagnostics import answer_metrics
from ..objective.sampling import DynamicSampler, Group, Response, accuracies, informative
from ..objective.window import Inputs, loss_mask
from ..rewards.registry import text_of
from ..runs.state import State
from .resume import DurableGRPOTrainer

Row = dict[str, Any]
# What TRL's `_generate` returns: prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images,
# tool_images; a list per response, or None, and extra_fields by name.
Generated = tuple


@dataclass
class Supply:
    """This rank's share of a rollout that was put together beforehand.

    Attributes:
        rows: the problem of every response.
        generated: what TRL would have generated.
        rewards: (responses of all ranks, F) what TRL would have computed.
        old_logps: of every response, (T,) or None where the current policy wrote it.
        is_carried: whether any response of the rollout, on any rank, has some.
        filling: (responses,) bool, those of groups that only fill up the rollout.
        num_filling: such groups on all ranks.
    """

    rows: list[Row]
    generated: Generated
    rewards: Tensor
    old_logps: list[Tensor | None]
    is_carried: bool
    filling: Tensor
    num_filling: int


def with_extra(rows: Sequence[Row], extra: dict[str, Any]) -> list[Row]:
    """The problems with what generation added to them: a value for each, or one for all."""
    return [
        row | {key: values[i] if isinstance(values, list) else values for key, values in extra.items()}
        for i, row in enumerate(rows)
    ]


def responses_of(generated: Generated, which: Sequence[int]) -> list[Response]:
    """Some of what was generated, response by response."""
    prompt_ids, completion_ids, masks, completions, logprobs, extra, _, _ = generated
    rows = with_extra([{}] * len(completions), extra)

    def part(values: list | None, i: int, dtype: torch.dtype) -> Tensor | None:
        if values is None:
            return None
        return torch.tensor([math.nan if x is None else x for x in values[i]], dtype=dtype)

    return [
        Response(
            prompt_ids=torch.tensor(prompt_ids[i], dtype=torch.int32),
            completion_ids=torch.tensor(completion_ids[i], dtype=torch.int32),
            completion=completions[i],
            logprobs=part(logprobs, i, torch.float32),
            mask=part(masks, i, torch.uint8),
            extra=rows[i],
        )
        for i in which
    ]


def generated_of(responses: Sequence[Response]) -> Generated:
    """The other way round; what generation added is in the problems then."""

    def whole(name: str) -> list | None:
        values = [getattr(r, name) for r in responses]
        return None if values[0] is None else [v.tolist() for v in values]

    completions = [r.completion for r in responses]
    return whole("prompt_ids"), whole("completion_ids"), whole("mask"), completions, whole("logprobs"), {}, None, []


def with_old_logps(logps: Tensor, old_logps: Sequence[Tensor | None]) -> Tensor:
    """(B, T) log-probabilities with those of other policies, (t,) each, in their rows."""
    logps = logps.clone()
    for row, old in zip(logps, old_logps, strict=True):
        if old is not None:
            row[: len(old)] = old
    return logps


class RolloutGRPOTrainer(DurableGRPOTrainer):
    """`DurableGRPOTrainer` with dynamic sampling."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._sampler = self._make_sampler() if self.args.dynamic_sampling else None
        self._rows: list[Row] = []  # of the generation under way
        self._supply: Supply | None = None
        self._corrects_next = False  # whether the next pass is TRL's over a rollout with older responses
        self._rollout_accuracy = math.nan  # of all that was drawn for the latest rollout

    def _make_sampler(self) -> DynamicSampler:
        data, args = self.train_dataset, self.args
        if isinstance(data, IterableDataset):
            raise ValueError(
                "dynamic_sampling is true but the training data is a stream: use a data set with a length."
            )
        if self.tools or self.environment_factories is not None:
            raise ValueError("dynamic_sampling is true but the policy has tools: set dynamic_sampling: false.")
        if {"image", "images"} & set(data.column_names):
            raise ValueError("dynamic_sampling is true but the problems have images: set dynamic_sampling: false.")
        size, ranks = args.generation_batch_size // self.num_generations, self.accelerator.num_processes
        return DynamicSampler(
            size=size,
            problems=len(data),
            round_size=size * args.sampling_round_size,
            multiple=ranks // math.gcd(ranks, self.num_generations),
            max_age=args.max_group_age,
            shuffle=self.shuffle_dataset,
            seed=args.seed,
        )

    def _share(self, values: Sequence[Any]) -> Sequence[Any]:
        """This rank's part of what is the same on all ranks."""
        size = len(values) // self.accelerator.num_processes
        return values[self.accelerator.process_index * size :][:size]

    # Drawing

    def _draw(self, rows: list[int], spare: int) -> tuple[list[Group], list[Group], Tensor]:
        """Draw a round: its informative groups, so many of the others, and the accuracy of all, on every rank."""
        size = self.num_generations
        places = self._share(range(len(rows) * size))
        problems = [self.train_dataset[rows[place // size]] for place in places]
        generated = self._generate_in_parts(problems)
        problems = with_extra(problems, generated[5])
        prompts = [problem["prompt"] for problem in problems]
        rewards = self._calculate_rewards(problems, prompts, generated[3], generated[1])
        # A control's groups teach what the control pays for, while the first reward, of weight 0, judges the answers.
        taught = next((i for i, weight in enumerate(self.reward_weights.tolist()) if weight), 0)
        paid = accuracies(rewards, size, taught).tolist()
        good = [informative(share, self.args.min_accuracy, self.args.max_accuracy) for share in paid]
        kept = [i for i, is_good in enumerate(good) if is_good]
        others = [i for i, is_good in enumerate(good) if not is_good][: max(spare - len(kept), 0)]
        wanted = set(kept + others)
        # Only what is wanted travels.
        which = [i for i, place in enumerate(places) if place // size in wanted]
        mine = zip([places[i] for i in which], responses_of(generated, which), strict=True)
        found = dict(gather_object(list(mine)))

        def group(i: int) -> Group:
            responses = [found[place] for place in range(i * size, (i + 1) * size)]
            own = rewards[i * size : (i + 1) * size].float().cpu()
            return Group(rows[i], responses, own, self._sampler.rollout)

        return [group(i) for i in kept], [group(i) for i in others], accuracies(rewards, size)

    def _generate_in_parts(self, problems: list[Row]) -> Generated:
        """Generate for as many problems at a time as a rollout has: TRL's own generation holds all of them in memory,
        and what is written is graded while the next part is."""
        own = self.args.per_device_train_batch_size * self.args.steps_per_generation
        part = len(problems) if self.use_vllm else own
        parts = []
        for start in range(0, len(problems), part):
            self._rows = problems[start : start + part]
            parts.append(self._generate([problem["prompt"] for problem in self._rows]))
        columns = list(zip(*parts, strict=True))
        joined = [None if column[0] is None else [x for part in column for x in part] for column in columns]
        joined[5] = {
            key: [row[key] for p in parts for row in with_extra([{}] * len(p[0]), p[5])] for key in parts[0][5]
        }
        return tuple(joined)

    def _fill(self) -> Supply:
        """Draw until the rollout is full of informative groups, or the limit of rounds is reached."""
        sampler, args = self._sampler, self.args
        discarded, filling, shares, informative_drawn = sampler.begin(), [], [], 0
        carried = min(len(sampler.waiting), sampler.size)
        while sampler.missing and len(shares) < args.max_sampling_rounds:
            is_last = len(shares) + 1 == args.max_sampling_rounds
            rows = sampler.draw()
            kept, filling, accuracy = self._draw(rows, sampler.missing if is_last else 0)
            sampler.add(kept, len(rows))
            shares.append(accuracy)
            informative_drawn += len(kept)
        if sampler.missing:
            self._at_limit(sampler.missing, sum(map(len, shares)))
        filling = filling[: sampler.missing]
        groups = sampler.take() + filling
        discarded += sampler.drop_waiting()
        drawn = torch.cat(shares) if shares else torch.zeros(0)
        found = {"rounds": len(shares), "drawn": len(drawn), "kept": informative_drawn, "carried": carried}
        found |= {"discarded": discarded, "filling": len(filling), "waiting": len(sampler.waiting)}
        if len(drawn):
            found |= {"all_right": (drawn == 1).float().mean().item(), "all_wrong": (drawn == 0).float().mean().item()}
            self._rollout_accuracy = drawn.mean().item()
        found["pass_rate"] = sampler.pass_rate
        for name, value in found.items():
            self._metrics["train"][f"dynamic_sampling/{name}"].append(value)
        return self._supply_of(groups, len(filling))

    def _at_limit(self, missing: int, drawn: int) -> None:
        args, size = self.args, self._sampler.size
        fact = (
            f"{drawn} groups drawn in {args.max_sampling_rounds} rounds, {missing} of {size} informative ones missing"
        )
        if args.at_sampling_limit == "raise":
            raise RuntimeError(
                f"Dynamic sampling: {fact}. The problems may be too easy or too hard, or the band [min_accuracy, "
                "max_accuracy] too narrow: raise max_sampling_rounds, or set at_sampling_limit to top_up or partial."
            )
        what = {"top_up": "filled up with others, without gradient", "partial": "the rollout is smaller"}
        get_logger(__name__).warning(f"Dynamic sampling: {fact}: {what[args.at_sampling_limit]}.")

    def _supply_of(self, groups: list[Group], filling: int) -> Supply:
        members = [(group, i) for group in groups for i in range(self.num_generations)]
        mine = self._share(members)
        responses = [group.responses[i] for group, i in mine]
        last = len(groups) - filling
        is_filling = torch.arange(len(members)) >= last * self.num_generations
        return Supply(
            rows=[self.train_dataset[group.row] | group.responses[i].extra for group, i in mine],
            generated=generated_of(responses),
            rewards=torch.cat([group.rewards for group in groups]).to(self.accelerator.device),
            old_logps=[group.old_logps and group.old_logps[i] for group, i in mine],
            is_carried=any(group.old_logps is not None for group in groups),
            filling=self._share(is_filling).to(self.accelerator.device),
            num_filling=filling,
        )

    # What TRL asks for

    def _generate(self, prompts: list) -> Generated:
        if self._supply is not None:
            return self._supply.generated
        generated = super()._generate(prompts)
        rows = with_extra(self._rows, generated[5])
        columns = {key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "completion")}
        for reward in self.reward_funcs:
            if hasattr(reward, "begin"):  # grades in other processes, while this one goes on
                reward.begin(prompts=prompts, completions=generated[3], **columns)
        return generated

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list) -> Tensor:
        if self._supply is not None:
            return self._supply.rewards
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        mode, accuracy = "train" if self.model.training else "eval", (rewards[:, 0] > 0).float().mean().item()
        self._metrics[mode]["accuracy"].append(accuracy)
        if mode == "train":
            self._rollout_accuracy = accuracy
            if self.args.log_diagnostics:
                self._log_responses(rewards, prompts, completions, completion_ids_list)
        return rewards

    def _log_responses(self, rewards: Tensor, prompts: list, completions: list, completion_ids_list: list) -> None:
        """Log how the responses of all ranks are written, and how right and wrong ones differ."""
        device = self.accelerator.device
        lengths = self.accelerator.gather(torch.tensor([len(ids) for ids in completion_ids_list], device=device))
        found = answer_metrics(rewards[:, 0] > 0, lengths, self.num_generations)
        written = quality([text_of(c) for c in completions], [text_of(p) for p in prompts])
        values = torch.tensor(list(written.values()), device=device, dtype=torch.float32)
        means = self.accelerator.reduce(values, reduction="mean").tolist()
        found |= {f"quality/{name}": value for name, value in zip(written, means, strict=True)}
        for name, value in found.items():
            self._metrics["train"][name].append(value)

    def _generate_and_score_completions(self, inputs: list[Row]) -> Inputs:
        self._rows = inputs
        if self._sampler is None or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        supply = self._fill()
        self._supply, self._corrects_next = supply, supply.is_carried and self.spec.scores_rollout
        try:
            output = super()._generate_and_score_completions(supply.rows)
        finally:
            self._supply = None
        if supply.is_carried and not self.spec.scores_rollout:
            output["old_per_token_logps"] = with_old_logps(self._score_logps(output), supply.old_logps)
        if supply.num_filling:
            filling = supply.filling
            output["advantages"] = output["advantages"].masked_fill(filling, 0.0)
            if self.args.at_sampling_limit == "partial":
                output["completion_mask"] = output["completion_mask"] * (~filling).unsqueeze(1)
                output["num_items_in_batch"] = self.accelerator.gather(loss_mask(output).sum()).sum()
        self._score_waiting()
        return output

    def _as_generated(self, logps: Tensor) -> Tensor:
        """Log-probabilities under the current policy, (B, T), as those under the policies that wrote the responses.

        For the first pass that TRL makes over a rollout; those of all others pass through.
        """
        if not self._corrects_next:
            return logps
        self._corrects_next = False
        return with_old_logps(logps, self._supply.old_logps)

    @torch.no_grad()
    def _score_logps(self, inputs: Inputs, **more: Any) -> Tensor:
        """(B, T) log-probabilities under the current policy."""
        logps, _, _ = self._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            batch_size=self.args.per_device_train_batch_size,
            **more,
        )
        return logps

    def _score_waiting(self) -> None:
        """Keep the log-probabilities of groups that wait for the next rollout, as long as the policy is theirs."""
        groups = [group for group in self._sampler.waiting if group.old_logps is None]
        if not groups:
            return
        members = [response for group in groups for response in group.responses]
        ranks = self.accelerator.num_processes
        places = [min(i, len(members) - 1) for i in range(-(-len(members) // ranks) * ranks)]
        mine = self._share(places)
        logps = self._score_logps(self._inputs_of([members[i] for i in mine])).float().cpu()
        lengths = [len(members[i].completion_ids) for i in mine]
        scored = dict(gather_object([(i, x[:n].clone()) for i, x, n in zip(mine, logps, lengths, strict=True)]))
        for number, group in enumerate(groups):
            size = len(group.responses)
            group.old_logps = [scored[i] for i in range(number * size, (number + 1) * size)]

    def _inputs_of(self, responses: Sequence[Response]) -> Inputs:
        def padded(tensors: list[Tensor], side: str, value: int) -> Tensor:
            return pad(tensors, padding_value=value, padding_side=side).to(self.accelerator.device)

        inputs = {}
        for name, side in (("prompt", "left"), ("completion", "right")):
            ids = [getattr(response, f"{name}_ids").long() for response in responses]
            inputs[f"{name}_ids"] = padded(ids, side, self._tokenizer.pad_token_id)
            inputs[f"{name}_mask"] = padded([torch.ones_like(x) for x in ids], side, 0)
        return inputs

    # Records

    def _shared_state(self) -> State:
        sampler = {} if self._sampler is None else {"sampler": self._sampler.state()}
        return super()._shared_state() | {"rollout_accuracy": self._rollout_accuracy} | sampler

    def _restore_shared_state(self, state: State) -> None:
        super()._restore_shared_state(state)
        self._rollout_accuracy = state["rollout_accuracy"]
        if self._sampler is not None and "sampler" in state:
            self._sampler.restore(state["sampler"])
