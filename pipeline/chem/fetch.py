"""A SMILES file from a URL into the cache, resumed where the last attempt stopped.

The partial file lies beside its place as NAME.part with the server's validator in NAME.part.json; a resumed request
carries `If-Range`, so a file that changed in between starts over instead of being sewn together from two. PubChem
publishes an md5 beside its file: it is checked when the server has it.

    raw/.pipeline/smiles/<hash of the URL>-CID-SMILES.gz
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from pipeline import locks

PUBCHEM = "https://ftp.ncbi.nlm.nih.gov/pubchem/Compound/Extras/CID-SMILES.gz"
ATTEMPTS = 4
_TIMEOUT = httpx.Timeout(30.0, read=60.0)
_MD5 = re.compile(r"\b[0-9a-f]{32}\b")


class FetchError(ValueError):
    """The file could not be fetched; the message names the URL, the cause and what to do instead."""


def fetch(url: str, folder: Path, on_progress: Callable[[int, int], None], *, pause: float = 1.0) -> Path:
    """The cached file of `url`, fetched if need be. `on_progress(bytes so far, total or 0)`. Raises FetchError."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise FetchError(f"--smiles {url}: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise FetchError(f"--smiles {url}: only http and https addresses are fetched")
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", unquote(parts.path).rsplit("/", 1)[-1])[-100:].lstrip(".") or "smiles"
    place = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{stem}"
    if place.exists():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    part, lock = place.with_name(place.name + ".part"), place.with_name(place.name + ".lock")
    with open(lock, "w") as held:
        # slices of an array share the folder: one of them fetches, the others wait and find the file
        while not locks.take(held):
            if have := part.stat().st_size if part.exists() else 0:
                on_progress(have, 0)
            time.sleep(pause)
        if not place.exists():
            _fetch(url, part, place, on_progress, pause)
        lock.unlink(missing_ok=True)
    return place


class _Again(Exception):
    """Worth another attempt."""


def _fetch(url: str, part: Path, place: Path, on_progress: Callable[[int, int], None], pause: float) -> None:
    """Attempts until the file is whole at `place`. Raises FetchError."""
    cause = ""
    try:
        session = httpx.Client(follow_redirects=True, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"})
    except (httpx.InvalidURL, ImportError, ValueError, OSError) as error:
        raise FetchError(_advice(url, f"{error}; check the proxies and SSL_CERT_FILE in the environment")) from error
    with session as client:
        failures = held = 0
        while failures < ATTEMPTS:
            if failures:
                time.sleep(pause * 2 ** (failures - 1))
            try:
                _pull(client, url, part, on_progress)
                _check_md5(client, url, part)
            except (httpx.TransportError, _Again) as error:
                cause = str(error) or type(error).__name__
                # an attempt that got further is no failure: only a standstill ends the patience
                now = part.stat().st_size if part.exists() else 0
                failures, held = (1 if now > held else failures + 1), max(now, held)
                continue
            except httpx.HTTPStatusError as error:
                raise FetchError(_advice(url, f"the server answered {error.response.status_code}")) from error
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                raise FetchError(_advice(url, str(error))) from error
            os.replace(part, place)
            _state_path(part).unlink(missing_ok=True)
            return
    kept = ""
    if part.exists() and _read_validator(part):  # a server that gives none cannot be asked for the rest
        kept = f"; {part.stat().st_size:,} bytes are kept, the next run goes on from there"
    raise FetchError(_advice(url, cause) + kept)


def _advice(url: str, cause: str) -> str:
    return (
        f"cannot fetch {url} ({cause}). Without a network, give a file of your own with --smiles PATH, or "
        "`--smiles sample` for the 5,000 molecules that ship with the package"
    )


def _pull(client: httpx.Client, url: str, part: Path, on_progress: Callable[[int, int], None]) -> None:
    """One request: the rest of the file. Raises _Again when the body ended early or the server is busy."""
    have = part.stat().st_size if part.exists() else 0
    validator = _read_validator(part) if have else ""
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have and validator else {}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416 and have:
            part.unlink()
            raise _Again("the kept part is longer than the file")
        if response.status_code == 429 or response.status_code >= 500:
            raise _Again(f"the server answered {response.status_code}")
        response.raise_for_status()
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status_code == 206 and not resumed:
            part.unlink(missing_ok=True)
            raise _Again("the server sent another range than asked")
        said = response.headers.get("ETag" if validator.startswith('"') else "Last-Modified", validator)
        if resumed and said.removeprefix("W/") != validator:    # a server that does not know If-Range
            part.unlink()
            raise _Again("the file changed on the server")
        have = have if resumed else 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else 0
        with open(part, "ab" if resumed else "wb") as file:
            if not resumed:     # after the old part is gone: it must never stand beside the validator of another file
                # a weak validator may not be used with If-Range; the date then serves
                tag = response.headers.get("ETag", "")
                tag = "" if tag.startswith("W/") else tag
                _state_path(part).write_text(json.dumps({"validator": tag or response.headers.get("Last-Modified", "")}))
            # without a size: blocks of a fixed one would lose what had come when the connection breaks
            for block in response.iter_raw():
                file.write(block)
                have += len(block)
                on_progress(have, total)
            file.flush()
            os.fsync(file.fileno())
    if total and have != total:
        raise _Again(f"the body ended after {have:,} of {total:,} bytes")
    with open(part, "rb") as file:
        head = file.read(64).lstrip().lower()
    if not have or head.startswith((b"<!doctype", b"<html")):   # kept, it would be every later run's file
        part.unlink()
        raise _Again("the server sent a web page instead of the file" if have else "the server sent an empty file")


def _check_md5(client: httpx.Client, url: str, part: Path) -> None:
    """Compares with the md5 that PubChem publishes; a missing or unreadable one is no failure."""
    if url != PUBCHEM:
        return
    response = client.get(url + ".md5")
    found = _MD5.search(response.text) if response.status_code == 200 else None
    if found is None:
        return
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    if digest != found.group():
        part.unlink()
        raise _Again(f"md5 {digest} instead of {found.group()}")


def _state_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_validator(part: Path) -> str:
    try:
        return str(json.loads(_state_path(part).read_text("utf-8"))["validator"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
