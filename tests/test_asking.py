"""Models that chat: their own template, thinking mode, and what the results say of it."""

import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_grpo import cli
from entropy_grpo.analysis.report.run import is_like_the_paper
from entropy_grpo.data.benchmarks.benchmark import Question
from entropy_grpo.data.benchmarks.humaneval import BENCHMARK as HUMANEVAL
from entropy_grpo.data.prompts import TEMPLATES
from entropy_grpo.evaluation.callback import BenchmarkCallback
from entropy_grpo.evaluation.prompting import chat_form, check_chat, put
from entropy_grpo.runs.folder import RunFolder

# As Qwen3's: a turn ends with <|im_end|>, and without thinking an empty thought is written for the model.
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ROWS = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(2)]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory, tiny_model):
    """A post-trained model: it declares the end of its turns."""
    path = tmp_path_factory.mktemp("chat") / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = CHAT
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    for part in (model, tokenizer):
        part.save_pretrained(path)
    return str(path)


@pytest.fixture
def benchmark(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def evaluate(model, benchmark, output, *words):
    command = ["eval", "--model", model, "--benchmarks", benchmark, "--output", str(output), "--samples", "1"]
    cli.main([*command, "--max-tokens", "4", "--backend", "transformers", *words])
    prompts = pq.read_table(output / "sums.parquet")["prompt"].to_pylist()
    return prompts, json.loads((output / "sums.json").read_text())["settings"]


@pytest.mark.parametrize("thinking", [None, "true", "false"])
def test_a_model_is_asked_with_its_chat_template_and_the_results_say_so(chat_model, benchmark, tmp_path, thinking):
    words = ["--chat", "--system", "Be brief.", *(["--thinking", thinking] if thinking else [])]
    prompts, settings = evaluate(chat_model, benchmark, tmp_path / "out", *words)
    question = f"{ROWS[1]['problem']}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    assert prompts[1] == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        "<|im_start|>assistant\n" + ("<think>\n\n</think>\n\n" if thinking == "false" else "")
    )
    assert (settings["template"], settings["system"]) == ("messages", "Be brief.")
    assert settings.get("chat_template_kwargs") == ({"enable_thinking": thinking == "true"} if thinking else None)
    with pytest.raises(SystemExit, match="2"):  # other responses than those in the folder
        evaluate(chat_model, benchmark, tmp_path / "out")
    plain, settings = evaluate(chat_model, benchmark, tmp_path / "plain")
    assert plain[1] == TEMPLATES["boxed"].replace("{question}", ROWS[1]["problem"])
    assert settings["template"] == "boxed" and "instruction" not in settings


FORM = ("template", "system", "chat_template_kwargs", "answers", "instruction")


def form_in(settings):
    return {name: settings[name] for name in FORM if name in settings}


