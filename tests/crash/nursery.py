"""Sidecars that start in a tenth of a second: forked from a process that has imported everything already."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from simulators.sidecar import Serve, clean_environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

PROGRAM = Path(__file__).with_name("nursery_main.py")

SMALL: Mapping[str, float] = {
    "joulegram_service.engine.SNAPSHOT_S": 0.25,
    "joulegram_service.engine.SYNC_S": 0.1,
    "joulegram_receiver.spool._SEGMENTS_OF_CAP": 2048,
    "joulegram_receiver.spool._MIN_SEGMENT_BYTES": 64 * 1024,
}
"""Snapshots four times a second and, with a spool of 128 MiB, segments of 64 KiB: both come up in a short life."""


class Nursery:
    """Entered, it forks one sidecar after the other.

    Args:
        directory: it runs there.
        constants: values of module constants, by full name.
    """

    def __init__(self, directory: Path, constants: Mapping[str, float] = SMALL) -> None:
        self._directory = directory
        self._faults = directory / "faults"
        self._constants = dict(constants)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), json.dumps(self._constants), str(self._faults)],
            cwd=self._directory,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def break_disk(self, *faults: str) -> None:
        """From now on these fail with EIO, each ``<call> <folder>``; none mends everything."""
        if faults:
            temporary = self._faults.with_suffix(".new")
            temporary.write_text("\n".join(faults))
            temporary.replace(self._faults)
        else:
            self._faults.unlink(missing_ok=True)

    def fork(self, arguments: Sequence[str], log: Path) -> Forked:
        """One more sidecar; the one before has ended."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"arguments": list(arguments), "log": str(log)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return Forked(self._process.stdout.fileno())


class Forked:
    """A forked process, with what `Service` asks of a Popen."""

    def __init__(self, out: int) -> None:
        self._out = out
        self.returncode: int | None = None
        self.pid = self._number(30.0)

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        if self.returncode is None and self._said(0.0):
            self.returncode = self._number(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Block until it ends; its exit status."""
        if self.returncode is None:
            self.returncode = self._number(timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _said(self, timeout_s: float | None) -> bool:
        return bool(select.select([self._out], [], [], timeout_s)[0])

    def _number(self, timeout_s: float | None) -> int:
        if not self._said(timeout_s):
            raise subprocess.TimeoutExpired("the forked sidecar", timeout_s or 0.0)
        said = b""
        while not said.endswith(b"\n"):
            more = os.read(self._out, 64)
            assert more, "the nursery ended"
            said += more
        return int(said)


class Fledgling(Serve):
    """`joulegram serve`, forked from a nursery.

    Args:
        nursery: entered.
        directory: where it runs; its data is in ``directory/data``.
        arguments: as for `Serve`.
        name: of its log file, which is appended to.
    """

    def __init__(self, nursery: Nursery, directory: Path, *arguments: str, name: str = "serve") -> None:
        super().__init__(directory, *arguments, name=name)
        self._nursery = nursery

    def __enter__(self) -> Self:
        self.log.write_bytes(b"")
        forked: Any = self._nursery.fork(self._arguments, self.log)
        self.process = cast("subprocess.Popen[bytes]", forked)
        return self
