"""The agent's own process: its arguments, its log, its signals and its exit codes.

Invariants:
    * only the standard library and what the agent needs of it is imported: the command line's libraries, which checked
      the arguments, were left behind with the process that this one replaced.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulegram_agent.main import run_agent
from joulegram_pipeline.errors import ConfigError, JoulegramError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger("joulegram")

OK, FAILED, USAGE = 0, 1, 2

_OPTIONS = {
    "--socket": ("socket", Path),
    "--source": ("source", str),
    "--sysfs-root": ("sysfs_root", Path),
    "--proc-root": ("proc_root", Path),
    "--cgroup-root": ("cgroup_root", Path),
    "--processes": ("processes", str),
    "--state": ("state", Path),
}
"""Flags of `joulegram agent` and what `run_agent` calls them."""


def command(options: Mapping[str, Any]) -> list[str]:
    """What to execute for an agent with these arguments of `run_agent`; those that are None are left out.

    ``-P``: no module is taken from the folder it is started in, which may be anybody's.
    """
    flags = [f"{flag}={options[name]}" for flag, (name, _) in _OPTIONS.items() if options.get(name) is not None]
    return [sys.executable, "-P", "-m", "joulegram_agent", *flags]


def become(options: Mapping[str, Any]) -> None:
    """Replace this process by the agent; never returns."""
    arguments = command(options)
    os.execv(arguments[0], arguments)  # noqa: S606 - our own interpreter, no shell


def main(arguments: Sequence[str]) -> int:
    """Run the agent until SIGINT or SIGTERM.

    Args:
        arguments: ``--flag=value`` each, as `command` gives them.

    Returns:
        The exit code.
    """
    _set_up_logging()
    try:
        asyncio.run(_run(_parse(arguments)))
    except JoulegramError as error:
        sys.stderr.write(f"joulegram: {error}\n")
        return USAGE if isinstance(error, ConfigError) else FAILED
    return OK


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag not in _OPTIONS or not equals:
            raise ConfigError("arguments", argument, "one of " + ", ".join(f"{each}=VALUE" for each in _OPTIONS))
        name, kind = _OPTIONS[flag]
        options[name] = kind(value)
    return options


async def _run(options: Mapping[str, Any]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    agent = asyncio.create_task(run_agent(**options))
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait([agent, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not agent.done():
        agent.cancel()
    try:
        await agent
    except asyncio.CancelledError:
        log.info("stopped")


def _set_up_logging() -> None:
    """One event a line on stderr, as the sidecar writes them."""
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
