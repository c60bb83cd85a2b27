"""More than it can take: refusals that say when to come again, memory under its cap, nothing taken is lost."""

from __future__ import annotations

import http.client
import os
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, cast

import grpc
import pytest
import yaml
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from crash.clients import EXPORT
from crash.nursery import Fledgling, Nursery
from crash.test_outage import Nothing
from simulators.otlp_server import OtlpServer
from simulators.ports import free_port
from simulators.sidecar import ledger_lines, wait_until

MIB = 1024 * 1024
CLIENTS = 24
REQUESTS = 400
"""Of a MiB each: twice what spool, outbox and queues of this sidecar hold together."""

CONFIG: dict[str, Any] = {
    "receiver": {"limits": {"in_flight": "16MiB", "queue": "8MiB"}},
    "spool": {"max_bytes": "128MiB", "min_free_bytes": "0B"},
    "shutdown": {"drain_timeout": "30s"},
}
QUEUE = "32MiB"
CAP_MIB = 320
"""More than when it was idle: 16 MiB in flight, twice with gRPC's copies, and 24 MiB that gRPC has read of what is
refused; 8 MiB waiting for the disk; 32 MiB just written; 8 MiB being worked on, twice; 64 MiB of outbox; 48 MiB
being sent; half as much for the allocator. All that was sent is 400 MiB, and more is refused than taken."""

NUMBER = re.compile(rb"<(\d{8})>")


def ballast() -> bytes:
    """A MiB of spans that nobody selects."""
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    for number in range(MIB // 600):
        span = scope.spans.add(trace_id=bytes(15) + b"\2", span_id=number.to_bytes(8, "big"), name="SELECT")
        span.attributes.add(key="db.statement").value.string_value = "x" * 530
    return bytes(message.SerializeToString())


def marked(number: int) -> bytes:
    """One selected span that says which request this is."""
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    now = time.time_ns()
    scope.spans.add(
        trace_id=os.urandom(16),
        span_id=os.urandom(8),
        name=f"etl.job <{number:08d}>",
        start_time_unix_nano=now - 1000,
        end_time_unix_nano=now,
    )
    return bytes(message.SerializeToString())


class Flood:
    """Clients that send without mercy and check every refusal.

    Args:
        grpc_port: of the sidecar.
        http_port: of the sidecar.
    """

    def __init__(self, grpc_port: int, http_port: int) -> None:
        options = [("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}", options=options)
        self._call: Any = self._channel.unary_unary(EXPORT, None, None)
        self._http_port = http_port
        self._ballast = ballast()
        self._next = iter(range(REQUESTS))
        self._lock = threading.Lock()
        self._ended = False
        self.accepted: list[int] = []
        self.refused: Counter[str] = Counter()
        """By the words of the refusal, without its numbers."""

    def run(self, client: int) -> None:
        """One client, until every request was accepted; every third speaks HTTP."""
        send = self._over_http if client % 3 == 0 else self._over_grpc
        while True:
            with self._lock:
                number = next(self._next, None)
            if number is None:
                return
            body = marked(number) + self._ballast
            while (reason := send(body)) is not None:
                assert not self._ended, "a test that failed"
                with self._lock:
                    self.refused[re.sub(r"\d+", "N", reason)[:60]] += 1
                # Sooner than it was told: that is what makes it a flood.
                time.sleep(0.05)
            with self._lock:
                self.accepted.append(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._channel.close()

    def _over_grpc(self, body: bytes) -> str | None:
        try:
            self._call(body, timeout=60)
        except grpc.RpcError as error:
            status = rpc_status.from_call(cast("grpc.Call", error))
            assert status is not None, "a refusal says when to come again"
            assert status.code == grpc.StatusCode.UNAVAILABLE.value[0], status
            self._check(status)
            return str(status.message)
        return None

    def _over_http(self, body: bytes) -> str | None:
        connection = http.client.HTTPConnection("127.0.0.1", self._http_port, timeout=60)
        try:
            connection.request("POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"})
            answer = connection.getresponse()
            said = answer.read()
        except (BrokenPipeError, ConnectionResetError):
            return "closed while the body came"  # refused by its length, before the body
        finally:
            connection.close()
        if answer.status == 200:
            return None
        assert answer.status == 503, said
        assert 1 <= int(answer.headers["Retry-After"]) <= 30
        status = status_pb2.Status.FromString(said)
        self._check(status)
        return str(status.message)

    @staticmethod
    def _check(status: Any) -> None:
        delay = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(delay) for detail in status.details), status
        assert 1 <= delay.retry_delay.seconds <= 30


def memory_mib(pid: int, name: str) -> float:
    """A line of /proc/PID/status."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.timeout(180)
def test_overload_is_refused_and_remembered_by_nobody(tmp_path: Path) -> None:
    """All that 24 clients can send while the upstream is away: retryable refusals, bounded memory, all delivered.

    What a throughput would be is not for a test; benchmarks/overload.py measures it.
    """
    port = free_port()
    file = tmp_path / "joulegram.yaml"
    queue = {"sending_queue": {"queue_size": QUEUE}, "retry_on_failure": {"max_interval": "200ms"}}
    upstream = {"destinations": {"upstream": {"endpoint": f"grpc://127.0.0.1:{port}", **queue}}}
    file.write_text(yaml.safe_dump({**CONFIG, "upstream": upstream}))
    seen: Counter[int] = Counter()
    server = OtlpServer(port, judge=lambda _, body: seen.update(map(int, NUMBER.findall(body))))
    server.taken = Nothing()
    http_port = free_port()
    flags = (f"--config={file}", "--source=model", f"--http-endpoint=127.0.0.1:{http_port}")
    with Nursery(tmp_path, {}) as nursery, Fledgling(nursery, tmp_path, *flags) as serve:
        grpc_port = int(serve.wait_ready().target.rpartition(":")[2])
        assert serve.process is not None
        pid = serve.process.pid
        idle_mib = memory_mib(pid, "VmRSS")
        flood = Flood(grpc_port, http_port)
        with ThreadPoolExecutor(CLIENTS) as pool, flood:
            clients = [pool.submit(flood.run, number) for number in range(CLIENTS)]

            def is_full() -> bool:
                assert not any(each.done() for each in clients), "none is done before the upstream is back"
                status, said = serve.get("/readyz")
                return status == 503 and "spool: it holds" in said

            wait_until(is_full, "it is full, and says so", 60, serve.log)
            wait_until(lambda: any("it holds" in words for words in list(flood.refused)), "a client was told", 30)
            assert serve.get("/healthz")[0] == 200
            with server:
                for client in clients:
                    client.result(60)
                peak_mib = memory_mib(pid, "VmHWM")
                wait_until(lambda: len(seen) == REQUESTS, "everything was delivered", 60, serve.log)
                assert serve.stop(timeout_s=60) == 0

    assert sorted(flood.accepted) == list(range(REQUESTS))
    names = Counter(line["name"] for line in ledger_lines(serve.data, "span"))
    assert names == {f"etl.job <{number:08d}>": 1 for number in range(REQUESTS)}
    assert peak_mib - idle_mib < CAP_MIB, (idle_mib, peak_mib)
    print(f"refused {flood.refused}, idle {idle_mib:.0f} MiB, peak {peak_mib:.0f} MiB")  # noqa: T201 - with pytest -s
