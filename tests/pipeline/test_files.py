"""Files that are whole or absent, and the lock on a data directory (S0-19, D-40, C-56)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from joulegram_pipeline.errors import BusyError, StorageError
from joulegram_pipeline.files import DirectoryLock, replace_file, safe_mkdir

if TYPE_CHECKING:
    from collections.abc import Callable

HOLDER = """
import sys
from pathlib import Path
from joulegram_pipeline.files import DirectoryLock
with DirectoryLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_directories_are_made_with_their_parents(tmp_path: Path) -> None:
    """Once or again, it is the same path that comes back (S0-19)."""
    path = tmp_path / "a" / "b" / "c"
    assert safe_mkdir(path) == path
    assert safe_mkdir(path).is_dir()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A regular file in its way: the whole path is quoted with the reason."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError) as caught:
            safe_mkdir(path)
        assert repr(str(path)) in str(caught.value)


def test_a_document_is_written_with_its_mode(tmp_path: Path) -> None:
    """A new file has the mode asked for, whatever the umask; nothing else is left beside it."""
    path = tmp_path / "document.json"
    old = os.umask(0o077)
    try:
        replace_file(path, b"one")
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"one", 0o644)
        replace_file(tmp_path / "secret", b"two", mode=0o600)
    finally:
        os.umask(old)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert sorted(item.name for item in tmp_path.iterdir()) == ["document.json", "secret"]


def test_an_existing_document_keeps_its_mode(tmp_path: Path) -> None:
    """Somebody set it: a new content does not open the file to others."""
    path = tmp_path / "document.json"
    path.write_bytes(b"old")
    path.chmod(0o640)
    replace_file(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o640)


def test_only_what_must_outlive_the_machine_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content and name are synced, each once; with `durable` off neither is."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    replace_file(tmp_path / "document", b"one", durable=False)
    assert (synced, (tmp_path / "document").read_bytes()) == ([], b"one")
    replace_file(tmp_path / "document", b"two")
    assert (len(synced), (tmp_path / "document").read_bytes()) == (2, b"two")


def test_a_reader_sees_the_old_document_or_the_new_one(tmp_path: Path) -> None:
    """While it is replaced again and again, every read is one whole document (D-40)."""
    path = tmp_path / "document"
    contents = [bytes([65 + number]) * 100_000 for number in range(4)]
    replace_file(path, contents[0])
    torn: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            data = path.read_bytes()
            if data not in contents:
                torn.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        replace_file(path, contents[number % 4])
    stop.set()
    reader.join()
    assert torn == []


IN_THE_WAY: dict[str, Callable[[Path], Path]] = {
    "no folder": lambda folder: folder / "missing" / "document",
    "a file as folder": lambda folder: folder / "file" / "document",
    "a folder of that name": lambda folder: folder / "folder",
    "a folder of the kernel": lambda folder: Path("/proc/joulegram-document"),
}


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_a_document_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    """The error quotes the path; no temporary file stays."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    path = IN_THE_WAY[name](tmp_path)
    with pytest.raises(StorageError) as caught:
        replace_file(path, b"data")
    assert repr(str(path)) in str(caught.value)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("call", ["fsync", "fchmod"])
def test_a_disk_that_refuses_leaves_the_old_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The content is synced before it gets the name: until then the old one stands, and no temporary file stays."""
    path = tmp_path / "document"
    replace_file(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StorageError, match="No space left on device"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["document"]


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    """BusyError with directory and pid while another process holds it; its death by SIGKILL lets go."""
    data = tmp_path / "made" / "data"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError) as caught, DirectoryLock(data):
            pass
        assert repr(str(data)) in str(caught.value)
        assert f"pid {holder.pid}" in str(caught.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with DirectoryLock(data):
            assert (data / "lock").read_text() == f"{os.getpid()}\n"


def test_one_process_may_not_hold_it_twice(tmp_path: Path) -> None:
    """Two sidecars in one process are two holders; leaving frees it for the next."""
    with DirectoryLock(tmp_path), pytest.raises(BusyError, match=f"pid {os.getpid()}"), DirectoryLock(tmp_path):
        pass
    for _ in range(2):
        with DirectoryLock(tmp_path):
            pass


def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A program started under the lock does not hold it on: the descriptor is closed at exec."""
    with DirectoryLock(tmp_path):
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; print('runs', flush=True); sys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            close_fds=False,
        )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"runs\n"
        with DirectoryLock(tmp_path):
            pass
    finally:
        child.communicate()


@pytest.mark.parametrize("where", ["/proc/joulegram-data", "file/data"])
def test_a_directory_that_cannot_be_made_cannot_be_locked(tmp_path: Path, where: str) -> None:
    """StorageError with the path: not writable is not busy."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot make directory"), DirectoryLock(tmp_path / where):
        pass


@pytest.mark.parametrize("what", ["a full disk", "a folder"])
def test_a_lock_that_cannot_be_written_is_a_storage_error(tmp_path: Path, what: str) -> None:
    """It quotes the directory, whatever the disk answers, and keeps no descriptor open."""
    if what == "a folder":
        (tmp_path / "lock").mkdir()
    else:
        (tmp_path / "lock").symlink_to("/dev/full")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - one listing, as before
    with pytest.raises(StorageError) as caught, DirectoryLock(tmp_path):
        pass
    assert repr(str(tmp_path)) in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
