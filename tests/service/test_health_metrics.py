"""Every metric moves when what it counts happens: one sidecar, real sockets, and a scrape before and after."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_receiver.spool import Spool
from joulegram_service.config_file import load_config
from joulegram_service.sidecar import Sidecar
from simulators.certificates import Authority
from simulators.otlp_server import SERVICES, OtlpServer
from simulators.traces import request, span, trace_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from joulegram_service.config import Config

FAMILIES = [family.name for family in Metrics().registry.collect()]
SAMPLE = re.compile(r"^(joulegram_\w+?)(_total|_count|_sum|_bucket|_created)?(\{[^}]*\})? (\S+)$", re.MULTILINE)


ELSEWHERE = {
    "joulegram_spool_damaged_records",
    "joulegram_spool_dropped_records",
    "joulegram_spool_queue_bytes",
    "joulegram_receiver_in_flight_bytes",
}
"""Moved by a test of their own below, or, what was dropped, in tests/receiver/test_spool_room.py."""


def config(tmp_path: Path, upstream: int, roots: list[Path], **more: Any) -> Config:
    flags: dict[tuple[str, ...], Any] = {
        ("data_dir",): tmp_path / "data",
        ("agent", "source"): "model",
        ("receiver", "protocols", "grpc", "endpoint"): "127.0.0.1:0",
        ("receiver", "protocols", "http", "endpoint"): "127.0.0.1:0",
        ("telemetry", "metrics", "endpoint"): "127.0.0.1:0",
        ("upstream", "endpoint"): f"grpc://127.0.0.1:{upstream}",
        ("stac", "roots"): roots,
    }
    return load_config(None, flags | {("receiver", "protocols", name): value for name, value in more.items()}, {})


async def scrape(sidecar: Sidecar) -> dict[str, float]:
    """The sum of each family's samples, as /metrics has them; of a histogram the count."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.health.port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: joulegram\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    found = dict.fromkeys(FAMILIES, 0.0)  # one with labels has no sample until it moves
    for name, suffix, _, value in SAMPLE.findall(text):
        if suffix in {"", "_total", "_count"}:
            found[name] += float(value)
    return found


