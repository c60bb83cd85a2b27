"""Ticks and batches as JSON: what the agent says, the spool keeps and the archive gives back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method, Tick, TickBatch
from joulegram_pipeline.errors import AgentError

COUNTS = st.integers(min_value=0, max_value=2**53 - 1)
NANOS = st.integers(min_value=0, max_value=2**62)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
TICKS = st.builds(
    lambda start_ns, length_ns, **fields: Tick(start_ns=start_ns, end_ns=start_ns + length_ns, **fields),
    seq=COUNTS,
    start_ns=NANOS,
    length_ns=st.integers(min_value=1, max_value=2**40),
    energy_uj=st.dictionaries(NAMES, COUNTS, max_size=4),
    static_uj=st.dictionaries(NAMES, COUNTS, max_size=4),
    gaps=st.lists(st.builds(Gap, NAMES, NAMES), max_size=3).map(tuple),
    cpu_busy_ns=st.none() | COUNTS,
    cpu_total_ns=st.none() | COUNTS,
    process_cpu_ns=st.dictionaries(st.integers(min_value=1, max_value=2**22), COUNTS, max_size=3),
    descendant_cpu_ns=st.dictionaries(st.integers(min_value=1, max_value=2**22), COUNTS, max_size=3),
    container_cpu_ns=st.dictionaries(NAMES, COUNTS, max_size=3),
    process_gpu_ns=st.dictionaries(
        NAMES, st.dictionaries(st.integers(min_value=0, max_value=2**22), COUNTS, max_size=3), max_size=2
    ),
)
BATCHES = st.builds(
    TickBatch,
    epoch=NAMES,
    source=NAMES,
    method=st.sampled_from(Method),
    reason=st.none() | NAMES,
    domains=st.lists(st.builds(Domain, NAMES, st.sampled_from(DomainKind), st.none() | NANOS), max_size=3).map(tuple),
    ticks=st.lists(TICKS, max_size=3).map(tuple),
)

TICK: dict[str, Any] = {"seq": 1, "start_ns": "1000", "end_ns": "2000"}
BATCH: dict[str, Any] = {
    "epoch": "e",
    "source": "powercap",
    "method": "measured",
    "domains": [{"id": "package-0", "kind": "cpu", "max_range_uj": "262143328850"}],
    "ticks": [TICK],
}


@given(BATCHES)
def test_a_batch_comes_back_as_it_was(batch: TickBatch) -> None:
    """Every batch, byte for byte the same when it is written again: a replay sees the same energy."""
    data = batch.to_bytes()
    again = TickBatch.from_bytes(data)
    assert again == batch
    assert again.to_bytes() == data
    assert b"\n" not in data


@given(BATCHES)
def test_the_bytes_do_not_depend_on_the_order_things_were_put_in(batch: TickBatch) -> None:
    """Keys are sorted: the same energies in another order give the same bytes."""
    ticks = tuple(
        Tick(
            **{
                **{name: getattr(tick, name) for name in Tick.__slots__},
                "energy_uj": dict(reversed([*tick.energy_uj.items()])),
                "process_cpu_ns": dict(reversed([*tick.process_cpu_ns.items()])),
            }
        )
        for tick in batch.ticks
    )
    other = TickBatch(batch.epoch, batch.source, batch.method, batch.reason, batch.domains, ticks)
    assert other.to_bytes() == batch.to_bytes()


def test_what_is_not_known_is_absent() -> None:
    """A domain without a reading has no key and a gap with its reason; 0 is a reading (D-10)."""
    tick = Tick(1, 0, 10, energy_uj={"package-0": 0}, gaps=(Gap("gpu-0", "read_failed"),))
    assert tick.to_json() == {
        "seq": 1,
        "start_ns": "0",
        "end_ns": "10",
        "energy_uj": {"package-0": 0},
        "gaps": [{"domain": "gpu-0", "reason": "read_failed"}],
    }
    assert Tick.from_json(tick.to_json()) == tick


BAD_TICKS: dict[str, dict[str, Any]] = {
    "no seq": {"seq": None},
    "a seq below 0": {"seq": -1},
    "a seq that is text": {"seq": "1"},
    "a seq that is true": {"seq": True},
    "a seq with a fraction": {"seq": 1.5},
    "a seq without end": {"seq": float("inf")},
    "a start that is no number": {"start_ns": "noon"},
    "a start below 0": {"start_ns": "-5"},
    "a start with a fraction": {"start_ns": 1.5},
    "a start with blanks": {"start_ns": " 1000 "},
    "a start with underscores": {"start_ns": "1_000"},
    "a start of other digits": {"start_ns": "\u0661\u0660\u0660\u0660"},
    "an end after time itself": {"end_ns": "9" * 30},
    "an end without end": {"end_ns": float("inf")},
    "an end that is not a number": {"end_ns": float("nan")},
    "an end before the start": {"end_ns": "999"},
    "an end at the start": {"end_ns": "1000"},
    "energy below 0": {"energy_uj": {"package-0": -1}},
    "energy with a fraction": {"energy_uj": {"package-0": 1.0}},
    "energy that is null": {"energy_uj": {"package-0": None}},
    "energy that is text": {"energy_uj": {"package-0": "5"}},
    "energy beyond what JSON holds": {"energy_uj": {"package-0": 2**53}},
    "energies that are a list": {"energy_uj": [1]},
    "energies that are null": {"energy_uj": None},
    "a static part below 0": {"static_uj": {"package-0": -1}},
    "gaps that are null": {"gaps": None},
    "a gap without reason": {"gaps": [{"domain": "*"}]},
    "a gap that is text": {"gaps": ["*"]},
    "CPU time below 0": {"cpu_busy_ns": -1},
    "CPU time that is true": {"cpu_total_ns": True},
    "a process that is no number": {"process_cpu_ns": {"self": 1}},
    "a process below 0": {"process_cpu_ns": {"-1": 1}},
    "a process with descendants below 0": {"descendant_cpu_ns": {"1": -1}},
    "a container below 0": {"container_cpu_ns": {"container/a": -1}},
    "a container without a time": {"container_cpu_ns": {"container/a": None}},
    "GPU times that are a list": {"process_gpu_ns": {"gpu/a": [1]}},
    "GPU time of no process": {"process_gpu_ns": {"gpu/a": {"self": 1}}},
}


@pytest.mark.parametrize("change", BAD_TICKS.values(), ids=BAD_TICKS)
def test_a_tick_that_is_none_is_refused_and_quoted(change: dict[str, Any]) -> None:
    """Missing, of the wrong type, or negative: AgentError, which quotes the tick, and no other exception."""
    raw = {**TICK, **change}
    with pytest.raises(AgentError, match="got tick"):
        Tick.from_json(raw)
    with pytest.raises(AgentError, match="got tick"):
        TickBatch.from_bytes(json.dumps({**BATCH, "ticks": [raw]}).encode())


@pytest.mark.parametrize("name", TICK)
def test_a_tick_without_its_fields_is_refused(name: str) -> None:
    """seq, start_ns and end_ns have no default."""
    with pytest.raises(AgentError, match=f"KeyError: '{name}'"):
        Tick.from_json({key: value for key, value in TICK.items() if key != name})


BAD_BATCHES: dict[str, bytes] = {
    "nothing": b"",
    "half a batch": json.dumps(BATCH).encode()[:-5],
    "no UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "null": b"null",
    "a number": b"7",
    "nested without end": b"[" * 100_000,
    "a number of 5000 digits": b'{"epoch":' + b"9" * 5000 + b"}",
    **{
        f"no {name}": json.dumps({key: value for key, value in BATCH.items() if key != name}).encode() for name in BATCH
    },
    "a method that is none": json.dumps({**BATCH, "method": "guessed"}).encode(),
    "a method that is a list": json.dumps({**BATCH, "method": []}).encode(),
    "domains that are a number": json.dumps({**BATCH, "domains": 1}).encode(),
    "a domain that is text": json.dumps({**BATCH, "domains": ["package-0"]}).encode(),
    "a domain without kind": json.dumps({**BATCH, "domains": [{"id": "package-0"}]}).encode(),
    "a kind that is none": json.dumps({**BATCH, "domains": [{"id": "package-0", "kind": "psu"}]}).encode(),
    "a range without end": json.dumps(
        {**BATCH, "domains": [{"id": "a", "kind": "cpu", "max_range_uj": float("inf")}]}
    ).encode(),
    "a range below 0": json.dumps({**BATCH, "domains": [{"id": "a", "kind": "cpu", "max_range_uj": "-1"}]}).encode(),
    "ticks that are null": json.dumps({**BATCH, "ticks": None}).encode(),
    "a tick that is text": json.dumps({**BATCH, "ticks": ["tick"]}).encode(),
    "a tick that is null": json.dumps({**BATCH, "ticks": [None]}).encode(),
}


@pytest.mark.parametrize("data", BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_a_batch_that_is_none_is_an_agent_error(data: bytes) -> None:
    """Whatever stands in the record: AgentError and no other exception, so that the reader can count it and go on."""
    with pytest.raises(AgentError, match="got tick"):
        TickBatch.from_bytes(data)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), st.lists, max_leaves=5))
def test_no_json_breaks_the_reader(value: Any) -> None:
    """Any JSON in any field ends in a batch or in AgentError."""
    for name in BATCH:
        try:
            TickBatch.from_bytes(json.dumps({**BATCH, name: value}).encode())
        except AgentError:
            continue
    more = "energy_uj", "static_uj", "gaps", "cpu_busy_ns", "process_cpu_ns", "container_cpu_ns", "process_gpu_ns"
    for name in (*TICK, *more):
        try:
            TickBatch.from_bytes(json.dumps({**BATCH, "ticks": [{**TICK, name: value}]}).encode())
        except AgentError:
            continue


def test_the_good_batch_of_these_tables_is_good() -> None:
    """What the bad ones differ from is read."""
    batch = TickBatch.from_bytes(json.dumps(BATCH).encode())
    assert batch.domains == (Domain("package-0", DomainKind.CPU, 262_143_328_850),)
    assert batch.ticks == (Tick(1, 1000, 2000),)
