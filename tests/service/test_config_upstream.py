"""The keys under `upstream`: the short form, the long one, and errors that quote the key and no secret."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import ValidationError

from joulegram_pipeline.errors import ConfigError
from joulegram_service.config_file import keys_of, section_of, validated
from joulegram_service.config_upstream import DestinationConfig, UpstreamConfig, destinations
from joulegram_sink.upstream import Destination
from joulegram_sink.upstream_destination import Batching, Header, Retry, Tls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_service.config_types import Section

GIB = 1 << 30
MIB = 1 << 20


def read(text: str) -> UpstreamConfig:
    return validated(UpstreamConfig, yaml.safe_load(text) or {})


def errors(text: str) -> list[tuple[str, str, Any]]:
    """Key, what was expected, and what stood there."""
    with pytest.raises(ValidationError) as caught:
        read(text)
    return [(".".join(map(str, each["loc"])), each["msg"], each["input"]) for each in caught.value.errors()]


def test_nothing_forwards_nowhere() -> None:
    """Without a key there is no destination."""
    assert destinations(read("")) == ()


def test_the_short_form() -> None:
    """One destination called `upstream`, with the defaults; errors call its key as it was set."""
    config = read("endpoint: grpc://collector:4317")
    assert destinations(config) == (Destination("upstream", "grpc://collector:4317"),)
    (found,) = destinations(config, "--upstream (upstream.endpoint)")
    assert found.key == "--upstream (upstream.endpoint)"


def test_an_empty_destination_has_the_defaults_of_the_sink() -> None:
    """The defaults stand in one place."""
    (found,) = destinations(read("destinations: {one: {endpoint: 'https://otlp.example.com'}}"))
    assert found == Destination("one", "https://otlp.example.com", "upstream.destinations.one.endpoint")


def test_the_long_form() -> None:
    """Every key, spelled as the Collector's exporters spell it."""
    text = """
    destinations:
      backend:
        endpoint: https://otlp.example.com/base
        traces_endpoint: https://traces.example.com/api
        compression: zstd
        tls: {ca_file: ca.pem, cert_file: c.pem, key_file: k.pem, server_name_override: x.example, min_version: 1.3}
        headers:
          X-Tenant: red
          x-number: 7
          authorization: {file: token, prefix: 'Bearer '}
        timeout: 5s
        retry_on_failure:
          enabled: true
          initial_interval: 1s
          randomization_factor: 0.2
          multiplier: 2
          max_interval: 30s
          max_elapsed_time: 5m
        sending_queue:
          num_consumers: 4
          queue_size: 1GiB
          batch: {flush_timeout: 200ms, min_size: 64KiB, max_size: 2MiB, max_requests: 100}
      local:
        endpoint: grpc://localhost:4317
        tls: {insecure: true}
    """
    backend, local = destinations(read(text))
    assert backend == Destination(
        name="backend",
        endpoint="https://otlp.example.com/base",
        key="upstream.destinations.backend.endpoint",
        signal_endpoints=(("traces", "https://traces.example.com/api"),),
        compression="zstd",
        tls=Tls(Path("ca.pem"), Path("c.pem"), Path("k.pem"), "x.example", "1.3"),
        headers=(
            Header("x-tenant", "red"),
            Header("x-number", "7"),
            Header("authorization", file=Path("token"), prefix="Bearer "),
        ),
        timeout_s=5.0,
        retry=Retry(
            initial_interval_s=1.0, randomization_factor=0.2, multiplier=2.0, max_interval_s=30, max_elapsed_time_s=300
        ),
        batching=Batching(flush_timeout_s=0.2, min_bytes=64 << 10, max_bytes=2 * MIB, max_requests=100),
        num_consumers=4,
        queue_bytes=GIB,
    )
    assert local == Destination("local", "grpc://localhost:4317", "upstream.destinations.local.endpoint")


def test_a_configuration_shows_no_secret() -> None:
    """Neither as it was read nor as it is handed on (S0-63)."""
    config = read("destinations: {a: {endpoint: 'grpc://h:1', headers: {authorization: hunter2}}}")
    assert "hunter2" not in repr(config) + repr(destinations(config))


