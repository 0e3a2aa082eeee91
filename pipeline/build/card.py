"""What lets other libraries open the directory as it is: the data card for `load_dataset`, and Energon's description.

The card's yaml pins `data_files` to the tars (else `.idx` files are opened as tars) and lists every image slot (else images of
later samples are dropped in silence). The card also tells people where the data is from, under which licence, and what was left
out.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.sources.licences import licence_of
from shards.writer import FileEntry, write_file

ENERGON_VERSION = "7.4.1"  # whose layout is written


def write(out: Path, body: dict[str, Any], slots: tuple[int, bool]) -> list[FileEntry]:
    """Write README.md and .nv-meta/; returns the manifest's entries. `slots`: most images of a sample, whether any has tiles."""
    nv = out / ".nv-meta"
    nv.mkdir(exist_ok=True)
    counts = {shard["name"]: shard["samples"] for shard in body["shards"]}
    train = [name for name in counts if name.startswith("train-")]
    val = [name for name in counts if name.startswith("val-")]
    parts = "\n".join(f"  {split}:" + ("" if names else " []") + "".join(f"\n  - {name}" for name in names)
                      for split, names in (("train", train), ("val", val), ("test", [])))
    entries = [
        write_file(out / "README.md", render(body, slots).encode()),
        write_file(nv / "dataset.yaml", b"__module__: megatron.energon\n__class__: CrudeWebdataset\n"),
        write_file(nv / "split.yaml", f"exclude: []\nsplit_parts:\n{parts}\n".encode()),
        write_file(nv / ".info.json",
                   json.dumps({"energon_version": ENERGON_VERSION, "shard_counts": counts}, indent=2).encode() + b"\n"),
    ]
    return [entries[0], *(FileEntry(name=f".nv-meta/{entry.name}", bytes=entry.bytes, sha256=entry.sha256)
                          for entry in entries[1:])]


def features(slots: tuple[int, bool]) -> list[str]:
    """The yaml lines of `dataset_info.features`: the JSON's schema, ids, mask, and each image slot as jpg and as png."""
    text, whole = "dtype: string", "dtype: int64"
    lines = ["  - name: json", "    struct:"]
    lines += ["    - name: cut", f"      {text}", "    - name: images", "      list:"]
    for name in ("height", "message"):
        lines += [f"      - name: {name}", f"        {whole}"]
    lines += ["      - name: mode", f"        {text}"]
    for name in ("offset", "placeholders", "source_height", "source_width"):
        lines += [f"      - name: {name}", f"        {whole}"]
    lines += ["      - name: tiles", "        list: int64", "      - name: width", f"        {whole}"]
    lines += ["    - name: messages", "      list:", "      - name: content", f"        {text}", "      - name: parts",
              "        list:", "        - name: kind", f"          {text}", "        - name: text", f"          {text}",
              "      - name: role", f"        {text}"]
    for name in ("meta", "row", "source"):
        lines += [f"    - name: {name}", f"      {text}"]
    lines += ["  - name: ids.npy", "    list: int32", "  - name: mask.npy", "    list: uint8"]
    most, tiled = slots
    for index in range(most):
        for stem in (str(index), f"{index}.tiles") if tiled else (str(index),):
            for suffix in ("jpg", "png"):
                lines += [f"  - name: {stem}.{suffix}", "    dtype: image"]
    return [*lines, "  - name: __key__", f"    {text}", "  - name: __url__", f"    {text}"]


def render(body: dict[str, Any], slots: tuple[int, bool]) -> str:
    """The whole card."""
    splits = body["splits"]
    data = ["  data_files:", "  - split: train", "    path: train-*.tar"]
    if splits["val"]["rows"]:
        data += ["  - split: validation", "    path: val-*.tar"]
    licences = {name: licence_of(source["kind"], source["repo"], source["folder"]) for name, source in body["sources"].items()}
    lines = [
        "---", "license: other", "task_categories:", "- image-to-text", "tags:", "- webdataset", "- ocr", "configs:",
        "- config_name: default", *data, "dataset_info:", "- config_name: default", "  features:", *features(slots), "---", "",
        f"# {body['recipe']}: packed shards for an OCR vision-language model", "",
        *([body["description"], ""] if body["description"] else []),
        f"Rows of {body['seq_len']} tokens, {splits['train']['fill']:.2%} full: {splits['train']['samples']:,} training samples in "
        f"{splits['train']['rows']:,} rows, {splits['val']['samples']:,} validation samples in {splits['val']['rows']:,}. "
        f"Tokenizer {body['tokenizer']['name']}; plan {body['plan']['id']}.", "",
        "A sample is `KEY.json` (source, row, messages, images), `KEY.ids.npy` (int32), `KEY.mask.npy` (uint8: 0 never a target, "
        "1 text, 2 answer) and its images `KEY.0.jpg|png` ...; `manifest.json` holds every count and checksum.", "",
        "## Sources", "",
        "| source | rows read | samples | images | tokens | left out | licence |", "|---|---|---|---|---|---|---|"]
    for name, source in body["sources"].items():
        why = ", ".join(f"{reason} {count:,}" for reason, count in source["rejects"].items()) or "-"
        numbers = " | ".join(f"{source[key]:,}" for key in ("rows", "samples", "images", "tokens"))
        lines.append(f"| {_cell(name)} | {numbers} | {why} | {_cell(licences[name].name)} |")
    lines += ["", "## Attribution", ""]
    lines += [f"- **{_cell(name)}** ({_cell(source['repo'])}{'@' + source['revision'][:12] if source['revision'] else ''}): "
              f"{licences[name].attribution}" for name, source in body["sources"].items()]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
