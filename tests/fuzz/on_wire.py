"""What is fuzzed of connections: heads and bodies of HTTP/1.1, HTTP/2 on both sides, gRPC, and the agent's lines.

As in targets.py, each takes any bytes and raises for a defect alone.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import re
import shutil
import struct
import tempfile
import zlib
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
import zstandard
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from hpack import Decoder
from uvicorn.server import ServerState

from joulegram_agent.protocol import answer, parse_request, request_id_of
from joulegram_agent.session import Session
from joulegram_pipeline.energy import TickBatch
from joulegram_pipeline.errors import AgentError, WireError
from joulegram_pipeline.http2_frames import (
    MAX_FRAME_BYTES,
    MAX_WINDOW_BYTES,
    PREFACE,
    ConnectionFault,
    Flag,
    Kind,
    frame,
    settings,
)
from joulegram_receiver.admission import Admission
from joulegram_receiver.grpc_call import TalkCall, UnaryCall
from joulegram_receiver.grpc_methods import Streaming, Unary
from joulegram_receiver.http2_life import Http2Limits
from joulegram_receiver.http_body import decoder_for, read_body
from joulegram_receiver.http_protocol import BoundedHttpProtocol, ConnectionLimits
from joulegram_receiver.intake_refusals import TooLargeError
from joulegram_sink.upstream_answer import MAX_ASKED_WAIT_S, retry_after_s, retry_info_s, status_message
from joulegram_sink.upstream_server_side import AgainError, ServerSide
from joulegram_sink.upstream_status import message_of, status_of
from simulators.agent_node import make_node, said
from simulators.http2 import Fed, KeepingHost, Pipe, call_head, frames_of

if TYPE_CHECKING:
    from joulegram_agent.local import LocalAgent
    from joulegram_receiver.grpc_methods import Talk
    from joulegram_receiver.http2_stream import Exchange, Stream

_MAX_BODY = 64 * 1024
_LOOP = asyncio.new_event_loop()
atexit.register(_LOOP.close)


def fuzz_body(data: bytes) -> None:
    """A compressed body is read as zlib and zstandard read it, within its limit, or refused; however it is cut."""
    if len(data) < 2:
        return
    coding = ("gzip", "deflate", "zstd", "identity")[data[0] % 4]
    step, body = data[1] or len(data), data[2:]
    chunks = [body[at : at + step] for at in range(0, len(body), step)]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    gate = Admission()

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def read() -> bytes:
        with gate.enter(0) as hold:
            return await read_body(receive, decoder_for(coding), hold, max_bytes=_MAX_BODY, timeout_s=60)

    try:
        found = _LOOP.run_until_complete(read())
    except TooLargeError:
        wanted = _decompressed(coding, body)
        assert wanted is None or len(wanted) > _MAX_BODY or len(body) > _MAX_BODY
    except WireError:
        wanted = _decompressed(coding, body)
        assert wanted is None or len(wanted) > _MAX_BODY, "a whole stream was refused"
    else:
        assert len(found) <= _MAX_BODY
        assert found == _decompressed(coding, body)
    assert gate.held_bytes == 0


def _decompressed(coding: str, body: bytes) -> bytes | None:
    """The whole stream, None where it is not one; a little more than the limit where it is larger."""
    if coding == "identity":
        return body
    out = b""
    stream: Any
    try:
        while body or not out:
            if coding == "zstd":
                stream = zstandard.ZstdDecompressor(max_window_size=8 << 20).decompressobj()
                out += bytes(stream.decompress(body))
            else:
                stream = zlib.decompressobj(31 if coding == "gzip" else 15)
                out += bytes(stream.decompress(body, _MAX_BODY + 1))
            if len(out) > _MAX_BODY:
                return out
            if not stream.eof:
                return None
            body = stream.unused_data
            if coding == "deflate":
                return None if body else out
            if not body:
                return out
    except (zlib.error, zstandard.ZstdError):
        return None
    return out


def fuzz_http2(data: bytes) -> None:
    """Any bytes behind the preface: whole frames come back, and all is the same however the bytes were cut."""
    if data:
        cut = data[0] * len(data) // 256
        body = PREFACE + settings({}) + data[1:]
        whole, parted = _LOOP.run_until_complete(_fed([body])), _LOOP.run_until_complete(_fed([body[:cut], body[cut:]]))
        assert whole == parted, "where bytes are cut makes a difference"


async def _fed(parts: list[bytes]) -> tuple[bytes, list[tuple[bytes, bool, bool]]]:
    fed = Fed(Http2Limits(max_streams=5))
    for part in parts:
        await fed.feed(part)
    frames, rest = frames_of(bytes(fed.pipe.written))
    assert not rest, "half a frame was written"
    assert all(len(each.payload) <= MAX_FRAME_BYTES for each in frames)
    assert len(fed.connection.streams) <= 5
    fed.close()
    assert not fed.connection.streams, "a request outlived its connection"
    return bytes(fed.pipe.written), [(each.body, each.ended, each.left) for each in fed.host.exchanges]


def fuzz_upstream(data: bytes) -> None:
    """Any bytes as a server's answers: refused as broken or read, the same however they were cut."""
    if data:
        cut = data[0] * len(data) // 256
        assert _answered([data[1:]]) == _answered([data[1:cut], data[max(1, cut) :]]), "where bytes are cut matters"


