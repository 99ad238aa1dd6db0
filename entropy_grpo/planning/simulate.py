"""Simulation of a cycle, a rollout and its optimiser steps, on GPUs that nobody has measured.

Every copy of the model in vLLM is followed event by event: its queue, its cache in tokens, admission, preemption, and
the end of every response. Rounds are those of dynamic sampling (`objective.sampling`), with groups that wait, and with
responses that continue in later rollouts. Sizes and operations are the plan's. Rates, lengths and the share of
informative groups are assumptions (`Assumptions`, `vllm.Device`).

A step of a copy takes as long as `vllm.Engine.step` estimates, so that many steps with the same responses are one
event. A response that no longer fits the cache loses it and is computed anew (vLLM's recomputation, last in, first
out). Grading and the parsing of answers cost nothing.
"""

import heapq
import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from ..metrics.tables import aligned
from ..objective.sampling import Sampler, fewest_groups, informative_counts
from ..training.drafts import surplus
from .commands import without
from .flops import SCORING, passes
from .job import Job, resolve
from .memory import GIB, memory
from .options import PlanOptions
from .vllm import H100, Device, Engine, engine, holds_a_sequence, sampler, server_sizes

MARGIN = 64  # tokens for each response that are free when a response begins, or when others have lost their cache
SEED = 0  # of the drawn lengths
WARM_UP, CYCLES = 3, 3  # rollouts that fill the groups that wait, and rollouts that are averaged
PART_OF_LONGEST = 5  # a round of partial rollouts writes this part of the largest length, if the recipe sets no budget
NOISE = 1.05  # a variant that is simulated to be faster by less than this factor is not chosen
# Settings that a colocated sampler, or a server, does not read.
PLACED = (
    *("vllm_mode", "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode", "vllm_tensor_parallel_size"),
    *("vllm_max_num_seqs", "vllm_model_impl", "vllm_server_host", "vllm_server_port", "vllm_server_base_url"),
    *("vllm_server_timeout", "vllm_group_port"),
)


@dataclass(frozen=True)
class Assumptions:
    """Facts of a run that a recipe does not give.

    Attributes:
        mean: mean number of tokens of a response.
        sigma: standard deviation of the logarithm of a length, before the largest length cuts it.
        between: share of the variance of this logarithm that lies between prompts.
        prompt: mean number of tokens of a prompt.
        informative: share of groups that dynamic sampling keeps.
        sync: seconds in which weights go to the sampler, and vLLM sleeps and wakes. A server gets them once per
            rollout. A colocated vLLM loses them while it sleeps, and gets them at every call.
        device: rates of a GPU.
    """

    mean: float
    sigma: float = 0.8
    between: float = 0.5
    prompt: int = 200
    informative: float = 0.5
    sync: float = 20.0
    device: Device = H100


# Lengths


def cut_mean(centre: float, sigma: float, longest: float) -> float:
    """Return the mean of log-normal lengths that are cut at `longest`.

    Args:
        centre: mean of the logarithm, before the cut.
    """
    z, below = (math.log(longest) - centre) / sigma, NormalDist().cdf
    return math.exp(centre + sigma**2 / 2) * below(z - sigma) + longest * (1 - below(z))


def centre_of(mean: float, sigma: float, longest: float) -> float:
    """Return the mean of the logarithm with which lengths that are cut at `longest` have a given mean."""
    low, high = 0.0, math.log(longest) + 10 * sigma
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cut_mean(middle, sigma, longest) < mean else (low, middle)
    return low


def draw_lengths(
    assumed: Assumptions, longest: int, groups: int, size: int, generator: np.random.Generator
) -> np.ndarray:
    """Return (groups, size) lengths in tokens, from 1 to `longest`."""
    z = math.sqrt(assumed.between) * generator.standard_normal((groups, 1))
    z = z + math.sqrt(1 - assumed.between) * generator.standard_normal((groups, size))
    centre = centre_of(assumed.mean, assumed.sigma, longest)
    return np.ceil(np.minimum(np.exp(centre + assumed.sigma * z), longest)).astype(int)


# A copy of the model


