"""Sensors beside the measured set: which there are, what is counted of them, and that they are in no sum."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_agent.local import LocalAgent
from joulegram_agent.main import open_agent
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.sampler import Sampler
from joulegram_agent.sensor_sources import open_sensors
from joulegram_agent.sensors import MAX_SENSORS, Quantity, Sensor, SensorKind, Sensors
from simulators.hwmon import SensorTree
from simulators.powercap import PowercapTree
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from pathlib import Path

J = 1_000_000
W = 1_000_000
S = 1_000_000_000


class FixedProbe:
    """A probe that says what it was made to say."""

    def __init__(self, name: str = "x", quantity: Quantity = Quantity.POWER) -> None:
        self.sensor = Sensor(name, SensorKind.OTHER, quantity)
        self.value: int | str = 0
        self.reads = 0
        self.closed = 0

    def read(self) -> int | str:
        self.reads += 1
        return self.value

    def close(self) -> None:
        self.closed += 1


def shown(root: Path) -> dict[str, tuple[SensorKind, Quantity, str | None]]:
    sensors = open_sensors(root, root)
    sensors.close()
    return {
        totals.sensor.id: (totals.sensor.kind, totals.sensor.quantity, totals.sensor.label) for totals in sensors.totals
    }


def test_every_kind_is_found_and_named(tmp_path: Path) -> None:
    """Issue 5: a board's meter, another chip, a battery and psys, each by a name that outlasts a boot."""
    PowercapTree(tmp_path, psys=True)
    tree = SensorTree(tmp_path)
    tree.chip("coretemp", "coretemp.0", temp1_input=41_000)
    tree.chip("power_meter", "ACPI000D:00", power1_average=210 * W, power1_label="System")
    tree.chip("ina226", "1-0040", power1_input=3 * W, energy2_input=5)
    tree.supply("BAT0", type="Battery", status="Discharging", power_now=9 * W)
    assert shown(tmp_path) == {
        "psys": (SensorKind.PSYS, Quantity.ENERGY, None),
        "battery/BAT0": (SensorKind.BATTERY, Quantity.POWER, None),
        "hwmon/power_meter/ACPI000D:00/power1": (SensorKind.BOARD, Quantity.POWER, "System"),
        "hwmon/ina226/1-0040/energy2": (SensorKind.OTHER, Quantity.ENERGY, None),
        "hwmon/ina226/1-0040/power1": (SensorKind.OTHER, Quantity.POWER, None),
    }


def test_a_machine_without_sensors_has_none(tmp_path: Path) -> None:
    """Missing hardware is no error: nothing is shown, and nothing is asked for every second."""
    assert shown(tmp_path) == {}


def test_what_would_be_shown_twice_is_shown_once(tmp_path: Path) -> None:
    """A channel with a mean and an instant is one sensor, the mean; a battery's chip, a mouse, a core are none."""
    tree = SensorTree(tmp_path)
    tree.supply("BAT0", type="Battery", status="Full", power_now=0)
    tree.supply("AC", type="Mains", online=1)
    tree.supply("hidpp_battery_0", type="Battery", scope="Device", status="Discharging", power_now=1)
    tree.chip("BAT0", "BAT0", power1_input=5)
    meter = tree.chip("power_meter", "ACPI000D:00", power1_average=90 * W, power1_input=120 * W)
    tree.amd_energy(2, 70)
    assert list(shown(tmp_path)) == [
        "battery/BAT0",
        "hwmon/power_meter/ACPI000D:00/power1",
        "hwmon/amd_energy/amd_energy.0/energy3",
    ]
    sensors = open_sensors(tmp_path, tmp_path, ManualClock(), tree.open_file)
    sensors.sample()
    assert sensors.totals[1].power_uw == 90 * W
    assert meter / "power1_average" in [path.resolve() for path in tree.opened]


def test_two_chips_of_one_name_are_two_sensors(tmp_path: Path) -> None:
    """Chips without a device, or twice on one, keep apart by their entry."""
    tree = SensorTree(tmp_path)
    tree.chip("psu", None, power1_input=1)
    tree.chip("psu", None, power1_input=2)
    tree.chip("psu", "7-0058", power1_input=3)
    tree.chip("psu", "7-0058", power1_input=4)
    assert list(shown(tmp_path)) == [
        "hwmon/psu/hwmon0/power1",
        "hwmon/psu/hwmon1/power1",
        "hwmon/psu/7-0058/power1",
        "hwmon/psu/7-0058/power1@hwmon3",
    ]


