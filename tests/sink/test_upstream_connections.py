"""Connections of the gRPC exporter: peers that leave, refuse, fall silent or come back, and what that costs (A10)."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_pipeline.http2_frames import (
    DEFAULT_WINDOW_BYTES,
    MAX_STREAM_ID,
    Code,
    Flag,
    Kind,
    Setting,
    frame,
    goaway,
    reset,
    settings,
)
from joulegram_sink.upstream_answer import Answer, Verdict
from joulegram_sink.upstream_destination import Tls, parse_endpoint
from joulegram_sink.upstream_http2 import ClientConnection, UnreachableError
from simulators.certificates import Authority, common_name
from simulators.http2_server import Http2Server, Peer, head
from simulators.http2_upstream import TAKEN, scripted, sender
from simulators.otlp_server import OtlpHttpServer, OtlpServer
from simulators.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from simulators.http2_upstream import Sender


def taking(peer: Peer) -> None:
    """One call is taken, and what the client then says is listened to."""
    peer.answer(peer.greet().request().stream_id)
    peer.end()


def test_calls_follow_each_other_on_one_connection() -> None:
    """Streams 1, 3, 5; the window of all bodies is given back, and kept to over all of them."""
    body = bytes(40_000)

    def script(peer: Peer) -> None:
        peer.greet()
        for number in range(3):
            call = peer.request()
            assert (call.stream_id, call.message) == (2 * number + 1, body)
            peer.answer(call.stream_id)

    with scripted(script) as upstream:
        assert [upstream.send(body) for _ in range(3)] == [TAKEN] * 3


def test_a_server_that_leaves_answers_what_it_took() -> None:
    """GOAWAY at or above our stream: the answer counts, in parts too, and the next call goes elsewhere."""
    with scripted(leaving_in_parts, taking) as upstream:
        assert [upstream.send(), upstream.send()] == [TAKEN, TAKEN]


def leaving_in_parts(peer: Peer) -> None:
    """As grpc-go and grpc-core leave: first no number, then, once that is heard, the last one that is served."""
    stream_id = peer.greet().request().stream_id
    peer.send(goaway(MAX_STREAM_ID, Code.NO_ERROR), frame(Kind.PING, 0, 0, bytes(8)))
    peer.until(Kind.PING, flags=Flag.ACK)
    peer.send(goaway(stream_id, Code.NO_ERROR))
    peer.answer(stream_id)
    assert not [each for each in peer.end() if each.kind == Kind.HEADERS]


UNTOUCHED: dict[str, Callable[[Peer], None]] = {
    "left before": lambda peer: peer.send(goaway(0, Code.NO_ERROR)),
    "refused": lambda peer: peer.send(reset(1, Code.REFUSED_STREAM)),
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_what_a_server_did_not_look_at_is_sent_elsewhere_at_once(case: str) -> None:
    """A stream above GOAWAY's, or REFUSED_STREAM: no failure is counted, and the body comes whole."""
    body = bytes(range(256)) * 2000

    def script(peer: Peer) -> None:
        peer.greet().head()
        UNTOUCHED[case](peer)
        peer.end()

    def other(peer: Peer) -> None:
        call = peer.greet().request()
        assert call.message == body
        peer.answer(call.stream_id)

    with scripted(script, other) as upstream:
        assert upstream.send(body) == TAKEN


def test_who_refuses_everything_is_not_asked_for_ever() -> None:
    """Twice, then it is UNAVAILABLE and the forwarder waits."""

    def script(peer: Peer) -> None:
        stream_id = peer.greet().request().stream_id
        peer.send(reset(stream_id, Code.REFUSED_STREAM))
        peer.end()

    with scripted(script, script) as upstream:
        assert upstream.send() == upstream.away("the server refused the stream (REFUSED_STREAM)")


def stale_by_end(peer: Peer) -> None:
    """An idle timeout."""
    peer.sock.shutdown(socket.SHUT_WR)
    peer.end()


def stale_by_reset(peer: Peer) -> None:
    """A host that has restarted."""
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def stale_by_goaway(peer: Peer) -> None:
    """As MAX_CONNECTION_AGE does; the connection itself is still there."""
    peer.send(goaway(1, Code.NO_ERROR, "max_age"))
    peer.end()


@pytest.mark.parametrize("leave", [stale_by_end, stale_by_reset, stale_by_goaway])
def test_a_connection_that_went_stale_is_replaced(leave: Callable[[Peer], None]) -> None:
    """The next send is made on another one, and nothing is sent on the stale one."""
    kept = threading.Event()

    def script(peer: Peer) -> None:
        peer.answer(peer.greet().request().stream_id)
        assert kept.wait(10)
        leave(peer)
        assert not [each for each in peer.got if each.kind == Kind.HEADERS]

    with scripted(script, taking) as upstream:
        assert upstream.send() == TAKEN
        kept.set()
        wait_until_heard(upstream)
        assert upstream.send() == TAKEN


