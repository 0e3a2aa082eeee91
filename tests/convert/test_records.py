"""Scanning JSON arrays and JSONL, and the shapes of records."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.conversation import Reject
from pipeline.convert import records
from pipeline.convert.records import conversation_of, read_records, record_starts

VALUES = st.recursive(st.none() | st.integers() | st.text(max_size=20) | st.sampled_from(['"', "\\", "[{,}]", "\u2028"]),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
                      max_leaves=10)  # fmt: skip


@given(st.lists(VALUES, max_size=12), st.integers(1, 4), st.sampled_from([None, 1]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_array_is_read_as_json_reads_it(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], every: int, indent: int | None, ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode())
    starts, count = record_starts(path, every)
    assert count == len(values)
    assert len(starts) == -(-count // every)
    got = [value for k, start in enumerate(starts) for value in read_records(path, start, min(every, count - k * every))]
    assert got == values
    lines = path.with_suffix(".jsonl")
    lines.write_bytes(b"\n\n".join(json.dumps(value, ensure_ascii=ascii_only).encode() for value in values))
    starts, count = record_starts(lines, every)
    got = [value for k, start in enumerate(starts) for value in read_records(lines, start, min(every, count - k * every))]
    assert got == values


def test_records_longer_than_a_read(tmp_path: Path) -> None:
    values = ["x" * 3_000_000, {"a": ['"]}' * 500_000]}, 1]
    (tmp_path / "a.json").write_text(json.dumps(values))
    starts, count = record_starts(tmp_path / "a.json", 1)
    assert [next(read_records(tmp_path / "a.json", start, 1)) for start in starts] == values
    assert count == 3


@pytest.mark.parametrize(("text", "says"), [("{}", "must hold an array"), ("", "must hold an array"), ('[{"a": 1}', "cut off"),
                                            ('["a', "cut off"), ("[1, 2", "cut off")])  # fmt: skip
def test_files_that_are_no_array(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        record_starts(tmp_path / "a.json", 10)


def test_a_record_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD", 1000)
    (tmp_path / "a.jsonl").write_text("[" + "1," * 2000)
    with pytest.raises(ValueError, match="a line of more than"):
        record_starts(tmp_path / "a.jsonl", 1)


def test_a_bad_line_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf[1]\n{"a": \n' + b"[" * 200_000 + b"\n[2]\n\xff\n")
    out = list(read_records(tmp_path / "a.jsonl", 0, 9))
    assert [item.reason if isinstance(item, Reject) else item for item in out] == [[1], "json", "json", [2], "json"]


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("record", "turns", "images"),
    [
        ([USER, ANSWER], [("q", "a")], []),
        ({"messages": [USER, ANSWER], "image_path": "x.png"}, [("q", "a")], ["x.png"]),
        ({"messages": [USER, ANSWER], "images": ["x.png", {"path": "y.png"}]}, [("q", "a")], ["x.png", "y.png"]),
        ({"image": "x.jpg", "conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]},
         [("<image>\nq", "a")], ["x.jpg"]),
        ({"texts": [{"user": "q", "assistant": "a"}]}, [("q", "a")], []),
        ([{"role": "system", "content": "s"}, USER, ANSWER, USER, ANSWER], [("s\n\nq", "a"), ("q", "a")], []),
        ([USER, {"role": "assistant", "content": None}, USER, ANSWER, USER], [("q", ""), ("q", "a"), ("q", "")], []),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}, ANSWER], [("<image>q", "a")], []),
    ],
)  # fmt: skip
def test_shapes(record: Any, turns: list[tuple[str, str]], images: list[str]) -> None:
    assert conversation_of(record) == (tuple(turns), tuple(images))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (3, "layout"), ({}, "layout"), ({"messages": "q"}, "layout"), ([3], "layout"), ([], "no-answer"),
        ([USER, USER], "roles"), ([ANSWER], "roles"), ([{"role": "user", "content": 3}], "layout"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "layout"), ([{"role": "tool", "content": "q"}], "roles"),
        ({"messages": [USER, ANSWER], "image_path": 3}, "image-missing"),
        ({"messages": [USER, ANSWER], "images": [None]}, "image-missing"),
    ],
)  # fmt: skip
def test_records_that_are_no_conversation(record: Any, reason: str) -> None:
    with pytest.raises(Reject) as error:
        conversation_of(record)
    assert error.value.reason == reason
