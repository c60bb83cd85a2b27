"""What waits for its energy: requests until all their spans are settled, and the traces their spans belong to.

Invariants:
    * a span waits in exactly one trace; a request is held until none of its spans waits;
    * traces and requests stand in the order they came, so what is taken does not depend on hashing.
"""

from __future__ import annotations

import base64
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.span_rows import END, PARENT, START, TRACE
from joulegram_processor.attribution import Columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from joulegram_pipeline.records import Json
    from joulegram_pipeline.span_rows import Row
    from joulegram_processor.spans import Batch

NO_SPAN = 1 << 64
"""Later than any start."""

ANY_RUN = ""
"""In place of a run id, which is never empty: the process that speaks for every run."""

MAX_BESIDE = 20_000
"""Spans that wait and have a part in the time of those that are settled; of more the rest find what is left."""

NO_EXTRAS: dict[str, Any] = {}
"""Of a span without attributes that the join reads."""


class _Trace:
    """Spans of one trace that wait to be settled together: whole batches, or rows of them."""

    __slots__ = ("count", "end_ns", "first_ns", "links", "parts", "rooted", "start_ns")

    def __init__(self, first_ns: int) -> None:
        self.parts: list[tuple[Batch, list[int]]] = []
        self.links: dict[bytes, bytes] = {}
        self.first_ns = first_ns
        self.start_ns = 1 << 64
        self.end_ns = 0
        self.rooted = False
        self.count = 0


@dataclass(slots=True)
class Settlement:
    """Spans settled together, column by column, in the order of the log.

    Args:
        spans: their times, parents and energy; their scopes are still to be found.
        named: the scope each names, as it was read.
        batches: the request of each.
        at: its place among the selected spans of that request.
        rows: as read.
        origins: lsn of the request.
        runs: run id.
        extras: attributes the join reads.
    """

    spans: Columns = field(default_factory=Columns)
    named: list[int | str] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    extras: list[dict[str, Any]] = field(default_factory=list)


