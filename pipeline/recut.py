"""A built sample at another sequence length, by the same law that cut it in the build, and without decoding an image.

- It fits and nothing was cut off: it stays as it is.
- It is too long: its messages are rendered again and cut, split or dropped by its source's rule (pipeline.cut), just as the build
  would have. What a build had already cut is cut further by its ids.
- It was cut, only text was lost, and there is room now: what its messages hold, its last turn to the end, grows back.

Turns and images that a cut took off whole are gone; pieces of a split sample stay pieces. Cost: a sample that stays costs its
header; others are tokenized again.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.build.spool import SampleInfo
from pipeline.build.task import encoded
from pipeline.conversation import PAGE_BREAK, Conversation, Message, Part, Reject
from pipeline.cut import Fitted, Overlong, cut, fit_to_length
from pipeline.images import FittedImage
from pipeline.render import Rendered, render_conversations
from pipeline.tokens import Tokenizer
from shards.sample import Sample
from shards.writer import Fields

_TEXT_CUT = re.compile(r"(\d+) tokens")
_PART = "part"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One sample ready to pack: its members and its line of the tables."""

    fields: Fields
    info: SampleInfo


def needs_recut(info: SampleInfo, seq_len: int) -> bool:
    """Whether a sample of these numbers is another one at `seq_len`."""
    lost = _TEXT_CUT.fullmatch(info.cut)
    return info.tokens > seq_len or (lost is not None and info.tokens < seq_len)


def recut(sample: Sample, info: SampleInfo, *, seq_len: int, rule: Overlong, tokenizer: Tokenizer) -> list[Piece]:
    """The samples of at most `seq_len` tokens that it becomes. Raises Reject, with the reasons of pipeline.cut."""
    conversation, part = _conversation(sample, info)
    counts = [int(image["placeholders"]) for image in sample.meta["images"]]
    stored = Rendered(ids=sample.ids, mask=sample.mask.tobytes(), spans=spans(sample.ids, counts, tokenizer.specials.image),
                      turns=turns(sample.ids, tokenizer.specials.assistant_end))
    lost = _TEXT_CUT.fullmatch(info.cut)
    whole, gone = None, int(lost[1]) if lost else 0
    if not info.cut or lost:
        again = render_conversations([conversation], [counts], tokenizer)[0]
        if 0 <= len(again.ids) - len(stored.ids) <= gone and _begins_with(again, stored):
            whole, gone = again, gone - (len(again.ids) - len(stored.ids))
    if whole is not None:
        first, *more = fit_to_length(conversation, whole, counts, seq_len=seq_len, rule=rule, tokenizer=tokenizer)
        fitted = (first._replace(cut=_more_lost(first.cut, gone)), *more)
    else:
        fitted = (_cut_further(conversation, stored, counts, info, seq_len, rule),)
    images = _images(sample, info)
    return [_piece(item, [images[index] for index in item.images], part) for item in fitted]


def spans(ids: Any, counts: Sequence[int], image_id: int) -> tuple[tuple[int, int], ...]:
    """[start, stop) of each image's placeholders, from the ids and the images' counts."""
    places, at, found = np.flatnonzero(ids == image_id), 0, []
    for count in counts:
        found.append((int(places[at]), int(places[at]) + count))
        at += count
    return tuple(found)


def turns(ids: Any, end_id: int) -> tuple[tuple[int, int], ...]:
    """[start, stop) of each turn, the last one perhaps cut: each runs from behind the one before to behind its end token."""
    stops = [int(place) + 1 for place in np.flatnonzero(ids == end_id)]
    if not stops or stops[-1] < len(ids):
        stops.append(len(ids))
    return tuple(zip([1, *stops], stops))


def _more_lost(cut: str, gone: int) -> str:
    """What was cut, with tokens added that were lost before: "5 tokens" and 3 are "8 tokens"."""
    told = re.match(r"(\d+) tokens", cut)
    if not gone:
        return cut
    if told:
        return f"{int(told[1]) + gone} tokens{cut[told.end():]}"
    return " and ".join(filter(None, [f"{gone} tokens", cut]))


def _begins_with(whole: Rendered, stored: Rendered) -> bool:
    length = len(stored.ids)
    return np.array_equal(whole.ids[:length], stored.ids) and whole.mask[:length] == stored.mask


def _cut_further(conversation: Conversation, stored: Rendered, counts: Sequence[int], info: SampleInfo, seq_len: int,
                 rule: Overlong) -> Fitted:
    """A sample that was cut in a way that its messages do not tell: cut by its ids."""
    everything = tuple(range(len(counts)))
    if len(stored.ids) <= seq_len:
        return Fitted(conversation=conversation, rendered=stored, images=everything, cut=info.cut)
    if rule == "drop":
        raise Reject("over-length", f"{len(stored.ids)} tokens; seq_len is {seq_len}")
    if sum(counts) > seq_len:
        raise Reject("images-exceed-length", f"{sum(counts)} image tokens; seq_len is {seq_len}")
    fitted = cut(conversation, stored, everything, seq_len)
    return fitted._replace(cut="; then ".join(filter(None, [info.cut, fitted.cut])))


def _conversation(sample: Sample, info: SampleInfo) -> tuple[Conversation, str]:
    """The conversation of a sample (images as they are stored), and which part of its row it is."""
    messages = tuple(Message(role=message["role"], content=message["content"],
                             parts=tuple(Part(kind=part["kind"], text=part["text"]) for part in message["parts"]))
                     for message in sample.meta["messages"])
    images = sample.meta["images"]
    meta = json.loads(sample.meta["meta"])
    part = meta.pop(_PART, "")
    pages = len(images) > 1 and any(PAGE_BREAK in message.content for message in messages if message.role == "assistant")
    return Conversation(
        messages=messages, images=tuple(sample.image(index) for index in range(len(images))),
        anchors=tuple((image["message"], image["offset"]) for image in images), source=sample.meta["source"],
        row=sample.meta["row"], page_breaks=pages, dropped_turns=info.dropped_turns, meta=meta), part


def _images(sample: Sample, info: SampleInfo) -> list[FittedImage]:
    """The stored images. Which of several were kept is not recorded, only how many: these count first."""
    found = []
    for index, image in enumerate(sample.meta["images"]):
        suffixes = {suffix.rpartition(".")[0]: suffix.rpartition(".")[2] for suffix, _ in sample.images}
        found.append(FittedImage(
            data=sample.image(index), suffix=suffixes[str(index)], mode=image["mode"], width=image["width"],
            height=image["height"], source_width=image["source_width"], source_height=image["source_height"],
            kept=index < info.kept_images, tiles=(image["tiles"][0], image["tiles"][1]), tiles_data=sample.tiles(index),
            tiles_suffix=suffixes.get(f"{index}.tiles", "")))
    return found


def _piece(item: Fitted, images: list[FittedImage], part: str) -> Piece:
    fields, info = encoded(item, images, part)
    return Piece(fields=fields, info=info)
