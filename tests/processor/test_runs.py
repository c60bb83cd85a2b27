from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from joulegram_processor.attribution import Columns, attribute
from joulegram_processor.claims import Claims
from joulegram_processor.energy_store import HOST, EnergyStore
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.join import CarbonModel, Joined
from joulegram_processor.runs import MAX_NODES, MAX_TRACES, Identity, Run, account_of, overall_method, publish
from joulegram_processor.tally import Tally
from joulegram_schemas import validate
from joulegram_sink.ledger_format import run_line
from simulators.traces import T0, TRACE, S, span_id, tick, tick_batch, trace_id

if TYPE_CHECKING:
    from joulegram_pipeline.records import SpanEnergy

FACTOR = StaticFactor("0.36", "utility bill 2025")  # 1 J is 100 ug
CARBON = CarbonModel(FACTOR)
IDENTITY = Identity("node-7f3a", "kfm-node", "co2e", None, FACTOR.source, (FACTOR.ref,))


def joined(uj: int, **changes: object) -> Joined:
    energy: SpanEnergy = {"method": "measured", "scope": "host", "total_uj": uj, "cpu_uj": uj}
    made = Joined(
        attributes=b"",
        line={"energy": energy, "carbon": {"ug": uj // 10_000}},  # type: ignore[typeddict-item]
        method="measured",
        resolution="static",
        scope="host",
        reason=None,
        kinds=(True, False, False),
        exclusive_ug=uj // 10_000,
        align_ug=0,
        mg_per_kwh=360_000,
        upper_bound=False,
        carbon_reason=None,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def add(
    tally: Tally,
    made: Joined,
    number: int = 1,
    *,
    name: str = "etl.step",
    trace: bytes = TRACE,
    own_uj: int = 1_000_000,
    **extras: object,
) -> None:
    columns = Columns(parents=[b""], own=([own_uj], [0], [0]))
    row = (name, trace, span_id(number), b"", T0, T0 + S, 1)
    found = {key.replace("__", "."): value for key, value in extras.items()}
    tally.add(columns, 0, row, "run-one-0001", found, made, T0 + S)


METHODS = {
    "none": (set(), "unavailable"),
    "one": ({"measured"}, "measured"),
    "what is unavailable does not count beside one": ({"measured", "unavailable"}, "measured"),
    "nothing known": ({"unavailable"}, "unavailable"),
    "several": ({"measured", "reported"}, "mixed"),
}


@pytest.mark.parametrize(("methods", "word"), METHODS.values(), ids=METHODS.keys())
def test_one_word_for_the_methods_of_a_run(methods: set[str], word: str) -> None:
    """S0-59, S0-60: how the energy of a run came about."""
    assert overall_method(methods) == word


def test_a_run_is_the_same_after_a_snapshot() -> None:
    """Every field survives JSON, sums beyond 64 bits too."""
    runs: dict[str, Run] = {}
    tally = Tally(runs)
    add(tally, joined(2_000_000, align_ug=10**12), name="etl.job", job__type="nightly", kfm__stac_item="items/a.json")
    add(tally, joined(0, method="unavailable", reason="gone", exclusive_ug=None, carbon_reason="energy_unavailable"), 2)
    (run,) = runs.values()
    assert Run.load(json.loads(json.dumps(run.dump()))) == run
    assert (run.job_type, run.stac_item, run.status, run.ended_by) == ("nightly", "items/a.json", "ok", "root_span")
    assert run.align_sq == 10**24


def test_a_run_with_energy_in_part_says_so() -> None:
    """C-09, D-10: sums are of what is known, the reason of the rest stands beside them; the line is valid."""
    runs: dict[str, Run] = {}
    tally = Tally(runs)
    add(tally, joined(1_000_000))
    add(
        tally,
        joined(
            0,
            method="unavailable",
            reason="gap_between_ticks",
            kinds=(False, False, False),
            exclusive_ug=None,
            carbon_reason="energy_unavailable",
        ),
        2,
        own_uj=0,
    )
    record = publish(runs["run-one-0001"], "root_span", (9, 0), T0, IDENTITY, None, CARBON)
    assert (record.spans, record.energy_uj, record.energy_method) == (2, 1_000_000, "measured")
    assert (record.energy_reason, record.gpu_uj, record.dram_uj) == ("gap_between_ticks", None, None)
    assert record.carbon_ug == 100
    assert record.factor_kg_per_kwh == 0.36
    validate("ledger-line-v1", run_line(record) | {"seq": 1, "prev_hash": "sha256:" + "0" * 64})


def test_documents_list_no_more_than_they_hold() -> None:
    """Nodes and traces are bounded; spans and sums go on counting."""
    runs: dict[str, Run] = {}
    tally = Tally(runs)
    for number in range(MAX_NODES + 3):
        add(tally, joined(1), number + 1, name="etl.node.a", trace=trace_id(number), own_uj=1)
    run = runs["run-one-0001"]
    assert (len(run.nodes), len(run.traces), run.spans, run.cpu_uj) == (
        MAX_NODES,
        MAX_TRACES,
        MAX_NODES + 3,
        MAX_NODES + 3,
    )


READY = {
    "it has not ended": ({}, 5, None),
    "nothing came for long": ({}, 10, "idle_timeout"),
    "its root came": ({"ended_by": "root_span"}, 0, "root_span"),
    "published and nothing new": ({"ended_by": "root_span", "revision": 1, "published_spans": 2}, 99, None),
    "late spans that still come": ({"ended_by": "root_span", "revision": 1, "published_spans": 1}, 2, None),
    "late spans that are quiet": ({"ended_by": "root_span", "revision": 1, "published_spans": 1}, 3, "root_span"),
}


@pytest.mark.parametrize(("fields", "quiet_s", "why"), READY.values(), ids=READY.keys())
def test_when_a_run_is_published(fields: dict[str, object], quiet_s: int, why: str | None) -> None:
    """At its end, after an idle timeout of 10 s here, and again when late spans have been quiet for 3 s."""
    run = Run("run-one-0001", T0, spans=2, **fields)  # type: ignore[arg-type]
    assert run.ready(T0 + quiet_s * S, 10 * S, 3 * S) == why


def test_where_the_energy_of_a_window_went() -> None:
    """By hand: 1000 uJ of which half idle; a process at two fifths of the rest, claimed for half of the window."""
    store = EnergyStore(retention_ns=10**9)
    store.add(tick_batch(tick(1, 0, 10, cpu_uj=1000, busy_ns=5, total_ns=10, processes={11: 2})))
    claimed = {HOST: Claims([(0, 5)]), 11: Claims([(5, 10)]), 99: Claims([(0, 10)])}
    account = account_of(store, claimed, Run("run-one-0001", 0, cpu_uj=100), 0, 12)
    assert account is not None
    assert (account.measured_uj, account.idle_uj) == (1000, 500)
    assert (account.spans_uj, account.other_spans_uj) == (100, 150)  # 150 of the host and 100 of the process claimed
    assert (account.other_uj, account.unattributed_uj, account.uncovered_ns) == (150, 100, 2)
    assert account_of(store, claimed, Run("run-one-0001", 0), 20, 30) is None


def test_what_was_left_over_is_nobodys() -> None:
    """Time that was given with something left: that is the host's other energy, or the process's unattributed."""
    store = EnergyStore(retention_ns=10**9)
    store.add(tick_batch(tick(1, 0, 10, cpu_uj=1000, static_uj=0, busy_ns=10, total_ns=10, processes={11: 4})))
    claimed = {HOST: Claims([(0, 10)], [(0, 5, (70, 0, 0))]), 11: Claims([(0, 5)], [(0, 5, (30, 0, 0))])}
    account = account_of(store, claimed, Run("run-one-0001", 0, cpu_uj=100), 0, 10)
    assert account is not None
    assert (account.measured_uj, account.idle_uj) == (1000, 0)
    assert (account.spans_uj, account.other_spans_uj) == (100, 600 - 70 + 200 - 30 - 100)
    assert (account.other_uj, account.unattributed_uj) == (70, 230)


SCOPES = {
    "one": ({"process"}, "process"),
    "none": (set(), "host"),
    "a span and its process": ({"span", "process"}, "process"),
    "a container and its pod": ({"container", "pod", "span"}, "pod"),
    "all": ({"host", "pod", "container", "process", "span"}, "host"),
}


@pytest.mark.parametrize(("scopes", "widest"), SCOPES.values(), ids=SCOPES.keys())
def test_a_run_is_called_by_the_widest_of_its_scopes(scopes: set[str], widest: str) -> None:
    """S0-06: no more is claimed than is known of every span."""
    run = Run("run-one-0001", T0, spans=1, scopes=scopes)
    assert publish(run, "root_span", (9, 0), T0, IDENTITY, None, CARBON).energy_scope == widest


def test_no_part_of_an_account_is_negative() -> None:
    """S0-66: a microjoule that rounding moves from a span that ends outside the window is not taken from others."""
    store = EnergyStore(retention_ns=10**9)
    store.add(tick_batch(tick(1, 0, 10, cpu_uj=2), tick(2, 10, 100, cpu_uj=326)))
    spans = [(4, 15), (7, 9), (3, 79), (7, 10), (2, 47), (8, 10), (7, 59)]
    count = len(spans)
    columns = Columns(
        starts=[start for start, _ in spans],
        ends=[end for _, end in spans],
        keys=[b"k%d" % at for at in range(count)],
        parents=[b""] * count,
        pids=[HOST] * count,
    )
    claimed: dict[int, Claims] = {}
    attribute(store, claimed, columns)
    mine = sum(columns.own[0][at] for at in (1, 3, 5))
    account = account_of(store, claimed, Run("run-one-0001", 0, cpu_uj=mine), 7, 10)
    assert account is not None
    parts = (account.spans_uj, account.other_spans_uj, account.idle_uj, account.other_uj, account.unattributed_uj)
    assert sum(parts) == account.measured_uj
    assert min(parts) >= 0, account
    assert abs(account.spans_uj - mine) <= count
