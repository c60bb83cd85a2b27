from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.errors import ConfigError, DocumentError, IdentifierError, StorageError
from joulegram_pipeline.metrics import Metrics
from joulegram_schemas import validate
from joulegram_sink.documents import RunDocuments, persist_to_stac
from joulegram_sink.rollup_document import document_bytes, rollup_document
from simulators.sample_runs import RUN_ID, START_NS, run_record, unmeasured

if TYPE_CHECKING:
    from pathlib import Path

SEED_KEYS = [
    "run_id",
    "started_at",
    "ended_at",
    "duration_seconds",
    "energy_joules",
    "energy_kwh",
    "co2_kg",
    "bytes_sent",
    "bytes_received",
    "disk_bytes_read",
    "disk_bytes_write",
    "emission_factor_kg_per_kwh",
    "emission_factor_source",
    "recorded_at",
]


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """A catalogue of one Item."""
    root = tmp_path / "catalog"
    root.mkdir()
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "x", "properties": {}, "links": [], "assets": {}}
    (root / "x.json").write_text(json.dumps(item, indent=2))
    return root


def documents(tmp_path: Path, *roots: Path, metrics: Metrics | None = None) -> RunDocuments:
    return RunDocuments(tmp_path / "data", roots, "1.2.3", metrics)


def counted(metrics: Metrics, name: str, kind: str) -> float | None:
    return metrics.registry.get_sample_value(f"joulegram_sink_{name}_total", {"kind": kind})


def test_the_roll_up_has_the_seeds_keys_first() -> None:
    """B1, S0-01, S0-02, S0-28, S0-40: joules, bytes and kg in the seed's order, then how they came about (D-42)."""
    made = rollup_document(run_record())
    assert list(made)[:14] == SEED_KEYS
    assert made["energy_joules"] == 36000.0
    assert made["energy_kwh"] == 0.01
    assert made["co2_kg"] == 0.004
    assert (made["co2_kg_lower"], made["co2_kg_upper"]) == (0.0036, 0.0044)
    assert made["emission_factor_kg_per_kwh"] == 0.4
    assert made["duration_seconds"] == 90.5
    assert (made["started_at"], made["recorded_at"]) == ("2026-01-02T03:04:05Z", "2026-01-02T03:05:37Z")
    assert [made[key] for key in SEED_KEYS[7:11]] == [None] * 4
    assert (made["gas"], made["factor_region"]) == ("co2e", "SPSO")
    assert "energy_reason" not in made


def test_what_is_not_known_is_null_with_a_reason() -> None:
    """D-32, S0-57, S0-66, S0-67: neither 0 nor a guess; factor and source are recorded even so."""
    made = rollup_document(unmeasured())
    assert (made["energy_joules"], made["energy_kwh"], made["co2_kg"]) == (None, None, None)
    assert made["energy_reason"] == "no energy source on this node"
    assert made["carbon_reason"] == "energy is not known"
    assert made["emission_factor_kg_per_kwh"] == 0.4
    undeclared = rollup_document(
        run_record(factor_kg_per_kwh=None, factor_source=" ", carbon_ug=None, gas=None, carbon_reason=None)
    )
    assert undeclared["emission_factor_kg_per_kwh"] is None
    assert undeclared["emission_factor_source"] == "none declared"
    assert undeclared["carbon_reason"] == "no emission factor is declared"
    assert undeclared["energy_joules"] == 36000.0
    validate("telemetry-rollup-v1", undeclared)


@pytest.mark.parametrize(
    ("method", "scope", "expected"),
    [
        ("measured", "host", ("measured", "measured", "host", "estimate, host-level")),
        ("modelled", "process", ("estimated", "modelled", "process", "estimate, job-level")),
        ("reported", "span", ("estimated", "reported", "job", "estimate, job-level")),
        ("mixed", "mixed", ("mixed", "mixed", "host", "estimate, host-level")),
        ("measured", "pod", ("measured", "measured", "pod", "estimate, job-level")),
        ("measured", "container", ("measured", "measured", "container", "estimate, job-level")),
    ],
)
def test_method_and_scope_are_said_in_the_contracts_words(method: str, scope: str, expected: tuple[str, ...]) -> None:
    """S0-59, S0-60, S0-68: an estimate is called one, with its scope, and never narrower than it is (S0-06)."""
    made = rollup_document(run_record(energy_method=method, energy_scope=scope))
    keys = ("energy_method", "energy_method_detail", "energy_scope", "co2_label")
    assert tuple(made[key] for key in keys) == expected
    validate("telemetry-rollup-v1", made)


