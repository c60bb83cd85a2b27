"""What an agent leaves for the next one, and what the next one makes of it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_agent.client import AgentClient
from joulegram_agent.counters import Counted
from joulegram_agent.local import LocalAgent
from joulegram_agent.main import open_agent, run_agent
from joulegram_agent.model import ModelReader
from joulegram_agent.nvml import NvmlReader
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.restart import SAVE_NS
from joulegram_agent.sampler import Sampler
from joulegram_agent.state import FILE_NAME, AgentState, DomainState, Instant, StateFile
from joulegram_pipeline.errors import AgentError, BusyError
from simulators.agent_days import Days
from simulators.nvml import NvmlSim, SimBoard, uuid
from simulators.nvml_node import old_board
from simulators.powercap import PowercapTree
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from pathlib import Path

J = 1_000_000
S = 1_000_000_000
LOAD = {"package-0": 100}
AT = Instant(1_700_000_000 * S, 5 * S, 6 * S)


def days(root: Path) -> Days:
    return Days(PowercapTree(root / "sys", dram=False, core=False), root)


def test_counts_go_on_and_the_gap_is_quantified(tmp_path: Path) -> None:
    """Issue 5: after a stop of 5 s the totals go on; what was spent meanwhile is unplaced; ticks have a new epoch."""
    node = days(tmp_path)
    node.run(3, LOAD)
    node.stop()
    epoch = node.sampler.batch(0).epoch
    node.spend(LOAD, 5_000)
    node.start()
    # Nothing finer than a second is shown: until the first tick the totals are those that were left.
    assert node.sampler.totals.unplaced_uj == {"package-0": 0}
    assert node.sampler.totals.energy_uj == {"package-0": 300 * J}
    node.run(2, LOAD)
    totals = node.sampler.totals
    assert (totals.energy_uj, totals.unplaced_uj) == ({"package-0": 500 * J}, {"package-0": 500 * J})
    assert totals.gaps == {"package-0": {"agent_restart": 1}}
    assert node.sampler.batch(0).epoch != epoch
    assert [tick.seq for tick in node.sampler.published] == [1, 2]


def test_a_window_that_failed_half_way_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its energy is in no tick; to the next agent it is unplaced, by what was saved before."""
    node = days(tmp_path)
    node.run(2, LOAD)
    node.stop()
    monkeypatch.setattr(node.sampler, "_shares", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        node.run(1, LOAD)
    assert node.sampler.state is None
    node.start()
    node.run(1, LOAD)
    totals = node.sampler.totals
    assert (totals.energy_uj, totals.unplaced_uj) == ({"package-0": 300 * J}, {"package-0": 100 * J})


def test_another_boot_begins_anew(tmp_path: Path) -> None:
    """Counters of two boots have no common zero: new totals, and no gap."""
    node = days(tmp_path)
    node.run(3, LOAD)
    node.stop()
    (node.proc.root / "sys/kernel/random/boot_id").write_text("another\n")
    node.tree.reset("package-0", 7)
    node.start()
    node.run(1, LOAD)
    totals = node.sampler.totals
    assert (totals.energy_uj, totals.unplaced_uj, totals.gaps) == ({"package-0": 100 * J}, {"package-0": 0}, {})


def test_a_counter_reset_without_an_agent_is_no_energy(tmp_path: Path) -> None:
    """D-08: the module was loaded anew meanwhile: the gap is a reset, not a wrap of 262 kJ; totals go on."""
    node = days(tmp_path)
    node.tree.reset("package-0", 9_000 * J)
    node.start()
    node.run(2, LOAD)
    node.stop()
    node.tree.reset("package-0")
    node.clock.advance(3 * S)
    node.start()
    node.run(1, LOAD)
    totals = node.sampler.totals
    assert (totals.energy_uj, totals.unplaced_uj) == ({"package-0": 300 * J}, {"package-0": 0})
    assert totals.gaps == {"package-0": {"counter_reset": 1}}


def test_a_domain_that_is_away_keeps_its_totals(tmp_path: Path) -> None:
    """Gone at one restart and back at the next: its totals are where they were, and its rise is known."""
    tree = PowercapTree(tmp_path / "sys", packages=2, dram=False, core=False)
    node = Days(tree, tmp_path)
    both = {"package-0": 100, "package-1": 30}
    node.run(2, both)
    node.stop()
    away = tree.zone_path("package-1")
    (away / "name").write_text("gone\n")
    node.start()
    node.run(4, both)
    assert node.sampler.totals.energy_uj == {"package-0": 600 * J, "package-1": 60 * J}
    node.stop()
    (away / "name").write_text("package-1\n")
    node.start()
    node.run(1, both)
    totals = node.sampler.totals
    assert totals.energy_uj == {"package-0": 700 * J, "package-1": 90 * J}
    assert totals.unplaced_uj == {"package-0": 0, "package-1": 120 * J}


def test_a_counter_of_another_source_is_not_subtracted(tmp_path: Path) -> None:
    """Msr and powercap round differently: the totals go on, and the time between is a gap without a figure."""
    node = days(tmp_path)
    node.run(2, LOAD)
    assert node.sampler.state is not None
    (left,) = node.sampler.state.domains.values()
    assert (left.source, left.max_range_uj) == ("powercap", 262_143_328_850)
    for other in (DomainState(left.counted, "msr", left.max_range_uj), DomainState(left.counted, "powercap", 2**32)):
        sampler = Sampler(PowercapReader(node.tree.root), proc_root=node.proc.root, clock=node.clock)
        sampler.resume(AgentState(node.sampler.state.boot_id, node.sampler.state.at, {"package-0": other}))
        node.spend(LOAD, 1_000)
        sampler.sample()
        node.spend(LOAD, 1_000)
        sampler.sample()
        assert sampler.totals.unplaced_uj == {"package-0": 0}
        assert sampler.totals.energy_uj == {"package-0": 300 * J}
        assert sampler.totals.gaps == {"package-0": {"agent_restart": 1}}


def test_a_model_has_no_counter_to_go_on_from(tmp_path: Path) -> None:
    """The model counts from its own start: its totals go on, and what lies between two of them is not made up."""
    clock, proc = ManualClock(), FakeProc(tmp_path)
    state = None
    for _ in range(2):
        sampler = Sampler(ModelReader(tmp_path, tmp_path / "sys", clock=clock), proc_root=proc.root, clock=clock)
        if state is not None:
            sampler.resume(state)
        sampler.sample()
        clock.advance(S)
        sampler.sample()
        state = sampler.state
        clock.advance(100 * S)
    assert sampler.totals.energy_uj == {"model/cpu": 2 * 1_480_000}
    assert sampler.totals.unplaced_uj == {"model/cpu": 0}
    assert sampler.totals.gaps == {"model/cpu": {"agent_restart": 1}}


def test_power_that_is_added_up_ends_with_its_agent(tmp_path: Path) -> None:
    """A board's counter goes on without an agent, a sum of power does not: only the first is looked at again."""
    counted, old = SimBoard(uuid(0)), old_board(60_000, number=1)
    reader = NvmlReader(NvmlSim(tmp_path / "nvml", counted, old).library, ManualClock())
    assert reader.lasting() == {counted.domain: "nvml"}
    reader.close()


def test_a_domain_that_cannot_be_read_at_the_start_is_known_later(tmp_path: Path) -> None:
    """D-10: refused while the agent starts, read 2 s later: the energy since the agent before is unplaced, not lost."""
    node = days(tmp_path)
    node.run(2, LOAD)
    node.stop()
    node.spend(LOAD, 1_000)
    node.start()
    node.tree.faults = {"package-0": errno.EINVAL}
    node.run(1, LOAD)
    node.tree.faults = {}
    node.run(2, LOAD)
    assert node.counted("package-0") == node.tree.truth_uj["package-0"]


DAMAGED = {
    "half a file": b'{"version":1,"boot_id":"0f1e',
    "a list": b"[]",
    "another version": b'{"version":2}',
    "no instant": b'{"version":1,"boot_id":"x","domains":{}}',
    "a negative count": AgentState("b", AT, {"d": DomainState(Counted(placed_uj=-5))}).to_bytes(),
    "a count that is text": b'{"version":1,"boot_id":"x","at":{"wall_ns":"1","mono_ns":1,"boot_ns":1},"domains":{}}',
    "a source that is a number": AgentState("b", AT, {"d": DomainState(Counted(), 7)}).to_bytes(),  # type: ignore[arg-type]
    "too deep": b"[" * 100_000,
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_set_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes) -> None:
    """Issue 5: never fatal: counting begins anew, the file is kept for people, and the log says both."""
    path = tmp_path / FILE_NAME
    path.write_bytes(data)
    assert StateFile(path).load() is None
    assert not path.exists()
    assert (tmp_path / f"{FILE_NAME}.damaged").read_bytes() == data
    assert "is damaged: got " in caplog.text
    assert f"it is kept as {path}.damaged" in caplog.text


@pytest.mark.parametrize("data", [b"", b"\0" * 4_096], ids=["no bytes", "zeroes"])
def test_what_a_crash_of_the_machine_leaves_is_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    """The state is of one boot and not synced: after a crash its file may be empty, and nothing in it was of use."""
    path = tmp_path / FILE_NAME
    path.write_bytes(data)
    caplog.set_level("INFO")
    assert StateFile(path).load() is None
    assert caplog.messages == [f"agent state {path} is empty, as after a crash of the machine: counting begins anew"]
    assert path.read_bytes() == data


def test_saving_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 5: a slow read never bunches ticks, nor does a slow disk: the thread that saves reads the counters."""
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("synced"))
    StateFile(tmp_path / FILE_NAME).save(AgentState("b", AT, {}))
    assert StateFile(tmp_path / FILE_NAME).load() == AgentState("b", AT, {})


def test_no_file_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first start of all says nothing; a file that cannot be read is said, and left alone."""
    assert StateFile(tmp_path / FILE_NAME).load() is None
    assert caplog.messages == []
    (tmp_path / "folder").mkdir()
    assert StateFile(tmp_path / "folder").load() is None
    assert caplog.messages == [f"agent state {tmp_path}/folder: Is a directory: counting begins anew"]


def test_a_disk_that_refuses_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Issue 5: the agent goes on; one warning, and another only after it could write between."""
    state = AgentState("b", AT, {})
    folder = tmp_path / "later"
    file = StateFile(folder / FILE_NAME)
    file.save(state)
    file.save(state)
    assert len(caplog.messages) == 1
    assert "will not survive a restart" in caplog.text
    folder.mkdir()
    file.save(state)
    assert file.load() == state
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_the_agent_saves_each_10_s_and_at_its_stop(tmp_path: Path) -> None:
    """Issue 5: 11 s on, a kill loses one second of the totals' order; a stop loses nothing."""
    tree, proc, clock = PowercapTree(tmp_path / "sys", dram=False), FakeProc(tmp_path / "proc"), ManualClock()
    path = tmp_path / FILE_NAME

    async def body() -> list[int]:
        reader = PowercapReader(tree.root)
        sampler = Sampler(reader, proc_root=proc.root, clock=clock, sample_s=0.001)
        saved = []
        async with LocalAgent(reader, sampler, state=StateFile(path)) as agent:
            await asyncio.sleep(0)  # the loop waits for its first sample now, and not from where the clock will stand
            for _ in range(12):
                clock.advance(S)
                assert await agent.final_tick(clock.wall_ns())
                saved.append(json.loads(path.read_bytes())["at"]["mono_ns"])
        return [*saved, json.loads(path.read_bytes())["at"]["mono_ns"]]

    began_ns = clock.mono_ns()
    first, tenth = began_ns + S, began_ns + S + SAVE_NS
    assert asyncio.run(body()) == [first] * 10 + [tenth] * 2 + [began_ns + 12 * S]


def test_the_daemon_goes_on_beside_its_socket(tmp_path: Path) -> None:
    """`--state` by default: two daemons, one after the other; a third that finds the socket taken writes nothing."""
    PowercapTree(tmp_path / "sys", dram=False)
    path = tmp_path / "agent.sock"

    def written() -> int | None:
        """Which file it is: one that is replaced is another."""
        return (tmp_path / FILE_NAME).stat().st_ino if (tmp_path / FILE_NAME).exists() else None

    async def serve() -> tuple[dict[str, object], bytes]:
        task = asyncio.create_task(run_agent(path, "powercap", sysfs_root=tmp_path / "sys"))
        while not path.exists():  # noqa: ASYNC110  (the daemon's only sign of life is its socket)
            await asyncio.sleep(0)
        async with AgentClient(path) as client:
            counters = await client.counters()
            before = written()
            with pytest.raises(BusyError):
                await run_agent(path, "powercap", sysfs_root=tmp_path / "sys")
            assert written() == before
            while counters["at_ns"] is None:
                await asyncio.sleep(0.01)
                counters = await client.counters()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return counters, (tmp_path / FILE_NAME).read_bytes()

    async def body() -> None:
        _, left = await serve()
        counters, _ = await serve()
        assert counters["at_ns"] == str(json.loads(left)["at"]["wall_ns"])

    asyncio.run(body())


def test_an_agent_in_process_leaves_nothing(tmp_path: Path) -> None:
    """`joulegram run` and the sidecar's own agent have no file: their totals end with them."""
    before = set(tmp_path.iterdir())

    async def body() -> None:
        async with open_agent("none", sysfs_root=tmp_path) as agent:
            assert await agent.final_tick(0)

    asyncio.run(body())
    assert set(tmp_path.iterdir()) == before


COUNT = st.integers(0, 2**63)


@settings(deadline=None)
@given(
    boot_id=st.text(max_size=40),
    at=st.builds(Instant, COUNT, COUNT, COUNT),
    domains=st.dictionaries(
        st.text(max_size=20),
        st.builds(
            DomainState,
            st.builds(Counted, COUNT, COUNT, st.dictionaries(st.text(max_size=9), COUNT), st.none() | COUNT, COUNT),
            st.none() | st.text(max_size=9),
            st.none() | COUNT,
        ),
        max_size=4,
    ),
)
def test_a_state_is_read_as_it_was_written(boot_id: str, at: Instant, domains: dict[str, DomainState]) -> None:
    """Whatever is in it: an equal state back, from bytes that are ASCII on one line."""
    state = AgentState(boot_id, at, domains)
    data = state.to_bytes()
    assert AgentState.from_bytes(data) == state
    assert data.isascii()
    assert data.count(b"\n") == 1


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_no_bytes_are_more_than_an_agent_error(data: bytes) -> None:
    """No file, however broken, raises anything else."""
    with pytest.raises(AgentError):
        AgentState.from_bytes(data)
