"""`entropy-grpo eval` from end to end: killed, on two processes, on a server, and what its files say."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_grpo import cli
from entropy_grpo.analysis.collect import run as collect
from entropy_grpo.analysis.collect.options import Options as CollectOptions
from entropy_grpo.analysis.decoding import run as decoding
from entropy_grpo.analysis.decoding.options import Options as DecodingOptions
from entropy_grpo.data.benchmarks.benchmark import seed_of
from entropy_grpo.evaluation import generation, questions, results
from entropy_grpo.evaluation.backends.base import Sampling, choose
from entropy_grpo.evaluation.generation import Work
from entropy_grpo.evaluation.run import PRESETS, Options, run
from entropy_grpo.models import load
from entropy_grpo.runs import files, parquet, trained

from .conftest import REPOSITORY

CLOCK = "seconds"


def questions_file(folder: Path, count: int = 6) -> str:
    """Sums of two numbers, which the server below can read."""
    path = folder / "sums.jsonl"
    rows = [
        {"problem": f"What is {i} + {i}? Write a number, please, and nothing else.", "answer": 2 * i}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def command(model: str, benchmark: str, output: Path, *more: str) -> list[str]:
    words = ["eval", "--model", model, "--benchmarks", benchmark, "--output", str(output), "--samples", "4"]
    return [
        *words,
        "--max-tokens",
        "14",
        "--batch-size",
        "3",
        "--dtype",
        "float32",
        "--backend",
        "transformers",
        *more,
    ]


def samples(output: Path, name: str = "sums") -> list[dict]:
    """The rows of a parquet file without what a clock decides."""
    return parquet.read(output / f"{name}.parquet").drop_columns([CLOCK]).to_pylist()


def figures(output: Path, name: str = "sums") -> dict:
    """What the samples amount to; how many threads a process has is its launcher's."""
    found = files.read_json(output / f"{name}.json")
    del found["hardware"]
    return found


@pytest.fixture(scope="module")
def alone(tiny_model, tmp_path_factory):
    """(file, output folder) of an evaluation that nothing disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    benchmark = questions_file(folder)
    cli.main(command(tiny_model, benchmark, folder / "out"))
    return benchmark, folder / "out"


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def lines(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("sums/samples-*.jsonl")) for row in files.read_jsonl(path)]


@pytest.mark.slow
def test_killed_and_started_again(alone, tiny_model, tmp_path, preloaded):
    benchmark, undisturbed = alone
    words = command(tiny_model, benchmark, tmp_path)
    command_line = [preloaded, "-m", "entropy_grpo.cli", *words]
    process = subprocess.Popen(command_line, env=ENVIRONMENT, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(lines(tmp_path)) < 5:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = lines(tmp_path)
    assert 5 <= len(before) < 24
    with open(tmp_path / "sums" / "samples-0.jsonl", "a") as file:
        file.write('{"question": "5", "sample": 3, "te')  # as if it had been killed within a line
    cli.main(words)
    after = lines(tmp_path)
    assert after[: len(before)] == before
    keys = [(row["question"], row["sample"]) for row in after]
    assert len(keys) == len(set(keys)) == 24
    assert samples(tmp_path) == samples(undisturbed)
    assert figures(tmp_path) == figures(undisturbed)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(alone, tiny_model, tmp_path, preloaded):
    benchmark, undisturbed = alone
    launch = "-m accelerate.commands.launch --config_file accelerate_configs/ddp_cpu.yaml --main_process_port 0 -m"
    result = subprocess.run(
        [preloaded, *launch.split(), "entropy_grpo.cli", *command(tiny_model, benchmark, tmp_path)],
        env=ENVIRONMENT,
        cwd=REPOSITORY,
        timeout=240,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    shares = [len(list(files.read_jsonl(path))) for path in sorted(tmp_path.glob("sums/samples-*.jsonl"))]
    assert shares == [12, 12]
    assert samples(tmp_path) == samples(undisturbed)
    assert figures(tmp_path) == figures(undisturbed)


@pytest.mark.parametrize("asked", [None, "served"])
@pytest.mark.parametrize("earlier", [{}, {"top_k": 5}])
def test_processes_may_be_at_any_distance(tmp_path, monkeypatch, earlier, asked):
    """A process that comes to the folder after another's first response finds that one's settings.

    Without a response, the settings of an earlier command are nothing to keep.
    """
    work = Work(tmp_path / "sums", [], 1, 0, Sampling(), {"model": "m"})
    if earlier:
        files.write_json(tmp_path / "sums" / "settings.json", work.settings | earlier)
    for rank in (1, 0):
        monkeypatch.setattr(generation, "process", lambda rank=rank: (rank, 2))
        work.claim()
        work.claim(asked)
        files.append_jsonl(tmp_path / "sums" / f"samples-{rank}.jsonl", [{"question": "0", "sample": rank}])
        assert work.recorded == work.settings | ({} if asked is None else {"served_model": asked})
    with pytest.raises(ValueError, match="holds responses with top_k 0, but 3 is requested"):
        Work(tmp_path / "sums", [], 1, 0, Sampling(top_k=3), {"model": "m"}).claim()


def test_a_process_that_has_not_asked_the_server_may_store_last(tmp_path):
    """The others have written responses by then; only the name of the server's model is not in the file."""
    work = Work(tmp_path / "sums", [], 1, 0, Sampling(), {"model": "m"})
    work.claim("served")
    files.append_jsonl(tmp_path / "sums" / "samples-1.jsonl", [{"question": "0", "sample": 0}])
    files.write_json(tmp_path / "sums" / "settings.json", work.settings)  # read before the line above, written after
    work.claim("served")
    assert work.recorded["served_model"] == "served"


