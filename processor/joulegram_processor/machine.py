"""The processor as a function of the log: records in, positioned outputs out.

It never asks for the time, the network or the disk but for the log it reads; so the same log gives the same outputs.

Invariants:
    * an output's position is (lsn of the record that triggered it, its ordinal); positions grow;
    * a request leaves when all its selected spans are settled, in the bytes that came and the attributes they gained;
    * `dump` at a record's end, `load`, and the rest of the log give what the whole log gives.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from joulegram_pipeline.energy import TickBatch
from joulegram_pipeline.errors import AgentError, DocumentError, WireError
from joulegram_pipeline.records import RecordKind
from joulegram_processor.attribution import add_up, attribute
from joulegram_processor.energy_store import EnergyStore
from joulegram_processor.enrich import WRITTEN_KEYS, upsert
from joulegram_processor.foreign import ForeignEnergy
from joulegram_processor.intervals import IntervalSet
from joulegram_processor.join import Joiner
from joulegram_processor.runs import MAX_NODES, MAX_TRACES, ROOT_NAME, Run, account_of, publish
from joulegram_processor.select import Selector
from joulegram_processor.spans import OpenSpan, SpanReader
from joulegram_processor.wire import splice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.records import Json, LogRecord, RunRecord, SpanRecord
    from joulegram_processor.energy_store import Triple
    from joulegram_processor.join import CarbonModel, Joined, Window
    from joulegram_processor.runs import Identity
    from joulegram_processor.wire import SpanAt

STATE_VERSION = 1
CHUNK = 2048
"""Spans settled between two outputs, so that a second's worth of them is never in memory twice."""

MAX_RUNS = 10_000
"""Runs in memory; beyond it those that changed longest ago are forgotten, their spans are in the ledger."""

MAX_CARRIED = 200_000
"""Parents whose children have come and who have not; the oldest are forgotten first."""

