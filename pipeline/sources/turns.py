"""The turns of a FineVision row, and the rules that choose among them.

Rules, each turn by turn, in this order; what they drop is counted by reason:

1. no answer: a null turn, a null or blank answer. An empty question with an answer stays.
2. rating: for each axis in `min_ratings` the turn's rating must reach the minimum. Ratings are integers 1 to 5 that belong
   to the turns by position. A missing column, a null list, a list shorter than the turns, null, and a value outside 1 to 5
   all mean "no rating", which `null_ratings` keeps (the default) or drops.
3. choice: with `user_text`, only turns whose user text, without markers and outer blanks, is one of these.
4. (the answers are converted here; one that cannot be is dropped with its own reason)
5. max_turns: the first so many of what is left.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.conversation import MARKER, Reject
from pipeline.sources.kind import NO_ANSWER, Row, Turn, optional_text

AXES = ("relevance", "visual_dependency", "image_correspondence", "formatting")
LOWEST, HIGHEST = 1, 5


def raw_turns(texts: Any) -> list[tuple[str, str] | None]:
    """(user, answer) of each turn, None for a null one.

    Accepts a list of structs with their fields in any order, a struct of lists, or one struct. Raises Reject("no-answer")
    when there is nothing, Reject("layout") when it is something else.
    """
    if texts is None or texts == []:
        raise Reject("no-answer", "texts is null or empty")
    if isinstance(texts, dict) and isinstance(texts.get("assistant"), str):  # one turn, not in a list
        texts = [texts]
    elif isinstance(texts, dict):
        users, answers = texts.get("user"), texts.get("assistant")
        if not isinstance(users, list) or not isinstance(answers, list) or len(users) != len(answers):
            raise Reject("layout", "texts is a struct without equal lists user and assistant")
        texts = [{"user": user, "assistant": answer} for user, answer in zip(users, answers)]
    if not isinstance(texts, list):
        raise Reject("layout", f"texts is {type(texts).__name__}, not a list")
    turns: list[tuple[str, str] | None] = []
    for turn in texts:
        if turn is None:
            turns.append(None)
        elif isinstance(turn, dict) and turn and not {"user", "assistant"} & turn.keys():
            raise Reject("layout", f"a turn has the fields {', '.join(map(str, turn))[:100]}, not user and assistant")
        elif isinstance(turn, dict):
            turns.append((optional_text(turn.get("user"), "user"), optional_text(turn.get("assistant"), "assistant")))
        else:
            raise Reject("layout", f"a turn is {type(turn).__name__}, not a struct of user and assistant")
    return turns


def answered(raw: Sequence[tuple[str, str] | None]) -> tuple[list[Turn], int]:
    """The turns that have an answer, and how many have none. Raises Reject("no-answer") when no turn is left."""
    turns = [Turn(number, *turn) for number, turn in enumerate(raw) if turn and turn[1].strip()]
    if not turns:
        raise Reject(NO_ANSWER, "no turn has an answer")
    return turns, len(raw) - len(turns)


def rating(row: Row, axis: str, index: int) -> int | None:
    """The rating of turn `index`, or None when there is no usable one."""
    values = row.get(f"{axis}_ratings")
    if not isinstance(values, list) or index >= len(values):
        return None
    value = values[index]
    if isinstance(value, bool) or not isinstance(value, int | float) or not LOWEST <= value <= HIGHEST:
        return None
    return int(value) if value == int(value) else None  # 4.0 is a 4, where a column of floats holds them


def rated_well(row: Row, index: int, minimum: Mapping[str, int], keep_null: bool) -> bool:
    """Whether turn `index` reaches the minimum on every axis."""
    for axis, least in minimum.items():
        value = rating(row, axis, index)
        if keep_null if value is None else value >= least:
            continue
        return False
    return True


def chosen(turn: Turn, user_text: Sequence[str]) -> bool:
    """Whether the turn's user text is one of these (all are, when there are none)."""
    return not user_text or turn.user.replace(MARKER, "").strip() in user_text
