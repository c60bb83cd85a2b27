"""Builds the native parts of processor and SDK into the wheel, where there is a C compiler; else it is pure Python.

The compiler is that of `sysconfig`, or ``CC`` where it is set; ``CC=false`` leaves the native parts out. They are
optional by design: `joulegram_processor.native` and `joulegram.native` do without, and what they do is the same. The
modules keep to the stable ABI, so one build serves every CPython from 3.11. An editable install has them built in
place, git ignores them there.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = (Path("processor/joulegram_processor"), Path("sdk/joulegram"))
MODULE = "_native.abi3.so"
FLAGS = ("-std=c11", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")


class NativeBuild(BuildHookInterface[Any]):
    """Hatchling's hook for the wheel; ``editable`` is the version of an editable install."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say in the wheel's tag what came of it."""
        root = Path(self.root)
        if version == "editable":
            for package in PACKAGES:
                self._compile(package, root / package / MODULE)
            return
        self._scratch = tempfile.TemporaryDirectory()
        for package in PACKAGES:
            made = Path(self._scratch.name) / f"{package.name}-{MODULE}"
            if not self._compile(package, made):
                continue
            build_data["force_include"][str(made)] = f"{package.name}/{MODULE}"
            build_data["pure_python"] = False
            build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - the hook's
        """The wheel is packed: what was compiled for it may go."""
        if version != "editable":
            self._scratch.cleanup()

    def _compile(self, package: Path, target: Path) -> bool:
        """Compile to `target`; where that cannot be, nothing is there and one line says why."""
        target.unlink(missing_ok=True)
        if platform.python_implementation() != "CPython" or os.name != "posix":
            self.app.display_info(f"{package.name} without its native part: it is for CPython on POSIX")
            return False
        sources = sorted(str(path) for path in (Path(self.root) / package).glob("_native*.c"))
        link = shlex.split(sysconfig.get_config_var("LDSHARED") or "cc -shared")
        if "CC" in os.environ:
            link[:1] = shlex.split(os.environ["CC"])
        command = [*link, *FLAGS, f"-I{sysconfig.get_path('include')}", *sources, "-o", str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
            why = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[0]
        except OSError as error:
            why = str(error)
        if why:
            target.unlink(missing_ok=True)
            self.app.display_warning(f"{package.name} without its native part: {command[0]}: {why}")
        return not why
