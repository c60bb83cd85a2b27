"""One HTTP connection, bounded: uvicorn's httptools protocol with limits it does not have.

Invariants:
    * a head (request line and headers, trailers too) has a size and a time; what exceeds them is answered and closed;
    * bytes that say nothing (chunk extensions, a header without end) are bounded like a head;
    * a body that nobody wants any more is read for a while, so that its sender sees the answer, then closed;
    * a connection has an age, after which the answer that is next says that it is the last, and an idle one is closed;
    * what is refused here gets a `google.rpc.Status` like all else (H5), and is not logged: it is counted.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from joulegram_pipeline.errors import PermanentError
from joulegram_receiver.http_status import answer_encoding, status_body

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

HEADER_TIMEOUT_S = 10.0
_BUSY_RETRY_AFTER_S = 1
_OFFERS = frozenset({b"upgrade", b"http2-settings"})


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one listener allows.

    Args:
        max_connections: at once; one more is told 503 and closed.
        max_header_bytes: of one request's line, headers and trailers.
        header_timeout_s: for a head to come, from the connection or from its first byte.
        linger_s: without a byte of it, after which a body is given up whose request was refused.
        linger_max_s: how long such a body is read on at most.
        max_age_s: after which the client is asked to connect anew, spread by a tenth; None for any age.
    """

    max_connections: int = 1024
    max_header_bytes: int = 16 * 1024
    header_timeout_s: float = HEADER_TIMEOUT_S
    linger_s: float = 5.0
    linger_max_s: float = 30.0
    max_age_s: float | None = None


