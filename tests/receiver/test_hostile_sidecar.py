"""The hostile set of issue 4 against a sidecar that runs: each answer, and then it lives and is no larger than before.

Beside `test_hostile.py`, which looks inside, this is the whole process with all that reads a request in it.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import math
import os
import select
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from receiver.conformance.hop import TIMEOUT_S, Hop, one_span, running, with_fields
from simulators.protobuf import field
from simulators.receivers import BY_NAME, JSON, PROTOBUF
from simulators.sidecar import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MIB = 1024 * 1024
MAX_GROWTH_MIB = 64
OK = grpc.StatusCode.OK
INVALID, TOO_LARGE = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
LINE = b"POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\n"


class Target(Hop):
    """A sidecar under attack."""

    first_mib = 0
    """What it had in memory when it was warm: all attacks together may not make it grow by more than one may."""

    def resident_mib(self) -> int:
        """What its process has in memory."""
        assert self.serve.process is not None
        pages = int(Path(f"/proc/{self.serve.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // MIB

    def is_well(self, before_mib: int) -> None:
        """It takes requests over both transports, and what it had in memory it has given back."""
        request = one_span("well", time.monotonic_ns() | 1)
        assert self.export(request) == b""
        assert self.post(request).status == 200
        self.forwards(request, times=2)
        lowest_mib = min(before_mib, self.first_mib or before_mib)
        wait_until(lambda: self.resident_mib() - lowest_mib < MAX_GROWTH_MIB, f"{MAX_GROWTH_MIB} MiB more at most", 30)

    def connect(self, port: int) -> socket.socket:
        """A connection of its own."""
        connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A sidecar with the limits it is delivered with, and warm."""
    with running(tmp_path_factory.mktemp("hostile"), Target) as found:
        found.is_well(found.resident_mib())
        found.first_mib = found.resident_mib()
        yield found


@pytest.fixture
def before_mib(target: Target) -> int:
    """What it has in memory before the test."""
    return target.resident_mib()


