"""Frames between the parent and a worker: a JSON head and raw bytes, length-prefixed. Nothing is pickled.

    8 bytes: head length, body length (little-endian u32 each) | head | body
"""

import json
import struct
from typing import Any

HEAD = struct.Struct("<II")
MAX_HEAD, MAX_BODY = 1 << 26, 1 << 30

# The heartbeat is one shared page: u64 task number, u64 row index within the task (or IDLE), written before each row.
BEAT = struct.Struct("<QQ")
IDLE = (1 << 64) - 1


def pack(head: dict[str, Any], blobs: list[bytes] | tuple[bytes, ...] = ()) -> bytes:
    """One frame."""
    text = json.dumps(head, separators=(",", ":")).encode()
    body = b"".join(blobs)
    return b"".join((HEAD.pack(len(text), len(body)), text, body))


def unpack(buffer: bytearray) -> tuple[dict[str, Any], bytes] | None:
    """Takes one whole frame off the buffer's front; None while it is incomplete. Raises ValueError on nonsense."""
    if len(buffer) < HEAD.size:
        return None
    head_length, body_length = HEAD.unpack_from(buffer)
    if head_length > MAX_HEAD or body_length > MAX_BODY:
        raise ValueError(f"a worker sent a frame of {head_length} + {body_length} bytes")
    end = HEAD.size + head_length + body_length
    if len(buffer) < end:
        return None
    head = json.loads(bytes(buffer[HEAD.size : HEAD.size + head_length]))
    body = bytes(buffer[HEAD.size + head_length : end])
    del buffer[:end]
    return head, body
