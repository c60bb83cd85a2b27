"""The command line of the spool: `joulegram spool inspect | repair | export`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from joulegram_pipeline.errors import JoulegramError, WireError

OK, FAILED, USAGE = 0, 1, 2

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at a spool, heal it, write out what it holds."
)

INSPECT_HELP = """Say what a spool holds: segments, records by kind, positions, times, bytes, damage.

Changes nothing and works beside a running sidecar, of which it sees a moment.

Example:

  joulegram spool inspect joulegram-data

Exit codes: 0 every record is whole; 1 something is damaged or missing; 2 there is no spool there.
"""

REPAIR_HELP = """Heal a spool that no sidecar runs on, and say what was done.

Cuts a torn end and keeps damaged bytes in quarantine/, as a start and reading do by themselves; writes damaged segment
headers anew. No whole record is touched. Where the end of the log is lost and a start refuses to use positions twice,
name the position it asks for with --continue-at.

Example:

  joulegram spool repair --dry-run joulegram-data

Exit codes: 0 done, or nothing to do; 1 it failed, or a sidecar runs on it; 2 there is no spool there.
"""

EXPORT_HELP = """Write the requests of a spool as OTLP JSON, one request a line.

As the file exporter of the OpenTelemetry Collector writes them. Reads only, beside a running sidecar too. Damaged
records are left out.

Example:

  joulegram spool export --signal traces --out spans.jsonl joulegram-data

Exit codes: 0 written; 1 a request could not be written; 2 there is no spool there, or --signal is none.
"""

DirectoryArgument = Annotated[Path, typer.Argument(help="The spool's directory, or the data directory it is in.")]


@app.command("inspect", help=INSPECT_HELP)
def inspect_command(
    directory: DirectoryArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """See INSPECT_HELP."""
    from joulegram_service.spool_tools import inspect

    _check(directory)
    try:
        report = inspect(directory)
    except JoulegramError as error:
        raise typer.Exit(_say(error, FAILED)) from error
    if as_json:
        import json

        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        typer.echo(report.text())
    raise typer.Exit(OK if report.ok else FAILED)


@app.command("repair", help=REPAIR_HELP)
def repair_command(
    directory: DirectoryArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    continue_at: Annotated[
        int | None, typer.Option("--continue-at", help="Position the log goes on at, if it ends before.", min=0)
    ] = None,
) -> None:
    """See REPAIR_HELP."""
    from joulegram_service.spool_tools import repair

    _check(directory)
    try:
        done = repair(directory, continue_at=continue_at, dry_run=dry_run)
    except JoulegramError as error:
        raise typer.Exit(_say(error, FAILED)) from error
    typer.echo("\n".join(done or ["nothing to do"]))


@app.command("export", help=EXPORT_HELP)
def export_command(
    directory: DirectoryArgument,
    signal: Annotated[
        str | None, typer.Option("--signal", help="traces, metrics, logs or profiles.", show_default="all")
    ] = None,
    from_lsn: Annotated[int, typer.Option("--from-lsn", help="Position to begin at.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write, which must not exist.", show_default="stdout")
    ] = None,
) -> None:
    """See EXPORT_HELP."""
    import orjson

    from joulegram_receiver.otlp_json import to_otlp_json
    from joulegram_receiver.signals import SIGNALS
    from joulegram_service.spool_tools import records

    _check(directory)
    chosen = {each.kind: each for each in SIGNALS if signal in (None, each.name)}
    if not chosen:
        typer.echo(f"joulegram: --signal: got {signal!r}, expected traces, metrics, logs or profiles", err=True)
        raise typer.Exit(USAGE)
    status = OK
    with ExitStack() as stack:
        try:
            target = sys.stdout.buffer if out is None else stack.enter_context(out.open("xb"))
        except OSError as error:
            typer.echo(f"joulegram: --out: got {str(out)!r}, expected a new file ({error.strerror})", err=True)
            raise typer.Exit(USAGE) from error
        try:
            for record in records(directory, frozenset(chosen), from_lsn):
                try:
                    tree = to_otlp_json(chosen[record.kind].parse(record.payload))
                except WireError as error:
                    status = _say(error, FAILED)
                    continue
                target.write(orjson.dumps(tree, option=orjson.OPT_APPEND_NEWLINE))
        except BrokenPipeError:
            return
        except OSError as error:
            typer.echo(f"joulegram: --out: {error}", err=True)
            raise typer.Exit(FAILED) from error
        except JoulegramError as error:
            raise typer.Exit(_say(error, FAILED)) from error
    raise typer.Exit(status)


def _check(directory: Path) -> None:
    from joulegram_service.spool_tools import spool_in

    try:
        spool_in(directory)
    except JoulegramError as error:
        typer.echo(f"joulegram: DIRECTORY: {error}", err=True)
        raise typer.Exit(USAGE) from error


def _say(error: JoulegramError, status: int) -> int:
    for line in str(error).splitlines():
        typer.echo(f"joulegram: {line}", err=True)
    return status
