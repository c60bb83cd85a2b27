"""Bearer tokens over both transports: who is served, what the others are told, and what is never said."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import uvicorn
from google.rpc import status_pb2

from joulegram_pipeline.metrics import Metrics
from joulegram_receiver.cors import CorsRules, cors_app
from joulegram_receiver.grpc_extras import HEALTH_SERVICE, Health, reflection_methods
from joulegram_receiver.grpc_methods import Unary
from joulegram_receiver.tls import Certificates, TlsFiles
from joulegram_receiver.tokens import TokenFile, bearer_app, bearer_calls
from simulators.certificates import Authority
from simulators.grpc_methods import ECHO, serving
from simulators.otlp_server import SERVICES
from simulators.token_files import FIRST, SECOND, bearer, tokens, write

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from joulegram_receiver.admission import Hold
    from joulegram_receiver.http2_head import Head


class GrpcClient:
    """A server that asks for tokens, what it was handed, and a channel to it."""

    def __init__(self, channel: grpc.aio.Channel, metrics: Metrics, health: Health, handed: list[int]) -> None:
        self.channel = channel
        self.metrics = metrics
        self.health = health
        self.handed = handed

    async def export(self, request: bytes = b"hello", *metadata: tuple[str, str], signal: str = "traces") -> bytes:
        call = self.channel.unary_unary(f"/{SERVICES[signal]}/Export", None, None)
        response: bytes = await call(request, metadata=metadata, timeout=8)
        return response

    def refused(self, signal: str) -> float | None:
        labels = {"signal": signal, "reason": "unauthenticated"}
        return self.metrics.registry.get_sample_value("joulegram_receiver_refused_requests_total", labels)


@asynccontextmanager
async def grpc_server(known: TokenFile) -> AsyncIterator[GrpcClient]:
    metrics, health = Metrics(), Health()
    handed: list[int] = []

    async def export(request: bytes, head: Head, hold: Hold) -> bytes:
        handed.append(len(request))
        return request

    methods = {f"/{service}/Export": Unary(export) for service in SERVICES.values()}
    every = methods | health.methods() | reflection_methods()
    async with serving(every, authorize=bearer_calls(known, metrics)) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield GrpcClient(channel, metrics, health, handed)
        health.close()


def authorization(token: str) -> tuple[str, str]:
    return ("authorization", bearer(token))


@pytest.mark.parametrize("signal", SERVICES)
def test_grpc_refuses_who_has_no_token(tmp_path: Path, signal: str) -> None:
    """UNAUTHENTICATED, counted by signal, the handler never called; with a token the same call is answered."""

    async def main() -> None:
        async with grpc_server(tokens(tmp_path)) as client:
            for metadata in ((), (authorization("third"),), (("authorization", FIRST),), (authorization(FIRST),) * 2):
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await client.export(b"hello", *metadata, signal=signal)
                assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert "expected" in (refusal.value.details() or "")
            assert client.handed == []
            assert client.refused(signal) == 4
            assert await client.export(b"hello", authorization(SECOND), signal=signal) == b"hello"
            assert client.refused(signal) == 4

    asyncio.run(main())


def test_grpc_refuses_before_a_large_body_is_read(tmp_path: Path) -> None:
    """A client that sends 32 MiB without a token is answered, and not with what its size would give."""

    async def main() -> None:
        async with grpc_server(tokens(tmp_path)) as client:
            large = bytes(32 << 20)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await client.export(large)
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert client.handed == []
            assert len(await client.export(b"x" * 100, authorization(FIRST))) == 100

    asyncio.run(main())


def test_grpc_tells_a_stranger_nothing_of_its_methods(tmp_path: Path) -> None:
    """An unknown method is UNAUTHENTICATED too, and reflection needs a token like data does."""

    async def main() -> None:
        async with grpc_server(tokens(tmp_path)) as client:
            for method in ("/no.Service/Method", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"):
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await client.channel.unary_unary(method, None, None)(b"", timeout=8)
                assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
            call = client.channel.unary_unary("/no.Service/Method", None, None)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await call(b"", timeout=8, metadata=(authorization(FIRST),))
            assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(main())


def test_grpc_health_needs_no_token(tmp_path: Path) -> None:
    """The kubelet's probe has none to send."""

    async def main() -> None:
        async with grpc_server(tokens(tmp_path)) as client:
            client.health.set_serving(True)
            call = client.channel.unary_unary(f"/{HEALTH_SERVICE}/Check", None, None)
            assert await call(b"", timeout=8) == b"\x08\x01"

    asyncio.run(main())


def test_grpc_follows_a_rotation(tmp_path: Path) -> None:
    """On one open channel: the old token's calls end, the new one's begin."""

    async def main() -> None:
        async with grpc_server(tokens(tmp_path, FIRST)) as client:
            assert await client.export(b"a", authorization(FIRST)) == b"a"
            write(tmp_path, SECOND)
            with pytest.raises(grpc.aio.AioRpcError, match="not known here"):
                await client.export(b"a", authorization(FIRST))
            assert await client.export(b"a", authorization(SECOND)) == b"a"

    asyncio.run(main())


