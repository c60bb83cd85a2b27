"""The command line of the agent: `joulegram agent` itself, and `joulegram agent doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from joulegram_agent import DEFAULT_SOCKET
from joulegram_agent.counters import MAX_POWER_W

OK, FAILED = 0, 1

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)

SourceFlag = Annotated[
    str | None,
    typer.Option("--source", help="auto, powercap, msr, perf, hwmon, nvml, model or none.", show_default="auto"),
]
SysfsFlag = Annotated[
    Path | None, typer.Option("--sysfs-root", help="Where /sys is, or a copy of it.", show_default="/sys")
]
ProcFlag = Annotated[
    Path | None, typer.Option("--proc-root", help="Where /proc is, or a copy of it.", show_default="/proc")
]
CgroupFlag = Annotated[
    Path | None,
    typer.Option("--cgroup-root", help="Where /sys/fs/cgroup is, or a copy of it.", show_default="/sys/fs/cgroup"),
]
ProcessesFlag = Annotated[
    str | None,
    typer.Option("--processes", help="named: those a client asked for; all: every one.", show_default="named"),
]
MaxPowerFlag = Annotated[
    int, typer.Option("--max-power", help="Watts that no domain draws: a counter that says more is not believed.")
]

UserFlag = Annotated[
    str | None,
    typer.Option("--user", help="Become this user, without capabilities, when all is open.", show_default="stay"),
]
GroupFlag = Annotated[
    str | None,
    typer.Option("--group", help="Group of the socket, which may ask; and of --user.", show_default="the user's own"),
]
AllowFlag = Annotated[
    list[str] | None,
    typer.Option("--allow-group", help="Another group that may ask, where the socket lets it connect; repeatable."),
]
MetricsFlag = Annotated[
    str | None, typer.Option("--metrics", help="host:port for /metrics and /healthz.", show_default="none")
]
OtlpFlag = Annotated[
    str | None,
    typer.Option(
        "--otlp-endpoint", help="Send energy as OTLP to this URL, for a node without a sidecar.", show_default="none"
    ),
]
OtlpIntervalFlag = Annotated[float, typer.Option("--otlp-interval", help="Seconds between two of those.")]
HwIdFlag = Annotated[
    str | None,
    typer.Option(
        "--hw-id", help="Names this host in OTLP; needed for it, never the host's own name.", show_default="none"
    ),
]

AGENT_HELP = """Measure the node's energy and serve it on a Unix socket.

The privileged part: it reads energy counters, and the CPU time of processes and cgroups, and needs to read nothing
else. Where there are no counters it models, and says so. Started as root with --user it opens them and goes on
without privileges.

Example:

  joulegram agent --socket /run/joulegram/agent.sock --user joulegram

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
    proc_root: ProcFlag = None,
    cgroup_root: CgroupFlag = None,
    processes: ProcessesFlag = None,
    max_power: MaxPowerFlag = MAX_POWER_W,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            help="File in which the counts survive a restart of the agent.",
            show_default="agent-state.json beside the socket",
        ),
    ] = None,
    user: UserFlag = None,
    group: GroupFlag = None,
    allow_group: AllowFlag = None,
    metrics: MetricsFlag = None,
    otlp_endpoint: OtlpFlag = None,
    otlp_interval: OtlpIntervalFlag = 10.0,
    hw_id: HwIdFlag = None,
) -> None:
    """See AGENT_HELP."""
    if context.invoked_subcommand is not None:
        return
    from joulegram import __version__
    from joulegram_agent.standalone import become

    # A process that keeps nothing of this command line's libraries: the agent may be privileged, and is to be small.
    become(
        {
            "socket": socket,
            "source": source,
            "sysfs_root": sysfs_root,
            "proc_root": proc_root,
            "cgroup_root": cgroup_root,
            "processes": processes,
            "max_power_w": max_power,
            "state": state,
            "version": __version__,
            "user": user,
            "group": group,
            "allow_groups": allow_group,
            "metrics": metrics,
            "otlp_endpoint": otlp_endpoint,
            "otlp_interval_s": otlp_interval,
            "hw_id": hw_id,
        }
    )


@app.command(help=DOCTOR_HELP)
def doctor(
    sysfs_root: SysfsFlag = None,
    proc_root: ProcFlag = None,
    cgroup_root: CgroupFlag = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """See DOCTOR_HELP."""
    from joulegram_agent.doctor import examine

    diagnosis = examine(
        sysfs_root or Path("/sys"), proc_root or Path("/proc"), cgroup_root=cgroup_root or Path("/sys/fs/cgroup")
    )
    typer.echo(json.dumps(diagnosis.to_json()) if as_json else diagnosis.text())
    raise typer.Exit(OK if diagnosis.measures else FAILED)
