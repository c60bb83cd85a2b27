"""Runs: what the spans of one `kfm.run_id` add up to, kept in integers so that order does not matter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.energy import Method
from joulegram_pipeline.records import Account, NodeRecord, RunRecord
from joulegram_processor.scopes import BY_HOST, LABELS, WIDEST_FIRST

if TYPE_CHECKING:
    from joulegram_pipeline.records import TableRef
    from joulegram_processor.claims import Claims
    from joulegram_processor.energy_store import EnergyStore
    from joulegram_processor.join import CarbonModel

MAX_TRACES = 64
MAX_PATH = 4096
MAX_NODES = 1000
"""Per run; what is beyond is counted in `spans` and in the sums, and is in the ledger, but not listed in documents."""


_SETS = ("methods", "priced", "scopes", "reasons", "carbon_reasons", "traces")
_BIG = ("align_sq", "factor_weighted", "changed_ns", "started_ns", "ended_ns")
"""Kept as text in a snapshot: integers beyond 2**63."""


@dataclass(slots=True)
class Run:
    """A run as it grows. Sums are of exclusive microjoules and micrograms.

    `priced` holds the ``method/resolution`` pairs its carbon rests on; `align_sq` sums squared alignment errors.
    """

    run_id: str
    changed_ns: int
    spans: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    cpu_uj: int = 0
    dram_uj: int = 0
    gpu_uj: int = 0
    kinds: int = 0
    carbon_ug: int = 0
    align_sq: int = 0
    carbon_uj: int = 0
    factor_weighted: int = 0
    with_carbon: int = 0
    without_energy: int = 0
    upper_bound: bool = False
    methods: set[str] = field(default_factory=set)
    priced: set[str] = field(default_factory=set)
    scopes: set[str] = field(default_factory=set)
    reasons: set[str] = field(default_factory=set)
    carbon_reasons: set[str] = field(default_factory=set)
    traces: set[str] = field(default_factory=set)
    nodes: list[list[Any]] = field(default_factory=list)
    root: str | None = None
    is_trace: bool = False
    status: str = "unset"
    job_type: str = "etl"
    stac_item: str | None = None
    ended_by: str | None = None
    revision: int = 0
    published_spans: int = 0

    def ready(self, log_ns: int, idle_ns: int, quiet_ns: int) -> str | None:
        """Why the run should be published now, None if it should not."""
        if self.spans == self.published_spans:
            return None
        if self.revision:  # late spans: wait for them to be quiet, then revise
            return self.ended_by if log_ns - self.changed_ns >= quiet_ns else None
        if self.ended_by is not None:
            return self.ended_by
        return "idle_timeout" if log_ns - self.changed_ns >= idle_ns else None

    def dump(self) -> dict[str, Any]:
        """As JSON, for the snapshot."""
        out = {name: getattr(self, name) for name in self.__slots__}
        for name in _SETS:
            out[name] = sorted(out[name])
        for name in _BIG:
            out[name] = str(out[name])
        return out

    @classmethod
    def load(cls, raw: dict[str, Any]) -> Run:
        """From the JSON `dump` wrote."""
        values = dict(raw)
        for name in _SETS:
            values[name] = set(values[name])
        for name in _BIG:
            values[name] = int(values[name])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a run record says of the node and of the factor, the same for every run.

    Args:
        hw_id: stable pseudonym of the hardware, from configuration (`KFM_HW_ID`).
        hw_name: its name for people.
        gas: ``co2e`` or ``co2``.
        region: the resolved region, with the path that led there.
        factor_source: for people, with table id and version.
        tables: the tables results rest on.
    """

    hw_id: str
    hw_name: str
    gas: str | None
    region: str | None
    factor_source: str
    tables: tuple[TableRef, ...]


def overall_method(methods: set[str]) -> str:
    """One word for the methods of several spans."""
    known = methods - {Method.UNAVAILABLE.value}
    if not known:
        return Method.UNAVAILABLE.value
    return known.pop() if len(known) == 1 else Method.MIXED.value


