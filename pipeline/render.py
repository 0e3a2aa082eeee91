"""Conversations to token ids and mask codes: one path for every modality.

    <|bos|> { <|user_start|> text <|user_end|> <|assistant_start|> answer <|assistant_end|> } for every turn
       0           1          1        1               1              2            2

Mask codes (shards.masks): 0 is never a target (bos, every image placeholder), 1 is text outside the answers, 2 is answer
text. A system message is joined to the first user text with a blank line. An answer with tool parts:
<|python_start|> code <|python_end|> are 2, <|output_start|> result <|output_end|> are 1 (the tool wrote it). An image is
its mode's number of <|image|> tokens, at its marker's place.

    user "<image>\\nRead.", answer "Hi", one image of 3 placeholders:
    bos user_start image image image "\\n" "Read" "." user_end assistant_start "Hi" assistant_end
     0      1        0     0     0     1     1    1     1           1           2        2

Cost: the texts of a whole batch go to the tokenizer in one call; what is added is under a fifth of the tokenizer's time.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.conversation import MARKER, Conversation
from pipeline.tokens import Specials, Tokenizer
from shards.masks import ANSWER, NOT_TARGET, TEXT

Piece = tuple[str | None, int, int, int]
"""(text, 0, 1, mask) for text; (None, id, repeats, mask) for a run of one special token."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rendered:
    """Token ids of one conversation.

    ids: int32 [n]. mask: uint8 [n]. spans: [start, stop) of each image's placeholders, in the images' order.
    turns: [start, stop) of each turn, from its user_start to behind its assistant_end.
    """

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.uint8]
    spans: tuple[tuple[int, int], ...]
    turns: tuple[tuple[int, int], ...]


def render_conversations(
    conversations: Sequence[Conversation], placeholders: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> list[Rendered]:
    """Renders a batch, a row group say. placeholders: for each conversation the tokens of each of its images."""
    assert len(conversations) == len(placeholders)
    if not conversations:
        return []
    specials = tokenizer.specials
    plans = [_pieces(conv, counts, specials) for conv, counts in zip(conversations, placeholders)]
    encoded = iter(tokenizer.encode_batch([piece[0] for plan in plans for piece in plan if piece[0] is not None]))
    # Lists for the whole batch become arrays once: a call into numpy costs as much as encoding three words.
    ids: list[int] = []
    lengths: list[int] = []
    places = []
    for plan in plans:
        start = turn = len(ids)
        spans, turns = [], []
        turn += 1  # behind bos
        for text, token, repeats, _ in plan:
            at = len(ids)
            if text is not None:
                ids += next(encoded)
            elif token == specials.image:
                ids += [token] * repeats
                spans.append((at - start, at - start + repeats))
            else:
                ids.append(token)
                if token == specials.assistant_end:
                    turns.append((turn - start, at + 1 - start))
                    turn = at + 1
            lengths.append(len(ids) - at)
        places.append((start, len(ids), tuple(spans), tuple(turns)))
    all_ids = np.frombuffer(struct.pack(f"{len(ids)}i", *ids), dtype=np.int32)  # a third of what np.array takes for a list
    all_masks = np.repeat(np.array([piece[3] for plan in plans for piece in plan], dtype=np.uint8), lengths)
    return [Rendered(ids=all_ids[start:stop], mask=all_masks[start:stop], spans=spans, turns=turns)
            for start, stop, spans, turns in places]  # fmt: skip


def _pieces(conversation: Conversation, counts: Sequence[int], specials: Specials) -> list[Piece]:
    """The conversation as runs of special tokens and stretches of text, in order."""
    assert len(counts) == len(conversation.images)
    images = iter(zip(conversation.anchors, counts))
    anchor, count = next(images, (None, 0))
    pieces: list[Piece] = [(None, specials.bos, 1, NOT_TARGET)]
    waiting: list[Piece] = []  # the system message's, until the first user message opens
    for index, message in enumerate(conversation.messages):
        if message.role == "assistant":
            pieces.append((None, specials.assistant_start, 1, TEXT))
            for part in message.parts:
                if part.kind == "text":
                    pieces.append((part.text, 0, 1, ANSWER))
                else:
                    first, last, code = (
                        (specials.python_start, specials.python_end, ANSWER) if part.kind == "python"
                        else (specials.output_start, specials.output_end, TEXT)
                    )  # fmt: skip
                    pieces += [(None, first, 1, code), (part.text, 0, 1, code), (None, last, 1, code)]
            if not message.parts:
                pieces.append((message.content, 0, 1, ANSWER))
            pieces.append((None, specials.assistant_end, 1, ANSWER))
            continue
        body: list[Piece] = []
        text, at = message.content, 0
        while anchor is not None and anchor[0] == index:
            if anchor[1] > at:
                body.append((text[at : anchor[1]], 0, 1, TEXT))
            body.append((None, specials.image, count, NOT_TARGET))
            at = anchor[1] + len(MARKER)
            anchor, count = next(images, (None, 0))
        rest = text[at:] + ("\n\n" if message.role == "system" else "")
        if message.role == "system":
            waiting = [*body, (rest, 0, 1, TEXT)]
            continue
        if body or not waiting:
            body.append((rest, 0, 1, TEXT))
        else:  # joined as text, so that it encodes as one text
            waiting[-1] = ((waiting[-1][0] or "") + rest, 0, 1, TEXT)
        pieces += [(None, specials.user_start, 1, TEXT), *waiting, *body, (None, specials.user_end, 1, TEXT)]
        waiting = []
    assert anchor is None
    assert not waiting
    return pieces
