"""HTTP/2 of the gRPC exporter (RFC 9113): windows, settings, frames in any order, peers that break it."""

from __future__ import annotations

import contextlib
import random
import ssl
import struct
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from joulegram_pipeline.http2_frames import (
    DEFAULT_WINDOW_BYTES,
    HEAD,
    MAX_WINDOW_BYTES,
    WORD,
    Code,
    Flag,
    Kind,
    Setting,
    frame,
    header_block,
    settings,
    window_update,
)
from joulegram_sink.upstream_answer import MAX_RESPONSE_BYTES, Answer, Verdict
from joulegram_sink.upstream_destination import Header, Tls
from simulators.certificates import Authority
from simulators.http2_server import Http2Server, Peer, head, trailer, trailers_only
from simulators.http2_upstream import TAKEN, scripted, sender

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


_ODD_TURNS = 30
"""Of a server that gives room; then it gives enough to come to an end."""


@examples(max_examples=60, deadline=None)
@given(st.data())
def test_any_body_arrives_through_any_windows(data: st.DataObject) -> None:
    """Byte-equal, in frames and windows that the server allows, with settings that change on the way."""
    body = random.Random(data.draw(st.integers(0, 100))).randbytes(data.draw(st.integers(0, 300_000)))
    frame_size = st.integers(1 << 14, (1 << 24) - 1)
    window = st.integers(0, 300_000)
    first = {Setting.MAX_FRAME_SIZE: data.draw(frame_size), Setting.INITIAL_WINDOW_SIZE: data.draw(window)}
    grants = data.draw(
        st.lists(st.tuples(st.integers(1, 90_000), st.one_of(st.none(), window)), min_size=1, max_size=9)
    )

    def script(peer: Peer) -> None:
        stream_id, _ = peer.greet(first).head()
        parts: list[bytes] = []
        left = len(body) + 5

        def take(payload: bytes) -> None:
            nonlocal left
            parts.append(payload)
            left -= len(payload)

        for turn in count():
            while left and min(peer.windows[0], peer.windows[stream_id]) > 0:
                take(peer.until(Kind.DATA, stream_id).payload)
            if not left:
                break
            more, change = grants[turn % len(grants)]
            if change is not None and turn < _ODD_TURNS:
                peer.settle({Setting.INITIAL_WINDOW_SIZE: change})
                # What came before the client had acknowledged that.
                for each in peer.got:
                    take(each.payload)
                peer.got.clear()
            for each_id in (0, stream_id) if left else ():
                least = 1 if turn < _ODD_TURNS else 20_000
                peer.grant(each_id, max(more, least, least - peer.windows[each_id]))
        assert b"".join(parts) == struct.pack(">BL", 0, len(body)) + body
        peer.answer(stream_id)

    with scripted(script) as upstream:
        assert upstream.send(body) == TAKEN


def test_the_window_of_all_streams_counts_too() -> None:
    """However much room the stream has, no more is sent than the connection has; and over all calls."""
    body = bytes(100_000)

    def script(peer: Peer) -> None:
        peer.greet({Setting.INITIAL_WINDOW_SIZE: MAX_WINDOW_BYTES})
        for _ in range(2):
            stream_id, _fields = peer.head()
            left = len(body) + 5
            while left:
                while left and peer.windows[0]:
                    left -= len(peer.until(Kind.DATA, stream_id).payload)
                if left:
                    peer.send(frame(Kind.PING, 0, 0, b"12345678"))
                    assert peer.next() == (Kind.PING, Flag.ACK, 0, b"12345678")
                    peer.grant(0, 30_000)
            peer.answer(stream_id)

    with scripted(script) as upstream:
        assert [upstream.send(body), upstream.send(body)] == [TAKEN, TAKEN]


def test_a_window_that_shrinks_below_nothing() -> None:
    """What was sent counts against the smaller window, too: nothing more comes until it is above zero."""
    body = bytes(100_000)

    def script(peer: Peer) -> None:
        stream_id, _ = peer.greet().head()
        got = 0
        while got < DEFAULT_WINDOW_BYTES:
            got += len(peer.until(Kind.DATA, stream_id).payload)
        peer.settle({Setting.INITIAL_WINDOW_SIZE: 10})
        assert peer.windows[stream_id] == 10 - DEFAULT_WINDOW_BYTES
        peer.grant(0, 1 << 20)
        peer.grant(stream_id, DEFAULT_WINDOW_BYTES - 10)
        peer.send(frame(Kind.PING, 0, 0, b"12345678"))
        assert peer.next() == (Kind.PING, Flag.ACK, 0, b"12345678")
        peer.settle({Setting.INITIAL_WINDOW_SIZE: 1 << 20})
        while got < len(body) + 5:
            got += len(peer.until(Kind.DATA, stream_id).payload)
        peer.answer(stream_id)

    with scripted(script) as upstream:
        assert upstream.send(body) == TAKEN


