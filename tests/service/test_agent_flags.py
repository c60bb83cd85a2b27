"""What the sidecar hands on to the agent inside it."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from simulators.cgroupfs import IDS, CgroupTree, in_docker
from simulators.sidecar import Serve, wait_until

if TYPE_CHECKING:
    from pathlib import Path


def test_containers_and_all_processes_are_in_the_sidecars_ticks(tmp_path: Path) -> None:
    """Issue 5, deliver 3: --cgroup-root and --processes of `serve` arrive: a container and we ourselves have lines."""
    tree = CgroupTree(tmp_path / "cgroup")
    tree.create(in_docker(0))
    busy = threading.Event()

    def both() -> bool:
        tree.spend(in_docker(0), 5_000_000)
        log = b"".join(path.read_bytes() for path in tmp_path.glob("data/spool/*.wal"))
        return f'"container/{IDS[0]}":'.encode() in log and f'"{os.getpid()}":'.encode() in log

    with Serve(tmp_path, "--source=none", f"--cgroup-root={tree.root}", "--processes=all") as serve:
        burner = threading.Thread(target=_burn, args=(busy,))
        burner.start()
        try:
            serve.wait_ready()
            wait_until(both, "a tick with both", log=serve.log)
        finally:
            busy.set()
            burner.join()


def _burn(stop: threading.Event) -> None:
    while not stop.is_set():
        pass
