"""`entropy-grpo analyze report`: a run or a collection on one page, with all available views of its token entropy.

The page of a run also has its result, curves, warnings, last responses and settings.

    FOLDER/report.html             the page, one file that needs no network; report.md is the same without colours
    FOLDER/report.json             figures of the pages
    FOLDER/text.html               responses, token by token, coloured by entropy
    FOLDER/figures/*.png           pictures

FOLDER is RUN/analysis for a run, and the collection's own folder for a collection.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...evaluation.options import PRESETS
from ...metrics.logged import ENTROPY_PERCENTILES, STEP_ENTROPY
from ...monitoring.pieces import visible
from ...runs import files, trained
from ...runs.folder import RunFolder
from ...tasks.registry import entropy_note
from ..collect.store import Collection
from ..divergence import impact, summary
from ..irrelevant import summary as irrelevant
from ..text.page import write_page
from ..text.tokens import from_collection, from_samples
from ..views import all as views
from . import figures, run_sections, update_figures, update_sections
from .render import Section, Table, markdown, page

# Number of a run's last responses, or a collection's first, on the coloured page, as in `analyze text`.
RESPONSES = 8
TEXT = "text.html"
# Fig. 2a, and how it was measured: Qwen3-8B in thinking mode answers AIME at temperature 1. The paper does not state
# the length of these responses; that of its other evaluations counts as alike.
PAPER_MODEL = "Qwen/Qwen3-8B"
PAPER_TOKENS = PRESETS["forking"]["max_tokens"]
PAPER = ("Qwen3-8B on AIME (the paper)", "", "", "50.64%", "0.672", "")
PAPER_BENCHMARKS = {"aime24", "aime25"}


def folder_of(path: Path) -> Path:
    """Return the folder for the report of a run or a collection.

    Raises:
        ValueError: the path is neither a run nor a collection.
    """
    run, inside = RunFolder(path), RunFolder(path).analysis
    if holds_analyses(path):
        return path
    if run.metrics.exists() or run.recipe.exists() or holds_analyses(inside):
        return inside
    raise ValueError(
        f"{path} is neither a run folder nor a folder of entropy-grpo analyze collect: name one of the two."
    )


def holds_analyses(folder: Path) -> bool:
    """Return whether a folder holds collected tokens, forks, or verdicts on responses."""
    parts = (summary.folder_of(folder, ""), irrelevant.folder_of(folder, ""))
    return Collection(folder).settings.exists() or any(part.is_dir() for part in parts)


def measure(path: Path) -> dict[str, Any]:
    """Compute the figures of forks, of the run's log, and of collected tokens or, without them, of logged samples.

    Raises:
        ValueError: the folder holds none of these.
    """
    collection, run = Collection(folder_of(path)), RunFolder(path)
    tokens = {}
    if collection.responses.exists() and collection.checkpoints:
        tokens = views.of_collection(collection)
        if is_like_the_paper(files.read_json(collection.settings)):
            tokens["like_the_paper"] = True
    else:
        tokens = views.of_samples(run)
    others = {"divergence": summary.read(collection.path), "logs": views.of_logs(run)}
    others["irrelevant"] = irrelevant.read(collection.path)
    measured = tokens | {key: value for key, value in others.items() if value}
    if not measured:
        raise ValueError(
            f"{path} holds neither tokens nor forks nor a log with entropies: run entropy-grpo analyze collect first."
        )
    found = notes(files.read_json(collection.settings).get("responses"), trained.read_recipe(run))
    return measured | ({"notes": found} if found else {})


def notes(asked: Any, recipe: dict[str, Any]) -> list[str]:
    """Return the sentences that belong beside figures of entropy of the tasks that were asked or trained on."""
    names = [*(asked if isinstance(asked, list) else []), recipe.get("dataset_name")]
    return list(dict.fromkeys(filter(None, map(entropy_note, names))))


def _share(value: float) -> str:
    return f"{value:.2%}"


def ends(checkpoints: Iterable[str]) -> list[str]:
    """Return the first and the last checkpoint, without repetition, for views that need much space per checkpoint."""
    names = list(checkpoints)
    return list(dict.fromkeys([names[0], names[-1]]))


def is_like_the_paper(settings: dict[str, Any]) -> bool:
    """Return whether responses were collected with the settings of the paper's Fig. 2a, and scored by its model."""
    asked, longest = settings.get("responses"), settings.get("max_tokens")
    on_aime = isinstance(asked, list) and bool(asked) and set(asked) <= PAPER_BENCHMARKS
    thinks = bool(settings.get("chat")) and settings.get("thinking") == "true" and not settings.get("system")
    whole = longest is None or longest >= PAPER_TOKENS
    if not (on_aime and thinks and whole and settings.get("temperature") == 1):
        return False
    return {checkpoint["path"] for checkpoint in settings["checkpoints"].values()} == {PAPER_MODEL}


