"""KEY.json from the build: the bytes that the format's own encoder gives, whatever the text."""

import json

from hypothesis import given
from hypothesis import strategies as st

from pipeline.build.task import sample_json
from pipeline.conversation import Conversation, Message, Part
from pipeline.cut import Fitted
from pipeline.images import FittedImage
from pipeline.render import render_conversations
from shards.geometry import placeholders
from shards.sample import encode_json
from tests.pipeline.tiny import talk, tiny_tokenizer

TEXT = st.text(st.characters(codec=None) | st.sampled_from('"\\\n\t\x00\x1f\x7f\u2028\ud800\udfff'), max_size=40)
PARTS = st.lists(st.tuples(st.sampled_from(["text", "python", "output"]), TEXT).map(lambda part: Part(*part)), max_size=3)


def picture(tiles: tuple[int, int]) -> FittedImage:
    """A fitted image; its bytes do not matter here."""
    return FittedImage(data=b"x", suffix="png", mode="gundam" if tiles != (0, 0) else "tiny", width=5, height=6, source_width=50,
                       source_height=60, kept=False, tiles=tiles)


@given(st.lists(st.tuples(TEXT, TEXT, PARTS), min_size=1, max_size=3), st.dictionaries(TEXT, TEXT, max_size=3), TEXT,
       st.sampled_from([(0, 1), (1, 3)]), st.sampled_from([(), ((0, 0),), ((0, 0), (2, 3))]))
def test_it_is_what_the_formats_encoder_writes(turns: list[tuple[str, str, list[Part]]], meta: dict[str, str], cut: str,
                                               part: tuple[int, int], tiles: tuple[tuple[int, int], ...]) -> None:
    messages = [message for user, answer, parts in turns
                for message in (Message("user", user), Message("assistant", answer, tuple(parts)))]
    conversation = Conversation(tuple(messages), "so\"urce", "r\ud800#1", meta=meta,
                                anchors=tuple((0, 7 * k) for k in range(len(tiles))))
    rendered = render_conversations([talk("q", "a")], [[]], tiny_tokenizer())[0]
    images = [picture(shape) for shape in tiles]
    facts = {**meta, **({"part": "2/3"} if part[1] > 1 else {})}
    data = sample_json(Fitted(conversation, rendered, tuple(range(len(images))), cut, part), images)
    assert data == encode_json({
        "cut": cut, "row": "r\ud800#1", "source": "so\"urce", "meta": json.dumps(facts, ensure_ascii=False, sort_keys=True),
        "messages": [{"role": message.role, "content": message.content,
                      "parts": [{"kind": kind, "text": text} for kind, text in message.parts]} for message in messages],
        "images": [{"height": 6, "width": 5, "source_height": 60, "source_width": 50, "message": 0, "offset": 7 * number,
                    "mode": image.mode, "placeholders": placeholders(image.mode, image.tiles), "tiles": list(image.tiles)}
                   for number, image in enumerate(images)]})
