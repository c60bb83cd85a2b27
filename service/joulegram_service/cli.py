"""The command line: `joulegram run | serve | agent [doctor] | validate | ledger verify | spool … | version`.

Everything heavy is imported inside the command that needs it, so that `--help` stays quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from joulegram_pipeline.errors import ConfigError, JoulegramError
from joulegram_service.cli_agent import CgroupFlag, ProcessesFlag, ProcFlag, SourceFlag, SysfsFlag
from joulegram_service.cli_agent import app as agent_app
from joulegram_service.cli_spool import app as spool_app

if TYPE_CHECKING:
    from joulegram_service.config import Config

OK, FAILED, USAGE = 0, 1, 2
OWN_FAILURE = 125
"""Of `joulegram run`: joulegram itself failed, as with env(1), timeout(1) and docker run."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="joulegram: joules in, grams out. Turns the OpenTelemetry jobs already send into an auditable energy and "
    "carbon record.",
)
ledger_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Read what was recorded.")
app.add_typer(ledger_app, name="ledger")
app.add_typer(agent_app, name="agent")
app.add_typer(spool_app, name="spool")

ConfigFlag = Annotated[
    Path | None, typer.Option("--config", help="Configuration file (docs/configuration.md).", show_default="none")
]
DataDirFlag = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where everything is written.", show_default="./joulegram-data"),
]
RegionFlag = Annotated[
    str | None,
    typer.Option(
        "--region", help="Grid region: egrid:SPNO, iso3:DEU, ba:MISO, or an alias as SPP_KS.", show_default="none"
    ),
]
UpstreamFlag = Annotated[
    str | None,
    typer.Option("--upstream", help="Forward to grpc://, grpcs://, http:// or https://host:port.", show_default="none"),
]
GrpcFlag = Annotated[
    str | None, typer.Option("--grpc-endpoint", help="OTLP/gRPC listener.", show_default="127.0.0.1:4317")
]
HttpFlag = Annotated[
    str | None,
    typer.Option("--http-endpoint", help="OTLP/HTTP listener, protobuf and JSON.", show_default="127.0.0.1:4318"),
]
MetricsFlag = Annotated[
    str | None,
    typer.Option("--metrics-endpoint", help="/metrics, /healthz and /readyz.", show_default="127.0.0.1:9464"),
]
SocketFlag = Annotated[
    Path | None,
    typer.Option(
        "--agent-socket",
        help="Socket of a running `joulegram agent`.",
        show_default="/run/joulegram/agent.sock where it may be used, else an agent of its own",
    ),
]
FactorFlag = Annotated[
    str | None,
    typer.Option("--emission-factor", help="Declared factor in kg/kWh, instead of a table.", show_default="none"),
]
FactorSourceFlag = Annotated[
    str | None,
    typer.Option("--emission-factor-source", help="Who declares it; required with it.", show_default="none"),
]

RUN_HELP = """Run a command and say what it spent.

Starts an agent and a sidecar on free loopback ports, points OTEL_EXPORTER_OTLP_ENDPOINT at it, runs COMMAND, and prints
its spans with their energy and carbon, what the run adds up to, and where the records are. A command without
OpenTelemetry gets one root span `etl.job`.

Example:

  joulegram run --region SPP_KS -- python examples/nightly_etl.py

Exit codes: that of COMMAND, 128+n if signal n ended it; 125 joulegram failed, 126 COMMAND cannot be executed,
127 COMMAND was not found; 2 also where a flag of joulegram is wrong.
"""

SERVE_HELP = """Run the sidecar until it is told to stop.

Takes OTLP/gRPC, joins energy and carbon to ETL spans, records them, and forwards everything. Runs without a file.
A flag beats the environment, which beats the file.

Example:

  joulegram serve --region iso3:DEU --upstream grpc://collector:4317

Exit codes: 0 stopped by SIGINT or SIGTERM, all taken data recorded or in the spool; 1 it failed; 2 configuration.
"""