def test_power_is_added_up_and_energy_is_counted(tmp_path: Path) -> None:
    """200 W for 3 s and a rise to 400 W in the fourth are 900 J; a counter of psys that wraps loses nothing."""
    tree, powercap, clock = SensorTree(tmp_path), PowercapTree(tmp_path, psys=True), ManualClock()
    powercap.reset("psys", powercap.package_range_uj - 50 * J)
    meter = tree.chip("power_meter", "ACPI000D:00", power1_average=200 * W)
    sensors = open_sensors(tmp_path, tmp_path, clock)
    sensors.sample()
    for watts in (200, 200, 200, 400):
        (meter / "power1_average").write_text(f"{watts * W}\n")
        powercap.advance({"package-0": 40 * J})
        clock.advance(S)
        assert sensors.sample()
    psys, board = sensors.totals
    assert (psys.energy_uj, psys.power_uw, dict(psys.gaps)) == (160 * J, None, {})
    assert (board.energy_uj, board.power_uw, board.reason) == (900 * J, 400 * W, None)
    sensors.close()


def test_each_is_read_once_a_second_at_most() -> None:
    """PLATYPUS: asked sooner, nothing is read, and what is shown does not move."""
    probe, clock = FixedProbe(), ManualClock()
    sensors = Sensors([probe], clock)
    assert sensors.sample()
    clock.advance(S - 1)
    probe.value = 5 * W
    assert not sensors.sample()
    assert (probe.reads, sensors.totals[0].power_uw) == (1, 0)
    clock.advance(1)
    assert sensors.sample()
    assert (probe.reads, sensors.totals[0].power_uw) == (2, 5 * W)


def test_what_cannot_be_read_is_a_reason(tmp_path: Path) -> None:
    """D-06, D-10: refused at the start, or at a read, or garbage: a reason and a gap each second, never 0 W."""
    tree, clock = SensorTree(tmp_path), ManualClock()
    meter = tree.chip("power_meter", "ACPI000D:00", power1_average=100 * W)
    other = tree.chip("ina226", "1-0040", power1_input=-5)
    tree.faults[meter / "power1_average"] = errno.EACCES
    sensors = open_sensors(tmp_path, tmp_path, clock, tree.open_file)
    tree.faults.clear()
    sensors.sample()
    clock.advance(S)
    tree.faults[other / "power1_input"] = errno.ENODEV
    sensors.sample()
    refused, gone = sensors.totals
    assert (refused.reason, refused.power_uw, refused.energy_uj) == ("permission_denied", None, 0)
    assert (gone.reason, dict(gone.gaps)) == ("domain_vanished", {"domain_vanished": 1})
    tree.faults.clear()
    clock.advance(S)
    sensors.sample()
    assert sensors.totals[1].reason == "read_failed: got b'-5', expected a whole number, 0 or more"


def test_a_machine_of_ten_kilowatts_is_counted_and_a_jump_is_not() -> None:
    """D-13: a machine with eight boards draws 10 kW; a counter that jumps 10^15 uJ is a gap, and counted nowhere."""
    platform, jumps = FixedProbe("platform"), FixedProbe("jumps", Quantity.ENERGY)
    clock = ManualClock()
    platform.value = 10_200 * W
    sensors = Sensors([platform, jumps], clock)
    sensors.sample()
    for jumps.value in (10_000 * J, 10**15, 10**15 + 3 * J):
        clock.advance(S)
        sensors.sample()
    board, counter = sensors.totals
    assert (board.energy_uj, dict(board.gaps)) == (3 * 10_200 * J, {})
    assert (counter.energy_uj, counter.unplaced_uj, dict(counter.gaps)) == (10_003 * J, 0, {"implausible_power": 1})


def test_a_hole_is_not_bridged() -> None:
    """Three seconds without a reading, or a sleep: what was drawn in them is not known and not counted."""
    probe, clock = FixedProbe(), ManualClock()
    probe.value = 50 * W
    sensors = Sensors([probe], clock)
    sensors.sample()
    for wait_ns, asleep_ns in ((S, 0), (3 * S, 0), (S, 600 * S), (S, 0)):
        clock.advance(wait_ns)
        clock.suspend(asleep_ns)
        sensors.sample()
    (totals,) = sensors.totals
    assert totals.energy_uj == 50 * J
    assert dict(totals.gaps) == {"unsampled": 2, "unplaced": 1}
    assert totals.energy_uj + totals.unplaced_uj == 100 * J


BATTERIES = {
    "power": ({"power_now": 7 * W}, 7 * W),
    "a discharge below 0": ({"power_now": -7 * W}, 7 * W),
    "current and voltage": ({"current_now": 1_500_000, "voltage_now": 12_000_000}, 18 * W),
    "a current below 0": ({"current_now": -1_500_001, "voltage_now": 12_000_001}, 18_000_013),
    "neither": ({}, "domain_vanished"),
    "words": ({"power_now": "many"}, "read_failed: power_now: got 'many', expected a whole number"),
}


