"""The documentation: built strictly, complete, and as readers see it in a browser."""

import dataclasses
import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
import typing

import pytest

from entropy_grpo import cli
from entropy_grpo.config.grpo import EntropyForkGRPOConfig
from entropy_grpo.config.run import RunConfig

from .browser import browser, needs_chromium
from .conftest import REPOSITORY


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", REPOSITORY / "docs" / "reference" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A link, an anchor or a name of the package that does not exist fails the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_setting_of_the_package_is_in_the_reference(site):
    """Against the dataclasses themselves; the page is made from the text of their modules."""
    page = (site / "reference" / "settings.html").read_text()
    listed = set(re.findall(r"<td><code>(\w+)</code></td>", page))
    of_trl = {field.name for field in dataclasses.fields(EntropyForkGRPOConfig.__mro__[2])}
    own = {field.name for kind in (EntropyForkGRPOConfig, RunConfig) for field in dataclasses.fields(kind)} - of_trl
    assert own and own <= listed, own - listed


def test_every_attribute_has_a_row_in_the_python_reference(site):
    """A docstring that describes several attributes in one line gives a row with a wrong name and a wrong type."""
    page = (site / "reference" / "api.html").read_text()
    names = re.findall(r'<tr class="doc-section-item">\s*<td><code>(?:<[^>]*>)?([^<]*)', page)
    assert "rho" in names and all(re.fullmatch(r"[\w*]+", name) for name in names), names


def kinds(union):
    """Dataclasses of a choice among commands; none of another type."""
    return [typing.get_args(part)[0] for part in typing.get_args(union) if typing.get_args(part)]


def test_every_command_is_in_the_reference(site):
    page = re.sub("<a.*?</a>", "", (site / "reference" / "commands.html").read_text()).lower()
    for kind in kinds(cli.Command):
        fields = list(typing.get_type_hints(kind, include_extras=True).values())
        inner = [one.__name__ for one in kinds(fields[0])] if len(fields) == 1 else []  # of a group of commands
        for name in inner or [""]:
            assert f"entropy-grpo {f'{kind.__name__} {name}'.strip()}</h2>".lower() in page


def test_a_setting_without_a_text_fails_the_build(tmp_path, monkeypatch):
    module = hooks()
    source = 'class A:\n    """B.\n\n    Parameters:\n        a, b: text\n            and more\n    """\n\n'
    source += "    a: int = 1\n    b: int = 2\n"
    (tmp_path / "m.py").write_text(source)
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    monkeypatch.setattr(module, "SETTINGS", [("T", "m.py", ("A",))])
    expected = "| <code>b</code> | <code>int</code> | <code>2</code> | text and more |"
    assert expected in module.settings()
    (tmp_path / "m.py").write_text(source + "    c: int = 3\n")
    with pytest.raises(ValueError, match="A says nothing of c"):
        module.settings()


def test_every_page_is_in_the_navigation(site):
    """mkdocs reports pages that are left out as information alone, which no build fails for."""
    start = (site / "index.html").read_text()
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - {
        "404.html",
        "examples/smollm2.html",
    }
    assert "method.html" in pages and pages == {page for page in pages if f'href="{page}"' in start}


@needs_chromium
def test_pages_in_a_browser(site, tmp_path):
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, browser(tmp_path) as tab:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        for page in ("/", "/method.html", "/reference/settings.html"):
            tab.check(url + page)
        tab.open(url + "/")
        tab.press("/", 191, "/")  # opens the search
        for letter in "rho":
            tab.press(letter, ord(letter.upper()), letter)
        found = "new Promise((done) => { const look = () => document.querySelector('.md-search-result__link') ? "
        found += "done(true) : setTimeout(look, 50); look(); setTimeout(() => done(false), 10000); })"
        assert tab.run(found) and tab.errors == []
        server.shutdown()