def test_grpc_over_tls_on_a_unix_socket(tmp_path: Path) -> None:
    """The three kinds of access together: a token, in TLS, through a socket file of mode 0660."""
    authority = Authority()
    cert, key = authority.issue().write(tmp_path)

    async def main() -> None:
        certificates = Certificates(TlsFiles(cert, key), "receiver.protocols.grpc.tls")
        socket_file = tmp_path / "otlp.sock"
        method = f"/{SERVICES['logs']}/Export"
        server = serving(
            {method: ECHO},
            f"unix://{socket_file}",
            ssl_context=certificates.ssl_context("h2"),
            authorize=bearer_calls(tokens(tmp_path), Metrics()),
        )
        options = [("grpc.default_authority", "localhost")]
        credentials = grpc.ssl_channel_credentials(authority.pem)
        async with server:
            assert socket_file.stat().st_mode & 0o777 == 0o660
            async with grpc.aio.secure_channel(f"unix:{socket_file}", credentials, options) as channel:
                call = channel.unary_unary(method, None, None)
                assert await call(b"x", metadata=(authorization(FIRST),), timeout=8) == b"x"
                with pytest.raises(grpc.aio.AioRpcError, match="no authorization header"):
                    await call(b"x", timeout=8)
        assert not socket_file.exists()

    asyncio.run(main())


class _Server(uvicorn.Server):
    """Says when it is up, and leaves signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.up.set()


@asynccontextmanager
async def http_server(app: Any) -> AsyncIterator[int]:
    config = uvicorn.Config(app, port=0, lifespan="off", log_config=None, http="httptools", timeout_graceful_shutdown=1)
    server = _Server(config)
    task = asyncio.create_task(server.serve())
    await server.up.wait()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def echo_app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


async def request(
    port: int, path: str = "/v1/traces", method: str = "POST", body: bytes = b"hello", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    def ask() -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=8)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


ENCODINGS = {
    "protobuf": ("application/x-protobuf", "application/x-protobuf"),
    "JSON": ("application/json", "application/json"),
    "JSON with a parameter": ("Application/JSON; charset=utf-8", "application/json"),
    "text": ("text/plain", "application/x-protobuf"),
    "nothing": ("", "application/x-protobuf"),
}


@pytest.mark.parametrize(("sent", "answered"), ENCODINGS.values(), ids=ENCODINGS)
def test_http_refuses_with_a_status_in_the_encoding_of_the_request(tmp_path: Path, sent: str, answered: str) -> None:
    """H5: 401, a challenge (RFC 6750 section 3), and a google.rpc.Status that a client of OTLP can read."""
    metrics = Metrics()

    async def main() -> None:
        async with http_server(bearer_app(echo_app, tokens(tmp_path), metrics)) as port:
            status, headers, body = await request(port, content_type=sent)
            assert (status, headers["content-type"]) == (401, answered)
            assert headers["www-authenticate"] == 'Bearer realm="joulegram"'
            if answered == "application/json":
                found = json.loads(body)
            else:
                message = status_pb2.Status.FromString(body)
                found = {"code": message.code, "message": message.message}
            assert found == {
                "code": 16,
                "message": "got no authorization header, expected 'authorization: Bearer <token>'",
            }
            status, headers, _ = await request(port, content_type=sent, authorization=bearer("third"))
            assert status == 401
            assert headers["www-authenticate"] == 'Bearer realm="joulegram", error="invalid_token"'
            status, _, body = await request(port, content_type=sent, authorization=bearer(SECOND))
            assert (status, body) == (200, b"hello")

    asyncio.run(main())
    labels = {"signal": "traces", "reason": "unauthenticated"}
    assert metrics.registry.get_sample_value("joulegram_receiver_refused_requests_total", labels) == 2


def test_http_refuses_every_path_and_follows_a_rotation(tmp_path: Path) -> None:
    """Unknown paths and methods too; one open server, two files."""

    async def main() -> None:
        async with http_server(bearer_app(echo_app, tokens(tmp_path, FIRST), Metrics())) as port:
            for path, method in (("/", "GET"), ("/v1/none", "POST"), ("/v1/logs", "DELETE")):
                assert (await request(port, path, method))[0] == 401
            assert (await request(port, authorization=bearer(FIRST)))[0] == 200
            write(tmp_path, SECOND)
            assert (await request(port, authorization=bearer(FIRST)))[0] == 401
            assert (await request(port, authorization=bearer(SECOND)))[0] == 200

    asyncio.run(main())


def test_a_browsers_preflight_needs_no_token_and_its_request_does(tmp_path: Path) -> None:
    """CORS goes around the tokens: a preflight carries none, and the 401 can be read by the allowed origin."""
    rules = CorsRules(("https://*.example.com",), ("Authorization",))

    async def main() -> None:
        app = cors_app(bearer_app(echo_app, tokens(tmp_path), Metrics()), rules)
        async with http_server(app) as port:
            origin = "https://app.example.com"
            status, headers, _ = await request(
                port,
                method="OPTIONS",
                body=b"",
                origin=origin,
                access_control_request_method="POST",
                access_control_request_headers="authorization,content-type",
            )
            assert (status, headers["access-control-allow-origin"]) == (204, origin)
            assert headers["access-control-allow-headers"] == "authorization, content-type"
            status, headers, _ = await request(port, origin=origin)
            assert (status, headers["access-control-allow-origin"]) == (401, origin)
            status, headers, body = await request(port, origin=origin, authorization=bearer(FIRST))
            assert (status, body, headers["access-control-allow-origin"]) == (200, b"hello", origin)

    asyncio.run(main())


def test_no_token_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At any level, over either transport, whether it lets in or not."""
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        known = tokens(tmp_path)
        async with http_server(bearer_app(echo_app, known, Metrics())) as port, grpc_server(known) as client:
            for token in (FIRST, "hunter2"):
                await request(port, authorization=bearer(token))
                with pytest.raises(grpc.aio.AioRpcError):
                    await client.export(b"a", authorization(token), authorization(token))
        write(tmp_path, SECOND)
        known.refusal([bearer(SECOND)])

    asyncio.run(main())
    for token in (FIRST, SECOND, "hunter2"):
        assert token not in caplog.text
