"""Rollouts from a server in parts: how they are divided, what fails and is asked again, and what ends a run."""

import json
import os
import re
import subprocess
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.fixtures import fixed_rollout
from benchmarks.fixtures.stand_in import StandIn, log_normal, stand_before_vllm
from entropy_grpo import launch
from entropy_grpo.rewards.registry import Control, random
from entropy_grpo.runs.launched import ServerError
from entropy_grpo.runs.seal import complete_checkpoints
from entropy_grpo.training import server

from .conftest import REPOSITORY
from .served import generation_of
from .test_fsdp2 import TWO


@pytest.mark.parametrize("tokens", [1, 7, 20480, 10**9])
@pytest.mark.parametrize(("groups", "size"), [(512, 16), (3, 1), (5, 7), (1, 64), (2, 1000), (100, 1)])
def test_parts_are_bounded_and_cover_a_rollout_once(groups, size, tokens):
    covered = []
    for part in server.parts(groups * size, size, tokens):
        fits = part.count * tokens * server.TOKEN_BYTES <= server.REPLY_BYTES
        assert fits or part.count == 1  # a response is not divided
        prompts = [i // size for i in range(part.first, part.first + part.count)]
        assert part.count % part.n == 0 and all(prompts.count(p) == part.n for p in prompts)
        assert part.n == size or len(set(prompts)) == 1
        assert len(set(prompts)) == 1 or (size == 1 and part.count <= server.SINGLES)
        covered += range(part.first, part.first + part.count)
    assert covered == list(range(groups * size))


def test_reply_of_a_paper_s_group_is_in_bounds():
    """16 responses of 20,480 tokens are one request, and 512 of such groups are 512."""
    assert [part.n for part in server.parts(512 * 16, 16, 20480)] == [16] * 512


@pytest.fixture(scope="module")
def reports(tmp_path_factory, preloaded):
    """What two processes found, and the error of the one that waited in a collective of TRL's."""
    folder = tmp_path_factory.mktemp("served")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [preloaded, *TWO, "-m", "tests.served", str(folder)]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200)
    found = [json.loads((folder / f"{i}.json").read_text()) for i in range(2)]
    return found, (folder / "1.txt").read_text(), result


def test_parts_give_what_one_request_gives(reports):
    for report in reports[0]:
        equal = {name: value for name, value in report.items() if value is True or value is False}
        assert len(equal) == 10 and all(equal.values()), equal
    first = reports[0][0]
    requests = {name.split()[0]: value for name, value in first.items() if name.endswith("requests")}
    assert sorted(requests["groups"]) == [2] * 8
    assert sorted(requests["straddling"]) == [1, 1, 1, 5, 5, 5]
    assert sorted(requests["pieces"]) == [3] * 4 + [5] * 4
    assert requests["one"] == [2]
    assert sorted(requests["singles"]) == [1, 5, 5, 5, 5, 5]  # the bound of 5 comes before SINGLES


def test_what_was_asked_ahead_is_not_asked_again(reports):
    """A group that two processes share is found to be dropped, and the first of them asks for two groups at once."""
    for report in reports[0]:
        assert report["ahead"] is True
    asked = reports[0][0]["ahead requests"]
    assert sorted(asked) == [[0, 1], [1, 1], [2, 1], [7, 1], [8, 1]]


def test_failed_requests_are_sent_again_and_finished_ones_are_not(reports):
    asked = [json.dumps(prompts) for prompts in reports[0][0]["failing requests"]]
    assert len(asked) == 8 + 3 and len(set(asked)) == 8


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("refused", "refuses a request with status 400"),
        ("broken", "is healthy and failed 6 times at one request"),
        ("restarted", "was started again during the run"),
        ("gone", "has not answered for 3 s"),
    ],
)
def test_every_process_has_the_sentence(reports, case, sentence):
    one, other = (report[case] for report in reports[0])
    assert sentence in one and one == other


def test_no_collective_waits_as_long_as_the_server(reports):
    """Collectives may take 4 seconds and the server takes 6: TRL's own call does not survive that."""
    found, error, _ = reports
    assert [report["slow"] for report in found] == [8, 8]
    assert "imed out" in error or "timeout" in error.lower(), error


