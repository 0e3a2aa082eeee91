"""What is tried again, how often, and how long to wait: 429, 5xx, time-outs, cut bodies, refused connections.

A server's own Retry-After (seconds or a date) or rate-limit reset is honoured; otherwise the wait doubles from
`base` to `cap` with a spread of half, so that parallel connections do not come back at the same instant. The spread
is a hash of the request, not a random number: a run can be repeated. Nothing else is retried: a 401, 403 or 404
answers the same a minute later.

The default of 12 tries waits about 5 minutes without a single byte of progress before it gives up.
"""

import logging
import re
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

log = logging.getLogger("pipeline.hub")

WONDERED, TOLD_EVERY = 2.0, 10.0    # seconds
_told = -TOLD_EVERY
_lock = threading.Lock()

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})

T = TypeVar("T")


class HubError(Exception):
    """The hub cannot give what was asked, and asking again will not help; the message says what to change."""


class NotOnHub(HubError):
    """There is no such repository, revision, folder or file."""


class TransientError(Exception):
    """Worth another try; `wait` is the server's own wish in seconds, if it said one."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Cancelled(Exception):
    """The caller asked for an end (Ctrl-C, or another file failed for good)."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How patient a request is. Times in seconds."""

    tries: int = 12
    base: float = 0.5
    cap: float = 60.0
    longest_wish: float = 900.0  # a server that asks for more than this is not waited for

    def delay(self, failures: int, wish: float | None, what: str) -> float:
        """Seconds to wait after the `failures`-th failure in a row (counted from 1).

        base 0.5, cap 60: 0.25-0.5, 0.5-1, 1-2, 2-4, ... 30-60.
        """
        if wish is not None:
            return max(0.0, wish)
        step = min(self.cap, self.base * 2.0 ** min(failures - 1, 30))
        spread = zlib.crc32(f"{what}#{failures}".encode()) / 2**32
        return step * (0.5 + 0.5 * spread)


DEFAULT = Retry()


def wished_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds a response asks for: Retry-After (number or HTTP date), or the hub's `RateLimit: "api";r=0;t=55`.

    `headers` has lower-case names. A malformed wish counts as none.
    """
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if text:
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            return None
    limit = headers.get("ratelimit", "")
    if re.search(r"r=0(?!\d)", limit) and (found := re.search(r"t=(\d+)", limit)):
        return float(found[1])
    return None


def pause(seconds: float, cancel: threading.Event | None) -> None:
    """Sleeps, and raises Cancelled as soon as `cancel` is set."""
    if cancel is None:
        time.sleep(seconds)
    elif cancel.wait(seconds):
        raise Cancelled


def wait_or_raise(error: TransientError, failures: int, what: str, policy: Retry,
                  cancel: threading.Event | None = None) -> None:
    """After a failure: sleeps as the policy says, or raises HubError when patience has run out."""
    if failures >= policy.tries:
        raise HubError(f"{what}: {error} ({failures} tries)") from error
    delay = policy.delay(failures, error.wait, what)
    if delay > policy.longest_wish:
        raise HubError(f"{what}: {error}; the server asks to wait {delay:.0f} s: try again later") from error
    log.log(_level(delay), "%s: %s; try %d of %d in %.1f s", what, error, failures + 1, policy.tries, delay)
    pause(delay, cancel)


def _level(delay: float) -> int:
    """WARNING, which reaches the user, for a wait that one would wonder about, at most once in TOLD_EVERY seconds."""
    global _told
    with _lock:
        if delay < WONDERED or time.monotonic() < _told + TOLD_EVERY:
            return logging.INFO
        _told = time.monotonic()
        return logging.WARNING


def call(fn: Callable[[], T], *, what: str, policy: Retry = DEFAULT, cancel: threading.Event | None = None) -> T:
    """Runs `fn` until it returns; TransientError is retried by `policy`, anything else passes through."""
    failures = 0
    while True:
        try:
            return fn()
        except TransientError as error:
            failures += 1
            wait_or_raise(error, failures, what, policy, cancel)
