"""FineVision rows: all turns, all images, the turn and rating rules, answers converted by option.

One adapter for every set in this layout: FineVision's 185 subsets, rendered chemistry, what `download` converted, any
other Hugging Face parquet set with `images` and `texts`. `images` may be list<struct<bytes, path>> with its fields in any
order, list<binary>, one of these not in a list (also as the column `image`), null or absent. A path is never opened: an
image without bytes rejects the row, and so does a null one, since a page is never dropped while its text is kept.

Images of turns that the rules drop move on to the next kept turn, in front of its text, so that every kept question still
has all images before it; images that only later, dropped turns show go with those (counted as dropped_images).
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.conversation import MARKER, PAGE_BREAK, Conversation, Message, Reject, check_messages, find_markers
from pipeline.sources.answers import CHOICES, convert_answer
from pipeline.sources.kind import NO_ANSWER, Kind, Row, Turn, describe
from pipeline.sources.turns import AXES, HIGHEST, LOWEST, answered, chosen, rated_well, raw_turns

USER = "{user}"
_LINE = MARKER + "\n"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The rules of a source, all off by default.

    min_ratings: least rating by axis, as {relevance = 3}; null_ratings: "keep" or "drop" turns without one.
    user_text: only turns asked in exactly these words; "" or absent takes all. max_turns: the first so many; 0 is no limit.
    min_images, max_images: rows with fewer or more images are rejected; 0 is no limit.
    prompts: templates that replace the user text, "{user}" standing for it; one is drawn by the row's id.
    markers: "place" images where the user text says <image>, or treat it as "text".
    gt_parse: "keep" synthdog's JSON, or its "text". otsl: "off", or "keep", "html", "markdown", each rejecting invalid OTSL.
    doctags: "off", or "keep", "markdown", each rejecting invalid DocTags.
    """

    min_ratings: Mapping[str, int] = field(default_factory=dict)
    null_ratings: str = "keep"
    user_text: Sequence[str] = ()
    max_turns: int = 0
    min_images: int = 0
    max_images: int = 0
    prompts: Sequence[str] = ()
    markers: str = "place"
    gt_parse: str = "keep"
    otsl: str = "off"
    doctags: str = "off"

    def __post_init__(self) -> None:
        for name in ("user_text", "prompts"):  # a single text is a list of one
            value = getattr(self, name)
            if not isinstance(value, str | list | tuple):
                raise ValueError(f"{name} = {value!r}: must be a text or a list of texts")
            object.__setattr__(self, name, tuple(filter(None, [value])) if isinstance(value, str) else tuple(value))
        for name, choices in {"null_ratings": ("keep", "drop"), "markers": ("place", "text"), **CHOICES}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = {getattr(self, name)!r}: choose from {', '.join(choices)}")
        if not isinstance(self.min_ratings, Mapping):
            raise ValueError(f"min_ratings = {self.min_ratings!r}: must be a table, as in {{relevance = 3}}")
        for axis, least in self.min_ratings.items():
            if axis not in AXES:
                raise ValueError(f"min_ratings axis {axis!r}: choose from {', '.join(AXES)}")
            if not isinstance(least, int) or not LOWEST <= least <= HIGHEST:
                raise ValueError(f"min_ratings {axis} = {least!r}: ratings are {LOWEST} to {HIGHEST}")
        for name in ("max_turns", "min_images", "max_images"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be a whole number, 0 for no limit")
        for text in (*self.prompts, *self.user_text):
            if not isinstance(text, str) or MARKER in text:
                raise ValueError(f"prompts and user_text hold text without {MARKER}, not {text!r}; images are placed by rule")


def convert(row: Row, *, source: str, row_id: str, options: Options) -> Conversation:
    """One row to a Conversation. Raises Reject with the reason when nothing of it can be used."""
    images = read_images(row["images"] if row.get("images") is not None else row.get("image"))
    if len(images) < options.min_images:
        raise Reject("too-few-images", f"{len(images)} images; min_images is {options.min_images}")
    if options.max_images and len(images) > options.max_images:
        raise Reject("too-many-images", f"{len(images)} images; max_images is {options.max_images}")
    raw = raw_turns(row.get("texts"))
    place = options.markers == "place"
    # The markers are judged on the row as it is, before any turn is dropped.
    markers = find_markers([turn[0] if turn else "" for turn in raw], len(images)) if place else []
    turns, dropped = choose(row, raw, options)
    messages, anchors = lay_out(turns, markers, len(images), options.prompts, f"{source}\0{row_id}")
    check_messages(messages)
    meta = {"dropped": describe(dropped)} if dropped else {}
    if len(anchors) < len(images):
        meta["dropped_images"] = str(len(images) - len(anchors))
    for column, name in (("source", "origin"), ("canonical_smiles", "smiles")):
        if isinstance(value := row.get(column), str) and value:
            meta[name] = value
    return Conversation(
        messages=messages, images=images[: len(anchors)], anchors=anchors, source=source, row=row_id,
        page_breaks=len(images) > 1 and any(PAGE_BREAK in turn.answer for turn in turns),
        dropped_turns=sum(dropped.values()), meta=meta, split_key=meta.get("smiles", ""),
    )  # fmt: skip


def read_images(value: Any) -> tuple[bytes, ...]:
    """The bytes of each image of a row. Raises Reject("image-missing") when one of them has none."""
    if value is None:
        return ()
    if isinstance(value, dict | bytes):  # a column of one image, not of a list
        value = [value]
    if not isinstance(value, list):
        raise Reject("layout", f"images is {type(value).__name__}, not a list")
    images = []
    for index, entry in enumerate(value):
        data = entry.get("bytes") if isinstance(entry, dict) else entry
        if isinstance(data, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in data):
            data = bytes(data)  # list<uint8>, as some writers store bytes
        if not isinstance(data, bytes) or not data:
            path = entry.get("path") if isinstance(entry, dict) else entry
            told = f" (its path {str(path)[:80]!r} is not opened)" if isinstance(path, str) and path else ""
            raise Reject("image-missing", f"image {index} of {len(value)} has no bytes{told}")
        images.append(data)
    return tuple(images)


def choose(row: Row, raw: Sequence[tuple[str, str] | None], options: Options) -> tuple[list[Turn], Counter[str]]:
    """The turns that pass the rules of pipeline.sources.turns, and what was dropped, by reason.

    Raises Reject, with the reason of the rule that dropped the last of them, when none is left.
    """
    turns, unanswered = answered(raw)
    dropped = Counter({NO_ANSWER: unanswered} if unanswered else {})
    kept = []
    for turn in turns:
        if not rated_well(row, turn.number, options.min_ratings, options.null_ratings == "keep"):
            last = Reject("rating", f"no turn has the ratings {dict(options.min_ratings)}")
        elif not chosen(turn, options.user_text):
            last = Reject("turn-choice", f"no turn is asked as {options.user_text[0]!r}")
        else:
            try:
                kept.append(turn._replace(answer=convert_answer(turn.answer, options)))
                continue
            except Reject as error:
                last = error
        dropped[last.reason] += 1
    if not kept:
        raise last
    if options.max_turns and len(kept) > options.max_turns:
        dropped["max-turns"] = len(kept) - options.max_turns
        kept = kept[: options.max_turns]
    return kept, dropped


def lay_out(
    turns: Sequence[Turn], markers: Sequence[tuple[int, int]], images: int, prompts: Sequence[str], key: str
) -> tuple[tuple[Message, ...], tuple[tuple[int, int], ...]]:
    """Messages and anchors. markers: (turn index in the row, offset) of each image; none puts all images in front."""
    messages: list[Message] = []
    anchors: list[tuple[int, int]] = []
    for turn in turns:
        text, shift = prompted(turn, prompts, key)
        seen = [index for index, _ in markers if index <= turn.number]
        own = [offset for index, offset in markers if index == turn.number] if shift is not None else []
        # Every image up to this turn that is not placed yet and has no place of its own here goes in front.
        front = (len(seen) if markers else images) - len(anchors) - len(own)
        anchors += [(len(messages), len(_LINE) * k) for k in range(front)]
        anchors += [(len(messages), len(_LINE) * front + (shift or 0) + offset) for offset in own]
        messages.append(Message(role="user", content=_LINE * front + text))
        messages.append(Message(role="assistant", content=turn.answer))
    return tuple(messages), tuple(anchors)


def prompted(turn: Turn, prompts: Sequence[str], key: str) -> tuple[str, int | None]:
    """The turn's user text by the templates, and where the original text starts in it (None: it is not in it)."""
    if not prompts:
        return turn.user, 0
    draw = hashlib.blake2b(f"{key}\0{turn.number}".encode(errors="replace"), digest_size=8).digest()
    before, found, after = prompts[int.from_bytes(draw) % len(prompts)].partition(USER)
    return (before + turn.user + after, len(before)) if found else (before, None)


KIND = Kind(
    columns=("images", "image", "texts", "source", "canonical_smiles", *(f"{axis}_ratings" for axis in AXES)),
    required=("texts",),
    convert=convert,
    options=Options,
)
