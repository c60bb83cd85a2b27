"""A disk that takes its time: a sync that waits until it is let go."""

from __future__ import annotations

import os
from threading import Event


class HeldSync:
    """In place of `os.fdatasync`; `begun` says that it was called, `go` lets it go on, `calls` how often it did."""

    def __init__(self) -> None:
        self.go = Event()
        self.begun = Event()
        self.calls = 0

    def __call__(self, fd: int) -> None:
        self.begun.set()
        assert self.go.wait(20)
        self.calls += 1
        os.fdatasync(fd)
