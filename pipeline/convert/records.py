"""Records of JSON conversations: from bytes to turns and image names, whatever common shape they have.

    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]                   CustomJSON
    {"messages": [...], "image_path": "a.png"}    {"messages": [...], "images": ["a.png", "b.png"]}    the notes' format
    {"conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", ...}], "image": "a.jpg"}    LLaVA
    {"texts": [{"user": "...", "assistant": "..."}], "images": [...]}                                FineVision

A system message is joined to the first user text with a blank line, since FineVision's format has no place for it. Contents
may be lists of parts ({"type": "text", "text": ...}, {"type": "image"}), an image part standing for a marker.

Files are scanned, not loaded: a JSON array of 200 MB costs a record's memory.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.conversation import MARKER, Reject
from pipeline.sources.kind import alternate

MAX_RECORD = 32 << 20
"""Bytes of one record. Its text may have MAX_TEXT characters, up to six bytes each as escapes."""

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]|,|"', re.DOTALL)


def record_starts(path: Path, every: int) -> tuple[list[int], int]:
    """Byte offsets of record 0, every, 2*every ..., and how many records there are. Raises ValueError for a bad file."""
    starts, count = [], 0
    with path.open("rb") as file:
        for offset, _ in spans(file, path):
            if count % every == 0:
                starts.append(offset)
            count += 1
    return starts, count


def read_records(path: Path, start: int, count: int) -> Iterator[Any]:
    """`count` records from byte offset `start` on: the value, or a Reject("json") for one that is not JSON."""
    with path.open("rb") as file:
        file.seek(start)
        for _, raw in spans(file, path, inside=start > 0):
            if count <= 0:
                return
            count -= 1
            try:
                yield json.loads(raw)
            except (ValueError, RecursionError) as error:
                yield Reject("json", f"not JSON: {str(error)[:100]}")


def spans(file: IO[bytes], path: Path, *, inside: bool = False) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of each record: a line of JSONL, or an element of the array that a .json file is."""
    if path.suffix.lower() != ".json":
        offset = file.tell()
        while line := file.readline(MAX_RECORD + 1):
            start, offset = offset, offset + len(line)
            if len(line) > MAX_RECORD:
                raise ValueError(f"{path}: a line of more than {MAX_RECORD >> 20} MB at byte {start}")
            if line.strip(b" \t\r\n\xef\xbb\xbf"):
                yield start, line.strip(b" \t\r\n\xef\xbb\xbf")
        return
    yield from _elements(file, path, inside)


def _elements(file: IO[bytes], path: Path, inside: bool) -> Iterator[tuple[int, bytes]]:
    """Elements of a JSON array. Strings are skipped as a whole, so brackets and commas in them do not count."""
    buffer, base, at, first = b"", file.tell(), 0, 0
    depth = 1 if inside else 0
    ended = False
    while not ended:
        more = file.read(1 << 20)
        buffer += more
        if len(buffer) > MAX_RECORD + (1 << 20):
            raise ValueError(f"{path}: a record of more than {MAX_RECORD >> 20} MB at byte {base}")
        if depth == 0 and not inside:
            text = buffer.lstrip(b" \t\r\n\xef\xbb\xbf")
            if not text.startswith(b"["):
                raise ValueError(f"{path}: a .json file must hold an array of records; name it .jsonl if it has one a line")
            at = first = len(buffer) - len(text) + 1
            depth = 1
        for token in _STRUCTURE.finditer(buffer, at):
            char = token.group()
            if char == b'"':  # a string that goes on in the next piece
                break
            at = token.end()
            if char in b"[{":
                depth += 1
            elif char in b"]}":
                depth -= 1
            if (char == b"," and depth == 1) or depth == 0:
                if raw := buffer[first : token.start()].strip():
                    yield base + first, raw
                first = at
                ended = depth == 0
                if ended:
                    break
        else:
            at = len(buffer)
        if not more and not ended:
            raise ValueError(f"{path}: the array is cut off at byte {base + len(buffer)}")
        buffer, base, at, first = buffer[first:], base + first, at - first, 0


def conversation_of(record: Any) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """The turns and the image names of a record. Raises Reject when it is no conversation."""
    if isinstance(record, list):
        record = {"messages": record}
    if not isinstance(record, dict):
        raise Reject("layout", f"a record is {type(record).__name__}, not an object or a list of messages")
    images = _names(record)
    if isinstance(record.get("texts"), list):
        record = {"messages": [part for turn in record["texts"] if isinstance(turn, dict)
                               for part in ({"role": "user", "content": turn.get("user")},
                                            {"role": "assistant", "content": turn.get("assistant")})]}  # fmt: skip
    messages = record.get("messages", record.get("conversations"))
    if not isinstance(messages, list):
        raise Reject("layout", f"no messages in the record; its keys are {', '.join(sorted(map(str, record)))[:100]}")
    system, pairs = alternate(_message(message) for message in messages)
    if not pairs:
        raise Reject("no-answer", "no user message in the record")
    if system:
        pairs[0] = (f"{system}\n\n{pairs[0][0]}", pairs[0][1])
    return tuple(pairs), images


def _message(message: Any) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise Reject("layout", "a message is not an object")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise Reject("layout", f"a content is {type(content).__name__}, not a string")
    return _ROLES.get(str(role), str(role)), content


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(part, dict) and part.get("type") in ("image", "image_url"):
        return MARKER
    raise Reject("layout", f"a part of a content is neither text nor image: {str(part)[:60]}")


def _names(record: dict[Any, Any]) -> tuple[str, ...]:
    value = next((record[key] for key in ("image_path", "images", "image", "image_paths") if record.get(key)), None)
    names = value if isinstance(value, list) else [] if value is None else [value]
    names = [name.get("path") if isinstance(name, dict) else name for name in names]
    for name in names:
        if not isinstance(name, str) or not name:
            raise Reject("image-missing", f"an image is named by {str(name)[:60]!r}, not by a path")
    return tuple(names)