@dataclass(frozen=True)
class Copy:
    """A copy of the model in vLLM.

    Attributes:
        engine: times of a step.
        cached: tokens that its cache holds.
        sequences: responses that it writes at once, at most.
        prompt: tokens of a prompt, which the responses of a group share in the cache.
        group: responses of a group.
    """

    engine: Engine
    cached: int
    sequences: int
    prompt: int
    group: int

    @property
    def share(self) -> float:
        """Tokens of a prompt in the cache for each response of a group."""
        return self.prompt / self.group


@dataclass
class Decoded:
    """Result of a queue of responses.

    Attributes:
        seconds: until the last response ends.
        written: tokens written.
        recomputed: tokens of responses that were computed anew.
        preempted: number of times that a response lost its cache.
    """

    seconds: float = 0.0
    written: int = 0
    recomputed: int = 0
    preempted: int = 0


class _Queue:
    """State of a copy that writes a queue of responses.

    Attributes:
        waiting: (tokens before, tokens at the end) of the responses that have no cache.
        running: (step of admission, tokens then, tokens at the end) by number of admission, the latest last.
        ends: heap of (step at which a response ends, number of admission); responses that lost their cache stay in it.
        held: tokens in the cache.
    """

    def __init__(self, copy: Copy, requests: Sequence[tuple[int, int]]):
        self.copy, self.waiting = copy, deque(requests)
        self.running: dict[int, tuple[int, int, int]] = {}
        self.ends: list[tuple[int, int]] = []
        self.held, self.step, self.admitted, self.done = 0.0, 0, 0, Decoded()

    @property
    def free(self) -> float:
        return self.copy.cached - self.held

    def admit(self) -> None:
        """Begin responses in order, as long as the cache has room for them and for the next steps of all."""
        while self.waiting and len(self.running) < self.copy.sequences:
            before, end = self.waiting[0]
            needed = before + self.copy.share
            if self.running and needed + MARGIN * (len(self.running) + 1) > self.free:
                return
            self.waiting.popleft()
            self.running[self.admitted] = (self.step, before, end)
            heapq.heappush(self.ends, (self.step + end - before, self.admitted))
            self.admitted += 1
            self.held += needed
            self.done.recomputed += before
            # The first response of a group computes the prompt, and the further ones find it in the cache.
            self.done.seconds += self.copy.engine.prefill(needed)

    def preempt(self) -> None:
        """Take the cache from the latest responses until the earlier ones have room for some steps."""
        while len(self.running) > 1 and self.free < MARGIN * len(self.running):
            begun, before, end = self.running.popitem()[1]
            now = before + self.step - begun
            self.waiting.appendleft((now, end))
            self.held -= now + self.copy.share
            self.done.preempted += 1

    def decode(self, steps: int) -> None:
        """Write a number of tokens of every response that has a cache, and end whole responses."""
        batch, copy = len(self.running), self.copy
        read = self.held + batch * (copy.prompt - copy.share)  # every response reads its whole prompt
        self.done.seconds += steps * copy.engine.step(batch, read + batch * (steps - 1) / 2)
        self.done.written += steps * batch
        self.held, self.step = self.held + steps * batch, self.step + steps
        while self.ends and self.ends[0][0] <= self.step:
            _, number = heapq.heappop(self.ends)
            if number in self.running:
                self.held -= self.running.pop(number)[2] + copy.share

    def steps_to_an_end(self) -> int:
        while self.ends[0][1] not in self.running:
            heapq.heappop(self.ends)
        return self.ends[0][0] - self.step


