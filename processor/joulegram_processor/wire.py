"""Where the spans lie in the bytes of a trace request, and how bytes are put into them.

Nothing is decoded and encoded again: a span that gains attributes keeps its own bytes and has the new ones appended,
and only the lengths of what encloses it are written anew. So unknown fields, field order and odd but legal encodings
come out as they came in (A8), by construction.

Field numbers are those of opentelemetry/proto/{collector/trace/v1/trace_service,trace/v1/trace,common/v1/common}.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import WireError
from joulegram_pipeline.varint import varint
from joulegram_processor import native

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container

_RESOURCE_SPANS = 0x0A  # ExportTraceServiceRequest.resource_spans = 1
_SCOPE_SPANS = 0x12  # ResourceSpans.scope_spans = 2
_SPANS = 0x12  # ScopeSpans.spans = 2
_ATTRIBUTES = 0x4A  # Span.attributes = 9
_KEY = 0x0A  # KeyValue.key = 1


@dataclass(frozen=True, slots=True)
class SpanAt:
    """A span's content in the request: `buffer[start:end]`."""

    start: int
    end: int


def read_varint(buffer: bytes, at: int) -> tuple[int, int]:
    """The varint at `at`, and where it ends.

    Raises:
        WireError: cut off, or longer than ten bytes.
    """
    value = shift = 0
    start = at
    try:
        while True:
            byte = buffer[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
            if shift > 63:
                raise WireError(f"got a varint of more than 10 bytes at offset {start}")
    except IndexError:
        raise WireError(f"got a varint cut off at offset {start}") from None


def skip_field(buffer: bytes, at: int, tag: int) -> int:
    """Where the field whose tag was just read ends; groups are followed to their end.

    Raises:
        WireError: a wire type that does not exist, or a field that runs past the end.
    """
    wire_type = tag & 7
    if wire_type == 0:
        _, at = read_varint(buffer, at)
    elif wire_type == 1:
        at += 8
    elif wire_type == 2:
        length, at = read_varint(buffer, at)
        at += length
    elif wire_type == 3:
        depth = [tag >> 3]
        while depth:
            inner, at = read_varint(buffer, at)
            if inner & 7 == 3:
                depth.append(inner >> 3)
            elif inner & 7 == 4:
                if depth.pop() != inner >> 3:
                    raise WireError(f"got an end of group {inner >> 3} at offset {at} that was not begun")
            else:
                at = skip_field(buffer, at, inner)
    elif wire_type == 5:
        at += 4
    else:
        raise WireError(f"got wire type {wire_type} at offset {at}, expected 0, 1, 2, 3 or 5")
    if at > len(buffer):
        raise WireError(f"got a field that ends at offset {at}, expected at most {len(buffer)}")
    return at


def first_span_offset(buffer: bytes) -> int:
    """Where the first scope_spans of the first resource_spans begins; the end of the buffer where there is none.

    Raises:
        WireError: the bytes are not a trace request.
    """
    at = 0
    while at < len(buffer):
        tag, at = read_varint(buffer, at)
        if tag != _RESOURCE_SPANS:
            at = skip_field(buffer, at, tag)
            continue
        length, at = read_varint(buffer, at)
        end = at + length
        while at < end:
            field = at
            tag, at = read_varint(buffer, at)
            if tag == _SCOPE_SPANS:
                return field
            at = skip_field(buffer, at, tag)
    return at


def splice_some(buffer: bytes, chosen: list[int], additions: list[bytes | None]) -> bytes:
    """Some spans of a request gain bytes at their end, or are left out where that is None; see `splice`.

    Args:
        buffer: the request as it came.
        chosen: which spans, by index in order of appearance; growing.
        additions: for each.

    Raises:
        WireError: the bytes are not such a request.
    """
    if native.LOADED is not None:
        made: bytes | None = native.LOADED.splice(buffer, chosen, additions)
        if made is not None:
            return made
    at = dict(zip(chosen, additions, strict=True))

    def edit(index: int, place: SpanAt) -> bytes | None:
        more = at[index]
        return None if more is None else buffer[place.start : place.end] + more

    return splice(buffer, at, edit)


def splice(buffer: bytes, chosen: Container[int], edit: Callable[[int, SpanAt], bytes | None]) -> bytes:
    """Rewrite some spans of an ExportTraceServiceRequest and leave every other byte.

    Args:
        buffer: the request as it came.
        chosen: which spans, by index in order of appearance.
        edit: called with the index and place of each; returns the span's new content, or None to leave the span out.

    Raises:
        WireError: the bytes are not such a request.
    """
    index = 0

    def scope(start: int, end: int) -> list[bytes]:
        nonlocal index
        pieces: list[bytes] = []
        at = kept = start
        while at < end:
            field = at
            if buffer[at] == _SPANS:  # the common, one-byte form of the tag
                at += 1
            else:
                tag, at = read_varint(buffer, at)
                if tag != _SPANS:
                    at = skip_field(buffer, at, tag)
                    continue
            length = buffer[at]
            if length < 0x80:
                at += 1
            elif buffer[at + 1] < 0x80:
                length += (buffer[at + 1] << 7) - 0x80
                at += 2
            else:
                length, at = read_varint(buffer, at)
            if index not in chosen:
                index += 1
                at += length
                continue
            content = edit(index, SpanAt(at, at + length))
            index += 1
            pieces.append(buffer[kept:field])
            if content is not None:
                pieces += (b"\x12", varint(len(content)), content)
            at = kept = at + length
        _check_end(at, end)
        pieces.append(buffer[kept:end])
        return pieces

    def resource(start: int, end: int) -> list[bytes]:
        return _rewrap(buffer, start, end, _SCOPE_SPANS, scope)

    try:
        out = b"".join(_rewrap(buffer, 0, len(buffer), _RESOURCE_SPANS, resource))
    except IndexError:
        raise WireError("got a request that ends inside a field") from None
    return out


def splice_all(buffer: bytes, additions: list[bytes]) -> bytes:
    """`splice` for the common case: every span, in order of appearance, gains these bytes at its end."""
    if native.LOADED is not None:
        made: bytes | None = native.LOADED.splice(buffer, None, additions)
        if made is not None:
            return made
    return splice_all_in_python(buffer, additions)


def splice_all_in_python(buffer: bytes, additions: list[bytes]) -> bytes:
    """`splice_all` where the native module is not there, or refuses the request."""
    following = iter(additions)

    def scope(start: int, end: int) -> list[bytes]:
        pieces: list[bytes] = []
        at = kept = start
        while at < end:
            field = at
            if buffer[at] == _SPANS:
                at += 1
            else:
                tag, at = read_varint(buffer, at)
                if tag != _SPANS:
                    at = skip_field(buffer, at, tag)
                    continue
            length = buffer[at]
            if length < 0x80:
                at += 1
            elif buffer[at + 1] < 0x80:
                length += (buffer[at + 1] << 7) - 0x80
                at += 2
            else:
                length, at = read_varint(buffer, at)
            addition = next(following)
            after = at + length
            grown = length + len(addition)
            two_bytes = 0x80 <= grown < 0x4000
            size = bytes((0x12, grown & 0x7F | 0x80, grown >> 7)) if two_bytes else b"\x12" + varint(grown)
            if kept < field:
                pieces += (buffer[kept:field], size, buffer[at:after], addition)
            else:
                pieces += (size, buffer[at:after], addition)
            at = kept = after
        _check_end(at, end)
        if kept < end:
            pieces.append(buffer[kept:end])
        return pieces

    def resource(start: int, end: int) -> list[bytes]:
        return _rewrap(buffer, start, end, _SCOPE_SPANS, scope)

    try:
        return b"".join(_rewrap(buffer, 0, len(buffer), _RESOURCE_SPANS, resource))
    except (IndexError, StopIteration):
        raise WireError("got a request that ends inside a field, or with more spans than were read") from None


def _rewrap(buffer: bytes, start: int, end: int, wanted: int, inner: Callable[[int, int], list[bytes]]) -> list[bytes]:
    pieces: list[bytes] = []
    at = kept = start
    while at < end:
        field = at
        tag, at = read_varint(buffer, at)
        if tag != wanted:
            at = skip_field(buffer, at, tag)
            continue
        length, at = read_varint(buffer, at)
        content = inner(at, at + length)
        pieces.append(buffer[kept:field])
        pieces += (bytes((wanted,)), varint(sum(map(len, content))), *content)
        at = kept = at + length
    _check_end(at, end)
    pieces.append(buffer[kept:end])
    return pieces


def _check_end(at: int, end: int) -> None:
    if at != end:
        raise WireError(f"got a field that ends at offset {at}, expected at most {end}")


def without_attributes(span: bytes, keys: Collection[bytes]) -> bytes:
    """A span's content without the attributes of these keys; every other byte stays."""
    pieces: list[bytes] = []
    at = kept = 0
    while at < len(span):
        field = at
        tag, at = read_varint(span, at)
        end = skip_field(span, at, tag)
        if tag == _ATTRIBUTES:
            _, start = read_varint(span, at)
            if attribute_key(span, start, end) in keys:
                pieces.append(span[kept:field])
                kept = end
        at = end
    pieces.append(span[kept:])
    return b"".join(pieces)


def attribute_key(buffer: bytes, start: int, end: int) -> bytes:
    """The key of the KeyValue in `buffer[start:end]`; the last one counts where it is given twice, as in protobuf."""
    key = b""
    at = start
    while at < end:
        tag, at = read_varint(buffer, at)
        if tag == _KEY:
            length, at = read_varint(buffer, at)
            key = buffer[at : at + length]
            at += length
        else:
            at = skip_field(buffer, at, tag)
    return key


def string_attribute(key: str, value: str) -> bytes:
    """A span attribute with a string value, encoded as a field of Span."""
    text = value.encode()
    inner = b"\x0a" + varint(len(text)) + text
    return _attribute(key, inner)


def bool_attribute(key: str, *, value: bool) -> bytes:
    """A span attribute with a boolean value, encoded as a field of Span."""
    return _attribute(key, b"\x10\x01" if value else b"\x10\x00")


def double_prefix(key: str) -> bytes:
    """All of a double attribute but its eight value bytes, which follow little-endian."""
    return _attribute(key, b"\x21" + bytes(8))[:-8]


def _attribute(key: str, any_value: bytes) -> bytes:
    name = key.encode()
    pair = b"\x0a" + varint(len(name)) + name + b"\x12" + varint(len(any_value)) + any_value
    return b"\x4a" + varint(len(pair)) + pair
