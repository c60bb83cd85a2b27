"""Readers side by side: whose domains, what they are called together, and that none touches another's energy."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_agent.beside import Beside, with_gpus
from joulegram_agent.model import ModelReader
from joulegram_agent.nvml import NvmlReader
from joulegram_agent.nvml_library import GPU_IS_LOST
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.reader import NoEnergyReader, Reader, Reading
from joulegram_agent.sampler import Sampler
from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method, TickBatch
from joulegram_pipeline.errors import AgentError
from simulators.nvml import NvmlSim, SimBoard, uuid
from simulators.nvml_node import MS, J, old_board
from simulators.powercap import PowercapTree
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from pathlib import Path


class FixedReader:
    """A reader that says what it was made to say."""

    def __init__(self, source: str, method: Method, domain: str | None = None, reason: str | None = None) -> None:
        self.source = source
        self.method = method
        self.reason = reason
        self.closed = 0
        self._domains = () if domain is None else (Domain(domain, DomainKind.CPU),)

    def domains(self) -> tuple[Domain, ...]:
        return self._domains

    def read(self) -> Reading:
        return Reading({domain.id: 7 for domain in self._domains})

    def close(self) -> None:
        self.closed += 1


MEASURED, MODELLED, NONE = Method.MEASURED, Method.MODELLED, Method.UNAVAILABLE


@pytest.mark.parametrize(
    ("primary", "other", "together"),
    [
        (MEASURED, MEASURED, MEASURED),
        (MODELLED, MEASURED, Method.MIXED),
        (MEASURED, MODELLED, Method.MIXED),
        (NONE, MEASURED, MEASURED),
        (MODELLED, NONE, MODELLED),
        (NONE, NONE, NONE),
    ],
)
def test_method_is_that_of_those_that_have_energy(primary: Method, other: Method, together: Method) -> None:
    """As a run puts its spans' methods together: what has no energy has no say."""
    assert Beside(FixedReader("a", primary, "x"), FixedReader("b", other, "y")).method is together


def test_source_names_those_that_have_domains() -> None:
    """A source without domains is not named beside the primary; the primary always is."""
    empty, full = FixedReader("b", NONE), FixedReader("c", MEASURED, "y")
    assert Beside(FixedReader("a", MEASURED, "x"), empty).source == "a"
    assert Beside(FixedReader("a", MEASURED, "x"), empty, full).source == "a+c"
    assert Beside(NoEnergyReader("no_powercap"), full).source == "none+c"


def test_reasons_are_all_said() -> None:
    """The primary's first, as the code of a reason is what stands before its colon."""
    first, second = FixedReader("a", MODELLED, "x", "no_powercap: /sys"), FixedReader("b", MEASURED, "y", "added: up")
    assert Beside(first, FixedReader("c", MEASURED)).reason == "no_powercap: /sys"
    assert Beside(first, second).reason == "no_powercap: /sys; added: up"
    assert Beside(FixedReader("c", MEASURED)).reason is None


def test_an_id_of_two_readers_is_refused() -> None:
    """Two domains of one id would be counted as one: refused with the id and both sources."""
    with pytest.raises(AgentError, match="got domain 'x' from a and from c, expected it from one reader"):
        Beside(FixedReader("a", MEASURED, "x"), FixedReader("b", MEASURED, "y"), FixedReader("c", MEASURED, "x"))


def test_readings_are_joined_and_all_are_closed(tmp_path: Path) -> None:
    """Counters, gaps and static parts of all, in the order of the readers."""
    FakeProc(tmp_path / "proc")
    modelled, fixed = ModelReader(tmp_path / "proc", tmp_path, clock=ManualClock()), FixedReader("b", MEASURED, "y")
    both = Beside(modelled, fixed)
    assert [domain.id for domain in both.domains()] == ["model/cpu", "y"]
    reading = both.read()
    assert set(reading.counters_uj) == {"model/cpu", "y"}
    assert set(reading.static_uj) == {"model/cpu"}
    (tmp_path / "proc" / "stat").write_text("")
    assert [gap.domain for gap in both.read().gaps] == ["model/cpu"]
    both.close()
    assert fixed.closed == 1


