"""Small files of the kernel that are read again and again, by descriptors kept open where there is room for them.

A descriptor costs a third of what opening by path costs, and it is bound to what it was opened on: when the process or
the cgroup is gone it fails, whatever has come to stand at its path.
"""

from __future__ import annotations

import os
import resource

MAX_KEPT = 512
"""Descriptors kept by one reader; beyond these a file is opened for each read."""

_SHARE = 4


class KeptFiles:
    """Reads files by path.

    Args:
        size: bytes that hold the largest of them.
        most: descriptors to keep; never more than a quarter of what the process may open.
    """

    def __init__(self, size: int, most: int = MAX_KEPT) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = most if limit == resource.RLIM_INFINITY else min(most, limit // _SHARE)
        self._size = size
        self._open: dict[str, int] = {}

    @property
    def kept(self) -> int:
        """Descriptors open now."""
        return len(self._open)

    def read(self, path: str) -> bytes:
        """What it holds now, up to `size` bytes.

        Raises:
            OSError: it cannot be read, or what it was first opened on is gone. It is let go of then.
        """
        fd = self._open.get(path)
        if fd is None:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) < self._most:
                self._open[path] = fd
            else:
                try:
                    return os.read(fd, self._size)
                finally:
                    os.close(fd)
        try:
            return os.pread(fd, self._size, 0)
        except OSError:
            self.let_go(path)
            raise

    def let_go(self, path: str) -> None:
        """Close it; a read opens what stands at the path by then."""
        fd = self._open.pop(path, None)
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        """Whoever forgets to close gives back what is open all the same, as with files."""
        self.close()

    def close(self) -> None:
        """Close all."""
        while self._open:
            os.close(self._open.popitem()[1])
