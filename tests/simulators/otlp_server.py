"""OTLP servers for tests, gRPC and HTTP: they keep the raw bytes of every request and answer what they were told to."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any, Self

import grpc
import zstandard
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from types import TracebackType

SERVICES = {
    "traces": "opentelemetry.proto.collector.trace.v1.TraceService",
    "metrics": "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "logs": "opentelemetry.proto.collector.logs.v1.LogsService",
    "profiles": "opentelemetry.proto.collector.profiles.v1development.ProfilesService",
}

PATHS = {
    "/v1/traces": "traces",
    "/v1/metrics": "metrics",
    "/v1/logs": "logs",
    "/v1development/profiles": "profiles",
}

HttpAnswer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""

Judgement = grpc.StatusCode | tuple[grpc.StatusCode, str] | bytes | None


class OtlpServer:
    """Entered, it listens on `port`; `taken` has (signal, bytes) of what it acknowledged, `headers` those of all calls.

    Args:
        port: 0 for any.
        judge: called with signal and bytes before a request is taken; None takes it, bytes take it with that response,
            a status code refuses it, with words of its own if they stand beside.
        retry_after_s: sent as RetryInfo with every refusal.
        credentials: for TLS; None speaks plaintext.
        max_recv_bytes: of a message, which gRPC itself refuses above.
    """

    def __init__(
        self,
        port: int = 0,
        judge: Callable[[str, bytes], Judgement] | None = None,
        retry_after_s: float | None = None,
        credentials: grpc.ServerCredentials | None = None,
        max_recv_bytes: int = -1,
    ) -> None:
        self.port = port
        self.taken: list[tuple[str, bytes]] = []
        self.headers: list[dict[str, str | bytes]] = []
        self.calls = 0
        self._credentials = credentials
        self._judge = judge or (lambda signal, request: None)
        self._retry_after_s = retry_after_s
        self._changed = Condition()
        self._pool = ThreadPoolExecutor(4)
        self._server = grpc.server(
            self._pool, options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", max_recv_bytes)]
        )
        for signal, service in SERVICES.items():
            handler = grpc.unary_unary_rpc_method_handler(self._export(signal))
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))

    def __enter__(self) -> Self:
        address = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self._credentials)
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
                self.headers.append(dict(context.invocation_metadata()))
                if answer is None or isinstance(answer, bytes):
                    self.taken.append((signal, request))
                self._changed.notify_all()
            if isinstance(answer, grpc.StatusCode):
                self._refuse(answer, f"told to answer {answer.name}", context)
            elif isinstance(answer, tuple):
                self._refuse(*answer, context)
            return answer if isinstance(answer, bytes) else b""

        return export

    def _refuse(self, code: grpc.StatusCode, words: str, context: Any) -> None:
        status = status_pb2.Status(code=code.value[0], message=words)
        if self._retry_after_s is not None:
            seconds = int(self._retry_after_s)
            nanos = int((self._retry_after_s - seconds) * 1e9)
            detail = AnyMessage()
            detail.Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos)))
            status.details.append(detail)
        context.abort_with_status(rpc_status.to_status(status))


class OtlpHttpServer:
    """Entered, it listens on `port`; `taken` holds (signal, bytes, decompressed) of what it acknowledged.

    Args:
        answers: given in turn; then `judge` decides.
        judge: called with signal and bytes; None takes it with an empty 200.
        close_each: end the connection behind every answer without saying so, as an idle timeout does.
        context: for TLS; None speaks plaintext.
    """

    def __init__(
        self,
        *answers: HttpAnswer,
        judge: Callable[[str, bytes], HttpAnswer | None] | None = None,
        close_each: bool = False,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.taken: list[tuple[str, bytes]] = []
        self.calls: list[tuple[str, dict[str, str], bytes]] = []
        """Path, headers by lower-case name, and bytes as they came."""
        self.clients: list[tuple[str, int]] = []
        """Address of the client of each call: how many connections there were."""
        self._answers = list(answers)
        self._judge = judge or (lambda signal, request: None)
        self._close_each = close_each
        self._changed = Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that goes away, or fails the handshake, is what tests are about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            # The handshake belongs to the connection's own thread: a client that fails it must not end the listener.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_port
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_for(self, done: Callable[[OtlpHttpServer], bool], timeout_s: float = 20.0) -> None:
        """Block until `done(self)` holds, looked at after each call; AssertionError if it does not come to that."""
        with self._changed:
            assert self._changed.wait_for(lambda: done(self), timeout_s), f"{len(self.calls)} calls came"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = _decompressed(body, headers.get("content-encoding", "identity"))
        signal = PATHS.get(handler.path, handler.path)
        with self._changed:
            given = self._answers.pop(0) if self._answers else None
        status, more, data = given or self._judge(signal, request) or (200, {}, b"")
        with self._changed:
            self.calls.append((handler.path, headers, body))
            self.clients.append(handler.client_address[:2])
            if 200 <= status < 300:
                self.taken.append((signal, request))
            self._changed.notify_all()
        handler.send_response(status)
        for key, value in more.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        handler.close_connection = self._close_each


def _decompressed(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return zlib.decompress(body, wbits=31)
    if encoding == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    assert encoding == "identity", encoding
    return body
