"""The processor as a function of the log: records in, positioned outputs out.

It never asks for the time, the network or the disk but for the log it reads; so the same log gives the same outputs.

Invariants:
    * an output's position is (lsn of the record that triggered it, its ordinal); positions grow;
    * a request leaves when all its selected spans are settled, in the bytes that came and the attributes they gained;
    * `dump` at a record's end, `load`, and the rest of the log give what the whole log gives.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from joulegram_pipeline.energy import TickBatch
from joulegram_pipeline.errors import AgentError, DocumentError, WireError
from joulegram_pipeline.records import Outgoing, RecordKind, without_afar
from joulegram_processor.attribution import attribute
from joulegram_processor.claims import Claims
from joulegram_processor.energy_store import EnergyStore
from joulegram_processor.enrich import WRITTEN_KEYS
from joulegram_processor.enriched_request import enriched
from joulegram_processor.foreign import ForeignEnergy
from joulegram_processor.inclusive import add_up
from joulegram_processor.inner_spans import InnerSpans
from joulegram_processor.join import Joiner, Settled
from joulegram_processor.join_columns import ColumnJoiner, Portion
from joulegram_processor.machine_types import Outputs, gap_record
from joulegram_processor.repeats import Repeats
from joulegram_processor.runs import Run, account_of, publish
from joulegram_processor.scopes import HOST, board_of
from joulegram_processor.spans import Batch, SpanReader, roots_of, spent_ns
from joulegram_processor.tally import Tally
from joulegram_processor.waiting import ANY_RUN, NO_SPAN, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.records import Json, LogRecord
    from joulegram_pipeline.span_rows import Extract
    from joulegram_processor.energy_store import Triple
    from joulegram_processor.join import CarbonModel, Window
    from joulegram_processor.join_columns import Uniform
    from joulegram_processor.machine_types import LogReader, Position, Settings
    from joulegram_processor.runs import Identity
    from joulegram_processor.waiting import Settlement

STATE_VERSION = 2
CHUNK = 2048
"""Spans settled between two outputs, so that a second's worth of them is never in memory twice."""

MAX_RUNS = 10_000
"""Runs in memory; beyond it those that changed longest ago are forgotten, their spans are in the ledger."""