def decode(copy: Copy, requests: Sequence[tuple[int, int]]) -> Decoded:
    """Simulate a copy that writes a queue of responses to their ends.

    Args:
        requests: (tokens before, tokens at the end) of every response, in the order of the queue. Tokens that were
            written before are computed anew.

    Raises:
        ValueError: one response does not fit the cache.
    """
    longest = copy.prompt + max((end for _, end in requests), default=0)
    if longest > copy.cached:
        raise ValueError(f"the cache holds {copy.cached:,} tokens, but a prompt and its response have {longest:,}.")
    queue = _Queue(copy, requests)
    while queue.waiting or queue.running:
        queue.admit()
        batch = len(queue.running)
        steps = queue.steps_to_an_end()
        if batch > 1:
            steps = min(steps, int(queue.free // batch))
        if steps < 1:
            queue.preempt()
        else:
            queue.decode(steps)
    return queue.done


# Rollouts


@dataclass(frozen=True)
class Rules:
    """Settings of a recipe that decide its rollouts.

    Attributes:
        prompts, size: groups of a rollout, and responses of a group.
        longest: tokens of the longest response.
        dynamic: whether only informative groups are kept.
        rounds, round_size: largest number of rounds, and of groups of a round.
        multiple: number of which every round draws a multiple.
        group_age: rollouts that a group may wait.
        budget: tokens by which a response grows in a round, or None.
        response_age: rollouts over which a response may continue.
    """

    prompts: int
    size: int
    longest: int
    dynamic: bool
    rounds: int
    round_size: int
    multiple: int
    group_age: int
    budget: int | None
    response_age: int


def rules_of(job: Job) -> Rules:
    """Return the rules of a job's rollouts."""
    args = job.grpo
    return Rules(
        prompts=args.rollout_groups,
        size=args.num_generations,
        longest=job.lengths.completion,
        dynamic=args.dynamic_sampling,
        rounds=args.max_sampling_rounds,
        round_size=args.rollout_groups * args.sampling_round_size,
        multiple=fewest_groups(job.processes, args.num_generations),
        group_age=args.max_group_age,
        budget=args.max_new_tokens_per_round,
        response_age=args.max_response_age,
    )


@dataclass
class Group:
    """A group whose responses are written, or that waits for its rollout.

    Attributes:
        lengths, done: (size,) tokens of the responses, in the end and so far.
        informative: whether dynamic sampling keeps the group.
        born: number of the rollout that drew the group.
    """

    lengths: np.ndarray
    done: np.ndarray
    informative: bool
    born: int


@dataclass
class Rollout:
    """A simulated rollout.

    Attributes:
        seconds: from its beginning to its end.
        busy: mean seconds in which a copy had something to write.
        written: tokens written.
        recomputed: tokens of earlier rounds, or of responses that lost their cache, that were computed again.
        calls: calls of the sampler.
        lengths: (prompts, size) tokens of the responses to train on.
    """

    seconds: float = 0.0
    busy: float = 0.0
    written: int = 0
    recomputed: int = 0
    calls: int = 0
    lengths: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), int))


class Rollouts:
    """Simulated rollouts of a run, in order. The copies share the groups of a round, and wait for the last of them."""

    def __init__(self, rules: Rules, assumed: Assumptions, copy: Copy, copies: int):
        self.rules, self.assumed, self.copy, self.copies = rules, assumed, copy, copies
        self.generator = np.random.default_rng(SEED)
        self.sampler: Sampler[Group] = Sampler(
            rules.prompts, 2**40, rules.round_size, rules.multiple, rules.group_age, shuffle=False, seed=SEED
        )
        self.unfinished: list[Group] = []

    def next(self) -> Rollout:
        """Simulate rounds until the rollout is full."""
        sampler, rules, found, rounds = self.sampler, self.rules, Rollout(), 0
        sampler.begin()
        while (sampler.missing or any(map(self._must_end, self.unfinished))) and rounds < rules.rounds:
            rounds += 1
            self._begin(len(sampler.draw(len(self.unfinished), surplus(rules.budget, rules.response_age))))
            self._write(rounds == rules.rounds, found)
            whole = [group for group in self.unfinished if (group.done == group.lengths).all()]
            self.unfinished = [group for group in self.unfinished if (group.done < group.lengths).any()]
            sampler.add([group for group in whole if group.informative], len(whole))
        found.lengths = np.stack([group.lengths for group in sampler.take()])
        sampler.drop_waiting()
        return found

    def _must_end(self, group: Group) -> bool:
        return self.sampler.rollout - group.born >= self.rules.response_age

    def _begin(self, number: int) -> None:
        lengths = draw_lengths(self.assumed, self.rules.longest, number, self.rules.size, self.generator)
        share = self.assumed.informative if self.rules.dynamic else 1.0
        kept = self.generator.random(number) < share
        born = self.sampler.rollout
        self.unfinished += [
            Group(row, np.zeros_like(row), bool(keep), born) for row, keep in zip(lengths, kept, strict=True)
        ]

    def _write(self, to_the_end: bool, found: Rollout) -> None:
        """Let all unfinished responses grow, and add the round to the rollout.

        As in `training.drafts`, one call writes responses by the budget, and another writes responses to their end.
        """
        budget = self.rules.budget
        queues: list[list[list[tuple[int, int]]]] = [[[] for _ in range(self.copies)] for _ in range(2)]
        for i, group in enumerate(self.unfinished):
            last = np.full_like(group.done, True, dtype=bool)
            if budget is not None and not (to_the_end or self._must_end(group)):
                last = self.rules.longest - group.done <= budget
            grown = np.where(last, group.lengths, np.minimum(group.lengths, group.done + (budget or 0)))
            for is_last, before, end in zip(last.tolist(), group.done.tolist(), grown.tolist(), strict=True):
                if before < end:
                    queues[is_last][i % self.copies].append((before, end))
            group.done = grown
        for call in queues:
            if any(call):
                self._call(call, found)

    def _call(self, queues: Sequence[Sequence[tuple[int, int]]], found: Rollout) -> None:
        """Let every copy write its queue, and add the call to the rollout."""
        parts = [decode(self.copy, queue) for queue in queues]
        found.calls += 1
        found.seconds += max(part.seconds for part in parts)
        found.busy += sum(part.seconds for part in parts) / self.copies
        found.written += sum(part.written for part in parts)
        found.recomputed += sum(part.recomputed for part in parts)


