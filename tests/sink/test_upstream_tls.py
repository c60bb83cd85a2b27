"""TLS and mTLS towards the upstream, over both transports."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from joulegram_pipeline.errors import ConfigError
from joulegram_sink.upstream_destination import Tls
from simulators.certificates import Authority
from simulators.forwarding import BUDGET_S, destination, forwarding, names, request
from simulators.otlp_server import OtlpHttpServer, OtlpServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from joulegram_sink.upstream import Destination

Server = OtlpServer | OtlpHttpServer


def serve_grpc(tmp_path: Path, authority: Authority, clients: Authority | None = None, name: str = "localhost") -> Any:
    leaf = authority.issue(name)
    return OtlpServer(
        credentials=grpc.ssl_server_credentials(
            [(leaf.key_pem, leaf.cert_pem)],
            root_certificates=None if clients is None else clients.pem,
            require_client_auth=clients is not None,
        )
    )


def serve_http(tmp_path: Path, authority: Authority, clients: Authority | None = None, name: str = "localhost") -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue(name).write(tmp_path / "server", name))
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=clients.pem.decode())
    return OtlpHttpServer(context=context)


SERVERS = {"grpcs": serve_grpc, "https": serve_http}
both = pytest.mark.parametrize("scheme", SERVERS)


def send(tmp_path: Path, there: Destination, budget_s: float = BUDGET_S) -> tuple[bool, str]:
    """Whether a request was taken, and the last error."""

    async def main() -> tuple[bool, str]:
        async with forwarding(tmp_path / "data", there, put=(request("a"),)) as forward:
            taken = await forward.upstream.drain(budget_s)
            return taken, forward.upstream.status()[0].tally.last_error

    return asyncio.run(main())


@both
def test_a_server_is_checked_against_the_authority(tmp_path: Path, scheme: str) -> None:
    """Signed by `ca_file`: taken. By another: never, and nothing is lost, because that may be mended."""
    authority = Authority()
    ours, others = authority.write(tmp_path / "ca.pem"), Authority("another").write(tmp_path / "other.pem")
    with SERVERS[scheme](tmp_path, authority) as server:
        endpoint = f"{scheme}://localhost:{server.port}"
        taken, error = send(tmp_path / "1", destination(endpoint, tls=Tls(ca_file=others)), 1.0)
        assert (taken, server.taken) == (False, [])
        assert error
        assert send(tmp_path / "1", destination(endpoint, tls=Tls(ca_file=ours))) == (True, "")
        assert names(server.taken) == ["a"]


@both
def test_the_systems_roots_are_the_default(tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `ca_file` what the system trusts is trusted, and no more."""
    authority = Authority()
    path = authority.write(tmp_path / "ca.pem")
    with SERVERS[scheme](tmp_path, authority) as server:
        there = destination(f"{scheme}://localhost:{server.port}")
        assert not send(tmp_path / "1", there, 0.5)[0]
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert send(tmp_path / "2", there)[0]


@both
def test_the_servers_name_is_checked(tmp_path: Path, scheme: str) -> None:
    """A certificate for another name is refused unless `server_name_override` says that name."""
    authority = Authority()
    path = authority.write(tmp_path / "ca.pem")
    with SERVERS[scheme](tmp_path, authority, name="collector.example") as server:
        endpoint = f"{scheme}://localhost:{server.port}"
        wrong = Tls(ca_file=path, server_name="elsewhere.example")
        assert not send(tmp_path / "1", destination(endpoint, tls=wrong), 0.7)[0]
        right = Tls(ca_file=path, server_name="collector.example")
        assert send(tmp_path / "2", destination(endpoint, tls=right))[0]


@both
def test_mutual_tls(tmp_path: Path, scheme: str) -> None:
    """A server that asks for a certificate gets ours; without one nothing passes."""
    authority, clients = Authority(), Authority("clients")
    ca = authority.write(tmp_path / "ca.pem")
    cert, key = clients.issue("joulegram").write(tmp_path, "client")
    with SERVERS[scheme](tmp_path, authority, clients) as server:
        endpoint = f"{scheme}://localhost:{server.port}"
        assert not send(tmp_path / "1", destination(endpoint, tls=Tls(ca_file=ca)), 0.7)[0]
        assert server.taken == []
        mutual = Tls(ca_file=ca, cert_file=cert, key_file=key)
        assert send(tmp_path / "2", destination(endpoint, tls=mutual))[0]


