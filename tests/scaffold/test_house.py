"""The walls of the house: which package lives where, and that every list of packages says the same."""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "agent": "joulegram_agent",
    "pipeline": "joulegram_pipeline",
    "processor": "joulegram_processor",
    "receiver": "joulegram_receiver",
    "rollup": "joulegram_rollup",
    "schemas": "joulegram_schemas",
    "sdk": "joulegram",
    "service": "joulegram_service",
    "sink": "joulegram_sink",
}


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", sorted(ROOMS))
def test_a_folder_holds_its_package_and_no_other_python(folder: str) -> None:
    """The folder X holds the package joulegram_X, typed, documented, and nothing else that is Python."""
    package = ROOT / folder / ROOMS[folder]
    python = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")]

    assert (package / "py.typed").is_file()
    assert ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
    assert {path.parts[0] for path in python} == {ROOMS[folder]}


def test_every_top_level_package_is_a_room() -> None:
    """No package of joulegram stands outside the folders that the house names."""
    found = {path.parent.parent.name: path.parent.name for path in ROOT.glob("*/joulegram*/__init__.py")}

    assert found == ROOMS


def test_every_list_of_packages_names_the_rooms() -> None:
    """The wheel, coverage, import-linter and mypy all look at every room; none is forgotten."""
    tool = project()["tool"]
    packages = set(ROOMS.values())

    assert set(tool["hatch"]["build"]["targets"]["wheel"]["packages"]) == {f"{x}/{y}" for x, y in ROOMS.items()}
    assert set(tool["hatch"]["build"]["dev-mode-dirs"]) == set(ROOMS)
    assert set(tool["coverage"]["run"]["source_pkgs"]) == packages
    assert set(tool["importlinter"]["root_packages"]) == packages
    assert set(tool["mypy"]["files"]) >= set(ROOMS) | {"tests", "examples"}


def test_the_classifiers_name_the_supported_pythons() -> None:
    """The oldest Python of the classifiers is that of requires-python and of the tools."""
    meta, tool = project()["project"], project()["tool"]
    versions = sorted(
        tuple(map(int, line.rpartition(" ")[2].split(".")))
        for line in meta["classifiers"]
        if line.startswith("Programming Language :: Python :: 3.")
    )
    oldest = ".".join(map(str, versions[0]))

    assert meta["requires-python"] == f">={oldest}"
    assert tool["mypy"]["python_version"] == oldest
    assert tool["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"


def test_unused_imports_and_missing_types_fail_the_lint() -> None:
    """D-30: ruff looks for all it knows, unused imports among it, in every file, and mypy is strict over all rooms."""
    lint, types = project()["tool"]["ruff"]["lint"], project()["tool"]["mypy"]
    ignored = [*lint["ignore"], *(rule for rules in lint["per-file-ignores"].values() for rule in rules)]

    assert lint["select"] == ["ALL"]
    assert not [rule for rule in ignored if rule in {"F", "F4", "F40", "F401"}]
    assert types["strict"] is True