def test_a_rerun_writes_nothing_and_loads_no_model(alone, tiny_model, capsys, monkeypatch):
    benchmark, output = alone
    written = {path: path.read_bytes() for path in output.glob("sums/*")}
    expected = samples(output)
    monkeypatch.setattr("entropy_grpo.evaluation.run.load_backend", lambda *given: pytest.fail("a model was loaded"))
    cli.main(command(tiny_model, benchmark, output))
    assert {path: path.read_bytes() for path in output.glob("sums/*")} == written
    assert samples(output) == expected
    assert "sums       6          4  " in capsys.readouterr().out


def test_another_spelling_of_a_path_is_the_same_evaluation(alone, tiny_model, tmp_path, monkeypatch):
    """Weights and questions are compared by their digests; the files keep the name of the last command."""
    benchmark, output = alone
    shutil.copytree(output, tmp_path / "out")
    monkeypatch.setattr("entropy_grpo.evaluation.run.load_backend", lambda *given: pytest.fail("a model was loaded"))
    monkeypatch.chdir(Path(benchmark).parent)
    (tmp_path / "link").symlink_to(tiny_model)
    spellings = [("sums.jsonl", f"{tiny_model}/"), ("./sums.jsonl", str(tmp_path / "link"))]
    for file, model in spellings:
        cli.main(command(model, file, tmp_path / "out"))
        settings = figures(tmp_path / "out")["settings"]
        assert (settings["data_set"], settings["model"]) == (file, model)
        assert trained.unlike_settings([figures(output), figures(tmp_path / "out")]) == []
    assert samples(tmp_path / "out") == samples(output)


def test_a_batch_that_is_half_there_is_completed_as_it_was(alone, tiny_model, tmp_path):
    benchmark, undisturbed = alone
    rows = lines(undisturbed)
    random.Random(0).shuffle(rows)
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "settings.json").write_text((undisturbed / "sums" / "settings.json").read_text())
    files.append_jsonl(tmp_path / "sums" / "samples-1.jsonl", rows[:13])
    cli.main(command(tiny_model, benchmark, tmp_path))
    assert samples(tmp_path) == samples(undisturbed)
    assert len(list(files.read_jsonl(tmp_path / "sums" / "samples-0.jsonl"))) == 11


def test_files_and_folders_have_any_legal_name(tiny_model, tmp_path, monkeypatch):
    """Names with bytes that are no UTF-8, of which pyarrow takes none, with line breaks, formulas and `a=b`."""
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "utf-8"))
    name, output = "_ü\udcff\n$x^$ [1]", tmp_path / "question=1" / "b\udcff\n"
    questions_file(tmp_path, 1)
    (tmp_path / "sums.jsonl").rename(tmp_path / f"{name}.jsonl")
    words = command(tiny_model, str(tmp_path / f"{name}.jsonl"), output, "--compare", str(output))
    with pytest.raises(SystemExit):
        cli.main(words)  # there are no results to compare with yet
    cli.main(words[:-2])
    cli.main(words)
    assert len(samples(output, name)) == 4 and figures(output, name)["settings"]["benchmark"] == name
    sys.stdout.flush()
    assert f"results  {output}".encode(errors="surrogateescape") in printed.getvalue()


