"""`energy.settle_after` in a sidecar that runs: a span that could be settled waits for those of others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import pytest

from simulators.sidecar import Serve, archived_ticks, ledger_lines, wait_until
from simulators.traces import request, span

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("waits", [True, False], ids=["600 s", "0 s"])
def test_a_span_waits_as_long_as_the_configuration_says(tmp_path: Path, waits: bool) -> None:
    """Two ticks past its end it is in the ledger, or still waiting where the configuration has it wait."""
    config = tmp_path / "joulegram.yaml"
    config.write_text(f"energy: {{max_wait: 600s, settle_after: {'600s' if waits else '0s'}}}\n")
    with Serve(tmp_path, f"--config={config}", "--source=model") as serve:
        serve.wait_ready()
        end_ns = time.time_ns()
        body = request(span(1, end_ns - 1_000_000, end_ns, name="etl.job"))
        call = Request(f"{serve.http_url}/v1/traces", body, {"content-type": "application/x-protobuf"})
        with urlopen(call, timeout=20) as answer:
            assert answer.status == 200
        data = serve.data
        wait_until(lambda: sum(tick.start_ns >= end_ns for tick in archived_ticks(data)) >= 2, "two ticks past its end")
        if waits:
            assert "joulegram_processor_pending_spans 1.0" in serve.get("/metrics")[1]
            assert ledger_lines(data, "span") == []
        else:
            wait_until(lambda: len(ledger_lines(data, "span")) == 1, "its line in the ledger")


@pytest.mark.parametrize("sync", ["always", "interval", "none"])
def test_at_a_stop_nobody_waits_for_others(tmp_path: Path, sync: str) -> None:
    """The receiver has closed: what came is settled with the energy that is here, and in the ledger when all ends."""
    config = tmp_path / "joulegram.yaml"
    settings = f"energy: {{max_wait: 600s, settle_after: 600s}}\nspool: {{sync: {sync}, sync_interval: 10s}}\n"
    config.write_text(settings)
    with Serve(tmp_path, f"--config={config}", "--source=model") as serve:
        serve.wait_ready()
        wait_until(lambda: len(archived_ticks(serve.data)) >= 1, "a tick")
        end_ns = time.time_ns()
        body = request(span(1, end_ns - 1_000_000, end_ns, name="etl.job"))
        call = Request(f"{serve.http_url}/v1/traces", body, {"content-type": "application/x-protobuf"})
        with urlopen(call, timeout=20) as answer:
            assert answer.status == 200
        assert serve.stop() == 0
        (line,) = ledger_lines(serve.data, "span")
        assert (line["energy"]["method"], "exclusive_uj" in line["energy"]) == ("modelled", True)
