"""Sections of a run's page beside its token entropy: result, curves, warnings, last responses, settings."""

from collections.abc import Sequence

from ...cards.card import PLOTS_TEXT, essentials
from ...cards.metadata import is_cold_start
from ...cards.results import benchmark_rows, results_table
from ...metrics.intervals import CONFIDENCE
from ...runs import files, plots
from ...runs.folder import RunFolder
from ...runs.trained import Trained
from ..text.page import entropy_scale
from ..text.tokens import Response, from_samples, shown
from .render import Coloured, Section, Table

# Numbers of responses, and of tokens of a response, on the page. `analyze text` shows more, and whole responses.
RESPONSES, TOKENS = 4, 1000
# Shades of the style sheet, and the entropy in nats below which a token has none, as in the page of `analyze text`.
SHADES, LOWEST = 15, 0.01


def result_section(model: Trained) -> Section:
    """Make the section of the measured change on held-out problems and benchmarks."""
    counts = model.evaluation.get("after") or model.evaluation.get("before") or {}
    tables = []
    if counts:
        rows = [tuple(row.values()) for row in results_table(model.evaluation)]
        tables.append(Table(("", "before", "after", "gain"), rows))
    if model.benchmarks:
        header = ("benchmark", "questions", "metric", "base model", "this model", "gain")
        tables.append(Table(header, benchmark_rows(model.benchmarks)))
    sentences = [f"Optimiser steps: {model.step}."]
    if counts:
        sentences.append(f"{counts['num_problems']} held-out problems, {CONFIDENCE:.0%} intervals over problems.")
    sentences += [f"The folder lacks {lack}." for lack in model.lacks if lack.startswith("an evaluation")]
    return Section("Result", " ".join(sentences), tables=tables)


def curve_section(model: Trained) -> Section:
    """Make the section of the curves over training, which are drawn again from the whole log."""
    drawn = [] if is_cold_start(model) else plots.draw(model.run)
    return Section("Curves", pictures=[(path, PLOTS_TEXT[path.stem]) for path in drawn])


def warning_section(run: RunFolder) -> Section:
    """Make the section of the watchers' warnings."""
    rows = [(str(row["step"]), row["watcher"], row["sentence"]) for row in files.read_steps(run.warnings)]
    if not rows:
        return Section("Warnings", "The watchers found no fault in the log.")
    return Section("Warnings", tables=[Table(("step", "watcher", "warning"), rows)])


def _shade(entropy: float, scale: float) -> int:
    return 0 if entropy < LOWEST else 1 + min(SHADES - 1, int(entropy / scale * SHADES))


def coloured(responses: Sequence[Response]) -> list[Coloured]:
    """Convert responses of a run's log, the last one first."""
    scale = entropy_scale(responses)
    made = []
    for response in reversed(responses):
        (view,) = response.views
        tokens = [
            (shown(text), _shade(h, scale), bool(kept), f"{h:.4f} nats")
            for text, h, kept in zip(response.tokens, view.entropies, view.kept, strict=True)
        ]
        more = f"The first {TOKENS:,} of {len(tokens):,} tokens." if len(tokens) > TOKENS else ""
        prompt = "".join(map(shown, response.prompt))
        made.append(Coloured(shown(response.title), prompt, tokens[:TOKENS], more))
    return made


def response_section(run: RunFolder) -> Section:
    """Make the section of the run's last logged responses."""
    rows = files.read_samples(run.samples)[-RESPONSES:]
    if not rows:
        return Section("Responses", "The run logged no responses (num_logged_samples).")
    text = (
        "Each token has the colour of its entropy under the policy that wrote it: the stronger the colour, the higher "
        "the entropy. Underlined tokens were trained on."
    )
    return Section("Responses", text, responses=coloured(from_samples(rows)))


def setting_section(model: Trained) -> Section:
    """Make the section of the main settings, with all settings of the recipe behind a click."""
    tables = [Table(("what", "value"), essentials(model))]
    changed = [(str(row["from_step"]), row["setting"], str(row["before"]), str(row["now"])) for row in model.changes]
    if changed:
        tables.append(Table(("from step", "setting", "before", "from then on"), changed))
    every = [(name, str(value)) for name, value in sorted(model.recipe.items())]
    if every:
        tables.append(Table(("setting", "value"), every, "all settings of the recipe"))
    return Section("Settings", tables=tables)