def distribution_section(found: dict[str, Any], folder: Path) -> Section:
    """Make the section of Fig. 2a, with the paper's figures in the last row if they were measured alike."""
    checkpoints = found["checkpoints"]
    histograms = {
        name: (np.array(one["histogram"]["edges"]), np.array(one["histogram"]["counts"]))
        for name, one in checkpoints.items()
    }
    marks = {name: one["percentiles"][80] for name, one in checkpoints.items()}
    picture = figures.save(figures.histogram(histograms, marks), folder / "histogram.png")
    rows = [
        (
            name,
            f"{one['tokens']:,}",
            f"{one['mean']:.4f}",
            _share(one["share_below_0.01"]),
            f"{one['percentiles'][80]:.4f}",
            _share(one["held_by_top_20"]),
        )
        for name, one in checkpoints.items()
    ]
    rows += [PAPER] if found.get("like_the_paper") else []
    header = ("", "tokens", "mean (nats)", "below 0.01 nats", "80th percentile (nats)", "entropy held by the top 20%")
    text = "A minority of tokens, the forks, holds most of the entropy (arXiv 2506.01939, Fig. 2a)."
    return Section("Distribution", text, [(picture, "histogram of token entropy")], [Table(header, rows)])


def word_section(name: str, one: dict[str, Any], folder: Path, number: int) -> Section:
    """Make the section of Fig. 2b and 2c for one checkpoint."""
    found, pictures, tables = one["words"], [], []
    for side in ("highest", "lowest"):
        path = folder / f"words-{number}-{side}.png"
        if figures.cloud(found[side], path, side == "lowest"):
            pictures.append((path, f"tokens of {side} mean entropy"))
        rows = [(visible(r["text"]), str(r["token"]), f"{r['count']:,}", f"{r['entropy']:.4f}") for r in found[side]]
        caption = f"{len(rows)} token{'s' if len(rows) > 1 else ''} of {side} mean entropy, {name}"
        tables.append(Table(("token", "id", "seen", "mean entropy (nats)"), rows, caption))
    text = (
        f"Tokens that occur more than {found['seen_more_than']} times: first the tokens with the highest mean entropy "
        "at their positions, then the tokens with the lowest. In both pictures, larger words have a higher mean "
        "entropy. ␣ is a space."
    )
    return Section(f"Words, {name}", text, pictures, tables)


def overlap_section(found: dict[str, Any], folder: Path) -> Section:
    """Make the section of Table 1; the table also separates right and wrong responses."""
    groups, (first, *others) = found["training"], found["checkpoints"]
    picture = figures.save(figures.overlap(groups["all"]["overlaps"]), folder / "overlap.png")
    rows = [(name, *(_share(group["overlaps"][first][name]) for group in groups.values())) for name in others]
    header = (f"top 20% shared with {first}", *(f"{group} responses" for group in groups))
    return Section(
        "Overlap of forks",
        "Share of the positions with the highest 20% of entropies that two checkpoints have in common, on the same "
        "responses (Table 1). The paper finds more than 86% between the base and every step up to 1360. Two "
        "independent choices share 20%.",
        [(picture, "overlap")],
        [Table(header, rows)],
    )


def change_section(found: dict[str, Any], folder: Path) -> Section:
    """Make the section of Fig. 4; the table also separates right and wrong responses."""
    groups, names = found["training"], list(found["checkpoints"])
    first, last = names[0], names[-1]
    whole = groups["all"]["changes"][last]
    picture = figures.save(figures.change(whole, first, last), folder / "change.png")
    rows = [
        (
            f"{row['from']:.0f} to {row['to']:.0f}",
            f"{row['entropy']:.4f}",
            *(f"{group['changes'][last][i]['change']:+.4f}" for group in groups.values()),
        )
        for i, row in enumerate(whole)
    ]
    header = ("percentile", f"entropy in {first}", *(f"change, {group} responses" for group in groups))
    return Section(
        "Change of entropy",
        f"Mean change of entropy from {first} to {last} for the tokens in each 5% of {first}'s entropies (Fig. 4), in "
        "nats.",
        [(picture, "mean change of entropy by percentile")],
        [Table(header, rows, "values, also for right and for wrong responses")],
    )


