"""Libraries of the simulators that are written in C, compiled when a test needs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

_FOLDER = tempfile.TemporaryDirectory(prefix="simulators-")


@cache
def built(source: Path, *options: str) -> Path:
    """The library of a source, compiled once for each set of options; skips the test where there is no compiler."""
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        pytest.skip(f"no C compiler {compiler!r} to build {source.name}")
    path = Path(_FOLDER.name) / f"{'-'.join((source.stem, *options))}.so"
    # Without a soname: with another library's, whoever asks for that later in this process would be given this one.
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", *options]
    subprocess.run([compiler, *flags, "-o", str(path), str(source), "-ldl"], check=True)
    return path


@cache
def needs_header(name: str) -> None:
    """Skip the test where the compiler does not find this header of the system's."""
    compiler = os.environ.get("CC", "cc")
    looked = [compiler, "-fsyntax-only", "-include", name, "-x", "c", os.devnull]
    if shutil.which(compiler) is None or subprocess.run(looked, capture_output=True).returncode != 0:
        pytest.skip(f"no <{name}> for the C compiler {compiler!r}")
