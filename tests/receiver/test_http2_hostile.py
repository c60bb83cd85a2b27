"""Clients of the gRPC port that hold what they can: connections, streams, memory and time; on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from google.rpc import code_pb2
from hpack import Decoder

from joulegram_pipeline.http2_frames import (
    PREFACE,
    WORD,
    Code,
    Flag,
    Kind,
    Setting,
    frame,
    header_block,
    reset,
    settings,
    window_update,
)
from joulegram_receiver.admission import Admission
from joulegram_receiver.grpc_call import UnaryCall
from joulegram_receiver.grpc_extras import HEALTH_SERVICE, Health
from joulegram_receiver.grpc_methods import Streaming, Unary
from joulegram_receiver.http2_head import HeadReader
from joulegram_receiver.http2_life import Http2Limits
from simulators.certificates import Authority
from simulators.grpc_methods import ECHO, serving
from simulators.http2 import Http2Client, call_body, call_head

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_receiver.admission import Hold
    from joulegram_receiver.grpc_methods import Talk
    from joulegram_receiver.grpc_transport import GrpcServer
    from joulegram_receiver.http2_head import Head

ECHO_PATH = "/echo.Echo/Say"
BIG_PATH = "/echo.Echo/Much"
CHECK_PATH = f"/{HEALTH_SERVICE}/Check"
WATCH_PATH = f"/{HEALTH_SERVICE}/Watch"
ANSWER_BYTES = 40_000
HELLO = PREFACE + settings({Setting.INITIAL_WINDOW_SIZE: 1 << 30}) + window_update(0, 1 << 30)
"""Of a client with room for all there is, were it to read."""


async def _much(message: bytes, head: Head, hold: Hold) -> bytes:
    return bytes(ANSWER_BYTES)


METHODS = {ECHO_PATH: ECHO, BIG_PATH: Unary(_much)}


class Deaf:
    """A client that reads only when it is told to, over TLS where it has a context."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)
        self._into, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = None if context is None else context.wrap_bio(self._into, self._out)

    async def connect(self, port: int) -> None:
        """To the server, without a word of TLS."""
        await self._loop.sock_connect(self._socket, ("127.0.0.1", port))

    async def begin_handshake(self) -> None:
        """The first half."""
        assert self._tls is not None
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        await self._loop.sock_sendall(self._socket, self._out.read())

    async def shake(self) -> None:
        """The whole handshake; ConnectionError where the server does not."""
        assert self._tls is not None
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._loop.sock_sendall(self._socket, self._out.read())
                data = await asyncio.wait_for(self._loop.sock_recv(self._socket, 1 << 16), 20)
                if not data:
                    raise ConnectionError("closed within the handshake") from None
                self._into.write(data)
            else:
                await self._loop.sock_sendall(self._socket, self._out.read())
                return

    async def send(self, data: bytes) -> None:
        """Send."""
        if self._tls is not None:
            self._tls.write(data)
            data = self._out.read()
        await self._loop.sock_sendall(self._socket, data)

    async def receive(self) -> bytes:
        """What comes of the socket; nothing at its end."""
        return await asyncio.wait_for(self._loop.sock_recv(self._socket, 1 << 16), 20)

    async def half_close(self) -> None:
        """Say that no more is sent: close_notify, or a FIN."""
        if self._tls is None:
            self._socket.shutdown(socket.SHUT_WR)
            return
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        await self._loop.sock_sendall(self._socket, self._out.read())

    async def clog(self, server: GrpcServer) -> None:
        """Call until an answer stays in the server's hands, too little of it that the transport would mind."""
        (connection,) = server._connections
        stream_id = 1
        while True:
            transport = connection._transport
            assert transport is not None
            inner = getattr(getattr(transport, "_ssl_protocol", None), "_transport", transport)
            if inner.get_write_buffer_size():
                assert not connection.paused
                return
            await self.send(call_head(stream_id, BIG_PATH) + call_body(stream_id, b"a"))
            stream_id += 2
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(*Authority().issue("localhost").write(tmp_path))
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return server, client


async def _gone(server: GrpcServer) -> None:
    await asyncio.wait_for(server._all_gone(), 20)


# -- the end of connections ------------------------------------------------------------------------------------------


