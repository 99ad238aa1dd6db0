"""Reports of collections and runs: every token shows as itself, runs nothing, and the figures are the views'."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from entropy_grpo import cli
from entropy_grpo.analysis.collect import run as collect
from entropy_grpo.analysis.collect.store import RESPONSES, Collection
from entropy_grpo.analysis.report import figures
from entropy_grpo.analysis.report import run as report
from entropy_grpo.analysis.report.render import Section, Table, markdown, page
from entropy_grpo.analysis.text import tokens
from entropy_grpo.analysis.text.tokens import shown
from entropy_grpo.analysis.views import distribution
from entropy_grpo.cards import card
from entropy_grpo.monitoring.pieces import piece, visible
from entropy_grpo.runs import files, parquet
from entropy_grpo.runs.folder import RunFolder

from .browser import browser, needs_chromium

HOSTILE = [
    "</script><script>alert(1)</script>",
    "\u202egnp.exe",
    "nul\0l",
    "<img src=x onerror=alert(1)>",
    "a|b`c`*d*_e_[f](javascript:alert(1))",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;",
    "\\xf0\\x9f",
    "\n",
    " ",
    "$\\frac",
    "😀",
]


def byte_tokenizer():
    """Every byte is a token, so that an emoji is four, none of which is text."""
    vocabulary = {text: i for i, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_every_byte_has_its_own_text():
    tokenizer = byte_tokenizer()
    ids = tokenizer("😀é\0 \\")["input_ids"]
    assert [piece(tokenizer, i) for i in ids] == [
        *(r"\xf0", r"\x9f", r"\x98", r"\x80"),
        *(r"\xc3", r"\xa9"),
        *("\0", " ", "\\"),
    ]
    assert len({piece(tokenizer, i) for i in range(256)}) == 256
    assert piece(tokenizer, 999) == "<999>"


def test_sentencepiece_tokens_keep_space_and_bytes():
    vocabulary = {"<unk>": 0, "▁so": 1, "so": 2, "<0xF0>": 3, "<0x0A>": 4}
    inner = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(parts)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert [piece(tokenizer, i) for i in (1, 2, 3, 4)] == [" so", "so", r"\xf0", "\n"]


def test_what_hides_is_shown():
    assert visible(" a\n\0\u202e\u200d\u00a0") == "␣a↵⟨U+0000⟩⟨U+202E⟩⟨U+200D⟩⟨U+00A0⟩"
    assert visible("\u0301") == "◌\u0301"
    assert visible("שלום 等 😀") == "שלום␣等␣😀"
    assert visible("") == "(empty)"


class Page(HTMLParser):
    """The elements of a page, and the text of its cells."""

    def __init__(self):
        super().__init__()
        self.elements, self.attributes, self.cells = set(), set(), []

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {(name, value) for name, value in attrs if name.startswith("on") or name == "src"}
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells and self.lasttag == "bdi":
            self.cells[-1] += data


def synthetic(path, texts, checkpoints=("base", "</script>$x$")):
    """A collection of every text 30 times, in two parts, with entropies that are known."""
    collection, rng = Collection(path), np.random.default_rng(0)
    rows = [
        {"id": i, "prompt": "p", "response": "", "correct": i == 0, "prompt_ids": [0], "completion_ids": ids}
        for i, ids in enumerate(np.tile(np.arange(len(texts)), 30).reshape(2, -1).tolist())
    ]
    path.mkdir(exist_ok=True)
    with pq.ParquetWriter(collection.responses, RESPONSES) as writer:
        for row in rows:
            writer.write_table(pa.Table.from_pylist([row], schema=RESPONSES))
    names = [name.replace("/", "-") for name in checkpoints]
    for name in names:
        for i, row in enumerate(rows):
            n = len(row["completion_ids"])
            scores = [[sign * rng.random(n).astype(np.float32)] for sign in (1, -1, 1)]
            table = collect.token_table([row], scores, dict(enumerate(texts)), name)
            parquet.write(collection.part(name, i), table)
    files.write_json(collection.settings, {"checkpoints": dict.fromkeys(names)})
    return collection


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    collection = synthetic(tmp_path_factory.mktemp("hostile"), HOSTILE)
    cli.main(["analyze", "report", str(collection.path)])
    return collection


def test_hostile_tokens_show_as_themselves_and_run_nothing(hostile):
    read = Page()
    text = (hostile.path / "report.html").read_text(encoding="utf-8")
    read.feed(text)
    assert not read.elements & {"script", "iframe", "object", "link", "form", "base"}
    assert read.attributes
    assert all(name == "src" and value.startswith("data:image/png;base64,") for name, value in read.attributes)
    assert "default-src 'none'" in text
    for token in HOSTILE:
        assert visible(token) in read.cells
    assert not set("\0\u202e") & set(text)


@needs_chromium
def test_report_as_a_reader_sees_it(hostile, tmp_path):
    with browser(tmp_path) as tab:
        tab.check(f"file://{hostile.path}/report.html")
        assert tab.run("[...document.images].every((image) => image.naturalWidth > 0) && document.images.length > 3")


def test_hostile_tokens_in_markdown(hostile):
    text = (hostile.path / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"</?(details|summary)>", "", text)
    assert not re.search(r"<(?!\S+\.html>)", outside)
    rows = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("|")]
    shown = set()
    for row in rows:
        cell = re.sub(r"\\(.)", r"\1", row[1].strip())
        shown.add(cell.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    for token in HOSTILE:
        assert visible(token) in shown
    assert {len(row) for row in rows if visible(HOSTILE[4])[:3] in row[1].replace("\\", "")} == {6}


def test_report_holds_the_views(hostile):
    found = json.loads((hostile.path / "report.json").read_text())
    entropy = hostile.column("base", "entropy")
    assert found["checkpoints"]["base"]["mean"] == pytest.approx(float(np.mean(entropy.astype(np.float64))))
    assert found["checkpoints"]["base"]["percentiles"]["80"] == pytest.approx(distribution.levels(entropy)[80])
    text = (hostile.path / "report.md").read_text()
    assert f"{found['training']['right']['overlaps']['base']['<-script>$x$']:.2%}" in text
    for picture in ("histogram", "overlap", "change", "percentiles", "position-1", "categories"):
        assert (hostile.path / "figures" / f"{picture}.png").stat().st_size > 5000
        assert f"figures/{picture}.png" in text


def row_of_samples(step):
    row = {"step": step, "prompt": "p", "advantage": 0.5, "tokens": ["a", "<b>"], "token_ids": [3, 4], "kept": [1, 0]}
    return row | {"entropies": [0.5, 0.001]}


def make_run(path):
    """A run folder with a log and token samples, and nothing else."""
    run = RunFolder(path)
    rows = [
        {"step": i, "entropy/p50": 0.1, "entropy/p95": 1.0 - i / 10, "entropy/right": 0.4}
        | {"entropy/wrong": 0.5, "entropy/positive": 0.2, "entropy/negative": 0.3}
        for i in range(1, 5)
    ]
    files.append_jsonl(run.metrics, [*rows, {"step": 4, "train_runtime": 3.0}])
    empty = {"step": 2, "tokens": [], "token_ids": [], "entropies": []}
    files.append_jsonl(run.samples, [row_of_samples(1)] * 25 + [empty])
    return run


def test_a_run_reports_what_it_logged(tmp_path):
    run = make_run(tmp_path)
    assert "analysis/report.md" not in card.write_card(run.path, draws=False).read_text()
    report.write(tmp_path)
    found = json.loads((tmp_path / "analysis" / "report.json").read_text())
    assert found["logs"]["percentiles"]["p95"] == [[1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6]]
    samples = found["checkpoints"]["samples of the run"]
    assert samples["tokens"] == 50 and samples["share_below_0.01"] == 0.5
    assert [row["text"] for row in samples["words"]["highest"]] == ["a"]
    assert [row["text"] for row in samples["words"]["lowest"]] == ["<b>"]
    assert len(found["logs"]["signs"]) == 4
    for picture in ("log-percentiles", "log-signs"):
        assert (tmp_path / "analysis" / "figures" / f"{picture}.png").exists()
    assert "](analysis/report.md)" in card.write_card(run.path, draws=False).read_text()


def test_the_report_of_a_run_says_whether_entropies_are_of_rollouts_or_of_steps(tmp_path):
    for name, words in (
        ("entropy", "for each rollout, under"),
        ("step_entropy", "for each optimiser step, under its"),
    ):
        run = make_run(tmp_path / name)
        run.metrics.write_text(run.metrics.read_text().replace("entropy/", f"{name}/"))
        report.write(run.path)
        found = json.loads((run.path / "analysis" / "report.json").read_text())
        assert found["logs"]["percentiles"]["p95"][1] == [0.9, 0.8, 0.7, 0.6] and found["logs"]["prefix"] == name
        assert words in (run.path / "analysis" / "report.md").read_text().replace("\n", " ")


def test_the_report_of_the_word_stories_says_that_their_entropy_is_made_to_look_so(tmp_path):
    note = "resemble the picture of arXiv 2506.01939 is by construction"
    for name, task, is_noted in (("words", "word_stories", True), ("walk", "number_walk", False)):
        run = make_run(tmp_path / name)
        run.recipe.write_text(f"dataset_name: embedded:{task}\n")
        report.write(run.path)
        assert (note in (run.path / "analysis" / "report.md").read_text().replace("\n", " ")) == is_noted
    collection = synthetic(tmp_path / "collected", ["a", "b"])
    asked = files.read_json(collection.settings) | {"responses": ["embedded:word_stories"]}
    files.write_json(collection.settings, asked)
    report.write(collection.path)
    assert note in (collection.path / "report.md").read_text().replace("\n", " ")


def test_the_text_of_the_word_clouds_says_which_words_are_large(tmp_path):
    """In both pictures the sizes rise with mean entropy, so that the most extreme of the lowest tokens is smallest."""

    def rows(entropies):
        return [{"text": t, "token": i, "count": 9, "entropy": h} for i, (t, h) in enumerate(entropies.items())]

    found = {"highest": {"so": 2.0, "but": 1.0, "if": 0.5}, "lowest": {"ing": 0.01, "ed": 0.02, "7": 0.03}}
    for entropies in found.values():
        sizes = figures.cloud_weights(rows(entropies))
        assert sorted(sizes, key=sizes.get) == sorted(entropies, key=entropies.get)
    words = {side: rows(entropies) for side, entropies in found.items()} | {"seen_more_than": 8}
    text = report.word_section("base", {"words": words}, tmp_path, 0).text
    assert "In both pictures, larger words have a higher mean entropy." in text


def test_a_run_has_the_page_of_its_last_responses(tmp_path):
    """The page's data are the rows of the log; what somebody has made already stays."""
    run = make_run(tmp_path)
    files.append_jsonl(run.samples, [{**row_of_samples(step), "entropies": [step, 0.25]} for step in range(3, 13)])
    report.write(tmp_path)
    data = page_data(tmp_path / "analysis" / "text.html")
    assert [row["views"][0]["h"] for row in data["responses"]] == [[step, 0.25] for step in range(5, 13)]
    assert [data["texts"][i] for i in data["responses"][0]["tokens"]] == ["a", "<b>"]
    assert "- [text.html](<text.html>)" in (tmp_path / "analysis" / "report.md").read_text().replace("\\", "")
    assert '<a href="text.html">' in (tmp_path / "analysis" / "report.html").read_text()
    (tmp_path / "analysis" / "text.html").write_text("of checkpoints")
    report.write(tmp_path)
    assert (tmp_path / "analysis" / "text.html").read_text() == "of checkpoints"


