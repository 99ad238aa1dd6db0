"""What is pushed: a whole upload by huggingface_hub, to a server of this process that stands in for the Hub."""

import json
import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from entropy_grpo.cards import push

from .hub import TOKEN, address, environment, pushes, serving
from .test_card import CONTENTS, make_run

MODEL = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ x }}",
}
LEFT_BEHIND = {
    "optimizer.pt": b"states",
    "scheduler.pt": b"states",
    "rng_state.pth": b"states",
    "training_args.bin": b"pickle",
    "run_state.safetensors": b"states",
    "run_state_0.safetensors": b"states",
    "checkpoint-1/model.safetensors": b"weights",
    "answers/after.jsonl": b"{}",
    "benchmarks/final/samples-0.jsonl": b"{}",
}
PUSHED = {
    *MODEL,
    *("README.md", "recipe.yaml", "metrics.jsonl", "evaluation.json"),
    *("plots/reward.png", "plots/entropy.png", "plots/kept.png"),
}


@pytest.fixture
def hub():
    with serving() as server:
        yield server


def make_model(folder):
    make_run(folder, CONTENTS)
    for name, content in (MODEL | LEFT_BEHIND).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_upload_holds_what_belongs_and_nothing_else(tmp_path, hub):
    run = make_model(tmp_path / "run")
    before = files_of(run)
    result = subprocess.run(
        [sys.executable, "-m", "entropy_grpo.cli", "card", str(run), "--push", "me/walk"],
        env=os.environ | environment(hub),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{address(hub)}/me/walk/commit/abc"
    paths = [path for path, _, _ in hub.seen]
    assert paths[0] == "/api/repos/create" and sum("/commit/main" in path for path in paths) == 1
    assert {authorization for _, authorization, _ in hub.seen} == {f"Bearer {TOKEN}"}
    (pushed,) = pushes(hub)
    assert set(pushed) == PUSHED
    for name in {*MODEL, "recipe.yaml", "metrics.jsonl", "evaluation.json"}:
        assert pushed[name] == before[name]
    card = ModelCard(pushed["README.md"].decode())
    assert "name = 'me/walk'" in card.text and "# walk\n" in card.text
    assert files_of(run) == before  # the run's own card is another


def test_a_dry_run_shows_all_that_would_be_pushed_and_writes_nothing(tmp_path, capsys):
    run = make_model(tmp_path / "run")
    before = files_of(run)
    push.main(str(run), "me/walk", only_show=True)
    listing, _, card = capsys.readouterr().out.partition("\n\n")
    head, *lines = listing.splitlines()
    assert head == "would push to me/walk:"
    shown = {line.split()[2]: int(line.split()[0].replace(",", "")) for line in lines}
    assert set(shown) == PUSHED
    assert {name: shown[name] for name in MODEL} == {name: len(content) for name, content in MODEL.items()}
    assert shown["README.md"] == len(card.removesuffix("\n").encode())
    assert "name = 'me/walk'" in ModelCard(card).text and "](plots/kept.png)" in card
    push.main(str(run), None, only_show=True)
    assert "name = '.'" in capsys.readouterr().out
    assert files_of(run) == before


@pytest.mark.parametrize(
    ("change", "repository", "said"),
    [
        ({}, "not an id", "'not an id', which is no id of the Hub"),
        ({"model.safetensors": None}, "me/walk", "holds no weights"),
        (
            {"model.safetensors": None, "pytorch_model_fsdp_0/.metadata": b""},
            "me/walk",
            "holds only shards of a model",
        ),
        ({"recipe.yaml": b"hub_token: hf_secret\n"}, "me/walk", "holds hub_token, a secret"),
        ({"environment.json": b"[1]"}, "me/walk", "environment.json holds no mapping"),
        ({"evaluation.json": b"{"}, "me/walk", "evaluation.json cannot be read"),
    ],
)
def test_what_cannot_be_pushed_is_one_sentence(tmp_path, change, repository, said):
    run = make_model(tmp_path / "run")
    for name, content in change.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).unlink(missing_ok=True) if content is None else (run / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        push.main(str(run), repository, only_show=True)
    assert "\n" not in str(error.value) and "hf_secret" not in str(error.value)


def test_nothing_that_is_pushed_names_a_folder_of_this_machine(tmp_path):
    private = "/home/ada/private"
    recipe = CONTENTS["recipe.yaml"] | {
        "dataset_name": f"{private}/problems.jsonl",
        "model_name_or_path": f"{private}/models/base",
        "decontaminate_against": ["aime24", f"{private}/held out.jsonl"],
    }
    data = {"dataset": f"{private}/problems.jsonl", "file": f"{private}/copy.jsonl", "train": 7,
            "left_out": {f"in {private}/held out.jsonl": 2}}  # fmt: skip
    figures = {"acc@N": {"value": 0.5, "low": 0.4, "high": 0.6}, "num_samples": 4, "num_questions": 3}
    results = {"settings": {"data_set": f"{private}/mine.jsonl", "template": "boxed"}, "metrics": figures}
    run = make_run(tmp_path / "run", CONTENTS | {"recipe.yaml": recipe, "data.json": data})
    for name, content in {"adapter_model.safetensors": "x", "tokenizer.json": "{}"}.items():
        (run / name).write_text(content)
    (run / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": f"{private}/models/base", "r": 8}))
    (run / "benchmarks" / "final").mkdir(parents=True)
    (run / "benchmarks" / "final" / "mine.json").write_text(json.dumps(results))
    place = tmp_path / "place"
    place.mkdir()
    push.lay_out(run, "me/walk", place)
    pushed = {path.name: path.read_text() for path in place.iterdir() if path.is_file()}
    assert [name for name, text in pushed.items() if private in text] == []
    card = pushed["README.md"]
    assert "problems.jsonl" in card and "aime24 held out.jsonl" in card and "mine.jsonl" in card
    assert "in held out.jsonl" in pushed["data.json"] and "problems.jsonl" in pushed["recipe.yaml"]
    assert "accelerate_configs/" in push.without_folders("accelerate_configs/x.yaml")  # what is no path of the machine
    assert push.without_folders(f"{private}/a\nb/x\ny.jsonl") == "x\ny.jsonl"
    assert push.without_folders(["a/b", "7 / 2 = 3", "https://x.org/y", "./x"]) == [
        *("a/b", "7 / 2 = 3", "https://x.org/y", "./x")
    ]


def test_without_a_network_a_push_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"--push is 'me/walk', .*offline"):
        push.main(str(make_model(tmp_path / "run")), "me/walk", only_show=False)


def test_the_readme_of_another_folder_is_not_replaced_by_a_card(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="holds neither a run nor the weights of a model: name runs/NAME"):
        push.main(str(tmp_path), None, only_show=False)
    assert (tmp_path / "README.md").read_text() == "mine"