def test_a_handshake_that_ends_behind_the_stop_is_not_served(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Nothing is there any more that could keep a request."""
    taken: list[bytes] = []

    async def take(message: bytes, head: Head, hold: Hold) -> bytes:
        taken.append(message)
        return b""

    async def main() -> None:
        client = Deaf(contexts[1])
        async with serving({ECHO_PATH: Unary(take)}, ssl_context=contexts[0]) as server:
            await client.connect(server.port)
            await client.begin_handshake()
            await asyncio.sleep(0.1)
        with contextlib.suppress(ConnectionError):
            await client.shake()
            await client.send(HELLO + call_head(1, ECHO_PATH) + call_body(1, b"late"))
            while await client.receive():
                pass
        client.close()
        assert taken == []
        assert not server._connections

    asyncio.run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "TLS"])
@pytest.mark.parametrize("half_closed", [False, True], ids=["silent", "half closed"])
def test_a_stop_ends_though_a_client_does_not_read(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], tls: bool, half_closed: bool
) -> None:
    """Within the grace, also where the client has closed its half."""

    async def main() -> None:
        client = Deaf(contexts[1] if tls else None)
        async with asyncio.timeout(10):
            async with serving(METHODS, ssl_context=contexts[0] if tls else None, grace_s=1.2) as server:
                await client.connect(server.port)
                if tls:
                    await client.shake()
                await client.send(HELLO)
                await asyncio.sleep(0.1)
                await client.clog(server)
                if half_closed:
                    await client.half_close()
                    await asyncio.sleep(0.1)
        client.close()

    asyncio.run(main())


@pytest.mark.parametrize("half_closed", [False, True], ids=["idle", "half closed"])
def test_a_connection_that_is_closed_is_gone_though_its_client_does_not_read(half_closed: bool) -> None:
    """In the time that a peer has to read; else each would count among the connections for ever."""

    async def main() -> None:
        limits = Http2Limits(request_s=0.3, max_idle_s=None if half_closed else 0.2)
        client = Deaf()
        async with serving(METHODS, limits=limits) as server:
            await client.connect(server.port)
            await client.send(HELLO)
            await asyncio.sleep(0.1)
            await client.clog(server)
            if half_closed:
                await client.half_close()
            await _gone(server)
        client.close()

    asyncio.run(main())


# -- what is in memory -----------------------------------------------------------------------------------------------


def test_a_call_given_up_leaves_nothing_to_collect() -> None:
    """What it held is given back, so its body must be gone, and not wait for a collection of garbage."""

    async def main() -> None:
        async with serving(METHODS) as server, Http2Client(server.port) as client:
            gc.collect()
            gc.disable()
            await client.send(call_head(1, ECHO_PATH), frame(Kind.DATA, 0, 1, b"\0\0\0\xff\xff" + bytes(1000)))
            await client.settled()
            assert [type(each) for each in gc.get_objects()].count(UnaryCall) == 1
            await client.send(reset(1, Code.CANCEL), call_head(3, ECHO_PATH), call_body(3, b"a"))
            assert await client.status(3) == code_pb2.OK
            await client.settled()
            assert [type(each) for each in gc.get_objects()].count(UnaryCall) == 0

    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_a_message_in_small_pieces_takes_what_it_holds() -> None:
    """And not thirty times that."""
    count = 30_000
    echo = Unary(ECHO.answer)

    async def main() -> None:
        async with serving({ECHO_PATH: echo}) as server, Http2Client(server.port) as client:
            await client.send(call_head(1, ECHO_PATH), frame(Kind.DATA, 0, 1, b"\0\0\xff\xff\xff"))
            await client.settled()
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            await client.send(frame(Kind.DATA, 0, 1, b"ab") * count)
            await client.settled()
            after, _ = tracemalloc.get_traced_memory()
            assert echo.admission.held_bytes == 2 * count + 5
            assert after - before < 8 * count

    try:
        asyncio.run(main())
    finally:
        tracemalloc.stop()


def test_an_answer_that_is_not_read_holds_what_was_asked() -> None:
    """It may be as large; until it is on its way, or its client has gone."""
    echo = Unary(ECHO.answer)

    async def main() -> None:
        async with (
            serving({ECHO_PATH: echo}) as server,
            Http2Client(server.port, {Setting.INITIAL_WINDOW_SIZE: 0}) as client,
        ):
            for stream_id, said in ((1, window_update(1, 10_000)), (3, reset(3, Code.CANCEL))):
                await client.send(call_head(stream_id, ECHO_PATH), call_body(stream_id, bytes(5000)))
                await client.until(Kind.HEADERS, stream_id)
                assert echo.admission.held_bytes == 5005
                await client.send(said)
                await client.settled()
                assert echo.admission.held_bytes == 0

    asyncio.run(main())


def test_a_head_that_grows_when_decoded_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of 1 KiB can name a thousand fields of the table."""
    decoded: list[bytes] = []
    decode = Decoder.decode

    def count(self: Decoder, data: bytes, raw: bool = False) -> Any:
        decoded.append(data)
        return decode(self, data, raw)

    monkeypatch.setattr(Decoder, "decode", count)
    small = header_block([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/")])
    large = small + b"\x8f" * 900
    reader = HeadReader()
    for block in (small, small, large, large):
        assert reader.read(block).fault is None
    assert decoded == [small, large, large]


def test_a_check_of_health_is_small() -> None:
    """It needs no token, so what it may bring is not what a request may."""

    async def main() -> None:
        async with serving(Health().methods()) as server, Http2Client(server.port) as client:
            await client.send(call_head(1, CHECK_PATH), frame(Kind.DATA, 0, 1, b"\0" + WORD.pack(1 << 20)))
            assert await client.status(1) == code_pb2.RESOURCE_EXHAUSTED

    asyncio.run(main())


# -- streams of messages ---------------------------------------------------------------------------------------------


def test_what_a_method_of_streams_has_not_read_is_bounded() -> None:
    """A Watch reads one message: who sends more is refused, also where each is empty."""

    async def main() -> None:
        async with serving(Health().methods()) as server, Http2Client(server.port) as client:
            one = b"\0\0\0\0\0"
            await client.send(call_head(1, WATCH_PATH), *(frame(Kind.DATA, 0, 1, one * 1000) for _ in range(2)))
            assert await client.status(1) == code_pb2.RESOURCE_EXHAUSTED
            await client.settled()
            assert [len(each.streams) for each in server._connections] == [0]

    asyncio.run(main())


def test_calls_of_streams_are_bounded() -> None:
    """Each holds what it may have unread; one too many may come again."""

    async def echo(talk: Talk) -> None:
        while (message := await talk.receive()) is not None:
            await talk.send(message)

    async def main() -> None:
        method = Streaming(echo, Admission(100_000))
        async with serving({ECHO_PATH: method}) as server, Http2Client(server.port) as client:
            await client.send(call_head(1, ECHO_PATH))
            await client.settled()
            await client.send(call_head(3, ECHO_PATH))
            assert await client.status(3) == code_pb2.UNAVAILABLE
            await client.send(call_body(1, b"a"))
            assert await client.status(1) == code_pb2.OK
            assert method.admission.held_bytes == 0
            await client.send(call_head(5, ECHO_PATH), call_body(5, b"a"))
            assert await client.status(5) == code_pb2.OK

    asyncio.run(main())


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"", code_pb2.DEADLINE_EXCEEDED), (frame(Kind.DATA, Flag.END_STREAM, 1, b"\0\0\0\0\5ab"), code_pb2.INTERNAL)],
    ids=["nothing", "half a message"],
)
def test_a_call_of_streams_without_a_message_is_refused(sent: bytes, status: int) -> None:
    """What asks for nothing does not stay, and what is cut off is not taken for an end."""

    async def main() -> None:
        limits = Http2Limits(request_s=0.2)
        async with serving(Health().methods(), limits=limits) as server, Http2Client(server.port) as client:
            await client.send(call_head(1, WATCH_PATH), sent)
            assert await client.status(1) == status

    asyncio.run(main())


