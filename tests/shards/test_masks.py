"""The mask law, and targets against a plain loop."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import masks
from shards.masks import IGNORE, Loss, check, target_count, targets
from tests.shards.making import SPECIALS, VOCAB, law

CODES = st.lists(st.sampled_from(masks.CODES), min_size=1, max_size=60)


@given(CODES, st.sampled_from(["all", "answer"]))
@settings(max_examples=150, deadline=None)
def test_targets_are_the_next_token_where_its_own_mask_says_so(codes: list[int], loss: Loss) -> None:
    mask = np.array(codes, np.uint8)
    ids = np.arange(100, 100 + len(codes), dtype=np.int32)
    found = targets(ids, mask, loss)
    least = 1 if loss == "all" else 2
    expected = [int(ids[t + 1]) if codes[t + 1] >= least else IGNORE for t in range(len(codes) - 1)] + [IGNORE]
    assert found.tolist() == expected and found.dtype == np.int64
    assert target_count(mask, loss) == sum(label != IGNORE for label in expected)


def test_the_worked_example() -> None:
    """BOS <user> I I Q </user> <asst> A </asst>: the second placeholder predicts Q, nothing predicts a placeholder."""
    ids = np.array([1, 20, 2, 2, 30, 21, 22, 40, 23], np.int32)
    mask = np.array([0, 1, 0, 0, 1, 1, 1, 2, 2], np.uint8)
    assert targets(ids, mask).tolist() == [20, -1, -1, 30, 21, 22, 40, 23, -1]
    assert targets(ids, mask, "answer").tolist() == [-1, -1, -1, -1, -1, -1, 40, 23, -1]
    assert not np.any(targets(ids, mask) == SPECIALS["<|image|>"])


def checked(ids: Any, mask: Any, placeholders: int = 0) -> None:
    check(ids, mask, image_id=SPECIALS["<|image|>"], pad_id=SPECIALS["<|pad|>"], bos_id=SPECIALS["<|bos|>"],
          placeholders=placeholders, vocab_size=VOCAB)


@given(st.integers(0, 30), st.integers(1, 30), st.integers(0, 30))
@settings(max_examples=50, deadline=None)
def test_a_lawful_sample_passes(text: int, answer: int, placeholders: int) -> None:
    ids, mask = law(text, answer, placeholders)
    checked(ids, mask, placeholders)


@pytest.mark.parametrize(("change", "message"), [
    ("dtype", "int32"), ("shape", "int32"), ("length", "int32"), ("empty", "BOS"), ("no bos", "BOS"), ("bos target", "BOS"),
    ("negative id", "vocabulary"), ("large id", "vocabulary"), ("code", "mask code 3"), ("padding", "padding"),
    ("one placeholder more", "5 placeholders where the images need 4"), ("placeholder target", "placeholder is a target"),
    ("text untrained", "text token is not a target"), ("no answer", "without an answer")])
def test_every_breach_is_named(change: str, message: str) -> None:
    ids, mask = law(3, 2, 4)
    expected = 4
    if change == "dtype":
        ids = ids.astype(np.int64)
    elif change == "shape":
        ids, mask = ids[None], mask[None]
    elif change == "length":
        mask = mask[:-1]
    elif change == "empty":
        ids, mask = ids[:0], mask[:0]
    elif change == "no bos":
        ids[0] = 10
    elif change == "bos target":
        mask[0] = 1
    elif change == "negative id":
        ids[6] = -1
    elif change == "large id":
        ids[6] = VOCAB
    elif change == "code":
        mask[-1] = 3
    elif change == "padding":
        ids[6] = SPECIALS["<|pad|>"]
    elif change == "one placeholder more":
        ids[6], mask[6] = SPECIALS["<|image|>"], 0
    elif change == "placeholder target":
        mask[2] = 1
    elif change == "text untrained":
        mask[6] = 0
    elif change == "no answer":
        mask[mask == 2] = 1
    with pytest.raises(ValueError, match=message):
        checked(ids, mask, expected)
