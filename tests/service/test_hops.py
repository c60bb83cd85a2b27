"""The next hops of a configuration, and what needs one."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from joulegram_pipeline.errors import ConfigError
from joulegram_service.config_file import load_config
from joulegram_service.hops import build_hops
from joulegram_service.sidecar import Sidecar
from simulators.otlp_server import OtlpServer

if TYPE_CHECKING:
    from pathlib import Path

INTERVAL = ("telemetry", "metrics", "otlp_interval")


def test_metrics_over_otlp_need_a_place_to_go() -> None:
    """An interval without an upstream is a mistake, and is told as one."""
    with pytest.raises(ConfigError, match=r"telemetry\.metrics\.otlp_interval: got '30s', expected upstream\.endpoint"):
        build_hops(load_config(None, {INTERVAL: "30s"}, {}))
    config = load_config(None, {INTERVAL: "30s", ("upstream", "endpoint"): "grpc://c:1"}, {})
    assert [hop.name for hop in build_hops(config)] == ["upstream"]


def test_two_hops_get_all_and_our_own_metrics(tmp_path: Path) -> None:
    """Each destination of the configuration takes the same; joulegram's own metrics come with it, as OTLP."""

    def names(server: OtlpServer) -> set[str]:
        found = set()
        for signal, body in server.taken:
            if signal == "metrics":
                for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    found |= {metric.name for scope in group.scope_metrics for metric in scope.metrics}
        return found

    async def main(first: OtlpServer, second: OtlpServer) -> None:
        flags: dict[tuple[str, ...], Any] = {
            ("data_dir",): tmp_path / "data",
            ("agent", "source"): "none",
            ("receiver", "protocols", "grpc", "endpoint"): "127.0.0.1:0",
            ("receiver", "protocols", "http", "endpoint"): "127.0.0.1:0",
            ("telemetry", "metrics", "endpoint"): "127.0.0.1:0",
            ("upstream", "destinations"): {
                "one": {"endpoint": f"grpc://127.0.0.1:{first.port}"},
                "two": {"endpoint": f"grpc://127.0.0.1:{second.port}"},
            },
            INTERVAL: "50ms",
        }
        async with Sidecar(load_config(None, flags, {})) as sidecar:
            until = time.monotonic() + 20
            while not all("joulegram_spool_bytes" in names(server) for server in (first, second)):
                assert time.monotonic() < until, "no metrics came"
                await asyncio.sleep(0.02)
            shown = {stage.name: stage.holds for stage in sidecar._stages()}
            assert shown["upstream one"]["endpoint"] == f"grpc://127.0.0.1:{first.port}"
            assert "upstream two" in shown

    with OtlpServer() as first, OtlpServer() as second:
        asyncio.run(main(first, second))
