"""MMLU (cais/mmlu): multiple choice, asked as nanochat asks it and answered with the bare letter.

    Multiple Choice question: What is 2+2?
    - 3=A
    - 4=B
    - 5=C
    - 6=D

    Respond only with the letter of the correct answer.
"""

from typing import Any

from pipeline.conversation import Conversation, Reject
from pipeline.sources.kind import Kind, Row, Turn, optional_text, text_conversation

LETTERS = "ABCD"


def convert(row: Row, *, source: str, row_id: str, options: Any) -> Conversation:
    """`question, subject, choices, answer`, or the struct `train` of these that the config auxiliary_train nests."""
    nested = row.get("train")
    if isinstance(nested, dict):
        row = nested
    question = optional_text(row.get("question"), "question")
    choices = row.get("choices")
    answer = row.get("answer")
    if not question.strip():
        raise Reject("no-question", "question is null or empty")
    if not isinstance(choices, list) or len(choices) != len(LETTERS):
        raise Reject("choices", f"{len(choices) if isinstance(choices, list) else 'no'} choices, not {len(LETTERS)}")
    if not isinstance(answer, int) or not 0 <= answer < len(LETTERS):
        raise Reject("no-answer", f"the answer is {answer!r}, not 0 to {len(LETTERS) - 1}")
    lines = "".join(f"- {optional_text(choice, 'a choice')}={letter}\n" for choice, letter in zip(choices, LETTERS))
    prompt = f"Multiple Choice question: {question}\n{lines}\nRespond only with the letter of the correct answer."
    subject = row.get("subject")
    return text_conversation([Turn(0, prompt, LETTERS[answer])], source=source, row=row_id,
                             meta={"subject": subject} if isinstance(subject, str) and subject else {})  # fmt: skip


KIND = Kind(columns=("question", "subject", "choices", "answer", "train"), required=(), convert=convert, repo="cais/mmlu",
            folder="all", text_only=True)  # fmt: skip
