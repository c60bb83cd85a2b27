"""What users get: the wheel, installed where there is no checkout, runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import joulegram

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has the wheel, the dependencies, and no way to the checkout.

    The dependencies are those of the environment that runs the tests, lent by one line of a .pth file. Python
    does not read the .pth files of a folder lent so: the editable install's way to the checkout stays
    behind. `pip check` then holds that the lent distributions meet what the wheel requires.
    """
    where = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(where, with_pip=True, symlinks=True)
    python = where / "bin" / "python"
    find = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-Ic", find], capture_output=True, text=True, check=True).stdout.strip())
    (own / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--ignore-installed",
    ]
    subprocess.run([*install, str(wheel)], check=True)
    check = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    return where / "bin"


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run in an empty folder, with nothing of this environment that could lead back to the checkout."""
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "JOULEGRAM", "KFM", "OTEL", "COV", "VIRTUAL_ENV"))
    }
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def test_the_wheel_holds_the_packages_and_their_data(wheel: Path) -> None:
    """Code, type marks, tables, schemas and the licence are in; the tables' sources and the tests are not."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}

    assert {top for top in tops if not top.endswith(".dist-info")} == {
        path.parent.name for path in ROOT.glob("*/joulegram*/__init__.py")
    }
    assert sum(name.endswith("/py.typed") for name in names) == len(tops) - 1
    for wanted in (
        r"tables/[^/]+/[^/]+/table\.csv",
        r"tables/[^/]+/[^/]+/manifest\.json",
        r"schemas/.*\.json",
    ):
        assert [name for name in names if re.search(wanted, name)], wanted
    assert [name for name in names if "tables/sources" in name] == []
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_nothing_is_imported_from_the_checkout(clean: Path, tmp_path: Path) -> None:
    """Every package comes from the wheel, and sys.path does not know the checkout."""
    code = (
        "import json, sys, joulegram, joulegram_agent, joulegram_service\n"
        "print(json.dumps([[m.__file__ for m in (joulegram, joulegram_agent, joulegram_service)], sys.path]))"
    )

    shown = run([clean / "python", "-c", code], tmp_path)

    assert shown.returncode == 0, shown.stderr
    files, path = json.loads(shown.stdout)
    assert [file for file in files if not Path(file).is_relative_to(clean.parent)] == []
    lent = Path(sysconfig.get_path("purelib"))
    assert [x for x in path if Path(x).is_relative_to(ROOT) and Path(x) != lent] == []


def test_the_command_says_its_version(clean: Path, tmp_path: Path) -> None:
    """`joulegram version` of the installed wheel is the version of this checkout."""
    shown = run([clean / "joulegram", "version"], tmp_path)

    assert shown.returncode == 0, shown.stderr
    assert joulegram.__version__ in shown.stdout


@pytest.mark.parametrize(("command", "status"), [("true", 0), ("false", 1)])
def test_joulegram_run_works_from_the_wheel(clean: Path, tmp_path: Path, command: str, status: int) -> None:
    """`joulegram run` finds tables and schemas in the wheel and passes the command's exit status through."""
    shown = run([clean / "joulegram", "run", "--json", "--", command], tmp_path)

    assert shown.returncode == status, shown.stderr
    assert json.loads(shown.stdout)


def test_the_example_finds_the_tables_of_the_wheel(clean: Path, tmp_path: Path) -> None:
    """The example, copied out of the repository, reads the figures that the wheel installed."""
    job = tmp_path / "job.py"
    job.write_bytes((ROOT / "examples/nightly_etl.py").read_bytes())

    shown = run([clean / "python", job, "--resamples", "40"], tmp_path)

    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "nightly-out" / "grid-intensity.csv").stat().st_size > 1000


def test_the_wheel_says_whether_it_has_the_native_parts(wheel: Path) -> None:
    """With a compiler it is of one platform and of every CPython from 3.11; without, it is pure; never the C itself."""
    names = zipfile.ZipFile(wheel).namelist()
    compiled = {name for name in names if name.endswith(".so")}

    assert compiled in (set(), {"joulegram_processor/_native.abi3.so", "joulegram/_native.abi3.so"})
    assert ("-cp311-abi3-" in wheel.name) == bool(compiled)
    assert ("-py3-none-any" in wheel.name) == (not compiled)
    assert [name for name in names if name.endswith((".c", ".h"))] == []


def test_a_wheel_is_made_without_a_compiler(tmp_path: Path) -> None:
    """CC that fails leaves the native parts out, each in one line, and the wheel is pure."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, env={**os.environ, "CC": "false"})

    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.glob("*.whl")] == [f"joulegram-{joulegram.__version__}-py3-none-any.whl"]
    for part in ("joulegram", "joulegram_processor"):
        assert f"{part} without its native part: false: exit 1" in done.stdout + done.stderr
