"""What HTTP/2 asks of both sides, case by case, where h2spec does not ask; and peers that do not read."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from joulegram_pipeline.http2_frames import (
    HEAD,
    MAX_FRAME_BYTES,
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
from joulegram_receiver import http2_connection
from joulegram_receiver.grpc_methods import Unary
from joulegram_receiver.http2_life import Http2Limits
from simulators.grpc_methods import ECHO, serving
from simulators.http2 import Fed, Frame, Http2Client, call_body, call_head, frames_of

if TYPE_CHECKING:
    from joulegram_receiver.admission import Hold
    from joulegram_receiver.http2_head import Head

ECHO_PATH = "/echo.Echo/Say"
END = Flag.END_HEADERS | Flag.END_STREAM
OPEN = call_head(1, "/a")


def trailers(*pairs: tuple[bytes, bytes], flags: int = END) -> bytes:
    """Header fields behind a body."""
    return frame(Kind.HEADERS, flags, 1, header_block(pairs))


STREAM_FAULTS = {
    "trailers with a pseudo-header": (OPEN + trailers((b":path", b"/b")), Code.PROTOCOL_ERROR),
    "trailers that are not the end": (OPEN + trailers((b"x", b"y"), flags=Flag.END_HEADERS), Code.PROTOCOL_ERROR),
    "a body shorter than it says": (
        call_head(1, "/a", (b"content-length", b"9")) + frame(Kind.DATA, Flag.END_STREAM, 1, b"abc"),
        Code.PROTOCOL_ERROR,
    ),
    "no body where one is said": (
        call_head(1, "/a", (b"content-length", b"9"), flags=END),
        Code.PROTOCOL_ERROR,
    ),
    "no room": (OPEN + window_update(1, 0), Code.PROTOCOL_ERROR),
}


@pytest.mark.parametrize(("sent", "code"), STREAM_FAULTS.values(), ids=STREAM_FAULTS)
def test_a_fault_of_a_stream_ends_the_stream(sent: bytes, code: Code) -> None:
    """And nothing else."""

    async def main() -> None:
        fed = Fed()
        await fed.feed(PREFACE + settings({}) + sent)
        assert bytes(fed.pipe.written).endswith(reset(1, code))
        assert fed.connection.streams == {}
        await fed.feed(call_head(3, "/a", flags=END))
        assert fed.host.exchanges[-1].ended
        fed.close()

    asyncio.run(main())


def test_a_frame_that_is_too_large_ends_the_connection() -> None:
    """Before it has come."""

    async def main() -> None:
        fed = Fed()
        await fed.feed(PREFACE + settings({}) + OPEN + HEAD.pack(0, MAX_FRAME_BYTES + 1, Kind.DATA, 0, 1))
        last = frames_of(bytes(fed.pipe.written))[0][-1]
        assert (last.kind, last.payload[4:8]) == (Kind.GOAWAY, WORD.pack(Code.FRAME_SIZE_ERROR))
        fed.close()

    asyncio.run(main())


def test_a_lost_connection_gives_its_requests_up() -> None:
    """Those that have not come whole."""

    async def main() -> None:
        fed = Fed()
        await fed.feed(PREFACE + settings({}) + OPEN)
        fed.close()
        assert fed.host.exchanges[0].left
        assert fed.connection.streams == {}

    asyncio.run(main())


def test_the_room_of_a_connection_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all that comes, also of calls that were refused; else it would stand still after 64 MiB."""
    monkeypatch.setattr(http2_connection, "CONNECTION_WINDOW_BYTES", 100_000)

    async def main() -> None:
        fed = Fed(Http2Limits(max_streams=1))
        await fed.feed(PREFACE + settings({}) + OPEN + call_head(3, "/a"))
        await fed.feed((frame(Kind.DATA, 0, 1, bytes(10_000)) + frame(Kind.DATA, 0, 3, bytes(10_000))) * 20)
        frames = frames_of(bytes(fed.pipe.written))[0]
        assert not any(each.kind == Kind.GOAWAY for each in frames)
        given = [WORD.unpack(each.payload)[0] for each in frames if each[0::2] == (Kind.WINDOW_UPDATE, 0)]
        assert 400_000 - 100_000 <= sum(given[1:]) <= 400_000
        fed.close()

    asyncio.run(main())


