"""Packing loses nothing, overfills nothing, and fills well."""

import random

from hypothesis import given
from hypothesis import strategies as st

from pipeline.pack import fill, pack


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, 4096)), max_size=200), st.integers(0, 9))
def test_every_sample_once_and_no_row_over_full(samples: list[tuple[int, int]], seed: int) -> None:
    lengths, patches = [s[0] for s in samples], [s[1] for s in samples]
    rows = pack(lengths, patches, 64, random.Random(seed))
    assert sorted(i for row in rows for i in row) == list(range(len(samples)))
    assert all(row and sum(lengths[i] for i in row) <= 64 for row in rows)
    assert rows == pack(lengths, patches, 64, random.Random(seed))


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200))
def test_at_most_one_row_is_half_empty(lengths: list[int]) -> None:
    rows = pack(lengths, [0] * len(lengths), 64, random.Random(0))
    assert sum(sum(lengths[i] for i in row) <= 32 for row in rows) <= 1


def test_worked_example() -> None:
    lengths = [6, 5, 4, 3, 2]
    rows = pack(lengths, [0] * 5, 10, random.Random(0))
    assert sorted(sorted(row) for row in rows) == [[0, 2], [1, 3, 4]]
    assert fill(lengths, len(rows), 10) == 1.0


def test_equally_full_rows_share_the_image_work() -> None:
    rows = pack([6, 6, 4, 4], [100, 0, 50, 1], 10, random.Random(0))
    assert sorted(sorted(row) for row in rows) == [[0, 3], [1, 2]]
