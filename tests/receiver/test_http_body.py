"""Reading and decompressing a body within bounds."""

from __future__ import annotations

import asyncio
import gzip
import random
import tracemalloc
import zlib
from itertools import pairwise
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_pipeline.errors import WireError
from joulegram_receiver.admission import Admission
from joulegram_receiver.http_body import decoder_for, read_body
from joulegram_receiver.intake_refusals import (
    MediaTypeError,
    OverloadError,
    SenderGoneError,
    SlowSenderError,
    TooLargeError,
)

MIB = 1024 * 1024
PLAIN = random.Random(4).randbytes(50_000) + b"joulegram" * 5_000
PACKED = {
    "identity": lambda data: data,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}
"""With a zstd frame that says how long it is; the streaming kind does not."""


def read(
    coding: str,
    chunks: list[bytes],
    max_bytes: int = MIB,
    gate: Admission | None = None,
    timeout_s: float = 10,
    end: dict[str, Any] | None = None,
) -> bytes:
    """What `read_body` makes of a body that comes in these chunks; `end` is the message behind them."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": data, "more_body": True} for data in chunks]
    messages.append(end or {"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def main() -> bytes:
        with (gate or Admission()).enter(0) as hold:
            decoder = decoder_for(coding)
            return await read_body(receive, decoder, hold, max_bytes=max_bytes, timeout_s=timeout_s)

    return asyncio.run(main())


@pytest.mark.parametrize("coding", PACKED)
@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 60_000), max_size=8))
def test_a_body_is_read_wherever_it_is_cut(coding: str, cuts: list[int]) -> None:
    """Chunks end where they like."""
    packed = PACKED[coding](PLAIN)
    at = [0, *sorted(min(cut, len(packed)) for cut in cuts), len(packed)]
    assert read(coding, [packed[begin:end] for begin, end in pairwise(at)]) == PLAIN


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@settings(max_examples=20, deadline=None)
@given(parts=st.lists(st.binary(max_size=300), min_size=1, max_size=6), step=st.integers(1, 50))
def test_members_and_frames_follow_each_other(coding: str, parts: list[bytes], step: int) -> None:
    """Each whole, empty ones too."""
    packed = b"".join(map(PACKED[coding], parts))
    assert read(coding, [packed[at : at + step] for at in range(0, len(packed), step)]) == b"".join(parts)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize("size", [0, 1, 256 * 1024, MIB - 1, MIB])
def test_sizes_around_the_steps(coding: str, size: int) -> None:
    """What the stream holds back when a step ends comes with the next; the limit itself is allowed."""
    assert read(coding, [PACKED[coding](bytes(size))]) == bytes(size)


def test_a_zstd_frame_that_does_not_say_its_length() -> None:
    """As streaming senders make them, and skippable frames between."""
    stream = zstandard.ZstdCompressor().compressobj()
    packed = stream.compress(PLAIN) + stream.flush()
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    assert read("zstd", [skippable + packed + skippable]) == PLAIN


DAMAGED = {
    "gzip truncated": ("gzip", gzip.compress(PLAIN)[:-1]),
    "gzip cut in the middle": ("gzip", gzip.compress(PLAIN)[:1000]),
    "gzip cut in its head": ("gzip", gzip.compress(PLAIN)[:5]),
    "gzip whose second member is cut": ("gzip", gzip.compress(PLAIN) + gzip.compress(PLAIN)[:-1]),
    "gzip with a wrong checksum": ("gzip", gzip.compress(PLAIN)[:-5] + b"XXXXX"),
    "gzip with something behind it": ("gzip", gzip.compress(PLAIN) + b"more"),
    "no gzip at all": ("gzip", PLAIN),
    "gzip of nothing": ("gzip", b""),
    "deflate truncated": ("deflate", zlib.compress(PLAIN)[:-1]),
    "deflate with something behind it": ("deflate", zlib.compress(PLAIN) + b"more"),
    "deflate without its head": ("deflate", zlib.compress(PLAIN)[2:-4]),
    "deflate of nothing": ("deflate", b""),
    "zstd truncated": ("zstd", zstandard.compress(PLAIN)[:-1]),
    "zstd cut in its head": ("zstd", zstandard.compress(PLAIN)[:3]),
    "zstd with something behind it": ("zstd", zstandard.compress(PLAIN) + b"more"),
    "zstd whose second frame is cut": ("zstd", zstandard.compress(PLAIN) + zstandard.compress(PLAIN)[:-1]),
    "zstd of nothing": ("zstd", b""),
    "zstd that asks for 2 GiB": ("zstd", b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(50)),
}


@pytest.mark.parametrize(("coding", "packed"), DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("step", [None, 7], ids=["whole", "cut"])
def test_a_damaged_stream_is_refused(coding: str, packed: bytes, step: int | None) -> None:
    """Never cut short in silence; the message names the coding."""
    step = step if step and len(packed) < 2000 else len(packed) or 1
    with pytest.raises(WireError, match=coding):
        read(coding, [packed[at : at + step] for at in range(0, len(packed), step)])


BOMBS = {
    "gzip": gzip.compress(bytes(300 * MIB), 9),
    "gzip of many members": gzip.compress(bytes(MIB)) * 300,
    "deflate": zlib.compress(bytes(300 * MIB), 9),
    "zstd": zstandard.compress(bytes(300 * MIB)),
    "zstd of many frames": zstandard.compress(bytes(MIB)) * 300,
    # Blocks of 128 KiB that repeat one byte: 4 bytes each.
    "zstd of short blocks": b"\x28\xb5\x2f\xfd\x00\x58" + ((128 * 1024 << 3 | 2).to_bytes(3, "little") + b"\0") * 2400,
}


@pytest.mark.parametrize(("name", "packed"), BOMBS.items(), ids=BOMBS.keys())
def test_a_bomb_costs_no_more_than_the_limit(name: str, packed: bytes) -> None:
    """300 MiB behind a few bytes: refused at the limit, and never more than it and one step in memory."""
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match=f"more than {4 * MIB} bytes decompressed"):
            read(name.split(maxsplit=1)[0], [packed], 4 * MIB)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def test_other_codings_are_not_taken() -> None:
    """The message says which are."""
    for coding in ("br", "snappy", "gzip, gzip", "gzip,deflate"):
        with pytest.raises(MediaTypeError, match=f"got '{coding}', expected gzip, zstd, deflate or none"):
            decoder_for(coding)


def test_a_body_counts_while_it_comes() -> None:
    """Decompressed bytes are held; where another holds the room, it stops."""
    gate = Admission(MIB)
    assert read("gzip", [gzip.compress(bytes(MIB // 2))], gate=gate) == bytes(MIB // 2)
    assert gate.held_bytes == 0
    with gate.enter(MIB // 2 + 1):
        with pytest.raises(OverloadError):
            read("gzip", [gzip.compress(bytes(MIB // 2))], gate=gate)
        assert gate.held_bytes == MIB // 2 + 1


def test_a_body_that_does_not_come() -> None:
    """Late, or its sender gone."""
    with pytest.raises(SlowSenderError, match=r"got 3 bytes of a body in 0.05 s, expected all of it"):
        read("", [b"abc"], timeout_s=0.05, end={"type": "http.request", "body": b"", "more_body": True})
    with pytest.raises(SenderGoneError, match="left after 3 bytes"):
        read("", [b"abc"], end={"type": "http.disconnect"})
