"""Small shard directories for the trainer's tests, made through shards.writer: random words beside coloured pictures.

Each image sample shows one solid colour with a block of another, and its answer names both: a few samples can be learned
by heart from the picture, none from the text alone.
"""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards import geometry, manifest, sample, table, writer

WORDS = ("red", "green", "blue", "black", "white", "pink", "gray", "cyan", "what", "is", "it", "two", "plus", "four", "here")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0), "white": (255, 255, 255),
           "pink": (255, 128, 192), "gray": (90, 90, 90), "cyan": (0, 255, 255)}
SPECIALS = ("<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>", "<|python_start|>",
            "<|python_end|>", "<|output_start|>", "<|output_end|>", "<|image|>", "<|pad|>")
IDS = {name: index for index, name in enumerate((*WORDS, *SPECIALS))}
TRAIN = {"model": "micro", "batch_rows": 4, "lr": 1e-3, "schedule": "linear", "warmup_steps": 2, "min_lr_ratio": 0.1,
         "betas": [0.9, 0.98], "weight_decay": 0.05, "clip": 1.0, "epochs": 1, "freeze": [], "loss": "all", "eval_every": 0}


def tokenizer_json() -> bytes:
    """A word-level tokenizer of these words."""
    added = [{"id": IDS[name], "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for name in SPECIALS]
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {name: index for name, index in IDS.items()}, "unk_token": "here"}}).encode()


def picture(rng: random.Random, width: int, height: int, *, first: str, second: str, suffix: str = "png") -> bytes:
    """A picture of one colour with a block of another in its upper left quarter."""
    image = Image.new("RGB", (width, height), COLOURS[first])
    image.paste(COLOURS[second], (0, 0, max(1, width // 2), max(1, height // 2)))
    out = io.BytesIO()
    image.save(out, "PNG" if suffix == "png" else "JPEG", quality=90)
    return out.getvalue()


def make_sample(rng: random.Random, *, row: str, source: str = "colours", mode: str | None = "micro", images: int = 1,
                words: int = 2, size: tuple[int, int] | None = None) -> tuple[writer.PackedSample, sample.Sample]:
    """One sample: `images` pictures of a mode (None: text only) and an answer of `words` words or the colours shown."""
    ids, mask, entries, members, patches = [IDS["<|bos|>"], IDS["<|user_start|>"]], [0, 1], [], [], 0
    answer = []
    for index in range(images if mode else 0):
        assert mode is not None
        first, second = rng.choice(list(COLOURS)), rng.choice(list(COLOURS))
        answer += [first, second]
        width, height = size or (rng.randint(40, 300), rng.randint(40, 300))
        grid = geometry.grid_of(mode, width, height)
        stored = geometry.stored_size(mode, width, height)
        count = geometry.placeholders(mode, grid)
        ids += [IDS["<|image|>"]] * count
        mask += [0] * count
        suffix = rng.choice(["png", "jpg"])
        members.append((f"{index}.{suffix}", picture(rng, *stored, first=first, second=second, suffix=suffix)))
        if grid != (0, 0):
            members.append((f"{index}.tiles.jpg", picture(rng, geometry.TILE * grid[0], geometry.TILE * grid[1], first=first,
                                                          second=second, suffix="jpg")))
        patches += geometry.patches(mode, grid)
        entries.append({"message": 0, "offset": 8 * index, "mode": mode, "width": stored[0], "height": stored[1],
                        "source_width": width, "source_height": height, "tiles": list(grid), "placeholders": count})
    answer = answer or [rng.choice(WORDS) for _ in range(words)]
    for text, code in ((["what", "is", "it"], 1), (["<|user_end|>", "<|assistant_start|>"], 1), (answer, 2),
                       (["<|assistant_end|>"], 2)):
        ids += [IDS[word] for word in text]
        mask += [code] * len(text)
    meta: dict[str, Any] = {
        "source": source, "row": row, "cut": "", "meta": "{}", "images": entries,
        "messages": [{"role": "user", "content": "<image>\n" * len(entries) + "what is it", "parts": []},
                     {"role": "assistant", "content": " ".join(answer), "parts": []}]}
    arrays = np.array(ids, np.int32), np.array(mask, np.uint8)
    fields = sample.encode(meta, *arrays, members)
    packed = writer.PackedSample(fields=fields, tokens=len(ids), images=len(entries), patches=patches)
    return packed, sample.Sample(key="", meta=meta, ids=arrays[0], mask=arrays[1], images=tuple(members))


def make_rows(rng: random.Random, *, rows: int, seq_len: int, modes: tuple[str | None, ...]) -> list[list[writer.PackedSample]]:
    """Packed rows of one to four samples each."""
    made = []
    for row in range(rows):
        samples: list[writer.PackedSample] = []
        room = seq_len
        for position in range(rng.randint(1, 4)):
            mode = rng.choice(modes)
            one, _ = make_sample(rng, row=f"{row}-{position}", source="text" if mode is None else f"colours-{mode}", mode=mode)
            if one.tokens <= room:
                samples.append(one)
                room -= one.tokens
        while not samples:
            one, _ = make_sample(rng, row=f"{row}-text", source="text", mode=None)
            samples = [one]
        made.append(samples)
    return made


def write_directory(folder: Path, splits: dict[str, list[list[list[writer.PackedSample]]]], *, seq_len: int,
                    train: dict[str, Any] | None = None, mode: str = "micro") -> Path:
    """A finished shard directory; splits: {"train": [rows of shard 0, rows of shard 1, ...], "val": ...}."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, totals = [], {}
    for split, shards in splits.items():
        tables = []
        for number, rows in enumerate(shards):
            entry, rows_table = writer.write_shard(folder, split, number, rows)
            entries.append({"name": entry.name, "bytes": entry.bytes, "sha256": entry.sha256, "samples": entry.samples,
                            "rows": entry.rows, "tokens": entry.tokens, "images": entry.images, "indexes": []})
            tables.append(rows_table)
        merged = np.concatenate(tables) if tables else table.make([])
        np.save(folder / table.FILES[split].removesuffix(".npy"), merged)
        totals[split] = {"rows": len(merged), "samples": int(merged["samples"].sum()), "tokens": int(merged["tokens"].sum()),
                         "images": int(merged["images"].sum()), "patches": int(merged["patches"].sum())}
    writer.write_file(folder / "tokenizer.json", tokenizer_json())
    manifest.save(folder, {
        "recipe": "synthetic", "mode": mode, "seq_len": seq_len, "vocab_size": len(IDS), "splits": totals, "shards": entries,
        "specials": {name: IDS[name] for name in SPECIALS}, "train": {**TRAIN, **(train or {})}})
    return folder


def make_directory(folder: Path, *, rows: int = 24, shards: int = 3, val_rows: int = 6, seq_len: int = 128, seed: int = 0,
                   modes: tuple[str | None, ...] = ("micro", None), train: dict[str, Any] | None = None) -> Path:
    """A whole directory with a validation split, the same bytes for the same arguments."""
    rng = random.Random(seed)
    made = make_rows(rng, rows=rows, seq_len=seq_len, modes=modes)
    per_shard = -(-rows // shards)
    splits = {"train": [made[at:at + per_shard] for at in range(0, rows, per_shard)]}
    if val_rows:
        splits["val"] = [make_rows(rng, rows=val_rows, seq_len=seq_len, modes=modes)]
    return write_directory(folder, splits, seq_len=seq_len, train=train)
