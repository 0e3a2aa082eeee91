"""The mask law and the layout, on any text, for several tokenizers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.conversation import Conversation, Message, Part
from pipeline.render import Rendered, render_conversations
from pipeline.tokens import SPECIAL_TOKENS, Tokenizer
from shards.masks import IGNORE, targets
from tests.pipeline.tiny import talk, tiny_tokenizer
from tests.pipeline.tokenizers_zoo import ZOO

HOSTILE = [*SPECIAL_TOKENS, "<image>", "<|im_start|>", "<|endoftext|>", "</s>", "<think>", "[PAD]", "\x00", " ", "\n", "字"]
TEXT = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8)), max_size=6).map("".join)
ANSWER = TEXT.map(lambda text: text + "x")


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Conversation, list[int]]:
    """A conversation of hostile text with 0 to 3 images at hostile places, and the placeholders of each."""
    images = draw(st.integers(0, 3))
    turns = draw(st.lists(st.tuples(TEXT, ANSWER), min_size=1, max_size=3))
    texts = [text.replace("<image>", "<img>") if index % 2 == 0 else text for turn in turns for index, text in enumerate(turn)]
    if draw(st.booleans()):
        for _ in range(images):
            at = 2 * draw(st.integers(0, len(turns) - 1))
            place = draw(st.integers(0, len(texts[at])))
            texts[at] = texts[at][:place] + "<image>" + texts[at][place:]
    while sum(text.count("<image>") for text in texts[::2]) not in (0, images):  # a marker put inside another one
        texts[::2] = [text.replace("<image>", "") for text in texts[::2]]
    conversation = talk(*texts, images=images, system=draw(st.sampled_from(["", "Be <|bos|> kind."])))
    return conversation, draw(st.lists(st.integers(1, 30), min_size=images, max_size=images))


def check_mask_law(conversation: Conversation, counts: list[int], out: Rendered, tokenizer: Tokenizer) -> None:
    """The law, stated on ids, mask and targets alone."""
    specials = tokenizer.specials
    mask = np.frombuffer(out.mask, dtype=np.uint8)
    labels = targets(out.ids, mask, "all")
    answers = targets(out.ids, mask, "answer")
    assert out.ids.dtype == np.int32
    assert len(out.ids) == len(out.mask) == len(labels)
    # No target is a placeholder, padding or bos.
    assert not np.isin(labels, [specials.image, specials.pad, specials.bos]).any()
    # Every text token, including the first one after an image, is a target; nothing else is.
    is_text = (out.ids != specials.image) & (out.ids != specials.bos)
    assert np.array_equal(labels[:-1] != IGNORE, is_text[1:])
    for _, stop in out.spans:
        if stop < len(out.ids) and out.ids[stop] != specials.image:
            assert labels[stop - 1] == out.ids[stop]
    # The placeholders are exactly the spans, and no text made one.
    placed = np.zeros(len(out.ids), bool)
    for (start, stop), count in zip(out.spans, counts, strict=True):
        assert stop - start == count
        placed[start:stop] = True
    assert np.array_equal(placed, out.ids == specials.image)
    # Control tokens: one set for each message, whatever the text says.
    users = sum(message.role == "user" for message in conversation.messages)
    for name in ("user_start", "user_end", "assistant_start", "assistant_end"):
        assert int((out.ids == getattr(specials, name)).sum()) == users
    assert int((out.ids == specials.bos).sum()) == 1
    assert out.ids[0] == specials.bos
    # The answers are the targets of loss "answer", each closed by its assistant_end.
    got = tokenizer.decode(answers[answers != IGNORE].tolist())
    assert got.count("x<|assistant_end|>") >= conversation.answers
    assert out.turns[0][0] == 1
    assert out.turns[-1][1] == len(out.ids)


@given(st.lists(conversations(), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_mask_law_on_hostile_text(batch: list[tuple[Conversation, list[int]]]) -> None:
    tokenizer = tiny_tokenizer()
    out = render_conversations([conv for conv, _ in batch], [counts for _, counts in batch], tokenizer)
    for (conversation, counts), rendered in zip(batch, out, strict=True):
        check_mask_law(conversation, counts, rendered, tokenizer)
        alone = render_conversations([conversation], [counts], tokenizer)[0]
        assert np.array_equal(alone.ids, rendered.ids)


@pytest.mark.parametrize("name", ZOO)
@given(data=conversations())
@settings(max_examples=40, deadline=None)
def test_mask_law_for_tokenizers_with_their_own_added_tokens(name: str, data: tuple[Conversation, list[int]]) -> None:
    tokenizer = ZOO[name]()
    conversation, counts = data
    check_mask_law(conversation, counts, render_conversations([conversation], [counts], tokenizer)[0], tokenizer)


def names(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids)


def test_layout_token_by_token() -> None:
    tokenizer = tiny_tokenizer()
    out = render_conversations([talk("Read.", "Hi", "More", "Ho", images=1, system="Sys")], [[3]], tokenizer)[0]
    assert names(tokenizer, out.ids.tolist()) == (
        "<|bos|><|user_start|>Sys\n\n<|image|><|image|><|image|>\nRead.<|user_end|><|assistant_start|>Hi<|assistant_end|>"
        "<|user_start|>More<|user_end|><|assistant_start|>Ho<|assistant_end|>"
    )
    for code, text in {
        0: "<|bos|><|image|><|image|><|image|>",
        1: "<|user_start|>Sys\n\n\nRead.<|user_end|><|assistant_start|><|user_start|>More<|user_end|><|assistant_start|>",
        2: "Hi<|assistant_end|>Ho<|assistant_end|>",
    }.items():
        assert names(tokenizer, out.ids[np.frombuffer(out.mask, dtype=np.uint8) == code].tolist()) == text


def test_tool_parts_are_learned_but_the_tools_output_is_not() -> None:
    tokenizer = tiny_tokenizer()
    parts = (Part(kind="text", text="It is "), Part(kind="python", text="6*7"), Part(kind="output", text="42"),
             Part(kind="text", text="42."))  # fmt: skip
    conversation = Conversation(
        messages=(Message(role="user", content="q"), Message(role="assistant", content="raw", parts=parts)),
        source="s", row="r",
    )  # fmt: skip
    out = render_conversations([conversation], [[]], tokenizer)[0]
    text = names(tokenizer, out.ids.tolist())
    assert text == ("<|bos|><|user_start|>q<|user_end|><|assistant_start|>It is <|python_start|>6*7<|python_end|>"
                    "<|output_start|>42<|output_end|>42.<|assistant_end|>")  # fmt: skip
    learned = np.frombuffer(out.mask, dtype=np.uint8) == 2
    assert names(tokenizer, out.ids[learned].tolist()) == "It is <|python_start|>6*7<|python_end|>42.<|assistant_end|>"


def test_an_empty_batch() -> None:
    assert render_conversations([], [], tiny_tokenizer()) == []


def test_system_text_and_user_text_are_encoded_as_one() -> None:
    tokenizer = tiny_tokenizer()
    joined, plain = talk("quick", "a", system="the"), talk("the\n\nquick", "a")
    one, two = render_conversations([joined, plain], [[], []], tokenizer)
    assert np.array_equal(one.ids, two.ids)
    assert one.mask == two.mask


def test_an_empty_user_text_keeps_its_answer() -> None:
    tokenizer = tiny_tokenizer()
    out = render_conversations([talk("", "yes", images=1)], [[2]], tokenizer)[0]
    assert names(tokenizer, out.ids.tolist()) == (
        "<|bos|><|user_start|><|image|><|image|>\n<|user_end|><|assistant_start|>yes<|assistant_end|>")  # fmt: skip