def wait_until_heard(upstream: Sender) -> None:
    """Block until the one idle connection has something to read."""
    ((connection,),) = upstream.transport._pool._idle.values()
    assert connection._wire is not None
    assert select.select([connection._wire._sock], [], [], 10)[0]


def test_a_kept_connection_that_is_lost_while_it_is_used() -> None:
    """The server closed it as our call came: that is no failure of the upstream's."""

    def script(peer: Peer) -> None:
        peer.answer(peer.greet().request().stream_id)
        peer.head()

    with scripted(script, taking) as upstream:
        assert [upstream.send(), upstream.send()] == [TAKEN, TAKEN]


def test_what_comes_while_nobody_calls() -> None:
    """Settings, pings and windows of an idle connection count for the next call, and are answered with it."""
    kept = threading.Event()

    def script(peer: Peer) -> None:
        peer.answer(peer.greet().request().stream_id)
        assert kept.wait(10)
        peer.send(settings({Setting.INITIAL_WINDOW_SIZE: 5}), frame(Kind.PING, 0, 0, b"whilst-i"))
        peer.window = 5
        stream_id, _ = peer.head()
        kinds = [(each.kind, each.flags) for each in peer.got if each.kind in {Kind.SETTINGS, Kind.PING}]
        assert kinds == [(Kind.SETTINGS, Flag.ACK), (Kind.PING, Flag.ACK)]
        peer.body(stream_id)
        peer.answer(stream_id)

    with scripted(script) as upstream:
        assert upstream.send() == TAKEN
        kept.set()
        wait_until_heard(upstream)
        assert upstream.send(bytes(100)) == TAKEN


def test_no_answer_in_time() -> None:
    """The deadline holds whatever else comes; the next call is made on another connection."""

    def silent(peer: Peer) -> None:
        peer.greet().request()
        peer.end()

    def talkative(peer: Peer) -> None:
        stream_id = peer.greet().request().stream_id
        peer.send(head(stream_id))
        try:
            while True:
                peer.send(frame(0xFA, 0, 0, bytes(1000)))
        except ConnectionError:
            pass

    def without_room(peer: Peer) -> None:
        peer.greet().head()
        peer.end()

    late = Answer(Verdict.RETRY, "DEADLINE_EXCEEDED: {}: no answer in 0.3 s", timed_out=True)
    with scripted(silent, talkative, without_room, taking, timeout_s=0.3) as upstream:
        late = Answer(late.verdict, late.text.format(upstream.where), timed_out=True)
        assert [upstream.send(), upstream.send()] == [late, late]
        assert upstream.send(bytes(DEFAULT_WINDOW_BYTES + 1)) == late
        assert upstream.send() == TAKEN


def test_a_server_that_takes_no_streams() -> None:
    """MAX_CONCURRENT_STREAMS 0 is waited out, as long as a call may take."""

    def later(peer: Peer) -> None:
        peer.greet({Setting.MAX_CONCURRENT_STREAMS: 0})
        peer.settle({Setting.MAX_CONCURRENT_STREAMS: 1})
        assert not peer.got
        peer.answer(peer.request().stream_id)

    def never(peer: Peer) -> None:
        peer.greet({Setting.MAX_CONCURRENT_STREAMS: 0})
        assert not [each for each in peer.end() if each.kind == Kind.HEADERS]

    def leaves(peer: Peer) -> None:
        peer.greet({Setting.MAX_CONCURRENT_STREAMS: 0})
        peer.send(goaway(0, Code.NO_ERROR))
        peer.end()

    with scripted(later) as upstream:
        assert upstream.send() == TAKEN
    with scripted(leaves, taking) as upstream:
        assert upstream.send() == TAKEN
    with scripted(never, timeout_s=0.3) as upstream:
        assert upstream.send() == upstream.away("the server takes no requests (MAX_CONCURRENT_STREAMS is 0)")


def test_a_connection_that_ends_midway() -> None:
    """A new one that is closed before the answer, or within it: UNAVAILABLE, in words that name the address."""

    def at_once(peer: Peer) -> None:
        peer.greet().request()

    def within(peer: Peer) -> None:
        peer.send(head(peer.greet().request().stream_id))

    with scripted(at_once, within, taking) as upstream:
        closed = upstream.away("the server closed the connection")
        assert [upstream.send(), upstream.send(), upstream.send()] == [closed, closed, TAKEN]