# -- bodies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """A body, and how each transport answers it.

    Args:
        body: as protobuf or JSON.
        status: of HTTP.
        code: of gRPC, to the same bytes; None where it has no such thing.
        coding: of HTTP.
        kind: of HTTP.
        compression: of gRPC.
    """

    body: bytes
    status: int
    code: grpc.StatusCode | None
    coding: str = ""
    kind: str = PROTOBUF
    compression: grpc.Compression = grpc.Compression.NoCompression


def nested(levels: int) -> bytes:
    """An AnyValue of arrays in arrays, each of one."""
    value = AnyValue(bool_value=True).SerializeToString()
    for _ in range(levels):
        value = field(5, field(1, value))
    return value


def value(content: bytes) -> bytes:
    """A trace request of a span with an attribute, the value given as the bytes of an AnyValue."""
    return with_fields(one_span("etl.hostile"), field(9, field(1, b"k") + field(2, content)))


BOMB = gzip.compress(bytes(200 * MIB), 1)
ATTACKS = {
    "gzip bomb": Attack(BOMB, 413, None, "gzip"),
    "gzip bomb over gRPC": Attack(bytes(200 * MIB), 413, TOO_LARGE, compression=grpc.Compression.Gzip),
    "gzip bomb in a gzip bomb": Attack(gzip.compress(BOMB), 400, INVALID, "gzip"),
    "gzip bomb of 200 members": Attack(gzip.compress(bytes(MIB), 1) * 200, 413, None, "gzip"),
    "gzip bomb of JSON": Attack(gzip.compress(b'{"x":"' + b"a" * 200 * MIB, 1), 413, None, "gzip", JSON),
    "gzip truncated": Attack(gzip.compress(one_span("n") * 1000)[:-9], 400, None, "gzip"),
    "gzip truncated in its head": Attack(gzip.compress(b"")[:5], 400, None, "gzip"),
    "a length beyond the end": Attack(b"\x0a\xff\x01abc", 400, INVALID),
    "a length of 2 GiB": Attack(b"\x0a\xff\xff\xff\xff\x07", 400, INVALID),
    "a length within that lies": Attack(field(1, b"\x12\x7fabc"), 400, INVALID),
    "groups in groups without end": Attack(b"\x0b" * 100_000, 400, INVALID),
    "the end of a group that never began": Attack(b"\x0c", 400, INVALID),
    "10 000 values in each other": Attack(value(nested(10_000)), 400, INVALID),
    "10 000 values in each other, in JSON": Attack(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400, None, "", JSON),
    "a million empty spans": Attack(field(1, field(2, b"\x12\x00" * 1_000_000)), 413, TOO_LARGE),
    "a million empty spans in JSON": Attack(
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * 999_999 + b"{}]}]}]}", 413, None, "", JSON
    ),
    "a million empty attributes": Attack(with_fields(one_span("etl.hostile"), b"\x4a\x00" * 1_000_000), 200, OK),
    "twenty million empty objects": Attack(b'{"x":[' + b"{}," * 20_000_000 + b"{}]}", 413, None, "", JSON),
    "a name that is not UTF-8": Attack(one_span("XXXX").replace(b"XXXX", b"\xff\xfe\xfd\xfc"), 400, INVALID),
    "a trace id of a megabyte": Attack(one_span("etl.hostile", trace_id=b"t" * MIB), 200, OK),
    "a trace id of zeros": Attack(one_span("etl.hostile", trace_id=bytes(16)), 200, OK),
    "not a number": Attack(value(AnyValue(double_value=math.nan).SerializeToString()), 200, OK),
    "minus infinity": Attack(value(AnyValue(double_value=-math.inf).SerializeToString()), 200, OK),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_body_made_to_hurt(target: Target, before_mib: int, attack: Attack) -> None:
    """The exact answer over either transport, twice, and the process is no larger for it."""
    call = target.channel.unary_unary(f"/{BY_NAME['traces'].service}/Export", None, None)
    for _ in range(2):
        answer = target.post(attack.body, kind=attack.kind, content_encoding=attack.coding)
        assert answer.status == attack.status
        if attack.status != 200:
            assert "expected" in answer.said().message
        if attack.code is None:
            continue
        code = call.future(attack.body, timeout=TIMEOUT_S, compression=attack.compression).code()
        assert code is attack.code
    target.is_well(before_mib)


def test_what_is_not_gzip_over_grpc(target: Target, before_mib: int) -> None:
    """A message that says it is compressed and is cut: refused, and never taken."""
    packed = gzip.compress(one_span("truncated") * 1000)[:-9]
    frames = [headers(1, (b"grpc-encoding", b"gzip")), data(1, b"\x01" + struct.pack(">I", len(packed)) + packed)]
    with target.connect(int(target.target.rpartition(":")[2])) as connection:
        connection.sendall(PREFACE + b"".join(frames))
        assert until(connection, INVALID_STATUS).count(INVALID_STATUS) == 1
    target.is_well(before_mib)
    assert all(b"truncated" not in body for _, body in target.upstream.taken)


def test_attributes_that_are_ours(target: Target, before_mib: int) -> None:
    """Spoofed `carbon.*`: replaced, never doubled, were there a thousand of each."""
    pairs = [KeyValue(key=key, value=AnyValue(double_value=-1)) for key in ("carbon.gco2e", "carbon.table", "mine")]
    more = b"".join(field(9, pair.SerializeToString()) for pair in pairs) * 1000
    assert target.export(with_fields(one_span("etl.spoofed"), more)) == b""
    keys = [pair.key for pair in target.forwarded("etl.spoofed").attributes]
    assert keys.count("mine") == 1000
    assert all(keys.count(key) <= 1 for key in set(keys) - {"mine"})
    target.is_well(before_mib)


# -- headers and time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["grpc", "http"])
def test_headers_of_a_megabyte(target: Target, before_mib: int, over: str) -> None:
    """RESOURCE_EXHAUSTED, and 431 with a Status."""
    if over == "http":
        answer = target.ask("POST", "/v1/traces", b"{}", {"content-type": JSON, "x": "a" * MIB})
        assert answer.status == 431
        assert "expected" in answer.said().message
    else:
        with pytest.raises(grpc.RpcError) as refusal:
            target.export(one_span("n"), metadata=(("x-tenant", "a" * MIB),))
        assert refusal.value.code() is TOO_LARGE
    target.is_well(before_mib)


def test_slowloris(target: Target, before_mib: int) -> None:
    """Half a head on five hundred connections, a byte now and then: others are served, and each gets its 408."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(target.connect(target.http_port)) for _ in range(500)]
        for connection in slow:
            connection.sendall(LINE + b"x: ")
        target.is_well(before_mib)
        for connection in slow:
            connection.sendall(b"a")
        for connection in slow:
            assert until(connection).startswith(b"HTTP/1.1 408 ")
    target.is_well(before_mib)


def test_chunks_without_end(target: Target, before_mib: int) -> None:
    """413 at the limit, and who goes on sending is closed."""
    chunk = b"%x\r\n" % MIB + bytes(MIB) + b"\r\n"
    with target.connect(target.http_port) as connection:
        said, sent = flood(connection, LINE + b"transfer-encoding: chunked\r\n\r\n", itertools.repeat(chunk))
    assert said.startswith(b"HTTP/1.1 413 ")
    assert sent > 64 * MIB
    target.is_well(before_mib)


# -- HTTP/2, by hand (RFC 9113; header fields as literals without indexing, RFC 7541 section 6.2.2) -------------------

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _CONTINUATION = 0, 1, 3, 4, 9
_END_STREAM, _END_HEADERS = 1, 4
_CANCEL = 8


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(_SETTINGS, 0, 0, b"")


CALM = struct.pack(">I", 11)
"""ENHANCE_YOUR_CALM, with which a connection ends."""


def literal(name: bytes, text: bytes) -> bytes:
    return b"\0" + bytes((len(name),)) + name + bytes((len(text),)) + text


INVALID_STATUS, TOO_LARGE_STATUS = (literal(b"grpc-status", b"%d" % code.value[0]) for code in (INVALID, TOO_LARGE))


