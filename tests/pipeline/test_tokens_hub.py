"""A tokenizer by its hub id, through the real client: retried, pinned to a commit, cached, and clear when it cannot be had."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.pipeline.tiny import tiny_tokenizer

COMMIT = "5" * 40
ROOT = Path(__file__).resolve().parents[2]


class Hub(ThreadingHTTPServer):
    """Serves one model repository; the first `refusals` requests are answered 503."""

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.body, self.refusals = body, 2


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        found = self.path.startswith("/org/small/resolve/")
        status = 404 if not found else 503 if self.server.refusals > 0 else 200
        self.server.refusals -= found
        body = self.server.body if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 200:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
        elif status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(tiny_tokenizer().to_json())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def load(name: str, endpoint: str, home: Path) -> "subprocess.CompletedProcess[str]":
    """In a process of its own: the client reads HF_ENDPOINT when it is imported."""
    code = ("import sys; from pipeline.tokens import load_tokenizer\n"
            "try:\n    t = load_tokenizer(sys.argv[1]); print(t.sha256, t.revision)\n"
            "except ValueError as error:\n    print(error)")  # fmt: skip
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", code, name], env=env, cwd=ROOT, capture_output=True, text=True, check=False)


def test_by_hub_id(hub: Hub, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    expected = f"{tiny_tokenizer().sha256} {COMMIT}\n"
    done = load("org/small", endpoint, tmp_path)
    assert done.stdout == expected, done.stderr
    hub.refusals = 10**6  # from now on the hub is down: the cached one serves
    assert load("org/small", endpoint, tmp_path).stdout == expected


def test_a_wrong_id_and_a_hub_out_of_reach(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = load("org/absent", f"http://127.0.0.1:{hub.server_port}", tmp_path)
    assert "tokenizer org/absent: the hub answers 404" in done.stdout, done.stderr
    assert "pipeline train-tokenizer" in done.stdout
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = load("org/small", f"http://127.0.0.1:{hub.server_port}", tmp_path)
    assert "cannot be reached" in done.stdout, done.stderr
