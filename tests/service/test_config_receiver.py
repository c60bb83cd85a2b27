"""The keys under `receiver`: defaults, every kind of fault, and the examples of docs/access.md."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from joulegram_pipeline.errors import ConfigError
from joulegram_receiver.listener import parse_endpoint
from joulegram_service.config import Config
from joulegram_service.config_file import keys_of, load_config, section_of
from joulegram_service.config_receiver import ReceiverConfig

if TYPE_CHECKING:
    from joulegram_service.config_types import Section

PAGE = (Path(__file__).parents[2] / "docs" / "access.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"## ([^\n]+)\n(?:(?!\n## ).)*?```yaml\n(.*?)```", PAGE, re.DOTALL))
MIB = 1 << 20
TLS = {"cert_file": "/c", "key_file": "/k"}


def load(path: Path, text: str, env: dict[str, str] | None = None) -> Config:
    file = path / "joulegram.yaml"
    file.write_text(text)
    return load_config(file, {}, env or {})


def test_the_defaults() -> None:
    """Loopback, plaintext, 64 MiB a request (A2), nobody asked for anything."""
    receiver = load_config(None, {}, {}).receiver
    grpc, http = receiver.protocols.grpc, receiver.protocols.http
    assert grpc.endpoint == "127.0.0.1:4317"
    assert (grpc.tls, grpc.auth, grpc.reflection) == (None, None, False)
    assert (grpc.max_recv_msg_size_mib, grpc.max_concurrent_streams) == (64, 1024)
    assert set(vars(grpc.keepalive.server_parameters).values()) == {None}
    assert (http.tls, http.auth, http.cors.allowed_origins, http.cors.max_age) == (None, None, (), 0)
    assert (http.max_request_body_size, http.max_header_bytes) == (64 * MIB, 16 * 1024)
    assert (http.max_connections, http.read_timeout) == (1024, 30 * 10**9)
    assert (receiver.limits.in_flight, receiver.limits.queue) == (256 * MIB, 64 * MIB)
    assert receiver.metadata_keys == ()


def test_every_key_is_read(tmp_path: Path) -> None:
    """As the Collector spells them, each into its unit."""
    receiver = load(
        tmp_path,
        """
receiver:
  protocols:
    grpc:
      endpoint: unix:///run/otlp.sock
      tls: {cert_file: c.pem, key_file: k.pem, client_ca_file: ca.pem, min_version: 1.2, reload_interval: 1m}
      auth: {bearer_token_file: tokens}
      max_recv_msg_size_mib: 8
      max_concurrent_streams: ${env:STREAMS}
      max_connections: 12
      keepalive:
        server_parameters:
          {max_connection_idle: 5m, max_connection_age: 1h, max_connection_age_grace: 30s, time: 2m, timeout: 500ms}
      reflection: ${env:REFLECTION}
    http:
      endpoint: "[::1]:4318"
      tls: {cert_file: c.pem, key_file: k.pem, min_version: 1.3}
      auth: {bearer_token_file: tokens}
      cors: {allowed_origins: ["https://*.a.org"], allowed_headers: ["*"], exposed_headers: [x-a], max_age: 60}
      max_request_body_size: 8MiB
      max_header_bytes: 32KiB
      max_connections: 10
      max_connection_age: 2h
      read_timeout: 5s
  limits: {in_flight: 1GiB, queue: 32MiB}
  metadata_keys: [X-Tenant, x-scope]
