"""The bounds of an HTTP connection: heads, time, count, and bodies nobody wants."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from google.rpc import code_pb2, status_pb2

from joulegram_receiver.http_protocol import ConnectionLimits
from simulators.receivers import PROTOBUF, TIMEOUT_S, Receivers, ask, receivers, span, traces
from simulators.sidecar import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ONE = traces(span())
LINE = b"POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\n"
MIB = 1024 * 1024


def only_answer(said: bytes, status: int) -> Any:
    """The Status of the only answer in what was said, once its code is right."""
    head, _, body = said.partition(b"\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [str(status).encode()], said[:200]
    assert f"content-length: {len(body)}".encode() in head
    assert b"connection: close" in head
    return status_pb2.Status.FromString(body)


async def still_serves(running: Receivers) -> None:
    assert (await running.post(ONE)).status == 200
    assert running.stored() == [ONE]
    assert running.intake.admission.held_bytes == 0


async def eventually(done: Callable[[], bool]) -> None:
    """Let the server turn until a condition holds."""
    await asyncio.to_thread(wait_until, done, "what the test waits for")


LARGE_HEADS = {
    "one header of 1 MB": [LINE + b"x: " + b"a" * 1_000_000 + b"\r\n\r\n"],
    "many headers": [LINE + b"x: a\r\n" * 10_000 + b"\r\n"],
    "a long path": [b"POST /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n"],
    "a header without end": [LINE + b"x: "] + [b"a" * 1000] * 2000,
    "one byte more than allowed": [LINE + b"x: " + b"a" * 2000 + b"\r\n\r\n"],
    "trailers": [LINE + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: a\r\n" * 10_000 + b"\r\n"],
    "a trailer without end": [LINE + b"transfer-encoding: chunked\r\n\r\n0\r\nx: "] + [b"a" * 1000] * 2000,
    "a chunk extension without end": [LINE + b"transfer-encoding: chunked\r\n\r\n1;"] + [b"a" * 1000] * 2000,
}


@pytest.mark.parametrize("parts", LARGE_HEADS.values(), ids=LARGE_HEADS.keys())
def test_a_head_is_bounded(tmp_path: Path, parts: list[bytes]) -> None:
    """431 with a Status, read to the end by its sender, and the connection is closed."""
    options = {"limits": ConnectionLimits(max_header_bytes=2000, linger_s=1)}

    async def main() -> None:
        async with receivers(tmp_path, http_options=options) as running:
            said = only_answer(await running.raw(*parts), 431)
            assert said.code == code_pb2.RESOURCE_EXHAUSTED
            assert said.message == "got more, expected at most 2000 bytes of request headers"
            assert running.metric("refused_requests", signal="unknown", reason="headers") == 1
            await still_serves(running)

    asyncio.run(main())


NOT_HTTP = {
    "noise": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a header without a name": LINE + b": a\r\n\r\n",
    "two lengths": LINE + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
    "a length and chunks": LINE + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    "a length that is none": LINE + b"content-length: -5\r\n\r\n",
    "a chunk size that is none": LINE + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",
    "a chunk longer than it says": LINE + b"transfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
}


@pytest.mark.parametrize("sent", NOT_HTTP.values(), ids=NOT_HTTP.keys())
def test_what_is_not_http_gets_a_status_too(tmp_path: Path, sent: bytes) -> None:
    """H5: 400 with a Status; nothing is stored."""

    async def main() -> None:
        async with receivers(tmp_path, http_options={"limits": ConnectionLimits(linger_s=1)}) as running:
            said = only_answer(await running.raw(sent), 400)
            assert said.code == code_pb2.INVALID_ARGUMENT
            assert running.metric("refused_requests", signal="unknown", reason="malformed") == 1
            await still_serves(running)

    asyncio.run(main())


def test_a_second_request_that_is_noise_does_not_lose_the_first(tmp_path: Path) -> None:
    """What came whole is answered; then the connection is closed."""

    async def main() -> None:
        async with receivers(tmp_path) as running:
            said = await running.raw(LINE + b"content-length: %d\r\n\r\n" % len(ONE) + ONE + b"noise\r\n\r\n")
            assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200"]
            assert running.stored() == [ONE]

    asyncio.run(main())


SLOW_HEADS = {
    "half a request line": (b"POST /v1/tra", 408),
    "headers that stop": (LINE + b"x: ", 408),
    "nothing": (b"", None),
    "empty lines": (b"\r\n\r\n", None),
    "a request, then half of one": (LINE + b"content-length: 0\r\n\r\n" + LINE, 408),
}


@pytest.mark.parametrize(("sent", "status"), SLOW_HEADS.values(), ids=SLOW_HEADS.keys())
def test_a_head_has_its_time(tmp_path: Path, sent: bytes, status: int | None) -> None:
    """Slowloris: 408 for half a head, a closed connection for none."""
    options = {"limits": ConnectionLimits(header_timeout_s=0.3)}

    async def main() -> None:
        async with receivers(tmp_path, http_options=options) as running:
            said = await running.raw(sent)
            statuses = re.findall(rb"HTTP/1.1 (\d+)", said)
            assert statuses[-1:] == ([] if status is None else [str(status).encode()])
            await still_serves(running)

    asyncio.run(main())


def test_bytes_that_trickle_do_not_win_time(tmp_path: Path) -> None:
    """The clock of a head starts with the connection, not with each byte."""
    options = {"limits": ConnectionLimits(header_timeout_s=0.5)}

    async def main() -> None:
        async with receivers(tmp_path, http_options=options) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.http_port)

            async def trickle() -> None:
                while True:
                    writer.write(b"x")
                    await asyncio.sleep(0.02)

            writer.write(b"POST /v1/traces HTTP/1.1\r\nx: ")
            task = asyncio.create_task(trickle())
            said = await asyncio.wait_for(reader.read(), TIMEOUT_S)
            task.cancel()
            writer.close()
            assert b"408" in said.split(b"\r\n")[0]

    asyncio.run(main())


SLOW_BODIES = {
    "a length never reached": LINE + b"content-length: 100\r\n\r\nabc",
    "chunks without end": LINE + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "no body at all": LINE + b"content-length: 100\r\n\r\n",
}


@pytest.mark.parametrize("sent", SLOW_BODIES.values(), ids=SLOW_BODIES.keys())
def test_a_body_has_its_time(tmp_path: Path, sent: bytes) -> None:
    """408 with a Status once the body is late, and the connection does not stay."""
    options = {"body_timeout_s": 0.3, "limits": ConnectionLimits(linger_s=0.3)}

    async def main() -> None:
        async with receivers(tmp_path, http_options=options) as running:
            said = await running.raw(sent)
            assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"408"]
            assert b"expected all of it" in said
            assert running.metric("refused_requests", signal="traces", reason="slow") == 1
            await still_serves(running)

    asyncio.run(main())


def test_a_client_that_goes_is_forgotten(tmp_path: Path) -> None:
    """Half a body, then nobody: nothing is held and nothing stored."""

    async def main() -> None:
        async with receivers(tmp_path) as running:
            _, writer = await asyncio.open_connection("127.0.0.1", running.http_port)
            writer.write(LINE + b"content-length: 100\r\n\r\nabc")
            await writer.drain()
            await eventually(lambda: bool(running.intake.admission.held_bytes))
            writer.close()
            await eventually(lambda: running.metric("refused_requests", signal="traces", reason="gone") == 1)
            await still_serves(running)

    asyncio.run(main())


TOO_LARGE = {
    "its length says so": (b"a" * 5000, ""),
    "its chunks add up": ([b"a" * 100] * 50, ""),
    "gzip": (gzip.compress(b"a" * 5000), "gzip"),
    "gzip, in chunks": ([gzip.compress(b"a" * 5000)], "gzip"),
    "gzip that is too large as it comes": (b"a" * 5000, "gzip"),
}


@pytest.mark.parametrize(("body", "coding"), TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_a_large_body_is_413(tmp_path: Path, body: Any, coding: str) -> None:
    """A2, H4: before and after decompression, with a Status, not to be tried again."""

    async def main() -> None:
        async with receivers(tmp_path, intake={"max_request_bytes": 2000}) as running:
            answer = await running.post(body, content_encoding=coding)
            assert answer.status == 413
            assert answer.headers["content-type"] == PROTOBUF
            assert answer.said().code == code_pb2.RESOURCE_EXHAUSTED
            assert "expected at most" in answer.said().message
            assert "retry-after" not in answer.headers
            assert running.metric("refused_requests", signal="traces", reason="too_large") == 1
            await still_serves(running)

    asyncio.run(main())


def test_the_sender_of_65_mib_reads_its_413(tmp_path: Path) -> None:
    """A client that reads only when it has sent all must not find the connection reset (default limits)."""

    async def main() -> None:
        async with receivers(tmp_path) as running:
            for body in (bytes(65 * MIB), [bytes(MIB)] * 65):
                answer = await running.post(body)
                assert (answer.status, answer.said().code) == (413, code_pb2.RESOURCE_EXHAUSTED)
            await still_serves(running)

    asyncio.run(main())


def test_a_slow_sender_of_too_much_reads_its_413(tmp_path: Path) -> None:
    """For as long as it sends: a body takes longer over a network than any time without a byte of it."""
    options = {"limits": ConnectionLimits(linger_s=2)}

    async def main() -> None:
        async with receivers(tmp_path, intake={"max_request_bytes": 2000}, http_options=options) as running:

            def client() -> bytes:
                with socket.create_connection(("127.0.0.1", running.http_port), TIMEOUT_S) as connection:
                    connection.sendall(LINE + b"content-length: 3000\r\n\r\n")
                    for _ in range(30):
                        time.sleep(0.1)  # longer together than the time without a byte
                        connection.sendall(b"a" * 100)
                    return connection.recv(1 << 16)

            said = await asyncio.to_thread(client)
            assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"413"]
            await still_serves(running)

    asyncio.run(main())


def test_chunks_without_end_are_cut_off(tmp_path: Path) -> None:
    """413 at the limit; who goes on sending is closed."""
    options = {"limits": ConnectionLimits(linger_max_s=0.3)}

    async def main() -> None:
        async with receivers(tmp_path, intake={"max_request_bytes": 2000}, http_options=options) as running:

            def client() -> bytes:
                said = b""
                with socket.create_connection(("127.0.0.1", running.http_port), TIMEOUT_S) as connection:
                    connection.sendall(LINE + b"transfer-encoding: chunked\r\n\r\n")
                    try:
                        while True:
                            connection.sendall(b"64\r\n" + b"a" * 100 + b"\r\n")
                            if not said:
                                connection.setblocking(False)
                                with contextlib.suppress(BlockingIOError):
                                    said = connection.recv(1 << 16)
                                connection.setblocking(True)
                    except OSError:
                        return said

            said = await asyncio.to_thread(client)
            assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"413"]
            await still_serves(running)

    asyncio.run(main())


def test_connections_are_counted(tmp_path: Path) -> None:
    """One too many is told 503 with Retry-After; it is served once another has gone."""
    options = {"limits": ConnectionLimits(max_connections=2, linger_s=0.3)}

    async def main() -> None:
        async with receivers(tmp_path, http_options=options) as running:
            held = [await asyncio.open_connection("127.0.0.1", running.http_port) for _ in range(2)]
            said = await running.raw()
            assert only_answer(said, 503).code == code_pb2.UNAVAILABLE
            assert b"\r\nretry-after: 1\r\n" in said
            assert running.metric("refused_requests", signal="unknown", reason="connections") == 1
            for _, writer in held:
                writer.close()
                await writer.wait_closed()
            await eventually(lambda: ask(running.http_port, "POST", "/v1/traces", ONE, {}).status == 415)

    asyncio.run(main())
