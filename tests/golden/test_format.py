"""Version 1 of the format, byte by byte: this shard and its tables must never change under the version number.

The files beside this test were written by `python -m tests.golden.test_format`; run that only together with a new
FORMAT_VERSION. One row holds a text sample and a sample of a picture, the next a sample with tiles (whose bytes here are
place-holders: the format does not look into pictures).
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from shards import FORMAT_VERSION, geometry, masks, table
from shards.reader import ShardReader
from shards.sample import encode
from shards.writer import PackedSample, write_shard

HERE = Path(__file__).resolve().parent
NAMES = ("train-000007.tar", "train-000007.tar.idx", "train-000007.idx")
TABLE = "rows.npy"


def sample(number: int) -> PackedSample:
    """Three samples by number: text with a tool call, one picture, tiles and a second picture."""
    parts = [{"kind": "python", "text": "6*7"}, {"kind": "output", "text": "42"}]
    images: list[dict[str, Any]] = []
    members, content = [], "Say hi. \u2603 <|image|>"
    if number:
        grids = [(0, 0)] if number == 1 else [(1, 2), (0, 0)]
        mode = "tiny" if number == 1 else "gundam"
        content = "<image>\n" * len(grids) + "Read."
        for at, grid in enumerate(grids):
            images.append({"message": 0, "offset": 8 * at, "mode": mode, "width": 40, "height": 30, "source_width": 400,
                           "source_height": 300, "tiles": list(grid), "placeholders": geometry.placeholders(mode, grid)})
            members.append((f"{at}.jpg", b"picture %d" % at))
            if grid != (0, 0):
                members.append((f"{at}.tiles.png", b"tiles"))
    body = {"source": "made", "row": f"made#{number}", "cut": "3 tokens" if number == 2 else "", "meta": '{"smiles": "CCO"}',
            "images": images, "messages": [{"role": "user", "content": content, "parts": []},
                                           {"role": "assistant", "content": "hi", "parts": [] if number else parts}]}
    placeholders = sum(image["placeholders"] for image in images)
    ids = np.array([1, 5, *[9] * placeholders, 300, 6, 7, 70_000, 8], np.int32)
    mask = np.array([0, 1, *[0] * placeholders, 1, 1, 1, 2, 2], np.uint8)
    return PackedSample(fields=encode(body, ids, mask, members), tokens=len(ids), images=len(images),
                        patches=sum(geometry.patches(image["mode"], tuple(image["tiles"])) for image in images))


def write(folder: Path) -> None:
    """The golden files, into `folder`."""
    _, rows = write_shard(folder, "train", 7, [[sample(0), sample(1)], [sample(2)]])
    (folder / TABLE).write_bytes(table.encode(rows))


def test_the_writer_still_gives_these_bytes(tmp_path: Path) -> None:
    assert FORMAT_VERSION == 1
    write(tmp_path)
    for name in (*NAMES, TABLE):
        assert (tmp_path / name).read_bytes() == (HERE / name).read_bytes(), name


def test_the_reader_still_reads_them() -> None:
    rows = table.load(HERE / TABLE)
    assert [tuple(int(value) for value in row) for row in rows] == [
        (7, 2, 0, 7168, 87, 1, 1024), (7, 1, 7168, 9728, 773, 2, 11_392)]
    reader = ShardReader(HERE)
    text, picture = reader.read(rows[0])
    (tiled,) = reader.read(rows[1])
    reader.close()
    assert (text.key, picture.key, tiled.key) == ("train-000007-000000", "train-000007-000001", "train-000007-000002")
    assert text.ids.tolist() == [1, 5, 300, 6, 7, 70_000, 8] and text.images == ()
    assert text.meta["messages"][0]["content"].endswith("\u2603 <|image|>")
    assert [part["kind"] for part in text.meta["messages"][1]["parts"]] == ["python", "output"]
    assert picture.image(0) == b"picture 0" and tiled.tiles(0) == b"tiles" and tiled.image(1) == b"picture 1"
    assert masks.targets(text.ids, text.mask).tolist() == [5, 300, 6, 7, 70_000, 8, -1]
    assert json.loads(tiled.meta["meta"]) == {"smiles": "CCO"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        write(Path(place))
        for name in (*NAMES, TABLE):
            (HERE / name).write_bytes((Path(place) / name).read_bytes())
