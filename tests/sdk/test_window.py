"""The energy of a window from ticks: ends, gaps, epochs and the process's part (S0-30, S0-66, S3-09)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.meter import attribution_mode
from joulegram.window import NO_TICKS, TickLog
from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method, Tick, TickBatch

S = 1_000_000_000
PID = 4711
DOMAINS = (
    Domain("package-0", DomainKind.CPU),
    Domain("package-0/dram", DomainKind.DRAM),
    Domain("gpu-0", DomainKind.GPU),
)


def tick(number: int, **changes: object) -> Tick:
    """A second of 10 J on two CPUs, half of one busy, all of it ours."""
    made = Tick(
        seq=number,
        start_ns=(number - 1) * S,
        end_ns=number * S,
        energy_uj={"package-0": 10_000_000},
        cpu_busy_ns=S // 2,
        cpu_total_ns=2 * S,
        process_cpu_ns={PID: S // 2},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def log(*ticks: Tick, epoch: str = "a", method: Method = Method.MEASURED, since_ns: int = 0) -> TickLog:
    made = TickLog(PID, since_ns)
    assert made.add(TickBatch(epoch, "powercap", method, None, DOMAINS, ticks))
    return made


def test_whole_ticks_add_up() -> None:
    """Two ticks, two times their energy; idle is left out of the process's part."""
    found = log(tick(1), tick(2)).energy(0, 2 * S)
    assert (found.host_uj, found.covered_ns, found.reason) == (20_000_000, 2 * S, None)
    assert found.process_uj == 5_000_000, "a quarter of the CPU time was used, all of it by us"
    assert found.allocation_ratio == 0.25


