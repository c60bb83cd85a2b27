"""The agent's metrics: what they say, and that they are documented."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from joulegram_agent.cgroups import Cgroups
from joulegram_agent.exposition import Sample, counter
from joulegram_agent.main import OTLP_INTERVAL_S
from joulegram_agent.metrics import STALE_S
from joulegram_agent.otlp_export import OtlpExport
from joulegram_agent.otlp_export_http import target_of
from joulegram_agent.otlp_export_payload import EnergySeries
from joulegram_agent.peers import Peer
from simulators.agent_node import J, S, converse, request
from simulators.cgroupfs import CgroupTree, in_docker
from simulators.scrape import HEALTH, METRICS, get, scraped, values

PAGE = Path(__file__).parents[2] / "docs" / "agent.md"


def test_what_was_measured_is_on_the_page(tmp_path: Path) -> None:
    """S3-03: energy by domain, gaps by reason, samples and ticks, exactly as counted."""

    async def body() -> dict[str, float]:
        async with scraped(tmp_path) as (node, _, listener):
            node.run(3)
            node.tree.reset("package-0")
            node.run(1)
            node.clock.advance(S // 4)
            await converse(node.path, request("hello"), request("reset"))
            status, headers, page = await get(listener, METRICS)
            assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
            assert int(headers["content-length"]) == len(page)
            return values(page)

    found = asyncio.run(body())
    assert found["joulegram_agent_energy_joules_total domain=package-0 kind=cpu"] == 30
    assert found["joulegram_agent_energy_joules_total domain=package-0/dram kind=dram"] == 0
    assert found["joulegram_agent_energy_gaps_total domain=package-0 reason=counter_reset"] == 1
    assert found["joulegram_agent_build_info method=measured source=powercap version=1.2.3"] == 1
    assert (found["joulegram_agent_samples_total"], found["joulegram_agent_ticks_total"]) == (5, 4)
    assert found["joulegram_agent_read_seconds_count"] == 5
    assert found["joulegram_agent_last_tick_age_seconds"] == 0.25
    assert found["joulegram_agent_requests_total op=hello"] == found["joulegram_agent_requests_total op=unknown"] == 1
    assert found["joulegram_agent_refusals_total code=unknown_op"] == 1


def test_a_domain_that_was_never_read_has_no_energy(tmp_path: Path) -> None:
    """D-06, D-10: only gaps means absent, not 0 J; what was counted outside of ticks is told apart."""

    async def body() -> dict[str, float]:
        async with scraped(tmp_path) as (node, _, listener):
            node.tree.faults = {"package-0/dram": 5}
            node.run(1)
            node.clock.advance(S)
            node.clock.step_wall(10 * S)
            node.tree.advance({"package-0": 5 * J})
            node.agent.sampler.sample()
            return values((await get(listener, METRICS))[2])

    found = asyncio.run(body())
    energy = {name for name in found if name.startswith("joulegram_agent_energy_joules")}
    assert energy == {"joulegram_agent_energy_joules_total domain=package-0 kind=cpu"}
    assert found["joulegram_agent_unplaced_joules_total domain=package-0 kind=cpu"] == 5


def test_nothing_changes_between_two_ticks(tmp_path: Path) -> None:
    """PLATYPUS (energy.md 0.6): energy on the page is that of the last tick, however often it is scraped."""
    calls = iter(range(1000))

    async def body() -> list[dict[str, float]]:
        async with scraped(tmp_path, now_s=lambda: next(calls)) as (node, _, listener):
            node.run(2)
            seen = []
            for _ in range(5):
                page = values((await get(listener, METRICS))[2])
                seen.append({name: value for name, value in page.items() if "joules" in name})
                node.tree.advance({"package-0": 7 * J})
                node.clock.advance(S // 10)
                node.agent.sampler.sample()
            return seen

    first, *others = asyncio.run(body())
    assert others == [first] * 4
    assert len(first) == 2


def test_strangers_are_counted_by_uid(tmp_path: Path) -> None:
    """S3-03: who was denied is told by number, and nothing else of them."""

    async def body() -> dict[str, float]:
        async with scraped(tmp_path, who=lambda _: Peer(4242, frozenset({4243}))) as (node, _, listener):
            await converse(node.path)
            return values((await get(listener, METRICS))[2])

    found = asyncio.run(body())
    assert found["joulegram_agent_denied_connections_total uid=4242"] == 1
    assert not any("4243" in name for name in found)


def test_cgroups_that_are_not_read_are_told_of(tmp_path: Path) -> None:
    """D-10: how many are read, could not be, and are beyond what is read; nothing where there are none to read."""
    tree = CgroupTree(tmp_path / "cgroup")
    tree.create(in_docker(2))
    tree.create("system.slice/cron.service")
    (tree.base / "system.slice/cron.service" / "cpu.stat").write_text("")

    async def body(name: str, cgroups: Cgroups) -> dict[str, float]:
        async with scraped(tmp_path / name) as (node, _, listener):
            cgroups.open()
            node.agent.sampler.cgroups = cgroups
            page = values((await get(listener, METRICS))[2])
            return {key.partition("=")[2]: value for key, value in page.items() if "agent_cgroups" in key}

    told = asyncio.run(body("with", Cgroups(tree.root)))
    assert told == {"read": len(tree.used_ns) - 1, "failed": 1, "left_out": 0}
    assert asyncio.run(body("without", Cgroups(tmp_path / "none"))) == {}


def test_others_may_add_families(tmp_path: Path) -> None:
    """The seam for what is counted elsewhere: called at each scrape."""

    async def body() -> dict[str, float]:
        async with scraped(tmp_path) as (_, metrics, listener):
            metrics.more.append(lambda: [counter("joulegram_agent_more_total", "x", [Sample(5, {"a": "b"})], "a")])
            return values((await get(listener, METRICS))[2])

    assert asyncio.run(body())["joulegram_agent_more_total a=b"] == 5


def test_every_metric_stands_in_the_table(tmp_path: Path) -> None:
    """docs/agent.md: name, type and labels of each family, and no other."""

    async def body() -> dict[str, tuple[str, tuple[str, ...]]]:
        async with scraped(tmp_path) as (node, metrics, _):
            target = target_of("x", "http://127.0.0.1:9")
            export = OtlpExport(EnergySeries(node.agent.sampler, "h", "1"), target, OTLP_INTERVAL_S)
            metrics.more.append(export.families)
            return {family.name: (family.kind, family.labels) for family in metrics.families()}

    real = asyncio.run(body())
    section = PAGE.read_text("utf-8").partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    documented = {
        re.findall("`([^`]+)`", name)[0]: (kind.strip(), tuple(re.findall("`([^`]+)`", labels)))
        for name, kind, labels, text in rows
        if text.strip()
    }
    assert documented == real


def test_samples_have_the_labels_their_family_names(tmp_path: Path) -> None:
    """What the table says of labels is so of every sample."""

    async def body() -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        async with scraped(tmp_path, who=lambda _: Peer(4242, frozenset({5}))) as (node, metrics, _):
            node.tree.faults = {"package-0/dram": 5}
            node.run(2)
            await converse(node.path)
            return [
                (family.name, family.labels, tuple(key for key in sample.labels if key != "le"))
                for family in metrics.families()
                for sample in family.samples
            ]

    for name, declared, held in asyncio.run(body()):
        assert declared == held, name


def test_healthz_fails_where_no_tick_comes(tmp_path: Path) -> None:
    """An agent that hangs says so, before its first tick and after."""

    async def body() -> list[tuple[int, Any]]:
        async with scraped(tmp_path) as (node, _, listener):
            seen: list[tuple[int, Any]] = []
            for step in (0, round(STALE_S * S) + S, 0):
                node.clock.advance(step)
                node.run(step == 0 and bool(seen))
                status, _, page = await get(listener, HEALTH)
                seen.append((status, json.loads(page)))
            return seen

    fresh, stale, again = asyncio.run(body())
    assert fresh == again == (200, {"status": "ok", "reasons": []})
    assert stale == (503, {"status": "failing", "reasons": ["no tick for 11 s, expected one each second"]})
