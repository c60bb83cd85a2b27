"""Shows a run on a terminal: its largest spans, its totals, where the energy went, what was written where."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from joulegram_rollup.summary import RunSummary, RunTotals, SpanRow

MAX_ROWS = 40
"""More spans than these are not shown one by one: the largest are, and a line says how many are not."""

_UNKNOWN = "?"


def render(summary: RunSummary, console: Console, written: Mapping[str, Path] | None = None) -> None:
    """Print a summary.

    Args:
        summary: the run.
        console: where to; its width decides the layout.
        written: files of the run by kind, shown as they are.
    """
    from rich.text import Text  # noqa: PLC0415  (only who looks at a run pays for it)

    def line(text: str) -> None:
        # Text and not markup: a span may be called "[red]".
        console.print(Text(text), soft_wrap=True)

    table, notes = _table(summary)
    console.print(table)
    for note in notes:
        line(note)
    hidden = len(summary.spans) - MAX_ROWS
    if hidden > 0:
        line(f"and {hidden} more spans, each with no more energy than these")
    totals = summary.totals
    if totals is None:
        line(f"run {summary.run_id}: not ended, no totals yet")
    else:
        _totals(summary.run_id, totals, line)
    for kind, path in (written or {}).items():
        line(f"{kind}: {path}")
    line(f"ledger: {summary.ledger_lines} lines, head {summary.ledger_head}")
    for problem in summary.problems:
        line(f"ledger problem: {_plain(problem)}")


def _table(summary: RunSummary) -> tuple[Table, list[str]]:
    """The spans, and the notes below them: what is too long for a column stands there once."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(
        title=Text(f"run {summary.run_id}"), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for heading in ("span", "s", "J", "gCO2e", "95 %", "method", "table"):
        numeric = heading in {"s", "J", "gCO2e", "95 %"}
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold", no_wrap=heading != "span")
    tables: dict[str, str] = {}
    reasons: dict[str, str] = {}
    # An unknown energy is not a small one: such spans come first, so that the cut never hides them behind
    # zeros.
    rows = sorted(summary.spans, key=_largest_first)[:MAX_ROWS]
    for row in rows:
        method, basis = row.method, _UNKNOWN
        if row.reason is not None:
            method += " " + reasons.setdefault(row.reason, f"[{len(reasons) + 1}]")
        if row.table is not None:
            basis = tables.setdefault(row.table, _letter(len(tables)))
        table.add_row(
            Text(_plain(row.name)),
            _number(row.duration_s),
            _number(row.total_j),
            _number(row.gco2e),
            _interval(row.gco2e_lower, row.gco2e_upper),
            Text(method),
            Text(basis),
        )
    notes = [f"table {mark}: {_plain(name)}" for name, mark in tables.items()]
    return table, notes + [f"{mark} {_plain(reason)}" for reason, mark in reasons.items()]


def _letter(index: int) -> str:
    """Name the tables a to z, then a1, b1 …."""
    return chr(ord("a") + index % 26) + (str(index // 26) if index >= 26 else "")


def _totals(run_id: str, totals: RunTotals, line: Callable[[str], None]) -> None:
    line(
        f"run {run_id} ({_plain(totals.job_type)}, {totals.status}, ended by {totals.ended_by}, "
        f"revision {totals.revision}): {totals.spans} spans in {_number(totals.duration_s)} s"
    )
    if totals.total_j is None:
        line(f"energy: not known: {_plain(totals.energy_reason or 'no reason recorded')}")
    else:
        line(f"energy: {_number(totals.total_j)} J, {totals.method}, {totals.scope} scope")
    if totals.gco2e is None:
        line(f"carbon: not known: {_plain(totals.carbon_reason or 'no reason recorded')}")
    else:
        bounds = _interval(totals.gco2e_lower, totals.gco2e_upper)
        gas = {"co2": "gCO2", "co2e": "gCO2e"}.get(totals.gas or "", "gCO2e")
        source = _plain(totals.factor_source)
        line(f"carbon: {_number(totals.gco2e)} {gas} (95 %: {bounds}), an estimate; {source}")
    if totals.account_j is not None:
        parts = dict(totals.account_j)
        measured = parts.pop("measured")
        shares = ", ".join(f"{part.replace('_', ' ')} {_number(value)}" for part, value in parts.items())
        line(f"account: {_number(measured)} J measured = {shares}")
        if totals.uncovered_s:
            line(f"account: {_number(totals.uncovered_s)} s of the run are in no measurement")


def _largest_first(row: SpanRow) -> tuple[bool, float]:
    return (row.total_j is not None, -(row.total_j or 0.0))


def _interval(lower: float | None, upper: float | None) -> str:
    if lower is None or upper is None:
        return _UNKNOWN
    return f"{_number(lower)}…{_number(upper)}"


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _plain(text: str) -> str:
    """Text that cannot steer a terminal: a span's name is whatever a job sent."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
