"""The locks: everything pinned and hashed, nothing missing, and nothing imported that is not declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RUNTIME, DEV, DEMO, PIP = LOCKS = tuple(f"requirements/{name}.txt" for name in ("runtime", "dev", "demo", "pip"))
PIN = re.compile(r"^([a-z0-9-]+)==([^ ]+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def names_of(requirements: list[Any]) -> set[str]:
    """The normalised distribution names of requirement lines; included groups are no lines."""
    names = (re.match(r"[A-Za-z0-9._-]+", line) for line in requirements if isinstance(line, str))
    return {re.sub(r"[-_.]+", "-", name.group()).lower() for name in names if name is not None}


def declared(*, with_extras: bool) -> set[str]:
    """What a user of the package gets told to install."""
    meta = project()["project"]
    extras = meta["optional-dependencies"].values() if with_extras else ()
    return names_of(meta["dependencies"]).union(*map(names_of, extras))


def pins(lock: str) -> dict[str, tuple[str, str]]:
    """Versions and hashes by name."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    return {name: (version, hashes) for name, version, hashes in PIN.findall(text)}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_everything_with_hashes_and_nothing_else(lock: str) -> None:
    """Each requirement is `name==version` with sha256 hashes; no option, address or path is beside them."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    rest = re.sub(r"^ *#.*\n", "", PIN.sub("", text), flags=re.MULTILINE)

    assert len(pins(lock)) > 20 or set(pins(PIP)) == set(pins(lock)) == {"pip"}
    assert rest.strip() == ""
    assert "    make lock\n" in text


def test_the_locks_cover_what_pyproject_declares() -> None:
    """Runtime holds the dependencies, dev also the build, the `sdk` extra and the groups; both pin alike."""
    runtime, dev = pins(RUNTIME), pins(DEV)
    groups = set().union(*map(names_of, project()["dependency-groups"].values()))

    assert declared(with_extras=False) <= set(runtime)
    assert declared(with_extras=True) | groups | names_of(project()["build-system"]["requires"]) <= set(dev)
    assert {name: dev.get(name) for name in runtime} == runtime


def test_the_demo_gets_a_part_of_what_the_tests_get() -> None:
    """Runtime, the `sdk` extra and the build backend, in the very files of dev, so that nothing is installed twice."""
    dev, demo = pins(DEV), pins(DEMO)
    needed = declared(with_extras=True) | names_of(project()["build-system"]["requires"])

    assert needed | set(pins(RUNTIME)) <= set(demo)
    assert {name: dev.get(name) for name in demo} == demo
    assert {"pytest", "mypy", "ruff"}.isdisjoint(demo)


def test_what_the_rooms_import_is_declared() -> None:
    """Every distribution a room imports is a dependency of the project, or of an extra, by its own name."""
    rooms = {path.parent.name for path in ROOT.glob("*/joulegram*/__init__.py")}
    providers = packages_distributions()
    undeclared = set()
    for path in ROOT.glob("*/joulegram*/**/*.py"):
        modules: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module).partition(".")[0])
        for module in modules - sys.stdlib_module_names - rooms:
            if not declared(with_extras=True) & names_of(list(providers.get(module, ()))):
                undeclared.add(f"{path.relative_to(ROOT)}: {module}")

    assert undeclared == set()
