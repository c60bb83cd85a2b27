"""What the powercap reader finds in a sysfs tree, and what it says where it finds nothing."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from joulegram_agent.powercap import (
    PowercapReader,
    read_cpu_energy_joules,
    read_intel_rapl_energy_joules,
)
from joulegram_pipeline.energy import DomainKind, Gap, Method
from simulators.powercap import AMD_RANGE_UJ, DRAM_RANGE_UJ, INTEL_RANGE_UJ, PowercapTree

if TYPE_CHECKING:
    from pathlib import Path

J = 1_000_000


def ids(reader: PowercapReader) -> list[str]:
    return [domain.id for domain in reader.domains()]


def test_measured_set_is_packages_and_dram(tmp_path: Path) -> None:
    """D-03, D-48: core and uncore are inside a package: of a tree that shows 570 J the truth is 215 J."""
    tree = PowercapTree(tmp_path, uncore=True, psys=True, start_uj=0)
    tree.advance({"package-0": 200 * J, "package-0/dram": 15 * J})
    shown = sum(int(path.read_text()) for path in tmp_path.glob("class/powercap/*/energy_uj"))
    counters = PowercapReader(tmp_path).read().counters_uj
    assert shown == 570 * J
    assert sum(counters.values()) == sum(tree.truth_uj.values()) == 215 * J


def test_psys_and_mmio_are_left_out(tmp_path: Path) -> None:
    """D-04: psys holds the packages and mmio mirrors one; neither is counted beside them."""
    tree = PowercapTree(tmp_path, psys=True, mmio=True)
    reader = PowercapReader(tmp_path)
    assert tree.zone_path("psys").name == "intel-rapl:0"
    assert ids(reader) == ["package-0", "package-0/dram"]
    assert reader.domains()[0].max_range_uj == INTEL_RANGE_UJ


def test_mmio_alone_is_no_mirror(tmp_path: Path) -> None:
    """D-04: a zone is a mirror by having an original: without one, mmio is the package's counter."""
    PowercapTree(tmp_path, packages=0, mmio=True)
    assert ids(PowercapReader(tmp_path)) == ["package-0"]


def test_sockets_are_known_by_name_not_by_number(tmp_path: Path) -> None:
    """D-07, S3-06: hexadecimal ids, zones in reverse order, DRAM of each socket with its own socket."""
    tree = PowercapTree(tmp_path, packages=2, first_index=9, reverse=True, start_uj=0)
    tree.advance({"package-0": 3, "package-0/dram": 5, "package-1": 7, "package-1/dram": 11})
    reader = PowercapReader(tmp_path)
    assert sorted(path.name for path in (tmp_path / "class/powercap").glob("intel-rapl:?")) == [
        "intel-rapl:9",
        "intel-rapl:a",
    ]
    assert dict(reader.read().counters_uj) == tree.truth_uj
    assert ids(reader) == ["package-0", "package-0/dram", "package-1", "package-1/dram"]
    assert [domain.kind for domain in reader.domains()] == [DomainKind.CPU, DomainKind.DRAM] * 2
    assert reader.domains()[3].max_range_uj == DRAM_RANGE_UJ


def test_many_packages_sort_by_number(tmp_path: Path) -> None:
    """S3-06: package-10 comes after package-2, so that domain lists are stable to read."""
    PowercapTree(tmp_path, packages=11, dram=False)
    assert ids(PowercapReader(tmp_path)) == [f"package-{number}" for number in range(11)]


def test_zones_of_other_kinds_are_left_out(tmp_path: Path) -> None:
    """D-04, D-48: DRAM under psys, zones without a name, and other control types are not in the measured set."""
    tree = PowercapTree(tmp_path, psys=True)
    listed = tmp_path / "class" / "powercap"
    for entry, name in (("intel-rapl:0:0", "dram"), ("dtpm:0", "package-7"), ("intel-rapl:f", None)):
        (listed / entry).mkdir()
        for file, text in (("name", name), ("max_energy_range_uj", "1000"), ("energy_uj", "5")):
            if text is not None:
                (listed / entry / file).write_text(text)
    assert ids(PowercapReader(tmp_path)) == list(tree.domain_ids)


def test_dram_beside_packages_is_counted(tmp_path: Path) -> None:
    """D-07: a DRAM zone of its own at the top is outside every package."""
    tree = PowercapTree(tmp_path, dram=False)
    (tree.zone_path("package-0/core") / "name").write_text("dram\n")
    (tree.zone_path("package-0") / "name").write_text("dram\n")
    assert ids(PowercapReader(tmp_path)) == ["dram"]


def test_amd_tree_is_read(tmp_path: Path) -> None:
    """D-07: AMD shows the same files with another range and no DRAM; its core zone is one core's and not counted."""
    PowercapTree(tmp_path, packages=2, dram=False, package_range_uj=AMD_RANGE_UJ)
    reader = PowercapReader(tmp_path)
    assert [(domain.id, domain.max_range_uj) for domain in reader.domains()] == [
        ("package-0", AMD_RANGE_UJ),
        ("package-1", AMD_RANGE_UJ),
    ]


def test_mirrored_dies_count_once(tmp_path: Path) -> None:
    """D-04: dies that show one counter are one domain."""
    tree = PowercapTree(tmp_path, packages=2, dies=2, mirrored_dies=True, dram=False)
    tree.advance({"package-0-die-0": 40 * J, "package-1-die-0": 50 * J})
    assert ids(PowercapReader(tmp_path)) == ["package-0-die-0", "package-1-die-0"]


