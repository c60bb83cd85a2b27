"""Where servers listen: endpoints read, ports and socket files that are taken, free or left behind."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.errors import BusyError, ConfigError
from joulegram_receiver.listener import (
    TcpAddress,
    UnixAddress,
    check_free,
    is_loopback,
    listening,
    parse_endpoint,
    plaintext_warning,
)

KEY = "receiver.protocols.http.endpoint"
HAS_V6 = Path("/proc/net/if_inet6").exists() and bool(Path("/proc/net/if_inet6").read_text())

ENDPOINTS = {
    "127.0.0.1:4317": (TcpAddress("127.0.0.1", 4317), "127.0.0.1:4317"),
    "localhost:0": (TcpAddress("localhost", 0), "localhost:0"),
    "otel_collector.svc-1:65535": (TcpAddress("otel_collector.svc-1", 65535), "otel_collector.svc-1:65535"),
    "[::1]:4317": (TcpAddress("::1", 4317), "[::1]:4317"),
    "[::]:4317": (TcpAddress("::", 4317), "[::]:4317"),
    "unix:/run/otlp.sock": (UnixAddress(Path("/run/otlp.sock")), "unix:/run/otlp.sock"),
    "unix:///run/otlp.sock": (UnixAddress(Path("/run/otlp.sock")), "unix:/run/otlp.sock"),
}


@pytest.mark.parametrize(("endpoint", "expected"), ENDPOINTS.items(), ids=list(ENDPOINTS))
def test_an_endpoint_is_read(endpoint: str, expected: tuple[Any, str]) -> None:
    """Its parts, and how it is said."""
    address = parse_endpoint(endpoint, KEY)
    assert (address, str(address)) == expected


BAD = {
    "nothing": ("", "host:port"),
    "no port": ("127.0.0.1", "host:port"),
    "no host": (":4317", "host:port"),
    "a port that is none": ("127.0.0.1:http", "host:port"),
    "a port too high": ("127.0.0.1:65536", "host:port"),
    "a port below 0": ("127.0.0.1:-1", "host:port"),
    "digits that are not ASCII": ("127.0.0.1:٤٣١٧", "host:port"),
    "a URL": ("http://127.0.0.1:4317", "host:port"),
    "IPv6 without brackets": ("::1:4317", "host:port"),
    "no IPv6 in the brackets": ("[12345::1]:4317", "an IPv6 address in the brackets"),
    "a space": ("127.0.0.1: 4317", "host:port"),
    "a line feed": ("127.0.0.1:4317\n", "host:port"),
    "a socket without a path": ("unix:", "unix: and an absolute path"),
    "a relative path": ("unix:otlp.sock", "unix: and an absolute path"),
    "a host of a socket": ("unix://host/otlp.sock", "unix: and an absolute path"),
    "a folder": ("unix:/run/", "unix: and an absolute path"),
    "a path too long": ("unix:/" + "x" * 107, "a path of 107 bytes at most (108)"),
    "a zero in the path": ("unix:/a\0b", "unix: and an absolute path"),
}


@pytest.mark.parametrize(("endpoint", "expected"), BAD.values(), ids=BAD)
def test_what_is_no_endpoint_is_a_config_error(endpoint: str, expected: str) -> None:
    """Key and value are quoted, and what may stand there."""
    with pytest.raises(ConfigError) as error:
        parse_endpoint(endpoint, KEY)
    assert (error.value.key, error.value.got) == (KEY, endpoint)
    assert expected in error.value.expected


@given(endpoint=st.text(max_size=40) | st.from_regex(r"[a-z0-9.\[\]:/-]{1,30}:[0-9]{1,6}", fullmatch=True))
def test_any_text_is_an_endpoint_or_a_config_error(endpoint: str) -> None:
    """And what is read is written so that it is read the same."""
    try:
        address = parse_endpoint(endpoint, KEY)
    except ConfigError:
        return
    assert parse_endpoint(str(address), KEY) == address


LOOPBACK = {
    "127.0.0.1:1": True,
    "127.8.9.1:1": True,
    "localhost:1": True,
    "[::1]:1": True,
    "unix:/x.sock": True,
    "0.0.0.0:1": False,
    "[::]:1": False,
    "192.0.2.7:1": False,
    "[2001:db8::1]:1": False,
}


@pytest.mark.parametrize(("endpoint", "expected"), LOOPBACK.items())
def test_what_only_this_machine_reaches(endpoint: str, expected: bool) -> None:
    """Loopback addresses and Unix sockets; a host is loopback when all its addresses are."""
    assert is_loopback(parse_endpoint(endpoint, KEY), KEY) is expected


def test_a_plaintext_listener_that_others_reach_is_warned_of() -> None:
    """Neither with TLS nor on loopback; the text quotes the key and what to set."""
    key = "receiver.protocols.grpc"
    everywhere = TcpAddress("0.0.0.0", 4317)
    assert plaintext_warning(everywhere, key, tls=True) is None
    assert plaintext_warning(TcpAddress("localhost", 4317), key, tls=False) is None
    text = plaintext_warning(everywhere, key, tls=False)
    assert text is not None
    assert text.startswith("receiver.protocols.grpc.endpoint: '0.0.0.0:4317' is reachable from other machines")
    assert "set receiver.protocols.grpc.tls" in text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_is_bound_and_answers(host: str) -> None:
    """Port 0 takes a free one; a client connects; at the end the port is free again."""
    with listening(TcpAddress(host, 0), KEY) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), 5):
            pass
        for taken in (host, "127.0.0.1", "localhost"):
            with pytest.raises(BusyError, match=f"{taken}:{port}: another process listens"):
                check_free(TcpAddress(taken, port), KEY)
            with pytest.raises(BusyError, match=f"{taken}:{port}"), listening(TcpAddress(taken, port), KEY):
                pass
    check_free(TcpAddress(host, port), KEY)
    with listening(TcpAddress(host, port), KEY):
        pass


@pytest.mark.skipif(not HAS_V6, reason="this machine has no IPv6")
def test_every_address_of_ipv6_is_every_address_of_ipv4() -> None:
    """``[::]`` is answered over both, as gRPC and Go do."""
    with listening(TcpAddress("::", 0), KEY) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port), 5):
                pass


def test_a_port_in_use_by_a_connection_that_ended_is_taken_again() -> None:
    """TIME_WAIT of the last run does not keep the next one from starting."""
    with listening(TcpAddress("127.0.0.1", 0), KEY) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port), 5)
        listener.setblocking(True)
        served, _ = listener.accept()
        served.close()
        client.close()
    with listening(TcpAddress("127.0.0.1", port), KEY):
        pass


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_a_config_error(host: str) -> None:
    """For gRPC and for HTTP alike."""
    with pytest.raises(ConfigError) as error:
        check_free(TcpAddress(host, 1), KEY)
    assert (error.value.key, error.value.got) == (KEY, f"{host}:1")
    with pytest.raises(ConfigError) as error, listening(TcpAddress(host, 1), KEY):
        pass
    assert (error.value.key, error.value.got) == (KEY, f"{host}:1")


# -- Unix sockets --------------------------------------------------------------------------------------------------


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_unix_socket_is_bound_for_its_group_and_deleted(tmp_path: Path) -> None:
    """Mode 0660 whatever the umask; the file is gone at the end."""
    address = UnixAddress(tmp_path / "otlp.sock")
    before = os.umask(0o077)
    try:
        with listening(address, KEY):
            assert address.path.stat().st_mode & 0o777 == 0o660
            connect(address.path)
            with pytest.raises(BusyError, match=f"unix:{address.path}: another process listens there"):
                check_free(address, KEY)
    finally:
        os.umask(before)
    assert not address.path.exists()


def test_nobody_connects_before_the_mode_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there, and refuses until it listens."""
    address = UnixAddress(tmp_path / "otlp.sock")
    real = Path.chmod
    tried: list[str] = []

    def chmod(path: Path, mode: int) -> None:
        with pytest.raises(ConnectionRefusedError):
            connect(path)
        tried.append(path.name)
        real(path, mode)

    monkeypatch.setattr(Path, "chmod", chmod)
    with listening(address, KEY):
        connect(address.path)
    assert tried == ["otlp.sock"]


