"""`joulegram run` forwards to where the command would have sent, in the way it would have been sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from joulegram_service.config_upstream import destinations
from joulegram_service.run_upstream import implied_upstream

if TYPE_CHECKING:
    from pathlib import Path

OTLP = "OTEL_EXPORTER_OTLP_"


@pytest.mark.parametrize(
    ("endpoint", "protocol", "expected"),
    [
        ("http://collector:4317", "", "grpc://collector:4317"),
        ("http://collector:4317/", "grpc", "grpc://collector:4317"),
        ("https://otlp.example.com:443", "grpc", "grpcs://otlp.example.com:443"),
        ("http://collector:4318", "http/protobuf", "http://collector:4318"),
        ("https://otlp.example.com/base", "http/json", "https://otlp.example.com/base"),
    ],
)
def test_the_scheme_follows_endpoint_and_protocol(endpoint: str, protocol: str, expected: str) -> None:
    """Over gRPC and HTTP, each in the clear and with TLS."""
    variables = {f"{OTLP}ENDPOINT": endpoint, f"{OTLP}PROTOCOL": protocol}
    found = implied_upstream({name: value for name, value in variables.items() if value})
    assert found is not None
    (hop,) = destinations(found)
    assert (hop.name, hop.endpoint) == ("upstream", expected)


def test_headers_and_certificates_go_along(tmp_path: Path) -> None:
    """What the command would have shown its collector we show it too; values are percent-encoded there."""
    authority = tmp_path / "ca.pem"
    found = implied_upstream(
        {
            f"{OTLP}ENDPOINT": "https://otlp.example.com",
            f"{OTLP}PROTOCOL": "http/protobuf",
            f"{OTLP}HEADERS": "api-key=a%20b, x-team=etl",
            f"{OTLP}CERTIFICATE": str(authority),
        }
    )
    assert found is not None
    (hop,) = destinations(found)
    assert {header.name: header.value for header in hop.headers} == {"api-key": "a b", "x-team": "etl"}
    assert hop.tls is not None
    assert hop.tls.ca_file == authority
    assert "a b" not in repr(found)


def test_without_an_endpoint_nothing_is_forwarded(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is said of it."""
    assert implied_upstream({}) is None
    assert implied_upstream({f"{OTLP}ENDPOINT": ""}) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"ENDPOINT": "collector:4317"}, "got 'collector:4317', expected http://host:port or https://host"),
        ({"ENDPOINT": "unix:/run/otlp.sock"}, "got 'unix:/run/otlp.sock', expected http://host:port"),
        ({"ENDPOINT": "http://collector"}, "got 'http://collector', expected grpc://host:port"),
        ({"ENDPOINT": "http://c:1", "HEADERS": "a b=secret"}, "got 'OTEL_EXPORTER_OTLP_HEADERS', expected key=value"),
    ],
)
def test_what_cannot_be_used_is_told(environ: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The run is recorded all the same; what a header says is not repeated."""
    assert implied_upstream({OTLP + name: value for name, value in environ.items()}) is None
    error = capsys.readouterr().err
    assert error.startswith("joulegram: OTEL_EXPORTER_OTLP_ENDPOINT: ")
    assert said in error
    assert "secret" not in error
