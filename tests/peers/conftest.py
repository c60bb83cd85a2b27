"""The peers, built once; where one cannot be had its tests are skipped with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from peers.build import PeerMissingError, go_program, json_exporter_python

if TYPE_CHECKING:
    from pathlib import Path


def _program(name: str) -> Path:
    try:
        return go_program(name)
    except PeerMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def otelcol() -> Path:
    """The Collector."""
    return _program("otelcol")


@pytest.fixture(scope="session")
def telemetrygen() -> Path:
    """The Collector's load generator."""
    return _program("telemetrygen")


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    """A gRPC client that knows nothing of OTLP."""
    return _program("grpcurl")


@pytest.fixture(scope="session")
def h2spec() -> Path:
    """The conformance tests of HTTP/2."""
    return _program("h2spec")


@pytest.fixture(scope="session")
def json_python() -> Path:
    """A Python with the JSON exporter."""
    try:
        return json_exporter_python()
    except PeerMissingError as error:
        pytest.skip(str(error))