VALIDATE_HELP = """Check a configuration without starting anything; all faults at once.

Example:

  joulegram validate --config joulegram.yaml

Exit codes: 0 it can be used; 2 it cannot.
"""

VERIFY_HELP = """Check a ledger line by line: canonical form, sequence, hash chain, positions.

Says what is covered and what is not: lines cut off whole at the end show only against a head you kept.

Example:

  joulegram ledger verify joulegram-data/ledger/telemetry

Exit codes: 0 nothing wrong; 1 a line is not what it was, or the files are gone; 2 there is no such directory.
"""


@app.command(help=RUN_HELP, context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after `--`.")],
    config: ConfigFlag = None,
    data_dir: DataDirFlag = None,
    region: RegionFlag = None,
    upstream: UpstreamFlag = None,
    agent_socket: SocketFlag = None,
    source: SourceFlag = None,
    sysfs_root: SysfsFlag = None,
    proc_root: ProcFlag = None,
    cgroup_root: CgroupFlag = None,
    processes: ProcessesFlag = None,
    emission_factor: FactorFlag = None,
    emission_factor_source: FactorSourceFlag = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON; the command's stdout goes to stderr.")
    ] = False,
) -> None:
    """See RUN_HELP."""
    from joulegram_service.run import Launch, run_command

    if command[0] == "--":
        command = command[1:]
    # Forked before anything that starts threads is imported; it waits for its environment.
    launch = Launch(command, quiet=as_json) if command else None
    if launch is None:
        raise typer.Exit(_usage("run: got no command, expected one after `--`"))
    try:
        settings = _config(
            config,
            data_dir=data_dir,
            region=region,
            upstream=upstream,
            agent_socket=agent_socket,
            source=source,
            sysfs_root=sysfs_root,
            proc_root=proc_root,
            cgroup_root=cgroup_root,
            processes=processes,
            emission_factor=emission_factor,
            emission_factor_source=emission_factor_source,
            grpc_endpoint="127.0.0.1:0",
            http_endpoint="127.0.0.1:0",
            metrics_endpoint="127.0.0.1:0",
        )
        status = run_command(launch, settings, as_json=as_json)
    except JoulegramError as error:
        launch.abandon()
        _say(error)
        raise typer.Exit(OWN_FAILURE) from error
    raise typer.Exit(status)


@app.command(help=SERVE_HELP)
def serve(
    config: ConfigFlag = None,
    grpc_endpoint: GrpcFlag = None,
    http_endpoint: HttpFlag = None,
    metrics_endpoint: MetricsFlag = None,
    data_dir: DataDirFlag = None,
    upstream: UpstreamFlag = None,
    agent_socket: SocketFlag = None,
    source: SourceFlag = None,
    sysfs_root: SysfsFlag = None,
    proc_root: ProcFlag = None,
    cgroup_root: CgroupFlag = None,
    processes: ProcessesFlag = None,
    region: RegionFlag = None,
    emission_factor: FactorFlag = None,
    emission_factor_source: FactorSourceFlag = None,
) -> None:
    """See SERVE_HELP."""
    settings = _checked(
        config,
        grpc_endpoint=grpc_endpoint,
        http_endpoint=http_endpoint,
        metrics_endpoint=metrics_endpoint,
        data_dir=data_dir,
        upstream=upstream,
        agent_socket=agent_socket,
        source=source,
        sysfs_root=sysfs_root,
        proc_root=proc_root,
        cgroup_root=cgroup_root,
        processes=processes,
        region=region,
        emission_factor=emission_factor,
        emission_factor_source=emission_factor_source,
    )
    from joulegram_service import handover

    handover.become(settings)


