"""HTTP/2 frame by frame: windows, limits, time and the end of a connection; h2spec has the rest (tests/peers)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.errors import PermanentError
from joulegram_pipeline.http2_fields import MAX_BLOCK_BYTES
from joulegram_pipeline.http2_frames import (
    WORD,
    Code,
    ConnectionFault,
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
from joulegram_receiver.http2_connection import STREAM_WINDOW_BYTES
from joulegram_receiver.http2_head import HeadReader
from joulegram_receiver.http2_life import Http2Limits
from joulegram_receiver.intake_refusals import reason_of
from simulators.grpc_methods import ECHO, serving
from simulators.http2 import Fed, Http2Client, call_body, call_head, frames_of

if TYPE_CHECKING:
    from joulegram_receiver.admission import Hold
    from joulegram_receiver.http2_head import Head

ECHO_PATH = "/echo.Echo/Say"
METHODS = {ECHO_PATH: ECHO}

NAMES = st.from_regex(rb"\A[a-z][a-z0-9-]{0,20}\Z").filter(
    lambda name: (
        name not in {b"te", b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
        and name != b"content-length"
    )
)
FIELDS = st.lists(st.tuples(NAMES, st.binary(max_size=60)), max_size=8)
PSEUDO = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/C"), (b":authority", b"a")]


# -- header fields ---------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(FIELDS, st.integers(1, 3), st.booleans()), min_size=1, max_size=12))
def test_what_is_remembered_is_what_is_decoded(requests: list[tuple[list[tuple[bytes, bytes]], int, bool]]) -> None:
    """An encoder that uses its table as it likes, blocks that come again: each head says what was sent."""
    encoder, reader = Encoder(), HeadReader()
    for fields, times, huffman in requests:
        for _ in range(times):
            head = reader.read(encoder.encode(PSEUDO + fields, huffman=huffman))
            assert (head.method, head.path, head.fault) == (b"POST", b"/a.B/C", None)
            assert head.fields == tuple(fields)
            assert head.size_bytes == sum(len(name) + len(value) + 32 for name, value in PSEUDO + fields)


def test_a_block_that_comes_again_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the table rests; and it is once the table has changed, because the same bytes mean other fields then."""
    reader, encoder = HeadReader(), Encoder()
    first = [*PSEUDO, (b"a", b"1")]
    blocks = [encoder.encode(first) for _ in range(3)]
    assert blocks[1] == blocks[2] != blocks[0]
    assert reader.read(blocks[0]).fields == reader.read(blocks[1]).fields == ((b"a", b"1"),)
    decoded: list[bytes] = []
    decode = Decoder.decode

    def count(self: Decoder, data: bytes, raw: bool = False) -> Any:
        decoded.append(data)
        return decode(self, data, raw)

    monkeypatch.setattr(Decoder, "decode", count)
    assert reader.read(blocks[2]).fields == ((b"a", b"1"),)
    assert decoded == []
    encoder.encode(PSEUDO)  # nothing of the table
    assert reader.read(encoder.encode([*PSEUDO, (b"a", b"2")])).fields == ((b"a", b"2"),)
    assert (b"a", b"2") in reader.read(blocks[2]).fields, "an index of these bytes is another field now"
    assert len(decoded) == 2


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=300)), max_size=5))
def test_what_we_say_is_what_a_decoder_reads(pairs: list[tuple[bytes, bytes]]) -> None:
    """Literals of any length."""
    assert [tuple(pair) for pair in Decoder().decode(header_block(pairs), raw=True)] == pairs


BAD_HEADS = {
    "upper case": [*PSEUDO, (b"Accept", b"a")],
    "a pseudo-header of answers": [*PSEUDO, (b":status", b"200")],
    "a pseudo-header twice": [*PSEUDO, (b":path", b"/b")],
    "a pseudo-header behind a field": [*PSEUDO[:2], (b"a", b"b"), PSEUDO[2]],
    "no path": PSEUDO[:2],
    "an empty path": [*PSEUDO[:2], (b":path", b"")],
    "a field of connections": [*PSEUDO, (b"connection", b"close")],
    "te that is not trailers": [*PSEUDO, (b"te", b"gzip")],
}


@pytest.mark.parametrize("pairs", BAD_HEADS.values(), ids=BAD_HEADS)
def test_a_head_that_breaks_the_rules_is_named(pairs: list[tuple[bytes, bytes]]) -> None:
    """RFC 9113 section 8: what was got and what was expected; the table goes on."""
    reader = HeadReader()
    fault = reader.read(header_block(pairs)).fault
    assert fault is not None
    assert fault.startswith("got ")
    assert reader.read(header_block(PSEUDO)).fault is None