class _HeadTooLargeError(PermanentError):
    """Stops the parser."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """See the module.

    Args:
        limits: of the listener.
        count: called with the reason of a refusal made here.
        others: what uvicorn gives every protocol.
    """

    def __init__(self, *, limits: ConnectionLimits, count: Callable[[str], None], **others: Any) -> None:
        super().__init__(**others)
        self._limits = limits
        self._count = count
        self._timer: asyncio.TimerHandle | None = None
        self._age: asyncio.TimerHandle | None = None
        self._aged = False
        self._heard_s = self._linger_end_s = 0.0
        self._refused = False
        self._head_open = False
        self._body_open = False
        self._body_begun = False
        self._method = b""
        self._offered = False
        """Another protocol, with the request that is being read."""
        self._head_bytes = 0
        self._silent_bytes = 0
        self._said = False
        """Whether the parser has said anything of the bytes it was just fed."""

    # -- the connection ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, "connections", f"expected at most {self._limits.max_connections} connections; try again")
        else:
            self._arm(self._limits.header_timeout_s, self._head_is_late)
        if self._limits.max_age_s is not None:
            # Spread, so that clients that came together do not come back together.
            age_s = self._limits.max_age_s * random.uniform(0.9, 1.1)  # noqa: S311 - no secret
            self._age = self.loop.call_later(age_s, self._grow_old)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._age is not None:
            self._age.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._refused:
            self.transport.close()
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; everything else follows from what it calls."""
        self._heard_s = self.loop.time()
        if self._refused:
            return  # read, so that the answer is not lost with what nobody read
        self._unset_keepalive_if_required()
        self._said = False
        try:
            self._feed(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "malformed", "got CONNECT, expected POST")
            return
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _HeadTooLargeError):
                self._refuse_head()
            else:
                self._refuse(400, "malformed", f"not HTTP: {type(error).__name__}, expected an HTTP/1.1 request")
            return
        if self._said:
            self._silent_bytes = 0
        else:
            self._silent_bytes += len(data)
            if self._silent_bytes > self._limits.max_header_bytes:
                self._refuse_head()
                return
        if self._timer is None and (self._head_open or (not self._body_open and self._idle)):
            self._arm(self._limits.header_timeout_s, self._head_is_late)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # The parser leaves the body to the protocol that was offered. It need not be taken (RFC 9110, 7.8), so the
            # request is read again without the offer.
            head = [self._method + b" " + self.url + b" HTTP/1.1\r\n"]
            for name, value in self.headers:
                if name == b"connection":
                    tokens = (token.strip() for token in value.split(b","))
                    value = b", ".join(token for token in tokens if token.lower() not in _OFFERS)  # noqa: PLW2901
                if name not in _OFFERS:
                    head.append(name + b": " + value + b"\r\n")
            self._renew_parser()
            self.parser.feed_data(b"".join([*head, b"\r\n"]) + data[upgrade.args[0] :])

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    # -- what the parser says ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._said = self._head_open = self._body_open = True
        self._body_begun = False
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._said = True
        self._head_open = False
        self._disarm()
        self._method = self.parser.get_method()
        self._offered = self.parser.should_upgrade()
        if not self._offered:
            super().on_headers_complete()
            if self._aged:
                self.cycle.keep_alive = False

    def on_chunk_header(self) -> None:
        self._said = True

    def on_body(self, body: bytes) -> None:
        self._said = self._body_begun = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._offered:
            return
        self._said = True
        self._body_open = False
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is out; where its request is not yet in, what is left of it has a while to come."""
        super().on_response_complete()
        if not self._body_to_come or self.transport.is_closing() or not self.cycle.response_complete:
            return
        if self.expect_100_continue and not self._body_begun:
            # It was not asked for, and whether it comes all the same nobody can tell: the next bytes may be either.
            self.transport.close()
        else:
            self._linger()

    # -- limits --------------------------------------------------------------------------------------------------

    @property
    def _idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # there is none before the first request
        return cycle is None or cycle.response_complete

    @property
    def _body_to_come(self) -> bool:
        """Whether the last request that was handed on is still on its way."""
        return self._body_open and not self._head_open

    def _count_head(self, size: int) -> None:
        self._said = True
        self._head_bytes += size
        if self._head_bytes > self._limits.max_header_bytes:
            raise _HeadTooLargeError

    def _arm(self, delay_s: float, action: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(delay_s, action)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _linger(self) -> None:
        """Read past what still comes, then close: who is closed upon while it sends does not see its answer."""
        self._heard_s = self.loop.time()
        self._linger_end_s = self._heard_s + self._limits.linger_max_s
        self._linger_on()

    def _linger_on(self) -> None:
        rest_s = min(self._heard_s + self._limits.linger_s, self._linger_end_s) - self.loop.time()
        if rest_s > 0:
            self._arm(rest_s, self._linger_on)
        else:
            self.transport.close()

    def _grow_old(self) -> None:
        """Close where nothing is under way; else the answer to the last request that came says that it is the last."""
        self._age = None
        self._aged = True
        if not self._idle:
            self.cycle.keep_alive = False
        elif not (self._head_open or self._body_open or self._refused):
            self.transport.close()

    def _head_is_late(self) -> None:
        self._timer = None
        if self._head_open:
            self._refuse(408, "slow", f"expected a request within {self._limits.header_timeout_s:g} s")
        else:
            self.transport.close()

    def _refuse_head(self) -> None:
        self._refuse(
            431, "headers", f"got more, expected at most {self._limits.max_header_bytes} bytes of request headers"
        )

    def _refuse(self, status: int, reason: str, text: str) -> None:
        """Answer without the application, and close once the client had time to read it."""
        self._count(reason)
        self._refused = True
        self._disarm()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
            if not self._body_to_come or cycle.response_started:
                return  # the answer to a request before this one is on its way, and closes the connection
            cycle.disconnected = True
            cycle.message_event.set()
        self.flow.resume_reading()
        encoding = answer_encoding(self.headers or ())
        retry_after_s = _BUSY_RETRY_AFTER_S if status == 503 else None
        body = status_body(encoding, status, text, field="" if status == 400 else None, retry_after_s=retry_after_s)
        lines = [STATUS_LINE[status]]
        headers = [*self.server_state.default_headers, encoding.header, (b"connection", b"close")]
        if retry_after_s is not None:
            headers.append((b"retry-after", str(retry_after_s).encode()))
        headers.append((b"content-length", str(len(body)).encode()))
        lines += [name + b": " + value + b"\r\n" for name, value in headers]
        self.transport.write(b"".join([*lines, b"\r\n", body]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger()
