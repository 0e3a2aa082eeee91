"""A few rows of a source as a build would make them: conversation, fitted images, tokens, or why the row is left out.

Nothing is written but the page that is asked for. Cost: the rows shown, and the footers of the source's files.
"""

import base64
import html
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.conversation import Conversation, Reject
from pipeline.cut import Overlong, fit_to_length
from pipeline.images import FittedImage, fit_image
from pipeline.render import render_conversations
from pipeline.tasks import Task
from pipeline.tokens import Tokenizer
from shards import geometry, masks

CUT = 400
"""Characters of a message in the terminal."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One row. samples: (tokens, answer tokens, what was cut) of each sample it becomes; reject: why it becomes none."""

    source: str
    row: int
    conversation: Conversation | None = None
    images: tuple[FittedImage, ...] = ()
    placeholders: tuple[int, ...] = ()
    samples: tuple[tuple[int, int, str], ...] = ()
    reject: Reject | None = None

    def as_json(self) -> dict[str, Any]:
        """The row as JSON values, images by their sizes."""
        body: dict[str, Any] = {"source": self.source, "row": self.row}
        if self.conversation is not None:
            body["id"] = self.conversation.row
            body["messages"] = [{"role": m.role, "content": m.content} for m in self.conversation.messages]
            body["dropped_turns"] = self.conversation.dropped_turns
            body["meta"] = dict(self.conversation.meta)
        body["images"] = [
            {"mode": image.mode, "width": image.width, "height": image.height, "source_width": image.source_width,
             "source_height": image.source_height, "tiles": list(image.tiles), "bytes": len(image.data), "format": image.suffix,
             "kept": image.kept, "placeholders": count}
            for image, count in zip(self.images, self.placeholders)]  # fmt: skip
        body["samples"] = [{"tokens": tokens, "answer_tokens": answer, "cut": cut} for tokens, answer, cut in self.samples]
        if self.reject is not None:
            body["reject"] = {"reason": self.reject.reason, "detail": self.reject.detail}
        return body


def preview(task: Task, *, mode: str, seq_len: int, tokenizer: Tokenizer, rows: int, start: int = 0) -> Iterator[Shown]:
    """The rows start, start+1 ... of a task, at most `rows`."""
    for index in itertools.islice(range(start, len(task)), rows):
        yield _show(task, index, mode, seq_len, tokenizer)


def _show(task: Task, index: int, mode: str, seq_len: int, tokenizer: Tokenizer) -> Shown:
    name = task.spec.name
    conversation: Conversation | None = None
    images: tuple[FittedImage, ...] = ()
    counts: tuple[int, ...] = ()
    try:
        conversation = task.conversation(index)
        images = tuple(fit_image(data, mode) for data in conversation.images)
        counts = tuple(geometry.placeholders(image.mode, image.tiles) for image in images)
        rendered = render_conversations([conversation], [counts], tokenizer)[0]
        rule: Overlong = task.spec.overlong  # type: ignore[assignment]  # the recipe checked it
        fitted = fit_to_length(conversation, rendered, counts, seq_len=seq_len, rule=rule, tokenizer=tokenizer)
        samples = tuple((len(item.rendered.ids), item.rendered.mask.count(masks.ANSWER), item.cut)
                        for item in fitted)  # fmt: skip
    except Reject as reject:
        return Shown(source=name, row=index, conversation=conversation, images=images, placeholders=counts, reject=reject)
    return Shown(source=name, row=index, conversation=conversation, images=images, placeholders=counts, samples=samples)


def as_text(shown: Shown) -> str:
    """The row for the terminal: long messages shortened, control characters spelled out."""
    lines = [f"== {shown.source}, row {shown.row}" + (f" ({shown.conversation.row})" if shown.conversation else "")]
    for image, count in zip(shown.images, shown.placeholders):
        tiles = f", {image.tiles[0]} x {image.tiles[1]} tiles" if image.tiles != (0, 0) else ""
        lines.append(f"   image  {image.source_width} x {image.source_height} -> {image.width} x {image.height} {image.suffix}, "
                     f"{len(image.data) / 1000:,.0f} kB{', bytes kept' if image.kept else ''}; {image.mode}{tiles}: {count} tokens")
    for message in shown.conversation.messages if shown.conversation else ():
        rest = f" ... ({len(message.content):,} characters)" if len(message.content) > CUT else ""
        lines.append(f"   {message.role:9s} " + _printable(message.content[:CUT] + rest).replace("\n", "\n" + " " * 13))
    if shown.conversation and shown.conversation.dropped_turns:
        lines.append(f"   dropped   {shown.conversation.dropped_turns} turns: {shown.conversation.meta.get('dropped', '')}")
    for tokens, answer, cut in shown.samples:
        lines.append(f"   tokens    {tokens:,}, of them {answer:,} of answers" + (f"; cut: {cut}" if cut else ""))
    if shown.reject is not None:
        lines.append(f"   left out  {shown.reject.reason}: {_printable(shown.reject.detail)}")
    return "\n".join(lines)


def as_page(rows: Sequence[Shown]) -> str:
    """One self-contained HTML page with the fitted images."""
    parts = ['<!doctype html><meta charset="utf-8"><title>pipeline preview</title><style>body{font:14px sans-serif;max-width:60em;'
             "margin:2em auto}img{max-width:28em;max-height:28em;border:1px solid #bbb;margin:.3em}pre{white-space:pre-wrap;"
             "background:#f4f4f4;padding:.6em}h2{margin-top:2em}.left{color:#a00}</style><h1>pipeline preview</h1>"]  # fmt: skip
    for shown in rows:
        parts.append(f"<h2>{html.escape(shown.source)}, row {shown.row}</h2>")
        for image in shown.images:
            kind = "jpeg" if image.suffix == "jpg" else image.suffix
            for data in filter(None, (image.data, image.tiles_data)):
                parts.append(f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}">')
        style = ' class="left"' if shown.reject is not None else ""
        parts.append(f"<pre{style}>{html.escape(as_text(shown))}</pre>")
    return "\n".join(parts) + "\n"


def _printable(text: str) -> str:
    """Text that cannot steer a terminal: control and invisible characters as escapes, line breaks kept."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
