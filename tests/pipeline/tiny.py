"""A small tokenizer and small conversations for tests of the text road."""

from functools import cache

from pipeline.conversation import Conversation, Message, Role, place_images
from pipeline.tokens import Tokenizer, prepare
from pipeline.train_tokenizer import train_bpe

WORDS = "the quick brown fox jumps over the lazy dog and reads a document of 123 pages in 2026 "


@cache
def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of 400 ids."""
    return prepare(train_bpe([WORDS * 20], vocab_size=400), name="tiny")


def talk(*texts: str, images: int = 0, system: str = "", page_breaks: bool = False) -> Conversation:
    """User and assistant texts in turn, with `images` fake images placed by the rule."""
    roles: tuple[Role, Role] = ("user", "assistant")
    messages = [Message(role=roles[index % 2], content=text) for index, text in enumerate(texts)]
    if system:
        messages.insert(0, Message(role="system", content=system))
    placed, anchors = place_images(messages, images)
    return Conversation(messages=placed, images=tuple(b"%d" % k for k in range(images)), anchors=anchors, source="s",
                        row="r", page_breaks=page_breaks)  # fmt: skip
