from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.energy import DomainKind, Method, Tick
from joulegram_pipeline.errors import WireError
from joulegram_processor.foreign import MAX_HOSTS, ForeignEnergy
from simulators.traces import T0, S, host_energy


def ticks(foreign: ForeignEnergy, payload: bytes) -> list[tuple[int, int, int]]:
    """Seconds since T0 and whole joules of what a request gave."""
    batch = foreign.read(payload)
    made: tuple[Tick, ...] = () if batch is None else batch.ticks
    return [((one.start_ns - T0) // S, (one.end_ns - T0) // S, one.energy_uj["host"] // 1_000_000) for one in made]


def at(*points: tuple[int, int, float]) -> bytes:
    return host_energy(*((T0 + start * S, T0 + end * S, joules) for start, end, joules in points))


def test_a_cumulative_count_is_taken_by_differences() -> None:
    """The first counts from its own start, each other from the one before, in requests of any cut."""
    one = ForeignEnergy()
    assert ticks(one, at((0, 10, 100.0), (0, 20, 130.0))) == [(0, 10, 100), (10, 20, 30)]
    assert ticks(one, at((0, 30, 130.0))) == [(20, 30, 0)]
    batch = one.read(at((0, 40, 131.0)))
    assert batch is not None
    assert (batch.method, batch.source, [domain.kind for domain in batch.domains]) == (
        Method.REPORTED,
        "otlp",
        [DomainKind.CPU],
    )
    assert [tick.seq for tick in batch.ticks] == [4]


def test_a_delta_is_what_it_says() -> None:
    """Delta temporality: from start to time, whatever came before."""
    payload = host_energy((T0, T0 + 10 * S, 7.0), (T0 + 15 * S, T0 + 20 * S, 5.0), delta=True)
    assert ticks(ForeignEnergy(), payload) == [(0, 10, 7), (15, 20, 5)]


def test_a_reset_counts_from_its_own_start() -> None:
    """D-08: a count that fell is never a negative energy; a reset that began before the last count gives none."""
    one = ForeignEnergy()
    assert ticks(one, at((0, 10, 100.0), (12, 20, 5.0), (12, 30, 9.0))) == [(0, 10, 100), (12, 20, 5), (20, 30, 4)]
    assert ticks(one, at((0, 40, 1.0))) == []
    assert ticks(one, at((0, 50, 3.0))) == [(40, 50, 2)]


def test_a_first_count_without_a_start_is_the_beginning_only() -> None:
    """Since when it counts is not known: no energy of it, but the next is a difference."""
    one = ForeignEnergy()
    assert ticks(one, host_energy((0, T0 + 10 * S, 100.0))) == []
    assert not one.active
    assert ticks(one, host_energy((0, T0 + 20 * S, 104.0))) == [(10, 20, 4)]
    assert one.active


def test_a_late_count_changes_nothing() -> None:
    """One that was overtaken, or is sent twice, neither gives energy nor takes the newer count's place."""
    one = ForeignEnergy()
    assert ticks(one, at((0, 10, 100.0))) == [(0, 10, 100)]
    assert ticks(one, at((0, 5, 50.0))) == []
    assert ticks(one, at((0, 10, 100.0))) == []
    assert ticks(one, at((0, 20, 110.0))) == [(10, 20, 10)]


def test_series_of_two_hosts_are_told_apart() -> None:
    """`hw.id` is the series; a count of one is never subtracted from another's."""
    one = ForeignEnergy()
    for name, joules in (("a", 100.0), ("b", 5.0)):
        one.read(host_energy((T0, T0 + S, joules), hw_id=name))
    batch = one.read(host_energy((T0, T0 + 2 * S, 6.0), hw_id="b"))
    assert batch is not None
    assert [dict(tick.energy_uj) for tick in batch.ticks] == [{"host": 1_000_000}]


def test_no_more_series_are_kept_than_told() -> None:
    """A sender of ever new names cannot fill the memory."""
    one = ForeignEnergy()
    for number in range(MAX_HOSTS + 5):
        one.read(host_energy((T0, T0 + S, 1.0), hw_id=f"host-{number}"))
    assert len(one.dump()["last"]) == MAX_HOSTS


@pytest.mark.parametrize("payload", [b"", b"\x0a\x02\xff\xff", host_energy((T0, T0 + S, 1.0), unit="kWh")])
def test_what_holds_no_host_energy_gives_none(payload: bytes) -> None:
    """Without the name nothing is decoded; another unit is another quantity."""
    assert ForeignEnergy().read(payload) is None


def test_a_broken_request_is_said() -> None:
    """The name in bytes that are no request: WireError, with how many."""
    with pytest.raises(WireError, match="got 18 bytes that are no ExportMetricsServiceRequest"):
        ForeignEnergy().read(b"\xff\xff\xff\xffhw.host.energy")


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 50), st.integers(0, 100)), max_size=8), st.integers(0, 8))
def test_it_goes_on_after_a_restart_as_before(points: list[tuple[int, int, int]], cut: int) -> None:
    """Law: dump, JSON, load at any point, and the rest is the same; no tick is negative or backwards (S0-66)."""
    payloads = [at((start, end, joules)) for start, end, joules in points]
    whole, first, second = ForeignEnergy(), ForeignEnergy(), ForeignEnergy()
    wanted = [whole.read(payload) for payload in payloads]
    made = [first.read(payload) for payload in payloads[:cut]]
    second.load(json.loads(json.dumps(first.dump())))
    assert made + [second.read(payload) for payload in payloads[cut:]] == wanted
    for batch in wanted:
        for tick in batch.ticks if batch is not None else ():
            assert tick.start_ns < tick.end_ns
            assert tick.energy_uj["host"] >= 0
