"""Clients that never stop sending and repeat, byte for byte, what was not acknowledged."""

from __future__ import annotations

import http.client
import random
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from simulators.otlp_server import SERVICES

if TYPE_CHECKING:
    from types import TracebackType

EXPORT = f"/{SERVICES['traces']}/Export"

Key = tuple[str, str]
"""Trace id and span id, in hex."""


def request(trace_id: bytes, names: list[str], chance: random.Random, pid: int, *, root: bool) -> bytes:
    """Spans of the last half second, of one trace; the first one is its root where there is one."""
    message = ExportTraceServiceRequest()
    part = message.resource_spans.add()
    part.resource.attributes.add(key="process.pid").value.int_value = pid
    scope = part.scope_spans.add()
    now = time.time_ns()
    for number, name in enumerate(names):
        is_root = root and number == 0
        end = now - chance.randrange(1_000_000)
        scope.spans.add(
            trace_id=trace_id,
            span_id=trace_id[:8] if is_root else chance.randbytes(8),
            parent_span_id=b"" if is_root else trace_id[:8],
            name=name,
            start_time_unix_nano=end - chance.randrange(500_000_000),
            end_time_unix_nano=end,
        )
    return bytes(message.SerializeToString())


def keys_of(body: bytes) -> list[Key]:
    """The spans of a request."""
    message = ExportTraceServiceRequest.FromString(body)
    return [
        (span.trace_id.hex(), span.span_id.hex())
        for part in message.resource_spans
        for scope in part.scope_spans
        for span in scope.spans
    ]


class Client(ABC):
    """Sends traces in parts from a thread of its own while it is entered.

    Args:
        port: of the sidecar, whichever process that is at the time.
        seed: of what it sends.
        pid: the process its spans name.
        most_pause_s: between two traces.
    """

    def __init__(self, port: int, seed: int, pid: int, most_pause_s: float = 0.05) -> None:
        self._chance = random.Random(seed)
        self._port = port
        self._pid = pid
        self._most_pause_s = most_pause_s
        self._stop = threading.Event()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"client {seed}", daemon=True)
        self.acknowledged: list[Key] = []
        self.cut_off = 0
        """Requests that ended without an answer, not counting those it did not wait for."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._given_up.set()  # what it calls may be gone for good: it is not to live into the next test
        self.finish()

    def finish(self) -> None:
        """Have the last request acknowledged and end."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    @abstractmethod
    def send(self, body: bytes, timeout_s: float) -> bool:
        """Try once; whether it was acknowledged. Counts in `cut_off`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection."""

    def _run(self) -> None:
        chance = self._chance
        try:
            while not self._stop.wait(chance.uniform(self._most_pause_s / 10, self._most_pause_s)):
                # Children first and in requests of their own, so that kills fall between the parts of a trace.
                trace_id = chance.randbytes(16)
                for part in range(chance.randrange(3)):
                    names = [f"etl.node.n{part}"] * chance.randrange(1, 12) + ["SELECT"]
                    self._send(request(trace_id, names, chance, self._pid, root=False))
                if chance.random() < 0.3:
                    self._send(request(chance.randbytes(16), ["SELECT"] * 5, chance, self._pid, root=False))
                self._send(request(trace_id, ["etl.job", "etl.step.x"], chance, self._pid, root=True))
        finally:
            self.close()

    def _send(self, body: bytes) -> None:
        # Now and then it does not wait for the answer: what was taken comes again, as when a kill ate the answer.
        timeout_s = 0.002 if self._chance.random() < 0.1 else 5.0
        while not self.send(body, timeout_s):
            if self._given_up.is_set():
                return
            timeout_s = 5.0
        self.acknowledged += keys_of(body)


class GrpcClient(Client):
    """Over OTLP/gRPC."""

    def __init__(self, port: int, seed: int, pid: int, most_pause_s: float = 0.05) -> None:
        super().__init__(port, seed, pid, most_pause_s)
        options = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 100)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
        self._call: Any = self._channel.unary_unary(EXPORT, None, None)

    def send(self, body: bytes, timeout_s: float) -> bool:
        try:
            self._call(body, timeout=timeout_s, wait_for_ready=True)
        except grpc.RpcError as error:
            self.cut_off += error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
            return False
        return True

    def close(self) -> None:
        self._channel.close()


class HttpClient(Client):
    """Over OTLP/HTTP, protobuf, on one connection as long as it lasts."""

    def __init__(self, port: int, seed: int, pid: int, most_pause_s: float = 0.05) -> None:
        super().__init__(port, seed, pid, most_pause_s)
        self._connection: http.client.HTTPConnection | None = None

    def send(self, body: bytes, timeout_s: float) -> bool:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port)
        self._connection.timeout = timeout_s
        try:
            if self._connection.sock is not None:
                self._connection.sock.settimeout(timeout_s)
            self._connection.request("POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"})
            answer = self._connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if isinstance(error, ConnectionRefusedError):
                self._stop.wait(0.01)
                time.sleep(0.005)  # it is between two lives, also while this client is being ended
            else:
                self.cut_off += not isinstance(error, TimeoutError)
            return False
        if answer.status != 200:
            self.cut_off += 1
            time.sleep(0.01)
        return bool(answer.status == 200)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
