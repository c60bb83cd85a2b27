"""The documents of a run: roll-up, provenance, and the STAC Item the job named (S0-03, S0-39, D-40).

Invariants:
    * roll-up, then provenance, then the Item: an Item never names a file that is not there;
    * each is whole or as it was before; an Item that cannot be patched does not lose the other two;
    * the same RunRecord gives the same bytes, so a replay writes nothing new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joulegram_pipeline.errors import DocumentError, RetryableError
from joulegram_pipeline.files import replace_file, safe_mkdir
from joulegram_pipeline.ids import check_run_id
from joulegram_sink.prov import prov_document
from joulegram_sink.rollup_document import document_bytes, rollup_document
from joulegram_sink.stac import (
    JSON_ASSET,
    PROV_ASSET,
    TELEMETRY_KEYS,
    check_telemetry_key,
    resolve_item,
    update_item,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.records import RunRecord

STAC_ITEM = "stac_item"
TELEMETRY_JSON = "telemetry_json"
TELEMETRY_PROV = "telemetry_prov"


class RunDocuments:
    """Writes the documents of runs.

    Args:
        data_dir: documents go to ``<data_dir>/runs/<run_id>/assets/``.
        roots: folders whose STAC Items a job may name; none means no Item is patched.
        version: of joulegram, recorded as the software agent.
        metrics: counts what was written and what could not be, by kind.
        telemetry_key: name of the telemetry in an Item's `properties`.

    Raises:
        ConfigError: the telemetry key is not one of `TELEMETRY_KEYS`.
    """

    def __init__(
        self,
        data_dir: Path,
        roots: Sequence[Path],
        version: str,
        metrics: Metrics | None = None,
        telemetry_key: str = TELEMETRY_KEYS[0],
    ) -> None:
        self._data_dir = data_dir
        self._roots = tuple(roots)
        self._version = version
        self._metrics = metrics
        self._telemetry_key = check_telemetry_key(telemetry_key)

    def write(self, run: RunRecord) -> dict[str, Path]:
        """Write roll-up and provenance, and patch the Item if the job named one.

        Returns:
            Paths by `telemetry_json`, `telemetry_prov` and, where an Item was patched, `stac_item`.

        Raises:
            IdentifierError: the run id may not be part of a path (D-41).
            DocumentError: the Item is not one, not where Items may be, locked or read-only; the other two are written.
            StorageError: the disk refused; what came before in the order is written.
        """
        kind = TELEMETRY_JSON
        try:
            assets = self._data_dir / "runs" / check_run_id(run.run_id) / "assets"
            rollup = rollup_document(run)
            written = {kind: _write_json(assets, run, rollup)}
            self._count(kind)
            kind = TELEMETRY_PROV
            written[kind] = _write_prov(assets, run, rollup, self._version)
            self._count(kind)
            if run.stac_item is not None:
                kind = STAC_ITEM
                item = resolve_item(run.stac_item, self._roots)
                try:
                    update_item(item, rollup, _assets(written), self._telemetry_key)
                except RetryableError as error:
                    # The Item is the job's: one that is locked or read-only must not hold up everybody's ledger.
                    plain = f"the STAC Item was not patched: {type(error).__name__}"
                    raise DocumentError(f"STAC Item {str(item)!r} was not patched: {error}", plain) from error
                written[kind] = item
                self._count(kind)
        except Exception:
            if self._metrics is not None:
                self._metrics.run_document_failures.labels(kind).inc()
            raise
        return written

    def _count(self, kind: str) -> None:
        if self._metrics is not None:
            self._metrics.run_documents.labels(kind).inc()


def persist_to_stac(item_path: Path, out_assets_dir: Path, result: RunRecord, version: str) -> dict[str, Path]:
    """Write a run's documents to a folder and attach them to an Item, by its path (S0-39).

    Returns:
        Paths by `stac_item`, `telemetry_json`, `telemetry_prov`.

    Raises:
        IdentifierError, DocumentError, BusyError, StorageError: as `RunDocuments.write`.
    """
    rollup = rollup_document(result)
    written = {
        TELEMETRY_JSON: _write_json(out_assets_dir, result, rollup),
        TELEMETRY_PROV: _write_prov(out_assets_dir, result, rollup, version),
    }
    update_item(item_path, rollup, _assets(written))
    return {STAC_ITEM: item_path, **written}


def _write_json(folder: Path, run: RunRecord, rollup: dict[str, Any]) -> Path:
    path = safe_mkdir(folder) / f"{check_run_id(run.run_id)}-telemetry.json"
    replace_file(path, document_bytes(rollup))
    return path


def _write_prov(folder: Path, run: RunRecord, rollup: dict[str, Any], version: str) -> Path:
    path = folder / f"{check_run_id(run.run_id)}-telemetry-prov.jsonld"
    replace_file(path, document_bytes(prov_document(run, rollup, version)))
    return path


def _assets(written: dict[str, Path]) -> dict[str, Path]:
    return {JSON_ASSET: written[TELEMETRY_JSON], PROV_ASSET: written[TELEMETRY_PROV]}
