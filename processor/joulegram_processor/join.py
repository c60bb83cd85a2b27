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
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.energy import Method
from joulegram_pipeline.exact import apportion, div_half_even
from joulegram_pipeline.span_rows import END, NAME, START, STATUS
from joulegram_pipeline.units import MG_PER_G, NS_PER_S, UG_PER_G, UJ_PER_J
from joulegram_processor.enrich import Encoder
from joulegram_processor.intensity.carbon import UJ_MG_PER_UG_KWH, carbon_ug
from joulegram_processor.intensity.uncertainty import CompiledInterval, default_components
from joulegram_processor.scopes import LABELS
from joulegram_processor.spans import node_of, reported_uj, shortened, status_text

if TYPE_CHECKING:
    from joulegram_pipeline.records import SpanCarbon, SpanEnergy, SpanRecord
    from joulegram_pipeline.span_rows import Row
    from joulegram_processor.energy_store import EnergyStore, Triple
    from joulegram_processor.intensity.chain import IntensityProvider


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


@dataclass(slots=True)
class Settled:
    """One settled span, for the general path.

    Args:
        row: as read.
        key: trace id + span id.
        parent: key of the parent, empty for a root.
        origin: lsn of its request.
        run_id: of its run.
        own: exclusive energy by kind, uJ.
        kids: energy of settled descendants by kind, uJ.
        scope: the pot its energy came from.
        label: the number of the text that says so.
        extras: attributes the join reads.
        late: it got nothing, because others had all of it before it came.
    """

    row: Row
    key: bytes
    parent: bytes
    origin: int
    run_id: str
    own: Triple
    kids: Triple
    scope: int
    label: int
    extras: dict[str, Any]
    late: bool = False


@dataclass(slots=True)
class Joined:
    """The outcome for one span; `line` is its ledger record, `attributes` what it gains, encoded."""

    attributes: bytes
    line: SpanRecord
    method: str
    resolution: str
    scope: str
    reason: str | None
    kinds: tuple[bool, bool, bool]
    exclusive_ug: int | None
    align_ug: int
    mg_per_kwh: int
    upper_bound: bool
    carbon_reason: str | None


@dataclass(slots=True)
class _Price:
    """Carbon of one span, and what it adds to attributes."""

    record: SpanCarbon
    exclusive_ug: int | None = None
    align_ug: int = 0
    mg_per_kwh: int = 0
    resolution: str = ""
    upper_bound: bool = False


ENERGY_UNAVAILABLE = "energy_unavailable"

