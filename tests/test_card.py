"""Cards of folders made by hand, read back by the Hub's own reader, PyYAML and a Markdown parser."""

import ast
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from entropy_grpo.analysis.report import run_sections
from entropy_grpo.cards import card
from entropy_grpo.cards.citations import CITATIONS, citation
from entropy_grpo.config.grpo import EntropyForkGRPOConfig
from entropy_grpo.data import sources
from entropy_grpo.models.known import KNOWN
from entropy_grpo.objective.methods.registry import REGISTERED
from entropy_grpo.runs import files, plots, trained
from entropy_grpo.runs.files import write_json
from entropy_grpo.runs.folder import RunFolder

from . import hub_rules

EVALUATION = {
    "before": {
        "num_problems": 48,
        "num_samples": 4,
        "pass@4": {"value": 0.6042, "low": 0.5, "high": 0.7083},
        "mean_length": 35.79,
        "accuracy": {"value": 0.2604, "low": 0.1979, "high": 0.3229},
        "good_choices": {"value": 0.6562, "low": 0.6294, "high": 0.6819},
        "mean_entropy": 0.2417,
    },
    "after": {
        "num_problems": 48,
        "num_samples": 4,
        "pass@4": {"value": 0.8125, "low": 0.7083, "high": 0.9167},
        "mean_length": 33.5,
        "accuracy": {"value": 0.4271, "low": 0.3438, "high": 0.5104},
        "good_choices": {"value": 0.7833, "low": 0.7563, "high": 0.8081},
        "mean_entropy": 0.1532,
    },
    "gain": {
        "accuracy": {"value": 0.1667, "low": 0.0938, "high": 0.2396},
        "good_choices": {"value": 0.1271, "low": -0.0036, "high": 0.2566},
        "pass@4": {"value": 0.2083, "low": 0.125, "high": 0.2917},
    },
}
ENVIRONMENT = {
    "versions": {"python": "3.11.7", "trl": "1.16.0", "torch": "2.13.0+cpu"},
    "git_revision": "0123abcd-dirty",
    "hardware": "CPU (x86_64, 2 threads)",
    "num_processes": 1,
    "base_model": "/cache/number_walk-seed0",
    "parameters": 688320,
    "arguments": {
        "top_entropy_quantile": 0.2,
        "entropy_selection": "top",
        "loss_type": "dapo",
        "learning_rate": 1e-4,
        "max_completion_length": 56,
        "lr_scheduler_type": "constant",
        "delta": None,
    },
}
RECIPE = {
    "model_name_or_path": "Qwen/Qwen3-8B",
    "dataset_name": "open-r1/DAPO-Math-17k-Processed",
    "top_entropy_quantile": 0.2,
}
METRICS = [
    {"step": 1, "reward": 0.1, "step_time": 60.25, "num_tokens": 200.0, "entropy/mean": 0.5},
    {"step": 7, "reward": 0.3, "step_time": 30.25, "num_tokens": 1234.0, "entropy/mean": 0.25},
    {"step": 7, "peak_memory": 3 * 2**29},
]
SAMPLES = [
    {"step": 1, "prompt": "go 15 to 8 need -7 with +7 -4 -1\n", "tokens": ["need"], "entropies": [0.1], "kept": [True]}
]
CONTENTS = {
    "environment.json": ENVIRONMENT,
    "evaluation.json": EVALUATION,
    "recipe.yaml": RECIPE,
    "metrics.jsonl": METRICS,
    "samples.jsonl": SAMPLES,
    "plots/reward.png": None,
}


def write_card(*args, **kwargs):
    """The card of every test here obeys the Hub's rules."""
    path = card.write_card(*args, **kwargs)
    assert hub_rules.broken_rules(path.read_text(encoding="utf-8")) == []
    return path


def make_run(folder, contents):
    """Write the files of a run folder; the recipe is YAML between the two lines that make it Python, too."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "recipe.yaml":
            body = yaml.safe_dump(content)
            last = '# """; from entropy_grpo.launch import main; __name__ == "__main__" and main(__file__)'
            path.write_text(f'recipe: r"""\n{body}{last}\n')
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        elif name.endswith(".json"):
            path.write_text(json.dumps(content))
        else:
            Image.new("L", (3, 2)).save(path)
    return folder


def changed(name, **changes):
    return CONTENTS | {name: CONTENTS[name] | changes}


def with_arguments(**changes):
    return changed("environment.json", arguments=ENVIRONMENT["arguments"] | changes)


def card_text(folder, contents=CONTENTS, **options):
    return write_card(make_run(folder, contents), draws=False, **options).read_text(encoding="utf-8")


def front_matter(text):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