@pytest.mark.parametrize("encrypted", [False, True])
def test_neither_side_stands_still_while_both_write(tmp_path: Path, *, encrypted: bool) -> None:
    """A server that writes more than any buffer holds before it reads: what comes is read while a body waits."""
    noise = frame(0xFA, 0, 0, bytes(16_000)) * 1000
    body = bytes(range(256)) * (40 * 1024 * 4)

    def script(peer: Peer) -> None:
        peer.greet({Setting.INITIAL_WINDOW_SIZE: MAX_WINDOW_BYTES, Setting.MAX_FRAME_SIZE: 1 << 20})
        stream_id, _ = peer.head()
        peer.grant(0, MAX_WINDOW_BYTES - DEFAULT_WINDOW_BYTES)
        peer.send(noise)
        data = b""
        parts = []
        while not data:
            found = peer.until(Kind.DATA, stream_id)
            parts.append(found.payload)
            data = b"".join(parts) if found.flags & Flag.END_STREAM else b""
        assert data[5:] == body
        peer.answer(stream_id)

    authority = Authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue().write(tmp_path, "server"))
    context.set_alpn_protocols(["h2"])
    tls = Tls(ca_file=authority.write(tmp_path / "ca.pem"))
    with (
        Http2Server(script, context=context if encrypted else None) as server,
        sender(server.port, "grpcs" if encrypted else "grpc", tls=tls if encrypted else None, compression="none") as up,
    ):
        assert up.send(body) == TAKEN


def test_what_a_call_says() -> None:
    """The fields of gRPC over HTTP/2, and those that travel; none that HTTP/2 forbids."""
    asked = []

    def script(peer: Peer) -> None:
        call = peer.greet().request()
        asked.append(call)
        peer.answer(call.stream_id)

    ours = Header("authorization", "Bearer t")
    with scripted(script, headers=(ours,), timeout_s=7.0) as upstream:
        assert upstream.send(b"\x0a\x00", (("te", "gzip"), ("upgrade", "h2c"), ("x-tenant", "red"))) == TAKEN
        (call,) = asked
        timeout = call.fields.pop("grpc-timeout")
        assert timeout.endswith("m")
        assert 0 < int(timeout[:-1]) <= 7000
        assert call == (
            1,
            {
                ":method": "POST",
                ":scheme": "http",
                ":path": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
                ":authority": upstream.where,
                "te": "trailers",
                "content-type": "application/grpc",
                "grpc-accept-encoding": "gzip",
                "user-agent": "joulegram",
                "authorization": "Bearer t",
                "x-tenant": "red",
            },
            b"\x0a\x00",
        )


def test_a_name_that_stands_for_the_hosts(tmp_path: Path) -> None:
    """`server_name_override` is what the server is asked for in TLS, what it must prove, and the :authority."""
    asked = []

    def script(peer: Peer) -> None:
        call = peer.greet().request()
        asked.append(call.fields[":authority"])
        assert isinstance(peer.sock, ssl.SSLSocket)
        asked.append(str(peer.sock.selected_alpn_protocol()))
        peer.answer(call.stream_id)

    authority = Authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("collector.example").write(tmp_path, "server"))
    context.set_alpn_protocols(["h2"])
    context.sni_callback = lambda sock, name, context: asked.append(str(name))
    tls = Tls(ca_file=authority.write(tmp_path / "ca.pem"), server_name="collector.example")
    with Http2Server(script, context=context) as server, sender(server.port, "grpcs", tls=tls) as upstream:
        assert upstream.send() == TAKEN
    assert asked == ["collector.example", "collector.example", "h2"]


def test_a_peer_without_a_table() -> None:
    """HEADER_TABLE_SIZE 0: a decoder that insists on hearing of it does."""

    def script(peer: Peer) -> None:
        peer.greet({Setting.HEADER_TABLE_SIZE: 0})
        peer.decoder = Decoder()
        peer.decoder.max_allowed_table_size = 0
        for _ in range(2):
            peer.answer(peer.request().stream_id)

    with scripted(script) as upstream:
        assert [upstream.send(), upstream.send()] == [TAKEN, TAKEN]


