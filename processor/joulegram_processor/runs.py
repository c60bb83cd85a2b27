"""Runs: what the spans of one `kfm.run_id` add up to, kept in integers so that order does not matter."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import mul
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.energy import Method
from joulegram_pipeline.records import Account, NodeRecord, RunRecord
from joulegram_processor.intensity.carbon import carbon_ug
from joulegram_processor.spans import END, NAME, ROOT_NAME, SPAN, START, STATUS, TRACE, node_of, shortened, status_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from joulegram_pipeline.records import TableRef
    from joulegram_processor.attribution import Columns
    from joulegram_processor.energy_store import EnergyStore
    from joulegram_processor.intervals import IntervalSet
    from joulegram_processor.join import CarbonModel, Joined
    from joulegram_processor.join_columns import Uniform
    from joulegram_processor.spans import Row

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


class Tally:
    """Counts joined spans into their runs.

    Args:
        runs: by id; runs that are not there yet are added.
    """

    def __init__(self, runs: dict[str, Run]) -> None:
        self._runs = runs

    def add(
        self, spans: Columns, index: int, row: Row, run_id: str, extras: dict[str, Any], joined: Joined, log_ns: int
    ) -> None:
        """Count one span in."""
        own = (spans.own[0][index], spans.own[1][index], spans.own[2][index])
        run = self._run(run_id, log_ns, row[START], row[END])
        run.spans += 1
        run.cpu_uj += own[0]
        run.dram_uj += own[1]
        run.gpu_uj += own[2]
        run.kinds |= kinds_mask(joined.kinds)
        run.methods.add(joined.method)
        if joined.reason is not None:
            run.reasons.add(joined.reason)
        if joined.method != Method.UNAVAILABLE.value:
            run.scopes.add(joined.scope)
        if joined.exclusive_ug is not None:
            run.with_carbon += 1
            run.priced.add(f"{joined.method}/{joined.resolution}")
            run.carbon_ug += joined.exclusive_ug
            run.carbon_uj += sum(own)
            run.factor_weighted += sum(own) * joined.mg_per_kwh
            run.align_sq += joined.align_ug * joined.align_ug
            run.upper_bound = run.upper_bound or joined.upper_bound
        elif joined.carbon_reason is not None:
            run.carbon_reasons.add(joined.carbon_reason)
        energy = joined.line["energy"]
        self._describe(
            run,
            row,
            bool(spans.parents[index]),
            extras,
            (energy.get("cpu_uj"), energy.get("gpu_uj"), energy.get("total_uj"), joined.line["carbon"].get("ug")),
        )

    def add_columns(
        self,
        spans: Columns,
        chosen: list[int],
        rows: list[Row],
        runs: list[str],
        extras: list[dict[str, Any]],
        what: Uniform,
        carbons: list[int],
        aligns: list[int],
        log_ns: int,
    ) -> set[str]:
        """Count spans in of which one thing holds; returns the ids of their runs."""
        by_run: dict[str, list[int]] = {}
        if len(set(runs[chosen[0] : chosen[-1] + 1])) == 1:
            by_run[runs[chosen[0]]] = list(range(len(chosen)))
        else:
            for at, index in enumerate(chosen):
                by_run.setdefault(runs[index], []).append(at)
        method, segment = what.window.method, what.segment
        for run_id, places in by_run.items():
            indices = [chosen[at] for at in places]
            cpu, dram, gpu = (sum(map(column.__getitem__, indices)) for column in spans.own)
            misaligned = list(map(aligns.__getitem__, places))
            run = self._run(
                run_id,
                log_ns,
                min(map(spans.starts.__getitem__, indices)),
                max(map(spans.ends.__getitem__, indices)),
            )
            run.spans += len(indices)
            run.cpu_uj += cpu
            run.dram_uj += dram
            run.gpu_uj += gpu
            run.kinds |= kinds_mask(what.window.kinds)
            run.methods.add(method)
            run.scopes.update("process" if scope else "host" for scope in set(map(spans.scopes.__getitem__, indices)))
            run.with_carbon += len(indices)
            run.priced.add(f"{method}/{segment.resolution}")
            run.carbon_ug += sum(map(carbons.__getitem__, places))
            run.carbon_uj += cpu + dram + gpu
            run.factor_weighted += (cpu + dram + gpu) * segment.mg_per_kwh
            run.align_sq += sum(map(mul, misaligned, misaligned))
            run.upper_bound = run.upper_bound or segment.upper_bound
            self._describe_columns(
                run, spans, indices, rows, extras, [carbons[at] for at in places], segment.mg_per_kwh
            )
        return set(by_run)

    def _run(self, run_id: str, log_ns: int, start_ns: int, end_ns: int) -> Run:
        run = self._runs.get(run_id)
        if run is None:
            run = self._runs[run_id] = Run(run_id, log_ns, started_ns=start_ns, ended_ns=end_ns)
        run.changed_ns = log_ns
        run.started_ns = min(run.started_ns, start_ns)
        run.ended_ns = max(run.ended_ns, end_ns)
        return run

    def _describe_columns(
        self,
        run: Run,
        spans: Columns,
        indices: list[int],
        rows: list[Row],
        extras: list[dict[str, Any]],
        carbons: list[int],
        mg_per_kwh: int,
    ) -> None:
        """`_describe` for those spans that can tell a document something it does not know yet."""
        full = len(run.nodes) >= MAX_NODES and len(run.traces) >= MAX_TRACES
        telling: Iterable[tuple[int, int]] = zip(indices, carbons, strict=True)
        if full:
            telling = ((index, ug) for index, ug in telling if extras[index] or rows[index][NAME] == ROOT_NAME)
        for index, ug in telling:
            row, extra = rows[index], extras[index]
            own = [column[index] for column in spans.own]
            kids = [column[index] for column in spans.kids]
            total = sum(own) + sum(kids)
            figures = (
                own[0] + kids[0],
                None,  # what is uniform has no GPU energy
                total,
                carbon_ug(total, mg_per_kwh) if any(kids) else ug,
            )
            self._describe(run, row, bool(spans.parents[index]), extra, figures)

    def _describe(
        self,
        run: Run,
        row: Row,
        has_parent: bool,
        extras: dict[str, Any],
        figures: tuple[int | None, int | None, int | None, int | None],
    ) -> None:
        """What documents say of single spans: nodes, the root, the Item."""
        if len(run.traces) < MAX_TRACES:
            trace_id = row[TRACE].hex()
            run.traces.add(trace_id)
            run.is_trace = run.is_trace or trace_id == run.run_id
        node = node_of(row[NAME], extras)
        if node is not None and len(run.nodes) < MAX_NODES:
            run.nodes.append([node, row[TRACE].hex(), row[SPAN].hex(), str(row[START]), str(row[END]), *figures])
        if row[NAME] == ROOT_NAME and not has_parent:
            run.root = row[SPAN].hex()
            run.status = status_text(row[STATUS])
            run.ended_by = run.ended_by or "root_span"
            kind = extras.get("job.type")
            if isinstance(kind, str) and kind:
                run.job_type = shortened(kind)
        item = extras.get("kfm.stac_item")
        if isinstance(item, str) and 0 < len(item) <= MAX_PATH:
            run.stac_item = item


def kinds_mask(kinds: tuple[bool, bool, bool]) -> int:
    """Kinds as bits, in the order of `KINDS`."""
    return kinds[0] | kinds[1] << 1 | kinds[2] << 2


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
        energy_scope=run.scopes.copy().pop() if len(run.scopes) == 1 else "host",
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


def account_of(
    store: EnergyStore, claimed: dict[int, IntervalSet], run: Run, start_ns: int, end_ns: int
) -> Account | None:
    """Where the energy of a run's window went.

    1. Measured: idle and all pots over the window. 2. Claimed: the pots over the time that spans claimed.
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
