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

Cost: the texts of a whole batch go to the tokenizer in one call; what is added is a tenth of the tokenizer's time.
"""

import struct
from collections.abc import Sequence
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

    ids: int32 [n]. mask: n bytes, a code each (short arrays are ten times slower to cut and count). spans: [start, stop) of
    each image's placeholders, in the images' order.
    turns: [start, stop) of each turn, from its user_start to behind its assistant_end.
    """

    ids: npt.NDArray[np.int32]
    mask: bytes
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
    ids: list[int] = []
    at = [0]  # [pieces + 1]: where each piece begins
    for piece in writer.pieces:
        ids += next(encoded) if isinstance(piece, str) else piece
        at.append(len(ids))
    # packed by struct, which takes a third of what np.array takes for a list
    all_ids = np.frombuffer(struct.pack(f"{len(ids)}i", *ids), dtype=np.int32)
    starts = np.frombuffer(struct.pack(f"{len(at)}q", *at), dtype=np.int64)
    codes = np.repeat(np.frombuffer(bytes(writer.codes), dtype=np.uint8), starts[1:] - starts[:-1])
    codes[[at[first] for first, *_ in writer.places]] = NOT_TARGET  # bos, which is in one piece with what follows it
    all_masks = codes.tobytes()
    out = []
    for first, last, images, stops in writer.places:
        start, stop = at[first], at[last]
        spans = tuple([(at[piece] - start, at[piece + 1] - start) for piece in images]) if images else ()
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
        self._specials = specials
        # what stands before, between and behind the texts; bos gets its own code when all is in one array
        self._first = [specials.bos, specials.user_start]
        self._user = [specials.user_start]
        self._assistant = [specials.user_end, specials.assistant_start]
        self._end = [specials.assistant_end]

    def add(self, conversation: Conversation, counts: Sequence[int]) -> None:
        """The next conversation; counts: the placeholders of each of its images."""
        assert len(counts) == len(conversation.images) == len(conversation.anchors)
        pieces, codes = self.pieces, self.codes
        first, images, stops = len(pieces), list[int](), list[int]()
        anchors = iter(zip(conversation.anchors, counts))
        anchor, count = next(anchors, (None, 0))
        before = self._first
        waiting: list[Piece] = []  # the system message's, until the first user message opens
        for index, (role, text, parts) in enumerate(conversation.messages):
            if role == "assistant":
                if parts:
                    self._parts(parts)
                else:
                    pieces += (self._assistant, text)
                    codes += (TEXT, ANSWER)
                pieces.append(self._end)
                codes.append(ANSWER)
                stops.append(len(pieces))
                continue
            body: list[Piece] = []
            at = 0
            while anchor is not None and anchor[0] == index:
                assert text.startswith(MARKER, anchor[1]) and anchor[1] >= at, (conversation.source, conversation.row)
                if anchor[1] > at:
                    body.append(text[at : anchor[1]])
                body.append([self._specials.image] * count)
                at = anchor[1] + len(MARKER)
                anchor, count = next(anchors, (None, 0))
            rest = text[at:]
            if role == "system":
                waiting = [*body, rest + "\n\n"]
                continue
            if waiting and not body:  # joined as text, so that it encodes as one text
                rest = str(waiting.pop()) + rest
            pieces.append(before)
            codes.append(TEXT)
            for piece in (*waiting, *body):
                if isinstance(piece, list):
                    images.append(len(pieces))
                pieces.append(piece)
                codes.append(NOT_TARGET if isinstance(piece, list) else TEXT)
            pieces.append(rest)
            codes.append(TEXT)
            before, waiting = self._user, []
        assert anchor is None
        assert not waiting and stops[-1] == len(pieces)
        self.places.append((first, len(pieces), images, stops))

    def _parts(self, parts: Sequence[Part]) -> None:
        """An answer that uses tools, from user_end on."""
        specials = self._specials
        self.pieces.append(self._assistant)
        self.codes.append(TEXT)
        for kind, text in parts:
            if kind == "text":
                self.pieces.append(text)
                self.codes.append(ANSWER)
            elif kind == "python":
                self.pieces += ([specials.python_start], text, [specials.python_end])
                self.codes += (ANSWER, ANSWER, ANSWER)
            else:
                self.pieces += ([specials.output_start], text, [specials.output_end])
                self.codes += (TEXT, TEXT, TEXT)
