from __future__ import annotations

import fcntl
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from joulegram_pipeline.errors import BusyError, ConfigError, DocumentError, StorageError
from joulegram_sink import stac
from joulegram_sink.rollup_document import rollup_document
from joulegram_sink.stac import JSON_ASSET, PROV_ASSET, patch_item, relative_href, resolve_item, update_item
from simulators.sample_runs import RUN_ID, run_record

HREFS = {JSON_ASSET: "../a.json", PROV_ASSET: "../a.jsonld"}
ROLLUP = rollup_document(run_record())


def item(version: str = "1.1.0", **changes: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": version,
        "id": "hrrr-20260102",
        "geometry": {"type": "Point", "coordinates": [-122.2880486, 38.5]},
        "bbox": [-122.2880486, 38.5, -122.2880486, 38.5],
        "properties": {"datetime": "2026-01-02T03:04:05.5Z", "title": "Zürich"},
        "links": [{"rel": "self", "href": "https://example.org/items/hrrr.json"}],
        "assets": {"data": {"href": "./data.tif", "roles": ["data"]}},
        **changes,
    }


def as_bytes(document: dict[str, Any], indent: int | None = 2) -> bytes:
    return json.dumps(document, indent=indent, ensure_ascii=False).encode()


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("assets", [{}, {"data": {"href": "./data.tif"}}], ids=["no assets", "an asset"])
@pytest.mark.parametrize("telemetry", [None, {"stale": 1, "run_id": "old"}], ids=["none", "stale"])
def test_an_item_gets_telemetry_and_two_assets(
    version: str, indent: int | None, assets: dict[str, Any], telemetry: dict[str, Any] | None
) -> None:
    """S0-40, S0-46, S0-47, D-39: whole values under stable keys, twice the same bytes, all else as it was."""
    before = item(version, assets=assets)
    if telemetry is not None:
        before["properties"]["telemetry"] = telemetry
    data = as_bytes(before, indent)
    patched = patch_item(data, ROLLUP, HREFS, "telemetry")
    assert patch_item(patched, ROLLUP, HREFS, "telemetry") == patched
    after = json.loads(patched)
    assert after["properties"].pop("telemetry") == ROLLUP
    assert list(ROLLUP)[13] == "recorded_at"
    attached = {key: after["assets"].pop(key) for key in HREFS}
    assert (attached[JSON_ASSET]["type"], attached[JSON_ASSET]["roles"]) == ("application/json", ["metadata"])
    assert attached[PROV_ASSET]["type"] == "application/ld+json"
    assert attached[PROV_ASSET]["roles"] == ["metadata", "provenance"]
    assert all(asset["title"] for asset in attached.values())
    before["properties"].pop("telemetry", None)
    assert after == before


def test_numbers_and_escapes_stay_as_they_are_written() -> None:
    """D-35: version, instants, number text, escapes, order and line ends are not rewritten."""
    text = (
        '{"type":"Feature","stac_version":"1.0.0",\r\n "bbox":[-122.288048600,0.0000275,1E3,1.0],'
        '"properties":{"datetime":"2026-01-02T03:04:05.5Z","n":"\\u00e9\\/"},"assets":{}}\r\n'
    )
    patched = patch_item(text.encode(), ROLLUP, HREFS, "telemetry").decode()
    for piece in re.split(r"(?=\},\"assets\":)|(?<=\"assets\":\{)", text):
        assert piece in patched


def test_the_other_name_for_telemetry_is_allowed() -> None:
    """C-05: `kfm:telemetry` may be chosen; any other name might be a field of STAC."""
    patched = json.loads(patch_item(as_bytes(item()), ROLLUP, HREFS, "kfm:telemetry"))
    assert "telemetry" not in patched["properties"]
    assert patched["properties"]["kfm:telemetry"]["run_id"] == RUN_ID
    with pytest.raises(ConfigError, match="got 'datetime', expected one of telemetry"):
        patch_item(as_bytes(item()), ROLLUP, HREFS, "datetime")


