"""Coloured text: scores against the full softmax, hostile tokens in a parser and in a browser, marks by sorting."""

import html.parser
import io
import json
import math
import re
import subprocess

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_grpo.analysis import pages
from entropy_grpo.analysis.text import alternatives, page, run, terminal, tokens
from entropy_grpo.analysis.text.tokens import Response, View
from entropy_grpo.runs import files as records

from .browser import browser, needs_chromium

HOSTILE = [
    "</script><script>document.title='run'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title='run'\">",
    "]]>",
    "$title",
    "&lt;b&gt;",
    "\u202eevil",
    "\u2066",
    "\0",
    "\x1b]0;title\x07",
    "\x1b[2J",
    "\x9b31m",
    "\\xf0\\x9f",
    "\ud800",
    "\u2028",
    "\u0301",
    "e\u0301",
    "שלום",
    "🎉",
    "\ufeff",
    "",
    " \n",
]


@pytest.fixture(scope="module")
def responses():
    """Two responses under two checkpoints, with ties."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for title, texts in (("one </title>", HOSTILE), ("two", [" word"] * 31)):
        views = []
        for name in ("base <b>", "trained"):
            entropies = (torch.rand(len(texts), generator=generator) * 4).round() / 2
            options = [[(HOSTILE[i % 22], -0.1), ("x", -2.5)] for i in range(len(texts))]
            views.append(View(name, entropies.tolist(), [-0.7] * len(texts), options))
        found.append(Response(title, "Why </script> " + "\u202e", texts, views))
    return found


class Elements(html.parser.HTMLParser):
    """Every start tag with its attributes, and the text of each kind of element."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open = [], {}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open = tag

    def handle_data(self, data):
        self.texts[self.open] = self.texts.get(self.open, "") + data


