"""An open file that refuses on command, which root could not be made to see."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from joulegram_agent.powercap import CounterFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class FaultyFile(CounterFile):
    """A file of sysfs.

    Args:
        path: of it.
        faults: errno by path, looked at whenever it is opened or read.

    Raises:
        OSError: as `faults` says.
    """

    def __init__(self, path: Path, faults: Mapping[Path, int]) -> None:
        self._path = path.resolve()
        self._faults = faults
        self._check()
        super().__init__(path)

    def read(self) -> bytes:
        self._check()
        return super().read()

    def _check(self) -> None:
        number = self._faults.get(self._path)
        if number is not None:
            raise OSError(number, os.strerror(number), str(self._path))