class Waiting:
    """The spans that wait, by request and by trace."""

    def __init__(self) -> None:
        self.held: dict[int, Batch] = {}
        """Requests by lsn."""
        self.put_off: deque[tuple[int, int]] = deque()
        """Requests there was no room for, to be read again when there is: lsn, and the first start of a span, or
        `NO_SPAN` where only the roots in it are of use."""
        self.gone: list[int] = []
        """Those of them that were no longer there when there was room, until `lose` says why."""
        self.run_pids: dict[str, int] = {}
        """The process that speaks for a run's spans."""
        self.count = 0
        """Spans that wait."""
        self.rootless: set[bytes] = set()
        """Traces that wait for their root."""
        self._traces: dict[bytes, _Trace] = {}

    def name(self, run_id: str, pid: int, *, alone: bool) -> None:
        """Let a process speak for the spans of a run, or of every run; for those too that came before."""
        self.run_pids[run_id] = pid
        if alone:
            self.run_pids[ANY_RUN] = pid
        for batch in self.held.values():  # a restart would see it so too
            self._put_runs_process(batch)

    def unname(self, run_id: str, *, alone: bool) -> None:
        """End what `name` began."""
        self.run_pids.pop(run_id, None)
        if alone:
            self.run_pids.pop(ANY_RUN, None)

    def root(self, trace_ids: set[bytes]) -> None:
        """The roots of these traces have come, though none of them is joined."""
        for trace_id in trace_ids & self.rootless:
            self._traces[trace_id].rooted = True
            self.rootless.discard(trace_id)

    def release(self, batch: Batch) -> None:
        """Hold a request no longer."""
        del self.held[batch.lsn]

    def ready(self, covered_ns: int, log_ns: int, max_wait_ns: int) -> list[bytes]:
        """Traces whose root has come and that end by then, and those that waited long enough."""
        return [
            key
            for key, trace in self._traces.items()
            if (trace.rooted and trace.end_ns <= covered_ns) or log_ns - trace.first_ns >= max_wait_ns
        ]

    def oldest(self, spans: int, covered_ns: int, log_ns: int, tick_due_ns: int) -> list[bytes]:
        """The traces that came first, as many as hold so many spans, before the first whose energy is still to come.

        That is one that has ended, the time since `covered_ns` included, and came less than `tick_due_ns` ago.
        """
        chosen = []
        for key, trace in self._traces.items():
            if covered_ns < trace.end_ns <= log_ns < trace.first_ns + tick_due_ns:
                break
            chosen.append(key)
            spans -= trace.count
            if spans <= 0:
                break
        return chosen

    def lose(self, first_lsn: int, next_lsn: int) -> int:
        """A full spool dropped this part of the log; how many requests with spans were put off there."""
        lost = sum(first_lsn <= lsn < next_lsn for lsn in self.gone)
        self.gone = [lsn for lsn in self.gone if lsn >= next_lsn]
        while self.put_off and self.put_off[0][0] < next_lsn:
            lost += self.put_off.popleft()[1] != NO_SPAN
        return lost

    def without_put_off(self, until_ns: int) -> int:
        """The time until then in which no span that was put off has a part."""
        return min((until_ns, *(start_ns for _, start_ns in self.put_off)))

    def of_run(self, run_id: str) -> list[bytes]:
        """Traces with a span of a run; all traces for `ANY_RUN`."""
        return [
            key
            for key, trace in self._traces.items()
            if run_id == ANY_RUN or any(batch.runs[at] == run_id for batch, rows in trace.parts for at in rows)
        ]

    def add(self, batch: Batch) -> None:
        """Put the spans of a batch that are neither repeated nor settled to their traces, to wait."""
        self.held[batch.lsn] = batch
        self._put_runs_process(batch)
        by_trace: dict[bytes, list[int]] = {}
        whole = not batch.repeated and not batch.blobs
        if whole and len({row[TRACE] for row in batch.rows}) == 1:
            by_trace[batch.rows[0][TRACE]] = list(range(len(batch.rows)))
        else:
            for at, row in enumerate(batch.rows):
                if at not in batch.repeated and at not in batch.blobs:
                    by_trace.setdefault(row[TRACE], []).append(at)
        for trace_id, rows in by_trace.items():
            trace = self._traces.get(trace_id)
            if trace is None:
                trace = self._traces[trace_id] = _Trace(batch.received_ns)
            trace.parts.append((batch, rows))
            trace.count += len(rows)
            trace.start_ns = min(trace.start_ns, *(batch.rows[at][START] for at in rows))
            trace.end_ns = max(trace.end_ns, *(batch.rows[at][END] for at in rows))
            trace.rooted = trace.rooted or trace_id in batch.roots or not all(batch.rows[at][PARENT] for at in rows)
            if trace.rooted:
                self.rootless.discard(trace_id)
            else:
                self.rootless.add(trace_id)
            trace.links.update(batch.links)
            self.count += len(rows)

    def _put_runs_process(self, batch: Batch) -> None:
        """A run whose process is known speaks for its spans, whatever process they name."""
        if self.run_pids:
            known, anyone = self.run_pids, self.run_pids.get(ANY_RUN)
            batch.pids = [known.get(run, anyone or pid) for run, pid in zip(batch.runs, batch.pids, strict=True)]

    def take(self, keys: list[bytes]) -> Settlement:
        """Take the spans of these traces out, as columns, in the order of the log."""
        parts: list[tuple[Batch, list[int]]] = []
        links: dict[bytes, bytes] = {}
        for key in keys:
            trace = self._traces.pop(key)
            self.rootless.discard(key)
            parts += trace.parts
            links.update(trace.links)
        group = _gathered(parts, links)
        self.count -= len(group.rows)
        return group

    def beside(self, start_ns: int, end_ns: int) -> Settlement:
        """The spans that go on waiting and were open in a window, `MAX_BESIDE` at most, those of the oldest traces."""
        parts: list[tuple[Batch, list[int]]] = []
        links: dict[bytes, bytes] = {}
        room = MAX_BESIDE
        for trace in self._traces.values():
            if room <= 0:
                break
            if trace.start_ns >= end_ns or trace.end_ns <= start_ns:
                continue
            for batch, rows in trace.parts:
                starts, ends = batch.starts, batch.ends
                inside = [at for at in rows if starts[at] < end_ns and ends[at] > start_ns][: max(0, room)]
                if inside:
                    parts.append((batch, inside))
                    room -= len(inside)
            links.update(trace.links)
        return _gathered(parts, links)

    def dump(self) -> Json:
        """As JSON, for the snapshot."""
        return {
            "held": [
                {
                    "lsn": batch.lsn,
                    "repeated": sorted(batch.repeated),
                    "blobs": {str(at): base64.b64encode(blob).decode() for at, blob in batch.blobs.items()},
                }
                for batch in self.held.values()
            ],
            "rooted": sorted(key.hex() for key, trace in self._traces.items() if trace.rooted),
            "run_pids": self.run_pids,
            "put_off": [[lsn, str(start_ns)] for lsn, start_ns in self.put_off],
            "gone": self.gone,
        }

    def load(self, raw: Json, read: Callable[[int], Batch | None]) -> None:
        """From the JSON `dump` wrote; `read` gives the request at an lsn again, None if it was dropped since."""
        self.run_pids = dict(raw["run_pids"])
        for item in raw["held"]:
            batch = read(item["lsn"])
            if batch is None:
                continue
            batch.repeated = set(item["repeated"])
            batch.blobs = {int(at): base64.b64decode(blob) for at, blob in item["blobs"].items()}
            batch.waiting -= len(batch.repeated) + len(batch.blobs)
            self.add(batch)
        self.root({bytes.fromhex(key) for key in raw["rooted"]})
        # A snapshot of an earlier version has neither.
        self.gone = list(raw.get("gone", ()))
        self.put_off.extend((lsn, int(start_ns)) for lsn, start_ns in raw.get("put_off", ()))


def _gathered(parts: list[tuple[Batch, list[int]]], links: dict[bytes, bytes]) -> Settlement:
    """Spans of batches as columns, in the order of the log."""
    parts.sort(key=_by_lsn)
    group = Settlement()
    spans = group.spans
    for batch, at in parts:
        whole = len(at) == len(batch.rows)
        columns: tuple[tuple[list[Any], list[Any]], ...] = (
            (group.rows, batch.rows),
            (group.runs, batch.runs),
            (spans.starts, batch.starts),
            (spans.ends, batch.ends),
            (spans.keys, batch.keys),
            (spans.parents, batch.parents),
            (group.named, batch.pids),
        )
        for column, more in columns:
            column.extend(more if whole else [more[index] for index in at])
        group.at += at
        group.batches += [batch] * len(at)
        group.origins += [batch.lsn] * len(at)
        group.extras += [batch.extras.get(index, NO_EXTRAS) for index in at] if batch.extras else [NO_EXTRAS] * len(at)
    if links:
        spans.parents = [_joined_parent(parent, links) for parent in spans.parents]
    return group


def _joined_parent(key: bytes, links: dict[bytes, bytes]) -> bytes:
    for _ in range(64):
        above = links.get(key)
        if above is None:
            return key
        key = above
    return key


def _by_lsn(part: tuple[Batch, list[int]]) -> tuple[int, int]:
    return part[0].lsn, part[1][0]