# Training


def trainer_of(job: Job, assumed: Assumptions) -> Callable[[np.ndarray], tuple[float, float]]:
    """Return a function from the lengths of a rollout to seconds of scoring and of its optimiser steps.

    Attention counts only earlier tokens where a pass has no mask, and the whole square under a mask.
    """
    seen = 0.5 if job.objective.aligns else 1.0
    forward, backward = (
        replace(one, pair=seen * one.pair) for one in job.policy.operations(job.args.gradient_checkpointing)
    )
    rate = job.processes * (assumed.device.training if job.options.tflops is None else job.options.tflops * 1e12)

    def seconds(lengths: np.ndarray) -> tuple[float, float]:
        parts = passes(job, forward, backward, assumed.prompt, lengths.astype(float))
        sums = {name: job.objective.iterations * float(np.sum(value)) / rate for name, value in parts.items()}
        scoring = sum(value for name, value in sums.items() if name in SCORING.values())
        return scoring, sum(sums.values()) - scoring

    return seconds


# Cycles


@dataclass(frozen=True)
class Cycle:
    """Simulated seconds of a rollout and its optimiser steps.

    Attributes:
        generation, scoring, steps, waiting: seconds of the mean GPU, whose sum is `seconds`. A GPU waits while others
            end their responses, while weights are synchronised, and while the GPUs of the other kind work.
        seconds: of the whole cycle.
        written_per_trained: tokens written for each token trained on.
        recomputed_per_trained: tokens computed again, because a response lost its cache or continues, likewise.
    """

    generation: float
    scoring: float
    steps: float
    waiting: float
    seconds: float
    written_per_trained: float
    recomputed_per_trained: float


def _cycle(rollouts: Sequence[Rollout], times: np.ndarray, seconds: float, writers: float, trainers: float) -> Cycle:
    """Return the mean cycle.

    Args:
        times: (cycles, 2) seconds of scoring and of steps.
        seconds: mean seconds of a cycle.
        writers, trainers: shares of the GPUs that generate, and that train.
    """
    generation = writers * float(np.mean([rollout.busy for rollout in rollouts]))
    scoring, steps = (trainers * float(value) for value in times.mean(axis=0))
    trained = sum(int(rollout.lengths.sum()) for rollout in rollouts)
    written = sum(rollout.written for rollout in rollouts) / trained
    recomputed = sum(rollout.recomputed for rollout in rollouts) / trained
    return Cycle(generation, scoring, steps, seconds - generation - scoring - steps, seconds, written, recomputed)


def synchronisation(rollouts: Sequence[Rollout], sync: float, colocates: bool) -> float:
    """Return the mean seconds of a cycle in which weights go to the sampler (`Assumptions.sync`)."""
    return sync * (float(np.mean([rollout.calls for rollout in rollouts])) if colocates else 1.0)


def in_turns(rollouts: Sequence[Rollout], times: np.ndarray, sync: float, writers: float, trainers: float) -> Cycle:
    """Return the mean cycle if generation, training and `sync` seconds of synchronisation follow each other."""
    seconds = float(np.mean([rollout.seconds for rollout in rollouts]) + times.sum(axis=1).mean()) + sync
    return _cycle(rollouts, times, seconds, writers, trainers)


