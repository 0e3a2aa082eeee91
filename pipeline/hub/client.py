"""HTTP rules of the hub in one place: endpoint, token, redirects, error codes, one connection pool a process.

HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME and HF_HUB_CACHE are read when a request is made, not when the module
is imported (the official client reads them once). The token is sent to the endpoint's own host and to no other: an LFS
file is answered with a redirect to a storage host whose URL carries its own signature. Proxies are taken from the usual
variables, certificates from SSL_CERT_FILE or REQUESTS_CA_BUNDLE, else from certifi.

urllib3, because a plan asks for 19,000 small ranges: measured 0.5 ms of CPU for a file's two requests, httpx 3.6 ms.
"""

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import proxy_bypass

import certifi
import urllib3
from urllib3.exceptions import HTTPError, LocationValueError

from pipeline.hub.retry import RETRIED_STATUS, HubError, NotOnHub, TransientError, wished_wait

DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
USER_AGENT = "nano-deepseek-ocr-pipeline/0.1"
TIMEOUT = urllib3.Timeout(connect=15.0, read=30.0)  # seconds without a byte
CHUNK = 1 << 18

_lock = threading.Lock()
_pools: dict[tuple[int, str], urllib3.PoolManager] = {}


def endpoint() -> str:
    """The hub's base URL without a trailing slash."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def hf_home() -> Path:
    """Hugging Face's own folder: HF_HOME, else XDG_CACHE_HOME/huggingface, else ~/.cache/huggingface."""
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expanduser(home))   # as it is where there is no home: pathlib would raise
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "huggingface"


def hub_cache() -> Path:
    """Where the official client keeps downloaded files (HF_HUB_CACHE, else HF_HOME/hub)."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expanduser(cache))
    return hf_home() / "hub"


def _given_token() -> str:
    """HF_TOKEN, else the file that `hf auth login` writes, else ""."""
    text = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if not text:
        path = Path(os.path.expanduser(os.environ.get("HF_TOKEN_PATH") or hf_home() / "token"))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""
    return text.strip()


def token() -> str | None:
    """The user's token; None when there is none, or one that no header can hold."""
    text = _given_token()
    return text if text and text.isascii() and text.isprintable() else None


def file_url(repo: str, revision: str, path: str) -> str:
    """URL of one file of a dataset repository at a revision."""
    return f"{endpoint()}/datasets/{quote(repo)}/resolve/{quote(revision, safe='')}/{quote(path)}"


def api_url(repo: str, *parts: str) -> str:
    """URL of the hub's API below a dataset repository."""
    tail = "".join(f"/{quote(part)}" for part in parts if part)
    return f"{endpoint()}/api/datasets/{quote(repo)}{tail}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A response: its status, headers (lower-case names), the URL that answered, and the body still to be read."""

    status: int
    headers: Mapping[str, str]
    url: str
    body: urllib3.BaseHTTPResponse

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces as they arrive, so that what came before a cut is not lost."""
        while chunk := self.body.read1(CHUNK, decode_content=False):
            yield chunk


def _proxy(url: str) -> str:
    """The proxy for a URL, "" for none: http_proxy or https_proxy, unless no_proxy names the host."""
    parts = urlsplit(url)
    name = f"{parts.scheme}_proxy"      # looked up by name: urllib's getproxies walks the whole environment each time
    proxy = os.environ.get(name) or os.environ.get(name.upper()) or ""
    if not proxy or proxy_bypass(parts.hostname or ""):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _pool(url: str) -> urllib3.PoolManager:
    """This process's connections for a URL (made anew after a fork: sockets must not be shared)."""
    proxy = _proxy(url)
    with _lock:
        if (found := _pools.get((os.getpid(), proxy))) is None:
            bundle = os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE") or certifi.where()
            settings = {"num_pools": 32, "maxsize": 64, "ca_certs": bundle, "timeout": TIMEOUT, "retries": False}
            found = urllib3.ProxyManager(proxy, **settings) if proxy else urllib3.PoolManager(**settings)   # type: ignore[arg-type]
            _pools[(os.getpid(), proxy)] = found
        return found


def _auth(url: str) -> dict[str, str]:
    """The token's header when `url` is on the endpoint's own host, and not in the clear where the endpoint is https."""
    there, here = urlsplit(url), urlsplit(endpoint())
    if there.netloc != here.netloc or (there.scheme, here.scheme) == ("http", "https") or (secret := token()) is None:
        return {}
    return {"Authorization": f"Bearer {secret}"}


