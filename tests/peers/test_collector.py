"""The Collector before and behind the sidecar, with the defaults people run it with."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import yaml
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from peers.collector import Collector, collector_config
from peers.through import assert_joined_only, endpoint, sidecar
from simulators.certificates import Authority
from simulators.decoded import attributes, spans
from simulators.otlp_server import SERVICES, OtlpServer
from simulators.ports import free_ports
from simulators.sidecar import Serve
from simulators.traces import request, span, trace_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]  # the first test builds what all use

MIB = 1024 * 1024


def etl_requests(count: int, steps: int, padding: int = 0, first: int = 0) -> list[bytes]:
    """Requests of one trace each: an `etl.job`, `steps` children that are selected and as many that are not.

    Args:
        count: requests.
        steps: selected children of each.
        padding: bytes of an attribute that each child has.
        first: the number of the first.
    """
    now = time.time_ns()
    pad = {"peer.pad": "x" * padding}
    made = []
    for number in range(first, first + count):
        of: dict[str, Any] = {"trace": trace_id(number + 1), "parent": 1}
        numbers = range(2, 2 + 2 * steps)
        children = [
            span(
                n, now - 10**7, now - n, name="etl.step" if n % 2 else "GET /", attributes=pad | {"peer.index": n}, **of
            )
            for n in numbers
        ]
        job = span(1, now - 10**7, now, name="etl.job", trace=trace_id(number + 1))
        made.append(request(job, *children))
    return made


def send(target: str, requests: list[bytes], signal: str = "traces") -> None:
    """Export each over gRPC; RpcError if one is not taken."""
    with grpc.insecure_channel(target, options=[("grpc.max_send_message_length", -1)]) as channel:
        export: Any = channel.unary_unary(f"/{SERVICES[signal]}/Export")  # type: ignore[call-arg]
        for body in requests:
            export(body, timeout=20, wait_for_ready=True)


def at_least(count: int) -> Callable[[OtlpServer], bool]:
    """Whether a sink has so many spans, for its `wait_for`."""
    return lambda sink: len(spans(sink)) >= count


def assert_arrived(sink: OtlpServer, count: int, steps: int) -> None:
    """Every span of `etl_requests` once, as it was sent, and joined if it is selected."""
    taken = spans(sink)
    assert Counter(taken_span.name for taken_span in taken) == {
        "etl.job": count,
        "etl.step": count * steps,
        "GET /": count * steps,
    }
    assert len({(item.trace_id, item.span_id) for item in taken}) == len(taken)
    assert all(
        attributes(item)["peer.index"] == int.from_bytes(item.span_id, "big")
        for item in taken
        if item.name != "etl.job"
    )
    assert_joined_only(sink, lambda item: item.name.startswith("etl."))


@pytest.mark.parametrize(
    ("exporter", "options"),
    [
        ("otlp_grpc", {}),
        ("otlp_grpc", {"compression": "none"}),
        ("otlp_grpc", {"sending_queue": {"batch": {}}}),
        ("otlp_http", {}),
        ("otlp_http", {"compression": "none"}),
        ("otlp_http", {"compression": "zstd"}),
        ("otlp_http", {"encoding": "json"}),
    ],
    ids=["grpc-gzip", "grpc-none", "grpc-batched", "http-gzip", "http-none", "http-zstd", "http-json-gzip"],
)
def test_a_collector_sends_through_joulegram(
    exporter: str, options: dict[str, Any], otelcol: Path, tmp_path: Path
) -> None:
    """A Collector upstream of us, in each way it can be told to send, loses nothing (A1, H2, H3, H9)."""
    (port,) = free_ports(1)
    count, steps = 20, 25
    with OtlpServer() as sink, sidecar(tmp_path, sink.port) as serve:
        url = endpoint(serve.wait_ready(), "grpc" if exporter == "otlp_grpc" else "http")
        to_us = {"endpoint": serve.target if exporter == "otlp_grpc" else url, "tls": {"insecure": True}}
        config = collector_config({"grpc": {"endpoint": f"127.0.0.1:{port}"}}, exporter, to_us | options)
        with Collector(otelcol, tmp_path, config) as collector:
            send(f"127.0.0.1:{port}", etl_requests(count, steps))
            sink.wait_for(lambda sink: len(spans(sink)) >= count * (1 + 2 * steps))
            assert collector.stop() == 0, collector.said
        assert serve.stop() == 0, serve.said

        assert "error" not in collector.said, collector.said
        assert_arrived(sink, count, steps)


def behind(
    otelcol: Path,
    tmp_path: Path,
    sink: OtlpServer,
    listens: dict[str, Any],
    name: str = "otelcol",
    protocol: str = "grpc",
) -> Collector:
    """A Collector that forwards what it gets to the sink."""
    to_sink = {"endpoint": f"127.0.0.1:{sink.port}", "tls": {"insecure": True}, "compression": "none"}
    return Collector(otelcol, tmp_path, collector_config({protocol: listens}, "otlp_grpc", to_sink), name)


def other_signals() -> dict[str, Any]:
    """A request of metrics and one of logs, with an attribute and text that no encoding may change."""
    metrics, logs = ExportMetricsServiceRequest(), ExportLogsServiceRequest()
    metric_part, log_part = metrics.resource_metrics.add(), logs.resource_logs.add()
    metric_scope, log_scope = metric_part.scope_metrics.add(), log_part.scope_logs.add()
    for empty in (metric_part.resource, metric_scope.scope, log_part.resource, log_scope.scope):
        empty.SetInParent()  # as a Collector would
    metric = metric_scope.metrics.add(name="queue.depth", unit="1")
    point = metric.gauge.data_points.add(time_unix_nano=time.time_ns(), as_double=1.5)
    point.attributes.add(key="peer.text").value.string_value = "na\u00efve"
    record = log_scope.log_records.add(time_unix_nano=time.time_ns(), severity_number=9)
    record.body.string_value = "na\u00efve"
    record.attributes.add(key="peer.index").value.int_value = 2**53 + 1
    return {"metrics": metrics, "logs": logs}


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_collector_takes_every_signal_from_joulegram(
    otelcol: Path, tmp_path: Path, protocol: str, compression: str
) -> None:
    """Traces, metrics and logs over each of its receivers, in each compression that both have: all as it was sent."""
    (port,) = free_ports(1)
    count, steps = 4, 5
    hop = {"endpoint": f"{protocol}://127.0.0.1:{port}", "compression": compression}
    config = tmp_path / "joulegram.yaml"
    config.write_text(yaml.safe_dump({"upstream": {"destinations": {"collector": hop}}}))
    flags = f"--config={config}", "--region=SPP_KS", "--source=model"
    listens = {"endpoint": f"127.0.0.1:{port}"}
    others = other_signals()
    with (
        OtlpServer() as sink,
        behind(otelcol, tmp_path, sink, listens, protocol=protocol) as collector,
        Serve(tmp_path, *flags) as serve,
    ):
        target = serve.wait_ready().target
        send(target, etl_requests(count, steps))
        for signal, message in others.items():
            send(target, [message.SerializeToString()], signal)
        sink.wait_for(at_least(count * (1 + 2 * steps)))
        sink.wait_for(lambda sink: {signal for signal, _ in sink.taken} == {"traces", *others})
        assert serve.stop() == 0, serve.said

        assert_arrived(sink, count, steps)
        for signal, message in others.items():
            assert [type(message).FromString(body) for kind, body in sink.taken if kind == signal] == [message]
        assert "WARNING" not in serve.said, "nothing was sent again without its compression"
        assert "error" not in collector.said, collector.said


@pytest.mark.parametrize(("compression", "mutual"), [("none", False), ("gzip", True)])
def test_a_collector_that_asks_who_we_are(otelcol: Path, tmp_path: Path, compression: str, *, mutual: bool) -> None:
    """grpc-go behind us with TLS 1.3 or mTLS, and with requests that are several frames and windows large."""
    (port,) = free_ports(1)
    count, steps = 8, 100
    authority = Authority()
    ca = authority.write(tmp_path / "ca.pem")
    theirs, ours = (authority.issue().write(tmp_path, name) for name in ("collector", "joulegram"))
    tls = {"cert_file": str(theirs[0]), "key_file": str(theirs[1]), "min_version": "1.3"}
    said: dict[str, Any] = {"ca_file": str(ca), "min_version": "1.3"}
    if mutual:
        tls["client_ca_file"] = str(ca)
        said |= {"cert_file": str(ours[0]), "key_file": str(ours[1])}
    hop = {"endpoint": f"grpcs://localhost:{port}", "tls": said, "compression": compression}
    config = tmp_path / "joulegram.yaml"
    config.write_text(yaml.safe_dump({"upstream": {"destinations": {"collector": hop}}}))
    flags = f"--config={config}", "--region=SPP_KS", "--source=model"
    listens = {"endpoint": f"127.0.0.1:{port}", "tls": tls}
    with OtlpServer() as sink, behind(otelcol, tmp_path, sink, listens), Serve(tmp_path, *flags) as serve:
        send(serve.wait_ready().target, etl_requests(count, steps, padding=5000))
        sink.wait_for(lambda sink: len(spans(sink)) >= count * (1 + 2 * steps))
        assert serve.stop() == 0, serve.said

        assert_arrived(sink, count, steps)
        assert "WARNING" not in serve.said


def test_a_collector_that_ends_connections(otelcol: Path, tmp_path: Path) -> None:
    """MAX_CONNECTION_AGE of 0.2 s, and a restart between sends: all arrives, and no send is counted as failed."""
    (port,) = free_ports(1)
    steps, rounds = 3, 5
    age = {"max_connection_age": "200ms", "max_connection_age_grace": "10s"}
    listens = {"endpoint": f"127.0.0.1:{port}", "keepalive": {"server_parameters": age}}
    with OtlpServer() as sink, sidecar(tmp_path, port) as serve:
        target = serve.wait_ready().target
        done = 0
        for name in ("first", "second"):
            with behind(otelcol, tmp_path, sink, listens, name):
                for _ in range(rounds):
                    send(target, etl_requests(1, steps, first=done))  # of now: those before have all of theirs
                    done += 1
                    sink.wait_for(at_least(done * (1 + 2 * steps)))
        page = serve.get("/metrics")[1]
        assert serve.stop() == 0, serve.said

        assert_arrived(sink, 2 * rounds, steps)
        assert 'joulegram_sink_forward_failures_total{destination="upstream",kind="retry"}' not in page


def test_batches_over_the_limit_of_a_collector_are_split(otelcol: Path, tmp_path: Path) -> None:
    """A Collector that takes 1 MiB gets in parts what was batched to more; nothing is set aside."""
    (port,) = free_ports(1)
    count, steps = 30, 50
    limited = {"endpoint": f"127.0.0.1:{port}", "max_recv_msg_size_mib": 1}
    with OtlpServer() as sink, behind(otelcol, tmp_path, sink, limited), sidecar(tmp_path, port) as serve:
        send(serve.wait_ready().target, etl_requests(count, steps, padding=2000))
        sink.wait_for(lambda sink: len(spans(sink)) >= count * (1 + 2 * steps))
        assert serve.stop() == 0, serve.said

        assert_arrived(sink, count, steps)
        assert list((serve.data / "deadletter").glob("*")) == []


def test_one_request_over_the_limit_of_a_collector_is_split(otelcol: Path, tmp_path: Path) -> None:
    """6 MiB that we acknowledged reach a Collector that takes 4 MiB, its default."""
    (port,) = free_ports(1)
    steps = 1000
    with (
        OtlpServer() as sink,
        behind(otelcol, tmp_path, sink, {"endpoint": f"127.0.0.1:{port}"}),
        sidecar(tmp_path, port) as serve,
    ):
        target = serve.wait_ready().target
        (body,) = etl_requests(1, steps, padding=3000)  # now: before its start nothing was measured
        assert len(body) > 5 * MIB
        send(target, [body])
        sink.wait_for(lambda sink: len(spans(sink)) >= 1 + 2 * steps)
        assert serve.stop() == 0, serve.said

        assert_arrived(sink, 1, steps)


def test_a_collector_that_comes_late_gets_everything(otelcol: Path, tmp_path: Path) -> None:
    """What was acknowledged while the Collector was down is there when it is up (A10)."""
    (port,) = free_ports(1)
    count, steps = 20, 10
    with OtlpServer() as sink, sidecar(tmp_path, port) as serve:
        send(serve.wait_ready().target, etl_requests(count, steps))
        with behind(otelcol, tmp_path, sink, {"endpoint": f"127.0.0.1:{port}"}):
            sink.wait_for(lambda sink: len(spans(sink)) >= count * (1 + 2 * steps))
            assert serve.stop() == 0, serve.said

        assert_arrived(sink, count, steps)
