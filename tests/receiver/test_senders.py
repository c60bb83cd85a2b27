"""Where a request comes from: of another address no process id is taken, and nothing else changes."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from joulegram_pipeline.http2_frames import PREFACE, settings
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import AFAR, without_afar
from joulegram_receiver.intake import Intake
from joulegram_receiver.senders import came_from_afar
from joulegram_receiver.signals import TRACES
from simulators.http2 import call_body, call_head
from simulators.receivers import receivers, span, traces

HERE, THERE = "10.9.0.1", "10.9.0.2"

ENDS: dict[str, tuple[Any, Any, bool]] = {
    "loopback": (("127.0.0.1", 50_000), ("127.0.0.1", 4317), False),
    "another loopback address": (("127.0.0.2", 50_000), ("127.0.0.1", 4317), False),
    "loopback of version 6": (("::1", 50_000, 0, 0), ("::1", 4317, 0, 0), False),
    "loopback, on a socket of both versions": (
        ("::ffff:127.0.0.1", 50_000, 0, 0),
        ("::ffff:10.0.0.1", 4317),
        False,
    ),
    "the node's own address": (("10.0.0.1", 50_000), ("10.0.0.1", 4317), False),
    "a Unix socket": ("", "/run/joulegram/otlp.sock", False),
    "a Unix socket, as uvicorn says it": (None, None, False),
    "something that is no address": (("somewhere", 1), ("127.0.0.1", 4317), False),
    "a pod": (("10.244.1.7", 50_000), ("10.0.0.1", 4317), True),
    "a pod, of version 6": (("fd00::7", 50_000, 0, 0), ("fd00::1", 4317, 0, 0), True),
    "a pod, on a socket of both versions": (("::ffff:10.244.1.7", 50_000, 0, 0), ("::ffff:10.0.0.1", 4317, 0, 0), True),
    "a neighbour on a link": (("fe80::7%eth0", 50_000, 0, 2), ("fe80::1%eth0", 4317, 0, 2), True),
    "a pod, as ASGI has it": (["10.244.1.7", 50_000], ["10.0.0.1", 4318], True),
}


@pytest.mark.parametrize(("sender", "own", "afar"), ENDS.values(), ids=ENDS)
def test_who_is_afar(sender: Any, own: Any, afar: bool) -> None:
    """Who shares no address with this machine; in doubt nobody is."""
    assert came_from_afar(sender, own) is afar


def test_it_goes_along_in_the_log_and_no_further() -> None:
    """Before the headers, whose names it cannot have."""
    plain, listed = Intake(None, Metrics()), Intake(None, Metrics(), metadata_keys=frozenset({"x-a"}))  # type: ignore[arg-type]
    assert plain.metadata_of([("x-a", "1")], afar=True) == (AFAR,)
    assert listed.metadata_of([("x-a", "1")], afar=True) == (AFAR, ("x-a", "1"))
    assert listed.metadata_of([("x-a", "1")]) == (("x-a", "1"),)
    assert without_afar((AFAR, ("x-a", "1"))) == (("x-a", "1"),)
    assert without_afar((AFAR,)) == ()


def alone(*command: str) -> list[str]:
    """A command in a network of its own that has two addresses."""
    up = f"ip link set lo up && ip addr add {HERE}/32 dev lo && ip addr add {THERE}/32 dev lo"
    return ["unshare", "--net", "--map-root-user", "sh", "-c", f'{up} && exec "$@"', "sh", *command]


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or shutil.which("ip") is None
    or subprocess.run(alone("true"), capture_output=True).returncode != 0,
    reason="no network namespace of its own to be had (unshare --net --map-root-user, ip)",
)
def test_both_transports_tell_one_address_from_another(tmp_path: Path) -> None:
    """Real sockets: from here and from there, over gRPC and HTTP."""
    path = [str(Path(__file__).parents[1]), *sys.path]
    code = (
        f"import sys; sys.path[:0] = {path!r}; from receiver import test_senders; test_senders.main({str(tmp_path)!r})"
    )
    done = subprocess.run(alone(sys.executable, "-c", code), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    afar = [list(AFAR)]
    assert json.loads(done.stdout) == {"gRPC": [[], afar], "HTTP": [[], afar]}


def main(directory: str) -> None:
    """In that network: print the metadata of what came from here and from there."""
    found = {name: asyncio.run(stored(Path(directory) / name, name)) for name in ("gRPC", "HTTP")}
    sys.stdout.write(json.dumps(found))


async def stored(directory: Path, transport: str) -> list[Any]:
    async with receivers(directory, host=HERE) as both:
        for source in (HERE, THERE):
            send = over_grpc if transport == "gRPC" else over_http
            await asyncio.to_thread(send, both.grpc_port if transport == "gRPC" else both.http_port, source)
        return [record.metadata for record in both.records()]


def over_http(port: int, source: str) -> None:
    connection = http.client.HTTPConnection(HERE, port, timeout=20, source_address=(source, 0))
    connection.request("POST", "/v1/traces", traces(span()), {"content-type": "application/x-protobuf"})
    assert connection.getresponse().status == 200
    connection.close()


def over_grpc(port: int, source: str) -> None:
    with socket.create_connection((HERE, port), 20, (source, 0)) as client:
        call = call_head(1, f"/{TRACES.service}/Export") + call_body(1, traces(span()))
        client.sendall(PREFACE + settings({}) + call)
        said = b""
        while b"grpc-status\x010" not in said:
            more = client.recv(1 << 16)
            assert more, said
            said += more
