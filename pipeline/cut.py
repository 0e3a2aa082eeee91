"""Samples longer than a packed row: cut, split into further samples, or dropped, by the source's `overlong` rule.

- truncate: the first seq_len tokens. An image whose placeholders would be split goes, with everything after it.
- split: turns become further samples with the same images; an answer of several pages is split at its page breaks. A turn
  too long by itself is truncated.
- drop: rejected as "over-length".

Images that alone exceed seq_len are split at page breaks where the source has them (whatever the rule but drop), else
rejected: a page is never dropped while its text is kept. Every sample keeps at least one answer token as a target.

    ids  bos u I I I q /u a A A /a     seq_len 9: cut at 9, two answer tokens stay
    ids  bos u q /u a A /a u I I I     seq_len 9: the cut would fall in the image, so 8 tokens stay and no image

Cost: a sample that fits costs a comparison; a split one is rendered again.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pipeline.conversation import Conversation, Reject, turns_of
from pipeline.render import Rendered, render_conversations
from pipeline.tokens import Tokenizer
from pipeline.units import Unit, page_units, turn_units
from shards.masks import ANSWER

Overlong = Literal["truncate", "split", "drop"]
OVERLONG: tuple[Overlong, ...] = ("truncate", "split", "drop")


class Fitted(NamedTuple):
    """One sample that fits a row.

    images: which of the row's images it holds, by index (conversation.images are these). cut: what was left out, in plain
    words, "" when nothing. part: (i, n) when the row became several samples.
    """

    conversation: Conversation
    rendered: Rendered
    images: tuple[int, ...]
    cut: str = ""
    part: tuple[int, int] = (0, 1)


def fit_to_length(
    conversation: Conversation, rendered: Rendered, placeholders: Sequence[int], *, seq_len: int, rule: Overlong,
    tokenizer: Tokenizer,
) -> tuple[Fitted, ...]:  # fmt: skip
    """The samples of at most seq_len tokens that the conversation becomes; one, untouched, when it fits.

    placeholders: tokens of each image, as it was rendered with. Raises Reject: "over-length" (rule drop),
    "images-exceed-length", "no-target-in-length".
    """
    everything = tuple(range(len(conversation.images)))
    if len(rendered.ids) <= seq_len:
        return (Fitted(conversation, _with_target(rendered), everything),)
    if rule == "drop":
        raise Reject("over-length", f"{len(rendered.ids)} tokens; seq_len is {seq_len}")
    exceed = sum(placeholders) > seq_len
    # What a cut would leave without an answer counts as exceeding too, where there are pages to split at.
    crowded = exceed or ANSWER not in rendered.mask[1:seq_len]
    units = page_units(conversation) if crowded or rule == "split" else []
    if not units and exceed:
        raise Reject("images-exceed-length", f"{sum(placeholders)} image tokens; seq_len is {seq_len}")
    if not units and rule == "split":
        units = turn_units(conversation)
    if len(units) > 1:
        return _split(conversation, units, placeholders, seq_len, tokenizer)
    return (cut(conversation, rendered, everything, seq_len),)


def cut(conversation: Conversation, rendered: Rendered, images: Sequence[int], seq_len: int) -> Fitted:
    """The first seq_len tokens, ending before an image that would be split, and the messages of the turns that begin in them.

    images: the row's index of each image.
    """
    stop = min(seq_len, len(rendered.ids))
    stop = min([stop, *(start for start, end in rendered.spans if end > stop)])
    spans = tuple(span for span in rendered.spans if span[1] <= stop)
    left_out = [f"{len(rendered.ids) - stop} tokens"] if stop < len(rendered.ids) else []
    if len(spans) < len(rendered.spans):
        left_out.append(f"{len(rendered.spans) - len(spans)} images")
    short = Rendered(
        ids=rendered.ids[:stop], mask=rendered.mask[:stop], spans=spans,
        turns=tuple((start, min(end, stop)) for start, end in rendered.turns if start < stop),
    )  # fmt: skip
    begun = [message for turn in turns_of(conversation.messages)[: len(short.turns)] for message in turn]
    kept = conversation._replace(messages=tuple(begun), images=conversation.images[: len(spans)],
                   anchors=conversation.anchors[: len(spans)])  # fmt: skip
    return Fitted(conversation=kept, rendered=_with_target(short), images=tuple(images[: len(spans)]),
                  cut=" and ".join(left_out))  # fmt: skip


def _with_target(rendered: Rendered) -> Rendered:
    """The same; rejected when no answer token is left to learn (the first token is never predicted)."""
    if rendered.mask.find(ANSWER, 1) < 0:
        raise Reject("no-target-in-length", f"the {len(rendered.ids)} tokens that fit hold no token of an answer")
    return rendered


def _split(
    conversation: Conversation, units: Sequence[Unit], placeholders: Sequence[int], seq_len: int, tokenizer: Tokenizer
) -> tuple[Fitted, ...]:
    """Packs consecutive units into samples: rendered together, and halved for as long as they are too long."""
    groups, done, lost = [tuple(units)], dict[int, Fitted](), list[Reject]()
    place = {id(unit): index for index, unit in enumerate(units)}
    while groups:
        joined = [units[0].join(conversation, group) for group in groups]
        counts = [[placeholders[image] for image in images] for _, images in joined]
        rendered = render_conversations([piece for piece, _ in joined], counts, tokenizer)
        again = []
        for group, (piece, images), tokens in zip(groups, joined, rendered):
            if len(tokens.ids) > seq_len and len(group) > 1:
                again += _halves(group, len(tokens.ids), seq_len)
                continue
            try:
                done[place[id(group[0])]] = cut(piece, tokens, images, seq_len)
            except Reject as error:
                lost.append(error)
        groups = again
    if not done:
        raise lost[0]
    pieces = [done[index] for index in sorted(done)]
    if lost:  # said on the first sample, so that the turns that had no room are counted
        pieces[0] = pieces[0]._replace(cut=", ".join(filter(None, [pieces[0].cut, f"{len(lost)} turns had no room"])))
    return tuple(piece._replace(part=(index, len(pieces))) for index, piece in enumerate(pieces))


def _halves(group: Sequence[Unit], tokens: int, seq_len: int) -> list[tuple[Unit, ...]]:
    """The group in as many runs of about equal weight as its length asks for, at least two."""
    runs = min(len(group), max(2, -(-tokens // seq_len)))
    share = sum(unit.weight for unit in group) / runs
    out: list[list[Unit]] = [[]]
    weight = 0.0
    for index, unit in enumerate(group):
        full = weight + unit.weight / 2 > share * len(out) and out[-1]
        if len(out) < runs and (full or len(group) - index <= runs - len(out)) and out[-1]:
            out.append([])
        out[-1].append(unit)
        weight += unit.weight
    return [tuple(run) for run in out]
