"""One settled span: its energy and carbon as the attributes it gains and as its line in the ledger.

Procedure (design sections 4 to 6):
    1. Energy is the span's own and that of its settled descendants, by kind, in integer microjoules.
    2. Its method is that of the ticks it lies in; time without ticks is said, never filled.
    3. Carbon is energy times the intensity at the span's time. A span that crosses table boundaries is cut there and
       each part gets the energy its scope spent in it. One half-even rounding to a microgram, at the end.
    4. The 95 % interval: components of one correlation group add linearly, groups in quadrature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_pipeline.energy import Method
from joulegram_pipeline.exact import apportion, div_half_even
from joulegram_pipeline.units import UJ_PER_J
from joulegram_processor.energy_store import HOST
from joulegram_processor.enrich import Encoder
from joulegram_processor.intensity.carbon import UJ_MG_PER_UG_KWH, carbon_ug
from joulegram_processor.intensity.uncertainty import CompiledInterval, default_components
from joulegram_processor.runs import NODE_PREFIX

if TYPE_CHECKING:
    from joulegram_pipeline.records import SpanCarbon, SpanEnergy, SpanRecord
    from joulegram_processor.energy_store import EnergyStore
    from joulegram_processor.intensity.chain import IntensityProvider
    from joulegram_processor.spans import OpenSpan

MAX_NAME = 1024
"""Characters of a client's text in a ledger line, which has a limit of its own; the forwarded span keeps all of it."""


@dataclass(frozen=True, slots=True)
class CarbonModel:
    """What turns energy into carbon, or the reason there is nothing that does.

    Args:
        intensity: a compiled chain or a declared factor; None where neither a region nor a factor is configured.
        reason: then, why.
        region: as published in `carbon.region`.
    """

    intensity: IntensityProvider | None
    reason: str | None = None
    region: str | None = None

    def interval(self, method: str, resolution: str) -> CompiledInterval:
        """The 95 % interval of results of this method and resolution."""
        assert self.intensity is not None
        return CompiledInterval(default_components(Method(method), self.intensity, resolution))


@dataclass(slots=True)
class Window:
    """What holds for all spans of a settlement, where one thing does: no gap and one method over their time."""

    method: str
    kinds: tuple[bool, bool, bool]


class Joined:
    """The outcome for one span."""

    __slots__ = (
        "align_ug",
        "attributes",
        "exclusive_ug",
        "kinds",
        "method",
        "mg_per_kwh",
        "reason",
        "record",
        "reported",
        "resolution",
        "scope",
        "upper_bound",
    )

    attributes: bytes
    record: SpanRecord
    method: str
    scope: str
    reason: str | None
    kinds: tuple[bool, bool, bool]
    reported: bool
    exclusive_ug: int | None
    align_ug: int
    mg_per_kwh: int
    resolution: str
    upper_bound: bool


_KIND_NAMES = ("cpu", "dram", "gpu")
_NO_KINDS = (False, False, False)