@pytest.mark.parametrize(
    ("file", "name"), [(".jsonl", "file-"), ("..jsonl", "file-."), ("comparison.JSON", "file-comparison")]
)
def test_a_file_without_a_name_for_its_results_gets_one(tmp_path, file, name):
    """`.json` would be hidden, `...json` would lie elsewhere, and comparison.json is a file of the evaluation."""
    questions_file(tmp_path, 1)
    (tmp_path / "sums.jsonl").rename(tmp_path / file)
    assert questions.load(str(tmp_path / file))[0].name == name


def test_settings_without_responses_bind_nobody(tiny_model, tmp_path, capsys):
    """After a command that failed, its correction runs in the same folder."""
    words = command(tiny_model, questions_file(tmp_path, 1), tmp_path / "out")
    with pytest.raises(SystemExit):
        cli.main([*words, "--dtype", "float99"])
    assert "dtype is 'float99': choose auto, bfloat16" in capsys.readouterr().err
    cli.main(words)
    with pytest.raises(SystemExit):
        cli.main([*words, "--temperature", "0.5"])
    assert "holds responses with temperature" in capsys.readouterr().err


def test_first_questions_are_a_result_of_their_own(alone, tiny_model, tmp_path, capsys):
    """Beside the whole result in its folder; each first response is that of the whole evaluation."""
    benchmark, output = alone
    shutil.copytree(output, tmp_path / "out")
    words = command(tiny_model, benchmark, tmp_path / "out", "--batch-size", "100")
    cli.main([*words, "--limit", "2", "--compare", str(output)])
    limited, whole = samples(tmp_path / "out", "sums-first2"), samples(tmp_path / "out")
    assert [(row["question"], row["sample"]) for row in limited] == [(str(q), n) for q in range(2) for n in range(4)]
    assert {row["question"] for row in whole} == set(map(str, range(6)))
    settings = figures(tmp_path / "out", "sums-first2")["settings"]
    assert (settings["num_questions"], settings["limit"]) == (2, 2)
    assert [path.stem for path, _ in trained.results_in(tmp_path / "out")] == ["sums"]
    assert f"{output} has no results of sums-first2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([*words, "--limit", "0"])
    assert "limit is 0: it must be 1 or more." in capsys.readouterr().err


@pytest.mark.parametrize("limit", [None, 3, 9])
def test_a_limit_above_all_questions_changes_nothing(limit, tmp_path):
    whole, asked = questions.load(questions_file(tmp_path, 3))
    assert questions.first(whole, asked, limit) == (whole, asked)


@pytest.mark.parametrize("name", ["reasoning_gym:countdwn", "embedded:number_wlak", "amie24"])
def test_an_unknown_benchmark_is_refused_before_the_model_is_looked_up(name, tmp_path, monkeypatch):
    """A look-up of an embedded model may train its cold start."""
    looked_up = []
    monkeypatch.setattr(load, "resolve", lambda *given, **more: looked_up.append(given) or "model")
    model, names = "embedded:number_walk", ["number_walk", name]
    commands = [
        lambda: run(Options(model, names, tmp_path / "eval")),
        lambda: collect.run(CollectOptions(model, tmp_path / "collect", benchmarks=names)),
        lambda: decoding.run(DecodingOptions(model, tmp_path / "decoding", names)),
    ]
    for command in commands:
        with pytest.raises(ValueError, match=f"benchmarks? (is|names) '{name}'.*choose"):
            command()
    assert looked_up == []


