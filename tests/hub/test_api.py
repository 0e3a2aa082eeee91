"""Revisions, listings, tokens and waits, against a hub that pages and fails."""

import logging
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from pipeline.footers import cache_folder
from pipeline.hub import api, client, retry
from pipeline.hub.retry import DEFAULT, HubError, Retry, TransientError, wished_wait
from tests.hub.conftest import QUICK, REPO
from tests.hub_server import Fault, HubServer, file_blob, script


def test_revision_and_paged_listing(hub: HubServer, hub_root: Path) -> None:
    revision = api.resolve_revision(REPO)
    assert revision == hub.repos[REPO].main
    files = api.list_files(REPO, "docs", revision)
    assert [f.path for f in files] == [f"docs/train-{k:05d}-of-00004.parquet" for k in range(4)]
    for file in files:
        blob = file_blob(hub_root / REPO / file.path)
        assert (file.size, file.sha256, file.git_sha1) == (blob.size, blob.sha256, None)
    assert sum("/tree/" in request.path for request in hub.requests) == 2, "pages of two"
    readme = api.list_files(REPO, "", revision)[0]
    assert readme.path == "README.md"
    assert readme.sha256 is None
    assert readme.git_sha1 == file_blob(hub_root / REPO / "README.md").git_sha1


def test_names_with_signs(hub: HubServer) -> None:
    assert len(api.list_files(REPO, "geoqa+(mathv360k)")) == 2


def test_a_commit_is_not_asked_for(hub: HubServer) -> None:
    assert api.resolve_revision(REPO, "a" * 40) == "a" * 40
    assert hub.requests == []


@pytest.mark.parametrize("fault", [Fault("429", retry_after="0"), Fault("429"), Fault("503"), Fault("500"),
                                   Fault("cut"), Fault("drop"), Fault("garbage")])
def test_every_passing_fault_is_survived(hub: HubServer, fault: Fault) -> None:
    hub.state.faults = script({"/tree/": [fault, fault], "/revision/": [fault]})
    revision = api.resolve_revision(REPO, policy=QUICK)
    assert len(api.list_files(REPO, "docs", revision, policy=QUICK)) == 4


def test_what_stays_wrong_is_said(hub: HubServer) -> None:
    hub.state.faults = script({"/tree/": [Fault("503")] * 99})
    with pytest.raises(HubError, match=r"HTTP 503 \(6 tries\)"):
        api.list_files(REPO, "docs", policy=QUICK)
    hub.state.faults = script({"/revision/": [Fault("429", retry_after="86400")]})
    with pytest.raises(HubError, match="try again later"):
        api.resolve_revision(REPO, policy=QUICK)


def test_missing_things_fail_at_once(hub: HubServer) -> None:
    for repo, folder, revision in (("no/where", "", "main"), (REPO, "nothing", "main"), (REPO, "docs", "b" * 40)):
        hub.clear()
        with pytest.raises(HubError, match="not on the hub"):
            api.list_files(repo, folder, revision)
        assert len(hub.requests) == 1
    with pytest.raises(HubError, match="owner/name"):
        api.list_files("../etc", "")


