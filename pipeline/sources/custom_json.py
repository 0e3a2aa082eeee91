"""CustomJSON: one's own text conversations, JSONL with an array of {"role", "content"} a line.

`pipeline download` turns the JSONL into FineVision-format parquet (pipeline.convert.jsonl); this reads that. Text only:
its text is never searched for image markers, and a record with images is rejected (kind = "jsonl" keeps them). An identity set
is seen more than once with `repeats = 2` in the recipe.
"""

from typing import Any

from pipeline.conversation import Conversation, Reject
from pipeline.sources.kind import Kind, Row, text_conversation
from pipeline.sources.turns import answered, raw_turns


def convert(row: Row, *, source: str, row_id: str, options: Any) -> Conversation:
    """`texts: list<{user, assistant}>` to a conversation without images."""
    if images := row.get("images"):
        raise Reject("too-many-images", f"{len(images)} images; custom_json is text only, kind = \"jsonl\" keeps them")
    turns, unanswered = answered(raw_turns(row.get("texts")))
    return text_conversation(turns, source=source, row=row_id, unanswered=unanswered)


KIND = Kind(columns=("images", "texts"), required=("texts",), convert=convert, converter="jsonl", text_only=True)