def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo_cpu").mkdir(parents=True)
    for name in ("runs/demo_cp", "./demo", "../x", "/no/such", "runs/demo_cpu/checkpoint-3", "evaluations/a"):
        with pytest.raises(ValueError, match=rf"^model is '{name}', but there is no such folder: correct it\."):
            load.resolve(name)
    with pytest.raises(ValueError, match=r"Did you mean runs/demo_cpu\?$"):
        load.resolve("runs/demo_cp")
    config = tmp_path / "runs" / "demo_cpu" / "config.json"
    config.touch()
    assert load.resolve("runs/demo_cpu") == "runs/demo_cpu"
    config.unlink()
    (tmp_path / "runs" / "demo_cpu" / "recipe.yaml").touch()
    with pytest.raises(ValueError, match="a run without a final model: name one of its checkpoints"):
        load.resolve("runs/demo_cpu")
    assert load.resolve("Qwen/Qwen3-8B-Base") == "Qwen/Qwen3-8B-Base"


@pytest.mark.parametrize("option", ["--seed=1", "--temperature=0.5", "--samples=5", "--top-p=.9"])
def test_other_settings_are_refused_in_the_same_folder(alone, tiny_model, option, capsys):
    benchmark, output = alone
    words = command(tiny_model, benchmark, output)
    with pytest.raises(SystemExit) as exit:
        cli.main([*words, option])
    assert exit.value.code == 2
    name = option.strip("-").split("=")[0].replace("-", "_")
    assert f"holds responses with {name} " in capsys.readouterr().err


def test_other_weights_are_refused_in_the_same_folder(alone, tiny_model, tmp_path, capsys, monkeypatch):
    """A model that was trained on in the meantime: the path is the same, the responses would be another's."""
    benchmark, output = alone
    shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copytree(output, tmp_path / "out")
    settings = files.read_json(tmp_path / "out" / "sums" / "settings.json")
    files.write_json(tmp_path / "out" / "sums" / "settings.json", settings | {"model": str(tmp_path / "model")})
    words = command(str(tmp_path / "model"), benchmark, tmp_path / "out")
    files.append_jsonl(tmp_path / "model" / "metrics.jsonl", [{"step": 6, "loss": 0.5}, {"step": 7}])
    cli.main(words)
    assert files.read_json(tmp_path / "out" / "sums.json")["step"] == 7
    assert "step" not in files.read_json(output / "sums.json")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.lm_head.weight.data += 0.1
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "holds responses with weights " in capsys.readouterr().err


def test_other_questions_are_refused_in_the_same_folder(alone, tiny_model, tmp_path, capsys):
    """A corrected file of as many rows."""
    benchmark, output = alone
    copy = str(tmp_path / "sums.jsonl")
    shutil.copy(benchmark, copy)
    shutil.copytree(output, tmp_path / "out")
    settings = files.read_json(tmp_path / "out" / "sums" / "settings.json")
    files.write_json(tmp_path / "out" / "sums" / "settings.json", settings | {"data_set": copy})
    words = command(tiny_model, copy, tmp_path / "out")
    cli.main(words)
    rows = list(files.read_jsonl(Path(copy)))
    for changed in ([*rows[:-1], rows[-1] | {"answer": "1234"}], [rows[0] | {"problem": "go 1"}, *rows[1:]]):
        files.replace_jsonl(Path(copy), changed)
        with pytest.raises(SystemExit):
            cli.main(words)
        assert "holds responses with questions_sha256 " in capsys.readouterr().err
        cli.main(command(tiny_model, copy, tmp_path / "again"))
        with pytest.raises(ValueError, match="not the same: evaluate both models on the same"):
            results.compare(tmp_path / "out", tmp_path / "again", "sums")
        shutil.rmtree(tmp_path / "again")


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.safetensors", "x.gguf", "consolidated.00.pth", "tokenizer.json",
     "chat_template.jinja", "config.json", "generation_config.json"],
)  # fmt: skip
def test_a_models_digest_is_of_all_that_decides_its_responses(tmp_path, name):
    content = bytearray(random.Random(0).randbytes(2**20))
    for other in ("training_args.bin", "optimizer.bin", "optimizer.pt", "rng_state_0.pth", "README.md", name):
        (tmp_path / other).write_bytes(content)
    digests = [load.fingerprint(str(tmp_path))]
    for place in (0, 2**19, 2**20 - 1):
        content[place] ^= 1
        (tmp_path / name).write_bytes(content)
        digests.append(load.fingerprint(str(tmp_path)))
    assert len(set(digests)) == 4
    for other in ("training_args.bin", "optimizer.bin", "optimizer.pt", "rng_state_0.pth", "README.md"):
        (tmp_path / other).write_bytes(b"")
    assert load.fingerprint(str(tmp_path)) == digests[-1]