def test_what_is_no_hpack_is_said_without_an_address_of_ours() -> None:
    """The library's own words hold one, found by fuzzing; they would go to the peer in GOAWAY."""
    with pytest.raises(ConnectionFault) as fault:
        HeadReader().read(b"\x7f" + b"\xff" * 20)
    assert fault.value.code is Code.COMPRESSION_ERROR
    assert "0x" not in str(fault.value)


def test_nothing_of_headers_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The library would, at DEBUG, tokens with them."""
    caplog.set_level(logging.DEBUG)
    HeadReader().read(header_block([*PSEUDO, (b"authorization", b"Bearer hunter2")]))
    assert "hunter2" not in caplog.text


# -- windows ---------------------------------------------------------------------------------------------------------


def test_an_answer_waits_for_room(caplog: pytest.LogCaptureFixture) -> None:
    """Of the stream and of the connection, as the client gives it; and it comes whole."""

    async def main() -> None:
        message = bytes(range(256)) * 800  # 200 KiB
        async with (
            serving(METHODS) as server,
            Http2Client(server.port, {Setting.INITIAL_WINDOW_SIZE: 10}) as client,
        ):
            await client.send(call_head(1, ECHO_PATH), call_body(1, message))
            await client.until(Kind.HEADERS, 1)
            got = (await client.until(Kind.DATA, 1)).payload
            assert len(got) == 10
            await client.send(window_update(1, 1 << 20))
            while len(got) < 65_535:  # of the connection
                got += (await client.until(Kind.DATA, 1)).payload
            assert len(got) == 65_535
            await client.send(settings({Setting.INITIAL_WINDOW_SIZE: 0}), window_update(0, 1 << 20))
            while len(got) < len(message) + 5:
                got += (await client.until(Kind.DATA, 1)).payload
            assert got[5:] == message
            assert client.fields(await client.until(Kind.HEADERS, 1, Flag.END_STREAM)) == {b"grpc-status": b"0"}

    asyncio.run(main())
    assert not caplog.records


def test_a_client_without_a_table_is_told_that_none_is_used() -> None:
    """HEADER_TABLE_SIZE 0: a decoder that insists on hearing of it (RFC 7541 section 4.2) does, once."""

    async def main() -> None:
        async with serving(METHODS) as server, Http2Client(server.port, {Setting.HEADER_TABLE_SIZE: 0}) as client:
            for stream_id in (1, 3):
                await client.send(call_head(stream_id, ECHO_PATH), call_body(stream_id, b"one"))
                answer = client.fields(await client.until(Kind.HEADERS, stream_id))
                assert answer[b":status"] == b"200"
                assert await client.status(stream_id) == 0

    asyncio.run(main())


def test_a_large_message_is_granted_its_room_once() -> None:
    """One WINDOW_UPDATE of its stream as soon as its length is known, and none where it fits anyway."""

    async def main() -> None:
        async with serving(METHODS) as server, Http2Client(server.port) as client:
            size = 3 * STREAM_WINDOW_BYTES
            head = b"\0" + size.to_bytes(4, "big")
            await client.send(call_head(1, ECHO_PATH), frame(Kind.DATA, 0, 1, head))
            granted = await client.until(Kind.WINDOW_UPDATE, 1)
            assert WORD.unpack(granted.payload)[0] == size + 5 - STREAM_WINDOW_BYTES
            await client.send(*(frame(Kind.DATA, 0, 1, bytes(16_384)) for _ in range(size // 16_384)))
            await client.send(frame(Kind.DATA, Flag.END_STREAM, 1))
            await client.until(Kind.HEADERS, 1)
            assert [each for each in client.got if each.kind == Kind.WINDOW_UPDATE and each.stream_id == 1] == []

    asyncio.run(main())


def test_more_than_the_window_is_a_fault() -> None:
    """FLOW_CONTROL_ERROR of the stream; the connection goes on."""

    async def main() -> None:
        fed = Fed()
        from_client = [frame(Kind.SETTINGS, 0, 0), call_head(1, "/a", flags=Flag.END_HEADERS)]
        from_client += [frame(Kind.DATA, 0, 1, bytes(16_384)) for _ in range(STREAM_WINDOW_BYTES // 16_384 + 1)]
        await fed.feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(from_client))
        assert bytes(fed.pipe.written).endswith(reset(1, Code.FLOW_CONTROL_ERROR))
        assert fed.host.exchanges[0].left
        await fed.feed(call_head(3, "/a", flags=Flag.END_HEADERS | Flag.END_STREAM))
        assert fed.host.exchanges[1].ended
        fed.close()

    asyncio.run(main())


# -- limits ----------------------------------------------------------------------------------------------------------


def test_one_request_too_many_is_refused_and_may_be_sent_again() -> None:
    """REFUSED_STREAM says that nothing was done with it."""

    async def main() -> None:
        async with (
            serving(METHODS, limits=Http2Limits(max_streams=2)) as server,
            Http2Client(server.port) as client,
        ):
            await client.send(*(call_head(number, ECHO_PATH) for number in (1, 3, 5)))
            assert (await client.until(Kind.RST_STREAM, 5)).payload == WORD.pack(Code.REFUSED_STREAM)
            await client.send(call_body(1, b"a"))
            await client.until(Kind.HEADERS, 1, Flag.END_STREAM)
            await client.send(call_head(7, ECHO_PATH), call_body(7, b"b"))
            await client.until(Kind.HEADERS, 7, Flag.END_STREAM)

    asyncio.run(main())


def test_one_whose_client_has_gone_counts_until_it_is_done() -> None:
    """Else resetting calls would start any number of them (CVE-2023-44487)."""
    go, done = asyncio.Event(), asyncio.Event()

    async def wait(message: bytes, head: Head, hold: Hold) -> bytes:
        await go.wait()
        asyncio.get_running_loop().call_soon(done.set)
        return message

    async def main() -> None:
        limits = Http2Limits(max_streams=1)
        async with serving({ECHO_PATH: Unary(wait)}, limits=limits) as server, Http2Client(server.port) as client:
            await client.send(call_head(1, ECHO_PATH), call_body(1, b"a"), reset(1, Code.CANCEL))
            await client.send(call_head(3, ECHO_PATH))
            assert (await client.until(Kind.RST_STREAM, 3)).payload == WORD.pack(Code.REFUSED_STREAM)
            go.set()
            await done.wait()
            await client.send(call_head(5, ECHO_PATH), call_body(5, b"b"))
            await client.until(Kind.HEADERS, 5, Flag.END_STREAM)
            assert not any(each.stream_id == 1 for each in client.got)

    asyncio.run(main())


def test_header_fields_without_end_are_refused_and_the_connection_closed() -> None:
    """RESOURCE_EXHAUSTED for the call, ENHANCE_YOUR_CALM for the connection, whose table is lost (CVE-2024-27316)."""

    async def main() -> None:
        async with serving(METHODS) as server, Http2Client(server.port) as client:
            part = header_block([(b"x", b"y" * 1000)] * 15)
            parts = [frame(Kind.CONTINUATION, 0, 1, part) for _ in range(MAX_BLOCK_BYTES // len(part) + 1)]
            await client.send(call_head(1, ECHO_PATH, flags=0), *parts)
            assert client.fields(await client.until(Kind.HEADERS, 1))[b"grpc-status"] == b"8"
            assert WORD.pack(Code.ENHANCE_YOUR_CALM) in (await client.until(Kind.GOAWAY)).payload
            await client.closed()

    asyncio.run(main())


def test_header_fields_that_grow_when_decoded_close_the_connection() -> None:
    """A bomb: one long field of the table, named over and over by a byte each."""

    async def main() -> None:
        async with serving(METHODS) as server, Http2Client(server.port) as client:
            encoder = Encoder()
            first = encoder.encode([*PSEUDO, (b"content-type", b"application/grpc"), (b"x", b"y" * 3900)])
            await client.send(frame(Kind.HEADERS, Flag.END_HEADERS, 1, first), call_body(1, b"a"))
            bomb = encoder.encode([(b"x", b"y" * 3900)]) * 10_000
            assert len(bomb) < 16_384
            await client.send(frame(Kind.HEADERS, Flag.END_HEADERS, 3, bomb))
            assert WORD.pack(Code.ENHANCE_YOUR_CALM) in (await client.until(Kind.GOAWAY)).payload

    asyncio.run(main())


def test_one_client_too_many_is_closed() -> None:
    """Counted, and let in once another has gone."""
    reasons: list[str] = []

    async def main() -> None:
        async with serving(METHODS, max_connections=1, refused=reasons.append) as server:
            async with Http2Client(server.port) as client:
                await client.until(Kind.SETTINGS)
                async with Http2Client(server.port) as other:
                    assert await other.closed() == []
            await server._all_gone()
            async with Http2Client(server.port) as client:
                await client.until(Kind.SETTINGS)

    asyncio.run(main())
    assert reasons == ["connections"]


# -- time ------------------------------------------------------------------------------------------------------------


def test_who_says_nothing_is_closed() -> None:
    """A connection without a preface, and one with half of it."""

    async def main() -> None:
        async with serving(METHODS, limits=Http2Limits(preface_s=0.2)) as server:
            for said in (b"", b"PRI * HTTP/2"):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(said)
                data = await asyncio.wait_for(reader.read(), 20)
                assert frames_of(data)[0][-1].kind == Kind.GOAWAY
                writer.close()
                await writer.wait_closed()

    asyncio.run(main())


def test_a_request_that_does_not_come_is_given_up() -> None:
    """DEADLINE_EXCEEDED, which clients may send again; what it held is given back, and others are served."""

    async def main() -> None:
        echo = Unary(ECHO.answer)
        async with (
            serving({ECHO_PATH: echo}, limits=Http2Limits(request_s=0.2)) as server,
            Http2Client(server.port) as client,
        ):
            await client.send(call_head(1, ECHO_PATH), frame(Kind.DATA, 0, 1, b"\0\0\0\0\x05abc"))
            found = client.fields(await client.until(Kind.HEADERS, 1, Flag.END_STREAM))
            assert found[b"grpc-status"] == b"4"
            assert echo.admission.held_bytes == 0

    asyncio.run(main())


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    """The client leaves no room for it: CANCEL, and the call counts no longer."""

    async def main() -> None:
        limits = Http2Limits(request_s=0.2, max_streams=1)
        async with (
            serving(METHODS, limits=limits) as server,
            Http2Client(server.port, {Setting.INITIAL_WINDOW_SIZE: 0}) as client,
        ):
            await client.send(call_head(1, ECHO_PATH), call_body(1, b"a"))
            assert (await client.until(Kind.RST_STREAM, 1)).payload == WORD.pack(Code.CANCEL)
            await client.send(settings({Setting.INITIAL_WINDOW_SIZE: 100}), call_head(3, ECHO_PATH), call_body(3, b"a"))
            await client.until(Kind.HEADERS, 3, Flag.END_STREAM)

    asyncio.run(main())


@pytest.mark.parametrize("limits", [Http2Limits(max_idle_s=0.2), Http2Limits(max_age_s=0.2)], ids=["idle", "of an age"])
def test_a_connection_is_ended_in_good_order(limits: Http2Limits) -> None:
    """First told to go, with a ping; then, once it has heard, which calls were taken; each of those is answered."""

    async def main() -> None:
        async with serving(METHODS, limits=limits) as server, Http2Client(server.port) as client:
            await client.send(call_head(1, ECHO_PATH), call_body(1, b"a"))
            await client.until(Kind.HEADERS, 1, Flag.END_STREAM)
            first = await client.until(Kind.GOAWAY)
            assert first.payload == b"\x7f\xff\xff\xff" + WORD.pack(Code.NO_ERROR)
            ping = await client.until(Kind.PING)
            await client.send(call_head(3, ECHO_PATH), frame(Kind.PING, Flag.ACK, 0, ping.payload))
            assert (await client.until(Kind.GOAWAY)).payload == WORD.pack(3) + WORD.pack(Code.NO_ERROR)
            await client.send(call_head(5, ECHO_PATH), call_body(5, b"late"), call_body(3, b"in time"))
            answer = await client.until(Kind.DATA, 3)
            assert answer.payload[5:] == b"in time"
            left = await client.closed()
            assert not any(each.stream_id == 5 for each in left)

    asyncio.run(main())


def test_a_silent_client_is_pinged_and_closed() -> None:
    """One that answers stays."""

    async def main() -> None:
        limits = Http2Limits(ping_s=0.1, ping_timeout_s=0.3)
        async with serving(METHODS, limits=limits) as server, Http2Client(server.port) as client:
            for _ in range(3):
                ping = await client.until(Kind.PING)
                await client.send(frame(Kind.PING, Flag.ACK, 0, ping.payload))
            await client.until(Kind.PING)
            await client.closed()

    asyncio.run(main())


# -- who is in the wrong place ---------------------------------------------------------------------------------------


def test_http_1_on_the_grpc_port_is_told_so() -> None:
    """The commonest mistake of a configuration: the other protocol's port."""

    async def main() -> None:
        async with serving(METHODS) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"POST /v1/traces HTTP/1.1\r\nhost: a\r\n\r\n")
            said = await asyncio.wait_for(reader.read(), 20)
            assert said.startswith(b"HTTP/1.1 505 ")
            assert b"OTLP/HTTP has its own (4318)" in said
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