def _answered(parts: list[bytes]) -> tuple[object, ...]:
    said: list[bytes] = []
    server = ServerSide(said.append)
    server.feed(settings({}))
    call = server.begin(b"", bytes(10), 100)
    outcome = ""
    try:
        for part in parts:
            server.feed(part)
    except (ConnectionFault, AgainError) as error:
        # The words show how far one read went.
        outcome = type(error).__name__
    response = call.response
    assert len(response.body) <= 100
    assert call.send_window <= MAX_WINDOW_BYTES >= server.send_window
    if response.whole and not outcome:
        assert status_of(response).code
        message_of(response)
    return outcome, response, b"".join(said), server.leaves, server.max_frame, server.send_window


_HTTP_LIMITS = ConnectionLimits(max_header_bytes=300)
_TURNS = 30
"""Of the loop, in which all that was fed is served."""


def fuzz_http1(data: bytes) -> None:
    """Any bytes as HTTP/1.1: bounded heads, whole answers, and the same requests however the bytes were cut."""
    if data:
        cut = data[0] * len(data) // 256
        whole, parted = (
            _LOOP.run_until_complete(_asked(parts)) for parts in ([data[1:]], [data[1:cut], data[max(1, cut) :]])
        )
        assert whole == parted, "where bytes are cut makes a difference"


