"""`hw.host.energy` that a job or a foreign agent sends, as ticks, for a node without an agent of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method, Tick, TickBatch
from joulegram_pipeline.errors import WireError
from joulegram_pipeline.host_energy import METRIC, host_energy_samples

if TYPE_CHECKING:
    from joulegram_pipeline.records import Json

_MARK = METRIC.encode()
"""A request without these bytes need not be decoded."""

MAX_POWER_W = 100_000
"""Of one host. A count that says more is a fault of unit or of counting (D-13), and no energy is made of it."""

MAX_HOSTS = 64
"""Distinct `hw.id` of which the last count is kept."""


class ForeignEnergy:
    """Turns counts into ticks: a cumulative series by differences, a delta series as it is.

    A cumulative count is taken from its own start where it is the first or fell (a reset); without a start that is
    known, nothing is made of it.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}
        self._seq = 0

    @property
    def active(self) -> bool:
        """Whether anyone ever sent host energy."""
        return self._seq > 0

    def read(self, payload: bytes) -> TickBatch | None:
        """The ticks of a metrics request; None where it holds no host energy.

        The batch has one domain, ``host``; it is the whole host's energy, so there is nothing to add to it.
        """
        if _MARK not in payload:
            return None
        try:
            request = ExportMetricsServiceRequest.FromString(payload)
        except Exception as error:  # protobuf's DecodeError is not the same class in every backend
            raise WireError(f"got {len(payload)} bytes that are no ExportMetricsServiceRequest: {error}") from error
        ticks = []
        for sample in sorted(host_energy_samples(request), key=lambda item: item.time_ns):
            hw_id = sample.hw_id or ""
            start_ns, energy_uj = sample.start_ns, sample.value_uj
            if not sample.is_delta:
                last = self._last.get(hw_id)
                if last is not None and sample.time_ns <= last[0]:
                    continue  # late or repeated: the count we have is newer
                if len(self._last) < MAX_HOSTS or last is not None:
                    self._last[hw_id] = (sample.time_ns, sample.value_uj)
                if last is not None and sample.value_uj >= last[1]:
                    start_ns, energy_uj = last[0], sample.value_uj - last[1]
                elif last is not None and start_ns < last[0]:
                    continue
            if not 0 < start_ns < sample.time_ns:
                continue
            self._seq += 1
            if energy_uj > MAX_POWER_W * (sample.time_ns - start_ns) // 1000:
                gap = Gap("host", f"implausible_power: above {MAX_POWER_W} W")
                ticks.append(Tick(self._seq, start_ns, sample.time_ns, gaps=(gap,)))
            else:
                ticks.append(Tick(self._seq, start_ns, sample.time_ns, {"host": energy_uj}))
        if not ticks:
            return None
        return TickBatch(
            epoch="otlp",
            source="otlp",
            method=Method.REPORTED,
            reason=None,
            domains=(Domain("host", DomainKind.CPU),),
            ticks=tuple(ticks),
        )

    def dump(self) -> Json:
        """As JSON, for the snapshot."""
        return {
            "seq": self._seq,
            "last": {hw_id: [str(at), str(count)] for hw_id, (at, count) in self._last.items()},
        }

    def load(self, raw: Json) -> None:
        """From the JSON `dump` wrote."""
        self._seq = raw["seq"]
        self._last = {hw_id: (int(at), int(count)) for hw_id, (at, count) in raw["last"].items()}
