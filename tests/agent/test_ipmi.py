"""A management controller's power over /dev/ipmi0: what it says, what it does not, and that nothing waits for it."""

from __future__ import annotations

import ast
import asyncio
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_agent.client import AgentClient
from joulegram_agent.counters import reason_code
from joulegram_agent.doctor import examine
from joulegram_agent.ipmi import ipmi_probes
from joulegram_agent.ipmi_dcmi import power_uw
from simulators.agent_lines import part
from simulators.energy_machine import NO_LIBRARY
from simulators.hwmon import SensorTree
from simulators.ipmi import IpmiSim
from simulators.powercap import PowercapTree
from simulators.sidecar import JOULEGRAM, Agent, BareAgent, clean_environment, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_pipeline.energy import TickBatch

W = 1_000_000
IPMI = "ipmi/0/power"
METER = "hwmon/power_meter/ACPI000D:00/power1"


def asked(agent: Agent) -> tuple[dict[str, Any], TickBatch]:
    """What an agent's `counters` and `ticks` say."""

    async def body() -> tuple[dict[str, Any], TickBatch]:
        async with AgentClient(agent.socket) as client:
            return await client.counters(), await client.ticks(0)

    return asyncio.run(body())


def beside(agent: Agent) -> dict[str, dict[str, Any]]:
    """The sensors of an agent by their id."""
    return {sensor["id"]: sensor for sensor in asked(agent)[0]["beside"]}


def read_at_all(agent: Agent) -> bool:
    return bool({"power_uw", "reason"} & beside(agent)[IPMI].keys())


READ = """
import sys
from pathlib import Path
from joulegram_agent.ipmi import ipmi_probes
(probe,) = ipmi_probes(Path("/dev"))
for line in sys.stdin:
    print([probe.read() for _ in range(int(line))], flush=True)
"""


def reads(sim: IpmiSim, *steps: tuple[dict[str, int], int]) -> list[list[int | str]]:
    """What a probe in a process of its own says at so many reads, one upon the other, in each state."""
    environment = clean_environment(**sim.environment)
    command = [sys.executable, "-c", READ]
    said: list[list[int | str]] = []
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:
        assert probe.stdin is not None
        assert probe.stdout is not None
        for state, number in steps:
            sim.say(**state)
            print(number, file=probe.stdin, flush=True)
            said.append(ast.literal_eval(probe.stdout.readline()))
    assert probe.returncode == 0
    return said


def test_the_platform_is_shown_beside_and_in_no_sum(tmp_path: Path) -> None:
    """Issue 5, D-04: a real agent tells it as it tells an ACPI power meter; both are shown, ticks have neither."""
    sim, tree = IpmiSim(tmp_path).say(watts=321, delay_ms=20), PowercapTree(tmp_path / "sys")
    SensorTree(tree.root).chip("power_meter", "ACPI000D:00", power1_average=320 * W)
    with Agent(tmp_path, tree, environment=sim.environment) as agent:
        agent.wait_ready()
        wait_until(lambda: all(sensor["energy_uj"] > 0 for sensor in beside(agent).values()), "two reads of each")
        counters, batch = asked(agent)
    assert [sensor["id"] for sensor in counters["beside"]] == [METER, IPMI]
    meter, ipmi = counters["beside"]
    assert (meter["power_uw"], ipmi["power_uw"]) == (320 * W, 321 * W)
    # Seconds that a busy machine let pass are gaps of both, and what is beside them is not of the same power.
    different = dict.fromkeys(("id", "power_uw", "energy_uj", "unplaced_uj"))
    assert {**meter, **different} == {**ipmi, **different}
    assert ipmi["energy_uj"] >= 321 * W
    part("counters_result").validate(counters)
    assert {key for tick in batch.ticks for key in tick.energy_uj} == {"package-0", "package-0/dram"}
    assert sum(sum(tick.energy_uj.values()) for tick in batch.ticks) == 0


@pytest.mark.parametrize("device", ["ipmi0", "ipmi/0", "ipmidev/0"])
def test_it_is_found_under_each_of_its_names(tmp_path: Path, device: str) -> None:
    """As udev names it today, and as it did before."""
    assert reads(IpmiSim(tmp_path, f"/dev/{device}"), ({}, 1)) == [[210 * W]]


