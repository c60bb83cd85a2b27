"""Drive the targets with atheris, and keep the few inputs that show the most; `make fuzz` runs it.

    python tests/fuzz/run.py --seconds 60 [--keep] [TARGET ...]

What is found goes on growing under ``build/fuzz/<target>/``, beside a file for each crash; with ``--keep`` the least of
it that reaches as much takes the place of ``corpus/<target>/``. To see a crash again:
``TARGETS[name](Path(file).read_bytes())``.

Coverage is that of Python, so the compiled part is left aside here. What is kept goes through it in the tests: through
its targets (test_corpus.py), and beside the Python, held equal (test_native.py).
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
GROWN = Path("build/fuzz")
MAX_FILES = 19
"""Kept of one target, so that all are few and small; the shortest of those that reach something of their own."""
MAX_INPUT_BYTES = 1024
GROWN_NAME = re.compile("[0-9a-f]{12}")
"""Of what was found; files that a person named stay."""


def inside(name: str, arguments: list[str]) -> None:
    """Fuzz one target; libFuzzer ends the process."""
    atheris = importlib.import_module("atheris")  # of another environment than the one mypy sees

    packages = ["joulegram_agent", "joulegram_pipeline", "joulegram_processor", "joulegram_receiver", "joulegram_sink"]
    with atheris.instrument_imports(include=packages):
        from fuzz.targets import TARGETS  # instrumented as it is imported
    # To merge, libFuzzer begins its own command anew by way of a shell.
    itself = shlex.join([sys.executable, str(Path(__file__)), "--inside", name])
    atheris.Setup([itself, *arguments], TARGETS[name])
    atheris.Fuzz()


def fuzz(name: str, seconds: int) -> bool:
    """Whether nothing was found."""
    grown = GROWN / name
    grown.mkdir(parents=True, exist_ok=True)
    return _run(
        name,
        f"-max_total_time={seconds}",
        f"-artifact_prefix={GROWN}/{name}-",
        f"-max_len={4 * MAX_INPUT_BYTES}",
        "-timeout=10",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
        str(grown),
        str(HERE / "corpus" / name),
    )


def keep(name: str) -> None:
    """Replace what was found before by the least that reaches what all that was found reaches."""
    kept, fresh = HERE / "corpus" / name, GROWN / f"{name}.least"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    _run(name, "-set_cover_merge=1", f"-max_len={MAX_INPUT_BYTES}", str(fresh), str(GROWN / name), str(kept))
    for path in kept.iterdir():
        if GROWN_NAME.fullmatch(path.name):
            path.unlink()
    known = {path.read_bytes() for path in kept.iterdir()}
    grown = [path for path in fresh.iterdir() if path.read_bytes() not in known]
    for path in sorted(grown, key=lambda path: path.stat().st_size)[: MAX_FILES - len(known)]:
        shutil.copy(path, kept / path.name[:12])


def _run(name: str, *arguments: str) -> bool:
    command = [sys.executable, str(Path(__file__)), "--inside", name, *arguments]
    return subprocess.run(command, check=False, env=os.environ | {"JOULEGRAM_NATIVE": "0"}).returncode == 0


def main() -> int:
    """The exit status: how many targets found something."""
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true", help="replace the committed corpus")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    options = parser.parse_args()
    names = options.targets or sorted(path.name for path in (HERE / "corpus").iterdir())
    failed = [name for name in names if not fuzz(name, options.seconds)]
    if options.keep:
        for name in names:
            keep(name)
    print(f"found something: {', '.join(failed) or 'nothing'}")  # noqa: T201 - what it is run for
    return len(failed)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    sys.exit(main())
