"""Form of prompts and answers in an evaluation: the form of the model's run, or a named one.

A policy that was trained on messages, or to end in an `Answer:` line, is evaluated in the same form. Benchmarks whose
questions have their own form (programs, tasks) keep it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data.benchmarks.benchmark import MATHS, Benchmark, Question
from ..data.prompts import TEMPLATES, render
from ..grading import answer_line
from ..models.load import end_ids, load_generation_config
from ..runs import files
from ..runs.folder import RunFolder, run_of
from ..runs.trained import read_recipe

BOXED, ANSWER_LINE, MESSAGES = "boxed", "answer_line", "messages"
# Settings of results that say how the model was asked.
ASKED = ("template", "system", "chat_template_kwargs", "answers", "instruction")
PROGRAMS = "code"  # the template of benchmarks whose answers are programs
# (messages, chat_template_kwargs) -> prompt in the model's chat template.
Chat = Callable[[list[dict[str, str]], dict[str, Any]], str]


@dataclass(frozen=True)
class Form:
    """Form of prompts and answers.

    Attributes:
        template: one of `prompts.TEMPLATES`, or `messages` for the model's chat template.
        system: system message before the question, with `messages`.
        chat_template_kwargs: the recipe's, with `messages`.
        in_line: whether the answer is read from an `Answer:` line instead of a box.
        instruction: text after the question of a maths problem, with `messages`.
        with_programs: whether benchmarks of programs also have this form.
    """

    template: str = BOXED
    system: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    in_line: bool = False
    instruction: str = ""
    with_programs: bool = False

    def about(self, benchmark: Benchmark) -> dict[str, Any]:
        """Return the settings of the form that are set, for the results of a benchmark, which state its template.

        There are none for a benchmark whose questions have their own form.
        """
        if not self.serves(benchmark):
            return {}
        told = {
            "system": self.system,
            "chat_template_kwargs": self.chat_template_kwargs,
            "answers": ANSWER_LINE if self.in_line else None,
            "instruction": self.instruction,
        }
        return {name: value for name, value in told.items() if value}

    def serves(self, benchmark: Benchmark) -> bool:
        """Return whether the questions of a benchmark have this form instead of their own."""
        return benchmark.template == BOXED or (self.with_programs and benchmark.template == PROGRAMS)


def asked_in(settings: dict[str, Any]) -> dict[str, Any]:
    """Return those settings of a benchmark's results that say how the model was asked."""
    return {name: settings[name] for name in ASKED if name in settings}


def chat_form(system: str | None, thinking: str | None) -> Form:
    """Return the form of a model that was trained elsewhere to chat: its template, with the instruction of `boxed`.

    Args:
        system: system message, or None.
        thinking: the template's `enable_thinking`, `true` or `false`, or None for its default.
    """
    instruction = TEMPLATES[BOXED].partition("{question}")[2].partition("\n\nAssistant:")[0]
    kwargs = {} if thinking is None else {"enable_thinking": thinking == "true"}
    return Form(MESSAGES, system, kwargs, instruction=instruction, with_programs=True)


def check_chat(form: Form, tokenizer: PreTrainedTokenizerBase, path: str, revision: str | None) -> None:
    """Refuse settings of a chat that do not fit the model.

    Args:
        path, revision: the model, whose files declare the tokens that end a response.

    Raises:
        ValueError: the tokenizer has no chat template, the template does not read `thinking`, or its turns end with
            a token that does not end responses.
    """
    if not tokenizer.chat_template:
        raise ValueError(f"chat is true, but the tokenizer of {path!r} has no chat template: leave chat out.")
    user = [{"role": "user", "content": "QUESTION"}]
    whole = tokenizer.apply_chat_template([*user, {"role": "assistant", "content": "ANSWER"}], tokenize=False)
    assert isinstance(whole, str)
    end = whole.rpartition("ANSWER")[2]
    ids = tokenizer(end, add_special_tokens=False)["input_ids"]
    if not ids or ids[0] not in end_ids(tokenizer, load_generation_config(path, revision)):
        raise ValueError(
            f"chat is true, but the chat template of {path!r} ends a turn with {end.strip()!r}, which its files do "
            "not declare as EOS, so that no response would end: add it to eos_token_id in generation_config.json."
        )
    thinking = form.chat_template_kwargs.get("enable_thinking")
    prompts = {
        tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True, enable_thinking=value)
        for value in (True, False)
    }
    if thinking is not None and len(prompts) == 1:
        raise ValueError(
            f"thinking is {str(thinking).lower()}, but the chat template of {path!r} does not read it: leave it out."
        )


def form_of(prompt: str | None, model: str) -> Form:
    """Return the form that `prompt` names, a template or a run's folder. The default is the form of the model's run.

    Raises:
        ValueError: `prompt` is neither a template nor a run.
    """
    if prompt in (BOXED, ANSWER_LINE):
        return Form(prompt, in_line=prompt == ANSWER_LINE)
    run = run_of(Path(prompt or model))
    if run is None and prompt is not None:
        raise ValueError(f"prompt is {prompt!r}: choose {BOXED}, {ANSWER_LINE} or the folder of a run.")
    return Form() if run is None else _of_run(run)


def _of_run(run: RunFolder) -> Form:
    recipe = read_recipe(run)
    template, rewards = recipe.get("prompt_template"), recipe.get("rewards") or [""]
    in_line = rewards[0] == "dapo_accuracy" or template == ANSWER_LINE
    default = ANSWER_LINE if in_line else BOXED
    messages = files.read_json(run.data).get(MESSAGES)
    if messages is not None:
        return Form(MESSAGES, messages["system"], recipe.get("chat_template_kwargs") or {}, in_line)
    return Form(template if template in TEMPLATES else default, in_line=in_line)


def reading(benchmark: Benchmark, form: Form) -> Benchmark:
    """Return a benchmark that reads the answers of a form, unchanged if the benchmark has its own form."""
    return replace(benchmark, take=_in_line(benchmark)) if form.in_line and form.serves(benchmark) else benchmark


def put(benchmark: Benchmark, asked: Sequence[Question], form: Form, chat: Chat) -> tuple[Benchmark, list[Question]]:
    """Return a benchmark and its questions in a form, unchanged if the benchmark has its own form.

    Questions that are conversations stay conversations in every form.

    Args:
        chat: called only for messages.
    """
    if not form.serves(benchmark):
        return benchmark, list(asked)
    instruction = form.instruction if benchmark.template == BOXED else ""

    def prompt(question: Question) -> str:
        if question.messages is None and form.template != MESSAGES:
            return render(form.template, question.text)
        system = [] if form.system is None else [{"role": "system", "content": form.system}]
        own = [*system, {"role": "user", "content": question.text + instruction}]
        return chat(question.messages or own, form.chat_template_kwargs)

    template = MESSAGES if any(question.messages for question in asked) else form.template
    changed = replace(reading(benchmark, form), template=template)
    return changed, [replace(question, prompt=prompt(question)) for question in asked]


def _in_line(benchmark: Benchmark) -> Callable[[Question, str], str | None]:
    if benchmark.kind == MATHS:
        return lambda question, response: answer_line(response)
    # The reader of letters expects a box.
    return lambda question, response: benchmark.take(question, f"\\boxed{{{answer_line(response) or ''}}}")