@pytest.fixture
def client(monkeypatch, tmp_path_factory):
    """TRL without an installed vLLM, and without a way to send weights."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").touch()  # which is found, and not imported
    monkeypatch.syspath_prepend(str(folder))
    stand_before_vllm(monkeypatch.setattr)
    monkeypatch.setattr(server, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(server, "HEARTBEAT", 0.05)


class Coins:
    """A user's reward that grades in threads what it is told of, as it arrives."""

    __name__ = "coins"

    def __init__(self, enough=0):
        self.threads, self.verdicts, self.told, self.graded = ThreadPoolExecutor(2), {}, [], []
        self.enough, self.has_enough = enough, threading.Event()

    def begin(self, prompts, completions, **columns):
        pairs = list(zip(prompts, completions, strict=True))
        self.told += completions
        for pair in pairs:
            self.verdicts[pair] = self.threads.submit(lambda text: float(len(text) % 3 == 0), pair[1])
        if len(self.told) >= self.enough:
            self.has_enough.set()
        return [self.verdicts[pair] for pair in pairs]

    def __call__(self, prompts, completions, log_metric, **columns):
        self.graded += completions
        rewards = [self.verdicts[pair].result() for pair in zip(prompts, completions, strict=True)]
        log_metric("coins/share", sum(rewards) / len(rewards))
        return rewards


SETTINGS = {
    "use_vllm": True,
    "vllm_mode": "server",
    "vllm_server_timeout": 0.1,
    "max_steps": 6,
    "steps_per_generation": 2,
    "gradient_accumulation_steps": 1,
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    "entropy_scope": "rollout",
}
DYNAMIC = {"dynamic_sampling": True, "reward": "coins", "sampling_round_size": 1, "max_sampling_rounds": 30}


