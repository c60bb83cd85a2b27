"""Connections of one destination that are kept: as many as there are sends at once, each for one of them at a time."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from joulegram_sink.upstream_destination import Endpoint


class Pooled(Protocol):
    """A connection, open or not yet."""

    context: ssl.SSLContext | None
    """Of its TLS."""

    @property
    def is_usable(self) -> bool:
        """Whether it is open and the peer has not left."""

    def interrupt(self) -> None:
        """Have whoever waits on it fail; for other threads."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Pooled)


class Pool(Generic[C]):
    """Safe for threads.

    Args:
        make: a connection to a target with its TLS; it connects when it is used.
    """

    def __init__(self, make: Callable[[Endpoint, ssl.SSLContext | None], C]) -> None:
        self._make = make
        self._lock = Lock()
        self._idle: dict[Endpoint, list[C]] = {}
        self._busy: set[C] = set()
        self._closed = False

    def take(self, target: Endpoint, context: ssl.SSLContext | None, *, fresh: bool = False) -> C | None:
        """The connection that was used last and still can be, or a new one; None when all are closed.

        Args:
            target: whom it leads to.
            context: one with another was made for files that were replaced.
            fresh: whether to take a new one in any case.
        """
        while True:
            with self._lock:
                if self._closed:
                    return None
                idle = self._idle.get(target)
                is_kept = bool(idle) and not fresh
                connection = idle.pop() if idle and is_kept else self._make(target, context)
                self._busy.add(connection)
            if not is_kept or (connection.context is context and connection.is_usable):
                return connection
            self._discard(connection)

    def give_back(self, target: Endpoint, connection: C) -> None:
        """Keep a connection for the next send, if it is open still."""
        if connection.is_usable:
            with self._lock:
                if not self._closed:
                    self._busy.discard(connection)
                    self._idle.setdefault(target, []).append(connection)
                    return
        self._discard(connection)

    def close(self) -> None:
        """End the sends under way, and close all."""
        with self._lock:
            self._closed = True
            for connection in self._busy:
                connection.interrupt()
            idle = [connection for connections in self._idle.values() for connection in connections]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def _discard(self, connection: C) -> None:
        with self._lock:
            self._busy.discard(connection)
        connection.close()
