from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from joulegram_schemas import NAMES, SchemaError, schema, validate, validator
from joulegram_sink.ledger_format import ZERO_HASH, genesis_line, run_line
from joulegram_sink.prov import prov_document
from joulegram_sink.rollup_document import rollup_document
from simulators.sample_runs import run_record, span_record, unmeasured

Json = dict[str, Any]


def rollup(**changes: Any) -> Json:
    return {**rollup_document(run_record()), **changes}


def less(value: Json, *keys: str) -> Json:
    return {key: item for key, item in value.items() if key not in keys}


def line(**changes: Any) -> Json:
    return {**span_record(0), "seq": 1, "prev_hash": "sha256:" + "a" * 64, **changes}


def prov(**changes: Any) -> Json:
    return {**prov_document(run_record(), rollup_document(run_record()), "1.0"), **changes}


JOINED = {
    "kfm.run_id": "etl-20260102T030405Z",
    "energy.cpu_j": 1.2,
    "energy.total_j": 1.5,
    "energy.method": "measured",
    "energy.scope": "host",
    "energy.allocation_ratio": 0.5,
    "timing.duration_s": 1.0,
    "carbon.gco2e": 0.000167,
    "carbon.gco2e_lower": 0.00015,
    "carbon.gco2e_upper": 0.000184,
    "carbon.gas": "co2e",
    "carbon.region": "SPSO",
    "carbon.intensity_g_per_kwh": 400.0,
    "carbon.resolution": "annual",
    "carbon.table": "epa-egrid-subregion@2023r2-0123abcd",
    "of.the.user": "stays",
}
UNAVAILABLE = {"energy.method": "unavailable", "energy.reason": "no source", "timing.duration_s": 1.0}

GOOD: dict[str, tuple[str, Json]] = {
    "roll-up": ("telemetry-rollup-v1", rollup()),
    "roll-up, unmeasured": ("telemetry-rollup-v1", rollup_document(unmeasured())),
    "genesis": ("ledger-line-v1", genesis_line("01JGFJJZ00ABCDEFGHJKMNPQRS")),
    "span line": ("ledger-line-v1", line()),
    "run line": ("ledger-line-v1", {**run_line(run_record()), "seq": 1, "prev_hash": ZERO_HASH}),
    "run line, unmeasured": ("ledger-line-v1", {**run_line(unmeasured()), "seq": 1, "prev_hash": ZERO_HASH}),
    "provenance": ("telemetry-prov-v1", prov()),
    "joined span": ("otel-energy-span-v1", JOINED),
    "unavailable span": ("otel-energy-span-v1", UNAVAILABLE),
    "node span": (
        "otel-energy-span-v1",
        {**JOINED, **{f"kfm.{key}": "x" for key in ("node", "component", "domain", "pipeline_kind")}},
    ),
}

