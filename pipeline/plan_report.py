"""What a plan will take, as numbers (`make_report`) and as text (`format_report`).

Everything comes from footers. Images are counted from them exactly enough (nulls aside); tokens are placeholders of the
recipe's modes plus BYTES_PER_TOKEN bytes of text a token; hours come from `pipeline.measure`. The estimates say "about".
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.footers import FileRef
from pipeline.gap import gap_table
from pipeline.hub.fetch import nearest as nearest_folder
from pipeline.measure import Speed
from pipeline.plan import Plan, SourcePlan, make_command
from pipeline.recipe import BUCKETS, SourceSpec
from pipeline.sources import KINDS
from shards.geometry import placeholders

BYTES_PER_TOKEN = 3.6       # measured on the real sets with SmolLM2's vocabulary: 2.6 (DocTags, LaTeX) to 4.4 (prose)
TOKENS_A_ROW = 8            # bos, turn markers
GUNDAM_TILES = (2, 3)       # a usual portrait page; its sizes are not in a footer
MEMBER_BYTES = 3 * 1024     # tar headers and padding of a sample
TARGET = {"ocr": 70, "vision": 20, "text": 10}      # DeepSeek-OCR's stage 2, in percent
DEEPSEEK_CHEMISTRY = 5 / 69                         # its molecules among its OCR data: 5 M of 53 M + 16 M


def image_tokens(mode: str) -> int:
    """Placeholders of an image in a mode (gundam: of a usual page)."""
    return placeholders(mode, GUNDAM_TILES) if mode == "gundam" else placeholders(mode)


def on_disk(ref: FileRef, raw: Path) -> bool:
    """Whether a file of the plan need not be fetched."""
    if ref.local is not None:
        return True
    place = raw / ref.repo / ref.path
    return place.is_file() and place.stat().st_size == ref.size


def _source(plan: Plan, spec: SourceSpec, got: SourcePlan, raw: Path) -> dict[str, Any]:
    mode = plan.recipe.mode_of(spec)
    missing = spec.name in plan.missing
    images, text, rows = got.images, got.text_bytes, got.rows
    if missing and not spec.on_hub:     # to be rendered or converted: an image and a line of text a row
        rows = got.asked
        images, text = 0 if KINDS[spec.kind].text_only else rows, rows * 40
    files = [plan.files[index].ref for index in got.files]
    return {
        "name": spec.name, "kind": spec.kind, "bucket": spec.bucket, "mode": mode, "repeats": spec.repeats,
        "to_make": missing and not spec.on_hub,
        "revision": got.revision, "missing": missing, "available": got.available, "quota": got.asked, "rows": rows,
        "blocks": got.blocks, "files": len(files), "fetch_bytes": sum(f.size for f in files if not on_disk(f, raw)),
        "file_bytes": got.file_bytes, "bytes": got.bytes, "images": images,
        "tokens": round(images * image_tokens(mode) + text / BYTES_PER_TOKEN + rows * TOKENS_A_ROW),
        "text_bytes": text}


def make_report(plan: Plan, *, raw: Path, out: Path, keeps_raw: bool, speed: Speed,
                to_convert: Mapping[str, int] | None = None) -> dict[str, Any]:
    """All numbers of a plan as one JSON object. Bytes are bytes, shares go from 0 to 1, hours are hours of this machine.

    keeps_raw: whether files are fetched to `raw` (else row groups are read from the hub). to_convert: bytes to fetch of
    the sources that are converted, by name.
    """
    sources = [_source(plan, spec, got, raw) for spec, got in zip(plan.recipe.sources, plan.sources, strict=True)]
    for source in sources:
        source["fetch_bytes"] += (to_convert or {}).get(source["name"], 0)
    totals = {key: sum(source[key] for source in sources)
              for key in ("available", "quota", "rows", "blocks", "files", "fetch_bytes", "bytes", "images", "tokens")}
    samples = sum(source["rows"] * source["repeats"] for source in sources)
    shard_bytes = sum((source["bytes"] + source["tokens"] * 5 + source["rows"] * MEMBER_BYTES) * source["repeats"]
                      for source in sources)
    cores = os.cpu_count() or 1
    seconds = sum(speed.seconds(source["images"], source["bytes"], source["mode"], source["text_bytes"])
                  for source in sources)
    expected = {source["name"]: source["rows"] for source in sources if source["missing"]}
    specs = {spec.name: spec for spec in plan.recipe.sources}
    return {
        "recipe": plan.recipe.name, "fraction": plan.recipe.fraction, "seed": plan.recipe.seed, "plan": plan.id,
        "keeps_raw": keeps_raw, "seq_len": plan.recipe.seq_len, "shards": len(plan.shards), "samples": samples,
        "sources": sources, "totals": totals, "shares": _shares(sources),
        "disk": {"fetch_bytes": totals["fetch_bytes"] if keeps_raw else 0,
                 "read_bytes": totals["bytes"], "shard_bytes": shard_bytes,
                 "raw_free_bytes": shutil.disk_usage(nearest_folder(raw)).free,
                 "out_free_bytes": shutil.disk_usage(nearest_folder(out)).free,
                 "same_disk": nearest_folder(raw).stat().st_dev == nearest_folder(out).stat().st_dev},
        "hours": {"cores": cores, "build": seconds / cores / 3600, "core_seconds": seconds},
        "gap": [{"category": row.category, "deepseek": row.deepseek, "finevision": row.finevision,
                 "before": row.before, "gap_before": row.gap_before, "after": row.after, "gap_after": row.gap_after}
                for row in gap_table(plan, expected)],
        "bad_files": [{"source": bad.source, "file": bad.name, "reason": bad.reason, "detail": bad.detail}
                      for bad in plan.bad_files],
        "missing": [{"name": name, "to_make": not specs[name].on_hub, "command": make_command(plan.recipe, specs[name], raw)}
                    for name in plan.missing],
        "notes": _notes(sources, specs)}


def _shares(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples asked and got by part of the mix."""
    out = []
    for group, target in TARGET.items():
        mine = [source for source in sources if BUCKETS[source["bucket"]] == group]
        shares = {}
        for key, column in (("asked", "quota"), ("got", "rows")):
            total = sum(source[column] * source["repeats"] for source in sources)
            shares[key] = sum(source[column] * source["repeats"] for source in mine) / total if total else 0.0
        tokens = sum(source["tokens"] * source["repeats"] for source in sources)
        out.append({"group": group, "target": target / 100, **shares,
                    "samples": sum(source["rows"] * source["repeats"] for source in mine),
                    "tokens": sum(s["tokens"] * s["repeats"] for s in mine) / tokens if tokens else 0.0})
    return out