Position = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the machine is told once.

    Args:
        selector: which spans are joined.
        forwarding: whether there is an upstream; without one nothing is enriched.
        default_run: the run of spans that name none; None makes it their trace.
        max_wait_ns: log time after which a trace is settled though its root has not come.
        retention_ns: how long ticks are kept.
        max_pending: spans waiting at most; beyond it the oldest traces are settled early.
        dedupe_spans: how many of the last joined spans a retry is recognised among, at least.
        share_idle: idle policy ``share`` instead of ``bucket``.
        run_idle_ns: log time without a new span that ends a run.
        run_quiet_ns: log time without a new span after which a run that got late ones is revised.
        run_keep_ns: log time after which a finished run is forgotten; a span that comes later begins it anew.
        local_energy: whether a local agent is expected. `hw.host.energy` from outside is taken while there is none
            with energy; without this, spans wait for it.
    """

    selector: Selector = field(default_factory=Selector)
    forwarding: bool = True
    default_run: str | None = None
    max_wait_ns: int = 30_000_000_000
    retention_ns: int = 86_400_000_000_000
    max_pending: int = 400_000
    dedupe_spans: int = 65_536
    share_idle: bool = False
    run_idle_ns: int = 900_000_000_000
    run_quiet_ns: int = 10_000_000_000
    run_keep_ns: int = 3_600_000_000_000
    local_energy: bool = True


@dataclass(slots=True)
class Outputs:
    """What one record brought about, in the order of positions.

    `forward` holds (position, kind, request bytes); `ticks` the batches to archive, with the record's lsn.
    """

    ledger: list[SpanRecord] = field(default_factory=list)
    forward: list[tuple[Position, RecordKind, bytes]] = field(default_factory=list)
    runs: list[RunRecord] = field(default_factory=list)
    ticks: list[tuple[int, bytes]] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)


class LogReader(Protocol):
    """The log, for requests that waited."""

    def read_at(self, lsn: int) -> LogRecord:
        """The record at a position."""


class _Held:
    """A request some of whose spans wait; `done` maps span index to its attributes, None for a repeated span."""

    __slots__ = ("done", "lsn", "spans", "waiting")

    def __init__(self, lsn: int, spans: list[OpenSpan]) -> None:
        self.lsn = lsn
        self.spans = spans
        self.waiting = len(spans)
        self.done: dict[int, tuple[bytes, bool, bool] | None] = {}


class _Trace:
    """Spans of one trace that wait to be settled together."""

    __slots__ = ("end_ns", "first_ns", "links", "rooted", "spans")

    def __init__(self, first_ns: int) -> None:
        self.spans: list[OpenSpan] = []
        self.links: dict[bytes, bytes] = {}
        self.first_ns = first_ns
        self.end_ns = 0
        self.rooted = False


class Machine:
    """The join over the log.

    Args:
        settings: what it is told once.
        carbon: how energy becomes carbon.
        identity: what run records say of node and factor.
        log: where requests that waited are read again.
        metrics: what is counted.
    """

    def __init__(
        self, settings: Settings, carbon: CarbonModel, identity: Identity, log: LogReader, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._carbon = carbon
        self._identity = identity
        self._log = log
        self._metrics = metrics
        self.store = EnergyStore(retention_ns=settings.retention_ns, share_idle=settings.share_idle)
        self._joiner = Joiner(self.store, carbon)
        self._reader = SpanReader(settings.selector, settings.default_run, WRITTEN_KEYS)
        self._foreign = ForeignEnergy()
        self._measures = False
        self.claimed: dict[int, IntervalSet] = {}
        self._carried: dict[bytes, Triple] = {}
        self._seen: set[bytes] = set()
        self._seen_before: set[bytes] = set()
        self._held: dict[int, _Held] = {}
        self._traces: dict[bytes, _Trace] = {}
        self._pending = 0
        self._runs: dict[str, Run] = {}
        self._changed_runs: set[str] = set()
        self._run_pids: dict[str, int] = {}
        self.position = 0
        """Where the log goes on: `next_lsn` of the last record fed."""
        self._lsn = 0
        self._ordinal = 0
        self._log_ns = 0
        self._swept_ns = 0

    # -- the log ---------------------------------------------------------------------------------------------

    def feed(self, record: LogRecord) -> Iterator[Outputs]:
        """Take in one record; yields what it brings about, in portions."""
        self._lsn, self._ordinal = record.lsn, 0
        self._log_ns = max(self._log_ns, record.received_ns)
        match record.kind:
            case RecordKind.TRACES:
                yield from self._traces_in(record)
            case RecordKind.TICKS:
                yield from self._ticks_in(record)
            case RecordKind.METRICS:
                yield from self._metrics_in(record)
            case RecordKind.CONTROL:
                yield from self._control_in(record)
            case _:
                yield self._pass_on(record)
        self.position = record.next_lsn
        self._metrics.pending_spans.set(self._pending)

    def oldest_needed(self) -> int:
        """The lowest lsn that a request still waiting will be read from; `position` where none waits."""
        return min(self._held, default=self.position)

    def has_spans_of(self, run_id: str) -> bool:
        """Whether a span of a run has come."""
        return run_id in self._runs or any(
            span.run_id == run_id for trace in self._traces.values() for span in trace.spans
        )

    def _next(self) -> Position:
        self._ordinal += 1
        return self._lsn, self._ordinal - 1

    def _pass_on(self, record: LogRecord) -> Outputs:
        out = Outputs()
        if self._settings.forwarding:
            out.forward.append((self._next(), record.kind, record.payload))
        return out

    def _traces_in(self, record: LogRecord) -> Iterator[Outputs]:
        try:
            spans, links = self._reader.read(record.payload, record.lsn)
        except WireError:
            # The receiver refuses these; a spool of another version may hold one. It travels on as it came.
            spans, links = [], {}
        if not spans:
            yield self._pass_on(record)
            return
        held = self._hold(record.lsn, record.received_ns, spans, links)
        out = Outputs(pids={span.pid for span in spans if span.pid})
        if not held.waiting:
            self._release(held, out)
        yield out
        if self._pending > self._settings.max_pending:
            yield from self._settle(self._oldest_traces())

    def _hold(
        self,
        lsn: int,
        received_ns: int,
        spans: list[OpenSpan],
        links: dict[bytes, bytes],
        done: dict[int, tuple[bytes, bool, bool] | None] | None = None,
    ) -> _Held:
        held = _Held(lsn, spans)
        self._held[lsn] = held
        traces = self._traces
        for span in spans:
            if done is not None and span.index in done:
                held.done[span.index] = done[span.index]
                held.waiting -= 1
                continue
            key = span.key
            if done is None and self._is_repeated(key):
                held.done[span.index] = None
                held.waiting -= 1
                self._metrics.duplicate_spans.inc()
                continue
            if self._run_pids and span.run_id in self._run_pids:
                span.pid = self._run_pids[span.run_id]
            trace = traces.get(key[:16])
            if trace is None:
                trace = traces[key[:16]] = _Trace(received_ns)
            trace.spans.append(span)
            trace.end_ns = max(trace.end_ns, span.end_ns)
            if not span.parent_key:
                trace.rooted = True
            if links:
                trace.links.update(links)
            self._pending += 1
        return held

    def _is_repeated(self, key: bytes) -> bool:
        seen = self._seen
        if key in seen or key in self._seen_before:
            return True
        seen.add(key)
        if len(seen) >= self._settings.dedupe_spans:
            self._seen_before, self._seen = seen, set()
        return False

    def _ticks_in(self, record: LogRecord) -> Iterator[Outputs]:
        try:
            batch = TickBatch.from_bytes(record.payload)
        except AgentError:
            self._metrics.energy_gaps.labels("unreadable_batch").inc()
            return
        self._measures = bool(batch.domains)
        if self._measures or (self._settings.local_energy and not self._foreign.active):
            yield Outputs(ticks=[(record.lsn, record.payload)])
            self._take_energy(batch)
        yield from self._advance()

    def _metrics_in(self, record: LogRecord) -> Iterator[Outputs]:
        yield self._pass_on(record)
        if self._measures:
            return
        try:
            batch = self._foreign.read(record.payload)
        except WireError:
            return  # as above: it travelled on as it came
        if batch is not None:
            yield Outputs(ticks=[(record.lsn, batch.to_bytes())])
            self._take_energy(batch)
            yield from self._advance()

    def _take_energy(self, batch: TickBatch) -> None:
        self.store.add(batch)
        for tick in batch.ticks:
            for gap in tick.gaps:
                self._metrics.energy_gaps.labels(gap.reason.partition(":")[0]).inc()

    def _control_in(self, record: LogRecord) -> Iterator[Outputs]:
        """Control records: ``run.start`` names a run's process, ``run.end`` settles and ends a run."""
        control = json.loads(record.payload)
        run_id = control.get("run_id", "")
        if control.get("type") == "run.start":
            self._run_pids[run_id] = int(control["pid"])
        elif control.get("type") == "run.end":
            wanted = [key for key, trace in self._traces.items() if any(span.run_id == run_id for span in trace.spans)]
            yield from self._settle(wanted)
            self._run_pids.pop(run_id, None)
            run = self._runs.get(run_id)
            if run is not None and run.ended_by is None:
                self._changed_runs.add(run_id)
                run.ended_by = str(control.get("ended_by", "command_exit"))
                run.status = str(control.get("status", run.status))
            yield from self._publish()

    # -- settling --------------------------------------------------------------------------------------------

    def _advance(self) -> Iterator[Outputs]:
        watermark, log_ns, max_wait_ns = self.store.watermark_ns, self._log_ns, self._settings.max_wait_ns
        ready = [
            key
            for key, trace in self._traces.items()
            if (trace.rooted and trace.end_ns <= watermark) or log_ns - trace.first_ns >= max_wait_ns
        ]
        yield from self._settle(ready)
        yield from self._publish()
        for times in self.claimed.values():
            times.forget_before(self.store.horizon_ns)

    def _oldest_traces(self) -> list[bytes]:
        room = self._pending - self._settings.max_pending * 3 // 4
        chosen = []
        for key, trace in self._traces.items():
            chosen.append(key)
            room -= len(trace.spans)
            if room <= 0:
                break
        return chosen

    def _settle(self, keys: list[bytes]) -> Iterator[Outputs]:
        """Settle whole traces together: attribute, add up, join, record; requests that are complete leave."""
        spans: list[OpenSpan] = []
        for key in keys:
            trace = self._traces.pop(key)
            if trace.links:
                for span in trace.spans:
                    span.parent_key = _joined_parent(span.parent_key, trace.links)
            spans += trace.spans
        if not spans:
            return
        self._pending -= len(spans)
        spans.sort(key=_by_key)
        attribute(self.store, self.claimed, spans)
        add_up(spans, self._carried)
        while len(self._carried) > MAX_CARRIED:
            del self._carried[next(iter(self._carried))]
        window = self._joiner.window(min(map(_start, spans)), max(map(_end, spans)))
        spans.sort(key=_by_origin)
        for at in range(0, len(spans), CHUNK):
            yield self._record(spans[at : at + CHUNK], window)

    def _record(self, spans: list[OpenSpan], window: Window | None) -> Outputs:
        out = Outputs()
        join, lsn, ordinal = self._joiner.join, self._lsn, self._ordinal
        counts: dict[str, int] = {}
        for span in spans:
            joined = join(span, window, [lsn, ordinal])
            ordinal += 1
            out.ledger.append(joined.record)
            counts[joined.method] = counts.get(joined.method, 0) + 1
            self._count_in(span, joined)
            held = self._held[span.origin]
            if self._settings.forwarding:
                held.done[span.index] = (joined.attributes, span.replaces, joined.reported)
            held.waiting -= 1
            if not held.waiting:
                self._ordinal = ordinal
                self._release(held, out)
                ordinal = self._ordinal
        self._ordinal = ordinal
        for method, count in counts.items():
            self._metrics.joined_spans.labels(method).inc(count)
        return out

    def _release(self, held: _Held, out: Outputs) -> None:
        """Let a request go whose spans are all settled; one that held nothing but repeated spans is not sent again."""
        del self._held[held.lsn]
        if not self._settings.forwarding:
            return
        done = held.done
        record = self._log.read_at(held.lsn)
        payload = record.payload
        if not any(value is not None for value in done.values()) and len(done) == _count_spans(payload):
            return

        def edit(index: int, at: SpanAt) -> bytes | None:
            content = payload[at.start : at.end]
            if index not in done:
                return content
            value = done[index]
            if value is None:
                return None
            attributes, replaces, reported = value
            return upsert(content, attributes, replaces=True, reported=reported) if replaces else content + attributes

        out.forward.append((self._next(), RecordKind.TRACES, splice(payload, edit)))

    # -- runs ------------------------------------------------------------------------------------------------

    def _count_in(self, span: OpenSpan, joined: Joined) -> None:
        run = self._runs.get(span.run_id)
        if run is None:
            run = self._runs[span.run_id] = Run(span.run_id, self._log_ns)
        run.changed_ns = self._log_ns
        self._changed_runs.add(span.run_id)
        if not run.spans or span.start_ns < run.started_ns:
            run.started_ns = span.start_ns
        run.ended_ns = max(run.ended_ns, span.end_ns)
        run.spans += 1
        kinds = joined.kinds
        own = span.own
        run.cpu_uj += own[0]
        run.dram_uj += own[1]
        run.gpu_uj += own[2]
        run.kinds |= kinds[0] | kinds[1] << 1 | kinds[2] << 2
        run.methods.add(joined.method)
        if joined.reason is not None:
            run.reasons.add(joined.reason)
        if joined.method != "unavailable":
            run.scopes.add(joined.scope)
        if joined.exclusive_ug is not None:
            run.with_carbon += 1
            run.carbon_ug += joined.exclusive_ug
            run.carbon_uj += own[0] + own[1] + own[2]
            run.factor_weighted += (own[0] + own[1] + own[2]) * joined.mg_per_kwh
            run.priced.add(f"{joined.method}/{joined.resolution}")
            run.align_sq += joined.align_ug * joined.align_ug
            run.upper_bound = run.upper_bound or joined.upper_bound
        else:
            run.carbon_reasons.add(joined.record["carbon"].get("reason", "unknown"))
        trace_id = joined.record["trace_id"]
        if len(run.traces) < MAX_TRACES:
            run.traces.add(trace_id)
        run.is_trace = run.is_trace or trace_id == span.run_id
        self._describe(run, span, joined)

    def _describe(self, run: Run, span: OpenSpan, joined: Joined) -> None:
        node = joined.record.get("node")
        if node is not None and len(run.nodes) < MAX_NODES:
            energy = joined.record["energy"]
            run.nodes.append(
                [
                    node,
                    joined.record["trace_id"],
                    joined.record["span_id"],
                    str(span.start_ns),
                    str(span.end_ns),
                    energy.get("cpu_uj"),
                    energy.get("gpu_uj"),
                    energy.get("total_uj"),
                    joined.record["carbon"].get("ug"),
                ]
            )
        if span.name == ROOT_NAME and not span.parent_key:
            run.root = joined.record["span_id"]
            run.status = span.status_text
            run.ended_by = run.ended_by or "root_span"
            kind = span.attributes.get("job.type")
            if isinstance(kind, str) and kind:
                run.job_type = kind
        item = span.attributes.get("kfm.stac_item")
        if isinstance(item, str) and item:
            run.stac_item = item

    def _publish(self) -> Iterator[Outputs]:
        """Publish the runs that ended or were revised; forget those nobody adds to any more."""
        settings = self._settings
        for run_id in sorted(self._changed_runs):
            run = self._runs[run_id]
            why = run.ready(self._log_ns, settings.run_idle_ns, settings.run_quiet_ns)
            if why is None:
                continue
            self._changed_runs.discard(run_id)
            if run.is_trace and run.root is None:  # neither an id nor a root: spans, but no run
                del self._runs[run_id]
                continue
            account = account_of(self.store, self.claimed, run, run.started_ns, run.ended_ns)
            yield Outputs(runs=[publish(run, why, self._next(), self._log_ns, self._identity, account, self._carbon)])
        if self._log_ns - self._swept_ns >= settings.run_quiet_ns or len(self._runs) > MAX_RUNS:
            self._swept_ns = self._log_ns
            finished = [run for run in self._runs.values() if run.run_id not in self._changed_runs]
            for run in finished:
                if self._log_ns - run.changed_ns >= settings.run_keep_ns:
                    del self._runs[run.run_id]
            for run in sorted(self._runs.values(), key=lambda run: (run.changed_ns, run.run_id))[:-MAX_RUNS]:
                del self._runs[run.run_id]
                self._changed_runs.discard(run.run_id)

    # -- snapshot --------------------------------------------------------------------------------------------

    def dump(self) -> Json:
        """The state after the last record, as JSON; ticks are in the archive and requests in the log."""
        return {
            "version": STATE_VERSION,
            "position": self.position,
            "log_ns": str(self._log_ns),
            "swept_ns": str(self._swept_ns),
            "claimed": {
                str(scope): [[str(low), str(high)] for low, high in times.items]
                for scope, times in self.claimed.items()
            },
            "carried": {key.hex(): list(value) for key, value in self._carried.items()},
            "seen": _pack(self._seen),
            "seen_before": _pack(self._seen_before),
            "held": [
                {
                    "lsn": held.lsn,
                    "done": {
                        str(index): None if value is None else [base64.b64encode(value[0]).decode(), value[1], value[2]]
                        for index, value in held.done.items()
                    },
                }
                for held in self._held.values()
            ],
            "runs": [run.dump() for run in self._runs.values()],
            "run_pids": dict(self._run_pids),
            "foreign": self._foreign.dump(),
            "measures": self._measures,
        }

    def load(self, state: Json) -> None:
        """Take up a dumped state; ticks up to its position must have been given to `store` before.

        Raises:
            DocumentError: the state is of another version.
        """
        if state.get("version") != STATE_VERSION:
            raise DocumentError(f"got machine state version {state.get('version')!r}, expected {STATE_VERSION}")
        self.position = state["position"]
        self._log_ns = int(state["log_ns"])
        self._swept_ns = int(state["swept_ns"])
        self.claimed = {
            int(scope): IntervalSet((int(low), int(high)) for low, high in times)
            for scope, times in state["claimed"].items()
        }
        self._carried = {bytes.fromhex(key): (v[0], v[1], v[2]) for key, v in state["carried"].items()}
        self._seen = _unpack(state["seen"])
        self._seen_before = _unpack(state["seen_before"])
        self._runs = {raw["run_id"]: Run.load(raw) for raw in state["runs"]}
        self._changed_runs = {run.run_id for run in self._runs.values() if run.spans != run.published_spans}
        self._run_pids = dict(state["run_pids"])
        self._foreign.load(state["foreign"])
        self._measures = state["measures"]
        for item in state["held"]:
            record = self._log.read_at(item["lsn"])
            spans, links = self._reader.read(record.payload, record.lsn)
            done = {
                int(index): None if value is None else (base64.b64decode(value[0]), value[1], value[2])
                for index, value in item["done"].items()
            }
            self._hold(record.lsn, record.received_ns, spans, links, done)


def _joined_parent(key: bytes, links: dict[bytes, bytes]) -> bytes:
    for _ in range(64):
        above = links.get(key)
        if above is None:
            return key
        key = above
    return key


def _by_key(span: OpenSpan) -> tuple[int, int, bytes]:
    return span.start_ns, span.end_ns, span.key


def _by_origin(span: OpenSpan) -> tuple[int, int]:
    return span.origin, span.index


def _start(span: OpenSpan) -> int:
    return span.start_ns


def _end(span: OpenSpan) -> int:
    return span.end_ns


def _count_spans(payload: bytes) -> int:
    count = 0

    def edit(index: int, at: SpanAt) -> bytes:
        nonlocal count
        count = index + 1
        return payload[at.start : at.end]

    splice(payload, edit)
    return count


def _pack(keys: set[bytes]) -> str:
    return base64.b64encode(b"".join(keys)).decode()


def _unpack(text: str) -> set[bytes]:
    data = base64.b64decode(text)
    return {data[at : at + 24] for at in range(0, len(data), 24)}
