"""A recorder's span and counters, and `etl_node`, on a real OpenTelemetry SDK and a real OTLP receiver."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from joulegram import EnergyRecorder, TelemetryConfig, etl_node, init_otel, otel
from joulegram_pipeline.errors import ConfigError
from simulators.decoded import attributes, resource_metrics, resource_spans, spans
from simulators.otlp_server import OtlpServer
from simulators.powercap import PowercapTree
from simulators.sidecar import PowerTrace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUN_ID = "etl-20260102T030405Z"
CONFIG = TelemetryConfig(RUN_ID, "nightly", 0.4, "EXAMPLE ONLY", "rack-7", "node")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable from outside; every handle of a test is closed after it."""
    for name in [*os.environ]:
        if name.startswith(("OTEL_", "KFM_", "JOULEGRAM_", "GITHUB_", "CI")):
            monkeypatch.delenv(name)
    yield
    for handle in [*otel._handles.values()]:
        handle.shutdown()


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpServer]:
    """A collector that the standard variable names."""
    with OtlpServer() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.port}")
        yield server


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, Any]:
    """A machine without agent and powercap."""
    return {"socket": tmp_path / "none.sock", "sysfs_root": tmp_path}


def metrics(sink: OtlpServer) -> dict[str, Any]:
    return {m.name: m for item in resource_metrics(sink) for scope in item.scope_metrics for m in scope.metrics}


def test_span_and_counters_of_a_measured_run(sink: OtlpServer, tmp_path: Path) -> None:
    """`etl.job` with S0-37 and S0-38, `hw.host.energy` in J with `hw.id` and `hw.name` (S0-09, S0-34), monotonic."""
    tree = PowercapTree(tmp_path / "sys")
    with PowerTrace(tree, seed=3):
        handle = init_otel("kfm-etl", run_id=RUN_ID)
        with EnergyRecorder(CONFIG, telemetry=handle, socket=tmp_path / "none.sock", sysfs_root=tree.root) as recorder:
            with handle.tracer.start_as_current_span("etl.node.inner"):
                pass
            with (tmp_path / "written").open("wb") as file:
                file.write(b"x" * 100_000)
                os.fsync(file.fileno())
        result = recorder.result
    assert handle.shutdown()
    named = {span.name: span for span in spans(sink)}
    root, found = named["etl.job"], attributes(named["etl.job"])

    assert named["etl.node.inner"].parent_span_id == root.span_id  # D-24
    assert (found["job.id"], found["job.type"]) == (RUN_ID, "nightly")
    for name in ("energy_joules", "energy_kwh", "co2_kg", "duration_seconds", "energy_method", "energy_scope"):
        assert found[f"telemetry.{name}"] == getattr(result, name), name
    assert found["telemetry.emission_factor_source"] == "EXAMPLE ONLY"
    assert "telemetry.bytes_sent" not in found
    length_s = (root.end_time_unix_nano - root.start_time_unix_nano) / 1e9
    assert length_s == pytest.approx(result.duration_seconds, abs=0.05), "the wait for the tick is not in the span"
    energy = metrics(sink)["hw.host.energy"]
    (point,) = energy.sum.data_points
    assert (energy.unit, energy.sum.is_monotonic, point.as_double) == ("J", True, result.energy_joules)
    assert attributes(point) == {"hw.id": "rack-7", "hw.name": "node"}
    disk = metrics(sink).get("process.disk.io")
    if result.disk_bytes_write is not None:
        assert disk is not None
        counts = {attributes(point)["disk.io.direction"]: point.as_int for point in disk.sum.data_points}
        assert (disk.unit, counts["write"]) == ("By", result.disk_bytes_write)  # S0-11, S0-12, S0-36
        assert {attributes(point)["process.pid"] for point in disk.sum.data_points} == {os.getpid()}
    assert "process.network.io" not in metrics(sink), "not known by process: absent (S0-10, S0-35, C-13)"


def test_what_is_not_known_is_not_sent(sink: OtlpServer, nowhere: dict[str, Any]) -> None:
    """No energy: no counter, no attribute, but the reason and the factor (S0-33, D-17, D-22)."""
    handle = init_otel("kfm-etl", run_id=RUN_ID)
    with EnergyRecorder(CONFIG, telemetry=handle, **nowhere):
        pass
    assert handle.shutdown()
    found = attributes(spans(sink)[0])
    assert not {"telemetry.energy_joules", "telemetry.energy_kwh", "telemetry.co2_kg"} & found.keys()
    assert found["telemetry.emission_factor_kg_per_kwh"] == 0.4
    assert found["telemetry.energy_method"] == "unavailable"
    assert found["telemetry.energy_reason"].startswith("no_powercap")
    assert "hw.host.energy" not in metrics(sink)