CALLS: dict[str, tuple[bytes, dict[bytes, bytes]]] = {
    "no gRPC": (
        frame(Kind.HEADERS, 5, 1, header_block([*PSEUDO, (b"content-type", b"text/plain")])),
        {b":status": b"415"},
    ),
    "another method of HTTP": (
        frame(Kind.HEADERS, 5, 1, header_block([(b":method", b"GET"), *PSEUDO[1:]])),
        {b":status": b"405"},
    ),
    "no message": (call_head(1, ECHO_PATH, flags=5), {b":status": b"200", b"grpc-status": b"12"}),
    "two messages": (
        call_head(1, ECHO_PATH) + call_body(1, b"a", 0) + call_body(1, b"b"),
        {b":status": b"200", b"grpc-status": b"12"},
    ),
    "half a message": (
        call_head(1, ECHO_PATH) + frame(Kind.DATA, 1, 1, b"\0\0\0\0\x05ab"),
        {b":status": b"200", b"grpc-status": b"13"},
    ),
    "a flag nobody knows": (
        call_head(1, ECHO_PATH) + frame(Kind.DATA, 1, 1, b"\2\0\0\0\0"),
        {b":status": b"200", b"grpc-status": b"13"},
    ),
    "compressed without saying how": (
        call_head(1, ECHO_PATH) + frame(Kind.DATA, 1, 1, b"\1\0\0\0\0"),
        {b":status": b"200", b"grpc-status": b"13"},
    ),
    "compressed in a way nobody knows": (
        call_head(1, ECHO_PATH, (b"grpc-encoding", b"br")) + frame(Kind.DATA, 1, 1, b"\1\0\0\0\0"),
        {b":status": b"200", b"grpc-status": b"12", b"grpc-accept-encoding": b"gzip,deflate,zstd"},
    ),
}