def ahead(rollouts: Sequence[Rollout], times: np.ndarray, sync: float, writers: float, trainers: float) -> Cycle:
    """Return the mean cycle if the next rollout is generated while this one is trained on.

    Weights are synchronised between two rollouts, when no response is being written.
    """
    longer = [max(rollout.seconds, sum(train)) for rollout, train in zip(rollouts[1:], times[:-1], strict=True)]
    return _cycle(rollouts, times, float(np.mean(longer)) + sync, writers, trainers)


# Variants


@dataclass(frozen=True)
class Variant:
    """A way to divide GPUs between sampling and training.

    Attributes:
        name: description.
        settings: settings that change the recipe to it, as on a command line.
        cycle: the simulated cycle; None if it does not fit.
        refusal: why it does not fit.
        exists: whether the package can run it.
        spared: the simulated cycle with `old_logps: sampler`, whose pass over a rollout falls away; None if the
            recipe makes no such pass, or needs it.
    """

    name: str
    settings: tuple[str, ...]
    cycle: Cycle | None
    refusal: str | None = None
    exists: bool = True
    spared: Cycle | None = None


def _changed(options: PlanOptions, words: Sequence[str], settings: Sequence[str]) -> Job:
    """Resolve a recipe with overrides, without the overrides that place the sampler."""
    return resolve(options, [*without(words, *PLACED), *settings])


def _trainer_spared(
    options: PlanOptions, words: Sequence[str], settings: Sequence[str], assumed: Assumptions
) -> Callable[[np.ndarray], tuple[float, float]] | None:
    """Return `trainer_of` a recipe whose sampler gives the old log-probabilities, see `Variant.spared`."""
    if _changed(options, words, settings).objective.trusts_sampler:
        return None
    try:
        job = _changed(options, words, (*settings, "--old_logps", "sampler"))
    except ValueError:  # the recipe needs the pass
        return None
    return trainer_of(job, assumed) if job.objective.spares_pass else None


def _refusal(job: Job, cache: dict[str, Any], needed: dict[str, Any]) -> str | None:
    """Return why a sampler with a share of a GPU does not fit.

    Args:
        needed: memory of the job; training needs the same with every share that sleeps meanwhile.
    """
    if not holds_a_sequence(cache):
        return f"the cache holds {cache['cached_tokens']:,} tokens, but a sequence has {cache['max_model_len']:,}"
    room, sampling = job.options.gpu_memory, needed["sampling"]
    if job.colocates:
        sampling += cache["share"] * room * GIB - needed["parts"]["vLLM"]["bytes"]
    peak = max(needed["training"], sampling) / GIB
    return f"a GPU needs {peak:.1f} of {room:g} GiB" if peak > room else None


def _rollouts(job: Job, assumed: Assumptions, budget: int | None, cache: dict[str, Any]) -> list[Rollout]:
    """Return the rollouts to average."""
    copies = job.processes // cache["gpus"] if job.colocates else job.nodes * cache["copies"]
    rules, one = replace(rules_of(job), budget=budget), replace(engine(job, cache["gpus"]), device=assumed.device)
    copy = Copy(one, cache["cached_tokens"], cache["max_num_seqs"], assumed.prompt, rules.size)
    run = Rollouts(rules, assumed, copy, copies)
    return [run.next() for _ in range(WARM_UP + CYCLES)][WARM_UP:]


def _times(rollouts: Sequence[Rollout], train: Callable[[np.ndarray], tuple[float, float]]) -> np.ndarray:
    """Return the (cycles, 2) seconds of scoring and of steps."""
    return np.array([train(rollout.lengths) for rollout in rollouts])


