"""One self-contained HTML page of a shard directory: it opens from file://, loads nothing and runs no script.

    pipeline inspect shards/stage1
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.inspect import charts
from pipeline.inspect.charts import bars, columns, legend, short
from pipeline.inspect.collect import FILL_BINS, SIDE_BINS, TOKEN_BINS, Report, SourceReport
from pipeline.inspect.sample import CODES, article, clipped
from shards.sample import Sample

TOKENS = (("answer", "answer tokens"), ("text", "text outside answers"), ("media", "no target (media, start)"))
IMAGES = (("answer", "stored as they came"), ("text", "encoded anew"))
_STYLE = Path(__file__).with_name("page.css")


def render(report: Report, samples: Sequence[Sample]) -> str:
    """The page. `samples` are shown in that order."""
    body = report.manifest
    name = f"{body['recipe']} · {report.folder.name}"
    try:
        tokenizer = Tokenizer.from_file(str(report.folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception for a missing or damaged file
        raise ValueError(f"{report.folder / 'tokenizer.json'} cannot be read: {error}; "
                         f"run `pipeline verify {report.folder}`") from None
    image_id = int(body["specials"]["<|image|>"])
    shown = "".join(article(sample, tokenizer, image_id) for sample in samples)
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(name)}</title><style>{_STYLE.read_text()}</style></head><body><main>"
            f"{_head(report)}{_sources(report)}{_charts(report)}{_rejects(report)}"
            f"<section><h2>{len(samples):,} sample{'s' * (len(samples) != 1)}</h2>{legend(list(CODES.values()))}"
            f"{shown}</section></main></body></html>\n")


def _head(report: Report) -> str:
    body = report.manifest
    train, val = body["splits"]["train"], body["splits"]["val"]
    tiles = [(f"{train['samples']:,}", "training samples"), (f"{val['samples']:,}", "validation samples"),
             (short(train["tokens"] + val["tokens"]), "tokens"), (f"{train['images'] + val['images']:,}", "images"),
             (f"{train['rows']:,}", f"packed rows of {body['seq_len']:,}"), (f"{train['fill']:.2%}", "row fill"),
             (f"{len(body['shards']):,}", f"shards, {report.bytes / 1e6:,.1f} MB"), (f"{report.reject_count:,}", "rows left out")]
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in tiles)
    about = (f"mode {body['mode']} · tokenizer {Path(str(body['tokenizer']['name'])).name} of {body['vocab_size']:,} tokens · "
             f"seed {body['seed']} · fraction {body['fraction']} · plan {body['plan']['id']}")
    return (f"<header><h1>{clipped(str(body['recipe']), 80)}</h1><p>{clipped(str(body.get('description', '')), 300)}</p>"
            f'<p class="facts">{clipped(about, 400)}</p><div class="tiles">{cells}</div></header>')


def _sources(report: Report) -> str:
    head = ("source", "mode", "rows", "samples", "val", "images", "kept bytes", "tokens", "answers", "tokens/sample", "95 %",
            "turns", "left out")
    lines = []
    for source in report.sources:
        counts = source.counts
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts["rejects"].items())
        cells = (clipped(source.name, 60), escape(str(counts["mode"])), f"{counts['rows']:,}", f"{counts['samples']:,}",
                 f"{counts['val_samples']:,}", f"{counts['images']:,}",
                 f"{counts['kept_images'] / counts['images']:.0%}" if counts["images"] else "–", short(counts["tokens"]),
                 f"{counts['answer_tokens'] / counts['tokens']:.0%}" if counts["tokens"] else "–",
                 f"{source.quantile(0.5):,}", f"{source.quantile(0.95):,}", f"{source.turns:.1f}",
                 f'<span title="{escape(reasons)}">{counts["rejected"]:,}</span>')
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<section><h2>Sources</h2><div class="wide">{_table(head, lines)}</div></section>'


def _table(head: Sequence[str], lines: Sequence[str], style: str = "") -> str:
    return (f'<table><thead><tr>{"".join(f"<th>{cell}</th>" for cell in head)}</tr></thead>'
            f'<tbody class="{style}">{"".join(lines)}</tbody></table>')


def _split_tokens(source: SourceReport) -> tuple[float, float, float]:
    counts = source.counts
    answers, targets, tokens = counts["answer_tokens"], counts["targets"], counts["tokens"]
    return float(answers), float(max(0, targets - answers)), float(max(0, tokens - targets))


def _charts(report: Report) -> str:
    names = [source.name for source in report.sources]
    fill = [f"{100 * (k + 1) // FILL_BINS}%" for k in range(FILL_BINS)]
    token_labels = [charts.short(end) for end in TOKEN_BINS] + ["+"]
    side_labels = [str(end) for end in SIDE_BINS] + ["+"]
    images = sum(source.image_counts.sum() for source in report.sources)
    counts = [sum(int(s.image_counts[k]) for s in report.sources if k < len(s.image_counts)) for k in range(9)]
    counts.append(int(images) - sum(counts))
    totals = sum((source.token_bins for source in report.sources[1:]), report.sources[0].token_bins)
    sides = sum((source.sides for source in report.sources[1:]), report.sources[0].sides)
    panels = [
        ("Row fill (packed rows by share of the sequence)", columns(report.fill.tolist(), fill, style="answer")),
        ("Tokens of a sample", columns(totals.tolist(), token_labels)),
        ("Images of a sample", columns(counts, [*map(str, range(9)), "+"], style="media")),
        ("Longest stored side, pixels", columns(sides.tolist(), side_labels, style="media")),
        ("Samples in a row", _spread(report.row_samples.tolist())),
        ("Images in a row", _spread(report.row_images.tolist(), style="media")),
    ]
    each = [(source.name, columns(source.token_bins.tolist(), token_labels, width=220, height=80)) for source in report.sources]
    kept = [(source.counts["kept_images"], source.counts["images"] - source.counts["kept_images"]) for source in report.sources]
    return ('<section class="pair">'
            f"<div><h2>Tokens</h2>{bars(names, [_split_tokens(s) for s in report.sources], TOKENS)}{legend(TOKENS)}</div>"
            f"<div><h2>Images</h2>{bars(names, kept, IMAGES)}{legend(IMAGES)}</div></section>"
            f"<section><h2>Distributions</h2>{_grid(panels)}<details><summary>Tokens of a sample, by source</summary>"
            f"{_grid(each)}</details></section>")


def _spread(values: Sequence[int], *, style: str = "text") -> str:
    """Columns of whole numbers in at most 24 equal bins."""
    top = max([*values, 1])
    width = -(-(top + 1) // 24)
    bins = [0] * (top // width + 1)
    for value in values:
        bins[value // width] += 1
    return columns(bins, [str(k * width) for k in range(len(bins))], style=style)


def _grid(panels: Sequence[tuple[str, str]]) -> str:
    return '<div class="grid">' + "".join(f"<figure><figcaption>{clipped(title, 60)}</figcaption>{chart}</figure>"
                                          for title, chart in panels) + "</div>"


def _rejects(report: Report) -> str:
    if not report.reject_count:
        return "<section><h2>Left out</h2><p>No row was left out.</p></section>"
    reasons: dict[str, dict[str, int]] = {}
    for source in report.sources:
        for reason, count in source.counts["rejects"].items():
            reasons.setdefault(reason, {})[source.name] = count
    labels = sorted(reasons, key=lambda reason: -sum(reasons[reason].values()))
    chart = bars(labels, [(sum(reasons[label].values()),) for label in labels], (("warn", "rows"),))
    columns_shown = ("source", "row", "reason", "detail")
    lines = ["<tr>" + "".join(f"<td>{clipped(line[name] or '', 200)}</td>" for name in columns_shown) + "</tr>"
             for line in report.rejects]
    note = f"the first {len(report.rejects):,} of {report.reject_count:,}" if len(report.rejects) < report.reject_count else "all"
    return (f"<section><h2>Left out</h2>{chart}<details><summary>{note} rows, with the reason</summary>"
            f'<div class="wide">{_table(columns_shown, lines, "left")}</div></details></section>')
