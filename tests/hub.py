"""A server that stands in for the Hub: as much of it as an upload of small files asks for."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_a_test"
REPOSITORY = "me/walk"


class Hub(BaseHTTPRequestHandler):
    """`server.seen` has what came: path, authorization, body."""

    def answer(self, found):
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers["Authorization"], body))
        place = f"{address(self.server)}/{REPOSITORY}"
        if self.path == "/api/repos/create":
            self.answer({"url": place, "id": REPOSITORY, "name": REPOSITORY})
        elif "/preupload/" in self.path:
            asked = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            self.answer({"commitUrl": f"{place}/commit/abc", "commitOid": "abc", "success": True})
        else:  # validate-yaml
            self.answer({"errors": [], "warnings": []})

    def log_message(self, *args):
        pass


@contextmanager
def serving():
    """A server on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def address(server):
    return f"http://127.0.0.1:{server.server_port}"


def environment(server):
    """What makes huggingface_hub, in a process of its own, take the server for the Hub."""
    return {"HF_ENDPOINT": address(server), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}


def pushes(server):
    """The files of every commit, in order."""
    commits = [body for path, _, body in server.seen if "/commit/" in path]
    entries = [[json.loads(line) for line in commit.splitlines()] for commit in commits]
    files = [[entry["value"] for entry in commit if entry["key"] == "file"] for commit in entries]
    return [{file["path"]: base64.b64decode(file["content"]) for file in commit} for commit in files]