def train(model, folder, stand_in, resume=None, **settings):
    settings = SETTINGS | {"vllm_server_base_url": stand_in.url} | settings
    trainer = fixed_rollout.make_trainer(model, folder, sampled=True, **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def rows(trainer):
    clocked = ("time", "seconds", "per_second", "runtime", "peak_memory", "resumed_from")
    return [
        {name: value for name, value in row.items() if not any(word in name for word in clocked)}
        for row in trainer.state.log_history
        if "loss" in row
    ]


ALL = DYNAMIC | {"min_accuracy": 0.0, "max_accuracy": 1.0}  # groups are kept, so that rounds are few
PARTS = ALL | {"max_new_tokens_per_round": 3, "max_response_age": 2}
FORKS = ALL | {"fork_rollouts": 2, "fork_min_chars": 1}
EARLY = DYNAMIC | {"reward": Coins()}


@pytest.mark.parametrize("settings", [{}, EARLY, PARTS, FORKS], ids=["direct", "dynamic", "parts", "forks"])
def test_a_run_whose_server_ends_goes_on_from_a_checkpoint(client, tiny_model, tmp_path, settings):
    """Nothing asked for a checkpoint; what comes is what an undisturbed run has, bit for bit."""
    with StandIn().running() as stand_in:
        whole = train(tiny_model, tmp_path / "whole", stand_in, **settings)
        number = len(stand_in.asked)
    with StandIn().running() as stand_in:
        # The last request but one: with dynamic sampling a rollout of which earlier rounds are there.
        stand_in.fails = lambda i: 500 if i >= number - (2 if settings else 1) else None
        with pytest.raises(ServerError, match="--resume_from_checkpoint true continues from checkpoint-4"):
            train(tiny_model, tmp_path / "run", stand_in, **settings)
    *_, checkpoint = complete_checkpoints(tmp_path / "run")
    assert checkpoint.name == "checkpoint-4"
    with StandIn().running() as stand_in:
        resumed = train(tiny_model, tmp_path / "run", stand_in, str(checkpoint), **settings)
    assert rows(resumed) == rows(whole)
    once, again = fixed_rollout.weights(whole), fixed_rollout.weights(resumed)
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_a_launch_without_its_server_is_one_sentence(tiny_model, tmp_path, capsys, client):
    words = ["--use_vllm", "true", "--vllm_mode", "server", "--vllm_server_port", "9", "--vllm_server_timeout", "0.1"]
    words += ["--model_name_or_path", str(tmp_path / "no_model"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as end:
        launch.run(str(REPOSITORY / "recipes" / "demo_cpu.yaml"), words)
    assert end.value.code == 1
    assert "error: the vLLM server at http://0.0.0.0:9 has not answered for 0.1 s" in capsys.readouterr().err
    assert not Path(tmp_path / "run").exists()


def test_a_server_that_goes_during_a_transfer_of_weights_ends_the_run(preloaded, tmp_path):
    """Nothing else would: NCCL waits for its peer, and the other processes wait for this one."""
    command = [preloaded, "-m", "tests.served", str(tmp_path), "transfer"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    said = r"error: during a transfer of weights, the vLLM server at \S+ has not answered for 0.2 s \(ConnectError\): "
    said += f"start the server again, and begin again, since {tmp_path} has no complete checkpoint yet.\n"
    assert re.fullmatch(said, result.stderr)


def test_a_server_with_short_sequences_is_refused():
    with StandIn().running() as stand_in:
        asked = server.Server(stand_in.url, 1.0, 1.0)
        asked.check_length(128)
        with pytest.raises(ServerError, match="start it with --max-model-len 129"):
            asked.check_length(129)


@pytest.mark.parametrize("further", [0, 16])
def test_continuations_fit_the_sequences_of_the_server(client, tiny_model, tmp_path, further):
    """vLLM refuses a prompt that is too long with the tokens that are asked for, wherever a response would end."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    longest = 16 + max(len(tokenizer(prompt)["input_ids"]) for prompt in fixed_rollout.prompts(8)["prompt"])
    settings = FORKS | {"vllm_max_model_length": longest + further, "max_steps": 2, "max_completion_length": 16}
    with StandIn(longest=24).running() as stand_in:
        train(tiny_model, tmp_path, stand_in, **settings)
    limits = {(len(prompt), body["max_tokens"]) for body in stand_in.asked for prompt in body["prompt"]}
    assert max(length + limit for length, limit in limits) <= longest + further
    assert len({length for length, _ in limits}) > 4
    if further:  # one call of responses from their beginning, and one of those that continue them
        assert len({limit for _, limit in limits}) <= 2


def fetch(stand_in, groups, size=2, requests=8, silence=60.0, arrived=lambda places, ids: None):
    """Responses of TRL's generation in parts, in this process."""
    generation = generation_of(stand_in.url, 7, seed=5)
    server.InParts(generation, silence, Path("run"), requests, arrived=arrived)
    return generation.generate([[i // size, 1] for i in range(groups * size)], None, size)


@pytest.mark.parametrize("requests", [1, 3])
def test_the_server_has_so_many_requests_at_a_time(requests):
    """They meet in the server, which none of them leaves alone; never are there more."""
    lock, meet, under_way, most = threading.Lock(), threading.Barrier(requests), 0, 0

    def watch(number):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        meet.wait(10)
        with lock:
            under_way -= 1

    with StandIn().running() as stand_in:
        stand_in.fails = watch
        assert len(fetch(stand_in, 6, requests=requests)[1]) == 12
    assert most == requests


def test_requests_that_hold_all_connections_do_not_hide_a_healthy_server(monkeypatch):
    """As requests ahead of their round do, whose responses may take longer than a server may be out of reach."""
    monkeypatch.setattr(server, "CONNECT_SECONDS", 0.1)
    begun, go_on = threading.Event(), threading.Event()
    with StandIn().running() as stand_in:
        stand_in.fails = lambda number: begun.set() or (go_on.wait(10) and None)
        generation = generation_of(stand_in.url, 7, seed=5)
        parts = server.InParts(generation, 60.0, Path("run"), 1)
        parts.server.patience = 0.3
        writing = threading.Thread(target=generation.generate, args=([[1, 1], [1, 1]], None, 2))
        writing.start()
        assert begun.wait(10)
        parts.server.wait()
        assert writing.is_alive()
        go_on.set()
        writing.join(10)


def test_a_reply_is_held_until_it_is_read_only():
    requests = server.Requests(lambda number: {"completion_ids": [[number]]}, 2)
    requests.foresee({"number": 0})
    made = [requests.make({"number": number}) for number in range(5)]
    found = {number: reply["completion_ids"] for number, reply in requests.replies(made, 10.0)}
    assert found == {number: [[number]] for number in range(5)}
    assert all(asked.reply is None for asked in made)


def test_only_a_server_that_answers_nothing_is_silent():
    """A request may wait as long as it must while others are answered."""
    with StandIn(longest=1, places=1, pace=0.05).running() as stand_in:
        assert len(fetch(stand_in, 6, silence=0.25)[1]) == 12  # 0.6 s in all, and the last of the requests as long
        stand_in.delay = 5.0
        with pytest.raises(ServerError, match="has answered no request"):
            fetch(stand_in, 2, silence=0.25)


def test_grading_begins_while_the_server_writes(client, tiny_model, tmp_path):
    """The last of a rollout's four requests is answered only when the responses of the others are being graded."""
    reward, held = Coins(enough=12), []

    def hold(number):
        if number == 3:
            held.append(reward.has_enough.wait(10))

    with StandIn().running() as stand_in:
        stand_in.fails = hold
        train(tiny_model, tmp_path, stand_in, reward=reward, max_steps=1)
    assert held == [True]
    assert len(reward.told) == len(reward.graded) == 16


@pytest.mark.parametrize("reward", [Coins(), Control("random", random, 1.0, 0.0)], ids=["futures", "built in"])
def test_a_dropped_group_is_replaced_while_the_server_writes_others(client, tiny_model, tmp_path, reward):
    """The first of a round's four requests is answered only when the server is asked for groups of the next round."""
    next_round, held = threading.Event(), []

    def hold(number):
        if number == 0:
            held.append(next_round.wait(10))
        elif number >= 4:
            next_round.set()

    settings = DYNAMIC | {"reward": reward, "min_accuracy": 0.75, "max_sampling_rounds": 2}
    with StandIn().running() as stand_in:
        stand_in.fails = hold
        trainer = train(tiny_model, tmp_path, stand_in, max_steps=1, **settings)
    assert held == [True]
    assert len(stand_in.asked) == rows(trainer)[0]["dynamic_sampling/drawn"] == 8


def test_weights_wait_for_what_was_asked_in_vain():
    begun, answered, ended = threading.Event(), threading.Event(), threading.Event()
    requests = server.Requests(lambda number: [begun.set(), answered.wait(10)], 1)
    requests.foresee({"number": 1})
    requests.foresee({"number": 2})
    assert begun.wait(10)
    waiting = threading.Thread(target=lambda: [requests.end(), ended.set()])
    waiting.start()
    assert not ended.wait(0.05)
    answered.set()
    waiting.join(10)
    assert ended.is_set() and not requests.ahead and not requests.unsent


class Hasty(Coins):
    """A reward that takes every response for wrong at first."""

    def begin(self, prompts, completions, **columns):
        super().begin(prompts, completions)
        futures = [Future() for _ in completions]
        for future in futures:
            future.set_result(0.0)
        return futures


@pytest.mark.parametrize(
    ("settings", "kind"), [({}, Coins), (DYNAMIC, Coins), (DYNAMIC, Hasty)], ids=["direct", "dynamic", "hasty"]
)
def test_the_order_of_arrival_changes_nothing(client, tiny_model, tmp_path, monkeypatch, settings, kind):
    """Bit for bit what TRL's one request for a rollout gives: rewards, their order, logs, weights, and what is asked.

    More is asked only for a reward that changes its mind.
    """
    found = {}
    for name, pace in (("parts", 0.001), ("whole", 0.0)):
        if name == "whole":
            monkeypatch.setattr("entropy_grpo.training.trainer.InParts", lambda *given: None)
        with StandIn(length=log_normal(5, 1.2, 16), places=8, pace=pace).running() as stand_in:
            reward = kind()
            trainer = train(tiny_model, tmp_path / name, stand_in, **settings | {"reward": reward})
            asked = Counter(tuple(prompt) for body in stand_in.asked for prompt in body["prompt"])
            found[name] = rows(trainer), fixed_rollout.weights(trainer), reward, asked
    (logs, weights, parts, asked), (expected, others, whole, least) = found["parts"], found["whole"]
    assert asked > least if kind is Hasty else asked == least
    assert logs == expected and 0 < logs[0]["coins/share"] < 1
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert parts.graded == whole.graded == whole.told
    assert sorted(parts.told) == sorted(whole.told) and parts.told != whole.told