@both
def test_a_renewed_certificate_is_taken_up(tmp_path: Path, scheme: str) -> None:
    """The one it started with is refused; the one that replaces it passes, without a restart."""
    authority, clients = Authority(), Authority("clients")
    ca = authority.write(tmp_path / "ca.pem")
    cert, key = Authority("stranger").issue("joulegram").write(tmp_path, "client")
    with SERVERS[scheme](tmp_path, authority, clients) as server:
        mutual = Tls(ca_file=ca, cert_file=cert, key_file=key)
        there = destination(f"{scheme}://localhost:{server.port}", tls=mutual)

        async def main() -> None:
            async with forwarding(tmp_path / "data", there, put=(request("a"),)) as forward:
                assert not await forward.upstream.drain(0.5)
                cert.write_bytes(b"half")
                assert not await forward.upstream.drain(0.3)
                clients.issue("joulegram").write(tmp_path, "client")
                assert await forward.upstream.drain(BUDGET_S)

        asyncio.run(main())
        assert names(server.taken) == ["a"]


def test_grpc_can_ask_for_a_version(tmp_path: Path) -> None:
    """As HTTP, below. Who asks for less gets as far as what the server speaks, which is not HTTP/2."""
    authority = Authority()
    ca = authority.write(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue().write(tmp_path, "server"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with OtlpHttpServer(context=context) as server:
        endpoint = f"grpcs://localhost:{server.port}"
        strict = send(tmp_path / "1", destination(endpoint, tls=Tls(ca_file=ca, min_version="1.3")), 0.5)
        assert "PROTOCOL_VERSION" in strict[1]
        assert send(tmp_path / "2", destination(endpoint, tls=Tls(ca_file=ca)), 0.5) == (
            False,
            f"UNAVAILABLE: localhost:{server.port}: the server did not agree to HTTP/2 (ALPN)",
        )


def test_grpc_speaks_the_version_it_asks_for(tmp_path: Path) -> None:
    """A server of gRPC has 1.3, and takes what comes."""
    authority = Authority()
    ca = authority.write(tmp_path / "ca.pem")
    with serve_grpc(tmp_path, authority) as server:
        there = destination(f"grpcs://localhost:{server.port}", tls=Tls(ca_file=ca, min_version="1.3"))
        assert send(tmp_path / "1", there) == (True, "")


def test_http_can_ask_for_a_version(tmp_path: Path) -> None:
    """`min_version: 1.3` does not speak with a server that has less."""
    authority = Authority()
    ca = authority.write(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue().write(tmp_path, "server"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with OtlpHttpServer(context=context) as server:
        endpoint = f"https://localhost:{server.port}"
        strict = Tls(ca_file=ca, min_version="1.3")
        assert not send(tmp_path / "1", destination(endpoint, tls=strict), 0.5)[0]
        assert send(tmp_path / "2", destination(endpoint, tls=Tls(ca_file=ca)))[0]


def _missing_ca(directory: Path) -> Tls:
    return Tls(ca_file=directory / "absent.pem")


def _broken_ca(directory: Path) -> Tls:
    (directory / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    return Tls(ca_file=directory / "broken.pem")


def _lone_cert(directory: Path) -> Tls:
    return Tls(cert_file=directory / "client.crt")


def _lone_key(directory: Path) -> Tls:
    return Tls(key_file=directory / "client.key")


def _other_key(directory: Path) -> Tls:
    cert, _ = Authority().issue("a").write(directory, "a")
    _, key = Authority().issue("b").write(directory, "b")
    return Tls(cert_file=cert, key_file=key)


BAD_TLS: dict[str, tuple[Callable[[Path], Tls], str]] = {
    "no ca_file": (_missing_ca, "upstream.tls.ca_file: got '"),
    "a ca_file that is no PEM": (_broken_ca, "upstream.tls.ca_file: got '"),
    "a certificate alone": (_lone_cert, "upstream.tls.cert_file: got '"),
    "a key alone": (_lone_key, "upstream.tls.key_file: got '"),
    "the key of another": (_other_key, "upstream.tls.cert_file: got '"),
    "a version": (lambda directory: Tls(min_version="1.1"), "upstream.tls.min_version: got '1.1', expected 1.2 or 1.3"),
}


@both
@pytest.mark.parametrize("case", BAD_TLS)
def test_files_that_cannot_be_used(tmp_path: Path, scheme: str, case: str) -> None:
    """Found at the start; the key is quoted with the file and what was expected."""
    make, expected = BAD_TLS[case]

    async def main() -> None:
        with pytest.raises(ConfigError) as error:
            async with forwarding(tmp_path, destination(f"{scheme}://localhost:1", tls=make(tmp_path))):
                pass
        assert str(error.value).startswith(expected)

    asyncio.run(main())