""",
        {"STREAMS": "100", "REFLECTION": "true"},
    ).receiver
    assert json.loads(json.dumps(asdict(receiver), default=str)) == {
        "protocols": {
            "grpc": {
                "endpoint": "unix:///run/otlp.sock",
                "tls": {
                    "cert_file": "c.pem",
                    "key_file": "k.pem",
                    "client_ca_file": "ca.pem",
                    "min_version": "1.2",
                    "reload_interval": 60 * 10**9,
                },
                "auth": {"bearer_token_file": "tokens"},
                "max_recv_msg_size_mib": 8,
                "max_concurrent_streams": 100,
                "max_connections": 12,
                "keepalive": {
                    "server_parameters": {
                        "max_connection_idle": 300 * 10**9,
                        "max_connection_age": 3600 * 10**9,
                        "max_connection_age_grace": 30 * 10**9,
                        "time": 120 * 10**9,
                        "timeout": 5 * 10**8,
                    }
                },
                "reflection": True,
            },
            "http": {
                "endpoint": "[::1]:4318",
                "tls": {
                    "cert_file": "c.pem",
                    "key_file": "k.pem",
                    "client_ca_file": None,
                    "min_version": "1.3",
                    "reload_interval": 10 * 10**9,
                },
                "auth": {"bearer_token_file": "tokens"},
                "cors": {
                    "allowed_origins": ["https://*.a.org"],
                    "allowed_headers": ["*"],
                    "exposed_headers": ["x-a"],
                    "max_age": 60,
                },
                "max_request_body_size": 8 * MIB,
                "max_header_bytes": 32 * 1024,
                "max_connections": 10,
                "max_connection_age": 7200 * 10**9,
                "read_timeout": 5 * 10**9,
            },
        },
        "limits": {"in_flight": 1024 * MIB, "queue": 32 * MIB},
        "metadata_keys": ["x-tenant", "x-scope"],
    }


GRPC, HTTP = "receiver.protocols.grpc.", "receiver.protocols.http."
BAD: dict[str, tuple[str, Any, str]] = {
    "an endpoint that is none": (GRPC + "endpoint", "localhost", "host:port, as 127.0.0.1:4317"),
    "an endpoint that is a URL": (HTTP + "endpoint", "http://a:1", "or unix:/path"),
    "a socket of a relative path": (GRPC + "endpoint", "unix:otlp.sock", "unix: and an absolute path of 107 bytes"),
    "a socket whose path is too long": (HTTP + "endpoint", "unix:/" + "x" * 107, "unix: and an absolute path of 107"),
    "a certificate without its key": (GRPC + "tls", {"cert_file": "/c"}, "a value: it is required"),
    "a key without its certificate": (HTTP + "tls", {"key_file": "/k"}, "a value: it is required"),
    "a certificate of no path": (GRPC + "tls.cert_file", 5, "a path of a file"),
    "an oldest TLS of gRPC": (GRPC + "tls.min_version", 1.1, "'1.2' or '1.3'"),
    "an oldest TLS that is none": (HTTP + "tls.min_version", "1.1", "'1.2' or '1.3'"),
    "an interval of nothing": (HTTP + "tls.reload_interval", "0s", "a duration above 0"),
    "an unknown key of TLS": (GRPC + "tls.ca_file", "/ca", "no such key; here may stand cert_file, client_ca_file"),
    "auth without a file": (GRPC + "auth", {}, "a value: it is required"),
    "an authenticator": (HTTP + "auth.authenticator", "oidc", "no such key; here may stand bearer_token_file"),
    "a token file of nothing": (HTTP + "auth.bearer_token_file", "", "a path of a file"),
    "a size of 0": (GRPC + "max_recv_msg_size_mib", 0, "a whole number from 1 to 1024"),
    "a size that is yes": (GRPC + "max_recv_msg_size_mib", True, "a whole number from 1 to 1024"),
    "a size that is a fraction": (GRPC + "max_recv_msg_size_mib", 1.5, "a whole number from 1 to 1024"),
    "a size with a unit too many": (GRPC + "max_recv_msg_size_mib", "64MiB", "a whole number from 1 to 1024"),
    "streams below 0": (GRPC + "max_concurrent_streams", -1, "a whole number from 1 to 1000000"),
    "an age without a unit": (GRPC + "keepalive.server_parameters.max_connection_age", 3600, "a duration with a unit"),
    "an age of 0": (GRPC + "keepalive.server_parameters.max_connection_age", "0s", "a duration above 0"),
    "a switch that is a number": (GRPC + "reflection", 1, "true or false"),
    "a switch that is on": (GRPC + "reflection", "on", "true or false"),
    "the Collector's metadata": (GRPC + "include_metadata", True, "no such key; here may stand auth, endpoint"),
    "a body without a unit": (HTTP + "max_request_body_size", 20971520, "a size with a unit, as 512KiB"),
    "a body of nothing": (HTTP + "max_request_body_size", "0MiB", "a size above 0"),
    "an origin with a path": (HTTP + "cors.allowed_origins", ["https://a.org/"], "an origin, as https://app"),
    "an origin without a scheme": (HTTP + "cors.allowed_origins", ["a.org"], "an origin, as https://app"),
    "origins that are text": (HTTP + "cors.allowed_origins", "https://a.org", "a list"),
    "a header with a space": (HTTP + "cors.allowed_headers", ["x tenant"], "the name of a header"),
    "a header with a colon": (HTTP + "cors.exposed_headers", ["x-a: b"], "the name of a header"),
    "any header as one that is exposed": (HTTP + "cors.exposed_headers", ["*"], "the name of a header"),
    "an age with a unit": (HTTP + "cors.max_age", "10m", "a whole number from 0 to 86400"),
    "no connections": (HTTP + "max_connections", 0, "a whole number from 1 to"),
    "an age of 0 over HTTP": (HTTP + "max_connection_age", "0s", "a duration above 0"),
    "a timeout of 0": (HTTP + "read_timeout", "0s", "a duration above 0"),
    "nothing in flight": ("receiver.limits.in_flight", "0B", "a size above 0"),
    "a queue without a unit": ("receiver.limits.queue", 64, "a size with a unit"),
    "a credential that is carried": ("receiver.metadata_keys", ["x-a", "Authorization"], "no credential"),
    "a binary header that is carried": ("receiver.metadata_keys", ["x-a-bin"], "a header of text"),
    "a header of gRPC that is carried": ("receiver.metadata_keys", ["grpc-timeout"], "not one of gRPC's own"),
    "a header gRPC does not take": ("receiver.metadata_keys", ["x~tenant"], "as gRPC takes them"),
    "a pseudo header that is carried": ("receiver.metadata_keys", [":path"], "the name of a header"),
}


@pytest.mark.parametrize(("key", "value", "expected"), BAD.values(), ids=BAD)
def test_a_fault_quotes_the_key_and_what_may_stand_there(tmp_path: Path, key: str, value: Any, expected: str) -> None:
    """One line, with the user's key; not the name of a class."""
    raw: Any = value
    for name in reversed(key.split(".")):
        raw = {name: raw, **(TLS if name in {"min_version", "reload_interval", "ca_file"} else {})}
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, yaml.safe_dump(raw))
    lines = str(caught.value).splitlines()
    assert any(line.startswith(key) and expected in line for line in lines), lines
    assert "Config" not in str(caught.value)