def test_real_dies_are_all_kept(tmp_path: Path) -> None:
    """D-07: dies with counters of their own are all counted."""
    tree = PowercapTree(tmp_path, dies=2, dram=False)
    tree.advance({"package-0-die-0": 40 * J, "package-0-die-1": 41 * J})
    assert ids(PowercapReader(tmp_path)) == ["package-0-die-0", "package-0-die-1"]


def test_missing_root_is_a_reason(tmp_path: Path) -> None:
    """S0-21: no powercap is no error: no domains, and the path that is missing."""
    reader = PowercapReader(tmp_path)
    assert reader.method is Method.UNAVAILABLE
    assert reader.domains() == ()
    assert reader.reason is not None
    assert reader.reason.startswith("no_powercap: ")
    assert str(tmp_path) in reader.reason


def test_tree_without_packages_is_a_reason(tmp_path: Path) -> None:
    """S0-21: psys alone is not the measured set: it is named no_powercap, not counted."""
    PowercapTree(tmp_path, packages=0, psys=True)
    reason = PowercapReader(tmp_path).reason
    assert reason is not None
    assert reason.startswith("no_powercap: ")


def test_refused_zones_are_permission_denied(tmp_path: Path) -> None:
    """D-06: counters that only root may read say so, with the path."""
    tree = PowercapTree(tmp_path)
    tree.faults = dict.fromkeys(tree.domain_ids, errno.EACCES)
    reader = PowercapReader(tmp_path, tree.open_counter)
    assert reader.method is Method.UNAVAILABLE
    assert reader.reason == f"permission_denied: {tmp_path}/class/powercap/intel-rapl:0/energy_uj"
    assert reader.read().counters_uj == {}


def test_one_refused_zone_stays_in_the_set_as_a_gap(tmp_path: Path) -> None:
    """D-05, D-10: the set does not shrink in silence; the zone is missing with a reason, not 0."""
    tree = PowercapTree(tmp_path)
    tree.faults = {"package-0/dram": errno.EACCES}
    reader = PowercapReader(tmp_path, tree.open_counter)
    reading = reader.read()
    assert reader.reason is None
    assert ids(reader) == ["package-0", "package-0/dram"]
    assert list(reading.counters_uj) == ["package-0"]
    assert reading.gaps == (Gap("package-0/dram", "permission_denied"),)


READ_ERRORS = [
    (errno.EINVAL, "read_failed: EINVAL"),
    (errno.ENODATA, "read_failed: ENODATA"),
    (errno.EIO, "read_failed: EIO"),
    (errno.ENOENT, "domain_vanished"),
    (errno.ENODEV, "domain_vanished"),
    (errno.EACCES, "permission_denied"),
]


@pytest.mark.parametrize(("number", "reason"), READ_ERRORS)
def test_read_errors_are_gaps(tmp_path: Path, number: int, reason: str) -> None:
    """D-06, D-10: what the kernel refuses at a read is a gap with its reason, and the other zones are read."""
    tree = PowercapTree(tmp_path)
    reader = PowercapReader(tmp_path, tree.open_counter)
    tree.faults = {"package-0": number}
    reading = reader.read()
    assert reading.gaps == (Gap("package-0", reason),)
    assert list(reading.counters_uj) == ["package-0/dram"]


@pytest.mark.parametrize("text", [b"", b"-5\n", b"12x\n", b"1 2\n", b"\xff\n", b"262143328851\n"])
def test_counters_that_are_no_counters_are_gaps(tmp_path: Path, text: bytes) -> None:
    """D-10: empty, negative, garbled or above the counter's own range: a gap that quotes what was got."""
    tree = PowercapTree(tmp_path)
    reader = PowercapReader(tmp_path)
    tree.garble("package-0", text)
    (gap,) = reader.read().gaps
    assert gap.domain == "package-0"
    assert gap.reason.startswith("read_failed: got ")


@pytest.mark.parametrize("text", ["", "0", "-1", "many"])
def test_a_zone_without_range_is_a_gap(tmp_path: Path, text: str) -> None:
    """D-01: without its range a counter's wraps cannot be told; it is not guessed."""
    tree = PowercapTree(tmp_path, dram=False)
    (tree.zone_path("package-0") / "max_energy_range_uj").write_text(text)
    assert PowercapReader(tmp_path).reason is not None


def test_counters_are_read_through_open_files(tmp_path: Path) -> None:
    """S3-03: the file is opened once: it can be unlinked and the open one still answers."""
    tree = PowercapTree(tmp_path, dram=False)
    reader = PowercapReader(tmp_path)
    (tree.zone_path("package-0") / "energy_uj").unlink()
    assert dict(reader.read().counters_uj) == {"package-0": tree.start_uj}
    reader.close()
    reader.close()
    assert reader.read().counters_uj == {}


def test_read_joules_names(tmp_path: Path) -> None:
    """S0-21, S1-18: total joules of the measured set; None where there is nothing, never 0."""
    assert read_intel_rapl_energy_joules(tmp_path) is None
    tree = PowercapTree(tmp_path, packages=2, psys=True, start_uj=0)
    tree.advance({"package-0": 1_500_000, "package-1/dram": 250_000})
    assert read_intel_rapl_energy_joules(tmp_path) == 1.75
    assert read_cpu_energy_joules(tmp_path) == 1.75
