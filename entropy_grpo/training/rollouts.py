"""Sources of rollouts: TRL's own generation, or dynamic sampling.

TRL generates one batch of responses per rollout, scores it and rewards it. Dynamic sampling generates and rewards in
rounds beforehand and hands the chosen responses to TRL, which then continues as usual. A dropped group therefore costs
only its generation and its grading.

Every rank knows all groups of a rollout (see `objective.sampling`), and takes its share of the responses in order.

Shapes: B responses of this rank, T completion tokens including padding, F reward functions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import pad

from ..config.grpo import EntropyForkGRPOConfig
from ..data.problems import IMAGE_COLUMNS
from ..objective.ranks import Ranks
from ..objective.sampling import DynamicSampler, Group, Response, accuracies, fewest_groups, first_scores, informative
from ..objective.tokens import Inputs, loss_mask
from ..runs.files import Row
from ..runs.state import State
from .drafts import Draft, Drafts, Write
from .foresight import Foresight
from .forks import ForkRule, forkable

# Result of TRL's `_generate`: prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images,
# tool_images. Each is a list with an entry per response or None, except extra_fields, a dictionary of such lists.
Generated = tuple
# Responses that are written already: their tokens, and their log-probabilities from the sampler or None.
Finished = tuple[list[list[int]], list[list[float]] | None]


@dataclass
class Supply:
    """This rank's share of a rollout from dynamic sampling.

    Attributes:
        rows: the problem of every response.
        generated: the responses, in the form of TRL's `_generate`.
        rewards: (responses of all ranks, F) float32, in the form of TRL's `_calculate_rewards`.
        old_logps: for every response, (t,) float32 log-probabilities of its first t tokens, which older policies
            wrote, or None if the current policy wrote it.
        is_carried: whether any response of the rollout, on any rank, has `old_logps`.
        filling: (B,) bool, true for responses of groups that only fill up the rollout.
        num_filling: number of filling groups on all ranks.
        metrics: metrics of the sampling, for the log.
    """

    rows: list[Row]
    generated: Generated
    rewards: Tensor
    old_logps: list[Tensor | None]
    is_carried: bool
    filling: Tensor
    num_filling: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """Functions of the trainer that a source of rollouts calls.

    Attributes:
        generate: generates a response to each problem, or decodes the responses that are given, and lets their grading
            begin. A server gets requests for problems that the foresight tells, too.
        write: lets responses grow by a number of tokens.
        reward: (problems, their responses) -> rewards (responses of all ranks, F).
        log_probs, entropies: micro-batch -> (B, T) log-probabilities, or entropies, of its completions under the
            current weights.
    """

    generate: Callable[[list[Row], Finished | None, Foresight | None], Generated]
    write: Write
    reward: Callable[[list[Row], Generated], Tensor]
    log_probs: Callable[[Inputs], Tensor]
    entropies: Callable[[Inputs], Tensor]


class RolloutSource(Protocol):
    """Supplies the rollouts of a run."""

    def next(self, problems: list[Row]) -> Supply | None:
        """Return the next rollout, or None if TRL should generate responses to these problems."""

    def finish(self, output: Inputs, supply: Supply | None) -> Inputs:
        """Return the rollout for training, from the rollout that TRL has scored and rewarded."""

    def state(self) -> State:
        """Return the state on which later rollouts depend, equal on every rank."""

    def restore(self, state: State) -> None:
        """Continue from the result of `state`; other keys are ignored."""


class Direct:
    """TRL generates every rollout itself."""

    def next(self, problems: list[Row]) -> Supply | None:
        return None

    def finish(self, output: Inputs, supply: Supply | None) -> Inputs:
        return output

    def state(self) -> State:
        return {}

    def restore(self, state: State) -> None:
        pass


def with_extra(rows: Sequence[Row], extra: dict[str, Any]) -> list[Row]:
    """Return problems with columns from generation. A list has a value per problem, any other value is shared."""
    return [
        row | {key: values[i] if isinstance(values, list) else values for key, values in extra.items()}
        for i, row in enumerate(rows)
    ]


def responses_of(generated: Generated, which: Sequence[int]) -> list[Response]:
    """Convert the responses at the positions `which` from TRL's columns to rows."""
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
    """Convert responses to TRL's columns, the inverse of `responses_of`. Extra columns stay in rows."""

    def whole(name: str) -> list | None:
        values = [getattr(r, name) for r in responses]
        return None if values[0] is None else [v.tolist() for v in values]

    completions = [r.completion for r in responses]
    return whole("prompt_ids"), whole("completion_ids"), whole("mask"), completions, whole("logprobs"), {}, None, []