def table(text, heading):
    """Cells of the first table with this heading, by the name in the first column."""
    lines = text[text.index(heading) :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_front_matter_says_what_the_hub_asks_for(tmp_path):
    text = card_text(tmp_path / "my-run")
    data = front_matter(text)
    assert data["base_model"] == "Qwen/Qwen3-8B"
    assert data["datasets"] == ["open-r1/DAPO-Math-17k-Processed"]
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
    assert {"trl", "grpo", "dapo", "arxiv:2506.01939", "arxiv:2503.14476"} <= set(data["tags"])
    assert data["license"] == "apache-2.0" and data["base_model_relation"] == "finetune"
    assert [entry["name"] for entry in data["model-index"]] == ["my-run"]
    assert "# my-run\n" in text


BROKEN = {
    "license": {"license": "Apache 2.0"},
    "language": {"language": [False]},
    "library_name": {"library_name": "entropy-grpo"},
    "pipeline_tag": {"pipeline_tag": "reasoning"},
    "tags": {"tags": ["a b", "grpo"]},
    "datasets": {"datasets": ["a/data/p.jsonl"]},
    "base_model": {"base_model": "/models/base"},
    "base_model_relation": {"base_model_relation": "lora"},
    "nothing": {"tags": ["grpo", None]},
    "author": {"author": "somebody"},
    "model-index": {"model-index": [{"name": "m", "results": []}]},
}


@pytest.mark.parametrize("field", BROKEN)
def test_a_broken_rule_is_seen(tmp_path, field):
    text = card_text(tmp_path)
    data = front_matter(text) | BROKEN[field]
    body = text.split("\n---\n", 1)[1]
    assert field in hub_rules.broken_rules(f"---\n{yaml.safe_dump(data)}---\n{body}")


@pytest.mark.parametrize("place", ["task.type", "dataset.type", "dataset.name", "metrics.type", "metrics.value"])
def test_a_result_without_what_the_hub_requires_is_seen(tmp_path, place):
    text = card_text(tmp_path)
    data = front_matter(text)
    part, key = place.split(".")
    result = data["model-index"][0]["results"][0]
    del (result["metrics"][0] if part == "metrics" else result[part])[key]
    broken = hub_rules.broken_rules(f"---\n{yaml.safe_dump(data)}---\n{text.split('---', 2)[2]}")
    assert any(place in told for told in broken)


def test_licences_languages_and_ids_that_cards_may_name_are_the_hubs():
    assert {known.licence for known in KNOWN.values()} <= set(hub_rules.LICENCES)
    assert all(map(hub_rules.is_id, KNOWN))
    assert all(hub_rules.is_id(source.hub_id) for source in sources.TRAINING.values())
    assert {code for source in sources.TRAINING.values() for code in source.languages} <= set(hub_rules.LANGUAGES)


def test_the_hub_reads_the_numbers_of_the_evaluation(tmp_path):
    path = write_card(make_run(tmp_path / "run", CONTENTS), draws=False)
    assert path == tmp_path / "run" / "README.md"
    card = ModelCard.load(path)
    after = EVALUATION["after"]
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {name: r.metric_value for name, r in results.items()} == {"accuracy": 0.4271, "pass@4": 0.8125}
    for name, result in results.items():
        assert result.metric_args == {
            "problems": after["num_problems"],
            "samples": after["num_samples"],
            "max_tokens": 56,
            "confidence": 0.95,
            "low": after[name]["low"],
            "high": after[name]["high"],
        }
        assert result.dataset_type == "open-r1/DAPO-Math-17k-Processed"
        assert "held-out" in result.dataset_name and result.dataset_split == "train"


def test_numbers_with_more_digits_are_rounded_not_changed(tmp_path):
    # 41/96 and 23/29
    long = EVALUATION["after"] | {"pass@4": {"value": 0.7931034482758621, "low": 0.5, "high": 1.0}}
    long["accuracy"] = {"value": 0.4270833333333333, "low": 0.34375, "high": 0.5104166666666666}
    make_run(tmp_path, changed("evaluation.json", after=long))
    results = {
        r.metric_type: r.metric_value for r in ModelCard.load(write_card(tmp_path, draws=False)).data.eval_results
    }
    assert results == pytest.approx({"accuracy": 41 / 96, "pass@4": 23 / 29}, abs=5e-5)


@pytest.mark.parametrize(("dataset", "notes"), [("embedded:word_stories", 1), ("embedded:number_walk", 0), ("x/y", 0)])
def test_a_card_with_the_entropy_of_the_word_stories_says_whence_its_likeness(tmp_path, dataset, notes):
    contents = changed("recipe.yaml", dataset_name=dataset)
    text = write_card(make_run(tmp_path / "a", contents), draws=False).read_text()
    assert "Mean entropy of the policy's tokens: " in text and text.count("is by construction: ") == notes
    silent = {name: content for name, content in contents.items() if name not in ("evaluation.json", "metrics.jsonl")}
    text = write_card(make_run(tmp_path / "b", silent), draws=False).read_text()
    assert "Mean entropy" not in text and "is by construction" not in text


def test_the_table_has_every_number_of_the_evaluation(tmp_path):
    text = card_text(tmp_path)
    rows = table(text, "|  | before | after | gain |")
    names = {
        "accuracy": "accuracy",
        "pass@4": "pass@4",
        "good_choices": "share of good choices",
        "mean_length": "mean length (tokens)",
        "mean_entropy": "mean entropy (nats)",
    }
    assert set(rows) == set(names.values())
    for (key, name), (column, side) in itertools.product(names.items(), enumerate(("before", "after", "gain"))):
        measured = EVALUATION[side].get(key)
        numbers = [] if measured is None else list(measured.values()) if isinstance(measured, dict) else [measured]
        shown = [float(number) for number in re.findall(r"[-+]?\d+\.?\d*", rows[name][column])]
        # Shares with three decimals, other numbers with three digits.
        assert shown == pytest.approx(numbers, abs=5.1e-4, rel=5e-3 if key.startswith("mean") else 0)
    assert rows["accuracy"][2].startswith("+") and "-0.004" in rows["share of good choices"][2]
    assert "48 problems that were held out from the training data, 4 sampled responses to each. 95%" in text
    assert "0.242 nats before and 0.153 nats after" in text


def test_the_text_tells_how_the_run_was_made(tmp_path):
    text = card_text(tmp_path)
    assert "for 7 optimiser steps" in text
    assert table(text, "| what | value |") == {
        "objective": ["loss_type dapo"],
        "tokens trained on": ["top_entropy_quantile 0.2, entropy_selection top"],
        "lengths (tokens)": ["max_completion_length 56"],
        "learning rate": ["learning_rate 0.0001, lr_scheduler_type constant"],
        "hardware": ["CPU (x86_64, 2 threads); processes: 1"],
        "time of the steps": ["4.0 minutes"],
        "tokens of prompts and responses": ["1,234"],
        "peak memory": ["1.5 GiB"],
    }
    assert table(text, "| package | version |") == {k: [v] for k, v in ENVIRONMENT["versions"].items()}
    assert "git checkout 0123abcd " in text and "uncommitted changes" in text
    assert "pip install -e . trl==1.16.0 torch==2.13.0\naccelerate launch recipe.yaml\n" in text
    assert "](plots/reward.png)" in text


@pytest.mark.parametrize("interval", [1, 10, 7])
def test_the_time_of_the_steps_does_not_depend_on_how_often_they_are_logged(tmp_path, interval):
    """TRL logs the mean time of the steps since the last log. A resumed run logs steps again."""
    run = make_run(tmp_path / "run", {})
    seconds = {step: 1.0 + step % 3 for step in range(1, 141)}

    def log(first, last):
        waiting = []
        for step in range(first, last + 1):
            waiting.append(seconds[step])
            if step % interval == 0:
                files.append_jsonl(run / "metrics.jsonl", [{"step": step, "step_time": sum(waiting) / len(waiting)}])
                waiting = []

    log(1, 95)
    files.append_jsonl(run / "metrics.jsonl", [{"step": 70, "resumed_from": 70}, {"step": 75, "eval_accuracy": 0.5}])
    log(71, 140)
    assert trained.cost(trained.read(run).rows)["seconds"] == pytest.approx(sum(seconds.values()))


def test_batches_are_told_in_prompts_and_steps(tmp_path):
    # 64 responses in groups of 8; 8 micro-batches, 2 to an optimiser step.
    shape = {"generation_batch_size": 64, "num_generations": 8, "steps_per_generation": 8}
    text = card_text(tmp_path, with_arguments(**shape, gradient_accumulation_steps=2))
    assert table(text, "| what | value |")["batch"] == [
        "rollouts of 8 prompts with 8 responses each, 4 optimiser steps per rollout"
    ]


def test_what_a_run_recorded_of_its_objective_counts(tmp_path):
    """Not what its settings would mean today; an older run recorded nothing."""
    recorded = {"kept_share": 0.5, "selection": "bottom", "shaping": ["ppl"], "loss_type": "cispo"}
    recorded |= {"steps_per_rollout": 0.5, "sparse_head": False, "head_refusal": "the loss has an entropy bonus"}
    shape = {"generation_batch_size": 64, "num_generations": 8, "steps_per_generation": 8}
    environment = with_arguments(**shape, gradient_accumulation_steps=2)["environment.json"] | {"objective": recorded}
    text = card_text(tmp_path, CONTENTS | {"environment.json": environment})
    assert "the 50% of tokens with the lowest entropy" in text
    assert "dapo" not in front_matter(text)["tags"] and "arxiv:2508.02260" in front_matter(text)["tags"]
    rows = table(text, "| what | value |")
    assert rows["batch"] == ["rollouts of 8 prompts with 8 responses each, 0.5 optimiser steps per rollout"]
    assert rows["LM head"] == ["TRL's, because the loss has an entropy bonus"]


def test_methods_by_name_are_told_and_cited(tmp_path):
    """With all parameters, and with the digest of the file of a user's own function."""
    own = {
        "name": "my_module:f",
        "parameters": {},
        "stage": "step",
        "paper": "",
        "source_sha256": "0123456789abcdef01",
    }
    one = {"name": "stapo", "parameters": {"tau_p": 0.002, "q": 0.75}, "paper": "arXiv 2602.15620"}
    one |= {"schedule": {"start": 5, "end": None, "plateau_steps": None}, "source_sha256": ""}
    shaped = {"name": "ppl", "parameters": {"alpha": 0.1}, "paper": "arXiv 2508.02260", "source_sha256": ""}
    recorded = {"selection": "top", "shaping": ["ppl"], "loss_type": "dapo", "advantages": [shaped]}
    recorded["token_weights"] = [one, own]
    environment = ENVIRONMENT | {"objective": recorded}
    text = card_text(tmp_path, CONTENTS | {"environment.json": environment})
    rows = table(text, "| what | value |")
    shown = "stapo (tau_p 0.002, q 0.75, start 5); my_module:f (SHA-256 of its file 0123456789abcdef...)"
    assert rows["token weights"] == [shown] and "advantages" not in rows
    assert "arxiv:2602.15620" in front_matter(text)["tags"]
    (entry,) = re.findall(r"^@article\{arxiv.*?^\}", text, re.DOTALL | re.MULTILINE)
    assert "Silencing Rare Spurious Tokens" in entry and "author  = {Shiqi Liu and" in entry
    assert "arXiv:2602.15620},\n  year    = {2026},\n  note    = {Paper of the method stapo}" in entry


def test_every_method_has_a_citation():
    """By this table, or in the template; a paper of a user's own method is cited by its id."""
    papers = {method.paper.removeprefix("arXiv ") for method in REGISTERED.values() if method.paper}
    assert papers == CITATIONS.keys() | {"2506.01939", "2508.02260"}
    entry = citation("2501.00001", "mine")
    assert "title" not in entry and "arXiv:2501.00001" in entry and "year    = {2025}" in entry
    assert all(citation(paper, "x").count("{") == citation(paper, "x").count("}") for paper in papers)


def python_blocks(text):
    """The code for transformers and that for vLLM, which a card has if the folder has, or is to get, weights."""
    found = [token.content for token in markdown(text) if token.type == "fence" and token.info == "python"]
    assert len(found) == 2
    return found


def test_the_code_of_the_card_asks_as_in_training(tmp_path):
    for code in python_blocks(card_text(tmp_path / "my-run", expected_weights="whole")):
        compile(code, "card", "exec")
        assert "name = '.'" in code
        assert r"prompt = 'go 15 to 8 need -7 with +7 -4 -1\n'" in code and "add_special_tokens=False" in code
        assert "tokens=56" in code and "tokenizer.eos_token_id" in code


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6, "top_p": 0.95, "top_k": 20}, {"top_p": None}])
def test_the_code_for_vllm_samples_like_the_code_for_transformers(tmp_path, settings):
    made = []
    for code in python_blocks(card_text(tmp_path, with_arguments(**settings), expected_weights="whole")):
        (call,) = [
            node
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.Call) and "temperature" in [keyword.arg for keyword in node.keywords]
        ]
        chosen = {keyword.arg: keyword.value for keyword in call.keywords}
        made.append({name: ast.literal_eval(chosen[name]) for name in ("temperature", "top_p", "top_k")})
    usual = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert made == 2 * [usual | {name: value for name, value in settings.items() if value is not None}]


