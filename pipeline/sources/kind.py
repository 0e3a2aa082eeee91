"""What a kind of source is, and the pieces that several adapters share."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.conversation import Conversation, Message, Part, Reject, check_messages

Row = Mapping[str, Any]
"""One parquet row as plain Python values; columns the file does not have are absent."""


class Convert(Protocol):
    """A pure function of one row. Raises Reject when the row cannot become a conversation."""

    def __call__(self, row: Row, *, source: str, row_id: str, options: Any) -> Conversation: ...


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """A kind without options of its own."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How one kind of source is read.

    columns: the parquet columns it uses; only these are read. required: those without which no row can be used.
    options: a frozen dataclass whose fields are the further keys of the source's table in a recipe.
    repo, folder: where it lies on the hub, when the kind is one data set. converter: the key of pipeline.convert.CONVERTERS
    that makes its parquet, when its files are not parquet.
    """

    columns: tuple[str, ...]
    required: tuple[str, ...]
    convert: Convert
    options: type = NoOptions
    repo: str | None = None
    folder: str | None = None
    converter: str | None = None
    text_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question and its answer. index: the turn's place in the row. parts: for an answer that uses a tool."""

    index: int
    user: str
    answer: str
    parts: tuple[Part, ...] = ()


def describe(dropped: Counter[str]) -> str:
    """What was dropped and why, as a sample's meta holds it: "no-answer:1,rating:2"."""
    return ",".join(f"{reason}:{count}" for reason, count in sorted(dropped.items()))


def optional_text(value: Any, what: str) -> str:
    """A text column's value, "" for null. Raises Reject("layout") for anything else."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Reject("layout", f"{what} is {type(value).__name__}, not a string")
    return value


def text_conversation(
    turns: Sequence[Turn], *, source: str, row: str, system: str = "", dropped: Counter[str] | None = None,
    meta: Mapping[str, str] | None = None,
) -> Conversation:  # fmt: skip
    """A conversation without images; its text is never searched for markers."""
    messages = [Message(role="system", content=system)] if system else []
    for turn in turns:
        messages.append(Message(role="user", content=turn.user))
        messages.append(Message(role="assistant", content=turn.answer, parts=turn.parts))
    check_messages(messages)
    facts = dict(meta or {})
    if dropped:
        facts["dropped"] = describe(dropped)
    return Conversation(messages=tuple(messages), source=source, row=row, meta=facts,
                        dropped_turns=sum(dropped.values()) if dropped else 0)  # fmt: skip


def pair_up(messages: Iterable[tuple[str, str]]) -> tuple[str, list[Turn], Counter[str]]:
    """(role, text) pairs to the system text, the turns, and what was dropped: turns without an answer, a last question.

    Raises Reject("roles") when user and assistant do not alternate after at most one leading system message.
    """
    system, user, turns = "", None, []
    dropped: Counter[str] = Counter()
    count = 0
    for place, (role, text) in enumerate(messages):
        if role == "system" and place == 0:
            system = text
        elif role == "user" and user is None:
            user = text
        elif role == "assistant" and user is not None:
            if text.strip():
                turns.append(Turn(index=count, user=user, answer=text))
            else:
                dropped["no-answer"] += 1
            count, user = count + 1, None
        else:
            raise Reject("roles", f"message {place} is {role!r}; user and assistant must alternate")
    if user is not None:
        dropped["no-answer"] += 1
    if not turns:
        raise Reject("no-answer", "no turn has an answer")
    return system, turns, dropped
