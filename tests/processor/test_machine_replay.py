from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_pipeline.energy import Method, TickBatch
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.join import CarbonModel
from joulegram_processor.machine import Machine
from joulegram_processor.machine_types import Settings
from joulegram_processor.runs import Identity
from simulators.traces import T0, Log, S, host_energy, request, span, span_id, spans_of, tick, trace_id

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


@given(logs(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_same_log_gives_the_same_outputs(log: Log, local: bool) -> None:
    """Law: the machine is a function of the log, to the byte."""
    told = HASTY if local else Settings(max_wait_ns=4 * S, local_energy=False)
    assert outputs(machine(log, told), log.records) == outputs(machine(log, told), log.records)


@given(logs(), st.integers(0, 30), st.integers(0, 30), st.booleans())
@settings(max_examples=250, deadline=None)
def test_a_snapshot_anywhere_changes_nothing(log: Log, first: int, second: int, local: bool) -> None:
    """Law: dump, JSON, load into a fresh machine with the archived ticks below, and the rest is as it would be."""
    told = HASTY if local else Settings(max_wait_ns=4 * S, local_energy=False)
    whole = outputs(machine(log, told), log.records)
    wanted = dict(whole)
    subject = machine(log, told)
    archived: list[tuple[int, bytes]] = []
    for number, record in enumerate(log.records):
        portions = list(subject.feed(record))
        assert portions == wanted[record.lsn], f"record {number} of {len(log.records)}: {record.kind.name}"
        archived += [item for out in portions for item in out.ticks]
        if number in (first, second):
            state = json.loads(json.dumps(subject.dump()))
            needed = subject.oldest_needed()
            released = Log()
            released._at = {lsn: kept for lsn, kept in log._at.items() if lsn >= needed}
            subject = machine(released, told)
            subject.load_scopes(state)
            for lsn, data in archived:
                assert lsn < int(state["position"])
                subject.store.add(TickBatch.from_bytes(data))
            subject.load(state)
            released._at = log._at
            assert subject.position == record.next_lsn
            assert subject.dump() == {
                **state,
                "repeats": subject.dump()["repeats"],
            }


def test_a_snapshot_keeps_why_nothing_is_measured() -> None:
    """A batch without energy is in no archive where none is expected; its reason is in the snapshot."""
    told = Settings(local_energy=False)
    log = Log()
    nothing = TickBatch("boot-1", "none", Method.MEASURED, "no_source", (), ()).to_bytes()
    log.append(RecordKind.TICKS, nothing, T0 + S)
    root = span(1, T0, T0 + S, name="etl.job", attributes={"kfm.run_id": RUNS[0]})
    log.append(RecordKind.TRACES, request(root), T0 + 2 * S)
    log.control("run.end", RUNS[0], status="ok", ended_by="command_exit")
    (_, _), (_, _), (_, whole) = outputs(machine(log, told), log.records)
    before, after = machine(log, told), machine(log, told)
    list(before.feed(log.records[0]))
    after.load(json.loads(json.dumps(before.dump())))
    list(after.feed(log.records[1]))
    assert list(after.feed(log.records[2])) == whole
    assert "'reason': 'no_source'" in str(whole[0].records)


@given(logs())
@settings(max_examples=80, deadline=None)
def test_positions_grow_and_each_span_is_recorded_once(log: Log) -> None:
    """Law (D-11): positions strictly increase over ledger, runs and requests; an accepted span has one line."""
    told = Settings(max_wait_ns=4 * S, max_pending=8, run_idle_ns=6 * S, run_quiet_ns=2 * S)
    made = outputs(machine(log, told), log.records)
    last = (-1, -1)
    for lsn, portions in made:
        for out in portions:
            positions = [(line[0], line[1]) for line in out.lines]
            positions += [(record["pos"][0], record["pos"][1]) for record in out.records]
            positions += [item.pos for item in out.forward] + [run.pos for run in out.runs]
            for position in sorted(positions):
                assert position > last
                assert position[0] == lsn
                last = position
    lines = ledger_lines(made)
    recorded = [line["trace_id"] + line["span_id"] for line in lines]
    assert len(set(recorded)) == len(recorded)
    accepted = {
        (one.trace_id + one.span_id).hex()
        for record in log.records
        if record.kind is RecordKind.TRACES
        for one in spans_of(record.payload)
        if one.name.startswith("etl.") or any(item.key == "kfm.node" for item in one.attributes)
    }
    # The last tick is 40 s of log time behind the last request: nobody waits any more.
    assert set(recorded) == accepted


@given(logs())
@settings(max_examples=80, deadline=None)
def test_what_is_sent_on_is_each_span_once_with_each_key_once(log: Log) -> None:
    """Law (A11): every span of the log goes on, a repeated one once; a `carbon.*` key the client sent is replaced."""
    told = Settings(max_wait_ns=4 * S, max_pending=8)
    sent = [
        one
        for _, portions in outputs(machine(log, told), log.records)
        for out in portions
        for item in out.forward
        if item.kind is RecordKind.TRACES
        for one in spans_of(item.body)
    ]
    joined = [one for one in sent if any(item.key == "timing.duration_s" for item in one.attributes)]
    ids = [one.trace_id + one.span_id for one in joined]
    assert len(set(ids)) == len(ids)
    for one in sent:
        keys = [item.key for item in one.attributes]
        assert len(set(keys)) == len(keys), keys


@given(logs())
@settings(max_examples=120, deadline=None)
def test_the_account_of_a_run_adds_up(log: Log) -> None:
    """Law (C-49): measured = spans + other spans + idle + other + unattributed; no part is negative (S0-66)."""
    told = Settings(max_wait_ns=4 * S, run_idle_ns=6 * S, run_quiet_ns=2 * S, retention_ns=10**15)
    for _, portions in outputs(machine(log, told), log.records):
        for run in (run for out in portions for run in out.runs):
            account = run.account
            if account is None:
                continue
            parts = (
                account.spans_uj,
                account.other_spans_uj,
                account.idle_uj,
                account.other_uj,
                account.unattributed_uj,
            )
            assert sum(parts) == account.measured_uj
            assert min(parts) >= 0, account


def test_a_process_named_after_its_spans_came_survives_a_restart() -> None:
    """`run.start` that comes behind spans of its run: a restart between them joins as no restart would."""
    for restart in (False, True):
        log = Log()
        log.ticks(tick(1, T0, T0 + S, cpu_uj=800, busy_ns=S, total_ns=S, processes={11: S // 4}))
        log.traces(span(1, T0, T0 + 2 * S, name="etl.job"), resource={"kfm.run_id": RUNS[0]})
        log.control("run.start", RUNS[0], pid=11)
        log.ticks(tick(2, T0 + S, T0 + 2 * S, cpu_uj=800, busy_ns=S, total_ns=S, processes={11: S // 4}))
        subject = machine(log)
        outputs(subject, log.records[:3])
        if restart:
            state = json.loads(json.dumps(subject.dump()))
            subject = machine(log)
            subject.load_scopes(state)
            subject.store.add(TickBatch.from_bytes(log.records[0].payload))
            subject.load(state)
        (line,) = ledger_lines(outputs(subject, log.records[3:]))
        assert line["span_id"] == span_id(1).hex()
        assert (line["energy"]["scope"], line["energy"]["total_uj"]) == ("process", 400), restart
