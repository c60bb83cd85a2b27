"""The seam between what is to be sent and how: one blocking send, made in a thread of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from joulegram_sink.upstream_destination import parse_endpoint
from joulegram_sink.upstream_grpc import GrpcTransport
from joulegram_sink.upstream_http import HttpTransport

if TYPE_CHECKING:
    from joulegram_pipeline.records import Metadata, RecordKind
    from joulegram_sink.upstream_answer import Answer
    from joulegram_sink.upstream_destination import Destination


class Transport(Protocol):
    """A way to a destination; sends may overlap, and `close` ends those under way."""

    def send(self, kind: RecordKind, body: bytes, metadata: Metadata) -> Answer:
        """Send one request and wait for what becomes of it; raises nothing that the network does."""

    def close(self) -> None: ...


def transport_for(destination: Destination) -> Transport:
    """The transport a destination's endpoint asks for, not connected yet.

    Raises:
        ConfigError: the endpoint, or a key that does not go with it, quoting the key.
    """
    endpoint = parse_endpoint(destination.endpoint, destination.key)
    if endpoint.scheme.startswith("grpc"):
        return GrpcTransport(destination, endpoint)
    return HttpTransport(destination, endpoint)
