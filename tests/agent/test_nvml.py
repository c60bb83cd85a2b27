"""What the NVML reader finds of boards, and what it says where it finds none; the library is compiled for the test."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from joulegram_agent import nvml_library
from joulegram_agent.nvml import NvmlReader
from joulegram_agent.nvml_library import GPU_IS_LOST, NOT_SUPPORTED, NvmlError, NvmlLibrary
from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method
from simulators.nvml import NvmlSim, SimBoard, uuid
from simulators.nvml_node import TIMEOUT, J, make_node

if TYPE_CHECKING:
    from pathlib import Path


def test_boards_are_domains_by_uuid(tmp_path: Path) -> None:
    """Design section 4: one domain a board, in NVML's order, known by UUID, with no range to wrap at."""
    boards = [SimBoard(uuid(number), energy_mj=number) for number in range(3)]
    reader = NvmlReader(NvmlSim(tmp_path / "nvml", *boards).library)
    assert reader.domains() == tuple(Domain(board.domain, DomainKind.GPU) for board in boards)
    assert reader.domains()[2].id == "gpu-8f6a2b1c-0d3e-4f5a-9b7c-000000000002"
    assert (reader.source, reader.method, reader.reason) == ("nvml", Method.MEASURED, None)
    assert [board.name for board in reader.boards] == ["NVIDIA H100 80GB HBM3"] * 3
    assert reader.read().counters_uj == {board.domain: 1_000 * number for number, board in enumerate(boards)}


START_ERRORS = [
    (4, 'permission_denied: the NVIDIA driver refuses this user: {} says "Insufficient Permissions" (4)'),
    (9, 'no_nvml: the NVIDIA driver is not loaded: {} says "Driver Not Loaded" (9)'),
    (18, 'no_nvml: the NVIDIA library and driver differ in version: {} says "Driver/library version mismatch" (18)'),
    (999, 'read_failed: {} says "Unknown Error" (999)'),
]


@pytest.mark.parametrize(("code", "reason"), START_ERRORS)
@pytest.mark.parametrize("call", ["nvmlInit_v2", "nvmlDeviceGetCount_v2"])
def test_a_library_that_refuses_is_a_reason(tmp_path: Path, call: str, code: int, reason: str) -> None:
    """Issue 5: missing hardware is said in plain words with NVML's own beside them; it is no error and no 0 J."""
    sim = NvmlSim(tmp_path / "nvml", SimBoard(uuid(0)))
    sim.init_code, sim.count_code = (code, 0) if call == "nvmlInit_v2" else (0, code)
    sim.write()
    reader = NvmlReader(sim.library)
    assert reader.reason == reason.format(call)
    assert (reader.method, reader.domains(), reader.read().counters_uj) == (Method.UNAVAILABLE, (), {})
    reader.close()


def test_no_library_no_boards(tmp_path: Path) -> None:
    """The loader's own words where there is no library and where a file is none; and a driver without boards."""
    text = tmp_path / "text.so"
    text.write_text("not ELF")
    missing = str(tmp_path / "libnvidia-ml.so.1")
    for path, words in ((missing, "cannot open shared object file"), (str(text), "file too short")):
        reader = NvmlReader(path)
        assert reader.reason is not None
        assert reader.reason.startswith(f'no_nvml: there is no NVIDIA library: dlopen says "{path}: ')
        assert words in reader.reason
        assert reader.domains() == ()
    assert NvmlReader("libc.so.6").reason == (
        "not_supported: the NVIDIA library is too old for this: "
        'nvmlInit_v2 says "this library has no such function" (13)'
    )
    sim = NvmlSim(tmp_path / "nvml")
    assert NvmlReader(sim.library).reason == f"no_nvml: got 0 boards from {sim.library}, expected at least 1"


def test_a_board_that_does_not_say_who_it_is_is_not_left_out(tmp_path: Path) -> None:
    """D-06: at the start one board is lost, one hides its UUID and one shows another's: gaps by index, each tick."""
    boards = [
        SimBoard(uuid(0)),
        SimBoard(uuid(1), find_code=GPU_IS_LOST),
        SimBoard(uuid(2), uuid_code=4),
        SimBoard(uuid(0)),
    ]
    node = make_node(tmp_path, *boards)
    assert [domain.id for domain in node.reader.domains()] == [boards[0].domain, "gpu-1", "gpu-2", "gpu-3"]
    (tick,) = node.run(1)
    assert [(gap.domain, gap.reason.partition(":")[0]) for gap in tick.gaps] == [
        ("gpu-1", "domain_vanished"),
        ("gpu-2", "permission_denied"),
        ("gpu-3", "read_failed"),
    ]
    assert tick.energy_uj == {boards[0].domain: 0}
    assert (node.reader.method, node.reader.reason) == (Method.MEASURED, None)


def test_a_board_without_a_name_is_measured(tmp_path: Path) -> None:
    """The name is for people: a board that refuses it is measured all the same."""
    board = SimBoard(uuid(0), name="-")
    reader = NvmlReader(NvmlSim(tmp_path / "nvml", board).library)
    assert [item.name for item in reader.boards] == ["unknown"]
    assert reader.read().counters_uj == {board.domain: board.energy_mj * 1_000}


