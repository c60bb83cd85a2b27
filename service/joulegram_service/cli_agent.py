"""The command line of the agent: `joulegram agent` itself, and `joulegram agent doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from joulegram_agent import DEFAULT_SOCKET
from joulegram_pipeline.errors import ConfigError, JoulegramError

OK, FAILED, USAGE = 0, 1, 2

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)

SourceFlag = Annotated[
    str | None,
    typer.Option("--source", help="auto, powercap, msr, perf, hwmon, nvml, model or none.", show_default="auto"),
]
SysfsFlag = Annotated[
    Path | None, typer.Option("--sysfs-root", help="Where /sys is, or a copy of it.", show_default="/sys")
]

AGENT_HELP = """Measure the node's energy and serve it on a Unix socket.

The privileged part: it reads energy counters and needs to read nothing else. Where there are none it models, and
says so.

Example:

  joulegram agent --socket /run/joulegram/agent.sock

Exit codes: 0 stopped by SIGINT or SIGTERM; 1 it failed; 2 configuration.
"""

DOCTOR_HELP = """Say what of this machine's energy can be read, what not and why, and what would mend it.

Tries every source once, as the user it runs as: run it as the agent's. Nothing is changed.

Example:

  joulegram agent doctor

Exit codes: 0 CPU energy is measured; 1 it is not, or not all of it; 2 configuration.
"""


@app.callback(help=AGENT_HELP)
def agent(
    context: typer.Context,
    socket: Annotated[Path, typer.Option("--socket", help="Path of the socket; its mode is 0660.")] = DEFAULT_SOCKET,
    source: SourceFlag = None,
    sysfs_root: SysfsFlag = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            help="File in which the counts survive a restart of the agent.",
            show_default="agent-state.json beside the socket",
        ),
    ] = None,
) -> None:
    """See AGENT_HELP."""
    if context.invoked_subcommand is not None:
        return
    from joulegram_service.serve import measure

    try:
        measure(socket, source or "auto", sysfs_root or Path("/sys"), state)
    except JoulegramError as error:
        typer.echo(f"joulegram: {error}", err=True)
        raise typer.Exit(USAGE if isinstance(error, ConfigError) else FAILED) from error


@app.command(help=DOCTOR_HELP)
def doctor(
    sysfs_root: SysfsFlag = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """See DOCTOR_HELP."""
    from joulegram_agent.doctor import examine

    diagnosis = examine(sysfs_root or Path("/sys"))
    typer.echo(json.dumps(diagnosis.to_json()) if as_json else diagnosis.text())
    raise typer.Exit(OK if diagnosis.measures else FAILED)
