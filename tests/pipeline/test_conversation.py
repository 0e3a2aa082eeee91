"""Markers, roles, and what makes two rows twins."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.conversation import MAX_MESSAGES, MAX_TEXT, Message, Reject, check_messages, clean_text, place_images, turns_of
from tests.pipeline.tiny import talk


def user(text: str) -> Message:
    return Message(role="user", content=text)


def answer(text: str) -> Message:
    return Message(role="assistant", content=text)


def test_markers_as_many_as_images_stand_where_they_are() -> None:
    messages, anchors = place_images([user("<image> a <image>"), answer("x"), user("c<image>"), answer("y")], 3)
    assert [m.content for m in messages] == ["<image> a <image>", "x", "c<image>", "y"]
    assert anchors == ((0, 0), (0, 10), (2, 1))


def test_no_marker_puts_all_images_before_the_first_user_text() -> None:
    messages, anchors = place_images([Message(role="system", content="s"), user("a"), answer("b")], 2)
    assert messages[1].content == "<image>\n<image>\na"
    assert anchors == ((1, 0), (1, 8))


@pytest.mark.parametrize(("text", "images"), [("<image><image>", 1), ("<image>", 2), ("<image>", 0)])
def test_any_other_number_is_rejected(text: str, images: int) -> None:
    with pytest.raises(Reject, match="image-markers") as error:
        place_images([user(text), answer("a")], images)
    assert error.value.reason == "image-markers"
    assert error.value.detail == f"{text.count('<image>')} <image> markers for {images} images"


def test_a_marker_in_an_answer_is_text() -> None:
    messages, anchors = place_images([user("q"), answer("<image> is a tag")], 1)
    assert anchors == ((0, 0),)
    assert messages[1].content == "<image> is a tag"


@given(st.lists(st.sampled_from(["<image>", "a", "\n", "<image", "image>", " "]), max_size=12), st.integers(0, 4))
def test_every_anchor_is_a_marker_and_there_is_one_for_each_image(parts: list[str], images: int) -> None:
    text = "".join(parts)
    try:
        messages, anchors = place_images([user(text), answer("a")], images)
    except Reject:
        assert text.count("<image>") not in (0, images)
        return
    assert len(anchors) == images
    assert len(set(anchors)) == images
    assert all(messages[index].content[offset:].startswith("<image>") for index, offset in anchors)
    assert messages[0].content.endswith(text)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no-answer"),
        ([user("a")], "no-answer"),
        ([user("a"), user("b")], "roles"),
        ([answer("a"), user("b")], "roles"),
        ([user("a"), Message(role="system", content="s")], "roles"),
        ([user("a" * MAX_TEXT), answer("b")], "text-too-long"),
    ],
)
def test_what_is_no_conversation_is_rejected(messages: list[Message], reason: str) -> None:
    with pytest.raises(Reject) as error:
        check_messages(messages)
    assert error.value.reason == reason


def test_a_system_message_may_lead() -> None:
    messages = [Message(role="system", content="s"), user("a"), answer("b")]
    check_messages(messages)
    assert turns_of([*messages, user("c"), answer("d")]) == [tuple(messages), (user("c"), answer("d"))]


def test_a_lone_surrogate_is_replaced() -> None:
    assert clean_text("a\ud800b\U0001f600") == "a\ufffdb\U0001f600"


def test_a_reject_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(Reject("a", "b")))  # noqa: S301
    assert (error.reason, error.detail, str(error)) == ("a", "b", "a: b")


def test_twins_share_a_key_hash() -> None:
    assert talk("a", "b", images=1).key_hash() == talk("c", "d", images=1).key_hash()
    assert talk("a", "b", images=1).key_hash() != talk("a", "b", images=2).key_hash()
    assert talk("a", "b").key_hash() == talk("a", "b").key_hash() != talk("a", "c").key_hash()


def test_a_row_of_countless_tiny_turns_is_left_out() -> None:
    turn = (Message(role="user", content="a"), Message(role="assistant", content="b"))
    check_messages(turn * (MAX_MESSAGES // 2))
    with pytest.raises(Reject, match=f"too-many-turns: {MAX_MESSAGES + 2} messages"):
        check_messages(turn * (MAX_MESSAGES // 2 + 1))