def test_a_prompt_template_stands_in_the_code(tmp_path):
    text = card_text(tmp_path, changed("recipe.yaml", prompt_template="boxed"), expected_weights="whole")
    for code in python_blocks(text):
        lines = [line for line in code.splitlines() if line.startswith(("question =", "prompt ="))]
        names = {}
        exec("\n".join(lines), names)
        assert names["prompt"] == (
            f"User:\n{names['question']}\n"
            "Please reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:\n"
        )


@pytest.mark.parametrize(
    "arguments, cited",
    [
        ({}, ["2506.01939", "2503.14476"]),
        ({"ppl_shaping_alpha": 0.01}, ["2506.01939", "2508.02260", "2503.14476"]),
        ({"position_shaping_gamma": 0.1}, ["2506.01939", "2508.02260", "2503.14476"]),
        ({"entropy_selection": "gradient_norm"}, ["2506.01939", "2508.02260", "2503.14476"]),
        ({"fork_rollouts": 4}, ["2506.01939", "2508.11016", "2503.14476"]),
        (
            {"fork_rollouts": 4, "fork_entropy_weight": 0.2},
            ["2506.01939", "2508.11016", "2507.19849", "2503.14476"],
        ),
    ],
)
def test_what_was_used_is_cited(tmp_path, arguments, cited):
    text = card_text(tmp_path, with_arguments(**arguments))
    entries = re.findall(r"^@\w+\{.*?^\}", text, re.DOTALL | re.MULTILINE)
    assert [re.search(r"arXiv:([\d.]+)", entry)[1] for entry in entries[:-1]] == cited
    assert "https://github.com/huggingface/trl" in entries[-1]
    assert all(entry.count("{") == entry.count("}") for entry in entries)
    assert [tag[6:] for tag in front_matter(text)["tags"] if tag.startswith("arxiv:")] == cited