@pytest.mark.parametrize(("files", "value"), BATTERIES.values(), ids=BATTERIES)
def test_a_battery_that_discharges(tmp_path: Path, files: dict[str, object], value: int | str) -> None:
    """Power, or current x voltage, whichever way the driver signs a discharge; what it does not say is a reason."""
    SensorTree(tmp_path).supply("BAT1", type="Battery", status="Discharging", **files)
    sensors = open_sensors(tmp_path, tmp_path, ManualClock())
    sensors.sample()
    (totals,) = sensors.totals
    assert (totals.power_uw, totals.reason) == ((value, None) if isinstance(value, int) else (None, value))


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown"])
def test_a_battery_that_does_not_discharge_says_nothing_of_the_machine(tmp_path: Path, status: str) -> None:
    """D-10: on the mains the battery's power is not the machine's: a reason, not 0 W and not the charge."""
    SensorTree(tmp_path).supply("BAT0", type="Battery", status=status, power_now=30 * W)
    sensors = open_sensors(tmp_path, tmp_path, ManualClock())
    sensors.sample()
    assert sensors.totals[0].power_uw is None
    assert sensors.totals[0].reason == f"not_discharging: got {status!r}, expected 'Discharging'"
    sensors.close()


def test_sensors_beyond_the_bound_are_left_out_and_closed() -> None:
    """A machine with thousands of channels does not make every answer long; nor does one id come twice."""
    probes = [FixedProbe(f"hwmon/psu/{number}/power1") for number in range(MAX_SENSORS + 3)]
    twin = FixedProbe(probes[0].sensor.id)
    sensors = Sensors([twin, *probes], ManualClock())
    assert (len(sensors.totals), sensors.left_out) == (MAX_SENSORS, 4)
    assert [probe.closed for probe in probes[:1] + probes[-3:]] == [1, 1, 1, 1]
    sensors.close()
    assert twin.closed == 1


def test_no_sensor_enters_a_tick(tmp_path: Path) -> None:
    """D-04: with psys, a board and a battery at 900 W beside a package at 40 W, a tick holds 40 J."""
    powercap, tree, clock = PowercapTree(tmp_path, psys=True, dram=False), SensorTree(tmp_path), ManualClock()
    tree.chip("power_meter", "ACPI000D:00", power1_average=900 * W)
    tree.supply("BAT0", type="Battery", status="Discharging", power_now=900 * W)
    reader = PowercapReader(tmp_path)
    sensors = open_sensors(tmp_path, tmp_path, clock)
    agent = LocalAgent(
        reader, Sampler(reader, proc_root=FakeProc(tmp_path / "proc").root, clock=clock), sensors=sensors
    )
    agent.sampler.sample()
    sensors.sample()
    powercap.advance({"package-0": 40 * J})
    clock.advance(S)
    sensors.sample()
    tick = agent.sampler.sample()
    assert tick is not None
    assert tick.energy_uj == {"package-0": 40 * J}
    assert agent.sampler.totals.energy_uj == {"package-0": 40 * J}
    assert [totals.energy_uj for totals in agent.beside] == [40 * J, 900 * J, 900 * J]


def test_the_agent_reads_them_in_real_time(tmp_path: Path) -> None:
    """Entered, the agent reads its sensors without being asked; left, it closes them."""
    SensorTree(tmp_path).chip("power_meter", "ACPI000D:00", power1_average=75 * W)

    async def body() -> int | None:
        agent = open_agent("none", sysfs_root=tmp_path, dev_root=tmp_path)
        async with agent, asyncio.timeout(5):
            while agent.beside[0].power_uw is None:  # noqa: ASYNC110  (nothing waits for a sensor but this)
                await asyncio.sleep(0)
        return agent.beside[0].power_uw

    assert asyncio.run(body()) == 75 * W


@settings(deadline=None)
@given(
    trace=st.lists(
        st.tuples(st.one_of(st.integers(0, 10**9), st.just("read_failed")), st.integers(S, 2 * S)), max_size=40
    )
)
def test_law_of_what_is_counted(trace: list[tuple[int | str, int]]) -> None:
    """D-08, D-10: whatever is read and fails, nothing falls, and no more is counted than was drawn."""
    probe, clock = FixedProbe(), ManualClock()
    sensors, most_uj, last = Sensors([probe], clock), 0, (0, 0)
    sensors.sample()
    top = 0
    for value, wait_ns in trace:
        probe.value = value
        top = max(top, value if isinstance(value, int) else 0)
        clock.advance(wait_ns)
        assert sensors.sample()
        most_uj += top * wait_ns // S
        (totals,) = sensors.totals
        now = (totals.energy_uj, totals.unplaced_uj)
        assert last[0] <= now[0]
        assert last[1] <= now[1]
        assert sum(now) <= most_uj + len(trace)
        last = now
