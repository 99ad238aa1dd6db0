"""Rollouts from a server in parts: how they are divided, what fails and is asked again, and what ends a run."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import trl.generation.vllm_client
import trl.generation.vllm_generation

from benchmarks.fixtures import fixed_rollout
from entropy_grpo import launch
from entropy_grpo.runs.launched import ServerError
from entropy_grpo.runs.seal import complete_checkpoints
from entropy_grpo.training import server

from .conftest import REPOSITORY
from .served import StandIn, client_of
from .test_fsdp2 import TWO


@pytest.mark.parametrize("tokens", [1, 7, 20480, 10**9])
@pytest.mark.parametrize(("groups", "size"), [(512, 16), (3, 1), (5, 7), (1, 64), (2, 1000)])
def test_parts_are_bounded_and_cover_a_rollout_once(groups, size, tokens):
    covered = []
    for part in server.parts(groups * size, size, tokens):
        fits = part.count * tokens * server.TOKEN_BYTES <= server.REPLY_BYTES
        assert fits or part.count == 1  # a response is not divided
        prompts = [i // size for i in range(part.first, part.first + part.count)]
        assert part.count % part.n == 0 and all(prompts.count(p) == part.n for p in prompts)
        assert part.n == size or len(set(prompts)) == 1
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
        assert len(equal) == 7 and all(equal.values()), equal
    first = reports[0][0]
    requests = {name.split()[0]: value for name, value in first.items() if name.endswith("requests")}
    assert sorted(requests["groups"]) == [4] * 4
    assert sorted(requests["straddling"]) == [1, 1, 1, 5, 5, 5]
    assert sorted(requests["pieces"]) == [3] * 4 + [5] * 4
    assert requests["one"] == [2]


def test_failed_requests_are_sent_again_and_finished_ones_are_not(reports):
    asked = [json.dumps(prompts) for prompts in reports[0][0]["failing requests"]]
    assert len(asked) == 4 + 3 and len(set(asked)) == 4


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
    for module in (trl.generation.vllm_client, trl.generation.vllm_generation):
        monkeypatch.setattr(module, "is_vllm_available", lambda *args, **kwargs: True)

    def start(self, base_url, **kwargs):
        vars(self).update(vars(client_of(base_url)))

    kind = trl.generation.vllm_client.VLLMClient
    monkeypatch.setattr(kind, "__init__", start)
    monkeypatch.setattr(
        kind, "get_server_info", lambda self: {"model_config": {"logprobs_mode": "processed_logprobs"}}
    )
    for name in ("init_communicator", "reset_prefix_cache"):
        monkeypatch.setattr(kind, name, lambda self, device=None: None)
    monkeypatch.setattr(kind, "update_named_params", lambda self, metadata, named: list(named))
    monkeypatch.setattr(server, "FIRST_PAUSE", 0.01)


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


@pytest.mark.parametrize("settings", [{}, DYNAMIC], ids=["direct", "dynamic"])
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
