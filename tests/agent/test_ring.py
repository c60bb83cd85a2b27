"""The ring of kept ticks: what comes out is what went in, and little is kept."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from joulegram_agent.ring import TickRing
from joulegram_pipeline.energy import OTHERS, Gap, Tick

S = 1_000_000_000

NUMBERS = st.one_of(st.integers(0, 2**32 + 1), st.integers(0, 2**53 - 1), st.integers(-(2**53), -1))
NAMES = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), NUMBERS)
PIDS = st.dictionaries(st.sampled_from([OTHERS, 1, 77, 2**22]), NUMBERS)
TICKS = st.builds(
    Tick,
    seq=st.just(0),
    start_ns=st.just(0),
    end_ns=st.integers(1, 2**62),
    energy_uj=NAMES,
    static_uj=NAMES,
    gaps=st.lists(st.builds(Gap, st.just("*"), st.sampled_from(["suspended", "read_failed: EIO"]))).map(tuple),
    cpu_busy_ns=st.none() | NUMBERS,
    cpu_total_ns=st.none() | NUMBERS,
    process_cpu_ns=PIDS,
    descendant_cpu_ns=PIDS,
    container_cpu_ns=NAMES,
    process_gpu_ns=st.dictionaries(st.sampled_from(["gpu-0", "gpu-1"]), PIDS),
)


@given(ticks=st.lists(TICKS, max_size=12), most=st.integers(1, 6))
def test_what_comes_out_is_what_went_in(ticks: list[Tick], most: int) -> None:
    """S3-03: the last ticks, whatever they hold, in the order of their keys too, and those above any number."""
    ring = TickRing(most)
    ticks = [replace(tick, seq=number) for number, tick in enumerate(ticks, 1)]
    for tick in ticks:
        ring.append(tick)
    kept = ticks[-most:]
    assert ring.last == (ticks[-1] if ticks else None)
    for after in range(len(ticks) + 2):
        out = tuple(ring.above(after))
        assert out == tuple(tick for tick in kept if tick.seq > after)
        assert [[*tick.container_cpu_ns] for tick in out] == [
            [*tick.container_cpu_ns] for tick in kept if tick.seq > after
        ]
    energy = [(tick.start_ns, tick.end_ns, tick.energy_uj, tick.gaps) for tick in kept]
    assert [*ring.touching(-(2**62), 2**62)] == energy
    ring.clear()
    assert ([*ring.above(0)], ring.last) == ([], None)


def test_those_that_a_window_touches() -> None:
    """Protocol: a tick that ends where the window begins is not in it, nor one that begins at its end."""
    ring = TickRing(4)
    for seq in range(1, 7):
        ring.append(Tick(seq, seq * S, (seq + 1) * S, {"package-0": seq}))

    def found(start_ns: int, end_ns: int) -> list[int]:
        return [tick.energy_uj["package-0"] for tick in ring.touching(start_ns, end_ns)]

    assert found(4 * S, 6 * S) == [4, 5]
    assert found(4 * S - 1, 6 * S + 1) == [3, 4, 5, 6]
    assert found(0, 3 * S) == []


def test_a_busy_nodes_ring_is_small() -> None:
    """20 MiB in all: 600 ticks of 8 domains, 10 named processes and 40 containers are below half a MiB."""
    keys = [f"container/{number:064x}" for number in range(40)]
    ring = TickRing(600)
    tracemalloc.start()
    try:
        for seq in range(1, 601):
            now_ns = 1_700_000_000 * S + seq * S
            ring.append(
                Tick(
                    seq,
                    now_ns,
                    now_ns + S,
                    energy_uj={f"package-{number}": 20_000_000 + seq for number in range(8)},
                    cpu_busy_ns=400_000_000 + seq,
                    cpu_total_ns=2 * S + seq,
                    process_cpu_ns={4_000 + number: 10_000_000 * seq for number in range(10)},
                    container_cpu_ns=dict.fromkeys(keys, 7_000_000 + seq),
                )
            )
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert size < 512 * 1024
