"""How long an HTTP/2 connection lives, and what on it may take how long; everything it does at a time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from joulegram_pipeline.http2_frames import Code

if TYPE_CHECKING:
    from collections.abc import Callable

    from joulegram_receiver.http2_stream import Stream

_LINGER_S = 1.0
"""How long a connection is read on after its end was said, and how long the peer may take to hear that it should go."""


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """What one connection may ask of a server.

    Args:
        max_streams: under way at once.
        max_head_bytes: of one request's header fields, decoded; announced, and left to the exchange to refuse.
        preface_s: for the client to begin with HTTP/2.
        request_s: for a request to come whole once it has begun, and for a peer to read what it is sent.
        max_age_s: after which the client is asked to connect anew, spread by a tenth; None for any age.
        max_age_grace_s: for the requests it has under way then; None waits for them.
        max_idle_s: without a request, after which the same is asked; None waits for ever.
        ping_s: without a byte from the peer, after which it is asked for one; None leaves that to the kernel.
        ping_timeout_s: for its answer.
    """

    max_streams: int = 1024
    max_head_bytes: int = 16 * 1024
    preface_s: float = 10.0
    request_s: float = 60.0
    max_age_s: float | None = None
    max_age_grace_s: float | None = None
    max_idle_s: float | None = None
    ping_s: float | None = None
    ping_timeout_s: float = 20.0


class Living(Protocol):
    """The connection, as its life sees it."""

    streams: dict[int, Stream]

    def drain(self) -> None:
        """Take no new request, and close when those under way are answered."""

    def end(self, code: Code, text: str) -> None:
        """Say why, and close."""

    def ping(self) -> None:
        """Ask for a sign of life."""

    def abort(self) -> None:
        """Close at once."""


class ConnectionLife:
    """The timers of one connection; each is armed only while there is something to wait for."""

    def __init__(self, connection: Living, limits: Http2Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._heard_s = self._used_s = self._loop.time()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def begin(self) -> None:
        """The client has connected."""
        limits = self._limits
        self._arm("preface", limits.preface_s, self._no_preface)
        if limits.max_age_s is not None:
            self._arm("age", limits.max_age_s * random.uniform(0.9, 1.1), self._aged)  # noqa: S311 - no secret
        if limits.max_idle_s is not None:
            self._arm("idle", limits.max_idle_s, self._idle)
        if limits.ping_s is not None:
            self._arm("ping", limits.ping_s, self._ping)

    def end(self) -> None:
        """The connection is gone."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def heard(self) -> None:
        """A byte came."""
        self._heard_s = self._loop.time()

    def used(self) -> None:
        """A request was served."""
        self._used_s = self._loop.time()

    def settled(self) -> None:
        """The client speaks HTTP/2."""
        self._disarm("preface")

    def stalled(self) -> None:
        """The peer does not read."""
        self._arm("stalled", self._limits.request_s, self._connection.abort)

    def resumed(self) -> None:
        """It does."""
        self._disarm("stalled")

    def draining(self, drained: Callable[[], None]) -> None:
        """The client was asked to go: `drained` is called when it had the time to hear that."""
        self._arm("drain", _LINGER_S, drained)

    def closing(self) -> None:
        """It is closed when the peer has read what was written."""
        self._arm("closing", self._limits.request_s, self._connection.abort)

    def lingering(self) -> None:
        """The end was said."""
        self._arm("linger", _LINGER_S, self._connection.abort)

    def watch_requests(self) -> None:
        """There are requests under way."""
        if "requests" not in self._timers:
            self._arm("requests", self._limits.request_s, self._check_requests)

    # -- what happens at a time ----------------------------------------------------------------------------------

    def _no_preface(self) -> None:
        self._connection.end(Code.PROTOCOL_ERROR, f"got no SETTINGS in {self._limits.preface_s:g} s")

    def _aged(self) -> None:
        self._connection.drain()
        if self._limits.max_age_grace_s is not None:
            self._arm("grace", _LINGER_S + self._limits.max_age_grace_s, self._connection.abort)

    def _idle(self) -> None:
        assert self._limits.max_idle_s is not None
        left_s = self._used_s + self._limits.max_idle_s - self._loop.time()
        if self._connection.streams or left_s > 0:
            self._arm("idle", max(left_s, 0.1), self._idle)
        else:
            self._connection.drain()

    def _ping(self) -> None:
        assert self._limits.ping_s is not None
        left_s = self._heard_s + self._limits.ping_s - self._loop.time()
        if left_s > 0:
            self._arm("ping", left_s, self._ping)
            return
        asked_s = self._loop.time()
        self._connection.ping()

        def look() -> None:
            if self._heard_s < asked_s:
                self._connection.abort()
            else:
                self._ping()

        self._arm("ping", self._limits.ping_timeout_s, look)

    def _check_requests(self) -> None:
        """Requests that do not come, and answers that are not read."""
        del self._timers["requests"]
        late_s = self._loop.time() - self._limits.request_s
        for stream in tuple(self._connection.streams.values()):
            if stream.begun_s > late_s:
                continue
            if stream.stuck:
                stream.abort(Code.CANCEL)
            elif not stream.whole and not stream.answered and stream.exchange is not None:
                stream.exchange.late(self._limits.request_s)
        if self._connection.streams:
            self.watch_requests()

    def _arm(self, name: str, delay_s: float, action: Callable[[], None]) -> None:
        self._disarm(name)
        self._timers[name] = self._loop.call_later(delay_s, action)

    def _disarm(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