def _notes(sources: list[dict[str, Any]], specs: dict[str, SourceSpec]) -> list[str]:
    notes = []
    for source in sources:
        if source["rows"] < source["quota"]:
            notes.append(f"{source['name']}: {source['quota']:,} rows asked, {source['rows']:,} there: all are taken")
    ocr = sum(source["rows"] for source in sources if BUCKETS[source["bucket"]] == "ocr")
    for source in sources:
        if source["bucket"] == "chemistry" and specs[source["name"]].repo.startswith("rendered/") and ocr:
            notes.append(f"{source['name']}: {source['rows']:,} rendered molecules are {source['rows'] / ocr:.1%} of the "
                         f"OCR part; DeepSeek-OCR's 5 M are {DEEPSEEK_CHEMISTRY:.1%} of its own. All that are rendered: "
                         f"--set {source['name']}.quota=all")
    return notes


def _count(number: float) -> str:
    """12,345,678 as "12.3 M": the estimates have no more digits."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:,.1f} {name}"
    return f"{number:,.0f}"


def _time(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size >= 1e9 or size == 0 else f"{size / 1e9:.3f}"


def format_report(report: dict[str, Any]) -> str:
    """The report as text of at most about 130 columns."""
    lines = [f"recipe {report['recipe']}, fraction {report['fraction']:g}, seed {report['seed']}, plan {report['plan']}",
             "", f"{'source':34} {'available':>11} {'quota':>10} {'rows':>10} {'blocks':>7} {'files':>6} {'GB fetch':>9} "
             f"{'images':>10} {'tokens':>8}  mode"]
    for source in report["sources"]:
        rest = source["mode"] + (f" x{source['repeats']}" if source["repeats"] > 1 else "")
        if source["missing"]:
            rest += "  not there yet" if source["to_make"] else "  NOT ON THE HUB"
        lines.append(f"{source['name'][:34]:34} {source['available']:>11,} {source['quota']:>10,} {source['rows']:>10,} "
                     f"{source['blocks']:>7,} {source['files']:>6,} {_gb(source['fetch_bytes']):>9} "
                     f"{source['images']:>10,} {_count(source['tokens']):>8}  {rest}")
    total = report["totals"]
    lines.append(f"{'total':34} {total['available']:>11,} {total['quota']:>10,} {total['rows']:>10,} {total['blocks']:>7,} "
                 f"{total['files']:>6,} {_gb(total['fetch_bytes']):>9} {total['images']:>10,} "
                 f"{_count(total['tokens']):>8}")
    lines += ["", f"{'share of samples':18} {'aim':>6} {'asked':>7} {'got':>7} {'of tokens':>10}"]
    lines += [f"{share['group']:18} {share['target']:>6.0%} {share['asked']:>7.1%} {share['got']:>7.1%} "
              f"{share['tokens']:>10.1%}" for share in report["shares"]]
    disk, hours = report["disk"], report["hours"]
    lines += ["", f"disk   {_gb(disk['fetch_bytes'])} GB to fetch, about {_gb(disk['shard_bytes'])} GB of shards; free: "
              f"{_gb(disk['raw_free_bytes'])} GB for raw, {_gb(disk['out_free_bytes'])} GB for shards"
              + (" (the same disk)" if disk["same_disk"] else "") + ("" if enough_disk(report) else ": NOT ENOUGH")]
    lines.append(f"       build-shards --from hub reads {_gb(disk['read_bytes'])} GB of row groups and keeps no raw copy")
    lines += [f"time   about {_time(hours['build'])} to build on {hours['cores']} cores, fetching apart "
              f"({hours['core_seconds']:,.0f} core seconds, measured on this machine just now)",
              f"shards {report['shards']:,}, {report['samples']:,} samples of at most {report['seq_len']:,} tokens", "",
              f"{'against DeepSeek-OCR':20} {'its size':>11} {'FineVision':>11} {'recipe':>10} {'gap':>7} "
              f"{'with rendered':>14} {'gap':>7}"]
    lines += [f"{row['category']:20} {row['deepseek']:>11,} {row['finevision']:>11,} {row['before']:>10,} "
              f"{row['gap_before']:>7.1%} {row['after']:>14,} {row['gap_after']:>7.1%}" for row in report["gap"]]
    if report["notes"] or report["missing"] or report["bad_files"]:
        lines.append("")
    lines += report["notes"]
    lines += [f"{bad['source']}: {bad['file']} is left out: {bad['reason']} ({bad['detail']})" for bad in report["bad_files"]]
    lines += [f"{item['name']} is not there yet; make it with: {item['command']}" if item["to_make"]
              else f"{item['name']} is not on this hub" for item in report["missing"]]
    return "\n".join(lines)


def enough_disk(report: dict[str, Any]) -> bool:
    """Whether fetched files and shards fit on their disks."""
    disk = report["disk"]
    if disk["same_disk"]:
        return bool(disk["fetch_bytes"] + disk["shard_bytes"] <= disk["raw_free_bytes"])
    return bool(disk["fetch_bytes"] <= disk["raw_free_bytes"] and disk["shard_bytes"] <= disk["out_free_bytes"])
