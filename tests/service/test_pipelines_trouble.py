"""/debug/pipelines under trouble: each stage's last error, with its time, there still when the trouble is over."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from joulegram_pipeline.errors import StorageError
from joulegram_service import engine
from joulegram_service.config_file import load_config
from joulegram_service.sidecar import Sidecar
from service.test_health import ask
from service.test_health_metrics import send
from simulators.agent_node import served
from simulators.otlp_server import OtlpServer
from simulators.traces import request, span

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from joulegram_service.config import Config

Page = dict[str, dict[str, Any]]


def config(tmp_path: Path, upstream: int | None = None, **agent: Any) -> Config:
    """A sidecar on free ports."""
    flags: dict[tuple[str, ...], Any] = {
        ("data_dir",): tmp_path / "data",
        ("receiver", "protocols", "grpc", "endpoint"): "127.0.0.1:0",
        ("receiver", "protocols", "http", "endpoint"): "127.0.0.1:0",
        ("telemetry", "metrics", "endpoint"): "127.0.0.1:0",
    }
    flags |= {("agent", key): value for key, value in (agent or {"source": "none"}).items()}
    if upstream is not None:
        flags["upstream", "endpoint"] = f"grpc://127.0.0.1:{upstream}"
    return load_config(None, flags, {})


async def page(sidecar: Sidecar) -> Page:
    """Its rows by name."""
    status, _, raw = await ask(sidecar.health.port, "/debug/pipelines?format=json")
    assert status == 200
    return {stage["name"]: stage for stage in json.loads(raw)["stages"]}


async def until(sidecar: Sidecar, holds: Callable[[Page], bool], what: str) -> Page:
    """The page, once it shows something."""
    deadline = time.monotonic() + 20
    while not holds(found := await page(sidecar)):
        assert time.monotonic() < deadline, f"{what} did not come: {found}"
        await asyncio.sleep(0.02)
    return found


def body(number: int = 1) -> bytes:
    now_ns = time.time_ns()
    return request(span(number, now_ns - 10**8, now_ns, name="etl.job"))


def is_over(stage: dict[str, Any], text: str) -> None:
    """It says what was wrong, and how long ago, which is more and more."""
    assert text in stage["last_error"], stage
    assert stage["since_s"] > 0, stage


def test_a_full_disk_is_there_after_there_is_room_again(tmp_path: Path) -> None:
    """Spool and receiver; /readyz is of the present, the page of the past too."""

    async def life() -> None:
        async with Sidecar(config(tmp_path)) as sidecar:
            clean = await page(sidecar)
            assert all(stage["last_error"] is stage["since_s"] is None for stage in clean.values())
            assert clean["spool"]["oldest_s"] is None
            room = sidecar.spool._gate
            free, room.min_free_bytes = room.min_free_bytes, 1 << 60
            assert await send(sidecar.grpc_port, "traces", body()) is grpc.StatusCode.UNAVAILABLE
            assert (await ask(sidecar.health.port, "/readyz"))[0] == 503
            during = (await page(sidecar))["spool"]
            assert "bytes are free" in during["last_error"]
            assert during["since_s"] == 0
            room.min_free_bytes = free
            assert await send(sidecar.grpc_port, "traces", body()) is grpc.StatusCode.OK
            assert (await ask(sidecar.health.port, "/readyz"))[0] == 200
            after = await page(sidecar)
            is_over(after["spool"], "bytes are free")
            is_over(after["receiver"], "traces refused: busy")
            assert after["spool"]["oldest_s"] > 0
            assert after["ledger"]["last_error"] is None

    asyncio.run(life())


def test_a_refused_upstream_is_there_after_it_took_all(tmp_path: Path) -> None:
    """The destination's last words, while nothing is left to send; the queue has an age while something is."""
    answers: list[grpc.StatusCode | None] = [None, grpc.StatusCode.UNAVAILABLE]

    async def life(port: int) -> None:
        async with Sidecar(config(tmp_path, port)) as sidecar:
            other = request(span(1, time.time_ns() - 1, time.time_ns(), name="other"))
            assert await send(sidecar.grpc_port, "traces", other) is grpc.StatusCode.OK
            found = await until(sidecar, lambda found: found["upstream upstream"]["holds"]["retries"] > 0, "a refusal")
            assert found["outbox"]["oldest_s"] > 0
            assert found["outbox"]["holds"]["memory_bytes"] > len(other)
            answers.pop()
            found = await until(
                sidecar, lambda found: found["upstream upstream"]["holds"]["backlog_bytes"] == 0, "the upstream"
            )
            is_over(found["upstream upstream"], "UNAVAILABLE")
            assert found["upstream upstream"]["oldest_s"] is found["outbox"]["oldest_s"] is None

    with OtlpServer(judge=lambda *_: answers[-1]) as upstream:
        asyncio.run(life(upstream.port))


def test_an_agent_that_was_away_is_there_after_it_came(tmp_path: Path) -> None:
    """Why there were no ticks, when there are."""

    async def life() -> None:
        async with Sidecar(config(tmp_path, socket=tmp_path / "agent.sock")) as sidecar:
            found = await until(sidecar, lambda found: found["agent"]["last_error"] is not None, "its absence")
            assert "agent.sock" in found["agent"]["last_error"]
            async with served(tmp_path) as (node, _):
                node.run(2)
                found = await until(sidecar, lambda found: found["ticks"]["holds"]["days"] == 1, "its ticks")
                is_over(found["agent"], "agent.sock")
                assert found["agent"]["oldest_s"] is not None

    asyncio.run(life())


@pytest.mark.parametrize(("sink", "row"), [("ledger", "ledger"), ("archive", "ticks"), ("documents", "documents")])
def test_a_sink_that_refused_is_there_after_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: str, row: str
) -> None:
    """In its own row and in the engine's, which has an unread record's age while it waits."""
    monkeypatch.setattr(engine, "RETRY_S", 0.01)
    refuses = [True]

    async def life() -> None:
        async with Sidecar(config(tmp_path, source="model")) as sidecar:
            target = getattr(sidecar._sinks, sink)
            for name in {"ledger": ["append", "append_lines"], "archive": ["append"], "documents": ["write"]}[sink]:
                monkeypatch.setattr(target, name, refusing(getattr(target, name)))
            assert await send(sidecar.grpc_port, "traces", body()) is grpc.StatusCode.OK
            assert await send(sidecar.grpc_port, "traces", body(2)) is grpc.StatusCode.OK
            found = await until(sidecar, lambda found: found[row]["last_error"] is not None, "a refusal")
            assert found["engine"]["last_error"] == f"{sidecar.engine.trouble}"
            assert found["engine"]["since_s"] == 0
            await until(sidecar, lambda found: found["engine"]["oldest_s"] is not None, "a record that waits")
            refuses.clear()
            found = await until(sidecar, lambda found: not found["engine"]["holds"]["unread_bytes"], "the sink")
            is_over(found[row], "no room here")
            is_over(found["engine"], "no room here")

    def refusing(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if refuses:
                raise StorageError("no room here")
            return work(*arguments, **options)

        return call

    asyncio.run(life())
