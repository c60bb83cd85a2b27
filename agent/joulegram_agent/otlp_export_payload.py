"""What the agent sends of itself over OTLP: hw.host.energy, hw.energy and hw.power, in OTLP's JSON.

Names, instruments and attributes: OpenTelemetry semantic conventions 1.44, docs/hardware. JSON: opentelemetry-proto,
docs/specification.md, "JSON Protobuf Encoding": lowerCamelCase keys, 64 bit integers in decimal strings.

Invariants:
    * a series is cumulative within one epoch of the agent and begins anew with the next, with its own start;
    * everything is as of the last published tick; no two points are closer than that (PLATYPUS);
    * a domain of which nothing could be counted has no point; nothing at all is sent where there is none.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.energy import DomainKind
from joulegram_pipeline.units import uj_to_j

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from joulegram_agent.ring import TickEnergy
    from joulegram_agent.sampler import Sampler
    from joulegram_pipeline.energy import Domain

HW_TYPES = {DomainKind.CPU: "cpu", DomainKind.DRAM: "memory", DomainKind.GPU: "gpu"}

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""Of the conventions that the names are from, so that who keeps to others can translate them."""

_CUMULATIVE = 2
_SCOPE = "joulegram_agent"


class EnergySeries:
    """Makes requests of a sampler's totals.

    Args:
        sampler: what is told.
        hw_id: names the host, from the configuration: never its name or address (design section 10).
        version: of joulegram.
    """

    def __init__(self, sampler: Sampler, hw_id: str, version: str) -> None:
        self._sampler = sampler
        self._hw_id = hw_id
        self._version = version
        self._epoch: str | None = None
        self._start_ns = 0
        self._base_uj: dict[str, int] = {}
        self._sent_ns = 0

    def request(self) -> tuple[bytes, int] | None:
        """An ExportMetricsServiceRequest, and the instant it is of; None where nothing is new or known.

        1. In a new epoch the series starts where the oldest kept tick does: base = totals - energy of the kept ticks.
        2. Energy of a domain = totals - base; the host's is the sum over domains.
        3. Power of a domain = its energy / time, over the ticks since the last request that was taken.
        """
        batch, totals, newest = self._sampler.about, self._sampler.totals, self._sampler.ring.last
        if newest is None:
            return None
        if batch.epoch != self._epoch:
            kept = self._sampler.published
            self._epoch, self._start_ns, self._sent_ns = batch.epoch, kept[0].start_ns, 0
            self._base_uj = {
                key: uj - sum(tick.energy_uj.get(key, 0) for tick in kept) for key, uj in totals.energy_uj.items()
            }
        at_ns = newest.end_ns
        counted_uj = {key: uj - self._base_uj[key] for key, uj in totals.known_uj.items()}
        if at_ns <= self._sent_ns or not counted_uj:
            return None
        domains = [domain for domain in batch.domains if domain.id in counted_uj]
        new = list(self._sampler.ring.touching(self._sent_ns, at_ns))
        request = self._request(batch.source, batch.method.value, self._metrics(domains, counted_uj, new, at_ns))
        return json.dumps(request, separators=(",", ":")).encode("utf-8"), at_ns

    def sent(self, at_ns: int) -> None:
        """The request of this instant was taken."""
        self._sent_ns = at_ns

    def _request(self, source: str, method: str, metrics: list[dict[str, Any]]) -> dict[str, Any]:
        resource = {
            "service.name": "joulegram-agent",
            "service.version": self._version,
            "service.instance.id": self._hw_id,
            "host.id": self._hw_id,
            "energy.source": source,
            "energy.method": method,
        }
        scope = {
            "scope": {"name": _SCOPE, "version": self._version},
            "metrics": metrics,
            "schemaUrl": SCHEMA_URL,
        }
        whole = {
            "resource": {"attributes": _attributes(resource)},
            "scopeMetrics": [scope],
            "schemaUrl": SCHEMA_URL,
        }
        return {"resourceMetrics": [whole]}

    def _metrics(
        self, domains: Iterable[Domain], counted_uj: Mapping[str, int], new: Iterable[TickEnergy], at_ns: int
    ) -> list[dict[str, Any]]:
        host = {"hw.id": self._hw_id}
        of = {
            domain.id: {"hw.id": domain.id, "hw.type": HW_TYPES[domain.kind], "hw.parent": self._hw_id}
            for domain in domains
        }
        power_w = {key: watts for key in of if (watts := _mean_power_w(key, new)) is not None}
        span = {"startTimeUnixNano": str(self._start_ns), "timeUnixNano": str(at_ns)}
        total = [_point(uj_to_j(sum(counted_uj.values())), host, span)]
        energy = [_point(uj_to_j(counted_uj[key]), of[key], span) for key in of]
        power = [_point(watts, of[key], {"timeUnixNano": str(at_ns)}) for key, watts in power_w.items()]
        metrics = [
            _sum("hw.host.energy", "Energy of all measured domains of the host.", total),
            _sum("hw.energy", "Energy of one domain.", energy),
        ]
        if power:
            text = "Mean power of one domain since the last export."
            metrics.append({"name": "hw.power", "description": text, "unit": "W", "gauge": {"dataPoints": power}})
        return metrics


def _mean_power_w(domain: str, ticks: Iterable[TickEnergy]) -> float | None:
    """Over the ticks in which the domain is known; None where it is in none."""
    known = [tick for tick in ticks if domain in tick.energy_uj]
    if not known:
        return None
    # 1 uJ/ns is 1000 W.
    return 1_000 * sum(tick.energy_uj[domain] for tick in known) / sum(tick.end_ns - tick.start_ns for tick in known)


def _sum(name: str, text: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    data = {"dataPoints": points, "aggregationTemporality": _CUMULATIVE, "isMonotonic": True}
    return {"name": name, "description": text, "unit": "J", "sum": data}


def _point(value: float, attributes: Mapping[str, str], times: Mapping[str, str]) -> dict[str, Any]:
    return {**times, "asDouble": value, "attributes": _attributes(attributes)}


def _attributes(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in values.items()]
