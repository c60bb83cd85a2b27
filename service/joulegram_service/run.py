"""`joulegram run -- COMMAND`: a sidecar around one command, and a summary when it is over."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.errors import JoulegramError
from joulegram_pipeline.ids import check_run_id, new_run_id
from joulegram_service.launch import CannotExecuteError, Launch
from joulegram_service.run_processes import RunProcesses, table
from joulegram_service.run_upstream import ENDPOINT, PROTOCOL, implied_upstream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from joulegram.window import WindowEnergy
    from joulegram_service.config import Config
    from joulegram_service.run_processes import ProcessRow
    from joulegram_service.sidecar import Sidecar

__all__ = ["Launch", "run_command"]

SETTLE_S = 6.0
"""How long the energy of the command's last second is waited for; a tick takes one."""

_LOOPBACK = "127.0.0.1"
_OVERRIDING = (
    "OTEL_EXPORTER_OTLP_INSECURE",
    *(
        f"OTEL_EXPORTER_OTLP_{signal_name}_{what}"
        for signal_name in ("TRACES", "METRICS", "LOGS")
        for what in ("ENDPOINT", "PROTOCOL", "INSECURE")
    ),
)
"""Variables that would send the command's telemetry elsewhere, or with TLS to a listener that has none."""

_PROXIES = ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy")
_NO_PROXY = ("no_proxy", "NO_PROXY")


def run_command(launch: Launch, config: Config, *, as_json: bool) -> int:
    """Run a command under a sidecar of its own and print what it spent.

    Returns:
        The exit status: the command's, or 126 or 127.

    Raises:
        JoulegramError: the sidecar could not start; the command was not executed.
    """
    from joulegram_pipeline.logs import set_up_logging

    set_up_logging("warning")
    try:
        return asyncio.run(_run(launch, config, as_json=as_json))
    except CannotExecuteError as error:
        sys.stderr.write(f"joulegram: {error}\n")
        return error.status


async def _run(launch: Launch, config: Config, *, as_json: bool) -> int:
    from joulegram_service.sidecar import Sidecar

    run_id = check_run_id(os.environ.get("KFM_RUN_ID") or new_run_id())
    if config.upstream.endpoint is None and not config.upstream.destinations:
        config = _with_upstream(config, os.environ)
    loop = asyncio.get_running_loop()
    sidecar = Sidecar(config, default_run=run_id)
    async with sidecar:
        await sidecar.begin_run(run_id, launch.pid)
        for number in (signal.SIGINT, signal.SIGTERM):  # before the command can be seen to run
            loop.add_signal_handler(number, launch.signal, number)
        start_ns = time.time_ns()
        processes = RunProcesses(launch.pid, _program(launch.command), sidecar.agent, start_ns, config.agent.proc_root)
        async with processes:
            launch.start(_environment(os.environ, sidecar.grpc_port, sidecar.http_port, run_id))
            status = await asyncio.to_thread(launch.wait)
        end_ns = time.time_ns()
        with _progress("waiting for the energy of the command's last second"):
            await sidecar.engine.drain(SETTLE_S)
            if not sidecar.has_spans:
                await sidecar.receive_span(root_span(launch.command, run_id, start_ns, end_ns, status))
            settled = await sidecar.end_run(run_id, "error" if status else "ok", SETTLE_S)
            spent = await processes.rows(launch.cpu_ns, end_ns)
    if not settled:
        sys.stderr.write(
            f"joulegram: not all of the run was recorded within {SETTLE_S:g} s; the rest is in "
            f"{str(sidecar.layout.spool)!r} and is recorded when a sidecar next starts on this data directory\n"
        )
    _summarise(sidecar, run_id, *spent, as_json=as_json)
    return status


