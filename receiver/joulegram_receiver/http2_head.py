"""The header fields of a request: decoded, checked (RFC 9113 section 8), and remembered while the table of HPACK rests.

A client that calls one method says the same few bytes each time. What they mean depends on the table that both sides
keep, so a block is remembered only if decoding it left the table as it was, and forgotten with the next that does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from joulegram_pipeline.http2_fields import MAX_BLOCK_BYTES, field_decoder, fields_of
from joulegram_pipeline.http2_frames import Code, StreamFault

if TYPE_CHECKING:
    from joulegram_pipeline.http2_fields import Pairs

_REMEMBERED = 32
_REMEMBERED_BYTES = 1024
_REMEMBERED_SIZE_BYTES = 4096
"""Decoded; a byte of a block can name a field of the table, which costs a hundred to remember."""

_ENTRY_BYTES = 32
"""What RFC 9113 section 6.5.2 counts for a field beside its name and value."""

_LENGTH = re.compile(rb"[0-9]{1,18}")
_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
_OF_CONNECTIONS = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})


@dataclass(frozen=True, slots=True)
class Head:
    """A request's header fields.

    Args:
        method: ``POST`` and the like.
        path: with its leading slash.
        fields: names in lower case and values, pseudo-headers aside, in the order they came.
        size_bytes: of all, as RFC 9113 section 6.5.2 counts it.
        body_bytes: what ``content-length`` says the body has; None where it says nothing.
        fault: how it breaks RFC 9113 section 8; None where it does not.
        afar: whether it came from another address than this machine's (senders.py).
    """

    method: bytes
    path: bytes
    fields: Pairs
    size_bytes: int
    body_bytes: int | None = None
    fault: str | None = None
    afar: bool = False

    def get(self, name: bytes) -> bytes:
        """The first value of a field; empty where there is none."""
        return next((value for key, value in self.fields if key == name), b"")


TOO_LARGE = Head(b"POST", b"", (), MAX_BLOCK_BYTES + 1)
"""In place of header fields that are too many to be decoded."""


class HeadReader:
    """Reads the header blocks of one connection, in their order."""

    def __init__(self) -> None:
        self.afar = False
        """Of the connection; set before the first is read."""
        self._decoder = field_decoder()
        self._known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """What a block says.

        Raises:
            ConnectionFault: it is not HPACK, or too large to be decoded.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        before = self._table()
        head = _checked(fields_of(self._decoder, block))
        if self.afar:
            head = replace(head, afar=True)
        if not _same(before, self._table()):
            self._known.clear()
        elif len(block) <= _REMEMBERED_BYTES and head.size_bytes <= _REMEMBERED_SIZE_BYTES:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[block] = head
        return head

    def _table(self) -> tuple[object, int, int]:
        """What changes with every entry that comes or goes: the newest one, how many, and their room."""
        entries = self._decoder.header_table.dynamic_entries
        return entries[0] if entries else None, len(entries), self._decoder.header_table_size


def _same(before: tuple[object, int, int], after: tuple[object, int, int]) -> bool:
    return before[0] is after[0] and before[1:] == after[1:]


def check_trailers(stream_id: int, head: Head) -> None:
    """Fields behind a body may hold anything but pseudo-headers.

    Raises:
        StreamFault: they do.
    """
    if head.method or head.path:
        raise StreamFault(stream_id, Code.PROTOCOL_ERROR, "got pseudo-headers in trailers, expected none")


def _checked(pairs: Pairs) -> Head:
    pseudo: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    size = 0
    body_bytes: int | None = None
    fault: str | None = None
    for name, value in pairs:
        size += len(name) + len(value) + _ENTRY_BYTES
        if name[:1] == b":":
            if name not in _PSEUDO:
                fault = f"got pseudo-header {name[:50]!r}, expected one of RFC 9113"
            elif name in pseudo or fields:
                fault = f"got {name!r} twice or behind other fields, expected it once and before them"
            pseudo[name] = value
        else:
            if not name or name != name.lower():
                fault = f"got field name {name[:50]!r}, expected one in lower case"
            elif name in _OF_CONNECTIONS or (name == b"te" and value != b"trailers"):
                fault = f"got {name!r}: {value[:50]!r}, which HTTP/2 does not have"
            elif name == b"content-length":
                body_bytes = int(value) if _LENGTH.fullmatch(value) else -1
            fields.append((name, value))
    if fault is None and not (pseudo.get(b":method") and pseudo.get(b":scheme") and pseudo.get(b":path")):
        fault = "got no :method, :scheme or :path, expected each"
    return Head(pseudo.get(b":method", b""), pseudo.get(b":path", b""), tuple(fields), size, body_bytes, fault)
