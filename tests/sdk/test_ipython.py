"""`%%joules` in a shell: what it prints, and that the cell is as without it."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from joulegram import ipython

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing from outside names a region or an agent."""
    for name in [*os.environ]:
        if name.startswith(("KFM_", "JOULEGRAM_")):
            monkeypatch.delenv(name)


class Shell:
    """What the magic asks of IPython."""

    def __init__(self) -> None:
        self.magics: dict[tuple[str, str], Callable[[str, str], None]] = {}
        self.ran: list[str] = []

    def register_magic_function(self, function: Callable[[str, str], None], kind: str, name: str) -> None:
        self.magics[kind, name] = function

    def run_cell(self, cell: str) -> Any:
        self.ran.append(cell)
        return SimpleNamespace(success=False)


SAID = re.compile(r"joulegram: \S+ J, (\S+) g CO2e in \S+ s \((measured|modelled), scope (\w+); grams: (.+)\)")


def test_a_cell_is_run_and_its_energy_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, as it is; J, g, seconds, method, scope and the table."""
    shell = Shell()
    ipython.load_ipython_extension(shell)
    shell.magics["cell", "joules"](f"--region SPP_KS --socket {tmp_path / 'none.sock'}", "work()")
    found = SAID.search(capsys.readouterr().out)
    assert shell.ran == ["work()"]
    assert found is not None
    assert found[1] != "?"
    assert found[3] == "process"
    assert found[4].startswith("egrid:SPNO, epa-egrid-subregion@")


def test_the_hosts_energy_and_no_region(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--host` changes the scope; without a region grams are a question mark and the reason is said."""
    ipython.joules(Shell(), f"--host --socket {tmp_path / 'none.sock'}", "")
    found = SAID.search(capsys.readouterr().out)
    assert found is not None
    assert (found[1], found[3]) == ("?", "host")
    assert "no region" in found[4]


@pytest.mark.parametrize("line", ["--nonsense", "'", "--region"])
def test_an_option_that_is_not_one_runs_nothing(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said, and the cell does not run half measured."""
    shell = Shell()
    ipython.joules(shell, line, "work()")
    said = capsys.readouterr()
    assert shell.ran == []
    assert said.out + said.err != ""


def test_in_a_real_ipython(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The extension loads, the cell's names stay, an error in it is IPython's to show."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell: Any = InteractiveShell()  # type: ignore[no-untyped-call]
    shell.run_line_magic("load_ext", "joulegram.ipython")
    shell.run_cell_magic("joules", f"--socket {tmp_path / 'none.sock'}", "answer = 42\nraise KeyError('mine')")
    said = capsys.readouterr().out
    assert shell.user_ns["answer"] == 42
    assert "KeyError" in said
    assert SAID.search(said)