def test_a_long_header_is_continued() -> None:
    """Three tokens of 16 KiB do not fit into a frame."""
    values = {f"x-{number}": str(number) * 16_000 for number in range(3)}

    def script(peer: Peer) -> None:
        call = peer.greet().request()
        assert values.items() <= call.fields.items()
        peer.answer(call.stream_id)

    with scripted(script, headers=tuple(Header(name, value) for name, value in values.items())) as upstream:
        assert upstream.send() == TAKEN


def test_an_answer_in_odd_frames() -> None:
    """Informational heads, padding, priority, CONTINUATION, unknown frames, a body byte by byte, a PING between."""
    message = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=3, error_message="no room")
    ).SerializeToString()
    body = struct.pack(">BL", 0, len(message)) + message

    def script(peer: Peer) -> None:
        stream_id = peer.greet().request().stream_id
        early = header_block([(b":status", b"103"), (b"link", b"a")])
        peer.send(frame(Kind.HEADERS, Flag.END_HEADERS, stream_id, early))
        block = header_block([(b":status", b"200"), (b"content-type", b"application/grpc"), (b"x-pad", b"p" * 50)])
        padded = bytes((7,)) + WORD.pack(0) + b"\x10" + block[:5] + bytes(7)
        peer.send(
            frame(Kind.HEADERS, Flag.PADDED | Flag.PRIORITY, stream_id, padded),
            frame(Kind.CONTINUATION, 0, stream_id, block[5:9]),
            frame(Kind.CONTINUATION, 0, stream_id),
            frame(Kind.CONTINUATION, Flag.END_HEADERS, stream_id, block[9:]),
            frame(0xBB, 0xFF, 99, b"unknown"),
            frame(Kind.PRIORITY, 0, stream_id, bytes(5)),
        )
        for byte in body:
            peer.send(frame(Kind.DATA, Flag.PADDED, stream_id, bytes((3, byte)) + bytes(3)))
        peer.send(frame(Kind.PING, 0, 0, b"12345678"), frame(Kind.DATA, 0, stream_id))
        peer.until(Kind.PING, flags=Flag.ACK)
        peer.send(trailer(stream_id, grpc_status="0"))

    with scripted(script) as upstream:
        assert upstream.send() == Answer(Verdict.TAKEN, said="no room", rejected=3)


def test_an_answer_that_is_too_long_is_read_past() -> None:
    """It says that the data was taken; what is beyond the bound is not kept, and the connection goes on."""
    limit_bytes = MAX_RESPONSE_BYTES + 1_000_000

    def script(peer: Peer) -> None:
        peer.greet()
        for _ in range(2):
            stream_id = peer.request().stream_id
            peer.send(head(stream_id))
            room = {0: DEFAULT_WINDOW_BYTES, stream_id: DEFAULT_WINDOW_BYTES}
            left = limit_bytes
            while left:
                size = min(left, 16_384, *room.values())
                if size:
                    peer.send(frame(Kind.DATA, 0, stream_id, b"\0" * size))
                    left -= size
                    room = {each: window - size for each, window in room.items()}
                else:
                    found = peer.until(Kind.WINDOW_UPDATE)
                    room[found.stream_id] += WORD.unpack(found.payload)[0]
            peer.send(trailer(stream_id, grpc_status="0"))
            peer.answer(peer.request().stream_id)
            return

    with scripted(script) as upstream:
        assert [upstream.send(), upstream.send()] == [TAKEN, TAKEN]


def test_a_refusal_before_the_body_is_there() -> None:
    """The rest is not sent, the stream is given up, and the connection serves the next call."""

    def script(peer: Peer) -> None:
        stream_id, _ = peer.greet().head()
        peer.until(Kind.DATA, stream_id)
        peer.send(trailers_only(stream_id, grpc_status="8", grpc_message="message larger than max"))
        assert peer.until(Kind.RST_STREAM, stream_id).payload == WORD.pack(Code.CANCEL)
        assert sum(len(each.payload) for each in peer.got if each.kind == Kind.DATA) < DEFAULT_WINDOW_BYTES
        peer.grant(0, DEFAULT_WINDOW_BYTES)
        peer.send(window_update(stream_id, 1), frame(Kind.RST_STREAM, 0, stream_id, WORD.pack(Code.NO_ERROR)))
        peer.answer(peer.request().stream_id)

    with scripted(script) as upstream:
        assert upstream.send(bytes(1 << 20)) == Answer(
            Verdict.TOO_LARGE, "RESOURCE_EXHAUSTED", "message larger than max"
        )
        assert upstream.send(b"\x0a\x00") == TAKEN