def headers(stream: int, *more: tuple[bytes, bytes], flags: int = _END_HEADERS) -> bytes:
    """The head of an Export call of traces."""
    path = f"/{BY_NAME['traces'].service}/Export".encode()
    pairs = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"a")]
    pairs += [(b"content-type", b"application/grpc"), (b"te", b"trailers"), *more]
    return frame(_HEADERS, flags, stream, b"".join(literal(name, text) for name, text in pairs))


def data(stream: int, payload: bytes, flags: int = _END_STREAM) -> bytes:
    return frame(_DATA, flags, stream, payload)


def until(connection: socket.socket, mark: bytes | None = None) -> bytes:
    """What is read until the mark comes, or the other side closes."""
    found = bytearray()
    with contextlib.suppress(ConnectionError):
        while mark is None or mark not in found:
            got = connection.recv(1 << 16)
            if not got:
                break
            found += got
    return bytes(found)


def flood(connection: socket.socket, begin: bytes, parts: Iterable[bytes]) -> tuple[bytes, int]:
    """Send until all is sent or the other side closes; what it said, and how many bytes went."""
    said = bytearray()
    sent = 0
    with contextlib.suppress(ConnectionError):
        connection.sendall(begin)
        for part in parts:
            connection.sendall(part)
            sent += len(part)
            while select.select([connection], [], [], 0)[0]:
                got = connection.recv(1 << 16)
                if not got:
                    return bytes(said), sent
                said += got
    return bytes(said), sent


def streams(count: int) -> Iterator[bytes]:
    """Calls that are begun and given up, a hundred in one write; some of them with their request."""
    request = one_span("etl.reset")
    message = data(1, b"\0" + struct.pack(">I", len(request)) + request)
    for first in range(1, 2 * count, 200):
        written = bytearray()
        for stream in range(first, first + 200, 2):
            written += headers(stream)
            if stream % 4 == 1:
                written += message[:5] + struct.pack(">I", stream) + message[9:]
            written += frame(_RST_STREAM, 0, stream, struct.pack(">I", _CANCEL))
        yield bytes(written)


def test_rapid_reset(target: Target, before_mib: int) -> None:
    """CVE-2023-44487, calls that are begun and given up, on four connections: each is told to calm down and closed.

    One at a time: what is too many a second is counted for each, and a slow machine handles fewer of all together.
    """
    port = int(target.target.rpartition(":")[2])
    with ThreadPoolExecutor(1) as pool:
        for number in range(4):
            with target.connect(port) as connection:
                under_way = pool.submit(flood, connection, PREFACE, streams(40_000))
                if not number:
                    assert target.export(one_span("beside the resets")) == b""
                    assert target.post(one_span("beside the resets")).status == 200
                said, sent = under_way.result()
                assert said[3:5] == bytes((_SETTINGS, 0))
                assert sent > 1000
                said += until(connection)
                assert CALM + b"got more than" in said
                assert said.count(CALM) == 1
    target.is_well(before_mib)


def test_rapid_reset_over_several_connections(target: Target, before_mib: int) -> None:
    """The same at once: requests beside it are taken, and whoever is told to calm down is told once.

    Whether one is depends on the machine, which may handle fewer of each than are too many a second.
    """
    port = int(target.target.rpartition(":")[2])
    with ThreadPoolExecutor(4) as pool, contextlib.ExitStack() as stack:
        attackers = [stack.enter_context(target.connect(port)) for _ in range(4)]
        under_way = [pool.submit(flood, connection, PREFACE, streams(10_000)) for connection in attackers]
        assert target.export(one_span("beside the resets")) == b""
        assert target.post(one_span("beside the resets")).status == 200
        whole = sum(map(len, streams(10_000)))
        for connection, each in zip(attackers, under_way, strict=True):
            said, sent = each.result()
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            said += until(connection)
            assert said[3:5] == bytes((_SETTINGS, 0))
            assert said.count(CALM) == 1 or (CALM not in said and sent == whole)
    target.is_well(before_mib)


def test_continuation_flood(target: Target, before_mib: int) -> None:
    """CVE-2024-27316: header fields without end are RESOURCE_EXHAUSTED, and no longer kept."""
    head = headers(1, flags=0)
    part = frame(_CONTINUATION, 0, 1, literal(b"x", b"a" * 100) * 100)
    with target.connect(int(target.target.rpartition(":")[2])) as connection:
        said, _ = flood(connection, PREFACE + head, itertools.repeat(part, 2_000))
        said += b"" if b"grpc-status" in said else until(connection, b"grpc-status")
    assert literal(b"grpc-status", b"8") in said
    target.is_well(before_mib)


def test_a_message_longer_than_any(target: Target, before_mib: int) -> None:
    """A gRPC frame that says it has 4 GiB is refused before it came."""
    with target.connect(int(target.target.rpartition(":")[2])) as connection:
        connection.sendall(PREFACE + headers(1) + data(1, b"\0\xff\xff\xff\xff" + bytes(1000), flags=0))
        assert until(connection, TOO_LARGE_STATUS).count(TOO_LARGE_STATUS) == 1
    target.is_well(before_mib)
