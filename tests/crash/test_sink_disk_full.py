"""The disk of a running sidecar fills or fails under one of its parts: it lives, says why, and loses nothing."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from crash.clients import EXPORT, keys_of, request
from crash.lane import names_of, verified
from crash.nursery import SMALL, Fledgling, Nursery
from simulators.otlp_server import OtlpServer
from simulators.ports import free_port
from simulators.sidecar import ledger_lines, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crash.clients import Key

pytestmark = pytest.mark.timeout(120)

FAST = {**SMALL, "joulegram_service.engine.RETRY_S": 0.1}
KIB = 1024


@contextmanager
def small_disk(directory: Path, kib: int) -> Iterator[Path]:
    """A file system of its own at `directory`, owned by nobody else."""
    directory.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(directory)], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"this machine lets us mount no small file system: {made.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def grow(directory: Path, kib: int) -> None:
    """Give the file system there more room."""
    subprocess.run(["mount", "-o", f"remount,size={kib}k", str(directory)], check=True)


class Sender:
    """Sends until told otherwise, and keeps what was acknowledged; each request once, unless it was refused."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)
        self._call = self._channel.unary_unary(EXPORT, None, None)
        self._chance = random.Random(7)
        self.acknowledged: list[Key] = []
        self.refused: Counter[grpc.StatusCode] = Counter()

    def send(self, spans: int = 100) -> None:
        """One request of one trace."""
        names = ["etl.job", *["etl.step"] * (spans - 1)]
        body = request(self._chance.randbytes(16), names, self._chance, 0, root=True)
        try:
            self._call(body, timeout=10)
        except grpc.RpcError as error:
            self.refused[error.code()] += 1
        else:
            self.acknowledged += keys_of(body)

    def close(self) -> None:
        self._channel.close()


def sidecar(nursery: Nursery, directory: Path, port: int, name: str = "serve") -> Fledgling:
    """A sidecar that takes a disk to the last byte."""
    file = directory / "joulegram.yaml"
    file.write_text('spool: {min_free_bytes: "0B"}\n')
    flags = (f"--config={file}", "--source=model", f"--upstream=grpc://127.0.0.1:{port}")
    return Fledgling(nursery, directory, *flags, name=name)


def is_troubled(serve: Fledgling, words: str) -> bool:
    """Whether it says so on /readyz, and lives."""
    status, said = serve.get("/readyz")
    assert serve.get("/healthz")[0] == 200
    return status == 503 and words in said


def assert_all_there(serve: Fledgling, server: OtlpServer, sender: Sender) -> None:
    """Acknowledged spans are in the ledger once and were forwarded; of those refused some may have been taken too."""
    recorded = Counter((line["trace_id"], line["span_id"]) for line in ledger_lines(serve.data, "span"))
    assert set(sender.acknowledged) - recorded.keys() == set(), "none lost"
    assert set(recorded.values()) == {1}, "none twice"
    assert set(sender.acknowledged) - names_of(server.taken).keys() == set(), "all forwarded"
    verified(serve.data)


@pytest.mark.parametrize(
    ("folder", "kib", "words"),
    [
        ("ledger/telemetry", 256, "ledger: ledger "),
        ("outbox", 64, "snapshot: "),
        ("ticks", 0, "ticks: tick archive"),
        ("state", 0, "snapshot: cannot write"),
    ],
    ids=["ledger", "outbox", "ticks", "snapshot"],
)
def test_a_sink_whose_disk_is_full_waits_for_room(tmp_path: Path, folder: str, kib: int, words: str) -> None:
    """The sidecar lives, takes requests on, says what is wrong on /readyz, and goes on by itself when there is room."""
    port = free_port()
    server = OtlpServer(port)
    with small_disk(tmp_path / "data" / folder, max(kib, 4)) as disk:
        if not kib:
            (disk / "ballast").write_bytes(bytes(4 * KIB))
        with Nursery(tmp_path, FAST) as nursery, sidecar(nursery, tmp_path, port) as serve:
            sender = Sender(serve.wait_ready().target)

            def in_trouble() -> bool:
                sender.send()
                return is_troubled(serve, words)

            wait_until(in_trouble, f"{folder} is full", 60, serve.log)
            assert "No space left on device" in serve.get("/readyz")[1]
            taken = len(sender.acknowledged)
            sender.send()
            assert len(sender.acknowledged) > taken, "the spool has room, so requests are taken"
            assert not sender.refused
            grow(disk, 64 * KIB)
            with server:
                wait_until(lambda: serve.get("/readyz")[0] == 200, "ready again", 20, serve.log)
                sender.close()
                assert serve.stop() == 0, serve.said
            assert_all_there(serve, server, sender)


