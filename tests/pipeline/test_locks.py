"""A file's lock: one holder, gone with it, and no obstacle where there are no locks."""

import errno
import fcntl
from pathlib import Path

import pytest

from pipeline import locks


def test_one_holder_until_it_closes(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as first, open(tmp_path / "lock", "w") as second:
        assert locks.take(first)
        assert not locks.take(second)
        first.close()
        assert locks.take(second.fileno())


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with open(tmp_path / "lock", "w") as file:
        assert locks.take(file)