@app.command(help=VALIDATE_HELP)
def validate(
    config: ConfigFlag = None, data_dir: DataDirFlag = None, region: RegionFlag = None, upstream: UpstreamFlag = None
) -> None:
    """See VALIDATE_HELP."""
    from joulegram_service.carbon_model import build_carbon
    from joulegram_service.config_file import ConfigFaultsError
    from joulegram_service.hops import build_hops

    faults: list[ConfigError] = []
    try:
        settings = _config(config, data_dir=data_dir, region=region, upstream=upstream)
    except ConfigFaultsError as error:
        faults, settings = [error], error.rest
    except ConfigError as error:
        _say(error)
        raise typer.Exit(USAGE) from error
    identity = None
    try:
        _, identity = build_carbon(settings)
    except ConfigError as error:
        faults.append(error)
    try:
        build_hops(settings)
    except ConfigError as error:
        faults.append(error)
    if faults or identity is None:
        for fault in faults:
            _say(fault)
        raise typer.Exit(USAGE)
    typer.echo(f"configuration: ok\nfactor: {identity.factor_source}\nregion: {identity.region or 'none'}")


@ledger_app.command("verify", help=VERIFY_HELP)
def ledger_verify(
    directory: Annotated[Path, typer.Argument(help="The ledger's directory.")],
    expect_head: Annotated[
        str | None, typer.Option("--expect-head", help="Head hash you kept, as sha256:<hex>.")
    ] = None,
    expect_lines: Annotated[int | None, typer.Option("--expect-lines", help="Number of lines you kept.", min=1)] = None,
) -> None:
    """See VERIFY_HELP."""
    from joulegram_sink.ledger_verify import verify

    if not directory.is_dir():
        raise typer.Exit(_usage(f"DIRECTORY: got {str(directory)!r}, expected a directory that holds a ledger"))
    try:
        report = verify(directory, expect_head, expect_lines)
    except JoulegramError as error:
        _say(error)
        raise typer.Exit(USAGE) from error
    typer.echo(report.text())
    raise typer.Exit(OK if report.ok else FAILED)


@app.command(
    help="Print the version, and whether the compiled parts are in use.\n\n"
    "Example:\n\n  joulegram version\n\nExit codes: 0."
)
def version() -> None:
    """Print the version, and whether the compiled parts are in use."""
    from joulegram import __version__
    from joulegram import native as native_sdk
    from joulegram_processor import native

    typer.echo(f"joulegram {__version__}")
    typer.echo(f"native: {native.state()}")
    typer.echo(f"native in the SDK: {native_sdk.state()}")


FLAGS: dict[str, tuple[str, ...]] = {
    "agent_socket": ("agent", "socket"),
    "cgroup_root": ("agent", "cgroup_root"),
    "data_dir": ("data_dir",),
    "emission_factor": ("carbon", "factor", "kg_per_kwh"),
    "emission_factor_source": ("carbon", "factor", "source"),
    "grpc_endpoint": ("receiver", "protocols", "grpc", "endpoint"),
    "http_endpoint": ("receiver", "protocols", "http", "endpoint"),
    "metrics_endpoint": ("telemetry", "metrics", "endpoint"),
    "proc_root": ("agent", "proc_root"),
    "processes": ("agent", "processes"),
    "region": ("carbon", "region"),
    "source": ("agent", "source"),
    "sysfs_root": ("agent", "sysfs_root"),
    "upstream": ("upstream", "endpoint"),
}
"""Flags and the keys they override."""

_FLAG_NAMES = {keys: f"--{name.replace('_', '-')}" for name, keys in FLAGS.items()}


def _config(path: Path | None, **flags: Any) -> Config:
    from joulegram_service.config_file import load_config

    given = {FLAGS[name]: value for name, value in flags.items() if value is not None}
    return load_config(path, given, flag_names=_FLAG_NAMES)


def _checked(path: Path | None, **flags: Any) -> Config:
    try:
        return _config(path, **flags)
    except ConfigError as error:
        _say(error)
        raise typer.Exit(USAGE) from error


def _say(error: JoulegramError) -> None:
    for line in str(error).splitlines():
        typer.echo(f"joulegram: {line}", err=True)


def _usage(text: str) -> int:
    typer.echo(f"joulegram: {text}", err=True)
    return USAGE


def main() -> None:
    """Entry point."""
    sys.exit(app())
