"""Members of a sample and back; npy against numpy."""

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shards.sample import KEY, decode, decode_npy, encode, encode_json, encode_npy, encoded_size, make_key, members
from tests.shards.making import image_meta, meta

KEY0 = make_key("train", 0, 0)


@given(hnp.arrays(np.int32, st.integers(0, 300)), hnp.arrays(np.uint8, st.integers(0, 300)))
@settings(max_examples=60, deadline=None)
def test_npy_is_numpys(ids: Any, mask: Any) -> None:
    for vector, dtype in ((ids, "<i4"), (mask, "|u1")):
        sink = io.BytesIO()
        np.save(sink, vector)
        data = encode_npy(vector)
        assert data == sink.getvalue()
        back = decode_npy(data, dtype)
        assert back.dtype == vector.dtype and np.array_equal(back, vector)
        back[:] = 0  # a copy, so a batch may be changed in place


@pytest.mark.parametrize("length", [0, 9, 10, 99, 100, 999_999, 1_000_000])
def test_npy_header_grows_with_the_length(length: int) -> None:
    vector = np.zeros(length, np.uint8)
    assert np.array_equal(np.load(io.BytesIO(encode_npy(vector)), allow_pickle=False), vector)
    assert len(encode_npy(vector)) - length == 128


def test_npy_refuses_everything_else() -> None:
    def saved(value: Any, **options: Any) -> bytes:
        sink = io.BytesIO()
        np.save(sink, value, **options)
        return sink.getvalue()

    good = encode_npy(np.arange(5, dtype=np.int32))
    others = [b"", good[:20], good + b"\0", good[:-1], good[:6] + b"\2" + good[7:], saved(np.arange(5)),
              saved(np.zeros((2, 2), np.int32)), saved(np.arange(5, dtype=">i4")),
              saved(np.array([{"a": 1}], dtype=object), allow_pickle=True)]
    for data in others:
        with pytest.raises(ValueError, match="npy"):
            decode_npy(data, "<i4")


META = st.fixed_dictionaries({
    "source": st.text(), "row": st.text(), "cut": st.text(), "meta": st.just("{}"), "images": st.just([]),
    "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text(), "parts": st.just([])}))})


@given(META, hnp.arrays(np.int32, st.integers(0, 50)))
@settings(max_examples=80, deadline=None)
def test_a_sample_comes_back(body: dict[str, Any], ids: Any) -> None:
    fields = encode(body, ids, ids.astype(np.uint8), [])
    assert b"\n" not in fields[0][1]
    sample = decode(KEY0, fields)
    assert (sample.key, sample.meta) == (KEY0, body)
    assert np.array_equal(sample.ids, ids) and sample.mask.dtype == np.uint8
    assert encode(sample.meta, sample.ids, sample.mask, sample.images) == fields


def test_a_mask_of_another_dtype_is_not_written_as_codes() -> None:
    body = {"images": [], "messages": []}
    ids = np.arange(3, dtype=np.int32)
    with pytest.raises(ValueError, match="npy"):
        decode(KEY0, encode(body, ids, np.ones(3, np.int64), []))  # type: ignore[arg-type]
    assert members(encode_json(body), ids, b"\0\1\2", []) == encode(body, ids, np.arange(3, dtype=np.uint8), [])


def test_json_is_utf8_whatever_the_text() -> None:
    """A lone surrogate has no UTF-8; other readers would stop at it, so it is replaced."""
    data = encode_json({"content": "a\ud800b \U0001f600 \0 \u2028"})
    assert json.loads(data.decode("utf-8"))["content"] == "a\ufffdb \U0001f600 \0 \u2028"


def test_images_and_tiles_are_told_apart() -> None:
    images = [image_meta("gundam", 900, 700), image_meta("tiny", 9, 9), image_meta("gundam", 100, 100)]
    assert images[0]["tiles"] == [3, 2] or images[0]["tiles"] != [0, 0]
    members = [("0.jpg", b"zero"), ("0.tiles.png", b"tiles"), ("1.png", b"one"), ("2.jpg", b"two")]
    body = meta("q", "a", images)
    fields = encode(body, np.zeros(1, np.int32), np.zeros(1, np.uint8), members)
    sample = decode(KEY0, fields)
    assert [sample.image(k) for k in range(3)] == [b"zero", b"one", b"two"]
    assert [sample.tiles(k) for k in range(3)] == [b"tiles", None, None]
    assert encoded_size(fields) == sum(512 + -(-len(data) // 512) * 512 for _, data in fields)


@pytest.mark.parametrize("change", ["no json", "swapped", "missing image", "extra image", "wrong suffix", "tiles first",
                                    "not json", "no images", "order", "unknown"])
def test_a_member_missing_or_out_of_order_is_an_error(change: str) -> None:
    body = meta("q", "a", [image_meta("gundam", 900, 700), image_meta("tiny", 9, 9)])
    images = [("0.jpg", b"0"), ("0.tiles.jpg", b"t"), ("1.png", b"1")]
    fields = encode(body, np.zeros(2, np.int32), np.zeros(2, np.uint8), images)
    broken = {
        "no json": fields[1:], "swapped": [fields[0], fields[2], fields[1], *fields[3:]], "missing image": fields[:-1],
        "extra image": [*fields, ("2.png", b"")], "wrong suffix": [*fields[:-1], ("1.gif", b"")],
        "tiles first": [*fields[:3], fields[4], fields[3], fields[5]], "not json": [("json", b"[]"), *fields[1:]],
        "no images": [("json", b'{"images":3}'), *fields[1:]], "order": [*fields[:3], fields[5], *fields[3:5]],
        "unknown": [*fields, ("txt", b"")]}[change]
    with pytest.raises(ValueError):
        decode(KEY0, broken)


def test_keys_have_no_dot_and_stay_unique() -> None:
    keys = [make_key(split, shard, at) for split in ("train", "val") for shard in (0, 999_999, 1_000_000) for at in (0, 1_234_567)]
    assert len(set(keys)) == len(keys)
    assert all(KEY.fullmatch(key) and "." not in key and "__" not in key for key in keys)