def test_boards_that_never_answered_are_unavailable_until_one_does(tmp_path: Path) -> None:
    """The reason names the first board; when it answers, its energy is measured and there is no reason left."""
    board = SimBoard(uuid(0), energy_code=TIMEOUT)
    node = make_node(tmp_path, board)
    reason = 'read_failed: nvmlDeviceGetTotalEnergyConsumption says "Timeout" (10)'
    assert (node.reader.method, node.reader.reason) == (Method.UNAVAILABLE, f"{reason}: {board.domain}")
    board.energy_code = 0
    node.run(1)
    assert (node.reader.method, node.reader.reason) == (Method.MEASURED, None)


def test_mig_leaves_the_energy_with_the_board(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """MIG has no energy by instance: the domain stays the whole board, and the mode is noted and logged."""
    split, whole = SimBoard(uuid(0), mig=True), SimBoard(uuid(1))
    cannot = SimBoard(uuid(2), mig_code=NOT_SUPPORTED)
    caplog.set_level("INFO", "joulegram_agent.nvml")
    node = make_node(tmp_path, split, whole, cannot)
    assert [board.mig for board in node.reader.boards] == [True, False, None]
    assert f"domain {split.domain} (NVIDIA H100 80GB HBM3): energy counter, MIG: the whole board" in caplog.text
    assert caplog.text.count("MIG") == 1
    assert node.run(1, {split: 400, whole: 60})[0].energy_uj == {
        split.domain: 400 * J,
        whole.domain: 60 * J,
        cannot.domain: 0,
    }


@pytest.mark.parametrize("visible", ["", "1", "GPU-8f6a2b1c", "none"])
def test_every_board_is_read_whatever_is_visible_to_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    """D-09: CUDA_VISIBLE_DEVICES is of one process's CUDA and renumbers it; what the machine's boards spend stays."""
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, visible)
    first, second = SimBoard(uuid(0)), SimBoard(uuid(1))
    node = make_node(tmp_path, first, second)
    assert node.run(1, {first: 400, second: 60})[0].energy_uj == {first.domain: 400 * J, second.domain: 60 * J}


def test_a_board_that_a_runtime_passes_alone_keeps_its_id(tmp_path: Path) -> None:
    """D-09: a container of NVIDIA_VISIBLE_DEVICES=1 shows board 1 as the first: its id is its UUID's, as outside."""
    hidden, passed = SimBoard(uuid(0)), SimBoard(uuid(1))
    outside = NvmlReader(NvmlSim(tmp_path / "host", hidden, passed).library)
    inside = NvmlReader(NvmlSim(tmp_path / "container", passed).library)
    assert inside.domains() == outside.domains()[1:]


def test_close_gives_nvml_back_once(tmp_path: Path) -> None:
    """A closed reader has gaps, as every reader has, and NVML is shut down; a reader without boards holds nothing."""
    board = SimBoard(uuid(0))
    sim = NvmlSim(tmp_path / "nvml", board)
    library, uninitialized = ctypes.CDLL(sim.library), 1
    reader, other = NvmlReader(sim.library), NvmlReader(sim.library)
    reader.close()
    reader.close()
    assert reader.read().gaps == (Gap(board.domain, "read_failed: closed"),)
    assert other.read().counters_uj == {board.domain: board.energy_mj * 1_000}
    other.close()
    assert library.nvmlShutdown() == uninitialized
    sim.boards.clear()
    sim.write()
    assert NvmlReader(sim.library).domains() == ()
    assert library.nvmlShutdown() == uninitialized


def test_calls_quote_what_nvml_says(tmp_path: Path) -> None:
    """A call that fails carries the function, its number and NVML's words."""
    library = NvmlLibrary(NvmlSim(tmp_path / "nvml").library)
    with pytest.raises(NvmlError) as caught:
        library.board_of(uuid(9))
    assert (caught.value.call, caught.value.code, caught.value.text) == ("nvmlDeviceGetHandleByUUID", 6, "Not Found")
    library.close()


PYNVML = """
import pynvml as n
n.nvmlInit()
board = n.nvmlDeviceGetHandleByIndex(0)
same = n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(board))
print(n.nvmlDeviceGetCount(), n.nvmlDeviceGetUUID(same), n.nvmlDeviceGetName(board), sep="|")
print(n.nvmlDeviceGetTotalEnergyConsumption(same), n.nvmlDeviceGetPowerUsage(board), n.nvmlDeviceGetMigMode(board)[0])
try:
    n.nvmlDeviceGetHandleByIndex(1)
except n.NVMLError as error:
    print(error.value, error)
n.nvmlShutdown()
"""


def test_nvidias_own_binding_reads_the_same(tmp_path: Path) -> None:
    """``pynvml`` finds the simulator as it finds a driver's library, and reads of it what the reader does."""
    board = SimBoard(uuid(0), energy_mj=2**40 + 1, power_mw=70_500, mig=True)
    sim = NvmlSim(tmp_path / "nvml", board, SimBoard(uuid(1), find_code=GPU_IS_LOST))
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path / "nvml")}
    done = subprocess.run([sys.executable, "-c", PYNVML], env=env, capture_output=True, text=True, check=True)
    reader = NvmlReader(sim.library)
    assert done.stdout.splitlines() == [
        f"2|{board.uuid}|{reader.boards[0].name}",
        f"{reader.read().counters_uj[board.domain] // 1_000} 70500 1",
        "15 GPU is lost",
    ]


def test_numbers_are_nvidias() -> None:
    """The codes that are treated apart are those of NVIDIA's own binding."""
    import pynvml

    names = [name for name in vars(nvml_library) if hasattr(pynvml, f"NVML_ERROR_{name}")]
    assert len(names) == 10
    assert all(getattr(nvml_library, name) == getattr(pynvml, f"NVML_ERROR_{name}") for name in names)
