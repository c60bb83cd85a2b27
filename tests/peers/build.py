"""Builds the peers of the tests once: Go and Rust programs of pinned sources, Python and JS ones with what they pin.

    python tests/peers/build.py                 the programs that tests run by default, five minutes with nothing cached
    python tests/peers/build.py otelcol         one of them

Invariants:
    * every module is checked against the committed go.sum, every wheel and package against the committed hashes, every
      crate by cargo against its lock; one that differs is an error, never a reason to skip;
    * what is built lies under .build/, which git ignores, and is built anew only when what it is made of has changed;
    * two runs at once do not build the same thing: the second waits for the first.

Where modules and packages come from is the machine's own affair: nothing here names an address.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
BUILD = HERE / ".build"
_TAMPERED = ("checksum mismatch", "SECURITY ERROR", "missing go.sum entry", "DO NOT MATCH THE HASHES", "EINTEGRITY")
"""What go, pip and npm say when a download is not what was pinned."""


class PeerMissingError(Exception):
    """A peer cannot be had on this machine: a toolchain, the network or the packages are not there."""


class PeerBuildError(Exception):
    """A peer could not be built although everything for it was there, or a download was not what was pinned."""


@dataclass(frozen=True)
class GoPeer:
    """A program of a Go module.

    Args:
        folder: under ``go/``; its go.mod and go.sum pin everything.
        package: what is built there.
    """

    folder: str
    package: str


GO_PEERS = {
    "builder": GoPeer("builder", "go.opentelemetry.io/collector/cmd/builder"),
    "otelcol": GoPeer("collector", "."),
    "telemetrygen": GoPeer(
        "telemetrygen", "github.com/open-telemetry/opentelemetry-collector-contrib/cmd/telemetrygen"
    ),
    "grpcurl": GoPeer("grpcurl", "github.com/fullstorydev/grpcurl/cmd/grpcurl"),
    "h2spec": GoPeer("h2spec", "github.com/summerwind/h2spec/cmd/h2spec"),
    "node_exporter": GoPeer("node_exporter", "github.com/prometheus/node_exporter"),
}


def go_program(name: str) -> Path:
    """The program of a Go peer, built if it is not there or no longer what its pins say.

    Raises:
        PeerMissingError: Go is not installed, or its modules cannot be had.
        PeerBuildError: a module is not what go.sum says, or it does not compile.
    """
    if shutil.which("go") is None:
        raise PeerMissingError("go is not installed")
    peer = GO_PEERS[name]
    source = HERE / "go" / peer.folder
    with _once(f"go-{name}", sorted(source.iterdir())) as directory:
        if directory is not None:
            work = directory / "source"
            shutil.copytree(source, work)
            if name == "otelcol":
                _generate_collector(go_program("builder"), work)
            # Fetching may fail for want of a network; compiling, from then on with none, may not.
            packages = ["go", "list", "-mod=readonly", "-deps", "-f", "{{.ImportPath}}", peer.package]
            _run(packages, work, f"the Go modules of {name} cannot be had", missing=True)
            compile_ = ["go", "build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", str(directory / name)]
            _run([*compile_, peer.package], work, f"{name} does not compile", missing=False, GOPROXY="off")
            shutil.rmtree(work)
    return BUILD / f"go-{name}" / name


def _generate_collector(builder: Path, work: Path) -> None:
    """The Collector's main package, as its own builder writes it; the pins are ours, so it resolves nothing."""
    generate = [str(builder), "--config=builder.yaml", "--skip-get-modules", "--skip-compilation"]
    pins = {name: (work / name).read_bytes() for name in ("go.mod", "go.sum")}
    _run(generate, work, "the Collector's builder failed", missing=False)
    for name, content in pins.items():
        (work / name).write_bytes(content)


def json_exporter_python() -> Path:
    """A Python that has the OTLP/HTTP JSON exporter, which pins other versions than ours and so lives by itself.

    Raises:
        PeerMissingError: the packages cannot be had.
        PeerBuildError: a package is not what its hash says.
    """
    return python_environment("json", HERE / "python" / "json-exporter.txt")


