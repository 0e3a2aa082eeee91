"""The table that a build ends with: what each source gave, what was left out and why, how full the rows are."""

from typing import Any


def text(body: dict[str, Any]) -> str:
    """The summary of a manifest, for people."""
    head = ("source", "rows", "samples", "val", "images", "tokens", "left out")
    lines: list[tuple[str, ...]] = [head]
    for name, source in body["sources"].items():
        why = ", ".join(f"{count} {reason}" for reason, count in source["rejects"].items())
        if source["bad_files"]:
            why = ", ".join(filter(None, [why, f"{source['bad_files']} unreadable files"]))
        lines.append((name, *(f"{source[key]:,}" for key in ("rows", "samples", "val_samples", "images", "tokens")), why or "-"))
    total = [f"{sum(source[key] for source in body['sources'].values()):,}"
             for key in ("rows", "samples", "val_samples", "images", "tokens")]
    lines.append(("total", *total, str(sum(source["rejected"] for source in body["sources"].values()))))
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    table = "\n".join("  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:6], widths[1:6])),
                                 line[6]]).rstrip() for line in lines)
    splits = body["splits"]
    size = sum(shard["bytes"] for shard in body["shards"])
    return (f"{table}\n\n{splits['train']['rows']:,} packed rows of {body['seq_len']} tokens, {splits['train']['fill']:.2%} full; "
            f"{splits['val']['rows']:,} validation rows; {len(body['shards'])} shards, {size / 1e6:,.1f} MB")


def as_json(out: str, body: dict[str, Any], *, tasks_run: int, seconds: float) -> dict[str, Any]:
    """The one line of JSON."""
    splits, sources = body["splits"], body["sources"].values()
    return {"command": "build-shards", "out": out, "plan": body["plan"]["id"], "shards": len(body["shards"]),
            "samples": splits["train"]["samples"], "val_samples": splits["val"]["samples"], "rows": splits["train"]["rows"],
            "fill": splits["train"]["fill"], "tokens": splits["train"]["tokens"], "images": splits["train"]["images"],
            "rejected": sum(source["rejected"] for source in sources),
            "bytes": sum(shard["bytes"] for shard in body["shards"]), "tasks_run": tasks_run, "seconds": round(seconds, 1)}
