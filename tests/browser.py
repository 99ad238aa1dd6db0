"""Debian's chromium, driven over its DevTools pipe: what a page shows, complains of, and does with keys."""

import fcntl
import json
import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
OPTIONS = "--headless --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe".split()


class Browser:
    """One tab.

    Attributes:
        errors: console messages of the level error, exceptions that no code caught, and requests that failed.
    """

    def __init__(self, process, to_browser, from_browser):
        self.process, self.to_browser, self.from_browser = process, to_browser, from_browser
        self.number, self.session, self.errors, self.pending = 0, None, [], []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def _next(self):
        while True:
            message, end, rest = b"".join(self.pending).partition(b"\0")
            if end:
                self.pending = [rest]
                return json.loads(message)
            data = os.read(self.from_browser, 2**16)
            assert data, "chromium has ended"
            self.pending.append(data)

    def _note(self, event):
        kind, told = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.errors.append(told["exceptionDetails"]["text"])
        elif kind == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.errors.append(str([argument.get("value") for argument in told["args"]]))
        elif kind == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        return kind

    def ask(self, method, **params):
        """The result of a command of the protocol."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": params}
        command |= {"sessionId": self.session} if self.session else {}
        os.write(self.to_browser, json.dumps(command).encode() + b"\0")
        while True:
            reply = self._next()
            if reply.get("id") == self.number:
                assert "error" not in reply, reply
                return reply["result"]
            self._note(reply)

    def open(self, url, *, width=1280, dark=False):
        """Load a page; wait until it and what it loads are there."""
        self.errors.clear()
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=theme)
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.ask("Page.navigate", url=url)
        while self._note(self._next()) != "Page.loadEventFired":
            pass
        self.run("new Promise((done) => setTimeout(done, 300))")

    def run(self, script):
        """The value of a script, JSON, after its promise has been kept."""
        told = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def press(self, key, code=0, text=""):
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def overflow(self):
        """Pixels by which the page is wider than its window."""
        return self.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def text_brightness(self):
        """Brightness of the page's text, from 0 to 255."""
        colour = self.run("getComputedStyle(document.body).color")
        return sum(float(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]) / 3

    def check(self, url):
        """Open a page narrow and wide, light and dark: nothing fails, it fits, and its text can be read."""
        for width in (390, 1280):
            for dark in (False, True):
                self.open(url, width=width, dark=dark)
                assert self.errors == [] and self.overflow() <= 0, (url, width, dark, self.errors, self.overflow())
                assert (self.text_brightness() > 128) == dark, (url, dark)


@contextmanager
def browser(folder):
    """A browser with a profile of its own."""
    (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()

    def connect():  # the browser reads commands from 3 and writes to 4
        # Copies above 4 first: one of the pipes may be 3 or 4 itself.
        commands, replies = (fcntl.fcntl(end, fcntl.F_DUPFD, 5) for end in (read_in, write_out))
        os.dup2(commands, 3)
        os.dup2(replies, 4)

    command = ["chromium", *OPTIONS, f"--user-data-dir={folder}/profile"]
    process = subprocess.Popen(
        command, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(read_in)
    os.close(write_out)
    try:
        yield Browser(process, write_in, read_out)
    finally:
        process.kill()
        process.wait()
        os.close(write_in)
        os.close(read_out)