def unmasked(response: Response) -> Response:
    """Return a response with a mask by which the policy wrote all its tokens."""
    return replace(response, mask=torch.ones(len(response.completion_ids), dtype=torch.uint8))


def with_old_logps(logps: Tensor, old_logps: Sequence[Tensor | None]) -> Tensor:
    """(B, T) log-probabilities in which those of tokens from older policies are replaced.

    Args:
        logps: (B, T).
        old_logps: for each row, (t,) log-probabilities of its first t tokens under the policies that wrote them, or
            None to keep the row. A sampler records NaN for a token that it could not score, which keeps its value.
    """
    logps = logps.clone()
    for row, old in zip(logps, old_logps, strict=True):
        if old is not None:
            old = old.to(row)
            row[: len(old)] = torch.where(old.isnan(), row[: len(old)], old)
    return logps


def finished_of(drafts: Sequence[Draft], places: Sequence[int]) -> Finished:
    """Return the responses of whole drafts at these places, which count all responses of all drafts."""
    responses = [response for draft in drafts for response in draft.responses]
    mine = [responses[place] for place in places]
    ids = [response.completion_ids.tolist() for response in mine]
    logprobs = [response.logprobs for response in mine]
    return ids, None if any(x is None for x in logprobs) else [x.tolist() for x in logprobs]


def without_waiting(state: State) -> State:
    """Return the state of a source of rollouts without its waiting groups and unfinished responses."""
    return state | {"sampler": state["sampler"] | {"waiting": []}, "drafts": []}


