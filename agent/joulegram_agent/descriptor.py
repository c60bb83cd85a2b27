"""A file that is opened once and read again and again by its descriptor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Descriptor:
    """A descriptor that is closed once, by whoever closes it or when nobody knows it any more.

    Args:
        path: of the file.
        access: ``os.O_RDONLY`` or ``os.O_RDWR``.

    Raises:
        OSError: it cannot be opened.
    """

    fd = -1

    def __init__(self, path: Path, access: int = os.O_RDONLY) -> None:
        self.fd = os.open(path, access | os.O_CLOEXEC)

    def __del__(self) -> None:
        """Whoever forgets to close gives back what is open all the same, as with files."""
        self.close()

    def close(self) -> None:
        """Close it; a second time is none."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
