"""The cut at seq_len: never inside an image, never without an answer, nothing lost uncounted."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.conversation import Conversation, Reject
from pipeline.cut import OVERLONG, Fitted, Overlong, fit_to_length
from pipeline.render import render_conversations
from shards.masks import ANSWER
from tests.pipeline.test_render import check_mask_law, conversations
from tests.pipeline.tiny import talk, tiny_tokenizer


def fit(conversation: Conversation, counts: list[int], seq_len: int, rule: Overlong) -> tuple[Fitted, ...]:
    tokenizer = tiny_tokenizer()
    rendered = render_conversations([conversation], [counts], tokenizer)[0]
    return fit_to_length(conversation, rendered, counts, seq_len=seq_len, rule=rule, tokenizer=tokenizer)


@given(conversations(), st.integers(4, 120), st.sampled_from(OVERLONG))
@settings(max_examples=300, deadline=None)
def test_what_comes_out_fits_and_is_whole(data: tuple[Conversation, list[int]], seq_len: int, rule: Overlong) -> None:
    conversation, counts = data
    image = tiny_tokenizer().specials.image
    try:
        pieces = fit(conversation, counts, seq_len, rule)
    except Reject as error:
        known = error.reason in ("over-length", "images-exceed-length", "no-target-in-length")
        if not known:
            raise
        return
    for number, piece in enumerate(pieces):
        ids, mask = piece.rendered.ids, piece.rendered.mask
        assert 0 < len(ids) == len(mask) <= seq_len
        assert ANSWER in mask[1:]
        assert piece.part == (number, len(pieces))
        assert len(piece.images) == len(piece.conversation.images) == len(piece.rendered.spans)
        assert [stop - start for start, stop in piece.rendered.spans] == [counts[k] for k in piece.images]
        assert int((ids == image).sum()) == sum(counts[k] for k in piece.images)
        assert [conversation.images[k] for k in piece.images] == list(piece.conversation.images)
        if not piece.cut:
            check_mask_law(piece.conversation, [counts[k] for k in piece.images], piece.rendered, tiny_tokenizer())


def test_what_fits_is_untouched() -> None:
    conversation = talk("a", "b", images=1)
    (piece,) = fit(conversation, [5], 100, "truncate")
    assert piece.conversation is conversation
    assert (piece.cut, piece.images, piece.part) == ("", (0,), (0, 1))


def test_an_image_that_does_not_fit_goes_with_all_after_it() -> None:
    conversation = talk("<image>a", "one", "b<image>c", "two", images=2)
    whole = len(render_conversations([conversation], [[4, 20]], tiny_tokenizer())[0].ids)
    (piece,) = fit(conversation, [4, 20], whole - 10, "truncate")
    assert piece.images == (0,)
    assert tiny_tokenizer().decode(piece.rendered.ids.tolist()).endswith("<|user_start|>b")
    assert piece.cut.endswith("tokens and 1 images")


def test_messages_of_turns_that_are_cut_off_go_too() -> None:
    conversation = talk("<image>a", "x" * 30, "b<image>", "two", images=2)
    first_turn = render_conversations([conversation], [[4, 20]], tiny_tokenizer())[0].turns[0]
    (piece,) = fit(conversation, [4, 20], first_turn[1], "truncate")
    assert [message.content for message in piece.conversation.messages] == ["<image>a", "x" * 30]
    assert piece.rendered.turns == (first_turn,)


def test_an_image_over_the_length_is_rejected_and_so_is_a_cut_before_the_answer() -> None:
    with pytest.raises(Reject) as error:
        fit(talk("a", "b", images=2), [60, 60], 100, "truncate")
    assert error.value.reason == "images-exceed-length"
    with pytest.raises(Reject) as error:
        fit(talk("a" * 300, "b"), [], 100, "truncate")
    assert error.value.reason == "no-target-in-length"
    with pytest.raises(Reject) as error:
        fit(talk("a", "b" * 300), [], 100, "drop")
    assert error.value.reason == "over-length"


def test_split_gives_every_turn_its_images() -> None:
    turns = [text for k in range(30) for text in (f"question {k}", f"answer {k}.")]
    conversation = talk(*turns, images=2, system="Be kind.")
    pieces = fit(conversation, [10, 10], 120, "split")
    assert len(pieces) > 2
    answers = [m.content for piece in pieces for m in piece.conversation.messages if m.role == "assistant"]
    assert answers == turns[1::2]
    for piece in pieces:
        assert piece.images == (0, 1)
        assert piece.conversation.messages[0].content == "Be kind."
        assert piece.conversation.messages[1].content.startswith("<image>\n<image>\nquestion")
        assert piece.cut == ""


def test_split_keeps_a_later_image_in_its_place() -> None:
    conversation = talk("<image>one", "a" * 50, "then <image> two", "b" * 50, "three", "c" * 50, images=2)
    first, second, third = fit(conversation, [5, 7], 80, "split")
    assert (first.images, second.images, third.images) == ((0,), (0, 1), (0, 1))
    assert first.conversation.messages[0].content == "<image>one"
    assert second.conversation.messages[0].content == "<image>\nthen <image> two"
    assert second.conversation.anchors == ((0, 0), (0, 13))
    assert third.conversation.messages[0].content == "<image>\n<image>\nthree"


def test_a_turn_too_long_by_itself_is_truncated_and_one_without_room_is_counted() -> None:
    conversation = talk("q", "a" * 300, "r" * 300, "b", "s", "c")
    pieces = fit(conversation, [], 60, "split")
    assert [piece.conversation.messages[0].content for piece in pieces] == ["q", "s"]
    assert "tokens" in pieces[0].cut
    assert "1 turns had no room" in pieces[0].cut


def test_pages_are_split_at_page_breaks_with_their_own_text() -> None:
    pages = [f"page {k}" for k in range(5)]
    text = "<doctag>" + "<page_break>".join(pages) + "</doctag>"
    conversation = talk("Convert.", text, "How many pages?", "5", images=5, page_breaks=True)
    pieces = fit(conversation, [40] * 5, 100, "truncate")
    assert sorted(k for piece in pieces for k in piece.images) == list(range(5))
    for piece in pieces:
        expected = "<page_break>".join(pages[k] for k in piece.images)
        assert piece.conversation.messages[0].content == "<image>\n" * len(piece.images) + "Convert."
        assert [m.content for m in piece.conversation.messages[1:]] == [f"<doctag>{expected}</doctag>"]
    assert sum(piece.conversation.dropped_turns for piece in pieces) == 1


def test_pages_whose_images_leave_no_room_for_text_are_split_too() -> None:
    conversation = talk("Convert.", "one<page_break>two", images=2, page_breaks=True)
    pieces = fit(conversation, [30, 30], 64, "truncate")
    assert [piece.images for piece in pieces] == [(0,), (1,)]
    with pytest.raises(Reject, match="no-target"):
        fit(conversation._replace(page_breaks=False), [30, 30], 64, "truncate")


def test_pages_that_do_not_match_the_images_are_not_split() -> None:
    conversation = talk("Convert.", "one<page_break>two", images=3, page_breaks=True)
    with pytest.raises(Reject, match="images-exceed-length"):
        fit(conversation, [40] * 3, 100, "truncate")


@given(st.lists(st.integers(1, 200), min_size=2, max_size=12), st.integers(90, 200))
@settings(max_examples=60, deadline=None)
def test_no_page_is_lost_or_doubled(sizes: list[int], seq_len: int) -> None:
    pages = [chr(97 + k) * size for k, size in enumerate(sizes)]
    conversation = talk("Read.", "<page_break>".join(pages), images=len(pages), page_breaks=True)
    assume(20 * len(pages) > seq_len)
    pieces = fit(conversation, [20] * len(pages), seq_len, "truncate")
    assert [k for piece in pieces for k in piece.images] == list(range(len(pages)))
    for piece in pieces:
        assert piece.conversation.messages[1].content == "<page_break>".join(pages[k] for k in piece.images)
        assert not piece.cut or len(piece.images) == 1
    without = conversation._replace(page_breaks=False)
    with pytest.raises(Reject, match="images-exceed-length"):
        fit(without, [20] * len(pages), seq_len, "split")
