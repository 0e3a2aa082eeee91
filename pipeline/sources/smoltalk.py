"""SmolTalk (HuggingFaceTB/smol-smoltalk): chat messages, a leading system message possible."""

from typing import Any

from pipeline.conversation import Conversation, Reject
from pipeline.sources.kind import Kind, Row, alternate, optional_text, text_conversation
from pipeline.sources.turns import answered


def convert(row: Row, *, source: str, row_id: str, options: Any) -> Conversation:
    """`messages: list<{content, role}>` to a conversation."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise Reject("no-answer", "messages is null or not a list")
    pairs = []
    for message in messages:
        if not isinstance(message, dict):
            raise Reject("roles", "a message is null")
        pairs.append((optional_text(message.get("role"), "a role"), optional_text(message.get("content"), "a content")))
    system, raw = alternate(pairs)
    turns, unanswered = answered(raw)
    origin = row.get("source")
    return text_conversation(turns, source=source, row=row_id, system=system, unanswered=unanswered,
                             meta={"origin": origin} if isinstance(origin, str) and origin else {})  # fmt: skip


KIND = Kind(columns=("messages", "source"), required=("messages",), convert=convert, repo="HuggingFaceTB/smol-smoltalk",
            folder="data", text_only=True)  # fmt: skip