def percentile_section(found: dict[str, Any], folder: Path) -> Section:
    """Make the section of Fig. 5."""
    curves, names = found["training"]["all"]["percentiles"], list(found["checkpoints"])
    shown = {level: [curves[name][level] for name in names] for level in figures.PERCENTILES_SHOWN}
    picture = figures.save(figures.percentiles(shown, names, "checkpoint"), folder / "percentiles.png")
    rows = [(f"{level}%", *(f"{curves[name][level]:.4f}" for name in names)) for level in curves[names[0]]]
    table = Table(("percentile", *names), rows, "every fifth percentile")
    return Section("Percentiles over training", "Fig. 5, in nats.", [(picture, "percentiles of entropy")], [table])


def position_section(found: dict[str, Any], folder: Path) -> Section:
    """Make the section of Fig. 6 of arXiv 2508.02260, for the first and the last checkpoint."""
    pictures = []
    for i, name in enumerate(ends(found["checkpoints"])):
        figure = figures.position(found["checkpoints"][name]["position"], name)
        pictures.append((figures.save(figure, folder / f"position-{i}.png"), f"entropy by position, {name}"))
    return Section("Position", "Mean entropy along responses (arXiv 2508.02260, Fig. 6).", pictures)


def category_section(found: dict[str, Any], folder: Path) -> Section:
    """Make the section of appendix C of arXiv 2508.02260: every checkpoint, and its change from the first."""
    kinds = {name: one["categories"] for name, one in found["checkpoints"].items()}
    drawn = figures.categories({name: kinds[name] for name in ends(kinds)})
    picture = figures.save(drawn, folder / "categories.png")
    rows = []
    for name, one in kinds.items():
        changes = found.get("category_changes", {}).get(name, {})
        for kind, row in one.items():
            change = changes.get(kind)
            moved = (f"{change['entropy']:+.4f}", f"{change['probability']:+.4f}") if change else ("", "")
            figures_of = (f"{row['tokens']:,}", f"{row['entropy']:.4f}", f"{row['probability']:.4f}")
            rows.append((kind, name, *figures_of, *moved))
    header = (
        "category",
        "",
        "tokens",
        "mean entropy (nats)",
        "mean probability",
        "change of entropy",
        "of probability",
    )
    text = "Categories of tokens by word lists (arXiv 2508.02260, appendix C). Changes are from the first checkpoint."
    return Section("Token categories", text, [(picture, "token categories")], [Table(header, rows)])


def divergence_section(found: dict[str, Any], folder: Path) -> Section:
    """Make the section of Eq. 5 and 6 of arXiv 2508.02260, for every model whose forks were continued."""
    picture = figures.save(figures.divergence(found), folder / "divergence.png")
    header, *rows = summary.table({name: one["summary"] for name, one in found.items()})
    pictures, tables = [(picture, "intervention by entropy")], [Table(header, rows)]
    # Forks of earlier versions have neither perplexity nor relative position.
    by_group = {name: one["impact"] for name, one in found.items() if one.get("impact")}
    if by_group:
        drawn = figures.save(update_figures.impact(by_group, impact.GROUPS), folder / "impact.png")
        pictures.append((drawn, "intervention by perplexity and by position"))
        header, *rows = impact.table(by_group)
        tables.append(Table(header, rows))
    text = (
        "At tokens of high and of low entropy, responses are continued after the sampled token, and after the most "
        "probable other token. I_t is the accuracy after the sampled token minus the accuracy after the other token "
        "(arXiv 2508.02260, Eq. 5, 6). A difference beyond chance is the difference between continuations of the two "
        "tokens minus the difference between two continuations of the same token. 95% intervals over questions. The "
        "second table separates responses of low and of high perplexity, and the first from the second half of the "
        "responses (Fig. 4). |I_t| is above 0 by chance, too: beside it is its mean if the forced token had no effect."
    )
    return Section("Divergence at forks", text, pictures, tables)