BAD = {
    "both forms": (
        "{endpoint: 'grpc://a:1', destinations: {b: {endpoint: 'grpc://b:1', headers: {authorization: hunter2}}}}",
        "endpoint",
        "either upstream.endpoint or upstream.destinations, not both",
    ),
    "no scheme": ("{endpoint: 'c:4317'}", "endpoint", "grpc://host:port or http://host:port (grpcs:// or https://"),
    "another scheme": ("{endpoint: 'tcp://c:4317'}", "endpoint", "grpc://host:port"),
    "no port": ("{endpoint: 'grpc://c'}", "endpoint", "grpc://host:port"),
    "a number": ("{endpoint: 4317}", "endpoint", "grpc://host:port"),
    "no endpoint": ("{destinations: {a: {}}}", "destinations.a.endpoint", "Field required"),
    "an unknown key": (
        "{destinations: {a: {endpoint: 'grpc://c:1', endpont: x}}}",
        "destinations.a.endpont",
        "Unexpected keyword",
    ),
    "a name with a slash": (
        "{destinations: {'otlp/2': {endpoint: 'grpc://c:1'}}}",
        "destinations.otlp/2.[key]",
        "a name of letters, digits",
    ),
    "a compression": (
        "{destinations: {a: {endpoint: 'grpc://c:1', compression: snappy}}}",
        "destinations.a.compression",
        "'none', 'gzip' or 'zstd'",
    ),
    "a signal over gRPC": (
        "{destinations: {a: {endpoint: 'http://c:1', logs_endpoint: 'grpc://c:1'}}}",
        "destinations.a.logs_endpoint",
        "http://host:port/path",
    ),
    "insecure TLS": (
        "{destinations: {a: {endpoint: 'https://c', tls: {insecure: true}}}}",
        "destinations.a.tls",
        "no `insecure` beside an endpoint of https://",
    ),
    "TLS on plaintext": (
        "{destinations: {a: {endpoint: 'http://c:1', tls: {ca_file: x}}}}",
        "destinations.a.tls",
        "no TLS beside an endpoint of http://",
    ),
    "insecure with an authority": (
        "{destinations: {a: {endpoint: 'grpc://c:1', tls: {insecure: true, ca_file: x}}}}",
        "destinations.a.tls.insecure",
        "false, because ca_file beside it asks for TLS",
    ),
    "a multiplier below 1": (
        "{destinations: {a: {endpoint: 'grpc://c:1', retry_on_failure: {multiplier: 0.5}}}}",
        "destinations.a.retry_on_failure.multiplier",
        "a number from 1 to 100",
    ),
    "no consumers": (
        "{destinations: {a: {endpoint: 'grpc://c:1', sending_queue: {num_consumers: 0}}}}",
        "destinations.a.sending_queue.num_consumers",
        "a whole number from 1 to 64",
    ),
    "a queue without a unit": (
        "{destinations: {a: {endpoint: 'grpc://c:1', sending_queue: {queue_size: 1000}}}}",
        "destinations.a.sending_queue.queue_size",
        "a size with a unit",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_key_is_quoted(case: str) -> None:
    """The key, what was expected, and never a header's value."""
    text, key, expected = BAD[case]
    ((found, message, got),) = errors(text)
    assert found == key
    assert expected in message
    assert "hunter2" not in str(got)


BAD_HEADERS = {
    "nothing": "{}",
    "both": "{value: hunter2, file: token}",
    "a prefix alone": "{value: hunter2, prefix: 'Bearer '}",
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_a_header_is_a_text_or_a_file(header: str) -> None:
    """One of the two, and the error does not show what stands there."""
    config = read(f"destinations: {{a: {{endpoint: 'grpc://c:1', headers: {{authorization: {header}}}}}}}")
    with pytest.raises(ConfigError, match=r"upstream\.destinations\.a\.headers\.authorization: got .*expected a text"):
        destinations(config)


PAGE = (Path(__file__).parents[2] / "docs" / "upstream.md").read_text(encoding="utf-8")


def leaves(model: type[Section], at: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below a section that holds a value, with its default."""
    defaults = {key.name: key for key in dataclasses.fields(model)}
    for name, kind in keys_of(model).items():
        inner = section_of(kind)
        default = defaults[name]
        if inner is not None and name != "headers":
            yield from leaves(inner, f"{at}{name}.")
        elif default.default_factory is not MISSING:
            yield f"{at}{name}", default.default_factory()
        else:
            yield f"{at}{name}", None if default.default is MISSING else default.default


def test_the_page_has_every_key_with_its_default() -> None:
    """docs/upstream.md: all keys of a destination, none that does not exist, each default read as the file is."""
    section = PAGE.partition("\n## Keys of a destination\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:2] == "| "]
    documented = {row[0].strip("`"): row[1].strip("`") for row in rows[1:]}
    real = dict(leaves(DestinationConfig))
    assert list(documented) == list(real)
    for key, default in documented.items():
        if default in {"", "none"}:
            assert real[key] is None, key
            continue
        given: Any = yaml.safe_load(default)
        for part in reversed(key.split(".")):
            given = {part: given}
        found: Any = validated(DestinationConfig, {"endpoint": "grpc://c:1"} | given)
        for part in key.split("."):
            found = getattr(found, part)
        assert found == real[key], key


def test_the_examples_of_the_page_are_read() -> None:
    """Each YAML of docs/upstream.md is a configuration."""
    texts = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(texts) == 2
    for text in texts:
        assert destinations(validated(UpstreamConfig, yaml.safe_load(text)["upstream"]))
