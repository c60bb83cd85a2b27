"""/metrics, /healthz and /readyz of a real sidecar, and a start that leaves nothing behind when it fails (design 2)."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_pipeline.errors import BusyError
from joulegram_pipeline.files import DirectoryLock
from joulegram_pipeline.metrics import Metrics
from joulegram_service.config_file import load_config
from joulegram_service.health import HealthServer
from joulegram_service.sidecar import Sidecar
from simulators.ports import free_port
from simulators.traces import request, span

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from joulegram_service.config import Config


def config(data_dir: Path, **endpoints: str) -> Config:
    """A sidecar without energy on free ports."""
    flags: dict[tuple[str, ...], Any] = {
        ("data_dir",): data_dir,
        ("agent", "source"): "none",
        ("receiver", "protocols", "grpc", "endpoint"): endpoints.get("grpc", "127.0.0.1:0"),
        ("receiver", "protocols", "http", "endpoint"): "127.0.0.1:0",
        ("telemetry", "metrics", "endpoint"): endpoints.get("metrics", "127.0.0.1:0"),
    }
    return load_config(None, flags, {})


async def ask(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body, over a socket."""

    def work() -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    return await asyncio.to_thread(work)


def with_sidecar(tmp_path: Path, work: Callable[[Sidecar], Coroutine[Any, Any, None]]) -> None:
    """Do something with a sidecar that runs."""

    async def life() -> None:
        async with Sidecar(config(tmp_path / "data")) as sidecar:
            await work(sidecar)

    asyncio.run(life())


def test_the_page_of_pipelines_shows_what_each_stage_holds(tmp_path: Path) -> None:
    """Issue 4: what each stage holds, oldest item, last error; for people, and for programs with ?format=json."""

    async def work(sidecar: Sidecar) -> None:
        now_ns = time.time_ns()
        body = request(span(1, now_ns - 10**8, now_ns, name="etl.job"))
        await sidecar.receive_span(body)
        await sidecar.engine.drain(5)
        status, headers, page = await ask(sidecar.health.port, "/debug/pipelines")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        status, headers, raw = await ask(sidecar.health.port, "/debug/pipelines?format=json")
        assert (status, headers["content-type"]) == (200, "application/json")
        stages = {stage["name"]: stage for stage in json.loads(raw)["stages"]}
        rows = ["receiver", "spool", "agent", "engine", "join", "ticks", "ledger", "documents"]
        assert [*stages] == rows
        assert all(name.encode() in page for name in stages)
        assert stages["join"]["holds"]["spans"] == 1
        assert stages["join"]["oldest_s"] is not None
        assert stages["spool"]["holds"]["bytes"] > len(body)
        assert all(stage["last_error"] is None for stage in stages.values())

    with_sidecar(tmp_path, work)


def test_a_sidecar_that_runs_is_alive_and_ready(tmp_path: Path) -> None:
    """200 and JSON without reasons."""

    async def work(sidecar: Sidecar) -> None:
        for path in ("/healthz", "/readyz"):
            status, headers, body = await ask(sidecar.health.port, path)
            assert status == 200
            assert headers["content-type"] == "application/json"
            assert json.loads(body) == {"status": "ok", "reasons": []}

    with_sidecar(tmp_path, work)


def test_trouble_keeps_it_from_being_ready_and_failure_from_being_alive(tmp_path: Path) -> None:
    """A sink that refuses is 503 of /readyz with the reason; an engine that ended is 503 of both."""

    async def work(sidecar: Sidecar) -> None:
        sidecar.engine.trouble = "ledger: No space left on device"
        status, _, body = await ask(sidecar.health.port, "/readyz")
        assert (status, json.loads(body)["reasons"]) == (503, ["ledger: No space left on device"])
        assert (await ask(sidecar.health.port, "/healthz"))[0] == 200
        sidecar.engine.trouble = None
        sidecar.engine.failure = RuntimeError("it broke")
        for path in ("/healthz", "/readyz"):
            status, _, body = await ask(sidecar.health.port, path)
            assert (status, json.loads(body)) == (
                503,
                {"status": "failing", "reasons": ["engine: RuntimeError: it broke"]},
            )
        sidecar.engine.failure = None

    with_sidecar(tmp_path, work)