def test_an_adapters_digest_is_of_its_base_too(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder, name in ((base, "pytorch_model.bin"), (adapter, "adapter_model.bin")):
        folder.mkdir()
        (folder / name).write_bytes(b"1")
    LoraConfig(base_model_name_or_path=str(base)).save_pretrained(adapter)
    before = load.fingerprint(str(adapter))
    (base / "pytorch_model.bin").write_bytes(b"2")
    assert load.fingerprint(str(adapter)) != before


def test_an_adapter_answers_as_the_model_that_it_makes(tiny_model, tmp_path):
    benchmark = questions_file(tmp_path, 3)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=4, init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "merged")
    for name in ("adapter", "merged"):
        cli.main([*command(str(tmp_path / name), benchmark, tmp_path / f"{name}-out"), "--temperature", "0"])
    cli.main([*command(tiny_model, benchmark, tmp_path / "base-out"), "--temperature", "0"])
    assert samples(tmp_path / "adapter-out") == samples(tmp_path / "merged-out") != samples(tmp_path / "base-out")
    with pytest.raises(ValueError, match="backend is 'vllm'"):
        choose("vllm", True)
    assert choose("auto", True) == "transformers"


class Server:
    """A completions server over HTTP: its answers follow from the seed, and it fails now and then."""

    def __init__(self):
        self.bodies, self.running, self.most_running, self.failures = [], 0, 0, 0
        self.models = [{"id": "served"}]
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def reply(self, status: int, value: dict) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                self.reply(200, {"data": outer.models})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.running += 1
                    outer.most_running = max(outer.most_running, outer.running)
                    fails = body["seed"] % 3 == 0 and body not in outer.bodies
                    outer.bodies.append(body)
                time.sleep(0.02)
                with outer.lock:
                    outer.running -= 1
                    outer.failures += fails
                if fails and body["seed"] % 2:
                    self.close_connection = True  # no answer at all
                elif fails:
                    self.reply(503, {"error": "busy"})
                else:
                    self.reply(200, self.answer(body))

            def answer(self, body: dict) -> dict:
                seed = body["seed"]
                number = int(body["prompt"].split("What is ")[1].split(" ")[0]) * 2 + seed % 2
                text = f"so \\boxed{{{number}}}" if seed % 5 else "I do not know"
                reason = "length" if seed % 7 == 0 else "stop"
                return {
                    "choices": [{"text": text, "finish_reason": reason}],
                    "usage": {"completion_tokens": seed % 11 + 1},
                }

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("entropy_grpo.evaluation.backends.server.FIRST_PAUSE", 0.01)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def served(server, benchmark, output, model="served", **more):
    settings = {"samples": 8, "temperature": 0.6, "top_p": 0.95, "max_tokens": 20, "batch_size": 5} | more
    run(Options(model, [benchmark], output, backend=f"{server.url}/v1", **settings))


def test_a_server_answers(server, tmp_path):
    benchmark = questions_file(tmp_path)
    served(server, benchmark, tmp_path / "out", seed=3)
    rows = samples(tmp_path / "out")
    assert [(row["question"], row["sample"]) for row in rows] == [(str(q), n) for q in range(6) for n in range(8)]
    right = []
    for row in rows:
        seed = seed_of(3, row["question"], row["sample"])
        answer = str(2 * int(row["question"]) + seed % 2) if seed % 5 else None
        right.append(answer is not None and seed % 2 == 0)
        assert row["answer"] == answer
        assert row["tokens"] == seed % 11 + 1
        assert row["finish"] == ("length" if seed % 7 == 0 else "stop")
        assert row["verdict"] == ("right" if right[-1] else "wrong")
    assert {body["seed"] for body in server.bodies} == {seed_of(3, row["question"], row["sample"]) for row in rows}
    for body in server.bodies:
        assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("served", 0.6, 0.95, 20)
        assert "top_k" not in body
    assert server.failures > 5
    assert 1 < server.most_running <= 5
    check_figures(tmp_path / "out", rows, right)


