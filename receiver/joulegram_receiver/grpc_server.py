"""OTLP over gRPC: raw request bytes in, acknowledged when they are on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from joulegram_receiver.grpc_methods import Unary
from joulegram_receiver.grpc_transport import MAX_CONNECTIONS, GrpcServer
from joulegram_receiver.intake import MAX_REQUEST_BYTES, Intake
from joulegram_receiver.signals import SIGNALS

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from types import TracebackType

    from joulegram_pipeline.errors import JoulegramError
    from joulegram_pipeline.metrics import Metrics
    from joulegram_receiver.admission import Hold
    from joulegram_receiver.grpc_methods import Method
    from joulegram_receiver.grpc_transport import Authorize
    from joulegram_receiver.http2_head import Head
    from joulegram_receiver.http2_life import Http2Limits
    from joulegram_receiver.intake import Store
    from joulegram_receiver.signals import Signal

MAX_RECV_BYTES = MAX_REQUEST_BYTES
"""What OTLP 1.11 recommends, before and after decompression."""

_GRACE_S = 5.0
_KEY = "receiver.protocols.grpc.endpoint"


class GrpcReceiver:
    """The OTLP/gRPC server of a sidecar; an async context manager.

    Args:
        endpoint: ``host:port`` or ``unix:/path``; port 0 lets the system choose, `port` says which.
        intake: where requests go; a spool alone gets an intake of its own. Entered before this and left after it.
        metrics: of that intake.
        ssl_context: for TLS; plaintext if None.
        authorize: asked of each call first.
        methods: more of them, by their paths.
        max_recv_bytes: a larger request is refused with RESOURCE_EXHAUSTED, before and after decompression (A2).
        limits: of each connection.
        max_connections: at once; one more is closed.
        grace_s: how long requests under way may take at stop.

    Raises (on enter):
        ConfigError: the endpoint is not one.
        BusyError: another process holds the port or the socket.
    """

    def __init__(
        self,
        endpoint: str,
        intake: Intake | Store,
        metrics: Metrics,
        *,
        ssl_context: ssl.SSLContext | None = None,
        authorize: Authorize | None = None,
        methods: Mapping[str, Method] | None = None,
        max_recv_bytes: int = MAX_RECV_BYTES,
        limits: Http2Limits | None = None,
        max_connections: int = MAX_CONNECTIONS,
        grace_s: float = _GRACE_S,
    ) -> None:
        into = intake if isinstance(intake, Intake) else Intake(intake, metrics)
        exports = {f"/{signal.service}/Export": _export(into, signal) for signal in SIGNALS}
        self._server = GrpcServer(
            endpoint,
            _KEY,
            exports | dict(methods or {}),
            max_recv_bytes=max_recv_bytes,
            ssl_context=ssl_context,
            authorize=authorize,
            refused=lambda reason: metrics.refused_requests.labels("unknown", reason).inc(),
            limits=limits,
            max_connections=max_connections,
            grace_s=grace_s,
        )

    @property
    def port(self) -> int:
        """Where it listens; 0 for a Unix socket."""
        return self._server.port

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.__aexit__(kind, value, trace)


def _export(intake: Intake, signal: Signal) -> Unary:
    async def answer(request: bytes, head: Head, hold: Hold) -> bytes:
        metadata = intake.metadata_of(head.fields) if intake.metadata_keys else ()
        return await intake.take_held(signal, request, metadata, hold)

    def refused(error: JoulegramError) -> None:
        intake.count_refusal(signal, error)

    return Unary(answer, refused, intake.admission)
