"""Simulated cycles: token by token against another program, conservation, monotony, and published runs."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from entropy_grpo import cli
from entropy_grpo.planning import flops, simulate, vllm
from entropy_grpo.planning.job import resolve
from entropy_grpo.planning.memory import GIB
from entropy_grpo.planning.options import PlanOptions
from entropy_grpo.planning.simulate import Assumptions, Copy, Rollouts, Rules

from .conftest import REPOSITORY

# An H20 as the simulation of the published runs takes it.
H20 = vllm.Device("H20", 0.75 * 4.0e12, 0.7 * 148e12, 0.5 * 148e12, 0.3 * 148e12)
ENGINE = vllm.Engine(1, 2e9, 2e9, 1e5, in_process=True)
RULES = Rules(8, 4, 512, True, 50, 1000, 1, 50, None, 2)
ASSUMED = Assumptions(mean=150, prompt=12)


def job_of(name, *words, **options):
    return resolve(PlanOptions(str(REPOSITORY / f"recipes/{name}.yaml"), **options), words)


def copy_of(cached=100_000, sequences=64):
    return Copy(ENGINE, cached, sequences, prompt=12, group=4)


# A copy of the model


def token_by_token(copy, requests):
    """Seconds, tokens and preemptions, a token of every response at a time; a response is (now, end)."""
    waiting, running, seconds, written, lost = list(requests), [], 0.0, 0, 0

    def held():
        return sum(now + copy.prompt / copy.group for now, _ in running)

    while waiting or running:
        while waiting and len(running) < copy.sequences:
            needed = waiting[0][0] + copy.prompt / copy.group
            if running and held() + needed + simulate.MARGIN * (len(running) + 1) > copy.cached:
                break
            seconds += copy.engine.prefill(needed)
            running.append(waiting.pop(0))
        if len(running) > 1 and held() + len(running) > copy.cached:
            while len(running) > 1 and copy.cached - held() < simulate.MARGIN * len(running):
                waiting.insert(0, running.pop())
                lost += 1
            continue
        seconds += copy.engine.step(len(running), sum(now + copy.prompt for now, _ in running))
        written += len(running)
        running = [(now + 1, end) for now, end in running if now + 1 < end]
    return seconds, written, lost


def test_a_copy_writes_as_token_by_token():
    generator = np.random.default_rng(0)
    losses = 0
    for cached in (700, 1100, 3000, 100_000):
        for sequences in (1, 3, 20):
            ends = generator.integers(1, 600, 24).tolist()
            before = [int(generator.integers(0, end)) * (i % 3 == 0) for i, end in enumerate(ends)]
            requests = list(zip(before, ends, strict=True))
            found = simulate.decode(copy_of(cached, sequences), requests)
            seconds, written, lost = token_by_token(copy_of(cached, sequences), requests)
            assert found.seconds == pytest.approx(seconds, rel=1e-9)
            assert (found.written, found.preempted) == (written, lost)
            assert found.written == sum(ends) - sum(before)
            losses += lost
    assert losses > 20


def test_equal_responses_have_a_closed_form():
    n, number = 300, 20
    found = simulate.decode(copy_of(), [(0, n)] * number)
    steps = n * ENGINE.step(number, number * (12 + (n - 1) / 2))
    assert found.seconds == pytest.approx(steps + ENGINE.prefill(number * 12 / 4), rel=1e-9)


def test_a_response_beyond_the_cache_is_refused():
    with pytest.raises(ValueError, match="holds 500 tokens, but a prompt and its response have 512"):
        simulate.decode(copy_of(cached=500), [(0, 500)])


# Lengths and rollouts


@pytest.mark.parametrize("sigma, mean", [(0.4, 7000), (0.8, 7000), (1.2, 1500)])
def test_lengths_have_the_mean(sigma, mean):
    drawn = simulate.draw_lengths(Assumptions(mean, sigma), 20480, 5000, 16, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(mean, rel=0.02)
    assert 1 <= drawn.min() and drawn.max() == 20480
    within = np.log(drawn[(drawn < 20480).all(axis=1)]).var(axis=1, ddof=1).mean()
    assert within < 0.75 * sigma**2  # the rest lies between prompts


@pytest.mark.parametrize("budget", [None, 100])
def test_every_token_is_written_once(budget):
    """All groups are kept, so that every token belongs to a group of a rollout, or to one that waits or grows."""
    run = Rollouts(replace(RULES, budget=budget), replace(ASSUMED, informative=1.0), copy_of(), 3)
    rollouts = [run.next() for _ in range(6)]
    assert all(rollout.lengths.shape == (8, 4) for rollout in rollouts)
    trained = sum(int(rollout.lengths.sum()) for rollout in rollouts)
    waiting = sum(int(group.lengths.sum()) for group in run.sampler.waiting)
    growing = sum(int(group.done.sum()) for group in run.unfinished)
    assert sum(rollout.written for rollout in rollouts) == trained + waiting + growing
    assert bool(growing) == (budget is not None)
    assert all(rollout.busy <= rollout.seconds for rollout in rollouts)


def test_partial_rollouts_grow_by_their_budget_and_keep_their_largest_age(monkeypatch):
    run, written = Rollouts(replace(RULES, budget=30), ASSUMED, copy_of(), 1), []
    write = run._write

    def checked(*args):
        before = {id(group): group.done for group in run.unfinished}
        write(*args)
        for group in run.unfinished:
            is_old = run.sampler.rollout - group.born >= RULES.response_age
            written.append(is_old)
            grown = np.minimum(group.lengths, before[id(group)] + 30)
            assert (group.done == (group.lengths if is_old else grown)).all()

    monkeypatch.setattr(run, "_write", checked)
    for _ in range(8):
        run.next()
        assert all(run.sampler.rollout - group.born < RULES.response_age for group in run.unfinished)
    assert 0 < sum(written) < len(written)


def seconds(copies=2, cached=4000, **changes):
    run = Rollouts(replace(RULES, **changes), ASSUMED, copy_of(cached), copies)
    return np.mean([run.next().seconds for _ in range(6)])


def test_more_gpus_and_more_cache_are_faster():
    by_copies, by_cache = [seconds(copies=n) for n in (1, 2, 4)], [seconds(cached=n) for n in (1000, 2000, 8000)]
    assert by_copies == sorted(by_copies, reverse=True) and by_cache == sorted(by_cache, reverse=True)
    assert by_copies[0] > 1.1 * by_copies[2] and by_cache[0] > 1.1 * by_cache[2]


def test_cycles_in_turns_and_ahead():
    lengths = np.full((2, 4), 10)
    rollouts = [
        simulate.Rollout(seconds=s, busy=s / 2, written=160, recomputed=40, calls=1, lengths=lengths)
        for s in (30.0, 50.0, 70.0)
    ]
    times = np.array([[10.0, 30.0]] * 3)
    cycle = simulate.in_turns(rollouts, times, 5.0, 1.0, 1.0)
    assert (cycle.seconds, cycle.generation, cycle.scoring, cycle.steps) == (95.0, 25.0, 10.0, 30.0)
    assert cycle.waiting == 30.0  # 25 for others, and the sync
    assert (cycle.written_per_trained, cycle.recomputed_per_trained) == (2.0, 0.5)
    cycle = simulate.ahead(rollouts, times, 5.0, 0.5, 0.5)
    assert cycle.seconds == 65.0  # (50 + 70) / 2: generation is longer than 40
    assert cycle.generation + cycle.scoring + cycle.steps + cycle.waiting == 65.0


def test_training_has_the_operations_of_the_plan():
    """For equal lengths, and with attention over the whole square, as the plan counts it."""
    job = job_of("qwen3_14b", "--model_name_or_path", "Qwen/Qwen3-0.6B-Base", mean_length=7000, tflops=100)
    assumed = replace(simulate.assumptions(job), prompt=job.lengths.prompt)
    found = simulate.trainer_of(job, assumed)(np.full((512, 16), 7000))
    parts = {name: size for name, size in flops.operations(job)["parts"].items() if name != "generation"}
    scoring = sum(parts.pop(name) for name in flops.SCORING.values() if name in parts)
    per_step = np.array([scoring, sum(parts.values())]) * 16 / (8 * 100e12)
    forward, _ = job.policy.operations(True)
    pairs = forward.pair * 9048**2 * 512 * 16 / (8 * 100e12)
    assert job.objective.aligns  # attention counts half of the pairs: once in scoring, and in four passes of a step
    assert per_step - np.array(found) == pytest.approx(np.array([0.5, 2.0]) * pairs, rel=0.01)


@pytest.mark.parametrize("band, share", [((0.0, 1.0), 1.0), ((0.0, 0.95), 0.5), ((0.05, 1.0), 0.5)])
def test_a_recipe_that_keeps_all_groups_writes_what_it_trains(band, share):
    words = ["--min_accuracy", str(band[0]), "--max_accuracy", str(band[1]), "--prompts_per_rollout", "32"]
    job = job_of("qwen3_14b", *words, "--steps_per_rollout", "1", mean_length=7000)
    rules, assumed = simulate.rules_of(job), simulate.assumptions(job)
    assert rules.dynamic and assumed.informative == share
    run = Rollouts(rules, assumed, copy_of(10**9), 4)
    rollouts = [run.next() for _ in range(8)][2:]
    trained = sum(int(rollout.lengths.sum()) for rollout in rollouts)
    assert sum(rollout.written for rollout in rollouts) / trained == pytest.approx(1 / share, rel=0.2)


def test_a_sleeping_engine_gets_the_weights_at_every_call():
    """A server gets them once for a rollout."""
    lengths, times = np.full((2, 4), 10), np.array([[10.0, 30.0]] * 2)
    rollouts = [simulate.Rollout(50.0, 40.0, 160, 40, calls, lengths) for calls in (3, 5)]
    assert simulate.synchronisation(rollouts, 5.0, colocates=True) == 20.0
    assert simulate.synchronisation(rollouts, 5.0, colocates=False) == 5.0
    once, often = (simulate.in_turns(rollouts, times, sync, 1.0, 1.0) for sync in (5.0, 20.0))
    assert (once.seconds, often.seconds, often.waiting - once.waiting) == (95.0, 110.0, 15.0)


def test_calls_of_a_round_follow_each_other():
    """A round of whole responses has one call. In partial rollouts responses near the longest have another."""
    run = Rollouts(replace(RULES, rounds=1, round_size=8), replace(ASSUMED, informative=1.0), copy_of(), 1)
    assert run.next().calls == 1
    run = Rollouts(replace(RULES, budget=100), ASSUMED, copy_of(), 1)
    run.unfinished = [
        simulate.Group(np.array([80, 512, 300, 90]), np.zeros(4, int), True, 0),
        simulate.Group(np.array([512, 450, 60, 500]), np.array([430, 430, 60, 430]), True, 0),
    ]
    found = simulate.Rollout()
    run._write(False, found)
    short = simulate.decode(copy_of(), [(0, 80), (0, 100), (0, 100), (0, 90)])
    rest = simulate.decode(copy_of(), [(430, 512), (430, 450), (430, 500)])
    assert found.calls == 2 and found.seconds == pytest.approx(short.seconds + rest.seconds)
    assert found.written == short.written + rest.written


# Published runs


def test_published_run_of_vllm():
    """GPUStack with vLLM 0.11: Qwen3-14B on one H100, 1,000 requests of ShareGPT at once; 64 s."""
    job = job_of("qwen3_14b")
    engine = replace(vllm.engine(job, 1), in_process=False)
    cached = int((0.9 * 80 * GIB - engine.weights - 3e9) / engine.token)
    draws = np.exp(4.75 + 1.1 * np.random.default_rng(0).standard_normal(1000)).clip(1, 1500)
    lengths = np.ceil(draws * 201_648 / draws.sum()).astype(int)
    found = simulate.decode(Copy(engine, cached, 1024, prompt=217, group=1), [(0, int(n)) for n in lengths])
    assert found.seconds == pytest.approx(64, rel=0.25)


@pytest.mark.parametrize("sigma", [0.8, 1.0])
def test_published_run_of_verl(sigma, monkeypatch):
    """verl, generation one step ahead: Qwen2.5-Math-7B on H20s, 512 x 12 responses of up to 20,480 tokens.

    Its vLLM is older, and a step is assumed to wait 5 ms for scheduling. The mean length is fitted to the published
    247 s on 16 GPUs. A step takes 749 s in turns, of which 445 s are training. Published for 4 GPUs that generate and
    12 that train: 520 s, 1.44 times as fast.
    """
    monkeypatch.setattr(vllm, "ON_SERVER", 5e-3)
    job = job_of("qwen25_math_7b_grpo")
    engine = replace(vllm.engine(job, 2), in_process=False, device=H20)
    cached = int((0.8 * 96e9 - engine.weights - 3e9) / engine.token)
    rules = Rules(512, 12, 20480, False, 1, 512, 1, 0, None, 2)

    def seconds(mean, gpus):
        copy = Copy(engine, cached, 1024, prompt=200, group=12)
        return Rollouts(rules, Assumptions(mean, sigma), copy, gpus // 2).next().seconds

    low, high = 200.0, 4000.0
    for _ in range(8):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if seconds(middle, 16) < 247 else (low, middle)
    speed_up = 749 / max(seconds(low, 4), 108 + 337)
    assert 1.30 <= speed_up <= 1.62


# The command


def test_the_command_prints_simulated_figures(capsys):
    words = ["plan", str(REPOSITORY / "recipes/qwen3_14b.yaml"), "--simulate", "--gpus", "8", "--mean-length", "500"]
    words += ["--max_completion_length", "2048", "--overlong_cache_length", "512", "--prompts_per_rollout", "32"]
    words += ["--steps_per_rollout", "1", "--vllm_gpu_memory_utilization", "0.4"]
    cli.main(words)
    text = capsys.readouterr().out
    for said in (
        "SIMULATED, not measured",
        "TB/s",
        "log-normal, mean 500, sigma 0.8, cut at 2,048",
        "simulated choice",
    ):
        assert said in text
    cli.main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["measured"] is False and found["gpus"] == 8
    names = [variant["name"] for variant in found["simulated"]]
    assert names[0] == "colocated, 0.4 of a GPU, 2 a copy" and found["choice"] in names
    for variant in found["simulated"]:
        cycle = variant["cycle"]
        parts = [cycle[name] for name in ("generation", "scoring", "steps", "waiting")]
        assert min(parts) > 0 and sum(parts) == pytest.approx(cycle["seconds"])
        assert f"{cycle['seconds']:,.0f}" in text
        if variant["name"].startswith(
            "colocated"
        ):  # without the pass over the rollout, whose head is in the steps now
            spared = variant["spared"]
            assert spared["scoring"] == 0 and cycle["steps"] < spared["steps"] < cycle["steps"] + cycle["scoring"]
            assert f"{found['simulated'][0]['cycle']['seconds'] / spared['seconds']:.2f}" in text
    assert not next(v for v in found["simulated"] if "ahead" in v["name"])["exists"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--use_vllm", "false"], "use_vllm: true"),
        ([], "--mean-length, the mean number of tokens"),
        (["--fork_rollouts", "4"], "fork_rollouts is 4, but --simulate .* --fork_rollouts null"),
    ],
)
def test_a_recipe_that_cannot_be_simulated_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        simulate.assumptions(job_of("qwen3_14b", *words))


def test_the_choice_is_the_simplest_of_nearly_equal_ones():
    def variant(name, seconds, exists=True):
        cycle = None if seconds is None else simulate.Cycle(0, 0, 0, 0, seconds, 1, 0)
        return simulate.Variant(name, (), cycle, exists=exists)

    variants = [variant("a", 110), variant("b", None), variant("c", 104), variant("d", 100), variant("e", 50, False)]
    assert simulate.choose(variants).name == "c"
    assert simulate.choose(variants[1:2]) is None
