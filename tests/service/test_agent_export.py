"""An agent that exports, as a process, and a sidecar without one of its own that takes it, over a real port."""

from __future__ import annotations

import random
import time
import urllib.request
from itertools import pairwise
from typing import TYPE_CHECKING

from simulators.powercap import PowercapTree
from simulators.sidecar import Agent, Serve, archived_ticks, wait_until

if TYPE_CHECKING:
    from pathlib import Path


def page_of(agent: Agent, path: str) -> str:
    """A page of the metrics listener that the agent's log names."""
    port = agent.said.partition("/healthz on 127.0.0.1, port ")[2].split()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as page:
        text: str = page.read().decode()
        return text


def test_a_sidecar_takes_what_the_agent_exports_to_the_microjoule(tmp_path: Path) -> None:
    """S3-03, otlp.md 4.1: a powercap tree, the agent's own OTLP over HTTP, and the sidecar's ticks of it: 0 uJ off."""
    tree = PowercapTree(tmp_path / "sys", packages=2)
    energies = random.Random(5)
    with Serve(tmp_path, "--source=none") as serve:
        serve.wait_ready()
        flags = (f"--otlp-endpoint={serve.http_url}", "--otlp-interval=1", "--hw-id=node-7", "--metrics=127.0.0.1:0")
        with Agent(tmp_path, tree, *flags) as agent:
            agent.wait_ready()
            until = time.monotonic() + 2.5
            while time.monotonic() < until:
                tree.advance({domain: energies.randrange(10**6) for domain in tree.domain_ids})
                time.sleep(0.01)
            truth_uj = sum(tree.truth_uj.values())

            def taken_uj() -> int:
                return sum(tick.energy_uj["host"] for tick in archived_ticks(serve.data) if tick.energy_uj)

            wait_until(lambda: taken_uj() >= truth_uj, "all energy at the sidecar", log=agent.log)
            assert 'joulegram_agent_otlp_exports_total{outcome="sent"}' in page_of(agent, "/metrics")
            assert agent.stop() == 0
        assert taken_uj() == truth_uj
        ticks = [tick for tick in archived_ticks(serve.data) if "host" in tick.energy_uj]
        assert len(ticks) >= 2
        assert all(before.end_ns == after.start_ns for before, after in pairwise(ticks))
        assert serve.stop() == 0
    assert "node-7" not in agent.said
    assert truth_uj > 10**8


def test_the_metrics_of_a_running_agent(tmp_path: Path) -> None:
    """S3-03: `--metrics` serves what the tree spent, and the log says on which port."""
    tree = PowercapTree(tmp_path / "sys")
    with Agent(tmp_path, tree, "--metrics=127.0.0.1:0") as agent:
        agent.wait_ready()
        tree.advance({"package-0": 41_250_001})
        line = 'joulegram_agent_energy_joules_total{domain="package-0",kind="cpu"} 41.250001\n'
        wait_until(lambda: line in page_of(agent, "/metrics"), "the energy", log=agent.log)
        assert page_of(agent, "/healthz") == '{"status": "ok", "reasons": []}\n'
        assert agent.stop() == 0
