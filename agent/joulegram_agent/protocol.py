"""Version 1 of the agent's protocol, docs/agent-protocol.md: one JSON object a line, an answer by its id.

Invariants:
    * every request gets exactly one answer; what is refused is answered with a code and a sentence;
    * no answer and no event shows energy finer than one published tick (PLATYPUS);
    * no line is longer than a page of ticks and one tick more, so that making one never holds up the sampling.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from joulegram_agent import MAX_NAMED
from joulegram_pipeline.energy import PUBLISH_S, TickBatch, domain_to_json
from joulegram_pipeline.errors import AgentError, JoulegramError, WireError
from joulegram_pipeline.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from joulegram_agent.local import LocalAgent
    from joulegram_agent.ring import TickEnergy
    from joulegram_agent.session import Session
    from joulegram_pipeline.energy import Domain, Method, Tick

VERSION = 1
MAX_REQUEST_BYTES = 64 * 1024
PAGE_BYTES = 256 * 1024
"""Ticks in one line; with the tick that passes this a page ends, and says that there is more."""

MAX_ANSWER_BYTES = 8 * 1024 * 1024
"""What a client takes in one line: far above a page, and one tick of all that can be in it."""

COST_BYTES = 4_096
"""Bytes asked or answered that cost as much as asking."""

_WINDOW_COST = 10
_MAX_ID = 2**53 - 1
_MAX_PID = 2**31 - 1
_MAX_NS = 2**63 - 1

_encode_tick = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Args:
        line: with its line feed.
        op: of the request; ``unknown`` where it is none of `OPS`.
        code: why it was refused; None if it was not.
        cost: in tokens of the peer's bucket (`joulegram_agent.rates`).
    """

    line: bytes
    op: str
    code: str | None
    cost: int


@dataclass(frozen=True, slots=True)
class Page:
    """As many ticks as fit one line.

    Args:
        data: the batch as JSON, without a line feed.
        last_seq: of its last tick; 0 where it has none.
    """

    data: bytes
    last_seq: int


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


