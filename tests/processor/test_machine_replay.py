from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_pipeline.energy import Method, TickBatch
from joulegram_pipeline.records import RecordKind
from joulegram_processor.machine_types import Settings
from processor.any_log import CRAMPED, HASTY, RUNS, ledger_lines, logs, machine, outputs
from simulators.traces import T0, Log, S, request, span, span_id, spans_of, tick

FOREIGN = Settings(max_wait_ns=4 * S, local_energy=False)
ROOMY = Settings(max_wait_ns=4 * S, max_pending=8, run_idle_ns=6 * S, run_quiet_ns=2 * S)
NEVER_TWICE = replace(CRAMPED, dedupe_spans=65_536)
"""Every repetition is recognised."""


@given(logs(), st.sampled_from((HASTY, CRAMPED, FOREIGN)))
@settings(max_examples=60, deadline=None)
def test_the_same_log_gives_the_same_outputs(log: Log, told: Settings) -> None:
    """Law: the machine is a function of the log, to the byte."""
    assert outputs(machine(log, told), log.records) == outputs(machine(log, told), log.records)


@given(logs(), st.integers(0, 30), st.integers(0, 30), st.sampled_from((HASTY, CRAMPED, FOREIGN)))
@settings(max_examples=250, deadline=None)
def test_a_snapshot_anywhere_changes_nothing(log: Log, first: int, second: int, told: Settings) -> None:
    """Law: dump, JSON, load into a fresh machine with the archived ticks below, and the rest is as it would be."""
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


@given(logs(), st.sampled_from((ROOMY, NEVER_TWICE)))
@settings(max_examples=80, deadline=None)
def test_positions_grow_and_each_span_is_recorded_once(log: Log, told: Settings) -> None:
    """Law (D-11): positions strictly increase over ledger, runs and requests; an accepted span has one line."""
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


@given(logs(), st.sampled_from((ROOMY, NEVER_TWICE)))
@settings(max_examples=80, deadline=None)
def test_what_is_sent_on_is_each_span_once_with_each_key_once(log: Log, told: Settings) -> None:
    """Law (A11): every span of the log goes on, a repeated one once; a `carbon.*` key the client sent is replaced."""
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
