"""OTLP over gRPC: raw request bytes in, acknowledged when they are on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from joulegram_pipeline.errors import BusyError, JoulegramError
from joulegram_receiver.intake import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, Intake
from joulegram_receiver.intake_refusals import OverloadError, TooLargeError, UndurableError
from joulegram_receiver.listener import check_free, parse_endpoint, set_unix_mode
from joulegram_receiver.signals import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from joulegram_pipeline.metrics import Metrics
    from joulegram_receiver.intake import Store
    from joulegram_receiver.signals import Signal

MAX_RECV_BYTES = MAX_REQUEST_BYTES
"""What OTLP 1.11 recommends; grpcio holds it before and after decompression."""

MAX_METADATA_BYTES = 16 * 1024
MAX_CONCURRENT_STREAMS = 1024
_GRACE_S = 5.0
_KEY = "receiver.protocols.grpc.endpoint"


@dataclass(frozen=True, slots=True)
class Keepalive:
    """How long connections live, as the Collector's `keepalive.server_parameters`; None leaves gRPC its own way.

    Args:
        max_connection_age_s: after which a client is asked to connect anew.
        max_connection_age_grace_s: for the calls it has under way then.
        max_connection_idle_s: without a call, after which the same is asked.
        time_s: without a sign of life, after which the client is pinged.
        timeout_s: for its answer.
    """

    max_connection_age_s: float | None = None
    max_connection_age_grace_s: float | None = None
    max_connection_idle_s: float | None = None
    time_s: float | None = None
    timeout_s: float | None = None

    def options(self) -> list[tuple[str, int]]:
        """As channel arguments, in milliseconds."""
        named = (
            ("grpc.max_connection_age_ms", self.max_connection_age_s),
            ("grpc.max_connection_age_grace_ms", self.max_connection_age_grace_s),
            ("grpc.max_connection_idle_ms", self.max_connection_idle_s),
            ("grpc.keepalive_time_ms", self.time_s),
            ("grpc.keepalive_timeout_ms", self.timeout_s),
        )
        return [(name, round(value * 1000)) for name, value in named if value is not None]


class GrpcReceiver:
    """The OTLP/gRPC server of a sidecar; an async context manager.

    Args:
        endpoint: ``host:port`` or ``unix:/path``; port 0 lets the system choose, `port` says which.
        intake: where requests go; a spool alone gets an intake of its own. Entered before this and left after it.
        metrics: of that intake.
        credentials: for TLS; plaintext if None.
        interceptors: called around every call, the first outermost.
        services: called with the server before it starts, so that each can add its own.
        max_recv_bytes: a larger request is refused with RESOURCE_EXHAUSTED, before and after decompression (A2).
        max_concurrent_streams: of one connection; further calls wait at their client.
        max_metadata_bytes: of the headers of one call; more is refused.
        keepalive: how long connections live.
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
        credentials: grpc.ServerCredentials | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
        services: Sequence[Callable[[grpc.aio.Server], object]] = (),
        max_recv_bytes: int = MAX_RECV_BYTES,
        max_concurrent_streams: int = MAX_CONCURRENT_STREAMS,
        max_metadata_bytes: int = MAX_METADATA_BYTES,
        keepalive: Keepalive | None = None,
        grace_s: float = _GRACE_S,
    ) -> None:
        self.port = 0
        self._endpoint = endpoint
        self._intake = intake if isinstance(intake, Intake) else Intake(intake, metrics)
        self._credentials = credentials
        self._interceptors = list(interceptors)
        self._services = services
        self._grace_s = grace_s
        self._options: list[tuple[str, int]] = [
            ("grpc.max_receive_message_length", max_recv_bytes),
            ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
            ("grpc.max_concurrent_streams", max_concurrent_streams),
            # The first alone is where gRPC begins to refuse by chance; the second is where it always does.
            ("grpc.max_metadata_size", max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", max_metadata_bytes),
            # With it on, a second server would bind the same port in silence and take half the requests.
            ("grpc.so_reuseport", 0),
            *(keepalive or Keepalive()).options(),
        ]
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        address = parse_endpoint(self._endpoint, _KEY)
        check_free(address, _KEY)
        server = grpc.aio.server(interceptors=self._interceptors, options=self._options)
        for signal in SIGNALS:
            handlers = {"Export": grpc.unary_unary_rpc_method_handler(self._exporter(signal))}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(signal.service, handlers),))
        for add in self._services:
            add(server)
        try:
            if self._credentials is None:
                self.port = server.add_insecure_port(address.grpc_target)
            else:
                self.port = server.add_secure_port(address.grpc_target, self._credentials)
        except RuntimeError as error:
            raise BusyError(f"cannot listen on {self._endpoint!r}: {error}") from error
        await server.start()
        self._server = server
        set_unix_mode(address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.stop(self._grace_s)
            self._server = None

    def _exporter(self, signal: Signal) -> Callable[[bytes, Any], Awaitable[bytes]]:
        intake = self._intake

        async def export(request: bytes, context: Any) -> bytes:
            try:
                if intake.metadata_keys:
                    return await intake.take(signal, request, intake.metadata_of(context.invocation_metadata()))
                return await intake.take(signal, request)
            except JoulegramError as error:
                refusal = error
            # gRPC keeps what is raised here in a cycle, and with it every frame and exception it knows: what came, and
            # was refused, would stay in memory until the garbage collector comes by.
            del request
            refusal.__cause__ = refusal.__context__ = refusal.__traceback__ = None
            intake.count_refusal(signal, refusal)
            await _abort(context, refusal)
            raise AssertionError("abort raises")

        return export


async def _abort(context: Any, refusal: JoulegramError) -> None:
    if isinstance(refusal, (OverloadError, UndurableError)):
        await context.abort_with_status(unavailable(str(refusal), refusal.retry_after_s))
    # Without RetryInfo a client does not send again what would be refused again (otlp reference 1.2).
    too_large = isinstance(refusal, TooLargeError)
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if too_large else grpc.StatusCode.INVALID_ARGUMENT
    await context.abort(code, str(refusal))


def unavailable(text: str, retry_after_s: int) -> grpc.Status:
    """UNAVAILABLE with RetryInfo, what OTLP clients try again after."""
    details = AnyMessage()
    details.Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=retry_after_s)))
    return rpc_status.to_status(status_pb2.Status(code=code_pb2.UNAVAILABLE, message=text, details=[details]))
