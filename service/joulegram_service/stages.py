"""What /debug/pipelines shows of a running sidecar: one row a stage, in the order of the flow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from joulegram_service.pipelines_page import Stage

if TYPE_CHECKING:
    from joulegram_processor.machine import Machine
    from joulegram_receiver.admission import Admission
    from joulegram_receiver.spool import Spool
    from joulegram_service.engine import Engine
    from joulegram_sink.ledger import Ledger
    from joulegram_sink.upstream import DestinationStatus, Upstreams


def stages(
    admission: Admission, spool: Spool, machine: Machine, engine: Engine, ledger: Ledger, upstreams: Upstreams | None
) -> list[Stage]:
    """How everything stands now; the arguments are the parts of one sidecar."""
    now_ns = time.time_ns()
    behind = max(0, spool.durable_lsn - machine.position)
    watermark_ns = machine.store.watermark_ns
    state = ledger.state()
    return [
        Stage("receiver", {"in_flight_bytes": admission.held_bytes}),
        Stage(
            "spool",
            {"bytes": spool.end_lsn - spool.start_lsn, "durable_lsn": spool.durable_lsn},
            last_error=spool.trouble,
        ),
        Stage(
            "agent",
            {"source": machine.store.last_reason or "measuring"},
            oldest_s=None if not watermark_ns else max(0.0, (now_ns - watermark_ns) / 1e9),
        ),
        Stage("engine", {"unread_bytes": behind, "position": machine.position}, last_error=engine.trouble),
        Stage("join", machine.holds(), oldest_s=machine.oldest_waiting_s(now_ns)),
        Stage("ledger", {"lines": state.lines, "bytes": state.bytes}),
        *(_destination(status) for status in (() if upstreams is None else upstreams.status())),
    ]


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
        since_s=None if tally.failing_since is None else time.monotonic() - tally.failing_since,
    )