def test_a_watch_that_is_given_up_at_once_counts_no_longer() -> None:
    """Its task had not begun, so that nothing of it ran."""

    async def main() -> None:
        async with (
            serving(Health().methods(), limits=Http2Limits(max_streams=2)) as server,
            Http2Client(server.port) as client,
        ):
            await client.send(*(call_head(each, WATCH_PATH) + reset(each, Code.CANCEL) for each in (1, 3)))
            await client.settled()
            await client.send(call_head(5, CHECK_PATH), call_body(5, b""))
            assert await client.status(5) == code_pb2.OK

    asyncio.run(main())


def test_a_late_answer_that_nobody_reads_is_given_up() -> None:
    """Also where the method took longer than a peer has to read, and nothing has come since."""

    async def slow(message: bytes, head: Head, hold: Hold) -> bytes:
        await asyncio.sleep(0.3)
        return message

    async def main() -> None:
        async with (
            serving({ECHO_PATH: Unary(slow)}, limits=Http2Limits(request_s=0.2)) as server,
            Http2Client(server.port, {Setting.INITIAL_WINDOW_SIZE: 0}) as client,
        ):
            await client.send(call_head(1, ECHO_PATH), call_body(1, b"a"))
            assert (await client.until(Kind.RST_STREAM, 1)).payload == WORD.pack(Code.CANCEL)

    asyncio.run(main())
