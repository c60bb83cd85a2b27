"""`max_connection_age` of HTTP: a connection ends, behind an answer if one is due; nothing that was sent is lost."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from joulegram_receiver.http_protocol import BoundedHttpProtocol, ConnectionLimits
from simulators.receivers import TIMEOUT_S, receivers, span, traces
from simulators.sidecar import Serve

if TYPE_CHECKING:
    from pathlib import Path

ONE = traces(span())
HEAD = (
    b"POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\n"
    b"content-length: %d\r\n\r\n" % len(ONE)
)
PATIENT = {"limits": ConnectionLimits(header_timeout_s=600, max_age_s=0.2)}


def rest(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    found = b""
    while data := connection.recv(1 << 16):
        found += data
    return found


@pytest.mark.parametrize("request_before", [b"", HEAD + ONE], ids=["never used", "used"])
def test_an_idle_connection_is_closed_at_its_age(tmp_path: Path, request_before: bytes) -> None:
    """Without an age it stays for as long as it is idle at most, which is longer than this test waits."""

    async def main() -> None:
        async with receivers(tmp_path, http_options=PATIENT) as running:
            said = await running.raw(request_before)
            assert re.findall(rb"HTTP/1.1 (\d+)", said) == ([b"200"] if request_before else [])
            assert len(running.stored()) == bool(request_before)

    asyncio.run(main())


@pytest.mark.parametrize("sent_before", [HEAD[:40], HEAD, HEAD + ONE[:9]], ids=["half a head", "a head", "half a body"])
def test_a_request_under_way_is_answered_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent_before: bytes
) -> None:
    """The answer says that the connection ends, so that a client sends the next request on another."""
    aged = threading.Event()
    received = BoundedHttpProtocol.data_received

    def received_and_aged(protocol: BoundedHttpProtocol, data: bytes) -> None:
        received(protocol, data)
        if not aged.is_set():
            protocol._grow_old()
            aged.set()

    monkeypatch.setattr(BoundedHttpProtocol, "data_received", received_and_aged)

    def talk(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
            connection.sendall(sent_before)
            assert aged.wait(TIMEOUT_S)
            connection.sendall((HEAD + ONE)[len(sent_before) :])
            return rest(connection)

    async def main() -> None:
        async with receivers(tmp_path) as running:
            said = await asyncio.to_thread(talk, running.http_port)
            assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200"]
            assert b"connection: close" in said
            assert running.stored() == [ONE]

    asyncio.run(main())


def test_the_age_is_configured(tmp_path: Path) -> None:
    """`receiver.protocols.http.max_connection_age`, in a whole sidecar: a connection that was used is ended."""
    config = tmp_path / "joulegram.yaml"
    config.write_text("receiver: {protocols: {http: {max_connection_age: 200ms}}}\n")
    with Serve(tmp_path, f"--config={config}", "--source=none") as serve:
        port = int(serve.wait_ready().http_url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
            connection.sendall(HEAD + ONE)
            assert re.findall(rb"HTTP/1.1 (\d+)", rest(connection)) == [b"200"]
