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

Cost: the texts of a whole batch go to the tokenizer in one call; what is added is a twentieth of the tokenizer's time.
"""

import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.conversation import MARKER, Conversation, Part
from pipeline.tokens import Specials, Tokenizer
from shards.masks import ANSWER, NOT_TARGET, TEXT

Piece = str | list[int]
"""A text, or ids that stand for themselves: special tokens."""


class Rendered(NamedTuple):
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
    """Renders a batch, a row group say. placeholders: for each conversation the tokens of each of its images.

    All conversations are one run of pieces: stage by stage over the batch, so that numpy is called once and not for each.
    """
    assert len(conversations) == len(placeholders)
    if not conversations:
        return []
    writer = _Writer(tokenizer.specials)
    for conversation, counts in zip(conversations, placeholders):
        writer.add(conversation, counts)
    encoded = iter(tokenizer.encode_batch([piece for piece in writer.pieces if isinstance(piece, str)]))
    runs = [next(encoded) if isinstance(piece, str) else piece for piece in writer.pieces]
    lengths = list(map(len, runs))
    ids: list[int] = []
    for run in runs:
        ids += run
    all_ids = np.frombuffer(struct.pack(f"{len(ids)}i", *ids), dtype=np.int32)  # a third of what np.array takes for a list
    all_masks = np.repeat(np.array(writer.codes, dtype=np.uint8), lengths)
    at = list(accumulate(lengths, initial=0))  # [pieces + 1]: where each piece begins
    out = []
    for first, last, images, stops in writer.places:
        start, stop = at[first], at[last]
        spans = tuple([(at[piece] - start, at[piece + 1] - start) for piece in images])
        ends = [at[piece] - start for piece in stops]
        out.append(Rendered(all_ids[start:stop], all_masks[start:stop], spans, tuple(zip([1, *ends], ends))))
    return out


class _Writer:
    """Writes conversations as pieces, one behind the other.

    pieces, codes: every piece and its mask code. places: for each conversation its first piece and the one behind its last, the
    pieces that are images, and the piece behind each of its turns.
    """

    def __init__(self, specials: Specials) -> None:
        self.pieces: list[Piece] = []
        self.codes: list[int] = []
        self.places: list[tuple[int, int, list[int], list[int]]] = []
        self._image = specials.image
        self._special = {name: [token] for name, token in specials.as_dict().items()}

    def add(self, conversation: Conversation, counts: Sequence[int]) -> None:
        """The next conversation; counts: the placeholders of each of its images."""
        assert len(counts) == len(conversation.images)
        pieces, codes, special = self.pieces, self.codes, self._special
        first, images, stops = len(pieces), list[int](), list[int]()
        anchors = iter(zip(conversation.anchors, counts))
        anchor, count = next(anchors, (None, 0))
        pieces.append(special["bos"])
        codes.append(NOT_TARGET)
        waiting: list[Piece] = []  # the system message's, until the first user message opens
        for index, (role, text, parts) in enumerate(conversation.messages):
            if role == "assistant":
                pieces.append(special["assistant_start"])
                codes.append(TEXT)
                self._answer(text, parts)
                pieces.append(special["assistant_end"])
                codes.append(ANSWER)
                stops.append(len(pieces))
                continue
            body: list[Piece] = []
            at = 0
            while anchor is not None and anchor[0] == index:
                if anchor[1] > at:
                    body.append(text[at : anchor[1]])
                body.append([self._image] * count)
                at = anchor[1] + len(MARKER)
                anchor, count = next(anchors, (None, 0))
            rest = text[at:]
            if role == "system":
                waiting = [*body, rest + "\n\n"]
                continue
            if waiting and not body:  # joined as text, so that it encodes as one text
                rest = str(waiting.pop()) + rest
            pieces.append(special["user_start"])
            codes.append(TEXT)
            for piece in (*waiting, *body):
                if isinstance(piece, list):
                    images.append(len(pieces))
                pieces.append(piece)
                codes.append(NOT_TARGET if isinstance(piece, list) else TEXT)
            pieces += (rest, special["user_end"])
            codes += (TEXT, TEXT)
            waiting = []
        assert anchor is None
        assert not waiting
        self.places.append((first, len(pieces), images, stops))

    def _answer(self, text: str, parts: Sequence[Part]) -> None:
        """What stands between assistant_start and assistant_end."""
        if not parts:
            self.pieces.append(text)
            self.codes.append(ANSWER)
            return
        for kind, piece in parts:
            if kind == "text":
                self.pieces.append(piece)
                self.codes.append(ANSWER)
            else:
                code = ANSWER if kind == "python" else TEXT
                self.pieces += (self._special[f"{kind}_start"], piece, self._special[f"{kind}_end"])
                self.codes += (code, code, code)
