"""`entropy-grpo analyze irrelevant`: a language model judges whether responses have irrelevant content.

    DIR/irrelevant/NAME/settings.json, samples-R.jsonl  settings and replies of the judge, as in an evaluation
    DIR/irrelevant/NAME/irrelevant.jsonl                defects of each response
    DIR/irrelevant/NAME/irrelevant.json                 rates, and agreement of the judge with the rule

arXiv 2508.02260 asks a language model, too. Its prompt and its judge are not known here, so that rates are comparable
only if judge and prompt are the same. The judge is any model on transformers, vLLM or a server with OpenAI's
completions API. The same command continues a killed one.
"""

import random
from pathlib import Path
from typing import Any

from ...data.benchmarks.benchmark import Question
from ...evaluation import prompting
from ...evaluation import run as evaluation
from ...evaluation.backends.base import TRANSFORMERS, Sampling, choose
from ...evaluation.generation import Work
from ...evaluation.options import Options as EvaluationOptions
from ...metrics.tables import aligned
from ...models import load
from ...runs import files
from ...runs.files import Row
from ...runs.weights import has_adapter
from ..collect import inputs
from ..collect.run import digest
from .options import Options
from .question import ask, verdict
from .summary import FIGURES, folder_of, judged_row, summarize, table

ROWS = "irrelevant.jsonl"


def read(options: Options) -> list[tuple[int, str, str]]:
    """Return (number of the row, problem, response) of the responses to judge."""
    rows = []
    for number, (place, row) in enumerate(inputs.read(options.responses)):
        prompt, response = inputs.texts_of(row, place)
        rows.append((number, row.get("problem") or prompt, response))
    if options.limit is not None and options.limit < len(rows):
        rows = sorted(random.Random(options.seed).sample(rows, options.limit))
    return rows


def questions(options: Options, rows: list[tuple[int, str, str]], path: str) -> list[Question]:
    """Return the question about each response, in the judge's chat template if it is requested."""
    asked = [ask(problem, response, options.characters, options.chat) for _, problem, response in rows]
    if options.chat:
        form = prompting.chat_form(options.system, options.thinking)
        prompting.check_chat(form, load.load_tokenizer(path), path, None)
        chat, system = evaluation.chat_of(path, None), [{"role": "system", "content": options.system}]
        system = system if options.system is not None else []
        kwargs = form.chat_template_kwargs
        prompts = [chat([*system, {"role": "user", "content": text}], kwargs) for text in asked]
    else:
        prompts = asked
    return [Question(str(number), "", prompt, "") for (number, _, _), prompt in zip(rows, prompts, strict=True)]


def work_of(options: Options, rows: list[tuple[int, str, str]], path: str, backend: str) -> Work:
    """Return the replies to generate: one greedy reply to each question."""
    about: dict[str, Any] = {"judge": options.model, "weights": load.fingerprint(path), "backend": backend}
    about |= {"responses": str(options.responses), "sha256": digest(options.responses), "limit": options.limit}
    about |= {name: getattr(options, name) for name in ("characters", "chat", "system", "thinking", "dtype")}
    if backend == TRANSFORMERS:  # the composition of a batch decides the rounding of its replies
        about["batch_size"] = options.batch_size
    folder = folder_of(options.output, options.responses.stem)
    sampling = Sampling(temperature=0.0, max_tokens=options.max_tokens)
    return Work(folder, questions(options, rows, path), 1, options.seed, sampling, about)


def run(options: Options) -> Path:
    """Ask the missing questions, summarise all verdicts, print the table, and return the folder.

    Raises:
        ValueError: an option or a row is invalid. The message is one sentence.
    """
    rows, path = read(options), load.resolve(options.model)
    backend = choose(options.backend, has_adapter(path))
    work = work_of(options, rows, path, backend)
    work.claim()
    if work.missing():
        names = ("model", "output", "dtype", "batch_size", "tensor_parallel", "backend")
        judge = EvaluationOptions(benchmarks=(), **{name: getattr(options, name) for name in names})
        evaluation.generate([work], evaluation.load_backend(judge, backend, path, [work]))
    judged = {row["question"]: verdict(row["text"], options.chat) for row in work.rows()}
    verdicts: list[Row] = [
        {"row": number, "problem": problem} | judged_row(problem, response, judged[str(number)])
        for number, problem, response in rows
    ]
    files.replace_jsonl(work.folder / ROWS, verdicts)
    summed = summarize(verdicts)
    files.write_json(work.folder / FIGURES, {"settings": work.recorded, **summed})
    print(aligned(list(zip(*table({work.folder.name: summed}), strict=True))))
    return work.folder