def test_a_factor_of_zero_is_a_factor() -> None:
    """D-16: 0 kg/kWh is declared, not missing."""
    made = rollup_document(
        run_record(factor_kg_per_kwh=0.0, carbon_ug=0, carbon_lower_ug=0, carbon_upper_ug=0, upper_bound=True)
    )
    assert (made["emission_factor_kg_per_kwh"], made["co2_kg"]) == (0.0, 0.0)
    assert made["factor_upper_bound"] is True
    validate("telemetry-rollup-v1", made)


def test_carbon_of_a_part_of_the_energy_is_called_that() -> None:
    """S0-53, S0-57: spans without carbon lower the run's factor; the document says so instead of hiding it."""
    made = rollup_document(run_record(carbon_ug=3_000_000))
    assert made["carbon_reason"].startswith("the carbon of 75.00% of the energy is known")
    assert math.isclose(made["energy_kwh"] * made["emission_factor_kg_per_kwh"], made["co2_kg"], rel_tol=1e-9)
    validate("telemetry-rollup-v1", made)
    assert "carbon_reason" not in rollup_document(run_record(carbon_ug=3_999_998))


@given(st.integers(1, 10**15), st.integers(1, 2_000_000))
def test_the_formulae_hold_in_what_is_written(energy_uj: int, mg_per_kwh: int) -> None:
    """S0-52, S0-53, C-02: kWh from J exactly, kg = kWh x factor to the microgram, and the factor is the table's own."""
    carbon_ug = round(energy_uj * mg_per_kwh / 3_600_000_000)
    made = rollup_document(
        run_record(
            energy_uj=energy_uj,
            carbon_ug=carbon_ug,
            carbon_lower_ug=carbon_ug,
            carbon_upper_ug=carbon_ug,
            factor_kg_per_kwh=mg_per_kwh / 1_000_000,
        )
    )
    read = json.loads(document_bytes(made))
    assert math.isclose(read["energy_kwh"], read["energy_joules"] / 3_600_000, rel_tol=1e-15)
    assert read["co2_kg"] == carbon_ug / 1e9
    assert read["emission_factor_kg_per_kwh"] == mg_per_kwh / 1_000_000
    product = read["energy_kwh"] * read["emission_factor_kg_per_kwh"]
    assert math.isclose(read["co2_kg"], product, rel_tol=1e-9, abs_tol=1e-9)


def test_all_three_documents_are_written(tmp_path: Path, catalog: Path) -> None:
    """S0-39, S0-41, S0-42: paths by key, names by run id, the Item naming files that are there; all counted."""
    metrics = Metrics()
    run = run_record(stac_item="x.json", job_type="größe")
    written = documents(tmp_path, catalog, metrics=metrics).write(run)
    assets = tmp_path / "data" / "runs" / RUN_ID / "assets"
    assert written == {
        "telemetry_json": assets / f"{RUN_ID}-telemetry.json",
        "telemetry_prov": assets / f"{RUN_ID}-telemetry-prov.jsonld",
        "stac_item": catalog / "x.json",
    }
    text = written["telemetry_json"].read_text(encoding="utf-8")
    assert text.startswith('{\n  "run_id": ')
    assert "größe" in text
    validate("telemetry-rollup-v1", json.loads(text))
    validate("telemetry-prov-v1", json.loads(written["telemetry_prov"].read_bytes()))
    item = json.loads(written["stac_item"].read_bytes())
    assert item["properties"]["telemetry"] == json.loads(text)
    for key, name in (("telemetry-json", "telemetry_json"), ("telemetry-prov", "telemetry_prov")):
        assert (catalog / item["assets"][key]["href"]).resolve() == written[name]
    for kind in written:
        assert counted(metrics, "run_documents", kind) == 1


def test_written_again_they_are_the_same_bytes(tmp_path: Path, catalog: Path) -> None:
    """C-27: a replay writes what was there; recorded_at is the log's time, not now."""
    run = run_record(stac_item="x.json")
    writer = documents(tmp_path, catalog)
    first = {key: path.read_bytes() for key, path in writer.write(run).items()}
    second = {key: path.read_bytes() for key, path in writer.write(run).items()}
    assert first == second
    assert len(first) == 3


