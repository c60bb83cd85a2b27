"""An OTLP/gRPC server for tests: keeps the raw bytes of every request and answers what it was told to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from typing import TYPE_CHECKING, Any, Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

SERVICES = {
    "traces": "opentelemetry.proto.collector.trace.v1.TraceService",
    "metrics": "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "logs": "opentelemetry.proto.collector.logs.v1.LogsService",
}


class OtlpServer:
    """Entered, it listens on `port`; `taken` holds (signal, bytes) of what it acknowledged.

    Args:
        port: 0 for any.
        judge: called with signal and bytes before a request is taken; None takes it, bytes take it with that response,
            a status code refuses it.
        retry_after_s: sent as RetryInfo with every refusal.
    """

    def __init__(
        self,
        port: int = 0,
        judge: Callable[[str, bytes], grpc.StatusCode | bytes | None] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.port = port
        self.taken: list[tuple[str, bytes]] = []
        self.calls = 0
        self._judge = judge or (lambda signal, request: None)
        self._retry_after_s = retry_after_s
        self._changed = Condition()
        self._pool = ThreadPoolExecutor(4)
        self._server = grpc.server(
            self._pool, options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        )
        for signal, service in SERVICES.items():
            handler = grpc.unary_unary_rpc_method_handler(self._export(signal))
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))

    def __enter__(self) -> Self:
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()

    def wait_for(self, done: Callable[[OtlpServer], bool], timeout_s: float = 20.0) -> None:
        """Block until `done(self)` holds, looked at after each call; AssertionError if it does not come to that."""
        with self._changed:
            assert self._changed.wait_for(lambda: done(self), timeout_s), f"{self.calls} calls came"

    def _export(self, signal: str) -> Callable[[bytes, Any], bytes]:
        def export(request: bytes, context: Any) -> bytes:
            answer = self._judge(signal, request)
            with self._changed:
                self.calls += 1
                if not isinstance(answer, grpc.StatusCode):
                    self.taken.append((signal, request))
                self._changed.notify_all()
            if isinstance(answer, grpc.StatusCode):
                self._refuse(answer, context)
            return answer if isinstance(answer, bytes) else b""

        return export

    def _refuse(self, code: grpc.StatusCode, context: Any) -> None:
        status = status_pb2.Status(code=code.value[0], message=f"told to answer {code.name}")
        if self._retry_after_s is not None:
            seconds = int(self._retry_after_s)
            nanos = int((self._retry_after_s - seconds) * 1e9)
            detail = AnyMessage()
            detail.Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos)))
            status.details.append(detail)
        context.abort_with_status(rpc_status.to_status(status))
