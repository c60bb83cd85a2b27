"""What readers of RAPL report of machines whose truth is known: the table of docs/comparison.md.

    python benchmarks/readers.py
    python benchmarks/readers.py --readers joulegram,pyRAPL --scenarios wrap,reset
    python benchmarks/readers.py --overlap

Each reader, unchanged, sees the same simulated sysfs for two simulated minutes; docs/comparison.md says how. A cell
is the joules that it reports, and how far off that is. Readers that are not there yet are installed, which takes about
five minutes; one that cannot be had is left out with its reason. Needs root, or a kernel that lets others have a mount
namespace.

--overlap shows two windows that overlap to those that have windows, and says what each gets.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In place of this folder, whose `peers` would hide that of the tests.
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from peers.build import PeerMissingError  # noqa: E402
from peers.energy import overlap  # noqa: E402
from peers.energy.compare import compare, ours, spaced  # noqa: E402
from peers.energy.readers import PEERS  # noqa: E402
from peers.energy.scenarios import SCENARIOS  # noqa: E402

OURS = "joulegram"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(readers: list[str], scenarios: list[str]) -> None:
    """Print the table, a reader a line."""
    chosen = [scenario for scenario in SCENARIOS if scenario.name in scenarios]
    print(line("reader", *(scenario.name for scenario in chosen)))
    print(line(*["---"] * (len(chosen) + 1)), flush=True)
    if OURS in readers:
        cells = []
        for scenario in chosen:
            with tempfile.TemporaryDirectory(prefix="joulegram-readers-") as directory:
                cells.append(ours(scenario, Path(directory)).cell)
        print(line(f"**{OURS}**", *cells), flush=True)
    for reader in PEERS:
        if reader.name not in readers:
            continue
        try:
            cells = []
            for scenario in chosen:
                with tempfile.TemporaryDirectory(prefix="joulegram-readers-") as directory:
                    cells.append(compare(reader, scenario, Path(directory)).cell)
            print(line(reader.title, *cells), flush=True)
        except PeerMissingError as error:
            print(f"{reader.title}: left out: {error}", file=sys.stderr, flush=True)


def windows() -> None:
    """Print who gets what of two windows that overlap."""
    print(line("tool", "long", "short"))
    print(line("---", "---", "---"))
    with tempfile.TemporaryDirectory(prefix="joulegram-readers-") as directory:
        rows: dict[str, dict[str, float | None]] = {f"**{OURS}**": {**overlap.ours(Path(directory))}}
    for name, session in overlap.PEERS.items():
        try:
            with tempfile.TemporaryDirectory(prefix="joulegram-readers-") as directory:
                rows[name] = overlap.overlap(session, Path(directory))
        except PeerMissingError as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
    for name, found in rows.items():
        print(line(name, *("none" if joules is None else spaced(joules) for joules in found.values())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {"readers": [OURS, *(reader.name for reader in PEERS)], "scenarios": [item.name for item in SCENARIOS]}
    for option, names in known.items():
        parser.add_argument(f"--{option}", default=",".join(names), help="comma-separated (default: all)")
    parser.add_argument("--overlap", action="store_true", help="two windows that overlap, instead")
    arguments = parser.parse_args()
    if arguments.overlap:
        windows()
        return
    asked = {option: getattr(arguments, option).split(",") for option in known}
    for option, names in known.items():
        if unknown := set(asked[option]) - set(names):
            sys.exit(f"--{option}: got {', '.join(sorted(unknown))}, expected some of {', '.join(names)}")
    table(asked["readers"], asked["scenarios"])


if __name__ == "__main__":
    main()
