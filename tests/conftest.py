"""Fixtures that several test folders share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that use it are skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared is absent")
    return SHARED.resolve()