def test_without_boards_the_reader_stays_alone(tmp_path: Path) -> None:
    """No library, a library without boards, a driver that is not loaded: the very reader that was given."""
    primary: Reader = FixedReader("a", MEASURED, "x")
    assert with_gpus(primary, str(tmp_path / "libnvidia-ml.so.1")) is primary
    sim = NvmlSim(tmp_path / "nvml")
    assert with_gpus(primary, sim.library) is primary
    sim.boards, sim.init_code = [SimBoard(uuid(0))], 9
    sim.write()
    assert with_gpus(primary, sim.library) is primary
    sim.init_code = 0
    sim.write()
    assert with_gpus(primary, sim.library).source == "a+nvml"


def test_packages_and_boards_in_one_tick(tmp_path: Path) -> None:
    """Design section 4: packages, DRAM and boards are one measured set, and travel as one batch."""
    tree, board, old = PowercapTree(tmp_path / "sys"), SimBoard(uuid(0)), old_board(25_000, number=1)
    sim, clock = NvmlSim(tmp_path / "nvml", board, old), ManualClock()
    reader = with_gpus(PowercapReader(tree.root), sim.library, clock)
    sampler = Sampler(reader, proc_root=FakeProc(tmp_path / "proc").root, clock=clock)
    sampler.sample()
    for _ in range(10):
        tree.advance_watts({"package-0": 100, "package-0/dram": 6}, 100)
        board.spend(40_000)
        sim.write()
        clock.advance(100 * MS)
        sampler.sample()
    batch = sampler.batch(0)
    assert batch == TickBatch.from_bytes(batch.to_bytes())
    assert (batch.source, batch.method) == ("powercap+nvml", MEASURED)
    assert (
        batch.reason == f"integrated_power: no energy counter, power is added up between reads: {sim.boards[1].domain}"
    )
    assert [domain.kind.value for domain in batch.domains] == ["cpu", "dram", "gpu", "gpu"]
    assert batch.ticks[0].energy_uj == {
        "package-0": 100 * J,
        "package-0/dram": 6 * J,
        board.domain: 400 * J,
        old.domain: 25 * J,
    }
    reader.close()


@settings(max_examples=30, deadline=None)
@given(
    trace=st.lists(
        st.tuples(
            st.integers(0, 100 * J),
            st.integers(0, 100_000),
            st.sampled_from([0, 0, 0, GPU_IS_LOST]),
            st.sampled_from([0, 0, 0, errno.EINVAL]),
        ),
        max_size=50,
    )
)
def test_neither_source_touches_the_others_energy(
    tmp_path_factory: pytest.TempPathFactory, trace: list[tuple[int, int, int, int]]
) -> None:
    """Whatever fails on either side: each domain's ticks + unplaced = its truth, DRAM and the second board unbroken."""
    root = tmp_path_factory.mktemp("node")
    tree, clock = PowercapTree(root / "sys"), ManualClock()
    failing, steady = SimBoard(uuid(0)), SimBoard(uuid(1))
    sim = NvmlSim(root / "nvml", failing, steady)
    reader = Beside(PowercapReader(tree.root, tree.open_counter), NvmlReader(sim.library, clock))
    sampler = Sampler(reader, proc_root=FakeProc(root / "proc").root, clock=clock)
    sampler.sample()
    gaps: list[Gap] = []
    for energy_uj, energy_mj, lost, refused in [*trace, *[(0, 0, 0, 0)] * 20]:
        tree.faults = {"package-0": refused} if refused else {}
        tree.advance({"package-0": energy_uj, "package-0/dram": energy_uj // 9})
        failing.find_code = lost
        failing.spend(energy_mj)
        steady.spend(energy_mj // 7)
        sim.write()
        clock.advance(100 * MS)
        tick = sampler.sample()
        gaps += tick.gaps if tick is not None else ()
    totals = sampler.totals
    truth = {**tree.truth_uj, failing.domain: failing.truth_mj * 1_000, steady.domain: steady.truth_mj * 1_000}
    assert {key: totals.energy_uj[key] + totals.unplaced_uj[key] for key in truth} == truth
    assert totals.energy_uj["package-0/dram"] == tree.truth_uj["package-0/dram"]
    assert totals.energy_uj[steady.domain] == steady.truth_mj * 1_000
    assert {gap.domain for gap in gaps} <= {"package-0", failing.domain}
    reader.close()
