"""Readers of RAPL on machines whose truth is known: what joulegram reports; docs/comparison.md is what comes out."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pytest

from peers.build import PeerMissingError
from peers.energy import overlap
from peers.energy.compare import Ours, compare, ours, spaced
from peers.energy.readers import ALL, PEERS, Reader
from peers.energy.scenarios import SCENARIOS, J, Scenario
from peers.energy.sessions import Scraped, samples

pytestmark = pytest.mark.timeout(900)  # the first test of a peer installs it

PAGE = Path(__file__).parents[3] / "docs" / "comparison.md"
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
by_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=list(BY_NAME))


@cache
def rows(first: str) -> dict[str, dict[str, str]]:
    """A table of the page by its first head: a row by its name, a cell by its head."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    table = []
    for line in lines[at:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return {row[0].strip("*"): dict(zip(table[0][1:], row[1:], strict=True)) for row in table[2:]}


# -- joulegram ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ours]:
    """What joulegram makes of each scenario."""
    return {name: ours(scenario, tmp_path_factory.mktemp("ours")) for name, scenario in BY_NAME.items()}


@by_scenario
def test_joulegram_counts_all_or_says_what_it_cannot(reported: dict[str, Ours], scenario: Scenario) -> None:
    """Issue 5: energy reported + what a declared gap may hide = truth; outside of gaps, difference 0 uJ."""
    found = reported[scenario.name]
    lost_uj = found.truth_uj - found.placed_uj - found.unplaced_uj

    match scenario.name:
        case "failed read":
            # From 50 s to 70 s; the sum is found again at the next good read, but not when in that time it was spent.
            assert lost_uj == 0
            assert found.unplaced_uj == 21 * 400 * J
            assert found.gaps == {"package-0 read_failed": 20, "package-0 unplaced": 1}
        case "zone gone":
            assert lost_uj == 50 * (400 + 30) * J
            assert found.gaps == {"package-1 read_failed": 50, "package-1/dram read_failed": 50}
        case "reset":
            assert lost_uj == 40 * J, "what was spent between two reads, of which the second found another counter"
            assert found.gaps == {"package-0 counter_reset": 1}
        case _:
            assert (lost_uj, found.unplaced_uj, found.gaps) == (0, 0, {})


@by_scenario
def test_the_page_has_what_joulegram_reports(reported: dict[str, Ours], scenario: Scenario) -> None:
    """docs/comparison.md: its own row, as it is."""
    assert rows("reader")["joulegram"][scenario.name] == reported[scenario.name].cell


def test_joulegram_shares_what_overlaps(tmp_path: Path) -> None:
    """Design section 4: two spans that overlap get the machine's energy together once; the page has it."""
    found = overlap.ours(tmp_path)

    assert sum(found.values()) == 103_200.0
    assert [spaced(joules) for joules in found.values()] == list(rows("tool")["joulegram"].values())[:2]


# -- the others -----------------------------------------------------------------------------------------------------


def chosen(reader: Reader) -> pytest.MarkDecorator:
    lasts = reader.lasting and os.environ.get(ALL) != "all"
    return pytest.mark.skipif(lasts, reason=f"{reader.name} takes minutes: set {ALL}=all")


@pytest.mark.peer
@by_scenario
@pytest.mark.parametrize("reader", [pytest.param(one, marks=chosen(one), id=one.name) for one in PEERS])
def test_the_page_has_what_others_report(tmp_path: Path, reader: Reader, scenario: Scenario) -> None:
    """docs/comparison.md: every cell is what its reader, at the version pinned, reports now."""
    try:
        outcome = compare(reader, scenario, tmp_path)
    except PeerMissingError as error:
        pytest.skip(str(error))

    assert rows("reader")[reader.title][scenario.name] == outcome.cell


@pytest.mark.peer
@pytest.mark.skipif(os.environ.get(ALL) != "all", reason=f"they take minutes: set {ALL}=all")
@pytest.mark.parametrize("name", overlap.PEERS)
def test_the_page_has_what_others_give_windows(tmp_path: Path, name: str) -> None:
    """docs/comparison.md: who gives overlapping windows what."""
    try:
        found = overlap.overlap(overlap.PEERS[name], tmp_path)
    except PeerMissingError as error:
        pytest.skip(str(error))

    cells = ["none" if joules is None else spaced(joules) for joules in found.values()]
    assert list(rows("tool")[name].values())[:2] == cells


def test_the_page_names_every_reader_and_scenario() -> None:
    """A reader that is compared has a row and a line on how it was run, a scenario a column and a sentence."""
    text = PAGE.read_text(encoding="utf-8")

    assert set(rows("reader")) == {"joulegram", *(reader.title for reader in PEERS)}
    assert all(set(row) == set(BY_NAME) for row in rows("reader").values())
    for reader in PEERS:
        assert f"- {reader.name}: {reader.how}" in re.sub(r"\n  ", " ", text)
    for scenario in SCENARIOS:
        assert f"- **{scenario.name}**: {scenario.says}" in re.sub(r"\n  ", " ", text)


# -- what the comparison itself must get right ----------------------------------------------------------------------


def test_what_is_scraped_is_added_up_as_prometheus_does() -> None:
    """`increase`: a counter that fell began again at 0, a scrape without it changes nothing."""
    wanted, page = re.compile("node_rapl_package"), "# HELP x\nnode_rapl_core_joules_total 9\n{}"
    scraped = Scraped("", wanted, 1.0)
    first, second = (
        "node_rapl_package{a} 10\nnode_rapl_package{b} 5.5",
        "node_rapl_package{a} 4\nnode_rapl_package{b} 7",
    )
    for lines in (first, "", second):
        scraped.take(page.replace("{}", lines))

    assert samples(page.replace("{}", "node_rapl_package{a} 1e3"), wanted) == {"node_rapl_package{a}": 1000.0}
    assert scraped.end() == 4 + 1.5
