"""TLS of the listeners: real handshakes with grpcio and ssl clients, certificates swapped under running servers."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
import tempfile
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from joulegram_pipeline.errors import ConfigError
from joulegram_pipeline.http2_frames import PREFACE, settings
from joulegram_receiver.tls import Certificates, Followed, TlsFiles
from simulators.certificates import Authority, Leaf, MountedSecret, common_name
from simulators.grpc_methods import ECHO, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KEY = "receiver.protocols.grpc.tls"
METHOD = "/echo.Echo/Say"


def files(cert: Path, key: Path, client_ca: Path | None = None, **options: Any) -> TlsFiles:
    return TlsFiles(cert, key, client_ca, **{"reload_interval_s": 0.0} | options)


class GrpcEcho:
    """Our gRPC server, saying what it is told, and a client's view of it."""

    transport = "grpc"

    def __init__(self, port: int) -> None:
        self.port = port

    async def ask(self, authority: Authority, client: Leaf | None = None) -> str:
        """One call on a new connection; the common name of the server's certificate."""
        key, chain = (client.key_pem, client.cert_pem) if client else (None, None)
        credentials = grpc.ssl_channel_credentials(authority.pem, key, chain)
        async with grpc.aio.secure_channel(f"localhost:{self.port}", credentials) as channel:
            call = channel.unary_unary(METHOD, None, None)(b"hello", timeout=8)
            assert await call == b"hello"
        return await asyncio.to_thread(self._peer, authority, client)

    def _peer(self, authority: Authority, client: Leaf | None) -> str:
        # gRPC does not say whom it spoke to: a plain handshake with its port does.
        return handshake(self.port, authority, client, alpn="h2", read=False)


class HttpEcho:
    """A TLS listener as an HTTP server has it, and a client's view of it."""

    transport = "http"

    def __init__(self, port: int) -> None:
        self.port = port

    async def ask(self, authority: Authority, client: Leaf | None = None, **options: Any) -> str:
        """One connection that reads an answer; the common name of the server's certificate."""
        return await asyncio.to_thread(lambda: handshake(self.port, authority, client, **options))


