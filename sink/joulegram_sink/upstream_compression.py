"""The compressions of what is sent, by the names that HTTP and gRPC share."""

from __future__ import annotations

import zlib

_LEVEL = 1
"""Spans are repetitive: what a higher one saves is little beside what it costs."""


def compressed(body: bytes, compression: str) -> bytes:
    """`body` by ``gzip`` or ``zstd``, or as it is for ``none``."""
    if compression == "none":
        return body
    if compression == "gzip":
        return zlib.compress(body, _LEVEL, wbits=31)
    # Not needed by those who do not use it, and a sidecar starts fast.
    import zstandard  # noqa: PLC0415

    return zstandard.ZstdCompressor(level=_LEVEL).compress(body)
