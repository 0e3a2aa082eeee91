"""The unified conversation: what every source adapter returns and what everything downstream reads.

A conversation is messages, the bytes of its images, and for each image the place of its marker in the text. It follows
the format of the training notes: a user message keeps its literal `<image>` markers, and `anchors` tells which of the
characters are markers; any other "<image>" is ordinary text.

    place_images([("user", "<image>\\nRead."), ("assistant", "Hi")], 1)   anchors ((0, 0),)
    place_images([("user", "Read."), ("assistant", "Hi")], 1)            "<image>\\nRead.", anchors ((0, 0),)
    place_images([("user", "<image><image>"), ...], 1)                   Reject("image-markers")

Cost: one pass over the text. Nothing here opens an image or a file.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

Role = Literal["system", "user", "assistant"]

MARKER = "<image>"
PAGE_BREAK = "<page_break>"
MAX_TEXT = 1_000_000
"""Characters of text a conversation may hold: some 300 pages. A longer text could not fit any row, and costs a worker up to
3 s and 400 MB to tokenize."""
MAX_MESSAGES = 20_000
"""Messages a conversation may hold: with their markers at least three rows of 16,384 tokens. A row of 400,000 empty turns took a
worker 1.9 GB."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Reject(ValueError):
    """A row that is left out. `reason` is a short slug that is counted, `detail` says it in plain words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["Reject"], tuple[str, str]]:
        return Reject, (self.reason, self.detail)


class Part(NamedTuple):
    """One part of an answer that uses a tool: text, the code handed to the tool, or what the tool printed."""

    kind: Literal["text", "python", "output"]
    text: str


class Message(NamedTuple):
    """One message. `parts` is set for tool use only; `content` is then the source's own text."""

    role: Role
    content: str
    parts: tuple[Part, ...] = ()


_NO_FACTS: Mapping[str, str] = MappingProxyType({})


class Conversation(NamedTuple):
    """Messages, images, and where the images stand.

    anchors: for image k the index of its message and the character offset of its "<image>" in that message's content, in order.
    source, row: the recipe's source and the row's id inside it, for the tables and for messages.
    page_breaks: some answer holds the pages of the images one by one, joined by "<page_break>".
    dropped_turns: turns of the row that are not here (no answer, low rating, not chosen, over max_turns).
    meta: further facts of the row for the sample's JSON (the row's own source, what was dropped and why, a SMILES).
    split_key: what decides the validation split, when it is not the images or the text (a canonical SMILES).
    """

    messages: tuple[Message, ...]
    source: str
    row: str
    images: tuple[bytes, ...] = ()
    anchors: tuple[tuple[int, int], ...] = ()
    page_breaks: bool = False
    dropped_turns: int = 0
    meta: Mapping[str, str] = _NO_FACTS
    split_key: str = ""

    @property
    def answers(self) -> int:
        """How many answers, that is turns, the conversation has: questions and answers alternate behind a system message."""
        return len(self.messages) // 2

    def key_hash(self) -> bytes:
        """16 bytes that twins share: a hash of the split key, else of the images, else of the text."""
        digest = hashlib.blake2b(digest_size=16)
        if self.split_key:
            digest.update(b"key\0" + self.split_key.encode())
        elif self.images:
            for image in self.images:
                digest.update(b"image\0" + hashlib.blake2b(image, digest_size=32).digest())
        else:
            digest.update("".join([f"{role}\0{content}\0" for role, content, _ in self.messages]).encode())
        return digest.digest()


def clean_text(text: str) -> str:
    """Text that UTF-8 can hold: a lone surrogate (a JSON escape without its other half) becomes U+FFFD."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def turns_of(messages: Sequence[Message]) -> list[tuple[Message, ...]]:
    """Messages cut into turns, each ending with its answer; a system message belongs to the first turn."""
    turns: list[tuple[Message, ...]] = []
    start = 0
    for index, message in enumerate(messages):
        if message.role == "assistant":
            turns.append(tuple(messages[start : index + 1]))
            start = index + 1
    assert start == len(messages), "the last message of a conversation is an answer"
    return turns


def find_markers(texts: Sequence[str], images: int) -> list[tuple[int, int]]:
    """(text index, offset) of each image's marker; empty when the texts hold none.

    Raises Reject("image-markers") when the number of markers is neither 0 nor the number of images.
    """
    found = [(index, match.start()) for index, text in enumerate(texts) for match in re.finditer(MARKER, text)]
    if found and len(found) != images:
        raise Reject("image-markers", f"{len(found)} <image> markers for {images} images")
    return found


def place_images(messages: Sequence[Message], images: int) -> tuple[tuple[Message, ...], tuple[tuple[int, int], ...]]:
    """The messages with their images placed, and the anchors.

    Only user and system text is searched: an answer's "<image>" is text. As many markers as images: the images stand
    where the markers are. None: one "<image>\\n" for each image is put before the first user text. Any other number is
    rejected.
    """
    searched = [message.content if message.role != "assistant" else "" for message in messages]
    anchors = find_markers(searched, images)
    if anchors or not images:
        return tuple(messages), tuple(anchors)
    return put_in_front(messages, images)


def put_in_front(messages: Sequence[Message], images: int) -> tuple[tuple[Message, ...], tuple[tuple[int, int], ...]]:
    """The messages with one "<image>\\n" an image before the first user text, and the anchors of these."""
    first = next((index for index, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        raise Reject("no-user", "images, but no user message to put them in")
    line = MARKER + "\n"
    user = Message(role="user", content=line * images + messages[first].content)
    anchors = tuple((first, len(line) * index) for index in range(images))
    return (*messages[:first], user, *messages[first + 1 :]), anchors


def check_messages(messages: Sequence[Message]) -> None:
    """Raises Reject unless: an optional system message, then user and assistant in turn, an answer last, size bounded."""
    roles = [message.role for message in messages]
    if roles[:1] == ["system"]:
        del roles[0]
    for index, role in enumerate(roles):
        if role != ("user", "assistant")[index % 2]:
            raise Reject("roles", f"message {index} is {role!r}; user and assistant must alternate")
    if not roles or len(roles) % 2:
        raise Reject("no-answer", "the conversation does not end with an answer")
    check_size(messages)


def check_size(messages: Sequence[Message]) -> None:
    """Raises Reject for more text or messages than a conversation may hold."""
    if (size := sum([len(message.content) for message in messages])) > MAX_TEXT:
        raise Reject("text-too-long", f"{size} characters; the limit is {MAX_TEXT}")
    if len(messages) > MAX_MESSAGES:
        raise Reject("too-many-turns", f"{len(messages)} messages; the limit is {MAX_MESSAGES}")
