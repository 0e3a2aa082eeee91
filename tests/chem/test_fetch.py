"""Fetching a SMILES file from a loopback server that cuts, changes and refuses."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.chem.fetch import FetchError, fetch

BODY = b"".join(b"%d\tC%sO\n" % (i, b"C" * (i % 7)) for i in range(20_000))


class Server(ThreadingHTTPServer):
    """`cuts`: bytes after which the next bodies end; `tag`: the ETag; `status`: an answer to everything."""

    cuts: list[int]
    tag: str
    status: int
    body: bytes
    ranges: list[str]
    longer: int = 0             # so many bytes more are announced than sent
    knows_if_range: bool = True
    pages: int = 0              # so many answers are a web page


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range", ""))
        if self.server.status == 302:
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start, wanted = 0, self.headers.get("Range")
        if wanted and self.server.longer:
            self.send_error(416)
            return
        if wanted and (self.headers.get("If-Range") == self.server.tag or not self.server.knows_if_range):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        body = self.server.body[start:]
        if self.server.pages:
            self.server.pages -= 1
            body = b"<!DOCTYPE html><html>maintenance</html>"
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.server.body) - 1}/{len(self.server.body)}")
        self.send_header("Content-Length", str(len(body) + self.server.longer))
        self.send_header("ETag", self.server.tag)
        self.end_headers()
        self.wfile.write(body[: self.server.cuts.pop(0)] if self.server.cuts else body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.cuts, server.tag, server.status, server.body, server.ranges = [], '"one"', 200, BODY, []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: Server, folder: Path) -> Path:
    url = f"http://127.0.0.1:{server.server_address[1]}/bulk/CID-SMILES.gz"
    return fetch(url, folder, lambda have, total: None, pause=0.01)


def test_whole_and_then_cached(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path)
    assert path.read_bytes() == BODY
    assert path.name.endswith("-CID-SMILES.gz")
    server.status = 500
    assert get(server, tmp_path) == path
    assert sorted(tmp_path.iterdir()) == [path]


def test_cut_bodies_are_resumed_by_range(server: Server, tmp_path: Path) -> None:
    server.cuts = [70_000, 50_000, 90_000]
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.ranges[:2] == ["", "bytes=70000-"]


def test_resumed_by_a_later_run(server: Server, tmp_path: Path) -> None:
    server.cuts = [70_000] + [0] * 4
    with pytest.raises(FetchError, match="70,000 bytes are kept"):
        get(server, tmp_path)
    server.cuts, server.ranges = [], []
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.ranges == ["bytes=70000-"]


def test_nothing_is_promised_of_a_server_without_validators(server: Server, tmp_path: Path) -> None:
    server.tag, server.cuts = "", [70_000] * 4
    with pytest.raises(FetchError) as error:
        get(server, tmp_path)
    assert "are kept" not in str(error.value)
    assert get(server, tmp_path).read_bytes() == BODY
    assert set(server.ranges) == {""}


def test_file_that_changed_in_between_starts_over(server: Server, tmp_path: Path) -> None:
    server.cuts = [70_000] + [0] * 4
    with pytest.raises(FetchError):
        get(server, tmp_path)
    server.cuts, server.tag, server.body = [], '"two"', BODY[::-1]
    assert get(server, tmp_path).read_bytes() == BODY[::-1]


def test_a_server_that_does_not_know_if_range_is_not_sewn_together(server: Server, tmp_path: Path) -> None:
    server.cuts = [70_000] + [0] * 4
    with pytest.raises(FetchError):
        get(server, tmp_path)
    server.cuts, server.tag, server.body, server.knows_if_range = [], '"two"', BODY[::-1], False
    assert get(server, tmp_path).read_bytes() == BODY[::-1]


def test_an_end_between_two_files_does_not_sew_them_together(server: Server, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    server.cuts = [70_000] + [0] * 4
    with pytest.raises(FetchError):
        get(server, tmp_path)
    server.cuts, server.tag, server.body = [], '"two"', BODY[::-1]
    write = Path.write_text

    def interrupted(path: Path, text: str) -> int:
        write(path, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path)
    monkeypatch.setattr(Path, "write_text", write)
    assert get(server, tmp_path).read_bytes() == BODY[::-1]


def test_a_file_that_is_always_shorter_than_announced_ends(server: Server, tmp_path: Path) -> None:
    """The rest is refused, so each attempt begins anew: none gets further than the first."""
    server.longer = 1000
    with pytest.raises(FetchError, match=r"than the file|of 229,887 bytes"):
        get(server, tmp_path)
    assert len(server.ranges) < 10


def test_a_web_page_or_nothing_is_not_kept_as_the_file(server: Server, tmp_path: Path) -> None:
    server.pages = 4
    with pytest.raises(FetchError, match="web page"):
        get(server, tmp_path)
    assert get(server, tmp_path).read_bytes() == BODY
    server.body = b""
    with pytest.raises(FetchError, match="empty file"):
        get(server, tmp_path / "other")


@pytest.mark.parametrize("proxy", [":::", "socks5://127.0.0.1:1", "x://127.0.0.1:1"])
def test_a_proxy_that_is_none_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(FetchError, match="check the proxies"):
        get(server, tmp_path)


def test_slices_that_start_together_fetch_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        paths = {path for path in pool.map(lambda _: get(server, tmp_path), range(4))}
    assert [path.read_bytes() for path in paths] == [BODY]
    assert server.ranges == [""]
    assert set(tmp_path.iterdir()) == paths


@pytest.mark.parametrize("url", ["http://[bad/x.smi", "http://127.0.0.1:x/a.smi"])
def test_an_address_that_is_none_is_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(FetchError) as error:
        fetch(url, tmp_path, lambda have, total: None)
    assert url in str(error.value)


@pytest.mark.parametrize("status", [404, 503])
def test_refusal_names_the_way_out(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(FetchError) as error:
        get(server, tmp_path)
    assert str(status) in str(error.value)
    assert "--smiles" in str(error.value)
    assert "sample" in str(error.value)


def test_endless_redirects_are_refused(server: Server, tmp_path: Path) -> None:
    server.status = 302
    with pytest.raises(FetchError, match="redirects"):
        get(server, tmp_path)


def test_only_http_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="only http"):
        fetch("file:///etc/passwd", tmp_path, lambda have, total: None)
