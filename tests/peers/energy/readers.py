"""The readers that are compared: how each is had, what it is told, and what it is asked for.

Each reads as often as it does by default or by its page, in the scenario's time.
"""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers.build import cargo_program, go_program
from peers.energy.sessions import HERE, Scraped, compiled, driven, exporter
from simulators.ports import free_ports
from simulators.sidecar import clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALL = "JOULEGRAM_TEST_READERS"
"""Set to ``all``, tests run readers too that take minutes to install or to run."""

SCRAPE_MS = 15_000
SCAPHANDRE = "1.0.0"


@dataclass(frozen=True)
class Reader:
    """One row of the comparison.

    Args:
        name: as its users call it.
        version: which.
        every_ms: how often it reads; None is at the beginning and the end.
        dram: whether it sets out to measure DRAM.
        session: opens it on what a program should see as ``/sys``.
        lasting: whether it takes minutes to install or to run.
        how: what it was told, and by which of its interfaces it was asked.
    """

    name: str
    version: str
    every_ms: int | None
    dram: bool
    session: Callable[[Path], Any]
    lasting: bool
    how: str

    @property
    def title(self) -> str:
        """As the table names it."""
        name, _, variant = self.name.partition(" (")
        return f"{name} {self.version}" + (f" ({variant}" if variant else "")


def pinned(name: str) -> str:
    """The version a lock gives the package it is named for."""
    found = re.search(rf"^{name}==(\S+)", (HERE / "locks" / f"{name}.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


@contextmanager
def _node_exporter(sysfs: Path) -> Iterator[Scraped]:
    program = go_program("node_exporter")
    (port,) = free_ports(1)
    command = [str(program), f"--web.listen-address=127.0.0.1:{port}", f"--path.sysfs={sysfs}"]
    command += ["--collector.disable-defaults", "--collector.rapl"]
    scraped = Scraped(f"http://127.0.0.1:{port}/metrics", re.compile("node_rapl_(package|dram)_joules_total"), 1.0)
    with exporter(command, scraped, sysfs.parent / "node_exporter.log") as session:
        yield session


@contextmanager
def _scaphandre(sysfs: Path) -> Iterator[Scraped]:
    features = ("--no-default-features", "--features", "json,prometheus")
    program = cargo_program("scaphandre", SCAPHANDRE, *features)
    (port,) = free_ports(1)
    # --vm is how it takes another powercap folder, and does not ask for the kernel's modules.
    command = [str(program), "--vm", "prometheus", "--address=127.0.0.1", f"--port={port}"]
    environment = clean_environment(SCAPHANDRE_POWERCAP_PATH=str(sysfs / "class" / "powercap"))
    if not Path("/proc/modules").exists():
        environment["LD_PRELOAD"] = str(compiled("modules", sysfs.parent))
    url, wanted = f"http://127.0.0.1:{port}/metrics", re.compile("scaph_host_energy_microjoules")
    scraped = Scraped(url, wanted, 1e-6, pause_s=2.1)
    with exporter(command, scraped, sysfs.parent / "scaphandre.log", environment) as session:
        yield session


def _go_version() -> str:
    text = (HERE.parent / "go" / "node_exporter" / "go.mod").read_text()
    found = re.search(r"prometheus/node_exporter v(\S+)", text)
    assert found is not None
    return found[1]


HOST = f"{sys.version_info.major}.{sys.version_info.minor}"
PEERS = (
    Reader(
        "pyRAPL",
        pinned("pyrapl"),
        None,
        True,
        driven("pyrapl", HOST),
        False,
        "`setup()`, then a `Measurement` from beginning to end; packages and DRAM.",
    ),
    Reader(
        "pyJoules",
        pinned("pyjoules"),
        None,
        True,
        driven("pyjoules", HOST),
        False,
        "an `EnergyMeter` over every package and DRAM domain it finds, from beginning to end.",
    ),
    Reader(
        "node_exporter",
        _go_version(),
        SCRAPE_MS,
        True,
        _node_exporter,
        False,
        "`--collector.rapl --path.sysfs`, scraped every 15 s; the sum of Prometheus' `increase` over "
        "`node_rapl_package_joules_total` and `node_rapl_dram_joules_total`.",
    ),
    Reader(
        "codecarbon",
        pinned("codecarbon"),
        SCRAPE_MS,
        False,
        driven("codecarbon", HOST),
        True,
        "`OfflineEmissionsTracker` with its defaults (every 15 s, packages without DRAM); its `cpu_energy`.",
    ),
    Reader(
        "zeus",
        pinned("zeus"),
        None,
        True,
        driven("zeus", HOST),
        True,
        "one window of `ZeusMonitor(gpu_indices=[])` over every CPU it finds; its `cpu_energy` and `dram_energy`.",
    ),
    Reader(
        "Scaphandre",
        SCAPHANDRE,
        SCRAPE_MS,
        True,
        _scaphandre,
        True,
        "`--vm prometheus` with SCAPHANDRE_POWERCAP_PATH, scraped every 15 s; `increase` of its "
        "`scaph_host_energy_microjoules`.",
    ),
    Reader(
        "carbon-ops",
        pinned("carbon-ops"),
        100,
        True,
        driven("carbon-ops", "3.12"),
        True,
        "its governor's loop at 10 Hz with the default root; the sum its client makes.",
    ),
    Reader(
        "carbon-ops (other root)",
        pinned("carbon-ops"),
        100,
        True,
        driven("carbon-ops", "3.12", POWERCAP_ROOT="/sys/devices/virtual/powercap"),
        True,
        "the same with `--powercap-root /sys/devices/virtual/powercap`.",
    ),
)
