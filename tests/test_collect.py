"""Collected tokens against the full softmax in float64, and against what a killed collection goes on with."""

import json
import os
import random
import signal
import subprocess
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from benchmarks.fixtures.tiny_model import save_tiny_model
from entropy_grpo import cli
from entropy_grpo.analysis.collect import inputs, run, scoring
from entropy_grpo.analysis.collect.store import Collection, by_step, find
from entropy_grpo.analysis.report import run as report
from entropy_grpo.analysis.views import all as views
from entropy_grpo.evaluation import run as evaluate

TEMPERATURE = 0.7
WORDS = "take need with yes no so to".split()


def write_rows(path, count, seed=0):
    """Responses of 1 to 9 words, right, wrong or unknown, some of which ended by themselves."""
    rng = random.Random(seed)
    rows = [
        {
            "prompt": f"go {i % 40} to 12 need +{1 + i % 9} with +3 -2 +1\n"[rng.randrange(3) :],
            "response": "".join(f" {rng.choice(WORDS)}" for _ in range(rng.randint(1, 9))),
            "correct": rng.choice([True, False, None]),
            "finish": rng.choice(["stop", "length"]),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def collected(tmp_path_factory, tiny_model, other_model):
    """(rows, collection) of two checkpoints, in parts and batches of odd sizes, made by the command line."""
    folder = tmp_path_factory.mktemp("collected")
    rows = write_rows(folder / "rows.jsonl", 23)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "PART_TOKENS", 31)
        command = ["analyze", "collect", "--model", f"base={tiny_model}", "--against", f"a/b $x$={other_model}"]
        command += ["--responses", str(folder / "rows.jsonl"), "--output", str(folder / "out")]
        cli.main([*command, "--temperature", str(TEMPERATURE), "--batch-tokens", "53"])
    return rows, find(folder / "out")


@torch.no_grad()
def test_figures_are_those_of_the_full_softmax(collected, tiny_model, other_model):
    rows, collection = collected
    assert collection.checkpoints == ["base", "a-b $x$"]
    assert collection.num_parts > 2
    for name, path in zip(collection.checkpoints, (tiny_model, other_model), strict=True):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path).double(), AutoTokenizer.from_pretrained(path)
        found = list(collection.parts(name, ["response", "position", "token", "entropy", "log_prob", "gradient"]))
        found = {key: np.concatenate([part[key] for part in found]) for key in found[0]}
        place = 0
        for number, row in enumerate(rows):
            prompt, ids = tokenizer(row["prompt"])["input_ids"], tokenizer(row["response"])["input_ids"]
            ids += [tokenizer.eos_token_id] * (row["finish"] == "stop")
            output = model(torch.tensor([prompt + ids]), output_hidden_states=True)
            log_p = (output.logits[0] / TEMPERATURE).log_softmax(-1)[len(prompt) - 1 : -1]
            residual = log_p.exp() - torch.eye(log_p.shape[1])[ids]
            norm = residual.norm(dim=-1) * output.hidden_states[-1][0, len(prompt) - 1 : -1].norm(dim=-1)
            end = place + len(ids)
            assert found["response"][place:end].tolist() == [number] * len(ids)
            assert found["position"][place:end].tolist() == list(range(len(ids)))
            assert found["token"][place:end].tolist() == ids
            np.testing.assert_allclose(found["entropy"][place:end], -(log_p.exp() * log_p).sum(-1), atol=2e-5)
            np.testing.assert_allclose(found["log_prob"][place:end], log_p[range(len(ids)), ids], atol=2e-5)
            np.testing.assert_allclose(found["gradient"][place:end], norm, rtol=1e-3, atol=1e-4)
            place = end
        assert place == len(found["token"])


def test_rows_carry_text_correctness_and_checkpoint(collected):
    rows, collection = collected
    table = pq.read_table(collection.path / "tokens" / "base", partitioning=None)
    written = table.to_pylist()
    for number, row in enumerate(rows):
        own = [one for one in written if one["response"] == number]
        text = "".join(one["text"] for one in own)
        assert text == row["response"] + "<|endoftext|>" * (row["finish"] == "stop")
        assert {one["correct"] for one in own} == {row["correct"]}
    assert {one["checkpoint"] for one in written} == {"base"}
    # Each part is one row group, so a reader holds no more than a part.
    files = sorted((collection.path / "tokens" / "base").glob("*.parquet"))
    assert [pq.read_metadata(file).num_row_groups for file in files] == [1] * collection.num_parts


SCRIPT = """
import sys
from pathlib import Path
from entropy_grpo.analysis.collect import run as collect
collect.PART_TOKENS = 8
model, other, rows, output = sys.argv[1:]
collect.run(collect.Options(model=f"base={model}", against=[f"other={other}"], responses=Path(rows),
                            output=Path(output)))
"""


