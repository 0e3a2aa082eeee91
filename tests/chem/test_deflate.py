"""The deflate stream with background above and below: what zlib reads back, and how little the background costs."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.chem.deflate import deflate_lines


@given(
    width=st.one_of(st.integers(1, 40), st.sampled_from((255, 256, 257, 258, 259, 1025, 3073, 12289, 32768, 32769))),
    above=st.integers(0, 40), drawn=st.integers(0, 5), below=st.integers(0, 40), seed=st.integers(0, 99), flat=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_round_trip(width: int, above: int, drawn: int, below: int, seed: int, flat: bool) -> None:
    height = max(1, above + drawn + below)
    lines = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    if flat:
        lines[:, 1:] = 255
    lines[:above], lines[height - below :] = lines[0], lines[-1]
    assert zlib.decompress(deflate_lines(lines, above, below)) == lines.tobytes()


@pytest.mark.parametrize("width", [1025, 3073])
def test_background_is_nearly_free(width: int) -> None:
    lines = np.full((1024, width), 255, dtype=np.uint8)
    lines[:, 0] = 0
    assert len(deflate_lines(lines, 500, 500)) < 3 / 258 * lines.size + 1000  # a match of 258 bytes takes at most 3