def test_scores_are_those_of_the_full_softmax(tiny_model, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    prompt, response = [5, 60, 7], [9, 30, 31, 32, 80, 4, 1]
    monkeypatch.setattr(alternatives, "ELEMENTS", 3 * model.config.vocab_size)  # tiles of three rows
    scores = alternatives.score(model, prompt, response, 4, temperature=0.7)
    logits = model.double()(torch.tensor([prompt + response])).logits[0, 2:-1] / 0.7
    p = logits.softmax(-1).tolist()
    for t, (row, token) in enumerate(zip(p, response, strict=True)):
        best = sorted(range(len(row)), key=lambda i, row=row: -row[i])[:4]
        assert scores.top_ids[t].tolist() == best
        assert scores.top_logps[t].tolist() == pytest.approx([math.log(row[i]) for i in best], abs=1e-4)
        assert scores.logps[t].item() == pytest.approx(math.log(row[token]), abs=1e-4)
        assert scores.entropies[t].item() == pytest.approx(-sum(x * math.log(x) for x in row), abs=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    view = tokens.view("tiny", scores, tokenizer)
    assert view.alternatives[2][0] == (tokenizer.decode(scores.top_ids[2, :1]), scores.top_logps[2, 0].item())
    with pytest.raises(ValueError, match="response_ids has 0 tokens"):
        alternatives.score(model, prompt, [], 4)


def test_kept_tokens_are_the_highest_of_all_responses(responses):
    for index in (0, 1):
        ranked = [(-h, i, t) for i, r in enumerate(responses) for t, h in enumerate(r.views[index].entropies)]
        expected = {(i, t) for _, i, t in sorted(ranked)[: math.ceil(53 * 0.2)]}
        kept = tokens.kept_tokens(responses, index, 0.2)
        assert {(i, t) for i, row in enumerate(kept) for t, mark in enumerate(row) if mark} == expected


def test_nothing_of_a_token_is_markup_or_hidden(responses):
    made = page.page("</title><script>x</script>", responses)
    elements = Elements(made)
    names = [tag for tag, _ in elements.tags]
    assert names.count("script") == 2
    assert {"img", "b"}.isdisjoint(names)
    assert elements.texts["title"].strip() == "</title><script>x</script>"
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', made, re.DOTALL)[1]
    assert "<" not in block
    assert block.isascii()
    data = json.loads(block)
    shown = [data["texts"][i] for i in data["responses"][0]["tokens"]]
    assert shown[0] == HOSTILE[0]
    assert shown[HOSTILE.index("\u202eevil")] == "⟨U+202E⟩evil"
    assert shown[HOSTILE.index("\ud800")] == "⟨U+D800⟩"
    assert shown[HOSTILE.index("e\u0301")] == "e\u0301"
    assert shown[HOSTILE.index("\u0301")] == "◌\u0301"
    assert len(set(shown)) == len(HOSTILE), "every token can be told apart"


def test_page_asks_for_nothing(responses):
    made = page.page("title", responses)
    tags = Elements(made).tags
    assert not any({"src", "href", "action"} & attributes.keys() for _, attributes in tags)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    policy = next(a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(", made.split('data">')[-1]
    )


CHECK = """
const marks = () => [...document.querySelectorAll("#views section")].map((s) =>
  [...s.querySelectorAll(".t")].map((t) => Number(t.classList.contains("k"))));
const found = { title: document.title, start: marks() };
document.getElementById("rho").value = 50;
document.getElementById("rho").dispatchEvent(new Event("input"));
found.half = marks();
found.texts = [...document.querySelectorAll("#views section:first-child .t")].map((t) => t.textContent);
document.querySelectorAll(".text")[1].dispatchEvent(new KeyboardEvent("keydown", { key: "n" }));
found.place = here[1];
found.tip = document.getElementById("tip").textContent;
document.getElementById("response").value = 1;
document.getElementById("response").dispatchEvent(new Event("change"));
found.second = marks();
document.body.replaceChildren(document.createTextNode(JSON.stringify(found)));
"""


RIGHT_EDGE = "Math.max(...[...document.querySelectorAll('.text')].map((e) => e.getBoundingClientRect().right))"


@needs_chromium
def test_page_as_a_reader_sees_and_moves_it(responses, tmp_path):
    page.write_page(tmp_path / "page.html", "title", responses)
    with browser(tmp_path) as tab:
        tab.check(f"file://{tmp_path}/page.html")
        tab.open(f"file://{tmp_path}/page.html", width=390)
        assert tab.run(RIGHT_EDGE) <= 390 and tab.run("document.getElementById('prompt').checkVisibility()")
        tab.open(f"file://{tmp_path}/page.html")
        tip, places = "document.getElementById('tip').textContent", []
        for _ in range(12):  # to the first column of tokens
            tab.press("Tab", 9)
            if tab.run("document.activeElement.className === 'text'"):
                break
        for _ in range(2):
            tab.press("ArrowRight", 39)
            places.append(int(re.search(r"token (\d+) of", tab.run(tip))[1]))
        assert places[1] == places[0] + 1 and tab.errors == []


@needs_chromium
def test_page_in_a_browser(responses, tmp_path, monkeypatch):
    """What is marked, shown and said there, against Python's own marks."""
    source = pages.source
    # The check is part of the page's script, since its policy lets no other run.
    monkeypatch.setattr(pages, "source", lambda name: source(name) + (CHECK if name.endswith(".js") else ""))
    page.write_page(tmp_path / "page.html", "title", responses)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    result = subprocess.run(
        [*command, "--dump-dom", f"file://{tmp_path}/page.html"], capture_output=True, timeout=120, check=True
    )
    body = Elements(result.stdout.decode("utf-8", "replace")).texts["body"]
    found = json.loads(body)

    def marks(rho, response):
        return [list(map(int, tokens.kept_tokens(responses, view, rho)[response])) for view in (0, 1)]

    assert found["title"] == "title"
    assert found["start"] == marks(0.2, 0)
    assert found["half"] == marks(0.5, 0)
    assert found["second"] == marks(0.5, 1)
    assert found["texts"] == list(map(tokens.shown, HOSTILE))
    place = found["place"]
    assert place == marks(0.5, 0)[1].index(1)
    for said in (
        f"token {place + 1} of 22, kept",
        f"{responses[0].views[1].entropies[place]:.4f} nats",
        "49.66%",
        "90.48%",
    ):
        assert said in found["tip"]


def test_terminal(responses):
    coloured, plain = (terminal.text(responses, 0.2, colour) for colour in (True, False))
    # Colours are the only controls, and each line ends what it began.
    assert set(re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", coloured)) == {"\x1b"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", plain)
    codes = re.findall(r"\x1b(\[[0-9;]*m)?", coloured)
    assert all(codes)
    for line in coloured.split("\n"):
        opened = re.findall(r"\x1b\[([0-9;]+)m", line)
        assert opened[1::2] == ["0"] * (len(opened) // 2)
    kept = sum(sum(row) for view in (0, 1) for row in tokens.kept_tokens(responses, view, 0.2))
    assert len(re.findall("⟦.*?⟧", plain)) == kept + 1  # and the legend
    assert len(re.findall(r"\x1b\[(?:38;5;16;48;5;\d+;)?4m", coloured)) == kept + 1
    assert not terminal.wants_colour(io.StringIO())


def test_samples_of_a_run(responses):
    row = {"step": 3, "prompt": "p", "tokens": ["a", "b"], "entropies": [0.5, 0.0], "kept": [1, 0], "advantage": -0.5}
    (response,) = tokens.from_samples([row])
    assert response.title == "step 3, advantage -0.50, 2 tokens"
    for right, word in ((True, "right"), (False, "wrong")):
        (judged,) = tokens.from_samples([row | {"right": right}])
        assert judged.title == f"step 3, {word}, advantage -0.50, 2 tokens"
    assert page.page_data([response], 0.2)["responses"][0]["views"][0]["kept"] == [1, 0]
    with pytest.raises(ValueError, match="checkpoints"):
        page.page_data([response, *responses], 0.2)
    with pytest.raises(ValueError, match=r"^entropies of 'x' has 1 values for the 2 tokens"):
        Response("r", "p", ["a", "b"], [View("x", [0.1])])


def test_text_of_a_run(tiny_model, tmp_path, capsys):
    """As `analyze text` makes it: with the run's own entropies, and with those of checkpoints."""
    rows = [
        {"step": i, "prompt": "go 1", "tokens": ["take", " +3"], "token_ids": [8, 200 + i]}
        | {"entropies": [0.5, 0.25], "kept": [1, 0], "advantage": 1.0}
        for i in range(3)
    ]
    # A response that was cut off and masked has no tokens.
    rows += [rows[-1] | {"step": 3, "tokens": [], "token_ids": [], "entropies": [], "kept": [], "advantage": 0.0}]
    records.append_jsonl(tmp_path / "samples.jsonl", rows)

    def data(**options):
        path = run.run(run.Options(tmp_path, responses=2, **options))
        return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])

    logged, scored = data(), data(checkpoints=[f"a={tiny_model}", f"b={tiny_model}"], rho=0.5)
    assert (
        [r["title"][:6] for r in logged["responses"]]
        == [r["title"][:6] for r in scored["responses"]]
        == ["step 1", "step 2"]
    )
    assert logged["responses"][0]["views"][0]["h"] == [0.5, 0.25]
    assert (logged["rho"], scored["rho"], scored["names"]) == (0.2, 0.5, ["a", "b"])
    first, second = scored["responses"][1]["views"]
    assert first == second
    logits = AutoModelForCausalLM.from_pretrained(tiny_model)(
        torch.tensor([[*AutoTokenizer.from_pretrained(tiny_model)("go 1")["input_ids"], 8]])
    ).logits
    entropies = torch.distributions.Categorical(logits=logits[0, -2:]).entropy()
    assert first["h"] == pytest.approx(entropies.tolist(), rel=1e-4)
    assert len(first["a"][0]) == 2 * 5
    assert "⟦take⟧ +3" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no samples.jsonl"):
        run.Options(tmp_path / "none")
