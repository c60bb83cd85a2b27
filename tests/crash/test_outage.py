"""An upstream that is away for ten minutes: memory stays under its cap, and everything is delivered."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from simulators.otlp_server import OtlpServer
from simulators.ports import free_port
from simulators.sidecar import clean_environment

PROGRAM = Path(__file__).with_name("outage_main.py")
SECONDS = 600
REQUESTS = SECONDS * 100
MIB = 1024
CAP_KIB = 160 * MIB
"""More than before the outage: 64 MiB of items in memory; up to 4 reads of 4 MiB on their way, each as items, as the
batch they were put together to, and as gRPC's copy of it (48 MiB); a third for the allocator."""


class Nothing(list[tuple[str, bytes]]):
    """Where a server may put what it took, and it is gone."""

    def append(self, _: tuple[str, bytes]) -> None:
        pass


NUMBER = re.compile(rb"<(\d{8})>")


def test_an_upstream_away_for_ten_minutes_costs_no_memory_and_no_data(tmp_path: Path) -> None:
    """10k spans/s for 600 s pile up while nobody listens at the upstream's port; then it does, and gets all.

    Simulated is the time, which passes a hundred times as fast or more, and the size of a span, 96 bytes on the wire
    where 600 are usual: 6 M spans in 60 000 requests are 580 MB here, eight times what may stay in memory, and not
    3.6 GB. Outbox, forwarder, gRPC and files are real. The whole sidecar, full size: benchmarks/overload.py --outage.
    """
    port = free_port()
    command = [sys.executable, str(PROGRAM), str(tmp_path), str(port), str(SECONDS)]
    seen: set[int] = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "fed\n"
        server = OtlpServer(port, judge=lambda _, body: seen.update(map(int, NUMBER.findall(body))))
        server.taken = Nothing()
        with server:
            said = json.loads(process.stdout.read())
        assert process.wait(60) == 0

    assert seen == set(range(REQUESTS)), "everything was delivered"
    assert said["backlog_bytes"] == said["appended_bytes"], "nobody took anything during the outage"
    assert said["appended_bytes"] > 8 * 64 * MIB * 1024
    assert said["on_disk_bytes"] > said["appended_bytes"] / 2
    assert said["peak_kib"] - said["base_kib"] < CAP_KIB, said
    assert not (tmp_path / "deadletter").exists()
