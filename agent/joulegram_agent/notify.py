"""What systemd is told: ready, alive, stopping (sd_notify(3)); nothing at all where it did not start us.

Invariants:
    * the watchdog hears of published ticks only, so an agent whose reads hang is restarted.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from joulegram_pipeline.life import Background

if TYPE_CHECKING:
    from collections.abc import Mapping

    from joulegram_agent.local import LocalAgent


def notify(state: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send lines such as ``READY=1`` to the service manager; False where there is none, or it does not listen."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in {"/", "@"}:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.setblocking(False)
        try:
            channel.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            return False
    return True


def watched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the service manager waits for signs of life of this process (sd_watchdog_enabled(3))."""
    pid = environment.get("WATCHDOG_PID", str(os.getpid()))
    return (
        environment.get("WATCHDOG_USEC", "0").isdigit()
        and environment.get("WATCHDOG_USEC", "0") != "0"
        and (pid == str(os.getpid()))
    )


class Watchdog(Background):
    """Gives a sign of life with each tick; an async context manager."""

    def __init__(self, agent: LocalAgent) -> None:
        super().__init__(self._run, "watchdog")
        self._agent = agent

    async def _run(self) -> None:
        while True:
            await self._agent.news()
            self._agent.check()
            notify("WATCHDOG=1")