def answer(agent: LocalAgent, session: Session, request: Mapping[str, Any], asked_bytes: int = 0) -> Answer:
    """The answer to a request.

    Args:
        agent: who knows.
        session: of the connection; processes are named for it.
        request: as `parse_request` gave it.
        asked_bytes: length of its line.
    """
    request_id = request_id_of(request)
    version, op = request.get("v"), request.get("op")
    handler = _HANDLERS.get(op) if isinstance(op, str) else None
    name = op if handler is not None and isinstance(op, str) else "unknown"
    cost = _cost(name, request) + asked_bytes // COST_BYTES

    def refused(code: str, message: str) -> Answer:
        return Answer(refusal(request_id, code, message), name, code, cost)

    if isinstance(version, bool) or version != VERSION:
        return refused("unknown_version", f"v: got {_short(version)}, expected {VERSION}")
    if handler is None:
        return refused("unknown_op", f"op: got {_short(op)}, expected one of {', '.join(OPS)}")
    try:
        agent.check()
        result = handler(agent, session, request)
    except WireError as error:
        return refused("bad_params", str(error))
    except JoulegramError as error:
        return refused("refused", str(error))
    head = _dump({"v": VERSION, "id": request_id, "ok": True})
    line = head[:-1] + b',"result":' + result + b"}\n"
    return Answer(line, name, None, cost + len(line) // COST_BYTES)


def refusal(request_id: int | str | None, code: str, message: str) -> bytes:
    """An answer that refuses, one line with its line feed."""
    return _dump({"v": VERSION, "id": request_id, "ok": False, "error": {"code": code, "message": message}}) + b"\n"


def event_line(request_id: int | str | None, page: Page) -> bytes:
    """A page of ticks for a subscriber, one line with its line feed.

    Args:
        request_id: of the request that subscribed.
        page: its ticks.
    """
    return _dump({"v": VERSION, "id": request_id, "event": "ticks"})[:-1] + b',"batch":' + page.data + b"}\n"


def page_of(about: TickBatch, ticks: Iterable[Tick]) -> Page:
    """The first ticks of a batch, up to the one with which they pass `PAGE_BYTES`; ``more`` says that some are left.

    Args:
        about: what the batch says beside its ticks.
        ticks: of it; no more are taken than are told, and one.
    """
    head = _head(about.epoch, about.source, about.method, about.reason, about.domains)
    told: list[bytes] = []
    size = last_seq = 0
    more = b""
    for tick in ticks:
        if size >= PAGE_BYTES:
            more = b',"more":true'
            break
        told.append(_encode_tick(tick.to_json()).encode("ascii"))
        size += len(told[-1])
        last_seq = tick.seq
    return Page(head + b",".join(told) + b"]" + more + b"}", last_seq)


@lru_cache(maxsize=1)
def _head(epoch: str, source: str, method: Method, reason: str | None, domains: tuple[Domain, ...]) -> bytes:
    """What stands before the ticks of a batch: the same in each of an epoch."""
    # `to_bytes` sorts its keys, and `ticks` is the last of them.
    return TickBatch(epoch, source, method, reason, domains, ()).to_bytes().removesuffix(b"]}")


def request_id_of(request: Mapping[str, Any]) -> int | str | None:
    """The id that the answer repeats; None where there is none that can be repeated."""
    value = request.get("id")
    if type(value) is int and abs(value) <= _MAX_ID:
        return value
    return value if isinstance(value, str) and len(value) <= 64 else None


def _hello(agent: LocalAgent, _session: Session, _request: Mapping[str, Any]) -> bytes:
    batch = agent.sampler.about
    out: dict[str, Any] = {
        "protocol": VERSION,
        "epoch": batch.epoch,
        "source": batch.source,
        "method": batch.method.value,
        "domains": [domain_to_json(domain) for domain in batch.domains],
        "capabilities": {"ops": list(OPS), "ticks": list(agent.sampler.holds)},
        "publish_ns": str(round(PUBLISH_S * NS_PER_S)),
        "ring_s": agent.sampler.ring_s,
    }
    if batch.reason is not None:
        out["reason"] = batch.reason
    return _dump(out)


def _ticks(agent: LocalAgent, _session: Session, request: Mapping[str, Any]) -> bytes:
    return page_of(agent.sampler.about, agent.sampler.above(_integer(request, "after", 0, _MAX_ID))).data


def _subscribe(agent: LocalAgent, session: Session, request: Mapping[str, Any]) -> bytes:
    newest = agent.sampler.ring.last
    last = 0 if newest is None else newest.seq
    after = last if request.get("after") is None else _integer(request, "after", 0, _MAX_ID)
    if after > last:
        after = 0  # another epoch's, as in `ticks`
    epoch = agent.sampler.about.epoch
    session.begin(request_id_of(request), epoch, after)
    return _dump({"epoch": epoch, "after": after})


def _unsubscribe(_agent: LocalAgent, session: Session, _request: Mapping[str, Any]) -> bytes:
    session.end()
    return _dump({})


def _name(agent: LocalAgent, session: Session, request: Mapping[str, Any]) -> bytes:
    pids = request.get("pids")
    if (
        not isinstance(pids, list)
        or len(pids) > MAX_NAMED
        or not all(type(pid) is int and 0 < pid <= _MAX_PID for pid in pids)
    ):
        raise WireError(f"pids: got {_short(pids)}, expected a list of at most {MAX_NAMED} process ids")
    return _dump({"named": agent.name_for(session, pids)})


def _window(agent: LocalAgent, _session: Session, request: Mapping[str, Any]) -> bytes:
    start_ns = _integer(request, "start_ns", 0, _MAX_NS)
    end_ns = _integer(request, "end_ns", 0, _MAX_NS)
    if end_ns - start_ns < round(PUBLISH_S * NS_PER_S):
        raise WireError(f"window: got {end_ns - start_ns} ns, expected at least {PUBLISH_S} s")
    touched = list(agent.sampler.ring.touching(start_ns, end_ns))
    if not touched:
        raise AgentError(f"no published tick touches the window from {start_ns} to {end_ns}")
    return _dump(window_of(agent, touched))


def window_of(agent: LocalAgent, ticks: list[TickEnergy]) -> dict[str, Any]:
    """The sum over whole ticks, and what it covers; a domain with a gap in any of them has no energy here."""
    missing = {gap.domain: gap.reason for tick in reversed(ticks) for gap in tick.gaps}
    known = [domain.id for domain in agent.sampler.about.domains if domain.id not in missing and "*" not in missing]
    return {
        "epoch": agent.sampler.about.epoch,
        "start_ns": str(ticks[0].start_ns),
        "end_ns": str(ticks[-1].end_ns),
        "ticks": len(ticks),
        "energy_uj": {domain: sum(tick.energy_uj[domain] for tick in ticks) for domain in known},
        "gaps": [{"domain": domain, "reason": reason} for domain, reason in sorted(missing.items())],
    }


def _counters(agent: LocalAgent, _session: Session, _request: Mapping[str, Any]) -> bytes:
    totals = agent.sampler.totals
    return _dump(
        {
            "epoch": agent.sampler.about.epoch,
            "at_ns": None if totals.at_ns is None else str(totals.at_ns),
            "energy_uj": dict(totals.energy_uj),
            "unplaced_uj": dict(totals.unplaced_uj),
            "gaps": {domain: dict(reasons) for domain, reasons in totals.gaps.items()},
            "beside": [sensor.to_json() for sensor in agent.beside],
        }
    )


_HANDLERS: dict[str, Callable[[LocalAgent, Session, Mapping[str, Any]], bytes]] = {
    "hello": _hello,
    "ticks": _ticks,
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "name": _name,
    "window": _window,
    "counters": _counters,
}
OPS: tuple[str, ...] = tuple(_HANDLERS)


def _cost(op: str, request: Mapping[str, Any]) -> int:
    """What an op costs before its bytes: a name has a process looked for, a window goes through the ring."""
    if op == "name":
        pids = request.get("pids")
        return 1 + (min(len(pids), MAX_NAMED) if isinstance(pids, list) else 0)
    return _WINDOW_COST if op == "window" else 1


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode("ascii")


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
