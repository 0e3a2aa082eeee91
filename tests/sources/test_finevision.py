"""The FineVision adapter: every turn, every image, the rules, on rows made here."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.conversation import MARKER, Conversation, Reject
from pipeline.sources.finevision import Options, convert


def run(row: dict[str, Any], **options: Any) -> Conversation:
    return convert(row, source="set", row_id="file#0", options=Options(**options))


def row(*texts: Any, images: Any = (b"a",), **columns: Any) -> dict[str, Any]:
    """A row of turns given as (user, assistant) pairs, None, or structs."""
    turns = [{"user": text[0], "assistant": text[1]} if isinstance(text, tuple) else text for text in texts]
    return {"images": [{"bytes": image, "path": "x.png"} for image in images], "texts": turns, **columns}


def shape(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role[0], message.content) for message in conversation.messages]


def reason(row: dict[str, Any], **options: Any) -> str:
    with pytest.raises(Reject) as error:
        run(row, **options)
    assert error.value.detail
    return error.value.reason


def test_all_turns_and_all_images() -> None:
    out = run(row(("q", "a"), ("r", "b"), images=(b"1", b"2"), source="origin"))
    assert shape(out) == [("u", "<image>\n<image>\nq"), ("a", "a"), ("u", "r"), ("a", "b")]
    assert out.images == (b"1", b"2")
    assert out.anchors == ((0, 0), (0, 8))
    assert out.meta == {"origin": "origin"}


@pytest.mark.parametrize(
    "images",
    [[{"path": None, "bytes": b"1"}], [b"1"], {"bytes": b"1", "path": None}, b"1", [{"bytes": b"1"}],
     [{"path": "/etc/hostname", "bytes": b"1"}], [{"bytes": [49], "path": None}]],
)  # fmt: skip
def test_images_in_any_layout(images: Any) -> None:
    assert run({"images": images, "texts": [{"assistant": "a", "user": "q"}]}).images == (b"1",)
    assert run({"image": images, "texts": {"assistant": "a", "user": "q"}}).images == (b"1",)


@pytest.mark.parametrize(
    "images",
    [[None], [{"bytes": None, "path": "/etc/hostname"}], [{"bytes": b"", "path": "x"}], [{"path": "x"}], ["x.png"],
     [{"bytes": b"1"}, None], [b""], [3]],
)  # fmt: skip
def test_an_image_without_bytes_rejects_the_row(images: Any) -> None:
    assert reason({"images": images, "texts": [{"user": "q", "assistant": "a"}]}) == "image-missing"


def test_a_path_is_named_but_not_opened() -> None:
    with pytest.raises(Reject, match=r"'/etc/hostname' is not opened"):
        run({"images": [{"bytes": None, "path": "/etc/hostname"}], "texts": [{"user": "q", "assistant": "a"}]})


@pytest.mark.parametrize("images", [None, []])
def test_rows_without_images_are_text(images: Any) -> None:
    out = run({"images": images, "texts": [{"user": "q", "assistant": "a"}]})
    assert (shape(out), out.images) == ([("u", "q"), ("a", "a")], ())
    assert run({"texts": [{"user": "q", "assistant": "a"}]}).images == ()
    assert reason({"images": images, "texts": [{"user": "q", "assistant": "a"}]}, min_images=1) == "too-few-images"


@pytest.mark.parametrize("texts", [None, [], [None], [{"user": "q", "assistant": None}], [{"user": "q", "assistant": " \n"}]])
def test_no_answer(texts: Any) -> None:
    assert reason({"images": [b"1"], "texts": texts}) == "no-answer"


@pytest.mark.parametrize("texts", ["text", 3, ["q"], [{"user": 1, "assistant": "a"}], {"user": ["q"], "assistant": []}])
def test_a_layout_nobody_knows(texts: Any) -> None:
    assert reason({"images": [b"1"], "texts": texts}) == "layout"


def test_texts_as_a_struct_of_lists() -> None:
    out = run({"images": None, "texts": {"user": ["q", None], "assistant": ["a", "b"]}})
    assert shape(out) == [("u", "q"), ("a", "a"), ("u", ""), ("a", "b")]


def test_turns_without_an_answer_are_dropped_and_counted() -> None:
    out = run(row(("q", "a"), None, ("", ""), ("r", None), (None, "b"), ("s", "  ")))
    assert shape(out) == [("u", "<image>\nq"), ("a", "a"), ("u", ""), ("a", "b")]
    assert out.dropped_turns == 4
    assert out.meta["dropped"] == "no-answer:4"


def test_markers_stand_where_they_are_when_there_is_one_for_each_image() -> None:
    out = run(row(("<image> and", "a"), ("then<image>", "b"), images=(b"1", b"2")))
    assert out.anchors == ((0, 0), (2, 4))
    assert reason(row(("<image><image>", "a"))) == "image-markers"
    assert reason(row(("<image>", "a"), ("<image>", "b"))) == "image-markers"
    assert reason(row(("<image>", "a"), images=())) == "image-markers"
    out = run(row(("what is <image>?", "a"), images=()), markers="text")
    assert shape(out)[0] == ("u", "what is <image>?")
    out = run(row(("what is <image>?", "a")), markers="text")
    assert (shape(out)[0], out.anchors) == (("u", "<image>\nwhat is <image>?"), ((0, 0),))


def test_a_marker_in_an_answer_is_text() -> None:
    out = run(row(("q", "say <image>")))
    assert (out.anchors, shape(out)[1]) == (((0, 0),), ("a", "say <image>"))


def test_images_of_dropped_turns_move_to_the_next_kept_turn() -> None:
    texts = [("<image> one", ""), ("<image> two", "b"), ("three", "c"), ("<image> four", "")]
    out = run(row(*texts, images=(b"1", b"2", b"3")))
    assert shape(out) == [("u", "<image>\n<image> two"), ("a", "b"), ("u", "three"), ("a", "c")]
    assert (out.images, out.anchors) == ((b"1", b"2"), ((0, 0), (0, 8)))
    assert out.meta == {"dropped": "no-answer:2", "dropped_images": "1"}


def test_ratings_stored_as_floats() -> None:
    assert run(row(("q", "a"), ("r", "b"), relevance_ratings=[4.0, 2.0]), min_ratings={"relevance": 3}).answers == 1


RATED = row(("q", "a"), ("r", "b"), ("s", "c"), relevance_ratings=[5, 2, 4], formatting_ratings=[1, 5, None])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, "abc"),
        ({"min_ratings": {"relevance": 3}}, "ac"),
        ({"min_ratings": {"relevance": 5}}, "a"),
        ({"min_ratings": {"formatting": 2}}, "bc"),
        ({"min_ratings": {"formatting": 2}, "null_ratings": "drop"}, "b"),
        ({"min_ratings": {"relevance": 3, "formatting": 2}}, "c"),
        ({"min_ratings": {"visual_dependency": 5}}, "abc"),
        ({"max_turns": 2}, "ab"),
        ({"max_turns": 1, "min_ratings": {"formatting": 2}}, "b"),
        ({"user_text": "r"}, "b"),
        ({"user_text": ["r", "s"]}, "bc"),
        ({"user_text": ""}, "abc"),
    ],
)
def test_turn_and_rating_rules(options: dict[str, Any], kept: str) -> None:
    out = run(RATED, **options)
    assert "".join(message.content for message in out.messages if message.role == "assistant") == kept
    assert out.dropped_turns == 3 - len(kept)


@pytest.mark.parametrize("ratings", [None, [], [None, None, None], [5], [0, -1, 99], "5", 5, [float("nan"), 4.5, True], ["5"]])
def test_ratings_that_are_none(ratings: Any) -> None:
    """Null, missing, short, out of range: no rating, kept or dropped as the policy says."""
    rated = row(("q", "a"), ("r", "b"), ("s", "c"), relevance_ratings=ratings)
    assert run(rated, min_ratings={"relevance": 3}).answers == 3
    if ratings == [5]:
        assert run(rated, min_ratings={"relevance": 3}, null_ratings="drop").answers == 1
    else:
        assert reason(rated, min_ratings={"relevance": 3}, null_ratings="drop") == "rating"


def test_ratings_belong_to_turns_by_position_also_after_a_null_turn() -> None:
    rated = row(None, ("q", "a"), ("r", "b"), relevance_ratings=[5, 1, 5])
    assert shape(run(rated, min_ratings={"relevance": 2}))[1] == ("a", "b")


def test_reasons_name_the_rule_that_took_the_last_turn() -> None:
    assert reason(RATED, user_text="nobody asks this") == "turn-choice"
    assert reason(row(("q", "a"), relevance_ratings=[1]), min_ratings={"relevance": 2}) == "rating"
    assert reason(row(("q", "a"), images=(b"1", b"2")), max_images=1) == "too-many-images"


def test_turn_choice_looks_past_markers_and_blanks() -> None:
    out = run(row(("<image>\nConvert this page to docling. ", "<doctag>"), ("Why?", "so")),
              user_text="Convert this page to docling.")  # fmt: skip
    assert shape(out) == [("u", "<image>\nConvert this page to docling. "), ("a", "<doctag>")]


def test_prompts_replace_the_question_and_are_drawn_by_the_row() -> None:
    assert shape(run(row(("OCR", "a")), prompts="Free OCR."))[0] == ("u", "<image>\nFree OCR.")
    assert shape(run(row(("OCR <image>", "a")), prompts="Free OCR."))[0] == ("u", "<image>\nFree OCR.")
    out = run(row(("OCR <image>", "a")), prompts="Please: {user}!")
    assert (shape(out)[0], out.anchors) == (("u", "Please: OCR <image>!"), ((0, 12),))
    many = {shape(convert(row(("q", "a")), source="s", row_id=str(k), options=Options(prompts=["x", "y", "{user}"])))[0][1]
            for k in range(50)}  # fmt: skip
    assert many == {"<image>\nx", "<image>\ny", "<image>\nq"}
    assert shape(run(row(("{user} {0}", "a")), prompts="{user}{user}"))[0][1] == "<image>\n{user} {0}{user}"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"null_ratings": "maybe"}, "null_ratings = 'maybe': choose from keep, drop"),
        ({"otsl": "latex"}, "otsl = 'latex': choose from off, keep, html, markdown"),
        ({"min_ratings": {"quality": 3}}, "min_ratings axis 'quality': choose from relevance"),
        ({"min_ratings": {"relevance": 6}}, "min_ratings relevance = 6: ratings are 1 to 5"),
        ({"min_ratings": 3}, "min_ratings = 3: must be a table"),
        ({"max_turns": -1}, "max_turns = -1"),
        ({"prompts": ["<image> x"]}, "images are placed by rule"),
        ({"prompts": 5}, "prompts = 5: must be a text or a list of texts"),
        ({"user_text": True}, "user_text = True: must be a text or a list of texts"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as error:
        Options(**options)
    assert text in str(error.value)


def test_turns_with_other_fields_are_named() -> None:
    with pytest.raises(Reject, match="a turn has the fields question, answer, not user and assistant"):
        run({"texts": [{"question": "q", "answer": "a"}]})


def test_page_breaks_need_several_images() -> None:
    assert run(row(("q", "a<page_break>b"), images=(b"1", b"2"))).page_breaks
    assert not run(row(("q", "a<page_break>b"))).page_breaks
    assert not run(row(("q", "a"), images=(b"1", b"2"))).page_breaks


def test_molecules_are_told_apart_by_their_smiles() -> None:
    one = run(row(("q", "CCO"), images=(b"1",), canonical_smiles="CCO"))
    two = run(row(("q", "CCO"), images=(b"2",), canonical_smiles="CCO"))
    assert one.key_hash() == two.key_hash()
    assert one.meta["smiles"] == "CCO"


ANY = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=3) | st.sampled_from([MARKER, "a", "b"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["user", "assistant", "bytes", "path"]), inner, max_size=4),
    max_leaves=12,
)


@given(ANY, ANY, ANY, st.sampled_from(["place", "text"]), st.sampled_from(["keep", "drop"]))
def test_any_values_give_a_conversation_or_a_reject(images: Any, texts: Any, ratings: Any, markers: str, null: str) -> None:
    """No other exception, whatever is in the columns; Conversation checks its own anchors."""
    data = {"images": images, "texts": texts, "relevance_ratings": ratings, "source": ratings}
    try:
        out = run(data, markers=markers, null_ratings=null, min_ratings={"relevance": 3}, gt_parse="text", max_turns=2)
    except Reject as error:
        if not error.detail:
            raise
        return
    assert out.answers >= 1
    assert len(out.images) == len(out.anchors)
