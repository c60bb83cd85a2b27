"""The keys under `receiver`: listeners, limits and access, spelled as the Collector spells them."""

from __future__ import annotations

from joulegram_service.config_types import Endpoint, Section


class ServerConfig(Section):
    """A listener."""

    endpoint: Endpoint = "127.0.0.1:4317"


class HttpConfig(Section):
    """The OTLP/HTTP listener, which comes in a later version."""

    endpoint: Endpoint | None = None


class ProtocolsConfig(Section):
    """The transports of the receiver."""

    grpc: ServerConfig = ServerConfig()
    http: HttpConfig = HttpConfig()


class ReceiverConfig(Section):
    """OTLP in."""

    protocols: ProtocolsConfig = ProtocolsConfig()