@pytest.mark.parametrize("kind", ["with", "async with"])
def test_an_exception_is_an_error_on_the_span(sink: OtlpServer, nowhere: dict[str, Any], kind: str) -> None:
    """Status ERROR and the exception as an event, and the job gets its exception (D-23)."""
    handle = init_otel("kfm-etl", run_id=RUN_ID)
    recorder = EnergyRecorder(CONFIG, telemetry=handle, **nowhere)

    def failing() -> None:
        with recorder:
            raise ValueError("mine")

    async def failing_async() -> None:
        async with recorder:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        failing() if kind == "with" else asyncio.run(failing_async())
    assert handle.shutdown()
    (span,) = spans(sink)
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span.events[0])["exception.type"] == "ValueError"


def test_finalize_twice_sends_once(sink: OtlpServer, nowhere: dict[str, Any]) -> None:
    """One span however often it is asked for (D-28); the run is the telemetry's."""
    handle = init_otel("kfm-etl", run_id=RUN_ID)
    recorder = EnergyRecorder(telemetry=handle, **nowhere)
    with recorder:
        recorder.finalize()
    recorder.finalize()
    assert handle.shutdown()
    assert [attributes(span)["job.id"] for span in spans(sink)] == [RUN_ID]


# -- init_otel and etl_node --------------------------------------------------------------------------------------------


def test_spans_of_init_otel_say_their_cpu_time_and_process(sink: OtlpServer) -> None:
    """`joulegram.cpu_ns` on spans and `process.pid` on the resource, by default; without it where it is not wanted."""
    first, second = init_otel("kfm-etl", run_id=RUN_ID), init_otel("kfm-etl", run_id=RUN_ID, cpu_time=False)
    assert first is not second
    for handle in (first, second):
        with handle.tracer.start_as_current_span("etl.job"):
            sum(range(1000))
        assert handle.shutdown()
    with_time, without = spans(sink)
    assert attributes(with_time)["joulegram.cpu_ns"] > 0
    assert "joulegram.cpu_ns" not in attributes(without)
    assert {attributes(item.resource)["process.pid"] for item in resource_spans(sink)} == {os.getpid()}


def test_a_node_has_the_name_and_attributes_of_the_contract(sink: OtlpServer) -> None:
    """`etl.node.<node>` with S1-21, S1-22 and S1-25's; `timing.duration_s` of S1-23; energy comes later (S1-24)."""
    handle = init_otel("kfm.etl.hrrr_ingest", run_id=RUN_ID)
    with etl_node("hrrr_ingest", handle, domain="atmo", attributes={"records_in": 3}) as span:
        span.set_attribute("records_out", 2)
    assert handle.shutdown()
    (sent,) = spans(sink)
    found = attributes(sent)
    assert sent.name == "etl.node.hrrr_ingest"
    assert found.pop("timing.duration_s") > 0
    assert found.pop("joulegram.cpu_ns") > 0
    assert found == {
        "kfm.run_id": RUN_ID,
        "kfm.node": "hrrr_ingest",
        "kfm.component": "etl",
        "kfm.domain": "atmo",
        "kfm.pipeline_kind": "nightly",
        "records_in": 3,
        "records_out": 2,
    }


def test_a_node_as_decorator(sink: OtlpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync and async; the run is asked for at the call and not at the import; its service is `kfm.etl.<node>`."""

    @etl_node("load", domain="atmo")
    def load(number: int) -> int:
        return number + 1

    @etl_node("fetch")
    async def fetch() -> str:
        await asyncio.sleep(0)
        return "got"

    assert not otel._handles
    monkeypatch.setenv("KFM_RUN_ID", RUN_ID)
    assert (load(1), load(2), asyncio.run(fetch())) == (2, 3, "got")
    for handle in [*otel._handles.values()]:
        assert handle.shutdown()
    assert sorted(span.name for span in spans(sink)) == ["etl.node.fetch", "etl.node.load", "etl.node.load"]
    services = {attributes(item.resource)["service.name"] for item in resource_spans(sink)}
    assert services == {"kfm.etl.load", "kfm.etl.fetch"}
    assert {attributes(span)["kfm.run_id"] for span in spans(sink)} == {RUN_ID}


def test_a_node_that_fails_says_so(sink: OtlpServer) -> None:
    """ERROR on the span, the exception goes on, the attributes are there all the same (D-23)."""
    handle = init_otel("kfm-etl", run_id=RUN_ID)
    with pytest.raises(KeyError), etl_node("bad", handle):
        raise KeyError("mine")
    assert handle.shutdown()
    (span,) = spans(sink)
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span)["kfm.node"] == "bad"


def test_a_node_needs_a_name_and_is_entered_once() -> None:
    """Quoted where it has none; a second `with` on the same object is refused."""
    with pytest.raises(ConfigError, match="node: got ' x'"):
        etl_node(" x")
    node = etl_node("x", init_otel("kfm-etl", run_id=RUN_ID))
    with node, pytest.raises(RuntimeError, match="expected a new etl_node"), node:
        pass