def test_what_was_answered_early_is_remembered_within_bounds() -> None:
    """Of the requests whose rest is read past."""

    async def main() -> None:
        fed = Fed(Http2Limits(max_streams=0))
        await fed.feed(PREFACE + settings({}) + b"".join(call_head(number, "/a") for number in range(1, 4001, 2)))
        assert 0 < len(fed.connection._unwanted) <= 1024
        fed.close()

    asyncio.run(main())


def test_an_answer_before_the_end_says_that_no_more_is_wanted() -> None:
    """RST_STREAM with NO_ERROR behind the trailers (RFC 9113 section 8.1)."""

    async def main() -> None:
        async with serving({ECHO_PATH: ECHO}) as server, Http2Client(server.port) as client:
            await client.send(call_head(1, "/no.Such/Method"))
            await client.until(Kind.HEADERS, 1, Flag.END_STREAM)
            assert await client.until(Kind.RST_STREAM, 1) == Frame(Kind.RST_STREAM, 0, 1, WORD.pack(Code.NO_ERROR))

    asyncio.run(main())


def test_a_call_that_outlasts_the_grace_of_an_aged_connection_is_cut() -> None:
    """max_connection_age_grace."""

    async def hang(message: bytes, head: Head, hold: Hold) -> bytes:
        await asyncio.sleep(60)
        return message

    async def main() -> None:
        limits = Http2Limits(max_age_s=0.1, max_age_grace_s=0.1)
        async with serving({ECHO_PATH: Unary(hang)}, limits=limits) as server, Http2Client(server.port) as client:
            await client.send(call_head(1, ECHO_PATH), call_body(1, b"a"))
            await client.until(Kind.GOAWAY)
            await asyncio.wait_for(client.closed(), 5)

    asyncio.run(main())


@pytest.mark.parametrize("reads_later", [True, False])
def test_of_a_client_that_does_not_read_nothing_is_read(reads_later: bool) -> None:
    """Nor is more written than the transport should have; it gets all once it reads, or is closed in time."""
    size, count = 2_000_000, 60

    async def much(message: bytes, head: Head, hold: Hold) -> bytes:
        return bytes(size)

    async def main() -> None:
        limits = Http2Limits(request_s=30 if reads_later else 0.5)
        async with serving({ECHO_PATH: Unary(much)}, limits=limits) as server:
            loop = asyncio.get_running_loop()
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", server.port))
                room = settings({Setting.INITIAL_WINDOW_SIZE: 1 << 30}) + window_update(0, 1 << 30)
                await loop.sock_sendall(client, PREFACE + room)
                ids = range(1, 2 * count, 2)
                for stream_id in ids:
                    await loop.sock_sendall(client, call_head(stream_id, ECHO_PATH) + call_body(stream_id, b"a"))
                    await asyncio.sleep(0.001)
                (connection,) = server._connections
                assert connection.paused
                assert connection._last_id < ids[-1]
                assert connection._transport is not None
                assert connection._transport.get_write_buffer_size() < 2 * size
                if not reads_later:
                    await asyncio.wait_for(server._all_gone(), 10)
                    return
                got = 0
                while got < count * size:
                    got += len(await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 10))

    asyncio.run(main())


def test_a_connection_whose_end_was_said_is_gone_soon() -> None:
    """Also where the peer keeps it open."""

    async def main() -> None:
        async with serving({ECHO_PATH: ECHO}) as server, Http2Client(server.port) as client:
            await client.send(frame(Kind.PUSH_PROMISE, 0, 1))
            await client.until(Kind.GOAWAY)
            await asyncio.wait_for(server._all_gone(), 5)

    asyncio.run(main())
