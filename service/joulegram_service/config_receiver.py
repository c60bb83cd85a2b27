"""The keys under `receiver`: listeners, limits and access, spelled as the Collector spells them.

The Collector's configgrpc, confighttp, configtls and configauth have them under the same names, but for
`metadata_keys` (its `include_metadata` takes all headers or none), `auth.bearer_token_file` (it has an extension for
that), `reflection`, `max_header_bytes`, `max_connections` and `limits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from joulegram_service.config_types import (
    AllowedHeader,
    CarriedHeader,
    Check,
    Count,
    FilePath,
    HeaderName,
    Listen,
    Mebibytes,
    Origin,
    PositiveDuration,
    PositiveSize,
    Seconds,
    Section,
    Switch,
)

_MIB = 1 << 20


def _tls_version(value: object) -> object:
    # Without quotes they are numbers of YAML.
    if str(value) not in {"1.2", "1.3"}:
        raise ValueError("'1.2' or '1.3'")
    return str(value)


@dataclass(frozen=True)
class TlsConfig(Section):
    """Certificates of a listener; PEM files, followed when they change."""

    cert_file: FilePath
    key_file: FilePath
    client_ca_file: FilePath | None = None
    min_version: Annotated[Literal["1.2", "1.3"], Check(_tls_version)] = "1.2"
    reload_interval: PositiveDuration = 10 * 10**9


@dataclass(frozen=True)
class AuthConfig(Section):
    """Who may send."""

    bearer_token_file: FilePath


@dataclass(frozen=True)
class ServerParametersConfig(Section):
    """When a server ends connections, and looks whether the client still lives; as grpc-go's ServerParameters.

    What is None is not done: connections of any age and idleness, and the kernel (TCP keepalive) looks after the dead.
    """

    max_connection_idle: PositiveDuration | None = None
    max_connection_age: PositiveDuration | None = None
    max_connection_age_grace: PositiveDuration | None = None
    time: PositiveDuration | None = None
    timeout: PositiveDuration | None = None


@dataclass(frozen=True)
class KeepaliveConfig(Section):
    """Life of gRPC connections."""

    server_parameters: ServerParametersConfig = ServerParametersConfig()


@dataclass(frozen=True)
class GrpcConfig(Section):
    """The OTLP/gRPC listener."""

    endpoint: Listen = "127.0.0.1:4317"
    tls: TlsConfig | None = None
    auth: AuthConfig | None = None
    max_recv_msg_size_mib: Mebibytes = 64
    max_concurrent_streams: Count = 1024
    max_connections: Count = 1024
    keepalive: KeepaliveConfig = KeepaliveConfig()
    reflection: Switch = False


@dataclass(frozen=True)
class CorsConfig(Section):
    """Browsers that may send; off without an origin."""

    allowed_origins: tuple[Origin, ...] = ()
    allowed_headers: tuple[AllowedHeader, ...] = ()
    exposed_headers: tuple[HeaderName, ...] = ()
    max_age: Seconds = 0


@dataclass(frozen=True)
class HttpConfig(Section):
    """The OTLP/HTTP listener; None as endpoint switches it off."""

    endpoint: Listen | None = "127.0.0.1:4318"
    tls: TlsConfig | None = None
    auth: AuthConfig | None = None
    cors: CorsConfig = CorsConfig()
    max_request_body_size: PositiveSize = 64 * _MIB
    max_header_bytes: PositiveSize = 16 * 1024
    max_connections: Count = 1024
    max_connection_age: PositiveDuration | None = None
    read_timeout: PositiveDuration = 30 * 10**9


@dataclass(frozen=True)
class ProtocolsConfig(Section):
    """The transports of the receiver."""

    grpc: GrpcConfig = GrpcConfig()
    http: HttpConfig = HttpConfig()


@dataclass(frozen=True)
class LimitsConfig(Section):
    """What the receiver holds at most, over both transports, before it refuses."""

    in_flight: PositiveSize = 256 * _MIB
    queue: PositiveSize = 64 * _MIB


@dataclass(frozen=True)
class ReceiverConfig(Section):
    """OTLP in."""

    protocols: ProtocolsConfig = ProtocolsConfig()
    limits: LimitsConfig = LimitsConfig()
    metadata_keys: tuple[CarriedHeader, ...] = ()