def raw(*parts: bytes) -> Callable[[Peer], None]:
    """Bytes in place of an answer to a call, and then whatever the client says."""

    def script(peer: Peer) -> None:
        stream_id = peer.greet().request().stream_id
        assert stream_id == 1
        peer.send(*parts)
        found = [each for each in peer.end() if each.kind == Kind.GOAWAY]
        assert len(found) == 1

    return script


BROKEN: dict[str, tuple[Callable[[Peer], None], str]] = {
    "garbage": (raw(b"\xff" * 100), "got a frame of 16777215 bytes, expected at most 16384"),
    "a frame too large": (raw(HEAD.pack(0, 16_385, 0, 0, 1)), "got a frame of 16385 bytes, expected at most 16384"),
    "no HPACK": (raw(frame(Kind.HEADERS, Flag.END_HEADERS, 1, b"\xff\xff\xff")), "got header fields that are no HPACK"),
    "DATA first": (raw(frame(Kind.DATA, 0, 1, b"x")), "got DATA before HEADERS"),
    "no status": (raw(frame(Kind.HEADERS, Flag.END_HEADERS, 1, header_block([]))), "got :status b''"),
    "a status of one digit": (
        raw(frame(Kind.HEADERS, Flag.END_HEADERS, 1, header_block([(b":status", b"2")]))),
        "got :status b'2', expected that of an answer",
    ),
    "an informational end": (
        raw(frame(Kind.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, 1, header_block([(b":status", b"100")]))),
        "got :status b'100', expected that of an answer",
    ),
    "two heads": (raw(head(1), head(1)), "got HEADERS within an answer, expected them at its end"),
    "a stream that is none": (raw(head(3)), "got a frame of stream 3, which was never opened"),
    "a stream of its own": (raw(head(2)), "got a frame of stream 2, which was never opened"),
    "a push": (raw(frame(Kind.PUSH_PROMISE, Flag.END_HEADERS, 1, bytes(4))), "got PUSH_PROMISE"),
    "too much padding": (raw(frame(Kind.DATA, Flag.PADDED, 1, b"\x05abc")), "got padding as long as its frame"),
    "fields interrupted": (raw(frame(Kind.HEADERS, 0, 1), frame(Kind.PING, 0, 0, bytes(8))), "expected CONTINUATION"),
    "fields continued alone": (raw(frame(Kind.CONTINUATION, 0, 1, b"a")), "got CONTINUATION of stream 1 behind no"),
    "fields without end": (
        raw(frame(Kind.HEADERS, 0, 1), *[frame(Kind.CONTINUATION, 0, 1, bytes(16_000))] * 5),
        "got more than 65536 bytes of header fields",
    ),
    "a window of nothing": (raw(window_update(1, 0)), "got WINDOW_UPDATE of 0"),
    "a window too wide": (raw(window_update(0, MAX_WINDOW_BYTES)), "got a window above 2^31-1"),
    "a stream's window too wide": (raw(window_update(1, MAX_WINDOW_BYTES)), "got a window above 2^31-1"),
    "settings that cannot be": (raw(settings({Setting.MAX_FRAME_SIZE: 1})), "got MAX_FRAME_SIZE 1, expected 2^14"),
    "a short reset": (raw(frame(Kind.RST_STREAM, 0, 1, b"a")), "got RST_STREAM of another size than 4"),
    "a short ping": (raw(frame(Kind.PING, 0, 0, b"a")), "got PING of another size than 8"),
    "a short GOAWAY": (raw(frame(Kind.GOAWAY, 0, 0, b"a")), "got GOAWAY of a stream or too short"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_peer_that_breaks_http2(case: str) -> None:
    """It is told so and left; the data is offered again, for it may be mended, and the words say what was wrong."""
    script, expected = BROKEN[case]
    with scripted(script, lambda peer: peer.answer(peer.greet().request().stream_id)) as upstream:
        answer = upstream.send(b"\x0a\x00")
        assert (answer.verdict, answer.timed_out) == (Verdict.RETRY, False)
        assert answer.text.startswith(f"UNAVAILABLE: {upstream.where}: got ")
        assert expected in answer.text
        assert upstream.send() == TAKEN


def test_a_flood_of_pings_that_nobody_reads() -> None:
    """A peer that makes us talk and does not listen is left before that fills the memory."""

    def script(peer: Peer) -> None:
        peer.greet().head()
        ping = frame(Kind.PING, 0, 0, bytes(8)) * 10_000
        with contextlib.suppress(ConnectionError):
            while True:
                peer.send(ping)

    with scripted(script) as upstream:
        answer = upstream.send()
        assert answer == upstream.away("got more to answer than was read of the answers")
