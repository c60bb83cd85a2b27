"""`joulegram agent`: run until a signal, or until something that cannot be mended fails.

Invariants:
    * nothing of the sidecar is imported here: this is the privileged process.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from joulegram_agent.main import run_agent
from joulegram_service.logs import set_up_logging
from joulegram_service.signals import stop_event

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_agent.main import Outside

log = logging.getLogger("joulegram")


def measure(
    socket: Path, source: str, sysfs_root: Path, state: Path | None = None, outside: Outside | None = None
) -> None:
    """Run the agent until SIGINT or SIGTERM.

    Raises:
        JoulegramError: it could not start.
    """
    set_up_logging()
    asyncio.run(_measure(socket, source, sysfs_root, state, outside))


async def _measure(socket: Path, source: str, sysfs_root: Path, state: Path | None, outside: Outside | None) -> None:
    stop = stop_event(asyncio.get_running_loop())
    agent = asyncio.create_task(run_agent(socket, source, sysfs_root=sysfs_root, state=state, outside=outside))
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait([agent, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not agent.done():
        agent.cancel()
    try:
        await agent
    except asyncio.CancelledError:
        log.info("stopped")