def handshake(
    port: int,
    authority: Authority,
    client: Leaf | None = None,
    *,
    alpn: str = "http/1.1",
    read: bool = True,
    version: ssl.TLSVersion | None = None,
) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.pem.decode())
    context.set_alpn_protocols([alpn])
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if client is not None:
        with tempfile.TemporaryDirectory() as directory:
            context.load_cert_chain(*client.write(Path(directory)))
    with (
        socket.create_connection(("127.0.0.1", port), 8) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        assert connection.selected_alpn_protocol() == alpn
        # In TLS 1.3 a client has shaken hands before the server looks at its certificate.
        if read and connection.recv(10) != b"hello":
            raise ConnectionResetError("closed without an answer")
        return common_name(connection.getpeercert(binary_form=True))


@asynccontextmanager
async def grpc_echo(certificates: Certificates) -> AsyncIterator[GrpcEcho]:
    async with serving({METHOD: ECHO}, "localhost:0", ssl_context=certificates.ssl_context("h2")) as server:
        yield GrpcEcho(server.port)


@asynccontextmanager
async def http_echo(certificates: Certificates) -> AsyncIterator[HttpEcho]:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await writer.drain()
        writer.close()

    context = certificates.ssl_context()
    async with await asyncio.start_server(say, "127.0.0.1", 0, ssl=context) as server:
        yield HttpEcho(server.sockets[0].getsockname()[1])


ECHOES: dict[str, Callable[[Certificates], Any]] = {"grpc": grpc_echo, "http": http_echo}
over_both = pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
REFUSED = (grpc.aio.AioRpcError, ssl.SSLError, ConnectionResetError)


@over_both
def test_a_client_that_trusts_the_authority_is_served(tmp_path: Path, echo: Any) -> None:
    """TLS with a name that is checked; a client of another authority does not connect."""
    authority = Authority()

    async def main() -> None:
        async with echo(Certificates(files(*authority.issue("one").write(tmp_path)), KEY)) as server:
            assert await server.ask(authority) == "one"
            with pytest.raises(REFUSED):
                await server.ask(Authority("stranger"))

    asyncio.run(main())


@over_both
def test_a_new_certificate_is_served_without_a_restart(tmp_path: Path, echo: Any) -> None:
    """Files replaced by rename, twice; each next handshake gets the newest."""
    authority = Authority()

    async def main() -> None:
        async with echo(Certificates(files(*authority.issue("one").write(tmp_path)), KEY)) as server:
            for name in ("one", "two", "three"):
                authority.issue(name).write(tmp_path)
                assert await server.ask(authority) == name

    asyncio.run(main())


@over_both
def test_a_mounted_secret_is_followed_through_its_links(tmp_path: Path, echo: Any) -> None:
    """Kubernetes swaps a link that the paths go through; the files of before are gone then."""
    authority = Authority()

    def secret(name: str) -> dict[str, bytes]:
        leaf = authority.issue(name)
        return {"tls.crt": leaf.cert_pem, "tls.key": leaf.key_pem}

    async def main() -> None:
        mount = MountedSecret(tmp_path / "mount", secret("one"))
        paths = files(tmp_path / "mount" / "tls.crt", tmp_path / "mount" / "tls.key")
        async with echo(Certificates(paths, KEY)) as server:
            assert await server.ask(authority) == "one"
            for name in ("two", "three"):
                mount.swap(secret(name))
                assert await server.ask(authority) == name

    asyncio.run(main())


@over_both
def test_mtls_lets_in_only_clients_of_its_authority(tmp_path: Path, echo: Any) -> None:
    """No certificate, one of another authority, an expired one: none of them is answered."""
    authority, clients, strangers = Authority(), Authority("clients"), Authority("strangers")

    async def main() -> None:
        paths = files(*authority.issue("one").write(tmp_path), clients.write(tmp_path / "clients.pem"))
        async with echo(Certificates(paths, KEY)) as server:
            assert await server.ask(authority, clients.issue("job")) == "one"
            for refused in (None, strangers.issue("job"), clients.issue("job", days=-1)):
                with pytest.raises(REFUSED):
                    await server.ask(authority, refused)
            assert await server.ask(authority, clients.issue("job")) == "one"

    asyncio.run(main())


@over_both
def test_an_authority_of_clients_can_be_replaced(tmp_path: Path, echo: Any) -> None:
    """The new one's clients are let in, and the old one's no longer."""
    authority, old, new = Authority(), Authority("old"), Authority("new")

    async def main() -> None:
        trusted = old.write(tmp_path / "clients.pem")
        paths = files(*authority.issue("one").write(tmp_path), trusted)
        async with echo(Certificates(paths, KEY)) as server:
            assert await server.ask(authority, old.issue("job")) == "one"
            new.write(trusted)
            assert await server.ask(authority, new.issue("job")) == "one"
            with pytest.raises(REFUSED):
                await server.ask(authority, old.issue("job"))

    asyncio.run(main())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@over_both
def test_a_session_of_a_removed_authority_is_not_resumed(tmp_path: Path, echo: Any, version: ssl.TLSVersion) -> None:
    """A client that kept its session gets in no longer than one that did not."""
    authority, old, new = Authority(), Authority("old"), Authority("new")
    trusted = old.write(tmp_path / "clients.pem")
    paths = files(*authority.issue("one").write(tmp_path), trusted)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.pem.decode())
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2" if echo is grpc_echo else "http/1.1"])
    context.load_cert_chain(*old.issue("job").write(tmp_path, "job"))

    def connect(port: int, session: ssl.SSLSession | None = None) -> tuple[bytes, ssl.SSLSession | None, bool | None]:
        with (
            socket.create_connection(("127.0.0.1", port), 8) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as connection,
        ):
            if echo is grpc_echo:  # whose server speaks second
                connection.sendall(PREFACE + settings({}))
            return connection.recv(10), connection.session, connection.session_reused

    async def main() -> None:
        async with echo(Certificates(paths, KEY)) as server:
            _, session, _ = await asyncio.to_thread(connect, server.port)
            assert session is not None
            answer, session, reused = await asyncio.to_thread(connect, server.port, session)
            assert answer
            assert reused, "within one version it saves a round trip"
            new.write(trusted)
            try:
                answer, _, _ = await asyncio.to_thread(connect, server.port, session)
            except REFUSED:
                return
            assert answer == b""

    asyncio.run(main())