BAD: dict[str, tuple[str, Json, str]] = {
    "key of nobody": ("telemetry-rollup-v1", rollup(extra=1), "$"),
    "bytes as float (D-34)": ("telemetry-rollup-v1", rollup(bytes_sent=1.5), "$.bytes_sent"),
    "bytes negative (S0-65)": ("telemetry-rollup-v1", rollup(bytes_sent=-1), "$.bytes_sent"),
    "energy negative (S0-66)": ("telemetry-rollup-v1", rollup(energy_joules=-1.0), "$.energy_joules"),
    "carbon without energy (S0-67)": (
        "telemetry-rollup-v1",
        rollup(energy_joules=None, energy_kwh=None, energy_reason="x", energy_method="unavailable"),
        "$.co2_kg",
    ),
    "energy missing without a reason": (
        "telemetry-rollup-v1",
        less(rollup_document(unmeasured()), "energy_reason"),
        "$",
    ),
    "factor missing without a reason (S0-57)": (
        "telemetry-rollup-v1",
        less(rollup(emission_factor_kg_per_kwh=None, co2_kg=None), "co2_kg_lower", "co2_kg_upper"),
        "$",
    ),
    "factor not recorded (S0-57)": ("telemetry-rollup-v1", less(rollup(), "emission_factor_kg_per_kwh"), "$"),
    "source empty (S0-58)": (
        "telemetry-rollup-v1",
        rollup(emission_factor_source=""),
        "$.emission_factor_source",
    ),
    "method missing (D-42)": ("telemetry-rollup-v1", less(rollup(), "energy_method"), "$"),
    "method unknown": ("telemetry-rollup-v1", rollup(energy_method="guessed"), "$.energy_method"),
    "not labelled (S0-68)": ("telemetry-rollup-v1", rollup(co2_label="exact"), "$.co2_label"),
    "time without zone": ("telemetry-rollup-v1", rollup(started_at="2026-01-02T03:04:05"), "$.started_at"),
    "time of no calendar": ("telemetry-rollup-v1", rollup(started_at="2026-02-30T03:04:05Z"), "$.started_at"),
    "time in words": ("telemetry-rollup-v1", rollup(started_at="todayZ"), "$.started_at"),
    "run id with a slash (D-41)": ("telemetry-rollup-v1", rollup(run_id="a/../../etc"), "$.run_id"),
    "run id with dots (D-41)": ("telemetry-rollup-v1", rollup(run_id="etl-..-20260102"), "$.run_id"),
    "line of no kind": ("ledger-line-v1", line(kind="note"), "$.kind"),
    "line without pos": ("ledger-line-v1", less(line(), "pos"), "$"),
    "trace id of zeros": ("ledger-line-v1", line(trace_id="0" * 32), "$.trace_id"),
    "float in a line": ("ledger-line-v1", line(energy={"method": "measured", "total_uj": 1.5}), "$.energy.total_uj"),
    "unsafe integer in a line": ("ledger-line-v1", line(origin=2**53), "$.origin"),
    "null attribute (D-22)": ("otel-energy-span-v1", {**JOINED, "energy.gpu_j": None}, "$['energy.gpu_j']"),
    "energy negative": ("otel-energy-span-v1", {**JOINED, "energy.cpu_j": -0.1}, "$['energy.cpu_j']"),
    "no energy, no reason": ("otel-energy-span-v1", less(UNAVAILABLE, "energy.reason"), "$"),
    "unavailable with joules": ("otel-energy-span-v1", {**UNAVAILABLE, "energy.total_j": 0.0}, "$"),
    "carbon without its gas (C-02)": ("otel-energy-span-v1", less(JOINED, "carbon.gas"), "$"),
    "one bound alone": ("otel-energy-span-v1", less(JOINED, "carbon.gco2e_upper"), "$"),
    "node without its domain (S1-22)": ("otel-energy-span-v1", {**JOINED, "kfm.node": "a"}, "$"),
    "context elsewhere": (
        "telemetry-prov-v1",
        prov(**{"@context": "https://example.org/c.jsonld"}),
        "$['@context']",
    ),
    "provenance of nothing": ("telemetry-prov-v1", prov(**{"@graph": []}), "$['@graph']"),
    "term outside prov and kfm": (
        "telemetry-prov-v1",
        prov(**{"@graph": [*prov()["@graph"], {"@id": "urn:kfm:x", "@type": ["prov:Entity"], "note": "x"}]}),
        "$['@graph'][6]",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_each_schema_is_a_draft_2020_12_schema(name: str) -> None:
    """Every file says its draft and its own name, and is a schema by that draft."""
    loaded = schema(name)
    Draft202012Validator.check_schema(loaded)
    assert loaded["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert loaded["$id"] == f"urn:joulegram:schema:{name}"


@pytest.mark.parametrize("case", GOOD)
def test_what_we_write_is_valid(case: str) -> None:
    """S0-61, B1, B2: what the writers make, and the attributes of design section 6, pass their schema."""
    name, instance = GOOD[case]
    validate(name, instance)
    validate(name, json.loads(json.dumps(instance)))


@pytest.mark.parametrize("case", BAD)
def test_what_breaks_a_contract_is_quoted(case: str) -> None:
    """The error has the path, the value that stood there and what was expected."""
    name, instance, path = BAD[case]
    with pytest.raises(SchemaError) as caught:
        validate(name, instance)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: got ")
    assert ", expected " in str(caught.value)


def test_a_schema_that_is_not_there_is_named() -> None:
    """Asking for an unknown schema says which there are."""
    for ask in (schema, validator):
        with pytest.raises(SchemaError, match="got 'telemetry', expected one of agent-protocol-v1, ledger-line-v1"):
            ask("telemetry")


def test_a_schema_handed_out_is_the_callers_own() -> None:
    """Changing what `schema` gave changes nothing for the next."""
    schema("telemetry-rollup-v1").clear()
    assert schema("telemetry-rollup-v1")["title"]


def test_a_long_value_is_cut_in_the_message() -> None:
    """A document of megabytes does not become a message of megabytes."""
    with pytest.raises(SchemaError) as caught:
        validate("telemetry-rollup-v1", rollup(status=["x" * 10_000]))
    assert len(str(caught.value)) < 600


def test_importing_the_loader_is_cheap() -> None:
    """Jsonschema is loaded by the first validation, not by the import."""
    code = "import sys, joulegram_schemas; sys.exit('jsonschema' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
