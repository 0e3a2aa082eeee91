"""HTTP rules of the hub in one place: endpoint, token, redirects, error codes, one connection pool a process.

HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME and HF_HUB_CACHE are read when a request is made, not when the module
is imported (the official client reads them once). The token is sent to the endpoint's own host and to no other: an LFS
file is answered with a redirect to a storage host whose URL carries its own signature.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import httpx

from pipeline.hub.retry import RETRIED_STATUS, HubError, NotOnHub, TransientError, wished_wait

DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
USER_AGENT = "nano-deepseek-ocr-pipeline/0.1"

_lock = threading.Lock()
_clients: dict[int, httpx.Client] = {}


def endpoint() -> str:
    """The hub's base URL without a trailing slash."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def hf_home() -> Path:
    """Hugging Face's own folder: HF_HOME, else XDG_CACHE_HOME/huggingface, else ~/.cache/huggingface."""
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"


def hub_cache() -> Path:
    """Where the official client keeps downloaded files (HF_HUB_CACHE, else HF_HOME/hub)."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    return hf_home() / "hub"


def token() -> str | None:
    """HF_TOKEN, else the file that `hf auth login` writes, else None."""
    text = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if not text:
        path = Path(os.environ.get("HF_TOKEN_PATH") or hf_home() / "token").expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None
    text = text.strip()
    return text if text and text.isascii() and text.isprintable() else None


def file_url(repo: str, revision: str, path: str) -> str:
    """URL of one file of a dataset repository at a revision."""
    return f"{endpoint()}/datasets/{quote(repo)}/resolve/{quote(revision, safe='')}/{quote(path)}"


def api_url(repo: str, *parts: str) -> str:
    """URL of the hub's API below a dataset repository."""
    tail = "".join(f"/{quote(part)}" for part in parts if part)
    return f"{endpoint()}/api/datasets/{quote(repo)}{tail}"


def client() -> httpx.Client:
    """This process's connection pool (made anew after a fork: sockets must not be shared)."""
    with _lock:
        if (found := _clients.get(os.getpid())) is None:
            found = _clients[os.getpid()] = httpx.Client(
                timeout=httpx.Timeout(30.0, connect=15.0, pool=120.0), follow_redirects=False,
                limits=httpx.Limits(max_connections=64, max_keepalive_connections=64),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
        return found


def _auth(url: str) -> dict[str, str]:
    """The token's header when `url` is on the endpoint's own host."""
    if urlsplit(url).netloc != urlsplit(endpoint()).netloc or (secret := token()) is None:
        return {}
    return {"Authorization": f"Bearer {secret}"}


def _raise_for(response: httpx.Response, url: str, here: str) -> None:
    """Turns an error status into TransientError or HubError; 2xx and 416 pass.

    A refusal by the storage host that `url` redirected to (`here`) is an expired link: asked again, it is a new one.
    """
    status = response.status_code
    if status < 300 or status == 416:
        return
    headers = {name.lower(): value for name, value in response.headers.items()}
    if status in RETRIED_STATUS or status >= 500:
        raise TransientError(f"HTTP {status}", wished_wait(headers))
    if urlsplit(here).netloc != urlsplit(url).netloc:
        raise TransientError(f"HTTP {status} from the storage host {urlsplit(here).hostname}")
    reason = headers.get("x-error-message") or headers.get("x-error-code") or response.reason_phrase
    where = urlsplit(url).path
    if status in (401, 403):
        raise HubError(f"HTTP {status} for {where}: {reason}. Set HF_TOKEN to a token that may read this data set, and "
                       f"accept its terms on the hub if it has any")
    if status == 404:
        raise NotOnHub(f"not on the hub {endpoint()}: {where} ({reason})")
    raise HubError(f"HTTP {status} for {where}: {reason}")


@contextmanager
def stream(url: str, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
    """One GET, redirects followed; yields the open response (2xx or 416), its `url` the place that answered.

    Raises TransientError for what a retry may mend (network errors, time-outs, 429, 5xx; also while the body is
    read inside the `with`), HubError for the rest.
    """
    here, hops = url, 0
    try:
        while True:
            request = client().build_request("GET", here, headers={**(headers or {}), **_auth(here)})
            response = client().send(request, stream=True)
            try:
                if response.status_code in REDIRECTS and "location" in response.headers:
                    hops += 1
                    if hops > MAX_REDIRECTS:
                        raise HubError(f"more than {MAX_REDIRECTS} redirects for {urlsplit(url).path}")
                    response.read()  # leaves the connection usable
                    here = urljoin(here, response.headers["location"])
                    if urlsplit(here).scheme not in ("http", "https"):
                        raise HubError(f"{urlsplit(url).path} redirects to {urlsplit(here).scheme}://, which is refused")
                    continue
                _raise_for(response, url, here)
                yield response
                return
            finally:
                response.close()
    except (httpx.TransportError, httpx.StreamError, httpx.DecodingError) as error:
        raise TransientError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error
    except httpx.InvalidURL as error:
        raise HubError(f"bad URL {url!r}: {error}; check HF_ENDPOINT") from error


def get(url: str) -> httpx.Response:
    """One GET with its body read (JSON answers)."""
    with stream(url) as response:
        response.read()
        return response
