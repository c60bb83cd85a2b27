"""`%load_ext joulegram.ipython`, then `%%joules`: what a cell spent, with method and scope.

    %%joules --region SPP_KS
    train()

Options: `--host` for the host's energy instead of this kernel's, `--region` for the grid. The cell's own result and
its errors are as without it. After the cell it waits for the closing tick, two seconds at most.
"""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from joulegram.recorder import EnergyRecorder
from joulegram.report import number, pricing

__all__ = ["joules", "load_ipython_extension"]


def load_ipython_extension(shell: Any) -> None:
    """What `%load_ext` calls."""

    def magic(line: str, cell: str) -> None:
        joules(shell, line, cell)

    shell.register_magic_function(magic, "cell", "joules")


def joules(shell: Any, line: str, cell: str) -> None:
    """Run a cell in a shell and print what it spent.

    Args:
        shell: has IPython's `run_cell`.
        line: options.
        cell: the code.
    """
    options = _options(line)
    if options is None:
        return
    recorder = EnergyRecorder(scope="host" if options.host else "process", model=True, socket=options.socket)
    with recorder:
        shell.run_cell(cell)  # it shows the cell's result and its error itself, and raises neither
    result = recorder.result
    grams, basis = pricing(options.region)
    if result.energy_joules is None:
        print(f"joulegram: energy not known: {result.energy_reason}")  # noqa: T201 - what the magic is for
        return
    priced = number(None if grams is None else grams(result.energy_joules))
    text = (
        f"joulegram: {number(result.energy_joules)} J, {priced} g CO2e in {number(result.duration_seconds)} s "
        f"({result.energy_method}, scope {result.energy_scope}; grams: {basis})"
    )
    print(text if result.energy_reason is None else f"{text}\njoulegram: {result.energy_reason}")  # noqa: T201


def _options(line: str) -> argparse.Namespace | None:
    parser = argparse.ArgumentParser("%%joules", description="Joules and grams of a cell.", exit_on_error=False)
    parser.add_argument("--host", action="store_true", help="the host's energy, not this kernel's")
    parser.add_argument("--region", help="grid region, as SPP_KS or iso3:DEU")
    parser.add_argument("--socket", help="socket of an agent")
    try:
        return parser.parse_args(shlex.split(line))
    except (argparse.ArgumentError, ValueError, SystemExit) as error:
        if not isinstance(error, SystemExit):
            print(f"%%joules: {error}")  # noqa: T201
        return None