def test_who_is_no_server_of_http2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port of OTLP/HTTP, one that says nothing, one that says something else first."""
    monkeypatch.setattr("joulegram_sink.upstream_http2.CONNECT_S", 0.3)

    def mute(peer: Peer) -> None:
        peer.end()

    ping = frame(Kind.PING, 0, 0, bytes(8))

    def ping_first(peer: Peer) -> None:
        peer.send(ping)
        peer.end()

    with OtlpHttpServer() as http, sender(http.port) as upstream:
        answer = upstream.send()
        assert answer == upstream.away("got b'<!DOCTYPE HTML>\\n<htm' first, expected SETTINGS")
    with scripted(mute, ping_first) as upstream:
        assert upstream.send() == upstream.away("got no HTTP/2 in time")
        assert upstream.send() == upstream.away(f"got {ping!r} first, expected SETTINGS")


def test_nobody_is_there() -> None:
    """UNAVAILABLE with the address and what the kernel said; again and again."""
    with sender(free_port()) as upstream:
        refused = upstream.away("[Errno 111] Connection refused")
        assert [upstream.send(), upstream.send()] == [refused, refused]


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that has two addresses, of which one is dead; it is asked for with each connection."""
    asked: list[str] = []
    with OtlpServer() as server, sender(server.port) as upstream:
        live = socket.getaddrinfo("127.0.0.1", server.port, type=socket.SOCK_STREAM)
        dead = socket.getaddrinfo("127.0.0.1", free_port(), type=socket.SOCK_STREAM)
        answers: list[Any] = [socket.gaierror(-2, "Name or service not known"), dead + live]

        def resolve(host: str, *rest: Any, **more: Any) -> Any:
            asked.append(host)
            found = answers.pop(0)
            if isinstance(found, OSError):
                raise found
            return found

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        assert upstream.send() == upstream.away("[Errno -2] Name or service not known")
        assert [upstream.send(), upstream.send()] == [TAKEN, TAKEN]
    assert asked == ["localhost", "localhost"]


def test_a_proxy_in_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar's next hop is where its configuration says, over HTTP and gRPC alike."""
    for name in ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with OtlpServer() as server, sender(server.port) as upstream:
        assert upstream.send() == TAKEN


def test_a_server_that_restarts_between_sends() -> None:
    """grpcio's: what is sent once it is back is taken at the first try, over and over."""
    port = free_port()
    with sender(port) as upstream:
        for number in range(3):
            with OtlpServer(port) as server:
                assert upstream.send(b"\x0a\x00") == TAKEN
                assert upstream.send(b"\x0a\x00" * number) == TAKEN
                assert server.calls == 2


def test_sends_at_once_have_connections_of_their_own() -> None:
    """As many as there are, and they are kept: two rounds of three sends, three connections."""
    together = threading.Barrier(3)

    def script(peer: Peer) -> None:
        peer.greet()
        for _ in range(2):
            stream_id = peer.request().stream_id
            together.wait(10)
            peer.answer(stream_id)

    answers: list[Answer] = []
    with scripted(script, script, script) as upstream:
        for _ in range(2):
            threads = [threading.Thread(target=lambda: answers.append(upstream.send())) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert answers == [TAKEN] * 6


def test_a_stop_ends_the_sends_under_way() -> None:
    """And nothing is sent afterwards."""
    asked = threading.Event()

    def script(peer: Peer) -> None:
        peer.answer(peer.greet().request().stream_id)
        peer.request()
        asked.set()
        peer.end()

    answers: list[Answer] = []
    with scripted(script, timeout_s=60.0) as upstream:
        assert upstream.send() == TAKEN
        thread = threading.Thread(target=lambda: answers.append(upstream.send()))
        begun_s = time.monotonic()
        thread.start()
        assert asked.wait(10)
        upstream.transport.close()
        thread.join()
        assert time.monotonic() - begun_s < 30
        closed = Answer(Verdict.RETRY, "the destination was closed")
        assert [*answers, upstream.send()] == [closed, closed]


def test_a_connection_that_was_given_up_before_it_was_made() -> None:
    """A stop while a name is resolved or a handshake made: nothing is sent once that is done."""

    def script(peer: Peer) -> None:
        assert peer.end() == []

    with Http2Server(script) as server:
        connection = ClientConnection(parse_endpoint(f"grpc://127.0.0.1:{server.port}"), None, None)
        connection.interrupt()
        with pytest.raises(UnreachableError, match="the destination was closed"):
            connection.call(b"", b"", b"", 0, time.monotonic() + 10)
        assert not connection.is_usable


def test_a_kept_connection_ends_with_the_certificate_it_was_made_with(tmp_path: Path) -> None:
    """One that is renewed is shown with the next send, though the connection before could still be used."""
    shown = []

    def script(peer: Peer) -> None:
        assert isinstance(peer.sock, ssl.SSLSocket)
        stream_id = peer.greet().request().stream_id
        shown.append(common_name(peer.sock.getpeercert(binary_form=True)))
        peer.answer(stream_id)
        assert not [each for each in peer.end() if each.kind == Kind.HEADERS]

    authority = Authority()
    ca = authority.write(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue().write(tmp_path, "server"))
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    cert, key = authority.issue("first").write(tmp_path, "client")
    tls = Tls(ca_file=ca, cert_file=cert, key_file=key)
    with Http2Server(script, script, context=context) as server, sender(server.port, "grpcs", tls=tls) as upstream:
        assert upstream.send() == TAKEN
        authority.issue("second").write(tmp_path, "client")
        assert upstream.send() == TAKEN
    assert shown == ["first", "second"]