BAD_ANSWERS = {
    "it does not know the command": (
        {"code": 0xC1},
        "bmc_refused: got completion code 0xc1 (invalid command: it has no DCMI, or no power in it), expected 0x00",
    ),
    "a timeout the kernel tells": ({"code": 0xC3}, "bmc_refused: got completion code 0xc3 (timeout), expected 0x00"),
    "a field it does not take": (
        {"code": 0xCC},
        "bmc_refused: got completion code 0xcc (invalid data field in request), expected 0x00",
    ),
    "it is starting": (
        {"code": 0xD2},
        "bmc_refused: got completion code 0xd2 (controller is starting), expected 0x00",
    ),
    "a privilege that is missing": (
        {"code": 0xD4},
        "bmc_refused: got completion code 0xd4 (insufficient privilege), expected 0x00",
    ),
    "a maker's own code": ({"code": 0x80}, "bmc_refused: got completion code 0x80 (a code of its own), expected 0x00"),
    "it does not measure": (
        {"state": 0, "watts": 319},
        "not_measuring: got state 0x00 beside 319 W, expected bit 6: power is being measured",
    ),
    "no watts": ({"watts": 0}, "not_measuring: got 0 W of a machine that runs, expected more"),
    "another group": ({"group": 0xDD}, "read_failed: got group 0xdd, expected 0xdc"),
    "an answer cut short": ({"bytes": 6}, "read_failed: got 6 bytes '00dcd2000200', expected 19"),
    "no answer at all, not even a code": ({"bytes": 0}, "read_failed: got 0 bytes '', expected 19"),
    "silence": ({"silent": 1}, "bmc_late: got no answer in 0.5 s"),
    "an answer to somebody else": ({"stranger": 1}, "bmc_late: got no answer in 0.5 s"),
    "a request the kernel refuses": ({"send_errno": 5}, "read_failed: EIO"),
    "a driver that was taken away": ({"send_errno": 19}, "domain_vanished"),
    "a message the kernel does not give": ({"receive_errno": 14}, "read_failed: EFAULT"),
    "a device that may not be opened": ({"open_errno": 13}, "permission_denied"),
    "a device that is in use": ({"open_errno": 16}, "read_failed: EBUSY"),
}