@pytest.mark.parametrize(
    ("models", "asked"),
    [
        ([{"id": "base"}, {"id": "mine"}], "mine"),
        ([{"id": "mine"}, {"id": "{path}/"}], "{path}/"),
        ([{"id": "base", "root": "org/base"}, {"id": "adapter", "root": "{path}"}], "adapter"),
    ],
)
def test_a_server_of_several_models_is_asked_for_the_evaluated_one(server, tiny_model, tmp_path, models, asked):
    """`vllm serve` lists an adapter behind its base, by any name, with its folder as the root."""
    shutil.copytree(tiny_model, tmp_path / "mine")
    path = str(tmp_path / "mine")
    server.models = [{key: text.format(path=path) for key, text in model.items()} for model in models]
    served(server, questions_file(tmp_path, 2), tmp_path / "out", path, contamination=True)
    assert {body["model"] for body in server.bodies} == {asked.format(path=path)}
    assert figures(tmp_path / "out")["settings"]["served_model"] == asked.format(path=path)


def test_another_model_of_a_server_is_recorded_and_not_mixed(server, tmp_path, capsys):
    benchmark, output = questions_file(tmp_path, 2), tmp_path / "out"
    server.models = [{"id": "other"}]
    served(server, benchmark, output, "org/mine")
    assert f"model is 'org/mine', and the server {server.url} serves 'other'" in capsys.readouterr().err
    assert figures(output)["settings"]["served_model"] == "other"
    finished = (output / "sums" / "samples-0.jsonl").read_text()
    (output / "sums" / "samples-0.jsonl").write_text(finished.partition("\n")[0] + "\n")
    server.models = [{"id": "third"}]
    with pytest.raises(ValueError, match="holds responses with served_model 'other', but 'third' is requested"):
        served(server, benchmark, output, "org/mine")
    server.models.append({"id": "fourth"})
    with pytest.raises(ValueError, match=r"model is 'org/mine', but the server .* serves 'third', 'fourth': name one"):
        served(server, benchmark, output, "org/mine")
    (output / "sums" / "samples-0.jsonl").write_text(finished)
    server.http.shutdown()
    served(server, benchmark, output, "org/mine")  # nothing is missing
    assert figures(output)["settings"]["served_model"] == "other"


def check_figures(output, rows, right):
    """Acc@N, Len@N and the shares recomputed by a plain loop over the parquet file's rows."""
    metrics = figures(output)["metrics"]
    by_question = {}
    for row, is_right in zip(rows, right, strict=True):
        by_question.setdefault(row["question"], []).append((is_right, row["tokens"], row["finish"], row["answer"]))

    def mean(value):
        shares = [sum(value(*one) for one in of_one) / len(of_one) for of_one in by_question.values()]
        return pytest.approx(sum(shares) / len(shares))

    assert metrics["num_questions"] == len(by_question)
    assert metrics["acc@N"]["value"] == mean(lambda is_right, *_: is_right)
    assert metrics["len@N"]["value"] == mean(lambda _, tokens, *rest: tokens)
    assert metrics["truncated"]["value"] == mean(lambda _, __, finish, ___: finish == "length")
    assert metrics["no_answer"]["value"] == mean(lambda *one: one[3] is None)
    majority = 0.0
    for of_one in by_question.values():
        given = [answer for *_, answer in of_one if answer is not None]
        most = max(map(given.count, given), default=0)
        tied = {answer for answer in given if given.count(answer) == most}
        winners = {answer for is_right, *_, answer in of_one if is_right} & tied
        majority += len(winners) / len(tied) / len(by_question) if tied else 0.0
    assert metrics["maj@N"]["value"] == pytest.approx(majority)


def test_a_server_that_refuses_ends_the_command_and_loses_nothing(server, tmp_path):
    benchmark = questions_file(tmp_path)
    handler = server.http.RequestHandlerClass
    reply, wrong = handler.reply, seed_of(0, "4", 5)

    def refuse(self, status, value):
        refused = self.command == "POST" and server.bodies[-1]["seed"] == wrong
        reply(self, *((400, {"error": "too long"}) if refused else (status, value)))

    handler.reply = refuse
    with pytest.raises(ValueError, match=r"refused a request: 400 .*too long"):
        served(server, benchmark, tmp_path / "out", batch_size=1)
    before = lines(tmp_path / "out")
    assert len(before) == 4 * 8 + 5
    handler.reply = reply
    asked = len(server.bodies)
    served(server, benchmark, tmp_path / "out", batch_size=1)
    assert lines(tmp_path / "out")[: len(before)] == before
    written = {seed_of(0, row["question"], row["sample"]) for row in before}
    assert not written & {body["seed"] for body in server.bodies[asked:]}
    assert len(samples(tmp_path / "out")) == 48


