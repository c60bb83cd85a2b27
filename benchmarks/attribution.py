"""What attribution costs a span: a million of them, eight open at a time, equally and by their own CPU time.

    python benchmarks/attribution.py [--spans 1000000]

Prints microseconds of CPU time a span. Energy is checked to be conserved.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from joulegram_pipeline.energy import Domain, DomainKind, Method, Tick, TickBatch
from joulegram_processor.attribution import Columns, attribute
from joulegram_processor.energy_store import EnergyStore
from joulegram_processor.inclusive import add_up

if TYPE_CHECKING:
    from joulegram_processor.claims import Claims

NS_PER_S = 1_000_000_000
PID = 4711
FOLD = 8
SECONDS = 20
ENERGY_UJ = 100_000_000
"""Of each second; a hundred watts."""


def made(seconds: int) -> EnergyStore:
    """A second of 100 W after the other, all of it a process's."""
    store = EnergyStore(retention_ns=10**15)
    busy = {"cpu_busy_ns": FOLD * NS_PER_S, "cpu_total_ns": FOLD * NS_PER_S, "process_cpu_ns": {PID: FOLD * NS_PER_S}}
    ticks = tuple(
        Tick(at + 1, at * NS_PER_S, (at + 1) * NS_PER_S, {"package-0": ENERGY_UJ}, {"package-0": 0}, **busy)  # type: ignore[arg-type]
        for at in range(seconds)
    )
    store.add(TickBatch("boot-1", "powercap", Method.MEASURED, None, (Domain("package-0", DomainKind.CPU),), ticks))
    return store


def batch(first: int, count: int, start_ns: int, *, by_cpu: bool) -> Columns:
    """Spans of a second, `FOLD` open at a time; each a child of the one `FOLD` before it, or a root."""
    length = FOLD * NS_PER_S // (count + FOLD - 1)
    starts = [start_ns + at * length // FOLD for at in range(count)]
    keys = [(first + at).to_bytes(24, "big") for at in range(count)]
    return Columns(
        starts=starts,
        ends=[start + length for start in starts],
        keys=keys,
        parents=[b""] * count,
        pids=[PID] * count,
        cpu_ns=dict.fromkeys(range(count), length) if by_cpu else {},
    )


def run(spans: int, *, by_cpu: bool) -> float:
    """Microseconds of CPU time a span; settled a second at a time, as the machine does."""
    store, claimed = made(SECONDS), dict[int, "Claims"]()
    count = spans // SECONDS
    spent = given = 0
    for second in range(SECONDS):
        columns = batch(second * count, count, second * NS_PER_S, by_cpu=by_cpu)
        began = time.process_time_ns()
        attribute(store, claimed, columns)
        add_up(columns, {})
        spent += time.process_time_ns() - began
        given += sum(columns.own[0])
    left = sum(left[0] for _, _, left in claimed[PID].leftovers)
    outside = sum(sum(store.energy(low, high, PID)) for low, high in claimed[PID].left(0, SECONDS * NS_PER_S))
    if given + left + outside != SECONDS * ENERGY_UJ:
        raise SystemExit(f"{SECONDS * ENERGY_UJ} uJ measured, {given} given, {left} left over, {outside} not claimed")
    return spent / 1000 / (count * SECONDS)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--spans", type=int, default=1_000_000)
    spans = parser.parse_args().spans
    for name, by_cpu in (("equally", False), ("by their own CPU time", True)):
        print(f"{spans} spans, {FOLD} open at a time, {name}: {run(spans, by_cpu=by_cpu):.2f} us a span", flush=True)


if __name__ == "__main__":
    main()
