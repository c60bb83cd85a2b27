"""Host counters at one moment (S0-22, S0-23; D-31, D-32, D-34, C-13)."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import psutil
import pytest

from joulegram.snapshot import Snapshot, delta, take_snapshot
from simulators.powercap import PowercapTree

if TYPE_CHECKING:
    from pathlib import Path

BYTE_FIELDS = ("net_sent", "net_recv", "disk_read", "disk_write")


def test_a_snapshot_has_the_fields_of_the_contract_and_is_frozen() -> None:
    """t, energy_j and four byte counts, which cannot be changed afterwards (S0-22)."""
    names = tuple(field.name for field in dataclasses.fields(Snapshot))
    assert names == ("t", "energy_j", *BYTE_FIELDS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        take_snapshot().net_sent = 1  # type: ignore[misc]


def test_time_is_monotonic() -> None:
    """`t` is of the monotonic clock, so a difference is a duration whatever the wall clock does (D-29)."""
    before = time.monotonic()
    first, second = take_snapshot(), take_snapshot()
    assert before <= first.t <= second.t <= time.monotonic()


def test_energy_is_the_measured_set_of_the_tree(tmp_path: Path) -> None:
    """Joules of packages and DRAM, without what lies inside or mirrors them (S0-21, D-03, D-04)."""
    tree = PowercapTree(tmp_path / "sys", packages=2, uncore=True, psys=True, mmio=True, start_uj=0)
    before = take_snapshot(tmp_path / "sys")
    tree.advance({"package-0": 2_000_000, "package-1": 500_000, "package-0/dram": 250_000})
    after = take_snapshot(tmp_path / "sys")
    assert before.energy_j == 0.0
    assert delta(before.energy_j, after.energy_j) == 2.75


def test_energy_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    """No powercap tree: energy is not known, and not 0."""
    assert take_snapshot(tmp_path / "nothing").energy_j is None


def test_bytes_are_the_hosts_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole-host counts as psutil gives them, each in its own field, as exact integers beyond 2**53 (D-34)."""
    big = 2**60 + 1
    net = SimpleNamespace(bytes_sent=1, bytes_recv=big)
    disk = SimpleNamespace(read_bytes=3, write_bytes=4)
    monkeypatch.setattr(psutil, "net_io_counters", lambda: net)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: disk)
    found = take_snapshot()
    assert (found.net_sent, found.net_recv, found.disk_read, found.disk_write) == (1, big, 3, 4)


def test_real_counters_are_integers_or_absent() -> None:
    """On this machine too: no float, nothing negative."""
    for name in BYTE_FIELDS:
        value = getattr(take_snapshot(), name)
        assert value is None or (type(value) is int and value >= 0), name


@pytest.mark.parametrize("answer", [None, OSError("no /proc/diskstats"), NotImplementedError(), RuntimeError("none")])
def test_counters_that_do_not_exist_are_none(monkeypatch: pytest.MonkeyPatch, answer: Exception | None) -> None:
    """A system without disks or interfaces gives None, never a made-up 0 (D-32)."""

    def reading() -> None:
        if answer is not None:
            raise answer

    monkeypatch.setattr(psutil, "net_io_counters", reading)
    monkeypatch.setattr(psutil, "disk_io_counters", reading)
    assert [getattr(take_snapshot(), name) for name in BYTE_FIELDS] == [None] * 4


def test_without_psutil_bytes_are_none() -> None:
    """A fresh interpreter that cannot import psutil takes a snapshot all the same (S0-16)."""
    code = (
        "import sys; sys.modules['psutil'] = None\n"
        "from joulegram.snapshot import take_snapshot\n"
        "s = take_snapshot(); print(s.net_sent, s.net_recv, s.disk_read, s.disk_write)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["None"] * 4), done.stderr


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(None, 5, None), (5, None, None), (None, None, None), (0, 0, 0), (2**60, 2**60 + 1, 1), (7, 5, -2)],
)
def test_a_difference_is_known_only_of_two_readings(a: int | None, b: int | None, expected: int | None) -> None:
    """None if either is None (S0-23); a reset counter is negative, not 0 and no error (C-11, D-33)."""
    assert delta(a, b) == expected
