"""Version 1 of the agent's protocol, docs/agent-protocol.md: one JSON object a line, an answer by its id.

Invariants:
    * every request gets exactly one answer; what is refused is answered with a code and a sentence;
    * no answer shows energy finer than one published tick (PLATYPUS).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from joulegram_agent.local import MAX_NAMED
from joulegram_pipeline.energy import PUBLISH_S, domain_to_json
from joulegram_pipeline.errors import AgentError, JoulegramError, WireError
from joulegram_pipeline.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from joulegram_agent.local import LocalAgent
    from joulegram_pipeline.energy import Tick

VERSION = 1
MAX_REQUEST_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""More than 600 ticks of 1024 named processes take."""

_MAX_ID = 2**53 - 1
_MAX_PID = 2**31 - 1
_MAX_NS = 2**63 - 1


def parse_request(line: bytes) -> dict[str, Any]:
    """Read one line as a request; anything but a JSON object means the peer does not speak the protocol.

    Raises:
        WireError: quoting the beginning of the line.
    """
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WireError(f"got {line[:80]!r}, expected one JSON object on one line: {error}") from error
    if not isinstance(request, dict):
        raise WireError(f"got {line[:80]!r}, expected one JSON object on one line")
    return request


def answer(agent: LocalAgent, holder: Hashable, request: Mapping[str, Any]) -> bytes:
    """The answer to a request, one line with its line feed.

    Args:
        agent: who knows.
        holder: for whom processes are named.
        request: as `parse_request` gave it.
    """
    request_id = _request_id(request.get("id"))
    version, op = request.get("v"), request.get("op")
    if isinstance(version, bool) or version != VERSION:
        return refusal(request_id, "unknown_version", f"v: got {_short(version)}, expected {VERSION}")
    handler = _HANDLERS.get(op) if isinstance(op, str) else None
    if handler is None:
        return refusal(request_id, "unknown_op", f"op: got {_short(op)}, expected one of {', '.join(OPS)}")
    try:
        agent.check()
        result = handler(agent, holder, request)
    except WireError as error:
        return refusal(request_id, "bad_params", str(error))
    except JoulegramError as error:
        return refusal(request_id, "refused", str(error))
    head = {"v": VERSION, "id": request_id, "ok": True}
    return json.dumps(head, separators=(",", ":")).encode()[:-1] + b',"result":' + result + b"}\n"


def refusal(request_id: int | str | None, code: str, message: str) -> bytes:
    """An answer that refuses, one line with its line feed."""
    return _dump({"v": VERSION, "id": request_id, "ok": False, "error": {"code": code, "message": message}}) + b"\n"


def _hello(agent: LocalAgent, _holder: Hashable, _request: Mapping[str, Any]) -> bytes:
    batch = agent.sampler.batch(0)
    out: dict[str, Any] = {
        "protocol": VERSION,
        "epoch": batch.epoch,
        "source": batch.source,
        "method": batch.method.value,
        "domains": [domain_to_json(domain) for domain in batch.domains],
        "publish_ns": str(round(PUBLISH_S * NS_PER_S)),
        "ring_s": agent.sampler.ring_s,
    }
    if batch.reason is not None:
        out["reason"] = batch.reason
    return _dump(out)


def _ticks(agent: LocalAgent, _holder: Hashable, request: Mapping[str, Any]) -> bytes:
    return agent.sampler.batch(_integer(request, "after", 0, _MAX_ID)).to_bytes()


def _name(agent: LocalAgent, holder: Hashable, request: Mapping[str, Any]) -> bytes:
    pids = request.get("pids")
    if (
        not isinstance(pids, list)
        or len(pids) > MAX_NAMED
        or not all(type(pid) is int and 0 < pid <= _MAX_PID for pid in pids)
    ):
        raise WireError(f"pids: got {_short(pids)}, expected a list of at most {MAX_NAMED} process ids")
    return _dump({"named": agent.name_for(holder, pids)})


def _window(agent: LocalAgent, _holder: Hashable, request: Mapping[str, Any]) -> bytes:
    start_ns = _integer(request, "start_ns", 0, _MAX_NS)
    end_ns = _integer(request, "end_ns", 0, _MAX_NS)
    if end_ns - start_ns < round(PUBLISH_S * NS_PER_S):
        raise WireError(f"window: got {end_ns - start_ns} ns, expected at least {PUBLISH_S} s")
    touched = [tick for tick in agent.sampler.published if tick.end_ns > start_ns and tick.start_ns < end_ns]
    if not touched:
        raise AgentError(f"no published tick touches the window from {start_ns} to {end_ns}")
    return _dump(window_of(agent, touched))


def window_of(agent: LocalAgent, ticks: list[Tick]) -> dict[str, Any]:
    """The sum over whole ticks, and what it covers; a domain with a gap in any of them has no energy here."""
    missing = {gap.domain: gap.reason for tick in reversed(ticks) for gap in tick.gaps}
    known = [domain.id for domain in agent.sampler.batch(0).domains if domain.id not in missing and "*" not in missing]
    return {
        "epoch": agent.sampler.batch(0).epoch,
        "start_ns": str(ticks[0].start_ns),
        "end_ns": str(ticks[-1].end_ns),
        "ticks": len(ticks),
        "energy_uj": {domain: sum(tick.energy_uj[domain] for tick in ticks) for domain in known},
        "gaps": [{"domain": domain, "reason": reason} for domain, reason in sorted(missing.items())],
    }


def _counters(agent: LocalAgent, _holder: Hashable, _request: Mapping[str, Any]) -> bytes:
    totals = agent.sampler.totals
    return _dump(
        {
            "epoch": agent.sampler.batch(0).epoch,
            "at_ns": None if totals.at_ns is None else str(totals.at_ns),
            "energy_uj": dict(totals.energy_uj),
            "unplaced_uj": dict(totals.unplaced_uj),
            "gaps": {domain: dict(reasons) for domain, reasons in totals.gaps.items()},
            "beside": [sensor.to_json() for sensor in agent.beside],
        }
    )


_HANDLERS: dict[str, Callable[[LocalAgent, Hashable, Mapping[str, Any]], bytes]] = {
    "hello": _hello,
    "ticks": _ticks,
    "name": _name,
    "window": _window,
    "counters": _counters,
}
OPS: tuple[str, ...] = tuple(_HANDLERS)


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _request_id(value: Any) -> int | str | None:
    if type(value) is int and abs(value) <= _MAX_ID:
        return value
    return value if isinstance(value, str) and len(value) <= 64 else None


def _integer(request: Mapping[str, Any], key: str, low: int, high: int) -> int:
    """A number, or the same in decimal digits, as nanoseconds do not fit every JSON reader's numbers."""
    value = request.get(key)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise WireError(f"{key}: got {_short(value)}, expected an integer from {low} to {high}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
