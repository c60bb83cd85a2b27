"""What the build of the peers says when it cannot, or must not, go on."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from peers import build

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="node and npm are not installed")
needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="go is not installed")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pins in a folder of their own, where nothing is built yet."""
    for name in ("go", "js", "python"):
        shutil.copytree(build.HERE / name, tmp_path / name)
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "BUILD", tmp_path / ".build")
    return tmp_path


def test_without_go_the_reason_is_said(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Go is no failure: the error is the one that tests turn into a skip."""
    monkeypatch.setenv("PATH", str(copy))

    with pytest.raises(build.PeerMissingError, match="go is not installed"):
        build.go_program("grpcurl")


@needs_go
def test_without_modules_the_reason_is_said(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one that has Go and cannot reach any module."""
    monkeypatch.setenv("GOPROXY", "off")
    monkeypatch.setenv("GOFLAGS", "-modcacherw")  # else what little there is could not be deleted again
    monkeypatch.setenv("GOMODCACHE", str(copy / "modules"))

    with pytest.raises(build.PeerMissingError, match=r"the Go modules of grpcurl cannot be had: .*GOPROXY=off"):
        build.go_program("grpcurl")


@needs_go
def test_a_module_that_is_not_what_was_pinned_is_an_error(copy: Path, grpcurl: Path) -> None:
    """A checksum that differs never becomes a skip, and leaves nothing behind that could be run."""
    sums = copy / "go" / "grpcurl" / "go.sum"
    text, changed = re.subn(r"(fullstorydev/grpcurl v\S+ h1:)\w{4}", r"\1AAAA", sums.read_text())
    assert changed
    sums.write_text(text)

    with pytest.raises(build.PeerBuildError, match="checksum mismatch"):
        build.go_program("grpcurl")

    assert not (copy / ".build" / "go-grpcurl" / "grpcurl").exists()
    assert not (copy / ".build" / "go-grpcurl" / "stamp").exists()


def test_without_npm_the_reason_is_said(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without node is no failure."""
    monkeypatch.setenv("PATH", str(copy))

    with pytest.raises(build.PeerMissingError, match="node and npm are not installed"):
        build.js_job()


@needs_npm
def test_without_npm_packages_the_reason_is_said(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one that has npm and reaches no registry; nothing is left that would pass for built."""
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_cache", str(copy / "cache"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")

    with pytest.raises(build.PeerMissingError, match="the npm packages of the JS job cannot be had: "):
        build.js_job()

    assert not (copy / ".build" / "js" / "stamp").exists()


@needs_npm
def test_an_npm_package_that_is_not_what_was_pinned_is_an_error(copy: Path) -> None:
    """An integrity that differs never becomes a skip."""
    try:
        build.js_job()
    except build.PeerMissingError as error:
        pytest.skip(str(error))
    lock = copy / "js" / "package-lock.json"
    text, changed = re.subn(r'("integrity": "sha512-)\w{8}', r"\1AAAAAAAA", lock.read_text())
    assert changed
    lock.write_text(text)

    with pytest.raises(build.PeerBuildError, match="EINTEGRITY"):
        build.js_job()


def test_what_is_built_is_not_built_again(grpcurl: Path) -> None:
    """A second call gives the same file, untouched."""
    before = grpcurl.stat().st_mtime_ns

    assert build.go_program("grpcurl") == grpcurl
    assert grpcurl.stat().st_mtime_ns == before
