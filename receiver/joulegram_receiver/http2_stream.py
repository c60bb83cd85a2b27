"""One request of an HTTP/2 connection and its answer: states and windows of RFC 9113 sections 5.1 and 5.2."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from joulegram_pipeline.http2_frames import (
    MAX_FRAME_BYTES,
    MAX_WINDOW_BYTES,
    Code,
    Flag,
    Kind,
    StreamFault,
    frame,
    reset,
    window_update,
)

if TYPE_CHECKING:
    from joulegram_receiver.http2_head import Head


class Exchange(Protocol):
    """What handles one request; called by its connection."""

    def data(self, chunk: bytes) -> None:
        """More of the body."""

    def end(self) -> None:
        """The body is whole."""

    def late(self, limit_s: float) -> None:
        """The body did not come whole in its time."""

    def gone(self) -> None:
        """Nobody waits for the answer any more."""

    def room(self) -> None:
        """All that was to be sent is on its way."""


class Wire(Protocol):
    """The connection, as its streams see it."""

    send_window: int
    """What the peer takes of all bodies together; streams subtract what they send."""

    paused: bool
    """Whether streams should send no more for now."""

    def send(self, data: bytes) -> None:
        """Write, with what else is written in this turn of the loop."""

    def send_fields(self, flags: int, stream_id: int, block: bytes) -> None:
        """Write a HEADERS frame with all of a header block."""

    def forget(self, stream: Stream) -> None:
        """It is closed and nothing works for it."""


class Stream:
    """See the module. Whoever answers calls `head`, then `body` for each part, then `finish`; or `abort`.

    Args:
        stream_id: odd.
        wire: its connection.
        recv_window: what the peer may send of the body before it is told that there is more room.
        send_window: what the peer takes of an answer.
    """

    __slots__ = (
        "_end",
        "_got",
        "_pending",
        "_wire",
        "answered",
        "begun_s",
        "busy",
        "closed",
        "exchange",
        "head",
        "recv_window",
        "send_window",
        "stream_id",
        "whole",
    )

    def __init__(
        self, stream_id: int, wire: Wire, head: Head, recv_window: int, send_window: int, begun_s: float
    ) -> None:
        self.stream_id = stream_id
        self.head = head
        self.exchange: Exchange | None = None
        self.recv_window = recv_window
        self.send_window = send_window
        self.begun_s = begun_s
        self.whole = False
        """Whether the request is."""
        self.busy = False
        """Whether somebody works on it still, be its client there or not."""
        self.answered = False
        """Whether the last word of the answer was said, if not sent."""
        self.closed = False
        self._wire = wire
        self._got = 0
        self._pending: deque[memoryview] = deque()
        """Of the answer's body, what the peer has no room for yet."""
        self._end: bytes | None = None
        """The trailers behind it."""

    # -- what comes ----------------------------------------------------------------------------------------------

    def took(self, size: int, body_size: int) -> None:
        """Account for a DATA frame.

        Args:
            size: with its padding.
            body_size: without.

        Raises:
            StreamFault: it is more than there was room for.
        """
        self.recv_window -= size
        if self.recv_window < 0:
            raise StreamFault(self.stream_id, Code.FLOW_CONTROL_ERROR, "got more than the stream's window")
        self._got += body_size

    def ended(self) -> None:
        """The request is whole.

        Raises:
            StreamFault: its body is not as long as its head said (RFC 9113 section 8.1.1).
        """
        self.whole = True
        said = self.head.body_bytes
        if said is not None and said != self._got:
            raise StreamFault(
                self.stream_id, Code.PROTOCOL_ERROR, f"got a body of {self._got} bytes, content-length said {said}"
            )

    def grant(self, more: int) -> None:
        """Tell the peer that there is room for `more` bytes of its body."""
        if more > 0 and not self.whole:
            more = min(more, MAX_WINDOW_BYTES - self.recv_window)
            self.recv_window += more
            self._wire.send(window_update(self.stream_id, more))

    # -- what goes -----------------------------------------------------------------------------------------------

    def begin(self, block: bytes) -> None:
        """Send the head of an answer that has more."""
        if not self.closed:
            self._wire.send_fields(Flag.END_HEADERS, self.stream_id, block)

    def body(self, data: bytes) -> None:
        """Send a part of the body, as far as the peer has room now and the rest as it gets some."""
        if not self.closed:
            self._pending.append(memoryview(data))
            self.pump()

    def finish(self, block: bytes) -> None:
        """Send the trailers, or the head of an answer that has nothing else; the stream is answered."""
        if not self.answered:
            self.answered = True
            self._end = block
            self.pump()

    def abort(self, code: Code) -> None:
        """Give the stream up, and tell the peer."""
        self._wire.send(reset(self.stream_id, code))
        self.give_up()

    def give_up(self) -> None:
        """Nobody waits for the answer."""
        self.answered = self.closed = True
        self._pending.clear()
        self._end = None
        if self.exchange is not None:
            self.exchange.gone()
        self.settle()

    def settle(self) -> None:
        """Let the connection forget it, once it is closed and nobody works on it."""
        if self.closed and not self.busy:
            self._wire.forget(self)
            self.exchange = None  # which has this: what it holds of a body would be there until a collection

    @property
    def stuck(self) -> bool:
        """Whether the peer has no room for what is to be sent."""
        return bool(self._pending)

    def pump(self) -> None:
        """Send of what is pending as much as both windows let through, then the trailers."""
        stuck = self.stuck
        while self._pending:
            if self._wire.paused:
                return
            data = self._pending[0]
            room = min(len(data), self.send_window, self._wire.send_window, MAX_FRAME_BYTES)
            if room <= 0 and data:
                return
            self.send_window -= room
            self._wire.send_window -= room
            self._wire.send(frame(Kind.DATA, 0, self.stream_id, bytes(data[:room])))
            if room == len(data):
                self._pending.popleft()
            else:
                self._pending[0] = data[room:]
        if stuck and self.exchange is not None:
            self.exchange.room()
        if self._end is not None:
            self._wire.send_fields(Flag.END_HEADERS | Flag.END_STREAM, self.stream_id, self._end)
            self._end = None
            if not self.whole:
                # The rest of the request is wanted no more; NO_ERROR says that the answer stands (section 8.1).
                self._wire.send(reset(self.stream_id, Code.NO_ERROR))
            self.closed = True
            self.settle()

    def widen(self, more: int) -> None:
        """The peer has room for `more` bytes of this answer, or less where it is negative.

        Raises:
            StreamFault: its window would be wider than there can be.
        """
        self.send_window += more
        if self.send_window > MAX_WINDOW_BYTES:
            raise StreamFault(self.stream_id, Code.FLOW_CONTROL_ERROR, "got a window above 2^31-1")
        self.pump()
