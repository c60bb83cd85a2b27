"""Whatever a log brings, in whatever order: every microjoule measured is a span's, idle, or still in a pot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings

from joulegram_processor.rows import cut
from processor.any_log import ledger_lines, logs, machine, outputs

if TYPE_CHECKING:
    from joulegram_processor.machine import Machine
    from simulators.traces import Log


def left_in_pots(subject: Machine) -> int:
    """What no span got: pots outside the time that was given, and what was left over inside it."""
    total = 0
    for scope in subject.store.scopes():
        claims = subject.claimed.get(scope)
        for row in subject.store.rows:
            free = [(row.start_ns, row.end_ns)] if claims is None else claims.left(row.start_ns, row.end_ns)
            total += sum(sum(cut(row, row.pot(scope), low, high)) for low, high in free)
        total += sum(sum(left) for _, _, left in (claims.leftovers if claims is not None else ()))
    return total


@given(logs())
@settings(max_examples=250, deadline=None)
def test_every_microjoule_is_somewhere(log: Log) -> None:
    """Law: Σ exclusive + idle + what is left = measured, 0 uJ off, with every key a span can have (D-11)."""
    subject = machine(log)
    lines = ledger_lines(outputs(subject, log.records))
    rows = subject.store.rows
    spent = sum(line["energy"].get("exclusive_uj", 0) for line in lines if line["kind"] == "span")
    idle = sum(sum(row.idle) for row in rows)
    assert all(uj >= 0 for row in rows for pot in (row.host, *row.processes.values()) for uj in pot)
    assert all(ns >= 0 for row in rows for ns in row.cpu_ns.values())
    assert spent + idle + left_in_pots(subject) == sum(sum(row.measured) for row in rows)
