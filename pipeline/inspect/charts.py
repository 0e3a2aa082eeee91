"""Small SVG charts as text: stacked bars, columns. No script, no font, no colour that the page's style does not name."""

from collections.abc import Sequence
from html import escape

SERIES = ("answer", "text", "media", "warn")  # CSS classes: fill of a series
ROW = 24


def bars(labels: Sequence[str], values: Sequence[Sequence[float]], series: Sequence[tuple[str, str]], *, width: int = 560,
         unit: str = "") -> str:
    """Horizontal stacked bars, one line a label; `series` is (CSS class, name) for each stacked value."""
    left, right = 170, 70
    total = max([sum(row) for row in values] + [1e-9])
    height = ROW * len(labels) + 4
    parts = [f'<svg viewBox="0 0 {width} {height}" class="chart" role="img">']
    for line, (label, row) in enumerate(zip(labels, values, strict=True)):
        top, x = line * ROW + 4, float(left)
        parts.append(f'<text x="{left - 8}" y="{top + 13}" class="label end">{escape(label[:28])}</text>')
        for (style, name), value in zip(series, row, strict=True):
            span = value / total * (width - left - right)
            if span > 0:
                parts.append(f'<rect x="{x:.1f}" y="{top}" width="{max(span, 0.6):.1f}" height="{ROW - 8}" class="{style}">'
                             f"<title>{escape(label)}: {value:,.0f} {escape(name)}</title></rect>")
            x += span
        parts.append(f'<text x="{x + 6:.1f}" y="{top + 13}" class="number">{short(sum(row))}{unit}</text>')
    return "".join([*parts, "</svg>"])


def columns(values: Sequence[float], labels: Sequence[str], *, style: str = "text", width: int = 300, height: int = 110,
            title: str = "") -> str:
    """Vertical columns with a label below every few of them."""
    top, bottom = 8, 20
    most = max([*values, 1e-9])
    step = width / max(1, len(values))
    every = max(1, round(len(values) * 42 / width))
    parts = [f'<svg viewBox="0 0 {width} {height}" class="chart" role="img"><title>{escape(title)}</title>',
             f'<line x1="0" x2="{width}" y1="{height - bottom}" y2="{height - bottom}" class="axis"/>']
    for index, (value, label) in enumerate(zip(values, labels, strict=True)):
        tall = value / most * (height - top - bottom)
        parts.append(f'<rect x="{index * step + 1:.1f}" y="{height - bottom - tall:.1f}" width="{max(step - 2, 0.8):.1f}" '
                     f'height="{tall:.1f}" class="{style}"><title>{escape(label)}: {value:,.0f}</title></rect>')
        if index % every == 0:
            parts.append(f'<text x="{(index + 0.5) * step:.1f}" y="{height - 6}" class="tick">{escape(label)}</text>')
    return "".join([*parts, "</svg>"])


def legend(series: Sequence[tuple[str, str]]) -> str:
    """The names of stacked series beside their colours."""
    return '<p class="legend">' + "".join(f'<span class="key {style}"></span>{escape(name)} ' for style, name in series) + "</p>"


def short(value: float) -> str:
    """1,234 -> "1.2k", 5,600,000 -> "5.6M"."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{suffix}"
    return f"{value:,.0f}"