def test_a_revision_replaces_the_one_before(tmp_path: Path, catalog: Path) -> None:
    """D-39: late spans change the documents whole, and they say so."""
    writer = documents(tmp_path, catalog)
    writer.write(run_record(stac_item="x.json"))
    later = run_record(
        stac_item="x.json", revision=2, recorded_ns=START_NS + 200_000_000_000, carbon_lower_ug=None, spans=4
    )
    written = writer.write(later)
    telemetry = json.loads((catalog / "x.json").read_bytes())["properties"]["telemetry"]
    assert telemetry == json.loads(written["telemetry_json"].read_bytes())
    assert (telemetry["revision"], telemetry["spans"]) == (2, 4)
    assert "co2_kg_lower" not in telemetry


def test_without_an_item_there_are_two_documents(tmp_path: Path) -> None:
    """A job that names no Item gets roll-up and provenance."""
    assert set(documents(tmp_path).write(run_record())) == {"telemetry_json", "telemetry_prov"}


@pytest.mark.parametrize("named", ["../outside.json", "missing.json", "broken.json"])
def test_an_item_that_cannot_be_patched_loses_nothing_else(tmp_path: Path, catalog: Path, named: str) -> None:
    """D-40: roll-up and provenance are there, the failure is raised and counted by kind."""
    (tmp_path / "outside.json").write_text("{}")
    (catalog / "broken.json").write_text('{"type": "Feature"')
    metrics = Metrics()
    before = (catalog / "broken.json").read_bytes()
    with pytest.raises(DocumentError, match=named):
        documents(tmp_path, catalog, metrics=metrics).write(run_record(stac_item=named))
    assets = tmp_path / "data" / "runs" / RUN_ID / "assets"
    assert len(list(assets.iterdir())) == 2
    assert (catalog / "broken.json").read_bytes() == before
    assert counted(metrics, "run_document_failures", "stac_item") == 1
    assert counted(metrics, "run_documents", "telemetry_prov") == 1


def test_a_disk_that_refuses_leaves_the_item(tmp_path: Path, catalog: Path) -> None:
    """S0-48: no document, no Item: a run is not published without its provenance."""
    before = (catalog / "x.json").read_bytes()
    (tmp_path / "data" / "runs").mkdir(parents=True)
    (tmp_path / "data" / "runs" / RUN_ID).write_text("in the way")
    metrics = Metrics()
    with pytest.raises(StorageError, match=RUN_ID):
        documents(tmp_path, catalog, metrics=metrics).write(run_record(stac_item="x.json"))
    assert (catalog / "x.json").read_bytes() == before
    assert counted(metrics, "run_document_failures", "telemetry_json") == 1


@pytest.mark.parametrize("run_id", ["../../../etc/cron.d/x", "a/b-12345678", "..-12345678", "short"])
def test_a_run_id_never_leads_out_of_the_folder(tmp_path: Path, run_id: str) -> None:
    """D-41: an id that is no name is refused before anything is made."""
    with pytest.raises(IdentifierError, match="run_id: got"):
        documents(tmp_path).write(run_record(run_id=run_id))
    assert not (tmp_path / "data").exists()


def test_the_seeds_function_does_the_same(tmp_path: Path, catalog: Path) -> None:
    """S0-39: persist_to_stac(item_path, out_assets_dir, result) gives the three paths and the same documents."""
    run = run_record(stac_item="x.json")
    by_class: dict[str, Any] = documents(tmp_path, catalog).write(run)
    (catalog / "y.json").write_bytes((catalog / "x.json").read_bytes())
    by_function = persist_to_stac(catalog / "y.json", tmp_path / "out", run, "1.2.3")
    assert by_function["stac_item"] == catalog / "y.json"
    for key in ("telemetry_json", "telemetry_prov"):
        assert by_function[key].read_bytes() == by_class[key].read_bytes()
    assert "../out/" in (catalog / "y.json").read_text()


def test_a_key_that_may_not_hold_telemetry_is_refused_at_start(tmp_path: Path) -> None:
    """C-05: the mistake shows when the sidecar starts, not when the first run ends."""
    with pytest.raises(ConfigError, match=r"stac\.telemetry_key: got 'id'"):
        RunDocuments(tmp_path, [], "1.2.3", telemetry_key="id")