class DynamicSampling:
    """Draws groups until a rollout is full of informative groups (see `objective.sampling`).

    Args:
        policy: generates, rewards and scores responses.
        data: training problems, which the sampler draws in its own order.
        args: settings of the run.
        reward_weights: (F,); the first reward that has a weight other than 0 and scored a group decides whether the
            group is informative.
        tokenizer: tokenizer of the policy.
        device: device of the tensors for TRL.
    """

    def __init__(
        self,
        policy: Policy,
        data: Dataset,
        args: EntropyForkGRPOConfig,
        ranks: Ranks,
        reward_weights: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
    ):
        self.policy, self.data, self.args, self.ranks = policy, data, args, ranks
        self.reward_weights, self.pad_token, self.device = reward_weights.tolist(), tokenizer.pad_token_id, device
        self.sampler = DynamicSampler(
            size=args.rollout_groups,
            problems=len(data),
            round_size=args.rollout_groups * args.sampling_round_size,
            multiple=fewest_groups(ranks.count, args.num_generations),
            max_age=args.max_group_age,
            shuffle=args.shuffle_dataset,
            seed=args.seed,
        )
        self.drafts = Drafts(
            problem=lambda row: data[row],
            write=policy.write,
            size=args.num_generations,
            budget=args.max_new_tokens_per_round,
            longest=args.max_completion_length,
            max_age=args.max_response_age,
            ranks=ranks,
            part=self._part,
            rule=self._fork_rule(tokenizer),
            width=self._width,
        )

    def _fork_rule(self, tokenizer: PreTrainedTokenizerBase) -> ForkRule | None:
        args = self.args
        if args.fork_rollouts is None:
            return None
        return ForkRule(
            trunks=args.fork_rollouts,
            size=args.num_generations,
            candidates=args.fork_candidates,
            weight=args.fork_entropy_weight,
            vocabulary=len(tokenizer),
            trains_prefix=args.fork_prefix == "once",
            seed=args.seed,
            entropies=lambda responses: self.policy.entropies(self._inputs_of(responses)),
            may_fork=forkable(tokenizer, args.fork_min_chars),
        )

    @property
    def _part(self) -> int | None:
        """Responses that one call generates on a rank: TRL's own generation holds the whole call in memory."""
        args = self.args
        return None if args.use_vllm else args.per_device_train_batch_size * args.steps_per_generation

    @property
    def _width(self) -> float:
        """Tokens of a sequence up to which a call may ask the sampler to write, see `Drafts`.

        vLLM in the training processes ends a sequence at its largest length. A server refuses a request beyond it, and
        transformers pads a call, and may have no further positions.
        """
        args = self.args
        if args.use_vllm and args.vllm_mode == "colocate":
            return math.inf
        return (args.vllm_max_model_length or 0) if args.use_vllm else 0

    def _own(self, number: int) -> slice:
        """Return this rank's part of a number of values that are equal on all ranks."""
        size = number // self.ranks.count
        return slice(self.ranks.index * size, (self.ranks.index + 1) * size)

    # Drawing

    def next(self, problems: list[Row]) -> Supply:
        """Draw until the rollout is full of informative groups, or the limit of rounds is reached."""
        sampler, args = self.sampler, self.args
        discarded, informative_drawn = sampler.begin(), 0
        filling: list[Group] = []
        rounds: list[Tensor] = []  # first reward of the responses of each round
        self.drafts.begin()
        carried = min(len(sampler.waiting), sampler.size)
        while (sampler.missing or self.drafts.is_due(sampler.rollout)) and len(rounds) < args.max_sampling_rounds:
            is_last = len(rounds) + 1 == args.max_sampling_rounds
            rows, drafts = self._begin_round(is_last)
            kept, filling, rewards = self._draw(rows, drafts, is_last)
            sampler.add(kept, len(rows))
            rounds.append(rewards)
            informative_drawn += len(kept)
        rewards = torch.cat(rounds) if rounds else torch.zeros(0)
        drawn = accuracies(rewards, args.num_generations)
        if sampler.missing:
            self._at_limit(sampler.missing, len(drawn))
        filling = filling[: sampler.missing]
        groups = sampler.take() + filling
        discarded += sampler.drop_waiting()
        supply = self._supply_of(groups, len(filling))
        found: dict[str, float] = {"rounds": len(rounds), "drawn": len(drawn), "kept": informative_drawn}
        found |= {"carried": carried, "discarded": discarded, "filling": len(filling), "waiting": len(sampler.waiting)}
        if len(drawn):
            found |= {"all_right": (drawn == 1).float().mean().item(), "all_wrong": (drawn == 0).float().mean().item()}
        found["pass_rate"] = sampler.pass_rate
        supply.metrics = {f"dynamic_sampling/{name}": value for name, value in found.items()}
        if self.drafts.budget is not None:
            supply.metrics |= self._partial_metrics(groups)
        if self.drafts.rule is not None:
            supply.metrics |= self._fork_metrics(groups, informative_drawn)
        return supply

    def _begin_round(self, is_last: bool) -> tuple[list[int], list[Draft] | None]:
        """Begin a round.

        Args:
            is_last: whether unfinished responses are written to their end, because no further round follows.

        Returns:
            (problems of the groups that the round grades, these groups if they are written already), equal on every
            rank.
        """
        sampler, drafts = self.sampler, self.drafts
        rows = sampler.draw(len(drafts.unfinished), drafts.surplus, drafts.lacking(sampler.multiple))
        if not drafts.is_used:
            return rows, None
        drafts.add(rows, sampler.rollout)
        drafts.write(sampler.rollout, is_last)
        whole = drafts.take_whole(sampler.multiple)
        return [draft.row for draft in whole], whole

    def _partial_metrics(self, groups: list[Group]) -> dict[str, float]:
        """Metrics of responses that are written over several rollouts, for the groups of this rollout."""
        ages = [self.sampler.rollout - group.begun for group in groups if group.begun is not None]
        trained = sum(len(response.completion_ids) for group in groups for response in group.responses)
        older = sum(len(old) for group in groups for old in group.old_logps or [])
        found = {
            "unfinished": sum(not ended for draft in self.drafts.unfinished for ended in draft.ended),
            "age_mean": sum(ages) / max(len(ages), 1),
            "age_max": max(ages, default=0),
            "generated_per_trained": self.drafts.written / max(trained, 1),
            "older_share": older / max(trained, 1),
        }
        return {f"partial_rollouts/{name}": float(value) for name, value in found.items()}

    def _fork_metrics(self, groups: list[Group], informative_drawn: int) -> dict[str, float]:
        """Metrics of responses that continue others, for the groups of this rollout."""
        masks = [response.mask for group in groups for response in group.responses if response.mask is not None]
        tokens = sum(map(len, masks))
        return {
            "fork_rollouts/generated_per_kept": self.drafts.written / max(informative_drawn, 1),
            "fork_rollouts/prefix_share": 1 - sum(int(mask.sum()) for mask in masks) / max(tokens, 1),
        }

    def _draw(
        self, rows: list[int], drafts: list[Draft] | None, is_last: bool
    ) -> tuple[list[Group], list[Group], Tensor]:
        """Draw a round of groups.

        Args:
            rows: problems to draw.
            drafts: the groups, if they are written already.
            is_last: whether no further round follows, so that other groups may have to fill the rollout.

        Returns:
            (informative groups, other groups for the rest of the rollout, (responses,) first reward of each response),
            equal on every rank.
        """
        size, spare = self.args.num_generations, self.sampler.missing if is_last else 0
        if not rows:  # no group became whole
            return [], [], torch.zeros(0)
        places = range(len(rows) * size)[self._own(len(rows) * size)]
        problems = [self.data[rows[place // size]] for place in places]
        if drafts is None:
            foresight = None if is_last else self._foresight(len(rows), places.start)
            generated = self._generate_in_parts(problems, foresight)
        else:
            generated = self.policy.generate(problems, finished_of(drafts, places), None)
        rewards = self.policy.reward(with_extra(problems, generated[5]), generated)
        good = self._informative(rewards[:, self._deciding])
        kept = [i for i, is_good in enumerate(good) if is_good]
        others = [i for i, is_good in enumerate(good) if not is_good][: max(spare - len(kept), 0)]
        wanted = set(kept + others)
        # Only responses of the wanted groups are sent to other ranks.
        which = [i for i, place in enumerate(places) if place // size in wanted]
        mine = zip([places[i] for i in which], responses_of(generated, which), strict=True)
        found = dict(gather_object(list(mine)))

        def group(i: int) -> Group:
            responses = [found[place] for place in range(i * size, (i + 1) * size)]
            own = rewards[i * size : (i + 1) * size].float().cpu()
            if drafts is None:
                return Group(rows[i], responses, own, self.sampler.rollout)
            draft = drafts[i]
            if draft.forks:
                masks = self.drafts.rule.masks(responses, draft.forks)
                responses = [replace(response, mask=mask) for response, mask in zip(responses, masks, strict=True)]
            old = draft.old_logps if any(map(len, draft.old_logps)) else None
            return Group(rows[i], responses, own, self.sampler.rollout, old, draft.begun)

        return [group(i) for i in kept], [group(i) for i in others], rewards[:, 0].float().cpu()

    @property
    def _deciding(self) -> list[int]:
        """Columns of the rewards, of which the first that scored a group decides whether the group is informative.

        Only one reward counts, so that a penalty in another does not make a group of wrong responses informative. In a
        control experiment that is not the first reward, which has weight 0 and only measures accuracy. With a reward
        for every kind of problem it is the reward of the group's kind.
        """
        return [i for i, weight in enumerate(self.reward_weights) if weight] or [0]

    def _informative(self, rewards: Tensor) -> list[bool]:
        """Return whether groups are informative by the rewards (n * size, columns) that may decide."""
        size = self.args.num_generations
        shares = accuracies(first_scores(rewards, size), size).tolist()
        return [informative(share, self.args.min_accuracy, self.args.max_accuracy) for share in shares]

    def _foresight(self, groups: int, first: int) -> Foresight | None:
        """Return the foresight of a round, which only a server can use.

        Args:
            groups: of the round.
            first: number of this rank's first response.
        """
        args = self.args
        if not args.use_vllm or args.vllm_mode != "server":
            return None
        return Foresight(
            size=args.num_generations,
            first=first,
            reward=self._deciding[0],
            is_informative=lambda rewards: self._informative(torch.tensor(rewards).unsqueeze(1))[0],
            foresee=lambda dropped: self.sampler.foresee(groups, dropped),
            problem=lambda row: self.data[row],
            most=args.vllm_server_requests,
        )

    def _generate_in_parts(self, problems: list[Row], foresight: Foresight | None) -> Generated:
        """Generate responses in parts of a rollout's size. A part is graded while the next part is generated."""
        part = self._part or len(problems)
        starts = range(0, len(problems), part)
        parts = [self.policy.generate(problems[start : start + part], None, foresight) for start in starts]
        columns = list(zip(*parts, strict=True))
        joined: list[Any] = [None if column[0] is None else [x for part in column for x in part] for column in columns]
        joined[5] = {
            key: [row[key] for p in parts for row in with_extra([{}] * len(p[0]), p[5])] for key in parts[0][5]
        }
        return tuple(joined)

    def _at_limit(self, missing: int, drawn: int) -> None:
        args, size = self.args, self.sampler.size
        fact = (
            f"{missing} of {size} informative groups are missing after {args.max_sampling_rounds} rounds with {drawn} "
            "groups"
        )
        if args.at_sampling_limit == "raise":
            raise RuntimeError(
                f"Dynamic sampling: {fact}. The problems may be too easy or too hard, or the band from min_accuracy "
                "to max_accuracy too narrow. Raise max_sampling_rounds, or set at_sampling_limit to top_up or "
                "partial."
            )
        effect = {"top_up": "other groups fill up the rollout without gradient", "partial": "the rollout is smaller"}
        get_logger(__name__).warning(f"Dynamic sampling: {fact}, so {effect[args.at_sampling_limit]}.")

    def _supply_of(self, groups: list[Group], filling: int) -> Supply:
        members = [(group, i) for group in groups for i in range(self.args.num_generations)]
        mine = members[self._own(len(members))]
        responses = [group.responses[i] for group, i in mine]
        if any(group.responses[i].mask is not None for group, i in members):  # some groups may be older than the forks
            responses = [response if response.mask is not None else unmasked(response) for response in responses]
        if any(group.responses[i].logprobs is None for group, i in members):  # some may be from another sampler
            responses = [replace(response, logprobs=None) for response in responses]
        last = len(groups) - filling
        is_filling = torch.arange(len(members)) >= last * self.args.num_generations
        return Supply(
            rows=[self.data[group.row] | group.responses[i].extra for group, i in mine],
            generated=generated_of(responses),
            rewards=torch.cat([group.rewards for group in groups]).to(self.device),
            old_logps=[None if group.old_logps is None else group.old_logps[i] for group, i in mine],
            is_carried=any(group.old_logps is not None for group in groups),
            filling=is_filling[self._own(len(members))].to(self.device),
            num_filling=filling,
        )

    # After the scoring

    def finish(self, output: Inputs, supply: Supply | None) -> Inputs:
        """Remove the gradient of filling groups, and score the responses that later rollouts train on."""
        output = dict(output)
        if supply.num_filling:
            output["advantages"] = output["advantages"].masked_fill(supply.filling, 0.0)
            if self.args.at_sampling_limit == "partial":
                output["completion_mask"] = output["completion_mask"] * (~supply.filling).unsqueeze(1)
                output["num_items_in_batch"] = self.ranks.sum(loss_mask(output).sum())
        self.drafts.keep_recorded()
        if self.args.old_logps == "sampler":
            for group in self.sampler.waiting:
                group.old_logps = [response.logprobs for response in group.responses]
        else:
            self._score_waiting()
        return output

    def _score_waiting(self) -> None:
        """Store log-probabilities of waiting and unfinished groups while their policy is still the current one."""
        for group in self.sampler.waiting:
            group.old_logps = group.old_logps or [torch.zeros(0)] * len(group.responses)
        groups: list[Group | Draft] = [*self.sampler.waiting, *self.drafts.unfinished]
        members = [
            (group.responses[i], group.old_logps, i)
            for group in groups
            for i, old in enumerate(group.old_logps)
            if len(old) < len(group.responses[i].completion_ids)
        ]
        if not members:
            return
        ranks = self.ranks.count
        places = [min(i, len(members) - 1) for i in range(-(-len(members) // ranks) * ranks)]
        mine = places[self._own(len(places))]
        logps = self.policy.log_probs(self._inputs_of([members[i][0] for i in mine])).float().cpu()
        lengths = [len(members[i][0].completion_ids) for i in mine]
        scored = dict(gather_object([(i, x[:n].clone()) for i, x, n in zip(mine, logps, lengths, strict=True)]))
        for place, (_, old_logps, i) in enumerate(members):
            old_logps[i] = torch.cat([old_logps[i], scored[place][len(old_logps[i]) :]])

    def _inputs_of(self, responses: Sequence[Response]) -> Inputs:
        def padded(tensors: list[Tensor], side: str, value: int) -> Tensor:
            return pad(tensors, padding_value=value, padding_side=side).to(self.device)

        inputs = {}
        for name, side in (("prompt", "left"), ("completion", "right")):
            ids = [getattr(response, f"{name}_ids").long() for response in responses]
            inputs[f"{name}_ids"] = padded(ids, side, self.pad_token)
            inputs[f"{name}_mask"] = padded([torch.ones_like(x) for x in ids], side, 0)
        return inputs

    # Resuming

    def state(self) -> State:
        return {"sampler": self.sampler.state(), "drafts": self.drafts.state()}

    def restore(self, state: State) -> None:
        if "sampler" in state:
            self.sampler.restore(state["sampler"])
            self.drafts.restore(state.get("drafts", []))  # older checkpoints have none
            self._know_logprobs()

    def _know_logprobs(self) -> None:
        """Give responses that were written without the sampler's log-probabilities those of the scoring policy.

        A resumed run may have changed `old_logps` or the sampler. In a checkpoint every response has the
        log-probabilities of the policies that wrote it.
        """
        if not self.args.use_vllm and self.args.old_logps != "sampler":
            return
        groups: list[Group | Draft] = [*self.sampler.waiting, *self.drafts.unfinished]
        for group in groups:
            for response, old in zip(group.responses, group.old_logps, strict=True):
                response.logprobs = old if response.logprobs is None else response.logprobs


def make_source(
    policy: Policy,
    data: Dataset | IterableDataset,
    args: EntropyForkGRPOConfig,
    ranks: Ranks,
    reward_weights: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    uses_tools: bool,
    has_rollout_func: bool,
) -> RolloutSource:
    """Choose the source of rollouts by the settings.

    Raises:
        ValueError: `dynamic_sampling` is true for a stream, for problems with images, or for a policy with tools, or
            a `rollout_func` writes whole responses that are to be written in parts.
    """
    if not args.dynamic_sampling:
        return Direct()
    if isinstance(data, IterableDataset):
        raise ValueError("dynamic_sampling is true but the training data is a stream: use a data set with a length.")
    if uses_tools:
        raise ValueError("dynamic_sampling is true but the policy has tools: set dynamic_sampling: false.")
    if set(IMAGE_COLUMNS) & set(data.column_names):
        raise ValueError("dynamic_sampling is true but the problems have images: set dynamic_sampling: false.")
    for name in ("max_new_tokens_per_round", "fork_rollouts"):
        if has_rollout_func and getattr(args, name) is not None:
            raise ValueError(
                f"{name} is {getattr(args, name)} but a rollout_func writes the responses: leave one of them out."
            )
    return DynamicSampling(policy, data, args, ranks, reward_weights, tokenizer, device)
