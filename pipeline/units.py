"""What an over-long conversation may be split into: its turns, or the pages of a transcription.

Turn units keep every image that stands in or before them, in front of their own text ("the same images"); the system
message goes with each of them. Page units are made from an answer that has exactly one part between "<page_break>"s for
each image: page k is image k with that part alone; questions about the whole document have no page and are dropped,
counted. Any run of consecutive units joins into one Conversation again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.conversation import MARKER, PAGE_BREAK, Conversation, Message, put_in_front, turns_of

Joined = tuple[Conversation, tuple[int, ...]]
"""A conversation and, for each of its images, the image's index in the row."""

_LINE = MARKER + "\n"
_PAGES_TAGS = ("doctag", "doctags")


@dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """The least that splitting keeps together. index: its place in the row; weight: its characters; join: how a run of
    units becomes a conversation again."""

    index: int
    weight: int
    join: Callable[[Conversation, Sequence["Unit"]], Joined]
    messages: tuple[Message, ...] = ()
    first_message: int = 0
    page: str = ""
    wrap: tuple[str, str] = ("", "")


def turn_units(conversation: Conversation) -> list[Unit]:
    """One unit a turn."""
    units, start = [], 0
    for index, turn in enumerate(turns_of(conversation.messages)):
        size = sum(len(message.content) for message in turn) + 16
        units.append(Unit(index=index, weight=size, join=_join_turns, messages=turn, first_message=start))
        start += len(turn)
    return units


def page_units(conversation: Conversation) -> list[Unit]:
    """One unit a page; empty when no answer has exactly one page for each image (or there is only one image)."""
    if not conversation.page_breaks or len(conversation.images) < 2:
        return []
    start = 0
    for turn in turns_of(conversation.messages):
        text = turn[-1].content.strip()
        pages = text.split(PAGE_BREAK)
        if len(pages) == len(conversation.images) and not turn[-1].parts:
            wrap = ("", "")
            for tag in _PAGES_TAGS:
                if text.startswith(f"<{tag}>") and text.endswith(f"</{tag}>"):
                    wrap = (f"<{tag}>", f"</{tag}>")
            pages[0] = pages[0].removeprefix(wrap[0])
            pages[-1] = pages[-1].removesuffix(wrap[1])
            question = tuple(_without_markers(conversation, start + k) for k in range(len(turn) - 1))
            return [Unit(index=index, weight=len(page) + 256, join=_join_pages, messages=question, page=page, wrap=wrap)
                    for index, page in enumerate(pages)]  # fmt: skip
        start += len(turn)
    return []


def _join_pages(conversation: Conversation, units: Sequence[Unit]) -> Joined:
    images = tuple(unit.index for unit in units)
    first, last = units[0].wrap
    answer = Message(role="assistant", content=first + PAGE_BREAK.join(unit.page for unit in units).strip() + last)
    messages, anchors = put_in_front((*units[0].messages, answer), len(images))
    # The questions about the whole document are counted once, on the sample with the first page.
    others = conversation.answers - 1 if images[0] == 0 else 0
    joined = conversation._replace(messages=messages, anchors=anchors, dropped_turns=conversation.dropped_turns + others,
                     images=tuple(conversation.images[image] for image in images))  # fmt: skip
    return joined, images


def _join_turns(conversation: Conversation, units: Sequence[Unit]) -> Joined:
    """The turns [first, last], the system message in front, images of earlier turns before the first user text."""
    system = [0] if conversation.messages[0].role == "system" else []
    begin = max(units[0].first_message, len(system))
    end = units[-1].first_message + len(units[-1].messages)
    own = [*system, *range(begin, end)]
    user = len(system)  # where the first user message of the joined conversation stands
    place = {index: position for position, index in enumerate(own)}
    images = tuple(image for image, (message, _) in enumerate(conversation.anchors) if message < end)
    front = [image for image in images if conversation.anchors[image][0] not in place]
    messages = [conversation.messages[index] for index in own]
    messages[user] = messages[user]._replace(content=_LINE * len(front) + messages[user].content)
    anchors = []
    for image in images:
        message, offset = conversation.anchors[image]
        if image in front:
            anchors.append((user, len(_LINE) * front.index(image)))
        else:
            shift = len(_LINE) * len(front) if place[message] == user else 0
            anchors.append((place[message], offset + shift))
    joined = conversation._replace(messages=tuple(messages), anchors=tuple(anchors),
                     images=tuple(conversation.images[image] for image in images))  # fmt: skip
    return joined, images


def _without_markers(conversation: Conversation, index: int) -> Message:
    """Message `index` with its image markers, and the line break after each, taken out."""
    message = conversation.messages[index]
    text = message.content
    for _, offset in reversed([anchor for anchor in conversation.anchors if anchor[0] == index]):
        text = text[:offset] + text[offset + len(MARKER) :].removeprefix("\n")
    return message._replace(content=text)
