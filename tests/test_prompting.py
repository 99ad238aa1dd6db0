"""Evaluation asks a run's policy in the form in which the run was trained."""

import json

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from entropy_grpo.config import recipe
from entropy_grpo.config.recipe import Setting
from entropy_grpo.config.run import RunConfig
from entropy_grpo.data.benchmarks import BENCHMARKS
from entropy_grpo.data.benchmarks.benchmark import Question, from_file
from entropy_grpo.data.problems import _conversations
from entropy_grpo.data.prompts import render
from entropy_grpo.evaluation import questions
from entropy_grpo.evaluation.prompting import Form, form_of, put
from entropy_grpo.evaluation.run import chat_of

from .loading import load

QUESTION = Question("0", "go 15 to 8", render("boxed", "go 15 to 8"), "7")
FILE = from_file("mine.jsonl", ["problem", "answer"])
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}need{{ ' take' if more }}{% endif %}"
)


def make_run(folder, data=None, **settings):
    folder.mkdir(exist_ok=True)
    text = recipe.dump({name: Setting(value, "") for name, value in settings.items()})
    (folder / "recipe.yaml").write_text(text)
    (folder / "data.json").write_text(json.dumps(data or {}))
    for model in ("checkpoint-5", "weights/step-5"):
        (folder / model).mkdir(parents=True, exist_ok=True)
    return folder


def no_chat(*given):
    pytest.fail("no conversation was expected")


@pytest.mark.parametrize(
    ("settings", "template", "in_line"),
    [
        ({"prompt_template": "boxed", "rewards": ["accuracy"]}, "boxed", False),
        ({"prompt_template": "answer_line", "rewards": ["dapo_accuracy", "overlong"]}, "answer_line", True),
        ({"rewards": ["dapo_accuracy"]}, "answer_line", True),
        ({"prompt_template": "boxed", "rewards": ["dapo_accuracy"]}, "boxed", True),
        ({"prompt_template": "answer_line", "trainer": "sft"}, "answer_line", True),
        ({"trainer": "grpo"}, "boxed", False),
    ],
)
def test_a_runs_own_template_and_place_of_answers(tmp_path, settings, template, in_line):
    run = make_run(tmp_path / "run", **settings)
    for model in (run, run / "checkpoint-5", run / "weights" / "step-5"):
        benchmark, (asked,) = put(FILE, [QUESTION], form_of(None, str(model)), no_chat)
        assert asked.prompt == render(template, "go 15 to 8") and benchmark.template == template
        response = "Maybe \\boxed{6}.\nAnswer: 7"
        assert benchmark.take(asked, response) == ("7" if in_line else "6")
    other = tmp_path / "base"
    other.mkdir()
    assert form_of(None, str(other)) == form_of("boxed", str(run)) == form_of(None, "owner/name") == Form()
    assert form_of(str(run), "owner/name") == form_of(None, str(run))


def test_a_letter_is_read_from_the_line(tmp_path):
    benchmark, (asked,) = put(BENCHMARKS["gpqa"], [QUESTION], form_of("answer_line", "x"), no_chat)
    assert (
        benchmark.take(asked, "\\boxed{A} or\nAnswer: (C) 7 m") == "C" and benchmark.take(asked, "\\boxed{A}") is None
    )


def test_benchmarks_with_a_form_of_their_own_keep_it():
    for name in ("humaneval", "number_walk"):
        assert put(BENCHMARKS[name], [QUESTION], Form("answer_line", in_line=True), no_chat) == (
            BENCHMARKS[name],
            [QUESTION],
        )


def test_what_is_no_form_is_refused():
    with pytest.raises(ValueError, match="prompt is 'bxed': choose boxed, answer_line or the folder of a run"):
        form_of("bxed", "owner/name")


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("system", [None, "Think."])
def test_a_run_on_messages_is_asked_with_its_messages(tiny_model, tmp_path, adds_bos, system):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.chat_template = TEMPLATE
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
        )
    tokenizer.save_pretrained(tmp_path / "run")
    opening = [] if system is None else [{"role": "system", "content": system}]
    trained = [[*opening, {"role": "user", "content": text}] for text in ("go 15 to 8", "go 1 to 2")]
    odd = [{"role": "user", "content": "go"}]
    settings = {"chat_template_kwargs": {"more": True}, "rewards": ["accuracy"]}
    run = make_run(tmp_path / "run", _conversations([*trained, *([odd] if system else [])]), **settings)
    form = form_of(None, str(run))
    benchmark, (asked,) = put(FILE, [QUESTION], form, chat_of(str(run), None))
    as_trl = tokenizer.apply_chat_template(
        trained[0], add_generation_prompt=True, tokenize=True, return_dict=True, more=True
    )
    assert tokenizer(asked.prompt)["input_ids"] == list(as_trl["input_ids"])
    assert benchmark.template == "messages" and form.about(FILE).get("system") == system


def test_prompts_of_text_say_nothing_of_messages():
    assert _conversations(["1?", "2?"]) == {}


def test_a_file_of_messages_is_asked_as_it_is_trained_on(tiny_model, tmp_path):
    turns = (("user", "go"), ("assistant", "take"), ("user", "5"))
    rows = [[{"role": role, "content": content} for role, content in turns]]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"prompt": row, "solution": "5"}) + "\n" for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE.replace("{{ bos_token }}", "")
    tokenizer.save_pretrained(tmp_path / "model")
    (trained,) = load(RunConfig(dataset_name=str(path))).train["prompt"]
    loaded, asked = questions.load(str(path))
    benchmark, (question,) = put(loaded, asked, Form(), chat_of(str(tmp_path / "model"), None))
    as_trl = tokenizer.apply_chat_template(trained, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert tokenizer(question.prompt)["input_ids"] == list(as_trl["input_ids"])
    assert (benchmark.template, question.text, question.reference) == ("messages", "go\ntake\n5", "5")
