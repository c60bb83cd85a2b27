"""An answer over HTTP says that a request is on disk, or when to come again."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from threading import Event
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import code_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.wal import WriteAheadLog
from joulegram_receiver.admission import Admission
from joulegram_receiver.otlp_json import to_otlp_json
from simulators.held_sync import HeldSync
from simulators.receivers import JSON, PROTOBUF, Receivers, receivers, span, traces

if TYPE_CHECKING:
    from pathlib import Path

ONE = traces(span())


def test_no_acknowledgement_before_the_sync(tmp_path: Path) -> None:
    """The answer does not come while fdatasync has not."""
    sync = HeldSync()

    async def main() -> None:
        async with receivers(tmp_path, log=WriteAheadLog(tmp_path, sync=sync)) as running:
            call = asyncio.create_task(running.post(ONE))
            assert await asyncio.to_thread(sync.begun.wait, 20)
            done, _ = await asyncio.wait([call], timeout=0.2)
            assert not done
            sync.go.set()
            assert (await call).status == 200

    asyncio.run(main())


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_a_disk_that_fails_is_503_with_retry_after(tmp_path: Path, kind: str) -> None:
    """H7: what is not on disk is not acknowledged; the client tries again."""

    def sync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def main() -> None:
        async with receivers(tmp_path, log=WriteAheadLog(tmp_path, sync=sync)) as running:
            text = json.dumps(to_otlp_json(ExportTraceServiceRequest.FromString(ONE))).encode()
            answer = await running.post(ONE if kind == PROTOBUF else text, kind=kind)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert answer.said().code == code_pb2.UNAVAILABLE
            (detail,) = answer.details()
            assert detail.retry_delay.seconds == 1
            assert running.metric("refused_requests", signal="traces", reason="storage") == 1

    asyncio.run(main())


@pytest.mark.parametrize("over", ["http", "grpc"])
def test_a_backlog_refuses_and_says_how_long(tmp_path: Path, over: str) -> None:
    """Admission: refused before it is parsed, with a delay that says how full things are."""
    full = [1.0]
    admission = Admission(backlog=lambda: full[0])

    async def refusal(running: Receivers) -> int:
        if over == "http":
            answer = await running.post(b"\xff")
            assert answer.status == 503
            return int(answer.headers["retry-after"])
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await running.export(b"\xff")
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        return 30

    async def main() -> None:
        async with receivers(tmp_path, intake={"admission": admission}) as running:
            assert await refusal(running) == 30
            assert running.metric("refused_requests", signal="traces", reason="busy") == 1
            full[0] = 0.5
            assert (await running.post(ONE)).status == 200
            assert admission.held_bytes == 0

    asyncio.run(main())


def test_requests_in_flight_are_bounded(tmp_path: Path) -> None:
    """While one is held by a slow disk there is no room for another of its size, and there is after."""
    begun, go = Event(), Event()
    request = traces(span(name="n" * 5000))

    def sync(fd: int) -> None:
        begun.set()
        assert go.wait(20)

    async def main() -> None:
        options = {"admission": Admission(len(request) + 100)}
        async with receivers(tmp_path, log=WriteAheadLog(tmp_path, sync=sync), intake=options) as running:
            first = asyncio.create_task(running.post(request))
            assert await asyncio.to_thread(begun.wait, 20)
            for body in (request, [request]):
                answer = await running.post(body)
                assert answer.status == 503
                assert f"{len(request)} bytes of requests are in flight" in answer.said().message
            go.set()
            assert (await first).status == 200
            assert (await running.post(request)).status == 200

    asyncio.run(main())


def test_a_request_under_way_at_stop_is_answered(tmp_path: Path) -> None:
    """Leaving gives requests under way their grace."""
    sync = HeldSync()

    async def main() -> None:
        async with receivers(tmp_path, log=WriteAheadLog(tmp_path, sync=sync), http_options={"grace_s": 5}) as running:
            call = asyncio.create_task(running.post(ONE))
            assert await asyncio.to_thread(sync.begun.wait, 20)
            asyncio.get_running_loop().call_later(0.1, sync.go.set)
        assert (await call).status == 200

    asyncio.run(main())
