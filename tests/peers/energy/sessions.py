"""How a reader is set to work on a tree of ours and told when to read: drivers in Python, and exporters.

Invariants:
    * no reader is changed: what reads ``/sys/class/powercap`` by that name finds the tree mounted there, in a mount
      namespace of its own;
    * what a reader raises is a ReaderError and part of the comparison; a driver that ends is a defect of ours;
    * nothing of a reader outlives its session.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from peers.build import PeerMissingError, interpreter, python_environment
from simulators.sidecar import clean_environment, wait_until

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterator, Mapping

HERE = Path(__file__).parent
_ANSWER_S = 60.0


class ReaderError(Exception):
    """What a reader raised in its user's place."""


class Session(Protocol):
    """A reader at work on one tree."""

    def read(self) -> None:
        """Let it do what it does from time to time."""

    def end(self) -> float:
        """The joules it reports since the session began."""


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
def exporter(
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


def compiled(name: str, directory: Path) -> Path:
    """A shared library of one C file beside the drivers."""
    library = directory / f"{name}.so"
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(HERE / "drivers" / f"{name}.c"), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        raise PeerMissingError("there is no C compiler") from None
    return library
