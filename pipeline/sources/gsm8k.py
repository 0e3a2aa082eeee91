"""GSM8K (openai/gsm8k): word problems whose answers call a calculator.

`<<48/2=24>>` inside an answer is a tool call: `48/2` becomes a python part and `24`, what the calculator answered, an
output part, as nanochat renders them; the rest of the answer is text.
"""

import re
from typing import Any

from pipeline.conversation import Conversation, Part, Reject
from pipeline.sources.kind import Kind, Row, Turn, optional_text, text_conversation

_CALL = re.compile(r"<<(?=[^<>=]*+=)([^<>]*+)>>")


def parts_of(answer: str) -> tuple[Part, ...]:
    """The parts of an answer; empty when it calls no tool."""
    parts: list[Part] = []
    for index, piece in enumerate(_CALL.split(answer)):
        if index % 2:
            code, _, result = piece.rpartition("=")
            parts += (Part("python", code), Part("output", result))
        elif piece:
            parts.append(Part("text", piece))
    return tuple(parts) if len(parts) > 1 else ()


def convert(row: Row, *, source: str, row_id: str, options: Any) -> Conversation:
    """`question, answer` to a conversation of one turn."""
    question, answer = optional_text(row.get("question"), "question"), optional_text(row.get("answer"), "answer")
    if not answer.strip():
        raise Reject("no-answer", "answer is null or empty")
    if not question.strip():
        raise Reject("no-question", "question is null or empty")
    return text_conversation([Turn(0, question, answer, parts_of(answer))], source=source,
                             row=row_id)  # fmt: skip


KIND = Kind(columns=("question", "answer"), required=("question", "answer"), convert=convert, repo="openai/gsm8k",
            folder="main", text_only=True)  # fmt: skip