@pytest.mark.parametrize(("sent", "expected"), CALLS.values(), ids=CALLS)
def test_a_call_that_is_none(sent: bytes, expected: dict[bytes, bytes]) -> None:
    """The status of gRPC's own table, in trailers alone; then the next call is served."""

    async def main() -> None:
        async with serving(METHODS) as server, Http2Client(server.port) as client:
            await client.send(sent)
            found = client.fields(await client.until(Kind.HEADERS, 1, Flag.END_STREAM))
            assert found.items() >= expected.items()
            await client.send(call_head(3, ECHO_PATH), call_body(3, b"a"))
            await client.until(Kind.HEADERS, 3, Flag.END_STREAM)

    asyncio.run(main())


class _BrokenError(Exception):
    """A defect of a method."""


def test_a_method_that_fails_is_internal_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Its words are for the log; what it refuses is for the client, percent-encoded."""

    async def fail(message: bytes, head: Head, hold: Hold) -> bytes:
        if message == b"refuse":
            raise PermanentError("100 % é\n")
        raise _BrokenError("a secret")

    counted: list[str] = []
    method = Unary(fail, lambda error: counted.append(reason_of(error)))

    async def main() -> None:
        async with serving({ECHO_PATH: method}) as server, Http2Client(server.port) as client:
            await client.send(call_head(1, ECHO_PATH), call_body(1, b"x"))
            found = client.fields(await client.until(Kind.HEADERS, 1, Flag.END_STREAM))
            assert found[b"grpc-status"] == b"13"
            assert b"secret" not in found[b"grpc-message"]
            await client.send(call_head(3, ECHO_PATH), call_body(3, b"refuse"))
            found = client.fields(await client.until(Kind.HEADERS, 3, Flag.END_STREAM))
            assert (found[b"grpc-status"], found[b"grpc-message"]) == (b"3", b"100 %25 %C3%A9%0A")

    asyncio.run(main())
    assert counted == ["failed", "malformed"]
    assert [record.exc_info is not None for record in caplog.records] == [True]