@pytest.mark.parametrize(("state", "reason"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_bad_answer_is_a_reason(tmp_path: Path, state: dict[str, int], reason: str) -> None:
    """D-10: a real agent says why there is no power; it is not 0 W, and no energy."""
    sim = IpmiSim(tmp_path).say(**state)
    with BareAgent(tmp_path, PowercapTree(tmp_path / "sys"), environment=sim.environment) as agent:
        agent.wait_ready()
        wait_until(lambda: read_at_all(agent), "a first read")
        sensor = beside(agent)[IPMI]
    assert sensor["reason"] == reason
    assert "power_uw" not in sensor
    assert sensor["energy_uj"] == 0


GOOD_ANSWERS = {
    "the most there can be": ({"watts": 65_535}, 65_535 * W),
    "more bytes than DCMI has": ({"bytes": 24}, 210 * W),
    "an event before it": ({"event": 1, "watts": 7}, 7 * W),
}


@pytest.mark.parametrize(("state", "power"), GOOD_ANSWERS.values(), ids=GOOD_ANSWERS)
def test_an_answer_is_taken(tmp_path: Path, state: dict[str, int], power: int) -> None:
    """What is unusual and says the power all the same; an event that comes first is passed over."""
    assert reads(IpmiSim(tmp_path), (state, 2)) == [[power, power]]


def test_an_answer_that_comes_late_is_not_the_next_ones(tmp_path: Path) -> None:
    """999 W of a request that was given up lie before the 210 W of the next: they are discarded by their number."""
    sim = IpmiSim(tmp_path).say(watts=999, held=1)
    with BareAgent(tmp_path, PowercapTree(tmp_path / "sys"), environment=sim.environment) as agent:
        agent.wait_ready()
        wait_until(lambda: "reason" in beside(agent)[IPMI], "a request that is given up")
        sim.say(watts=210)
        wait_until(lambda: "power_uw" in beside(agent)[IPMI], "an answer")
        sensor = beside(agent)[IPMI]
    assert sensor["power_uw"] == 210 * W
    assert "reason" not in sensor


def test_nothing_waits_for_a_controller_that_hangs(tmp_path: Path) -> None:
    """Ticks go on and the meter beside is read: the loop that samples never speaks to the controller itself."""
    sim, tree = IpmiSim(tmp_path).say(silent=1), PowercapTree(tmp_path / "sys")
    SensorTree(tree.root).chip("power_meter", "ACPI000D:00", power1_average=320 * W)
    with BareAgent(tmp_path, tree, environment=sim.environment) as agent:
        agent.wait_ready()
        wait_until(lambda: bool(beside(agent)[IPMI]["gaps"]) and bool(asked(agent)[1].ticks), "a gap and a tick")
        wait_until(lambda: beside(agent)[METER]["energy_uj"] >= 320 * W, "the other sensor")
        sensor = beside(agent)[IPMI]
        assert agent.stop() == 0
    assert sensor["gaps"].keys() == {"bmc_late"}
    assert {thread for _, thread in sim.requests} == {"thread"}
    numbers = [number for number, _ in sim.requests]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_controller_that_fails_is_asked_ever_less(tmp_path: Path) -> None:
    """After 1, 2, 4... reads and at least once in 60; the reads between give the reason, and none is lost."""
    sim = IpmiSim(tmp_path)
    (said,) = reads(sim, ({"code": 0xC1}, 200))
    # Asked at the reads 0, 1, 3, 7, 15, 31, 63, then at each 60th.
    assert len(sim.requests) == len([0, 1, 3, 7, 15, 31, 63, 123, 183])
    assert len(said) == 200
    assert {reason_code(str(reason)) for reason in said} == {"bmc_refused"}


def test_a_controller_that_works_is_asked_at_each_read(tmp_path: Path) -> None:
    """Once a read, which `Sensors` makes once a second; and so it is when it answers again after failures."""
    sim = IpmiSim(tmp_path)
    before, failed, after, again = reads(sim, ({}, 20), ({"code": 0xC0}, 7), ({}, 3), ({"code": 0xC0}, 2))
    assert (before, after) == ([210 * W] * 20, [210 * W] * 3)
    assert not any(isinstance(value, int) for value in failed + again)
    assert len(sim.requests) == 20 + len([0, 1, 3]) + 3 + 2


def test_a_file_that_is_no_controller_is_a_reason(tmp_path: Path) -> None:
    """The kernel itself refuses the request; nothing is waited for, and closed it stays closed."""
    (tmp_path / "ipmi0").touch()
    (probe,) = ipmi_probes(tmp_path)
    assert probe.read() == "read_failed: ENOTTY"
    probe.close()
    assert probe.read() == "read_failed: closed"
    assert ipmi_probes(tmp_path / "none") == []


@given(answer=st.one_of(st.binary(max_size=40), st.binary(min_size=17, max_size=20).map(b"\0\xdc".__add__)))
def test_law_of_an_answer(answer: bytes) -> None:
    """D-10: whatever a controller answers, it is a power above 0 that it has, or a reason of a known code."""
    power = power_uw(answer)
    if isinstance(power, int):
        assert power == int.from_bytes(answer[2:4], "little") * W > 0
        assert answer[18] & 0x40
    else:
        assert reason_code(power) in {"bmc_refused", "not_measuring", "read_failed"}


def doctor(sim: IpmiSim, root: Path) -> dict[str, Any]:
    """What `joulegram agent doctor` says, as a process that meets the controller."""
    command = [*JOULEGRAM, "agent", "doctor", "--json", f"--sysfs-root={root}", f"--proc-root={root}"]
    environment = clean_environment(**sim.environment)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_the_doctor_shows_it(tmp_path: Path) -> None:
    """What the platform draws, and nothing to do."""
    said = doctor(IpmiSim(tmp_path), tmp_path)
    assert [(each["id"], each["kind"], each["power_uw"]) for each in said["beside"]] == [(IPMI, "board", 210 * W)]
    assert said["beside_advice"] is None


def test_the_doctor_says_who_is_to_be_given_the_device(tmp_path: Path) -> None:
    """The least: to the agent's user alone, as whoever opens it commands the controller."""
    said = doctor(IpmiSim(tmp_path).say(open_errno=13), tmp_path)
    assert [each["reason"] for each in said["beside"]] == ["permission_denied"]
    rule = 'SUBSYSTEM=="ipmi", KERNEL=="ipmi0", OWNER="joulegram", MODE="0600"'
    assert rule in said["beside_advice"]
    assert "GROUP" not in said["beside_advice"]


def test_the_doctor_says_which_module_is_missing(tmp_path: Path) -> None:
    """A controller in ACPI's tables and no device: modprobe; without either there is nothing to do."""
    assert examine(tmp_path, tmp_path, tmp_path, NO_LIBRARY).beside_advice is None
    (tmp_path / "bus/acpi/devices/IPI0001:00").mkdir(parents=True)
    diagnosis = examine(tmp_path, tmp_path, tmp_path, NO_LIBRARY)
    assert diagnosis.beside == ()
    assert "modprobe ipmi_devintf" in (diagnosis.beside_advice or "")
    assert f"          to do: {diagnosis.beside_advice}" in diagnosis.text()
