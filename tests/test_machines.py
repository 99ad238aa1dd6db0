"""Several machines: network namespaces for real ones, and a stand-in for SLURM's programs."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .conftest import ACCELERATE, REPOSITORY

BIN = Path(sys.executable).parent
SETTINGS = (
    "--max_steps 2 --num_generations 4 --per_device_train_batch_size 4 --steps_per_generation 2 --rewards [random] "
    "--num_train_problems 16 --num_dev_problems 0 --num_test_problems 0 --eval_strategy no --save_strategy no "
    "--learning_rate 1.0e-2 --max_completion_length 12 --disable_tqdm true"
).split()
ENVIRONMENT = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
# After an interpreter; static rendezvous also for two processes on one machine, as across machines.
LAUNCH = f"{ACCELERATE} launch --multi_gpu --num_processes 2 --rdzv_backend static --main_process_port".split()


def namespaces_can_be_made():
    return subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0


def run(command, **kwargs):
    subprocess.run(command, check=True, capture_output=True, **kwargs)


@pytest.fixture
def machines():
    """Two network namespaces joined by a cable: their names and addresses."""
    names = [f"machine{k}-{os.getpid()}" for k in range(2)]
    try:
        for name in names:
            run(["ip", "netns", "add", name])
        cable = [f"v{k}-{os.getpid()}"[:15] for k in range(2)]
        run(
            [
                "ip",
                "link",
                "add",
                cable[0],
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                cable[1],
                "netns",
                names[1],
            ]
        )
        for k, (name, end) in enumerate(zip(names, cable, strict=True)):
            inside = ["ip", "-n", name]
            run([*inside, "addr", "add", f"10.77.0.{k + 1}/24", "dev", end])
            run([*inside, "link", "set", end, "up"])
            run([*inside, "link", "set", "lo", "up"])
        yield list(zip(names, cable, ["10.77.0.1", "10.77.0.2"], strict=True))
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                run(["ip", "netns", "delete", name])


def recipe_words(model, output):
    return ["recipes/demo_cpu.yaml", *SETTINGS, "--model_name_or_path", str(model), "--output_dir", str(output)]


@pytest.fixture(scope="module")
def one_machine(tiny_model, tmp_path_factory, preloaded):
    """The weights that two processes on one machine train."""
    output = tmp_path_factory.mktemp("machines") / "one"
    command = [preloaded, *LAUNCH, "29512", *recipe_words(tiny_model, output)]
    result = subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return load_file(output / "model.safetensors")


def assert_same(weights, others, model):
    start = load_file(Path(model) / "model.safetensors")
    assert max((weights[name] - start[name]).abs().max() for name in weights) > 1e-3, "nothing was trained"
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name


@pytest.mark.slow
@pytest.mark.skipif(not namespaces_can_be_made(), reason="network namespaces cannot be made here")
def test_two_machines_train_like_one(tiny_model, tmp_path, machines, one_machine, preloaded):
    processes = []
    for rank, (name, end, _) in enumerate(machines):
        inside = ["ip", "netns", "exec", name, preloaded]
        command = [*inside, *LAUNCH, "29500", "--num_machines", "2", "--machine_rank", str(rank)]
        command += ["--main_process_ip", machines[0][2], *recipe_words(tiny_model, tmp_path / "two")]
        command += ["--accelerate_config", "accelerate_configs/fsdp2_multinode.yaml"]
        environment = ENVIRONMENT | {"GLOO_SOCKET_IFNAME": end}
        log = open(tmp_path / f"{rank}.log", "w")
        processes.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], (tmp_path / "0.log").read_text()[-3000:]
    assert_same(load_file(tmp_path / "two" / "model.safetensors"), one_machine, tiny_model)


# Like SLURM: one process per task, each of which learns its number on its machine; what the batch shell expands has
# none. Both machines are this one.
SRUN = """#!/bin/bash
tasks=1
while [[ $1 == --* ]]; do
  case $1 in
    --*=*) shift ;;
    --overlap) shift ;;
    --ntasks) tasks=$2; shift 2 ;;
    *) shift 2 ;;
  esac
done
pids=()
for (( i = 0; i < tasks; i++ )); do SLURM_PROCID=$i "$@" & pids+=($!); done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""
SCONTROL = "#!/bin/bash\nprintf '127.0.0.1\\nlocalhost\\n'\n"