def test_the_token_goes_to_the_endpoint_only(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.repos[REPO].gated_by = "hf_secret"
    try:
        with pytest.raises(HubError, match="HF_TOKEN"):
            api.resolve_revision(REPO)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        api.resolve_revision(REPO)
        monkeypatch.delenv("HF_TOKEN")
        (tmp_path / "hf-home").mkdir(exist_ok=True)
        (tmp_path / "hf-home" / "token").write_text("hf_secret\n")
        api.resolve_revision(REPO)
    finally:
        hub.repos[REPO].gated_by = None


def test_the_token_does_not_leave_https(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    assert client._auth("https://hub.example/x")
    assert not client._auth("http://hub.example/x")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    assert client._auth("https://hub.example/x")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number of its own."""
    for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE",
                 "HUGGINGFACE_HUB_CACHE", "PIPELINE_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(uid)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert client.token() is None
    assert str(client.hub_cache()) == "~/.cache/huggingface/hub"
    assert str(cache_folder()) == "~/.cache/nano-deepseek-ocr"


def test_a_token_that_cannot_be_sent_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.repos[REPO], "gated_by", "hf_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_s\u00e9cret")
    with pytest.raises(HubError, match="the one given is not sent"):
        api.resolve_revision(REPO)


@pytest.mark.parametrize("path", ["../x.parquet", "/etc/passwd", "docs/../../x", "docs//x", "a\\b", "a\nb", "."])
def test_a_listing_cannot_leave_the_folder(path: str) -> None:
    with pytest.raises(HubError, match="refused"):
        api.check_path(path)


def test_a_link_to_another_host_is_followed_on_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/hf")
    link = '<https://hub.example/api/datasets/a/b/tree/main?cursor=x>; rel="next"'
    assert api._next_page(link) == "https://mirror.example/hf/api/datasets/a/b/tree/main?cursor=x"
    assert api._next_page('<https://hub.example/x>; rel="last"') is None


def test_a_listing_without_end_is_an_error(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_next_page", lambda header: f"{hub.url}/api/datasets/{REPO}/tree/main?recursive=true")
    with pytest.raises(HubError, match="no end"):
        api.list_files(REPO, "docs")


def test_new_cursors_without_new_files_are_no_listing(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    cursors = iter(range(50))
    monkeypatch.setattr(api, "_next_page", lambda header: f"{hub.url}/api/datasets/{REPO}/tree/main?cursor=0&x={next(cursors)}")
    with pytest.raises(HubError, match="no end"):
        api.list_files(REPO, "docs")


@pytest.mark.parametrize("entry", [{"lfs": "x"}, {"lfs": [1]}])
def test_an_entry_that_is_none(entry: dict[str, object]) -> None:
    with pytest.raises(HubError, match="the hub lists a file"):
        api._entry({"type": "file", "path": "a.parquet", "size": 5, **entry})


def test_json_nested_too_deeply_is_none(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "get", lambda url: (b"[" * 100_000, {}))
    with pytest.raises(HubError, match="not JSON"):
        api.list_files(REPO, "docs", policy=QUICK)


def test_an_address_that_the_hub_names_wrongly() -> None:
    with pytest.raises(HubError, match=r"http://\[::1"):
        api._next_page('<http://[::1/api/x>; rel="next"')
    with pytest.raises(HubError, match=r"http://\[::1"):
        client.join("http://hub.example/x", "http://[::1")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:abc", "127.0.0.1:1", "file:///etc", "http://", "http://[::1", "ftp://x.example"])
def test_an_endpoint_that_is_no_address(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(HubError, match="HF_ENDPOINT"):
        api.resolve_revision(REPO)


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(HubError, match=r"cannot connect to 127.0.0.1:1 \(Connection refused\) \(6 tries\)"):
        api.resolve_revision(REPO, policy=QUICK)


def test_the_callers_own_error_is_no_network_error(hub: HubServer) -> None:
    with pytest.raises(OSError, match="No space left"), client.stream(f"{hub.url}/api/datasets/{REPO}"):
        raise OSError(28, "No space left on device")


def test_a_proxy_is_used_and_bypassed(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loopback hub stands for the proxy: it is asked for the whole address."""
    real = hub.url
    monkeypatch.setenv("http_proxy", real)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    assert api.resolve_revision(REPO)
    assert any(r.host == "hub.example" for r in hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", real)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert api.resolve_revision(REPO)


def test_a_proxy_that_is_none_or_not_there_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(HubError, match=r"check the proxy 'socks5://127.0.0.1:1' in http_proxy"):
        api.resolve_revision(REPO)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with pytest.raises(HubError, match=r"the proxy that http_proxy .* names .*Connection refused"):
        api.resolve_revision(REPO, policy=QUICK)


def test_certificates_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with HubServer(repos={}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("http", "https"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
        monkeypatch.setattr(client, "_pools", {})
        with pytest.raises(HubError, match="SSL_CERT_FILE"):
            api.resolve_revision(REPO, policy=QUICK)


def test_waits() -> None:
    assert wished_wait({"retry-after": "7"}) == 7.0
    assert 50 < (wished_wait({"retry-after": formatdate(time.time() + 60, usegmt=True)}) or 0) <= 60
    assert wished_wait({"ratelimit": '"api";r=0;t=55'}) == 55.0
    assert wished_wait({"ratelimit": '"api";r=12;t=55'}) is None
    assert wished_wait({"retry-after": "soon"}) is None
    delays = [Retry().delay(n, None, "x") for n in range(1, 12)]
    assert all(0.25 <= delay <= 60 for delay in delays)
    assert delays == [Retry().delay(n, None, "x") for n in range(1, 12)], "the same request waits the same"
    assert 150 < sum(DEFAULT.delay(n, None, "x") for n in range(1, DEFAULT.tries)) < 400, "about 5 minutes"


def test_long_waits_are_told_now_and_then(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_told", -retry.TOLD_EVERY)
    monkeypatch.setattr(retry, "pause", lambda seconds, cancel: None)
    policy = Retry(tries=9)
    for failures in range(1, 9):
        retry.wait_or_raise(TransientError("cannot connect to x (refused)"), failures, "list", policy)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1 and told[0].startswith("list: cannot connect to x (refused); try ")