def test_a_socket_left_behind_makes_room(tmp_path: Path) -> None:
    """Of a process that was killed: nobody answers it."""
    address = UnixAddress(tmp_path / "otlp.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(address.path))
    with listening(address, KEY):
        connect(address.path)


def test_another_process_file_is_not_deleted_at_the_end(tmp_path: Path) -> None:
    """Whoever has taken the path meanwhile keeps it."""
    address = UnixAddress(tmp_path / "otlp.sock")
    with listening(address, KEY):
        address.path.rename(tmp_path / "moved")
        address.path.write_text("of another")
    assert address.path.read_text() == "of another"


NOT_FREE: dict[str, tuple[str, str]] = {
    "a file": ("file", "is neither"),
    "a folder": ("folder", "is neither"),
    "a link to a file": ("link", "is neither"),
    "a folder that is not there": ("none/otlp.sock", "a directory this process may write to"),
}


@pytest.mark.parametrize(("name", "expected"), NOT_FREE.values(), ids=NOT_FREE)
def test_what_is_no_socket_is_left_alone(tmp_path: Path, name: str, expected: str) -> None:
    """A mistyped path does not cost a file."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    address = UnixAddress(tmp_path / name)
    with pytest.raises(ConfigError, match=f"{KEY}: got 'unix:{address.path}'.*{expected}"):
        check_free(address, KEY)
    with pytest.raises(ConfigError), listening(address, KEY):
        pass
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "folder").is_dir()


def test_asyncio_takes_the_socket(tmp_path: Path) -> None:
    """What both transports are served on, over TCP and over a Unix socket."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async def main() -> None:
        for address in (TcpAddress("127.0.0.1", 0), UnixAddress(tmp_path / "otlp.sock")):
            with listening(address, KEY) as listener:
                async with await asyncio.start_server(say, sock=listener):
                    if isinstance(address, UnixAddress):
                        reader, writer = await asyncio.open_unix_connection(address.path)
                    else:
                        reader, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
                    assert await reader.read() == b"hello"
                    writer.close()
                    await writer.wait_closed()

    asyncio.run(main())