def _colocated(options: PlanOptions, words: Sequence[str], assumed: Assumptions) -> Iterator[Variant]:
    """Simulate sampling on the GPUs that train.

    The variants are the recipe's share of a GPU, and the share that the run leaves. The second is also simulated with
    the number of GPUs a copy that promises most tokens a second. Under dynamic sampling each has a variant with
    partial rollouts, with the recipe's budget of a round or with a part of the longest response.
    """
    recipe = resolve(options, words)
    given, ranks = recipe.grpo.vllm_gpu_memory_utilization, recipe.grpo.vllm_tensor_parallel_size
    sizes = [] if given is None or recipe.serves else [(f"{given:g}", ranks)]
    settings = _colocation("null", ranks)
    job = _changed(options, words, settings)
    needed, trainers = memory(job), (trainer_of(job, assumed), _trainer_spared(options, words, settings, assumed))
    speeds = sampler(job)["by_tensor_parallel"]
    fastest = int(max(speeds, key=speeds.__getitem__, default=ranks))
    for share, number in dict.fromkeys([*sizes, ("null", ranks), ("null", fastest)]):
        settings = _colocation(share, number)
        job = _changed(options, words, settings)
        cache, rules = sampler(job), rules_of(job)
        refusal = _refusal(job, cache, needed)
        partial = rules.budget or max(rules.longest // PART_OF_LONGEST, 1)
        for budget in (None, partial) if rules.dynamic else (None,):
            name = f"colocated, {cache['share']:g} of a GPU, {number} a copy"
            name += "" if budget is None else f", rounds of {budget:,} tokens"
            cycles: list[Cycle | None] = [None, None]
            if refusal is None:
                rollouts = _rollouts(job, assumed, budget, cache)
                times = [None if train is None else _times(rollouts, train) for train in trainers]
                sync = synchronisation(rollouts, assumed.sync, colocates=True)
                cycles = [None if t is None else in_turns(rollouts, t, sync, 1.0, 1.0) for t in times]
            words_of_it = (*settings, "--max_new_tokens_per_round", "null" if budget is None else str(budget))
            yield Variant(name, words_of_it, cycles[0], refusal, spared=cycles[1])


def _colocation(share: str, ranks: int) -> tuple[str, ...]:
    """Return the settings of a colocated sampler that sleeps while the policy trains."""
    place = ("--vllm_mode", "colocate", "--vllm_enable_sleep_mode", "true")
    return (*place, "--vllm_gpu_memory_utilization", share, "--vllm_tensor_parallel_size", str(ranks))


def _halved(job: Job) -> PlanOptions | None:
    """Return the options of a plan for half of the GPUs, or None if they cannot be halved."""
    if job.nodes % 2 == 0:
        return replace(job.options, gpus=job.gpus, nodes=job.nodes // 2)
    return replace(job.options, gpus=job.gpus // 2, nodes=job.nodes) if job.gpus % 2 == 0 else None


def _split(options: PlanOptions, words: Sequence[str], assumed: Assumptions) -> Iterator[Variant]:
    """Simulate half of the GPUs as servers, in turns with training, and ahead of it."""
    half = _halved(resolve(options, words))
    if half is None:
        return
    settings = ("--vllm_mode", "server")
    job = _changed(half, words, settings)
    fitting = [size for size in server_sizes(job) if holds_a_sequence(size)]
    cache = max(fitting or [sampler(job)], key=lambda size: size["tokens_per_second"])
    name = f"{job.processes} train, {job.processes} serve, {cache['gpus']} a copy"
    refusal = _refusal(job, cache, memory(job))
    turns = one_ahead = None
    if refusal is None:
        rollouts = _rollouts(job, assumed, None, cache)
        times = _times(rollouts, trainer_of(job, assumed))
        sync = synchronisation(rollouts, assumed.sync, colocates=False)
        turns, one_ahead = (order(rollouts, times, sync, 0.5, 0.5) for order in (in_turns, ahead))
    yield Variant(f"{name}, in turns", settings, turns, refusal)
    yield Variant(f"{name}, a rollout ahead", settings, one_ahead, refusal, exists=False)


def choose(variants: Sequence[Variant]) -> Variant | None:
    """Return the first variant that exists, fits, and is nearly as fast as the fastest of them."""
    fitting = [(variant, variant.cycle.seconds) for variant in variants if variant.exists and variant.cycle]
    fastest = min((seconds for _, seconds in fitting), default=0.0)
    return next((variant for variant, seconds in fitting if seconds <= NOISE * fastest), None)


def assumptions(job: Job) -> Assumptions:
    """Return the assumptions about a job.

    Raises:
        ValueError: the job samples without vLLM, its mean length is unknown, or its responses fork.
    """
    args = job.grpo
    if not job.uses_vllm or job.use_cpu:
        raise ValueError("--simulate needs a recipe with use_vllm: true on GPUs, because it simulates vLLM.")
    if args.fork_rollouts is not None:
        raise ValueError(
            f"fork_rollouts is {args.fork_rollouts}, but --simulate knows no responses that continue others: add "
            "--fork_rollouts null, which simulates responses that are written whole."
        )
    if job.lengths.mean is None:
        raise ValueError("--simulate needs --mean-length, the mean number of tokens of a response, which decides it.")
    keeps_all = all(informative_counts(args.num_generations, args.min_accuracy, args.max_accuracy))
    return Assumptions(
        mean=job.lengths.mean,
        prompt=min(Assumptions.prompt, job.lengths.prompt),
        informative=1.0 if keeps_all else Assumptions.informative,
    )


def simulate(options: PlanOptions, words: Sequence[str]) -> dict[str, Any]:
    """Return the simulated cycles of a recipe, with the assumptions and the choice, in JSON types.

    Raises:
        ValueError: the recipe or an option is invalid, or the recipe cannot be simulated.
    """
    job = resolve(options, words)
    assumed = assumptions(job)
    found = [*_colocated(options, words, assumed), *_split(options, words, assumed)]
    choice = choose(found)
    return {
        "measured": False,
        "recipe": options.recipe,
        "gpus": job.processes,
        "assumptions": asdict(assumed) | {"longest": job.lengths.completion, "tflops": options.tflops},
        "simulated": [asdict(variant) for variant in found],
        "choice": None if choice is None else choice.name,
    }


def _assumed_rows(assumed: dict[str, Any]) -> list[tuple[str, str]]:
    device = assumed["device"]
    training = device["training"] if assumed["tflops"] is None else assumed["tflops"] * 1e12
    rates = f"{device['decoding'] / 1e12:.0f} TFLOP/s decoding, {device['prefill'] / 1e12:.0f} in prefill"
    rates += f", {training / 1e12:.0f} in training"
    lengths = f"log-normal, mean {assumed['mean']:g}, sigma {assumed['sigma']:g}, cut at {assumed['longest']:,} tokens"
    return [
        ("GPU", f"{device['name']}: {device['bandwidth'] / 1e12:.2f} TB/s, {rates}"),
        ("responses", f"{lengths}; {assumed['between']:.0%} of the variance between prompts"),
        ("prompts", f"{assumed['prompt']} tokens on average, cached once per group"),
        ("groups", f"{assumed['informative']:.0%} informative where dynamic sampling selects them"),
        ("sync", f"{assumed['sync']:g} s per call of a colocated vLLM, or per rollout of servers"),
        ("grading", "answers are parsed and graded in no time"),
    ]


def render(found: dict[str, Any]) -> str:
    """Return the simulation as text."""
    variants, parts = found["simulated"], ("generation", "scoring", "steps", "waiting")
    first = next((v["cycle"]["seconds"] for v in variants if v["cycle"]), None)
    rows = [["", *parts, "cycle", "speed-up", "old_logps: sampler"]]
    for variant in variants:
        cycle, spared = variant["cycle"], variant["spared"]
        figures = ["does not fit", *[""] * 6]
        if cycle is not None:
            seconds = [f"{cycle[name]:,.0f}" for name in (*parts, "seconds")]
            figures = [*seconds, *(f"{first / one['seconds']:.2f}" if one else "" for one in (cycle, spared))]
        rows.append([variant["name"] + ("" if variant["exists"] else " (not built)"), *figures])
    chosen = next((v for v in variants if v["name"] == found["choice"]), None)
    choice = (
        "none, because nothing fits" if chosen is None else f"{chosen['name']}, with {' '.join(chosen['settings'])}"
    )
    return "\n".join(
        [
            f"SIMULATED, not measured: seconds of the mean GPU in a cycle of {found['recipe']}, {found['gpus']} GPUs",
            aligned(rows, right=range(1, len(rows[0])), indent="  "),
            *dict.fromkeys(f"  {v['name']} does not fit: {v['refusal']}" for v in variants if v["refusal"]),
            "",
            "assumed",
            aligned(_assumed_rows(found["assumptions"]), indent="  "),
            "",
            f"simulated choice: {choice}",
        ]
    )


def run(options: PlanOptions, words: Sequence[str], as_json: bool) -> None:
    """Print the simulation of a recipe, and exit with status 1 if nothing fits.

    Raises:
        ValueError: the recipe or an option is invalid, or the recipe cannot be simulated.
    """
    found = simulate(options, words)
    print(json.dumps(found, indent=2) if as_json else render(found))
    if found["choice"] is None:
        sys.exit(1)
