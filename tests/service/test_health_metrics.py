"""Every metric moves when what it counts happens: one sidecar, real sockets, and a scrape before and after."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_service.config import load_config
from joulegram_service.sidecar import Sidecar
from simulators.otlp_server import SERVICES, OtlpServer
from simulators.traces import request, span, trace_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from joulegram_service.config import Config

FAMILIES = [family.name for family in Metrics().registry.collect()]
SAMPLE = re.compile(r"^(joulegram_\w+?)(_total|_count|_sum|_bucket|_created)?(\{[^}]*\})? (\S+)$", re.MULTILINE)


def config(tmp_path: Path, upstream: int, roots: list[Path]) -> Config:
    flags: dict[tuple[str, ...], Any] = {
        ("data_dir",): tmp_path / "data",
        ("agent", "source"): "model",
        ("receiver", "protocols", "grpc", "endpoint"): "127.0.0.1:0",
        ("receiver", "protocols", "http", "endpoint"): "127.0.0.1:0",
        ("telemetry", "metrics", "endpoint"): "127.0.0.1:0",
        ("upstream", "endpoint"): f"grpc://127.0.0.1:{upstream}",
        ("stac", "roots"): roots,
    }
    return load_config(None, flags, {})


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
    """Each family of Metrics differs from its start at some scrape, by what was done and no more."""
    moved: set[str] = set()
    answers: list[grpc.StatusCode | None] = [None, grpc.StatusCode.UNAVAILABLE]

    def look(found: dict[str, float]) -> dict[str, float]:
        moved.update(name for name, value in found.items() if value)
        return found

    async def first_life(port: int) -> None:
        async with Sidecar(config(tmp_path, port, [tmp_path])) as sidecar:
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
            answers.pop()  # the upstream is well again
            look(await until(sidecar, lambda found: found["joulegram_sink_forward_backlog_bytes"] == 0, "the upstream"))

    async def second_life(port: int) -> None:
        spool = max((tmp_path / "data" / "spool").glob("*.wal"))
        with spool.open("ab") as handle:
            handle.write(b"half a record")
        async with Sidecar(config(tmp_path, port, [tmp_path])) as sidecar:
            assert look(await scrape(sidecar))["joulegram_spool_healed_bytes"] == len(b"half a record")

    with OtlpServer(judge=lambda signal, body: answers[-1]) as upstream:
        asyncio.run(first_life(upstream.port))
        asyncio.run(second_life(upstream.port))
    assert moved == set(FAMILIES)