def _progress(text: str) -> AbstractContextManager[Any]:
    """Something to look at while nothing is printed; nothing at all where nobody looks."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


def _environment(environ: Mapping[str, str], grpc_port: int, http_port: int, run_id: str) -> dict[str, str]:
    """What the command gets: its own environment, with its telemetry pointed here.

    The protocol stays what it was where it is one of HTTP: some languages have no exporter for gRPC.
    """
    out = {name: value for name, value in environ.items() if name not in _OVERRIDING}
    if any(name.lower() in _PROXIES for name in out):
        # gRPC asks a proxy for loopback addresses too, and no proxy reaches this one.
        held = [*_NO_PROXY, *(["no_grpc_proxy"] if "no_grpc_proxy" in out else [])]
        out |= {name: ",".join(filter(None, (out.get(name), _LOOPBACK))) for name in held}
    over_http = environ.get(PROTOCOL, "").startswith("http/")
    out[ENDPOINT] = f"http://{_LOOPBACK}:{http_port if over_http else grpc_port}"
    out[PROTOCOL] = environ[PROTOCOL] if over_http else "grpc"
    out["KFM_RUN_ID"] = run_id
    return out


def _with_upstream(config: Config, environ: Mapping[str, str]) -> Config:
    """Forward to where the command would have sent."""
    for name in sorted(_OVERRIDING & environ.keys()):
        if name.endswith("_ENDPOINT"):
            sys.stderr.write(
                f"joulegram: {name}: got {environ[name]!r}; the telemetry of this run comes here and is not forwarded "
                f"there: set {ENDPOINT} or --upstream\n"
            )
    upstream = implied_upstream(environ)
    return config if upstream is None else replace(config, upstream=upstream)


def root_span(command: list[str], run_id: str, start_ns: int, end_ns: int, status: int) -> bytes:
    """A trace request with one root span `etl.job` for a command that sent none (S0-37).

    It names the program and not its arguments, which may hold what must not be recorded (S0-63).
    """
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

    from joulegram import __version__

    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    program = _program(command)
    _put(resource_spans.resource.attributes, {"service.name": program, "kfm.run_id": run_id, "kfm.component": "etl"})
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = "joulegram.run"
    scope_spans.scope.version = __version__
    span = scope_spans.spans.add()
    span.trace_id = secrets.token_bytes(16)
    span.span_id = secrets.token_bytes(8)
    span.name = "etl.job"
    span.kind = Span.SPAN_KIND_INTERNAL
    span.start_time_unix_nano = start_ns
    span.end_time_unix_nano = end_ns
    span.status.code = Status.STATUS_CODE_ERROR if status else Status.STATUS_CODE_OK
    _put(span.attributes, {"job.id": run_id, "job.type": "command", "process.exit.code": status})
    return bytes(request.SerializeToString())


def _program(command: list[str]) -> str:
    return os.path.basename(command[0])  # noqa: PTH119 - a word of a command line, not a path to follow


def _put(attributes: Any, values: Mapping[str, str | int]) -> None:
    for key, value in values.items():
        item = attributes.add()
        item.key = key
        if isinstance(value, int):
            item.value.int_value = value
        else:
            item.value.string_value = value


def _summarise(
    sidecar: Sidecar, run_id: str, processes: list[ProcessRow], window: WindowEnergy, *, as_json: bool
) -> None:
    """Print what the ledger says of the run: what is shown is what was recorded. The processes are shown beside it.

    A command that names runs of its own gets a summary of each of them.
    """
    from joulegram_rollup.summary import read_run, to_json

    shown = list(sidecar.documents) or [run_id]
    out = []
    for name in shown:
        written: dict[str, Path] = {"ledger": sidecar.layout.ledger, **sidecar.documents.get(name, {})}
        try:
            summary = read_run(sidecar.layout.ledger, name)
        except JoulegramError as error:
            sys.stderr.write(f"joulegram: no summary: {error}\n")
            continue
        if as_json:
            out.append({**to_json(summary), "written": {kind: str(path) for kind, path in written.items()}})
            continue
        from rich.console import Console

        from joulegram_rollup.render import render

        render(summary, Console(stderr=True), written)
    if not as_json:
        sys.stderr.write("".join(f"{line}\n" for line in table(processes, window)))
        return
    whole: dict[str, Any] = out[0] if len(out) == 1 else {"runs": out}
    whole["processes"] = [row.to_json() for row in processes]
    sys.stdout.write(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
