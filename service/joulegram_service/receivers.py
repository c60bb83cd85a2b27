"""The listeners as the configuration describes them: limits, TLS, tokens, CORS, health and reflection put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from joulegram_receiver.admission import Admission
from joulegram_receiver.cors import CorsRules, cors_app
from joulegram_receiver.grpc_extras import Health, reflection_methods
from joulegram_receiver.grpc_server import GrpcReceiver
from joulegram_receiver.http2_life import Http2Limits
from joulegram_receiver.http_protocol import HEADER_TIMEOUT_S, ConnectionLimits
from joulegram_receiver.http_server import HttpReceiver
from joulegram_receiver.intake import Intake
from joulegram_receiver.listener import parse_endpoint, plaintext_warning
from joulegram_receiver.tls import Certificates, TlsFiles
from joulegram_receiver.tokens import TokenFile, bearer_app, bearer_calls

if TYPE_CHECKING:
    from collections.abc import Callable

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.span_rows import Extract
    from joulegram_receiver.intake import Store
    from joulegram_service.config_receiver import AuthConfig, HttpConfig, ReceiverConfig, TlsConfig

_GRPC = "receiver.protocols.grpc"
_HTTP = "receiver.protocols.http"
_PING_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Receivers:
    """What listens for OTLP, not entered yet.

    Args:
        grpc: on the gRPC port.
        http: on the HTTP port, None where it is switched off.
        health: ``grpc.health.v1`` on the gRPC port; NOT_SERVING until told.
        admission: shared by both, for the page of pipelines.
        warnings: a sentence for each listener that anybody on the network may read and write.
    """

    grpc: GrpcReceiver
    http: HttpReceiver | None
    health: Health
    admission: Admission
    warnings: tuple[str, ...]


def build_receivers(
    config: ReceiverConfig,
    spool: Store,
    metrics: Metrics,
    extract: Callable[[bytes], Extract],
    backlog: Callable[[], float],
) -> Receivers:
    """The receivers of a configuration.

    Args:
        config: read and checked.
        spool: where requests go.
        metrics: what they count.
        extract: what the join wants of a trace request; see `SpanReader.extract`.
        backlog: how full what comes after is, 0 to 1.

    Raises:
        ConfigError: a certificate, key or token file cannot be used.
    """
    of_grpc, of_http = config.protocols.grpc, config.protocols.http
    admission = Admission(config.limits.in_flight, backlog)
    metrics.in_flight_bytes.set_function(lambda: admission.held_bytes)
    keys = frozenset(config.metadata_keys)

    def intake(max_request_bytes: int) -> Intake:
        return Intake(
            spool,
            metrics,
            admission=admission,
            extract=extract,
            metadata_keys=keys,
            max_request_bytes=max_request_bytes,
        )

    max_recv_bytes = of_grpc.max_recv_msg_size_mib << 20
    health = Health()
    context = None
    if of_grpc.tls is not None:
        context = _certificates(of_grpc.tls, "grpc", f"{_GRPC}.tls", metrics).ssl_context("h2")
    life = of_grpc.keepalive.server_parameters
    grpc = GrpcReceiver(
        of_grpc.endpoint,
        intake(max_recv_bytes),
        metrics,
        ssl_context=context,
        authorize=None
        if of_grpc.auth is None
        else bearer_calls(_tokens(of_grpc.auth, f"{_GRPC}.auth", metrics), metrics),
        methods=health.methods() | (reflection_methods() if of_grpc.reflection else {}),
        max_recv_bytes=max_recv_bytes,
        limits=Http2Limits(
            max_streams=of_grpc.max_concurrent_streams,
            max_age_s=_seconds(life.max_connection_age),
            max_age_grace_s=_seconds(life.max_connection_age_grace),
            max_idle_s=_seconds(life.max_connection_idle),
            ping_s=_seconds(life.time),
            ping_timeout_s=_seconds(life.timeout) or _PING_TIMEOUT_S,
        ),
        max_connections=of_grpc.max_connections,
    )
    http = None if of_http.endpoint is None else _http(of_http, of_http.endpoint, intake, metrics)
    warnings = [_plaintext(of_grpc.endpoint, _GRPC, of_grpc.tls)]
    if of_http.endpoint is not None:
        warnings.append(_plaintext(of_http.endpoint, _HTTP, of_http.tls))
    said = tuple(warning for warning in warnings if warning is not None)
    metrics.plaintext_listeners.set(len(said))
    return Receivers(grpc, http, health, admission, said)


def _http(config: HttpConfig, endpoint: str, intake: Callable[[int], Intake], metrics: Metrics) -> HttpReceiver:
    tokens = None if config.auth is None else _tokens(config.auth, f"{_HTTP}.auth", metrics)
    rules = CorsRules(
        config.cors.allowed_origins,
        config.cors.allowed_headers,
        config.cors.exposed_headers,
        config.cors.max_age,
    )

    def wrap(app: Any) -> Any:
        # CORS outermost: a browser's preflight carries no token.
        guarded = app if tokens is None else bearer_app(app, tokens, metrics)
        return cors_app(guarded, rules) if rules.allowed_origins else guarded

    context = None
    if config.tls is not None:
        context = _certificates(config.tls, "http", f"{_HTTP}.tls", metrics).ssl_context()
    return HttpReceiver(
        endpoint,
        intake(config.max_request_body_size),
        metrics,
        ssl_context=context,
        wrap=wrap,
        limits=ConnectionLimits(
            max_connections=config.max_connections,
            max_header_bytes=config.max_header_bytes,
            header_timeout_s=min(HEADER_TIMEOUT_S, config.read_timeout / 1e9),
            max_age_s=_seconds(config.max_connection_age),
        ),
        body_timeout_s=config.read_timeout / 1e9,
    )


def _certificates(tls: TlsConfig, protocol: str, key: str, metrics: Metrics) -> Certificates:
    files = TlsFiles(tls.cert_file, tls.key_file, tls.client_ca_file, tls.min_version, tls.reload_interval / 1e9)
    certificates = Certificates(files, key, metrics.reload_failures.labels(f"{protocol} certificate").inc)
    metrics.certificate_days_left.labels(protocol).set_function(certificates.days_left)
    return certificates


def _tokens(auth: AuthConfig, key: str, metrics: Metrics) -> TokenFile:
    protocol = "grpc" if key.startswith(_GRPC) else "http"
    failed = metrics.reload_failures.labels(f"{protocol} tokens").inc
    return TokenFile(auth.bearer_token_file, f"{key}.bearer_token_file", on_failure=failed)


def _plaintext(endpoint: str, key: str, tls: TlsConfig | None) -> str | None:
    return plaintext_warning(parse_endpoint(endpoint, f"{key}.endpoint"), key, tls=tls is not None)


def _seconds(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / 1e9