def page_data(path):
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', path.read_text(), re.S)[1])


def test_a_collection_has_the_page_of_its_first_responses(hostile):
    """Entropies and log-probabilities are those collected, of the first and the last checkpoint, without a model."""
    data = page_data(hostile.path / "text.html")
    assert data["names"] == ["base", "<-script>$x$"]
    rows = pq.read_table(hostile.responses).to_pylist()
    titles = [row["title"] for row in data["responses"]]
    assert titles == ["response 0, right, 180 tokens", "response 1, wrong, 180 tokens"]
    for number, (row, one) in enumerate(zip(rows, data["responses"], strict=True)):
        assert one["prompt"] == row["prompt"]
        assert [data["texts"][i] for i in one["tokens"]] == [shown(HOSTILE[i]) for i in row["completion_ids"]]
        for name, view in zip(hostile.checkpoints, one["views"], strict=True):
            part = pq.read_table(hostile.part(name, number))
            assert view["h"] == pytest.approx(part["entropy"].to_pylist(), rel=1e-5)
            assert view["p"] == pytest.approx(part["log_prob"].to_pylist(), abs=1e-3)
    written = (hostile.path / "text.html").read_text()
    assert "<img" not in written and "alert(1)</script>" not in written
    assert '<a href="text.html">' in (hostile.path / "report.html").read_text()


