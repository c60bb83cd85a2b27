"""A large request checked piece by piece, in a thread: protobuf parses without letting go of the interpreter.

Invariants:
    * what parses whole passes, and what does not is refused with the same words;
    * no more than a piece is ever parsed at once, but where there are no inner messages to go by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from joulegram_pipeline.errors import WireError

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
    number = signal.request.DESCRIPTOR.fields_by_name[signal.envelope].number
    try:
        found = False
        for top, kind, begin, end in _pieces(signal.request, payload, piece_bytes):
            message = parse(kind, payload[begin:end])
            found = found or top == number or (top == 0 and bool(getattr(message, signal.envelope)))
    except (_UnclearError, DecodeError):
        return bool(getattr(signal.parse(payload), signal.envelope))
    return found


def parse(kind: Any, piece: bytes) -> Any:
    """A message of this class; DecodeError where it is none."""
    return kind.FromString(piece)


def _pieces(request: Any, data: bytes, piece_bytes: int) -> Iterator[tuple[int, Any, int, int]]:
    """The field of the request that a piece lies in (0 for fields of its own), its class, begin and end."""
    # Of each message begun: that field, its class, the begin of what was not given yet, and its end.
    stack: list[tuple[int, Any, int, int]] = [(0, request, 0, len(data))]
    at = fields = 0
    while stack:
        top, kind, start, end = stack.pop()
        if at == end or fields >= _MAX_FIELDS:
            if start < end:
                yield top, kind, start, end
            at = end
            continue
        fields += 1
        begin = at
        number, is_message, content, at = _field(kind, data, at, end)
        if is_message and at - content > piece_bytes and len(stack) < _MAX_LEVEL:
            if start < begin:
                yield top, kind, start, begin
            inner = GetMessageClass(kind.DESCRIPTOR.fields_by_number[number].message_type)
            stack += [(top, kind, at, end), (top or number, inner, content, at)]
            at = content
        elif at - start >= piece_bytes:
            yield top, kind, start, at
            stack.append((top, kind, at, end))
        else:
            stack.append((top, kind, start, end))


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
