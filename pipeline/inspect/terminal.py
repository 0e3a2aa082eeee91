"""A report as text for the terminal, or as a plain dict."""

import unicodedata
from typing import Any

import numpy as np

from pipeline.inspect.collect import FILL_BINS, Report

_BLOCKS = " ▁▂▃▄▅▆▇█"


def plain(text: str) -> str:
    """Text without characters that would act on a terminal."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text)


def as_dict(report: Report) -> dict[str, Any]:
    """The numbers of a report: totals, one entry a source, rows and rejects."""
    body = report.manifest
    sources = {source.name: {
        **{key: source.counts[key] for key in ("mode", "asked", "rows", "samples", "val_samples", "images", "kept_images", "tokens",
                                               "targets", "answer_tokens", "bytes", "cut", "dropped_turns", "rejected", "rejects")},
        "tokens_median": source.quantile(0.5), "tokens_p95": source.quantile(0.95), "tokens_max": source.quantile(1.0),
        "turns_mean": round(source.turns, 3), "images_max": len(source.image_counts) - 1} for source in report.sources}
    return {"folder": str(report.folder), "recipe": body["recipe"], "mode": body["mode"], "seq_len": body["seq_len"],
            "plan": body["plan"]["id"], "shards": len(body["shards"]), "bytes": report.bytes, "splits": body["splits"],
            "rejects": report.reject_count, "sources": sources, "fill_histogram": report.fill.tolist()}


def _table(lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    rows = [[line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
            for line in lines]
    return "\n".join("  ".join(row).rstrip() for row in rows)


def sparkline(counts: Any) -> str:
    """Bars of one character each."""
    most = max(1, int(np.max(counts)))
    return "".join(_BLOCKS[-(-int(count) * 8 // most)] for count in counts)


def as_text(report: Report) -> str:
    """Tables for people."""
    body, splits = report.manifest, report.manifest["splits"]
    lines: list[tuple[str, ...]] = [("source", "mode", "rows", "samples", "val", "images", "kept", "tokens", "answer", "median",
                                     "95 %", "max", "turns", "left out")]
    for source in report.sources:
        counts = source.counts
        whole = [f"{counts[key]:,}" for key in ("rows", "samples", "val_samples", "images")]
        lengths = [f"{source.quantile(share):,}" for share in (0.5, 0.95, 1.0)]
        lines.append((plain(source.name), str(counts["mode"]), *whole,
                      f"{counts['kept_images'] / counts['images']:.0%}" if counts["images"] else "-", f"{counts['tokens']:,}",
                      f"{counts['answer_tokens'] / counts['tokens']:.0%}" if counts["tokens"] else "-",
                      *lengths, f"{source.turns:.1f}", f"{counts['rejected']:,}"))
    reasons: dict[str, int] = {}
    for source in report.sources:
        for reason, count in source.counts["rejects"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    if files := sum(source.counts["bad_files"] for source in report.sources):
        reasons["unreadable files"] = files
    text = [f"{report.folder}: recipe {body['recipe']}, mode {body['mode']}, plan {body['plan']['id']}", "", _table(lines), ""]
    for split in ("train", "val"):
        part = splits[split]
        text.append(f"{split:6}{part['samples']:,} samples, {part['images']:,} images and {part['tokens']:,} tokens in "
                    f"{part['rows']:,} rows of {body['seq_len']:,}, {part['fill']:.2%} full")
    row = [f"{name} {np.quantile(values, 0.5):,.0f} (at most {values.max():,})" for name, values in
           (("samples", report.row_samples), ("images", report.row_images), ("patches", report.row_patches)) if len(values)]
    text += [f"rows   median {', '.join(row)}; by fill, in steps of {100 // FILL_BINS} %: |{sparkline(report.fill)}|",
             f"disk   {len(body['shards'])} shards, {report.bytes / 1e6:,.1f} MB"]
    if report.reject_count:
        text.append(f"left out {report.reject_count:,}: " + ", ".join(f"{count:,} {reason}" for reason, count in
                                                                    sorted(reasons.items(), key=lambda item: -item[1])))
    return "\n".join(text)
