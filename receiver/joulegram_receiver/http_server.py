"""OTLP over HTTP: the life of the listener and of the server on it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from typing import TYPE_CHECKING, Any, Self

import uvicorn

from joulegram_receiver.http_app import OtlpApp
from joulegram_receiver.http_protocol import BoundedHttpProtocol, ConnectionLimits
from joulegram_receiver.listener import listening, parse_endpoint

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Iterator
    from types import TracebackType

    from joulegram_pipeline.metrics import Metrics
    from joulegram_receiver.intake import Intake

    ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

_KEY = "receiver.protocols.http.endpoint"
_BODY_TIMEOUT_S = 30.0
_KEEP_ALIVE_S = 120
"""Above the export interval of the SDKs (5 s for spans, 60 s for metrics), lest both ends decide at the same moment."""

_GRACE_S = 5.0


class _Server(uvicorn.Server):
    """Says when it is up, and leaves SIGINT and SIGTERM to the sidecar."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Have it finish what it has begun and end."""
        self.should_exit = True
        self._ending.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        """Wake once a second, for the date that answers carry; uvicorn's own wakes ten times to look for its end."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), 1.0)


class HttpReceiver:
    """The OTLP/HTTP server of a sidecar; an async context manager.

    Args:
        endpoint: ``host:port`` or ``unix:/path``; port 0 lets the system choose, `port` says which.
        intake: where requests go; entered before this and left after it. Its size limit is this one's.
        metrics: refused_requests.
        listener: bound and listening, in place of the endpoint; it is closed at the end.
        ssl_context: for TLS; plaintext if None.
        wrap: makes the application that is served of the one that takes requests: access control, CORS.
        limits: of connections and heads.
        body_timeout_s: how long a body may take to come.
        grace_s: how long requests under way may take at stop.

    Raises (on enter):
        ConfigError: the endpoint is not one.
        BusyError: another process holds the port or the socket.
    """

    def __init__(
        self,
        endpoint: str,
        intake: Intake,
        metrics: Metrics,
        *,
        listener: socket.socket | None = None,
        ssl_context: ssl.SSLContext | None = None,
        wrap: Callable[[ASGIApp], ASGIApp] | None = None,
        limits: ConnectionLimits | None = None,
        body_timeout_s: float = _BODY_TIMEOUT_S,
        grace_s: float = _GRACE_S,
    ) -> None:
        self.port = 0
        self._endpoint = endpoint
        self._metrics = metrics
        self._listener = listener
        self._limits = limits or ConnectionLimits()
        self._grace_s = grace_s
        self._ssl_context = ssl_context
        app: ASGIApp = OtlpApp(intake, body_timeout_s)
        self._app = app if wrap is None else wrap(app)
        self._stack = contextlib.ExitStack()
        self._task: asyncio.Task[None] | None = None
        self._server: _Server | None = None

    async def __aenter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            listener = self._listener
            if listener is None:
                listener = stack.enter_context(listening(parse_endpoint(self._endpoint, _KEY), _KEY))
            name = listener.getsockname()
            self.port = name[1] if isinstance(name, tuple) else 0
            self._server = _Server(self._config())
            self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="OTLP/HTTP")
            await self._server.up.wait()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if self._server is not None and self._task is not None:
                self._server.end()
                await self._task

    def _config(self) -> uvicorn.Config:
        context = self._ssl_context
        protocol: Any = functools.partial(BoundedHttpProtocol, limits=self._limits, count=self._count)
        return uvicorn.Config(
            self._app,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            http=protocol,
            loop="asyncio",
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(self._grace_s),
            ssl_context_factory=None if context is None else lambda _config, _default: context,
        )

    def _count(self, reason: str) -> None:
        """What is refused before its path is known has no signal."""
        self._metrics.refuse("unknown", reason)
