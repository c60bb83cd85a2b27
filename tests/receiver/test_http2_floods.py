"""Floods of what costs a client of the gRPC port nothing, and what was on its way when we had said our last word."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING

import pytest
from google.rpc import code_pb2

from joulegram_pipeline.http2_frames import (
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
from joulegram_receiver.grpc_methods import Unary
from joulegram_receiver.http2_life import Http2Limits
from simulators.grpc_methods import ECHO, serving
from simulators.http2 import Http2Client, call_body, call_head

if TYPE_CHECKING:
    from joulegram_receiver.admission import Hold
    from joulegram_receiver.http2_head import Head

ECHO_PATH = "/echo.Echo/Say"
BIG_PATH = "/echo.Echo/Much"


async def _much(message: bytes, head: Head, hold: Hold) -> bytes:
    return bytes(40_000)


METHODS = {ECHO_PATH: ECHO, BIG_PATH: Unary(_much)}


# -- what is busy ----------------------------------------------------------------------------------------------------


async def _ended(client: Http2Client) -> bytes:
    """Why the server ends the connection."""
    found = [each.payload for each in await client.closed() if each.kind == Kind.GOAWAY]
    return found[0][4:8]


@pytest.mark.parametrize("each", [gzip.compress(b""), gzip.compress(b"a" * 100)], ids=["empty", "small"])
def test_members_of_gzip_cost_no_more_the_more_there_are(each: bytes) -> None:
    """Half a minute, were all that is behind copied for each; others are served meanwhile."""

    async def main() -> None:
        async with serving(METHODS) as server, Http2Client(server.port) as client:
            body = each * 250_000
            data = b"\1" + WORD.pack(len(body)) + body
            parts = [frame(Kind.DATA, 0, 1, data[at : at + 16_384]) for at in range(0, len(data), 16_384)]
            await client.send(call_head(1, ECHO_PATH, (b"grpc-encoding", b"gzip")))
            writing = asyncio.create_task(client.send(*parts[:60]))
            await client.until(Kind.WINDOW_UPDATE, 1)
            await writing
            await client.send(*parts[60:], frame(Kind.DATA, Flag.END_STREAM, 1))
            async with asyncio.timeout(10):
                await client.until(Kind.HEADERS, 1)
            assert client.got[-1].kind != Kind.GOAWAY

    asyncio.run(main())


FREE = {
    "a window for all streams, emptied each time": window_update(0, 1) * 1000,
    "another window of each stream": b"".join(
        settings({Setting.INITIAL_WINDOW_SIZE: 1 + count % 2}) for count in range(1000)
    ),
    "calls of no method": b"".join(
        call_head(stream_id, "/no.Such/Method", flags=Flag.END_HEADERS | Flag.END_STREAM)
        for stream_id in range(2001, 22_001, 2)
    ),
}


@pytest.mark.parametrize("sent", FREE.values(), ids=FREE)
def test_what_costs_the_client_nothing_is_rationed(sent: bytes) -> None:
    """Counted by the streams that a frame makes us look at; a flood ends the connection."""

    async def main() -> None:
        async with serving(METHODS) as server, Http2Client(server.port) as client:
            await client.send(call_head(1, BIG_PATH), call_body(1, b"a"), call_head(3, BIG_PATH), call_body(3, b"a"))
            await client.until(Kind.HEADERS, 3)
            await client.send(*(call_head(stream_id, ECHO_PATH) for stream_id in range(5, 2001, 2)))
            await client.send(sent)
            assert await _ended(client) == WORD.pack(Code.ENHANCE_YOUR_CALM)

    asyncio.run(main())


def test_room_that_nobody_waits_for_is_free() -> None:
    """Clients say it for each message they read."""

    async def main() -> None:
        async with serving(METHODS) as server, Http2Client(server.port) as client:
            await client.send(*(call_head(stream_id, ECHO_PATH) for stream_id in range(1, 2001, 2)))
            await client.send(window_update(0, 1) * 20_000)
            await client.settled()

    asyncio.run(main())


# -- what was on its way ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [reset(3, Code.CANCEL), window_update(3, 10), call_body(3, b"late")],
    ids=["given up", "more room", "a body"],
)
def test_a_call_begun_behind_the_last_word_spoils_no_other(sent: bytes) -> None:
    """The client could not know: what it says of it is read past, and the calls that were taken are answered."""
    go = asyncio.Event()

    async def wait(message: bytes, head: Head, hold: Hold) -> bytes:
        await go.wait()
        return message

    async def main() -> None:
        limits = Http2Limits(max_age_s=0.1)
        async with serving({ECHO_PATH: Unary(wait)}, limits=limits) as server, Http2Client(server.port) as client:
            await client.send(call_head(1, ECHO_PATH), call_body(1, b"taken"))
            await client.until(Kind.GOAWAY)
            ping = await client.until(Kind.PING)
            await client.send(frame(Kind.PING, Flag.ACK, 0, ping.payload))
            assert (await client.until(Kind.GOAWAY)).payload == WORD.pack(1) + WORD.pack(Code.NO_ERROR)
            await client.send(call_head(3, ECHO_PATH), sent)
            await client.settled()
            go.set()
            assert (await client.until(Kind.DATA, 1)).payload[5:] == b"taken"

    asyncio.run(main())


def test_the_bodies_of_calls_refused_are_read_past() -> None:
    """Of one too many: it is refused by one frame, however much of it is on its way, and the connection goes on."""

    async def main() -> None:
        async with (
            serving(METHODS, limits=Http2Limits(max_streams=1)) as server,
            Http2Client(server.port) as client,
        ):
            await client.send(call_head(1, ECHO_PATH))
            ids = range(3, 203, 2)
            await client.send(*(call_head(each, ECHO_PATH) + call_body(each, bytes(40_000)) for each in ids))
            await client.settled()
            resets = [(each.stream_id, each.payload) for each in client.got if each.kind == Kind.RST_STREAM]
            assert resets == [(each, WORD.pack(Code.REFUSED_STREAM)) for each in ids]

    asyncio.run(main())


def test_trailers_of_a_call_that_was_answered_early_are_read_past() -> None:
    """They were on their way; behind them the stream is closed."""

    async def main() -> None:
        async with serving(METHODS) as server, Http2Client(server.port) as client:
            await client.send(call_head(1, "/no.Such/Method"))
            assert await client.status(1) == code_pb2.UNIMPLEMENTED
            trailers = frame(Kind.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, 1, header_block([(b"x", b"y")]))
            await client.send(frame(Kind.DATA, 0, 1, b"abc"), trailers)
            await client.settled()
            await client.send(trailers)
            assert await _ended(client) == WORD.pack(Code.STREAM_CLOSED)

    asyncio.run(main())


def test_padding_takes_no_room_from_a_message() -> None:
    """A message of less than the window comes whole, though with its padding it is more."""

    async def main() -> None:
        async with serving(METHODS) as server, Http2Client(server.port) as client:
            data = b"\0" + WORD.pack(800_000) + bytes(800_000)
            room = 1 << 20
            await client.send(call_head(1, ECHO_PATH))
            for at in range(0, len(data), 500):
                part = data[at : at + 500]
                while room < len(part) + 256:
                    room += WORD.unpack((await client.until(Kind.WINDOW_UPDATE, 1)).payload)[0]
                room -= len(part) + 256
                await client.send(frame(Kind.DATA, Flag.PADDED, 1, b"\xff" + part + bytes(255)))
            await client.send(frame(Kind.DATA, Flag.END_STREAM, 1))
            await client.until(Kind.HEADERS, 1)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (b"application/grpc", b"200"),
        (b"application/grpc+proto", b"200"),
        (b"Application/gRPC; charset=utf-8", b"200"),
        (b"application/grpc-web+proto", b"415"),
        (b"application/grpcx", b"415"),
    ],
)
def test_what_is_grpc(kind: bytes, status: bytes) -> None:
    """And what only begins like it: gRPC-Web could not read the answer to what was kept."""

    async def main() -> None:
        async with serving(METHODS) as server, Http2Client(server.port) as client:
            pairs = [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", ECHO_PATH.encode()),
                (b"content-type", kind),
            ]
            await client.send(frame(Kind.HEADERS, Flag.END_HEADERS, 1, header_block(pairs)), call_body(1, b"a"))
            assert client.fields(await client.until(Kind.HEADERS, 1))[b":status"] == status

    asyncio.run(main())