@pytest.mark.parametrize(
    "arguments, tokens",
    [
        ({"top_entropy_quantile": 0.2}, "the 20% of tokens with the highest entropy"),
        ({"top_entropy_quantile": 0.2, "entropy_selection": "bottom"}, "the 80% of tokens with the lowest entropy"),
        ({"top_entropy_quantile": 0.05, "entropy_selection": "random"}, "a random 5% of tokens"),
        (
            {"top_entropy_quantile": 0.2, "entropy_selection": "gradient_norm"},
            "the 20% of tokens with the largest gradient in the LM head",
        ),
        (
            {"top_entropy_quantile": 0.2, "entropy_selection": "random_matched"},
            "random tokens with as much gradient as the 20% with the highest entropy",
        ),
        ({"top_entropy_quantile": 1.0}, "all tokens"),
    ],
)
def test_the_card_says_which_tokens_were_trained(tmp_path, arguments, tokens):
    assert f" on {tokens}" in card_text(tmp_path, with_arguments(**arguments))


@pytest.mark.parametrize("count", range(len(CONTENTS) + 1))
def test_a_folder_with_only_some_of_the_files_gives_a_card_of_what_is_there(tmp_path, count):
    for number, names in enumerate(itertools.combinations(CONTENTS, count)):
        text = card_text(tmp_path / str(number), {name: CONTENTS[name] for name in names})
        assert not re.search(r"\b(None|Undefined|nan|null)\b|\{\{|\{%", text.split("## Citations")[0]), names
        assert text.count("@article{") == 2 and "@software{" in text
        assert ("| before | after | gain |" in text) == ("evaluation.json" in names)
        assert ("nats at step 1 and 0.25 nats at step 7" in text) == ("metrics.jsonl" in names)
        assert ("accelerate launch recipe.yaml" in text) == ("recipe.yaml" in names)
        for name in ("recipe.yaml", "environment.json", "metrics.jsonl", "data.json"):
            assert (f"\n- {name}: " in text) == (name not in names)
        assert ("plots/reward.png" in text) == ("plots/reward.png" in names)
        data = front_matter(text)
        assert ("model-index" in data) == ("evaluation.json" in names)
        assert ("datasets" in data) == ("base_model" in data) == ("recipe.yaml" in names)


@pytest.mark.parametrize("names", [[], ["metrics.jsonl"], ["metrics.jsonl", "recipe.yaml"]])
def test_a_card_does_not_say_that_all_tokens_were_trained_where_it_cannot_know(tmp_path, names):
    # The recipe says top_entropy_quantile 0.2.
    assert "on all tokens" not in card_text(tmp_path, {name: CONTENTS[name] for name in names})


def test_arguments_as_a_run_records_them_are_shown_only_where_set(tmp_path):
    arguments = EntropyForkGRPOConfig(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False).to_dict()
    make_run(tmp_path / "run", {"metrics.jsonl": METRICS})
    write_json(tmp_path / "run" / "environment.json", ENVIRONMENT | {"arguments": arguments})
    settings = table(write_card(tmp_path / "run", draws=False).read_text(), "| what | value |")
    assert settings["tokens trained on"] == ["top_entropy_quantile 0.2, entropy_selection top"]
    assert "epsilon_high 0.28" in settings["clips"][0]
    assert not re.search(r"\b(None|False|nan)\b", str(settings))


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</td></tr></table><h1>gone</h1>",
    "a | b | c",
    "a \\| b",
    "`a` and ``b`` and c`",
    "```\n<script>alert(1)</script>\n```",
    "two\nlines\n\n# heading\n\n| a | b |\n|---|---|\n| c | d |",
    "a\r\r# heading\r",
    "x -->\n---\n",
    "---\nlicense: mit\n---\n",
    "&anchor *alias: !!python/object {a: b} [c] # d",
    "{{ environment }} {% raw %} {# x #}",
    "[a](javascript:alert(1)) ![b](http://example.org/c.png) [d][e]",
    "*a* **b** _c_ __d__ ~~e~~ $f$",
    "'; import os; os.system('x') #\"\"\"",
    "$(touch x) `touch y` ; touch z",
    "\u2028\u202e\x00\x1b[2J",
    "\U0001f600 caf\u00e9",
    "wide " * 4000,
]


def with_strings(value):
    """A whole run in which every text that a stranger can choose is this one."""
    text = {"model_name_or_path": value, "dataset_name": value, "rewards": [value], "decontaminate_against": [value]}
    arguments = dict.fromkeys(["loss_type", "lr_scheduler_type", "entropy_scope", "entropy_selection"], value)
    environment = {"versions": {value: value}, "git_revision": value, "hardware": value, "base_model": value}
    figures = {
        "settings": {"model": "x", "data_set": value, "template": value, "revision": value},
        "metrics": {"num_questions": 3, "num_samples": 2, "acc@N": {"value": 0.5, "low": 0.25, "high": 0.75}},
    }
    return CONTENTS | {
        "recipe.yaml": text | {"prompt_template": value},
        "environment.json": ENVIRONMENT | environment | {"arguments": {"temperature": value} | arguments},
        "data.json": {"dataset": value, "revision": value, "train": 5},
        "samples.jsonl": [{"step": 1, "prompt": value}],
        "benchmarks/final/set.json": figures,
    }


def markdown(text):
    """Tokens of a card's body."""
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)


def structure(text):
    """Types of all Markdown tokens of a card's body, inline ones included, in order."""
    return [(token.type, [child.type for child in token.children or []]) for token in markdown(text)]


