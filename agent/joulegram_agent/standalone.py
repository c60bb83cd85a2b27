"""The agent's own process: its arguments, its log, its signals and its exit codes.

Invariants:
    * only the standard library and what the agent needs of it is imported: the command line's libraries, which checked
      the arguments, were left behind with the process that this one replaced.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulegram_agent.main import Outside, run_agent
from joulegram_agent.pace import PacedLoop
from joulegram_pipeline.errors import ConfigError, JoulegramError
from joulegram_pipeline.logs import set_up_logging

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger("joulegram")

OK, FAILED, USAGE = 0, 1, 2

_AGENT: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--socket": ("socket", Path),
    "--source": ("source", str),
    "--sysfs-root": ("sysfs_root", Path),
    "--proc-root": ("proc_root", Path),
    "--cgroup-root": ("cgroup_root", Path),
    "--processes": ("processes", str),
    "--max-power": ("max_power_w", int),
    "--state": ("state", Path),
}
"""Flags, and what `run_agent` calls them."""

_OUTSIDE: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--version": ("version", str),
    "--user": ("user", str),
    "--group": ("group", str),
    "--allow-group": ("allow_groups", str),
    "--metrics": ("metrics", str),
    "--otlp-endpoint": ("otlp_endpoint", str),
    "--otlp-interval": ("otlp_interval_s", float),
    "--hw-id": ("hw_id", str),
}
"""The same for `Outside`."""

_REPEATED = "allow_groups"


def command(options: Mapping[str, Any]) -> list[str]:
    """What to execute for an agent with these arguments of `run_agent` and `Outside`; those that are None are left out.

    ``-P``: no module is taken from the folder it is started in, which may be anybody's.
    """
    flags: list[str] = []
    for flag, (name, _) in (_AGENT | _OUTSIDE).items():
        value = options.get(name)
        if value is not None:
            flags += [f"{flag}={each}" for each in (value if name == _REPEATED else [value])]
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
    set_up_logging()
    gc.freeze()  # what was imported stays: no collection has to go through it
    try:
        with asyncio.Runner(loop_factory=PacedLoop) as runner:
            runner.run(_run(_parse(arguments)))
    except JoulegramError as error:
        sys.stderr.write("".join(f"joulegram: {line}\n" for line in str(error).splitlines()))
        return USAGE if isinstance(error, ConfigError) else FAILED
    return OK


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    """What `run_agent` is called with."""
    options: dict[str, Any] = {}
    outside: dict[str, Any] = {}
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        known = _AGENT if flag in _AGENT else _OUTSIDE
        if flag not in known or not equals:
            raise ConfigError(
                "arguments", argument, "one of " + ", ".join(f"{each}=VALUE" for each in _AGENT | _OUTSIDE)
            )
        name, kind = known[flag]
        if name == _REPEATED:
            outside[name] = (*outside.get(name, ()), value)
        else:
            (options if known is _AGENT else outside)[name] = kind(value)
    return {**options, "outside": Outside(**outside)}


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