class Joiner:
    """Joins settled spans; holds what can be worked out once.

    Args:
        store: the node's energy.
        carbon: how energy becomes carbon.
    """

    def __init__(self, store: EnergyStore, carbon: CarbonModel) -> None:
        self._store = store
        self._carbon = carbon
        self._encoder = Encoder()
        self._table = carbon.intensity.ref.name if carbon.intensity is not None else None
        self._intervals: dict[tuple[str, str], CompiledInterval] = {}

    def window(self, start_ns: int, end_ns: int) -> Window | None:
        """The one method and set of kinds of a stretch of time; None where it has gaps or several."""
        at = start_ns
        found: Window | None = None
        for row in self._store.overlapping(start_ns, end_ns):
            if row.start_ns > at or row.reason is not None or not row.has_energy:
                return None
            if found is None:
                found = Window(row.method.value, row.kinds)
            elif found.method != row.method.value or found.kinds != row.kinds:
                return None
            at = row.end_ns
        return found if at >= end_ns else None

    def join(self, span: OpenSpan, window: Window | None, pos: list[int]) -> Joined:
        """Work out one settled span."""
        start_ns, end_ns = span.start_ns, span.end_ns
        duration_ns = end_ns - start_ns
        own, kids = span.own, span.kids
        cpu, dram, gpu = own[0] + kids[0], own[1] + kids[1], own[2] + kids[2]
        total = cpu + dram + gpu
        exclusive = own[0] + own[1] + own[2]
        reported = _reported_uj(span) if span.attributes else None
        if window is not None:
            method, kinds, reason, covered = window.method, window.kinds, None, duration_ns
        else:
            method, kinds, reason, covered = self._patchwork(start_ns, end_ns)
        out = Joined()
        out.method, out.kinds, out.reason = method, kinds, reason
        out.reported = reported is not None
        out.scope = scope = "host" if span.scope == HOST else "process"
        if reported is not None:
            method = out.method = Method.REPORTED.value
            total = reported
        unavailable = method == Method.UNAVAILABLE.value

        energy: SpanEnergy = {"method": method}
        names: list[str] = []
        values: list[float] = []
        texts: list[tuple[str, str | bool]] = [("energy.method", method)]
        if not unavailable:
            energy["scope"] = scope
            energy["total_uj"] = total
            texts.append(("energy.scope", scope))
            if reported is None:
                for kind, uj in zip((0, 1, 2), (cpu, dram, gpu), strict=True):
                    if kinds[kind]:
                        energy[f"{_KIND_NAMES[kind]}_uj"] = uj  # type: ignore[literal-required]
                        names.append(f"energy.{_KIND_NAMES[kind]}_j")
                        values.append(uj / UJ_PER_J)
                if kinds[2] and duration_ns:
                    names.append("energy.gpu_w_avg")
                    values.append(gpu * 1000 / duration_ns)
                names.append("energy.total_j")
                values.append(total / UJ_PER_J)
                if span.node_uj:
                    names.append("energy.allocation_ratio")
                    values.append(min(1.0, total / span.node_uj))
            else:
                energy["reported_uj"] = reported
            if True in kinds:
                energy["exclusive_uj"] = exclusive
        if reason is not None:
            energy["reason"] = reason
            energy["covered_ns"] = str(covered)
            texts.append(("energy.reason", reason))
            if not unavailable:
                texts.append(("energy.state", "partial"))
        names.append("timing.duration_s")
        values.append(duration_ns / 1e9)

        carbon = self._price(span, out, total, exclusive, unavailable, names, values, texts)
        record: SpanRecord = {
            "kind": "span",
            "pos": pos,
            "origin": span.origin,
            "run_id": span.run_id,
            "trace_id": span.key[:16].hex(),
            "span_id": span.key[16:].hex(),
            "name": span.name if len(span.name) <= MAX_NAME else span.name[:MAX_NAME] + "…",
            "start_ns": str(start_ns),
            "end_ns": str(end_ns),
            "status": span.status_text,
            "energy": energy,
            "carbon": carbon,
        }
        if span.parent_key:
            record["parent_span_id"] = span.parent_key[16:].hex()
        node = node_of(span)
        if node is not None:
            record["node"] = node
        out.record = record
        out.attributes = self._encoder.doubles(tuple(names), values) + self._encoder.texts(tuple(texts))
        return out

    def _price(
        self,
        span: OpenSpan,
        out: Joined,
        total: int,
        exclusive: int,
        unavailable: bool,
        names: list[str],
        values: list[float],
        texts: list[tuple[str, str | bool]],
    ) -> SpanCarbon:
        out.exclusive_ug = None
        out.align_ug = out.mg_per_kwh = 0
        out.resolution = ""
        out.upper_bound = False
        model = self._carbon
        if model.intensity is None or unavailable:
            reason = model.reason if model.intensity is None and model.reason else "energy_unavailable"
            texts.append(("carbon.reason", reason))
            return {"reason": reason}
        segment = model.intensity.segment_at(span.start_ns, span.end_ns)
        if segment is not None:
            mg, resolution, bound = segment.mg_per_kwh, segment.resolution, segment.upper_bound
            ug = carbon_ug(total, mg)
            out.exclusive_ug = carbon_ug(exclusive, mg)
        else:
            ug, mg, resolution, bound = self._across(span, total)
            out.exclusive_ug = self._across(span, exclusive)[0]
        key = (out.method, resolution)
        interval = self._intervals.get(key)
        if interval is None:
            interval = self._intervals[key] = model.interval(*key)
        align = carbon_ug(self._alignment_uj(span, total), mg)
        lower, upper = interval(ug, align)
        out.align_ug, out.mg_per_kwh, out.resolution, out.upper_bound = align, mg, resolution, bound
        names += ("carbon.gco2e", "carbon.gco2e_lower", "carbon.gco2e_upper", "carbon.intensity_g_per_kwh")
        values += (ug / 1e6, lower / 1e6, upper / 1e6, mg / 1e3)
        carbon: SpanCarbon = {
            "ug": ug,
            "lower_ug": lower,
            "upper_ug": upper,
            "exclusive_ug": out.exclusive_ug,
            "intensity_mg_per_kwh": mg,
            "resolution": resolution,
            "table": self._table or "",
            "upper_bound": bound,
        }
        carbon["gas"] = model.intensity.gas
        texts.append(("carbon.gas", model.intensity.gas))
        if model.region is not None:
            carbon["region"] = model.region
            texts.append(("carbon.region", model.region))
        texts += (
            ("carbon.resolution", resolution),
            ("carbon.table", self._table or ""),
            ("carbon.upper_bound", bound),
        )
        return carbon

    def _across(self, span: OpenSpan, energy_uj: int) -> tuple[int, int, str, bool]:
        """Carbon of a span that crosses table boundaries: (ug, effective mg/kWh, resolution, upper bound).

        1. Cut the span where the intensity changes. 2. Weigh each part by what the span's scope spent in it, by its
        length where that is nothing. 3. Split the span's microjoules by those weights. 4. Σ uJ x mg, rounded once.
        """
        assert self._carbon.intensity is not None
        parts = self._carbon.intensity.segments(span.start_ns, span.end_ns)
        weights = [sum(self._store.energy(part.start_ns, part.end_ns, span.scope)) for part in parts]
        if not any(weights):
            weights = [part.end_ns - part.start_ns for part in parts]
        pieces = apportion(energy_uj, weights)
        product = sum(uj * part.mg_per_kwh for uj, part in zip(pieces, parts, strict=True))
        weighted = sum(weight * part.mg_per_kwh for weight, part in zip(weights, parts, strict=True))
        resolutions = {part.resolution for part in parts}
        return (
            div_half_even(product, UJ_MG_PER_UG_KWH),
            div_half_even(product, energy_uj) if energy_uj else div_half_even(weighted, sum(weights)),
            resolutions.pop() if len(resolutions) == 1 else "mixed",
            any(part.upper_bound for part in parts),
        )

    def _alignment_uj(self, span: OpenSpan, total: int) -> int:
        """How much of the span's energy hangs on where in its first and last tick the node spent it.

        Inside a tick the power is taken as uniform. A span that covers the part f of a tick of energy e got f x e; the
        half-width given to that is e x f x (1 - f), nothing at a tick's edge and a quarter of e in its middle.
        """
        start_ns, end_ns = span.start_ns, span.end_ns
        rows = self._store.rows
        first = self._store.index(start_ns)
        if first >= len(rows) or end_ns <= start_ns:
            return 0
        row = rows[first]
        width = row.end_ns - row.start_ns
        if end_ns <= row.end_ns:
            return total * max(0, width - (end_ns - start_ns)) // width
        inside = row.end_ns - max(start_ns, row.start_ns)
        edges = (width - inside) * inside // width
        last = self._store.index(end_ns - 1)
        if last < len(rows):
            row = rows[last]
            width = row.end_ns - row.start_ns
            inside = max(0, end_ns - row.start_ns)
            edges += (width - inside) * inside // width
        return total * edges // (end_ns - start_ns)

    def _patchwork(self, start_ns: int, end_ns: int) -> tuple[str, tuple[bool, bool, bool], str | None, int]:
        """Method, kinds, reason and covered time of a span whose time has gaps or several methods."""
        store = self._store
        methods: set[str] = set()
        kinds = [False, False, False]
        partly = False
        for row in store.overlapping(start_ns, max(end_ns, start_ns + 1)):
            if row.has_energy:
                methods.add(row.method.value)
                partly = partly or row.reason is not None
                kinds = [known or new for known, new in zip(kinds, row.kinds, strict=True)]
        covered = store.covered_ns(start_ns, end_ns)
        if not methods:
            return Method.UNAVAILABLE.value, _NO_KINDS, store.missing_reason(start_ns, end_ns), 0
        reason = store.missing_reason(start_ns, end_ns) if covered < end_ns - start_ns or partly else None
        method = methods.pop() if len(methods) == 1 else Method.MIXED.value
        return method, (kinds[0], kinds[1], kinds[2]), reason, covered


def node_of(span: OpenSpan) -> str | None:
    """The ETL node a span is: its `kfm.node`, else what follows ``etl.node.`` in its name (S1-21, S1-22)."""
    value = span.attributes.get("kfm.node")
    if isinstance(value, str) and value:
        return value[:MAX_NAME]
    return span.name.removeprefix(NODE_PREFIX)[:MAX_NAME] if span.name.startswith(NODE_PREFIX) else None


def _reported_uj(span: OpenSpan) -> int | None:
    """Energy the job itself reported as `energy.cpu_j`, None where it reported none that can be an energy."""
    value = span.attributes.get("energy.cpu_j")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return round(value * UJ_PER_J) if 0 <= value < 1e12 else None