def cell_after(text, name):
    """What a reader sees in the table cell to the right of a name."""
    cells = ["".join(child.content for child in token.children) for token in markdown(text) if token.type == "inline"]
    return cells[cells.index(name) + 1]


def words(value):
    # A backtick may be shown as a quote, and NUL is no character of Markdown, but no word may be lost.
    return value.replace("`", "'").replace("\x00", "\ufffd").split()


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_texts_cannot_change_the_structure_of_the_card(tmp_path, value):
    text = card_text(tmp_path / "run", with_strings(value), expected_weights="whole")
    # No id on the Hub, either.
    usual = card_text(tmp_path / "usual" / "run", with_strings("pl:ain"), expected_weights="whole")
    # Of a long prompt, the code has none; of any other, it stands there as one literal.
    assert structure(text) == structure(usual)
    assert "html_block" not in str(structure(text)) and "html_inline" not in str(structure(text))
    assert words(cell_after(text, "scope of the selection")) == words(value)
    card = ModelCard(text)
    assert card.data.to_dict() == front_matter(text) and "base_model" not in front_matter(text)
    assert card.data.eval_results[-1].dataset_type == value
    for code in python_blocks(text):
        names = {"tokenizer": lambda *args, **kwargs: {}}
        exec("\n".join(line for line in code.splitlines() if line.startswith("prompt = ")), names)
        assert names["prompt"] == (value if len(value) < 600 else "...")
    shell = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]
    assert shell == "accelerate launch recipe.yaml\n"


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_the_name_of_a_model_cannot_change_the_structure_of_the_card(tmp_path, name):
    run = make_run(tmp_path / "run", CONTENTS)
    usual = write_card(run, draws=False).read_text()
    text = write_card(run, model_name=name, draws=False).read_text()
    assert structure(text) == structure(usual)
    assert front_matter(text)["model-index"][0]["name"] == name


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("kind", ["absolute", "relative", "dotted"])
def test_a_local_data_set_is_not_claimed_to_be_on_the_hub(tmp_path, monkeypatch, kind, is_there):
    # The card may be written long after, or on another machine than, the training: the file need not be there.
    monkeypatch.chdir(tmp_path)
    name = {"absolute": str(tmp_path / "data" / "p.jsonl"), "relative": "data/p.jsonl", "dotted": "./data/p.jsonl"}
    if is_there:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "p.jsonl").write_text('{"prompt": "1 + 1", "solution": "2"}\n')
    text = card_text(tmp_path / "run", changed("recipe.yaml", dataset_name=name[kind]))
    assert "datasets" not in front_matter(text)
    results = ModelCard.load(tmp_path / "run/README.md").data.eval_results
    assert results and not any("p.jsonl" in result.dataset_type for result in results)


def test_a_data_set_by_its_short_name_is_the_one_on_the_hub(tmp_path):
    text = card_text(tmp_path / "run", changed("recipe.yaml", dataset_name="guru_math"))
    assert front_matter(text)["datasets"] == ["LLM360/guru-RL-92k"]