def test_two_models_are_compared(server, tmp_path, capsys):
    benchmark = questions_file(tmp_path)
    served(server, benchmark, tmp_path / "a", seed=3)
    served(server, benchmark, tmp_path / "b", seed=4, compare=[tmp_path / "a"])
    shares = [
        [
            sum(row["verdict"] == "right" for row in samples(tmp_path / side) if row["question"] == str(q)) / 8
            for q in range(6)
        ]
        for side in "ab"
    ]
    differences = [b - a for a, b in zip(*shares, strict=True)]
    gain = files.read_json(tmp_path / "b" / "comparison.json")[str(tmp_path / "a")]["sums"]["acc@N"]
    assert gain["value"] == pytest.approx(sum(differences) / 6)
    assert gain["low"] < gain["value"] < gain["high"]
    said = capsys.readouterr().out
    assert f"difference from {tmp_path / 'a'}" in said and f"{gain['value']:+.3f} [{gain['low']:+.3f}" in said
    assert (tmp_path / "b" / "sums_pass_at_k.png").stat().st_size > 10_000
    other = questions_file(tmp_path, 5)
    served(server, other, tmp_path / "c")
    with pytest.raises(ValueError, match=r"has 5 questions of sums and .*has 6, which are not the same"):
        results.compare(tmp_path / "a", tmp_path / "c", "sums")


def test_gains_of_several_commands_stand_beside_each_other(server, tmp_path):
    """Another command adds benchmarks and folders; a repeated benchmark has its gain of the last command."""
    one = str(shutil.move(questions_file(tmp_path), tmp_path / "more.jsonl"))
    other = questions_file(tmp_path, 3)
    for folder, seed in (("a", 3), ("b", 4)):
        for benchmark in (one, other):
            served(server, benchmark, tmp_path / folder, seed=seed)
    for benchmark, against in ((one, "a"), (other, "a"), (other, "b")):
        served(server, benchmark, tmp_path / "c", seed=5, compare=[tmp_path / against])
    written = files.read_json(tmp_path / "c" / "comparison.json")
    assert {name: set(gains) for name, gains in written.items()} == {
        str(tmp_path / "a"): {"more", "sums"},
        str(tmp_path / "b"): {"sums"},
    }
    served(server, one, tmp_path / "c", seed=5)
    assert files.read_json(tmp_path / "c" / "comparison.json") == written


