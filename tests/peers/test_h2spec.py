"""HTTP/2 as h2spec checks it, on our connections, and gRPC's own port under the same fire."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from joulegram_pipeline.http2_frames import header_block
from joulegram_receiver.http2_connection import Http2Connection
from joulegram_receiver.http2_life import Http2Limits
from joulegram_receiver.http2_wire import READ_BYTES
from simulators.grpc_methods import ECHO, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from joulegram_receiver.http2_stream import Stream
    from joulegram_receiver.http2_wire import Http2Wire

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
_RESULT = re.compile(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed")


class Hello:
    """Answers any request with a few bytes, once it is whole: the plain server that h2spec expects."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def data(self, chunk: bytes) -> None:
        """Read past."""

    def end(self) -> None:
        """Answer."""
        self._stream.begin(header_block(((b":status", b"200"),)))
        self._stream.body(b"hello, world")
        self._stream.finish(header_block(((b"x-end", b"1"),)))

    def late(self, limit_s: float) -> None:
        """Nobody is."""

    def gone(self) -> None:
        """Nothing to put away."""

    def room(self) -> None:
        """Nothing more to send."""


class PlainHost:
    """A server of it."""

    def __init__(self) -> None:
        self.limits = Http2Limits()
        self.buffer = memoryview(bytearray(READ_BYTES))

    def open(self, stream: Stream) -> Hello:
        """What handles a request."""
        return Hello(stream)

    def entered(self, connection: Http2Wire) -> bool:
        """There is room for all."""
        return True

    def left(self, connection: Http2Wire) -> None:
        """Nobody counts."""


@asynccontextmanager
async def plain() -> AsyncIterator[int]:
    """The port of a plain HTTP/2 server."""
    host = PlainHost()
    server = await asyncio.get_running_loop().create_server(lambda: Http2Connection(host), "127.0.0.1", 0)
    async with server:
        port: int = server.sockets[0].getsockname()[1]
        yield port


async def run(h2spec: Path, port: int, *sections: str) -> str:
    """What h2spec says of a port."""
    process = await asyncio.create_subprocess_exec(
        h2spec, *sections, "-h", "127.0.0.1", "-p", str(port), "-o", "3",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    return said.decode()


def test_every_case_of_h2spec_passes(h2spec: Path, caplog: pytest.LogCaptureFixture) -> None:
    """RFC 9113 (as RFC 7540) and RFC 7541, 145 cases and more; those that do not fit the server are skipped by it."""

    async def main() -> None:
        async with plain() as port:
            said = await run(h2spec, port)
        result = _RESULT.search(said)
        assert result is not None, said
        total, passed, skipped, failed = map(int, result.groups())
        assert (failed, passed + skipped) == (0, total), said[said.index("Failures") :] if "Failures" in said else said
        assert passed >= 140

    asyncio.run(main())
    assert not caplog.records


def test_a_grpc_port_stands_up_to_it(h2spec: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Requests that are no gRPC are answered at once, so some cases differ there; nothing is logged, nothing breaks."""

    async def main() -> None:
        async with serving({"/a.B/C": ECHO}) as server:
            said = await run(h2spec, server.port)
            assert _RESULT.search(said) is not None, said
            again = await run(h2spec, server.port, "generic/1", "http2/4")
            result = _RESULT.search(again)
            assert result is not None
            assert result[4] == "0", again

    asyncio.run(main())
    assert not caplog.records
