"""Finds the last whole line of a ledger file, so where a torn one begins, without reading the file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import orjson

from joulegram_sink.ledger_format import MAX_LINE_BYTES, line_hash

_CHUNK_BYTES = 65_536


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


def read_tail(fd: int) -> Tail | None:
    """The last line that ends in LF and parses as a ledger line; None if the file has none.

    A line that parses is taken as it is: whether it is also true is the verifier's question. Cutting one here
    would let an edit pass as a torn write.
    """
    end = os.fstat(fd).st_size
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
