"""What /debug/pipelines shows of a running sidecar: one row a stage, in the order of the flow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import StorageError
from joulegram_service.pipelines_page import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.trouble import LastTrouble
    from joulegram_processor.machine import Machine
    from joulegram_receiver.admission import Admission
    from joulegram_receiver.poller import Poller
    from joulegram_receiver.spool import Spool
    from joulegram_service.engine import Engine, Sinks
    from joulegram_sink.upstream import DestinationStatus, Upstreams


def stages(
    admission: Admission,
    spool: Spool,
    poller: Poller,
    machine: Machine,
    engine: Engine,
    sinks: Sinks,
    upstreams: Upstreams | None,
    metrics: Metrics,
) -> list[Stage]:
    """How everything stands now; the arguments are the parts of one sidecar."""
    now_ns = time.time_ns()
    behind = max(0, spool.durable_lsn - machine.position)
    watermark_ns = machine.store.watermark_ns
    ledger, days = sinks.ledger.state(), sinks.archive.days()
    return [
        _stage("receiver", {"in_flight_bytes": admission.held_bytes}, metrics.last_refusal, admission.oldest_s()),
        _stage(
            "spool",
            {"bytes": spool.end_lsn - spool.start_lsn, "durable_lsn": spool.durable_lsn},
            spool.last_error,
            _age_s(spool, spool.start_lsn, now_ns) if spool.durable_lsn > spool.start_lsn else None,
            now=spool.trouble,
        ),
        _stage(
            "agent",
            {"source": machine.store.last_reason or "measuring"},
            poller.last_error,
            None if not watermark_ns else max(0.0, (now_ns - watermark_ns) / 1e9),
        ),
        _stage(
            "engine",
            {"unread_bytes": behind, "position": machine.position},
            _latest(engine.last_errors.values()),
            _age_s(spool, machine.position, now_ns) if behind else None,
            now=engine.trouble,
        ),
        Stage("join", machine.holds(), oldest_s=machine.oldest_waiting_s(now_ns)),
        _stage("ticks", {"days": len(days), "from": days[0] if days else "-"}, engine.last_errors["ticks"]),
        _stage("ledger", {"lines": ledger.lines, "bytes": ledger.bytes}, engine.last_errors["ledger"]),
        _stage("documents", {"written": _count(metrics)}, engine.last_errors["documents"]),
        *_upstream(sinks, upstreams, engine),
    ]


def _stage(
    name: str,
    holds: dict[str, int | float | str],
    error: LastTrouble,
    oldest_s: float | None = None,
    *,
    now: str | None = None,
) -> Stage:
    """One row; trouble that there is now stands for the last one."""
    if now is not None:
        return Stage(name, holds, oldest_s, now, 0.0)
    return Stage(name, holds, oldest_s, error.text, error.since_s)


def _latest(errors: Iterable[LastTrouble]) -> LastTrouble:
    return min(errors, key=lambda error: float("inf") if error.since_s is None else error.since_s)


def _age_s(spool: Spool, lsn: int, now_ns: int) -> float | None:
    """Of the record at a position; None where it cannot be read, or has just gone."""
    try:
        record = spool.find(lsn)
    except StorageError:
        return None
    return None if record is None else max(0.0, (now_ns - record.received_ns) / 1e9)


def _count(metrics: Metrics) -> int:
    (family,) = metrics.run_documents.collect()
    return round(sum(sample.value for sample in family.samples if sample.name.endswith("_total")))


def _upstream(sinks: Sinks, upstreams: Upstreams | None, engine: Engine) -> Iterator[Stage]:
    """The queue and its destinations, where there are any."""
    if upstreams is None or sinks.outbox is None:
        return
    destinations = upstreams.status()
    yield _stage(
        "outbox",
        {"memory_bytes": sinks.outbox.memory_bytes, "disk_bytes": sinks.outbox.disk_bytes},
        engine.last_errors["outbox"],
        max((status.oldest_age_s for status in destinations), default=0.0) or None,
    )
    yield from map(_destination, destinations)


def _destination(status: DestinationStatus) -> Stage:
    tally = status.tally
    return Stage(
        f"upstream {status.name}",
        {
            "endpoint": status.endpoint,
            "backlog_bytes": status.backlog_bytes,
            "in_flight": status.in_flight,
            "sent_requests": tally.sent_requests,
            "retries": tally.retries,
            "dead_letters": tally.dead_letters,
        },
        oldest_s=status.oldest_age_s or None,
        last_error=tally.last_error or None,
        since_s=time.monotonic() - tally.failed_at if tally.last_error else None,
    )
