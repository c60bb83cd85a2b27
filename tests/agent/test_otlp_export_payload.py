"""What the agent sends of itself: read back by protobuf's own JSON, and held to the semantic conventions."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from joulegram_agent.otlp_export_payload import HW_TYPES, EnergySeries
from joulegram_agent.reader import Reading
from joulegram_agent.sampler import Sampler
from joulegram_pipeline.energy import KINDS, Domain, DomainKind, Gap, Method
from joulegram_pipeline.host_energy import host_energy_samples
from joulegram_pipeline.units import j_to_uj
from joulegram_processor.foreign import ForeignEnergy
from simulators.agent_node import J, S, make_node
from simulators.procfs import FakeProc, ManualClock


def parsed(made: tuple[bytes, int] | None) -> Any:
    """A request as protobuf reads its JSON, which refuses a key it does not know."""
    assert made is not None
    return json_format.Parse(made[0], ExportMetricsServiceRequest())


def metrics_of(request: Any) -> dict[str, Any]:
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: metric for metric in scope.metrics}


def attributes(item: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in item.attributes}


def test_a_request_is_what_the_conventions_say(tmp_path: Path) -> None:
    """otlp.md 4.1: names, units, instruments, cumulative and monotonic, and the attributes that are required."""
    node = make_node(tmp_path)
    opened = node.clock.wall_ns()
    node.run(3)
    request = parsed(EnergySeries(node.agent.sampler, "node-7", "1.2.3").request())
    metrics = metrics_of(request)

    assert attributes(request.resource_metrics[0].resource) == {
        "service.name": "joulegram-agent",
        "service.version": "1.2.3",
        "service.instance.id": "node-7",
        "host.id": "node-7",
        "energy.source": "powercap",
        "energy.method": "measured",
    }
    assert {name: metric.unit for name, metric in metrics.items()} == {
        "hw.host.energy": "J",
        "hw.energy": "J",
        "hw.power": "W",
    }
    for name in ("hw.host.energy", "hw.energy"):
        assert (metrics[name].sum.is_monotonic, metrics[name].sum.aggregation_temporality) == (True, 2)
        for point in metrics[name].sum.data_points:
            assert (point.start_time_unix_nano, point.time_unix_nano) == (opened, opened + 3 * S)
    (host,) = metrics["hw.host.energy"].sum.data_points
    assert (attributes(host), host.as_double) == ({"hw.id": "node-7"}, 30.0)
    parts = [(attributes(point), point.as_double) for point in metrics["hw.energy"].sum.data_points]
    assert parts == [
        ({"hw.id": "package-0", "hw.type": "cpu", "hw.parent": "node-7"}, 30.0),
        ({"hw.id": "package-0/dram", "hw.type": "memory", "hw.parent": "node-7"}, 0.0),
    ]
    assert [point.as_double for point in metrics["hw.power"].gauge.data_points] == [10.0, 0.0]


def test_the_version_of_the_conventions_is_said(tmp_path: Path) -> None:
    """otlp.md 4: the schema URL of resource and scope, as protobuf carries it, is the version that the page names."""
    node = make_node(tmp_path)
    node.run(1)
    request = parsed(EnergySeries(node.agent.sampler, "node-7", "1.2.3").request())
    carried = ExportMetricsServiceRequest.FromString(request.SerializeToString())
    (resource,) = carried.resource_metrics
    (scope,) = resource.scope_metrics
    assert resource.schema_url == scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"
    page = (Path(__file__).resolve().parents[2] / "docs/agent.md").read_text()
    assert f"schema URL `{resource.schema_url}`" in page


def test_every_kind_of_domain_has_a_hardware_type() -> None:
    """otlp.md 4.1: `hw.type` is one of the values there are."""
    assert set(HW_TYPES) == set(KINDS)
    assert set(HW_TYPES.values()) <= {"cpu", "memory", "gpu"}


def test_power_is_that_of_the_ticks_since_the_last_post(tmp_path: Path) -> None:
    """A post that was taken begins a new mean; one that was not is made up for by the next."""
    node = make_node(tmp_path)
    series = EnergySeries(node.agent.sampler, "h", "1")

    def power() -> float:
        return float(metrics_of(parsed(series.request()))["hw.power"].gauge.data_points[0].as_double)

    node.run(2, watts=10)
    assert power() == 10
    node.run(2, watts=40)
    assert power() == 25, "the first was not taken"
    made = series.request()
    assert made is not None
    series.sent(made[1])
    node.run(1, watts=7)
    assert power() == 7


def test_nothing_new_is_not_sent(tmp_path: Path) -> None:
    """PLATYPUS (energy.md 0.6): between two ticks there is nothing to send, and before the first there is nothing."""
    node = make_node(tmp_path)
    series = EnergySeries(node.agent.sampler, "h", "1")
    assert series.request() is None
    node.run(1)
    made = series.request()
    assert made is not None
    series.sent(made[1])
    for _ in range(9):
        node.tree.advance({"package-0": J})
        node.clock.advance(S // 10)
        node.agent.sampler.sample()
        assert series.request() is None


def test_a_domain_that_is_not_known_has_no_point(tmp_path: Path) -> None:
    """D-06, D-10: a domain that only had gaps is absent, and where all are, nothing is sent: never 0 J."""
    node = make_node(tmp_path)
    node.tree.faults = {"package-0/dram": 5}
    node.run(1)
    metrics = metrics_of(parsed(EnergySeries(node.agent.sampler, "h", "1").request()))
    for name in ("hw.energy", "hw.power"):
        data = metrics[name].sum if name == "hw.energy" else metrics[name].gauge
        assert [attributes(point)["hw.id"] for point in data.data_points] == ["package-0"]

    class Nothing:
        source, method, reason = "powercap", Method.UNAVAILABLE, "permission_denied"

        def domains(self) -> tuple[Domain, ...]:
            return (Domain("package-0", DomainKind.CPU),)

        def read(self) -> Reading:
            return Reading(gaps=(Gap("package-0", "permission_denied"),))

        def close(self) -> None: ...

    clock = ManualClock()
    sampler = Sampler(Nothing(), proc_root=FakeProc(tmp_path / "other").root, clock=clock)
    for _ in range(3):
        sampler.sample()
        clock.advance(S)
    assert sampler.published
    assert EnergySeries(sampler, "h", "1").request() is None


def test_a_new_epoch_is_a_new_series(tmp_path: Path) -> None:
    """D-29: when the wall clock fell back the counters begin anew, with a start of their own."""
    node = make_node(tmp_path)
    series = EnergySeries(node.agent.sampler, "h", "1")
    node.run(3)
    first = parsed(series.request())
    node.clock.step_wall(-100 * S)
    node.run(1)
    began = node.clock.wall_ns()
    node.run(2)
    second = parsed(series.request())
    before, after = (metrics_of(request)["hw.host.energy"].sum.data_points[0] for request in (first, second))
    assert (before.as_double, after.as_double) == (30, 20)
    assert after.start_time_unix_nano == began < before.start_time_unix_nano


@pytest.mark.parametrize("late_s", [0, 700])
def test_a_series_that_begins_late_counts_from_its_own_start(tmp_path: Path, late_s: int) -> None:
    """Where the ring no longer has the first tick, the series starts at the oldest it has."""
    node = make_node(tmp_path)
    node.run(late_s)
    node.run(1)
    (point,) = metrics_of(parsed(EnergySeries(node.agent.sampler, "h", "1").request()))[
        "hw.host.energy"
    ].sum.data_points
    ring = node.agent.sampler.published
    assert point.start_time_unix_nano == ring[0].start_ns
    assert point.as_double == 10 * len(ring)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.booleans()), min_size=1, max_size=12))
def test_our_own_reader_takes_every_microjoule(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bool]]
) -> None:
    """Whatever is posted when, and lost or not, the sidecar's ticks add up to what the agent published, exactly."""
    node = make_node(tmp_path_factory.mktemp("node"))
    series, reader = EnergySeries(node.agent.sampler, "h", "1"), ForeignEnergy()
    taken_uj = 0
    for energy_uj, lost in [*steps, (1, False)]:
        node.tree.advance({"package-0": energy_uj})
        node.run(1)
        made = series.request()
        assert made is not None
        if lost:
            continue
        series.sent(made[1])
        batch = reader.read(parsed(made).SerializeToString())
        assert batch is not None
        taken_uj += sum(tick.energy_uj["host"] for tick in batch.ticks)
    assert taken_uj == sum(sum(tick.energy_uj.values()) for tick in node.agent.sampler.published)


def test_joules_are_exact_to_the_microjoule(tmp_path: Path) -> None:
    """A double of joules gives back the microjoules, up to 2^33 J: 1 kW for 272 years."""
    for energy_uj in (1, 10**15 + 1, 2**33 * 10**6 - 1):
        assert j_to_uj(float(Fraction(energy_uj, 10**6))) == energy_uj
    node = make_node(tmp_path)
    node.tree.advance({"package-0": 123_456_789})
    node.run(1, watts=0)
    (sample,) = host_energy_samples(parsed(EnergySeries(node.agent.sampler, "h", "1").request()))
    assert (sample.value_uj, sample.hw_id, sample.is_delta) == (123_456_789, "h", False)