LATE = "late"
"""Of a span that came when the energy of its time had been given to others, all of it: what it spent is not known."""

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
        self.carbon = carbon
        self.encoder = Encoder()
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

    def join(self, span: Settled, window: Window | None, pos: list[int]) -> Joined:
        """Work out one settled span."""
        row, own, kids = span.row, span.own, span.kids
        start_ns, end_ns = row[START], row[END]
        duration_ns = end_ns - start_ns
        by_kind = (own[0] + kids[0], own[1] + kids[1], own[2] + kids[2])
        total, exclusive = sum(by_kind), sum(own)
        if window is not None:
            method, kinds, reason, covered = window.method, window.kinds, None, duration_ns
        else:
            method, kinds, reason, covered = self._patchwork(start_ns, end_ns)
        if span.late and method != Method.UNAVAILABLE.value:
            reason, covered = LATE, 0
            if not total:
                method, kinds = Method.UNAVAILABLE.value, _NO_KINDS
        reported = reported_uj(span.extras)
        if reported is not None:
            method, total = Method.REPORTED.value, reported
        unavailable = method == Method.UNAVAILABLE.value
        scope = LABELS[span.label]

        energy: SpanEnergy = {"method": method}
        doubles: dict[str, float] = {}
        texts: list[tuple[str, str | bool]] = [("energy.method", method)]
        if not unavailable:
            energy["scope"] = scope
            energy["total_uj"] = total
            texts.append(("energy.scope", scope))
            if True in kinds and not span.late:
                energy["exclusive_uj"] = exclusive
        if reported is not None:
            energy["reported_uj"] = reported
        elif not unavailable:
            for kind, uj in enumerate(by_kind):
                if kinds[kind]:
                    energy[f"{_KIND_NAMES[kind]}_uj"] = uj  # type: ignore[literal-required]
                    doubles[f"energy.{_KIND_NAMES[kind]}_j"] = uj / UJ_PER_J
            if kinds[2] and duration_ns:
                doubles["energy.gpu_w_avg"] = by_kind[2] * 1000 / duration_ns
            doubles["energy.total_j"] = total / UJ_PER_J
            node_uj = self._store.measured(start_ns, end_ns)
            if node_uj:
                doubles["energy.allocation_ratio"] = min(1.0, total / node_uj)
        if reason is not None:
            energy["reason"] = reason
            energy["covered_ns"] = str(covered)
            texts.append(("energy.reason", reason))
            if not unavailable:
                texts.append(("energy.state", "partial"))
        doubles["timing.duration_s"] = duration_ns / NS_PER_S
        price = self._price(span, method, total, exclusive, unavailable=unavailable)
        carbon = price.record
        if "ug" in carbon:
            doubles["carbon.gco2e"] = carbon["ug"] / UG_PER_G
            doubles["carbon.gco2e_lower"] = carbon["lower_ug"] / UG_PER_G
            doubles["carbon.gco2e_upper"] = carbon["upper_ug"] / UG_PER_G
            doubles["carbon.intensity_g_per_kwh"] = price.mg_per_kwh / MG_PER_G
            texts += self.carbon_texts(price.resolution, upper_bound=price.upper_bound)
        else:
            texts.append(("carbon.reason", carbon["reason"]))
        line: SpanRecord = {
            "kind": "span",
            "pos": pos,
            "origin": span.origin,
            "run_id": span.run_id,
            "trace_id": span.key[:16].hex(),
            "span_id": span.key[16:].hex(),
            "name": shortened(row[NAME]),
            "start_ns": str(start_ns),
            "end_ns": str(end_ns),
            "status": status_text(row[STATUS]),
            "energy": energy,
            "carbon": carbon,
        }
        if span.parent:
            line["parent_span_id"] = span.parent[16:].hex()
        node = node_of(row[NAME], span.extras)
        if node is not None:
            line["node"] = node
        return Joined(
            attributes=self.encoder.doubles(tuple(doubles), tuple(doubles.values())) + self.encoder.texts(tuple(texts)),
            line=line,
            method=method,
            resolution=price.resolution,
            scope=scope,
            reason=reason,
            kinds=kinds,
            exclusive_ug=price.exclusive_ug,
            align_ug=price.align_ug,
            mg_per_kwh=price.mg_per_kwh,
            upper_bound=price.upper_bound,
            carbon_reason=carbon.get("reason"),
        )

    def carbon_texts(self, resolution: str, *, upper_bound: bool) -> list[tuple[str, str | bool]]:
        """The attributes that say what a span's carbon rests on."""
        intensity = self.carbon.intensity
        assert intensity is not None
        texts: list[tuple[str, str | bool]] = [("carbon.gas", intensity.gas)]
        if self.carbon.region is not None:
            texts.append(("carbon.region", self.carbon.region))
        texts += (
            ("carbon.resolution", resolution),
            ("carbon.table", intensity.ref.name),
            ("carbon.upper_bound", upper_bound),
        )
        return texts

    def interval(self, method: str, resolution: str) -> CompiledInterval:
        """The 95 % interval for a method and resolution, worked out once."""
        known = self._intervals.get((method, resolution))
        if known is None:
            known = self._intervals[method, resolution] = self.carbon.interval(method, resolution)
        return known

    def _price(self, span: Settled, method: str, total: int, exclusive: int, *, unavailable: bool) -> _Price:
        model = self.carbon
        if model.intensity is None or unavailable:
            reason = model.reason if model.intensity is None and model.reason else ENERGY_UNAVAILABLE
            return _Price({"reason": reason})
        start_ns, end_ns = span.row[START], span.row[END]
        segment = model.intensity.segment_at(start_ns, end_ns)
        if segment is not None:
            mg, resolution, bound = segment.mg_per_kwh, segment.resolution, segment.upper_bound
            ug, exclusive_ug = carbon_ug(total, mg), carbon_ug(exclusive, mg)
        else:
            ug, mg, resolution, bound = self._across(start_ns, end_ns, span.scope, total)
            exclusive_ug = self._across(start_ns, end_ns, span.scope, exclusive)[0]
        align = carbon_ug(self.alignment_uj(start_ns, end_ns, total), mg)
        lower, upper = self.interval(method, resolution)(ug, align)
        carbon: SpanCarbon = {
            "ug": ug,
            "lower_ug": lower,
            "upper_ug": upper,
            "gas": model.intensity.gas,
            "intensity_mg_per_kwh": mg,
            "resolution": resolution,
            "table": model.intensity.ref.name,
            "upper_bound": bound,
        }
        if not span.late:
            carbon["exclusive_ug"] = exclusive_ug
        if model.region is not None:
            carbon["region"] = model.region
        return _Price(carbon, exclusive_ug, align, mg, resolution, bound)

    def _across(self, start_ns: int, end_ns: int, scope: int, energy_uj: int) -> tuple[int, int, str, bool]:
        """Carbon of a span that crosses table boundaries: (ug, effective mg/kWh, resolution, upper bound).

        1. Cut the span where the intensity changes. 2. Weigh each part by what the span's scope spent in it, by its
        length where that is nothing. 3. Split the span's microjoules by those weights. 4. Σ uJ x mg, rounded once.
        """
        assert self.carbon.intensity is not None
        parts = self.carbon.intensity.segments(start_ns, end_ns)
        weights = [sum(self._store.energy(part.start_ns, part.end_ns, scope)) for part in parts]
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

    def alignment_uj(self, start_ns: int, end_ns: int, total: int) -> int:
        """How much of the span's energy hangs on where in its first and last tick the node spent it.

        Inside a tick the power is taken as uniform. A span that covers the part f of a tick of energy e got f x e; the
        half-width given to that is e x f x (1 - f), nothing at a tick's edge and a quarter of e in its middle.
        """
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
