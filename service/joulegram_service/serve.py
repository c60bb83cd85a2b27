"""`joulegram serve`: run until a signal, or until something that cannot be mended fails."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import JoulegramError
from joulegram_pipeline.logs import set_up_logging, tell_of_loop, words_of
from joulegram_receiver.memory import settle_memory
from joulegram_service.sidecar import Sidecar
from joulegram_service.signals import stop_event

if TYPE_CHECKING:
    from joulegram_service.config import Config

log = logging.getLogger("joulegram")

SWITCH_S = 0.0005
"""How long a thread keeps the interpreter while another wants it: Python's 5 ms are most of what an acknowledgement may
take, and the engine works while requests come."""


def serve(config: Config) -> None:
    """Run the sidecar until SIGINT or SIGTERM.

    Raises:
        JoulegramError: it could not start, or its engine failed.
    """
    settle_memory()
    set_up_logging(config.telemetry.logs.level, config.telemetry.logs.encoding)
    sys.setswitchinterval(SWITCH_S)
    asyncio.run(_serve(config))


async def _serve(config: Config) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(tell_of_loop)
    stop = stop_event(loop)
    sidecar = Sidecar(config)
    async with sidecar:
        protocols = config.receiver.protocols
        log.info("OTLP/gRPC on %s, port %d", protocols.grpc.endpoint, sidecar.grpc_port)
        if protocols.http.endpoint is not None:
            log.info("OTLP/HTTP on %s, port %d", protocols.http.endpoint, sidecar.http_port)
        log.info("/metrics, /healthz, /readyz on port %d; data in %s", sidecar.health.port, config.data_dir)
        for warning in sidecar.receivers.warnings:
            log.warning("%s", warning)
        if config.carbon.region is None and config.carbon.factor is None:
            log.warning("no region and no factor: energy will be joined, carbon will not; give --region")
        waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(sidecar.engine.failed.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        log.info("stopping")
    if sidecar.engine.failure is not None:
        raise JoulegramError(f"the engine failed: {words_of(sidecar.engine.failure)}") from sidecar.engine.failure
