"""The readers that are compared: how each is had, pointed at a tree of ours, and asked what it reports.

Invariants:
    * no reader is changed: what reads ``/sys/class/powercap`` by that name finds the tree mounted there, in a mount
      namespace of its own;
    * each reads as often as it does by default or by its page, in the scenario's time;
    * a reader that raises has reported nothing, and what it raised is kept.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from peers.build import PeerMissingError, cargo_program, go_program, interpreter, python_environment
from peers.collector import free_ports
from simulators.sidecar import clean_environment, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

HERE = Path(__file__).parent
SCRAPE_MS = 15_000
SCAPHANDRE = "1.0.0"
_ANSWER_S = 60.0


class ReaderError(Exception):
    """What a reader raised in its user's place."""


class Session(Protocol):
    """A reader at work on one tree."""

    def read(self) -> None:
        """Let it do what it does from time to time."""

    def end(self) -> float:
        """The joules it reports since the session began."""


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


def in_namespace(sysfs: Path, *command: str) -> list[str]:
    """A command line that runs with this folder mounted at ``/sys``.

    Raises:
        PeerMissingError: this machine lets nobody mount anything, not even in a namespace.
    """
    for way in (("unshare", "--mount"), ("unshare", "--mount", "--map-root-user")):
        try:
            tried = subprocess.run([*way, "mount", "--bind", str(sysfs), "/sys"], capture_output=True)
        except FileNotFoundError:
            break
        if tried.returncode == 0:
            return [*way, "sh", "-c", 'mount --bind "$0" /sys && exec "$@"', str(sysfs), *command]
    raise PeerMissingError("a mount namespace cannot be made here")


# -- readers that are Python ----------------------------------------------------------------------------------------


class Driven:
    """A driver in the reader's own environment, told what to do a line at a time."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def say(self, word: str) -> Any:
        """Its answer; ReaderError with what was raised."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            said = self._log.read_text(errors="replace")
            raise AssertionError(f"the driver ended with {self._process.wait(_ANSWER_S)} and said:\n{said}") from error
        if "raised" in answer:
            raise ReaderError(answer["raised"])
        return answer["joules"]

    def read(self) -> None:
        self.say("read")

    def end(self) -> float:
        return float(self.say("end"))


def driven(name: str, version: str, driver: str | None = None, **environment: str) -> Callable[[Path], Any]:
    """Sessions with a driver.

    Args:
        name: of the lock.
        version: of Python.
        driver: its name, where it is not that of the lock.
        environment: added to a clean one.
    """

    @contextmanager
    def session(sysfs: Path) -> Iterator[Driven]:
        python = python_environment(name, HERE / "locks" / f"{name}.txt", interpreter(version))
        script = HERE / "drivers" / f"drive_{driver or name.replace('-', '_')}.py"
        log = sysfs.parent / f"{name}.log"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                in_namespace(sysfs, str(python), str(script)),
                env=clean_environment(PYTHONPATH=str(HERE.parents[1]), **environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                cwd=sysfs.parent,
                start_new_session=True,
            ) as process,
        ):
            try:
                told = Driven(process, log)
                told.say("begin")
                yield told
            finally:
                os.killpg(process.pid, signal.SIGKILL)  # zeus's own processes would outlive it

    return session


def pinned(name: str) -> str:
    """The version a lock gives the package it is named for."""
    found = re.search(rf"^{name}==(\S+)", (HERE / "locks" / f"{name}.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


# -- readers that are scraped ---------------------------------------------------------------------------------------


@dataclass
class Scraped:
    """An exporter, and what Prometheus' ``increase`` makes of its counters from scrape to scrape.

    A counter that fell is one that began again at 0; a scrape without it changes nothing. What Prometheus extrapolates
    to the edges of a window is left out.

    Args:
        url: of the page.
        wanted: matches the series that are added up.
        unit_j: joules of one of the counter's units.
        pause_s: real time that must pass between two scrapes for it to read anew.
    """

    url: str
    wanted: re.Pattern[str]
    unit_j: float
    pause_s: float = 0.0
    last: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    seen: bool = False

    def read(self) -> None:
        time.sleep(self.pause_s)
        with urllib.request.urlopen(self.url, timeout=10) as answer:
            self.take(answer.read().decode())

    def take(self, text: str) -> None:
        """Add what a page shows to what was counted."""
        for series, value in samples(text, self.wanted).items():
            before = self.last.get(series)
            if before is not None:
                self.total += value - before if value >= before else value
                self.seen = True
            self.last[series] = value

    def end(self) -> float:
        if not self.seen:
            raise ReaderError("it exposes no such counter")
        return self.total * self.unit_j


def samples(text: str, wanted: re.Pattern[str]) -> Mapping[str, float]:
    """The values of the series that match, by their names and labels."""
    lines = (line.rpartition(" ") for line in text.splitlines() if wanted.match(line))
    return {series: float(value) for series, _, value in lines}


@contextmanager
def _exporter(
    command: list[str], scraped: Scraped, log: Path, environment: dict[str, str] | None = None
) -> Iterator[Scraped]:
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process,
    ):
        try:

            def up() -> bool:
                try:
                    scraped.read()
                except OSError:
                    return False
                return True

            wait_until(up, "an exporter that answers", log=log)
            yield scraped
        finally:
            process.kill()


@contextmanager
def _node_exporter(sysfs: Path) -> Iterator[Scraped]:
    program = go_program("node_exporter")
    (port,) = free_ports(1)
    command = [str(program), f"--web.listen-address=127.0.0.1:{port}", f"--path.sysfs={sysfs}"]
    command += ["--collector.disable-defaults", "--collector.rapl"]
    scraped = Scraped(f"http://127.0.0.1:{port}/metrics", re.compile("node_rapl_(package|dram)_joules_total"), 1.0)
    with _exporter(command, scraped, sysfs.parent / "node_exporter.log") as session:
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
        environment["LD_PRELOAD"] = str(_compiled("modules", sysfs.parent))
    url, wanted = f"http://127.0.0.1:{port}/metrics", re.compile("scaph_host_energy_microjoules")
    scraped = Scraped(url, wanted, 1e-6, pause_s=2.1)
    with _exporter(command, scraped, sysfs.parent / "scaphandre.log", environment) as session:
        yield session


def _compiled(name: str, directory: Path) -> Path:
    """A shared library of one C file beside the drivers."""
    library = directory / f"{name}.so"
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(HERE / "drivers" / f"{name}.c"), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        raise PeerMissingError("there is no C compiler") from None
    return library


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