@pytest.mark.parametrize("rewards", ["accuracy", "dapo_accuracy"])
def test_results_of_a_training_say_how_the_policy_was_asked(chat_model, benchmark, tmp_path, rewards):
    """In the form of `entropy-grpo eval` of the same run's model."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.recipe.write_text(f"rewards: [{rewards}]\nchat_template_kwargs: {{enable_thinking: false}}\n")
    run.data.write_text(json.dumps({"messages": {"system": "Be brief."}}))
    args = SimpleNamespace(use_vllm=False, max_completion_length=4, top_k=0, seed=0)
    trainer = SimpleNamespace(processing_class=AutoTokenizer.from_pretrained(chat_model), args=args)
    answering = BenchmarkCallback(trainer, [benchmark], 1, {"temperature": 1.0, "top_p": 1.0}, run, 5.0)
    _, columns = answering._load(benchmark)
    answers = [{"prompt": p, "completion": "1", "length": 1, "ended": True} for p in columns["prompt"]]
    answering._write(*answering.loaded[benchmark], answers, 2, 0.1)
    settings = json.loads((run.benchmarks / "step-2" / "sums.json").read_text())["settings"]
    in_line = {"answers": "answer_line"} if rewards == "dapo_accuracy" else {}
    asked = {"template": "messages", "system": "Be brief.", "chat_template_kwargs": {"enable_thinking": False}}
    assert form_in(settings) == asked | in_line
    _, of_eval = evaluate(chat_model, benchmark, tmp_path / "out", "--prompt", str(run.path))
    assert form_in(of_eval) == form_in(settings) and of_eval["questions_sha256"] == settings["questions_sha256"]


def test_temperatures_of_a_chat_are_recorded_with_how_it_was_asked(chat_model, benchmark, tmp_path):
    words = ["--chat", "--system", "Be brief.", "--thinking", "false", "--max-tokens", "4", "--samples", "1"]
    words += ["--model", chat_model, "--benchmarks", benchmark]
    words += ["--t-high", "0", "--t-low", "1", "--entropy-threshold", "4", "--backend", "transformers"]
    folder = tmp_path / "decoding"
    cli.main(
        ["analyze", "decoding", "--model", chat_model, "--benchmarks", benchmark, "--output", str(folder), *words]
    )
    (asked,) = json.loads((folder / "decoding.json").read_text())["prompts"].items()
    of_eval = json.loads((folder / "high-0-low-1" / "sums.json").read_text())["settings"]
    assert asked == ("sums", form_in(of_eval))
    assert (asked[1]["system"], asked[1]["chat_template_kwargs"]) == ("Be brief.", {"enable_thinking": False})


def test_programs_are_asked_for_in_a_chat_without_the_instruction_of_maths():
    asked = [Question("0", "Complete f.", "User:\nComplete f.\n\nAssistant:\n", "")]
    written = []
    put(HUMANEVAL, asked, chat_form(None, None), lambda messages, kwargs: written.append(messages) or "")
    assert written == [[{"role": "user", "content": "Complete f."}]]


def test_a_chat_that_cannot_be_is_refused(chat_model, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    with pytest.raises(ValueError, match="has no chat template: leave chat out"):
        check_chat(chat_form(None, None), AutoTokenizer.from_pretrained(tiny_model), tiny_model, None)
    with pytest.raises(ValueError, match=r"ends a turn with .*im_end.*do not declare as EOS"):
        check_chat(chat_form(None, None), tokenizer, tiny_model, None)
    check_chat(chat_form(None, "true"), tokenizer, chat_model, None)
    tokenizer.chat_template = CHAT.split("{% if enable")[0] + "{% endif %}"
    check_chat(chat_form(None, None), tokenizer, chat_model, None)
    with pytest.raises(ValueError, match=r"thinking is true, but the chat template of .* does not read it"):
        check_chat(chat_form(None, "true"), tokenizer, chat_model, None)


def test_the_papers_figures_stand_beside_what_was_measured_alike():
    def asked(**changed):
        like = {"responses": ["aime24"], "chat": True, "thinking": "true", "temperature": 1.0, "system": None}
        return is_like_the_paper(like | {"max_tokens": None, "checkpoints": checkpoints("Qwen/Qwen3-8B")} | changed)

    def checkpoints(*paths):
        return {f"model-{number}": {"path": path, "weights": "0"} for number, path in enumerate(paths)}

    assert asked() and asked(responses=["aime25", "aime24"]) and asked(max_tokens=20480) and asked(max_tokens=28672)
    for changed in (
        {"responses": ["math500"]},
        {"responses": "answers.jsonl"},
        {"chat": None},
        {"thinking": None},
        {"thinking": "false"},
        {"temperature": 0.6},
        {"system": "Be brief."},
        {"max_tokens": 8192},
        {"checkpoints": checkpoints("Qwen/Qwen3-8B-Base")},
        {"checkpoints": checkpoints("Qwen/Qwen3-8B", "runs/mine/checkpoint-80")},
        {"checkpoints": {}},
    ):
        assert not asked(**changed), changed
