"""``GET /metrics`` and ``/healthz`` over HTTP/1.1, as little of it as Prometheus needs, bounded in time and size.

Invariants:
    * one request a connection, its head in at most `MAX_HEAD_BYTES` and `HEAD_S`; a body is never read;
    * at most `MAX_CONNECTIONS`; more are closed unanswered;
    * no request has an effect on the agent but the time its answer takes, and answers are made at most ten times a
      second: between those the same page is given again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import time
from typing import TYPE_CHECKING, Self

from joulegram_agent.exposition import CONTENT_TYPE, render
from joulegram_pipeline.errors import BusyError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from joulegram_agent.metrics import AgentMetrics

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 8 * 1024
MAX_CONNECTIONS = 16
HEAD_S = 5.0
"""For the request to come, and again for the answer to be taken."""

PAGE_S = 0.1
"""For so long a page made is given again."""

_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
_TEXT = "text/plain; charset=utf-8"
_REQUEST = re.compile(rb"([A-Z]{1,20}) (\S{1,2048}) HTTP/1\.[01]\r?\n")
_ENDPOINT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s]+)):([0-9]{1,5})")


def endpoint_of(flag: str, text: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[address]:port``.

    Raises:
        ConfigError: it is neither.
    """
    match = _ENDPOINT.fullmatch(text)
    if match is None or int(match[3]) > 65_535:
        raise ConfigError(flag, text, "host:port, as 127.0.0.1:9465")
    return match[1] or match[2], int(match[3])


class MetricsServer:
    """Serves an agent's metrics while it is entered.

    Args:
        endpoint: host and port; port 0 takes a free one.
        metrics: what is served.
        head_s: see `HEAD_S`.
        now_s: a clock that never falls.

    Raises (on enter):
        BusyError: the port is taken, or the address is not this machine's.
    """

    def __init__(
        self,
        endpoint: tuple[str, int],
        metrics: AgentMetrics,
        *,
        head_s: float = HEAD_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint
        self._metrics = metrics
        self._head_s = head_s
        self._now_s = now_s
        self._page = b""
        self._page_until_s = -1.0
        self._peers: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self.port = 0

    def listen(self) -> None:
        """Take the port before entering, raising what that raises; then `close` gives it back, entered or not."""
        host, port = self._endpoint
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._listener = socket.create_server((host, port), family=family)
        except OSError as error:
            problem = f"cannot listen on {host}:{port}: {error.strerror or error}"
            raise BusyError(f"--metrics: {problem}; give another port, or 0 for a free one") from error
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]

    def close(self) -> None:
        """Give the port back; a second call does nothing."""
        if self._listener is not None:
            self._listener.close()

    async def __aenter__(self) -> Self:
        if self._listener is None:
            self.listen()
        self._server = await asyncio.start_server(self._serve, sock=self._listener, limit=MAX_HEAD_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
            for peer in self._peers:
                peer.cancel()
            await asyncio.gather(*self._peers, return_exceptions=True)
            await self._server.wait_closed()
        self.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._peers.add(task)
        try:
            if len(self._peers) <= MAX_CONNECTIONS:
                async with asyncio.timeout(self._head_s):
                    head = await _head(reader)
                writer.transport.set_write_buffer_limits(high=0)
                writer.write(self._answer(head))
                async with asyncio.timeout(self._head_s):
                    await writer.drain()
                writer.close()
        except (OSError, TimeoutError) as error:
            log.debug("a scrape ended: %r", error)
        except asyncio.CancelledError:
            log.debug("a scrape was closed at the agent's stop")
        except Exception:
            log.exception("a scrape failed")
        finally:
            self._peers.discard(task)
            if not writer.is_closing():
                writer.transport.abort()

    def _answer(self, head: bytes | None) -> bytes:
        request = None if head is None else _REQUEST.match(head)
        if request is None:
            return _response(400, _TEXT, b"expected a request of HTTP/1.1 with at most 8192 bytes before its body\n")
        method, target = request[1], request[2].partition(b"?")[0]
        if method not in {b"GET", b"HEAD"}:
            return _response(405, _TEXT, b"GET or HEAD\n", "Allow: GET, HEAD\r\n")
        if target == b"/metrics":
            answer = _response(200, CONTENT_TYPE, self._fresh_page())
        elif target == b"/healthz":
            problems = self._metrics.problems()
            body = json.dumps({"status": "failing" if problems else "ok", "reasons": problems}).encode() + b"\n"
            answer = _response(503 if problems else 200, "application/json", body)
        else:
            answer = _response(404, _TEXT, b"/metrics or /healthz\n")
        return answer if method == b"GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    def _fresh_page(self) -> bytes:
        now_s = self._now_s()
        if now_s >= self._page_until_s:
            self._page = render(self._metrics.families())
            self._page_until_s = now_s + PAGE_S
        return self._page


async def _head(reader: asyncio.StreamReader) -> bytes | None:
    """Request line and header fields; None where they are too long or cut short."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
        return None


def _response(status: int, kind: str, body: bytes, more: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"X-Content-Type-Options: nosniff\r\nConnection: close\r\n{more}\r\n"
    )
    return head.encode("ascii") + body