def test_the_first_responses_of_a_collection_are_read_across_parts(tmp_path):
    collection = synthetic(tmp_path / "many", ["a", "b"], ["one", "two", "three"])
    (first,) = tokens.from_collection(collection, ["two"], 1)
    assert [len(view.entropies) for view in first.views] == [30] and first.tokens == ["a", "b"] * 15
    assert [one.title for one in tokens.from_collection(collection, ["two"], 5)][1].startswith("response 1")
    report.write(collection.path)
    assert page_data(collection.path / "text.html")["names"] == ["one", "three"]
    (collection.path / "text.html").write_text("of somebody")
    report.write(collection.path)
    assert (collection.path / "text.html").read_text() == "of somebody"


def whole_run(path):
    """A run folder with everything that a page of it shows, hostile texts among it."""
    run = RunFolder(path)
    files.append_jsonl(run.metrics, [{"step": i, "reward": 0.1 * i, "entropy/p50": 0.1} for i in (1, 2)])
    tokens = {"tokens": HOSTILE, "token_ids": list(range(len(HOSTILE))), "kept": [1] + [0] * (len(HOSTILE) - 1)}
    entropies = [1.5, *[0.005] * (len(HOSTILE) - 1)]
    row = {"step": 2, "prompt": "<b>why?</b>\u202e", "advantage": 0.5, "right": True, "entropies": entropies}
    files.append_jsonl(run.samples, [row | tokens, row | {"tokens": ["long"] * 1200} | long_tokens(1200)])
    interval = {"value": 0.25, "low": 0.125, "high": 0.375}
    sides = {"accuracy": interval, "num_problems": 40, "num_samples": 4}
    gain = {"accuracy": {"value": 0.5, "low": 0.4375, "high": 0.5625, "p_value": 0.01, "minimum_detectable": 0.1}}
    files.write_json(run.evaluation, {"before": sides, "after": sides, "gain": gain})
    warning = {
        "step": 2,
        "watcher": "entropy_collapse",
        "action": "warn",
        "sentence": "The <i>entropy</i> has fallen.",
    }
    files.append_jsonl(run.warnings, [warning])
    run.recipe.write_text("recipe: x\nlearning_rate: 1.0e-4\nmodel_name_or_path: a/<b>\nseed: 7\n")
    return run


