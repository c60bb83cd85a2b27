"""The body of an HTTP request, read and decompressed within bounds.

Invariants:
    * what is kept is never more than the limit and one chunk; a bomb costs the limit at most;
    * bytes are counted against the admission as they come;
    * a body that is not whole (a truncated or damaged stream) is refused, never cut.
"""

from __future__ import annotations

import asyncio
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Protocol

import zstandard

from joulegram_pipeline.errors import WireError
from joulegram_receiver.intake_refusals import MediaTypeError, SenderGoneError, SlowSenderError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from joulegram_receiver.admission import Hold

_INLINE_BYTES = 1024 * 1024
"""Decompressed on the event loop; what is above it is done beside it, so that others are answered meanwhile."""

_STEP_BYTES = 256 * 1024
_PART_BYTES = 64 * 1024
_GZIP_WINDOW = 31
_ZLIB_WINDOW = 15
_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024
"""What RFC 8878 asks every decoder to take; a frame may ask for gigabytes."""

_ZSTD_SLICE_BYTES = 256
"""A block of 4 bytes gives 128 KiB, and the library gives all that its input gives: at most 8 MiB at once."""


class Decoder(Protocol):
    """Undoes one content coding."""

    def push(self, data: bytes) -> None:
        """Take compressed bytes; those taken before have been pulled."""

    def pull(self, out: BytesIO, stop: int) -> bool:
        """Write what the bytes taken give to `out`, until it has `stop` bytes or a little more.

        Returns:
            Whether that was all.

        Raises:
            WireError: the stream is damaged.
        """

    def close(self) -> None:
        """Raises WireError where the stream has not come to its end."""


class _Identity:
    def __init__(self) -> None:
        self._data = b""

    def push(self, data: bytes) -> None:
        self._data = data

    def pull(self, out: BytesIO, stop: int) -> bool:
        del stop
        out.write(self._data)
        return True

    def close(self) -> None:
        return


class _Zlib:
    """gzip (RFC 1952), of which members may follow each other, and zlib (RFC 1950), which is one stream."""

    def __init__(self, name: str, window: int, *, several: bool) -> None:
        self._name = name
        self._window = window
        self._several = several
        self._stream = zlib.decompressobj(window)
        self._data = b""

    def push(self, data: bytes) -> None:
        self._data = data

    def pull(self, out: BytesIO, stop: int) -> bool:
        full = False  # the last step gave all it might, so the stream may hold back more although no input is left
        while self._data or full:
            if out.tell() >= stop:
                return False
            if self._stream.eof:
                if not self._several:
                    raise WireError(
                        f"content-encoding {self._name}: got {len(self._data)} bytes behind the end of the stream, "
                        "expected none"
                    )
                self._stream = zlib.decompressobj(self._window)
            try:
                given = self._stream.decompress(self._data, _STEP_BYTES)
            except zlib.error as error:
                raise WireError(f"content-encoding {self._name}: {error}, expected a {self._name} stream") from error
            out.write(given)
            self._data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            full = len(given) == _STEP_BYTES and not self._stream.eof
        return True

    def close(self) -> None:
        if not self._stream.eof:  # it stands behind the checksum, which was right
            raise WireError(f"content-encoding {self._name}: the stream ends early, expected it whole")


