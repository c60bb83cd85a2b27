"""What the machine is told, what it gives, and the log as it sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from joulegram_processor.select import Selector

if TYPE_CHECKING:
    from joulegram_pipeline.records import GapRecord, Json, LedgerLine, LogRecord, Outgoing, RunRecord, SpanRecord

Position = tuple[int, int]
"""Of an output: lsn of the record that triggered it, and its ordinal among the outputs of that record."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the machine is told once.

    Args:
        selector: which spans are joined.
        forwarding: whether there is an upstream; without one nothing is enriched.
        default_run: the run of spans that name none; None makes it their trace.
        max_wait_ns: log time after which a trace is settled though its root has not come.
        settle_after_ns: for how long after its end a trace that is whole waits for others of the same time.
        retention_ns: how long ticks are kept.
        lookback_ns: for how long a container, pod or board that nobody named can still be named; at least twice
            `max_wait_ns`.
        max_pending: spans waiting at most; beyond it the oldest traces are settled early, or, where the tick of their
            time is still to come, the requests behind them are put off.
        tick_due_ns: log time within which that tick is waited for.
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
    settle_after_ns: int = 0
    retention_ns: int = 86_400_000_000_000
    lookback_ns: int = 120_000_000_000
    max_pending: int = 400_000
    tick_due_ns: int = 10_000_000_000
    dedupe_spans: int = 65_536
    share_idle: bool = False
    run_idle_ns: int = 900_000_000_000
    run_quiet_ns: int = 10_000_000_000
    run_keep_ns: int = 3_600_000_000_000
    local_energy: bool = True


@dataclass(slots=True)
class Outputs:
    """What one record brought about, in the order of positions.

    `lines` and `records` are ledger lines, an output has one or the other; `forward` holds the
    requests that leave; `ticks` the batches to archive, with the record's lsn; `pids` processes that spans named.
    """

    lines: list[LedgerLine] = field(default_factory=list)
    records: list[SpanRecord | GapRecord] = field(default_factory=list)
    forward: list[Outgoing] = field(default_factory=list)
    runs: list[RunRecord] = field(default_factory=list)
    ticks: list[tuple[int, bytes]] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)


class LogReader(Protocol):
    """The log, for requests that waited."""

    def find(self, lsn: int) -> LogRecord | None:
        """The record at a position; None where a full spool dropped it, or the disk damaged it, since it was read."""


def gap_record(control: Json, position: Position, put_off: int = 0) -> GapRecord:
    """The line of the ledger that a ``spool.gap`` becomes: what a full spool dropped.

    Args:
        control: the record.
        position: of the line.
        put_off: trace requests among those that had been read, and nothing made of them yet.
    """
    unread = {str(kind): int(count) for kind, count in control["unread"].items()}
    if put_off:
        unread["traces"] = unread.get("traces", 0) + put_off
    return {
        "kind": "gap",
        "pos": list(position),
        "cause": "spool_full",
        "first_lsn": int(control["first_lsn"]),
        "next_lsn": int(control["next_lsn"]),
        "records": {str(kind): int(count) for kind, count in control["records"].items()},
        "unread": unread,
        "bytes": int(control["bytes"]),
    }
