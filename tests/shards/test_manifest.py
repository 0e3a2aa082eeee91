"""The manifest: complete or absent, of a known version, the same bytes for the same content."""

import json
from pathlib import Path

import pytest

from shards import FORMAT_VERSION, manifest


def test_it_comes_back_with_its_version(tmp_path: Path) -> None:
    entry = manifest.save(tmp_path, {"b": 1, "a": {"ä": [1, 2]}})
    first = (tmp_path / "manifest.json").read_bytes()
    assert manifest.load(tmp_path) == {"format_version": FORMAT_VERSION, "a": {"ä": [1, 2]}, "b": 1}
    assert entry.bytes == len(first)
    manifest.save(tmp_path, {"a": {"ä": [1, 2]}, "b": 1})
    assert (tmp_path / "manifest.json").read_bytes() == first


def test_without_one_the_directory_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(manifest.IncompleteError, match=r"has no manifest\.json: the build has not finished"):
        manifest.load(tmp_path)
    with pytest.raises(manifest.IncompleteError, match="is not a directory"):
        manifest.load(tmp_path / "absent")


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5])
def test_another_format_is_refused(tmp_path: Path, version: object) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": version}))
    with pytest.raises(ValueError, match="this reader knows format 1"):
        manifest.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "{}", "\x00\xff"])
def test_noise_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="is not a shard manifest"):
        manifest.load(tmp_path)
