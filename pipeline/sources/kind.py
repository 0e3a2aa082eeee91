"""What a kind of source is, and the pieces that several adapters share."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pipeline.conversation import Conversation, Message, Part, Reject, check_size

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
    repo, folder: where its parquet lies on the hub, when the kind is one data set. converter: the key of
    pipeline.convert.CONVERTERS that makes its parquet, when its files are not parquet; the parquet then lies in
    raw/local/SOURCE. origin: the hub repository that holds the files to convert; None when the recipe's `path` names them.
    """

    columns: tuple[str, ...]
    required: tuple[str, ...]
    convert: Convert
    options: type = NoOptions
    repo: str | None = None
    folder: str | None = None
    converter: str | None = None
    origin: str | None = None
    text_only: bool = False


class Turn(NamedTuple):
    """A question and its answer. number: the turn's place in the row. parts: for an answer that uses a tool."""

    number: int
    user: str
    answer: str
    parts: tuple[Part, ...] = ()


NO_ANSWER = "no-answer"  # why a turn is dropped, or a row rejected


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
    turns: Iterable[Turn], *, source: str, row: str, system: str = "", unanswered: int = 0, meta: Mapping[str, str] | None = None
) -> Conversation:  # fmt: skip
    """A conversation without images; its text is never searched for markers. unanswered: turns of the row that were dropped."""
    messages = [Message("system", system)] if system else []
    for _, user, answer, parts in turns:
        messages += (Message("user", user), Message("assistant", answer, parts))
    check_size(messages)
    facts = meta or {}
    if unanswered:
        facts = {**facts, "dropped": describe(Counter({NO_ANSWER: unanswered}))}
    return Conversation(tuple(messages), source, row, meta=facts, dropped_turns=unanswered)


def alternate(messages: Iterable[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """(role, text) pairs to the system text and (user, answer) pairs; a last question without answer gets "".

    Raises Reject("roles") when user and assistant do not alternate after at most one leading system message.
    """
    system, user = "", None
    pairs: list[tuple[str, str]] = []
    for place, (role, text) in enumerate(messages):
        if role == "system" and place == 0:
            system = text
        elif role == "user" and user is None:
            user = text
        elif role == "assistant" and user is not None:
            pairs.append((user, text))
            user = None
        else:
            raise Reject("roles", f"message {place} is {role!r}; user and assistant must alternate")
    return system, pairs if user is None else [*pairs, (user, "")]
