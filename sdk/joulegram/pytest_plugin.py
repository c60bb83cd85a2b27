"""`pytest --joulegram`: joules and grams of each test and of the session, in the terminal summary.

Off by default; then it adds its options and nothing runs. It imports no pytest, which calls it by the names of hooks.
Energy is of this process tree: the ticks of the session, split by CPU time. A tick lasts a second, most tests less, so
a tick's energy goes to the tests in it by their CPU time, taken as even over each test; what no test spent (collection,
fixtures of the session) is in the total alone.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from joulegram.meter import Meter

SHOWN = 10
"""So many tests are listed, those with the most energy."""


def pytest_addoption(parser: Any) -> None:
    """The option; without it nothing else here does anything."""
    group = parser.getgroup("joulegram")
    group.addoption("--joulegram", action="store_true", help="print the energy and carbon of tests (docs/sdk.md)")
    group.addoption("--joulegram-region", metavar="REGION", help="grid region, as SPP_KS or iso3:DEU")
    group.addoption("--joulegram-socket", metavar="PATH", help="socket of an agent")


def pytest_configure(config: Any) -> None:
    """Measure where it is asked for; a worker of pytest-xdist leaves it to its controller."""
    if config.getoption("--joulegram") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(EnergyOfTests(config), "joulegram-energy")


class EnergyOfTests:
    """Follows one session.

    Args:
        config: of pytest, with the options.
    """

    def __init__(self, config: Any) -> None:
        from joulegram.meter import Meter  # noqa: PLC0415 - only where it is asked for

        self._region: str | None = config.getoption("--joulegram-region")
        self._meter: Meter = Meter(config.getoption("--joulegram-socket"), model=True)
        # Tests that run in other processes have no CPU time here.
        self._elsewhere = config.pluginmanager.hasplugin("dsession")
        self._tests: list[tuple[str, int, int, int]] = []
        self._began: tuple[int, int] | None = None

    def pytest_runtest_logstart(self) -> None:
        """A test begins, with its own fixtures."""
        self._began = time.time_ns(), _cpu_ns()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """It is over."""
        if self._began is not None and not self._elsewhere:
            start_ns, start_cpu_ns = self._began
            self._tests.append((nodeid, start_ns, time.time_ns(), _cpu_ns() - start_cpu_ns))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What was spent."""
        from joulegram.report import number, pricing  # noqa: PLC0415

        end_ns = time.time_ns()
        self._meter.wait(end_ns)
        ticks = self._meter.ticks(self._meter.begin_ns, end_ns)
        # Whole ticks, as they are split among tests: what follows the last test in its tick is waiting.
        first_ns, last_ns = (ticks[0].start_ns, ticks[-1].end_ns) if ticks else (self._meter.begin_ns, end_ns)
        total = self._meter.energy(first_ns, last_ns)
        grams, basis = pricing(self._region)
        write = terminalreporter.write_line
        terminalreporter.section("joulegram")
        if total.process_uj is None:
            write(f"energy not known: {total.reason}")
            self._meter.close()
            return

        def row(energy_uj: float, name: str) -> str:
            joules = energy_uj / 1e6
            return f"{number(joules):>9} J {number(None if grams is None else grams(joules)):>9} g  {name}"

        spent = split_by_cpu(self._meter, self._tests)
        for energy_uj, (name, *_) in sorted(zip(spent, self._tests, strict=True), reverse=True)[:SHOWN]:
            write(row(energy_uj, name))
        if len(spent) > SHOWN:
            write(f"and {len(spent) - SHOWN} more tests, each with no more")
        tests = "its tests ran in other processes" if self._elsewhere else f"{len(spent)} tests"
        write(row(total.process_uj, f"all of the session, {tests}"))
        write(f"method {total.method.value}, scope process; grams: {basis}")
        if total.reason is not None:
            write(f"energy: {total.reason}")
        self._meter.close()


def split_by_cpu(meter: Meter, tests: list[tuple[str, int, int, int]]) -> list[float]:
    """Microjoules of each test: of every tick it touches, by its CPU time among the tests there.

    Args:
        meter: with the ticks.
        tests: name, start and end on the wall clock in ns, CPU time in ns; in order of time, not overlapping.

    Returns:
        Microjoules, not rounded; their sum is at most what the ticks have.
    """
    spent = [0.0] * len(tests)
    if not tests:
        return spent
    first = 0
    for tick in meter.ticks(tests[0][1], tests[-1][2]):
        while first < len(tests) and tests[first][2] <= tick.start_ns:
            first += 1
        weights: dict[int, float] = {}
        for index in range(first, len(tests)):
            _, start_ns, end_ns, cpu_ns = tests[index]
            if start_ns >= tick.end_ns:
                break
            overlap_ns = min(end_ns, tick.end_ns) - max(start_ns, tick.start_ns)
            weights[index] = cpu_ns * overlap_ns / max(1, end_ns - start_ns)
        # The process also does what is no test: its CPU time in the tick, where that is more, is the whole.
        whole = max(tick.process_cpu_ns or 0, sum(weights.values()))
        for index, weight in weights.items():
            if whole and tick.process_uj is not None:
                spent[index] += tick.process_uj * weight / whole
    return spent


def _cpu_ns() -> int:
    """CPU time of this process and of the children it waited for."""
    times = os.times()
    return time.process_time_ns() + round((times.children_user + times.children_system) * 1e9)
