"""`entropy-grpo analyze text`: a run's last logged responses, coloured by entropy, in the terminal and as a page.

The colours show the entropies that the run logged. With checkpoints, they show each checkpoint's entropies of the same
tokens, side by side, with probabilities and alternatives.
"""

import sys
from pathlib import Path

from ...models import load
from ...monitoring.pieces import piece
from ...runs import files
from ...runs.folder import RunFolder
from ..collect.run import named
from . import alternatives, terminal
from .options import Options
from .page import write_page
from .tokens import Response, View, from_samples, view

COUNT = 5


def score(rows: list[files.Row], options: Options) -> list[Response]:
    """Score the responses under every checkpoint. Only one checkpoint is in memory at a time."""
    views: list[list[View]] = [[] for _ in rows]
    for name, path in named(options.checkpoints).items():
        model, tokenizer = load.load_model(load.resolve(path), None, options.dtype)
        for row, found in zip(rows, views, strict=True):
            prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
            scores = alternatives.score(model, prompt, row["token_ids"], COUNT, options.temperature)
            found.append(view(name, scores, tokenizer))
    return [
        Response(response.title, response.prompt, [piece(tokenizer, token) for token in row["token_ids"]], found)
        for response, row, found in zip(from_samples(rows), rows, views, strict=True)
    ]


def run(options: Options) -> Path:
    """Print the responses, write `analysis/text.html` of the run, and return its path."""
    rows = files.read_samples(RunFolder(options.run).samples)[-options.responses :]
    responses = score(rows, options) if options.checkpoints else from_samples(rows)
    sys.stdout.write(terminal.text(responses, options.rho, terminal.wants_colour(sys.stdout)))
    path = RunFolder(options.run).analysis / "text.html"
    write_page(path, f"Tokens of {options.run.resolve().name}", responses, options.rho)
    return path
