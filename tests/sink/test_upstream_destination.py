"""The configuration of a destination as the sender takes it: endpoints, headers, compression, and their errors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from joulegram_pipeline.errors import ConfigError
from joulegram_sink.upstream_destination import Header, parse_endpoint
from simulators.forwarding import destination, forwarding

if TYPE_CHECKING:
    from pathlib import Path

GOOD_ENDPOINTS = {
    "grpc://127.0.0.1:4317": ("grpc", "127.0.0.1:4317", "", True),
    "grpc://[::1]:4317": ("grpc", "[::1]:4317", "", True),
    "grpcs://collector": ("grpcs", "collector:443", "", False),
    "http://localhost:4318/": ("http", "localhost:4318", "", True),
    "https://otlp.example.com/base/": ("https", "otlp.example.com:443", "/base", False),
    "http://10.0.0.7:4318": ("http", "10.0.0.7:4318", "", False),
}


@pytest.mark.parametrize("text", GOOD_ENDPOINTS)
def test_endpoints(text: str) -> None:
    """Scheme, host and port, path; and whether what is sent leaves the machine."""
    found = parse_endpoint(text)
    assert (found.scheme, found.target, found.path, found.is_loopback) == GOOD_ENDPOINTS[text]


BAD_ENDPOINTS = {
    "another scheme": "ftp://127.0.0.1:4318",
    "no scheme": "127.0.0.1:4317",
    "no port": "grpc://127.0.0.1",
    "no host": "grpc://:4317",
    "a port that is none": "grpc://127.0.0.1:otlp",
    "a port out of range": "http://127.0.0.1:70000",
    "a path on gRPC": "grpc://127.0.0.1:4317/v1/traces",
    "a query": "http://127.0.0.1:4318/?a=b",
    "a space": "http://127.0.0.1 :4318",
    "nothing": "",
}


@pytest.mark.parametrize("endpoint", BAD_ENDPOINTS.values(), ids=BAD_ENDPOINTS.keys())
def test_a_bad_endpoint_is_a_config_error(tmp_path: Path, endpoint: str) -> None:
    """The error names the key, quotes the value and says what may stand there."""

    async def main() -> None:
        with pytest.raises(ConfigError, match="expected grpc://host:port or http://host:port") as error:
            async with forwarding(tmp_path, destination(endpoint)):
                pass
        assert (error.value.key, error.value.got) == ("upstream.endpoint", endpoint)

    asyncio.run(main())


def test_credentials_in_an_endpoint_are_refused_and_not_repeated() -> None:
    """They belong into a header, which is never shown (S0-63)."""
    with pytest.raises(ConfigError, match=r"got 'http://\.\.\.@collector:4318'") as error:
        parse_endpoint("http://alice:hunter2@collector:4318")
    assert "hunter2" not in str(error.value)


BAD_HEADERS = {
    "upper case": Header("X-Tenant", "red"),
    "of the transport": Header("content-type", "text/plain"),
    "binary": Header("x-trace-bin", "00"),
    "of gRPC": Header("grpc-timeout", "1S"),
    "a line feed": Header("x-tenant", "hunter2\nx-admin: yes"),
    "not ASCII": Header("x-tenant", "hunter2\u00e9"),
    "a prefix of two lines": Header("x-tenant", "hunter2", prefix="a\n"),
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_a_bad_header_is_a_config_error_that_does_not_show_it(tmp_path: Path, header: Header) -> None:
    """The key is quoted, the value is not."""

    async def main() -> None:
        with pytest.raises(ConfigError, match=rf"upstream\.headers\.{header.name}: got") as error:
            async with forwarding(tmp_path, destination("grpc://127.0.0.1:1", headers=(header,))):
                pass
        assert "hunter2" not in str(error.value)

    asyncio.run(main())


def test_a_header_file_must_be_there_at_the_start(tmp_path: Path) -> None:
    """Later it may be away for a moment; at the start its absence is a mistake."""

    async def main(path: Path) -> None:
        header = Header("authorization", file=path)
        with pytest.raises(ConfigError, match=r"upstream\.headers\.authorization\.file: got '.*expected a file of one"):
            async with forwarding(tmp_path, destination("grpc://127.0.0.1:1", headers=(header,))):
                pass

    asyncio.run(main(tmp_path / "absent"))
    (tmp_path / "two").write_text("one\ntwo\n")
    asyncio.run(main(tmp_path / "two"))


def test_a_compression_that_grpc_has_not(tmp_path: Path) -> None:
    """It is said at the start, with the key."""

    async def main() -> None:
        with pytest.raises(ConfigError, match=r"upstream\.compression: got 'snappy', expected none, gzip or zstd"):
            async with forwarding(tmp_path, destination("grpc://127.0.0.1:1", compression="snappy")):
                pass

    asyncio.run(main())