MAX_CARRIED = 200_000
"""Parents whose children have come and who have not; the oldest are forgotten first."""


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
        self.store = EnergyStore(
            retention_ns=settings.retention_ns,
            share_idle=settings.share_idle,
            lookback_ns=max(settings.lookback_ns, 2 * settings.max_wait_ns),
        )
        self._joiner = Joiner(self.store, carbon)
        self._columns = ColumnJoiner(self.store, self._joiner, encode=settings.forwarding)
        self._reader = SpanReader(settings.selector, settings.default_run, WRITTEN_KEYS)
        self._foreign = ForeignEnergy()
        self._measures = False
        self.claimed: dict[int, Claims] = {}
        self._carried: dict[bytes, Triple] = {}
        self._inner = InnerSpans()
        self._repeats = Repeats(settings.dedupe_spans)
        self._waiting = Waiting()
        self._runs: dict[str, Run] = {}
        self._tally = Tally(self._runs)
        self._changed_runs: set[str] = set()
        self.position = 0
        """Where the log goes on: `next_lsn` of the last record fed."""
        self.selected = 0
        """Spans selected since this machine was made, replayed ones included."""
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
        self._metrics.pending_spans.set(self._waiting.count)

    def oldest_needed(self) -> int:
        """The lowest lsn that a request still waiting will be read from; `position` where none waits."""
        put_off = (lsn for lsn, _ in self._waiting.put_off)
        return min((*self._waiting.held, *put_off), default=self.position)

    def extract(self, payload: bytes) -> Extract:
        """What the join wants of a trace request, for who has it in memory before it is in the log; any thread.

        Raises:
            WireError: the bytes are not one.
        """
        return self._reader.extract(payload)

    @property
    def names_processes(self) -> bool:
        """Whether a process still speaks for a run: at a start, one that was killed before it could end its run."""
        return bool(self._waiting.run_pids)

    @property
    def is_waiting(self) -> bool:
        """Whether any span waits for its energy."""
        return self._waiting.count > 0 or bool(self._waiting.put_off)

    def holds(self) -> dict[str, int | float | str]:
        """What waits in the join, for people; read from other threads, so it may be a moment old."""
        return {
            "spans": self._waiting.count,
            "requests": len(self._waiting.held) + len(self._waiting.put_off),
            "runs": len(self._runs),
            "ticks": len(self.store.rows),
        }

    def oldest_waiting_s(self, now_ns: int) -> float | None:
        """How long the oldest request that waits has been here; None where none waits."""
        oldest = next(iter(list(self._waiting.held.values())), None)
        return None if oldest is None else max(0.0, (now_ns - oldest.received_ns) / 1e9)

    def _next(self) -> Position:
        self._ordinal += 1
        return self._lsn, self._ordinal - 1

    def _pass_on(self, record: LogRecord) -> Outputs:
        out = Outputs()
        if self._settings.forwarding:
            out.forward.append(Outgoing(self._next(), record.kind, record.payload, without_afar(record.metadata)))
        return out

    def _traces_in(self, record: LogRecord) -> Iterator[Outputs]:
        try:
            batch = self._reader.read(record)
        except WireError:
            # The receiver refuses these; a spool of another version may hold one. It travels on as it came.
            batch = Batch(record.lsn, record.received_ns)
        if not batch.rows:
            self._inner.add(batch.spent)
            if self._waiting.rootless or self._waiting.put_off:
                roots = roots_of(record.payload)
                self._waiting.root(roots)
                if roots and self._waiting.put_off:
                    self._waiting.put_off.append((record.lsn, NO_SPAN))
            yield self._pass_on(record)
            return
        self.selected += len(batch.rows)
        due_ns = self._tick_due_ns
        if self._waiting.put_off or self._waiting.count > self._settings.max_pending:
            self._waiting.put_off.append((record.lsn, min(batch.starts)))
            yield Outputs(pids=batch.processes)
            yield from self._make_room(due_ns)
            yield from self._take_put_off(due_ns)
        else:
            yield from self._take_in(batch, due_ns)

    def _take_in(self, batch: Batch, tick_due_ns: int) -> Iterator[Outputs]:
        """Let the spans of a request wait for their energy."""
        self._inner.add(batch.spent)
        self._metrics.duplicate_spans.inc(self._repeats.mark(batch))
        self._waiting.add(batch)
        out = Outputs(pids=batch.processes)
        if not batch.waiting:
            self._release(batch, out)
        yield out
        yield from self._make_room(tick_due_ns)

    def _make_room(self, tick_due_ns: int) -> Iterator[Outputs]:
        """Settle the oldest early where too many wait; not those whose energy is still to come."""
        most, waiting, known_ns = self._settings.max_pending, self._waiting, self.store.watermark_ns
        if waiting.count <= most or not waiting.oldest(1, known_ns, self._log_ns, tick_due_ns):
            return  # as a rule, and for each request that is put off: so before all of those are looked at
        # The same room by both: little of it at a time would be made as often as a request is taken in.
        for covered_ns in (waiting.without_put_off(known_ns), known_ns):
            surplus = waiting.count - (most - most // 4)
            if surplus > 0:
                yield from self._settle(waiting.oldest(surplus, covered_ns, self._log_ns, tick_due_ns))

    def _take_put_off(self, tick_due_ns: int) -> Iterator[Outputs]:
        """Take in requests that were put off, as far as there is room."""
        put_off = self._waiting.put_off
        while put_off and self._waiting.count <= self._settings.max_pending:
            lsn, start_ns = put_off.popleft()
            record = self._log.find(lsn)
            if start_ns == NO_SPAN:
                self._waiting.root(set() if record is None else roots_of(record.payload))
            elif record is None:
                self._waiting.gone.append(lsn)
            else:
                yield from self._take_in(self._reader.read(record), tick_due_ns)

    @property
    def _tick_due_ns(self) -> int:
        """For how long a tick is still to come: where nothing measures there is none."""
        return self._settings.tick_due_ns if self._settings.local_energy or self._foreign.active else 0

    def _ticks_in(self, record: LogRecord) -> Iterator[Outputs]:
        try:
            batch = TickBatch.from_bytes(record.payload)
        except AgentError:
            self._metrics.energy_gaps.labels("unreadable_batch").inc()
            return
        self._measures = bool(batch.domains)
        self.store.last_reason = batch.reason
        if self._measures or (self._settings.local_energy and not self._foreign.active):
            yield Outputs(ticks=[(record.lsn, record.payload)])
            self._take_energy(batch)
        yield from self._advance(self._settings.settle_after_ns)

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
            yield from self._advance(self._settings.settle_after_ns)

    def _take_energy(self, batch: TickBatch) -> None:
        self.store.add(batch)
        for tick in batch.ticks:
            for gap in tick.gaps:
                self._metrics.energy_gaps.labels(gap.reason.partition(":")[0]).inc()

    def _control_in(self, record: LogRecord) -> Iterator[Outputs]:
        """Control records: ``run.start`` names its process, ``run.end`` settles and ends it, ``run.forget`` unnames.

        ``spool.gap`` says what a full spool dropped, and becomes a line of the ledger. ``intake.closed`` says that the
        receiver is closed and its last ticks are here: who waits for others waits no longer.

        A run that was started so is published when it was ended so, because only then its status is known. With `alone`
        the process speaks for every span and every span is settled: nobody else sends to this sidecar.
        """
        control = json.loads(record.payload)
        run_id, alone = str(control.get("run_id")), bool(control.get("alone"))
        if control.get("type") == "run.start":
            self._waiting.name(run_id, int(control["pid"]), alone=alone)
        elif control.get("type") == "run.forget":
            self._waiting.run_pids.clear()
        elif control.get("type") == "spool.gap":
            lost = self._waiting.lose(int(control["first_lsn"]), int(control["next_lsn"]))
            yield Outputs(records=[gap_record(control, self._next(), lost)])
        elif control.get("type") == "intake.closed":
            yield from self._advance(0)
        elif control.get("type") == "run.end":
            if alone:
                yield from self._make_room(0)
                yield from self._take_put_off(0)
            yield from self._settle(self._waiting.of_run(ANY_RUN if alone else run_id))
            self._waiting.unname(run_id, alone=alone)
            run = self._runs.get(run_id)
            if run is not None:
                run.ended_by = run.ended_by or str(control.get("ended_by", "command_exit"))
                status = str(control.get("status", run.status))
                if run.status == "unset" or status == "error":
                    run.status = status
            yield from self._publish()

    # -- settling --------------------------------------------------------------------------------------------

    def _advance(self, settle_after_ns: int) -> Iterator[Outputs]:
        covered_ns = self.store.watermark_ns - settle_after_ns
        due_ns = self._tick_due_ns
        while True:
            until_ns = self._waiting.without_put_off(covered_ns)
            ready = self._waiting.ready(until_ns, self._log_ns, self._settings.max_wait_ns)
            yield from self._settle(ready)
            yield from self._make_room(due_ns)
            if not self._waiting.put_off or self._waiting.count > self._settings.max_pending:
                break
            yield from self._take_put_off(due_ns)
        yield from self._publish()
        for times in self.claimed.values():
            times.forget_before(self.store.horizon_ns)
        for scope in [scope for scope, times in self.claimed.items() if not times.items and scope != HOST]:
            del self.claimed[scope]

    def _settle(self, keys: list[bytes]) -> Iterator[Outputs]:
        """Settle whole traces together: attribute, add up, join, record; requests that are complete leave."""
        group = self._waiting.take(keys)
        if not group.rows:
            return
        spans = group.spans
        self._find_scopes(group, self._inner.take)
        beside = self._waiting.beside(min(spans.starts), min(max(spans.ends), self.store.watermark_ns))
        self._find_scopes(beside, self._inner.of)
        attribute(self.store, self.claimed, spans, beside.spans)
        add_up(spans, self._carried)
        while len(self._carried) > MAX_CARRIED:
            del self._carried[next(iter(self._carried))]
        for first in range(0, len(spans), CHUNK):
            chosen = list(range(first, min(first + CHUNK, len(spans))))
            start_ns, end_ns = min(spans.starts[first : first + CHUNK]), max(spans.ends[first : first + CHUNK])
            window = self._joiner.window(start_ns, end_ns)
            kids = [column[first : first + CHUNK] for column in spans.kids]
            uniform = self._columns.uniform(window, start_ns, end_ns, kids)
            # A span that has a key we write takes the general path: it is replaced, or the energy is its own report.
            plain = (
                uniform is not None
                and spans.late.isdisjoint(chosen)
                and not any(
                    extra and not WRITTEN_KEYS.isdisjoint(extra) for extra in group.extras[first : first + CHUNK]
                )
            )
            if plain and uniform is not None:
                yield self._record_columns(group, chosen, uniform)
            else:
                yield self._record_each(group, chosen, window)

    def _find_scopes(self, group: Settlement, inner_ns: Callable[[bytes], int]) -> None:
        """Put scopes in the place of the keys that spans named, now that the ticks of their time are there."""
        spans = group.spans
        found = {name: self._scope(name) if isinstance(name, str) else name for name in set(group.named)}
        spans.pids = list(map(found.__getitem__, group.named))
        for index, extras in enumerate(group.extras):
            if extras:
                spent, board = spent_ns(extras), board_of(extras)
                if spent is not None:
                    spans.cpu_ns[index] = spent + inner_ns(spans.keys[index])
                if board is not None and (scope := self._scope(board)) != HOST:
                    spans.boards[index] = scope

    def _scope(self, key: str) -> int:
        return self.store.resolve(key, self._was_given)

    def _was_given(self, scope: int, start_ns: int, end_ns: int) -> bool:
        return scope in self.claimed and self.claimed[scope].touches(start_ns, end_ns)

    def _record_columns(self, group: Settlement, chosen: list[int], uniform: Uniform) -> Outputs:
        """Join and record spans of which one thing holds."""
        out = Outputs()
        portion = Portion(uniform, group, chosen, self._lsn, self._ordinal)
        out.lines, blobs, carbons, aligns = self._columns.join(portion)
        self._ordinal += len(chosen)
        self._metrics.joined_spans.labels(uniform.window.method).inc(len(chosen))
        self._changed_runs |= self._tally.add_columns(portion, carbons, aligns, self._log_ns)
        self._give_back(group, chosen, blobs, out)
        return out

    def _record_each(self, group: Settlement, chosen: list[int], window: Window | None) -> Outputs:
        """Join and record spans one by one."""
        out = Outputs()
        spans = group.spans
        blobs = []
        for index in chosen:
            joined = self._joiner.join(
                Settled(
                    row=group.rows[index],
                    key=spans.keys[index],
                    parent=spans.parents[index],
                    origin=group.origins[index],
                    run_id=group.runs[index],
                    own=(spans.own[0][index], spans.own[1][index], spans.own[2][index]),
                    kids=(spans.kids[0][index], spans.kids[1][index], spans.kids[2][index]),
                    scope=spans.scopes[index],
                    label=spans.labels[index],
                    extras=group.extras[index],
                    late=index in spans.late,
                ),
                window,
                [self._lsn, self._ordinal],
            )
            self._ordinal += 1
            out.records.append(joined.line)
            blobs.append(joined.attributes)
            self._metrics.joined_spans.labels(joined.method).inc()
            self._changed_runs.add(group.runs[index])
            self._tally.add(
                spans, index, group.rows[index], group.runs[index], group.extras[index], joined, self._log_ns
            )
        self._give_back(group, chosen, blobs, out)
        return out

    def _give_back(self, group: Settlement, chosen: list[int], blobs: list[bytes], out: Outputs) -> None:
        """Hand the attributes to the requests they belong to; those that are complete leave."""
        for index, blob in zip(chosen, blobs, strict=True):
            batch = group.batches[index]
            batch.blobs[group.at[index]] = blob
            batch.waiting -= 1
            if not batch.waiting:
                self._release(batch, out)

    def _release(self, batch: Batch, out: Outputs) -> None:
        """Let a request go whose spans are all settled; one that held nothing but repeated spans is not sent again."""
        self._waiting.release(batch)
        if not self._settings.forwarding or len(batch.repeated) == batch.total:
            return
        record = self._log.find(batch.lsn)
        if record is None:
            return  # lost while it waited: the gap or the count of damaged records says so; its spans are in the ledger
        sent = record.payload
        try:
            sent = enriched(sent, batch)
        except WireError:
            # It parsed, so it is a request; one we cannot find our way in travels on as it came.
            self._metrics.invalid_spans.labels("encoding").inc(batch.total)
        out.forward.append(Outgoing(self._next(), RecordKind.TRACES, sent, without_afar(record.metadata)))

    # -- runs ------------------------------------------------------------------------------------------------

    def _publish(self) -> Iterator[Outputs]:
        """Publish the runs that ended or were revised; forget those nobody adds to any more."""
        settings = self._settings
        for run_id in sorted(self._changed_runs):
            run = self._runs[run_id]
            why = run.ready(self._log_ns, settings.run_idle_ns, settings.run_quiet_ns)
            if why is None or (run_id in self._waiting.run_pids and why != "idle_timeout"):
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
            "claimed": {str(scope): times.dump() for scope, times in self.claimed.items()},
            "scopes": self.store.dump_scopes(),
            "carried": {key.hex(): list(value) for key, value in self._carried.items()},
            "repeats": self._repeats.dump(),
            "inner": self._inner.dump(),
            "waiting": self._waiting.dump(),
            "runs": [run.dump() for run in self._runs.values()],
            "foreign": self._foreign.dump(),
            "measures": self._measures,
            "reason": self.store.last_reason,
        }

    def load_scopes(self, state: Json) -> None:
        """Before the ticks up to a dumped state's position are given to `store`: who has a pot of their own in them.

        Raises:
            DocumentError: the state is of another version.
        """
        if state.get("version") != STATE_VERSION:
            raise DocumentError(f"got machine state version {state.get('version')!r}, expected {STATE_VERSION}")
        self.store.load_scopes(state["scopes"])

    def load(self, state: Json) -> None:
        """Take up a dumped state, after `load_scopes` and the ticks up to its position."""
        self.position = state["position"]
        self._log_ns = int(state["log_ns"])
        self._swept_ns = int(state["swept_ns"])
        self.claimed = {int(scope): Claims.load(times) for scope, times in state["claimed"].items()}
        self._carried = {bytes.fromhex(key): (v[0], v[1], v[2]) for key, v in state["carried"].items()}
        self._repeats.load(state["repeats"])
        self._inner.load(state["inner"])
        self._runs.clear()
        self._runs.update((raw["run_id"], Run.load(raw)) for raw in state["runs"])
        self._changed_runs = {run.run_id for run in self._runs.values() if run.spans != run.published_spans}
        self._foreign.load(state["foreign"])
        self._measures = state["measures"]
        self.store.last_reason = state["reason"]
        self._waiting.load(state["waiting"], self._read_again)

    def _read_again(self, lsn: int) -> Batch | None:
        record = self._log.find(lsn)
        return None if record is None else self._reader.read(record)