def test_a_full_disk_under_everything_refuses_until_there_is_room(tmp_path: Path) -> None:
    """ENOSPC wherever it hits first: clients are told to come again, and what they were told is kept is kept."""
    port = free_port()
    server = OtlpServer(port)
    with small_disk(tmp_path / "data", 6 * KIB) as disk, Nursery(tmp_path, FAST) as nursery:
        with sidecar(nursery, tmp_path, port) as serve:
            sender = Sender(serve.wait_ready().target)

            def is_refused() -> bool:
                sender.send(1000)
                return bool(sender.refused)

            wait_until(is_refused, "the disk is full", 60, serve.log)
            assert is_troubled(serve, "No space left on device")
            assert sender.refused.keys() == {grpc.StatusCode.UNAVAILABLE}
            # Killed while it is full: the next start reads what there is on a disk without a free byte.
        with sidecar(nursery, tmp_path, port, name="again") as serve:
            grow(disk, 64 * KIB)
            with server:
                sender.close()
                serve.wait_ready()
                again = Sender(serve.target)
                again.acknowledged = sender.acknowledged
                again.send()
                again.close()
                assert serve.stop() == 0, serve.said
        assert_all_there(serve, server, again)


@pytest.mark.parametrize("folder", ["spool", "ledger"])
def test_a_sync_that_fails_ends_it_and_a_start_mends_it(tmp_path: Path, folder: str) -> None:
    """EIO from fdatasync is believed: nothing more is made of that file, and the next start has all that was promised.

    A spool that failed takes nothing more, and says so; a ledger that failed ends the sidecar, whose restart replays.
    """
    port = free_port()
    with OtlpServer(port) as server, Nursery(tmp_path, FAST) as nursery:
        with sidecar(nursery, tmp_path, port) as serve:
            sender = Sender(serve.wait_ready().target)
            for _ in range(20):
                sender.send()
            nursery.break_disk(f"fdatasync {folder}")
            if folder == "spool":
                for _ in range(3):
                    sender.send()
                assert sender.refused == {grpc.StatusCode.UNAVAILABLE: 3}
                assert is_troubled(serve, "nothing is taken until the next start")
                nursery.break_disk()
                sender.send()
                assert sender.refused == {grpc.StatusCode.UNAVAILABLE: 4}, "a later success is not believed"
                assert serve.stop() == 0, serve.said
            else:

                def has_ended() -> bool:
                    sender.send()
                    return serve.process is None or serve.process.poll() is not None

                wait_until(has_ended, "its end", 30, serve.log)
                assert serve.wait_end() == 1
                assert "Input/output error" in serve.said
                nursery.break_disk()
            sender.close()
        with sidecar(nursery, tmp_path, port, name="again") as serve:
            again = Sender(serve.wait_ready().target)
            again.acknowledged = sender.acknowledged
            again.send()
            again.close()
            assert serve.stop() == 0, serve.said
        assert_all_there(serve, server, again)


def test_a_spool_that_cannot_write_refuses_until_it_can(tmp_path: Path) -> None:
    """EIO from a write of the spool: who sent is told to come again, and nothing half written is in the way later."""
    port = free_port()
    with OtlpServer(port) as server, Nursery(tmp_path, FAST) as nursery, sidecar(nursery, tmp_path, port) as serve:
        sender = Sender(serve.wait_ready().target)
        sender.send()
        nursery.break_disk("write spool")
        for _ in range(3):
            sender.send()
        assert sender.refused == {grpc.StatusCode.UNAVAILABLE: 3}
        assert is_troubled(serve, "Input/output error")
        nursery.break_disk()
        sender.send()
        wait_until(lambda: serve.get("/readyz")[0] == 200, "ready again", 20, serve.log)
        sender.close()
        assert serve.stop() == 0, serve.said
    assert sender.refused == {grpc.StatusCode.UNAVAILABLE: 3}
    assert len(sender.acknowledged) == 200
    assert_all_there(serve, server, sender)


def test_writes_that_fail_are_made_again(tmp_path: Path) -> None:
    """EIO from write under the ledger: it waits, and its lines stand there once when the disk is well again."""
    port = free_port()
    with OtlpServer(port) as server, Nursery(tmp_path, FAST) as nursery, sidecar(nursery, tmp_path, port) as serve:
        sender = Sender(serve.wait_ready().target)
        nursery.break_disk("write ledger")

        def in_trouble() -> bool:
            sender.send()
            return is_troubled(serve, "Input/output error")

        wait_until(in_trouble, "a write that failed", 30, serve.log)
        nursery.break_disk()
        wait_until(lambda: serve.get("/readyz")[0] == 200, "ready again", 20, serve.log)
        sender.close()
        assert serve.stop() == 0, serve.said
    assert not sender.refused
    assert_all_there(serve, server, sender)