def _raise_for(answer: Answer, url: str) -> None:
    """Turns an error status into TransientError or HubError; 2xx and 416 pass.

    A refusal by a storage host is an expired link, just redirected to or kept from an earlier answer: asked again, it is a
    new one.
    """
    status = answer.status
    if status < 300 or status == 416:
        return
    if status in RETRIED_STATUS or status >= 500:
        raise TransientError(f"HTTP {status}", wished_wait(answer.headers))
    if urlsplit(answer.url).netloc != urlsplit(endpoint()).netloc:
        raise TransientError(f"HTTP {status} from the storage host {urlsplit(answer.url).hostname}")
    reason = answer.headers.get("x-error-message") or answer.headers.get("x-error-code") or answer.body.reason
    where = urlsplit(url).path
    if status in (401, 403):
        unsent = " (the one given is not sent: it is not one line of ASCII)" if _given_token() and token() is None else ""
        raise HubError(f"HTTP {status} for {where}: {reason}. Set HF_TOKEN to a token that may read this data set{unsent}, "
                       f"and accept its terms on the hub if it has any")
    if status == 404:
        raise NotOnHub(f"not on the hub {endpoint()}: {where} ({reason})")
    raise HubError(f"HTTP {status} for {where}: {reason}")


def check_address(url: str) -> None:
    """HubError for what is no http address (HF_ENDPOINT without a scheme, a redirect to file:)."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
    except ValueError:
        good = False
    if not good:
        raise HubError(f"{url!r} is no http address; check HF_ENDPOINT")


def join(base: str, address: str) -> str:
    """The address that a server at `base` names, absolute. HubError for what is none."""
    try:
        return str(urljoin(base, address))
    except ValueError as error:
        raise HubError(f"{base} names {address!r}, which is no address ({error})") from error


def _words(error: HTTPError, host: str) -> str:
    """A network error as a person would say it."""
    if isinstance(error, urllib3.exceptions.ProxyError):
        return f"the proxy that http_proxy or https_proxy names does not let {host} be reached ({error.args[-1]})"
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return f"the host name {host} is not known (no network, or a wrong HF_ENDPOINT)"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return f"cannot connect to {host} ({re.sub(r'^.*] ', '', str(error))})"  # behind "[Errno 111] "
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return f"{host} does not answer"
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return f"{host} sent nothing for {TIMEOUT.read_timeout:.0f} s"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return f"{host} closed the connection ({error.args[0] if error.args else type(error).__name__})"
    return f"{type(error).__name__} from {host}: {error}"


@contextmanager
def stream(url: str, headers: Mapping[str, str] | None = None) -> Iterator[Answer]:
    """One GET, redirects followed; yields the open answer (2xx or 416).

    Raises TransientError for what a retry may mend (network errors, time-outs, 429, 5xx; also while the body is
    read inside the `with`), HubError for the rest.
    """
    here, hops = url, 0
    try:
        while True:
            check_address(here)
            sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **(headers or {}), **_auth(here)}
            body = _pool(here).request("GET", here, headers=sent, redirect=False, preload_content=False)
            try:
                answer = Answer(status=body.status, headers={k.lower(): v for k, v in body.headers.items()}, url=here,
                                body=body)
                if answer.status in REDIRECTS and "location" in answer.headers:
                    hops += 1
                    if hops > MAX_REDIRECTS:
                        raise HubError(f"more than {MAX_REDIRECTS} redirects for {urlsplit(url).path}")
                    body.drain_conn()   # leaves the connection usable
                    here = join(here, answer.headers["location"])
                    continue
                _raise_for(answer, url)
                yield answer
                return
            finally:
                body.close()
                body.release_conn()
    except LocationValueError as error:
        blame = f"the proxy {proxy!r} in http_proxy or https_proxy" if (proxy := _proxy(here)) else "HF_ENDPOINT"
        raise HubError(f"bad address {here!r}: {error}; check {blame}") from error
    except HTTPError as error:      # urllib3 wraps what the network raises; the caller's own OSError (a full disk) passes
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise HubError(f"{urlsplit(here).hostname} has no certificate that is trusted here ({error}); "
                           f"set SSL_CERT_FILE to a bundle that has its authority") from error
        if isinstance(error, urllib3.exceptions.SSLError) and re.search(r"\[Errno \d+\]|NO_CERTIFICATE_OR_CRL", str(error)):
            raise HubError(f"the certificates that SSL_CERT_FILE or REQUESTS_CA_BUNDLE names cannot be read ({error})") from error
        raise TransientError(_words(error, urlsplit(here).netloc)) from error


def get(url: str) -> tuple[bytes, Mapping[str, str]]:
    """One GET: the body and the headers (lower-case names)."""
    with stream(url) as answer:
        return b"".join(answer.chunks()), answer.headers
