"""Run, trace and span ids: what is accepted, and what may become part of a path."""

from __future__ import annotations

import os
import re
import time

from joulegram_pipeline.errors import IdentifierError

RUN_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9:._-]{7,127}$"
"""C-15: 8 to 128 characters, no slash; two dots in a row are refused beside it."""

_RUN_ID = re.compile(RUN_ID_PATTERN, re.ASCII)
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def check_run_id(run_id: str) -> str:
    """Return `run_id` if it may name a run and its files, else raise (D-41).

    Raises:
        IdentifierError: quoting the id and the rule.
    """
    if _RUN_ID.fullmatch(run_id) is None or ".." in run_id:
        raise IdentifierError(
            f"run_id: got {run_id!r}, expected 8 to 128 of A-Z a-z 0-9 : . _ - beginning with a letter or digit, "
            "without '..'"
        )
    return run_id


def new_run_id(wall_ns: int | None = None) -> str:
    """A fresh ULID: 48 bits of milliseconds, 80 bits of chance, 26 characters that sort by time (C-15)."""
    millis = (time.time_ns() if wall_ns is None else wall_ns) // 1_000_000
    value = (millis << 80) | int.from_bytes(os.urandom(10), "big")
    return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -5, -5))


def is_trace_id(trace_id: bytes) -> bool:
    """Whether these bytes are a valid trace id: 16, not all zero (OTLP, trace.proto)."""
    return len(trace_id) == 16 and trace_id != b"\0" * 16


def is_span_id(span_id: bytes) -> bool:
    """Whether these bytes are a valid span id: 8, not all zero (OTLP, trace.proto)."""
    return len(span_id) == 8 and span_id != b"\0" * 8
