"""A large request checked piece by piece, in a thread: protobuf parses without letting go of the interpreter.

Invariants:
    * what parses whole passes, and what does not is refused with the same words;
    * a piece is parsed as deep in the request as it lies, as protobuf bounds how deep messages nest;
    * no more than a piece is ever parsed at once, but where there are no inner messages to go by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from joulegram_pipeline.errors import WireError
from joulegram_pipeline.varint import varint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_receiver.signals import Signal

PIECE_BYTES = 256 * 1024
"""Parsed in a few milliseconds, after which whoever waits for the interpreter has it."""

_MAX_LEVEL = 3
"""Of a request, its resources, their scopes and their items the fields are told apart; what is deeper is an item's."""

_MAX_FIELDS = 1_000_000
"""Told apart in one request; more are those of a sender who means no good, and are parsed at once."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


class _UnclearError(WireError):
    """The fields cannot be told apart here: a group, or an end that is not one."""


def holds_something(signal: Signal, payload: bytes, piece_bytes: int = PIECE_BYTES) -> bool:
    """Whether a request has anything in its envelope.

    Raises:
        WireError: the bytes are not such a request.
    """
    try:
        found = False
        for path, begin, end in _pieces(signal.request, payload, piece_bytes):
            message = parse(signal.request, _within(path, payload[begin:end]))
            found = found or bool(getattr(message, signal.envelope))
    except (_UnclearError, DecodeError):
        return bool(getattr(signal.parse(payload), signal.envelope))
    return found


def parse(kind: Any, piece: bytes) -> Any:
    """A message of this class; DecodeError where it is none."""
    return kind.FromString(piece)


Fields = tuple[int, ...]
"""The fields that a piece lies in, the outermost first: of the request, of its resource, of its scope."""


def _within(path: Fields, piece: bytes) -> bytes:
    """The piece as the only content of these fields."""
    for number in reversed(path):
        piece = varint(number << 3 | _BYTES) + varint(len(piece)) + piece
    return piece


def _pieces(request: Any, data: bytes, piece_bytes: int) -> Iterator[tuple[Fields, int, int]]:
    """Each piece: the fields it lies in, its begin and its end."""
    # Of each message begun: the fields it lies in, its class, the begin of what was not given yet, and its end.
    stack: list[tuple[Fields, Any, int, int]] = [((), request, 0, len(data))]
    at = fields = 0
    while stack:
        path, kind, start, end = stack.pop()
        if at == end or fields >= _MAX_FIELDS:
            if start < end:
                yield path, start, end
            at = end
            continue
        fields += 1
        begin = at
        number, is_message, content, at = _field(kind, data, at, end)
        if is_message and at - content > piece_bytes and len(stack) < _MAX_LEVEL:
            if start < begin:
                yield path, start, begin
            inner = GetMessageClass(kind.DESCRIPTOR.fields_by_number[number].message_type)
            stack += [(path, kind, at, end), ((*path, number), inner, content, at)]
            at = content
        elif at - start >= piece_bytes:
            yield path, start, at
            stack.append((path, kind, at, end))
        else:
            stack.append((path, kind, start, end))


def _field(kind: Any, data: bytes, at: int, end: int) -> tuple[int, bool, int, int]:
    """Number of the field that begins here, whether it is a message of ours, its content's begin, and its end."""
    tag, at = _varint(data, at, end)
    number, wire = tag >> 3, tag & 7
    content, is_message = at, False
    if wire == _BYTES:
        size, content = _varint(data, at, end)
        at = content + size
        known = kind.DESCRIPTOR.fields_by_number.get(number)
        is_message = known is not None and known.message_type is not None
    elif wire == _VARINT:
        _, at = _varint(data, at, end)
    elif wire in (_FIXED64, _FIXED32):
        at += 8 if wire == _FIXED64 else 4
    else:
        raise _UnclearError
    if at > end:
        raise _UnclearError
    return number, is_message, content, at


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        if at >= end:
            break
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise _UnclearError