async def send(port: int, signal: str, body: bytes) -> grpc.StatusCode:
    """One Export call; the status it ends with."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            await channel.unary_unary(f"/{SERVICES[signal]}/Export", None, None)(body, timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def until(sidecar: Sidecar, holds: Callable[[dict[str, float]], bool], what: str) -> dict[str, float]:
    """Scrape until it holds."""
    deadline = time.monotonic() + 30
    while not holds(found := await scrape(sidecar)):
        assert time.monotonic() < deadline, f"{what} did not come: {found}"
        await asyncio.sleep(0.02)
    return found


@pytest.mark.timeout(90)
def test_every_metric_moves_when_what_it_counts_happens(tmp_path: Path) -> None:
    """Each family of Metrics differs from the first scrape at a later one, by what was done and no more."""
    moved: set[str] = set()
    before: dict[str, float] = {}
    partial = ExportTraceServiceResponse()
    partial.partial_success.rejected_spans = 1
    answers: list[grpc.StatusCode | bytes] = [partial.SerializeToString(), grpc.StatusCode.UNAVAILABLE]

    def look(found: dict[str, float]) -> dict[str, float]:
        moved.update(name for name, value in found.items() if value != before[name])
        return found

    async def first_life(port: int) -> None:
        async with Sidecar(config(tmp_path, port, [tmp_path])) as sidecar:
            before.update(await scrape(sidecar))
            otlp = sidecar.grpc_port
            now_ns = time.time_ns()
            good = span(1, now_ns - 10**8, now_ns, name="etl.job", attributes={"kfm.run_id": "etl-run-0001"})
            assert await send(otlp, "traces", request(good)) is grpc.StatusCode.OK
            look(await until(sidecar, lambda found: found["joulegram_processor_pending_spans"] == 1, "a waiting span"))
            assert await send(otlp, "traces", request(good)) is grpc.StatusCode.OK  # a client's retry
            broken = span(2, now_ns, now_ns - 1, trace=trace_id(2))
            assert await send(otlp, "traces", request(broken)) is grpc.StatusCode.OK
            assert await send(otlp, "traces", b"\xff\xff") is grpc.StatusCode.INVALID_ARGUMENT
            item = {"kfm.run_id": "etl-run-0002", "kfm.stac_item": str(tmp_path / "no-item.json")}
            failing = span(3, now_ns - 10**8, now_ns, name="etl.job", trace=trace_id(3), attributes=item)
            assert await send(otlp, "traces", request(failing)) is grpc.StatusCode.OK
            await sidecar.spool.append(RecordKind.TICKS, b"no batch")
            found = look(
                await until(
                    sidecar,
                    lambda found: (
                        found["joulegram_sink_run_document_failures"] == 1
                        and found["joulegram_sink_run_documents"] == 4
                        and found["joulegram_sink_forward_failures"] > 0
                    ),
                    "two runs and a refusal",
                )
            )
            assert found["joulegram_receiver_accepted_spans"] == 4
            assert found["joulegram_receiver_accepted_requests"] == 4
            assert found["joulegram_receiver_refused_requests"] == 1
            assert found["joulegram_receiver_invalid_spans"] == 1
            assert found["joulegram_processor_joined_spans"] == 2
            assert found["joulegram_processor_duplicate_spans"] == 1
            assert found["joulegram_processor_energy_gaps"] >= 1
            assert found["joulegram_sink_forward_backlog_bytes"] > 0
            assert found["joulegram_sink_forward_oldest_age_seconds"] > 0
            answers.pop()  # the upstream is well again, but for a span that it does not like
            found = look(
                await until(sidecar, lambda found: found["joulegram_sink_forward_backlog_bytes"] == 0, "the upstream")
            )
            assert found["joulegram_sink_forward_oldest_age_seconds"] == 0
            assert found["joulegram_sink_forward_rejected_items"] >= 1

    async def second_life(port: int) -> None:
        spool = max((tmp_path / "data" / "spool").glob("*.wal"))
        with spool.open("ab") as handle:
            handle.write(b"half a record")
        cert, key = Authority().issue("localhost").write(tmp_path)
        tls = {"cert_file": cert, "key_file": key, "reload_interval": "1ms"}
        listeners = {"grpc": {"endpoint": "0.0.0.0:0"}, "http": {"endpoint": "0.0.0.0:0", "tls": tls}}
        async with Sidecar(config(tmp_path, port, [tmp_path], **listeners)) as sidecar:
            found = look(await scrape(sidecar))
            assert found["joulegram_spool_healed_bytes"] == len(b"half a record")
            assert found["joulegram_receiver_plaintext_listeners"] == 1
            assert found["joulegram_receiver_certificate_days_left"] > 0
            cert.write_bytes(b"half a certificate")
            look(await until(sidecar, lambda found: found["joulegram_receiver_reload_failures"] == 1, "a bad file"))

    with OtlpServer(judge=lambda signal, body: answers[-1]) as upstream:
        asyncio.run(first_life(upstream.port))
        asyncio.run(second_life(upstream.port))
    assert set(FAMILIES) - moved == ELSEWHERE


def value(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(f"joulegram_{name}")


def test_what_waits_for_the_disk_is_measured(tmp_path: Path) -> None:
    """The bytes of requests that were not acknowledged yet."""
    metrics, held = Metrics(), threading.Event()

    def sync(fd: int) -> None:
        assert held.wait(20)

    async def main() -> None:
        log = WriteAheadLog(tmp_path, sync=sync)
        async with Spool(tmp_path, metrics, log=log) as spool:
            waiting = asyncio.ensure_future(spool.append(RecordKind.LOGS, bytes(1000)))
            await asyncio.sleep(0)
            assert value(metrics, "spool_queue_bytes") == 1000
            held.set()
            await waiting
        assert value(metrics, "spool_queue_bytes") == 0

    asyncio.run(main())


def test_what_is_handled_is_measured(tmp_path: Path) -> None:
    """The bytes of requests that are let in and not answered."""

    async def main() -> None:
        async with Sidecar(config(tmp_path, 1, [tmp_path])) as sidecar:
            with sidecar.receivers.admission.enter(1234):
                assert (await scrape(sidecar))["joulegram_receiver_in_flight_bytes"] == 1234
            assert (await scrape(sidecar))["joulegram_receiver_in_flight_bytes"] == 0

    asyncio.run(main())


def test_a_damaged_record_is_counted(tmp_path: Path) -> None:
    """One of three, while the others are read."""
    metrics = Metrics()

    async def write() -> None:
        async with Spool(tmp_path, metrics) as spool:
            for letter in (b"a", b"b", b"c"):
                await spool.append(RecordKind.LOGS, letter * 50)

    async def read() -> list[bytes]:
        found, lsn = [], 0
        async with Spool(tmp_path, metrics) as spool:
            while records := spool.read(lsn, 10_000):
                found += [bytes(record.payload[:1]) for record in records]
                lsn = records[-1].next_lsn
        return found

    asyncio.run(write())
    (segment,) = tmp_path.glob("*.wal")
    segment.write_bytes(segment.read_bytes().replace(b"b" * 50, b"b" * 49 + b"B"))
    assert asyncio.run(read()) == [b"a", b"c"]
    assert value(metrics, "spool_damaged_records_total") == 1
