"""Finds the last whole line of a ledger file, so where a torn one begins, without reading all of the file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import orjson

from joulegram_sink.ledger_format import MAX_LINE_BYTES, line_hash

_CHUNK_BYTES = 65_536

UNSYNCED_BYTES = 64 * 1024 * 1024
"""More than is ever appended between two syncs (`service.engine.SYNC_S`)."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The last whole line of a ledger.

    Args:
        end: bytes of the file up to and with its LF.
        seq: its `seq`.
        head: its hash, the next line's `prev_hash`.
        pos: its position in the log; None for the genesis.
    """

    end: int
    seq: int
    head: str
    pos: tuple[int, int] | None


def first_hole(fd: int) -> int | None:
    """Where a page that never reached the disk begins in what may not have been synced; None if there is none.

    Pages of one file are written back in any order, so a power cut can keep a later one and lose an earlier one, which
    then reads as zeros. A ledger line has no zero byte.
    """
    size = os.fstat(fd).st_size
    start = max(0, size - UNSYNCED_BYTES)
    for offset in range(start, size, 1 << 20):
        found = os.pread(fd, 1 << 20, offset).find(b"\0")
        if found >= 0:
            return offset + found
    return None


def read_tail(fd: int, end: int) -> Tail | None:
    """The last line below `end` that ends in LF and parses as a ledger line; None if there is none.

    A line that parses is taken as it is: whether it is also true is the verifier's question. Cutting one here
    would let an edit pass as a torn write.
    """
    while True:
        stop = _last_lf(fd, end)
        if stop is None:
            return None
        previous = _last_lf(fd, stop)
        start = 0 if previous is None else previous + 1
        tail = _parse(os.pread(fd, stop - start, start), stop + 1) if stop - start <= MAX_LINE_BYTES else None
        if tail is not None:
            return tail
        end = start


def read_first_line(fd: int) -> Any:
    """The first line, parsed; None if it does not parse."""
    line, feed, _ = os.pread(fd, MAX_LINE_BYTES + 1, 0).partition(b"\n")
    return _json(line) if feed else None


def _last_lf(fd: int, end: int) -> int | None:
    """Offset of the last LF before `end`."""
    while end > 0:
        start = max(0, end - _CHUNK_BYTES)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found
        end = start
    return None


def _parse(line: bytes, end: int) -> Tail | None:
    value = _json(line)
    if not isinstance(value, dict) or type(value.get("seq")) is not int or "prev_hash" not in value:
        return None
    if value.get("kind") == "genesis":
        return Tail(end, value["seq"], line_hash(line), None)
    match value.get("pos"):
        case [int(lsn), int(ordinal)]:
            return Tail(end, value["seq"], line_hash(line), (lsn, ordinal))
    return None


def _json(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