@pytest.fixture
def slurm(tmp_path):
    """An environment with SLURM's programs, inside a job of two machines with one process each."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "node[1-2]", "GPUS_PER_NODE": "1", "MAIN_PORT": "29513"}
    return ENVIRONMENT | job | {"PATH": f"{programs}:{ENVIRONMENT['PATH']}", "RUN_FOLDER": str(tmp_path / "run")}


@pytest.mark.slow
def test_slurm_script_gives_every_machine_its_rank(tiny_model, tmp_path, slurm, one_machine, preloaded):
    program = tmp_path / "bin" / "entropy-grpo"
    program.write_text(f'#!/bin/bash\nexec {preloaded} {BIN}/entropy-grpo "$@"\n')
    program.chmod(0o755)
    words = [word for word in recipe_words(tiny_model, "unused") if word not in ("--output_dir", "unused")]
    command = ["bash", "accelerate_configs/slurm.sh", *words]
    result = subprocess.run(command, cwd=REPOSITORY, env=slurm, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert_same(load_file(tmp_path / "run" / "model.safetensors"), one_machine, tiny_model)


def test_slurm_script_serves_from_the_last_machine(tmp_path, slurm, preloaded):
    """What each machine is told to run, written down by programs of the same names."""
    # A run lasts until its server has started; its plan is the real one.
    first = {
        "entropy-grpo": f'[[ $1 == plan ]] && exec {preloaded} {BIN}/entropy-grpo "$@"\n'
        f"until [[ -e {tmp_path}/vllm-0.txt ]]; do sleep 0.1; done\n",
        "vllm": "",
    }
    for name, before in first.items():
        path, told = tmp_path / "bin" / name, tmp_path / f"{name}-$SLURM_PROCID.txt"
        path.write_text(f'#!/bin/bash\n{before}(echo "{name}"; printf "%s\\n" "$@") > {told}\n')
        path.chmod(0o755)
    words = ["recipes/qwen3_14b.yaml", "--vllm_mode", "server", "--model_revision", "abc", "--run_name", "two words"]
    result = subprocess.run(
        ["bash", "accelerate_configs/slurm.sh", *words],
        cwd=REPOSITORY,
        env=slurm | {"GPUS_PER_NODE": "8", "PLAN_OPTIONS": "--gpu-memory 40"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    launched = (tmp_path / "entropy-grpo-0.txt").read_text().splitlines()
    served = (tmp_path / "vllm-0.txt").read_text().splitlines()
    assert served[:5] == ["vllm", "serve", "Qwen/Qwen3-14B-Base", "--revision", "abc"]
    assert '{"backend": "nccl"}' in served and served[served.index("--max-model-len") + 1] == str(2048 + 20480)
    # 28 GiB of weights are more than half of a GPU of 40.
    parallel = {name: served[served.index(f"--{name}-parallel-size") + 1] for name in ("tensor", "data")}
    assert parallel == {"tensor": "2", "data": "4"}
    assert launched[launched.index("--num_machines") + 1] == "1"
    assert launched[launched.index("--vllm_server_host") + 1] == "localhost"
    assert launched[-2:] == ["--run_name", "two words"]
    assert not (tmp_path / "entropy-grpo-1.txt").exists()


@pytest.mark.parametrize(("status", "requeued"), [(75, "requeue 12345\n"), (1, ""), (0, "")])
def test_slurm_script_requeues_a_job_whose_run_saved_and_stopped(tmp_path, slurm, status, requeued):
    calls = tmp_path / "calls.txt"
    calls.touch()
    run = f"#!/bin/bash\n[[ $1 == plan ]] && exit 0\nexit {status}\n"
    control = f'#!/bin/bash\n[[ $1 == show ]] && printf "127.0.0.1\\nlocalhost\\n" || echo "$@" >> {calls}\n'
    for name, text in (("entropy-grpo", run), ("scontrol", control)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    command = ["bash", "accelerate_configs/slurm.sh", "recipes/demo_cpu.yaml"]
    result = subprocess.run(command, cwd=REPOSITORY, env=slurm, capture_output=True, text=True, timeout=60)
    assert (result.returncode, calls.read_text()) == (status, requeued), result.stderr
