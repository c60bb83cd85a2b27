"""Whose energy a span gets, by what it says of itself: through the machine, from requests and ticks to lines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from joulegram_pipeline.records import AFAR
from joulegram_schemas import validate
from simulators.machine_node import OF_RUN, Node
from simulators.traces import T0, S, span

BOX, POD = "3f4a9c0b" * 8, "0f1e2d3c-4b5a-4697-8899-aabbccddeeff"

TICK: dict[str, Any] = {
    "cpu_uj": 1000,
    "gpu_uj": 800,
    "static_uj": 0,
    "busy_ns": S,
    "total_ns": 2 * S,
    "processes": {11: S // 10},
    "containers": {f"pod/{POD}/container/{BOX}": S // 5, f"pod/{POD}": S // 10},
    "on_gpu": {0: 3, 11: 1},
}
"""Of 1000 uJ of CPU energy a process spent 100, a container 200, the rest of its pod 100, others 600."""

KEYS: dict[str, tuple[dict[str, Any], dict[str, Any], str, int, int]] = {
    "its process": ({"process.pid": 11}, {}, "process", 100, 200),
    "its process and CPU time": ({"process.pid": 11}, {"joulegram.cpu_ns": S // 40}, "span", 25, 200),
    "its container": ({"container.id": BOX}, {}, "container", 200, 0),
    "its container, abbreviated, before its process": (
        {"container.id": BOX[:12], "process.pid": 11},
        {},
        "container",
        200,
        0,
    ),
    "its container and CPU time": ({"container.id": BOX}, {"joulegram.cpu_ns": S // 10}, "span", 100, 0),
    "its pod": ({"k8s.pod.uid": POD}, {}, "pod", 300, 0),
    "its pod, of a container no tick counted": ({"k8s.pod.uid": POD, "container.id": "x"}, {}, "pod", 300, 0),
    "nothing": ({}, {}, "host", 900, 600),
    "its CPU time alone": ({}, {"joulegram.cpu_ns": S // 10}, "span", 100, 600),
    "that it slept": ({}, {"joulegram.cpu_ns": 0}, "span", 0, 600),
    "its board": ({"container.id": BOX}, {"hw.id": "GPU-0"}, "container", 200, 600),
    "a board nobody has": ({"container.id": BOX}, {"hw.id": "GPU-9"}, "container", 200, 0),
}


@pytest.mark.parametrize(("resource", "attributes", "scope", "cpu_uj", "gpu_uj"), KEYS.values(), ids=KEYS.keys())
def test_what_a_span_gets_when_it_names(
    resource: dict[str, Any], attributes: dict[str, Any], scope: str, cpu_uj: int, gpu_uj: int
) -> None:
    """A second in which it is alone: its own part of the pot it names, and nothing of another's (S0-06, D-11)."""
    node = Node()
    node.log.traces(span(1, T0, T0 + S, name="etl.job", attributes=attributes), resource=OF_RUN | resource)
    node.tick(1, **TICK | {"processes": {11: S // 10}})
    (line,) = node.lines
    energy = line["energy"]
    assert (energy["scope"], energy["cpu_uj"], energy["gpu_uj"]) == (scope, cpu_uj, gpu_uj)
    (gained,) = node.gained()
    assert gained["energy.scope"] == scope
    validate("otel-energy-span-v1", gained)


def test_containers_beside_each_other_take_nothing_from_one_another() -> None:
    """Three spans of one second, in a container, in its pod and on the host: the sum is what was measured."""
    node = Node()
    resources: list[dict[str, Any]] = [{"container.id": BOX}, {"k8s.pod.uid": POD}, {}]
    for number, resource in enumerate(resources):
        node.log.traces(span(number + 1, T0, T0 + S, name="etl.job"), resource=resource)
    node.tick(1, **TICK | {"processes": {}})
    assert [line["energy"]["cpu_uj"] for line in node.lines] == [200, 100, 700]


AFAR_KEYS: dict[str, tuple[dict[str, Any], dict[str, Any], str, int]] = {
    "its process": ({"process.pid": 11}, {}, "host", 900),
    "its process and CPU time": ({"process.pid": 11}, {"joulegram.cpu_ns": S // 10}, "span", 100),
    "its container": ({"container.id": BOX, "process.pid": 11}, {}, "container", 200),
    "its pod": ({"k8s.pod.uid": POD}, {}, "pod", 300),
}


@pytest.mark.parametrize(("resource", "attributes", "scope", "cpu_uj"), AFAR_KEYS.values(), ids=AFAR_KEYS)
@pytest.mark.parametrize("read", [False, True], ids=["from the log", "as it came"])
def test_what_a_span_from_another_address_gets_when_it_names(
    resource: dict[str, Any], attributes: dict[str, Any], scope: str, cpu_uj: int, read: bool
) -> None:
    """A process id of another kernel or namespace is nobody's here: neither asked for nor given energy (D-11)."""
    node = Node()
    named, carried = span(1, T0, T0 + S, name="etl.job", attributes=attributes), (AFAR, ("x-tenant", "a"))
    record = node.log.traces(named, resource=OF_RUN | resource, metadata=carried)
    if read:
        node.log.records[-1] = replace(record, parsed=node.machine.extract(record.payload))
    node.tick(1, **TICK)
    (line,) = node.lines
    assert (line["energy"]["scope"], line["energy"]["cpu_uj"]) == (scope, cpu_uj)
    assert node.pids == set()
    assert node.carried == [(("x-tenant", "a"),)]
