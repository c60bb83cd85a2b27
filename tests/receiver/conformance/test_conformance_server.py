"""What is expected of a server like the Collector beside OTLP: the otlp reference, section 1.4, seen on the wire."""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from receiver.conformance.hop import TIMEOUT_S, WITHOUT_ENERGY, Hop, one_span
from simulators.certificates import Authority
from simulators.receivers import BY_NAME, JSON, PROTOBUF
from simulators.sidecar import Serve, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXPORT = f"/{BY_NAME['traces'].service}/Export"
TOKEN = "a-token-of-the-test"
RIGHT = f"Bearer {TOKEN}"
TOKEN_HEADER = (("authorization", RIGHT),)
_HTTP_PORT = re.compile(r"OTLP/HTTP on \S+, port (\d+)")

GUARDED = """
receiver:
  protocols:
    grpc:
      tls: &tls {{cert_file: '{cert}', key_file: '{key}', client_ca_file: '{ca}'}}
      auth: &auth {{bearer_token_file: '{tokens}'}}
      keepalive: {{server_parameters: {{max_connection_age: 300ms, max_connection_age_grace: 5s}}}}
    http:
      tls: *tls
      auth: *auth
      cors: {{allowed_origins: ['https://*.example.org'], allowed_headers: [authorization]}}
"""