def irrelevant_section(found: dict[str, Any]) -> Section:
    """Make the section of defects, with the verdicts of a language model on irrelevant content."""
    header, *rows = irrelevant.table(found)
    text = (
        "Defects of responses (arXiv 2508.02260): no box or several, mixed languages, and irrelevant content, by a "
        "language model and by the rule without a model (repetition). 95% intervals over problems. Kappa is Cohen's."
    )
    return Section("Irrelevant content", text, tables=[Table(header, rows)])


def log_section(logs: dict[str, Any], folder: Path) -> Section:
    """Make the section of the entropies that the run logged of its rollouts, or of its steps."""
    pictures = []
    if "percentiles" in logs:
        logged = logs["percentiles"]
        curves = {level: logged[name][1] for level, name in ENTROPY_PERCENTILES.items() if name in logged}
        steps = next(iter(logs["percentiles"].values()))[0]
        figure = figures.percentiles(curves, steps, "optimiser step")
        pictures.append((figures.save(figure, folder / "log-percentiles.png"), "logged percentiles of entropy"))
    if "signs" in logs:
        figure = figures.signs(logs["signs"])
        pictures.append(
            (figures.save(figure, folder / "log-signs.png"), "entropy by correctness and by the sign of the advantage")
        )
    of_steps = logs.get("prefix") == STEP_ENTROPY
    tokens = "optimiser step, under its own policy" if of_steps else "rollout, under the policy that wrote it"
    text = (
        f"Entropy that the run logged for each {tokens} (Fig. 5). Right and wrong "
        "responses are the positive and negative samples of arXiv 2508.02260. The sign of the advantage differs for a "
        "right response that is overlong."
    )
    return Section("During training", text, pictures)


def sections(found: dict[str, Any], folder: Path) -> list[Section]:
    """Make every section that has figures, and draw its pictures into `folder`."""
    made = []
    checkpoints = found.get("checkpoints", {})
    if checkpoints:
        made.append(distribution_section(found, folder))
        for i, name in enumerate(ends(checkpoints)):
            made.append(word_section(name, checkpoints[name], folder, i))
    if "training" in found:
        made += [part(found, folder) for part in (overlap_section, change_section, percentile_section)]
    if checkpoints and all("position" in one for one in checkpoints.values()):
        made += [position_section(found, folder), category_section(found, folder)]
    if "updates" in found:
        made += update_sections.sections(found["updates"], next(iter(checkpoints)), folder)
    if "divergence" in found:
        made.append(divergence_section(found["divergence"], folder))
    if "irrelevant" in found:
        made.append(irrelevant_section(found["irrelevant"]))
    if "logs" in found:
        made.append(log_section(found["logs"], folder))
    made[0] = replace(made[0], text=" ".join([made[0].text, *found.get("notes", [])]))
    return made


def write_text_page(run: RunFolder, collection: Collection, path: Path) -> None:
    """Write the page of a run's last logged responses, or else of a collection's first, if it does not exist."""
    if path.exists():
        return
    responses = from_samples(files.read_samples(run.samples)[-RESPONSES:])
    if not responses and collection.responses.exists() and collection.checkpoints:
        responses = from_collection(collection, ends(collection.checkpoints), RESPONSES)
    if responses:
        write_page(path, f"Tokens of {run.path.resolve().name}", responses)


def write(path: Path) -> list[Path]:
    """Write the report of a run or a collection, and return the paths of its pages."""
    folder, run = folder_of(path), RunFolder(path)
    measured = measure(path)
    made = sections(measured, folder / "figures")
    write_text_page(run, Collection(folder), folder / TEXT)
    others = sorted(file.name for file in folder.glob("*.html") if file.name != "report.html")
    title = f"Token entropy, {path.resolve().name}"
    if run.metrics.exists():
        model = trained.read(path)
        first = [run_sections.result_section(model), run_sections.curve_section(model)]
        first += [run_sections.warning_section(run), run_sections.response_section(run)]
        made = [*first, *made, run_sections.setting_section(model)]
        title = f"Run {path.resolve().name}"
    if others:
        made.append(Section("Responses, token by token", links=others))
    files.write_json(folder / "report.json", measured)
    files.write_text(folder / "report.md", markdown(title, made, folder))
    files.write_text(folder / "report.html", page(title, made))
    return [folder / "report.md", folder / "report.html"]
