"""One sample as HTML: its pictures, its turns, and its tokens coloured by mask code.

The text is data from anywhere, so every character is escaped, control and direction characters are shown by their names instead of
acting, and pictures are only ever named as image/jpeg or image/png. There is no script in the page.
"""

import base64
import json
import re
import unicodedata
from collections.abc import Sequence
from html import escape

import numpy as np
from tokenizers import Tokenizer

from shards.masks import ANSWER, NOT_TARGET, TEXT
from shards.sample import Sample

MAX_PICTURES = 6
MAX_TOKENS = 1500
MAX_CHARACTERS = 6000
CODES = {NOT_TARGET: ("media", "no target"), TEXT: ("text", "text"), ANSWER: ("answer", "answer")}
# control characters but tab and newline; zero-width, direction, line separators; byte order mark; lone surrogates
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")


def shown(text: str) -> str:
    """Escaped text; characters that would act on the page appear as their code points."""
    pieces, at = [], 0
    for match in _ACTING.finditer(text):
        name = unicodedata.name(match[0], "control character")
        pieces += [escape(text[at:match.start()]), f'<span class="acting" title="{escape(name)}">U+{ord(match[0]):04X}</span>']
        at = match.end()
    return "".join([*pieces, escape(text[at:])])


def clipped(text: str, limit: int = MAX_CHARACTERS) -> str:
    """`shown` of the first characters, and how many there are more."""
    rest = len(text) - limit
    return shown(text[:limit]) + (f' <span class="more">… {rest:,} more characters</span>' if rest > 0 else "")


def picture(data: bytes, suffix: str, label: str) -> str:
    """An image element with its bytes inside."""
    kind = "png" if suffix.endswith("png") else "jpeg"
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{escape(label)}" title="{escape(label)}">'


def pictures(sample: Sample) -> str:
    """Figures of the images with their sizes; stitched tiles folded away."""
    figures = []
    for index, info in enumerate(sample.meta["images"][:MAX_PICTURES]):
        data, tiles = sample.image(index), sample.tiles(index)
        suffix = next(name for name, _ in sample.images if name.startswith(f"{index}."))
        caption = (f"{info['mode']}, {info['width']} x {info['height']} of {info['source_width']} x {info['source_height']}, "
                   f"{suffix.rpartition('.')[2]} {len(data) / 1000:,.0f} kB, {info['placeholders']} placeholders")
        figure = picture(data, suffix, caption)
        if tiles is not None:
            tile_suffix = next(name for name, _ in sample.images if name.startswith(f"{index}.tiles."))
            grid = f"{info['tiles'][0]} x {info['tiles'][1]} tiles"
            figure += f"<details><summary>{grid}</summary>{picture(tiles, tile_suffix, grid)}</details>"
        figures.append(f"<figure>{figure}<figcaption>{escape(caption)}</figcaption></figure>")
    more = len(sample.meta["images"]) - MAX_PICTURES
    return "".join(figures) + (f'<p class="more">… {more} more pictures</p>' if more > 0 else "")


def turns(sample: Sample) -> str:
    """The messages; a real image marker is a chip, any other "<image>" is text."""
    anchors: dict[int, list[int]] = {}
    for info in sample.meta["images"]:
        anchors.setdefault(info["message"], []).append(info["offset"])
    blocks = []
    for number, message in enumerate(sample.meta["messages"]):
        body, at = [], 0
        content = message["content"]
        for offset in sorted(anchors.get(number, ())):
            if content.startswith("<image>", offset):
                body += [clipped(content[at:offset]), '<span class="chip">image</span>']
                at = offset + len("<image>")
        body.append(clipped(content[at:]))
        role = message["role"] if message["role"] in ("system", "user", "assistant") else "other"
        blocks.append(f'<div class="turn {role}"><b>{escape(message["role"])}</b><pre dir="auto">{"".join(body)}</pre></div>')
    return "".join(blocks)


def pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[tuple[int, str]]:
    """(tokens, text): one entry a token, or one for several that only together are whole UTF-8 characters (at most 4)."""
    found: list[tuple[int, str]] = []
    at = 0
    while at < len(ids):
        size = 1
        text = tokenizer.decode([ids[at]], skip_special_tokens=False)
        while "\ufffd" in text and size < 4 and at + size < len(ids):
            longer = tokenizer.decode(list(ids[at:at + size + 1]), skip_special_tokens=False)
            size += 1
            if "\ufffd" not in longer:
                text = longer
                break
        else:
            size = 1
        found.append((size, text))
        at += size
    return found


def tokens(sample: Sample, tokenizer: Tokenizer, image_id: int) -> str:
    """Token by token, coloured by mask code; a run of placeholders is one chip."""
    ids, mask = sample.ids[:MAX_TOKENS + 20_000], sample.mask
    out, at, drawn = [], 0, 0
    while at < len(ids) and drawn < MAX_TOKENS:
        if ids[at] == image_id:
            stop = at
            while stop < len(ids) and ids[stop] == image_id:
                stop += 1
            out.append(f'<span class="chip">{stop - at} x image</span>')
            at, drawn = stop, drawn + 1
            continue
        stop = at + int(np.argmax(np.append(ids[at:at + MAX_TOKENS - drawn] == image_id, True)))
        for size, text in pieces(ids[at:stop].tolist(), tokenizer):
            style = CODES[int(mask[at])][0] if int(mask[at]) in CODES else "warn"
            out.append(f'<span class="token {style}">{shown(text)}</span>')
            at += size
            drawn += size
    rest = len(sample.ids) - at
    return "".join(out) + (f' <span class="more">… {rest:,} more tokens</span>' if rest > 0 else "")


def article(sample: Sample, tokenizer: Tokenizer, image_id: int) -> str:
    """The whole sample."""
    meta = sample.meta
    codes = "".join(f'<span class="key {style}"></span>{int((sample.mask == code).sum()):,} {name} '
                    for code, (style, name) in CODES.items())
    facts = [f"row {meta['row']}", f"{len(sample.ids):,} tokens", *([f"cut: {meta['cut']}"] if meta["cut"] else [])]
    extra = json.loads(meta["meta"] or "{}")
    facts += [f"{key}: {value}" for key, value in extra.items()]
    key, source = escape(sample.key), clipped(str(meta["source"]), 80)
    return (f'<article id="{key}"><h3>{source} <small>{key}</small></h3><p class="facts">{clipped(" · ".join(facts), 600)}</p>'
            f'<div class="sample"><div class="pictures">{pictures(sample)}</div><div class="words">{turns(sample)}</div></div>'
            f"<details open><summary>{len(sample.ids):,} tokens: {codes}</summary>"
            f'<div class="tokens">{tokens(sample, tokenizer, image_id)}</div></details></article>')
