"""Samples and shard directories that tests of the format make, without the pipeline."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards import geometry, manifest, table
from shards.sample import encode
from shards.writer import Fields, PackedSample, ShardEntry, write_file, write_shard

SPECIALS = {"<|bos|>": 1, "<|image|>": 2, "<|pad|>": 3}
VOCAB = 100


def picture(width: int, height: int, *, seed: int = 0, kind: str = "PNG") -> bytes:
    """An encoded RGB picture of coarse random blocks."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    sink = io.BytesIO()
    small.resize((width, height), Image.Resampling.NEAREST).save(sink, kind)
    return sink.getvalue()


def image_meta(mode: str, width: int, height: int, *, message: int = 0, offset: int = 0) -> dict[str, Any]:
    """What KEY.json says of an image whose original had that size."""
    tiles = geometry.grid_of(mode, width, height)
    stored = geometry.stored_size(mode, width, height)
    return {"message": message, "offset": offset, "mode": mode, "width": stored[0], "height": stored[1], "source_width": width,
            "source_height": height, "tiles": list(tiles), "placeholders": geometry.placeholders(mode, tiles)}


def meta(question: str, answer: str, images: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """KEY.json of one turn."""
    return {"source": "made", "row": "made#0", "cut": "", "meta": "{}", "images": images or [],
            "messages": [{"role": "user", "content": question, "parts": []},
                         {"role": "assistant", "content": answer, "parts": []}]}


def law(text: int, answer: int, placeholders: int = 0) -> tuple[Any, Any]:
    """ids and mask: BOS, placeholders, `text` tokens, `answer` tokens."""
    ids = [SPECIALS["<|bos|>"], *[SPECIALS["<|image|>"]] * placeholders, *range(10, 10 + text), *range(50, 50 + answer)]
    mask = [0, *[0] * placeholders, *[1] * text, *[2] * answer]
    return np.array(ids, np.int32), np.array(mask, np.uint8)


def packed(fields: Fields, ids: Any, body: dict[str, Any]) -> PackedSample:
    """A sample as the writer takes it."""
    return PackedSample(fields=fields, tokens=len(ids), images=len(body["images"]),
                        patches=sum(geometry.patches(i["mode"], tuple(i["tiles"])) for i in body["images"]))


def text_sample(text: int = 3, answer: int = 2, word: str = "q") -> PackedSample:
    """A sample without images."""
    body = meta(word, "a")
    ids, mask = law(text, answer)
    return packed(encode(body, ids, mask, []), ids, body)


def image_sample(width: int = 30, height: int = 20, mode: str = "micro", seed: int = 0) -> PackedSample:
    """A sample of one picture, with its tiles where the mode gives it some."""
    image = image_meta(mode, width, height)
    body = meta("<image>\nRead.", "text", [image])
    ids, mask = law(3, 2, image["placeholders"])
    members = [("0.png", picture(image["width"], image["height"], seed=seed))]
    if image["tiles"] != [0, 0]:
        members.append(("0.tiles.png", picture(image["tiles"][0] * geometry.TILE, image["tiles"][1] * geometry.TILE, seed=seed)))
    return packed(encode(body, ids, mask, members), ids, body)


def directory(folder: Path, shards: list[list[list[PackedSample]]], *, seq_len: int = 4096) -> ShardEntry:
    """A finished shard directory of train shards; returns the entry of the last."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, tables = [], [table.make([])]
    for number, rows in enumerate(shards):
        entry, part = write_shard(folder, "train", number, rows)
        entries.append(entry)
        tables.append(part)
    whole = np.concatenate(tables)
    files = [write_file(folder / "rows.npy", table.encode(whole)), write_file(folder / "rows-val.npy", table.encode(tables[0]))]
    split = {key: int(whole[key].sum()) for key in ("samples", "tokens", "images", "patches")}
    none = dict.fromkeys(split, 0)
    manifest.save(folder, {
        "seq_len": seq_len, "vocab_size": VOCAB, "specials": SPECIALS,
        "shards": [json.loads(json.dumps(vars(entry), default=vars)) for entry in entries],
        "files": [vars(file) for file in files],
        "splits": {"train": {"rows": len(whole), **split}, "val": {"rows": 0, **none}}})
    return entries[-1]
