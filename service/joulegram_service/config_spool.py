"""The keys under `spool`: what an acknowledgement promises, and how much the spool may hold (docs/spool.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from joulegram_service.config_types import CheckAfter, Duration, Section, Size

MIN_MAX_BYTES = 128 * 1024 * 1024
"""Two requests of the largest size: less would refuse what the receiver lets in."""


def _sync_interval(value: int) -> int:
    if not 10**7 <= value <= 60 * 10**9:
        raise ValueError("a duration from 10ms to 60s")
    return value


def _max_bytes(value: int) -> int:
    if value < MIN_MAX_BYTES:
        raise ValueError(f"a size of {MIN_MAX_BYTES >> 20}MiB at least")
    return value


@dataclass(frozen=True)
class SpoolConfig(Section):
    """The write-ahead log between receiver and engine.

    `sync` is what an acknowledgement promises. `always`: the request is on disk; neither a crash of joulegram nor of
    the machine loses it. `interval`: it is written, and on disk within `sync_interval`; a crash of joulegram loses
    nothing, one of the machine at most that much. `none`: it is written, and the kernel decides when it goes to disk; a
    crash of joulegram loses nothing, one of the machine what the kernel still held, and the start may then refuse to go
    on. A stop syncs in any case.

    `policy` is what happens at `max_bytes`: `refuse` new requests, which the client repeats, or `drop_oldest`.
    """

    sync: Literal["always", "interval", "none"] = "always"
    sync_interval: Annotated[Duration, CheckAfter(_sync_interval)] = 10**9
    max_bytes: Annotated[Size, CheckAfter(_max_bytes)] = 10 * 1024**3
    policy: Literal["refuse", "drop_oldest"] = "refuse"
    min_free_bytes: Size = 256 * 1024**2