def test_metrics_are_prometheus_text_with_every_name(tmp_path: Path) -> None:
    """Each family of Metrics is there with help and type, as a scraper reads it."""

    async def work(sidecar: Sidecar) -> None:
        status, headers, body = await ask(sidecar.health.port, "/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=")
        text = body.decode()
        for family in Metrics().registry.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            assert f"# HELP {name} {family.documentation}\n" in text
            assert f"# TYPE {name} {family.type}\n" in text

    with_sidecar(tmp_path, work)


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_head_is_get_without_a_body(tmp_path: Path, path: str) -> None:
    """The same status and length, no byte of it."""

    async def work(sidecar: Sidecar) -> None:
        # Raw, because a client's library drops a body that should not be there.
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.health.port)
        writer.write(f"HEAD {path} HTTP/1.1\r\nHost: joulegram\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert re.search(rb"\r\ncontent-length: [1-9]", head)
        assert body == b""

    with_sidecar(tmp_path, work)


REFUSED = [
    ("GET", "/", 404),
    ("GET", "/metrics/", 404),
    ("GET", "/healthz/../etc/passwd", 404),
    ("POST", "/metrics", 405),
    ("DELETE", "/readyz", 405),
    ("POST", "/nothing", 405),
]


def test_anything_else_is_refused(tmp_path: Path) -> None:
    """404 names the pages there are, 405 the methods; a query is no other page."""

    async def work(sidecar: Sidecar) -> None:
        for method, path, expected in REFUSED:
            status, _, body = await ask(sidecar.health.port, path, method)
            assert status == expected, (method, path)
            pages = b"/metrics, /healthz, /readyz or /debug/pipelines\n"
            assert body == (b"GET or HEAD\n" if expected == 405 else pages)
        assert (await ask(sidecar.health.port, "/healthz?verbose=1"))[0] == 200

    with_sidecar(tmp_path, work)


def test_a_sidecar_can_be_started_again_in_one_process(tmp_path: Path) -> None:
    """The same data directory and the same ports, one after the other; and two of them side by side."""

    async def life() -> None:
        async with Sidecar(config(tmp_path / "a")) as first:
            ports = {"grpc": f"127.0.0.1:{first.grpc_port}", "metrics": f"127.0.0.1:{first.health.port}"}
        async with Sidecar(config(tmp_path / "a", **ports)) as again, Sidecar(config(tmp_path / "b")) as other:
            assert (again.grpc_port, again.health.port) == (first.grpc_port, first.health.port)
            for sidecar in (again, other):
                assert (await ask(sidecar.health.port, "/readyz"))[0] == 200
            again.metrics.ledger_lines.inc(5)
            assert b"joulegram_sink_ledger_lines_total 5" not in (await ask(other.health.port, "/metrics"))[2]

    asyncio.run(life())


def test_one_sidecar_can_live_twice(tmp_path: Path) -> None:
    """The object itself may be entered again once it was left."""

    async def life() -> None:
        sidecar = Sidecar(config(tmp_path / "data"))
        for _ in range(2):
            async with sidecar:
                assert (await ask(sidecar.health.port, "/readyz"))[0] == 200

    asyncio.run(life())


def test_two_sidecars_may_not_share_a_data_directory(tmp_path: Path) -> None:
    """In one process either; the first is not disturbed."""

    async def life() -> None:
        async with Sidecar(config(tmp_path / "data")) as first:
            with pytest.raises(BusyError, match="in use by another joulegram"):
                async with Sidecar(config(tmp_path / "data")):
                    pass
            assert (await ask(first.health.port, "/readyz"))[0] == 200

    asyncio.run(life())


def test_a_start_that_fails_at_the_end_is_undone(tmp_path: Path) -> None:
    """The metrics port is taken: gRPC port and data directory are free again, and a second start succeeds."""
    grpc_port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        metrics = f"127.0.0.1:{taken.getsockname()[1]}"

        async def fails() -> None:
            with pytest.raises(BusyError, match=re.escape(f"telemetry.metrics.endpoint: cannot listen on {metrics!r}")):
                async with Sidecar(config(tmp_path, grpc=f"127.0.0.1:{grpc_port}", metrics=metrics)):
                    pass

        asyncio.run(fails())
        with DirectoryLock(tmp_path):
            pass
        with socket.create_server(("127.0.0.1", grpc_port)):
            pass

    async def succeeds() -> None:
        async with Sidecar(config(tmp_path, grpc=f"127.0.0.1:{grpc_port}")) as sidecar:
            assert sidecar.grpc_port == grpc_port

    asyncio.run(succeeds())


def test_a_taken_grpc_port_undoes_the_start_too(tmp_path: Path) -> None:
    """The message quotes the endpoint; the data directory is free again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"

        async def fails() -> None:
            with pytest.raises(BusyError, match=f"{re.escape(endpoint)}.*in use"):
                async with Sidecar(config(tmp_path, grpc=endpoint)):
                    pass

        asyncio.run(fails())
    with DirectoryLock(tmp_path):
        pass


def test_a_port_that_is_bound_but_not_yet_listened_on_does_not_hang_the_start() -> None:
    """Two that start at once: bind lets both in, so the loser must see it and say so instead of waiting for ever."""

    async def race() -> None:
        with socket.socket() as rival:
            rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            rival.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{rival.getsockname()[1]}"
            server = HealthServer(endpoint, Metrics(), list, list, list)
            # Runs when the start first waits: between its bind and the moment its server would listen.
            asyncio.get_running_loop().call_soon(lambda: contest(rival))
            async with asyncio.timeout(5), server:
                assert (await ask(server.port, "/healthz"))[0] == 200

    def contest(rival: socket.socket) -> None:
        with pytest.raises(OSError, match="in use"):
            rival.listen()

    asyncio.run(race())


@pytest.mark.parametrize("endpoint", ["[::1]:0", "localhost:0"])
def test_endpoints_may_be_names_and_ipv6(endpoint: str) -> None:
    """What the configuration takes for an endpoint is one."""

    async def life() -> None:
        async with HealthServer(endpoint, Metrics(), list, list, list) as server:
            assert server.port > 0

    asyncio.run(life())


def test_a_host_that_is_none_is_said(tmp_path: Path) -> None:
    """The endpoint is quoted with the resolver's answer."""

    async def life() -> None:
        async with HealthServer("no.such.host.invalid:0", Metrics(), list, list, list):
            pass

    with pytest.raises(BusyError, match=r"cannot listen on 'no\.such\.host\.invalid:0'"):
        asyncio.run(life())