ENDPOINTS = ["127.0.0.1:0", "localhost:4317", "[::]:1", "unix:/a", "unix:///a/b.sock", "unix:/" + "x" * 106]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_endpoint_the_file_may_hold_is_one_the_listener_takes(tmp_path: Path, endpoint: str) -> None:
    """Two readers of one syntax agree."""
    text = yaml.safe_dump({"receiver": {"protocols": {"http": {"endpoint": endpoint}}}})
    assert load(tmp_path, text).receiver.protocols.http.endpoint == endpoint
    parse_endpoint(endpoint, "k")


@pytest.mark.parametrize("heading", EXAMPLES)
def test_an_example_of_the_page_loads(tmp_path: Path, heading: str) -> None:
    """And changes what the section is about."""
    config = load(tmp_path, EXAMPLES[heading])
    assert config.receiver != Config().receiver
    assert replace(config, receiver=Config().receiver) == Config()


def test_every_section_of_the_page_has_its_example() -> None:
    """No YAML of the page escapes the test above."""
    assert PAGE.count("```yaml") == len(EXAMPLES) == 7
    assert len(re.findall(r"^## ", PAGE, re.MULTILINE)) == 7


def names_below(section: type[Section]) -> set[str]:
    """The names of all keys of a section and of those in it."""
    kinds = keys_of(section)
    inner = [found for found in map(section_of, kinds.values()) if found is not None]
    return set(kinds).union(*map(names_below, inner))


def test_the_page_names_no_key_that_does_not_exist() -> None:
    """Words in code that look like keys are keys of this section."""
    known = names_below(ReceiverConfig)
    for word in re.findall(r"`((?!joulegram_)[a-z]+(?:_[a-z]+)+)`", PAGE):
        assert word in known, word