@pytest.mark.parametrize("kind", ["absolute", "relative", "dotted"])
def test_a_local_base_model_is_not_claimed_to_be_on_the_hub(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    name = {"absolute": str(tmp_path / "models" / "base"), "relative": "models/base", "dotted": "./models/base"}
    text = card_text(tmp_path / "run", changed("recipe.yaml", model_name_or_path=name[kind]))
    assert "base_model" not in front_matter(text)
    assert "\nbase, trained by" in text and str(tmp_path) not in text.replace("](plots/", "")


def test_an_absent_absolute_path_is_no_base_model(tmp_path):
    run = changed("recipe.yaml", model_name_or_path="/nowhere/models/base")
    assert "base_model" not in front_matter(card_text(tmp_path, run))


def test_the_card_of_an_embedded_model_says_that_it_is_not_on_the_hub(tmp_path):
    embedded = {"model_name_or_path": "embedded:number_walk", "dataset_name": "embedded:number_walk"}
    text = card_text(tmp_path, changed("recipe.yaml", **embedded))
    assert "not on the Hub" in text and "688,320 parameters" in text


@pytest.mark.parametrize("is_finished", [True, False])
def test_the_model_made_of_a_sharded_checkpoint_has_all_files_of_the_run(tiny_model, tmp_path, is_finished):
    """Template, generation configuration and raised positions; of an unfinished run from its base at its revision."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    config = AutoConfig.from_pretrained(tiny_model, max_position_embeddings=200)
    generation = GenerationConfig(eos_token_id=[1, 2], do_sample=True, top_k=3)
    settings = {"model_revision": "a1b2c3d", "max_position_embeddings": 200}
    run = make_run(tmp_path / "run", CONTENTS | {"recipe.yaml": CONTENTS["recipe.yaml"] | settings})
    for part in (tokenizer, generation, config):
        part.save_pretrained(run if is_finished else tmp_path / "base")
    if not is_finished:
        AutoConfig.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
    shards = run / "checkpoint-3" / "pytorch_model_fsdp_0"
    (run / "checkpoint-3" / "whole").mkdir(parents=True)
    shards.mkdir()
    (shards / ".metadata").touch()
    text = write_card(run / "checkpoint-3", draws=False).read_text(encoding="utf-8")
    commands = re.search(r"```bash\naccelerate merge-weights pytorch_model_fsdp_0 whole\n(.*?)```", text, re.DOTALL)[1]
    assert ("revision='a1b2c3d'" in commands) != is_finished
    commands = commands.replace(CONTENTS["recipe.yaml"]["model_name_or_path"], str(tmp_path / "base"))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-ec", commands], cwd=shards.parent, env=environment, check=True, capture_output=True)
    whole = shards.parent / "whole"
    assert AutoTokenizer.from_pretrained(whole).chat_template == tokenizer.chat_template
    made = GenerationConfig.from_pretrained(whole)
    assert (made.eos_token_id, made.top_k) == ([1, 2], 3)
    assert AutoConfig.from_pretrained(whole).max_position_embeddings == 200
    assert not list(whole.glob("*.safetensors"))


def test_writing_the_card_again_gives_the_same_card(tmp_path):
    assert card_text(tmp_path / "run") == write_card(tmp_path / "run", draws=False).read_text(encoding="utf-8")


def test_a_missing_folder_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="no-such-run: there is no such run folder"):
        write_card(tmp_path / "no-such-run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: there is no such run folder"):
        write_card(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def figures(model, correct, **settings):
    share = {"value": correct, "low": correct - 0.125, "high": correct + 0.125}
    return {
        "settings": {
            "model": model,
            "temperature": 1.0,
            "top_p": 0.7,
            "max_tokens": 99,
            "template": "boxed",
            **settings,
        },
        "metrics": {
            "num_questions": 30,
            "num_samples": 16,
            "acc@N": share,
            "maj@N": share,
            "pass@k": {"1": share, "16": share},
            "len@N": {"value": 9.0, "low": 8.0, "high": 10.0},
        },
    }


def gain_of(own, base, **acc):
    """What `comparison.json` holds of one benchmark, with its Acc@N."""
    return {"compared": [trained.digest_of(own), trained.digest_of(base)], "acc@N": acc}


AIME = {"data_set": "HuggingFaceH4/aime_2024", "revision": "2fe88a2"}
BENCHMARKS = {
    "benchmarks/final/aime24.json": figures("runs/run", 0.5, **AIME),
    "benchmarks/final/mine.json": figures("runs/run", 0.25),
    "benchmarks/final/comparison.json": {
        "runs/run/benchmarks/start": {
            "aime24": gain_of(
                figures("runs/run", 0.5, **AIME),
                figures("Qwen/Qwen3-8B", 0.25, **AIME),
                **{"value": 0.25, "low": 0.125, "high": 0.375, "p_value": 0.01},
            )
        }
    },
    "benchmarks/start/aime24.json": figures("Qwen/Qwen3-8B", 0.25, **AIME),
    "benchmarks/step-3/aime24.json": figures("step 3", 0.375, **AIME),
    "benchmarks/final/aime24/settings.json": {"samples": 16},
}


def test_benchmarks_stand_beside_those_of_the_base_model(tmp_path):
    text = card_text(tmp_path / "run", CONTENTS | BENCHMARKS)
    lines = [line for line in text.splitlines() if line.startswith(("| aime24", "| mine"))]
    rows = [[column.strip() for column in line.split("|")[1:-1]] for line in lines]
    base, own, gain = "0.250 [0.125, 0.375]", "0.500 [0.375, 0.625]", "+0.250 [+0.125, +0.375]"
    assert rows == [
        ["aime24", "30", "Acc@16", base, own, gain],
        ["aime24", "30", "Maj@16", base, own, ""],
        ["aime24", "30", "Pass@16", base, own, ""],
        *(["mine", "30", f"{name}@16", "", base, ""] for name in ("Acc", "Maj", "Pass")),
    ]
    assert "- aime24, mine: temperature 1.0, top_p 0.7, max_tokens 99, prompt boxed" in text
    results = ModelCard(text).data.eval_results[2:]
    assert [(r.dataset_type, r.dataset_revision, r.metric_type, r.metric_value) for r in results] == [
        *((AIME["data_set"], AIME["revision"], kind, 0.5) for kind in ("accuracy", "maj@16", "pass@16")),
        *(("mine", None, kind, 0.25) for kind in ("accuracy", "maj@16", "pass@16")),
    ]
    assert results[0].metric_args == {
        **{"questions": 30, "samples": 16, "temperature": 1.0, "top_p": 0.7, "max_tokens": 99, "template": "boxed"},
        **{"confidence": 0.95, "low": 0.375, "high": 0.625},
    }


def measured(run):
    """Values of Acc@N by benchmark, as (this model, base model, gain)."""
    return {
        one.name: tuple(
            of and of["acc@N"]["value"] for of in (one.figures["metrics"], one.baseline.get("metrics"), one.gains)
        )
        for one in trained.read(run).benchmarks
    }


def test_results_of_earlier_weights_are_not_those_of_the_model(tmp_path):
    """A run that was evaluated at its end and then went on; the results record the steps of their model."""
    final = figures("runs/run", 0.5)
    contents = {"metrics.jsonl": METRICS, "benchmarks/final/aime24.json": final | {"step": 7}}
    run = make_run(tmp_path / "run", contents)
    assert measured(run) == {"aime24": (0.5, None, {})}
    went_on = {"metrics.jsonl": [*METRICS, {"step": 9, "reward": 0.2}]}
    make_run(run, went_on)
    assert measured(run) == {}
    make_run(run, {"benchmarks/step-9/aime24.json": figures("step 9", 0.75) | {"step": 9}})
    assert measured(run) == {"aime24": (0.75, None, {})}


def test_an_evaluation_of_earlier_weights_is_not_that_of_the_model(tmp_path):
    """A run that ended at step 7, and goes on: its only evaluation is that of the start until it ends again."""
    run = make_run(tmp_path / "run", CONTENTS | {"evaluation.json": EVALUATION | {"step": 7}})
    assert trained.read(run).evaluation["after"] == EVALUATION["after"]
    make_run(run, {"metrics.jsonl": [*METRICS, {"step": 7, "resumed_from": 7}, {"step": 9, "reward": 0.2}]})
    found = trained.read(run)
    assert found.step == 9 and found.evaluation == {"before": EVALUATION["before"]}
    assert [text for text in found.lacks if "evaluation" in text] == [
        "an evaluation after training: the accuracy of the model is not known"
    ]
    written = ModelCard.load(write_card(run))
    assert written.data.eval_results is None and "0.427" not in written.text
    # A run that goes on from a checkpoint before its end.
    make_run(run, {"metrics.jsonl": [*METRICS, {"step": 1, "resumed_from": 1}, {"step": 5, "reward": 0.2}]})
    assert trained.read(run).evaluation == {"before": EVALUATION["before"]}


@pytest.mark.parametrize("setting", ["temperature", "max_tokens", "template"])
def test_a_base_model_that_was_asked_otherwise_does_not_stand_beside_the_model(tmp_path, setting):
    own, base = figures("runs/run", 0.5), figures("step 0", 0.25)
    gain = {"aime24": gain_of(own, base, value=0.25, low=0.125, high=0.375)}
    contents = CONTENTS | {
        "benchmarks/final/aime24.json": own,
        "benchmarks/final/comparison.json": {"benchmarks/step-0": gain},
        "benchmarks/step-0/aime24.json": base,
    }
    run = make_run(tmp_path / "run", contents)
    assert measured(run) == {"aime24": (0.5, 0.25, gain["aime24"]["acc@N"]["value"])}
    make_run(run, {"benchmarks/step-0/aime24.json": figures("step 0", 0.25, **{setting: 2048})})
    assert measured(run) == {"aime24": (0.5, None, {})}
    # Another folder has results of the base model with the settings of the model.
    make_run(run, {"benchmarks/z/aime24.json": figures(RECIPE["model_name_or_path"], 0.375)})
    assert measured(run) == {"aime24": (0.5, 0.375, {})}


@pytest.mark.parametrize("spelling", ["models/base/", "./models/base", "{here}/models/base", "../models/base"])
def test_a_local_base_model_has_any_spelling(tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    base = figures(spelling.format(here=tmp_path), 0.25)
    results = {"benchmarks/final/aime24.json": figures("runs/run", 0.5), "benchmarks/base/aime24.json": base}
    run = make_run(tmp_path / "run", changed("recipe.yaml", model_name_or_path="models/base") | results)
    assert measured(run) == {"aime24": (0.5, None if spelling.startswith("..") else 0.25, {})}


def test_a_base_model_that_answered_another_number_of_times_does_not_stand_beside_the_model(tmp_path):
    """Only results of `entropy-grpo eval` record the number of samples as a setting."""
    base = figures("step 0", 0.25)
    base["metrics"] |= {"num_samples": 8}
    contents = {"benchmarks/final/aime24.json": figures("runs/run", 0.5, samples=16)}
    run = make_run(tmp_path / "run", CONTENTS | contents | {"benchmarks/step-0/aime24.json": base})
    assert measured(run) == {"aime24": (0.5, None, {})}
    make_run(run, {"benchmarks/step-0/aime24.json": figures("step 0", 0.25)})
    assert measured(run) == {"aime24": (0.5, 0.25, {})}


def test_a_gain_over_another_runs_results_is_not_shown(tmp_path):
    own, base = figures("runs/run", 0.5), figures("step 0", 0.25)
    contents = CONTENTS | {"benchmarks/final/aime24.json": own, "benchmarks/step-0/aime24.json": base}
    gain = {"aime24": gain_of(own, base, value=-0.25, low=-0.5, high=-0.125)}
    for number, (folder, is_shown) in enumerate(
        {
            "runs/other/benchmarks/step-0": False,
            str(tmp_path / "other" / "benchmarks" / "step-0"): False,
            "../run/benchmarks/step-0": True,
            str(tmp_path / "run" / "benchmarks" / "step-0"): True,
        }.items()
    ):
        run = make_run(tmp_path / str(number) / "run", contents | {"benchmarks/final/comparison.json": {folder: gain}})
        assert measured(run) == {"aime24": (0.5, 0.25, -0.25 if is_shown else {})}


def test_a_gain_of_other_weights_is_not_shown(tmp_path):
    """The base model's weights changed after the comparison, and its metrics happen to be the same."""
    own, base = figures("runs/run", 0.5), figures("step 0", 0.25, weights="a")
    gain = {"aime24": gain_of(own, base, value=0.25, low=0.125, high=0.375)}
    contents = {"final/aime24": own, "step-0/aime24": base, "final/comparison": {"benchmarks/step-0": gain}}
    run = make_run(tmp_path / "run", CONTENTS | {f"benchmarks/{name}.json": one for name, one in contents.items()})
    assert measured(run) == {"aime24": (0.5, 0.25, 0.25)}
    make_run(run, {"benchmarks/step-0/aime24.json": figures("step 0", 0.25, weights="b")})
    assert measured(run) == {"aime24": (0.5, 0.25, {})}


def test_pictures_of_a_card_elsewhere_are_those_of_the_run(tmp_path, monkeypatch):
    """As `card --push` makes them, in a folder of its own, which nobody has afterwards."""
    run = make_run(tmp_path / "my-run", CONTENTS)
    write_card(run)
    write_card(run, output=make_run(tmp_path / "elsewhere", {}))
    (run / "checkpoint-7").mkdir()
    write_card(run / "checkpoint-7")
    for name in ("reward", "entropy", "kept"):
        own = (run / "plots" / f"{name}.png").read_bytes()
        assert (tmp_path / "elsewhere" / "plots" / f"{name}.png").read_bytes() == own
        assert (run / "checkpoint-7" / "plots" / f"{name}.png").read_bytes() == own
    # A checkpoint alone has a log of its own, in a file of another name.
    told = []
    monkeypatch.setattr(plots, "save", lambda figure, path, source: told.append(source) or path)
    write_card(make_run(tmp_path / "checkpoint-7", {"trainer_state.json": {"log_history": METRICS, "global_step": 7}}))
    write_card(run)
    alone = ["checkpoint-7/trainer_state.json"]
    assert told == 3 * alone + ["my-run/metrics.jsonl and evaluation.json", *2 * ["my-run/metrics.jsonl"]]


def test_a_checkpoint_has_the_benchmarks_of_its_own_step(tmp_path):
    run = make_run(tmp_path / "run", CONTENTS | BENCHMARKS)
    (run / "checkpoint-3").mkdir()
    card = ModelCard.load(write_card(run / "checkpoint-3", draws=False))
    assert {result.metric_value for result in card.data.eval_results} == {0.375}
    assert "evaluation.json describes the end of the run" in card.text and "# run-checkpoint-3" in card.text


def test_a_model_of_an_earlier_end_has_the_facts_of_its_step(tmp_path):
    """A run that goes on keeps the model of its earlier end, with its evaluation, until it ends again."""
    final = BENCHMARKS["benchmarks/final/aime24.json"]
    ended = {"trainer_state.json": {"global_step": 1}, "evaluation.json": EVALUATION | {"step": 1}}
    ended |= {"benchmarks/final/aime24.json": final | {"step": 1}}
    run = make_run(tmp_path / "run", CONTENTS | BENCHMARKS | ended)
    assert trained.steps_of(run) == 1
    found = trained.read(run)
    assert (found.step, found.is_last, found.rows) == (1, False, METRICS[:1])
    assert found.evaluation["after"] == EVALUATION["after"]
    assert found.benchmarks[0].figures == final | {"step": 1}
    text = write_card(run, draws=False).read_text()
    assert "for 1 optimiser step." in text and "an evaluation" not in text
    # The run's own page has the curves of its whole log.
    curves = dict(run_sections.curve_section(found).pictures)
    for path in plots.draw(found.run, output=RunFolder(tmp_path / "whole")):
        assert (run / "plots" / path.name) in curves
        assert (run / "plots" / path.name).read_bytes() == path.read_bytes()
    # The evaluation of the next end is not of these weights.
    make_run(run, {"evaluation.json": EVALUATION | {"step": 7}})
    assert "after" not in trained.read(run).evaluation


def test_kept_weights_have_the_facts_of_their_step(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", CONTENTS | BENCHMARKS)
    (run / "checkpoint-3").mkdir()
    (run / "weights" / "step-3").mkdir(parents=True)
    found = [trained.read(run / name) for name in ("checkpoint-3", "weights/step-3")]
    monkeypatch.chdir(run / "weights")
    found.append(trained.read(Path("step-3")))
    assert len({(one.run.path, one.step, one.is_last, one.recipe["model_name_or_path"]) for one in found}) == 1
    assert [one.rows for one in found] == 3 * [METRICS[:1]]
    assert [[one.figures["metrics"]["acc@N"]["value"] for one in each.benchmarks] for each in found] == 3 * [[0.375]]


@pytest.mark.parametrize(
    ("model", "dataset", "licence", "languages"),
    [
        ("Qwen/Qwen3-14B-Base", "dapo_math", "apache-2.0", ["en", "zh"]),
        ("meta-llama/Llama-3.1-8B", "gsm8k", "llama3.1", ["en"]),
        ("somebody/model", "still_3", None, None),
        ("embedded:number_walk", "embedded:number_walk", None, None),
    ],
)
def test_nothing_is_claimed_that_is_not_known(tmp_path, model, dataset, licence, languages):
    recipe = {"model_name_or_path": model, "dataset_name": dataset}
    data = front_matter(card_text(tmp_path, CONTENTS | {"recipe.yaml": recipe}))
    assert (data.get("license"), data.get("language")) == (licence, languages)
    assert ("base_model" in data) == ("base_model_relation" in data) == (not model.startswith("embedded"))


def test_the_card_of_a_cold_start_speaks_of_imitation(tmp_path):
    text = card_text(tmp_path, changed("recipe.yaml", trainer="sft"))
    assert "a cold start" in text and "reinforcement learning with verifiable rewards on" not in text
    assert "sft" in front_matter(text)["tags"] and "grpo" not in front_matter(text)["tags"]


def test_a_card_says_what_truncated_sampling_means(tmp_path):
    assert "truncated distribution" not in card_text(tmp_path / "whole")
    cut = with_arguments(allow_truncated_sampling=True, top_p=0.95, top_k=0, min_p=None)
    text = card_text(tmp_path / "cut", cut)
    assert "drawn from a truncated distribution (top_p 0.95), and the loss scores them by the same truncation" in text


EVIL = "</td><script>evil()</script>\n\n```\n\n# evil\n\n[evil](http://evil) ![evil](http://evil) } evil"
METHOD = {"name": "stapo", "parameters": {"tau": 0.1}, "schedule": {"start": 5}, "paper": "arXiv 2602.15620"}
EVERY_FILE = CONTENTS | {
    "environment.json": ENVIRONMENT
    | {
        "arguments": ENVIRONMENT["arguments"] | {"rewards": ["accuracy"], "temperature": 1.0},
        "objective": {
            "selection": "top",
            "kept_share": 0.2,
            "loss_type": "dapo",
            "shaping": [],
            "sparse_head": False,
            "head_refusal": "of a bonus",
            "token_weights": [METHOD | {"source_sha256": "0123456789abcdef01"}],
        },
    },
    "data.json": {
        "dataset": "a",
        "revision": "b",
        "train": 5,
        "package": "c",
        "version": "d",
        "licence": "e",
        "options": {"f": {"g": "h"}},
        "prompt_template": "boxed",
    },
    "changes.json": {"changes": [{"from_step": 3, "setting": "beta", "before": 0.0, "now": 0.1}]},
    "adapter_config.json": {"base_model_name_or_path": "a/b", "peft_type": "LORA", "r": 8, "target_modules": ["q"]},
    "benchmarks/final/aime24.json": figures("runs/run", 0.5, **AIME),
    "benchmarks/final/comparison.json": BENCHMARKS["benchmarks/final/comparison.json"],
    "benchmarks/start/aime24.json": BENCHMARKS["benchmarks/start/aime24.json"],
}


def leaves(value, place=()):
    """Places of all texts in a file, and of counts that a card may show as they are."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*place, key))
    elif isinstance(value, str) or place[-1] in (
        "num_problems",
        "num_samples",
        "num_questions",
        "parameters",
        "train",
    ):
        yield place


def leaf(value, place):
    return leaf(value[place[0]], place[1:]) if place else value


def with_leaf(value, place, text):
    if not place:
        return text
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[place[0]] = with_leaf(value[place[0]], place[1:], text)
    return copy


def test_no_text_of_any_file_becomes_markup_or_code(tmp_path):
    """The folders of other people: every text of every file in turn."""
    places = [(name, *place) for name, rows in EVERY_FILE.items() if rows for place in leaves(rows)]
    assert len(places) > 40
    run = tmp_path / "run"
    assert "evil" not in card_text(run, EVERY_FILE) and "2602.15620" in card_text(run, EVERY_FILE)
    for place in places:
        more = with_leaf(EVERY_FILE, place, f"{leaf(EVERY_FILE, place)} {EVIL}")
        text = card_text(run, more, expected_weights="adapter")
        make_run(run, {place[0]: EVERY_FILE[place[0]]})
        for token in markdown(text):
            inside = [token, *(token.children or [])]
            assert not any(one.type in ("html_block", "html_inline") for one in inside), place
            assert not any("evil" in str(one.attrs) for one in inside), place
            if token.type == "fence":
                said = [line for line in token.content.splitlines() if "evil" in line]
                assert all(line.startswith("prompt = ") for line in said), place
        assert not re.search(r"^#+ evil", text, re.MULTILINE), place


@pytest.mark.parametrize("steps", [EVIL, 3.5, True, -1, None])
def test_steps_that_are_no_number_of_steps_are_not_told(tmp_path, steps):
    run = make_run(tmp_path / "run", {"trainer_state.json": {"global_step": steps}, "recipe.yaml": RECIPE})
    assert trained.read(run).step is None
    assert "evil" not in write_card(run, draws=False).read_text()