class _Zstd:
    """zstd (RFC 8878), of which frames may follow each other."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._stream = self._decompressor.decompressobj()
        self._data = b""
        self._at = 0

    def push(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def pull(self, out: BytesIO, stop: int) -> bool:
        while self._at < len(self._data):
            if out.tell() >= stop:
                return False
            if self._stream.eof:
                self._stream = self._decompressor.decompressobj()
            part = self._data[self._at : self._at + _ZSTD_SLICE_BYTES]
            try:
                out.write(self._stream.decompress(part))
            except zstandard.ZstdError as error:
                raise WireError(f"content-encoding zstd: {error}, expected a zstd stream") from error
            self._at += len(part) - len(self._stream.unused_data)
        return True

    def close(self) -> None:
        if not self._stream.eof:
            raise WireError("content-encoding zstd: the stream ends early, expected it whole")


_DECODERS: Final[dict[str, Callable[[], Decoder]]] = {
    "": _Identity,
    "identity": _Identity,
    "gzip": lambda: _Zlib("gzip", _GZIP_WINDOW, several=True),
    "x-gzip": lambda: _Zlib("gzip", _GZIP_WINDOW, several=True),
    "deflate": lambda: _Zlib("deflate", _ZLIB_WINDOW, several=False),
    "zstd": _Zstd,
}


def decoder_for(content_encoding: str, field: str = "content-encoding") -> Decoder:
    """What undoes a ``Content-Encoding``, or what another header field of that kind says.

    Raises:
        MediaTypeError: nothing here does.
    """
    make = _DECODERS.get(content_encoding.strip().lower())
    if make is None:
        raise MediaTypeError(f"{field}: got {content_encoding!r}, expected gzip, zstd, deflate or none")
    return make()


async def read_body(receive: Any, decoder: Decoder, hold: Hold, *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body, decompressed.

    Args:
        receive: of ASGI.
        decoder: of its content coding.
        hold: grows with what is kept.
        max_bytes: it may have, before and after decompression (A2); reading stops there.
        timeout_s: it may take to come.

    Raises:
        TooLargeError: it has more.
        SlowSenderError: it did not come in time.
        SenderGoneError: it will never come.
        WireError: it cannot be decompressed.
        OverloadError: there is no room for it now.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(receive, decoder, hold, max_bytes)
    except TimeoutError as error:
        raise SlowSenderError(f"got {hold.size} bytes of a body in {timeout_s:g} s, expected all of it") from error


async def inflate(data: bytes, decoder: Decoder, hold: Hold, max_bytes: int) -> bytes:
    """Bytes that are there whole, decompressed.

    Args:
        data: as they came.
        decoder: of their coding.
        hold: grows with what is kept.
        max_bytes: there may be, decompressed.

    Raises:
        TooLargeError: there are more.
        WireError: they cannot be decompressed.
        OverloadError: there is no room for them now.
    """
    out = BytesIO()
    # In parts, because each member of gzip copies what is behind it; others have their turn between them.
    for at in range(0, len(data), _PART_BYTES):
        await _append(data[at : at + _PART_BYTES], decoder, out, hold, max_bytes)
        await asyncio.sleep(0)
    decoder.close()
    return out.getvalue()


async def _read(receive: Any, decoder: Decoder, hold: Hold, max_bytes: int) -> bytes:
    out = BytesIO()
    received = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise SenderGoneError(f"the client left after {received} bytes of its body")
        data: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        received += len(data)
        if received > max_bytes:
            raise TooLargeError(f"got a body of more than {max_bytes} bytes, expected at most that")
        if not data:
            continue
        await _append(data, decoder, out, hold, max_bytes)
    decoder.close()
    return out.getvalue()


async def _append(data: bytes, decoder: Decoder, out: BytesIO, hold: Hold, max_bytes: int) -> None:
    decoder.push(data)
    done = False
    while not done:
        done = await _pull(decoder, out, max_bytes + 1)
        size = out.tell()
        if size > max_bytes:
            raise TooLargeError(f"got a body of more than {max_bytes} bytes decompressed, expected at most that")
        hold.grow(max(0, size - hold.size))


async def _pull(decoder: Decoder, out: BytesIO, stop: int) -> bool:
    """One step: on the loop while the body is small, beside it once it is not."""
    if out.tell() < _INLINE_BYTES or isinstance(decoder, _Identity):
        return decoder.pull(out, min(_INLINE_BYTES, stop))
    return await asyncio.to_thread(decoder.pull, out, stop)
