"""Protobuf's wire format, written and read independently of the product."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def varint(value: int) -> bytes:
    """A non-negative integer as a base-128 varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint that begins there, and where what is behind it begins."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields_of(data: bytes, at: int = 0, group: int | None = None) -> Iterator[tuple[int, bytes, bytes]]:
    """Each field as (number, all its bytes, its content where it is length-delimited).

    Within a group the last is numbered 0 and holds all bytes from the beginning to the group's end.
    """
    while at < len(data):
        begin = at
        tag, at = read_varint(data, at)
        number, kind, content = tag >> 3, tag & 7, b""
        if kind == 4:
            assert number == group
            yield 0, data[:at], b""
            return
        if kind == 0:
            _, at = read_varint(data, at)
        elif kind == 2:
            length, at = read_varint(data, at)
            content, at = data[at : at + length], at + length
        elif kind == 3:
            *_, (_, inside, _) = fields_of(data, at, number)
            at = len(inside)
        else:
            at += {1: 8, 5: 4}[kind]
        yield number, data[begin:at], content
