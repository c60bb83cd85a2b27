"""The provenance of a run: PROV-O as JSON-LD with an inline context, readable offline (S0-43 to S0-45, D-37).

Invariants:
    * every value is a typed literal or a reference, so that expansion loses none of them (D-37);
    * what is not known is absent, never null (D-22);
    * two nodes of one name have two identifiers.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from joulegram_pipeline.canonical import sha256_hex
from joulegram_pipeline.clock import utc_iso
from joulegram_pipeline.units import ns_to_s, ug_to_g, uj_to_j, uj_to_kwh
from joulegram_sink.rollup_document import document_bytes

if TYPE_CHECKING:
    from joulegram_pipeline.records import NodeRecord, RunRecord, TableRef

CONTEXT = {
    "prov": "http://www.w3.org/ns/prov#",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
    "kfm": "urn:kfm:",
}
_FIGURES = (
    ("duration_seconds", "xsd:double"),
    ("energy_joules", "xsd:double"),
    ("energy_kwh", "xsd:double"),
    ("co2_kg", "xsd:double"),
    ("co2_kg_lower", "xsd:double"),
    ("co2_kg_upper", "xsd:double"),
    ("emission_factor_kg_per_kwh", "xsd:double"),
    ("emission_factor_source", "xsd:string"),
    ("energy_method", "xsd:string"),
    ("energy_scope", "xsd:string"),
    ("energy_reason", "xsd:string"),
    ("carbon_reason", "xsd:string"),
    ("co2_label", "xsd:string"),
    ("gas", "xsd:string"),
)
"""Members of the roll-up that are also literals of their own, for readers that do not know ``@json``."""


def prov_document(run: RunRecord, rollup: dict[str, Any], version: str) -> dict[str, Any]:
    """The provenance document of a run.

    Args:
        run: the run.
        rollup: its roll-up, the value of the telemetry entity.
        version: of joulegram, the software agent.
    """
    activity = f"urn:kfm:run:{run.run_id}"
    software = f"urn:kfm:agent:joulegram:{_part(version)}"
    hardware = f"urn:kfm:hw:{_part(run.hw_id)}"
    agents = _refs([software, hardware])
    tables = _refs([_table_id(table) for table in run.tables])
    run_node = {
        "@id": activity,
        "@type": ["prov:Activity"],
        "prov:startedAtTime": _instant(run.started_ns),
        "prov:endedAtTime": _instant(run.ended_ns),
        "kfm:run_id": _text(run.run_id),
        "kfm:job_type": _text(run.job_type),
        "kfm:status": _text(run.status),
        "kfm:revision": _literal(str(run.revision), "xsd:integer"),
        "prov:wasAssociatedWith": agents,
    }
    telemetry: dict[str, Any] = {
        "@id": f"urn:kfm:entity:telemetry:{run.run_id}",
        "@type": ["prov:Entity"],
        "prov:wasGeneratedBy": {"@id": activity},
        "prov:generatedAtTime": _instant(run.recorded_ns),
        "prov:wasAttributedTo": {"@id": software},
        "prov:value": {"@type": "@json", "@value": rollup},
        "kfm:sha256": _text(sha256_hex(document_bytes(rollup))),
    }
    if tables:
        run_node["prov:used"] = tables
        telemetry["prov:wasDerivedFrom"] = tables
    for key, kind in _FIGURES:
        value = rollup.get(key)
        if value is not None:
            telemetry[f"kfm:{key}"] = _literal(value if isinstance(value, str) else repr(value), kind)
    graph = [
        run_node,
        {
            "@id": software,
            "@type": ["prov:Agent", "prov:SoftwareAgent"],
            "kfm:name": _text("joulegram"),
            "kfm:version": _text(version),
        },
        {"@id": hardware, "@type": ["prov:Agent"], "kfm:hw_id": _text(run.hw_id)},
        *(_table(table) for table in run.tables),
        *_nodes(run, activity, agents),
        telemetry,
    ]
    return {"@context": CONTEXT, "@graph": graph}


def _nodes(run: RunRecord, activity: str, agents: list[dict[str, str]]) -> list[dict[str, Any]]:
    """One activity for each ETL node (S1-40)."""
    names = Counter(node.node for node in run.nodes)
    out = []
    for node in run.nodes:
        identifier = f"urn:kfm:node:{run.run_id}:{_part(node.node)}"
        if names[node.node] > 1:
            identifier += f":{node.trace_id}-{node.span_id}"
        out.append(
            {
                "@id": identifier,
                "@type": ["prov:Activity"],
                "prov:startedAtTime": _instant(node.started_ns),
                "prov:endedAtTime": _instant(node.ended_ns),
                "prov:wasAssociatedWith": agents,
                "kfm:part_of": {"@id": activity},
                "kfm:node": _text(node.node),
                "kfm:trace_id": _text(node.trace_id),
                "kfm:span_id": _text(node.span_id),
                "kfm:runtime_s": _double(ns_to_s(node.ended_ns - node.started_ns)),
                **_node_figures(node),
            }
        )
    return out


def _node_figures(node: NodeRecord) -> dict[str, Any]:
    figures = {
        "kfm:energy.cpu_j": None if node.cpu_uj is None else uj_to_j(node.cpu_uj),
        "kfm:energy.gpu_kwh": None if node.gpu_uj is None else uj_to_kwh(node.gpu_uj),
        "kfm:energy.total_j": None if node.total_uj is None else uj_to_j(node.total_uj),
        "kfm:carbon.gco2e": None if node.carbon_ug is None else ug_to_g(node.carbon_ug),
    }
    return {key: _double(value) for key, value in figures.items() if value is not None}


def _table(table: TableRef) -> dict[str, Any]:
    """The intensity table as an entity with its version and source (S1-30)."""
    return {
        "@id": _table_id(table),
        "@type": ["prov:Entity"],
        "kfm:title": _text(table.title),
        "kfm:version": _text(table.version),
        "kfm:source": _text(table.source_url),
        "kfm:publisher": _text(table.publisher),
        "kfm:license": _text(table.licence),
        "kfm:sha256": _text(table.sha256),
    }


def _table_id(table: TableRef) -> str:
    return f"urn:kfm:table:{_part(table.id)}@{_part(table.version)}"


def _part(text: str) -> str:
    """Text as one part of a URN: a colon or an at sign in it could make two things one."""
    return quote(text, safe="")


def _refs(identifiers: list[str]) -> list[dict[str, str]]:
    return [{"@id": identifier} for identifier in identifiers]


def _instant(wall_ns: int) -> dict[str, str]:
    return _literal(utc_iso(wall_ns), "xsd:dateTime")


def _double(value: float) -> dict[str, str]:
    # As text: a bare JSON number would be written anew by whoever expands it.
    return _literal(repr(value), "xsd:double")


def _text(value: str) -> dict[str, str]:
    return _literal(value, "xsd:string")


def _literal(value: str, kind: str) -> dict[str, str]:
    return {"@type": kind, "@value": value}
