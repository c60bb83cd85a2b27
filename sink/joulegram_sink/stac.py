"""Patches a STAC Item in place: our telemetry and two assets, no other byte (S0-40, S0-46, S0-47, S0-56).

Invariants:
    * what is written differs from what was read in `properties.<telemetry key>` and the two assets alone;
      that is checked on the parsed documents before anything is written (C-25, D-35);
    * our values are replaced whole, so nothing of an earlier run is left in them (D-39);
    * reading, patching and writing hold a lock on the Item's folder; the Item is replaced atomically (D-40).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from joulegram_pipeline.errors import BusyError, ConfigError, DocumentError, StorageError
from joulegram_pipeline.files import replace_file
from joulegram_sink.json_splice import find, scan, set_member

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TELEMETRY_KEYS: Final = ("telemetry", "kfm:telemetry")
"""Names the telemetry may have in `properties` (C-05); the first is the default."""

JSON_ASSET: Final = "telemetry-json"
PROV_ASSET: Final = "telemetry-prov"

_MAX_ITEM_BYTES = 64 * 1024 * 1024
_LOCK_WAIT_S = 10.0
_LOCK_POLL_S = 0.02


def check_telemetry_key(key: str) -> str:
    """Return `key` if the telemetry may stand under it.

    Raises:
        ConfigError: quoting it; any other name could be a field of STAC itself.
    """
    if key not in TELEMETRY_KEYS:
        raise ConfigError("stac.telemetry_key", key, "one of " + ", ".join(TELEMETRY_KEYS))
    return key


def resolve_item(named: str, roots: Sequence[Path]) -> Path:
    """The Item a job named: a regular file inside one of the catalogue's folders, symlinks followed first.

    Args:
        named: absolute, or relative to one of `roots`.
        roots: folders whose Items may be patched.

    Raises:
        DocumentError: quoting the name; it is not there, no regular file, or outside every root.
    """
    for root in roots:
        try:
            real_root = root.resolve(strict=True)
            path = (real_root / named).resolve(strict=True)
            regular = stat.S_ISREG(path.stat().st_mode)
        except (OSError, ValueError, RuntimeError):
            # Not below this root: missing, a NUL in its name, or symlinks in a circle.
            continue
        if regular and path.is_relative_to(real_root):
            return path
    expected = f"expected a regular file inside one of {[str(root) for root in roots]}"
    raise DocumentError(f"STAC Item: got {named!r}, {expected}", f"STAC Item: {expected}")


def patch_item(data: bytes, telemetry: Mapping[str, Any], hrefs: Mapping[str, str], key: str) -> bytes:
    """The bytes of an Item with our members set.

    Args:
        data: the Item as it is, UTF-8.
        telemetry: the roll-up.
        hrefs: of the assets, by asset key; relative to the Item.
        key: name of the telemetry in `properties`.

    Raises:
        DocumentError: the data is no STAC Item, or no JSON that can be patched safely.
    """
    check_telemetry_key(key)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        expected = f"expected a STAC Item in UTF-8: {error}"
        raise DocumentError(f"got {data[:80]!r}, {expected}", expected) from error
    _check_item(text)
    assets = {name: _asset(name, href) for name, href in hrefs.items()}
    patched = set_member(text, ("properties", key), dict(telemetry))
    for name, asset in assets.items():
        patched = set_member(patched, ("assets", name), asset)
    if _without(text, key, assets) != _without(patched, key, assets):
        text = "the patched STAC Item differs in more than our members: nothing was written"
        raise DocumentError(text, text)
    return patched.encode("utf-8")


def update_item(
    path: Path, telemetry: Mapping[str, Any], files: Mapping[str, Path], key: str = TELEMETRY_KEYS[0]
) -> None:
    """Patch an Item on disk, after its assets exist.

    Args:
        path: the Item, as `resolve_item` gave it.
        telemetry: the roll-up.
        files: the asset files by asset key.
        key: name of the telemetry in `properties`.

    Raises:
        DocumentError: it is no STAC Item, or an asset is missing; the Item is as it was.
        BusyError: another process held the folder's lock for 10 s.
        StorageError: the disk refused; the Item is as it was.
    """
    for file in files.values():
        if not file.is_file():
            expected = "expected a file that is there before the Item names it"
            raise DocumentError(f"STAC asset: got {str(file)!r}, {expected}", f"STAC asset: {expected}")
    hrefs = {name: relative_href(path, file) for name, file in files.items()}
    with _locked(path.parent):
        try:
            if path.stat().st_size > _MAX_ITEM_BYTES:
                expected = f"expected at most {_MAX_ITEM_BYTES} bytes"
                raise DocumentError(f"STAC Item {str(path)!r}: {expected}", f"STAC Item: {expected}")
            data = path.read_bytes()
        except OSError as error:
            raise StorageError(f"cannot read STAC Item {str(path)!r}: {error.strerror or error}") from error
        try:
            patched = patch_item(data, telemetry, hrefs, key)
        except DocumentError as error:
            raise DocumentError(f"STAC Item {str(path)!r}: {error}", f"STAC Item: {error.plain}") from error
        if patched != data:
            replace_file(path, patched)


def relative_href(item: Path, file: Path) -> str:
    """The href of an asset as seen from its Item, never from a working directory (D-36)."""
    href = Path(os.path.relpath(file.resolve(), item.resolve().parent)).as_posix()
    # A first segment with a colon would read as a URI scheme; "./" keeps it a path.
    return href if href.startswith("../") else f"./{href}"


def _asset(name: str, href: str) -> dict[str, Any]:
    if name == JSON_ASSET:
        kind, title, roles = "application/json", "Run energy and carbon telemetry", ["metadata"]
    else:
        kind, title, roles = (
            "application/ld+json",
            "Run telemetry provenance (PROV-O)",
            ["metadata", "provenance"],
        )
    return {"href": href, "type": kind, "title": title, "roles": roles}


def _check_item(text: str) -> None:
    root = scan(text)
    find(text, root, ("properties",))
    find(text, root, ("assets",))
    document = json.loads(text.removeprefix("\ufeff"))
    if document.get("type") != "Feature":
        raise DocumentError(f"type: got {document.get('type')!r}, expected 'Feature'", "type: expected 'Feature'")
    version = document.get("stac_version")
    if not isinstance(version, str) or not version.startswith("1."):
        expected = "expected '1.0.0' or '1.1.0'"
        raise DocumentError(f"stac_version: got {version!r}, {expected}", f"stac_version: {expected}")


def _without(text: str, key: str, assets: Mapping[str, object]) -> Any:
    """The document without our members: pairs in their order, numbers in their own digits."""

    def pairs(members: list[tuple[str, Any]]) -> tuple[str, list[tuple[str, Any]]]:
        return ("object", members)

    number = _Number
    document = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=pairs, parse_int=number, parse_float=number)
    out = []
    for name, value in document[1]:
        kept = value
        if name == "properties":
            kept = [pair for pair in value[1] if pair[0] != key]
        elif name == "assets":
            kept = [pair for pair in value[1] if pair[0] not in assets]
        out.append((name, kept))
    return out


class _Number(str):
    """A number as it is written, so that 1.0 and 1 differ; no string equals it."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Number) and str.__eq__(self, other)

    __hash__ = str.__hash__


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder: on the folder itself, so that no lock file is left in a catalogue."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"cannot open folder {str(folder)!r}: {error.strerror or error}") from error
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise BusyError(
                        f"folder {str(folder)!r} was locked by another process for {_LOCK_WAIT_S:g} s"
                    ) from error
                time.sleep(_LOCK_POLL_S)
            except OSError as error:
                raise StorageError(f"cannot lock folder {str(folder)!r}: {error.strerror or error}") from error
        yield
    finally:
        os.close(fd)