@dataclass(frozen=True)
class Guarded:
    """A sidecar behind TLS, certificates of clients, tokens and CORS."""

    serve: Serve
    authority: Authority
    folder: Path

    def channel(self, *, certificate: bool = True) -> grpc.Channel:
        """To its gRPC listener, perhaps without a certificate of the client."""
        cert, key = (self.folder / "client.crt").read_bytes(), (self.folder / "client.key").read_bytes()
        pair = (key, cert) if certificate else (None, None)
        credentials = grpc.ssl_channel_credentials(self.authority.pem, *pair)
        return grpc.secure_channel(self.serve.target, credentials)

    def ask(self, method: str, headers: dict[str, str], *, certificate: bool = True) -> tuple[int, Any, bytes]:
        """One request for /v1/traces with an empty body over HTTPS: status, headers and body."""
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        if certificate:
            context.load_cert_chain(self.folder / "client.crt", self.folder / "client.key")
        port = int(self.serve.wait_for(_HTTP_PORT)[1])
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)
        try:
            connection.request(method, "/v1/traces", b"", headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The sidecar that the sections of docs/access.md make together."""
    folder = tmp_path_factory.mktemp("guarded")
    authority = Authority()
    cert, key = authority.issue().write(folder, "server")
    authority.issue("client").write(folder, "client")
    tokens, config = folder / "tokens", folder / "joulegram.yaml"
    tokens.write_text(TOKEN + "\n")
    tokens.chmod(0o600)
    paths = {"cert": cert, "key": key, "ca": authority.write(folder / "ca.pem"), "tokens": tokens}
    config.write_text(GUARDED.format(**paths) + WITHOUT_ENERGY)
    with Serve(folder, f"--config={config}") as serve:
        yield Guarded(serve.wait_ready(), authority, folder)


def test_server_mtls_over_grpc(guarded: Guarded) -> None:
    """A client with a certificate of the authority is served, one without gets no connection."""
    with guarded.channel() as channel:
        call = channel.unary_unary(EXPORT, None, None)
        assert call(one_span("tls"), timeout=TIMEOUT_S, metadata=TOKEN_HEADER) == b""
    with guarded.channel(certificate=False) as channel:
        call = channel.unary_unary(EXPORT, None, None)
        with pytest.raises(grpc.RpcError) as refusal:
            call(one_span("tls"), timeout=TIMEOUT_S, metadata=TOKEN_HEADER)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


def test_server_mtls_over_http(guarded: Guarded) -> None:
    """The same over HTTPS."""
    headers = {"content-type": PROTOBUF, "authorization": RIGHT}
    assert guarded.ask("POST", headers)[0] == 200
    with pytest.raises((ssl.SSLError, ConnectionError)):
        guarded.ask("POST", headers, certificate=False)


@pytest.mark.parametrize("headers", [(), (("authorization", "Bearer another"),)], ids=["none", "wrong"])
def test_server_a_token_that_is_missing_is_unauthenticated(
    guarded: Guarded, headers: tuple[tuple[str, str], ...]
) -> None:
    """UNAUTHENTICATED, and 401 with a Status (H5)."""
    with guarded.channel() as channel:
        with pytest.raises(grpc.RpcError) as refusal:
            channel.unary_unary(EXPORT, None, None)(b"", timeout=TIMEOUT_S, metadata=headers)
        assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
    status, named, body = guarded.ask("POST", {"content-type": PROTOBUF} | dict(headers))
    assert (status, named["www-authenticate"].split()[0]) == (401, "Bearer")
    assert status_pb2.Status.FromString(body).code == code_pb2.UNAUTHENTICATED


def test_server_cors(guarded: Guarded) -> None:
    """A browser's question is answered without a token, for allowed origins alone; what follows needs the token."""
    origin = {"origin": "https://app.example.org"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    status, named, _ = guarded.ask("OPTIONS", origin | asks)
    assert (status // 100, named["access-control-allow-origin"]) == (2, origin["origin"])
    status, named, _ = guarded.ask("OPTIONS", {"origin": "https://evil.example"} | asks)
    assert named["access-control-allow-origin"] is None
    status, named, _ = guarded.ask("POST", origin | {"content-type": JSON})
    assert status == 401
    status, named, _ = guarded.ask("POST", origin | {"content-type": PROTOBUF, "authorization": RIGHT})
    assert (status, named["access-control-allow-origin"]) == (200, origin["origin"])


def test_server_an_aged_connection_is_replaced(guarded: Guarded) -> None:
    """max_connection_age: the client is asked to connect anew, and no call is lost."""
    with guarded.channel() as channel:
        states: list[grpc.ChannelConnectivity] = []
        channel.subscribe(states.append)
        call = channel.unary_unary(EXPORT, None, None)

        def again() -> bool:
            assert call(b"", timeout=TIMEOUT_S, metadata=TOKEN_HEADER, wait_for_ready=True) == b""
            return states.count(grpc.ChannelConnectivity.READY) > 1

        wait_until(again, "a second connection")


def test_server_max_concurrent_streams(tmp_path: Path) -> None:
    """What one connection may have under way: further calls wait at their client, or are to be tried again.

    gRPC's client may begin a call in the moment in which its server has not put the last one away; the refusal is
    UNAVAILABLE, which OTLP clients retry.
    """
    config = tmp_path / "joulegram.yaml"
    config.write_text("receiver: {protocols: {grpc: {max_concurrent_streams: 2}}}\n" + WITHOUT_ENERGY)
    with Serve(tmp_path, f"--config={config}") as serve, grpc.insecure_channel(serve.wait_ready().target) as channel:
        call = channel.unary_unary(EXPORT, None, None)
        left = [one_span("streams", number + 1) for number in range(20)]

        def all_taken() -> bool:
            under_way = [(request, call.future(request, timeout=TIMEOUT_S)) for request in left]
            left[:] = [request for request, each in under_way if each.code() is not grpc.StatusCode.OK]
            assert {each.code() for _, each in under_way} <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
            return not left

        wait_until(all_taken, "every call answered")


@pytest.mark.parametrize("service", ["", *(signal.service for signal in BY_NAME.values())])
def test_server_health_on_the_otlp_port(hop: Hop, service: str) -> None:
    """grpc.health.v1, what users of the Collector ask for since 2021, for the server and for each service."""
    stub: Any = health_pb2_grpc.HealthStub(hop.channel)
    found = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
    assert found.status == health_pb2.HealthCheckResponse.SERVING


def test_server_health_needs_no_token(guarded: Guarded) -> None:
    """What a probe asks is no secret."""
    with guarded.channel() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        found = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert found.status == health_pb2.HealthCheckResponse.SERVING


def test_server_unix_sockets(tmp_path: Path) -> None:
    """Both transports without a port, for the owner and its group."""
    paths = {name: tmp_path / f"{name}.sock" for name in ("grpc", "http")}
    flags = [f"--{name}-endpoint=unix:{path}" for name, path in paths.items()]
    with Serve(tmp_path, "--source=none", *flags) as serve:
        serve.wait_ready()
        assert {path.stat().st_mode & 0o777 for path in paths.values()} == {0o660}
        with grpc.insecure_channel(f"unix:{paths['grpc']}") as channel:
            assert channel.unary_unary(EXPORT, None, None)(one_span("unix"), timeout=TIMEOUT_S) == b""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(os.fspath(paths["http"]))
            head = b"POST /v1/traces HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n"
            connection.sendall(head + b"content-length: 2\r\n\r\n{}")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")


def test_server_warns_of_a_plaintext_listener_that_others_reach(tmp_path: Path) -> None:
    """Loopback by default; any other address without TLS is said at the start, and counted."""
    with Serve(tmp_path, "--source=none", "--http-endpoint=0.0.0.0:0") as serve:
        serve.wait_ready()
        assert "receiver.protocols.http" in next(line for line in serve.said.splitlines() if "WARNING" in line)
        assert "joulegram_receiver_plaintext_listeners 1.0" in serve.get("/metrics")[1]
