"""/metrics, /healthz, /readyz and /debug/pipelines on one small listener."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from joulegram_pipeline.errors import BusyError
from joulegram_service.pipelines_page import as_html, as_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from joulegram_pipeline.metrics import Metrics
    from joulegram_service.pipelines_page import Stage


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

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        """Wake once a second, for the date that answers carry; uvicorn's own wakes ten times to look for its end."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), 1.0)


class HealthServer:
    """Serves over HTTP; an async context manager.

    ``/healthz`` is 200 while the process lives and its engine runs; ``/readyz`` is 200 when nothing keeps it from
    taking and committing data, else 503 with the reasons; ``/metrics`` is Prometheus text; ``/debug/pipelines`` is a
    page of what each stage holds, ``?format=json`` for programs.

    Args:
        endpoint: host:port; port 0 takes a free one.
        metrics: what is published.
        alive: reasons for not being alive, empty if there are none.
        ready: reasons for not being ready.
        stages: what /debug/pipelines shows, in the order of the flow.

    Raises (on enter):
        BusyError: the port is taken.
    """

    def __init__(
        self,
        endpoint: str,
        metrics: Metrics,
        alive: Callable[[], list[str]],
        ready: Callable[[], list[str]],
        stages: Callable[[], list[Stage]],
    ) -> None:
        self._endpoint = endpoint
        self._metrics = metrics
        self._alive = alive
        self._ready = ready
        self._stages = stages
        self._task: asyncio.Task[None] | None = None
        self._server: _Server | None = None
        self._socket: socket.socket | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        host, _, port = self._endpoint.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, int(port)))
            # Here, because bind alone lets two in: the second would fail where nobody looks.
            listener.listen()
        except OSError as error:
            listener.close()
            raise BusyError(
                f"telemetry.metrics.endpoint: cannot listen on {self._endpoint!r}: {error.strerror or error}; "
                "give another --metrics-endpoint, or port 0 for a free one"
            ) from error
        self._socket = listener
        self.port = listener.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                self._app,
                interface="asgi3",
                lifespan="off",
                log_config=None,
                access_log=False,
                ws="none",
                http="h11",
                loop="asyncio",
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=16 * 1024,
                limit_concurrency=64,
            )
        )
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="health")
        await self._server.up.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._task is not None:
            self._server.end()
            await self._task
        if self._socket is not None:
            self._socket.close()

    async def _app(self, scope: dict[str, Any], _receive: Any, send: Any) -> None:
        status, kind, body = self._answer(
            scope.get("path", ""), scope.get("method", ""), scope.get("query_string", b"")
        )
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else body})

    def _answer(self, path: str, method: str, query: bytes) -> tuple[int, str, bytes]:
        if method not in {"GET", "HEAD"}:
            return 405, "text/plain; charset=utf-8", b"GET or HEAD\n"
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._metrics.registry)
        if path in {"/healthz", "/readyz"}:
            reasons = self._alive() if path == "/healthz" else [*self._alive(), *self._ready()]
            body = json.dumps({"status": "ok" if not reasons else "failing", "reasons": reasons}).encode() + b"\n"
            return 503 if reasons else 200, "application/json", body
        if path == "/debug/pipelines":
            if query == b"format=json":
                return 200, "application/json", as_json(self._stages())
            return 200, "text/html; charset=utf-8", as_html(self._stages())
        return 404, "text/plain; charset=utf-8", b"/metrics, /healthz, /readyz or /debug/pipelines\n"