def python_environment(name: str, lock: Path, python: str = sys.executable) -> Path:
    """The Python of an environment that holds what a lock pins, and nothing else.

    Args:
        name: of the environment.
        lock: a requirements file with hashes.
        python: the interpreter it is made of.

    Raises:
        PeerMissingError: the packages cannot be had.
        PeerBuildError: a package is not what its hash says.
    """
    with _once(f"python-{name}", [lock]) as directory:
        if directory is not None:
            _run([python, "-m", "venv", "."], directory, "no environment can be made", missing=True)
            install = ["bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            why = f"the packages of {lock.stem} cannot be had"
            _run([*install, "--require-hashes", "-r", str(lock)], directory, why, missing=True)
    return BUILD / f"python-{name}" / "bin" / "python"


def js_job() -> Path:
    """The folder of the JS job with the packages that its lock pins.

    Raises:
        PeerMissingError: node and npm are not installed, or the packages cannot be had.
        PeerBuildError: a package is not what its hash says.
    """
    if shutil.which("npm") is None:
        raise PeerMissingError("node and npm are not installed")
    source = HERE / "js"
    files = [source / name for name in ("package.json", "package-lock.json", ".npmrc", "send.mjs")]
    with _once("js", files) as directory:
        if directory is not None:
            for path in files:
                shutil.copy(path, directory)
            # Its packages need no install scripts: what they ship is run as it is.
            install = ["npm", "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund"]
            _run(install, directory, "the npm packages of the JS job cannot be had", missing=True)
    return BUILD / "js"


def interpreter(version: str) -> str:
    """A Python of this minor version, as ``3.12``.

    Raises:
        PeerMissingError: there is none on the path.
    """
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    found = shutil.which(f"python{version}")
    works = found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
    if found is None or not works:
        raise PeerMissingError(f"python{version} is not installed")
    return found


def cargo_program(name: str, version: str, *options: str) -> Path:
    """The program of a crate at this version, built with the crate's own lock, whose checksums cargo holds it to.

    Raises:
        PeerMissingError: cargo is not installed, or the crate or what it needs cannot be had or compiled.
    """
    if shutil.which("cargo") is None:
        raise PeerMissingError("cargo is not installed")
    with _once(f"cargo-{name}-{version}", []) as directory:
        if directory is not None:
            install = ["cargo", "install", "--quiet", "--locked", "--version", version, "--root", ".", *options, name]
            _run(install, directory, f"the crate {name} cannot be had", missing=True, CARGO_TARGET_DIR="target")
            shutil.rmtree(directory / "target", ignore_errors=True)
    return BUILD / f"cargo-{name}-{version}" / "bin" / name


@contextmanager
def _once(name: str, sources: list[Path]) -> Iterator[Path | None]:
    """An empty directory to build in, or None where what these sources give is there; locked meanwhile."""
    wanted = hashlib.sha256(b"".join(source.read_bytes() for source in (*sources, Path(__file__)))).hexdigest()
    BUILD.mkdir(exist_ok=True)
    directory = BUILD / name
    stamp = directory / "stamp"
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.is_file() and stamp.read_text() == wanted:
            yield None
            return
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        yield directory
        stamp.write_text(wanted)


def _run(command: list[str], directory: Path, why: str, *, missing: bool, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=directory, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return
    said = (done.stderr or done.stdout).strip()
    if missing and not any(mark in said for mark in _TAMPERED):
        raise PeerMissingError(f"{why}: {said.splitlines()[-1] if said else 'no reason given'}")
    raise PeerBuildError(f"{why}: {' '.join(command)}\n{said}")


def main() -> None:
    """Build what is named on the command line, else everything; say where it is."""
    others = {"python-json": json_exporter_python, "js": js_job}
    known = [*GO_PEERS, *others]
    for name in sys.argv[1:] or known:
        if name not in known:
            sys.exit(f"got {name!r}, expected one of {', '.join(known)}")
        try:
            path = others[name]() if name in others else go_program(name)
        except (PeerMissingError, PeerBuildError) as error:
            sys.exit(str(error))
        sys.stdout.write(f"{name}: {path.relative_to(HERE.parents[1])}\n")


if __name__ == "__main__":
    main()
