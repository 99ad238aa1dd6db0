"""Tables in Markdown: what a model or a stranger wrote is shown as it is, by an independent parser."""

import pytest
from markdown_it import MarkdownIt

from entropy_grpo.metrics.tables import cell, interval_text, p_text, table

HOSTILE = [
    "a|b`c`*d*_e_[f](javascript:alert(1))",
    "<img src=x onerror=alert(1)> &lt;b&gt; &amp;",
    "![picture](x) [link]: y ~~gone~~ ~once~ $x$ \\| \\",
    "``two`` ``` three",
    "snake_case __dunder__ _one_ a_b_",
    "two\nlines\r\n# heading - 1. list",
    "{{ 7 * 7 }}{% raw %}",
]


def test_a_p_value_is_never_0():
    assert [p_text(p) for p in (0.0, 1e-86, 0.00099, 0.001, 0.0494, 1.0)] == [
        *["< 0.001"] * 3,
        "0.001",
        "0.049",
        "1.000",
    ]
    assert "&lt; 0.001" in cell(p_text(0.0))


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_shown_as_it_is(text):
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    rows = [("name", "value"), (text, text)]
    inline = [token for token in parser.parse(table(rows)) if token.type == "inline"]
    assert len(inline) == 4
    for token, expected in zip(inline, ["name", "value", text, text], strict=True):
        assert {child.type for child in token.children} <= {"text", "text_special"}
        assert "".join(child.content for child in token.children) == " ".join(expected.split())


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("@user see #12", "\\@user see \\#12"),
        (":smile: http://x.y", "\\:smile: http\\://x.y"),
        ("Acc@16: 0.5 at 12:30", "Acc@16: 0.5 at 12:30"),
        ("top_entropy_quantile 0.2", "top_entropy_quantile 0.2"),
    ],
)
def test_what_github_alone_reads_is_escaped_and_names_are_not(text, escaped):
    assert cell(text) == escaped


def test_an_interval_has_the_sign_of_a_difference():
    interval = {"value": 0.25, "low": -0.5, "high": 1.0}
    assert interval_text(interval) == "0.250 [-0.500, 1.000]"
    assert interval_text(interval, 1, "+") == "+0.2 [-0.5, +1.0]"
