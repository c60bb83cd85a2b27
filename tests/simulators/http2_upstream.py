"""The gRPC exporter by itself, towards a scripted server."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.records import RecordKind
from joulegram_sink.upstream_answer import Answer, Verdict
from joulegram_sink.upstream_destination import parse_endpoint
from joulegram_sink.upstream_grpc import GrpcTransport
from simulators.forwarding import destination
from simulators.http2_server import Http2Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from joulegram_pipeline.records import Metadata
    from simulators.http2_server import Peer

TAKEN = Answer(Verdict.TAKEN)


class Sender:
    """A transport with less to say."""

    def __init__(self, transport: GrpcTransport, where: str) -> None:
        self.transport = transport
        self.where = where
        """host:port, as answers name it."""

    def send(self, body: bytes = b"", metadata: Metadata = ()) -> Answer:
        """Send traces."""
        return self.transport.send(RecordKind.TRACES, body, metadata)

    def away(self, text: str) -> Answer:
        """The answer where there was none."""
        return Answer(Verdict.RETRY, f"UNAVAILABLE: {self.where}: {text}")


@contextmanager
def sender(port: int, scheme: str = "grpc", **options: Any) -> Iterator[Sender]:
    """A transport to a port of this machine; closed at the end."""
    there = destination(f"{scheme}://localhost:{port}", **options)
    transport = GrpcTransport(there, parse_endpoint(there.endpoint))
    try:
        yield Sender(transport, f"localhost:{port}")
    finally:
        transport.close()


@contextmanager
def scripted(*scripts: Callable[[Peer], object], **options: Any) -> Iterator[Sender]:
    """A transport, and a server whose connections do what `scripts` say in turn."""
    with Http2Server(*scripts) as server, sender(server.port, **options) as found:
        yield found