def without(key: str) -> bytes:
    document = item()
    del document[key]
    return as_bytes(document)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected a JSON value"),
    "not UTF-8": ("{}".encode("utf-16"), "expected a STAC Item in UTF-8"),
    "a list": (b"[]", "got '\\[\\]', expected an object"),
    "a collection": (as_bytes(item(type="Collection")), "got 'Collection', expected 'Feature'"),
    "no type": (without("type"), "got None, expected 'Feature'"),
    "no version": (without("stac_version"), "stac_version: got None"),
    "version as number": (as_bytes(item(stac_version=1.0)), "stac_version: got 1.0"),
    "old version": (as_bytes(item("0.9.0")), "stac_version: got '0.9.0'"),
    "no properties": (without("properties"), "properties: got no such member"),
    "properties null": (as_bytes(item(properties=None)), "properties: got 'null', expected an object"),
    "no assets": (without("assets"), "assets: got no such member"),
    "assets a list": (as_bytes(item(assets=[])), "assets: got '\\[\\]', expected an object"),
    "key twice": (as_bytes(item())[:-1] + b',"id":"other"}', "expected key 'id' once"),
    "truncated": (as_bytes(item())[:-20], "expected"),
    "NaN": (as_bytes(item(bbox=[float("nan")])), "expected a JSON value"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_item_is_refused_untouched(tmp_path: Path, name: str) -> None:
    """A file that is no STAC Item is quoted in the error and keeps every byte."""
    data, says = BAD[name]
    path = tmp_path / "item.json"
    path.write_bytes(data)
    with pytest.raises(DocumentError, match=says) as caught:
        update_item(path, ROLLUP, {}, "telemetry")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == data


def test_a_patch_that_would_touch_more_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """C-25: the diff is asserted before anything is written, should the splice ever be wrong."""

    def clumsy(text: str, path: tuple[str, ...], value: object) -> str:
        return json.dumps({**json.loads(text), "bbox": [1]})

    monkeypatch.setattr(stac, "set_member", clumsy)
    with pytest.raises(DocumentError, match="differs in more than our members"):
        patch_item(as_bytes(item()), ROLLUP, HREFS, "telemetry")


def test_pystac_reads_the_patched_item(tmp_path: Path) -> None:
    """S0-03, D-36: pystac finds the telemetry, and the assets' hrefs lead to the files from the Item's own place."""
    import pystac

    (tmp_path / "items").mkdir()
    (tmp_path / "run" / "assets").mkdir(parents=True)
    files = {JSON_ASSET: tmp_path / "run/assets/a.json", PROV_ASSET: tmp_path / "run/assets/a.jsonld"}
    for file in files.values():
        file.write_text("{}")
    path = tmp_path / "items" / "hrrr.json"
    path.write_bytes(as_bytes(item(links=[])))
    update_item(path, ROLLUP, files)
    read = pystac.Item.from_file(str(path))
    assert read.properties["telemetry"]["co2_kg"] == 0.004
    for key, file in files.items():
        href = read.assets[key].get_absolute_href()
        assert href is not None
        assert Path(href).resolve() == file


def test_an_href_is_seen_from_the_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D-36: the working directory does not matter; a colon in the name does not make a scheme."""
    monkeypatch.chdir("/")
    assert relative_href(tmp_path / "items/x.json", tmp_path / "runs/a.json") == "../runs/a.json"
    assert relative_href(tmp_path / "x.json", tmp_path / "a:b.json") == "./a:b.json"


def test_an_item_never_names_a_missing_asset(tmp_path: Path) -> None:
    """D-40: assets first, the Item last."""
    path = tmp_path / "item.json"
    path.write_bytes(as_bytes(item()))
    with pytest.raises(DocumentError, match=r"gone\.json.*expected a file that is there"):
        update_item(path, ROLLUP, {JSON_ASSET: tmp_path / "gone.json"})
    assert path.read_bytes() == as_bytes(item())


def test_an_item_that_needs_no_change_is_not_written(tmp_path: Path) -> None:
    """A replay leaves the file itself alone: same inode."""
    path = tmp_path / "item.json"
    path.write_bytes(as_bytes(item()))
    update_item(path, ROLLUP, {})
    inode = path.stat().st_ino
    update_item(path, ROLLUP, {})
    assert path.stat().st_ino == inode


def test_two_writers_take_turns(tmp_path: Path) -> None:
    """Read, patch and write are one step: of many writers at once none undoes another's."""
    path = tmp_path / "item.json"
    path.write_bytes(as_bytes(item()))
    files = [tmp_path / f"{number}.json" for number in range(8)]
    for file in files:
        file.write_text("{}")
    writers = [
        threading.Thread(target=update_item, args=(path, ROLLUP, {f"asset-{number}": file}))
        for number, file in enumerate(files)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert set(json.loads(path.read_bytes())["assets"]) == {"data", *(f"asset-{number}" for number in range(8))}


def test_a_folder_that_stays_locked_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone who never lets go of the lock cannot hold the sidecar for ever."""
    path = tmp_path / "item.json"
    path.write_bytes(as_bytes(item()))
    monkeypatch.setattr(stac, "_LOCK_WAIT_S", 0.05)
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(BusyError, match="locked by another process"):
        update_item(path, ROLLUP, {})
    os.close(fd)
    update_item(path, ROLLUP, {})


def test_an_item_that_went_away_is_a_storage_error(tmp_path: Path) -> None:
    """Between naming and patching the file may go."""
    for path in (tmp_path / "item.json", tmp_path / "gone" / "item.json"):
        with pytest.raises(StorageError, match="cannot"):
            update_item(path, ROLLUP, {})


def test_an_item_is_found_in_its_root(tmp_path: Path) -> None:
    """Absolute, relative, and through a symlink that stays inside; the answer is the real file."""
    root = tmp_path / "catalog"
    (root / "items").mkdir(parents=True)
    real = root / "items" / "a.json"
    real.write_text("{}")
    (root / "link.json").symlink_to(real)
    (tmp_path / "mount").symlink_to(root)
    roots = [tmp_path / "absent", root]
    for named in (
        str(real),
        "items/a.json",
        "link.json",
        "items/../items/a.json",
        str(tmp_path / "mount/items/a.json"),
    ):
        assert resolve_item(named, roots) == real
    assert resolve_item("items/a.json", [tmp_path / "mount"]) == real


@pytest.mark.parametrize(
    "named",
    ["../secret.json", "/etc/hostname", "out.json", "dir", "fifo", "missing.json", "loop", "a\0b", "", "x" * 5000],
)
def test_a_job_cannot_name_a_file_outside(tmp_path: Path, named: str) -> None:
    """Out of the root by dots, absolutely or by symlink, or no regular file: refused, quoting the name."""
    root = tmp_path / "catalog"
    (root / "dir").mkdir(parents=True)
    (tmp_path / "secret.json").write_text("{}")
    (root / "out.json").symlink_to(tmp_path / "secret.json")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "fifo")
    with pytest.raises(DocumentError, match="expected a regular file inside one of") as caught:
        resolve_item(named, [root])
    assert repr(named) in str(caught.value)
    with pytest.raises(DocumentError):
        resolve_item(str(root / "out.json"), [])