@pytest.mark.parametrize("side", ["run", "base"])
def test_a_gain_is_that_of_the_results_beside_it(server, tmp_path, side):
    """New results of either side, without a comparison, take the gain away from the card."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("model_name_or_path: org/base\n")
    benchmark = questions_file(tmp_path)
    base, final = (tmp_path / "run" / "benchmarks" / name for name in ("base", "final"))
    served(server, benchmark, base, "org/base", seed=3)
    served(server, benchmark, final, seed=4, compare=[base])
    (shown,) = trained.read(tmp_path / "run").benchmarks
    assert shown.gains["acc@N"]["value"] == pytest.approx(
        shown.figures["metrics"]["acc@N"]["value"] - shown.baseline["metrics"]["acc@N"]["value"]
    )
    folder, model = {"run": (final, "served"), "base": (base, "org/base")}[side]
    shutil.rmtree(folder / "sums")
    server.bodies.clear()
    served(server, benchmark, folder, model, seed=4 if side == "base" else 3)
    (shown,) = trained.read(tmp_path / "run").benchmarks
    assert shown.baseline and shown.gains == {}


def test_contamination_is_measured_by_greedy_completion(server, tmp_path):
    benchmark = questions_file(tmp_path)
    served(server, benchmark, tmp_path / "out", contamination=True)
    greedy = [body for body in server.bodies if body["temperature"] == 0]
    # 60% of the twelve words, rounded down, are seven.
    assert {body["prompt"] for body in greedy} == {f"What is {i} + {i}? Write a" for i in range(6)}
    found = figures(tmp_path / "out")["contamination"]
    assert (found["num_problems"], found["too_short"], found["exact"]["value"]) == (6, 0, 0.0)


def test_problems_that_are_all_too_short_have_no_completions(tiny_model, tmp_path):
    rows = [{"problem": f"What is {i} + {i}? Write a", "answer": 2 * i} for i in range(3)]
    files.replace_jsonl(tmp_path / "short.jsonl", rows)
    words = command(tiny_model, str(tmp_path / "short.jsonl"), tmp_path / "out", "--contamination")
    for _ in range(2):  # a rerun, too
        cli.main(words)
        assert figures(tmp_path / "out", "short")["contamination"] == {"num_problems": 0, "too_short": 3}
    assert len(samples(tmp_path / "out", "short")) == 3 * 4


def test_an_absent_server_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("entropy_grpo.evaluation.backends.server.FIRST_PAUSE", 0.001)
    benchmark = questions_file(tmp_path)
    with pytest.raises(SystemExit) as exit:
        cli.main([*command("x", benchmark, tmp_path / "out"), "--backend", "http://127.0.0.1:9", "--dtype", "auto"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("error: backend is 'http://127.0.0.1:9', but no server there")


@pytest.mark.parametrize(
    "more, said",
    [
        (["--backend", "vlm"], "backend is 'vlm': choose auto"),
        (["--benchmarks", "aime23"], "benchmarks names 'aime23': choose among aime24"),
        (["--model", "embedded:sudoku"], "model is 'embedded:sudoku': choose embedded:number_walk"),
        (["--model", "no/such/model"], "model is 'no/such/model', but there is no such folder"),
        (["--samples", "0"], "samples is 0"),
        (["--temperature", "nan"], "temperature is nan: it must be a finite number, 0 or more"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--revision", "main"], "revision is 'main', but model is"),
        (["--benchmarks", ""], "benchmarks is empty"),
        (["--model", "README.md"], "model is 'README.md', which is a file"),
        (["--model", "tests/inputs"], "model is 'tests/inputs', a folder without config.json"),
        (["--model", "a\udcff"], "model is 'a\\udcff', whose name is not UTF-8"),
        (["--output", "/proc/x\ny"], "'/proc/x\\ny' cannot be read or written (No such file or directory)"),
        (["--compare", "nowhere"], "compare names 'nowhere', which holds no results"),
        (["--max-tokens", "200"], "max_tokens is 200, but the model has 128 positions"),
    ],
)
def test_wrong_arguments_are_one_sentence(tiny_model, tmp_path, monkeypatch, more, said, capsys):
    words = command(tiny_model, questions_file(tmp_path), tmp_path / "out")
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as exit:
        cli.main([*words, *more])
    assert exit.value.code == 2
    error = capsys.readouterr().err.split("error: ")[-1]
    assert error.startswith(said) and error.count("\n") == 1


def test_presets_are_the_papers():
    """Section 5.2 of arXiv 2506.01939; section 2 of arXiv 2508.02260."""
    taken = {
        name: tuple(preset[key] for key in ("samples", "temperature", "top_p")) for name, preset in PRESETS.items()
    }
    assert taken == {"forking": (16, 1.0, 1.0), "shaping": (8, 0.6, 0.95)}
    assert PRESETS["forking"]["max_tokens"] == 20480


def test_results_of_a_run_go_into_its_folder(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text("")
    (tmp_path / "checkpoint-40").mkdir()
    (tmp_path / "weights" / "step-40").mkdir(parents=True)
    assert load.output_folder(str(tmp_path)) == tmp_path / "benchmarks" / "final"
    assert load.output_folder(str(tmp_path / "checkpoint-40")) == tmp_path / "benchmarks" / "checkpoint-40"
    weights = load.output_folder(str(tmp_path / "weights" / "step-40"))
    assert weights == tmp_path / "benchmarks" / "weights-step-40"
    # The same from inside the run's folder, and by a link.
    (tmp_path / "latest").symlink_to("checkpoint-40")
    assert load.output_folder(str(tmp_path / "latest")) == tmp_path / "benchmarks" / "checkpoint-40"
    monkeypatch.chdir(tmp_path / "weights")
    assert load.output_folder("step-40") == tmp_path / "benchmarks" / "weights-step-40"
    assert load.output_folder("Qwen/Qwen3-8B") == Path("evaluations/Qwen--Qwen3-8B")
    assert load.output_folder("embedded:number_walk") == Path("evaluations/embedded--number_walk")
