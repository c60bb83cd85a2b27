"""A spool that is full under `drop_oldest`, in a whole sidecar: what was dropped is counted, and is in the ledger."""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import TYPE_CHECKING

import grpc
import pytest

from crash.clients import EXPORT, keys_of, request
from crash.lane import verified
from crash.nursery import SMALL, Fledgling, Nursery
from simulators.sidecar import ledger_lines, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from simulators.sidecar import Serve

pytestmark = pytest.mark.timeout(180)

SPOOL_BYTES = 4 * 1024 * 1024
CONSTANTS = {
    **SMALL,
    "joulegram_service.engine.RETRY_S": 0.1,
    "joulegram_service.config_spool.MIN_MAX_BYTES": SPOOL_BYTES,
}
PADDING = 400
"""Spans of a request beside the one that is joined: of no interest, but they fill the spool."""

DROPPED = re.compile(r'^joulegram_spool_dropped_records_total\{kind="traces"\} (\S+)$', re.MULTILINE)


def dropped(serve: Serve) -> float:
    """Trace requests that it says were dropped."""
    found = DROPPED.search(serve.get("/metrics")[1])
    return 0.0 if found is None else float(found[1])


def test_what_a_full_spool_dropped_is_counted_and_in_the_ledger(tmp_path: Path) -> None:
    """Acknowledged is recorded, or in a gap: the ledger's figures, the metric and what clients were told agree."""
    config = tmp_path / "joulegram.yaml"
    config.write_text(
        f"spool: {{max_bytes: {SPOOL_BYTES >> 20}MiB, policy: drop_oldest}}\nenergy: {{max_wait: 100ms}}\n"
    )
    chance = random.Random(11)
    acknowledged = []
    with Nursery(tmp_path, CONSTANTS) as nursery:
        flags = (f"--config={config}", "--source=none")
        with Fledgling(nursery, tmp_path, *flags) as serve, grpc.insecure_channel(serve.wait_ready().target) as channel:
            export = channel.unary_unary(EXPORT, None, None)

            def send() -> None:
                body = request(chance.randbytes(16), ["etl.job", *["SELECT"] * PADDING], chance, 0, root=True)
                export(body, timeout=20)
                acknowledged.append(keys_of(body)[0])

            # The ledger takes nothing: once the first span is to be written nothing is made of what comes, and nothing
            # of the spool is let go.
            nursery.break_disk("write ledger")
            send()
            wait_until(lambda: serve.get("/readyz")[0] == 503, "an engine that waits for the disk", 60, serve.log)
            while dropped(serve) < 40:
                send()
            nursery.break_disk()

            def recorded() -> Counter[tuple[str, str]]:
                return Counter((line["trace_id"], line["span_id"]) for line in ledger_lines(serve.data, "span"))

            wait_until(lambda: acknowledged[-1] in recorded(), "the last span", 60, serve.log)
            counted = dropped(serve)
            assert serve.stop() == 0, serve.said
    gaps = ledger_lines(serve.data, "gap")

    assert gaps
    assert {gap["cause"] for gap in gaps} == {"spool_full"}
    assert sum(gap["records"].get("traces", 0) for gap in gaps) == counted
    lost = sum(gap["unread"].get("traces", 0) for gap in gaps)
    assert lost > 0
    assert recorded().keys() <= set(acknowledged)
    assert set(recorded().values()) == {1}
    assert len(acknowledged) - len(recorded()) == lost
    verified(serve.data)
