"""Numbers and structs of thrift's compact protocol, in which page headers are written."""

from typing import Any


class Unsupported(Exception):
    """Not read here: unusual or damaged. pyarrow is to read it, or to say what is wrong."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number of seven bits a byte, and where it ends: e5 8e 26 is 624485. IndexError when the data end before."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise Unsupported("a number of more than ten bytes")


def encode_varint(number: int) -> bytes:
    """A number as `varint` reads it."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def struct(data: bytes, at: int = 0, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Numbers, booleans and structs of a struct by field number, and where it ends. IndexError when the data end before."""
    if depth > 8:
        raise Unsupported("structs in structs")
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = varint(data, at)
            number >>= 1
        if head & 15 in (1, 2):  # its type is its value
            fields[number] = head & 15 == 1
        else:
            fields[number], at = _value(data, at, head & 15, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2, 3):
        return data[at], at + 1
    if kind in (4, 5, 6):
        number, at = varint(data, at)
        return number >> 1 ^ -(number & 1), at
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = varint(data, at)
        return None, at + length
    if kind == 12:
        return struct(data, at, depth + 1)
    raise Unsupported("a field that no page header has")
