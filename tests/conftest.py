"""Fixtures that several test folders share."""

import signal
from pathlib import Path

import pytest

# A suite started in the background of a shell inherits "ignore Ctrl-C", and hands it on to every command it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that use it are skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared is absent")
    return SHARED.resolve()