@pytest.mark.slow
def test_a_killed_collection_goes_on(tmp_path, tiny_model, other_model, preloaded):
    write_rows(tmp_path / "rows.jsonl", 150)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [preloaded, tmp_path / "script.py", tiny_model, other_model, str(tmp_path / "rows.jsonl")]
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    folder = tmp_path / "killed" / "tokens" / "base"
    deadline = time.monotonic() + 200
    while len(list(folder.glob("part-*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    collection = Collection(tmp_path / "killed")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}
    assert 3 <= len(before) and collection.checkpoints != ["base", "other"]  # it was killed on its way
    for name in ("killed", "whole"):
        options = run.Options(
            model=f"base={tiny_model}",
            against=[f"other={other_model}"],
            responses=tmp_path / "rows.jsonl",
            output=tmp_path / name,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "PART_TOKENS", 8)
            run.run(options)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    whole = Collection(tmp_path / "whole")
    assert collection.num_parts == whole.num_parts > len(before)
    for checkpoint in ("base", "other"):
        for number in range(whole.num_parts):
            ours, theirs = (pq.read_table(c.part(checkpoint, number)) for c in (collection, whole))
            assert ours.equals(theirs)


def test_generated_responses_are_those_of_eval(tmp_path, tiny_model):
    problems = [{"problem": f"go {i} to 9 need +2 with +3 -2 +1\n", "answer": "9"} for i in range(3)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    options = run.Options(
        model=f"base={tiny_model}",
        benchmarks=[str(tmp_path / "few.jsonl")],
        samples=2,
        max_tokens=7,
        backend="transformers",
        output=tmp_path / "out",
    )
    collection = run.run(options)
    written = pq.read_table(tmp_path / "out" / "responses" / "few.parquet").to_pylist()
    kept = pq.read_table(collection.responses).to_pylist()
    assert [(row["prompt"], row["response"]) for row in kept] == [(r["prompt"], r["response"]) for r in written]
    assert [row["correct"] for row in kept] == [row["verdict"] == "right" for row in written]
    assert len(kept) == 6 and len(collection.column("base", "entropy")) == sum(len(r["completion_ids"]) for r in kept)


def test_the_final_model_answers_and_the_base_gives_the_bins(tmp_path, tiny_model, other_model):
    """The paper's order for Table 1 and Figure 4: the answers are those of `eval` with the final model."""
    problems = [{"problem": f"go {i} to 9 need +2 with +3 -2 +1\n", "answer": "9"} for i in range(3)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    given = {"benchmarks": [str(tmp_path / "few.jsonl")], "samples": 2, "max_tokens": 7, "backend": "transformers"}
    given |= {"model": f"base={tiny_model}", "against": [f"final={other_model}"]}
    collection = run.run(run.Options(output=tmp_path / "out", answered_by="final", **given))
    assert collection.checkpoints == ["base", "final"]  # the first gives positions and bins
    evaluate.run(
        evaluate.Options(other_model, given["benchmarks"], tmp_path / "eval", samples=2, max_tokens=7, top_p=1.0)
    )
    texts = [
        pq.read_table(path)["response"].to_pylist() for path in (collection.responses, tmp_path / "eval/few.parquet")
    ]
    assert texts[0] == texts[1]
    with pytest.raises(ValueError, match="answered_by is 'last', which is none of the checkpoints: base, final"):
        run.run(run.Options(output=tmp_path / "new", answered_by="last", **given))
    with pytest.raises(ValueError, match="answered_by 'final', but None is requested"):
        run.run(run.Options(output=tmp_path / "out", **given))


def test_a_folder_holds_one_collection(collected, tiny_model, other_model, tmp_path):
    _, collection = collected
    rows = collection.path.parent / "rows.jsonl"

    def refused(match, **changed):
        given = {"model": f"base={tiny_model}", "responses": rows, "temperature": TEMPERATURE} | changed
        with pytest.raises(ValueError, match=match):
            run.run(run.Options(output=collection.path, **given))

    refused("temperature 0.7, but 1.0 is requested", temperature=1.0)
    refused("checkpoint 'base' with other weights", model=f"base={other_model}")
    refused("tokenized for 'base'", model=f"new={tiny_model}")
    changed = tmp_path / "rows.jsonl"
    write_rows(changed, 3)
    refused("responses '.*rows.jsonl', but", responses=changed)


def refuse(match, folder, rows=None, **given):
    path = folder / "rows.jsonl"
    if rows is not None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=match):
        run.run(run.Options(output=folder / "out", responses=path, **given))


def test_what_cannot_be_collected_is_refused(tmp_path, tiny_model):
    refuse("there is no such file", tmp_path, model=tiny_model)
    rows = [{"prompt": "go", "response": " to"}, {"prompt": "go"}]
    refuse("line 2 of .*: response is NoneType", tmp_path, rows, model=tiny_model)
    rows = [{"prompt": "go", "response": " to", "correct": "maybe"}]
    refuse("line 1 of .*: correct is 'maybe', but it must be true or false", tmp_path, rows, model=tiny_model)
    refuse("the file has no rows", tmp_path, [], model=tiny_model)
    refuse("the prompt has no tokens", tmp_path, [{"prompt": "", "response": " to"}], model=tiny_model)
    long = [{"prompt": "go", "response": " to" * 200}]
    refuse("128 positions, but prompt and response 0 have 201", tmp_path, long, model=tiny_model)
    refuse("give another name", tmp_path, long, model=tiny_model, against=[tiny_model])
    refuse("above 0", tmp_path, long, model=tiny_model, temperature=0.0)
    with pytest.raises(ValueError, match="either responses"):
        run.Options(model=tiny_model, output=tmp_path)


def test_ids_that_a_file_has_are_kept(tmp_path, tiny_model):
    rows = [{"prompt": "go", "response": " to", "prompt_ids": [7, 3], "completion_ids": [5, 300, 5]}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    options = run.Options(model=f"m={tiny_model}", responses=tmp_path / "rows.jsonl", output=tmp_path / "out")
    assert run.run(options).column("m", "token").tolist() == [5, 300, 5]
    rows[0]["completion_ids"] = [99999]
    (tmp_path / "new").mkdir()
    refuse("but response 0 has a higher id", tmp_path / "new", rows, model=tiny_model)


def test_checkpoints_stand_in_the_order_of_their_steps():
    shell = run.named([f"run/checkpoint-{n}" for n in (120, 1000, 40)])
    assert by_step([*shell]) == ["checkpoint-40", "checkpoint-120", "checkpoint-1000"]
    assert by_step(["step-120", "final", "step-40", "end"]) == ["step-40", "step-120", "final", "end"]
    assert run.named(["hub/Name-8B", "x=hub/Name-8B", "embedded:number_walk"]) == {
        "Name-8B": "hub/Name-8B",
        "x": "hub/Name-8B",
        "number_walk": "embedded:number_walk",
    }


def test_a_checkpoint_that_is_added_later_has_the_place_of_its_step(tmp_path, tiny_model, other_model):
    write_rows(tmp_path / "rows.jsonl", 3)
    given = {"model": f"step-900={tiny_model}", "responses": tmp_path / "rows.jsonl", "output": tmp_path / "out"}
    for added in ("step-200", "step-100"):
        collection = run.run(run.Options(against=[f"{added}={other_model}"], **given))
    assert collection.checkpoints == ["step-900", "step-100", "step-200"]  # the baseline stays first
    assert report.ends(views.of_collection(collection)["checkpoints"]) == ["step-900", "step-200"]


def test_an_adapter_is_scored_as_its_merged_model(tmp_path, tiny_model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora)
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    write_rows(tmp_path / "rows.jsonl", 5)
    options = run.Options(
        model=f"base={tiny_model}",
        against=[str(tmp_path / "adapter"), str(tmp_path / "merged")],
        responses=tmp_path / "rows.jsonl",
        output=tmp_path / "out",
    )
    entropies = [run.run(options).column(name, "entropy") for name in ("base", "adapter", "merged")]
    np.testing.assert_allclose(entropies[1], entropies[2], atol=2e-5)
    assert np.abs(entropies[0] - entropies[1]).max() > 0.1


@torch.no_grad()
def test_a_head_that_caps_its_logits_is_scored_by_trls():
    """Logits behind a soft cap are not a matrix product: the sparse head must not serve them."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
        initializer_range=1.0,
        attn_implementation="eager",
    )
    model = Gemma2ForCausalLM(config).eval()
    prompts, completions = [[5, 9], [7]], [[11, 3, 60], [4, 4, 4, 8, 2]]
    expected = []
    for prompt, completion in zip(prompts, completions, strict=True):
        log_p = (model(torch.tensor([prompt + completion])).logits[0].double() / TEMPERATURE).log_softmax(-1)
        log_p = log_p[len(prompt) - 1 : -1]
        expected.append((-(log_p.exp() * log_p).sum(-1), log_p[range(len(completion)), completion]))
    scoring.add_head(model, TEMPERATURE)
    for i, found in enumerate(zip(*scoring.score(model, prompts, completions, budget=64), strict=True)):
        np.testing.assert_allclose(found[0], expected[i][0], atol=2e-5)
        np.testing.assert_allclose(found[1], expected[i][1], atol=2e-5)
        assert np.isnan(found[2]).all()  # TRL's head does not hand out the hidden states


def test_right_and_wrong_may_be_text_as_csv_has_it():
    values = [True, False, 1, 0, 1.0, "True", "false", "1", "", None]
    expected = [True, False, True, False, True, True, False, True, None, None]
    assert [inputs.correctness({"correct": value}, "row 0") for value in values] == expected
