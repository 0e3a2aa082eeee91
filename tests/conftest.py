"""Fixtures that several test folders share."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Two test processes share the cores with what they start. Threads of torch that wait for each other by spinning make a step of
# a tiny model take minutes then (seen: 900 s on two cores at a load of 17); one thread each never does. Set before torch is
# imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A suite started in the background of a shell inherits "ignore Ctrl-C", and hands it on to every command it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow machine is no defect: what bounds a test is its own time limit, not 200 ms an example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that use it are skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared is absent")
    return SHARED.resolve()