def test_of_a_tick_at_an_end_the_part_inside_counts() -> None:
    """Power is uniform inside a tick."""
    assert log(tick(1), tick(2)).energy(S // 2, S + S // 4).host_uj == 7_500_000


def test_time_without_ticks_is_said_and_not_filled() -> None:
    """The sum is of what is covered, and the reason says how much that is."""
    found = log(tick(1)).energy(0, 3 * S)
    assert (found.host_uj, found.covered_ns) == (10_000_000, S)
    assert found.reason == f"{NO_TICKS}; 2 s of 3 s not covered"


def test_no_ticks_at_all() -> None:
    """Unavailable, with the source's reason where it gave one; never 0."""
    found = TickLog(PID, 0).energy(0, S, "agent_lost: gone")
    assert (found.host_uj, found.process_uj, found.method) == (None, None, Method.UNAVAILABLE)
    assert str(found.reason).startswith("agent_lost: gone")


def test_a_gap_in_one_domain_leaves_the_others() -> None:
    """Its reason is counted; the tick's other domains are there."""
    spoilt = tick(2, gaps=(Gap("package-0/dram", "read_failed: EINVAL"),))
    found = log(tick(1), spoilt).energy(0, 2 * S)
    assert found.host_uj == 20_000_000
    assert found.reason == "package-0/dram: read_failed: EINVAL"


def test_a_tick_that_is_all_gap_is_not_covered() -> None:
    """No energy in it is not 0 energy (S0-30: not known)."""
    found = log(tick(1), tick(2, energy_uj={}, gaps=(Gap("*", "clock_step"),))).energy(0, 2 * S)
    assert (found.host_uj, found.covered_ns) == (10_000_000, S)
    assert str(found.reason).startswith("*: clock_step")


def test_energy_that_would_be_spent_idle_is_taken_from_the_source() -> None:
    """Where the source knows the static part it is used instead of the unused CPU time."""
    found = log(tick(1, static_uj={"package-0": 4_000_000})).energy(0, S)
    assert found.process_uj == 6_000_000


def test_gpus_stay_the_hosts() -> None:
    """Their energy has no CPU time to go by; it is told apart."""
    found = log(tick(1, energy_uj={"package-0": 10_000_000, "gpu-0": 50_000_000})).energy(0, S)
    assert (found.host_uj, found.gpu_uj, found.process_uj) == (60_000_000, 50_000_000, 2_500_000)


def test_another_process_has_its_own_part() -> None:
    """By CPU time among all that ran in the same tick."""
    found = log(tick(1, process_cpu_ns={PID: S // 8, 99: S // 8})).energy(0, S)
    assert found.process_uj == 625_000


def test_a_tick_without_us_leaves_the_others() -> None:
    """The last tick of an ended process does not say what it spent; the ratio is of the ticks that do."""
    found = log(tick(1), tick(2, process_cpu_ns={})).energy(0, 2 * S)
    assert (found.host_uj, found.process_uj, found.allocation_ratio) == (20_000_000, 2_500_000, 0.25)


def test_a_new_epoch_is_asked_for_whole() -> None:
    """Counts of two agents are not mixed: the first batch of a new epoch is refused, so that all of it comes."""
    made = log(tick(1), tick(2))
    again = TickBatch("b", "powercap", Method.MEASURED, None, DOMAINS, (tick(1, start_ns=3 * S, end_ns=4 * S),))
    assert not made.add(again)
    assert made.after == 0
    assert made.add(again)
    assert made.energy(0, 4 * S).host_uj == 30_000_000


def test_overlapping_epochs_count_an_instant_once() -> None:
    """Where the wall clock fell back, the time that both have is the first one's."""
    made = log(tick(1), tick(2))
    batch = TickBatch("b", "model", Method.MODELLED, None, DOMAINS, (tick(1, start_ns=S, end_ns=3 * S),))
    made.add(batch)
    made.add(batch)
    found = made.energy(0, 3 * S)
    assert (found.host_uj, found.covered_ns, found.method) == (25_000_000, 3 * S, Method.MIXED)


def test_what_is_forgotten_is_gone_and_the_rest_stays() -> None:
    """A logger that lives for weeks keeps no more than it may be asked for."""
    made = log(*(tick(number) for number in range(1, 11)))
    made.forget(8 * S)
    assert len(made.between(0, 10 * S)) == 2
    made.forget(99 * S)
    assert made.end_ns == 10 * S


@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=8),
    st.integers(0, 8 * S),
    st.integers(0, 8 * S),
    st.integers(0, 8 * S),
)
def test_cutting_a_window_adds_nothing(energies: list[int], one: int, two: int, three: int) -> None:
    """Parts are at most the whole and at most a microjoule a tick short of it; nothing is negative (S0-66)."""
    made = log(*(tick(number, energy_uj={"package-0": uj}) for number, uj in enumerate(energies, 1)))
    low, middle, high = sorted((one, two, three))
    whole, first, second = (
        made.energy(start, end).host_uj or 0 for start, end in ((low, high), (low, middle), (middle, high))
    )
    assert 0 <= first + second <= whole <= first + second + len(energies) + 1


@pytest.mark.parametrize("busy_ns", [0, None])
def test_a_tick_in_which_nothing_ran(busy_ns: int | None) -> None:
    """No CPU time at all is none of the energy; CPU time that is not known is no figure."""
    found = log(tick(1, cpu_busy_ns=busy_ns, process_cpu_ns={PID: 0})).energy(0, S)
    assert found.process_uj == (0 if busy_ns == 0 else None)


def test_who_says_what_a_windows_energy_is() -> None:
    """S3-08: an agent that knows our CPU time, one that does not, one without energy, and no agent."""
    whole, host, none = log(tick(1)), log(tick(1, process_cpu_ns={})), log()
    modes = [attribution_mode("agent", each.energy(0, S)) for each in (whole, host, none)]

    assert modes == ["governor_cpu_time", "governor_energy", "monitor_only"]
    assert [attribution_mode(origin, whole.energy(0, S)) for origin in ("local", None)] == ["monitor_only"] * 2