async def _asked(parts: list[bytes]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    reasons: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        found.append((scope["method"], scope["raw_path"], scope["query_string"], scope["headers"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    pipe = Pipe()
    protocol = BoundedHttpProtocol(
        limits=_HTTP_LIMITS,
        count=reasons.append,
        config=uvicorn.Config(app, interface="asgi3", lifespan="off", log_config=None, access_log=False, ws="none"),
        server_state=ServerState(),
        app_state={},
        _loop=asyncio.get_running_loop(),
    )
    protocol.connection_made(pipe)
    for part in parts:
        if part and not pipe.closed:
            protocol.data_received(part)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
    protocol.connection_lost(None)
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    assert not protocol.tasks, "a request outlived its connection"
    for each in found:
        assert sum(len(name) + len(value) for name, value in each[3]) <= _HTTP_LIMITS.max_header_bytes
    answers = re.findall(rb"HTTP/1\.1 ([2-5]\d\d) ", bytes(pipe.written))
    assert len(answers) <= len(found) + len(reasons)
    assert len(reasons) <= 1, "a connection that was refused was read on"
    return found


_CODINGS = ("", "gzip", "deflate", "zstd", "snappy")


class _CallHost(KeepingHost):
    """Has its calls answered by a method that echoes."""

    def __init__(self, method: Unary | Streaming) -> None:
        super().__init__()
        self._method = method

    def open(self, stream: Stream) -> Exchange:
        method = self._method
        return UnaryCall(stream, method, _MAX_BODY) if isinstance(method, Unary) else TalkCall(stream, method)


def fuzz_grpc(data: bytes) -> None:
    """Messages are taken out of a call's body as their prefixes say, decompressed as zlib does it, or refused."""
    if len(data) < 2:
        return
    coding, step, body = _CODINGS[data[0] % len(_CODINGS)], data[1] or len(data), data[2:]
    streams = data[0] >= 128
    status, messages = _LOOP.run_until_complete(_called(streams, coding, body, step))
    wanted, rest = _messages(body)
    if streams:
        plain = [message for flag, message in wanted if not flag]
        if len(plain) == len(wanted) and not rest:
            assert (status, messages) == (0, plain)
        else:
            assert status > 0
            assert messages == plain[: len(messages)]
        return
    expected = None
    if len(wanted) == 1 and not rest:
        ((flag, expected),) = wanted
        if flag:
            expected = _decompressed(coding, expected) if flag == 1 and coding not in {"", "snappy"} else None
    if expected is None or len(expected) > _MAX_BODY:
        assert status > 0
        assert not messages
    else:
        assert (status, messages) == (0, [expected])


def _messages(body: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Flags and messages, and what is left behind the last whole one."""
    found = []
    while len(body) >= 5:
        flag, size = struct.unpack_from(">BL", body)
        if len(body) < 5 + size:
            break
        found.append((flag, body[5 : 5 + size]))
        body = body[5 + size :]
    return found, body


async def _called(streams: bool, coding: str, body: bytes, step: int) -> tuple[int, list[bytes]]:
    """The status of a call and the messages of its answer."""
    admission = Admission()

    async def say(message: bytes, head: object, hold: object) -> bytes:
        return message

    async def talk(call: Talk) -> None:
        while (message := await call.receive()) is not None:
            await call.send(message)

    fed = Fed()
    host = _CallHost(Streaming(talk, admission) if streams else Unary(say, admission=admission))
    fed.connection = type(fed.connection)(host)
    fed.connection.connection_made(fed.pipe)
    more = [(b"grpc-encoding", coding.encode())] if coding else []
    chunks = [body[at : at + step] for at in range(0, len(body), step)]
    for part in (
        PREFACE + settings({}) + call_head(1, "/x", *more),
        *(frame(Kind.DATA, 0, 1, chunk) for chunk in chunks),
        frame(Kind.DATA, Flag.END_STREAM, 1, b""),
    ):
        await fed.feed(part)
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    frames, _ = frames_of(bytes(fed.pipe.written))
    fed.close()
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    assert admission.held_bytes == 0
    decoder = Decoder()
    fields = [dict(decoder.decode(each.payload, raw=True)) for each in frames if each.kind == Kind.HEADERS]
    said_back = b"".join(each.payload for each in frames if each.kind == Kind.DATA)
    messages, rest = _messages(said_back)
    assert not rest
    return int(fields[-1][b"grpc-status"]), [message for _, message in messages]


def fuzz_retry(data: bytes) -> None:
    """What an upstream asks to wait is within bounds, and is what the email package and protobuf read of it."""
    header = data.decode("latin-1")
    found = retry_after_s(header)
    if (number := header.strip()).isdecimal():
        # Nothing may be made of odd space around it, which no field of HTTP has.
        assert found == min(float(number), MAX_ASKED_WAIT_S) or (found is None and number != header.strip(" \t"))
    elif found is not None:
        assert 0 <= found <= MAX_ASKED_WAIT_S
        parsedate_to_datetime(header)  # what is no date is not one here either
    asked = retry_info_s(data)
    try:
        status = status_pb2.Status.FromString(data)
    except DecodeError:
        assert asked is None
        assert status_message(data) == data[:200].decode("utf-8", "replace")
        return
    assert status_message(data)[:500] in (status.message[:500], data[:200].decode("utf-8", "replace"))
    if asked is None:
        assert not any(_is_retry_info(detail) for detail in status.details[:1])
    else:
        assert 0 <= asked <= MAX_ASKED_WAIT_S


def _is_retry_info(detail: Any) -> bool:
    info = error_details_pb2.RetryInfo()
    try:
        return bool(detail.Unpack(info))
    except DecodeError:
        return False


@functools.cache
def _agent() -> LocalAgent:
    root = Path(tempfile.mkdtemp(prefix="joulegram-fuzz-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    node = make_node(root)
    node.run(3)
    atexit.register(node.agent.close)
    return node.agent


def fuzz_agent_line(data: bytes) -> None:
    """Any line gets one answer that the protocol's schema knows, under its id; or it is no request, and says so."""
    try:
        request = parse_request(data)
    except WireError:
        return
    assert isinstance(json.loads(data), dict), "bytes that are not JSON were read"
    session = Session()
    given = answer(_agent(), session, request, len(data))
    assert given.line.index(b"\n") == len(given.line) - 1
    answered = said(given.line)
    assert answered["id"] == request_id_of(request)
    assert answered["ok"] is (given.code is None)
    assert given.cost > 0
    _agent().release(session)


def fuzz_ticks(data: bytes) -> None:
    """A batch of ticks is read or refused with what it promises; what was read is the same in its own words."""
    try:
        batch = TickBatch.from_bytes(data)
    except AgentError:
        return
    assert TickBatch.from_bytes(batch.to_bytes()) == batch