BROKEN: dict[str, Callable[[Path, Path, Authority], object]] = {
    "a certificate of no PEM": lambda cert, key, authority: cert.write_text("nothing"),
    "an empty certificate": lambda cert, key, authority: cert.write_bytes(b""),
    "a certificate that is gone": lambda cert, key, authority: cert.unlink(),
    "a key that is gone": lambda cert, key, authority: key.unlink(),
    "a key of another certificate": lambda cert, key, authority: key.write_bytes(authority.issue("x").key_pem),
    "half a key": lambda cert, key, authority: key.write_bytes(key.read_bytes()[:60]),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
@over_both
def test_a_broken_new_file_keeps_the_old_certificate(
    tmp_path: Path, echo: Any, spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and counted once, and the next good version is taken."""
    authority = Authority()
    failures: list[None] = []

    async def main() -> None:
        cert, key = authority.issue("one").write(tmp_path)
        secret = key.read_text().splitlines()[1]
        certificates = Certificates(files(cert, key), KEY, lambda: failures.append(None))
        async with echo(certificates) as server:
            spoil(cert, key, authority)
            for _ in range(3):
                assert await server.ask(authority) == "one"
            assert len(failures) == 1
            (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
            assert said.message.startswith(f"{KEY}.")
            assert str(tmp_path) in said.message
            assert "what was read before stays in use" in said.message
            assert secret[:20] not in said.message
            authority.issue("two").write(tmp_path)
            assert await server.ask(authority) == "two"
            assert len(failures) == 1

    asyncio.run(main())


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def encrypted(leaf: Leaf) -> bytes:
    return serialization.load_pem_private_key(leaf.key_pem, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


AT_START: dict[str, tuple[str, Callable[[Path, Path, Path], object], str]] = {
    "a certificate that is not there": ("cert_file", lambda cert, key, ca: cert.unlink(), "readable PEM file (No such"),
    "a certificate that is a folder": (
        "cert_file",
        lambda cert, key, ca: make_folder(cert),
        "a readable PEM file (Is a directory)",
    ),
    "a certificate that is none": ("cert_file", lambda cert, key, ca: cert.write_text("x"), "one PEM certificate or"),
    "a key in place of the certificate": (
        "cert_file",
        lambda cert, key, ca: cert.write_bytes(key.read_bytes()),
        "one PEM certificate or several",
    ),
    "a key that is not there": ("key_file", lambda cert, key, ca: key.unlink(), "a readable PEM file"),
    "a key that is none": ("key_file", lambda cert, key, ca: key.write_text("x"), "a PEM private key without a passp"),
    "a key with a passphrase": (
        "key_file",
        lambda cert, key, ca: key.write_bytes(encrypted(Leaf(b"", key.read_bytes()))),
        "a PEM private key without a passphrase",
    ),
    "a key of another certificate": (
        "key_file",
        lambda cert, key, ca: key.write_bytes(Authority().issue().key_pem),
        "the key of the first certificate in",
    ),
    "no authorities": ("client_ca_file", lambda cert, key, ca: ca.write_text("# none\n"), "one PEM certificate or"),
    "authorities that are not there": ("client_ca_file", lambda cert, key, ca: ca.unlink(), "a readable PEM file"),
}


@pytest.mark.parametrize(("which", "spoil", "expected"), AT_START.values(), ids=AT_START)
def test_a_broken_file_at_the_start_is_a_config_error(tmp_path: Path, which: str, spoil: Any, expected: str) -> None:
    """It quotes key and path, and nothing of a key."""
    cert, key = Authority().issue().write(tmp_path)
    ca = Authority("clients").write(tmp_path / "clients.pem")
    spoil(cert, key, ca)
    with pytest.raises(ConfigError) as error:
        Certificates(files(cert, key, ca), KEY)
    assert error.value.key == f"{KEY}.{which}"
    assert error.value.got == str({"cert_file": cert, "key_file": key, "client_ca_file": ca}[which])
    assert expected in error.value.expected
    assert "PRIVATE" not in str(error.value)


@over_both
def test_the_oldest_tls_can_be_set(tmp_path: Path, echo: Any) -> None:
    """`min_version: "1.3"` refuses 1.2; 1.2 takes both, and 1.1 is never spoken."""
    authority = Authority()
    paths = authority.issue("one").write(tmp_path)
    both = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    alpn = "h2" if echo is grpc_echo else "http/1.1"

    async def main() -> None:
        async with echo(Certificates(files(*paths), KEY)) as server:
            for version in both:
                shake = functools.partial(handshake, server.port, authority, alpn=alpn, read=False, version=version)
                assert await asyncio.to_thread(shake) == "one"
        async with echo(Certificates(files(*paths, min_version="1.3"), KEY)) as server:
            shake = functools.partial(handshake, server.port, authority, alpn=alpn, read=False)
            assert await asyncio.to_thread(shake, version=both[1]) == "one"
            with pytest.raises(REFUSED):
                await asyncio.to_thread(shake, version=both[0])

    asyncio.run(main())


def test_keys_of_rsa_are_taken(tmp_path: Path) -> None:
    """What most authorities issue, over both transports."""
    authority = Authority()
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    certificates = Certificates(files(*authority.issue("one", key=key).write(tmp_path)), KEY)

    async def main() -> None:
        for echo in (grpc_echo, http_echo):
            async with echo(certificates) as server:
                assert await server.ask(authority) == "one"

    asyncio.run(main())


def test_days_left_follow_the_file(tmp_path: Path) -> None:
    """A number for /metrics: whole and part days, of the certificate in use."""
    authority = Authority()
    certificates = Certificates(files(*authority.issue(days=2).write(tmp_path)), KEY)
    assert certificates.days_left() == pytest.approx(2, abs=0.01)
    authority.issue(days=29.5).write(tmp_path)
    assert certificates.days_left() == pytest.approx(29.5, abs=0.01)


def test_an_expired_certificate_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is served, because a clock may be what is wrong; the log and the metric say so."""
    certificates = Certificates(files(*Authority().issue(days=-3).write(tmp_path)), KEY)
    assert certificates.days_left() < 0
    assert "expired 3.0 days ago" in caplog.text


def test_a_key_that_all_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Mode and path are quoted."""
    cert, key = Authority().issue().write(tmp_path)
    Certificates(files(cert, key), KEY)
    assert caplog.text == ""
    key.chmod(0o644)
    Certificates(files(cert, key), KEY)
    assert f"{KEY}.key_file: got '{key}' of mode 0644, which every user can read" in caplog.text


def test_files_are_left_alone_within_the_interval(tmp_path: Path) -> None:
    """`reload_interval_s` bounds how often they are looked at."""
    authority = Authority()
    paths = authority.issue(days=2).write(tmp_path)
    certificates = Certificates(files(*paths, reload_interval_s=3600), KEY)
    authority.issue(days=9).write(tmp_path)
    assert certificates.days_left() == pytest.approx(2, abs=0.01)


def test_two_files_are_never_mixed_of_two_versions(tmp_path: Path) -> None:
    """A swap between the reads of two files is read again, whole."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    two.write_text("a")
    swaps = iter([True, True])

    def read() -> str:
        first = one.read_text()
        if next(swaps, False):
            for path in (one, two):
                path.write_text(path.read_text() + "b")
        return first + "/" + two.read_text()

    assert Followed([one, two], read, 0).current() == "abb/abb"


def test_nothing_of_a_key_is_in_a_repr(tmp_path: Path) -> None:
    """What is printed while debugging ends up in logs."""
    certificates = Certificates(files(*Authority().issue().write(tmp_path)), KEY)
    assert "PRIVATE" not in repr(certificates) + repr(certificates._followed.current())


def test_expiry_is_that_of_the_whole_chain(tmp_path: Path) -> None:
    """The first certificate to end ends the chain's use."""
    authority = Authority()
    leaf, short = authority.issue(days=20), authority.issue("between", days=5)
    paths = Leaf(leaf.cert_pem + short.cert_pem, leaf.key_pem).write(tmp_path)
    certificates = Certificates(files(*paths), KEY)
    end = datetime.now(UTC) + timedelta(days=certificates.days_left())
    assert abs(end - (datetime.now(UTC) + timedelta(days=5))) < timedelta(minutes=1)


def test_keys_of_ed25519_are_taken_over_http(tmp_path: Path) -> None:
    """Clients on gRPC's C core know no such signatures; docs/access.md says so."""
    authority = Authority()
    leaf = authority.issue("one", key=ed25519.Ed25519PrivateKey.generate())

    async def main() -> None:
        async with http_echo(Certificates(files(*leaf.write(tmp_path)), KEY)) as server:
            assert await server.ask(authority) == "one"

    asyncio.run(main())


def test_a_blocking_server_gets_the_newest_certificate_too(tmp_path: Path) -> None:
    """`wrap_socket` of the context is as good as asyncio's way in."""
    authority = Authority()
    certificates = Certificates(files(*authority.issue("one").write(tmp_path)), KEY)
    context = certificates.ssl_context()
    authority.issue("two").write(tmp_path)

    def serve(listener: socket.socket) -> None:
        plain, _ = listener.accept()
        with context.wrap_socket(plain, server_side=True) as connection:
            connection.sendall(b"hello")

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(asyncio.to_thread(serve, listener))
            assert await HttpEcho(listener.getsockname()[1]).ask(authority) == "two"
            await serving

    asyncio.run(main())


def test_a_file_that_never_holds_still_is_read_as_it_is(tmp_path: Path) -> None:
    """After a few tries the last read counts, good or bad: a start does not wait for ever."""
    path = tmp_path / "file"
    path.write_text("")

    def read() -> str:
        path.write_text(path.read_text() + "x")
        if len(path.read_text()) < 3:
            raise ConfigError(KEY, "half", "a whole")
        return path.read_text()

    assert Followed([path], read, 0).current().startswith("xxx")
