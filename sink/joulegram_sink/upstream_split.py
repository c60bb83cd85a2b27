"""One OTLP request made two, on the wire format, for an upstream that finds it too large.

All signals have the same shape: a request repeats resources (field 1), a resource repeats scopes (field 2), a scope
repeats what it is about (field 2). Whatever else stands beside those, known or not, goes into both halves.
"""

from __future__ import annotations

_REPEATED = (1, 2, 2)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def halves(request: bytes, level: int = 0) -> tuple[bytes, bytes] | None:
    """Two requests that together say what `request` says, near its middle; None if it cannot be divided.

    Args:
        request: protobuf bytes of any signal's export request.
        level: 0 for a request, 1 for a resource, 2 for a scope.
    """
    fields = _fields(request)
    if fields is None:
        return None
    parts: list[bytes] = []
    beside: list[bytes] = []
    payload = b""
    for number, kind, begin, content, end in fields:
        if number == _REPEATED[level] and kind == _BYTES:
            parts.append(request[begin:end])
            payload = request[content:end]
        else:
            beside.append(request[begin:end])
    common = b"".join(beside)
    if len(parts) > 1:
        middle = _middle(parts)
        return common + b"".join(parts[:middle]), common + b"".join(parts[middle:])
    if not parts or level + 1 == len(_REPEATED):
        return None
    inner = halves(payload, level + 1)
    if inner is None:
        return None
    first, second = (common + _field(_REPEATED[level], half) for half in inner)
    return first, second


def _middle(parts: list[bytes]) -> int:
    """How many parts make the first half, one at least and not all."""
    total, size = sum(map(len, parts)), 0
    for count, part in enumerate(parts[:-1], 1):
        size += len(part)
        if 2 * size >= total:
            return count
    return len(parts) - 1


def _fields(data: bytes) -> list[tuple[int, int, int, int, int]] | None:
    """Number, wire type, begin, begin of the content, and end of each field; None if that cannot be told."""
    found = []
    at = 0
    while at < len(data):
        begin = at
        tag, at = _varint(data, at)
        kind = tag & 7
        content = at
        if kind == _BYTES:
            size, content = _varint(data, at)
            at = content + size
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            return None
        if at > len(data):
            return None
        found.append((tag >> 3, kind, begin, content, at))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at` and where it ends; beyond the data if it does not end there."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, len(data) + 1


def _field(number: int, content: bytes) -> bytes:
    size, head = len(content), bytearray([number << 3 | _BYTES])
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + content
