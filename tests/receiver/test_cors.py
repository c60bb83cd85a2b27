"""CORS of OTLP/HTTP: what a browser is told, by origin, method and header (confighttp's keys and their meaning)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_receiver.cors import CorsRules, cors_app

if TYPE_CHECKING:
    from collections.abc import Iterable

APP = "https://app.example.com"
RULES = CorsRules((APP, "https://*.example.org"), ("X-Tenant",), ("X-Trace",), max_age_s=600)


def ask(rules: CorsRules, method: str, headers: Iterable[tuple[str, str]]) -> tuple[int, dict[str, str], bool]:
    """Status, the headers of the answer in lower case, and whether the application was reached."""
    reached: list[str] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        reached.append(scope["method"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"x")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "method": method, "path": "/v1/traces", "headers": raw}
    asyncio.run(cors_app(app, rules)(scope, None, send))  # type: ignore[arg-type]
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    assert sent[-1]["type"] == "http.response.body"
    return sent[0]["status"], answered, bool(reached)


def preflight(
    origin: str, headers: str = "content-type", method: str = "POST", rules: CorsRules = RULES
) -> tuple[int, dict[str, str], bool]:
    asked = [("origin", origin), ("access-control-request-method", method)]
    if headers:
        asked.append(("access-control-request-headers", headers))
    return ask(rules, "OPTIONS", asked)


def test_a_preflight_of_an_allowed_origin_is_answered_here() -> None:
    """204 with what was asked for, without the application."""
    assert preflight(APP, "content-type,X-TENANT, x-requested-with") == (
        204,
        {
            "access-control-allow-origin": APP,
            "access-control-allow-credentials": "true",
            "access-control-allow-methods": "POST",
            "access-control-allow-headers": "content-type, x-requested-with, x-tenant",
            "access-control-max-age": "600",
            "vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        },
        False,
    )


REFUSED: dict[str, tuple[str, str, str]] = {
    "another origin": ("https://example.com", "content-type", "POST"),
    "another scheme": ("http://app.example.com", "content-type", "POST"),
    "another port": (f"{APP}:8443", "content-type", "POST"),
    "an origin that begins so": (f"{APP}.evil.net", "content-type", "POST"),
    "an origin that ends so": ("https://evil.net/.example.com", "content-type", "POST"),
    "a dot that is any character": ("https://appxexample.com", "content-type", "POST"),
    "a wildcard's bare domain": ("https://example.org", "content-type", "POST"),
    "no origin to speak of": ("null", "content-type", "POST"),
    "a header that is not listed": (APP, "content-type, x-other", "POST"),
    "another method": (APP, "content-type", "DELETE"),
}


@pytest.mark.parametrize(("origin", "headers", "method"), REFUSED.values(), ids=REFUSED)
def test_a_preflight_that_may_not_gets_no_grant(origin: str, headers: str, method: str) -> None:
    """204 without a header that allows: the browser does not send the request."""
    status, answered, reached = preflight(origin, headers, method)
    assert (status, reached) == (204, False)
    assert not any(name.startswith("access-control") for name in answered)


ALLOWED: dict[str, tuple[tuple[str, ...], str]] = {
    "itself": ((APP,), APP),
    "in another case": (("https://App.Example.com",), APP),
    "one of several": (("https://a.net", APP), APP),
    "under a wildcard": (("https://*.example.com",), APP),
    "deep under a wildcard": (("https://*.example.com",), "https://a.b.example.com"),
    "any port": (("http://localhost:*",), "http://localhost:3000"),
    "any scheme's": (("https://*",), "https://anything.example"),
    "any": (("*",), APP),
    "any, without an origin of its own": (("*",), "null"),
}


@pytest.mark.parametrize(("origins", "origin"), ALLOWED.values(), ids=ALLOWED)
def test_origins_that_are_allowed(origins: tuple[str, ...], origin: str) -> None:
    """The origin that asked is named, never `*`, which a browser does not take with credentials."""
    status, answered, _ = preflight(origin, rules=CorsRules(origins))
    assert (status, answered["access-control-allow-origin"]) == (204, origin)


def test_any_header_may_be_allowed() -> None:
    """`*` grants what is asked for, by name."""
    _, answered, _ = preflight(APP, "x-b, x-a", rules=CorsRules((APP,), ("*",)))
    assert answered["access-control-allow-headers"] == "x-a, x-b"


def test_without_a_max_age_the_browser_decides() -> None:
    """0 sends none (confighttp)."""
    _, answered, _ = preflight(APP, "", rules=CorsRules((APP,)))
    assert "access-control-max-age" not in answered
    assert "access-control-allow-headers" not in answered


def test_an_allowed_origin_reads_the_answer() -> None:
    """Its own headers are kept, and a cache is told that they depend on the origin."""
    assert ask(RULES, "POST", [("origin", APP)]) == (
        200,
        {
            "content-type": "x",
            "access-control-allow-origin": APP,
            "access-control-allow-credentials": "true",
            "access-control-expose-headers": "X-Trace",
            "vary": "Origin",
        },
        True,
    )


def test_other_origins_and_other_clients_are_served_without_a_grant() -> None:
    """CORS keeps answers from scripts; it keeps nobody out, which tokens do."""
    assert ask(RULES, "POST", [("origin", "https://evil.net")]) == (200, {"content-type": "x", "vary": "Origin"}, True)
    assert ask(RULES, "POST", []) == (200, {"content-type": "x"}, True)


@pytest.mark.parametrize(
    "headers",
    [[], [("origin", APP)], [("access-control-request-method", "POST")]],
    ids=["bare", "of an origin alone", "of a method alone"],
)
def test_options_that_are_no_preflight_go_on(headers: list[tuple[str, str]]) -> None:
    """The application says 405 to them."""
    assert ask(RULES, "OPTIONS", headers)[2]


@given(origin=st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=30))
def test_without_wildcards_only_the_origin_itself_is_allowed(origin: str) -> None:
    """No other text gets the grant, whatever is in it."""
    _, answered, _ = preflight(origin)
    allowed = origin.lower() == APP or (
        origin.lower().startswith("https://") and origin.lower().endswith(".example.org")
    )
    assert ("access-control-allow-origin" in answered) == allowed