def long_tokens(number):
    return {"token_ids": [1] * number, "entropies": [0.05] * number, "kept": [0] * number}


def test_a_run_is_on_one_page(tmp_path):
    """Result, curves, warnings, responses with colours, and settings; every text is shown as text."""
    run = whole_run(tmp_path / "mine")
    cli.main(["analyze", "report", str(run.path)])
    text, read = run.report.with_suffix(".html").read_text(encoding="utf-8"), Page()
    read.feed(text)
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles[:4] == ["Result", "Curves", "Warnings", "Responses"] and "Settings" in titles
    assert [*re.findall(r'<a href="#section-\d+">(.*?)</a>', text)] == titles
    cells = {cell.strip() for cell in read.cells}
    assert {"0.250 [0.125, 0.375]", "+0.500 [+0.438, +0.562]", "learning_rate", "a/<b>"} <= cells
    assert {"entropy_collapse", "The <i>entropy</i> has fallen."} <= cells
    assert text.count("data:image/png;base64,") >= 3  # the curves
    assert not read.elements & {"script", "iframe", "object", "form", "base", "i", "b"} and "\u202e" not in text
    spans = re.findall(r'<span class="t c(\d+)( k)?" title="([\d.]+) nats">', text)
    assert spans[0] == ("8", "", "0.0500")  # the newest response comes first; the strongest colour is that of 0.1 nats
    assert ("15", " k", "1.5000") in spans and spans.count(("0", "", "0.0050")) == len(HOSTILE) - 1
    assert len(spans) == len(HOSTILE) + 1000 and "The first 1,000 of 1,200 tokens." in text
    markdown_page = run.report.read_text()
    assert "](../plots/reward.png)" in markdown_page and (run.path / "plots" / "reward.png").exists()
    assert "](figures/histogram.png)" in markdown_page


@needs_chromium
def test_the_page_of_a_run_as_a_reader_sees_it(tmp_path):
    run = whole_run(tmp_path / "mine")
    cli.main(["analyze", "report", str(run.path)])
    with browser(tmp_path) as tab:
        tab.check(f"file://{run.path}/analysis/report.html")
        assert tab.run("[...document.images].every((image) => image.naturalWidth > 0) && document.images.length > 3")
        colours = "[...document.querySelectorAll('.t')].map((token) => getComputedStyle(token).backgroundColor)"
        assert len(set(tab.run(colours))) == 3  # none, that of 0.05 nats, and the strongest
        # By keys alone: the first link of the page leads to its section, and a prompt opens.
        tab.press("Tab")
        tab.press("Enter", 13, "\r")
        assert tab.run("location.hash") == "#section-1"
        assert (
            tab.run("document.querySelector('details summary').focus(), document.activeElement.tagName") == "SUMMARY"
        )
        tab.press("Enter", 13, "\r")
        assert tab.run("document.querySelector('details').open") is True


def test_what_has_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither a run folder"):
        report.write(tmp_path)
    (tmp_path / "recipe.yaml").write_text("recipe: x\n")
    with pytest.raises(ValueError, match="neither tokens nor forks nor a log"):
        report.write(tmp_path)


def test_links_and_folds(tmp_path):
    section = Section("T<", "x|y", tables=[Table(("a", "b"), [("1", "2")], "f<")], links=["tokens 1.html"])
    text = markdown("A", [section], tmp_path)
    assert "## T&lt;" in text and "x\\|y" in text and "[tokens 1.html](<tokens 1.html>)" in text
    assert "<summary>f&lt;</summary>" in text
    assert 'href="tokens%201.html"' in page("A", [section])
