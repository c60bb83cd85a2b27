"""The listener of the agent's metrics: nobody can hold it up, or the agent by it."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from joulegram_agent import metrics_http
from joulegram_agent.metrics_http import MetricsServer, endpoint_of
from joulegram_pipeline.errors import BusyError, ConfigError
from simulators.agent_node import until
from simulators.scrape import METRICS, get, scraped

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_agent.exposition import Family

HOSTILE = [
    (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
    (b"GET /other HTTP/1.1\r\n\r\n", 404),
    (b"GET /metrics?a=b HTTP/1.0\r\n\r\n", 200),
    (b"GET /metrics HTTP/2.0\r\n\r\n", 400),
    (b"GET  /metrics HTTP/1.1\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    (b"get /metrics HTTP/1.1\r\n\r\n", 400),
    (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\n\r\n", 400),
    (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 400),
]


@pytest.mark.parametrize(("raw", "status"), HOSTILE, ids=range(len(HOSTILE)))
def test_odd_requests_are_answered_and_closed(tmp_path: Path, raw: bytes, status: int) -> None:
    """HTTP/1.1: a status that says what is wrong, the connection closed, and the next request served."""

    async def body() -> tuple[int, int]:
        async with scraped(tmp_path) as (_, _, listener):
            try:
                got = (await get(listener, raw))[0]
            except ConnectionResetError:  # closed with bytes unread
                got = status
            return got, (await get(listener, METRICS))[0]

    assert asyncio.run(body()) == (status, 200)


def test_head_has_no_body(tmp_path: Path) -> None:
    """RFC 9110, 9.3.2: the same head as GET, and nothing after it."""

    async def body() -> tuple[tuple[int, dict[str, str], bytes], int]:
        async with scraped(tmp_path) as (_, _, listener):
            got = await get(listener, b"HEAD /metrics HTTP/1.1\r\n\r\n")
            return got, len((await get(listener, METRICS))[2])

    (status, headers, page), length = asyncio.run(body())
    assert (status, page, int(headers["content-length"])) == (200, b"", length)


def test_half_a_request_is_not_waited_for(tmp_path: Path) -> None:
    """Bounded in time: a peer that dribbles is closed unanswered; one that ends early is told."""

    async def body() -> tuple[bytes, int]:
        async with scraped(tmp_path) as (_, _, listener):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(b"GET /metrics HT")
            async with asyncio.timeout(5):
                try:
                    left = await reader.read()
                except ConnectionResetError:
                    left = b""
            writer.close()
            return left, (await get(listener, b"GET /metr", eof=True))[0]

    assert asyncio.run(body()) == (b"", 400)


def test_connections_are_bounded(tmp_path: Path) -> None:
    """More peers than there are places are closed at once; a freed place serves again."""

    async def body() -> tuple[bytes, int]:
        async with scraped(tmp_path) as (_, _, listener):
            idle = [
                await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(metrics_http.MAX_CONNECTIONS)
            ]
            await until(lambda: len(listener._peers) == metrics_http.MAX_CONNECTIONS)
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(METRICS)
            try:
                one_more = await reader.read()
            except ConnectionResetError:
                one_more = b""
            for _, other in [*idle, (reader, writer)]:
                other.close()
            await until(lambda: not listener._peers)
            return one_more, (await get(listener, METRICS))[0]

    assert asyncio.run(body()) == (b"", 200)


def test_scraping_fast_makes_few_pages(tmp_path: Path) -> None:
    """However often it is asked for, a page is made ten times a second at most."""
    made: list[int] = []
    now_s = [0.0]

    def more() -> list[Family]:
        made.append(1)
        return []

    async def body() -> list[int]:
        async with scraped(tmp_path, now_s=lambda: now_s[0]) as (_, metrics, listener):
            metrics.more.append(more)
            for _ in range(5):
                await get(listener, METRICS)
            first = len(made)
            now_s[0] += metrics_http.PAGE_S
            await get(listener, METRICS)
            return [first, len(made)]

    assert asyncio.run(body()) == [1, 2]


@pytest.mark.parametrize("text", ["9465", ":9465", "localhost", "localhost:", "a:99999", "::1:9465", "a b:1", "[x]:1"])
def test_a_bad_endpoint_is_quoted(text: str) -> None:
    """The error names the flag and what was got."""
    with pytest.raises(ConfigError, match=re.escape(f"--metrics: got {text!r}, expected host:port")):
        endpoint_of("--metrics", text)


def test_endpoints_with_names_and_addresses() -> None:
    """IPv4, IPv6 in brackets, and names."""
    assert endpoint_of("x", "127.0.0.1:0") == ("127.0.0.1", 0)
    assert endpoint_of("x", "[::1]:9465") == ("::1", 9465)
    assert endpoint_of("x", "localhost:9465") == ("localhost", 9465)


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    """Another's port is an error that names the flag."""

    async def body() -> None:
        async with scraped(tmp_path) as (_, metrics, listener), MetricsServer(("127.0.0.1", listener.port), metrics):
            raise AssertionError("two on one port")

    with pytest.raises(BusyError, match=r"--metrics: cannot listen on 127\.0\.0\.1"):
        asyncio.run(body())