def publish(
    run: Run,
    ended_by: str,
    pos: tuple[int, int],
    recorded_ns: int,
    identity: Identity,
    account: Account | None,
    carbon: CarbonModel,
) -> RunRecord:
    """Turn a run into the record its documents are written from.

    The effective factor is energy-weighted (C-06): Σ uJ x mg/kWh / Σ uJ, so Σ uJ x factor is the carbon to within half
    a microgram a span, which is what the spans were rounded by; where no energy is known, the factor that
    held at the run's end, because it is recorded always (S0-57).
    """
    has_energy = bool(run.kinds)
    total = run.cpu_uj + run.dram_uj + run.gpu_uj
    lower = upper = None
    if run.with_carbon:
        # Spans share the error of their source and table row, so the widest pair's share holds for the whole sum.
        pairs = [pair.split("/") for pair in sorted(run.priced)]
        bounds = [carbon.interval(*pair).over(run.carbon_ug, run.align_sq) for pair in pairs]
        lower, upper = min(low for low, _ in bounds), max(high for _, high in bounds)
    factor = run.factor_weighted / run.carbon_uj / 1e6 if run.carbon_uj else None
    if factor is None and carbon.intensity is not None:
        factor = carbon.intensity.segments(run.ended_ns, run.ended_ns)[0].mg_per_kwh / 1e6
    run.revision += 1
    run.published_spans = run.spans
    run.ended_by = ended_by
    return RunRecord(
        pos=pos,
        run_id=run.run_id,
        revision=run.revision,
        job_type=run.job_type,
        status=run.status,
        ended_by=ended_by,
        started_ns=run.started_ns,
        ended_ns=run.ended_ns,
        recorded_ns=recorded_ns,
        spans=run.spans,
        trace_ids=tuple(sorted(run.traces)),
        energy_uj=total if has_energy else None,
        cpu_uj=run.cpu_uj if run.kinds & 1 else None,
        dram_uj=run.dram_uj if run.kinds & 2 else None,
        gpu_uj=run.gpu_uj if run.kinds & 4 else None,
        energy_method=overall_method(set(run.methods)),
        energy_scope=next((label for label in WIDEST_FIRST if label in run.scopes), LABELS[BY_HOST]),
        energy_reason="; ".join(sorted(run.reasons)[:4]) or None,
        carbon_ug=run.carbon_ug if run.with_carbon else None,
        carbon_lower_ug=lower,
        carbon_upper_ug=upper,
        carbon_reason=None if run.with_carbon else "; ".join(sorted(run.carbon_reasons)[:4]) or "energy_unavailable",
        gas=identity.gas,
        region=identity.region,
        upper_bound=run.upper_bound,
        factor_kg_per_kwh=factor,
        factor_source=identity.factor_source,
        tables=identity.tables,
        nodes=tuple(
            NodeRecord(
                node=node[0],
                trace_id=node[1],
                span_id=node[2],
                started_ns=int(node[3]),
                ended_ns=int(node[4]),
                cpu_uj=node[5],
                gpu_uj=node[6],
                total_uj=node[7],
                carbon_ug=node[8],
            )
            for node in sorted(run.nodes, key=lambda node: (int(node[3]), node[1], node[2]))
        ),
        account=account,
        stac_item=run.stac_item,
        hw_id=identity.hw_id,
        hw_name=identity.hw_name,
    )


def account_of(store: EnergyStore, claimed: dict[int, Claims], run: Run, start_ns: int, end_ns: int) -> Account | None:
    """Where the energy of a run's window went.

    1. Measured: idle and all pots over the window. 2. Claimed: the pots over the time that spans claimed, less what
       was left over of it.
    3. Other: the host's pot less its claims. 4. Unattributed: the processes' pots less theirs.
    5. Other runs: what was claimed less what this run's spans got.
    """
    covered = store.covered_ns(start_ns, end_ns)
    if not covered:
        return None
    idle = store.idle(start_ns, end_ns)
    left = {scope: sum(store.energy(start_ns, end_ns, scope)) for scope in store.scopes()}
    measured = idle + sum(left.values())
    given = 0
    for scope, times in claimed.items():
        if scope not in left:
            continue
        part = sum(sum(store.energy(low, high, scope)) for low, high in times.within(start_ns, end_ns))
        # A window may cut a leftover where rounding makes it a microjoule more than the pot has there.
        part = max(0, part - sum(sum(left) for _, _, left in times.left_within(start_ns, end_ns)))
        left[scope] -= part
        given += part
    # Rounding may move a microjoule to this run's spans from one that ends outside the window: it stays outside.
    own = min(given, run.cpu_uj + run.dram_uj + run.gpu_uj)
    return Account(
        start_ns=start_ns,
        end_ns=end_ns,
        measured_uj=measured,
        spans_uj=own,
        other_spans_uj=given - own,
        idle_uj=idle,
        other_uj=left.pop(0),
        unattributed_uj=sum(left.values()),
        uncovered_ns=end_ns - start_ns - covered,
    )
