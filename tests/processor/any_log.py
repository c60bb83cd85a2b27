"""Logs of any content, and what a machine makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.join import CarbonModel
from joulegram_processor.machine import Machine
from joulegram_processor.machine_types import Settings
from joulegram_processor.runs import Identity
from simulators.traces import T0, Log, S, host_energy, request, span, tick, trace_id

if TYPE_CHECKING:
    from joulegram_pipeline.records import LogRecord
    from joulegram_processor.machine_types import Outputs

FACTOR = StaticFactor("0.4", "utility bill 2025")
CARBON = CarbonModel(FACTOR)
IDENTITY = Identity("node-7f3a", "kfm-node", "co2e", None, FACTOR.source, (FACTOR.ref,))
PIDS = (11, 12)
RUNS = ("run-one-0001", "run-two-0002")

ATTRIBUTES: list[dict[str, object]] = [
    {},
    {},
    {"carbon.gco2e": 9.9},
    {"energy.cpu_j": 2.5},
    {"kfm.node": "n"},
    {"joulegram.cpu_ns": S // 5},
    {"joulegram.cpu_ns": 0, "hw.id": "0"},
]

BOX, POD = "3f4a9c0b" * 8, "0f1e2d3c-4b5a-4697-8899-aabbccddeeff"
LEAVES = (f"pod/{POD}/container/{BOX}", f"pod/{POD}/container/abc", f"pod/{POD}", "container/lone")

PLACES: list[dict[str, object]] = [
    {},
    {},
    {},
    {"container.id": BOX[:12]},
    {"k8s.pod.uid": POD},
    {"k8s.pod.uid": POD, "container.id": "abc"},
    {"container.id": "lone"},
    {"container.id": "stranger"},
]

HASTY = Settings(
    max_wait_ns=4 * S,
    max_pending=8,
    dedupe_spans=6,
    run_idle_ns=6 * S,
    run_quiet_ns=2 * S,
    run_keep_ns=9 * S,
    retention_ns=10**15,
    lookback_ns=9 * S,
)
"""Everything that time or numbers bring about comes about in a log of a few seconds."""

CRAMPED = replace(HASTY, max_pending=1, tick_due_ns=4 * S)
"""There is hardly room for who waits, so that requests are put off."""


def machine(log: Log, settings: Settings = HASTY) -> Machine:
    return Machine(settings, CARBON, IDENTITY, log, Metrics())


def outputs(subject: Machine, records: list[LogRecord]) -> list[tuple[int, list[Outputs]]]:
    """What each record brings about, with its lsn; sets and objects compare by value."""
    return [(record.lsn, list(subject.feed(record))) for record in records]


def ledger_lines(made: list[tuple[int, list[Outputs]]]) -> list[dict[str, Any]]:
    """The span records of outputs in the order of their positions, whichever path wrote them."""
    found = []
    for _, portions in made:
        for out in portions:
            found += [json.loads(f"{before}{between}{after}") for _, _, before, between, after in out.lines]
            found += [dict(record) for record in out.records]
    return found


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Requests, retries, ticks, control records and foreign metrics in any order, time going on."""
    log = Log()
    made: list[Any] = []
    sent: list[bytes] = []
    seq = ticked = 0
    for _ in range(draw(st.integers(1, 22))):
        log.now_ns += draw(st.sampled_from((0, S // 3, S, 3 * S)))
        match draw(
            st.sampled_from(["spans", "spans", "spans", "tick", "tick", "tick", "again", "end", "start", "host"])
        ):
            case "spans":
                batch = []
                for _ in range(draw(st.integers(1, 4))):
                    start = T0 + draw(st.integers(0, 12)) * (S // 2)
                    batch.append(
                        span(
                            draw(st.integers(1, 12)),
                            start,
                            start + draw(st.integers(0, 4)) * (S // 2) + draw(st.integers(0, 3)),
                            name=draw(st.sampled_from(["etl.job", "etl.node.a", "etl.step", "http.get"])),
                            parent=draw(st.sampled_from([None, None, 1, 2, 3])),
                            trace=trace_id(draw(st.integers(0, 2))),
                            attributes=draw(st.sampled_from(ATTRIBUTES)),
                        )
                    )
                resource: dict[str, object] = {}
                if draw(st.booleans()):
                    resource["kfm.run_id"] = draw(st.sampled_from(RUNS))
                if draw(st.booleans()):
                    resource["process.pid"] = draw(st.sampled_from(PIDS))
                resource |= draw(st.sampled_from(PLACES))
                sent.append(request(*batch, resource=resource))
                made.append(log.append(RecordKind.TRACES, sent[-1]))
            case "tick":
                seq += 1
                begin, ticked = ticked, ticked + draw(st.sampled_from((1, 1, 2, 5)))
                if draw(st.integers(0, 5)) == 0:
                    log.ticks(tick(seq, T0 + begin * S, T0 + ticked * S), domains=(), reason="no_source", at=log.now_ns)
                else:
                    named = {pid: draw(st.integers(0, S)) for pid in PIDS if draw(st.booleans())}
                    one = tick(
                        seq,
                        T0 + begin * S,
                        T0 + ticked * S,
                        cpu_uj=draw(st.integers(0, 10**8)),
                        dram_uj=draw(st.sampled_from([None, 5_000_000])),
                        busy_ns=2 * S,
                        total_ns=4 * S,
                        processes=named,
                        descendants={pid: draw(st.integers(0, S)) for pid in PIDS if draw(st.booleans())},
                        gpu_uj=draw(st.sampled_from([None, 7_000_001])),
                        containers={key: draw(st.integers(0, S)) for key in LEAVES if draw(st.booleans())},
                        on_gpu={pid: draw(st.integers(0, S)) for pid in (0, 11) if draw(st.booleans())},
                    )
                    log.ticks(one, at=log.now_ns)
            case "again" if sent:
                log.append(RecordKind.TRACES, draw(st.sampled_from(sent)))
            case "end":
                log.control("run.end", draw(st.sampled_from(RUNS)), status="ok", ended_by="command_exit")
            case "start":
                log.control("run.start", draw(st.sampled_from(RUNS)), pid=draw(st.sampled_from(PIDS)))
            case _:
                points = [(T0, T0 + draw(st.integers(1, 20)) * S, draw(st.integers(0, 900)) / 4)]
                payload = host_energy(*points, delta=draw(st.booleans()))
                log.append(RecordKind.METRICS, payload)
    log.ticks(tick(seq + 1, T0 + ticked * S, T0 + (ticked + 40) * S, cpu_uj=10**9), at=log.now_ns + 40 * S)
    return log
