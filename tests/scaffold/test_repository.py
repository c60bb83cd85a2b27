"""The papers of the repository: commands that exist, pages that are true, no trace of a machine."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

import joulegram

ROOT = Path(__file__).parents[2]
# Put together here so that this file is not its own finding.
FORBIDDEN = {
    "a package index": re.compile("pypi" + r"\.org/simple|files\.python" + r"hosted|registry\.npm" + "js"),
    "an index option": re.compile("--(extra-)?index" + "-url[ =]|(^| )--find" + "-links[ =]"),
    "a home directory": re.compile("(?<![\\w.])/(ro" + "ot|ho" + "me/\\w+|Use" + "rs/\\w+)/"),
    "this checkout": re.compile(re.escape(f"{ROOT}/")),
}


def own_files() -> list[Path]:
    """Every file that git would keep: what .gitignore names is left out, and .git itself."""
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()] + [".git"]
    found = []
    for folder, folders, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)

        def kept(name: str, here: Path = here) -> bool:
            return not any(fnmatch.fnmatch(name, x) or str(here / name) == x for x in ignored)

        folders[:] = filter(kept, folders)
        found += [ROOT / here / name for name in filter(kept, files)]
    return found


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)
    assert phony is not None
    return set(phony.group(1).split())


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_make_command_of_a_page_exists(page: str) -> None:
    """A `make X` that a reader is told to type is a target of the Makefile."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^    |`)make ([a-z]+)", text, re.MULTILINE))

    assert {"test"} <= named <= make_targets()


def test_readme_begins_with_the_two_commands_and_stays_short() -> None:
    """README: what it is in two lines, then the two commands; at most 150 lines (style 3.13)."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()

    assert len(lines) <= 150
    assert [line.split("#")[0].strip() for line in lines if line.startswith("    ")][:2] == [
        "make demo",
        "make test",
    ]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    """A relative link on a page is a file of the repository."""
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8"))

    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_help_lists_every_target() -> None:
    """`make` alone names everything the Makefile offers but itself."""
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert set(re.findall(r"^make ([a-z]+)", shown, re.MULTILINE)) == make_targets() - {"help"}


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("demo", ["--no-build-isolation -e .", "joulegram run -- python examples/nightly_etl.py"]),
        ("test", ["/dev.txt", "ruff check", "ruff format --check", "-m mypy", "lint-imports", "-m pytest --cov"]),
    ],
)
def test_a_target_runs_what_it_promises(target: str, commands: list[str]) -> None:
    """`make demo` is the main job under joulegram, `make test` is every check; both install by hash first."""
    plan = subprocess.run(
        ["make", "--dry-run", target, "VENV=/nonexistent/venv"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    first = [f"--require-hashes -r requirements/{lock}.txt" for lock in ("pip", "demo")]
    at = [plan.index(command) for command in [*first, *commands]]
    assert at == sorted(at)
    assert plan.count(" install ") == (3 if target == "demo" else 4)


@pytest.mark.parametrize(
    ("target", "stamps", "installs"),
    [
        ("demo", ["-pip", "-demo", ""], []),
        ("test", ["-pip", "-demo"], ["dev"]),
        ("test", ["-pip", "-demo", ""], []),
        ("demo", ["-pip", ""], ["demo"]),
    ],
    ids=["demo behind test", "test behind demo", "test again", "only what is missing"],
)
def test_what_is_installed_is_not_installed_again(
    tmp_path: Path, target: str, stamps: list[str], installs: list[str]
) -> None:
    """`make demo` and `make test` share one environment: each brings what it needs and is not there."""
    for stamp in stamps:
        (tmp_path / f".joulegram{stamp}").touch()
    plan = subprocess.run(
        ["make", "--dry-run", target, f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert re.findall(r"-r requirements/(\w+)\.txt", plan) == installs


@pytest.mark.parametrize(
    ("closing", "status"),
    [("===== 12 passed, 1 skipped in 3.21s =====", 0), ("===== 1 failed, 11 passed in 0.50s =====", 2)],
    ids=["green", "red"],
)
def test_ci_run_ends_with_pytests_closing_line_and_status(tmp_path: Path, closing: str, status: int) -> None:
    """.ci/run repeats pytest's closing line last, whatever comes after it, and exits as make did."""
    fake = tmp_path / "make"
    fake.write_text(f'#!/bin/sh\necho "$@"\necho "{closing}"\necho afterwards\nexit {status}\n')
    fake.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(tmp_path)}

    run = subprocess.run([ROOT / ".ci/run"], capture_output=True, text=True, env=env)

    lines = run.stdout.splitlines()
    assert run.returncode == status
    assert re.fullmatch(f"test VENV={re.escape(str(tmp_path))}/.+/venv", lines[0])
    assert lines[-1] == closing
    assert [path.name for path in tmp_path.iterdir()] == ["make"], "the scratch environment is removed"


def test_ci_run_says_when_pytest_was_not_reached(tmp_path: Path) -> None:
    """A lint error ends .ci/run with make's status and a line that says so."""
    fake = tmp_path / "make"
    fake.write_text("#!/bin/sh\necho 'E501 line too long' >&2\nexit 2\n")
    fake.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}

    run = subprocess.run([ROOT / ".ci/run"], capture_output=True, text=True, env=env)

    assert run.returncode == 2
    assert "not reached" in run.stdout.splitlines()[-1]


def test_no_file_names_a_package_index_or_a_machine() -> None:
    """What is committed works anywhere: no index address, no path of a machine (S0-63, S0-69)."""
    findings = []
    for path in own_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        findings += [
            f"{path.relative_to(ROOT)}: {what}: {match.group()!r}"
            for what, pattern in FORBIDDEN.items()
            for match in pattern.finditer(text)
        ]

    assert findings == []


def test_the_sweep_finds_what_it_forbids() -> None:
    """Each forbidden thing is recognised in a line that has it, so that a clean sweep means something."""
    lines = {
        "a package index": "https://pypi" + ".org/simple/grpcio",
        "an index option": "--index" + "-url https://example.invalid",
        "a home directory": "see /ro" + "ot/notes.txt",
        "this checkout": f"open {ROOT}/README.md",
    }

    assert {what for what, line in lines.items() if FORBIDDEN[what].search(line)} == set(FORBIDDEN)
    assert Path(__file__) in own_files()


def test_changelog_is_kept_and_names_this_version() -> None:
    """Keep a Changelog: known sections, entries that begin with a room; the newest version is __version__."""
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    sections = {line for line in lines if line.startswith("### ")}
    entries = [line for line in lines if line.startswith("- ")]
    rooms = {path.parent.name for path in ROOT.glob("*/joulegram*")} | {
        "examples",
        "docs",
        "tests",
        "benchmarks",
    }

    assert lines[0] == "# Changelog"
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\] - (Unreleased|\d{4}-\d{2}-\d{2})", line) for line in versions)
    assert versions[0].startswith(f"## [{joulegram.__version__}] - ")
    assert sections <= {f"### {x}" for x in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")}
    assert entries
    assert [line for line in entries if line[2:].partition(":")[0] not in rooms] == []


def test_the_licence_is_whole() -> None:
    """LICENSE is the Apache License 2.0 with all nine sections, as pyproject says."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert project["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert [f"\n   {n}. " in text for n in range(1, 10)] == [True] * 9


def test_what_is_run_is_executable() -> None:
    """.ci/run can be run as it is."""
    assert (ROOT / ".ci/run").stat().st_mode & stat.S_IXUSR
